# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The section on deliverability: what is known, what is bad, and what nobody could say."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.cabalmail.deliverability import (
    concentration,
    deliverability,
    dmarc,
    opendkim,
    outbound_addresses,
    sending_domains,
    states_of_domains,
)

CONTROL = "cabal-control.example"
NEWS = "news.harborlight.example"
IP = "198.51.100.125"


def provider(name: str, recipients: int, attempts: int) -> dict[str, Any]:
    return {"provider": name, "recipients": recipients, "attempts": attempts, "sent": attempts - recipients}


@pytest.fixture
def triage() -> dict[str, Any]:
    """Evidence of a spike at one provider, all of it read."""
    level = {"value": None, "at_least": 8}
    return {
        "tiers": {
            "by_tier": {
                "smtp-out": {
                    "coverage": {"status": "complete", "reasons": [], "blind": False, "log_level": level},
                    "bounces": {
                        "lines": 30,
                        "providers": [provider("Gmail", 27, 50), provider("Outlook", 3, 50)],
                        "sender_domains": [
                            {"domain": NEWS, "recipients": 20},
                            {"domain": "forwarded.example.net", "recipients": 4},
                            {"domain": f"smtp-out.{CONTROL}", "recipients": 3},
                            {"domain": "", "recipients": 3},
                        ],
                        "reasons": [{"reason": "reputation", "recipients": 30}],
                    },
                    "tasks": {
                        "a" * 32: {
                            "opendkim": {"signed": {NEWS: 4}, "no_match": {}, "key_errors": 0, "not_internal": 0}
                        },
                        "b" * 32: {
                            "opendkim": {
                                "signed": {NEWS: 3},
                                "no_match": {"x.harborlight.example": 2},
                                "key_errors": 1,
                                "not_internal": 0,
                            }
                        },
                    },
                }
            }
        },
        "environment": {
            "addresses": {"status": "complete", "domains": ["harborlight.example", "quietmail.example"]},
            "network": {"status": "complete", "outbound": [{"ip": IP, "zone": "us-east-1a", "via": "nat-1"}]},
            "dmarc": {
                "status": "complete",
                "reasons": [],
                "rows": 2,
                "newest_report": "2026-11-23T00:00:00Z",
                "period": {"start": "2026-11-17T00:00:00Z", "end": "2026-11-24T12:00:00Z"},
                "ours": {"messages": 8, "pass": 7, "fail": 1},
                "strangers": {"messages": 5, "pass": 0, "fail": 5},
                "before": {"ours": {"messages": 20, "pass": 20, "fail": 0}},
                "sources": [
                    {"ip": IP, "ours": True, "pass": 7, "fail": 1, "messages": 8},
                    {"ip": "203.0.113.9", "ours": False, "pass": 0, "fail": 5, "messages": 5},
                ],
            },
        },
        "containers": {
            "status": "complete",
            "tasks": [{"tier": "smtp-out", "task": "a" * 32, "opendkim_running": True}],
        },
    }


def smtp_out(triage: dict[str, Any]) -> dict[str, Any]:
    log: dict[str, Any] = triage["tiers"]["by_tier"]["smtp-out"]
    return log


def checked(status: str = "complete", spf: str = "ok") -> dict[str, Any]:
    row = {kind: {"status": "ok", "problem": None} for kind in ("dkim", "dmarc", "mx")}
    return {
        "status": status,
        "reasons": [] if status == "complete" else ["DNS was silent."],
        "domains": [{"domain": NEWS, **row, "spf": {"status": spf, "problem": f"{NEWS} has no SPF record"}}],
        "addresses": [{"ip": IP, "status": "ok", "fcrdns": True}],
        "blocklists": {"status": "complete", "reasons": [], "lists": [], "results": []},
        "queries": [],
        "queries_total": 0,
    }


# -- concentration


def test_one_provider_refuses_more_than_its_share(triage: dict[str, Any]) -> None:
    found = concentration(triage, 20)
    assert (found["status"], found["top_provider"]) == ("complete", "Gmail")
    assert (found["share_of_bounces"], found["share_of_attempts"], found["lift"]) == (0.9, 0.5, 1.8)
    assert found["small_sample"] is False
    assert found["bounce_reasons"] == {"reputation": 30}


def test_everybody_writes_to_that_provider(triage: dict[str, Any]) -> None:
    smtp_out(triage)["bounces"]["providers"] = [provider("Gmail", 27, 900), provider("Outlook", 3, 100)]
    assert concentration(triage, 20)["lift"] == 1.0


