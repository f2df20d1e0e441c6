# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""mailq: what waits and why, in both of its forms, by the rules of the log lines."""

from __future__ import annotations

import pytest
from ansible.module_utils.maillog.queued import Queue
from ansible.module_utils.maillog.reasons import Classifier
from ansible.module_utils.maillog.shipped import tables
from hypothesis import given
from hypothesis import strategies as st

CLOCK = 1_795_557_600  # 2026-11-24T22:00:00Z
BRIEF = """\
\t\t/var/spool/mqueue (3 requests)
-----Q-ID----- --Size-- -----Q-Time----- ------------Sender/Recipient-----------
6AOTG2FA882978      155 Tue Nov 24 20:30 <amelia@shop.example>
                 (Deferred: 451 4.7.1 Greylisted, try again after some time)
\t\t\t\t\t <carla@one.example>
6AOSPoxB880906*     155 Tue Nov 24 19:33 <boris@shop.example>
      8BITMIME   (Deferred: Connection refused by imap.cabal.internal.)
\t\t\t\t\t <bjorn@two.example>
6AOoTJDq037611      155 Tue Nov 24 21:30 <boris@shop.example>
                 (Warning: could not send message for past 4 hours)
\t\t\t\t\t <liam@three.example>
\t\tTotal requests: 3
"""
VERBOSE = """\
\t\t/var/spool/mqueue (2 requests)
-----Q-ID----- --Size-- -Priority- ---Q-Time--- --------Sender/Recipient--------
6AOTG2FA882978      155     120429+Nov 24 20:30 <amelia@shop.example>
                 (Deferred: 421 4.7.0 <carla@one.example>: too many messages from your host)
\t\t\t\t      (---amelia---)
\t\t\t\t\t\t  <carla@one.example>
\t\t (Deferred: 421 4.7.0 <carla@one.example>: too many messages from your host)
\t\t\t\t\t\t  <bjorn@one.example>
\t\t (host map: lookup (one.example): deferred)
6AOSPoxB880906*     155      30155 Nov 24 19:33 <boris@shop.example>
\t\t\t\t\t\t  <bjorn@two.example>
\t\tTotal requests: 2
"""


@pytest.fixture(scope="module")
def judge() -> Classifier:
    found = tables([], [])
    return Classifier(found["reason_rules"], found["providers"], found["enhanced_codes"])


def why(text: str, judge: Classifier) -> dict[str, int]:
    rows = Queue(text, CLOCK).reasons(judge.classify, str)["why"]
    return {f"{row['reason']} {row['fault']}": row["messages"] for row in rows}


def test_reasons_have_the_ids_of_the_log_lines(judge: Classifier) -> None:
    """The body type stands before a reason; a warning tells none; our own host is known by its name."""
    assert why(BRIEF, judge) == {"greylisted remote": 1, "network us": 1}


def test_the_verbose_form_has_a_reason_a_recipient_and_counts_messages(judge: Classifier) -> None:
    queue = Queue(VERBOSE, CLOCK)
    assert (queue.messages, queue.complete, queue.oldest) == (2, True, CLOCK - 8820)
    assert why(VERBOSE, judge) == {"rate_limited us": 1, "dns_failure us": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Deferred: Connection timed out with mx.far.example.", "network"),
        ("Deferred: Name server: mx.far.example.: host name lookup failure", "dns_failure"),
        ("Deferred: 452 4.2.2 Mailbox full", "mailbox_full"),
        ("Deferred: local mailer (/usr/bin/procmail) exited with EX_TEMPFAIL", "local_error"),
        ("Deferred: 403 4.7.0 TLS handshake failed.", "tls_required"),
        ("reply: read error from mx.far.example.", "network"),
        ("timeout waiting for input from mx.far.example. during client greeting", "network"),
        ("Deferred: No route to host", "network"),
        ("Deferred", "other"),
    ],
)
def test_texts_that_sendmail_leaves_in_its_queue(text: str, reason: str, judge: Classifier) -> None:
    listed = Queue(f"6AOTG2FA882978 155 Tue Nov 24 20:30 <a@b.example>\n\t\t ({text})\n", CLOCK)
    assert [row["reason"] for row in listed.reasons(judge.classify, str)["reasons"]] == [reason]


def test_without_a_judge_the_texts_stand_alone() -> None:
    found = Queue(BRIEF, CLOCK).reasons(None, str.upper)
    assert found["why"] is None
    assert {row["reason"] for row in found["reasons"]} == {None}
    assert found["reasons"][0]["text"].startswith("DEFERRED: ")


@pytest.mark.parametrize(
    ("text", "messages", "complete"),
    [
        ("/var/spool/mqueue is empty\n\t\tTotal requests: 0\n", 0, True),
        ("/var/spool/mqueue is empty\n", 0, True),
        ("", None, False),
        ("6AOTG2FA882978 155 Tue Nov 24 20:30 <a@b.example>\n", 1, False),
        ("\t\tTotal requests: 2\n\t\tTotal requests: 3\n", 5, True),
    ],
)
def test_how_much_of_a_listing_is_known(text: str, messages: int | None, complete: bool) -> None:
    queue = Queue(text, CLOCK)
    assert (queue.messages, queue.complete) == (messages, complete)


@given(st.text(max_size=300))
def test_no_listing_raises(text: str) -> None:
    for listing in (text, BRIEF + text, f"6AOTG2FA882978 1 Tue Nov 24 20:30 <a@b.example>\n ({text}"):
        Queue(listing, CLOCK).reasons(None, str)
