# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Delivery on imap, and the way to imap: users, Maildirs, disks, stray mail, Cloud Map, the pin.

What could not be seen is None, never an empty list: an empty list says that somebody looked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .address_table import AddressTable, read_table
from .failed_recipient import Failure, read_failures

Facts = Mapping[str, Any]

#: What the hosts-pin of smtp-in writes when imap never resolved (docker/shared/hosts-pin.sh).
PIN_SENTINEL = "192.0.2.1"
#: Users named in the section; the counts beside them are of all.
MOST_USERS = 50
MOST_ERRORS = 10
USED = ("complete", "partial")


@dataclass(frozen=True)
class DiskLimits:
    """A file system counts as full from here on: procmail and sendmail fail before the last byte is gone."""

    used_percent: int = 95
    inodes_used_percent: int = 95


def local_delivery(triage: Facts, work_dir: Path, limits: DiskLimits) -> dict[str, Any]:
    """The section ``local_delivery`` of the fact ``triage``.

    Args:
        triage: the fact ``triage``.
        work_dir: the run's private directory.
        limits: when a disk counts as full.
    """
    entries = [entry for entry in (triage.get("containers") or {}).get("tasks") or [] if entry.get("status") in USED]
    imap = [entry for entry in entries if entry.get("tier") == "imap"]
    table = read_table(work_dir / "addresses.jsonl")
    failures = read_failures(work_dir / "failed_recipients.jsonl")
    environment = triage.get("environment") or {}
    running = _running_imap(environment)
    discovery = _discovery(environment, running)
    reasons = _gaps(triage, imap, failures, discovery)
    checked = bool(imap) or failures is not None or discovery["discovery_empty"] is not None
    return {
        "status": "unavailable" if not checked else "partial" if reasons else "complete",
        "reasons": reasons,
        "missing_users": missing_users(imap, table, failures, _accounts(environment)),
        "users_of_table_missing": _table_users_missing(imap, table),
        "unwritable": unwritable(imap, table, failures),
        "disk_full": disk_full(entries, limits),
        "stray_mail": _stray(imap),
        "home_on_efs": _home_on_efs(imap),
        "procmail_errors": _procmail_errors(triage),
        **discovery,
        "imap_running": running,
        "unresolvable": unresolvable(triage),
        "pins": pins(triage, entries),
        "imap_in_dns": {
            str(entry.get("task")): entry["imap_in_dns"] for entry in entries if entry.get("imap_in_dns") is not None
        },
        "pin_sentinel": sorted(_at_sentinel(triage, entries)),
        "imap_queue": next((entry.get("queue") for entry in imap if entry.get("queue")), None),
        "imap_task": [entry.get("task") for entry in imap],
    }


def _gaps(triage: Facts, imap: Sequence[Facts], failures: Sequence[Failure] | None, discovery: Facts) -> list[str]:
    """What could not be checked, a sentence each."""
    reasons = []
    if not imap:
        said = [row for row in (triage.get("containers") or {}).get("unreachable") or [] if row.get("tier") == "imap"]
        why = said[0].get("reason") if said else ((triage.get("containers") or {}).get("reasons") or ["skipped"])[0]
        reasons.append(f"users, Maildirs and disk of imap could not be looked at: {why}")
    else:
        reasons += [
            f"{what} of imap task {entry.get('task')} could not be read"
            for entry in imap
            for what, key in (("the OS users", "users"), ("the Maildirs", "homes"), ("/var/spool/mail", "stray_mail"))
            if entry.get(key) is None
        ]
    if failures is None:
        reasons.append("no list of failed recipients was written")
    if discovery["discovery_empty"] is None:
        reasons.append("whether Cloud Map has an address of imap could not be told")
    return reasons


# --- users -----------------------------------------------------------------------------------------------------------


def missing_users(
    imap: Sequence[Facts],
    table: AddressTable | None,
    failures: Sequence[Failure] | None,
    accounts: Mapping[str, Facts],
) -> list[dict[str, Any]] | None:
    """Users whose mail was refused as unknown and who have no OS user on imap.

    ``confirmed`` is None where the OS users could not be read: then the answers of imap alone speak. ``cognito``: what
    a task that starts now would find (CONFIRMED with a UID becomes an OS user), ``unknown`` where nobody could ask.
    """
    users = _common_users(imap)
    if failures is None:
        return None
    refused: Counter[str] = Counter()
    for failure in failures:
        if failure.no_such_user and failure.refused_by == "imap":
            refused.update(set(_targets(failure, table)))
    return [
        {
            "user": name,
            "recipients": count,
            "confirmed": None if users is None else True,
            "cognito": (accounts.get(name) or {}).get("status") or "unknown",
            "osid": (accounts.get(name) or {}).get("osid"),
        }
        for name, count in sorted(refused.items(), key=lambda item: (-item[1], item[0]))
        if users is None or name not in users
    ][:MOST_USERS]


