# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that is known to keep ECS Exec from working in a container, looked at whether or not it is tried.

The checks are those of amazon-ecs-exec-checker 0.7. Each stands for itself: one that the caller may not make is
``unknown`` and says so, and the others go on. What several containers have in common is asked once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from .aws import error_of
from .targets import Target, definition_problems

T = TypeVar("T")

#: ``warning``: it may be meant so, or work all the same. ``unknown``: it could not be looked at.
Status = Literal["ok", "problem", "warning", "unknown"]

MESSAGES: Final = tuple(
    f"ssmmessages:{name}"
    for name in ("CreateControlChannel", "CreateDataChannel", "OpenControlChannel", "OpenDataChannel")
)
_LOG_GROUP: Final = ("logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents")
_OLDEST_AGENT: Final = (1, 50, 2)
_ASSUMED: Final = re.compile(r"arn:(aws[\w-]*):sts::(\d+):assumed-role/([^/]+)/.*")


@dataclass(frozen=True, slots=True)
class Check:
    """What one check says; ``text`` is one sentence."""

    name: str
    status: Status
    text: str


class Diagnosis:
    """Diagnoses containers of one cluster. clients: returns the boto3 client of a service by its name."""

    def __init__(self, clients: Callable[[str], Any]) -> None:
        self._clients = clients
        self._known: dict[tuple[str, ...], Any] = {}

    def of(self, target: Target) -> list[Check]:
        """Make every check for one container. Never raises for what AWS answers."""
        if target.problem is not None:
            return [Check("task", "problem", target.problem)]
        checks = [Check("task", "ok", "The task runs with ECS Exec enabled, and its agent is up.")]
        for name, look in (
            ("definition", self._definition_checks),
            ("container_instance", self._instance_checks),
            ("cluster", self._cluster_checks),
            ("caller", self._caller_checks),
            ("task_role", self._role_checks),
            ("vpc_endpoints", self._endpoint_checks),
        ):
            checks += _guarded(name, look, target)
        return checks

    def _once(self, key: tuple[str, ...], ask: Callable[[], T]) -> T:
        """Return what was asked before under this key, or ask."""
        if key not in self._known:
            self._known[key] = ask()
        answer: T = self._known[key]
        return answer

    # -- what AWS says --------------------------------------------------------------------------------------------

    def _definition(self, target: Target) -> Mapping[str, Any]:
        arn = target.task_definition or ""
        ecs = self._clients("ecs")
        answer = self._once(("definition", arn), lambda: ecs.describe_task_definition(taskDefinition=arn))
        definition: Mapping[str, Any] = answer["taskDefinition"]
        return definition

    def _configuration(self, target: Target) -> Mapping[str, Any]:
        """The cluster's executeCommandConfiguration; empty when it has none."""
        ecs = self._clients("ecs")
        answer = self._once(
            ("cluster", target.cluster),
            lambda: ecs.describe_clusters(clusters=[target.cluster], include=["CONFIGURATIONS"]),
        )
        clusters = answer.get("clusters") or [{}]
        found: Mapping[str, Any] = (clusters[0].get("configuration") or {}).get("executeCommandConfiguration") or {}
        return found

    def _key(self, target: Target) -> str | None:
        """ARN of the KMS key that encrypts the cluster's sessions."""
        name = self._configuration(target).get("kmsKeyId")
        if not name:
            return None
        kms = self._clients("kms")
        answer = self._once(("key", name), lambda: kms.describe_key(KeyId=name))
        return str(answer["KeyMetadata"]["Arn"])

    def _denied(self, principal: str, actions: Sequence[str], resource: str = "*") -> list[str]:
        """Those of the actions that the principal's policies do not allow."""
        iam = self._clients("iam")
        answer = self._once(
            ("simulation", principal, resource, *actions),
            lambda: iam.simulate_principal_policy(
                PolicySourceArn=principal, ActionNames=list(actions), ResourceArns=[resource]
            ),
        )
        results = answer["EvaluationResults"]
        return [str(result["EvalActionName"]) for result in results if result["EvalDecision"] != "allowed"]

    def _caller(self) -> str:
        """ARN that stands for the caller's policies: its user's or its role's."""
        sts = self._clients("sts")
        arn = str(self._once(("caller",), sts.get_caller_identity)["Arn"])
        assumed = _ASSUMED.fullmatch(arn)
        return f"arn:{assumed[1]}:iam::{assumed[2]}:role/{assumed[3]}" if assumed else arn

    def _instance(self, target: Target) -> Mapping[str, Any]:
        """The container instance of a task on EC2."""
        arn = target.container_instance or ""
        ecs = self._clients("ecs")
        answer = self._once(
            ("instance", arn),
            lambda: ecs.describe_container_instances(cluster=target.cluster, containerInstances=[arn]),
        )
        instance: Mapping[str, Any] = answer["containerInstances"][0]
        return instance

    def _role(self, target: Target) -> str | None:
        """ARN of the role that the agent acts as: the task's, its definition's, or on EC2 the instance's."""
        role = target.role or self._definition(target).get("taskRoleArn")
        if role or target.container_instance is None:
            return role or None
        instance = str(self._instance(target)["ec2InstanceId"])
        ec2, iam = self._clients("ec2"), self._clients("iam")
        answer = self._once(("machine", instance), lambda: ec2.describe_instances(InstanceIds=[instance]))
        profile = answer["Reservations"][0]["Instances"][0].get("IamInstanceProfile")
        if profile is None:
            return None
        name = str(profile["Arn"]).rpartition("/")[2]
        found = self._once(("profile", name), lambda: iam.get_instance_profile(InstanceProfileName=name))
        return next((str(one["Arn"]) for one in found["InstanceProfile"]["Roles"]), None)

    def _vpc(self, target: Target) -> str | None:
        """The VPC of the task's own subnet, or of its instance where it uses that one's network."""
        if target.subnet is not None:
            ec2 = self._clients("ec2")
            subnets = self._once(("subnet", target.subnet), lambda: ec2.describe_subnets(SubnetIds=[target.subnet]))
            return str(subnets["Subnets"][0]["VpcId"])
        attributes = self._instance(target).get("attributes") or [] if target.container_instance else []
        return next((str(one["value"]) for one in attributes if one.get("name") == "ecs.vpc-id"), None)

    # -- checks ---------------------------------------------------------------------------------------------------

    def _definition_checks(self, target: Target) -> Iterator[Check]:
        definition = self._definition(target)
        problems = definition_problems(definition, target.container, target.role or target.container_instance)
        for text in problems:
            yield Check("definition", "problem", _sentence(text))
        if not problems:
            yield Check("definition", "ok", "Nothing in the task definition breaks ECS Exec.")
        if not any(
            (part.get("linuxParameters") or {}).get("initProcessEnabled")
            for part in definition.get("containerDefinitions") or []
            if part.get("name") == target.container
        ):
            yield Check(
                "init_process",
                "warning",
                "The container has no init process (linuxParameters.initProcessEnabled), so processes of sessions may"
                " stay behind as zombies.",
            )

    def _instance_checks(self, target: Target) -> Iterator[Check]:
        """Tasks on EC2 need an ECS agent that knows ECS Exec; on Fargate the platform version was looked at."""
        if target.container_instance is None:
            return
        version = str(self._instance(target)["versionInfo"]["agentVersion"])
        old = tuple(int(part) for part in version.split(".")[:3]) < _OLDEST_AGENT
        yield Check(
            "container_instance",
            "problem" if old else "ok",
            f"The container instance runs ECS agent {version}" + ("; ECS Exec needs 1.50.2 or later." if old else "."),
        )

    def _cluster_checks(self, target: Target) -> Iterator[Check]:
        configuration = self._configuration(target)
        key, logging = configuration.get("kmsKeyId"), configuration.get("logging", "DEFAULT")
        encrypted = f"encrypted with the KMS key {key}" if key else "not encrypted with a key of its own"
        yield Check("cluster", "ok", f"The cluster's sessions are {encrypted}; logging is {logging}.")
        if logging == "OVERRIDE":
            yield Check(
                "cluster",
                "warning",
                "The cluster logs what commands print, for which the image needs script and cat.",
            )

    def _caller_checks(self, target: Target) -> Iterator[Check]:
        caller = self._caller()
        denied = self._denied(caller, ["ecs:ExecuteCommand"], target.task_arn)
        key = self._key(target)
        if key is not None:
            denied += self._denied(caller, ["kms:GenerateDataKey"], key)
        yield _permissions("caller", f"{caller} (you)", denied)
        if not self._denied(caller, ["ssm:StartSession"], target.task_arn):
            yield Check(
                "caller",
                "warning",
                "You may start sessions in tasks with ssm:StartSession as well, past ECS and its audit trail.",
            )

    def _role_checks(self, target: Target) -> Iterator[Check]:
        role = self._role(target)
        if role is None:
            yield Check("task_role", "problem", "Neither the task nor its instance has a role, so nothing is allowed.")
            return
        denied = self._denied(role, MESSAGES)
        key = self._key(target)
        if key is not None:
            denied += self._denied(role, ["kms:Decrypt"], key)
        for resource, actions in _logging(self._configuration(target), target):
            denied += self._denied(role, actions, resource)
        yield _permissions("task_role", f"The task's role {role}", denied)

    def _endpoint_checks(self, target: Target) -> Iterator[Check]:
        """A VPC with endpoints but none for ssmmessages often has no other way out."""
        ec2 = self._clients("ec2")
        vpc = self._vpc(target)
        if vpc is None:
            yield Check("vpc_endpoints", "unknown", "ECS does not say in which VPC the task runs.")
            return
        filters = [{"Name": "vpc-id", "Values": [vpc]}]
        answer = self._once(("endpoints", vpc), lambda: ec2.describe_vpc_endpoints(Filters=filters))
        names = [str(endpoint["ServiceName"]) for endpoint in answer["VpcEndpoints"]]
        if any(name.endswith(".ssmmessages") for name in names):
            yield Check("vpc_endpoints", "ok", f"{vpc} has an endpoint for ssmmessages.")
        elif names:
            yield Check(
                "vpc_endpoints",
                "warning",
                f"{vpc} has endpoints but none for ssmmessages, so the task needs another way to it (a NAT).",
            )
        else:
            yield Check(
                "vpc_endpoints", "ok", f"{vpc} has no endpoints, so ssmmessages is reached by a NAT or not at all."
            )


