# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The second engine: the same answer as the first on the same log, and what it says when it can't be exact."""

from __future__ import annotations

import random
import re
import time
from typing import Any

import pytest
from ansible.module_utils import cloudwatch_insights
from ansible.module_utils.cabalmail.time import format_rfc3339
from ansible.module_utils.cloudwatch_insights import InsightsReader, choose
from ansible.module_utils.cloudwatch_logs import Reader
from ansible.module_utils.maillog.aggregate import TierAggregator
from ansible.module_utils.maillog.crew import feed_page
from botocore.exceptions import ClientError
from maillog_corpus import MASKER, classifier, counts, events, tier_of

from sandbox.errors import ApiError
from sandbox.insights import Queries
from sandbox.logs import LogStore

START = 1_764_000_000_000
MINUTES = 48
END = START + MINUTES * 60_000


# rsyslog's two forms of a line's own time.
_STAMP = re.compile(r"^(?:\d{4}-\d\d-\d\dT[\d:.]+\+00:00|[A-Z][a-z]{2} [ \d]\d [\d:]{8}) ")


class Client:
    """The sandbox's Logs without HTTP between. `trouble` may raise before a call is answered."""

    def __init__(self, logs: LogStore, trouble: Any = None) -> None:
        self.logs, self.queries, self.calls = logs, Queries(logs), []
        self.trouble = trouble or (lambda operation, number: None)

    def _call(self, operation: str, answer: Any, request: dict[str, Any]) -> Any:
        self.calls.append(operation)
        try:
            self.trouble(operation, len(self.calls))
            return answer(request)
        except ApiError as error:
            details = {"Error": {"Code": error.code, "Message": error.message}, "ResponseMetadata": {}}
            raise ClientError(details, operation) from None

    def filter_log_events(self, **request: Any) -> Any:
        return {"body": self._call("FilterLogEvents", self.logs.filter_log_events, request)}

    def start_query(self, **request: Any) -> Any:
        return self._call("StartQuery", self.queries.start_query, request)

    def get_query_results(self, **request: Any) -> Any:
        return self._call("GetQueryResults", self.queries.get_query_results, request)

    def describe_log_groups(self, **request: Any) -> Any:
        return self._call("DescribeLogGroups", self.logs.describe_log_groups, request)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloudwatch_insights, "_POLL_SECONDS", (0.001, 0.01))


def store(messages: list[tuple[str, int, str]]) -> LogStore:
    """Stream, time and text of each event."""
    logs = LogStore()
    logs.create_group("/g", START - 86_400_000 * 10)
    for stream in sorted({stream for stream, _, _ in messages}):
        own = sorted((at, text) for name, at, text in messages if name == stream)
        logs.put("/g", stream, [(at, at + 700, text) for at, text in own])
    return logs


