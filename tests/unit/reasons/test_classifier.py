# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rulings: what beats what, where sendmail's own words are weak, and whose fault it is."""

from __future__ import annotations

import time

import pytest
from ansible.module_utils.maillog.reasons import Attempt, Classifier, required_literal
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("attempt", "reason"),
    [
        # Text beats the enhanced code, this the three digits, these stat=.
        (Attempt(reply="550 5.1.1 Mailbox full", stat="User unknown"), "mailbox_full"),
        (Attempt(reply="552 5.1.1 sorry", stat="User unknown"), "recipient_unknown"),
        (Attempt(reply="552 sorry", stat="User unknown", enhanced="5.2.2"), "mailbox_full"),
        (Attempt(reply="550 5.7.1 sorry", stat="User unknown"), "policy"),
        # A bare refusal is no text that tells: it does not beat the enhanced code.
        (
            Attempt(reply="550 5.1.1 <a@b.example>: Recipient address rejected", stat="User unknown"),
            "recipient_unknown",
        ),
        (Attempt(reply="550 5.1.1 <a@b.example>: Recipient address rejected: Access denied"), "recipient_unknown"),
        (Attempt(reply="552 5.2.2 Message rejected"), "mailbox_full"),
        (Attempt(reply="550 5.7.26 Your message was refused."), "authentication"),
        (Attempt(reply="550 5.7.1 <a@b.example>: Recipient address rejected: Access denied"), "policy"),
        (Attempt(reply="550 <a@b.example>: Recipient address rejected", stat="User unknown"), "policy"),
        (Attempt(reply="550 5.1.1 <a@b.example>: Recipient address rejected: policy of the site"), "policy"),
        # dsn= beside an answer without a code is sendmail's own invention.
        (Attempt(reply="550 sorry", stat="User unknown", enhanced="5.1.1"), "other"),
        # Without reply= (sendmail before 8.16) dsn= is all there is, and stat= may hold the answer.
        (Attempt(stat="User unknown", enhanced="5.7.26"), "authentication"),
        (Attempt(stat="User unknown", enhanced="5.1.1"), "recipient_unknown"),
        (Attempt(stat="Service unavailable", enhanced="5.0.0"), "other"),
        (Attempt(stat="Deferred: 451 4.7.1 Greylisting in action", enhanced="4.7.1"), "greylisted"),
        # An enhanced code is three numbers that stand alone.
        (Attempt(reply="550 5.1.1.100 sorry"), "other"),
        (Attempt(reply="550 sorry (#5.1.1)"), "recipient_unknown"),
        # "Blocked": with an address or a list blocklist, of the message policy, of a link in it content.
        (Attempt(reply="550 Blocked"), "policy"),
        (Attempt(reply="550 [192.0.2.1] blocked"), "blocklist"),
        (Attempt(reply="550 Blocked, see http://lists.example/?ip=192.0.2.1 for delisting"), "blocklist"),
        (Attempt(reply="550 blacklisted URL in message"), "content"),
        (Attempt(reply="550 message looks like spam"), "content"),
        (Attempt(reply="550 your server is sending spam"), "reputation"),
        # Exchange.
        (Attempt(reply="550 5.4.1 Recipient address rejected: Access denied"), "recipient_unknown"),
        (Attempt(reply="550 5.7.1 RESOLVER.RST.AuthRequired; authentication required"), "recipient_restricted"),
        # A temporary answer.
        (Attempt(reply="421 please slow down and try again later"), "rate_limited"),
        (Attempt(reply="451 internal error, try again later"), "remote_error"),
        (Attempt(reply="450 4.7.1 your host is refused, try again later"), "reputation"),
        (Attempt(reply="450 try again later"), "greylisted"),
        # Our own tiers.
        (Attempt(reply="550 5.2.1 <a@b.example>... Mailbox disabled for this recipient"), "recipient_unknown"),
        (Attempt(reply="553 5.3.0 <a@b.example>... TEMPFAIL"), "local_error"),
        # Any language, as sendmail logs what is not ASCII.
        (Attempt(reply=r"550 \347\224\250\346\210\267\344\270\215\345\255\230\345\234\250"), "recipient_unknown"),
        (Attempt(), "other"),
    ],
)
def test_rulings(classifier: Classifier, attempt: Attempt, reason: str) -> None:
    assert classifier.classify(attempt).id == reason


