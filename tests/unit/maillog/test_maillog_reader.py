# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E501 - one call a line reads better here
"""Reading log groups: whole whatever AWS does, within the quota, and in time."""

from __future__ import annotations

import json
import time
from typing import Any

import botocore.session
import pytest
from ansible.module_utils.cloudwatch_logs import Page, RawPagesFactory, Reader, TokenBucket, next_token
from ansible.module_utils.maillog.aggregate import Event
from botocore.config import Config
from logs_server import LogsServer, error

START, END = 1_796_000_000_000, 1_796_002_880_000


def made(count: int, group: str = "a") -> list[Event]:
    """Events all over the window, crowded in its middle, several to a millisecond."""
    found = []
    for number in range(count):
        share = number / max(count - 1, 1)
        when = START + int((END - START) * (0.5 + 4 * (share - 0.5) ** 3))
        found.append(
            Event(
                "x/x/t", when, f'{group} {number} "nextToken":"no" \\"nextToken": "x"', when + 5, f"{when}{number:042d}"
            )
        )
    return found


def client(url: str, read_timeout: float = 5) -> Any:
    session = botocore.session.get_session()
    session.register_component("response_parser_factory", RawPagesFactory())
    return session.create_client(
        "logs", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b", endpoint_url=url,
        config=Config(retries={"total_max_attempts": 1}, read_timeout=read_timeout, connect_timeout=1, max_pool_connections=8),
    )  # fmt: skip


def read(
    server: LogsServer, *groups: str, seconds: float = 20, rate: float = 1000, **options: Any
) -> tuple[Reader, dict[str, list]]:
    reader = Reader(client(server.url, **options), time.monotonic() + seconds, rate)
    found: dict[str, list] = {group: [] for group in groups}
    for page in reader.read([(group, group) for group in groups], START, END):
        assert isinstance(page, Page)
        found[page.tier] += page.events()
    return reader, found


def ids(found: list[dict[str, Any]]) -> set[str]:
    return {one["eventId"] for one in found}


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 5000])
def test_every_event_is_read(count: int) -> None:
    events = made(count)
    with LogsServer({"a": events}) as server:
        reader, found = read(server, "a")
    assert ids(found["a"]) == {one.event_id for one in events}
    assert reader.outcomes["a"].status == "complete"


def test_a_small_group_takes_one_call() -> None:
    with LogsServer({"a": made(50), "b": made(3)}) as server:
        read(server, "a", "b")
    assert len(server.calls) == 2


def test_a_large_group_is_cut_into_slices_with_few_calls_more() -> None:
    with LogsServer({"a": made(5000)}) as server:
        read(server, "a")
    assert len(server.calls) <= 5000 / 50 + 34
    assert len({(call["startTime"], call["endTime"]) for call in server.calls}) > 4


def test_empty_pages_and_repeats_lose_nothing() -> None:
    events = made(2000)
    with LogsServer({"a": events}) as server:
        server.empty_every, server.repeat = 3, 7
        reader, found = read(server, "a")
    assert ids(found["a"]) == {one.event_id for one in events}
    assert reader.outcomes["a"].status == "complete"


def test_throttling_is_waited_out_and_counted() -> None:
    with LogsServer({"a": made(600)}) as server:
        server.trouble = lambda request, number: (
            error("ThrottlingException", "Rate exceeded") if number % 4 == 2 else None
        )
        reader, found = read(server, "a", rate=50)
    assert len(ids(found["a"])) == 600
    assert reader.outcomes["a"].status == "complete"
    assert reader.bucket.throttled >= 3


def test_a_fault_of_awss_own_is_tried_again() -> None:
    with LogsServer({"a": made(300)}) as server:
        server.trouble = lambda request, number: (
            error("ServiceUnavailableException", "", 503) if number in (1, 3) else None
        )
        reader, found = read(server, "a")
    assert len(ids(found["a"])) == 300
    assert reader.outcomes["a"].status == "complete"


def test_one_group_denied_and_one_missing_leave_the_third_whole() -> None:
    def trouble(request: dict[str, Any], number: int) -> Any:
        return (
            error("AccessDeniedException", "User is not authorized to do this")
            if request["logGroupName"] == "b"
            else None
        )

    with LogsServer({"a": made(300), "b": made(300)}) as server:
        server.trouble = trouble
        reader, found = read(server, "a", "b", "c")
    assert len(ids(found["a"])) == 300
    assert [reader.outcomes[name].status for name in "abc"] == ["complete", "unavailable", "unavailable"]
    assert [reader.outcomes[name].exists for name in "abc"] == [True, None, False]
    assert "AccessDeniedException" in str(reader.outcomes["b"].problem)
    assert "does not exist" in str(reader.outcomes["c"].problem)


def test_a_denial_half_way_is_partial() -> None:
    with LogsServer({"a": made(3000)}) as server:
        server.trouble = lambda request, number: error("ExpiredTokenException", "expired") if number > 10 else None
        reader, found = read(server, "a")
    assert reader.outcomes["a"].status == "partial"
    assert 0 < len(ids(found["a"])) < 3000


def test_the_deadline_holds_when_every_call_hangs() -> None:
    with LogsServer({"a": made(30)}) as server:
        server.trouble = lambda request, number: time.sleep(30)  # type: ignore[func-returns-value]
        began = time.monotonic()
        reader, _ = read(server, "a", seconds=1.5, read_timeout=10)
    assert time.monotonic() - began < 2.5
    assert reader.outcomes["a"].status == "unavailable"


def test_what_was_read_by_the_deadline_is_kept() -> None:
    with LogsServer({"a": made(3000)}) as server:
        reader, found = read(server, "a", seconds=1.5, rate=10)
    assert reader.outcomes["a"].status == "partial"
    assert 0 < len(ids(found["a"])) < 3000


def test_the_quota_is_kept_over_all_groups_and_threads() -> None:
    groups = {name: made(400) for name in "abc"}
    with LogsServer(groups) as server:
        read(server, *groups, rate=20)
    first = server.times[0]
    for number, when in enumerate(server.times):
        # A burst of a second's worth, then the rate.
        assert when - first >= (number - 20) / 20 - 0.1


def test_a_bucket_slows_down_and_recovers() -> None:
    bucket = TokenBucket(100)
    bucket.slow_down()
    began = time.monotonic()
    assert bucket.take(began + 5)
    assert time.monotonic() - began > 0.015
    for _ in range(50):
        bucket.speed_up()
    assert bucket._rate == 100
    assert not bucket.take(time.monotonic() - 1)


def test_tokens_are_not_taken_from_messages() -> None:
    message = 'he said "nextToken":"evil" and \\"nextToken\\":\\"evil\\" and nextToken"'
    for token in ("a/b+c==", 'with "quotes" \\ and é'):
        for ordered in (
            {"nextToken": token, "events": [{"message": message}]},
            {"events": [{"message": message}], "nextToken": token},
        ):
            for options in ({}, {"separators": (",", ":")}, {"ensure_ascii": False}):
                assert next_token(json.dumps(ordered, **options).encode()) == token
    assert next_token(json.dumps({"events": [{"message": message}]}).encode()) is None
    assert next_token(b'{"events":[],"nextToken":""}') is None


def test_other_answers_are_parsed_as_ever() -> None:
    with LogsServer({}) as server:
        server.trouble = lambda request, number: (200, {"logGroups": [{"logGroupName": "g", "storedBytes": 7}]})
        assert client(server.url).describe_log_groups()["logGroups"] == [{"logGroupName": "g", "storedBytes": 7}]
