# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each row of the shipped table: when it says "bad", and what it does when its evidence is missing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.cabalmail.verdict import TableError, check_table, judge, resolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import complete

Triage = dict[str, Any]
SMTP_IN, IMAP = "b" * 32, "a" * 32


def unavailable(reason: str = "Access was denied.") -> dict[str, Any]:
    return {"status": "unavailable", "reasons": [reason]}


def external(triage: Triage, provider: str, reason: str, recipients: int, sent: int = 50) -> None:
    """smtp-out bounces at one provider."""
    log = triage["tiers"]["by_tier"]["smtp-out"]
    log["bounces"]["recipients"] += recipients
    log["bounces"]["lines"] += recipients
    log["bounces"]["ongoing_lines_last_10m"] = 5
    log["bounces"]["reasons"].append({"reason": reason, "fault": "us", "recipients": recipients})
    log["bounces"]["providers"].append(
        {
            "provider": provider,
            "recipients": recipients,
            "attempts": recipients + sent,
            "sent": sent,
            "share_of_attempts": 0.3,
            "reasons": {reason: recipients},
        }
    )
    log["bounces"]["domains"].append({"domain": f"{provider}.example", "recipients": recipients})
    triage["tiers"]["peak"]["lines"] += recipients


def provider_block(triage: Triage) -> None:
    external(triage, "microsoft", "blocklist", 20, sent=0)


def reputation(triage: Triage) -> None:
    for provider in ("google", "microsoft", "yahoo", "gmx", "apple"):
        external(triage, provider, "reputation", 5)


def authentication(triage: Triage) -> None:
    external(triage, "google", "authentication", 20)


def broken_record(kind: str) -> Callable[[Triage], None]:
    def change(triage: Triage) -> None:
        external(triage, "google", "authentication", 20)
        log = triage["tiers"]["by_tier"]["smtp-out"]["bounces"]
        log["sender_domains"] = [{"domain": "s.example.com", "recipients": 20, "reasons": {"authentication": 20}}]
        publish = {"name": "s.example.com", "type": "TXT", "value": "v=spf1 include:control.example ~all"}
        triage["deliverability"]["domains"].append(
            {"domain": "s.example.com", kind: {"status": "missing", "problem": "it has none", "publish": publish}}
        )

    return change


def unsigned(triage: Triage) -> None:
    external(triage, "google", "authentication", 20)
    triage["deliverability"]["opendkim"]["running"] = {"c" * 32: False}


def blocklisted(triage: Triage) -> None:
    reputation(triage)
    listing(triage, "high")


def minor_listing(triage: Triage) -> None:
    reputation(triage)
    listing(triage, "low")


def listing(triage: Triage, weight: str) -> None:
    lists = triage["deliverability"]["blocklists"]
    lists["lists"] = [
        {
            "name": "Some",
            "zone": "bl.example",
            "weight": weight,
            "delist": "https://bl.example/remove",
            "meaning": "spam",
            "status": "usable",
        }
    ]
    lists["results"] = [
        {
            "target": "198.51.100.125",
            "kind": "ip",
            "list": "Some",
            "zone": "bl.example",
            "status": "listed",
            "meanings": ["spam"],
            "says": None,
        }
    ]


def reverse_dns(triage: Triage) -> None:
    external(triage, "google", "reverse_dns", 20)


def sender_rejected(triage: Triage) -> None:
    external(triage, "google", "sender_rejected", 20)


def tls_required(triage: Triage) -> None:
    external(triage, "google", "tls_required", 20)


def bad_recipients(triage: Triage) -> None:
    external(triage, "google", "recipient_unknown", 20)


def content(triage: Triage) -> None:
    external(triage, "google", "content", 20)


def refused_at_imap(triage: Triage, code: str, kind: str, recipients: int = 20) -> None:
    smtp_in, imap = (triage["tiers"]["by_tier"][tier] for tier in ("smtp-in", "imap"))
    smtp_in["bounces"]["own_host"] = {"recipients": recipients, "reasons": {}, "codes": {code: recipients}}
    smtp_in["bounces"]["recipients"] = smtp_in["bounces"]["lines"] = recipients
    imap["unseen"]["recipients"] = imap["unseen"]["kinds"][kind] = recipients
    triage["tiers"]["peak"]["lines"] += recipients


def stale(triage: Triage, tier: str, task: str, state: str) -> None:
    refused_at_imap(triage, "5.3.0", "reject_553")
    maps = triage["address_map"]
    maps["stale_tasks"] = {tier: [task]}
    maps["recipients"] = {
        "status": "complete",
        "reasons": [],
        "checked": 20,
        "by_state": {state: 6},
        "refusals_by_state": {state: 20},
    }
    for row in maps["tasks"]:
        if row["tier"] == tier:
            row.update(stale=True, age_seconds=18000, surplus=3)


def smtp_in_stale(triage: Triage) -> None:
    stale(triage, "smtp-in", SMTP_IN, "stale_smtp_in")


def imap_stale(triage: Triage) -> None:
    stale(triage, "imap", IMAP, "stale_imap")


def revoked(triage: Triage) -> None:
    refused_at_imap(triage, "5.3.0", "reject_553")
    triage["address_map"]["recipients"].update(checked=6, by_state={"revoked": 6}, refusals_by_state={"revoked": 20})


def caught_up(triage: Triage) -> None:
    refused_at_imap(triage, "5.3.0", "reject_553")
    triage["address_map"]["recipients"].update(checked=6, by_state={"in_order": 6}, refusals_by_state={"in_order": 20})


def loop_state(state: str) -> Callable[[Triage], None]:
    def change(triage: Triage) -> None:
        row = next(row for row in triage["reconfigure_loop"]["tasks"] if row["tier"] == "smtp-in")
        row.update(state=state, since="2026-11-24T16:00:00Z", why="seen", exit_status={"failing": 65}.get(state))

    return change


def missing_user(triage: Triage) -> None:
    refused_at_imap(triage, "5.1.1", "user_unknown")
    triage["local_delivery"]["missing_users"] = [{"user": "bob", "recipients": 20, "confirmed": True}]


def unwritable(triage: Triage) -> None:
    triage["local_delivery"]["unwritable"] = [{"user": "bob", "path": "/home/bob/Maildir", "problem": "owned by 0"}]


def unresolvable(triage: Triage) -> None:
    log = triage["tiers"]["by_tier"]["smtp-in"]
    log["bounces"]["own_host"] = {"recipients": 20, "reasons": {}, "codes": {"5.1.2": 20}}
    log["bounces"]["recipients"] = log["bounces"]["lines"] = 20
    triage["environment"]["discovery"]["imap"]["instances"] = []
    triage["tiers"]["peak"]["lines"] = 20


def nat_down(triage: Triage) -> None:
    triage["environment"]["network"]["nat_instances"].append({"id": "i-2", "state": "stopped"})


def imap_not_running(triage: Triage) -> None:
    triage["environment"]["services"]["imap"]["running"] = 0