def corpus(seed: int) -> list[tuple[str, int, str]]:
    """Every line of smtp-out twice, with queue ids of its own, thrown over the window: crowded, some of it replayed."""
    chosen = random.Random(seed)
    texts = [one.message for name in sorted(counts()) for one in events(name) if tier_of(name) == "smtp-out"]
    found = []
    for text in (*texts, *(re.sub(r"\]: 6A", "]: 7A", text, count=1) for text in texts)):
        at = START + int((END - START) * min(max(chosen.gauss(0.5, 0.2), -0.1), 1.1))
        at -= at % chosen.choice((1, 1, 1000))
        stamp = format_rfc3339(at, milliseconds=True).replace("Z", f"{chosen.randrange(1000):03d}+00:00 ")
        found.append((f"smtp-out/smtp-out/{chosen.randrange(3)}", at, _STAMP.sub(stamp, text)))
    return [*found, *chosen.choices(found, k=len(found) // 20)]


def read(reader: Reader) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    tally = TierAggregator("smtp-out", "/g", classifier(), MASKER, START - 10**12, END)
    seen = []
    for page in reader.read([("smtp-out", "/g")], START, END):
        feed_page(tally, page.body)
        seen += page.events()
    return tally.result("complete", []), seen


def reader(kind: type[Reader], client: Client, seconds: float = 20) -> Any:
    return kind(client, time.monotonic() + seconds, 10_000)


@pytest.mark.parametrize(("seed", "rows"), [(1, 10_000), (2, 700), (3, 97)])
def test_both_engines_agree_on_a_random_corpus(seed: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloudwatch_insights, "ROWS", rows)
    logs = store(corpus(seed))
    monkeypatch.setattr(cloudwatch_insights, "QUERY", cloudwatch_insights.QUERY.replace("10000", str(rows)))
    by_pages, paged = read(reader(Reader, Client(logs)))
    querying = reader(InsightsReader, client := Client(logs))
    by_queries, queried = read(querying)
    assert querying.outcomes["smtp-out"].status == "complete", querying.why("smtp-out", "/g")
    assert by_queries == by_pages
    # The other engine may read an event twice, where its slices meet what it had read whole.
    assert len(queried) == len({event["eventId"] for event in paged})
    assert len({event["eventId"] for event in queried}) == len(queried), "no event comes twice"
    assert querying.scanned >= sum(len(event["message"]) for event in queried)
    assert client.calls.count("StartQuery") == (1 if rows == 10_000 else pytest.approx(len(queried) / rows, rel=3))


def test_partial_results_of_a_query_that_runs_are_not_taken() -> None:
    logs = store([("s", START + number, f"line {number}") for number in range(100)])
    querying = reader(InsightsReader, client := Client(logs))
    _, seen = read(querying)
    assert len(seen) == 100
    assert client.calls == ["StartQuery", "GetQueryResults", "GetQueryResults"]


def test_the_window_s_ends_are_those_of_the_other_engine() -> None:
    """A query takes whole seconds; what lies outside the window's milliseconds is left out."""
    inside = [START, START + 1, END - 1, END]
    logs = store([("s", at, f"at {at}") for at in (START - 1, *inside, END + 1)])
    assert [event["timestamp"] for event in read(reader(InsightsReader, Client(logs)))[1]] == inside
    assert [event["timestamp"] for event in read(reader(Reader, Client(logs)))[1]] == inside


def test_a_second_with_more_events_than_a_query_shows_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloudwatch_insights, "ROWS", 50)
    monkeypatch.setattr(cloudwatch_insights, "QUERY", cloudwatch_insights.QUERY.replace("10000", "50"))
    logs = store([("s", START + 5000 + number % 10, f"line {number}") for number in range(80)])
    querying = reader(InsightsReader, Client(logs))
    _, seen = read(querying)
    assert len(seen) == 50
    assert querying.outcomes["smtp-out"].status == "partial"
    assert "more than 50 events in one second" in querying.why("smtp-out", "/g")[0]


def test_a_row_without_its_text_does_not_hide_that_more_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloudwatch_insights, "ROWS", 50)
    monkeypatch.setattr(cloudwatch_insights, "QUERY", cloudwatch_insights.QUERY.replace("10000", "50"))
    client = Client(store([("s", START + number * 1000, f"line {number}") for number in range(120)]))
    whole = client.get_query_results

    def without_one(**request: Any) -> Any:
        answer = whole(**request)
        rows = [
            [cell for cell in row if cell["field"] != "@message" or cell["value"] != "line 7"]
            for row in answer["results"]
        ]
        return {**answer, "results": rows}

    monkeypatch.setattr(client, "get_query_results", without_one)
    _, seen = read(reader(InsightsReader, client))
    assert {event["message"] for event in seen} == {f"line {number}" for number in range(120) if number != 7}


def test_throttling_and_the_limit_of_queries_at_once_are_waited_out() -> None:
    def trouble(operation: str, number: int) -> None:
        if number in (1, 3):
            code = "LimitExceededException" if operation == "StartQuery" else "ThrottlingException"
            raise ApiError(code, "slow down")

    querying = reader(InsightsReader, Client(store([("s", START + 1, "a")]), trouble))
    assert len(read(querying)[1]) == 1
    assert (querying.outcomes["smtp-out"].status, querying.bucket.throttled) == ("complete", 2)


@pytest.mark.parametrize(("code", "says"), [("AccessDeniedException", "may not be read"), ("Boom", "ended early")])
def test_a_query_that_may_not_be_made_is_unavailable(code: str, says: str) -> None:
    def trouble(operation: str, number: int) -> None:
        raise ApiError(code, "no")

    querying = reader(InsightsReader, Client(LogStore(), trouble))
    read(querying)
    assert querying.outcomes["smtp-out"].status == "unavailable"
    assert says in querying.why("smtp-out", "/g")[0]


def test_a_query_that_never_ends_ends_with_the_time() -> None:
    client = Client(store([("s", START + 1, "a")]))
    client.get_query_results = lambda **request: {"results": [], "status": "Running"}
    querying = reader(InsightsReader, client, seconds=0.5)
    began = time.monotonic()
    read(querying)
    assert time.monotonic() - began < 3
    assert querying.outcomes["smtp-out"].status == "unavailable"


def test_auto_takes_the_engine_by_the_volume_and_says_why() -> None:
    client = Client(store([("s", START + number, "x" * 100) for number in range(1000)]))
    small = choose(client, ["/g"], START, END, 5, 40)
    assert small.engine == "filter"
    assert "FilterLogEvents reads 100 MB in half the time" in small.why
    client.logs.groups["/g"].stored_bytes = 10**13
    assert choose(client, ["/g"], START, END, 5, 40).engine == "insights"

    def trouble(operation: str, number: int) -> None:
        raise ApiError("AccessDeniedException", "no")

    denied = choose(Client(LogStore(), trouble), ["/g"], START, END, 5, 40)
    assert (denied.engine, denied.why.startswith("the volume could not be estimated: ")) == ("filter", True)
