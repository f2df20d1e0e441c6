# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a condition just holds and just does not."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.cabalmail.signals import build_signals
from ansible.module_utils.cabalmail.verdict import judge

from .test_verdict import (
    IMAP,
    SMTP_IN,
    Triage,
    deploying,
    egress_down,
    external,
    imap_stale,
    imap_unreachable,
    judged,
    loop_state,
    refused_at_imap,
    smtp_in_stale,
    unavailable,
    unresolvable,
)


def test_silence_while_a_task_answers_is_not_the_way_out(triage: Triage, table: list[Any], options: Triage) -> None:
    egress_down(triage)
    triage["containers"]["tasks"] = [{"tier": "imap", "task": IMAP, "outcome": "completed"}]
    found = judged(triage, table, options)
    assert "network.egress_down" not in found
    assert "network.nat_down" in found


def test_silence_is_never_called_health(triage: Triage, table: list[Any], options: Triage) -> None:
    egress_down(triage)
    triage["containers"] = {**unavailable(), "tasks": [], "unreachable": []}
    found = judge(triage, table, options)["verdict"]
    assert (found["id"], found["confidence"]) == ("network.egress_down", "medium")
    triage["environment"]["network"] = unavailable()
    assert judge(triage, table, options)["verdict"]["id"] == "inconclusive"


def test_a_denied_group_hides_no_silence(triage: Triage, table: list[Any], options: Triage) -> None:
    egress_down(triage)
    triage["tiers"]["by_tier"]["imap"]["coverage"] = unavailable()
    assert "network.egress_down" in judged(triage, table, options)


def test_a_nat_that_was_replaced_is_not_down(triage: Triage, table: list[Any], options: Triage) -> None:
    nats = [{"id": "i-1", "state": "terminated"}, {"id": "i-2", "state": "running"}]
    triage["environment"]["network"]["nat_instances"] = nats
    assert "network.nat_down" not in judged(triage, table, options)
    nats[1]["state"] = "stopped"
    assert "i-2" in judged(triage, table, options)["network.nat_down"]["summary"]


def test_imap_that_does_not_run_is_not_told_to_run(triage: Triage, table: list[Any], options: Triage) -> None:
    unresolvable(triage)
    triage["environment"]["services"]["imap"]["running"] = 0
    found = judged(triage, table, options)
    assert "imap.unresolvable" not in found
    assert (found["imap.not_running"]["recipients"], found["imap.not_running"]["remedy"]) == (20, None)
    triage["environment"]["services"]["imap"] = unavailable()
    triage["environment"]["discovery"]["imap"] = unavailable()
    found = judged(triage, table, options)["imap.unresolvable"]
    assert "although imap is running" not in found["summary"]
    assert "could not be read" in found["summary"]
    assert found["remedy"] is None


@pytest.mark.parametrize("key", ["smtp_in", "imap"])
def test_a_fresh_map_that_lacks_rows_is_not_called_unread(
    key: str, triage: Triage, table: list[Any], options: Triage
) -> None:
    {"smtp_in": smtp_in_stale, "imap": imap_stale}[key](triage)
    triage["address_map"]["stale_tasks"] = {}
    for row in triage["address_map"]["tasks"]:
        row.update(stale=False, age_seconds=300)
    found = judged(triage, table, options)[f"{key}.stale_map"]
    told = found["confidence_reason"] + found["found"] + " ".join(row["text"] for row in found["next_actions"])
    assert "fresh by its age" in told
    assert "could not be read" not in told
    assert "maps not read" not in told
    assert "Restart nothing" in found["next_actions"][0]["text"]
    assert not [row for row in found["next_actions"] if "update-service" in (row["command"] or "")]
    assert found["remedy"] is None


