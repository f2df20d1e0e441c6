# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E501 - one call a line reads better here
"""Counting in several processes gives what counting in one gives, and a lost process is said."""

from __future__ import annotations

import json
import os
import signal

import pytest
from ansible.module_utils.maillog.crew import Crew, CrewError, Tally
from logs_server import shape
from maillog_corpus import aggregate, events, section, window_of

FILES = {"imap": "imap.relay.maillog", "smtp-in": "smtp-in.relay.maillog", "smtp-out": "smtp-out.hostile.maillog"}


def crew_of(processes: int) -> Crew:
    made = {tier: aggregate([], tier, window=window_of(events(name))) for tier, name in FILES.items()}
    return Crew(made, processes)


def pages(name: str, size: int = 7) -> list[bytes]:
    found = [shape(one) for one in events(name)]
    return [json.dumps({"events": found[at : at + size]}).encode() for at in range(0, len(found), size)]


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_the_number_of_processes_does_not_show(processes: int) -> None:
    crew = crew_of(processes)
    crew.start()
    for tier, name in FILES.items():
        for body in pages(name):
            crew.feed(tier, body)
    tallies = crew.finish(dict.fromkeys(FILES, ("complete", [])))
    for tier, name in FILES.items():
        tally = tallies[tier]
        assert isinstance(tally, Tally)
        assert tally.section == section(name)
        assert sum(tally.metric_seconds.values()) == section(name)["bounces"]["lines"]


def test_tiers_that_were_not_read_are_left_out() -> None:
    crew = crew_of(2)
    crew.start()
    assert set(crew.finish({"imap": ("partial", ["Cut short."])})) == {"imap"}


def test_a_process_that_ends_early_takes_its_tiers_with_it_and_no_others() -> None:
    crew = crew_of(8)
    crew.start()
    lost = crew._of["imap"]._process
    os.kill(lost.pid or 0, signal.SIGKILL)
    lost.join()
    for tier, name in FILES.items():
        for body in pages(name) * 20:
            crew.feed(tier, body)
    tallies = crew.finish(dict.fromkeys(FILES, ("complete", [])))
    assert isinstance(tallies["imap"], CrewError)
    assert isinstance(tallies["smtp-in"], Tally)
    assert isinstance(tallies["smtp-out"], Tally)


@pytest.mark.parametrize("processes", [1, 8])
def test_an_answer_that_is_not_json_ends_the_count_of_its_tier_in_words(processes: int) -> None:
    crew = crew_of(processes)
    crew.start()
    crew.feed("imap", b'{"events": [')
    crew.feed("smtp-in", pages(FILES["smtp-in"])[0])
    tallies = crew.finish(dict.fromkeys(FILES, ("complete", [])))
    assert isinstance(tallies["imap"], CrewError)
    assert isinstance(tallies["smtp-in"], Tally)


def test_events_without_text_are_none() -> None:
    crew = crew_of(1)
    crew.feed(
        "imap",
        b'{"events": [{"message": 7, "timestamp": 1}, {"timestamp": 2}, {"message": "x"}, {"message": "x", "timestamp": 3}]}',
    )
    tally = crew.finish(dict.fromkeys(FILES, ("complete", [])))["imap"]
    assert isinstance(tally, Tally)
    assert tally.section["coverage"]["events"] == 1