def egress_down(triage: Triage) -> None:
    for log in triage["tiers"]["by_tier"].values():
        log["coverage"]["last_event"] = "2026-11-24T21:10:00Z"
    triage["containers"].update(status="unavailable", reasons=["none answered"], tasks=[], unreachable=[{"task": IMAP}])
    triage["environment"]["network"]["nat_instances"] = [{"id": "i-1", "state": "stopped"}]


def blind(triage: Triage) -> None:
    triage["tiers"]["by_tier"]["smtp-in"]["coverage"].update(blind=None)
    for row in triage["containers"]["tasks"]:
        row["log_level"] = 2 if row["tier"] == "smtp-in" else 9


def denied_group(triage: Triage) -> None:
    triage["tiers"]["by_tier"]["imap"]["coverage"] = unavailable()


def nothing_seen(triage: Triage) -> None:
    triage["tiers"] = {**unavailable("AWS did not answer."), "by_tier": {}}


def quiesced(triage: Triage) -> None:
    for row in triage["environment"]["services"].values():
        row.update(desired=0, running=0)


def deploying(triage: Triage) -> None:
    triage["environment"]["services"]["smtp-in"]["deployments"][0]["rollout_state"] = "IN_PROGRESS"


def maintenance(until: str) -> Callable[[Triage], None]:
    def change(triage: Triage) -> None:
        triage["environment"]["parameters"]["maintenance_imap"] = {"exists": True, "active": True, "until": until}

    return change


def disk_full(triage: Triage) -> None:
    triage["local_delivery"]["disk_full"] = [{"tier": "imap", "path": "/home", "used_percent": 100}]


def stray_mail(triage: Triage) -> None:
    row = {"task": IMAP, "user": "bob", "bytes": 14, "newest": "2026-11-24T20:00:00Z"}
    triage["local_delivery"]["stray_mail"] = [row]


def bad_row(triage: Triage) -> None:
    examples = [{"address": "s***~1@s.example.com", "problem": "duplicate_key"}]
    triage["address_map"]["bad_rows"] = {"count": 1, "kinds": {"duplicate_key": 1}, "examples": examples}
    triage["environment"]["addresses"] = complete(rows=3, odd_rows=[{"address": "s***", "problem": "duplicate"}])


def lag(triage: Triage) -> None:
    refused_at_imap(triage, "5.3.0", "reject_553")
    triage["address_map"]["recipients"].update(checked=2, by_state={"lag": 2}, refusals_by_state={"lag": 20})


def disagreement(triage: Triage) -> None:
    row = triage["reconfigure_loop"]["tasks"][0]
    row["disagreement"] = "the container says hung (maps 5 h old), its log healthy (last completed pass 200 s ago)"


def backlog(triage: Triage) -> None:
    queue = {"visible": 40, "not_visible": 0, "oldest_seconds": 1800, "signal": "backing_up"}
    triage["reconfigure_loop"]["queues"] = {"smtp-in": queue}


def rotated(triage: Triage) -> None:
    old = [{"tier": tier, "task": triage["reconfigure_loop"]["tasks"][0]["task"]} for tier in ("imap", "smtp-out")]
    triage["reconfigure_loop"]["heartbeat"].update(exists=True, tasks_with_old_value=old)


def about_the_heartbeat(triage: Triage) -> None:
    """The run is about the loops alone."""
    triage["alert"].update(name="heartbeat-ecs-reconfigure")


def ping_address_gone(triage: Triage) -> None:
    about_the_heartbeat(triage)
    triage["reconfigure_loop"]["heartbeat"].update(exists=False)


def users_not_read(triage: Triage) -> None:
    triage["reconfigure_loop"]["sync_users_errors"] = [{"tier": "imap", "task": IMAP, "lines": 2}]


def local_errors(triage: Triage) -> None:
    log = triage["tiers"]["by_tier"]["imap"]
    log["bounces"]["reasons"] = [{"reason": "local_error", "fault": "us", "recipients": 8}]
    log["bounces"].update(recipients=8, lines=8)
    triage["local_delivery"]["procmail_errors"] = [{"text": "Unknown mailer error 73", "recipients": 8}]


def unseen(triage: Triage) -> None:
    blind(triage)
    refused_at_imap(triage, "5.3.0", "reject_553", 9)
    triage["tiers"]["by_tier"]["smtp-in"]["bounces"].update(recipients=0, lines=0, own_host={})


def unexplained(triage: Triage) -> None:
    external(triage, "google", "other", 20)


def ended(triage: Triage) -> None:
    for provider in range(20):
        external(triage, f"p{provider}", "recipient_unknown" if provider < 4 else "remote_error", 1)
    triage["tiers"]["by_tier"]["smtp-out"]["bounces"]["ongoing_lines_last_10m"] = 0


def asked_for_deferrals(triage: Triage) -> None:
    """The run is about the other alert."""
    triage["alert"].update(
        name="SendmailDeferredSpike",
        threshold={"pattern": "stat=Deferred", "lines": 10, "minutes": 10, "hold_minutes": 15},
    )


def waiting(triage: Triage, provider: str, reason: str, recipients: int, domains: int = 1, words: str = "") -> None:
    """Recipients whose mail smtp-out could not hand over yet."""
    asked_for_deferrals(triage)
    part = triage["tiers"]["by_tier"]["smtp-out"]["deferrals"]
    part["recipients"] += recipients
    part["lines"] += recipients
    part["providers"].append(
        {"provider": provider, "lines": recipients, "recipients": recipients, "reasons": {reason: recipients}}
    )
    part["reasons"].append({"reason": reason, "fault": "remote", "recipients": recipients, "domains": domains})
    part["replies"].append({"text": words or f"450 {reason}", "reason": reason, "recipients": recipients})
    triage["tiers"]["peak"]["lines"] += recipients


def delivered_elsewhere(triage: Triage, sent: int = 40) -> None:
    rows = triage["tiers"]["by_tier"]["smtp-out"]["bounces"]["providers"]
    rows.append({"provider": "gmx", "recipients": 0, "attempts": sent, "sent": sent, "reasons": {}})


def greylisting(triage: Triage) -> None:
    waiting(triage, "web.example", "greylisted", 20)


def rate_limited(triage: Triage) -> None:
    waiting(triage, "yahoo", "rate_limited", 20)


def dns_broken(triage: Triage) -> None:
    waiting(triage, "x.example", "dns_failure", 20, domains=9)


def remote_broken(triage: Triage) -> None:
    waiting(triage, "x.example", "remote_error", 20)
    delivered_elsewhere(triage)


def imap_unreachable(triage: Triage) -> None:
    asked_for_deferrals(triage)
    part = triage["tiers"]["by_tier"]["smtp-in"]["deferrals"]
    part.update(recipients=20, lines=20, own_host={"recipients": 20, "lines": 20, "reasons": {"network": 20}})
    part["reasons"].append({"reason": "network", "fault": "us", "recipients": 20, "domains": 0})
    triage["tiers"]["peak"]["lines"] = 20
    triage["environment"]["services"]["imap"]["running"] = 0


