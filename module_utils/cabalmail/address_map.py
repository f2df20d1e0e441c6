# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The section ``address_map``: the maps of every task against the table, and each recipient that failed.

Clear addresses are read from the run's private files and leave this module masked.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import containers
from .address_table import AddressTable, read_table
from .failed_recipient import STATES, Failure, Judgement, Unread, Witnesses, judge, read_failures
from .freshness import REBUILT, Limits, epoch
from .map_view import ALIASES, MapView, map_row, read_task
from .privacy import Masker
from .reconfigure_loop import LoopLimits, reconfigure_loop

Facts = Mapping[str, Any]


def address_map(triage: Facts, work_dir: Path, masker: Masker, limits: Limits, examples: int = 20) -> dict[str, Any]:
    """The section ``address_map``.

    Args:
        triage: the fact ``triage``.
        work_dir: the run's private directory with addresses.jsonl, failed_recipients.jsonl and <task>.out.
        masker: masks what is returned.
        limits: when a map is stale.
        examples: most examples a state.
    """
    listed = (triage.get("environment") or {}).get("addresses") or {}
    table = read_table(work_dir / "addresses.jsonl")
    failures = read_failures(work_dir / "failed_recipients.jsonl")
    wanted = frozenset(failure.mark for failure in failures or [])
    whole = table is not None and listed.get("status", "complete") == "complete"
    entries = list((triage.get("containers") or {}).get("tasks") or [])
    views: list[MapView] = []
    rows: list[dict[str, Any]] = []
    for entry in entries:
        raw = _raw(work_dir, str(entry.get("task")))
        if entry.get("status") in ("complete", "partial") and raw is not None:
            found = read_task(entry, raw, table, wanted, limits)
            if not whole:
                found = [replace(view, surplus=None) for view in found]  # the rest of the table may have it
            views += found
            rows += [map_row(view, entry, limits) for view in found if view.path != ALIASES or view.known]
    unread = _unread(triage, views, limits)
    world = Witnesses(
        table=table,
        table_whole=whole,
        views=views,
        users=_users(entries),
        limits=limits,
        smtp_out_hosts=_hosts(entries, "smtp-out"),
        unread=unread,
    )
    stale: dict[str, list[str]] = defaultdict(list)
    for view in views:
        if view.stale and view.task not in stale[view.tier]:
            stale[view.tier].append(view.task)
    return {
        **_status(triage, table, world, entries, views, asked=bool(failures)),
        "rows": table.rows if table else None,
        "limits": {"stale_after_seconds": limits.stale_after_seconds, "interval_seconds": limits.interval_seconds},
        "tasks": rows,
        "recipients": _recipients(failures, world, masker, examples),
        "bad_rows": _bad_rows(table, masker),
        "stale_tasks": {tier: sorted(tasks) for tier, tasks in stale.items() if tasks},
        # Not looked at: their loops are stuck by their logs, so their maps are old.
        "stale_by_log": {tier: tasks for tier in unread if (tasks := sorted(world.stuck_unread(tier)))},
        "tasks_of_tier": dict(Counter(str(entry.get("tier")) for entry in entries)),
    }


def _status(
    triage: Facts,
    table: AddressTable | None,
    world: Witnesses,
    entries: Sequence[Facts],
    views: Sequence[MapView],
    *,
    asked: bool,
) -> dict[str, Any]:
    """Whether all maps could be compared; without any the table alone still speaks of recipients, where some failed."""
    reasons = []
    if table is None:
        said = ((triage.get("environment") or {}).get("addresses") or {}).get("reasons") or []
        reasons.append(f"the table cabal-addresses could not be read{': ' + said[0] if said else ''}")
    elif not world.table_whole:
        reasons.append("the table cabal-addresses was read in part: what is not in it proves nothing")
    read = {view.task for view in views if view.known}
    if not entries:
        said = _first((triage.get("containers") or {}).get("reasons")) or "no running task is known"
        reasons.append(f"no map was read in a container: {said}")
    for entry in entries:
        if str(entry.get("task")) not in read and entry.get("tier") in REBUILT:
            why = _first(entry.get("reasons")) or "none was found"
            reasons.append(f"the maps of {entry.get('tier')} task {entry.get('task')} could not be read: {why}")
    reasons += [
        f"{view.path} of {view.tier} task {view.task} could not be read"
        for view in views
        if not view.known and view.path != ALIASES and view.task in read
    ]
    if not read and (table is None or not asked):
        return {"status": "unavailable", "reasons": reasons}
    return {"status": "partial" if reasons else "complete", "reasons": reasons}


