# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E501 - log lines are as long as they are
"""Counting: the same whatever the order, the pages and the copies; and what goes wrong when it is done by hand."""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from typing import Any

import pytest
from ansible.module_utils.cabalmail.time import epoch_ms, format_rfc3339
from ansible.module_utils.maillog.aggregate import Event, unavailable_tier
from ansible.module_utils.maillog.digests import DigestMap, DigestSet, Marked
from hypothesis import given, settings
from hypothesis import strategies as st
from maillog_corpus import aggregate, counts, events, section, tier_of, window_of

FILES = sorted(counts())
NOON = epoch_ms("2026-11-24T12:00:00Z")


def stamp(second: float) -> str:
    return format_rfc3339(NOON + int(second * 1000), milliseconds=True).replace("Z", "000+00:00")


def bounce(
    second: float, number: int = 0, *, to: str = "<a@x.example>", relay: str = "mx.x.example", pid: int = 7
) -> str:
    return (
        f"{stamp(second)} host sendmail[{pid}]: 6AT1b{number:09d}: to={to}, delay=00:00:00, xdelay=00:00:00,"
        f" mailer=esmtp, pri=30158, relay={relay}. [192.0.2.1], dsn=5.1.1, reply=550 5.1.1 no such user, stat=User unknown"
    )


def event(message: str, second: float, number: int = 0, stream: str = "smtp-out/smtp-out/aa") -> Event:
    when = NOON + int(second * 1000)
    return Event(stream, when, message, when + 500, f"{when:014d}{number:042d}")


def read(found: list[Event], tier: str = "smtp-out") -> dict[str, Any]:
    return aggregate(found, tier).result("complete", [])


