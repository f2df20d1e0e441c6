# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a restart cured what it was for: what is true of the service before and after, side by side.

A steady state proves a TCP port and nothing else. Recovered is a service whose tasks all have fresh maps, the .db files
included, that equal the table, whose loops live, and whose formerly affected recipients bounce no more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from .failed_recipient import Failure
from .freshness import REBUILT, epoch
from .signals import section

Facts = Mapping[str, Any]

#: The container's clock is corrected by a skew of whole seconds, taken when its output arrived.
CLOCK_SLACK_SECONDS = 3.0
#: What of a map must be nothing for it to equal the table.
DIFFERENCES = ("missing", "surplus", "wrong_user", "domains_missing", "db_differs_from_text")
#: How a restart that was asked for can end without having been done.
UNDONE = ("refused", "nothing_to_do", "in_progress")


def side(triage: Facts, tier: str, at: str) -> dict[str, Any]:
    """What is true of one tier: one of the two columns of the report."""
    environment = section(triage, "environment")
    service = (environment.get("services") or {}).get(tier) or {}
    loops = {str(row["task"]): row for row in _of_tier(triage, "reconfigure_loop", tier)}
    containers = {str(row["task"]): row for row in _of_tier(triage, "containers", tier)}
    running = {str(row["id"]): row for row in running_tasks(triage, tier)}
    maps = _of_tier(triage, "address_map", tier)
    queue = (environment.get("queues") or {}).get(tier) or {}
    return {
        "at": at,
        "desired": service.get("desired"),
        "running": service.get("running"),
        "deployments": [
            {key: row.get(key) for key in ("id", "status", "rollout_state", "created_at")}
            for row in service.get("deployments") or []
        ],
        "queue_visible": queue.get("visible"),
        "mail_queue": next(
            ((row.get("queue") or {}).get("messages") for row in containers.values() if row.get("queue")), None
        ),
        "registered": ((environment.get("discovery") or {}).get(tier) or {}).get("instances"),
        "tasks": [
            {
                "task": task,
                "started_at": row.get("started_at"),
                "ip": row.get("ip"),
                "loop": (loops.get(task) or {}).get("state"),
                "loop_pid": ((containers.get(task) or {}).get("loop") or {}).get("pid"),
                "loop_age_seconds": ((containers.get(task) or {}).get("loop") or {}).get("age_seconds"),
                "maps": [
                    {
                        key: view.get(key)
                        for key in ("map", "entries", "source", "age_seconds", "db_mtime", *DIFFERENCES)
                    }
                    for view in maps
                    if view.get("task") == task and view.get("map") in REBUILT.get(tier, ())
                ],
            }
            for task, row in sorted(running.items())
        ],
    }


def running_tasks(triage: Facts, tier: str) -> list[Facts]:
    """The tier's tasks that run, by ECS; a pre-flight task is none of them."""
    service = (section(triage, "environment").get("services") or {}).get(tier) or {}
    rows = service.get("tasks") or []
    return [row for row in rows if row.get("last_status") == "RUNNING" and row.get("started_by") != "deploy-preflight"]


def _of_tier(triage: Facts, name: str, tier: str) -> list[Facts]:
    return [row for row in section(triage, name).get("tasks") or [] if row.get("tier") == tier]


def new_since(before: Facts, after: Facts, kind: str, tasks: Collection[str]) -> list[Facts]:
    """The tasks that have to be cured: those that started since, and where loops were ended those tasks themselves."""
    old = {row["task"] for row in before["tasks"]}
    wanted = set(tasks) if kind == "restart_loop" else {row["task"] for row in after["tasks"]} - old
    return [row for row in after["tasks"] if row["task"] in wanted]


def prove(
    before: Facts,
    after: Facts,
    plan: Facts,
    acted_at: str,
    bounced_again: int | None,
    watched: tuple[float, float] = (0.0, 0.0),
) -> list[dict[str, Any]]:
    """What has to be true after a restart, each as a check with ``name``, ``passed`` (None: not known) and ``value``.

    :param plan: the plan with ``kind``, ``tier`` and ``tasks``.
    :param acted_at: when the restart was asked for, RFC 3339.
    :param bounced_again: formerly affected recipients that failed since, None when nobody looked.
    :param watched: for how many seconds it was watched once all else was in order, and how many it has to be.
    """
    kind, tier, stuck = str(plan["kind"]), str(plan["tier"]), [str(task) for task in plan["tasks"]]
    fresh = new_since(before, after, kind, stuck)
    checks = [
        _check("tasks_running", *_tasks_running(before, after, kind, stuck, fresh)),
        _check("loop_alive", *_loop_alive(fresh)),
        _check("maps_fresh", *_maps_fresh(fresh, tier, acted_at)),
        _check("maps_equal_table", *_maps_equal(fresh, tier)),
        _check("bounces_stopped", *_bounces(bounced_again, watched)),
    ]
    if tier == "imap" and kind != "restart_loop":
        checks.append(_check("registered", *_registered(after, fresh)))
    return checks


