# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts together: what one does through one API is seen through the others, because tasks really run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.conftest import SandboxUnderTest

WriteScenario = Callable[..., Path]


def messages(sandbox: SandboxUnderTest, tier: str, since: float, pattern: str = "") -> list[str]:
    pages = sandbox.client("logs").get_paginator("filter_log_events")
    query = {"logGroupName": f"/ecs/cabal-{tier}", "startTime": int(since * 1000), "filterPattern": pattern}
    return [event["message"] for page in pages.paginate(**query) for event in page["events"]]


def eventually(condition: Callable[[], Any], seconds: float = 30) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.2)
    return found


def test_names_of_the_deployment(quiet: SandboxUnderTest) -> None:
    sqs, sns, ssm, ec2 = (quiet.client(name) for name in ("sqs", "sns", "ssm", "ec2"))
    for tier in ("imap", "smtp-in", "smtp-out"):
        url = sqs.get_queue_url(QueueName=f"cabal-reconfig-{tier}")["QueueUrl"]
        assert url.startswith(quiet.url)
        attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        assert attributes["VisibilityTimeout"] == "60"
        assert attributes["MessageRetentionPeriod"] == "3600"
        assert "RedrivePolicy" not in attributes
    (topic,) = sns.list_topics()["Topics"]
    assert topic["TopicArn"].endswith(":cabal-address-changed")
    assert len(sns.list_subscriptions()["Subscriptions"]) == 3
    (heartbeat,) = ssm.describe_parameters(
        ParameterFilters=[{"Key": "Name", "Values": ["/cabal/healthcheck_ping_ecs_reconfigure"]}]
    )["Parameters"]
    assert heartbeat["Type"] == "SecureString"
    assert 39 < (time.time() - heartbeat["LastModifiedDate"].timestamp()) / 86_400 < 41
    (eip,) = ec2.describe_addresses(Filters=[{"Name": "tag:Name", "Values": ["cabal-nat-eip-*"]}])["Addresses"]
    assert eip["PublicIp"] == "198.51.100.125"
    (gateway,) = ec2.describe_nat_gateways(Filters=[{"Name": "tag:Name", "Values": ["cabal-nat-*"]}])["NatGateways"]
    assert gateway["NatGatewayAddresses"][0]["PublicIp"] == "198.51.100.125"
    discovery = quiet.client("servicediscovery")
    instances = {
        service["Name"]: discovery.list_instances(ServiceId=service["Id"])["Instances"]
        for service in discovery.list_services()["Services"]
    }
    assert instances["imap"][0]["Attributes"]["AWS_INSTANCE_IPV4"] == "10.0.2.45"
    assert set(instances) == {"imap", "smtp-out"}


def test_a_nat_instance_that_is_stopped(running: SandboxUnderTest, write_scenario: WriteScenario) -> None:
    running.load(write_scenario(network={"nat": "instance", "nat_state": "stopped"}))
    ec2 = running.client("ec2")
    (reservation,) = ec2.describe_instances(Filters=[{"Name": "tag:Name", "Values": ["cabal-nat-*"]}])["Reservations"]
    assert reservation["Instances"][0]["State"]["Name"] == "stopped"
    routes = [route for table in ec2.describe_route_tables()["RouteTables"] for route in table["Routes"]]
    assert reservation["Instances"][0]["InstanceId"] in {route.get("InstanceId") for route in routes}