def test_small_numbers_are_said_to_be_small(triage: dict[str, Any]) -> None:
    smtp_out(triage)["bounces"]["providers"] = [provider("Gmail", 3, 4)]
    assert concentration(triage, 20)["small_sample"] is True


@pytest.mark.parametrize("level", [{"value": 7, "at_least": 7}, {"value": None, "at_least": None}])
def test_without_the_sent_lines_the_share_of_attempts_is_unknown(triage: dict[str, Any], level: dict[str, Any]) -> None:
    smtp_out(triage)["coverage"]["log_level"] = level
    found = concentration(triage, 20)
    assert (found["share_of_bounces"], found["share_of_attempts"], found["lift"]) == (0.9, None, None)
    assert found["providers"][0]["attempts"] is None


@pytest.mark.parametrize("coverage", [{}, {"status": "unavailable", "reasons": ["FilterLogEvents was denied."]}])
def test_an_unread_log_is_unknown(triage: dict[str, Any], coverage: dict[str, Any]) -> None:
    smtp_out(triage)["coverage"] = coverage
    found = concentration(triage, 20)
    assert (found["status"], found["top_provider"], found["recipients"]) == ("unavailable", None, None)
    assert found["reasons"]


def test_a_blind_log_is_unknown(triage: dict[str, Any]) -> None:
    smtp_out(triage)["coverage"]["blind"] = True
    smtp_out(triage)["bounces"] = {"lines": 0, "providers": []}
    assert concentration(triage, 20)["status"] == "unavailable"


def test_no_bounces_are_a_known_zero(triage: dict[str, Any]) -> None:
    smtp_out(triage)["bounces"] = {"lines": 0, "providers": [provider("Gmail", 0, 5)]}
    found = concentration(triage, 20)
    assert (found["status"], found["recipients"], found["top_provider"]) == ("complete", 0, None)


# -- whom to ask about


def test_own_senders_are_asked_about(triage: dict[str, Any]) -> None:
    assert sending_domains(triage, CONTROL + ".", 10) == [CONTROL, NEWS, "x.harborlight.example"]
    assert sending_domains(triage, CONTROL, 2) == [CONTROL, NEWS]


def test_where_our_domains_are_unknown_all_senders_are_asked_about(triage: dict[str, Any]) -> None:
    triage["environment"]["addresses"] = {"status": "unavailable", "domains": []}
    assert "forwarded.example.net" in sending_domains(triage, CONTROL, 10)


def test_nothing_read_still_asks_about_the_control_domain() -> None:
    assert sending_domains({}, CONTROL, 10) == [CONTROL]
    assert outbound_addresses({}) == []


def test_addresses_by_name_or_as_told(triage: dict[str, Any]) -> None:
    assert outbound_addresses(triage) == [IP]
    assert outbound_addresses(triage, ["2001:db8::1"]) == ["2001:db8::1"]


# -- by design