def _check(name: str, passed: bool | None, value: str) -> dict[str, Any]:
    return {"name": name, "passed": passed, "value": value}


def _tasks_running(
    before: Facts, after: Facts, kind: str, stuck: Sequence[str], fresh: Sequence[Facts]
) -> tuple[bool | None, str]:
    if after["running"] is None or after["desired"] is None:
        return None, "the service could not be read"
    left = {row["task"] for row in after["tasks"]} & {row["task"] for row in before["tasks"]}
    stays = left & (set(stuck) if kind == "restart_task" else left if kind == "redeploy_service" else set())
    said = f"{after['running']} of {after['desired']} running, {len(fresh)} new"
    if stays:
        return False, f"{said}, {len(stays)} old still there"
    return after["running"] >= after["desired"] and bool(fresh), said


def _loop_alive(fresh: Sequence[Facts]) -> tuple[bool | None, str]:
    states = [row["loop"] for row in fresh]
    if not states or None in states or "unknown" in states:
        return None, "not known"
    return all(state == "healthy" for state in states), ", ".join(map(str, states))


def _views(fresh: Sequence[Facts], tier: str) -> list[Facts] | None:
    """Every map of every task concerned; None where one was not read."""
    views = [view for row in fresh for view in row["maps"]]
    whole = bool(fresh) and len(views) == len(fresh) * len(REBUILT.get(tier, ()))
    return views if whole and all(view["source"] == "makemap" for view in views) else None


def _maps_fresh(fresh: Sequence[Facts], tier: str, acted_at: str) -> tuple[bool | None, str]:
    views = _views(fresh, tier)
    built = [epoch(view["db_mtime"]) for view in views or []]
    if views is None or None in built:
        return None, "the .db files could not be read"
    old = [view["map"] for view, at in zip(views, built, strict=True) if (at or 0) < _since(acted_at)]
    return not old, f"{len(old)} of {len(views)} older than the restart" if old else f"{len(views)} built since"


def _since(acted_at: str) -> float:
    return (epoch(acted_at) or 0) - CLOCK_SLACK_SECONDS


def _maps_equal(fresh: Sequence[Facts], tier: str) -> tuple[bool | None, str]:
    views = _views(fresh, tier)
    if views is None or any(view["entries"] is None for view in views):
        return None, "the .db files could not be read"
    wrong = [f"{view['map']}: {key} {view[key]}" for view in views for key in DIFFERENCES if view[key]]
    return not wrong, ", ".join(wrong[:3]) or ", ".join(f"{view['map']} {view['entries']}" for view in views)


def _bounces(again: int | None, watched: tuple[float, float]) -> tuple[bool | None, str]:
    if again is None:
        return None, "the logs could not be read"
    seen, wanted = watched
    said = f"{again} recipients failed again in {seen:.0f} s"
    if not again and seen < wanted:
        return None, f"{said}, {wanted:.0f} s are needed"
    return again == 0, said


def _registered(after: Facts, fresh: Sequence[Facts]) -> tuple[bool | None, str]:
    if after["registered"] is None:
        return None, "Cloud Map could not be read"
    addresses = {row["ip"] for row in fresh}
    return bool(addresses) and addresses <= set(after["registered"]), ", ".join(after["registered"]) or "nobody"


def ready(checks: Iterable[Facts]) -> bool:
    """Whether all but the bounces is in order, so that from now on none of them should come."""
    return all(check["passed"] for check in checks if check["name"] != "bounces_stopped")


def conclude(action: Facts, checks: Sequence[Facts]) -> str:
    """The outcome: ``recovered``, ``not_recovered``, ``rolled_back`` or ``not_attempted``.

    What could not be proven is not recovered.
    """
    if not action.get("changed"):
        return "not_attempted"
    if action.get("outcome") == "rolled_back":
        return "rolled_back"
    return "recovered" if checks and all(check["passed"] for check in checks) else "not_recovered"


def bounced_again(
    before: Iterable[Failure] | None,
    after: Iterable[Failure] | None,
    since: datetime | None,
    in_table: Collection[int],
) -> int | None:
    """How many formerly affected recipients failed since a moment; None when the logs could not be read.

    An address that is not in the table is refused at the door for good and with right; that imap refuses it is the
    fault that was to be cured.
    """
    if before is None or after is None or since is None:
        return None
    marks = {failure.mark for failure in before}
    start = since.timestamp()
    return sum(
        1
        for failure in after
        if failure.mark in marks
        and (failure.time is None or failure.time >= start)
        and (failure.refused_by == "imap" or failure.mark in in_table)
    )
