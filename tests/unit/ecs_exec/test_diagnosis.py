# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that breaks ECS Exec, one cause at a time, and the words that agents and gateways end sessions with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.ecs_exec.aws import Aws, explain_closing
from ansible.module_utils.ecs_exec.diagnosis import MESSAGES, Check, Diagnosis
from ansible.module_utils.ecs_exec.targets import Target, find, find_all
from botocore.exceptions import ClientError

from tests.unit.ecs_exec.test_targets import Ecs, task

KEY = "arn:aws:kms:us-east-1:123456789012:key/k"
ROLE = "arn:aws:iam::123456789012:role/cabal-ecs-task"
CALLER = "arn:aws:iam::123456789012:role/operators"
INSTANCE_ROLE = "arn:aws:iam::123456789012:role/nodes"
TASK = "arn:aws:ecs:us-east-1:123456789012:task/cabal-mail/1"


def denial(operation: str) -> ClientError:
    return ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, operation)


class World:
    """The AWS that the checks ask: sound unless a test changes it. ``refuses``: operations that the caller lacks."""

    def __init__(self) -> None:
        self.container: dict[str, Any] = {"name": "imap", "linuxParameters": {"initProcessEnabled": True}}
        self.definition: dict[str, Any] = {"taskRoleArn": ROLE, "containerDefinitions": [self.container]}
        self.agent_version = "1.90.0"
        self.attributes: list[dict[str, str]] = []
        self.profile = {"IamInstanceProfile": {"Arn": "arn:aws:iam::123456789012:instance-profile/nodes"}}
        self.configuration: dict[str, Any] | None = None
        self.denied: dict[str, set[str]] = {ROLE: set(), CALLER: {"ssm:StartSession"}}
        self.endpoints: list[str] = []
        self.caller = "arn:aws:sts::123456789012:assumed-role/operators/me"
        self.refuses: set[str] = set()
        self.calls: list[str] = []
        self.simulated: list[tuple[str, str, str]] = []

    def __call__(self, service: str) -> World:
        return self

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        answer = {
            "describe_task_definition": lambda **_: {"taskDefinition": self.definition},
            "describe_container_instances": lambda **_: {
                "containerInstances": [
                    {
                        "versionInfo": {"agentVersion": self.agent_version},
                        "attributes": self.attributes,
                        "ec2InstanceId": "i-1",
                    }
                ]
            },
            "describe_instances": lambda **_: {"Reservations": [{"Instances": [self.profile]}]},
            "get_instance_profile": lambda InstanceProfileName: {
                "InstanceProfile": {"Roles": [{"Arn": INSTANCE_ROLE}] if InstanceProfileName == "nodes" else []}
            },
            "describe_clusters": lambda **_: {
                "clusters": [{"configuration": {"executeCommandConfiguration": self.configuration}}]
            },
            "get_caller_identity": lambda **_: {"Arn": self.caller},
            "describe_key": lambda **_: {"KeyMetadata": {"Arn": KEY}},
            "describe_subnets": lambda **_: {"Subnets": [{"VpcId": "vpc-1"}]},
            "describe_vpc_endpoints": lambda **_: {"VpcEndpoints": [{"ServiceName": name} for name in self.endpoints]},
            "simulate_principal_policy": self.simulate,
        }[operation]

        def call(**options: Any) -> Any:
            self.calls.append(operation)
            if operation in self.refuses:
                raise denial(operation)
            return answer(**options)

        return call

    def simulate(self, **options: Any) -> dict[str, Any]:
        who, (resource,) = options["PolicySourceArn"], options["ResourceArns"]
        self.simulated += [(who, name, resource) for name in options["ActionNames"]]
        return {
            "EvaluationResults": [
                {"EvalActionName": name, "EvalDecision": "implicitDeny" if name in self.denied[who] else "allowed"}
                for name in options["ActionNames"]
            ]
        }


@pytest.fixture
def world() -> World:
    return World()


def target(**changes: Any) -> Target:
    given = {"task_definition": "imap:7", "container_instance": "arn:i", "subnet": "subnet-1", **changes}
    return Target(TASK, "cabal-mail", "imap", **given)


