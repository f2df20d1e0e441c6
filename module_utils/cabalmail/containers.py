# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is true inside the mail containers: the section ``containers`` out of the probes' output.

What could not be read is None, and the task's status says so. Times are RFC 3339 UTC and already corrected by the
container's clock skew; ages are taken within the container's own clock, so that skew never touches them.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..maillog.queued import Judge, Queue
from .privacy import Masker
from .probe import VERSION, Content, Probe, Process, from_base64, integer, lineage, parse, processes, text_of

#: Name of the loop's script in the containers (docker/shared/reconfigure.sh).
LOOP_SCRIPT = "reconfigure.sh"

_DIRECTORY = 0o040000


# --- the facts of one task -------------------------------------------------------------------------------------------


def container_facts(
    result: Mapping[str, Any],
    tier: str,
    probe: Probe | None,
    received: float | None,
    masker: Masker,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """ContainerFacts of one task.

    Args:
        result: the task's entry of ecs_exec's results.
        tier: the mail tier it belongs to.
        probe: its parsed output, None when there is none.
        received: our clock when the output had arrived, epoch seconds; None where unknown (no skew then).
        masker: for what may hold addresses (reasons in the queue).
        judge: gives a reason in the queue its id; without one they have none.
    """
    facts: dict[str, Any] = {
        "tier": tier,
        "task": result.get("task"),
        "outcome": result.get("outcome") or "unreachable",
        "status": "unavailable",
        "reasons": [],
        **{key: result.get(key) for key in ("started_at", "zone", "ip")},
    }
    if probe is None or probe.version is None:
        said = result.get("reason") or result.get("msg") or "the probe printed nothing that can be read"
        facts["reasons"] = [masker.text(" ".join(str(said).split()))]
        return {**facts, **_nothing_known()}
    if probe.version != VERSION:
        facts["reasons"] = [f"the probe speaks format {probe.version}, this project reads {VERSION}"]
        return {**facts, **_nothing_known()}
    skew = _skew(probe, received)
    facts["clock_skew_seconds"] = skew
    facts.update(_configuration(probe))
    facts["files"] = _files(probe, skew or 0)
    facts["maps"], map_problems = _maps(probe)
    facts.update(_processes(probe, skew or 0))
    facts["queue"] = _queue(probe, masker, skew or 0, judge)
    facts["hosts_pin"] = text_of(probe, "pin", 0)
    facts["imap_in_dns"] = _dns(probe)
    facts.update(_storage(probe))
    facts.update(_people(probe, skew or 0))
    problems = [*map_problems]
    if not probe.whole:
        problems.insert(0, _cut_short(result))
    facts["status"] = "partial" if problems else "complete"
    facts["reasons"] = problems
    return facts


def _cut_short(result: Mapping[str, Any]) -> str:
    outcome = result.get("outcome")
    if outcome == "timed_out":
        return "the session ran out of time before the probe had said everything"
    return "the probe's output ends before its end mark"


def _nothing_known() -> dict[str, Any]:
    empty = Probe()
    return {
        "clock_skew_seconds": None,
        "log_level": None,
        "files": {},
        "maps": {},
        "queue": None,
        "hosts_pin": None,
        "imap_in_dns": None,
        **_processes(empty, 0),
        **_storage(empty),
        **_people(empty, 0),
    }


def _skew(probe: Probe, received: float | None) -> int | None:
    clocks = [integer(row[0]) for row in probe.records.get("clock", []) if row]
    # The last one, which stands nearest to the moment the output arrived.
    if not probe.whole or received is None or not clocks or clocks[-1] is None:
        return None
    return round(clocks[-1] - received)


def _configuration(probe: Probe) -> dict[str, Any]:
    level = integer(text_of(probe, "loglevel", 0))
    if level is None and probe.first("cf"):
        level = 9  # sendmail's own default, where its configuration says nothing
    return {"log_level": level}


def _files(probe: Probe, skew: int) -> dict[str, Any]:
    lines = {row[-1]: integer(row[0]) for row in probe.records.get("lines", []) if len(row) > 1}
    sums = {row[-1]: row[0] for row in probe.records.get("sum", []) if len(row) > 1}
    clock = probe.clock
    files = {}
    for row in probe.records.get("file", []):
        mtime, size = (integer(value) for value in (*row, "", "")[:2])
        if len(row) < 3 or mtime is None:
            continue
        path = " ".join(row[2:])
        files[path] = {
            "exists": True,
            "size": size,
            "lines": lines.get(path),
            "mtime": rfc3339(mtime - skew),
            "age_seconds": None if clock is None else clock - mtime,
            "sha256": sums.get(path),
        }
    return files


def _maps(probe: Probe) -> tuple[dict[str, Any], list[str]]:
    """Entries of each map, from its .db, else from its text; and what could not be read of them."""
    read_paths = _paths_that_sendmail_reads(probe)
    known_files = {" ".join(row[2:]) for row in probe.records.get("file", [])}
    maps: dict[str, Any] = {}
    problems = []
    for path in sorted({path.removesuffix(".db") for kind, path in probe.sections if kind in ("db", "text")}):
        dump = probe.section("db", path + ".db")
        # Unpacked only where it is needed; /etc/aliases is written in another form than a map.
        text = None if path == "/etc/aliases" or (dump and dump.good) else probe.section("text", path)
        error = None
        if dump is None and f"{path}.db" in known_files:
            error = "its .db was not read"
        elif dump is not None and not dump.good:
            error = _dump_error(dump)
        if error:
            problems.append(f"{path}: {error}")
        source = "makemap" if dump and dump.good else "text" if text and text.good else None
        best = dump if source == "makemap" else text if source == "text" else None
        maps[path] = {
            "entries": sum(1 for _ in best.pairs()) if best else None,
            "source": source,
            "error": error,
            "read_by_sendmail": None if read_paths is None else path in read_paths,
        }
    return maps, problems


def _dump_error(dump: Content) -> str:
    if not dump.whole:
        return "its dump was cut short"
    if dump.status == 127:
        return "makemap is not in the container, so the .db could not be read"
    if dump.status == 124:
        return "reading its .db ran out of time"
    return f"makemap could not read its .db (status {dump.status})"


def _paths_that_sendmail_reads(probe: Probe) -> set[str] | None:
    """Map paths that sendmail.cf names; None where it names none that we could read."""
    rows = [row for row in probe.records.get("cfmap", []) if row]
    if not any(row[0] != "aliases" for row in rows):
        return None
    return {row[-1].removesuffix(".db") for row in rows}


def _processes(probe: Probe, skew: int) -> dict[str, Any]:
    table = processes(probe)
    facts: dict[str, Any] = {"loop": _loop(table)}
    for name in ("opendkim", "opendmarc", "dovecot", "supervisord", "rsyslogd"):
        facts[f"{name}_running"] = None if table is None else any(_is(process, name) for process in table)
    daemons = None if table is None else [process for process in table if _is(process, "sendmail")]
    facts["sendmail_running"] = None if daemons is None else bool(daemons)
    facts["sendmail_started"] = facts["sendmail_age_seconds"] = None
    if daemons:
        age = max(process.age_seconds for process in daemons)
        facts["sendmail_age_seconds"] = age
        if probe.clock is not None:
            facts["sendmail_started"] = rfc3339(probe.clock - skew - age)
    return facts


def _is(process: Process, name: str) -> bool:
    if process.state in ("Z", "X"):
        return False
    names = {process.name, (process.script or "").removesuffix(".sh")}
    return any(found == name or found == f"{name}-mta" for found in names)


def _loop(table: list[Process] | None) -> dict[str, Any]:
    """The reconfigure process, found by the script it runs and never by words on a command line."""
    unknown = {"process": "unknown", "pid": None, "state": None, "stopped": None, "age_seconds": None, "wchan": None}
    if table is None:
        return {**unknown, "count": None, "children": []}
    by_pid = {process.pid: process for process in table}
    # A $( ) of the script is a process of the same name below it: the loop is the one on top.
    roots = [
        process
        for process in table
        if process.script == LOOP_SCRIPT
        and process.state not in ("Z", "X")
        and getattr(by_pid.get(process.parent), "script", None) != LOOP_SCRIPT
    ]
    if not roots:
        return {**unknown, "process": "dead", "count": 0, "children": []}
    root = max(roots, key=lambda process: process.age_seconds)
    return {
        "process": "alive",
        "pid": root.pid,
        "state": root.state,
        "stopped": root.state in ("T", "t"),
        "age_seconds": root.age_seconds,
        "wchan": root.wchan,
        "count": len(roots),
        "children": [
            {
                "name": process.script or process.name,
                "call": process.call,
                "state": process.state,
                "age_seconds": process.age_seconds,
                "wchan": process.wchan,
            }
            for process in sorted(table, key=lambda item: -item.age_seconds)
            if process.pid != root.pid and root.pid in lineage(process, by_pid) and process.state not in ("Z", "X")
        ],
    }


def _queue(probe: Probe, masker: Masker, skew: int, judge: Judge | None) -> dict[str, Any] | None:
    content = probe.section("mailq", "-")
    if content is None or (content.status not in (0, None) and not content.data.strip()):
        return None
    queue = Queue(content.data.decode("utf-8", "replace"), probe.clock)
    return {
        "messages": queue.messages,
        "complete": content.good and queue.complete,
        "oldest": None if queue.oldest is None else rfc3339(queue.oldest - skew),
        **queue.reasons(judge, masker.text),
    }


def _dns(probe: Probe) -> list[str] | None:
    """Addresses of imap as DNS answers in the task; None where nobody could ask or no server answered."""
    row = probe.first("dns")
    if row is None or len(row) < 2 or row[0] != "0":
        return None
    return sorted(word for word in row[2:] if re.fullmatch(r"[0-9.]{7,15}", word))


def _storage(probe: Probe) -> dict[str, Any]:
    disk: dict[str, dict[str, int | None]] = {}
    for row in probe.records.get("disk", []):
        if len(row) >= 3:
            disk[row[2]] = {
                "used_percent": integer(row[0]),
                "available_kib": integer(row[1]),
                "inodes_used_percent": None,
            }
    for row in probe.records.get("inodes", []):
        if len(row) >= 2 and row[1] in disk:
            disk[row[1]]["inodes_used_percent"] = integer(row[0])
    memory = {row[0]: integer(row[1]) for row in probe.records.get("memory", []) if len(row) > 1}
    limits = {row[0]: integer(row[1]) for row in probe.records.get("cgroup", []) if len(row) > 1}
    return {
        "disk": disk,
        # None: the path is part of the container's own layer, or the mounts could not be read.
        "mounts": {row[2]: row[1] for row in probe.records.get("mount", []) if len(row) > 2},
        "read_only": [row[2] for row in probe.records.get("mount", []) if len(row) > 2 and row[0] == "ro"],
        "memory": {
            "total_kib": memory.get("MemTotal"),
            "available_kib": memory.get("MemAvailable"),
            "limit_bytes": limits.get("memory.max"),
            "used_bytes": limits.get("memory.current"),
        },
    }


def _people(probe: Probe, skew: int) -> dict[str, Any]:
    """OS users, their Maildirs, and mail that procmail left in /var/spool/mail. None: not known."""
    people: dict[str, tuple[int, int, str]] = {}
    for row in probe.records.get("user", []):
        uid, gid = (integer(value) for value in (*row, "", "")[:2])
        if len(row) >= 3 and uid is not None and gid is not None and row[2]:
            people[row[2]] = (uid, gid, " ".join(row[3:]) or f"/home/{row[2]}")
    seen = _directories(probe)
    stray = [
        {"user": Path(" ".join(row[2:])).name, "bytes": integer(row[0]), "newest": _moment(row[1], skew)}
        for row in probe.records.get("stray", [])
        if len(row) > 2 and (integer(row[0]) or 0) > 0
    ]
    users_known = ["end"] in probe.records.get("users", [])
    homes_known = users_known and ["end"] in probe.records.get("homes", [])
    read_only = [row[2] for row in probe.records.get("mount", []) if len(row) > 2 and row[0] == "ro"]
    return {
        "users": sorted(people) if users_known else None,
        "homes": {name: _home(entry, seen, read_only) for name, entry in sorted(people.items())}
        if homes_known
        else None,
        "stray_mail": sorted(stray, key=lambda row: -(row["bytes"] or 0))
        if ["end"] in probe.records.get("stray", [])
        else None,
    }


def _directories(probe: Probe) -> dict[str, tuple[int, int, int]]:
    """Owner, group and mode by path."""
    found = {}
    for row in probe.records.get("home", []):
        if len(row) >= 4 and row[0].isdecimal() and row[1].isdecimal():
            try:
                found[" ".join(row[3:])] = (int(row[0]), int(row[1]), int(row[2], 16))
            except ValueError:
                continue
    return found


def _home(
    person: tuple[int, int, str], seen: Mapping[str, tuple[int, int, int]], read_only: Sequence[str]
) -> dict[str, Any]:
    uid, gid, home = person
    maildir = seen.get(f"{home}/Maildir")
    problem = None
    if home not in seen:
        problem = "home_missing"
    elif maildir is None:
        problem = "maildir_missing"
    elif not maildir[2] & _DIRECTORY or stat.S_IFMT(maildir[2]) != _DIRECTORY:
        problem = "maildir_not_a_directory"
    elif any(home == mount or home.startswith(f"{mount}/") for mount in read_only if mount != "/"):
        problem = "read_only"
    elif not _allows(seen[home], uid, gid, 0o1):
        problem = "home_not_searchable"
    elif not _allows(maildir, uid, gid, 0o3) or not _allows(seen.get(f"{home}/Maildir/new", maildir), uid, gid, 0o3):
        problem = "maildir_not_writable"
    return {
        "exists": home in seen,
        "path": home,
        "maildir": maildir is not None,
        "uid": uid,
        "owner_uid": maildir[0] if maildir else None,
        "mode": f"{stat.S_IMODE(maildir[2]):04o}" if maildir else None,
        "writable": problem is None if maildir else None,
        "problem": problem,
    }


def _allows(entry: tuple[int, int, int], uid: int, gid: int, wanted: int) -> bool:
    """Whether the mode lets that user do it (1 search, 2 write), as the kernel decides: one class only counts."""
    owner, group, mode = entry
    shift = 6 if owner == uid else 3 if group == gid else 0
    return (mode >> shift) & wanted == wanted


# --- the section -----------------------------------------------------------------------------------------------------


def containers_section(
    results: Iterable[Mapping[str, Any]],
    tiers: Mapping[str, str],
    masker: Masker,
    known_tasks: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """The section ``containers`` of the fact ``triage``.

    Args:
        results: what ecs_exec returned, an entry a task.
        tiers: tier by name of its ECS service.
        masker: masks what may hold an address.
        known_tasks: tier to its running tasks as ECS lists them: one without a result is unreachable.
        judge: gives a reason in a queue its id.
    """
    tasks = []
    for result in results:
        tier = tiers.get(str(result.get("service") or "")) or str(result.get("container") or "")
        raw, received = _output(result)
        probe = parse(raw) if raw else None
        tasks.append(container_facts(result, tier, probe, received, masker, judge))
    probed = {entry["task"] for entry in tasks}
    for tier, running in (known_tasks or {}).items():
        for task in running:
            if task.get("id") and task["id"] not in probed:
                missed = {**task, "task": task["id"], "outcome": "unreachable", "reason": "no session was opened to it"}
                tasks.append(container_facts(missed, tier, None, None, masker))
    tasks.sort(key=lambda entry: (str(entry["tier"]), str(entry["task"])))
    unreachable = [
        {"tier": entry["tier"], "task": entry["task"], "reason": entry["reasons"][0]}
        for entry in tasks
        if entry["status"] == "unavailable"
    ]
    return {**_overall(tasks), "tasks": tasks, "unreachable": unreachable}


def _overall(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not tasks:
        return {"status": "unavailable", "reasons": ["no running task was found"]}
    reasons = [f"{entry['tier']} task {entry['task']}: {said}" for entry in tasks for said in entry["reasons"]]
    if all(entry["status"] == "unavailable" for entry in tasks):
        return {"status": "unavailable", "reasons": reasons}
    return {"status": "partial" if reasons else "complete", "reasons": reasons}


def _output(result: Mapping[str, Any]) -> tuple[bytes | None, float | None]:
    """The probe's bytes and when they had arrived by our clock."""
    path, kept = result.get("dest"), result.get("stdout_b64")
    if not path:
        # A session that broke leaves no file; what had come until then is still evidence.
        return (from_base64([str(kept).encode()])[0] if kept else None), None
    try:
        file = Path(str(path))
        return file.read_bytes(), file.stat().st_mtime
    except OSError:
        return None, None


# --- times -----------------------------------------------------------------------------------------------------------


def rfc3339(epoch: float) -> str | None:
    """Epoch seconds as RFC 3339 UTC; None for a moment that no calendar has."""
    try:
        return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return None


def _moment(text: str, skew: int) -> str | None:
    epoch = integer(text)
    return None if epoch is None else rfc3339(epoch - skew)
