# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every answer that the sandbox gives itself is one that AWS could have given, by botocore's own models."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from tests.sandbox.conftest import SandboxUnderTest
from tests.sandbox.shapes import problems

TARGETS = {
    "ecs": "AmazonEC2ContainerServiceV20141113",
    "logs": "Logs_20140328",
    "ssm": "AmazonSSM",
    "cognito-idp": "AWSCognitoIdentityProviderService",
}
POOL = {"UserPoolId": "us-east-1_sandbox"}
COMMON_ERRORS = {"AccessDeniedException", "ThrottlingException"}
GROUP = {"logGroupName": "/ecs/cabal-smtp-in"}
CLUSTER = {"cluster": "cabal-mail"}


def post(sandbox: SandboxUnderTest, service: str, operation: str, request: dict[str, Any]) -> tuple[int, Any]:
    headers = {
        "X-Amz-Target": f"{TARGETS[service]}.{operation}",
        "Content-Type": "application/x-amz-json-1.1",
        "Authorization": f"AWS4-HMAC-SHA256 Credential=operator/20261129/us-east-1/{service}/aws4_request",
    }
    http = urllib.request.Request(sandbox.url, json.dumps(request).encode(), headers)
    try:
        with urllib.request.urlopen(http, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def operation_model(service: str, operation: str) -> Any:
    return botocore.session.get_session().get_service_model(service).operation_model(operation)


def answer(sandbox: SandboxUnderTest, service: str, operation: str, request: dict[str, Any]) -> Any:
    """The answer to a call that must succeed and fit its output shape."""
    status, body = post(sandbox, service, operation, request)
    assert status == 200, body
    shape = operation_model(service, operation).output_shape
    assert list(problems(body, shape, operation)) == []
    return body


def all_task_arns(sandbox: SandboxUnderTest) -> list[str]:
    arns: list[str] = answer(sandbox, "ecs", "ListTasks", CLUSTER)["taskArns"]
    return arns


def test_logs_answers(quiet: SandboxUnderTest) -> None:
    page = answer(quiet, "logs", "FilterLogEvents", GROUP | {"limit": 5})
    assert len(page["events"]) == 5
    answer(quiet, "logs", "FilterLogEvents", GROUP | {"limit": 5, "nextToken": page["nextToken"]})
    groups = answer(quiet, "logs", "DescribeLogGroups", {"logGroupNamePrefix": "/ecs/"})["logGroups"]
    assert [group["logGroupName"] for group in groups] == [
        "/ecs/cabal-imap",
        "/ecs/cabal-smtp-in",
        "/ecs/cabal-smtp-out",
    ]
    streams = answer(quiet, "logs", "DescribeLogStreams", GROUP | {"orderBy": "LastEventTime", "descending": True})
    assert streams["logStreams"][0]["logStreamName"].startswith("smtp-in/smtp-in/")


def test_ecs_reads(quiet: SandboxUnderTest) -> None:
    answer(quiet, "ecs", "ListClusters", {})
    assert answer(quiet, "ecs", "DescribeClusters", {"clusters": ["cabal-mail", "nope"]})["failures"]
    assert len(answer(quiet, "ecs", "ListServices", CLUSTER)["serviceArns"]) == 3
    services = CLUSTER | {"services": ["cabal-imap", "cabal-smtp-in", "cabal-smtp-out", "nope"]}
    described = answer(quiet, "ecs", "DescribeServices", services)
    assert [failure["reason"] for failure in described["failures"]] == ["MISSING"]
    for service in described["services"]:
        answer(quiet, "ecs", "DescribeTaskDefinition", {"taskDefinition": service["taskDefinition"]})
    tasks = answer(quiet, "ecs", "DescribeTasks", CLUSTER | {"tasks": [*all_task_arns(quiet), "0" * 32]})
    assert len(tasks["tasks"]) == 3
    assert tasks["failures"][0]["reason"] == "MISSING"


def test_a_session_from_execute_to_terminate(quiet: SandboxUnderTest) -> None:
    arn = answer(quiet, "ecs", "ListTasks", CLUSTER | {"serviceName": "cabal-imap"})["taskArns"][0]
    request = CLUSTER | {"task": arn, "container": "imap", "command": "true", "interactive": True}
    session = answer(quiet, "ecs", "ExecuteCommand", request)["session"]
    assert session["streamUrl"].startswith("ws://")
    resumed = answer(quiet, "ssm", "ResumeSession", {"SessionId": session["sessionId"]})
    assert resumed["TokenValue"]
    assert answer(quiet, "ssm", "TerminateSession", {"SessionId": session["sessionId"]}) == {
        "SessionId": session["sessionId"]
    }


def test_every_state_of_a_deployment(running: SandboxUnderTest, write_scenario: Callable[..., Path]) -> None:
    """Each shape on the way of tasks and deployments from one state to the next is sound."""
    tiers: dict[str, Any] = {tier: {"log_level": 9} for tier in ("imap", "smtp-in", "smtp-out")}
    tiers["smtp-in"]["service"] = {"deployment": {"start_seconds": 6}}
    running.load(write_scenario(tiers=tiers))
    quiet = running
    answer(quiet, "ecs", "UpdateService", CLUSTER | {"service": "cabal-smtp-in", "forceNewDeployment": True})
    states, until = set(), time.monotonic() + 60
    while time.monotonic() < until:
        described = answer(quiet, "ecs", "DescribeServices", CLUSTER | {"services": ["cabal-smtp-in"]})
        for desired in ("RUNNING", "STOPPED"):
            listed = CLUSTER | {"serviceName": "cabal-smtp-in", "desiredStatus": desired}
            arns = answer(quiet, "ecs", "ListTasks", listed)["taskArns"]
            if arns:
                tasks = answer(quiet, "ecs", "DescribeTasks", CLUSTER | {"tasks": arns})["tasks"]
                states |= {task["lastStatus"] for task in tasks}
        if described["services"][0]["deployments"][0]["rolloutState"] == "COMPLETED":
            break
        time.sleep(0.1)
    assert {"PROVISIONING", "PENDING", "RUNNING", "STOPPED"} <= states
    (imap,) = answer(quiet, "ecs", "ListTasks", CLUSTER | {"serviceName": "cabal-imap"})["taskArns"]
    answer(quiet, "ecs", "StopTask", CLUSTER | {"task": imap, "reason": "test"})


def test_users(quiet: SandboxUnderTest) -> None:
    user = answer(quiet, "cognito-idp", "AdminGetUser", POOL | {"Username": "amelia"})
    assert user["UserStatus"] == "CONFIRMED"
    assert user["UserAttributes"] == [{"Name": "custom:osid", "Value": "2001"}]


REFUSALS = [
    ("cognito-idp", "AdminGetUser", POOL | {"Username": "nobody"}, "UserNotFoundException"),
    ("cognito-idp", "AdminGetUser", {"UserPoolId": "nope", "Username": "amelia"}, "ResourceNotFoundException"),
    ("logs", "FilterLogEvents", {"logGroupName": "/ecs/nope"}, "ResourceNotFoundException"),
    ("logs", "FilterLogEvents", GROUP | {"filterPattern": "{ $.a = 1 }"}, "InvalidParameterException"),
    ("logs", "FilterLogEvents", GROUP | {"nextToken": "forged"}, "InvalidParameterException"),
    ("logs", "DescribeLogStreams", {"logGroupName": "/ecs/nope"}, "ResourceNotFoundException"),
    ("logs", "DescribeLogGroups", {"limit": 51}, "InvalidParameterException"),
    ("ecs", "ListTasks", {"cluster": "nope"}, "ClusterNotFoundException"),
    ("ecs", "ListTasks", CLUSTER | {"serviceName": "nope"}, "ServiceNotFoundException"),
    ("ecs", "DescribeTasks", CLUSTER | {"tasks": []}, "InvalidParameterException"),
    ("ecs", "DescribeServices", CLUSTER | {"services": []}, "InvalidParameterException"),
    ("ecs", "DescribeTaskDefinition", {"taskDefinition": "nope"}, "ClientException"),
    ("ecs", "UpdateService", CLUSTER | {"service": "nope"}, "ServiceNotFoundException"),
    ("ecs", "StopTask", CLUSTER | {"task": "nope"}, "InvalidParameterException"),
    (
        "ecs",
        "ExecuteCommand",
        CLUSTER | {"task": "0" * 32, "command": "true", "interactive": True},
        "InvalidParameterException",
    ),
    ("ssm", "ResumeSession", {"SessionId": "ecs-execute-command-nope"}, "DoesNotExistException"),
]


@pytest.mark.parametrize(("service", "operation", "request_body", "code"), REFUSALS)
def test_refusals(
    running: SandboxUnderTest, service: str, operation: str, request_body: dict[str, Any], code: str
) -> None:
    status, body = post(running, service, operation, request_body)
    assert status == 400
    assert body["__type"] == code
    assert body["message"]
    declared = {shape.name for shape in operation_model(service, operation).error_shapes}
    assert code in declared | COMMON_ERRORS