def _unread(triage: Facts, views: Sequence[MapView], limits: Limits) -> dict[str, dict[str, Unread]]:
    """By tier, the running tasks whose maps could not be read, and what their logs say of their loops."""
    read = {view.task for view in views if view.known}
    unread: dict[str, dict[str, Unread]] = {}
    for row in reconfigure_loop(triage, LoopLimits(maps=limits))["tasks"]:
        if row["task"] not in read:
            unread.setdefault(row["tier"], {})[row["task"]] = Unread(row["stuck"], epoch(row["last_done"]))
    return unread


def _recipients(failures: Sequence[Failure] | None, world: Witnesses, masker: Masker, most: int) -> dict[str, Any]:
    if failures is None:
        return {
            "status": "unavailable",
            "reasons": ["no list of failed recipients was written"],
            **dict.fromkeys(("checked", "by_state", "refusals_by_state", "in_table", "not_in_table")),
            "examples": [],
        }
    counts, refusals, shown, examples = Counter[str](), Counter[str](), Counter[str](), []
    table = world.table
    for failure in failures:
        judgement = judge(failure, world)
        counts[judgement.state] += 1
        refusals[judgement.state] += failure.refusals
        if shown[judgement.state] < most:
            shown[judgement.state] += 1
            examples.append(_example(failure, judgement, world, masker))
    present = sum(1 for failure in failures if table and failure.mark in table.index)
    unknown = counts["unknown"]
    reasons = [f"of {len(failures)} failed recipients {unknown} could not be explained"] if unknown else []
    return {
        "status": "partial" if unknown else "complete",
        "reasons": reasons,
        "checked": len(failures),
        "in_table": present if table else None,
        "not_in_table": len(failures) - present if table else None,
        "by_state": {state: counts[state] for state in STATES},
        "refusals_by_state": {state: refusals[state] for state in STATES},
        "examples": examples,
    }


def _example(failure: Failure, judgement: Judgement, world: Witnesses, masker: Masker) -> dict[str, Any]:
    position = world.table.index.get(failure.mark) if world.table else None
    requested = world.table.requested[position] if world.table and position is not None else 0.0
    return {
        "address": masker.address(failure.address.decode("utf-8", "replace")),
        "state": judgement.state,
        "tier": failure.refused_by,
        "code": failure.code,
        "map": judgement.path,
        "tasks": list(judgement.tasks),
        "requested": containers.rfc3339(requested) if requested else None,
        "why": judgement.why,
    }


def _bad_rows(table: AddressTable | None, masker: Masker) -> dict[str, Any] | None:
    """Rows that a map can't be made of: one is enough to make makemap fail, unless it is skipped."""
    if table is None:
        return None
    return {
        "count": len(table.bad),
        "kinds": dict(Counter(table.bad.values())),
        "examples": [{"address": masker.address(name), "problem": problem} for name, problem in table.bad_examples],
    }


def _users(entries: Iterable[Facts]) -> frozenset[str] | None:
    """OS users that every running imap task has; None when none could be read."""
    lists = [entry["users"] for entry in entries if entry.get("tier") == "imap" and entry.get("users") is not None]
    return frozenset.intersection(*map(frozenset, lists)) if lists else None


def _hosts(entries: Iterable[Facts], tier: str) -> frozenset[str]:
    """Addresses of a tier's tasks as `relay=` shows them: the bare one, and that in an awsvpc host name."""
    addresses = [str(entry["ip"]) for entry in entries if entry.get("tier") == tier and entry.get("ip")]
    return frozenset(form for ip in addresses for form in (f"[{ip}]", f"ip-{ip.replace('.', '-')}."))


def _raw(work_dir: Path, task: str) -> bytes | None:
    if not task.isalnum():
        return None
    try:
        return (work_dir / f"{task}.out").read_bytes()
    except OSError:
        return None


def _first(items: Any) -> str | None:
    return str(items[0]) if items else None