@pytest.mark.parametrize(
    ("attempt", "reason", "fault"),
    [
        (Attempt(stat="Deferred: Connection refused by mx.example.org.", enhanced="4.4.1", relay="mx.example.org."),
         "network", "remote"),
        (Attempt(stat="Deferred: Connection refused by imap.cabal.internal.", relay="imap.cabal.internal"),
         "network", "us"),
        (Attempt(stat="Host unknown (Name server: x.example: host not found)", enhanced="5.1.2"),
         "host_unknown", "recipient"),
        (Attempt(stat="Host unknown (Name server: imap.cabal.internal: host not found)", relay="[imap.cabal.internal]"),
         "host_unknown", "us"),
        (Attempt(reply="450 4.2.1 The user you are trying to contact is receiving mail too quickly"),
         "rate_limited", "recipient"),
        (Attempt(reply="450 4.2.1 too many messages from your host"), "rate_limited", "us"),
    ],
)  # fmt: skip
def test_whose_fault_it_is(classifier: Classifier, attempt: Attempt, reason: str, fault: str) -> None:
    found = classifier.classify(attempt)
    assert (found.id, found.fault) == (reason, fault)


def test_what_only_digits_or_stat_say_does_not_tell(classifier: Classifier) -> None:
    assert classifier.classify(Attempt(reply="550 5.1.1 sorry")).tells
    assert not classifier.classify(Attempt(reply="552 sorry")).tells
    assert not classifier.classify(
        Attempt(reply="550-5.7.1 [192.0.2.1] Our system has detected that this message is")
    ).tells
    assert not classifier.classify(Attempt(reply="554 sorry")).tells


def test_addresses_and_hosts_in_an_answer_do_not_decide(classifier: Classifier) -> None:
    reply = "550 5.1.1 <spam.blacklist.quota@dkim-fail.example>: unknown user at mailbox-full.spamhaus.example"
    assert classifier.classify(Attempt(reply=reply)).id == "recipient_unknown"


def test_the_registry_explains_a_code(classifier: Classifier) -> None:
    assert classifier.code_text("5.1.1") == "Bad destination mailbox address"
    assert classifier.code_text("4.2.2") == "Mailbox full"
    assert classifier.code_text("5.7.606") == "Security or policy status"
    assert classifier.code_text("5.99.1") is None


@given(st.text(max_size=3000), st.text(max_size=300), st.text(max_size=60), st.text(max_size=12))
@settings(deadline=None, max_examples=300)
def test_no_text_raises(classifier: Classifier, reply: str, stat: str, relay: str, enhanced: str) -> None:
    reason = classifier.classify(Attempt(reply=reply, stat=stat, relay=relay, enhanced=enhanced, code=enhanced[:3]))
    assert reason.id in classifier.faults


WORDS = st.sampled_from(
    ["user", "mailbox", "blocked", "<a@b.example>", "192.0.2.1", "a.b.c", "spam", "sender", "not", "message", "size",
     "-", "http://x.example/?a=1", "5.7.1", "/ 550-5.1.1", "quota", "the", "rate", "limit", "exceeded", "ящик", "用户",
     "::1"]
)  # fmt: skip


@given(st.lists(WORDS, min_size=1, max_size=12), st.sampled_from(["", " ", ".", "@", "-"]))
@settings(deadline=None, max_examples=100)
def test_no_text_runs_long(classifier: Classifier, words: list[str], joint: str) -> None:
    """Ten times the text may not cost more than the bounded part that is looked at."""
    text = joint.join(words) * (100_000 // len(joint.join(words)))
    started = time.process_time()
    classifier.classify(Attempt(reply=f"550 {text}", stat=text))
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("pattern", "literal"),
    [
        ("user unknown", "user unknown"), ("a(?:b|c)def", "def"), ("abc|def", ""), ("colou?r", "colo"),
        (r"\bspam\b", "spam"), ("[abc]defg?", "def"), ("x{2}yes", "yes"), (r"a\.b", "a"), ("(?:one|two)", ""),
        ("[]x]abc", "abc"), (r"[\]|]abc", "abc"),
    ],
)  # fmt: skip
def test_required_literal(pattern: str, literal: str) -> None:
    assert required_literal(pattern) == literal


def test_every_match_of_a_shipped_pattern_holds_its_literal(classifier: Classifier, rules: dict[str, object]) -> None:
    """The substring test in front of each pattern must not change any answer."""
    import csv
    import re
    from pathlib import Path

    data = Path(__file__).resolve().parents[2] / "data"
    texts = []
    for name in ("bounces/replies.tsv", "replies_extra.tsv"):
        with (data / name).open(encoding="utf-8", newline="") as file:
            replies = [row["reply"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
            texts += [classifier.normalise(reply).lower() for reply in replies]
    checked = 0
    for rule in rules["rules"]:  # type: ignore[attr-defined]
        for source in [*rule.get("text", ()), *rule.get("unless", ()), *rule.get("link", ())]:
            source = re.sub(r"%(\w+)%", lambda name: rules["vocabulary"][name[1]], source)  # type: ignore[index]
            pattern, literal = re.compile(source), required_literal(source)
            matching = [text for text in texts if pattern.search(text)]
            checked += len(matching)
            assert all(literal in text for text in matching), source
    assert checked > 300
