# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parser and the counts against what a real sendmail logged and what in truth happened."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from ansible.module_utils.maillog.parser import Parser
from ansible.module_utils.maillog.records import Delivery, Notice, Rejection
from maillog_corpus import NOW, aggregate, counts, events, lines, section, truth

FILES = sorted(counts())
# The log lacks what the truth has, by LogLevel; the numbers there are lower bounds by nature.
QUIET = {name for name in FILES if re.search(r"loglevel-[2-8]\.", name)}
LOUD = [name for name in FILES if name not in QUIET]


def rows(outcome: str) -> list[tuple[str, dict]]:
    return [(name, row) for name in FILES for row in truth()[name] if row["outcome"] == outcome and row["line"]]


def record_of(name: str, row: dict) -> object:
    return Parser().parse(lines(name)[row["line"] - 1], NOW).record


@pytest.mark.parametrize("outcome", ["sent", "deferred", "bounced"])
def test_every_delivery_line_says_what_happened(outcome: str) -> None:
    wrong = []
    for name, row in rows(outcome):
        record = record_of(name, row)
        if isinstance(record, Notice) and outcome == "bounced" and record.kind == "dsn":
            continue
        if "Too many hops" in lines(name)[row["line"] - 1]:
            continue
        if not isinstance(record, Delivery) or record.outcome != outcome or record.dsn != row["dsn_logged"]:
            wrong.append((name, row["line"], record))
            continue
        known = [address.lower() for address in record.recipients()]
        if (row.get("logged_as") or row["recipient"]).lower() not in known and record.mailer != "prog":
            wrong.append((name, row["line"], record))
        if row["mx_ip"] not in (None, "127.0.0.1") and record.relay_ip != row["mx_ip"]:
            wrong.append((name, row["line"], record))
    assert not wrong


def test_replies_are_read_to_the_letter() -> None:
    """First line of the answer as sent, where sendmail did not shorten it; what imitates fields included."""
    wrong = []
    for name, row in [*rows("bounced"), *rows("deferred")]:
        record = record_of(name, row)
        if not isinstance(record, Delivery) or record.reply is None or "..." in record.reply or not row["reply"]:
            continue
        sent = row["reply"][0].rstrip()
        # sendmail writes control characters as escapes, and the first line of several with or without its dash.
        sent = sent.replace("\x1b", r"\033").replace("\t", r"\t").replace("\x07", r"\007").replace("\r", r"\r")
        if record.reply.rstrip() not in (sent, sent[:3] + " " + sent[4:]):
            wrong.append((name, row["line"], record.reply, sent))
    assert not wrong


def test_every_refusal_and_expiry_is_recognised() -> None:
    missed = []
    for name, row in rows("rejected"):
        record, line = record_of(name, row), lines(name)[row["line"] - 1]
        # A client whose declared size we refuse leaves only its `from=`; a milter's error is counted by the line after.
        spoken = ", nrcpts=0," in line or "to error state" in line or "stat=Message exceeds" in line
        if not isinstance(record, Rejection) and not spoken:
            missed.append((name, row["line"], line))
    for name, row in rows("expired"):
        record = record_of(name, row)
        if not (isinstance(record, Notice) and record.expired):
            missed.append((name, row["line"], lines(name)[row["line"] - 1]))
    assert not missed


@pytest.mark.parametrize("name", FILES)
def test_lines_of_the_metric(name: str) -> None:
    assert section(name)["bounces"]["lines"] == counts()[name]["substring_dsn5_lines"]


@pytest.mark.parametrize("name", LOUD)
def test_counts_of_failures_are_exact(name: str) -> None:
    known, found = counts()[name], section(name)
    by_code = {row["code"]: row["lines"] for row in found["bounces"]["codes"] if row["code"].startswith("5")}
    assert found["deliveries"]["bounced"] == known["failed_recipients"]
    assert found["bounces"]["messages"] == known["messages_with_permanent_failure"]
    assert found["deferrals"]["lines"] == known["deferred_lines"]
    assert found["deferrals"]["messages"] == known["deferred_messages"]
    assert found["deliveries"]["expired"] == sum(row["outcome"] == "expired" for row in truth()[name])
    assert found["deliveries"]["rejected"] == known["rejected_transactions"]
    unseen_codes = {"smtp-out.hostile.maillog": {"5.1.1": 2}}.get(name, {})
    assert Counter(by_code) + Counter(unseen_codes) == Counter(known["dsn5_lines_by_code"])


@pytest.mark.parametrize("name", LOUD)
def test_sent_recipients(name: str) -> None:
    """The truth's, and what it leaves out: notifications and attempts after the scenario's end."""
    known = {(row["queue_id"], row["recipient"].lower()) for row in truth()[name] if row["outcome"] == "sent"}
    assert section(name)["deliveries"]["sent"] >= len(known)


