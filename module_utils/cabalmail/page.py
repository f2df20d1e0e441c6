# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What report.html shows, as tables and pictures of the fact ``triage`` alone.

A section that is absent from the fact, or of which nothing is known, gives an empty list, and the page leaves it out.
Text may come from strangers: the template makes it inert where it is written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import chart, report

Facts = Mapping[str, Any]

# The page is to stay well under 300 kB whatever a run saw.
MOST_ROWS = 40
MOST_EVENTS = 30
MOST_EXCERPT = 1500
WIDE, NARROW = 900, 340


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page.

    Args:
        caption: its name, for those who don't see it.
        columns: heads; the first names the row.
        rows: cells.
        pointer: where its figures stand in triage.json (RFC 6901).
        numbers: indices of the columns that hold numbers.
        total: rows there are, where more than the shown ones.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    pointer: str
    numbers: frozenset[int] = frozenset()
    total: int = 0


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], pointer: str, *numbers: int) -> Table:
    """A table of the first ``MOST_ROWS`` rows; ``None`` in a cell is shown as unknown."""
    cells = [["?" if cell is None else str(cell) for cell in row] for row in rows]
    return Table(caption, columns, cells[:MOST_ROWS], pointer, frozenset(numbers), len(cells))


def view(triage: Facts) -> dict[str, Any]:
    """All that the page's template needs beside the fact and the outcome."""
    deferred = report.about_deferrals(triage)
    events = list(_events(triage))
    series = chart.series(triage, events, deferred)
    return {
        "charts": [("wide", chart.layout(series, WIDE)), ("narrow", chart.layout(series, NARROW))] if series else [],
        "legend": [(series.colour(reason), reason, count) for reason, count in series.reasons] if series else [],
        "events": events,
        "earlier": _earlier(triage),
        "counted": "deferrals" if deferred else "bounces",
        "course": report.course_lines(triage),
        "tiers": tier_table(triage),
        "codes": report.top_codes(triage, 10),
        "providers": list(provider_shares(triage, deferred)),
        "reasons": list(_reason_tables(triage, deferred)),
        "tasks": task_table(triage),
        "maps": map_table(triage),
        "dns": list(_dns_tables(triage)),
        "blocklists": _blocklist_table(triage),
        "blocklist_line": blocklist_line(triage),
        "blocklist_says": _of(triage, "deliverability", "blocklists").get("reasons") or [],
        "dmarc": _dmarc_table(triage),
        "dmarc_line": report.dmarc_line(triage),
        "before_after": before_after(triage),
        "excerpts": [
            (pointer, excerpt(triage, pointer)) for pointer in (triage.get("verdict") or {}).get("evidence", [])
        ],
    }


def _of(triage: Facts, *names: str) -> Facts:
    """A part of the fact; empty where there is none."""
    found: Any = triage
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _window(triage: Facts) -> tuple[str, str]:
    window = _of(triage, "alert", "window")
    return str(window.get("start", "")), str(window.get("end", "~"))


def _events(triage: Facts) -> Iterator[dict[str, Any]]:
    """The deployment's dated changes and the maps' and loops' moments within the window, in order of time."""
    start, end = _window(triage)
    rows = [*(_of(triage, "environment").get("changes") or []), *_loop_moments(triage)]
    inside = sorted((row for row in rows if start <= str(row["time"]) <= end), key=lambda row: str(row["time"]))
    yield from inside[-MOST_EVENTS:]


def _loop_moments(triage: Facts) -> Iterator[dict[str, Any]]:
    for row in _of(triage, "reconfigure_loop").get("tasks") or []:
        if row.get("last_done"):
            what = f"task {_short(row['task'])}: its newest regeneration of the maps ended"
            yield {"time": row["last_done"], "tier": row["tier"], "kind": "regeneration", "what": what}
    for row in _of(triage, "address_map").get("tasks") or []:
        if row.get("stale") and row.get("db_mtime"):
            what = f"task {_short(row['task'])}: {row['map']} was last built"
            yield {"time": row["db_mtime"], "tier": row["tier"], "kind": "map", "what": what}


