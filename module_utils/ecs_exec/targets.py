# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which containers a command runs in, and why ECS Exec will not work in one of them before anything is tried.

The rules are those of amazon-ecs-exec-checker, applied to one ListTasks a service and one DescribeTasks for all.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_DESCRIBE: Final = 100  # tasks that one DescribeTasks takes
_AGENT: Final = "ExecuteCommandAgent"
_OLDEST_PLATFORM: Final = (1, 4, 0)
_OLDEST_WINDOWS: Final = (1, 0, 0)
_KEYS: Final = frozenset({"AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})


class TargetError(ValueError):
    """The tasks or the container asked for are ambiguous or do not exist; one sentence."""


@dataclass(frozen=True, slots=True)
class Target:
    """One container of one task. ``problem`` says in a sentence why it cannot be reached; None: it may be."""

    task_arn: str
    cluster: str
    container: str = ""
    service: str | None = None
    family: str | None = None
    zone: str | None = None
    ip: str | None = None
    started_at: dt.datetime | None = None
    task_definition: str | None = None
    problem: str | None = None
    runtime_id: str = ""
    role: str | None = None  # the task role, where the task overrides its definition's
    container_instance: str | None = None  # on EC2
    subnet: str | None = None

    @property
    def task(self) -> str:
        """The task's id: the last part of its ARN."""
        return self.task_arn.rpartition("/")[2]

    @property
    def session_target(self) -> str:
        """What Systems Manager calls this container; a part of what a session's encryption is bound to."""
        return f"ecs:{self.cluster.rpartition('/')[2]}_{self.task}_{self.runtime_id}"


def find(
    ecs: Any,
    cluster: str,
    *,
    services: Sequence[str] = (),
    tasks: Sequence[str] = (),
    family: str | None = None,
    container: str | None = None,
) -> list[Target]:
    """List and describe the tasks meant, once each, in the order of the services given, then of the task ids.

    ecs: a boto3 ECS client. Its exceptions pass through. Raises TargetError when the container is not clear.
    """
    wanted: list[str] = []
    if services:
        for service in services:
            wanted += sorted(_list(ecs, cluster=cluster, serviceName=service))
    elif family is not None:
        wanted = sorted(_list(ecs, cluster=cluster, family=family))
    else:
        wanted = list(tasks)
    once: dict[str, str] = {}
    for name in wanted:
        once.setdefault(name.rpartition("/")[2], name)
    return list(_describe(ecs, cluster, list(once.values()), container))


def find_all(ecs: Any, cluster: str, *, services: Sequence[str] = (), families: Sequence[str] = ()) -> list[Target]:
    """Find every container of the running tasks of the services and families, or of the cluster if none is named.

    The order is that of the task ids; a task that is meant twice stands once. boto3's exceptions pass through.
    """
    queries = [{"serviceName": name} for name in services] + [{"family": name} for name in families]
    wanted = {arn for query in queries or [{}] for arn in _list(ecs, cluster=cluster, **query)}
    return [
        _container_target(task, container, cluster)
        for _, task in _answers(ecs, cluster, sorted(wanted))
        if task is not None
        for container in task.get("containers") or []
    ]


def refresh(ecs: Any, target: Target) -> Target:
    """Describe one task again, after a failure: it may have begun to stop meanwhile."""
    return next(_describe(ecs, target.cluster, [target.task], target.container), target)


def _list(ecs: Any, **query: str) -> list[str]:
    pages = ecs.get_paginator("list_tasks").paginate(**query)
    return [arn for page in pages for arn in page["taskArns"]]


def _describe(ecs: Any, cluster: str, wanted: Sequence[str], container: str | None) -> Iterator[Target]:
    for name, task in _answers(ecs, cluster, wanted):
        if task is None:
            problem = "There is no such task in the cluster (stopped tasks are forgotten after an hour)."
            yield Target(name, cluster, container or "", problem=problem)
        else:
            yield _container_target(task, _choose(task, container), cluster)


def _answers(ecs: Any, cluster: str, wanted: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any] | None]]:
    """Describe tasks; yield each name asked for with what was found, in the order asked."""
    for start in range(0, len(wanted), _DESCRIBE):
        batch = wanted[start : start + _DESCRIBE]
        answer = ecs.describe_tasks(cluster=cluster, tasks=batch)
        found = {task["taskArn"].rpartition("/")[2]: task for task in answer["tasks"]}
        for name in batch:
            yield name, found.get(name.rpartition("/")[2])


