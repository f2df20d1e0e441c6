# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The 24 hours before: by the metric where it exists, else by a query; what is not known is never 0."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from ansible.module_utils import cloudwatch_day_before
from ansible.module_utils.cloudwatch_day_before import HOURS, PERIOD_SECONDS, Asked, DayBefore
from botocore.exceptions import ClientError
from botocore.stub import ANY, Stubber

from sandbox.errors import ApiError
from sandbox.insights import Queries
from sandbox.logs import LogStore

END = 1_764_000_000_000 + 61_000
START = END // 1000 // PERIOD_SECONDS * PERIOD_SECONDS - HOURS * 3600
GROUPS = ("/ecs/cabal-imap", "/ecs/cabal-smtp-out")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloudwatch_day_before, "_POLL_SECONDS", (0.001, 0.01))


class Logs:
    """The sandbox's Insights without HTTP between; `code` is what AWS answers instead, `status` how queries end."""

    def __init__(self, code: str | None = None, status: str | None = None) -> None:
        self.store, self.code, self.status = LogStore(), code, status
        for group in GROUPS:
            self.store.create_group(group, (START - 86_400) * 1000)
        self.queries = Queries(self.store)

    def put(self, group: str, *offsets: int, text: str = "dsn=5.1.1, stat=User unknown") -> None:
        """Lines so many seconds after the beginning of the day."""
        events = [((START + offset) * 1000, (START + offset) * 1000, text) for offset in sorted(offsets)]
        self.store.put(group, "s", events)

    def start_query(self, **request: Any) -> Any:
        if self.code:
            raise ClientError({"Error": {"Code": self.code, "Message": "no"}}, "StartQuery")
        try:
            return self.queries.start_query(request)
        except ApiError as error:
            raise ClientError({"Error": {"Code": error.code, "Message": error.message}}, "StartQuery") from None

    def get_query_results(self, **request: Any) -> Any:
        found = self.queries.get_query_results(request)
        return {**found, "status": self.status or found["status"]}


def cloudwatch(points: dict[int, float] | None, pages: int = 1) -> Any:
    """A real client that answers with these sums by offset; with None the call is denied."""
    client = boto3.client("cloudwatch", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    stub = Stubber(client)
    if points is None:
        stub.add_client_error("get_metric_data", "AccessDenied", "not allowed")
    else:
        rows = sorted(points.items())
        size = max(1, -(-len(rows) // pages))
        parts = [rows[at : at + size] for at in range(0, len(rows), size)] or [[]]
        for number, part in enumerate(parts):
            more = {"NextToken": f"t{number}"} if number + 1 < len(parts) else {}
            when = [datetime.fromtimestamp(START + at, UTC) for at, _ in part]
            result = {"Id": "lines", "Timestamps": when, "Values": [value for _, value in part]}
            wanted: dict[str, Any] = {"MetricDataQueries": ANY, "StartTime": ANY, "EndTime": ANY}
            if number:
                wanted["NextToken"] = f"t{number - 1}"
            stub.add_response("get_metric_data", {"MetricDataResults": [result], **more}, wanted)
    stub.activate()
    return client


def read(watch: Any, logs: Logs, pattern: str = "dsn=5", seconds: float = 20) -> dict[str, Any]:
    asked = Asked("Cabalmail/Logs", "SendmailBounced", pattern, GROUPS, END, 30)
    thread = DayBefore(asked, watch, lambda: logs, time.monotonic() + seconds)
    thread.start()
    return thread.result()


@pytest.mark.parametrize("pages", [1, 3])
def test_the_metric_is_taken_where_it_exists(pages: int) -> None:
    found = read(cloudwatch({0: 0.0, 300: 2.0, 600: 1.0, 7200: 2.0, -300: 50.0}, pages), Logs("AccessDenied"))
    assert (found["status"], found["source"], found["lines"], found["scanned_bytes"]) == ("complete", "metric", 5, None)
    assert found["busiest"]["lines"] == 3
    assert found["busiest"]["minutes"] == 30


def test_a_day_without_a_line_is_zero_and_has_no_busiest_time() -> None:
    found = read(cloudwatch({0: 0.0, 900: 0.0}), Logs())
    assert (found["lines"], found["busiest"]["start"]) == (0, None)


def test_a_metric_that_is_younger_than_a_day_is_partial() -> None:
    found = read(cloudwatch({20 * 3600: 1.0}), Logs())
    assert found["status"] == "partial"
    assert "has data from" in found["reasons"][0]


@pytest.mark.parametrize("points", [{}, None])
def test_without_the_metric_a_query_counts_the_lines_of_all_groups(points: dict[int, float] | None) -> None:
    logs = Logs()
    logs.put(GROUPS[0], -10, 10, 400)
    logs.put(GROUPS[1], 500, 80_000)
    logs.put(GROUPS[1], 20, text="stat=Sent")
    found = read(cloudwatch(points), logs)
    assert (found["status"], found["source"], found["lines"]) == ("complete", "insights", 4)
    assert found["busiest"]["lines"] == 3
    assert found["scanned_bytes"] > 0


def test_a_pattern_with_quotes_is_counted_as_it_stands() -> None:
    logs = Logs()
    logs.put(GROUPS[0], 10, text='say "x\\y" again')
    logs.put(GROUPS[0], 20, text="say x")
    assert read(cloudwatch({}), logs, pattern='"x\\y"')["lines"] == 1


@pytest.mark.parametrize(
    ("logs", "said"),
    [
        (Logs("AccessDeniedException"), "AccessDeniedException"),
        (Logs("ResourceNotFoundException"), "ResourceNotFoundException"),
        (Logs(status="Failed"), "ended as Failed"),
    ],
)
def test_where_neither_can_be_had_nothing_is_known(logs: Logs, said: str) -> None:
    found = read(cloudwatch(None), logs)
    assert (found["status"], found["lines"], found["busiest"], found["source"]) == ("unavailable", None, None, None)
    assert said in " ".join(found["reasons"])


def test_a_query_that_never_ends_is_given_up() -> None:
    found = read(cloudwatch({}), Logs(status="Running"), seconds=0.3)
    assert (found["status"], found["lines"]) == ("unavailable", None)
