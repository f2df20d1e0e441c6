# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What DescribeServices says of a rollout. Pure: AWS's answers in, one word out.

Words after https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_Deployment.html and
https://docs.aws.amazon.com/AmazonECS/latest/developerguide/deployment-circuit-breaker.html.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

Aws = Mapping[str, Any]

#: A rollout is over with these; `in_progress` and `rolling_back` go on.
ENDED = ("steady", "failed", "rolled_back", "superseded")


def moment(value: Any) -> datetime | None:
    """A time as boto3 gives it (aware datetime or epoch seconds), None for none."""
    if value is None:
        return None
    return value.astimezone(UTC) if isinstance(value, datetime) else datetime.fromtimestamp(float(value), UTC)


def primary(service: Aws) -> Aws | None:
    """The deployment that the service is to become."""
    return next((row for row in service.get("deployments") or [] if row.get("status") == "PRIMARY"), None)


def under_way(service: Aws) -> Aws | None:
    """A deployment that has not settled yet, None where all have."""
    rows = service.get("deployments") or []
    return next((row for row in rows if row.get("rolloutState") == "IN_PROGRESS"), None)


def settled(service: Aws, deployment: Aws) -> bool:
    """Whether a deployment has all its tasks and no other has any: what ECS calls a steady state."""
    others = [row for row in service.get("deployments") or [] if row.get("id") != deployment.get("id")]
    return (
        deployment.get("rolloutState", "COMPLETED") == "COMPLETED"
        and deployment.get("runningCount") == service.get("desiredCount")
        and not deployment.get("pendingCount")
        and not any(row.get("runningCount") or row.get("pendingCount") for row in others)
    )


def judge_deployment(service: Aws, deployment_id: str) -> str:
    """How a deployment stands.

    :returns: ``in_progress``, ``steady``, ``failed``, ``rolling_back``, ``rolled_back``, or ``superseded`` by a
        deployment that somebody else began.
    """
    first = primary(service)
    ours = next((row for row in service.get("deployments") or [] if row.get("id") == deployment_id), None)
    if first is None:
        return "in_progress"
    if first is ours:
        if ours.get("rolloutState") == "FAILED":
            return "failed"
        return "steady" if settled(service, ours) else "in_progress"
    if rolls_back(first) or (ours is not None and ours.get("rolloutState") == "FAILED"):
        return "rolled_back" if settled(service, first) else "rolling_back"
    return "superseded"


def rolls_back(deployment: Aws) -> bool:
    """Whether the circuit breaker began this deployment."""
    return "rolling back" in str(deployment.get("rolloutStateReason") or "").lower()


def judge_tasks(service: Aws, running: Collection[str], replaced: Collection[str]) -> str:
    """How the replacement of single tasks stands.

    :param running: ids of the service's tasks that are meant to run and do.
    :param replaced: ids of those that were stopped.
    """
    whole = service.get("runningCount") == service.get("desiredCount") and not service.get("pendingCount")
    gone = not set(replaced) & set(running)
    return "steady" if whole and gone and under_way(service) is None else "in_progress"


def failed_starts(service: Aws, deployment_id: str) -> int:
    """How many tasks of a deployment ended before they were running."""
    rows = [row for row in service.get("deployments") or [] if row.get("id") == deployment_id]
    return int(rows[0].get("failedTasks") or 0) if rows else 0


def events_since(service: Aws, start: datetime) -> list[str]:
    """The service's own words since a moment, oldest first, each once."""
    rows = [(moment(row.get("createdAt")), str(row.get("message") or "")) for row in service.get("events") or []]
    said = [text for at, text in sorted(((at, text) for at, text in rows if at is not None)) if at >= start]
    return list(dict.fromkeys(said))


def stop_reasons(tasks: Iterable[Aws], since: datetime, ours: Collection[str]) -> list[dict[str, Any]]:
    """Why tasks ended since a moment; ``ours`` are those that were meant to end.

    What the scheduler ended by itself, as a deployment's old tasks, is no reason.
    """
    rows = []
    for task in tasks:
        name = task_id(task)
        stopped = moment(task.get("stoppingAt") or task.get("stoppedAt"))
        planned = name in ours or task.get("stopCode") in ("ServiceSchedulerInitiated", "UserInitiated")
        if stopped is None or stopped < since or planned:
            continue
        codes = [row.get("exitCode") for row in task.get("containers") or [] if row.get("exitCode") is not None]
        words = [str(row["reason"]) for row in task.get("containers") or [] if row.get("reason")]
        reason = "; ".join(dict.fromkeys([str(task.get("stoppedReason") or "no reason given"), *words]))
        rows.append({"task": name, "reason": reason, "exit_code": codes[0] if codes else None})
    return rows


def task_id(task: Aws) -> str:
    """The last part of a task's ARN."""
    return str(task.get("taskArn") or "").rsplit("/", 1)[-1]


def describe(service: Aws) -> dict[str, Any]:
    """What of a service a reader needs to compare before and after."""
    return {
        "desired": service.get("desiredCount"),
        "running": service.get("runningCount"),
        "pending": service.get("pendingCount"),
        "task_definition": str(service.get("taskDefinition") or "").rsplit("/", 1)[-1] or None,
        "deployments": [
            {
                "id": row.get("id"),
                "status": row.get("status"),
                "rollout_state": row.get("rolloutState"),
                "created_at": _text(moment(row.get("createdAt"))),
                "running": row.get("runningCount"),
                "failed": row.get("failedTasks"),
            }
            for row in service.get("deployments") or []
        ],
    }


def _text(value: datetime | None) -> str | None:
    return None if value is None else value.strftime("%Y-%m-%dT%H:%M:%SZ")