def _container_target(task: Mapping[str, Any], container: Mapping[str, Any], cluster: str) -> Target:
    group = task.get("group") or ""
    kind, _, name = group.partition(":")
    addresses = [interface.get("privateIpv4Address") for interface in container.get("networkInterfaces") or []]
    return Target(
        task_arn=task["taskArn"],
        cluster=cluster,
        service=name if kind == "service" else None,
        family=task["taskDefinitionArn"].rpartition("/")[2].partition(":")[0],
        zone=task.get("availabilityZone"),
        started_at=task.get("startedAt"),
        task_definition=task["taskDefinitionArn"],
        container=container["name"],
        ip=next(filter(None, addresses), None),
        problem=_task_problem(task) or _agent_problem(container),
        runtime_id=container.get("runtimeId", ""),
        role=(task.get("overrides") or {}).get("taskRoleArn"),
        container_instance=task.get("containerInstanceArn"),
        subnet=_subnet(task),
    )


def _subnet(task: Mapping[str, Any]) -> str | None:
    details = (detail for attachment in task.get("attachments") or [] for detail in attachment.get("details") or [])
    return next((detail.get("value") for detail in details if detail.get("name") == "subnetId"), None)


def _choose(task: Mapping[str, Any], wanted: str | None) -> Mapping[str, Any]:
    containers: list[Mapping[str, Any]] = task.get("containers") or []
    chosen = [container for container in containers if wanted in (None, container["name"])]
    if len(chosen) == 1:
        return chosen[0]
    identifier = task["taskArn"].rpartition("/")[2]
    names = ", ".join(sorted(container["name"] for container in containers)) or "none"
    if wanted is not None:
        raise TargetError(f"Task {identifier} has no container '{wanted}'; it has: {names}.")
    raise TargetError(f"Task {identifier} has {len(containers)} containers; choose one with container: {names}.")


def _task_problem(task: Mapping[str, Any]) -> str | None:
    status = task.get("lastStatus")
    if task.get("desiredStatus") == "STOPPED" or status in {"DEACTIVATING", "STOPPING", "DEPROVISIONING", "STOPPED"}:
        reason = task.get("stoppedReason")
        return f"The task is stopping or has stopped{f' ({reason})' if reason else ''}."
    if status != "RUNNING":
        return f"The task is {status} and not yet RUNNING."
    if not task.get("enableExecuteCommand"):
        return (
            "ECS Exec was not enabled when this task was started: enable it on the service"
            " (enableExecuteCommand) and deploy anew."
        )
    return _platform_problem(task)


def _platform_problem(task: Mapping[str, Any]) -> str | None:
    version = task.get("platformVersion")
    if task.get("launchType") != "FARGATE" or not version:
        return None
    windows = "windows" in str(task.get("platformFamily", "")).lower()
    oldest = _OLDEST_WINDOWS if windows else _OLDEST_PLATFORM
    try:
        number = tuple(int(part) for part in version.split("."))
    except ValueError:
        return None
    if number < oldest:
        needed = ".".join(map(str, oldest))
        return f"Fargate platform version {version} has no ECS Exec; it needs {needed} or later."
    return None


def _agent_problem(container: Mapping[str, Any]) -> str | None:
    agents = [agent for agent in container.get("managedAgents") or [] if agent.get("name") == _AGENT]
    if not agents:
        return "The container has no ECS Exec agent: the container instance's ECS agent may be older than 1.50.2."
    status, reason = agents[0].get("lastStatus"), agents[0].get("reason")
    # PENDING is a matter of seconds, and the attempt is repeated for young tasks.
    if status in {"RUNNING", "PENDING"}:
        return None
    because = f" ({reason})" if reason else ""
    return f"The ECS Exec agent in the container is {status}{because}: only a new task gets a new one."


def definition_problems(definition: Mapping[str, Any], container: str, role: str | None = None) -> list[str]:
    """Name what in a task definition is known to break ECS Exec in one of its containers.

    role: what the task acts as in spite of its definition: a role of its own, or on EC2 the container instance.
    """
    problems = []
    for part in definition.get("containerDefinitions") or []:
        names = {variable.get("name") for variable in part.get("environment") or []}
        names |= {secret.get("name") for secret in part.get("secrets") or []}
        if part.get("name") != container:
            continue
        if part.get("readonlyRootFilesystem"):
            problems.append("the container's root file system is read-only, where the agent has to write")
        if keys := sorted(names & _KEYS):
            problems.append(f"the container's environment sets {', '.join(keys)}, which the agent takes for its own")
    if definition.get("pidMode") == "task":
        problems.append("the containers share a PID namespace (pidMode task), where exec works in one of them only")
    if not definition.get("taskRoleArn") and role is None:
        problems.append(
            "there is no task role, in the task or its definition, so unless the instance's profile allows the four"
            " ssmmessages actions the agent cannot connect"
        )
    return problems
