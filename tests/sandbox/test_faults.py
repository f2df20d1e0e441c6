# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults, over every protocol that clients speak, and the call log."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest
from botocore.config import Config

from sandbox.faults import Faults
from sandbox.model import Fault
from sandbox.wire import Call
from tests.sandbox.conftest import SandboxUnderTest

WriteScenario = Callable[..., Path]


def fault(**changes: Any) -> Fault:
    values: dict[str, Any] = {
        "operation": "logs.FilterLogEvents",
        "where": {},
        "error": "ThrottlingException",
        "status": 400,
        "message": "",
        "rate": 1.0,
        "latency_seconds": 0.0,
    }
    return Fault(**(values | changes))


def call(name: str = "logs.FilterLogEvents", principal: str = "operator", **parameters: Any) -> Call:
    service, operation = name.split(".")
    return Call(service, operation, parameters, principal, "json")


@pytest.mark.parametrize(("rate", "hits"), [(1.0, 100), (0.5, 50), (0.25, 25), (0.0, 0), (0.3, 30)])
def test_rate_is_a_share_and_the_same_in_each_run(rate: float, hits: int) -> None:
    def run() -> list[bool]:
        faults = Faults((fault(rate=rate),))
        return [faults.pick(call()) is not None for _ in range(100)]

    assert sum(run()) == hits
    assert run() == run()


def test_times_ends_a_fault() -> None:
    faults = Faults((fault(times=2),))
    assert [faults.pick(call()) is not None for _ in range(4)] == [True, True, False, False]


def test_where_operation_and_who() -> None:
    one = Faults((fault(where={"logGroupName": "/ecs/cabal-imap"}),))
    assert one.pick(call(logGroupName="/ecs/cabal-imap"))
    assert not one.pick(call(logGroupName="/ecs/cabal-smtp-in"))
    listed = Faults((fault(operation="ecs.*", where={"services": "cabal-imap"}),))
    assert listed.pick(call("ecs.DescribeServices", services=["cabal-smtp-in", "cabal-imap"]))
    assert not Faults((fault(),)).pick(call(principal="task"))
    assert Faults((fault(who="any"),)).pick(call(principal="task"))
    assert not Faults((fault(who="task"),)).pick(call())


PROTOCOLS = [
    ("logs", "filter_log_events", {"logGroupName": "/ecs/cabal-imap"}),
    ("ecs", "list_tasks", {"cluster": "cabal-mail"}),
    ("ssm", "describe_parameters", {}),
    ("sqs", "get_queue_url", {"QueueName": "cabal-reconfig-imap"}),
    ("dynamodb", "scan", {"TableName": "cabal-addresses"}),
    ("ec2", "describe_addresses", {}),
    ("sts", "get_caller_identity", {}),
    ("sns", "list_topics", {}),
    ("cloudwatch", "list_metrics", {}),
    ("servicediscovery", "list_services", {}),
]


def test_a_denial_is_understood_in_every_protocol(running: SandboxUnderTest, write_scenario: WriteScenario) -> None:
    running.load(write_scenario(faults=[{"operation": "*", "error": "AccessDeniedException", "status": 400}]))
    for service, operation, parameters in PROTOCOLS:
        with pytest.raises(botocore.exceptions.ClientError) as refused:
            getattr(running.client(service), operation)(**parameters)
        assert refused.value.response["Error"]["Code"] == "AccessDeniedException", service
        assert f"is not authorized to perform: {service}:" in refused.value.response["Error"]["Message"]


def test_everything_answers_without_faults(quiet: SandboxUnderTest) -> None:
    for service, operation, parameters in PROTOCOLS:
        getattr(quiet.client(service), operation)(**parameters)


def test_drop_garbage_latency_and_hang(running: SandboxUnderTest, write_scenario: WriteScenario) -> None:
    running.load(
        write_scenario(
            faults=[
                {"operation": "ecs.ListTasks", "drop": True},
                {"operation": "ecs.ListServices", "garbage": True},
                {"operation": "logs.DescribeLogGroups", "latency_ms": 300},
                {"operation": "logs.FilterLogEvents", "hang": True},
            ]
        )
    )
    ecs, logs = running.client("ecs"), running.client("logs")
    with pytest.raises(botocore.exceptions.ConnectionClosedError):
        ecs.list_tasks(cluster="cabal-mail")
    assert "serviceArns" not in ecs.list_services(cluster="cabal-mail"), "botocore takes garbage for an empty answer"
    begun = time.monotonic()
    logs.describe_log_groups()
    assert time.monotonic() - begun >= 0.3
    with pytest.raises(botocore.exceptions.ReadTimeoutError):
        _impatient(running).filter_log_events(logGroupName="/ecs/cabal-imap")


def _impatient(sandbox: SandboxUnderTest) -> Any:
    import boto3

    config = Config(read_timeout=0.5, retries={"total_max_attempts": 1})
    keys = {"aws_access_key_id": "operator", "aws_secret_access_key": "x"}
    return boto3.client("logs", endpoint_url=sandbox.url, region_name="us-east-1", config=config, **keys)


def test_call_log_names_principal_and_parameters_but_no_secret(quiet: SandboxUnderTest) -> None:
    quiet.reset_calls()
    quiet.client("ssm", "AKIAONE").put_parameter(Name="/x", Value="hush", Type="SecureString")
    quiet.client("ecs", "AKIATWO").list_tasks(cluster="cabal-mail", serviceName="cabal-imap")
    calls = [entry for entry in quiet.calls() if entry["principal"] != "task"]
    assert [(entry["operation"], entry["principal"]) for entry in calls] == [
        ("ssm.PutParameter", "AKIAONE"),
        ("ecs.ListTasks", "AKIATWO"),
    ]
    assert calls[1]["parameters"] == {"cluster": "cabal-mail", "serviceName": "cabal-imap"}
    assert "hush" not in str(calls)
