# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""DMARC aggregate reports of a period: our own mail's standing, and strangers who use our names.

By source, by reporter and by domain, and the same length of time before it. Reports lag by a day and more, are read
over IMAP (imap down = none), and come from an allow list of reporters only: no report is no proof.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

from .shape import when

MAX_SOURCES = 50
MAX_DOMAINS = 20
MAX_REPORTERS = 20
#: Digits of a number that is taken for one.
MAX_DIGITS = 15

#: Messages that passed and that failed, by source, domain and reporter.
Cells = Mapping[tuple[str, str, str], tuple[int, int]]

DMARC_BLANK: dict[str, Any] = {
    "rows": None,
    "newest_report": None,
    "sources": [],
    "sources_total": None,
    "period": None,
    "reporters": [],
    "domains": [],
    "before": None,
    "ours": None,
    "strangers": None,
    "cells": {},
    "cells_before": {},
}


class DmarcSummary:
    """Adds up rows of the table one page at a time; state grows with distinct sources, domains and reporters only.

    start, end: the period; what ended as long before its start is added up for comparison.
    """

    def __init__(self, start: datetime, end: datetime, before: datetime) -> None:
        self._period = {"start": when(start), "end": when(end)}
        self._before = before.timestamp()
        self._first = start.timestamp()
        self._last = end.timestamp()
        self._rows = 0
        self._newest: float | None = None
        self._cells: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
        self._cells_before: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])

    def add(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Take items of DynamoDB's low-level interface: all attributes are strings, dates are epoch seconds."""
        for item in items:
            row = {name: str((value or {}).get("S", "")) for name, value in item.items()}
            ended = _number(row.get("date_end"))
            # A report on time to come is a reporter's mistake (milliseconds, a wrong clock): it says nothing of ours.
            if ended is None or ended > self._last:
                continue
            self._newest = max(self._newest or 0, ended)
            if ended < self._before:
                continue
            current = ended >= self._first
            self._rows += current
            passed = "pass" in (row.get("dkim_result"), row.get("spf_result"))
            key = (_address(row.get("source_ip", "")), row.get("header_from", "").lower(), row.get("org_name", ""))
            cells = self._cells if current else self._cells_before
            cells[key][0 if passed else 1] += _count(row.get("count"))

    def summary(self) -> dict[str, Any]:
        """Return the section's fields as far as read; what hangs on which sources are ours is for C(with_ours)."""
        return {
            "rows": self._rows,
            "newest_report": when(self._newest),
            "period": self._period,
            "cells": {key: (counts[0], counts[1]) for key, counts in self._cells.items()},
            "cells_before": {key: (counts[0], counts[1]) for key, counts in self._cells_before.items()},
        }


def with_ours(facts: Mapping[str, Any], ours: Collection[str] | None) -> dict[str, Any]:
    """The section with its tables by source, reporter and domain.

    ours: our outbound addresses; None where they are not known: then own and foreign mail cannot be told apart.
    """
    cells, before = facts["cells"], facts["cells_before"]
    own = None if ours is None else {_address(text) for text in ours}
    sources = _sources(cells, own)
    kept = {name: value for name, value in facts.items() if not name.startswith("cells")}
    return {
        **kept,
        "sources": sources[:MAX_SOURCES],
        "sources_total": len(sources) if facts["rows"] is not None else None,
        "reporters": _by(cells, 2, "reporter", own)[:MAX_REPORTERS],
        "domains": _by(cells, 1, "domain", own)[:MAX_DOMAINS],
        # What our own sources and the others sent, over the whole of both periods.
        "ours": _total(cells, own, True),
        "strangers": _total(cells, own, False),
        "before": None
        if facts["rows"] is None
        else {"ours": _total(before, own, True), "strangers": _total(before, own, False)},
    }


def _total(cells: Cells, own: set[str] | None, ours: bool) -> dict[str, int] | None:
    if own is None:
        return None
    rows = [counts for (source, _, _), counts in cells.items() if (source in own) is ours]
    passed, failed = sum(row[0] for row in rows), sum(row[1] for row in rows)
    return {"messages": passed + failed, "pass": passed, "fail": failed}


def _by(cells: Cells, position: int, name: str, own: set[str] | None) -> list[dict[str, Any]]:
    """A row for each reporter or domain: our own mail and that of others, most failures of ours first."""
    groups: dict[str, dict[tuple[str, str, str], tuple[int, int]]] = defaultdict(dict)
    for key, counts in cells.items():
        groups[key[position]][key] = counts
    rows = [
        {
            name: value,
            "messages": sum(sum(counts) for counts in group.values()),
            "ours": _total(group, own, True),
            "strangers": _total(group, own, False),
        }
        for value, group in groups.items()
    ]
    return sorted(rows, key=lambda row: (-(row["ours"] or {}).get("fail", 0), -row["messages"], row[name]))


def _sources(cells: Cells, own: set[str] | None) -> list[dict[str, Any]]:
    domains: dict[str, Counter[tuple[str, int]]] = defaultdict(Counter)
    reporters: dict[str, set[str]] = defaultdict(set)
    for (source, domain, reporter), counts in cells.items():
        domains[source].update({(domain, 0): counts[0], (domain, 1): counts[1]})
        reporters[source].add(reporter)
    rows = [
        _source(source, counts, len(reporters[source]), None if own is None else source in own)
        for source, counts in domains.items()
    ]
    return sorted(rows, key=lambda row: (-row["messages"], row["ip"]))


def _source(source: str, counts: Mapping[tuple[str, int], int], reporters: int, ours: bool | None) -> dict[str, Any]:
    passed = sum(count for (_, failed), count in counts.items() if not failed)
    failed = sum(count for (_, failed), count in counts.items() if failed)
    rows: list[dict[str, Any]] = [
        {"domain": name, "pass": counts[name, 0], "fail": counts[name, 1]} for name in {name for name, _ in counts}
    ]
    rows.sort(key=lambda row: (-row["fail"], -row["pass"], row["domain"]))
    return {
        "ip": source,
        "ours": ours,
        "pass": passed,
        "fail": failed,
        "messages": passed + failed,
        "reporters": reporters,
        "domains": rows[:MAX_DOMAINS],
    }


def _number(text: str | None) -> float | None:
    return float(text) if text and text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def _count(text: str | None) -> int:
    """Messages of a row; a row that does not say how many is one at least."""
    number = _number(text)
    return 1 if number is None else int(number)


def _address(text: str) -> str:
    """An address in one form: reporters write IPv6 in full, in capitals and shortened."""
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        return text
