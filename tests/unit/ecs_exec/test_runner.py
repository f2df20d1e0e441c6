# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting sessions: what is tried again, what is not, and what is said."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.ecs_exec import runner
from ansible.module_utils.ecs_exec.aws import Aws, Started, error_of
from ansible.module_utils.ecs_exec.runner import Plan
from ansible.module_utils.ecs_exec.targets import Target
from ansible.module_utils.ecs_exec.wrapper import Program
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from tests.unit.session_manager.gateway import Gateway, targets

PLAN = Plan(Program(argv=("true",), seconds=5))


def refusal(code: str, message: str = "") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "ExecuteCommand")


class Reluctant(Gateway):
    """A gateway whose ExecuteCommand fails some times before it works."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)
        self.calls = 0

    def execute(self, target: Target, command: str) -> Started:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return super().execute(target, command)


def attempt(*errors: Exception, target: Target | None = None, plan: Plan = PLAN) -> tuple[Any, int]:
    with Reluctant(*errors) as gateway:
        (outcome,) = runner.run(plan, [target or targets()[0]], gateway)
        return outcome, gateway.calls


def test_an_agent_that_is_not_connected_yet_is_tried_once_more():
    outcome, calls = attempt(refusal("TargetNotConnectedException"))
    assert (outcome.outcome, calls) == ("completed", 2)


def test_an_agent_of_an_old_task_is_not_waited_for():
    outcome, calls = attempt(*[refusal("TargetNotConnectedException")] * 9)
    assert (outcome.outcome, calls) == ("unreachable", 2)


def test_an_agent_of_a_young_task_is_waited_for():
    young = dataclasses.replace(targets()[0], started_at=dt.datetime.now(dt.UTC))
    outcome, calls = attempt(*[refusal("TargetNotConnectedException")] * 3, target=young)
    assert (outcome.outcome, calls) == ("completed", 4)


def test_throttling_is_waited_out():
    outcome, calls = attempt(refusal("ThrottlingException"), refusal("ThrottlingException"), refusal("ServerException"))
    assert (outcome.outcome, calls) == ("completed", 4)


@pytest.mark.parametrize("code", ["AccessDeniedException", "ClusterNotFoundException", "InvalidParameterException"])
def test_what_would_fail_again_is_not_tried_again(code):
    outcome, calls = attempt(refusal(code, "because"))
    assert (outcome.outcome, outcome.reason, calls) == ("unreachable", f"{code}: because", 1)


def test_a_call_that_hangs_ends_at_the_deadline():
    class Hanging(Gateway):
        def execute(self, target: Target, command: str) -> Started:
            time.sleep(60)
            raise AssertionError

    started = time.monotonic()
    with Hanging() as gateway:
        (outcome,) = runner.run(dataclasses.replace(PLAN, deadline=started + 6), targets(), gateway)
    assert outcome.outcome == "unreachable"
    assert "did not answer in time" in outcome.reason
    assert time.monotonic() - started < 8


def test_a_task_known_to_be_out_of_reach_is_not_tried():
    outcome, calls = attempt(target=dataclasses.replace(targets()[0], problem="It is stopping."))
    assert (outcome.outcome, outcome.reason, calls) == ("unreachable", "It is stopping.", 0)


class Ecs:
    """What Aws.diagnose asks."""

    def __init__(self, status: str = "RUNNING", **definition: Any) -> None:
        self.status = status
        self.definition = {
            "taskRoleArn": "r",
            "containerDefinitions": [{"name": "main", "readonlyRootFilesystem": False}],
            **definition,
        }

    def describe_tasks(self, **_: Any) -> dict[str, Any]:
        agent = {"name": "ExecuteCommandAgent", "lastStatus": "RUNNING"}
        return {
            "tasks": [
                {
                    "taskArn": targets()[0].task_arn,
                    "taskDefinitionArn": "arn:aws:ecs:us-east-1:1:task-definition/f:1",
                    "lastStatus": self.status,
                    "enableExecuteCommand": True,
                    "containers": [{"name": "main", "managedAgents": [agent]}],
                }
            ]
        }

    def describe_task_definition(self, **_: Any) -> dict[str, Any]:
        return {"taskDefinition": self.definition}


@pytest.mark.parametrize(
    ("ecs", "code", "message", "words"),
    [
        (Ecs(), "TargetNotConnectedException", "", "the task role lacks the ssmmessages actions"),
        (Ecs("STOPPING"), "TargetNotConnectedException", "", "is stopping"),
        (Ecs(pidMode="task"), "TargetNotConnectedException", "", "PID namespace"),
        (Ecs("STOPPED"), "InvalidParameterException", "The execute command failed because execute command", "stopping"),
        (Ecs(), "InvalidParameterException", "Execute command was not enabled", "not enabled in this task"),
        (Ecs(), "InvalidParameterException", "Bad container", "InvalidParameterException: Bad container"),
        (Ecs(), "ClusterNotFoundException", "", "no cluster 'c' in us-east-1"),
        (Ecs(), "AccessDeniedException", "User is not", "ecs:ExecuteCommand was denied"),
        (Ecs(), "ThrottlingException", "", "throttled"),
        (None, "TargetNotConnectedException", "", "the task role lacks"),
    ],
)
def test_each_failure_is_explained(ecs, code, message, words):
    assert words in Aws(ecs, None, None, "us-east-1").diagnose(targets()[0], code, message)


def test_an_error_that_is_not_of_aws_gives_its_name_only():
    assert error_of(ValueError("wss://secret")) == ("ValueError", "")
    assert error_of(refusal("Code", "a\n b.")) == ("Code", "a b")


def test_the_data_channel_is_signed_for_its_service_and_region():
    aws = Aws(None, None, Credentials("AKIDEXAMPLE", "secret", "session"), "eu-west-1")
    headers = aws.sign("https://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/s?role=publish_subscribe")
    assert "/eu-west-1/ssmmessages/aws4_request" in headers["Authorization"]
    assert headers["X-Amz-Security-Token"] == "session"
    assert "secret" not in headers["Authorization"]


def test_a_started_session_does_not_show_its_secrets():
    assert "wss://" not in repr(Started("s", "wss://host/path", "token"))
    assert "token'" not in repr(Started("s", "wss://host/path", "token"))


# No other run of these tests may be taken for this one.
SLEEP = str(100_000 + os.getpid())

INTERRUPTED = """
import runpy, sys
runpy.run_path({conftest!r})
from ansible.module_utils.ecs_exec import runner
from ansible.module_utils.ecs_exec.wrapper import Program
from tests.unit.session_manager.gateway import Gateway, targets
with Gateway() as gateway:
    try:
        runner.run(runner.Plan(Program(argv=("sleep", {sleep!r}), seconds=60)), targets(3), gateway)
    finally:
        print(len(gateway.terminated), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_sessions_and_their_commands(number):
    conftest = str(Path(__file__).parents[2] / "conftest.py")
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED.format(conftest=conftest, sleep=SLEEP)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[3],
    )
    assert wait_for(lambda: sleepers() == 3)
    os.kill(process.pid, number)
    printed, _ = process.communicate(timeout=15)
    assert printed == b"3\n"
    assert process.returncode != 0
    assert wait_for(lambda: sleepers() == 0)


STARTING = """
import runpy, sys, time
runpy.run_path({conftest!r})
from ansible.module_utils.ecs_exec import runner
from ansible.module_utils.ecs_exec.wrapper import Program
from tests.unit.session_manager.gateway import Gateway, targets
class Slow(Gateway):
    def execute(self, target, command):
        started = super().execute(target, command)
        print("called", flush=True)
        time.sleep(1.5)
        return started
with Slow() as gateway:
    try:
        runner.run(runner.Plan(Program(argv=("true",), seconds=60)), targets(), gateway)
    finally:
        print(sorted(gateway.terminated) == sorted(gateway.commands), flush=True)
"""


def test_a_session_that_ecs_makes_during_an_interrupt_is_ended_as_well():
    conftest = str(Path(__file__).parents[2] / "conftest.py")
    process = subprocess.Popen(
        [sys.executable, "-c", STARTING.format(conftest=conftest)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"called\n"
    os.kill(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=15)
    assert printed == b"True\n"
    assert process.returncode != 0


def sleepers() -> int:
    listing = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
    return sum(line.split()[1:] == ["sleep", SLEEP] for line in listing.splitlines())


def wait_for(condition: Any) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
