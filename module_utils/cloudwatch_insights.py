# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads whole log groups with CloudWatch Logs Insights, and says when that pays.

After https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_StartQuery.html and API_GetQueryResults:
a query has at most 10,000 rows and takes times in seconds, both included; results of a query that still runs are
partial; what is scanned is billed by the byte. A query asks for whole events by time. When more matched than its rows
hold, those before its last second are kept and the time from that second on is cut into pieces, read side by side. So
the events are the same as FilterLogEvents', and with them every count.
"""

from __future__ import annotations

import json
import time
from calendar import timegm
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from .aws_support import explain
from .cloudwatch_logs import Page, Reader, Slice

ROWS = 10_000
QUERY = f"fields @timestamp, @ingestionTime, @logStream, @message | sort @timestamp asc | limit {ROWS}"
_MOST_PIECES = 20
_POLL_SECONDS = (0.1, 2.0)
ENDED_BADLY = ("Failed", "Cancelled", "Timeout", "Unknown")
# What a page of FilterLogEvents holds, and the share of the time that it may take before Insights is worth its cost.
_PAGE_BYTES = 1_000_000
_SHARE = 0.5


class Choice(NamedTuple):
    """An engine and why."""

    engine: str
    why: str


class InsightsReader(Reader):
    """Reads groups by queries, as `Reader` does by pages.

    `scanned` is the number of bytes that AWS bills.
    """

    scanned = 0

    def _read_slice(self, piece: Slice) -> None:
        low, high = piece.start // 1000, piece.end // 1000
        answer = self._query(piece, low, high)
        if answer is None:
            return
        shown = len(answer["results"])
        events = [event for row in answer["results"] if (event := _event(row)) is not None]
        statistics = answer.get("statistics") or {}
        matched = int(statistics.get("recordsMatched") or shown)
        rest: int | None = None
        if matched > shown >= ROWS and events:
            # Of the last second it is not known whether all of it is there.
            rest = events[-1]["timestamp"] // 1000
            if rest > low:
                events = [event for event in events if event["timestamp"] < rest * 1000]
            else:
                said = f"{piece.group} has more than {ROWS:,} events in one second, and Insights shows no more of them."
                self._give_up(piece.tier, said)
                rest = None
        inside = [event for event in events if piece.start <= event["timestamp"] <= piece.end]
        body = json.dumps({"events": inside}).encode()
        outcome = self.outcomes[piece.tier]
        if rest is not None:
            self._cut_rest(piece, rest, high, matched - len(events))
        with self._change:
            outcome.pages += 1
            outcome.exists = True
            self.bytes += len(body)
            self.scanned += int(statistics.get("bytesScanned") or 0)
        self._pages.put(Page(piece.tier, body))

    def _cut_rest(self, piece: Slice, low: int, high: int, left: int) -> None:
        """Queue what a query could not show: from the second `low` on, in about as many pieces as it needs."""
        count = max(1, min(_MOST_PIECES, -(-left // (ROWS * 3 // 4)), high - low + 1))
        bounds = [low + (high + 1 - low) * part // count for part in range(count + 1)]
        pieces = [
            Slice(piece.tier, piece.group, first * 1000, min(after * 1000 - 1, piece.end), False)
            for first, after in pairwise(bounds)
        ]
        with self._change:
            self._open[piece.tier] += len(pieces)
            self._work.extend(pieces)
            self._change.notify_all()

    def _query(self, piece: Slice, low: int, high: int) -> dict[str, Any] | None:
        """The complete answer of one query; None when the reading of the group is over."""

        def start() -> Any:
            return self._client.start_query(
                logGroupName=piece.group, startTime=low, endTime=high, queryString=QUERY, limit=ROWS
            )

        started = self._ask(piece, start)
        if started is None:
            return None
        pause = _POLL_SECONDS[0]
        while piece.tier not in self._failed:
            time.sleep(max(0.0, min(pause, self._until - time.monotonic())))
            pause = min(pause * 1.6, _POLL_SECONDS[1])
            answer = self._ask(piece, lambda: self._client.get_query_results(queryId=started["queryId"]))
            if answer is None:
                return None
            if answer["status"] == "Complete":
                return dict(answer)
            if answer["status"] in ENDED_BADLY:
                self._give_up(piece.tier, f"The Insights query over {piece.group} ended as {answer['status']}.")
                return None
        return None


def _event(row: Iterable[dict[str, str]]) -> dict[str, Any] | None:
    """A row in the form of FilterLogEvents; None where Insights left out what makes it one."""
    fields = {cell.get("field"): cell.get("value") for cell in row}
    when, message = fields.get("@timestamp"), fields.get("@message")
    if not when or message is None:
        return None
    ingested = fields.get("@ingestionTime")
    return {
        "logStreamName": fields.get("@logStream") or "",
        "timestamp": milliseconds(when),
        "message": message,
        "ingestionTime": milliseconds(ingested) if ingested else None,
        "eventId": fields.get("@ptr") or "",
    }


def milliseconds(text: str) -> int:
    """`2026-11-24 21:53:14.123`, which is UTC, as milliseconds since 1970."""
    whole, _, fraction = text.partition(".")
    return timegm(time.strptime(whole, "%Y-%m-%d %H:%M:%S")) * 1000 + int((fraction + "000")[:3])


def choose(
    client: Any, groups: Iterable[str], start: int, end: int, requests_per_second: float, seconds: float
) -> Choice:
    """Take Insights where FilterLogEvents would need more than its share of the time.

    Args:
        client: a boto3 client for Logs.
        groups: names of the log groups.
        start, end: the window in milliseconds.
        requests_per_second: of FilterLogEvents, over all groups.
        seconds: that reading may take.
    """
    try:
        expected = sum(_expected(client, group, end - start) for group in groups)
    except Exception as error:
        return Choice("filter", f"the volume could not be estimated: {explain(error)}")
    readable = requests_per_second * _PAGE_BYTES * seconds * _SHARE
    engine = "insights" if expected > readable else "filter"
    volume = f"the window holds about {expected / 1e6:,.1f} MB"
    return Choice(engine, f"{volume}, and FilterLogEvents reads {readable / 1e6:,.0f} MB in half the time")


def _expected(client: Any, group: str, window_ms: int) -> float:
    """Bytes in a window of this length, were the group's stored bytes spread evenly over the time that it keeps."""
    for row in client.describe_log_groups(logGroupNamePrefix=group)["logGroups"]:
        if row["logGroupName"] == group:
            age = max(time.time() * 1000 - row["creationTime"], window_ms, 1)
            kept = row.get("retentionInDays", 36_500) * 86_400_000
            return float(row.get("storedBytes", 0) * window_ms / min(age, kept))
    return 0.0