@pytest.mark.parametrize("name", FILES)
def test_order_pages_and_copies_do_not_show(name: str) -> None:
    expected = section(name)
    found = list(events(name))
    for seed in range(3):
        chosen = random.Random(seed)
        mixed = [*found, *chosen.choices(found, k=len(found) // 2)]
        chosen.shuffle(mixed)
        aggregator = aggregate([], tier_of(name), window=window_of(found))
        position = 0
        while position < len(mixed):
            size = chosen.randint(0, 40)
            aggregator.feed(mixed[position : position + size])
            position += size
        assert aggregator.result("complete", []) == expected


def test_two_tasks_are_the_sum_of_each() -> None:
    found = events("smtp-out.recipients.maillog")
    half = [one._replace(stream=f"smtp-out/smtp-out/{number % 2}") for number, one in enumerate(found)]
    result = read(half)
    assert result["bounces"]["recipients"] == section("smtp-out.recipients.maillog")["bounces"]["recipients"]
    assert sum(task["events"] for task in result["tasks"].values()) == len(found)


def test_a_repeated_line_counts_once_and_a_similar_one_counts() -> None:
    """A log-tailer that starts again repeats the last ten lines, as new events."""
    lines = [bounce(second, second) for second in range(20)]
    first = [event(line, second) for second, line in enumerate(lines)]
    again = [event(line, 30 + number, 100 + number) for number, line in enumerate(lines[-10:])]
    other_process = [event(bounce(19, 19, pid=8, to="<b@x.example>"), 19, 200)]
    result = read([*first, *again, *other_process])
    assert (result["bounces"]["lines"], result["bounces"]["messages"], result["bounces"]["recipients"]) == (21, 20, 21)


def test_two_equal_events_without_a_unique_prefix_are_two() -> None:
    found = [event("[reconfigure] Done.", 5, 1), event("[reconfigure] Done.", 5, 2), event("[reconfigure] Done.", 5, 2)]
    (task,) = read(found)["tasks"].values()
    assert task["loop"]["dones"] == 2


def test_old_lines_that_are_repeated_in_the_window_are_left_out() -> None:
    found = [event("x", 0), event(bounce(-7200, 1), 3600, 1), event(bounce(3600, 2), 3600, 2)]
    assert read(found)["bounces"]["lines"] == 1


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_a_container_s_clock_that_is_an_hour_off_moves_no_line(skew: int) -> None:
    """The event's time is the log driver's; only the first line may be taken for a repeated one."""
    seconds = range(0, 2400, 60)
    right = read([event(bounce(second, second), second, second) for second in seconds])["bounces"]
    wrong = read([event(bounce(second + skew, second), second, second) for second in seconds])["bounces"]
    assert right["lines"] - wrong["lines"] <= 1
    assert right["peak"]["lines"] - wrong["peak"]["lines"] <= 1


def test_backfilled_lines_show_as_lag() -> None:
    late = event(bounce(0), 0)._replace(ingestion=NOON + 900_000)
    coverage = read([late])["coverage"]
    assert coverage["max_lag_seconds"] == 900
    assert coverage["last_ingested"] == "2026-11-24T12:15:00Z"


def test_the_peak_is_the_largest_sliding_window() -> None:
    seconds = [0, *range(1000, 1016), 2798, 2799, 5000]
    peak = read([event(bounce(second, number), second, number) for number, second in enumerate(seconds)])["bounces"][
        "peak"
    ]
    assert peak == {"lines": 18, "start": "2026-11-24T12:16:40Z", "end": "2026-11-24T12:46:40Z", "minutes": 30}


@given(st.lists(st.integers(0, 7200), min_size=1, max_size=60))
@settings(max_examples=40, deadline=None)
def test_the_peak_against_counting_each_window(seconds: list[int]) -> None:
    found = [event(bounce(second, number), second, number) for number, second in enumerate(seconds)]
    slow = max(sum(start <= second < start + 1800 for second in seconds) for start in seconds)
    assert read(found)["bounces"]["peak"]["lines"] == slow


def test_a_message_of_several_lines_and_tries_is_one_message() -> None:
    found = [
        event(bounce(0, 1, to="<a@x.example>,<b@x.example>"), 0, 1),
        event(bounce(1, 1, to="<c@y.example>"), 1, 2),
        event(bounce(9, 2, to="<a@x.example>"), 9, 3),
    ]
    bounces = read(found)["bounces"]
    assert (bounces["lines"], bounces["messages"], bounces["recipients"]) == (3, 2, 4)
    assert {row["domain"]: row["recipients"] for row in bounces["domains"]} == {"x.example": 3, "y.example": 1}


def test_an_unread_tier_has_no_zeros() -> None:
    whole, nothing = (
        section("smtp-out.recipients.maillog"),
        unavailable_tier("smtp-out", "/g", ["Denied."], exists=None),
    )
    assert set(nothing) == set(whole)
    for part in ("coverage", "deliveries", "bounces", "unseen", "deferrals"):
        assert set(nothing[part]) == set(whole[part])
        assert 0 not in nothing[part].values()


# -- the loop and its neighbours -----------------------------------------------------------------------------------------


def task_of(*found: tuple[float, str]) -> dict[str, Any]:
    result = read([event(text, second, number) for number, (second, text) in enumerate(found)])
    (task,) = result["tasks"].values()
    return task


def test_a_loop_that_works() -> None:
    loop = task_of(
        (0, "[reconfigure] Starting config watch loop (tier: smtp-out)"),
        (900, "[reconfigure] Periodic fallback regeneration (every 900s)..."),
        (901, "[reconfigure] Regenerating configs from DynamoDB..."),
        (902, "[generate-config] Scanning DynamoDB cabal-addresses table..."),
        (904, "[generate-config] Done."),
        (905, "[reconfigure] Done."),
        (906, "[reconfigure] Healthchecks ping sent."),
    )["loop"]
    assert loop["started"] == "2026-11-24T12:00:00Z"
    assert loop["last_done"] == "2026-11-24T12:15:05Z"
    assert (loop["starts"], loop["dones"], loop["fallbacks"], loop["pings_sent"]) == (1, 1, 1, 1)
    assert (loop["max_seconds"], loop["unfinished_since"], loop["errors"]) == (4, None, [])


def test_a_loop_that_hangs_or_fails_part_way() -> None:
    task = task_of(
        (0, "[reconfigure] Regenerating configs from DynamoDB..."),
        (1, "[generate-config] Scanning DynamoDB cabal-addresses table..."),
        (2, "An error occurred (ThrottlingException) when calling the Scan operation for jane@x.example: slow down"),
        (3, "makemap: /etc/mail/access: line 7: key jane@x.example: duplicate key"),
        (3.5, "2026-11-24 12:00:03,500 WARN exited: reconfigure (exit status 65; not expected)"),
        (4, "2026-11-24 12:00:04,000 INFO spawned: 'reconfigure' with pid 99"),
        (5, "2026-11-24 12:00:05,000 INFO gave up: reconfigure entered FATAL state, too many start retries too quickly"),
    )  # fmt: skip
    loop = task["loop"]
    assert loop["unfinished_since"] == "2026-11-24T12:00:00Z"
    assert [row["time"] for row in loop["errors"]] == ["2026-11-24T12:00:02Z", "2026-11-24T12:00:03Z"]
    assert "jane" not in repr(loop["errors"])
    assert loop["exits"] == [{"status": "65", "count": 1, "last": "2026-11-24T12:00:03Z"}]
    assert loop["gave_up"] == "2026-11-24T12:00:05Z"
    assert task["supervisor"] == {"spawned": {"reconfigure": 1}, "exited": {"reconfigure": 1}, "fatal": ["reconfigure"]}


def test_the_pin() -> None:
    pin = task_of(
        (0, "[hosts-pin] imap.cabal.internal -> 10.0.2.45"),
        (600, "[hosts-pin] heartbeat: imap.cabal.internal pinned to 10.0.2.45"),
        (630, "[hosts-pin] resolve empty; keeping pin (10.0.2.45)"),
        (660, "[hosts-pin] resolve failed with no prior pin; wrote sentinel 192.0.2.1"),
    )["hosts_pin"]
    assert pin == {
        "pinned_ip": "192.0.2.1", "last_heartbeat": "2026-11-24T12:10:00Z", "resolve_empty": 1, "sentinel": True,
        "last_event": "2026-11-24T12:11:00Z",
    }  # fmt: skip


# -- the runbook's own pipelines over the same lines ------------------------------------------------------------------------


def shell(pipeline: str, name: str) -> str:
    text = "\n".join(one.message for one in events(name)) + "\n"
    return subprocess.run(
        ["bash", "-c", pipeline], input=text, capture_output=True, text=True, check=False, errors="surrogateescape"
    ).stdout.strip()


def test_the_code_histogram_by_hand_is_empty() -> None:
    name = "smtp-out.recipients.maillog"
    by_hand = shell(r"grep -oE 'dsn=5\.x\.y [^,]*' | sort | uniq -c", name)
    assert by_hand == ""
    assert {row["code"]: row["lines"] for row in section(name)["bounces"]["codes"]} == counts()[name][
        "dsn5_lines_by_code"
    ]


def test_lines_by_hand_are_neither_messages_nor_recipients() -> None:
    name = "smtp-out.many-recipients.maillog"
    found = section(name)["bounces"]
    assert int(shell("grep -c 'dsn=5'", name)) == found["lines"] == 19
    assert (found["messages"], found["recipients"]) == (6, 57)


def test_domains_by_hand_are_of_first_recipients_with_a_bracket_on() -> None:
    name = "smtp-out.many-recipients.maillog"
    by_hand = shell("grep 'dsn=5' | grep -oE 'to=<[^,]*' | sed 's/.*@//' | sort | uniq -c", name)
    assert ">" in by_hand
    total = sum(int(row.split()[0]) for row in by_hand.splitlines())
    found = section(name)["bounces"]["domains"]
    assert total < sum(row["recipients"] for row in found) == 57
    assert not any(">" in row["domain"] for row in found)


def test_domains_by_hand_hide_the_provider() -> None:
    name = "smtp-out.spike-one-provider.maillog"
    by_hand = shell("grep 'dsn=5' | grep -oE 'to=<[^,]*' | sed 's/.*@//' | sort | uniq -c | sort -rn", name)
    assert int(by_hand.split()[0]) < 11, "no domain dominates"
    top = section(name)["bounces"]["providers"][0]
    assert top["share_of_bounces"] > 0.9


def test_the_last_half_hour_by_hand_is_not_the_window() -> None:
    """Lines are placed by their own time; a window is whatever was asked for, not what was before somebody looked."""
    found = [event(bounce(second, second), second, second) for second in range(0, 5400, 60)]
    half = [one for one in found if one.timestamp < NOON + 1_800_000]
    assert read(half)["bounces"]["lines"] == 30
    assert read(found)["bounces"]["peak"]["lines"] == 30


def test_no_lines_by_hand_is_no_proof() -> None:
    name = "smtp-out.loglevel-6.maillog"
    assert shell("grep -c 'dsn=5'", name) == "0"
    found = section(name)
    assert found["coverage"]["blind"] is True
    assert found["deliveries"]["bounced"] == 2


# -- digests -----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=300))
def test_digest_set_is_a_set(digests: list[int]) -> None:
    tried, known = DigestSet(), set()
    for digest in digests:
        assert tried.add(digest) == (digest not in known)
        known.add(digest)
    assert len(tried) == len(known)
    assert all(digest in tried for digest in known)


@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), st.integers(0, 2**48 - 1)), max_size=300)
)
def test_digest_map_is_a_map_whose_first_value_stays(pairs: list[tuple[int, int]]) -> None:
    tried, known = DigestMap(), {}
    for digest, value in pairs:
        assert tried.put(digest, value) == (digest not in known)
        known.setdefault(digest, value)
    assert all(tried.get(digest) == value for digest, value in known.items())
    assert tried.get(123456789) == known.get(123456789)
    for digest in known:
        known[digest] += 1
        tried.replace(digest, known[digest])
    assert dict(tried.items()) == known
    assert len(tried) == len(known)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**63 - 1) | st.integers(0, 3),
            st.integers(1, 4),
            st.integers(0, 3),
            st.integers(0, 9),
        ),
        max_size=200,
    )
)
def test_marked_digests_tell_each_mark_once_and_add_up(given_marks: list[tuple[int, int, int, int]]) -> None:
    tried, marks, others, amounts = Marked(), set(), set(), Counter()
    for digest, mark, other, amount in given_marks:
        fresh = (digest, mark) not in marks, other > 0 and (digest, other) not in others
        assert tried.add(digest, mark, other, amount) == fresh
        marks.add((digest, mark))
        others.add((digest, other))
        amounts[digest, mark] += amount
    assert {(digest, mark): amount for digest, mark, amount in tried.amounts()} == +amounts
    assert len(tried) == len({digest for digest, _ in marks})
    assert all(digest in tried for digest, _ in marks)


