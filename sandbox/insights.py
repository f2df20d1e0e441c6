# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CloudWatch Logs Insights, as far as whole events are asked for in the order of their times.

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
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .errors import ApiError
from .logs import Event, LogStore, int_member

MOST_ROWS = 10_000
MOST_AT_ONCE = 100
_KEPT = 500
_QUERY = re.compile(
    r"\s*fields (?P<fields>@\w+(?:\s*,\s*@\w+)*)\s*\|\s*sort @timestamp asc\s*(?:\|\s*limit (?P<limit>\d+)\s*)?"
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
        names = request.get("logGroupNames") or [request.get("logGroupName")]
        if len(names) != 1 or not names[0]:
            raise ApiError("InvalidParameterException", "This sandbox takes one log group a query, by logGroupName")
        group = self._logs.groups.get(str(names[0]))
        if group is None:
            raise ApiError("ResourceNotFoundException", "The specified log group does not exist.")
        start, end = (int_member(request, name, 0, None, -1) for name in ("startTime", "endTime"))
        if start < 0 or end < start:
            raise ApiError(
                "InvalidParameterException", "startTime and endTime are needed, the first not after the other"
            )
        parsed = _QUERY.fullmatch(str(request.get("queryString", "")))
        fields = re.split(r"\s*,\s*", parsed["fields"]) if parsed else []
        if parsed is None or not set(fields) <= set(_FIELDS):
            raise ApiError("MalformedQueryException", "unexpected symbol found, or a command that this sandbox lacks")
        limit = min(int_member(request, "limit", 1, MOST_ROWS, MOST_ROWS), int(parsed["limit"] or MOST_ROWS), MOST_ROWS)
        if sum(query.running for query in self._queries.values()) >= MOST_AT_ONCE:
            raise ApiError("LimitExceededException", "Too many concurrent queries")
        events = group.events
        now = int(time.time() * 1000)
        first = bisect_left(events, (start * 1000, ""))
        last = bisect_right(events, (min(end * 1000 + 999, now), "~"))
        found = events[first:last]
        scanned = sum(len(event.message) + 26 for event in found)
        identifier = str(uuid.uuid4())
        self._queries[identifier] = _Query(
            [_row(event, fields, group.name) for event in found[:limit]],
            {"recordsMatched": float(len(found)), "recordsScanned": float(len(found)), "bytesScanned": float(scanned)},
        )
        while len(self._queries) > _KEPT:
            self._queries.popitem(last=False)
        return {"queryId": identifier}

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
