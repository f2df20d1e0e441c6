# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What changed in an environment and when: deployments, tasks, revisions, parameters, in order of time.

A dated change beside the onset of a spike is the first thing that an operator looks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from ..time import parse_rfc3339

Facts = Mapping[str, Any]

MAX_CHANGES = 100
PREFLIGHT = "deploy-preflight"
#: Deployments that begin so close together come from one hand.
AT_ONCE = timedelta(seconds=90)
#: What ECS says of a service every six hours while nothing happens.
_STEADY = "has reached a steady state"


def changes(services: Mapping[str, Facts], parameters: Facts) -> list[dict[str, Any]]:
    """The newest dated changes, oldest first: ``time``, ``tier`` (None: all), ``kind`` and ``what`` in words.

    Args:
        services: the section's services by tier.
        parameters: the section's parameters.
    """
    rows = [row for tier, service in services.items() for row in _of_service(tier, service)]
    rows += _of_parameters(parameters)
    rows += _all_at_once(services)
    dated = {(row["time"], row["tier"], row["what"]): row for row in rows if row["time"]}
    return sorted(dated.values(), key=lambda row: (row["time"], row["tier"] or "", row["what"]))[-MAX_CHANGES:]


def _row(time: Any, tier: str | None, kind: str, what: str) -> dict[str, Any]:
    return {"time": time, "tier": tier, "kind": kind, "what": what}


def _of_service(tier: str, service: Facts) -> Iterator[dict[str, Any]]:
    for row in service.get("deployments") or []:
        state = row.get("rollout_state") or row.get("status")
        failed = f", {row['failed']} failed tasks" if row.get("failed") else ""
        what = f"deployment of {row.get('task_definition')} began ({state}{failed})"
        yield _row(row.get("created_at"), tier, "deployment", what)
    if service.get("registered_at"):
        what = f"{service.get('task_definition')} was registered (image {service.get('image')})"
        yield _row(service["registered_at"], tier, "revision", what)
    for task in service.get("tasks") or []:
        kind = "preflight" if task.get("started_by") == PREFLIGHT else "task"
        name = f"{'pre-flight ' if kind == 'preflight' else ''}task {task.get('id')}"
        yield _row(task.get("started_at"), tier, kind, f"{name} started ({task.get('task_definition')})")
        reason = f": {task['stop_reason']}" if task.get("stop_reason") else ""
        yield _row(task.get("stopped_at"), tier, kind, f"{name} stopped{reason}")
    for event in service.get("events") or []:
        if _STEADY not in event["message"]:
            yield _row(event["time"], tier, "event", event["message"])


def _of_parameters(parameters: Facts) -> Iterator[dict[str, Any]]:
    heartbeat = parameters.get("heartbeat") or {}
    yield _row(heartbeat.get("last_modified"), None, "parameter", "the heartbeat's ping address was changed")
    flag = parameters.get("maintenance_imap") or {}
    what = "set" if flag.get("active") else "cleared"
    yield _row(flag.get("last_modified"), "imap", "maintenance", f"the maintenance flag was {what}")


def _all_at_once(services: Mapping[str, Facts]) -> Iterator[dict[str, Any]]:
    """All services rolled within a moment without a new task definition: nobody shipped anything."""
    newest = {tier: _newest(service.get("deployments") or []) for tier, service in services.items()}
    times = [parse_rfc3339(row["created_at"]) for row in newest.values() if row and row.get("created_at")]
    if len(times) < max(2, len(services)) or max(times) - min(times) > AT_ONCE:
        return
    registered = [parse_rfc3339(row["registered_at"]) for row in services.values() if row.get("registered_at")]
    if len(registered) == len(services) and max(registered) < min(times) - timedelta(minutes=30):
        what = (
            "all services were redeployed at once with the task definitions that they had: a confirmed sign-up "
            "(assign_osid) does that, the certificate's renewal, or an operator"
        )
        yield _row(min(row["created_at"] for row in newest.values() if row), None, "redeploy", what)


def _newest(deployments: Iterable[Facts]) -> Facts | None:
    return max(deployments, key=lambda row: row.get("created_at") or "", default=None)