def bad(checks: list[Check]) -> list[tuple[str, str]]:
    return [(check.name, check.status) for check in checks if check.status != "ok"]


def test_in_a_sound_world_every_check_is_ok(world):
    checks = Diagnosis(world).of(target())
    assert bad(checks) == []
    assert [check.name for check in checks] == [
        "task",
        "definition",
        "container_instance",
        "cluster",
        "caller",
        "task_role",
        "vpc_endpoints",
    ]
    assert {(ROLE, action, "*") for action in MESSAGES} <= set(world.simulated)
    assert (CALLER, "ecs:ExecuteCommand", TASK) in world.simulated


def test_many_containers_ask_for_what_they_share_once(world):
    diagnosis = Diagnosis(world)
    for _ in range(3):
        diagnosis.of(target())
    simulations = world.calls.count("simulate_principal_policy")
    assert simulations == 3
    assert len(world.calls) - simulations == len(set(world.calls)) - 1


def encrypted(world: World) -> None:
    world.configuration = {"kmsKeyId": "alias/exec", "logging": "DEFAULT"}


def logged(world: World) -> None:
    where = {"s3BucketName": "b", "cloudWatchLogGroupName": "g"}
    world.configuration = {"logging": "OVERRIDE", "logConfiguration": where}


CAUSES: dict[str, tuple[Callable[[World], Any], str, str, str]] = {
    "read-only root": (
        lambda world: world.container.update(readonlyRootFilesystem=True),
        "definition",
        "problem",
        "root file system is read-only",
    ),
    "keys in the environment": (
        lambda world: world.container.update(environment=[{"name": "AWS_SECRET_ACCESS_KEY"}]),
        "definition",
        "problem",
        "sets AWS_SECRET_ACCESS_KEY",
    ),
    "shared PID namespace": (
        lambda world: world.definition.update(pidMode="task"),
        "definition",
        "problem",
        "pidMode task",
    ),
    "no init process": (
        lambda world: world.container.pop("linuxParameters"),
        "init_process",
        "warning",
        "initProcessEnabled",
    ),
    "old ECS agent": (
        lambda world: setattr(world, "agent_version", "1.49.0"),
        "container_instance",
        "problem",
        "ECS agent 1.49.0; ECS Exec needs 1.50.2",
    ),
    "caller may not execute": (
        lambda world: world.denied[CALLER].add("ecs:ExecuteCommand"),
        "caller",
        "problem",
        "may not call ecs:ExecuteCommand",
    ),
    "caller may start sessions": (
        lambda world: world.denied[CALLER].clear(),
        "caller",
        "warning",
        "ssm:StartSession",
    ),
    "caller may not make a data key": (
        lambda world: (encrypted(world), world.denied[CALLER].add("kms:GenerateDataKey")),
        "caller",
        "problem",
        "kms:GenerateDataKey",
    ),
    "role may not open the data key": (
        lambda world: (encrypted(world), world.denied[ROLE].add("kms:Decrypt")),
        "task_role",
        "problem",
        "kms:Decrypt",
    ),
    "role lacks ssmmessages": (
        lambda world: world.denied[ROLE].add("ssmmessages:OpenDataChannel"),
        "task_role",
        "problem",
        "ssmmessages:OpenDataChannel",
    ),
    "role may not log to the bucket": (
        lambda world: (logged(world), world.denied[ROLE].add("s3:PutObject")),
        "task_role",
        "problem",
        "s3:PutObject",
    ),
    "role may not log to the group": (
        lambda world: (logged(world), world.denied[ROLE].add("logs:PutLogEvents")),
        "task_role",
        "problem",
        "logs:PutLogEvents",
    ),
    "logging needs tools": (logged, "cluster", "warning", "script and cat"),
    "no endpoint for ssmmessages": (
        lambda world: world.endpoints.append("com.amazonaws.us-east-1.s3"),
        "vpc_endpoints",
        "warning",
        "none for ssmmessages",
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_each_cause_is_named_alone(world, name):
    change, check, status, words = CAUSES[name]
    change(world)
    checks = Diagnosis(world).of(target())
    matching = [found for found in checks if found.name == check and found.status == status]
    assert any(words in found.text for found in matching), checks
    others = {found.name for found in checks if found.status in ("problem", "warning")} - {check}
    assert others <= ({"cluster"} if "log to" in name else set())


def test_without_a_task_role_it_is_the_instances_that_counts(world):
    world.definition.pop("taskRoleArn")
    world.denied[INSTANCE_ROLE] = {"ssmmessages:OpenDataChannel"}
    checks = Diagnosis(world).of(target())
    assert bad(checks) == [("task_role", "problem")]
    assert any(f"{INSTANCE_ROLE} may not call ssmmessages:OpenDataChannel" in check.text for check in checks)
    world.denied[INSTANCE_ROLE].clear()
    assert bad(Diagnosis(world).of(target())) == []
    world.refuses.add("get_instance_profile")
    assert bad(Diagnosis(world).of(target())) == [("task_role", "unknown")]
    world.profile.clear()
    assert bad(Diagnosis(world).of(target())) == [("task_role", "problem")]


def test_no_role_at_all_is_a_problem_on_fargate(world):
    world.definition.pop("taskRoleArn")
    checks = Diagnosis(world).of(target(container_instance=None))
    assert bad(checks) == [("definition", "problem"), ("task_role", "problem")]
    world.denied["arn:other"] = set()
    assert bad(Diagnosis(world).of(target(role="arn:other"))) == []


def test_an_endpoint_for_ssmmessages_and_a_key_that_both_may_use_are_ok(world):
    encrypted(world)
    world.endpoints.append("com.amazonaws.us-east-1.ssmmessages")
    assert bad(Diagnosis(world).of(target())) == []
    assert {(CALLER, "kms:GenerateDataKey", KEY), (ROLE, "kms:Decrypt", KEY)} <= set(world.simulated)


def test_permissions_to_log_are_looked_at_for_the_bucket_and_the_group_alone(world):
    """As amazon-ecs-exec-checker does it: a role that may write nowhere else is sound."""
    logged(world)
    Diagnosis(world).of(target())
    bucket, group = "arn:aws:s3:::b", "arn:aws:logs:us-east-1:123456789012:log-group:g:*"
    own = {(name, resource) for who, name, resource in world.simulated if who == ROLE and name not in MESSAGES}
    expected = {("s3:PutObject", f"{bucket}/*"), ("logs:DescribeLogGroups", "*")}
    expected |= {(f"logs:{name}", group) for name in ("CreateLogStream", "DescribeLogStreams", "PutLogEvents")}
    assert own == expected
    world.simulated.clear()
    world.configuration["logConfiguration"].update(s3KeyPrefix="exec/", s3EncryptionEnabled=True)
    Diagnosis(world).of(target())
    assert {
        ("s3:PutObject", f"{bucket}/exec/*"),
        ("s3:GetEncryptionConfiguration", bucket),
    } <= {(name, resource) for _, name, resource in world.simulated}


def test_a_task_in_its_instances_network_is_looked_for_in_that_vpc(world):
    world.endpoints.append("com.amazonaws.us-east-1.s3")
    world.attributes.append({"name": "ecs.vpc-id", "value": "vpc-9"})
    (check,) = [check for check in Diagnosis(world).of(target(subnet=None)) if check.name == "vpc_endpoints"]
    assert (check.status, check.text[:5]) == ("warning", "vpc-9")
    assert "describe_subnets" not in world.calls
    (check,) = [
        check
        for check in Diagnosis(world).of(target(subnet=None, container_instance=None))
        if check.name == "vpc_endpoints"
    ]
    assert check.status == "unknown"


@pytest.mark.parametrize(
    ("operation", "names"),
    [
        ("simulate_principal_policy", {"caller", "task_role"}),
        ("describe_task_definition", {"definition", "task_role"}),
        ("describe_clusters", {"cluster", "caller", "task_role"}),
        ("get_caller_identity", {"caller"}),
        ("describe_container_instances", {"container_instance"}),
        ("describe_vpc_endpoints", {"vpc_endpoints"}),
        ("describe_subnets", {"vpc_endpoints"}),
    ],
)
def test_what_the_caller_may_not_ask_is_unknown_and_the_rest_goes_on(world, operation, names):
    world.refuses.add(operation)
    checks = Diagnosis(world).of(target())
    assert {check.name for check in checks if check.status == "unknown"} == names
    assert all("AccessDeniedException" in check.text for check in checks if check.status == "unknown")


def test_a_task_that_is_ruled_out_asks_nothing_more(world):
    (check,) = Diagnosis(world).of(target(problem="The task is stopping."))
    assert (check.name, check.status, check.text) == ("task", "problem", "The task is stopping.")
    assert world.calls == []


def test_an_iam_user_and_a_task_on_fargate_are_understood(world):
    world.caller = "arn:aws:iam::123456789012:user/me"
    world.denied[world.caller] = {"ssm:StartSession"}
    assert bad(Diagnosis(world).of(target(container_instance=None))) == []


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("Plugin with name InteractiveCommands not found. Step name: x", "full /tmp"),
        ("Encountered error while initiating handshake. Fetching data key failed: x", "kms:Decrypt"),
        ("Encountered error while initiating handshake. Handshake timed out.", "did not answer in time"),
        ("Setting up data channel with id 1 failed", "credentials have expired"),
        ("Your session timed out due to inactivity and has been terminated.", "idle for 20 minutes"),
        ("Couldn't start the session because encryption is not set up on the log group", "logging configuration"),
    ],
)
def test_closing_words_are_kept_and_explained(words, meaning):
    said = explain_closing(words)
    assert said.startswith(words.rstrip("."))
    assert meaning in said
    assert said.endswith(".")