def _accounts(environment: Facts) -> dict[str, Facts]:
    """Cognito's users by name, as far as it was asked."""
    return {str(row["user"]): row for row in (environment.get("users") or {}).get("users") or []}


def _targets(failure: Failure, table: AddressTable | None) -> Iterable[str]:
    if b"@" not in failure.address:
        return [failure.address.decode("utf-8", "replace")]
    position = table.index.get(failure.mark) if table else None
    return table.people_of(position) if table and position is not None else []


def _common_users(imap: Sequence[Facts]) -> frozenset[str] | None:
    lists = [frozenset(entry["users"]) for entry in imap if entry.get("users") is not None]
    return frozenset.intersection(*lists) if lists else None


def _table_users(table: AddressTable) -> Counter[str]:
    """Addresses by user, from the table."""
    values = Counter(table.users)
    found: Counter[str] = Counter()
    for value, count in values.items():
        for name in table.aliases.get(value.lower()) or (value.decode("utf-8", "replace"),):
            found[name] += count
    found.pop("", None)
    return found


def _table_users_missing(imap: Sequence[Facts], table: AddressTable | None) -> list[dict[str, Any]] | None:
    """Users of the table without an OS user on imap, whether or not mail for them failed already."""
    users = _common_users(imap)
    if users is None or table is None:
        return None
    missing = [(name, count) for name, count in _table_users(table).items() if name not in users]
    return [
        {"user": name, "addresses": count} for name, count in sorted(missing, key=lambda item: (-item[1], item[0]))
    ][:MOST_USERS]


def unwritable(
    imap: Sequence[Facts], table: AddressTable | None, failures: Sequence[Failure] | None
) -> list[dict[str, Any]] | None:
    """Users of the table whose Maildir is missing or cannot be written by them."""
    homes = [entry for entry in imap if entry.get("homes") is not None]
    if not homes:
        return None
    mailed = _table_users(table) if table else None
    failed: Counter[str] = Counter()
    for failure in failures or []:
        if failure.refused_by == "imap":
            failed.update(set(_targets(failure, table)))
    rows = [
        {
            "user": name,
            "task": entry.get("task"),
            "path": f"{home.get('path')}/Maildir",
            "problem": home.get("problem"),
            "uid": home.get("uid"),
            "owner_uid": home.get("owner_uid"),
            "mode": home.get("mode"),
            "addresses": mailed[name] if mailed is not None else None,
            "recipients": failed[name],
        }
        for entry in homes
        for name, home in entry["homes"].items()
        if home.get("problem") and (mailed is None or name in mailed)
    ]
    return sorted(rows, key=lambda row: (-row["recipients"], -(row["addresses"] or 0), row["user"]))[:MOST_USERS]


def _stray(imap: Sequence[Facts]) -> list[dict[str, Any]] | None:
    """Mail in /var/spool/mail, where nobody reads it and which goes with the task."""
    lists = [entry for entry in imap if entry.get("stray_mail") is not None]
    if not lists:
        return None
    return [{"task": entry.get("task"), **row} for entry in lists for row in entry["stray_mail"]][:MOST_USERS]


def _home_on_efs(imap: Sequence[Facts]) -> bool | None:
    """Whether /home outlives the task in all imap tasks; None where no task told of its mounts."""
    known = [entry["mounts"] for entry in imap if entry.get("mounts")]
    return all(str(mounts.get("/home", "")).startswith("nfs") for mounts in known) if known else None


def _procmail_errors(triage: Facts) -> list[dict[str, Any]] | None:
    """What sendmail on imap logged of local deliveries that failed or wait; None where its log was not read."""
    log = ((triage.get("tiers") or {}).get("by_tier") or {}).get("imap") or {}
    if (log.get("coverage") or {}).get("status") not in USED:
        return None
    rows = [row for part in ("bounces", "deferrals") for row in (log.get(part) or {}).get("replies") or []]
    return [
        {"text": row.get("text"), "recipients": row.get("recipients")}
        for row in rows
        if row.get("reason") == "local_error"
    ][:MOST_ERRORS]


