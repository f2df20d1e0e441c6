# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paging, order, windows and patterns of the Logs read side."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import ApiError
from sandbox.logs import PAGE_BYTES, LogStore
from sandbox.patterns import InvalidPatternError, compile_pattern

GROUP = "/ecs/cabal-imap"
START = 1_764_000_000_000


def store(*streams: list[tuple[int, str]]) -> LogStore:
    logs = LogStore()
    logs.create_group(GROUP, START)
    for number, events in enumerate(streams):
        logs.put(GROUP, f"imap/imap/{number}", ((START + at, START + at + 2000, text) for at, text in events))
    return logs


def read(logs: LogStore, **request: Any) -> tuple[list[dict[str, Any]], list[int]]:
    """All events of a query, and the size of each page."""
    events: list[dict[str, Any]] = []
    sizes = []
    token: dict[str, str] = {}
    while True:
        page = json.loads(logs.filter_log_events({"logGroupName": GROUP} | request | token))
        events += page["events"]
        sizes.append(len(page["events"]))
        if "nextToken" not in page:
            return events, sizes
        token = {"nextToken": page["nextToken"]}


def test_a_page_has_at_most_10000_events() -> None:
    events, sizes = read(store([(n, "x") for n in range(25_000)]))
    assert len(events) == 25_000
    assert max(sizes) <= 10_000


def test_a_page_has_at_most_one_megabyte() -> None:
    logs = store([(n, "x" * 200_000) for n in range(20)])
    events, sizes = read(logs)
    assert len(events) == 20
    assert max(sizes) == 5
    assert len(logs.filter_log_events({"logGroupName": GROUP})) < PAGE_BYTES + 1000


def test_one_event_larger_than_a_page_still_comes() -> None:
    events, _sizes = read(store([(0, "x" * 3_000_000), (1, "y")]))
    assert [len(event["message"]) for event in events] == [3_000_000, 1]


def test_streams_are_merged_by_time_and_ids_are_stable_and_unique() -> None:
    logs = store(
        [(n * 2, f"a{n}") for n in range(500)], [(n * 2 + 1, f"b{n}") for n in range(500)], [(7, "same"), (7, "same")]
    )
    first, _sizes = read(logs, limit=37)
    again, _sizes = read(logs, limit=1000)
    assert [event["timestamp"] for event in first] == sorted(event["timestamp"] for event in first)
    assert [event["eventId"] for event in first] == [event["eventId"] for event in again]
    assert len({event["eventId"] for event in first}) == 1002


def test_start_and_end_are_both_inclusive() -> None:
    events, _sizes = read(store([(n, str(n)) for n in range(10)]), startTime=START + 3, endTime=START + 6)
    assert [event["message"] for event in events] == ["3", "4", "5", "6"]


def test_the_future_is_not_yet_there() -> None:
    soon = int(time.time() * 1000) + 60_000 - START
    events, _sizes = read(store([(1, "past"), (soon, "future")]))
    assert [event["message"] for event in events] == ["past"]


def test_empty_pages_carry_a_token() -> None:
    logs = store([(n, str(n)) for n in range(3)])
    logs.empty_pages = 2
    events, sizes = read(logs)
    assert sizes == [0, 0, 3]
    assert len(events) == 3


def test_events_put_while_paging_lose_and_repeat_nothing() -> None:
    logs = store([(n, "x") for n in range(100)])
    page = json.loads(logs.filter_log_events({"logGroupName": GROUP, "limit": 50}))
    logs.put(GROUP, "imap/imap/late", [(START + 10, START + 99, "late"), (START + 200, START + 201, "new")])
    rest = json.loads(logs.filter_log_events({"logGroupName": GROUP, "limit": 100, "nextToken": page["nextToken"]}))
    assert len(rest["events"]) == 51
    assert not {e["eventId"] for e in page["events"]} & {e["eventId"] for e in rest["events"]}


@pytest.mark.parametrize("change", [{"filterPattern": "x"}, {"startTime": START}, {"logStreamNamePrefix": "imap"}])
def test_a_token_serves_only_its_own_query(change: dict[str, Any]) -> None:
    logs = store([(n, "x") for n in range(10)])
    token = json.loads(logs.filter_log_events({"logGroupName": GROUP, "limit": 5}))["nextToken"]
    assert GROUP not in token
    with pytest.raises(ApiError, match="nextToken is invalid"):
        logs.filter_log_events({"logGroupName": GROUP, "limit": 5, "nextToken": token} | change)


def test_a_token_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    logs = store([(n, "x") for n in range(10)])
    token = json.loads(logs.filter_log_events({"logGroupName": GROUP, "limit": 5}))["nextToken"]
    later = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(ApiError, match="nextToken is invalid"):
        logs.filter_log_events({"logGroupName": GROUP, "limit": 5, "nextToken": token})


def test_streams_by_name_and_prefix() -> None:
    logs = store([(0, "a")], [(1, "b")])
    assert [e["message"] for e in read(logs, logStreamNames=["imap/imap/1"])[0]] == ["b"]
    assert [e["message"] for e in read(logs, logStreamNamePrefix="imap/")[0]] == ["a", "b"]
    with pytest.raises(ApiError, match="log stream does not exist"):
        read(logs, logStreamNames=["nope"])


@pytest.mark.parametrize("bad", [{"limit": 0}, {"limit": 10_001}, {"startTime": -1}, {"logStreamNames": []}])
def test_bad_parameters_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        read(store([(0, "a")]), **bad)
    assert refused.value.code == "InvalidParameterException"


MATCHES = [
    ('"dsn=5"', "to=<a>, dsn=5.1.1, stat=x", True),
    ('"dsn=5"', "DSN=5", False),
    ("ERROR Exception", "Exception then ERROR", True),
    ("ERROR Exception", "ERROR", False),
    ("ERROR -Exception", "ERROR", True),
    ("ERROR -Exception", "ERROR Exception", False),
    ('-"dsn=2"', "dsn=5", True),
    ('?"dsn=5" ?"stat=Deferred"', "stat=Deferred: x", True),
    ('?"dsn=5" ?"stat=Deferred"', "stat=Sent", False),
    (r'"say \"hi\""', 'they say "hi"', True),
    ("", "anything", True),
]


@pytest.mark.parametrize(("pattern", "text", "expected"), MATCHES)
def test_patterns(pattern: str, text: str, expected: bool) -> None:
    matches = compile_pattern(pattern)
    assert (matches is None or matches(text)) is expected


@pytest.mark.parametrize("pattern", ["{ $.a = 1 }", "[a, b]", "%regex%", "dsn=5", '"open', "?a b", "x" * 1025])
def test_patterns_that_cannot_be_answered_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidPatternError):
        compile_pattern(pattern)


@given(
    times=st.lists(st.integers(0, 50), max_size=60),
    limit=st.integers(1, 10),
    window=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    streams=st.integers(1, 4),
)
def test_any_page_size_gives_the_same_events(
    times: list[int], limit: int, window: tuple[int, int], streams: int
) -> None:
    logs = store(*([(at, f"{k} {at}") for at in sorted(times)[k::streams]] for k in range(streams)))
    low, high = START + min(window), START + max(window)
    events, sizes = read(logs, limit=limit, startTime=low, endTime=high)
    assert sorted(event["timestamp"] for event in events) == [
        START + t for t in sorted(times) if low <= START + t <= high
    ]
    assert all(size <= limit for size in sizes)
    assert len({event["eventId"] for event in events}) == len(events)