def states(tmp_path: Path, *rows: tuple[str | None, bool]) -> dict[str, str] | None:
    lines = [{"subdomain": name, "tld": "harborlight.example", "suspended": suspended} for name, suspended in rows]
    (tmp_path / "addresses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return states_of_domains(tmp_path, [NEWS])


def test_states_of_a_domain(tmp_path: Path) -> None:
    assert states_of_domains(tmp_path, [NEWS]) is None
    assert states(tmp_path, (None, False)) == {NEWS: "absent"}
    assert states(tmp_path, ("news", True)) == {NEWS: "suspended"}
    assert states(tmp_path, ("news", True), ("News", False), ("news", True)) == {NEWS: "active"}


@pytest.mark.parametrize(
    ("state", "status"),
    [("active", "missing"), ("suspended", "absent_by_design"), ("absent", "absent_by_design"), (None, "unavailable")],
)
def test_records_of_suspended_addresses_are_gone_by_design(
    triage: dict[str, Any], state: str | None, status: str
) -> None:
    known = {NEWS: state} if state else None
    section = deliverability(triage, checked(spf="missing"), known, CONTROL, 20)
    assert section["domains"][0]["spf"]["status"] == status
    assert section["domains"][0]["state"] == state


@pytest.mark.parametrize(
    ("published", "status"),
    [
        ({"record": "v=spf1 include:elsewhere.example -all", "differs": "it differs", "status": "fail"}, "unavailable"),
        ({"record": "v=spf1 include:c.example ~all", "differs": None, "status": "ok"}, "missing"),
    ],
)
def test_without_the_table_only_what_looks_like_ours_is_accused(
    triage: dict[str, Any], published: dict[str, Any], status: str
) -> None:
    dns = checked()
    dns["domains"][0] |= {"spf": published, "dkim": {"status": "missing", "problem": "no key"}}
    (row,) = deliverability(triage, dns, None, CONTROL, 20)["domains"]
    assert row["dkim"]["status"] == status
    assert row["spf"]["status"] != "fail"


def test_by_design_covers_nothing_but_absence(triage: dict[str, Any]) -> None:
    for status in ("fail", "invalid", "unavailable"):
        section = deliverability(triage, checked(spf=status), {NEWS: "suspended"}, CONTROL, 20)
        assert section["domains"][0]["spf"]["status"] == status


# -- the section


@pytest.mark.parametrize(
    ("network", "told", "publish"), [("complete", IP, True), ("partial", IP, False), ("partial", "192.0.2.77", True)]
)
def test_the_record_of_addresses_is_told_only_when_all_are_known(
    triage: dict[str, Any], network: str, told: str, publish: bool
) -> None:
    triage["environment"]["network"]["status"] = network
    record = {"name": CONTROL, "type": "TXT", "value": f"v=spf1 ip4:{told}/32 ~all"}
    dns = checked()
    dns["addresses"][0]["ip"] = told
    dns["domains"][0] |= {"domain": CONTROL, "spf": {"status": "fail", "differs": "it differs", "publish": record}}
    (row,) = deliverability(triage, dns, {}, CONTROL, 20)["domains"]
    assert bool(row["spf"]["publish"]) is publish
    assert bool(row["spf"]["differs"]) is publish
    assert row["spf"]["status"] == "fail"


def test_the_section_is_complete(triage: dict[str, Any]) -> None:
    section = deliverability(triage, checked(), {NEWS: "active"}, CONTROL, 20)
    assert (section["status"], section["reasons"]) == ("complete", [])
    assert [(row["ip"], row["zone"]) for row in section["addresses"]] == [(IP, "us-east-1a")]


def test_dns_that_was_not_asked_leaves_the_rest(triage: dict[str, Any]) -> None:
    section = deliverability(triage, None, None, CONTROL, 20)
    assert section["status"] == "partial"
    assert (section["domains"], section["addresses"]) == ([], [])
    assert section["concentration"]["top_provider"] == "Gmail"


def test_nothing_at_all() -> None:
    section = deliverability({}, None, None, CONTROL, 20)
    assert section["status"] == "unavailable"
    assert len(section["reasons"]) >= 3


def test_evidence_is_not_changed(triage: dict[str, Any]) -> None:
    before = copy.deepcopy(triage)
    deliverability(triage, checked(spf="missing"), {NEWS: "suspended"}, CONTROL, 20)
    assert triage == before


# -- signing, reports


def test_signing_over_all_tasks(triage: dict[str, Any]) -> None:
    found = opendkim(triage)
    assert (found["signed"], found["no_match"], found["key_errors"]) == ({NEWS: 7}, {"x.harborlight.example": 2}, 1)
    assert found["running"] == {"a" * 32: True}


def test_signing_unknown(triage: dict[str, Any]) -> None:
    smtp_out(triage)["coverage"] = {"status": "unavailable", "reasons": ["denied"]}
    found = opendkim(triage)
    assert (found["status"], found["key_errors"]) == ("unavailable", None)


def test_reports_by_whose_mail_it_was(triage: dict[str, Any]) -> None:
    found = dmarc(triage)
    assert found["ours"] == {"messages": 8, "pass": 7, "fail": 1}
    assert found["strangers"] == {"messages": 5, "pass": 0, "fail": 5}
    assert (found["fail_share"], found["before"]["fail_share"], found["change"]) == (0.125, 0.0, 0.125)
    assert found["age_hours"] == 36


def test_reports_without_any_before_have_no_change(triage: dict[str, Any]) -> None:
    triage["environment"]["dmarc"]["before"] = {"ours": {"messages": 0, "pass": 0, "fail": 0}}
    assert dmarc(triage)["change"] is None


def test_an_address_has_the_tasks_of_its_zone(triage: dict[str, Any]) -> None:
    triage["environment"]["services"] = {
        "smtp-out": {
            "tasks": [
                {"id": "a" * 32, "zone": "us-east-1a", "last_status": "RUNNING"},
                {"id": "b" * 32, "zone": "us-east-1b", "last_status": "RUNNING"},
            ]
        }
    }
    for task, refused in (("a" * 32, 3), ("b" * 32, 4)):
        smtp_out(triage)["tasks"][task]["bounced"] = {"blocklist": refused}
    (address,) = deliverability(triage, checked(), {}, CONTROL, 20)["addresses"]
    assert (address["zone"], address["via"], address["tasks"]) == ("us-east-1a", "nat-1", ["a" * 32])
    assert address["bounced"] == {"blocklist": 7}
    second = {"ip": "198.51.100.126", "status": "ok"}
    triage["environment"]["network"]["outbound"].append({"ip": second["ip"], "zone": "us-east-1b", "via": "nat-2"})
    dns = {**checked(), "addresses": [*checked()["addresses"], second]}
    rows = deliverability(triage, dns, {}, CONTROL, 20)["addresses"]
    assert [row["bounced"] for row in rows] == [{"blocklist": 3}, {"blocklist": 4}]
    triage["environment"]["services"]["smtp-out"]["tasks"].pop()
    rows = deliverability(triage, dns, {}, CONTROL, 20)["addresses"]
    assert [row["bounced"] for row in rows] == [None, None]


def test_reports_whose_mail_is_unknown(triage: dict[str, Any]) -> None:
    triage["environment"]["dmarc"].update(ours=None, strangers=None, before={"ours": None})
    found = dmarc(triage)
    assert (found["status"], found["ours"], found["strangers"]) == ("partial", None, None)


def test_reports_not_read(triage: dict[str, Any]) -> None:
    triage["environment"]["dmarc"] = {"status": "unavailable", "reasons": ["Scan was denied."]}
    found = dmarc(triage)
    assert (found["status"], found["ours"], found["reasons"]) == ("unavailable", None, ["Scan was denied."])


# -- opendkim, alignment and key

CHECKED = [{"domain": NEWS, "dkim": {"status": "ok", "key_sha256": "aa"}, "dmarc": {"alignment": {"dkim": "relaxed"}}}]


def test_a_signature_of_another_domain_does_not_align(triage: dict[str, Any]) -> None:
    smtp_out(triage)["foreign_signatures"] = [{"sender_domain": NEWS, "signed_by": CONTROL, "messages": 7}]
    (found,) = opendkim(triage, None, CHECKED)["foreign"]
    assert (found["sender_domain"], found["signed_by"], found["messages"]) == (NEWS, CONTROL, 7)


@pytest.mark.parametrize(("mode", "count"), [("relaxed", 0), ("strict", 1)])
def test_a_signature_of_the_same_organisation_aligns_unless_strict(
    triage: dict[str, Any], mode: str, count: int
) -> None:
    smtp_out(triage)["foreign_signatures"] = [
        {"sender_domain": NEWS, "signed_by": "shop.harborlight.example", "messages": 7}
    ]
    checked = [{**CHECKED[0], "dmarc": {"alignment": {"dkim": mode}}}]
    assert len(opendkim(triage, None, checked)["foreign"]) == count


def test_mail_of_others_is_not_ours_to_sign(triage: dict[str, Any]) -> None:
    said = next(iter(smtp_out(triage)["tasks"].values()))["opendkim"]
    said["no_match"] = {"list.example.net": 9, "harborlight.example": 3, NEWS: 2}
    assert opendkim(triage)["no_match_ours"] == {NEWS: 2, "x.harborlight.example": 2}


@pytest.mark.parametrize(("tier_key", "matches"), [("aa", True), ("bb", False), (None, None)])
def test_the_published_key_against_the_one_that_signs(
    triage: dict[str, Any], tier_key: str | None, matches: bool | None
) -> None:
    tables = {"status": "complete", "reasons": [], "foreign": [], "key_sha256": tier_key, "key_record": "v=DKIM1; p=x"}
    dns = {**checked(), "domains": [CHECKED[0], {"domain": CONTROL, "dkim": {"name": f"cabal._domainkey.{CONTROL}"}}]}
    rows = deliverability(triage, dns, {NEWS: "active"}, CONTROL, 20, tables)["domains"]
    assert rows[0]["dkim"]["matches_tier"] is matches
    assert rows[1]["dkim"]["publish"]["value"] == "v=DKIM1; p=x"