def disk_full(entries: Sequence[Facts], limits: DiskLimits) -> list[dict[str, Any]] | None:
    """File systems without room, of any tier: makemap and the queue need it as well as Maildirs."""
    if not any(entry.get("disk") for entry in entries):
        return None
    return [
        {"tier": entry.get("tier"), "task": entry.get("task"), "path": path, **disk}
        for entry in entries
        for path, disk in (entry.get("disk") or {}).items()
        if (disk.get("used_percent") or 0) >= limits.used_percent
        or (disk.get("inodes_used_percent") or 0) >= limits.inodes_used_percent
    ]


# --- the way to imap -------------------------------------------------------------------------------------------------


def _running_imap(environment: Facts) -> int | None:
    service = (environment.get("services") or {}).get("imap") or {}
    running = service.get("running") if service.get("status") in USED else None
    return running if isinstance(running, int) else None


def _discovery(environment: Facts, running: int | None) -> dict[str, Any]:
    """Cloud Map's addresses of imap against its running tasks. An instance is registered only when a task starts."""
    part = (environment.get("discovery") or {}).get("imap") or {}
    known = part.get("instances") if part.get("status") in USED else None
    addresses = None if known is None else sorted(_ip(entry) for entry in known)
    service = (environment.get("services") or {}).get("imap") or {}
    tasks = [task.get("ip") for task in service.get("tasks") or [] if task.get("last_status") in (None, "RUNNING")]
    return {
        "discovery": addresses,
        # With no task running an empty service is no fault of its own.
        "discovery_empty": None if addresses is None or running is None else not addresses and running > 0,
        "discovery_orphans": None
        if addresses is None or not all(tasks) or not tasks
        else sorted(set(addresses) - set(map(str, tasks))),
    }


def _ip(entry: Any) -> str:
    return str(entry.get("ip")) if isinstance(entry, Mapping) else str(entry)


def unresolvable(triage: Facts) -> dict[str, Any]:
    """Mail that a tier could not bring to imap: its name not found (permanent), or nobody answering (deferred)."""
    tiers = {}
    for tier, log in ((triage.get("tiers") or {}).get("by_tier") or {}).items():
        if (log.get("coverage") or {}).get("status") not in USED:
            continue
        own = (log.get("bounces") or {}).get("own_host") or {}
        not_found = (own.get("reasons") or {}).get("host_unknown", 0)
        deferred = sum(
            row.get("recipients") or row.get("lines") or 0
            for row in (log.get("deferrals") or {}).get("relays") or []
            if str(row.get("relay") or "").strip("[].").lower().startswith("imap.")
        )
        if not_found or deferred:
            tiers[tier] = {"not_found": not_found, "deferred": deferred}
    return {"recipients": sum(row["not_found"] for row in tiers.values()), "tiers": tiers}


def pins(triage: Facts, entries: Sequence[Facts]) -> list[dict[str, Any]]:
    """The pin of each smtp-in task, and whether an imap task has that address now."""
    addresses = {str(entry.get("ip")) for entry in entries if entry.get("tier") == "imap" and entry.get("ip")}
    service = ((triage.get("environment") or {}).get("services") or {}).get("imap") or {}
    addresses |= {
        str(task["ip"])
        for task in service.get("tasks") or []
        if task.get("ip") and task.get("last_status") in (None, "RUNNING")
    }
    return [
        {
            "task": entry.get("task"),
            "ip": entry["hosts_pin"],
            "sentinel": entry["hosts_pin"] == PIN_SENTINEL,
            "is_imap": entry["hosts_pin"] in addresses if addresses else None,
        }
        for entry in entries
        if entry.get("hosts_pin")
    ]


def _at_sentinel(triage: Facts, entries: Sequence[Facts]) -> set[str]:
    """Tasks whose pin stands on the sentinel: from the container, else from what hosts-pin logged last."""
    seen = {str(entry.get("task")): entry.get("hosts_pin") for entry in entries if entry.get("tier") == "smtp-in"}
    found = {task for task, pin in seen.items() if pin == PIN_SENTINEL}
    logs = ((triage.get("tiers") or {}).get("by_tier") or {}).get("smtp-in") or {}
    for task, lines in (logs.get("tasks") or {}).items():
        if task not in seen and (lines.get("hosts_pin") or {}).get("sentinel"):
            found.add(task)
    return found
