# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the runbooks send people to the wrong tier or see nothing, and what the table says instead.

The numbers are those of the list of such defects that the project keeps.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.cabalmail.verdict import judge

from .test_verdict import imap_stale, missing_user, revoked, stray_mail, unresolvable, unwritable

Triage = dict[str, Any]
Break = Callable[[Triage], None]


def verdict(triage: Triage, table: list[Any], options: Triage) -> dict[str, Any]:
    found: dict[str, Any] = judge(triage, table, options)["verdict"]
    return found


@pytest.mark.parametrize("wrong", [imap_stale, missing_user, unresolvable])
def test_smtp_in_bounces_and_imap_is_what_is_wrong(
    wrong: Break, triage: Triage, table: list[Any], options: Triage
) -> None:
    """Defect 17: "the offender is smtp-in: force a new deployment of cabal-smtp-in" cures none of these."""
    wrong(triage)
    bounced = {tier: log["bounces"]["lines"] for tier, log in triage["tiers"]["by_tier"].items()}
    assert max(bounced, key=lambda tier: bounced[tier]) == "smtp-in"
    found = verdict(triage, table, options)
    assert found["tier"] == "imap"
    assert "cabal-smtp-in" not in json.dumps([found.get("remedy"), found["next_actions"]])


def test_no_loop_makes_a_missing_user(triage: Triage, table: list[Any], options: Triage) -> None:
    """Defect 24: OS users come from Cognito when a task starts; the loop reads the table alone."""
    missing_user(triage)
    found = verdict(triage, table, options)
    words = " ".join(action["text"] for action in found["next_actions"])
    assert found["id"] == "imap.missing_user"
    assert "redeploy imap" in words
    assert "loop never makes users" in words


def test_mail_that_nobody_gets_although_nothing_bounces(triage: Triage, table: list[Any], options: Triage) -> None:
    """Defect 30: procmail falls back to /var/spool/mail and sendmail logs Sent: no dsn=5 line, and no page."""
    unwritable(triage)
    stray_mail(triage)
    assert sum(log["bounces"]["lines"] for log in triage["tiers"]["by_tier"].values()) == 0
    findings = {row["id"]: row for row in judge(triage, table, options)["findings"]}
    assert {"imap.maildir_unwritable", "imap.stray_mail"} <= set(findings)
    assert "before any restart" in findings["imap.stray_mail"]["next_actions"][0]["text"]
    # Nobody looked: that is unknown, and not an empty folder.
    triage["local_delivery"].update(stray_mail=None, unwritable=None)
    judged = judge(triage, table, options)
    assert "imap.stray_mail" in [row["id"] for row in judged["not_judged"]]


def test_an_empty_cloud_map_beside_a_running_imap_is_cured_by_imap(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    """Defect 34: HEALTHY and running, and every inbound mail bounces 5.1.2: a task registers only when it starts."""
    unresolvable(triage)
    assert triage["environment"]["services"]["imap"]["running"] == 1
    found = verdict(triage, table, options)
    assert (found["id"], found["remedy"]["service"]) == ("imap.unresolvable", "cabal-imap")


def test_a_bounce_to_a_revoked_address_is_right(triage: Triage, table: list[Any], options: Triage) -> None:
    """Defect 39: expected behaviour, with low severity and nothing to restart."""
    revoked(triage)
    found = verdict(triage, table, options)
    assert (found["id"], found["severity"]) == ("smtp_in.revoked_addresses", "info")
    assert not found.get("remedy")


def test_smtp_out_that_logs_no_bounce_is_seen_by_what_it_signs_and_queues(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    """Defect 15: at LogLevel 2 its bounces leave no line; counting them gives 0 and means nothing."""
    log = triage["tiers"]["by_tier"]["smtp-out"]
    log["coverage"].update(blind=None)
    log["tasks"] = {"c" * 32: {"opendkim": {"signed": {"a.example": 30}}}}
    for row in triage["containers"]["tasks"]:
        row["log_level"] = 2 if row["tier"] == "smtp-out" else 9
        if row["tier"] == "smtp-out":
            why = [{"reason": "blocklist", "fault": "us", "messages": 9}]
            row["queue"] = {"messages": 9, "complete": True, "oldest": None, "reasons": [], "why": why}
    found = verdict(triage, table, options)
    assert (found["id"], found["tier"]) == ("coverage.blind_tier", "smtp-out")
    assert "opendkim signed 30 messages" in found["found"]
    assert "blocklist 9" in found["found"]
    assert not {"none.below_threshold", "none.ended"} & {row["id"] for row in judge(triage, table, options)["findings"]}