def milter_down(triage: Triage) -> None:
    triage["tiers"]["by_tier"]["smtp-in"]["rejects"] = [
        {"reason": "local_error", "code": "none", "text": "Milter (opendkim): to error state", "lines": 12}
    ]
    for row in triage["containers"]["tasks"]:
        if row["tier"] == "smtp-in":
            row["opendkim_running"] = False


def deep_queue(triage: Triage) -> None:
    for row in triage["containers"]["tasks"]:
        if row["tier"] == "smtp-out":
            reasons = [{"text": "host name lookup failure", "count": 200}]
            row["queue"] = {"messages": 240, "complete": True, "oldest": "2026-11-24T20:00:00Z", "reasons": reasons}


BAD: dict[str, Callable[[Triage], None]] = {
    "smtp_out.provider_block": provider_block,
    "smtp_out.reputation": reputation,
    "smtp_out.authentication": authentication,
    "smtp_out.spf": broken_record("spf"),
    "smtp_out.dkim": broken_record("dkim"),
    "smtp_out.dmarc": broken_record("dmarc"),
    "smtp_out.unsigned": unsigned,
    "smtp_out.blocklisted": blocklisted,
    "smtp_out.minor_listing": minor_listing,
    "smtp_out.reverse_dns": reverse_dns,
    "smtp_out.sender_rejected": sender_rejected,
    "smtp_out.tls_required": tls_required,
    "smtp_out.bad_recipients": bad_recipients,
    "smtp_out.content": content,
    "smtp_in.stale_map": smtp_in_stale,
    "imap.stale_map": imap_stale,
    "address_map.caught_up": caught_up,
    "smtp_in.revoked_addresses": revoked,
    "reconfigure.dead": loop_state("dead"),
    "reconfigure.hung": loop_state("hung"),
    "reconfigure.failing": loop_state("failing"),
    "reconfigure.starved": loop_state("starved"),
    "reconfigure.no_ping": loop_state("no_ping"),
    "reconfigure.bad_row": bad_row,
    "reconfigure.lag": lag,
    "reconfigure.disagreement": disagreement,
    "reconfigure.backlog": backlog,
    "heartbeat.rotated": rotated,
    "heartbeat.missing": ping_address_gone,
    "imap.local_errors": local_errors,
    "imap.users_not_read": users_not_read,
    "imap.stray_mail": stray_mail,
    "imap.missing_user": missing_user,
    "imap.maildir_unwritable": unwritable,
    "imap.disk_full": disk_full,
    "imap.unresolvable": unresolvable,
    "imap.planned_roll": maintenance("2026-11-24T22:10:00Z"),
    "imap.failed_deployment": maintenance("2026-11-24T20:10:00Z"),
    "network.nat_down": nat_down,
    "imap.not_running": imap_not_running,
    "network.egress_down": egress_down,
    "coverage.blind_tier": blind,
    "coverage.unavailable": denied_group,
    "coverage.nothing_seen": nothing_seen,
    "deferred.greylisting": greylisting,
    "deferred.rate_limited": rate_limited,
    "deferred.dns": dns_broken,
    "deferred.imap_unreachable": imap_unreachable,
    "deferred.milter_down": milter_down,
    "deferred.remote": remote_broken,
    "queue.backing_up": deep_queue,
    "environment.quiesced": quiesced,
    "environment.deployment_in_progress": deploying,
    "alert.cannot_see": unseen,
    "inconclusive": unexplained,
    "none.ended": ended,
    "none.loops_healthy": about_the_heartbeat,
    "none.below_threshold": lambda triage: None,
}
#: What takes away the evidence of a finding that otherwise holds.
TIERS = ("tiers",)
TAKEN: dict[str, tuple[str, ...]] = {
    "smtp_out.provider_block": TIERS,
    "smtp_out.reputation": TIERS,
    "smtp_out.authentication": TIERS,
    "smtp_out.spf": ("deliverability",),
    "smtp_out.dkim": ("deliverability",),
    "smtp_out.dmarc": ("deliverability",),
    "smtp_out.unsigned": ("deliverability",),
    "smtp_out.blocklisted": ("deliverability",),
    "smtp_out.minor_listing": ("deliverability",),
    "smtp_out.reverse_dns": TIERS,
    "smtp_out.sender_rejected": TIERS,
    "smtp_out.tls_required": TIERS,
    "smtp_out.bad_recipients": TIERS,
    "smtp_out.content": TIERS,
    "smtp_in.stale_map": ("address_map",),
    "imap.stale_map": ("address_map",),
    "address_map.caught_up": ("address_map",),
    "smtp_in.revoked_addresses": ("address_map",),
    "reconfigure.dead": ("reconfigure_loop",),
    "reconfigure.hung": ("reconfigure_loop",),
    "reconfigure.failing": ("reconfigure_loop",),
    "reconfigure.starved": ("reconfigure_loop",),
    "reconfigure.no_ping": ("reconfigure_loop",),
    "reconfigure.bad_row": ("address_map",),
    "reconfigure.lag": ("address_map",),
    "reconfigure.disagreement": ("reconfigure_loop",),
    "reconfigure.backlog": ("reconfigure_loop",),
    "heartbeat.rotated": ("reconfigure_loop",),
    "heartbeat.missing": ("reconfigure_loop",),
    "imap.local_errors": TIERS,
    "imap.users_not_read": ("reconfigure_loop",),
    "imap.stray_mail": ("local_delivery",),
    "imap.planned_roll": ("environment",),
    "imap.failed_deployment": ("environment",),
    "imap.missing_user": ("local_delivery", "address_map", "tiers"),
    "imap.maildir_unwritable": ("local_delivery",),
    "imap.disk_full": ("local_delivery",),
    "network.nat_down": ("environment",),
    "imap.not_running": ("environment",),
    "network.egress_down": ("tiers",),
    "deferred.greylisting": TIERS,
    "deferred.rate_limited": TIERS,
    "deferred.dns": TIERS,
    "deferred.imap_unreachable": TIERS,
    "deferred.milter_down": ("containers", "tiers"),
    "deferred.remote": TIERS,
    "queue.backing_up": ("containers",),
    "environment.quiesced": ("environment",),
    "environment.deployment_in_progress": ("environment",),
}


@pytest.mark.parametrize("identity", BAD)
def test_each_row_says_bad(identity: str, triage: Triage, table: list[Any], options: Triage) -> None:
    BAD[identity](triage)
    result = judge(triage, table, options)
    finding = next((f for f in result["findings"] if f["id"] == identity), None)
    assert finding, [f["id"] for f in result["findings"]]
    assert finding["next_actions"]
    assert finding["confidence_reason"]
    assert all(resolve(pointer, triage) is not None for pointer in finding["evidence"])
    assert "{" not in finding["summary"] + finding["found"]


