# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""DMARC aggregate reports of a period, by source address: our own mail's standing, and strangers who use our names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

from .shape import when

MAX_SOURCES = 50
MAX_DOMAINS = 20

DMARC_BLANK: dict[str, Any] = {
    "rows": None,
    "newest_report": None,
    "sources": [],
    "sources_total": None,
    "period": None,
}


class DmarcSummary:
    """Adds up rows of the table one page at a time; state grows with distinct sources and domains only."""

    def __init__(self, start: datetime, end: datetime) -> None:
        self._period = {"start": when(start), "end": when(end)}
        self._first = start.timestamp()
        self._last = end.timestamp()
        self._rows = 0
        self._newest: float | None = None
        self._counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        self._reporters: dict[str, set[str]] = defaultdict(set)

    def add(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Take items of DynamoDB's low-level interface: all attributes are strings, dates are epoch seconds."""
        for item in items:
            row = {name: str((value or {}).get("S", "")) for name, value in item.items()}
            ended = _number(row.get("date_end"))
            if ended is None:
                continue
            self._newest = max(self._newest or 0, ended)
            if not self._first <= ended <= self._last:
                continue
            self._rows += 1
            count = int(_number(row.get("count")) or 1)
            passed = "pass" in (row.get("dkim_result"), row.get("spf_result"))
            source = row.get("source_ip", "")
            self._counts[source, row.get("header_from", "").lower()][0 if passed else 1] += count
            self._reporters[source].add(row.get("org_name", ""))

    def summary(self) -> dict[str, Any]:
        """Return the section's fields as far as read; C(ours) of each source is for C(mark_ours)."""
        by_source: dict[str, dict[str, list[int]]] = defaultdict(dict)
        for (source, domain), counts in self._counts.items():
            by_source[source][domain] = counts
        rows = [self._source(source, domains) for source, domains in by_source.items()]
        rows.sort(key=lambda row: (-row["messages"], row["ip"]))
        return {
            "rows": self._rows,
            "newest_report": when(self._newest),
            "sources": rows[:MAX_SOURCES],
            "sources_total": len(rows),
            "period": self._period,
        }

    def _source(self, source: str, domains: Mapping[str, list[int]]) -> dict[str, Any]:
        passed = sum(counts[0] for counts in domains.values())
        failed = sum(counts[1] for counts in domains.values())
        by_failure = sorted(domains.items(), key=lambda entry: (-entry[1][1], -entry[1][0], entry[0]))
        return {
            "ip": source,
            "ours": None,
            "pass": passed,
            "fail": failed,
            "messages": passed + failed,
            "reporters": len(self._reporters[source]),
            "domains": [
                {"domain": name, "pass": counts[0], "fail": counts[1]} for name, counts in by_failure[:MAX_DOMAINS]
            ],
        }


def mark_ours(sources: Iterable[Mapping[str, Any]], ours: Collection[str] | None) -> list[dict[str, Any]]:
    """Say of each source whether it is one of our outbound addresses; None where those are not known."""
    return [{**row, "ours": None if ours is None else row["ip"] in ours} for row in sources]


def _number(text: str | None) -> float | None:
    return float(text) if text and text.isascii() and text.isdigit() else None
