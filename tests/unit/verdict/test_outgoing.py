# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the world says to smtp-out: neither a false accusation nor a false all-clear."""

from __future__ import annotations

from typing import Any

import pytest

from .test_verdict import Triage, external, judged, rate_limited


def test_a_limit_of_the_recipients_own_mailbox_is_no_block(triage: Triage, table: list[Any], options: Triage) -> None:
    external(triage, "google", "rate_limited", 20, sent=6)
    log = triage["tiers"]["by_tier"]["smtp-out"]["bounces"]
    log["reasons"][-1]["fault"] = "recipient"
    assert "smtp_out.provider_block" in judged(triage, table, options)
    log["providers"][-1]["recipient_faults"] = {"rate_limited": 20}
    found = judged(triage, table, options)
    assert not {"smtp_out.provider_block", "smtp_out.reputation"} & set(found)


def test_a_mailbox_that_takes_too_much_at_once_holds_no_mail_of_ours_back_for_what_we_are(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    rate_limited(triage)
    assert "deferred.rate_limited" in judged(triage, table, options)
    for row in triage["tiers"]["by_tier"]["smtp-out"]["deferrals"]["providers"]:
        row["recipient_faults"] = dict(row["reasons"])
    assert "deferred.rate_limited" not in judged(triage, table, options)


def test_one_answer_that_names_a_list_does_not_speak_for_the_others(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    external(triage, "microsoft", "policy", 30, sent=0)
    external(triage, "google", "blocklist", 1)
    found = judged(triage, table, options)["smtp_out.provider_block"]
    assert (found["severity"], found["confidence"]) == ("warning", "low")
    assert "own list" not in " ".join(action["text"] for action in found["next_actions"])


def test_refusals_without_a_cause_are_not_called_our_reputation(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    for provider in ("google", "microsoft", "yahoo", "gmx", "apple"):
        external(triage, provider, "policy", 5)
    found = judged(triage, table, options)["smtp_out.reputation"]
    assert (found["severity"], found["confidence"]) == ("warning", "low")
    assert "mostly do not say why" in found["summary"]
    assert "It is our reputation" not in found["summary"]
    external(triage, "comcast", "blocklist", 25)
    found = judged(triage, table, options)["smtp_out.reputation"]
    assert (found["severity"], found["confidence"]) == ("critical", "high")


def test_one_provider_that_does_not_say_why_is_a_warning(triage: Triage, table: list[Any], options: Triage) -> None:
    external(triage, "microsoft", "policy", 20, sent=0)
    found = judged(triage, table, options)["smtp_out.provider_block"]
    assert (found["severity"], found["confidence"]) == ("warning", "low")


def test_the_account_that_nearly_all_refused_mail_came_from_is_named(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    for provider in ("google", "microsoft", "yahoo", "gmx"):
        external(triage, provider, "reputation", 6)
    log = triage["tiers"]["by_tier"]["smtp-out"]["bounces"]
    log["senders"] = [{"sender": "b•••@shop.example", "recipients": 24, "reasons": {"reputation": 24}}]
    texts = " ".join(row["text"] for row in judged(triage, table, options)["smtp_out.reputation"]["next_actions"])
    assert "Nearly all of it was sent by b•••@shop.example" in texts
    log["senders"].append({"sender": "a•••@mail.example", "recipients": 24, "reasons": {"reputation": 24}})
    texts = " ".join(row["text"] for row in judged(triage, table, options)["smtp_out.reputation"]["next_actions"])
    assert "Nearly all" not in texts


def test_without_mail_to_others_it_is_not_told_that_others_took_it(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    external(triage, "microsoft", "blocklist", 18, sent=0)
    summary = judged(triage, table, options)["smtp_out.provider_block"]["summary"]
    assert "nothing was sent to others, so it may be all" in summary
    external(triage, "google", "recipient_unknown", 1, sent=40)
    summary = judged(triage, table, options)["smtp_out.provider_block"]["summary"]
    assert "while other providers took" in summary


@pytest.mark.parametrize(("refused", "free"), [(0, True), (8, False)])
def test_bad_recipients_do_not_deny_a_block_beside_them(
    refused: int, free: bool, triage: Triage, table: list[Any], options: Triage
) -> None:
    external(triage, "private", "recipient_unknown", 9)
    if refused:
        external(triage, "microsoft", "blocklist", refused, sent=0)
    found = judged(triage, table, options)["smtp_out.bad_recipients"]
    told = found["summary"] + " ".join(action["text"] for action in found["next_actions"])
    assert ("not blocked" in told, "nobody to ask" in told, "at 1 domains" in told) == (free, free, free)


def test_names_that_all_do_not_resolve_may_be_our_resolver(triage: Triage, table: list[Any], options: Triage) -> None:
    external(triage, "various", "host_unknown", 20, sent=0)
    triage["tiers"]["by_tier"]["smtp-out"]["deliveries"]["sent"] = 0
    found = judged(triage, table, options)["smtp_out.bad_recipients"]
    assert found["confidence"] == "low"
    assert "getent" in found["next_actions"][0]["command"]
    assert "not blocked" not in found["summary"]
    external(triage, "google", "recipient_unknown", 1, sent=40)
    assert judged(triage, table, options)["smtp_out.bad_recipients"]["confidence"] == "high"


def test_lines_that_are_no_bounces_are_told(triage: Triage, table: list[Any], options: Triage) -> None:
    log = triage["tiers"]["by_tier"]["smtp-out"]["bounces"]
    log["lines"] = 20
    triage["tiers"]["peak"]["lines"] = 20
    log["ongoing_lines_last_10m"] = 5
    found = judged(triage, table, options)
    assert "none of them is a bounce" in found["inconclusive"]["summary"]