def test_no_row_fires_on_a_healthy_deployment(triage: Triage, table: list[Any], options: Triage) -> None:
    assert [f["id"] for f in judge(triage, table, options)["findings"]] == ["none.below_threshold"]


def test_the_control_domains_record_is_told_once_for_all_that_refer_to_it(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    external(triage, "google", "authentication", 20)
    bad = {"status": "fail", "problem": "it does not cover 198.51.100.125", "differs": None}
    rows = triage["deliverability"]["domains"]
    rows += [{"domain": name, "spf": bad} for name in ("control.example", "a.example.com", "b.example.com")]
    rows.append({"domain": "c.example.com", "spf": {**bad, "differs": "the SPF record is another"}})
    found = {f["key"]: f for f in judge(triage, table, options)["findings"] if f["id"] == "smtp_out.spf"}
    assert set(found) == {"control.example", "c.example.com"}
    assert "2 domains that include it" in found["control.example"]["summary"]
    assert found["control.example"]["recipients"] == 20


def test_what_a_record_explains_is_not_told_twice(triage: Triage, table: list[Any], options: Triage) -> None:
    broken_record("dkim")(triage)
    ids = [f["id"] for f in judge(triage, table, options)["findings"]]
    assert ids == ["smtp_out.dkim"]


def test_a_record_without_refusals_is_a_warning_with_what_to_publish(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    broken_record("spf")(triage)
    log = triage["tiers"]["by_tier"]["smtp-out"]["bounces"]
    log["sender_domains"] = [{"domain": "other.example.com", "recipients": 20, "reasons": {"authentication": 20}}]
    findings = {f["id"]: f for f in judge(triage, table, options)["findings"]}
    spf = findings["smtp_out.spf"]
    assert (spf["severity"], spf["recipients"]) == ("warning", 0)
    assert 's.example.com TXT "v=spf1 include:control.example ~all"' in spf["next_actions"][0]["text"]
    assert findings["smtp_out.authentication"]["recipients"] == 20


def test_a_refused_sender_without_mx_is_told_what_to_publish(triage: Triage, table: list[Any], options: Triage) -> None:
    external(triage, "google", "sender_rejected", 20)
    publish = {"name": "s.example.com", "type": "MX", "value": "10 smtp-in.control.example"}
    mx = {"status": "missing", "problem": "s.example.com has no MX record", "publish": publish}
    triage["deliverability"]["domains"].append({"domain": "s.example.com", "mx": mx})
    verdict = judge(triage, table, options)["verdict"]
    assert 's.example.com MX "10 smtp-in.control.example"' in verdict["next_actions"][0]["text"]


def test_a_key_that_the_tier_does_not_sign_with_is_broken(triage: Triage, table: list[Any], options: Triage) -> None:
    check = {"status": "ok", "key_sha256": "aa", "name": "cabal._domainkey.s.example.com"}
    row: dict[str, Any] = {"domain": "s.example.com", "dkim": {**check, "matches_tier": False}}
    triage["deliverability"]["domains"].append(row)
    assert "smtp_out.dkim" in [f["id"] for f in judge(triage, table, options)["findings"]]
    row["dkim"]["matches_tier"] = True
    assert "smtp_out.dkim" not in [f["id"] for f in judge(triage, table, options)["findings"]]


def test_records_that_nobody_could_look_up_are_not_judged(triage: Triage, table: list[Any], options: Triage) -> None:
    silent = {"status": "unavailable", "problem": "no answer"}
    triage["deliverability"]["domains"].append(
        {"domain": "s.example.com", "spf": silent, "dkim": silent, "dmarc": silent}
    )
    triage["deliverability"]["addresses"][0]["status"] = "unavailable"
    lacking = {entry["id"] for entry in judge(triage, table, options)["not_judged"]}
    assert {"smtp_out.spf", "smtp_out.dkim", "smtp_out.dmarc", "smtp_out.reverse_dns"} <= lacking


def test_a_signature_that_does_not_align(triage: Triage, table: list[Any], options: Triage) -> None:
    external(triage, "google", "authentication", 20)
    log = triage["tiers"]["by_tier"]["smtp-out"]["bounces"]
    log["sender_domains"] = [{"domain": "s.example.com", "recipients": 20, "reasons": {"authentication": 20}}]
    triage["deliverability"]["opendkim"]["foreign"] = [{"sender_domain": "s.example.com", "signed_by": "x.example"}]
    triage["deliverability"]["domains"].append(
        {"domain": "s.example.com", "dmarc": {"status": "ok", "policy": "reject"}}
    )
    verdict = judge(triage, table, options)["verdict"]
    assert (verdict["id"], verdict["recipients"], verdict["confidence"]) == ("smtp_out.dmarc", 20, "high")
    assert "the policy is reject" in verdict["summary"]


def test_reports_alone_are_a_warning_and_strangers_are_none(triage: Triage, table: list[Any], options: Triage) -> None:
    part = triage["deliverability"]["dmarc"]
    part.update(ours={"messages": 40, "fail": 1}, strangers={"messages": 900, "fail": 900})
    assert "smtp_out.dmarc" not in [f["id"] for f in judge(triage, table, options)["findings"]]
    part.update(ours={"messages": 40, "fail": 39}, domains=[{"domain": "s.example.com", "ours": {"fail": 39}}])
    finding = next(f for f in judge(triage, table, options)["findings"] if f["id"] == "smtp_out.dmarc")
    assert (finding["severity"], finding["key"]) == ("warning", "s.example.com")


def test_a_listing_of_one_address_names_it_its_zone_and_its_page(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    blocklisted(triage)
    verdict = judge(triage, table, options)["verdict"]
    assert (verdict["id"], verdict["key"], verdict["severity"]) == (
        "smtp_out.blocklisted",
        "198.51.100.125",
        "critical",
    )
    assert "us-east-1a" in verdict["summary"]
    assert "https://bl.example/remove" in verdict["next_actions"][1]["text"]
    assert "rotate" in verdict["next_actions"][2]["text"]


@pytest.mark.parametrize(("refused", "severity"), [(25, "critical"), (0, "warning")])
def test_a_listing_explains_only_what_left_by_that_address(
    refused: int, severity: str, triage: Triage, table: list[Any], options: Triage
) -> None:
    blocklisted(triage)
    (row,) = triage["deliverability"]["addresses"]
    triage["deliverability"]["addresses"] = [
        {**row, "bounced": {"reputation": refused}},
        {"ip": "198.51.100.126", "zone": "us-east-1b", "status": "ok", "bounced": {"reputation": 25 - refused}},
    ]
    found = {f["id"]: f for f in judge(triage, table, options)["findings"]}
    listed = found["smtp_out.blocklisted"]
    assert (listed["severity"], listed["recipients"]) == (severity, refused)
    assert ("smtp_out.reputation" in found) is (refused == 0)


def test_a_listing_that_no_receiver_acts_on_is_a_warning(triage: Triage, table: list[Any], options: Triage) -> None:
    listing(triage, "high")
    (finding,) = [f for f in judge(triage, table, options)["findings"] if f["id"] == "smtp_out.blocklisted"]
    assert (finding["severity"], finding["confidence"]) == ("warning", "medium")


def test_one_providers_block_is_not_explained_by_a_listing(triage: Triage, table: list[Any], options: Triage) -> None:
    provider_block(triage)
    listing(triage, "high")
    ids = [f["id"] for f in judge(triage, table, options)["findings"]]
    assert ids[:2] == ["smtp_out.provider_block", "smtp_out.blocklisted"]


def test_dead_recipients_of_one_sender_are_that_senders_list(triage: Triage, table: list[Any], options: Triage) -> None:
    bad_recipients(triage)
    log = triage["tiers"]["by_tier"]["smtp-out"]["bounces"]
    log["senders"] = [{"sender": "l***~8e9e84@s.example.com", "recipients": 20, "reasons": {"recipient_unknown": 20}}]
    assert "one sender (l***~8e9e84@s.example.com)" in judge(triage, table, options)["verdict"]["summary"]


@pytest.mark.parametrize("identity", TAKEN)
def test_missing_evidence_is_unknown_and_never_health(
    identity: str, triage: Triage, table: list[Any], options: Triage
) -> None:
    BAD[identity](triage)
    for name in TAKEN[identity]:
        triage[name] = {**unavailable(), "by_tier": {}} if name == "tiers" else unavailable()
    result = judge(triage, table, options)
    ids = [f["id"] for f in result["findings"]]
    assert identity not in ids
    assert identity in [entry["id"] for entry in result["not_judged"]]
    assert not [f for f in result["findings"] if f["id"] == "none.below_threshold" and f["confidence"] == "high"]


def test_every_row_of_the_table_has_its_case(table: list[Any]) -> None:
    assert {row["id"] for row in table} == set(BAD)


def test_without_the_maps_the_log_alone_gives_less_confidence_and_no_remedy(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    smtp_in_stale(triage)
    loop_state("hung")(triage)
    verdict = judge(triage, table, options)["verdict"]
    assert (verdict["confidence"], verdict["remedy"]["kind"]) == ("high", "restart_loop")
    for name in ("address_map", "containers"):
        triage[name] = unavailable("ECS Exec is not permitted.")
    triage["reconfigure_loop"]["tasks"][1]["sources"] = ["logs"]
    judged = {f["id"]: f for f in judge(triage, table, options)["findings"]}
    for identity in ("smtp_in.stale_map", "reconfigure.hung"):
        assert (judged[identity]["confidence"], judged[identity]["remedy"]) == ("medium", None)


def test_a_tier_that_nobody_can_vouch_for_is_no_proof_of_health(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    triage["tiers"]["by_tier"]["smtp-in"]["coverage"].update(blind=None)
    ids = [f["id"] for f in judge(triage, table, options)["findings"]]
    assert ids == ["inconclusive"]


def test_the_larger_cause_comes_first(triage: Triage, table: list[Any], options: Triage) -> None:
    smtp_in_stale(triage)
    external(triage, "microsoft", "blocklist", 30, sent=0)
    ids = [f["id"] for f in judge(triage, table, options)["findings"]]
    assert ids[:2] == ["smtp_out.provider_block", "smtp_in.stale_map"]


def test_everybody_writing_to_one_provider_is_not_called_a_block(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    external(triage, "google", "blocklist", 20, sent=100)
    verdict = judge(triage, table, options)["verdict"]
    assert (verdict["id"], verdict["confidence"]) == ("smtp_out.provider_block", "low")


def test_nobody_else_was_written_to_so_a_block_is_not_certain(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    external(triage, "google", "blocklist", 20, sent=0)
    triage["tiers"]["by_tier"]["smtp-out"]["deliveries"]["sent"] = 0
    assert judge(triage, table, options)["verdict"]["confidence"] == "medium"


def test_one_stuck_task_of_three_is_replaced_alone(triage: Triage, table: list[Any], options: Triage) -> None:
    smtp_in_stale(triage)
    triage["address_map"]["tasks_of_tier"]["smtp-in"] = 3
    remedy = judge(triage, table, options)["verdict"]["remedy"]
    assert remedy == {"kind": "restart_task", "service": "cabal-smtp-in", "tasks": [SMTP_IN]}


def test_the_fingerprint_ignores_time_and_counts(triage: Triage, table: list[Any], options: Triage) -> None:
    provider_block(triage)
    first = judge(triage, table, options)["verdict"]
    row = triage["tiers"]["by_tier"]["smtp-out"]["bounces"]["providers"][0]
    row.update(recipients=27, attempts=27, reasons={"blocklist": 27})
    triage["alert"]["window"]["end"] = "2026-11-24T21:59:00Z"
    again = judge(triage, table, options)["verdict"]
    assert first["fingerprint"] == again["fingerprint"]
    triage["run"]["environment"] = "stage"
    assert judge(triage, table, options)["verdict"]["fingerprint"] != first["fingerprint"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"severity": "fatal"}, "severity fatal"),
        ({"next_actions": []}, "next_actions"),
        ({"confidence": [{"level": "sure", "because": "x"}]}, "confidence of"),
        ({"remedy": {"kind": "reboot"}}, "remedy reboot"),
    ],
)
def test_a_wrong_row_is_refused(change: Triage, words: str, table: list[Any]) -> None:
    with pytest.raises(TableError, match=words):
        check_table([{**table[0], **change}])


def test_a_condition_over_a_name_that_is_not_there_is_named(triage: Triage, table: list[Any], options: Triage) -> None:
    with pytest.raises(TableError, match=r"out\.nonsense"):
        judge(triage, [{**table[0], "all": ["out.nonsense > 1"], "any": None}], options)


def ids(triage: Triage, table: list[Any], options: Triage) -> list[str]:
    return [finding["id"] for finding in judge(triage, table, options)["findings"]]


def test_a_few_deferrals_are_nothing_and_the_words_are_of_the_alert_at_hand(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    waiting(triage, "web.example", "greylisted", 3)
    verdict = judge(triage, table, options)["verdict"]
    assert verdict["id"] == "none.below_threshold"
    assert "3 lines with stat=Deferred in 10 minutes" in verdict["summary"]
    assert verdict["found"] == "3 deferred recipients in the window, peak 3 lines"
    assert verdict["runbook_step"] == "SendmailDeferredSpike, step 1"
    assert "logs deferrals" in verdict["confidence_reason"]


def test_what_is_over_is_told_with_its_beginning(triage: Triage, table: list[Any], options: Triage) -> None:
    ended(triage)
    triage["tiers"]["change"] = {
        "state": "ended",
        "onset": "2026-11-24T21:10:00Z",
        "condition": {"state": "ended", "now": False},
    }
    finding = next(row for row in judge(triage, table, options)["findings"] if row["id"] == "none.ended")
    assert finding["found"] == (
        "peak 20, now none; it began at 2026-11-24T21:10:00Z; the runbook's condition held and has ended"
    )


def test_deferrals_are_no_finding_of_a_triage_about_bounces_unless_they_spike_too(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    alert = copy.deepcopy(triage["alert"])
    greylisting(triage)
    triage["alert"] = alert
    triage["tiers"]["peak"]["lines"] = 0
    assert ids(triage, table, options) == ["none.below_threshold"]
    triage["tiers"]["by_tier"]["smtp-out"]["deferrals"]["peak"] = {"lines": 11}
    assert ids(triage, table, options) == ["deferred.greylisting"]


def test_what_waits_for_imap_is_told_by_the_cause(triage: Triage, table: list[Any], options: Triage) -> None:
    imap_unreachable(triage)
    verdict = judge(triage, table, options)["verdict"]
    assert (verdict["id"], verdict["confidence"], verdict["recipients"]) == ("deferred.imap_unreachable", "high", 20)
    planned = copy.deepcopy(triage)
    maintenance("2026-11-24T22:10:00Z")(planned)
    assert ids(planned, table, options)[0] == "imap.planned_roll"
    assert "deferred.imap_unreachable" not in ids(planned, table, options)
    gone = copy.deepcopy(triage)
    gone["environment"]["services"]["imap"]["running"] = 1
    gone["environment"]["discovery"]["imap"]["instances"] = []
    verdict = judge(gone, table, options)["verdict"]
    assert (verdict["id"], verdict["recipients"]) == ("imap.unresolvable", 20)
    assert verdict["remedy"] == {"kind": "redeploy_service", "service": "cabal-imap", "tasks": []}
    assert "deferred.imap_unreachable" not in ids(gone, table, options)


def test_one_domain_that_can_not_be_looked_up_is_its_own_fault(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    waiting(triage, "x.example", "dns_failure", 20, domains=1)
    delivered_elsewhere(triage)
    found = ids(triage, table, options)
    assert (found[0], "deferred.dns" in found) == ("deferred.remote", False)


def test_every_connection_that_fails_is_our_way_out(triage: Triage, table: list[Any], options: Triage) -> None:
    waiting(triage, "x.example", "network", 20, domains=9)
    assert ids(triage, table, options)[0] == "deferred.dns"
    delivered_elsewhere(triage)
    assert ids(triage, table, options)[0] == "deferred.remote"


def test_bounces_stand_beside_deferrals_and_do_not_explain_them(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    smtp_in_stale(triage)
    waiting(triage, "x.example", "other_unheard_of", 0)
    triage["tiers"]["by_tier"]["smtp-out"]["deferrals"].update(recipients=30, lines=30)
    found = ids(triage, table, options)
    assert found[0] == "smtp_in.stale_map"
    assert "inconclusive" in found


def test_a_tier_that_logs_bounces_and_no_deferrals_is_blind_to_this_alert(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    asked_for_deferrals(triage)
    log = triage["tiers"]["by_tier"]["smtp-out"]
    log["coverage"]["log_level"]["at_least"] = 8
    assert ids(triage, table, options) == ["inconclusive"]
    for row in triage["containers"]["tasks"]:
        row["log_level"] = 8
    findings = {row["id"]: row for row in judge(triage, table, options)["findings"]}
    assert "deferrals can't be counted" in findings["coverage.blind_tier"]["summary"]
    triage["containers"]["tasks"][2]["log_level"] = 9
    assert ids(triage, table, options) == ["none.below_threshold"]


def test_a_low_count_is_never_called_a_false_alarm(triage: Triage, table: list[Any], options: Triage) -> None:
    """Defect 16: the page's number is no count of lines, and bounces that it can't see count as well."""
    external(triage, "google", "recipient_unknown", 3)
    verdict = judge(triage, table, options)["verdict"]
    assert verdict["id"] == "none.below_threshold"
    assert verdict["summary"].startswith("No fault found: at most 3 lines with dsn=5 in 30 minutes")
    assert not any("false" in str(value).lower() for value in verdict.values())
    # As few lines in the metric, and many bounces beside them that carry no dsn= where they are logged.
    unseen(triage)
    assert triage["tiers"]["peak"]["lines"] <= 15
    assert ids(triage, table, options)[0] not in ("none.below_threshold", "none.ended")


def test_test_traffic_is_named_where_it_might_have_caused_the_page(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    """Defect 35: the sinkhole bounces on request."""
    triage["tiers"]["by_tier"]["smtp-out"]["apart"]["metric_lines"] = 40
    verdict = judge(triage, table, options)["verdict"]
    assert verdict["id"] == "none.below_threshold"
    assert verdict["found"].endswith("40 lines more are test traffic to the sinkhole")


def test_a_restart_of_sendmail_by_design_is_no_finding(triage: Triage, table: list[Any], options: Triage) -> None:
    """Defect 35: a second of refused connections every 15 minutes."""
    imap_unreachable(triage)
    triage["environment"]["services"]["imap"]["running"] = 1
    triage["tiers"]["peak"]["lines"] = 4
    part = triage["tiers"]["by_tier"]["smtp-in"]["deferrals"]
    part.update(recipients=4, lines=4, own_host={"recipients": 4, "lines": 4, "reasons": {"network": 4}})
    assert ids(triage, table, options) == ["none.below_threshold"]


def test_silence_of_all_tiers_is_the_way_out_and_nobody_is_told_to_roll_a_tier(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    """Defect 33: all tiers silent at once and exec dead is egress, not health."""
    egress_down(triage)
    verdict = judge(triage, table, options)["verdict"]
    assert (verdict["id"], verdict["remedy"]) == ("network.egress_down", None)
    assert any(action["text"].startswith("Do not roll a tier") for action in verdict["next_actions"])
    assert not any("force-new-deployment" in str(action["command"]) for action in verdict["next_actions"])


def test_three_tasks_of_a_tier_have_one_queue(triage: Triage, table: list[Any], options: Triage) -> None:
    """Defect 28: `mailq` of three tasks of one tier is one queue three times."""
    deep_queue(triage)
    task = next(row for row in triage["containers"]["tasks"] if row["tier"] == "smtp-out")
    cut = {**task["queue"], "messages": 250, "complete": False}
    triage["containers"]["tasks"] += [{**task, "task": "d" * 32}, {**task, "task": "e" * 32, "queue": cut}]
    finding = next(row for row in judge(triage, table, options)["findings"] if row["id"] == "queue.backing_up")
    assert finding["summary"].startswith("240 messages wait in the queue of smtp-out, the oldest since")


SECTIONS = ("tiers", "environment", "containers", "deliverability", "address_map", "reconfigure_loop", "local_delivery")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    gone=st.sets(st.sampled_from(SECTIONS)),
    broken=st.lists(
        st.sampled_from([name for name in BAD if name != "coverage.nothing_seen"]), max_size=4, unique=True
    ),
)
def test_any_mixture_gives_a_verdict_and_never_claims_health_wrongly(
    gone: set[str], broken: list[str], triage: Triage, table: list[Any], options: Triage
) -> None:
    mixed = copy.deepcopy(triage)
    for identity in broken:
        BAD[identity](mixed)
    for name in gone:
        mixed[name] = {**unavailable(), "by_tier": {}} if name == "tiers" else unavailable()
    result = judge(mixed, table, options)
    assert result["verdict"] is not None
    if "tiers" in gone:
        assert "none.below_threshold" not in [f["id"] for f in result["findings"]]
    for finding in result["findings"]:
        if finding["remedy"]:
            assert finding["remedy"]["service"].startswith("cabal-")


def judged(triage: Triage, table: list[Any], options: Triage) -> dict[str, Any]:
    return {finding["id"]: finding for finding in judge(triage, table, options)["findings"]}


def test_lines_that_could_not_be_read_are_no_proof_of_an_end(triage: Triage, table: list[Any], options: Triage) -> None:
    log = triage["tiers"]["by_tier"]["smtp-out"]
    log["coverage"].update(status="partial", unread_lines=40, reasons=["40 of 40 lines could not be read."])
    log["bounces"]["lines"] = triage["tiers"]["peak"]["lines"] = 40
    for recent in (0, 6):
        log["bounces"]["ongoing_lines_last_10m"] = recent
        assert list(judged(triage, table, options)) == ["inconclusive"]


def test_a_spike_that_goes_on_has_not_ended(triage: Triage, table: list[Any], options: Triage) -> None:
    ended(triage)
    triage["tiers"]["by_tier"]["smtp-out"]["bounces"]["ongoing_lines_last_10m"] = 3
    assert "none.ended" not in judged(triage, table, options)


def test_an_ended_block_is_told_more_mildly(triage: Triage, table: list[Any], options: Triage) -> None:
    provider_block(triage)
    assert judged(triage, table, options)["smtp_out.provider_block"]["severity"] == "critical"
    triage["tiers"]["by_tier"]["smtp-out"]["bounces"]["ongoing_lines_last_10m"] = 0
    finding = judged(triage, table, options)["smtp_out.provider_block"]
    assert finding["severity"] == "warning"
    assert "no bounce for the last 10 minutes" in finding["summary"]


def test_a_provider_that_gets_most_mail_and_refuses_like_all_others_is_not_the_cause(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    external(triage, "google", "blocklist", 18, sent=72)
    external(triage, "gmx", "blocklist", 6, sent=24)
    found = judged(triage, table, options)
    assert "smtp_out.provider_block" not in found
    assert "smtp_out.reputation" in found


def test_two_providers_that_refuse_alike_are_reputation(triage: Triage, table: list[Any], options: Triage) -> None:
    for provider in ("google", "microsoft"):
        external(triage, provider, "reputation", 10, sent=0)
    external(triage, "gmx", "recipient_unknown", 1, sent=200)
    assert judge(triage, table, options)["verdict"]["id"] == "smtp_out.reputation"


def test_the_quoted_answer_is_that_providers(triage: Triage, table: list[Any], options: Triage) -> None:
    provider_block(triage)
    triage["tiers"]["by_tier"]["smtp-out"]["bounces"]["replies"] = [
        {"text": "no such user", "provider": "google", "reason": "recipient_unknown", "recipients": 30},
        {"text": "on our block list", "provider": "microsoft", "reason": "blocklist", "recipients": 20},
    ]
    found = judged(triage, table, options)["smtp_out.provider_block"]["found"]
    assert "on our block list" in found
    assert "no such user" not in found


def test_what_imap_refused_and_smtp_in_logged_is_counted_once(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    smtp_in_stale(triage)
    assert "alert.cannot_see" not in judged(triage, table, options)


def test_refusals_of_our_own_imap_are_no_bad_recipients(triage: Triage, table: list[Any], options: Triage) -> None:
    bounces = triage["tiers"]["by_tier"]["smtp-out"]["bounces"]
    bounces["reasons"] = [{"reason": "recipient_unknown", "fault": "recipient", "recipients": 20}]
    bounces["own_host"] = {"recipients": 20, "reasons": {"recipient_unknown": 20}, "codes": {"5.1.1": 20}}
    bounces["recipients"] = 20
    assert "smtp_out.bad_recipients" not in judged(triage, table, options)


@pytest.mark.parametrize(("level", "blind"), [(2, True), (6, True), (7, False), (9, False)])
def test_a_tier_is_blind_below_the_level_that_logs_failures(
    level: int, blind: bool, triage: Triage, table: list[Any], options: Triage
) -> None:
    triage["tiers"]["by_tier"]["smtp-in"]["coverage"]["blind"] = None
    rows = triage["containers"]["tasks"]
    rows.append({"tier": "smtp-in", "task": "d" * 32, "outcome": "completed"})
    for row in rows:
        row["log_level"] = 9
    rows[-1]["log_level"] = level
    assert ("coverage.blind_tier" in judged(triage, table, options)) is blind


def test_one_silent_tier_is_not_the_network(triage: Triage, table: list[Any], options: Triage) -> None:
    egress_down(triage)
    triage["tiers"]["by_tier"]["imap"]["coverage"]["last_event"] = "2026-11-24T21:47:00Z"
    assert "network.egress_down" not in judged(triage, table, options)


def test_a_short_window_proves_no_silence(triage: Triage, table: list[Any], options: Triage) -> None:
    egress_down(triage)
    triage["alert"]["window"]["start"] = "2026-11-24T21:46:00Z"
    result = judge(triage, table, options)
    assert "network.egress_down" not in [finding["id"] for finding in result["findings"]]
    assert "network.egress_down" in [entry["id"] for entry in result["not_judged"]]


def test_one_old_bounce_does_not_call_for_an_outage(triage: Triage, table: list[Any], options: Triage) -> None:
    unresolvable(triage)
    assert judged(triage, table, options)["imap.unresolvable"]["remedy"]["service"] == "cabal-imap"
    triage["environment"]["discovery"]["imap"]["instances"] = ["10.0.2.45"]
    finding = judged(triage, table, options)["imap.unresolvable"]
    assert (finding["severity"], finding["remedy"]) == ("warning", None)
    assert "update-service" not in str(finding["next_actions"])
    triage["tiers"]["by_tier"]["smtp-in"]["bounces"]["own_host"]["codes"] = {"5.1.2": 1}
    assert "imap.unresolvable" not in judged(triage, table, options)


def siblings(triage: Triage, *states: str) -> None:
    """smtp-in with as many tasks as states, all of them with stale maps but the healthy ones."""
    tasks = [str(number) * 32 for number in range(len(states))]
    triage["reconfigure_loop"]["tasks"] = [
        {"tier": "smtp-in", "task": task, "state": state, "why": "seen", "sources": ["exec"]}
        for task, state in zip(tasks, states, strict=True)
    ]
    stuck = [task for task, state in zip(tasks, states, strict=True) if state != "healthy"]
    triage["address_map"].update(stale_tasks={"smtp-in": stuck}, tasks_of_tier={"smtp-in": len(states)})
    triage["address_map"]["tasks"] = [
        {"tier": "smtp-in", "task": task, "stale": task in stuck, "surplus": 3, "age_seconds": 9000} for task in tasks
    ]


@pytest.mark.parametrize(
    ("states", "remedy"),
    [
        (("dead", "hung", "healthy"), "restart_task"),
        (("hung", "hung", "healthy"), "restart_loop"),
        (("dead", "dead"), "redeploy_service"),
        (("dead", "hung"), "redeploy_service"),
    ],
)
def test_the_remedy_reaches_every_stuck_task(
    states: tuple[str, ...], remedy: str, triage: Triage, table: list[Any], options: Triage
) -> None:
    smtp_in_stale(triage)
    siblings(triage, *states)
    finding = judged(triage, table, options)["smtp_in.stale_map"]
    assert finding["remedy"]["kind"] == remedy
    stuck = [str(number) * 32 for number, state in enumerate(states) if state != "healthy"]
    assert finding["remedy"]["tasks"] == stuck
    if "healthy" in states:
        assert all(task in str(finding["next_actions"]) for task in stuck)


def test_one_dead_loop_of_three_is_replaced_alone(triage: Triage, table: list[Any], options: Triage) -> None:
    siblings(triage, "dead", "healthy", "healthy")
    assert judged(triage, table, options)["reconfigure.dead"]["remedy"]["kind"] == "restart_task"


def test_a_loop_seen_in_its_log_alone_lowers_confidence_for_all(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    siblings(triage, "dead", "dead")
    triage["reconfigure_loop"]["tasks"][1]["sources"] = ["logs"]
    assert judged(triage, table, options)["reconfigure.dead"]["confidence"] == "medium"


def test_during_a_deployment_nobody_is_told_to_start_another(triage: Triage, table: list[Any], options: Triage) -> None:
    smtp_in_stale(triage)
    deploying(triage)
    actions = judged(triage, table, options)["smtp_in.stale_map"]["next_actions"]
    assert "in progress" in actions[0]["text"]
    assert not [action for action in actions if action["command"]]


def test_a_blind_tier_shows_what_is_left_to_see(triage: Triage, table: list[Any], options: Triage) -> None:
    blind(triage)
    tier = judged(triage, table, options)["coverage.blind_tier"]["tier"]
    assert "mailq was not read" in judged(triage, table, options)["coverage.blind_tier"]["found"]
    triage["tiers"]["by_tier"][tier]["tasks"] = {"c" * 32: {"opendkim": {"signed": {"a.example": 30, "b.example": 12}}}}
    why = [{"reason": "rate_limited", "fault": "us", "messages": 3}]
    for row in triage["containers"]["tasks"]:
        if row["tier"] == tier:
            row["queue"] = {"messages": 4, "complete": True, "oldest": None, "reasons": [], "why": why}
    found = judged(triage, table, options)["coverage.blind_tier"]["found"]
    assert "opendkim signed 42 messages" in found
    summary = judged(triage, table, options)["coverage.blind_tier"]["summary"]
    assert summary.endswith(
        "signed 42 messages meanwhile. What waits in its queue, as far as mailq says: rate_limited (3)."
    )
    assert "4 messages wait in its queue; why, as far as mailq says: rate_limited 3" in found


def test_one_silent_loop_never_pages_and_all_of_them_do(triage: Triage, table: list[Any], options: Triage) -> None:
    """Defect 23: all tasks share one check, so one dead ping is a note and the silence of all is the alert."""

    def severity(missed: bool | None) -> str:
        changed = copy.deepcopy(triage)
        loop_state("no_ping")(changed)
        changed["reconfigure_loop"]["heartbeat"].update(missed=missed)
        return next(
            f["severity"] for f in judge(changed, table, options)["findings"] if f["id"] == "reconfigure.no_ping"
        )

    assert (severity(False), severity(None), severity(True)) == ("info", "info", "warning")


def test_a_full_disk_of_an_smtp_task_is_not_imap_s(triage: Triage, table: list[Any], options: Triage) -> None:
    triage["local_delivery"]["disk_full"] = [{"tier": "smtp-in", "path": "/etc/mail", "used_percent": 100}]
    loop_state("failing")(triage)
    result = {f["id"]: f for f in judge(triage, table, options)["findings"]}
    assert "imap.disk_full" not in result
    first = result["reconfigure.failing"]["next_actions"][0]["text"]
    assert "Make room" in first
    assert "smtp-in /etc/mail 100 %" in first


def test_dns_that_has_no_imap_in_a_task_is_told_although_cloud_map_lists_it(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    triage["local_delivery"]["imap_in_dns"] = {SMTP_IN: []}
    finding = next(f for f in judge(triage, table, options)["findings"] if f["id"] == "imap.unresolvable")
    assert (finding["severity"], finding["confidence"]) == ("critical", "medium")
    triage["local_delivery"]["imap_in_dns"] = {SMTP_IN: ["10.0.2.45"]}
    assert "imap.unresolvable" not in [f["id"] for f in judge(triage, table, options)["findings"]]


def test_while_makemap_refuses_a_row_nobody_is_told_to_restart_imap(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    imap_stale(triage)
    row = next(row for row in triage["reconfigure_loop"]["tasks"] if row["tier"] == "imap")
    row.update(state="failing", why="seen", exit_status=65)
    verdict = judge(triage, table, options)["verdict"]
    assert verdict["id"] == "imap.stale_map"
    assert not verdict.get("remedy")
    assert not any("pkill" in (action.get("command") or "") for action in verdict["next_actions"])


def test_a_page_about_the_loops_is_answered_about_the_loops(triage: Triage, table: list[Any], options: Triage) -> None:
    provider_block(triage)
    blind(triage)
    about_the_heartbeat(triage)
    # The answer stands, and no critical finding stands behind it.
    assert "none.loops_healthy" in judged(triage, table, options)
    assert judge(triage, table, options)["verdict"]["id"] == "smtp_out.provider_block"
    triage["tiers"]["by_tier"]["smtp-out"]["bounces"]["ongoing_lines_last_10m"] = 0
    assert judge(triage, table, options)["verdict"]["id"] == "none.loops_healthy"
    loop_state("dead")(triage)
    verdict = judge(triage, table, options)["verdict"]
    assert (verdict["id"], verdict["tier"]) == ("reconfigure.dead", "smtp-in")
    assert "coverage.blind_tier" not in judged(triage, table, options)


@pytest.mark.parametrize("unknown", ["one", "all"])
def test_loops_that_nobody_could_look_at_are_not_healthy(
    unknown: str, triage: Triage, table: list[Any], options: Triage
) -> None:
    about_the_heartbeat(triage)
    if unknown == "one":
        loop_state("unknown")(triage)
    else:
        triage["reconfigure_loop"] = unavailable()
    assert judge(triage, table, options)["verdict"]["id"] == "inconclusive"