def _earlier(triage: Facts) -> list[dict[str, Any]]:
    """The newest changes before the window: what was rolled out just before is suspect too."""
    start, _end = _window(triage)
    rows = [*(_of(triage, "environment").get("changes") or []), *_loop_moments(triage)]
    return sorted((row for row in rows if str(row["time"]) < start), key=lambda row: str(row["time"]))[-5:]


def _short(task: Any) -> str:
    return str(task)[:8]


def tier_table(triage: Facts) -> Table:
    """The table of tiers with coverage."""
    columns = report.tier_columns(triage)
    rows = [row.cells() for row in report.tier_rows(triage)]
    return table("Tiers", columns, rows, "/tiers/by_tier", *range(1, len(columns) - 1))


@dataclass(frozen=True, slots=True)
class Share:
    """One provider's part of the failures against its part of all attempts, per cent; None is unknown."""

    tier: str
    provider: str
    recipients: int
    attempts: int | None
    sent: int | None
    of_failures: float | None
    of_attempts: float | None


def provider_shares(triage: Facts, deferred: bool) -> Iterator[Share]:
    """Providers by tier, those with most failures first."""
    for tier, log in (_of(triage, "tiers").get("by_tier") or {}).items():
        part = log["deferrals" if deferred else "bounces"]
        failed = part.get("recipients") or 0
        rows = (part.get("providers") or [])[:8] if failed else []
        for row in rows:
            yield Share(
                tier,
                str(row["provider"]),
                int(row["recipients"]),
                row.get("attempts"),
                row.get("sent"),
                _percent(row.get("share_of_bounces"), row["recipients"], failed),
                _percent(row.get("share_of_attempts"), None, 0),
            )


def _percent(share: Any, part: Any, whole: int) -> float | None:
    if share is None:
        return round(100 * part / whole, 1) if part is not None and whole else None
    return round(100 * float(share), 1)


def _reason_tables(triage: Facts, deferred: bool) -> Iterator[tuple[str, Table, list[Facts], Facts | None]]:
    """Tier, its reasons, its answers and one sample line, of each tier where mail failed."""
    name = "deferrals" if deferred else "bounces"
    for tier, log in (_of(triage, "tiers").get("by_tier") or {}).items():
        part = log[name]
        reasons = [*(part.get("reasons") or []), *_unseen_reasons(log, deferred)]
        if not reasons:
            continue
        rows = [(row["reason"], row["fault"], row["recipients"]) for row in reasons]
        found = table(
            f"Reasons on {tier}", ["reason", "whose fault", "recipients"], rows, f"/tiers/by_tier/{tier}/{name}", 2
        )
        yield tier, found, list(part.get("replies") or [])[:5], next(iter(part.get("samples") or []), None)


def _unseen_reasons(log: Facts, deferred: bool) -> list[dict[str, Any]]:
    if deferred:
        return []
    rows = (log.get("unseen") or {}).get("reasons") or []
    return [{**row, "reason": f"{row['reason']} ({chart.UNSEEN})"} for row in rows]


def task_table(triage: Facts) -> Table:
    """Each task's loop, maps, sendmail and queue in one row."""
    loops = {row["task"]: row for row in _of(triage, "reconfigure_loop").get("tasks") or []}
    rows = []
    for task in _of(triage, "containers").get("tasks") or []:
        loop = loops.get(task["task"], {})
        age = loop.get("map_age_seconds")
        rows.append(
            [
                task["tier"],
                _short(task["task"]),
                _moment(task.get("started_at")),
                loop.get("state") if task["status"] != "unavailable" else f"not reached: {_first_reason(task)}",
                age if age is None else f"{age / 60:.0f} min",
                _running(task, "sendmail_running"),
                (task.get("queue") or {}).get("messages"),
                loop.get("why") or "",
            ]
        )
    columns = ["tier", "task", "started", "loop", "oldest map", "sendmail", "mail waiting", "why"]
    return table("Tasks", columns, rows, "/reconfigure_loop/tasks", 6)


def _first_reason(part: Facts) -> str:
    return str(next(iter(part.get("reasons") or []), part.get("outcome")))


def _moment(time: Any) -> str | None:
    return str(time)[:16].replace("T", " ") if time else None


def _running(task: Facts, name: str) -> str | None:
    runs = task.get(name)
    return None if runs is None else "runs" if runs else "NOT running"