def _logging(configuration: Mapping[str, Any], target: Target) -> Iterator[tuple[str, Sequence[str]]]:
    """What the task role has to be allowed where the cluster logs sessions: resource and actions.

    A role is rightly allowed no more than the bucket and the log group, so ``*`` would be denied.
    """
    logs = (configuration.get("logConfiguration") or {}) if configuration.get("logging") == "OVERRIDE" else {}
    _, partition, _, region, account, *_ = target.task_arn.split(":")
    if bucket := logs.get("s3BucketName"):
        arn = f"arn:{partition}:s3:::{bucket}"
        yield f"{arn}/{logs.get('s3KeyPrefix') or ''}*", ["s3:PutObject"]
        if logs.get("s3EncryptionEnabled"):
            yield arn, ["s3:GetEncryptionConfiguration"]
    if group := logs.get("cloudWatchLogGroupName"):
        yield "*", ["logs:DescribeLogGroups"]
        yield f"arn:{partition}:logs:{region}:{account}:log-group:{group}:*", _LOG_GROUP


def _guarded(name: str, look: Callable[[Target], Iterable[Check]], target: Target) -> list[Check]:
    checks: list[Check] = []
    try:
        checks.extend(look(target))
    except Exception as exc:  # boto3's exceptions are made at run time, and an answer may lack what it should have
        detail = ": ".join(part for part in error_of(exc) if part)
        checks.append(Check(name, "unknown", f"This could not be checked ({detail})."))
    return checks


def _permissions(name: str, who: str, denied: Sequence[str]) -> Check:
    if denied:
        return Check(name, "problem", f"{who} may not call {', '.join(denied)}.")
    return Check(name, "ok", f"{who} has the permissions that ECS Exec needs.")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
