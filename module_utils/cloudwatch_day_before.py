# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many lines an alert counted in the 24 hours before, to compare with: read beside the logs, never instead of them.

From CloudWatch's metric where it exists
(https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_GetMetricData.html), which costs one request. A
deployment without monitoring has none; then one Logs Insights query counts the lines on the server
(https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_StartQuery.html), billed by the bytes scanned.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from .aws_support import explain
from .cabalmail.time import format_rfc3339
from .cloudwatch_insights import ENDED_BADLY, milliseconds

HOURS = 24
# Five minutes: kept for 63 days where single minutes are kept for 15.
PERIOD_SECONDS = 300
# A metric that begins later than this has no whole day to compare with.
_LATE_SECONDS = 3600
_POLL_SECONDS = (0.1, 1.5)
# How long the reading of the logs, once done, waits for this.
GRACE_SECONDS = 8.0


class Asked(NamedTuple):
    """What is counted: the metric, the text that its filter looks for, the log groups, and the 24 hours' end in ms."""

    namespace: str
    metric: str
    pattern: str
    groups: Sequence[str]
    end: int
    minutes: int


class DayBefore(threading.Thread):
    """Reads the day before on its own thread; `result` says what is known, whenever it is asked.

    Args:
        asked: what to count.
        cloudwatch: a boto3 client for CloudWatch.
        logs: makes one for Logs, when the metric does not exist.
        until: monotonic time at which to give up.
    """

    def __init__(self, asked: Asked, cloudwatch: Any, logs: Callable[[], Any], until: float) -> None:
        super().__init__(daemon=True)
        self._asked = asked
        self._cloudwatch = cloudwatch
        self._logs = logs
        self._until = until
        # Aligned to the period, as CloudWatch aligns its sums.
        self._end = asked.end // 1000 // PERIOD_SECONDS * PERIOD_SECONDS
        self._start = self._end - HOURS * 3600
        self._found = self._unknown(["Reading it ended early: its time was up."])

    def result(self) -> dict[str, Any]:
        """`status`, `reasons`, `source` (`metric`, `insights`, None), `start`, `end`, `lines`, `busiest` (`lines`,
        `minutes`, `start`: the span with the most of them), `scanned_bytes`; None is not known and never 0."""
        self.join(max(0.0, min(GRACE_SECONDS, self._until - time.monotonic())))
        return self._found

    def run(self) -> None:
        """Ask for the metric, else run the query."""
        try:
            sums = self._metric()
        except Exception as error:
            why = f"The metric {self._asked.metric} could not be read: {explain(error)}"
        else:
            if sums:
                self._found = self._counted(sums, "metric", None)
                return
            why = f"The metric {self._asked.metric} has no data (monitoring is off, or its filters are gone)."
        try:
            self._found = self._query()
        except Exception as error:
            self._found = self._unknown([why, f"Nor could its lines be counted by a query: {explain(error)}"])

    def _metric(self) -> dict[int, int]:
        """Lines by the second at which a period begins; empty where the metric does not exist."""
        request: dict[str, Any] = {
            "MetricDataQueries": [
                {
                    "Id": "lines",
                    "MetricStat": {
                        "Metric": {"Namespace": self._asked.namespace, "MetricName": self._asked.metric},
                        "Period": PERIOD_SECONDS,
                        "Stat": "Sum",
                    },
                }
            ],
            "StartTime": datetime.fromtimestamp(self._start, UTC),
            "EndTime": datetime.fromtimestamp(self._end, UTC),
        }
        sums: dict[int, int] = {}
        for page in self._cloudwatch.get_paginator("get_metric_data").paginate(**request):
            for row in page["MetricDataResults"]:
                moments = (int(at.timestamp()) for at in row["Timestamps"])
                sums.update(zip(moments, map(round, row["Values"]), strict=True))
        return {at: lines for at, lines in sums.items() if self._start <= at < self._end}

    def _query(self) -> dict[str, Any]:
        client = self._logs()
        text = self._asked.pattern.replace("\\", "\\\\").replace('"', '\\"')
        started = client.start_query(
            logGroupNames=list(self._asked.groups),
            startTime=self._start,
            endTime=self._end - 1,
            queryString=f'filter @message like "{text}" | stats count(*) as lines by bin({PERIOD_SECONDS}s)',
        )
        pause = _POLL_SECONDS[0]
        while time.monotonic() + pause < self._until:
            time.sleep(pause)
            pause = min(pause * 1.6, _POLL_SECONDS[1])
            answer = client.get_query_results(queryId=started["queryId"])
            if answer["status"] in ENDED_BADLY:
                return self._unknown([f"The query that counts its lines ended as {answer['status']}."])
            if answer["status"] == "Complete":
                scanned = int((answer.get("statistics") or {}).get("bytesScanned") or 0)
                return self._counted(_rows(answer["results"]), "insights", scanned)
        return self._unknown(["The query that counts its lines took too long."])

    def _counted(self, sums: dict[int, int], source: str, scanned: int | None) -> dict[str, Any]:
        reasons = []
        first = min(sums, default=self._start)
        if source == "metric" and first - self._start > _LATE_SECONDS:
            reasons.append(f"The metric {self._asked.metric} has data from {format_rfc3339(first * 1000)} on only.")
        return {
            "status": "partial" if reasons else "complete",
            "reasons": reasons,
            "source": source,
            **self._span(),
            "lines": sum(sums.values()),
            "busiest": _busiest(sums, self._asked.minutes),
            "scanned_bytes": scanned,
        }

    def _unknown(self, reasons: list[str]) -> dict[str, Any]:
        nothing = dict.fromkeys(("source", "lines", "busiest", "scanned_bytes"))
        return {"status": "unavailable", "reasons": reasons, **self._span(), **nothing}

    def _span(self) -> dict[str, str]:
        return {"start": format_rfc3339(self._start * 1000), "end": format_rfc3339(self._end * 1000)}


def _rows(results: list[list[dict[str, str]]]) -> dict[int, int]:
    """Lines by the second at which a period begins: a row has `lines`, the period, and perhaps a pointer (`@ptr`)."""
    sums = {}
    for row in results:
        cells = {cell["field"]: cell["value"] for cell in row if not cell["field"].startswith("@")}
        lines = int(float(cells.pop("lines")))
        [period] = cells.values()
        sums[milliseconds(period) // 1000] = lines
    return sums


def _busiest(sums: dict[int, int], minutes: int) -> dict[str, Any]:
    """The span of about so many minutes (whole periods) that holds the most lines; the first of equals."""
    size = max(PERIOD_SECONDS, -(-minutes * 60 // PERIOD_SECONDS) * PERIOD_SECONDS)
    counts = {at: sum(sums.get(at + step, 0) for step in range(0, size, PERIOD_SECONDS)) for at in sums}
    best = max(counts, key=lambda at: (counts[at], -at), default=None)
    lines = 0 if best is None else counts[best]
    return {"lines": lines, "minutes": size // 60, "start": format_rfc3339(best * 1000) if best and lines else None}
