# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CloudWatch Logs Insights, as far as whole events are asked for in the order of their times, or counted by time.

After https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_StartQuery.html and API_GetQueryResults:
times are seconds and both ends inclusive, at most 10,000 rows a query, at most 100 queries at once, results of a query
that still runs are partial, every row carries `@ptr`, statistics tell what matched and what was scanned.
"""

from __future__ import annotations

import base64
import re
import time
import uuid
from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .errors import ApiError
from .logs import Event, LogStore, int_member

MOST_ROWS = 10_000
MOST_AT_ONCE = 100
MOST_GROUPS = 50
_KEPT = 500
_QUERY = re.compile(
    r"\s*fields (?P<fields>@\w+(?:\s*,\s*@\w+)*)\s*\|\s*sort @timestamp asc\s*(?:\|\s*limit (?P<limit>\d+)\s*)?"
)
_COUNT = re.compile(
    r'\s*filter @message like "(?P<text>(?:[^"\\]|\\.)+)"\s*\|\s*stats count\(\*\) as (?P<name>\w+)'
    r" by bin\((?P<seconds>\d{1,5})s\)\s*"
)
_FIELDS = ("@timestamp", "@ingestionTime", "@logStream", "@message", "@log")


@dataclass
class _Query:
    rows: list[list[dict[str, str]]]
    statistics: dict[str, float]
    asked: int = 0

    @property
    def running(self) -> bool:
        return self.asked < 2


class Queries:
    """The queries over a log store. Not thread-safe: call it from the event loop only."""

    def __init__(self, logs: LogStore) -> None:
        self._logs = logs
        self._queries: OrderedDict[str, _Query] = OrderedDict()

    def start_query(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer StartQuery.

        :raises ApiError: as AWS answers.
        """
        start, end = (int_member(request, name, 0, None, -1) for name in ("startTime", "endTime"))
        if start < 0 or end < start:
            raise ApiError(
                "InvalidParameterException", "startTime and endTime are needed, the first not after the other"
            )
        found = [self._events(name, start, end) for name in _group_names(request)]
        if sum(query.running for query in self._queries.values()) >= MOST_AT_ONCE:
            raise ApiError("LimitExceededException", "Too many concurrent queries")
        text = str(request.get("queryString", ""))
        counted = _COUNT.fullmatch(text)
        query = _counts(found, counted) if counted else _whole(found, text, request)
        identifier = str(uuid.uuid4())
        self._queries[identifier] = query
        while len(self._queries) > _KEPT:
            self._queries.popitem(last=False)
        return {"queryId": identifier}

    def _events(self, name: str, start: int, end: int) -> tuple[str, list[Event]]:
        group = self._logs.groups.get(name)
        if group is None:
            raise ApiError("ResourceNotFoundException", "The specified log group does not exist.")
        now = int(time.time() * 1000)
        first = bisect_left(group.events, (start * 1000, ""))
        last = bisect_right(group.events, (min(end * 1000 + 999, now), "~"))
        return group.name, group.events[first:last]

    def get_query_results(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer GetQueryResults: running with half the rows at first, then complete."""
        query = self._queries.get(str(request.get("queryId")))
        if query is None:
            raise ApiError("ResourceNotFoundException", "Query ID does not exist")
        query.asked += 1
        if query.running:
            half = len(query.rows) // 2
            partial = {name: value // 2 for name, value in query.statistics.items()}
            return {"results": query.rows[:half], "statistics": partial, "status": "Running"}
        return {"results": query.rows, "statistics": query.statistics, "status": "Complete"}


def _group_names(request: dict[str, Any]) -> list[str]:
    names = [str(name) for name in request.get("logGroupNames") or [request.get("logGroupName")] if name]
    if not names or len(names) > MOST_GROUPS:
        raise ApiError("InvalidParameterException", f"A query takes 1 to {MOST_GROUPS} log groups")
    return names


def _statistics(found: list[tuple[str, list[Event]]], matched: int) -> dict[str, float]:
    events = [event for _, group in found for event in group]
    scanned = sum(len(event.message) + 26 for event in events)
    return {
        "recordsMatched": float(matched),
        "recordsScanned": float(len(events)),
        "bytesScanned": float(scanned),
    }


def _whole(found: list[tuple[str, list[Event]]], text: str, request: dict[str, Any]) -> _Query:
    """Whole events of one group in the order of their times."""
    parsed = _QUERY.fullmatch(text)
    fields = re.split(r"\s*,\s*", parsed["fields"]) if parsed else []
    if parsed is None or len(found) != 1 or not set(fields) <= set(_FIELDS):
        raise ApiError("MalformedQueryException", "unexpected symbol found, or a command that this sandbox lacks")
    limit = min(int_member(request, "limit", 1, MOST_ROWS, MOST_ROWS), int(parsed["limit"] or MOST_ROWS), MOST_ROWS)
    [(group, events)] = found
    rows = [_row(event, fields, group) for event in events[:limit]]
    return _Query(rows, _statistics(found, len(events)))


def _counts(found: list[tuple[str, list[Event]]], parsed: re.Match[str]) -> _Query:
    """How many events hold a text, by spans of time; spans without any have no row."""
    wanted, size = re.sub(r"\\(.)", r"\1", parsed["text"]), int(parsed["seconds"]) * 1000
    if not size:
        raise ApiError("MalformedQueryException", "bin needs a length of time")
    counts = Counter(
        event.timestamp // size * size for _, events in found for event in events if wanted in event.message
    )
    rows = [
        [{"field": f"bin({parsed['seconds']}s)", "value": _time(at)}, {"field": parsed["name"], "value": str(count)}]
        for at, count in sorted(counts.items(), reverse=True)
    ]
    return _Query(rows[:MOST_ROWS], _statistics(found, counts.total()))


def _row(event: Event, fields: list[str], group: str) -> list[dict[str, str]]:
    values = {
        "@timestamp": _time(event.timestamp),
        "@ingestionTime": _time(event.ingested),
        "@logStream": event.stream,
        "@message": event.message,
        "@log": group,
    }
    row = [{"field": name, "value": values[name]} for name in fields]
    pointer = base64.b64encode(event.event_id.encode()).decode()
    return [*row, {"field": "@ptr", "value": pointer}]


def _time(milliseconds: int) -> str:
    at = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}.{milliseconds % 1000:03d}"