def test_closing_words_that_nobody_knows_are_kept():
    assert explain_closing("Out of cheese") == "Out of cheese."


REFUSALS: dict[str, tuple[str, str, str]] = {
    "cluster": ("ClusterNotFoundException", "Cluster not found.", "no cluster 'cabal-mail'"),
    "denied": ("AccessDeniedException", "User is not authorized", "policy has to allow it"),
    "throttled": ("ThrottlingException", "Rate exceeded", "throttled by AWS again and again"),
    "not enabled": (
        "InvalidParameterException",
        "The execute command failed because execute command was not enabled",
        "not enabled in this task or its agent is not running",
    ),
    "not connected": ("TargetNotConnectedException", "internal error", "the task role lacks the ssmmessages actions"),
    "other": ("ServerException", "Oops", "failed (ServerException: Oops)"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_session_is_explained_without_further_permissions(world, name):
    code, message, words = REFUSALS[name]
    world.refuses = {"describe_task_definition"}
    world.describe_tasks = lambda **_: {"tasks": [task("1")], "failures": []}
    assert words in Aws(world, None, None, "us-east-1").diagnose(target(), code, message)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"container": {"readonlyRootFilesystem": True}}, "read-only"), ({"pidMode": "task"}, "PID namespace")],
)
def test_an_agent_that_is_not_connected_is_explained_by_the_task_definition(world, changes, words):
    world.container.update(changes.pop("container", {}))
    world.definition.update(changes)
    world.describe_tasks = lambda **_: {"tasks": [task("1")], "failures": []}
    said = Aws(world, None, None, "us-east-1").diagnose(target(), "TargetNotConnectedException", "internal error")
    assert words in said


def test_what_a_target_tells_of_where_it_runs():
    details = [{"name": "subnetId", "value": "subnet-1"}]
    whole = task(
        "1",
        overrides={"taskRoleArn": "arn:role"},
        containerInstanceArn="arn:instance",
        attachments=[{"details": details}],
    )
    whole["containers"][0]["runtimeId"] = "1-2"
    (found,) = find(Ecs({"s": [whole]}), "arn:aws:ecs:us-east-1:1:cluster/cabal-mail", services=["s"])
    assert (found.role, found.container_instance, found.subnet) == ("arn:role", "arn:instance", "subnet-1")
    assert found.session_target == "ecs:cabal-mail_1_1-2"


def test_every_container_of_tasks_meant_twice_stands_once():
    two = task("2", containers=[{"name": "imap"}, {"name": "side"}])
    ecs = Ecs({"s": [two, task("1")], "f": [task("1")]})
    found = find_all(ecs, "c", services=["s"], families=["f"])
    assert [(target.task, target.container) for target in found] == [("1", "imap"), ("2", "imap"), ("2", "side")]
