# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The minute a spike began, whether it goes on, and the runbook's condition beside what the deployed rule can see."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from ansible.module_utils.cabalmail.time import epoch_ms
from ansible.module_utils.maillog.change import Rule, change, condition, deployed_rule, over, standing_out
from hypothesis import given, settings
from hypothesis import strategies as st

START = epoch_ms("2026-11-24T21:00:00Z")
ZERO = START // 1000
BOUNCED = Rule(15, 30, 15)
DEFERRED = Rule(10, 10, 15)


def steady(per_minute: float, first: float, last: float) -> Counter[int]:
    """Lines at a steady rate between two minutes of the window."""
    count = round((last - first) * per_minute)
    return Counter(ZERO + int(60 * (first + number / per_minute)) for number in range(count))


def at(minute: float) -> str:
    return f"2026-11-24T{21 + int(minute) // 60:02d}:{int(minute) % 60:02d}:00Z"


def seen(seconds: Counter[int], minutes: int = 60, rule: Rule = BOUNCED, fired: float | None = None) -> dict:
    fired_ms = None if fired is None else START + int(fired * 60_000)
    return change(seconds, START, START + minutes * 60_000, rule, fired_ms)


def test_the_minute_it_began_and_that_it_goes_on() -> None:
    found = seen(steady(0.1, 0, 60) + steady(2, 37, 60))
    assert (found["state"], found["onset"], found["ended"]) == ("ongoing", at(37), None)
    assert found["before"] == {"lines": 4, "minutes": 37.0, "per_minute": 0.11}
    assert found["since"]["per_minute"] == pytest.approx(2.1, abs=0.1)


def test_the_minute_it_ended() -> None:
    found = seen(steady(0.1, 0, 60) + steady(3, 10, 25))
    assert (found["state"], found["onset"], found["ended"]) == ("ended", at(10), at(25))


def test_one_message_to_many_is_one_minute() -> None:
    found = seen(Counter({ZERO + 60 * 30 + 7: 40}))
    assert (found["onset"], found["ended"], found["since"]["lines"]) == (at(30), at(31), 40)


@pytest.mark.parametrize(("lines", "state"), [(Counter(), "none"), (steady(1, 0, 60), "steady")])
def test_without_a_change_there_is_no_onset(lines: Counter[int], state: str) -> None:
    found = seen(lines)
    assert (found["state"], found["onset"], found["before"], found["since"]) == (state, None, None, None)


def test_chance_is_hardly_ever_called_a_spike() -> None:
    called = 0
    for seed in range(300):
        chosen = random.Random(seed)
        lines = Counter(ZERO + chosen.randrange(3600) for _ in range(30))
        called += standing_out(lines, ZERO, ZERO + 3600) is not None
    assert called <= 2


def test_a_long_window_finds_the_minute_all_the_same() -> None:
    found = seen(steady(0.05, 0, 2880) + steady(2, 1403, 1459), 2880)
    assert (found["state"], found["onset"], found["ended"]) == ("ended", "2026-11-25T20:23:00Z", "2026-11-25T21:19:00Z")


@given(st.integers(3, 50), st.integers(3, 8))
@settings(max_examples=30, deadline=None)
def test_a_burst_on_nothing_is_found_to_the_minute(minute: int, length: int) -> None:
    found = standing_out(steady(4, minute, minute + length), ZERO, ZERO + 3600)
    assert found == (ZERO + minute * 60, ZERO + (minute + length) * 60)


def test_the_condition_is_met_after_it_held_and_ends_when_the_lines_leave_its_window() -> None:
    lines = steady(1, 0, 16)
    spans = over(lines, BOUNCED)
    assert spans == [(ZERO + 15 * 60, ZERO + 30 * 60)]
    found = seen(lines, 60, fired=30)["condition"]
    assert (found["state"], found["from"], found["until"]) == ("ended", at(30), at(30))
    assert (found["now"], found["when_fired"]) == (False, True)


def test_the_condition_holds_now_and_held_when_it_fired() -> None:
    found = seen(steady(2, 5, 60), 60, fired=50)["condition"]
    assert (found["state"], found["now"], found["when_fired"], found["until"]) == ("holds", True, True, None)


def test_fifteen_lines_are_not_more_than_fifteen() -> None:
    assert over(Counter({ZERO: 15}), BOUNCED) == []
    assert over(Counter({ZERO: 16}), BOUNCED) == [(ZERO, ZERO + 1800)]


def test_a_window_that_begins_too_late_can_not_tell() -> None:
    found = condition(Counter(), ZERO, ZERO + 1200, BOUNCED, ZERO + 1200)
    assert (found["state"], found["now"], found["when_fired"]) == ("unknown", None, None)


def test_the_other_runbook_has_its_own_condition() -> None:
    found = seen(steady(2, 20, 60), rule=DEFERRED, fired=58)
    assert (found["onset"], found["condition"]["state"], found["condition"]["minutes"]) == (at(20), "holds", 10)


def test_the_deployed_rule_sees_nothing_of_a_steady_rate() -> None:
    """Two lines a minute are 60 in 30 minutes, and `increase()` of a gauge that stays at 2 is 0."""
    lines = steady(2, 0, 60)
    assert deployed_rule(lines, ZERO, ZERO + 3600, BOUNCED, None)["increase_now"] == 0
    found = seen(lines)
    assert (found["condition"]["now"], found["deployed_rule"]["over_now"]) == (True, False)


def test_the_deployed_rule_can_be_over_where_lines_come_and_go() -> None:
    lines = Counter({ZERO + 60 * minute: 4 for minute in range(30, 60, 2)})
    assert deployed_rule(lines, ZERO, ZERO + 3600, BOUNCED, ZERO + 600) == {
        "increase_now": 56,
        "increase_when_fired": None,
        "over_now": True,
        "over_when_fired": None,
    }


@given(st.lists(st.integers(0, 3599), max_size=80))
@settings(max_examples=40, deadline=None)
def test_the_condition_against_counting_each_second(offsets: list[int]) -> None:
    lines = Counter(ZERO + offset for offset in offsets)
    spans = over(lines, DEFERRED)
    for second in range(0, 4300, 37):
        count = sum(second - 600 < offset <= second for offset in offsets)
        assert any(since <= ZERO + second < until for since, until in spans) == (count > 10)


def test_what_the_lines_will_make_of_the_time_after_the_window_is_nothing_that_was_seen() -> None:
    """Over the threshold for eight minutes at the window's end: it may come to hold, and has not held."""
    found = seen(steady(2, 36.5, 52), minutes=52)["condition"]
    assert (found["state"], found["from"], found["until"]) == ("not_met", None, None)