def test_imap_refusals_are_bounces_that_no_metric_sees() -> None:
    """Stale maps and missing users on imap bounce mail on smtp-in, and carry no dsn= where imap logs them."""
    found = section("imap.relay.maillog")
    assert found["bounces"]["lines"] == 0
    assert found["unseen"]["kinds"] == {"reject_553": 3, "user_unknown": 8, "other_reject": 0}
    assert found["unseen"]["by_relay"] == [
        {"relay": "smtp-in.cabal.internal", "ip": "10.0.1.23", "lines": 11, "recipients": 11}
    ]
    relayed = [row for row in section("smtp-in.relay.maillog")["bounces"]["codes"] if row["code"] in ("5.3.0", "5.1.1")]
    assert sum(row["recipients"] for row in relayed) == 11
    assert section("smtp-in.rejects.maillog")["unseen"]["recipients"] == 0


def test_bounces_at_our_own_host_are_set_apart() -> None:
    found = section("smtp-in.relay.maillog")["bounces"]["own_host"]
    assert found["relay"] == "imap.cabal.internal"
    assert found["recipients"] == 15


@pytest.mark.parametrize(
    ("level", "blind", "least"),
    [(2, None, None), (5, True, 5), (6, True, 6), (7, False, 7), (8, False, 8), (14, False, 9)],
)
def test_what_the_log_level_hides(level: int, blind: bool | None, least: int | None) -> None:
    coverage = section(f"smtp-out.loglevel-{level}.maillog")["coverage"]
    assert coverage["blind"] is blind
    assert coverage["log_level"]["at_least"] == least


def test_at_level_6_the_notification_is_the_only_witness() -> None:
    found = section("smtp-out.loglevel-6.maillog")
    assert (found["deliveries"]["bounced"], found["bounces"]["bounced_lines"]) == (2, 0)


def test_senders_are_joined_by_queue_id() -> None:
    for name in LOUD:
        expected = Counter(
            row["sender_domain"] or "<>" for row in truth()[name]
            if row["outcome"] == "bounced" and row["line"] and "message" not in row
        )  # fmt: skip
        found = Counter({row["domain"]: row["recipients"] for row in section(name)["bounces"]["sender_domains"]})
        found.pop("(not logged)", None)
        found.pop("<>", None)
        expected.pop("<>", None)
        assert found == expected, name


def test_opendkim_lines_are_counted_by_domain() -> None:
    (task,) = section("smtp-out.opendkim.maillog")["tasks"].values()
    assert task["opendkim"]["signed"]["shop.harborlight.example"] == 3
    assert task["opendkim"]["no_match"] == {"sender.example": 1}


def test_nothing_returned_names_an_address() -> None:
    """Masked in samples, replies, rejects and senders alike."""
    for name in FILES:
        text = repr(section(name))
        for row in truth()[name]:
            local, _, _ = (row["recipient"] or "").rpartition("@")
            # Names shorter than this are words of the language as well.
            if len(local.strip('"')) > 6 and "=" not in local:
                assert local not in text, (name, row["recipient"])


def delay_of(name: str, row: dict[str, Any]) -> str:
    found = re.search(r"\bdelay=([^,]*)", lines(name)[row["line"] - 1])
    return found[1] if found else ""


@pytest.mark.parametrize("name", LOUD)
def test_a_message_given_up_keeps_the_reason_of_its_last_attempt(name: str) -> None:
    gone = [row for row in truth()[name] if row["outcome"] == "expired"]
    # The try after days, which a line reports; what was only ever queued for DNS has none, so its cause is not known.
    tried = {(r["queue_id"], r["recipient"]) for r in truth()[name] if r.get("line") and "+" in delay_of(name, r)}
    known = Counter(
        (row["cause"], row["cause_fault"]) if (row["queue_id"], row["recipient"]) in tried else (None, None)
        for row in gone
    )
    found = section(name)["expired"]
    assert {(row["cause"], row["fault"]): row["recipients"] for row in found["causes"]} == known
    assert (found["recipients"], found["messages"]) == (len(gone), len({row["queue_id"] for row in gone}))


def test_a_message_whose_last_attempt_is_not_in_the_window_has_no_cause() -> None:
    name = "smtp-out.retries.maillog"
    alone = [event for event in events(name) if "Cannot send message for 4 days" in event.message]
    found = aggregate(alone, "smtp-out").result("complete", [])["expired"]
    assert found == {"messages": 6, "recipients": 6, "causes": [{"cause": None, "fault": None, "recipients": 6}]}


@pytest.mark.parametrize("name", LOUD)
def test_recipients_that_wait_count_once_however_often_it_was_tried(name: str) -> None:
    rows_ = [row for row in truth()[name] if row["outcome"] == "deferred" and row.get("line")]
    found = section(name)["deferrals"]
    assert found["recipients"] == len({(row["queue_id"], row["recipient"].lower()) for row in rows_})
    by_reason = Counter[str]()
    for row in found["reasons"]:
        by_reason[row["reason"]] += row["recipients"]
    known = Counter(reason for _, _, reason in {(r["queue_id"], r["recipient"].lower(), r["reason"]) for r in rows_})
    wrong = sum(abs(by_reason.get(reason, 0) - known[reason]) for reason in {*by_reason, *known})
    assert wrong <= 2, (by_reason, known)
    at_imap = {(row["queue_id"], row["recipient"]) for row in rows_ if row["mx_host"] == "imap.cabal.internal"}
    assert found["own_host"]["recipients"] == len(at_imap)
    assert found["peak"]["minutes"] == 10
    assert found["peak"]["lines"] <= found["lines"]
