# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading an environment: complete, and with each part denied, missing, throttled or silent."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible.module_utils.aws_support import explain
from ansible.module_utils.cabalmail.environment.reader import EnvironmentReader, Request, Tier
from ansible.module_utils.cabalmail.privacy import Masker
from botocore.exceptions import ClientError
from moto import mock_aws

START = datetime(2026, 11, 24, 21, 0, tzinfo=UTC)
TIERS = tuple(Tier(name, f"cabal-{name}", f"cabal-reconfig-{name}", name) for name in ("imap", "smtp-in", "smtp-out"))
MASK = Masker(b"k" * 32).address
REGION = "us-east-1"


class Ecs:
    """ECS and Cloud Map as AWS answers them, for three services of one or two tasks."""

    def __init__(self) -> None:
        self.pool: str | None = None
        self.instances = {
            "srv-imap": [{"Id": "t", "Attributes": {"AWS_INSTANCE_IPV4": "10.0.2.45"}}],
            "srv-smtp-out": [],
        }

    def describe_services(self, cluster: str, services: list[str]) -> dict[str, Any]:
        tier = services[0].removeprefix("cabal-")
        return {
            "services": [
                {
                    "serviceName": services[0],
                    "status": "ACTIVE",
                    "desiredCount": 1,
                    "runningCount": 1,
                    "pendingCount": 0,
                    "enableExecuteCommand": True,
                    "deploymentConfiguration": {"minimumHealthyPercent": 100, "maximumPercent": 200},
                    "taskDefinition": f"arn:aws:ecs:us-east-1:123456789012:task-definition/{tier}:7",
                    "serviceRegistries": [
                        {"registryArn": f"arn:aws:servicediscovery:us-east-1:123456789012:service/srv-{tier}"}
                    ],
                    "deployments": [
                        {
                            "id": "ecs-svc/1",
                            "status": "PRIMARY",
                            "rolloutState": "IN_PROGRESS",
                            "createdAt": START,
                            "updatedAt": START,
                            "taskDefinition": f"arn:aws:ecs:us-east-1:123456789012:task-definition/{tier}:7",
                            "desiredCount": 1,
                            "runningCount": 1,
                            "failedTasks": 2,
                        }
                    ],
                    "events": [{"createdAt": START, "message": f"event {n}"} for n in range(30)],
                }
            ]
        }

    def describe_task_definition(self, taskDefinition: str) -> dict[str, Any]:
        secrets = [
            {
                "name": "PING",
                "valueFrom": "arn:aws:ssm:us-east-1:123456789012:parameter/cabal/healthcheck_ping_ecs_reconfigure",
            },
            {"name": "GONE", "valueFrom": "/cabal/gone"},
            {"name": "ELSEWHERE", "valueFrom": "/other/secret"},
            {"name": "MANAGED", "valueFrom": "arn:aws:secretsmanager:us-east-1:123456789012:secret:x"},
        ]
        container = {
            "name": taskDefinition.rsplit("/", 1)[1].split(":")[0],
            "image": "repo/x:sha-0a1b2c3d",
            "secrets": secrets,
            "environment": [{"name": "COGNITO_POOL_ID", "value": self.pool}] if self.pool else [],
        }
        return {"taskDefinition": {"registeredAt": START, "containerDefinitions": [container]}}

    def get_paginator(self, name: str) -> Any:
        return self

    def paginate(self, **asked: Any) -> Iterator[dict[str, Any]]:
        if "ServiceId" in asked:
            yield {"Instances": self.instances[asked["ServiceId"]]}
        elif asked["desiredStatus"] == "RUNNING":
            yield {"taskArns": [f"arn:aws:ecs:us-east-1:123456789012:task/cabal-mail/{'a' * 32}"]}
            yield {"taskArns": []}
        else:
            yield {"taskArns": [f"arn:aws:ecs:us-east-1:123456789012:task/cabal-mail/{'b' * 32}"]}

    def describe_tasks(self, cluster: str, tasks: list[str]) -> dict[str, Any]:
        running = {
            "taskArn": tasks[0],
            "startedAt": START,
            "createdAt": START,
            "startedBy": "ecs-svc/1",
            "lastStatus": "RUNNING",
            "desiredStatus": "RUNNING",
            "healthStatus": "HEALTHY",
            "availabilityZone": "us-east-1a",
            "attachments": [
                {"details": [{"name": "subnetId", "value": "s"}, {"name": "privateIPv4Address", "value": "10.0.2.45"}]}
            ],
        }
        stopped = {
            "taskArn": tasks[1],
            "startedAt": START - timedelta(hours=1),
            "lastStatus": "STOPPED",
            "stoppedAt": START,
            "stoppedReason": "Essential container in task exited",
            "containers": [{"name": "imap", "exitCode": 137, "reason": "OutOfMemoryError"}],
        }
        return {"tasks": [running, stopped]}