def test_queues_hold_what_was_declared(running: SandboxUnderTest, write_scenario: WriteScenario) -> None:
    tiers: dict[str, Any] = {tier: {"log_level": 9} for tier in ("imap", "smtp-in", "smtp-out")}
    tiers["imap"]["tasks"] = [{"loop": "dead", "maps": {"age_minutes": 100}}]
    running.load(write_scenario(tiers=tiers, queues={"imap": {"visible": 3, "not_visible": 12}}))
    sqs = running.client("sqs")
    url = sqs.get_queue_url(QueueName="cabal-reconfig-imap")["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert attributes["ApproximateNumberOfMessages"] == "3"
    assert attributes["ApproximateNumberOfMessagesNotVisible"] == "12"


def test_a_changed_address_reaches_the_tasks(quiet: SandboxUnderTest) -> None:
    """Row, topic, queue, loop, log: the way of a real change."""
    since = time.time()
    quiet.client("dynamodb").put_item(
        TableName="cabal-addresses",
        Item={
            "address": {"S": "fresh@s.harborlight.example"},
            "username": {"S": "fresh"},
            "subdomain": {"S": "s"},
            "tld": {"S": "harborlight.example"},
            "user": {"S": "amelia"},
        },
    )
    sns = quiet.client("sns")
    sns.publish(TopicArn=sns.list_topics()["Topics"][0]["TopicArn"], Message=json.dumps({"event": "new"}))
    for tier in ("imap", "smtp-in", "smtp-out"):
        eventually(lambda tier=tier: "[reconfigure] Done." in messages(quiet, tier, since, '"[reconfigure]"'))
        said = messages(quiet, tier, since)
        assert "[reconfigure] SQS message received, triggering regeneration..." in said
        assert f"[generate-config] Generating config files for tier={tier}..." in said
    eventually(lambda: sum(call["operation"] == "healthchecks.Ping" for call in quiet.calls()) == 3)


def test_a_redeploy_brings_a_healthy_task(running: SandboxUnderTest) -> None:
    running.load("smtp-in-stale-map")
    ecs = running.client("ecs")
    since = time.time()
    ecs.update_service(cluster="cabal-mail", service="cabal-smtp-in", forceNewDeployment=True)
    described = {"cluster": "cabal-mail", "services": ["cabal-smtp-in"]}
    ecs.get_waiter("services_stable").wait(**described, WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    said = messages(running, "smtp-in", since)
    assert "[entrypoint] Starting smtp-in tier configuration..." in said
    assert "[reconfigure] Starting config watch loop (tier: smtp-in)" in said
    (arn,) = ecs.list_tasks(cluster="cabal-mail", serviceName="cabal-smtp-in")["taskArns"]
    streams = running.client("logs").describe_log_streams(logGroupName="/ecs/cabal-smtp-in")["logStreams"]
    assert f"smtp-in/smtp-in/{arn.rsplit('/', 1)[-1]}" in {stream["logStreamName"] for stream in streams}


def test_a_row_that_makemap_refuses_keeps_new_tasks_from_starting(
    running: SandboxUnderTest, write_scenario: WriteScenario
) -> None:
    running.load(
        write_scenario(
            addresses=[
                {"address": "a@s.harborlight.example", "user": "alice"},
                {"address": "odd@s.harborlight.example", "user": ""},
            ]
        )
    )
    ecs = running.client("ecs")
    ecs.update_service(cluster="cabal-mail", service="cabal-smtp-in", forceNewDeployment=True)

    def failed() -> int:
        answer = ecs.describe_services(cluster="cabal-mail", services=["cabal-smtp-in"])
        return int(answer["services"][0]["deployments"][0]["failedTasks"])

    assert eventually(failed) >= 1


def test_a_missing_group_and_a_silent_tier(running: SandboxUnderTest, write_scenario: WriteScenario) -> None:
    tiers = {
        "imap": {"log_level": 9, "log_group": "missing"},
        "smtp-in": {"log_level": 2, "silent_minutes": 60},
        "smtp-out": {"log_level": 2},
    }
    running.load(write_scenario(tiers=tiers))
    logs = running.client("logs")
    with pytest.raises(logs.exceptions.ResourceNotFoundException):
        logs.filter_log_events(logGroupName="/ecs/cabal-imap")
    assert messages(running, "smtp-in", time.time() - 3600) == []
    assert messages(running, "smtp-in", time.time() - 7200) != []
    assert messages(running, "smtp-out", time.time() - 3600) != []


def test_the_metrics_have_what_the_lines_had(running: SandboxUnderTest, write_scenario: WriteScenario) -> None:
    """Monitoring off has no metric; on, each stretch with events has a sum, 0 where no line was counted."""
    lines = "".join(
        f"2026-11-28T{hour}:00:01.000000+00:00 h sendmail[1]: x: dsn=5.1.1\n" for hour in ("09", "09", "17")
    )
    day = {"StartTime": time.time() - 86_400, "EndTime": time.time()}

    def sums() -> list[float]:
        stat = {
            "Metric": {"Namespace": "Cabalmail/Logs", "MetricName": "SendmailBounced"},
            "Period": 300,
            "Stat": "Sum",
        }
        query = [{"Id": "lines", "MetricStat": stat}]
        answer = running.client("cloudwatch").get_metric_data(MetricDataQueries=query, **day)
        return list(answer["MetricDataResults"][0]["Values"])

    running.load(write_scenario("watched", {"smtp-out.maillog": lines}))
    assert sorted(value for value in sums() if value) == [1, 2]
    assert 0 in sums()
    running.load(write_scenario("unwatched", {"smtp-out.maillog": lines}, parameters={"heartbeat": None}))
    assert sums() == []


def test_alert_file_follows_the_scenario(running: SandboxUnderTest, write_scenario: WriteScenario) -> None:
    running.load(write_scenario("paged"))
    alert = json.loads((running.state_dir / "alert.json").read_text())
    assert alert["alerts"][0]["labels"]["alertname"] == "SendmailBouncedSpike"
    running.load(write_scenario("unpaged", alert=None))
    assert not (running.state_dir / "alert.json").exists()


def test_a_broken_scenario_leaves_the_loaded_one(quiet: SandboxUnderTest, write_scenario: WriteScenario) -> None:
    import urllib.error

    with pytest.raises(urllib.error.HTTPError) as refused:
        quiet.load(write_scenario(agent={"nonsense": 1}))
    assert "nonsense" in json.loads(refused.value.read())["error"]
    assert len(quiet.client("ecs").list_tasks(cluster="cabal-mail")["taskArns"]) == 3