def test_counted_lines_of_an_unknown_shape_are_said_and_never_pass_for_read() -> None:
    foreign = "postfix/smtp[77]: 4Xy1: to=<a@example.com>, relay=mx.example.com, dsn=5.7.1, status=bounced (blocked)"
    found = [event(f"{stamp(second)} host {foreign}", second, second) for second in range(9)]
    tier = read([*found, event(bounce(20, 1), 20, 99)])
    assert tier["bounces"]["lines"] == 10
    assert tier["coverage"]["unread_lines"] == 9
    assert tier["coverage"]["status"] == "partial"
    assert "9 of 10" in tier["coverage"]["reasons"][0]


def test_the_timeline_says_for_which_reasons_mail_failed() -> None:
    bounced = [
        event(bounce(60 * (number // 2), number, to=f"<u{number}@x.example>"), 60 * (number // 2), number)
        for number in range(4)
    ]
    result = read(bounced)
    told = [(row["bounced_recipients"], row["reasons"], row["deferral_reasons"]) for row in result["timeline"]]
    reason = result["bounces"]["reasons"][0]["reason"]
    assert told == [(2, {reason: 2}, {})] * 2
    total = sum(count for row in result["timeline"] for count in row["reasons"].values())
    assert total == result["bounces"]["recipients"] == 4


def test_a_line_repeated_in_json_with_another_time_counts_once() -> None:
    lines = [json.dumps({"log": bounce(1) + "\n", "time": when}) for when in ("12:00:01", "12:05:07")]
    found = [event(line, second, number) for number, (line, second) in enumerate(zip(lines, (1, 307), strict=True))]
    assert read(found)["bounces"]["lines"] == 1
    assert read([*found, event(bounce(2), 2, 9)])["bounces"]["lines"] == 2


def test_a_delivery_line_cut_before_its_fate_is_told_as_cut() -> None:
    whole = bounce(1)
    cut = read([event(whole[: whole.index(", dsn=")], 1)])
    assert cut["coverage"]["cut_lines"] == 1
    assert cut["deliveries"]["bounced"] == 0
    assert read([event(whole, 1)])["coverage"]["cut_lines"] == 0