def test_an_unreadable_flag_does_not_hide_that_imap_takes_no_mail(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    imap_unreachable(triage)
    triage["environment"]["parameters"] = unavailable()
    found = judged(triage, table, options)["deferred.imap_unreachable"]
    assert found["confidence"] == "medium"


def test_a_note_beside_the_incident_does_not_explain_it(triage: Triage, table: list[Any], options: Triage) -> None:
    external(triage, "google", "protocol_error", 14)
    triage["tiers"]["peak"]["lines"] = 14
    deploying(triage)
    assert judge(triage, table, options)["verdict"]["id"] == "inconclusive"


@pytest.mark.parametrize(("state", "down"), [("running", 0), ("pending", 0), ("stopping", 1), ("shutting-down", 1)])
def test_a_nat_that_is_going_is_down(state: str, down: int, triage: Triage, options: Triage) -> None:
    triage["environment"]["network"]["nat_instances"] = [{"id": "i-1", "state": state}]
    assert len(build_signals(triage, options)["network"]["nat_down"]) == down


@pytest.mark.parametrize(("last", "silent"), [("2026-11-24T21:30:00Z", False), ("2026-11-24T21:29:59Z", True)])
def test_eighteen_minutes_are_not_more_than_eighteen(last: str, silent: bool, triage: Triage, options: Triage) -> None:
    for log in triage["tiers"]["by_tier"].values():
        log["coverage"]["last_event"] = last
    assert build_signals(triage, {**options, "silent_minutes": 18})["network"]["silent"] is silent


@pytest.mark.parametrize(("peak", "over"), [(15, False), (16, True)])
def test_fifteen_lines_are_not_over_the_threshold(peak: int, over: bool, triage: Triage, options: Triage) -> None:
    triage["tiers"]["peak"]["lines"] = peak
    assert build_signals(triage, options)["bounces"]["over_threshold"] is over


@pytest.mark.parametrize(("recipients", "stands"), [(4, False), (5, True)])
def test_a_few_messages_refused_for_their_content_are_no_finding(
    recipients: int, stands: bool, triage: Triage, table: list[Any], options: Triage
) -> None:
    external(triage, "google", "content", recipients)
    assert ("smtp_out.content" in judged(triage, table, options)) is stands


def test_a_provider_that_takes_most_of_our_mail_is_a_warning(triage: Triage, table: list[Any], options: Triage) -> None:
    external(triage, "google", "blocklist", 20, sent=81)
    assert judged(triage, table, options)["smtp_out.provider_block"]["severity"] == "warning"
    external(triage, "microsoft", "blocklist", 60, sent=60)
    assert judged(triage, table, options)["smtp_out.provider_block"]["severity"] == "critical"


def test_imap_out_of_dns_is_critical_until_it_is_registered_again(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    unresolvable(triage)
    assert judged(triage, table, options)["imap.unresolvable"]["severity"] == "critical"
    triage["environment"]["discovery"]["imap"]["instances"] = ["10.0.2.45"]
    assert judged(triage, table, options)["imap.unresolvable"]["severity"] == "warning"
    triage["environment"]["discovery"]["imap"] = unavailable()
    assert judged(triage, table, options)["imap.unresolvable"]["severity"] == "critical"


def test_without_maps_a_stuck_smtp_in_is_accused_only_where_imaps_loop_is_proven_healthy(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    refused_at_imap(triage, "5.3.0", "reject_553")
    loop_state("dead")(triage)
    triage["address_map"] = unavailable()
    assert "smtp_in.stale_map" in judged(triage, table, options)
    for row in triage["reconfigure_loop"]["tasks"]:
        if row["tier"] == "imap":
            row["state"] = "unknown"
    assert build_signals(triage, options)["loops"]["healthy_tiers"] == ["smtp-out"]
    assert "smtp_in.stale_map" not in judged(triage, table, options)


def test_refusals_that_only_one_side_could_log_are_not_zero(triage: Triage, options: Triage) -> None:
    for log in triage["tiers"]["by_tier"].values():
        log["coverage"] = unavailable()
    assert build_signals(triage, options)["own"]["tempfail"] is None
    refused_at_imap(triage, "5.3.0", "reject_553")
    triage["tiers"]["by_tier"]["smtp-in"]["coverage"] = {"status": "complete", "reasons": []}
    assert build_signals(triage, options)["own"]["tempfail"] == 20


def test_one_condition_that_fails_settles_it_whatever_else_is_unknown(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    """An incident elsewhere must not fill the list of what was not judged."""
    smtp_in_stale(triage)
    triage["containers"] = {**unavailable(), "tasks": [], "unreachable": []}
    skipped = [entry["id"] for entry in judge(triage, table, options)["not_judged"]]
    # Not all tiers are silent: whether tasks answer does not matter.
    assert "network.egress_down" not in skipped


def test_the_stuck_task_is_the_one_that_is_named(triage: Triage, table: list[Any], options: Triage) -> None:
    smtp_in_stale(triage)
    assert SMTP_IN in judged(triage, table, options)["smtp_in.stale_map"]["reproduce"][0]


def test_a_missing_ping_address_is_a_fault_only_where_somebody_pages_about_it(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    triage["reconfigure_loop"]["heartbeat"].update(exists=False)
    assert "heartbeat.missing" not in judged(triage, table, options)
    triage["alert"].update(name="heartbeat-ecs-reconfigure")
    found = judged(triage, table, options)
    assert "heartbeat.missing" in found
    assert "none.loops_healthy" not in found
    triage["reconfigure_loop"]["heartbeat"].update(exists=None)
    assert "heartbeat.missing" not in judged(triage, table, options)


def test_errors_of_a_task_that_has_gone_accuse_nobody(triage: Triage, options: Triage) -> None:
    triage["reconfigure_loop"]["sync_users_errors"] = [{"tier": "imap", "task": "9" * 32, "lines": 2}]
    assert build_signals(triage, options)["loops"]["sync_users"] == []


@pytest.mark.parametrize(
    ("loop", "breaking", "stands"),
    [
        ("healthy", 0, True),
        ("no_ping", 1, True),
        ("unknown", 0, True),
        # A map that its loop no longer builds gives the same answer, and so does a row that stops makemap.
        ("unknown", 1, False),
        ("failing", 0, False),
        ("hung", 0, False),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_a_user_is_not_called_missing_where_imaps_map_may_lack_the_address(
    loop: str, breaking: int, stands: bool, listed: bool, triage: Triage, table: list[Any], options: Triage
) -> None:
    refused_at_imap(triage, "5.1.1", "user_unknown")
    suspected = [{"user": "bob", "recipients": 1, "confirmed": None}]
    by_log = {"status": "partial", "reasons": [], "missing_users": suspected}
    triage["local_delivery"] = by_log if listed else unavailable()
    triage["address_map"]["bad_rows"] = {"count": breaking, "kinds": {"duplicate_key": breaking}, "examples": []}
    for row in triage["reconfigure_loop"]["tasks"]:
        if row["tier"] == "imap":
            row["state"] = loop
    assert ("imap.missing_user" in judged(triage, table, options)) is stands


def test_a_user_who_is_proven_to_be_missing_stands_beside_a_stuck_loop(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    refused_at_imap(triage, "5.1.1", "user_unknown")
    triage["local_delivery"]["missing_users"] = [{"user": "bob", "recipients": 20, "confirmed": True}]
    for row in triage["reconfigure_loop"]["tasks"]:
        row["state"] = "failing"
    assert {"imap.missing_user", "reconfigure.failing"} <= set(judged(triage, table, options))


@pytest.mark.parametrize(
    ("until", "planned", "failed"),
    [("2026-11-24T21:48:01Z", True, False), ("2026-11-24T21:48:00Z", False, True), (None, None, None)],
)
def test_a_roll_is_planned_up_to_its_end(
    until: str | None, planned: bool | None, failed: bool | None, triage: Triage, table: list[Any], options: Triage
) -> None:
    triage["environment"]["parameters"]["maintenance_imap"] = {"exists": True, "active": True, "until": until}
    triage["environment"]["services"]["imap"]["running"] = 0
    found = judged(triage, table, options)
    assert ("imap.planned_roll" in found) is bool(planned)
    assert ("imap.failed_deployment" in found) is bool(failed)
    # Nobody is told of an outage that was planned; where its end is not known, it is told.
    assert ("imap.not_running" in found) is (not planned)