def map_table(triage: Facts) -> Table:
    """Each task's maps against the table of addresses."""
    rows = [
        [
            row["tier"],
            _short(row["task"]),
            row["map"],
            row.get("entries"),
            row.get("missing"),
            row.get("surplus"),
            row.get("age_seconds") if row.get("age_seconds") is None else f"{row['age_seconds'] / 60:.0f} min",
            {True: "stale", False: "fresh"}.get(row.get("stale")),
            row.get("why") or "",
        ]
        for row in _of(triage, "address_map").get("tasks") or []
    ]
    columns = ["tier", "task", "map", "entries", "missing", "surplus", "age", "state", "why"]
    return table("Maps against cabal-addresses", columns, rows, "/address_map/tasks", 3, 4, 5)


def _dns_tables(triage: Facts) -> Iterator[Table]:
    domains, outbound = report.domain_rows(triage), report.outbound_rows(triage)
    if domains:
        yield table("Domains", ["domain", "SPF", "DKIM", "DMARC"], domains, "/deliverability/domains")
    if outbound:
        columns = ["address", "zone", "PTR", "blocklists"]
        yield table("Outbound addresses", columns, outbound, "/deliverability/addresses")


def _blocklist_table(triage: Facts) -> Table:
    """What blocklists say of our addresses and domains where that is not "not listed"."""
    part = _of(triage, "deliverability", "blocklists")
    rows = [
        (row.get("target"), *_listing(part, row))
        for row in part.get("results") or []
        if row.get("status") != "not_listed"
    ]
    rows.sort(key=lambda row: row[2] != "listed")
    return table("Blocklists", ["what", "list", "state", "says"], rows, "/deliverability/blocklists")


def blocklist_line(triage: Facts) -> str:
    """How many questions to blocklists ended how; empty when none was asked."""
    results = _of(triage, "deliverability", "blocklists").get("results") or []
    if not results:
        return ""
    ended = Counter(str(row.get("status")).replace("_", " ") for row in results)
    told = ", ".join(f"{count} {status}" for status, count in ended.most_common())
    return f"{len({row.get('zone') for row in results})} blocklists were asked {len(results)} questions: {told}."


def _listing(part: Facts, row: Facts) -> tuple[Any, Any, Any]:
    names = {entry.get("zone"): entry.get("name") for entry in part.get("lists") or []}
    says = row.get("says") or row.get("problem") or ", ".join(map(str, row.get("meanings") or []))
    return names.get(row.get("zone"), row.get("zone")), row.get("status"), says


def _dmarc_table(triage: Facts) -> Table:
    part = _of(triage, "environment", "dmarc")
    rows = [
        (
            row["ip"],
            {True: "ours", False: "not ours"}.get(row.get("ours")),
            row["messages"],
            row["fail"],
            ", ".join(f"{entry['domain']} ({entry['fail']} failed)" for entry in row.get("domains") or []),
        )
        for row in part.get("sources") or []
    ]
    return table(
        "DMARC by source", ["source", "whose", "messages", "failed", "domains"], rows, "/environment/dmarc", 2, 3
    )


def before_after(triage: Facts) -> Table:
    """What was true before a restart and after it."""
    part = _of(triage, "remediation")
    before, after = part.get("before"), part.get("after")
    if not isinstance(before, Mapping):
        return table("Before and after", [], [], "/remediation")
    left, right = dict(_flat(before)), dict(_flat(after)) if isinstance(after, Mapping) else {}
    rows = [(name, left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])]
    return table("Before and after", ["", "before", "after"], rows, "/remediation")


def _flat(part: Facts, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and plain values of a nested part."""
    for name, value in part.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{label}, ")
        elif isinstance(value, list):
            yield from _flat({str(number): entry for number, entry in enumerate(value, 1)}, f"{label} ")
        else:
            yield label, value


def excerpt(triage: Facts, pointer: str) -> str:
    """What the pointer (RFC 6901) names in the fact, as indented JSON, cut to ``MOST_EXCERPT`` characters."""
    found: Any = triage
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, ValueError, TypeError):
            return "not in this report"
    text = json.dumps(found, indent=1, ensure_ascii=False)
    return text if len(text) <= MOST_EXCERPT else f"{text[:MOST_EXCERPT]}\n... the rest is in triage.json"