class Cognito:
    """One pool with one user, as AdminGetUser answers."""

    class exceptions:
        UserNotFoundException = LookupError

    def admin_get_user(self, UserPoolId: str, Username: str) -> dict[str, Any]:
        if (UserPoolId, Username) != ("pool", "alice"):
            raise self.exceptions.UserNotFoundException
        attributes = [{"Name": "custom:osid", "Value": "2001"}]
        return {"Username": Username, "UserStatus": "UNCONFIRMED", "Enabled": True, "UserAttributes": attributes}


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """A factory of clients: moto's for what moto has, ours for ECS and Cloud Map."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        cached: dict[str, Any] = {"ecs": Ecs()}
        cached["servicediscovery"] = cached["ecs"]
        cached["cognito-idp"] = Cognito()
        for name in ("dynamodb", "sqs", "ssm", "ec2", "sns", "cloudwatch"):
            cached[name] = boto3.client(name, region_name=REGION)
        fill(cached)
        yield cached.__getitem__


def fill(clients: dict[str, Any]) -> None:
    tables = {"cabal-addresses": ["address"], "cabal-dmarc-reports": ["pk", "sk"]}
    for table, keys in tables.items():
        clients["dynamodb"].create_table(
            TableName=table,
            KeySchema=[
                {"AttributeName": key, "KeyType": kind} for key, kind in zip(keys, ("HASH", "RANGE"), strict=False)
            ],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in keys],
            BillingMode="PAY_PER_REQUEST",
        )
    for name, suspended in (("jane", False), ("joe", True)):
        clients["dynamodb"].put_item(
            TableName="cabal-addresses",
            Item={
                "address": {"S": f"{name}@s.example.com"},
                "username": {"S": name},
                "subdomain": {"S": "s"},
                "tld": {"S": "example.com"},
                "user": {"S": "alice"},
                "comment": {"S": "the bank"},
                "RequestTime": {"S": "2026-11-02T03:04:05.678Z"},
                **({"suspended": {"BOOL": True}} if suspended else {}),
            },
        )
    topic = clients["sns"].create_topic(Name="cabal-address-changed")["TopicArn"]
    for tier in TIERS:
        clients["sqs"].create_queue(QueueName=tier.queue)
        endpoint = f"arn:aws:sqs:{REGION}:123456789012:{tier.queue}"
        clients["sns"].subscribe(TopicArn=topic, Protocol="sqs", Endpoint=endpoint)
    for name, value in (
        ("/cabal/maintenance/imap", '{"active":true,"until":1795000000,"message":"roll"}'),
        ("/cabal/healthcheck_ping_ecs_reconfigure", "https://hc.example/1"),
    ):
        clients["ssm"].put_parameter(Name=name, Value=value, Type="String")
    fill_network(clients["ec2"])


def fill_network(ec2: Any) -> None:
    def named(kind: str, name: str) -> list[dict[str, Any]]:
        return [{"ResourceType": kind, "Tags": [{"Key": "Name", "Value": name}]}]

    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.1.0/24", AvailabilityZone="us-east-1b")["Subnet"]["SubnetId"]
    address = ec2.allocate_address(Domain="vpc", TagSpecifications=named("elastic-ip", "cabal-nat-eip-0"))
    ec2.allocate_address(Domain="vpc", TagSpecifications=named("elastic-ip", "unrelated"))
    gateway = ec2.create_nat_gateway(
        SubnetId=subnet, AllocationId=address["AllocationId"], TagSpecifications=named("natgateway", "cabal-nat-0")
    )["NatGateway"]["NatGatewayId"]
    table = ec2.create_route_table(VpcId=vpc, TagSpecifications=named("route-table", "cabal-private-0"))
    ec2.create_route(
        RouteTableId=table["RouteTable"]["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", NatGatewayId=gateway
    )


def read(client: Callable[[str], Any], work_dir: Path | None = None, deadline: float = 20) -> dict[str, Any]:
    request = Request("cabal-mail", TIERS, START, deadline, str(work_dir) if work_dir else None)
    return EnvironmentReader(request, client, explain, MASK).read()


def test_a_whole_environment(aws: Callable[[str], Any], tmp_path: Path) -> None:
    facts = read(aws, tmp_path)
    assert (facts["status"], facts["reasons"]) == ("complete", [])
    imap = facts["services"]["imap"]
    assert (imap["desired"], imap["running"], imap["exec_enabled"], imap["maximum_percent"]) == (1, 1, True, 200)
    assert imap["deployments"][0]["rollout_state"] == "IN_PROGRESS"
    assert imap["deployments"][0]["task_definition"] == "imap:7"
    assert len(imap["events"]) == 20
    assert (imap["image"], imap["registered_at"]) == ("repo/x:sha-0a1b2c3d", "2026-11-24T21:00:00Z")
    assert facts["queues"]["smtp-in"]["visible"] == 0
    assert facts["discovery"]["imap"]["instances"] == ["10.0.2.45"]
    # Registered nowhere is a fact that the verdict needs, not an absent reading.
    assert facts["discovery"]["smtp-out"] == {"status": "complete", "reasons": [], "instances": []}
    assert facts["parameters"]["heartbeat"]["exists"] is True
    assert facts["parameters"]["maintenance_imap"]["until"] == "2026-11-18T11:06:40Z"
    assert facts["parameters"]["maintenance_imap"]["last_modified"]
    assert {row["subscribed"] for row in facts["queues"].values()} == {True}
    assert facts["metrics"]["throttled_reads"] == 0
    assert facts["users"]["users"] == []
    assert json.dumps(facts)  # everything in it is plain


def test_tasks_running_and_stopped(aws: Callable[[str], Any]) -> None:
    stopped, running = read(aws)["services"]["imap"]["tasks"]
    assert (running["id"], running["ip"], running["zone"]) == ("a" * 32, "10.0.2.45", "us-east-1a")
    assert stopped["stop_reason"] == "Essential container in task exited; imap: exit 137, OutOfMemoryError"


def test_secrets_exist_or_not_or_unknown(aws: Callable[[str], Any]) -> None:
    secrets = {row["name"]: row["exists"] for row in read(aws)["services"]["smtp-in"]["secrets"]}
    assert secrets == {"PING": True, "GONE": False, "ELSEWHERE": None, "MANAGED": None}


def test_without_the_list_of_parameters_no_secret_is_called_missing(aws: Callable[[str], Any]) -> None:
    facts = read(failing(aws, "ssm", "get_paginator", denied("DescribeParameters")))
    assert {row["exists"] for row in facts["services"]["imap"]["secrets"]} == {None}
    assert facts["parameters"]["status"] == "partial"
    assert facts["parameters"]["heartbeat"] is None
    assert facts["parameters"]["maintenance_imap"]["active"] is True


def test_network_is_joined(aws: Callable[[str], Any]) -> None:
    network = read(aws)["network"]
    (address,), (gateway,), (route,) = network["addresses"], network["nat_gateways"], network["routes"]
    assert (address["name"], address["zone"], address["ip"]) == ("cabal-nat-eip-0", "us-east-1b", gateway["ip"])
    assert (route["target"], route["name"]) == (gateway["id"], "cabal-private-0")
    assert [(row["ip"], row["zone"]) for row in network["outbound"]] == [(gateway["ip"], "us-east-1b")]


def test_the_runbook_s_filter_for_the_nat_matches_nothing(aws: Callable[[str], Any]) -> None:
    """Defect 26: every NAT is called `cabal-nat-<n>`, and a filter without a wildcard is an exact one."""
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "cabal-nat-1"}]}]
    aws("ec2").run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1, TagSpecifications=tags)
    exact = {"Name": "tag:Name", "Values": ["cabal-nat"]}
    assert aws("ec2").describe_instances(Filters=[exact])["Reservations"] == []
    assert [way["name"] for way in read(aws)["network"]["nat_instances"]] == ["cabal-nat-1"]


def test_clear_addresses_are_only_in_the_private_file(aws: Callable[[str], Any], tmp_path: Path) -> None:
    facts = read(aws, tmp_path)
    path = tmp_path / "addresses.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["address"] for row in rows) == ["jane@s.example.com", "joe@s.example.com"]
    assert {row["suspended"] for row in rows} == {True, False}
    assert "the bank" not in path.read_text()
    assert "jane" not in json.dumps(facts)
    assert facts["addresses"]["rows"] == 2
    assert facts["addresses"]["suspended"] == 1
    assert facts["addresses"]["newest_request"] == "2026-11-02T03:04:05Z"


def test_own_and_foreign_sources_of_dmarc(aws: Callable[[str], Any]) -> None:
    ours = aws("ec2").describe_addresses(Filters=[{"Name": "tag:Name", "Values": ["cabal-nat-eip-*"]}])
    mine = ours["Addresses"][0]["PublicIp"]
    now = int(datetime.now(UTC).timestamp())
    for number, (source, result, age) in enumerate(
        [(mine, "pass", 0), (mine, "fail", 0), ("203.0.113.9", "fail", 0), (mine, "fail", 400 * 86400)]
    ):
        row = {
            "pk": f"s.example.com#{now - age}",
            "sk": f"{source}#{number}",
            "org_name": "google.com",
            "count": "3",
            "date_end": str(now - age),
            "source_ip": source,
            "dkim_result": result,
            "spf_result": "fail",
            "header_from": "s.example.com",
        }
        aws("dynamodb").put_item(
            TableName="cabal-dmarc-reports", Item={key: {"S": value} for key, value in row.items()}
        )
    dmarc = read(aws)["dmarc"]
    sources = {row["ip"]: row for row in dmarc["sources"]}
    assert (sources[mine]["ours"], sources[mine]["pass"], sources[mine]["fail"]) == (True, 3, 3)
    assert (sources["203.0.113.9"]["ours"], sources["203.0.113.9"]["messages"]) == (False, 3)
    assert dmarc["rows"] == 3


def denied(operation: str) -> ClientError:
    return ClientError({"Error": {"Code": "AccessDeniedException", "Message": "not authorized"}}, operation)


def failing(aws: Callable[[str], Any], service: str, method: str, error: Exception) -> Callable[[str], Any]:
    """The same environment, one method of one client failing."""

    class Failing:
        def __getattr__(self, name: str) -> Any:
            if name != method:
                return getattr(aws(service), name)

            def fail(*args: Any, **kwargs: Any) -> Any:
                raise error

            return fail

    broken = Failing()
    return lambda name: broken if name == service else aws(name)


@pytest.mark.parametrize(
    ("service", "method", "path"),
    [
        ("ecs", "describe_services", "/services/imap"),
        ("sqs", "get_queue_url", "/queues/imap"),
        ("servicediscovery", "get_paginator", "/discovery/imap"),
        ("dynamodb", "get_paginator", "/addresses"),
        ("dynamodb", "get_paginator", "/dmarc"),
        ("sns", "get_paginator", "/topic"),
        ("cloudwatch", "get_metric_data", "/metrics"),
    ],
)
def test_a_denied_part_is_unknown_and_harms_no_other(
    aws: Callable[[str], Any], tmp_path: Path, service: str, method: str, path: str
) -> None:
    facts = read(failing(aws, service, method, denied("Operation")), tmp_path)
    part = facts
    for key in path.strip("/").split("/"):
        part = part[key]
    assert part["status"] == "unavailable"
    assert "Operation was denied (AccessDeniedException: not authorized)" in part["reasons"][0]
    numbers = [value for key, value in part.items() if key in ("rows", "visible", "running", "desired", "instances")]
    numbers += [part[key] for key in ("queues", "throttled_reads") if key in part]
    assert numbers
    assert set(map(type, numbers)) == {type(None)}
    assert facts["status"] == "partial"
    assert facts["network"]["status"] == "complete"


def test_a_denied_table_leaves_no_file(aws: Callable[[str], Any], tmp_path: Path) -> None:
    read(failing(aws, "dynamodb", "get_paginator", denied("Scan")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tasks_denied_leaves_the_service(aws: Callable[[str], Any]) -> None:
    imap = read(failing(aws, "ecs", "describe_tasks", denied("DescribeTasks")))["services"]["imap"]
    assert imap["status"] == "partial"
    assert imap["running"] == 1
    assert imap["image"] == "repo/x:sha-0a1b2c3d"


def test_one_of_four_network_reads_denied(aws: Callable[[str], Any]) -> None:
    network = read(failing(aws, "ec2", "describe_addresses", denied("DescribeAddresses")))["network"]
    assert network["status"] == "partial"
    assert network["nat_gateways"]


def test_without_the_addresses_no_source_is_called_foreign(aws: Callable[[str], Any]) -> None:
    facts = read(failing(aws, "ec2", "describe_addresses", denied("DescribeAddresses")))
    assert all(row["ours"] is None for row in facts["dmarc"]["sources"])


def test_a_missing_service_and_queue(aws: Callable[[str], Any]) -> None:
    aws("sqs").delete_queue(QueueUrl=aws("sqs").get_queue_url(QueueName="cabal-reconfig-imap")["QueueUrl"])
    aws("ecs").describe_services = lambda **asked: {"services": [], "failures": [{"reason": "MISSING"}]}
    facts = read(aws)
    assert "does not exist in cluster cabal-mail" in facts["services"]["imap"]["reasons"][0]
    assert facts["queues"]["imap"]["status"] == "unavailable"
    assert facts["discovery"]["imap"]["status"] == "unavailable"
    assert facts["discovery"]["imap"]["instances"] is None


def publish(aws: Callable[[str], Any], namespace: str, name: str, dimension: str, of: str, value: float) -> None:
    dimensions = [{"Name": dimension, "Value": of}]
    data = [
        {
            "MetricName": name,
            "Dimensions": dimensions,
            "Value": value,
            "Timestamp": datetime.now(UTC) - timedelta(minutes=2),
        }
    ]
    aws("cloudwatch").put_metric_data(Namespace=namespace, MetricData=data)


def test_ages_of_messages_and_throttled_reads(aws: Callable[[str], Any]) -> None:
    age = "ApproximateAgeOfOldestMessage"
    publish(aws, "AWS/SQS", age, "QueueName", "cabal-reconfig-smtp-in", 640)
    publish(aws, "AWS/DynamoDB", "ReadThrottleEvents", "TableName", "cabal-addresses", 12)
    request = Request("cabal-mail", TIERS, datetime.now(UTC) - timedelta(minutes=30), 20)
    facts = EnvironmentReader(request, aws, explain, MASK).read()
    assert {tier: row["oldest_seconds"] for tier, row in facts["queues"].items()} == {
        "imap": None,
        "smtp-in": 640,
        "smtp-out": None,
    }
    assert facts["metrics"]["throttled_reads"] == 12


def test_a_queue_that_nobody_tells_of_changes(aws: Callable[[str], Any]) -> None:
    for row in aws("sns").list_subscriptions()["Subscriptions"]:
        if row["Endpoint"].endswith("cabal-reconfig-smtp-in"):
            aws("sns").unsubscribe(SubscriptionArn=row["SubscriptionArn"])
    queues = read(aws)["queues"]
    assert (queues["imap"]["subscribed"], queues["smtp-in"]["subscribed"]) == (True, False)
    unknown = read(failing(aws, "sns", "get_paginator", denied("ListSubscriptionsByTopic")))["queues"]
    assert {row["subscribed"] for row in unknown.values()} == {None}


def refused(folder: Path, *addresses: str) -> None:
    rows = [{"tier": "imap", "seen": "user_unknown", "code": "", "address": address} for address in addresses]
    (folder / "failed_recipients.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_cognito_is_asked_about_the_users_whose_mail_was_refused(aws: Callable[[str], Any], tmp_path: Path) -> None:
    aws("ecs").pool = "pool"
    refused(tmp_path, "Jane@s.example.com", "nobody@s.example.com", "bob")
    users = read(aws, tmp_path)["users"]
    assert users["status"] == "complete"
    assert users["users"] == [
        {"user": "alice", "status": "UNCONFIRMED", "enabled": True, "osid": True},
        {"user": "bob", "status": "absent", "enabled": None, "osid": None},
    ]
    denied_users = read(failing(aws, "cognito-idp", "admin_get_user", denied("AdminGetUser")), tmp_path)["users"]
    assert (denied_users["status"], denied_users["users"]) == ("unavailable", None)


def test_without_the_pool_s_id_nobody_is_called_absent(aws: Callable[[str], Any], tmp_path: Path) -> None:
    refused(tmp_path, "bob")
    users = read(aws, tmp_path)["users"]
    assert (users["status"], users["users"]) == ("unavailable", None)


def test_what_changed(aws: Callable[[str], Any]) -> None:
    rows = read(aws)["changes"]
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    said = {(row["tier"], row["kind"]): row["what"] for row in rows}
    assert said["imap", "deployment"] == "deployment of imap:7 began (IN_PROGRESS, 2 failed tasks)"
    assert said["imap", "revision"] == "imap:7 was registered (image repo/x:sha-0a1b2c3d)"
    assert said["imap", "maintenance"] == "the maintenance flag was set"
    assert any("stopped: Essential container in task exited" in row["what"] for row in rows)


def test_the_flag_was_never_set(aws: Callable[[str], Any]) -> None:
    aws("ssm").delete_parameter(Name="/cabal/maintenance/imap")
    parameters = read(aws)["parameters"]
    assert parameters["status"] == "complete"
    flag = {"exists": False, "active": False, "until": None, "message": None, "last_modified": None}
    assert parameters["maintenance_imap"] == flag


@pytest.mark.parametrize("value", ["", "not json", "[]", "3"])
def test_a_broken_flag_is_unknown(aws: Callable[[str], Any], value: str) -> None:
    broken = failing(aws, "ssm", "get_parameter", KeyError("never"))

    class Ssm:
        def __getattr__(self, name: str) -> Any:
            return getattr(broken("ssm"), name)

        def get_parameter(self, **asked: Any) -> Any:
            return {"Parameter": {"Value": value}}

    facts = read(lambda name: Ssm() if name == "ssm" else aws(name))
    assert facts["parameters"]["maintenance_imap"] is None
    assert facts["parameters"]["status"] == "partial"


def test_everything_hangs(tmp_path: Path) -> None:
    release = threading.Event()

    def client(name: str) -> Any:
        release.wait(30)
        raise OSError("released")

    began = time.monotonic()
    facts = read(client, tmp_path, deadline=0.3)
    took = time.monotonic() - began
    release.set()
    assert took < 2
    assert facts["status"] == "unavailable"
    assert "no complete answer within 0.3 s" in facts["services"]["imap"]["reasons"][0]
    assert facts["services"]["imap"]["running"] is None
    assert facts["addresses"]["rows"] is None


def test_one_part_hangs(aws: Callable[[str], Any]) -> None:
    release = threading.Event()

    def client(name: str) -> Any:
        if name == "sqs":
            release.wait(30)
        return aws(name)

    facts = read(client, deadline=4)
    release.set()
    assert facts["queues"]["imap"]["status"] == "unavailable"
    assert facts["services"]["imap"]["status"] == "complete"
