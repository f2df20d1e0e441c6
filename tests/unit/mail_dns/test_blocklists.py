# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of senders against a real DNS server: listed, not listed, and every way in which a list tells nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ansible.module_utils.mail_dns.blocklist import Blocklist
from mail_dns_server import CONTROL, IP, DnsServer, Zone, txt

REPO = Path(__file__).parents[3]
DATA = yaml.safe_load((REPO / "data" / "blocklists.yml").read_text(encoding="utf-8"))
Check = Callable[..., dict[str, Any]]
APEX = "harborlight.example"

IPS = Blocklist("Some", "bl.example", "ip", "spam", {"127.0.0.2": "spam", "127.0.0.4": "bots"}, "https://x", "high")
BOTH = replace(IPS, families=(4, 6))
DOMAINS = replace(
    IPS,
    zone="dbl.example",
    kind="domain",
    bits=True,
    refused=("127.0.0.1",),
    codes={"127.0.0.2": "a", "127.0.0.8": "b"},
)


@pytest.fixture
def lists(zone: Zone, check: Check) -> Callable[..., dict[str, Any]]:
    """Ask one list, alive unless a test breaks it, about our addresses and domains."""
    zone[("2.0.0.127.bl.example", "A")] = ["127.0.0.2"]
    zone[("test.dbl.example", "A")] = ["127.0.0.2"]

    def ask(entry: Blocklist, *ips: str, **options: Any) -> dict[str, Any]:
        section = check(addresses=list(ips or (IP,)), mail_domains=[APEX], blocklists=[entry], **options)
        return dict(section["blocklists"])

    return ask


def entry_of(ip: str) -> str:
    return ".".join(reversed(ip.split("."))) + ".bl.example"


def test_the_lists_of_the_project_are_sound() -> None:
    schema = json.loads((REPO / "data" / "schema" / "blocklists-1.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(DATA)
    rows = DATA["blocklists"]
    assert len({row["zone"] for row in rows}) == len(rows)
    assert {family for row in rows for family in row.get("families", [])} == {4, 6}
    assert {row["kind"] for row in rows} == {"ip", "domain"}
    assert not [row["name"] for row in rows if set(row["codes"]) & set(row.get("refused", []))]


def test_not_listed(lists: Callable[..., dict[str, Any]]) -> None:
    found = lists(IPS)
    assert (found["status"], found["reasons"]) == ("complete", [])
    (row,) = found["results"]
    assert (row["target"], row["status"], row["codes"], row["problem"]) == (IP, "not_listed", [], None)
    assert found["lists"][0]["status"] == "usable"


def test_listed_with_what_it_means_and_what_the_list_says(zone: Zone, lists: Callable[..., dict[str, Any]]) -> None:
    zone[(entry_of(IP), "A")] = ["127.0.0.2", "127.0.0.4"]
    zone[(entry_of(IP), "TXT")] = [txt("see https://x/1")]
    (row,) = lists(IPS)["results"]
    assert (row["status"], row["codes"], row["meanings"]) == ("listed", ["127.0.0.2", "127.0.0.4"], ["spam", "bots"])
    assert row["says"] == "see https://x/1"
    assert row["queries"] == [f"{entry_of(IP)} A", f"{entry_of(IP)} TXT"]


def test_two_addresses_of_which_one_is_listed(zone: Zone, lists: Callable[..., dict[str, Any]]) -> None:
    zone[(entry_of("198.51.100.126"), "A")] = ["127.0.0.2"]
    found = {row["target"]: row["status"] for row in lists(IPS, IP, "198.51.100.126")["results"]}
    assert found == {IP: "not_listed", "198.51.100.126": "listed"}


def test_ipv6(zone: Zone, lists: Callable[..., dict[str, Any]]) -> None:
    nibbles = ".".join(reversed("20010db8000000000000000000000007"))
    zone[(f"{nibbles}.bl.example", "A")] = ["127.0.0.4"]
    (row,) = lists(BOTH, "2001:db8::7")["results"]
    assert (row["status"], row["meanings"]) == ("listed", ["bots"])


def test_a_list_without_ipv6_is_not_asked_about_it(lists: Callable[..., dict[str, Any]]) -> None:
    assert lists(IPS, "2001:db8::7")["results"] == []


def test_a_list_of_ipv6_has_a_test_entry_of_its_own(zone: Zone, lists: Callable[..., dict[str, Any]]) -> None:
    only6 = replace(IPS, families=(6,), test="::ffff:127.0.0.2")
    assert lists(only6, "2001:db8::7")["results"][0]["status"] == "unavailable"
    zone[("2.0.0.0.0.0.f.7.f.f.f.f." + "0." * 20 + "bl.example", "A")] = ["127.0.0.2"]
    assert lists(only6, "2001:db8::7")["results"][0]["status"] == "not_listed"


def test_domains_are_the_apexes_and_the_control_domain(zone: Zone, lists: Callable[..., dict[str, Any]]) -> None:
    zone[(f"{APEX}.dbl.example", "A")] = ["127.0.0.10"]
    found = {row["target"]: row for row in lists(DOMAINS)["results"]}
    assert {name: row["status"] for name, row in found.items()} == {APEX: "listed", CONTROL: "not_listed"}
    assert found[APEX]["meanings"] == ["a", "b"]


@pytest.mark.parametrize(
    "answer",
    [
        ["127.255.255.254"],  # an open resolver may not ask
        ["127.255.255.255"],  # too many questions
        ["127.0.0.99"],  # not documented
        ["127.0.0.2", "127.255.255.254"],
        ["203.0.113.80"],  # the zone has been sold
        "servfail",
        "refused",
        "silent",
        "garbage",
    ],
)
def test_an_answer_that_is_no_listing_is_unknown(
    zone: Zone, lists: Callable[..., dict[str, Any]], answer: list[str] | str
) -> None:
    zone[(entry_of(IP), "A")] = answer
    found = lists(IPS)
    assert found["results"][0]["status"] == "unavailable"
    assert found["results"][0]["problem"]
    assert (found["status"], len(found["reasons"])) == ("unavailable", 1)


@pytest.mark.parametrize("code", ["127.0.0.1", "127.255.255.254"])
def test_a_list_of_domains_that_may_not_be_asked(zone: Zone, lists: Callable[..., dict[str, Any]], code: str) -> None:
    for name in ("test", APEX, CONTROL, "invalid"):
        zone[(f"{name}.dbl.example", "A")] = [code]
    found = lists(DOMAINS)
    assert {row["status"] for row in found["results"]} == {"unavailable"}
    assert found["lists"][0]["status"] == "unavailable"


def test_a_dead_list_is_unknown(zone: Zone, lists: Callable[..., dict[str, Any]]) -> None:
    del zone[("2.0.0.127.bl.example", "A")]
    found = lists(IPS)
    assert found["results"][0]["status"] == "unavailable"
    assert found["reasons"] == [
        "Blocklist Some: bl.example lacks its own test entry (127.0.0.2): it is dead, or gives us no answers."
    ]


def test_a_list_that_lists_everything_accuses_nobody(zone: Zone, lists: Callable[..., dict[str, Any]]) -> None:
    zone[("1.0.0.127.bl.example", "A")] = ["127.0.0.2"]
    zone[(entry_of(IP), "A")] = ["127.0.0.2"]
    assert lists(IPS)["results"][0]["status"] == "unavailable"


def test_an_undocumented_test_entry_does_not_hide_a_listing(zone: Zone, lists: Callable[..., dict[str, Any]]) -> None:
    del zone[("2.0.0.127.bl.example", "A")]
    zone[(entry_of(IP), "A")] = ["127.0.0.2"]
    assert lists(IPS)["results"][0]["status"] == "listed"


@pytest.mark.parametrize("control", ["silent", "servfail", ["127.0.0.99"]])
def test_a_list_that_may_hold_everything_accuses_nobody(
    zone: Zone, lists: Callable[..., dict[str, Any]], control: list[str] | str
) -> None:
    zone[("1.0.0.127.bl.example", "A")] = control
    zone[(entry_of(IP), "A")] = ["127.0.0.2"]
    assert lists(IPS, timeout=0.15)["results"][0]["status"] == "unavailable"


def test_a_code_that_is_not_documented_does_not_undo_a_listing(
    zone: Zone, lists: Callable[..., dict[str, Any]]
) -> None:
    zone[(entry_of(IP), "A")] = ["127.0.0.2", "127.0.0.99"]
    (row,) = lists(IPS)["results"]
    assert (row["status"], row["codes"]) == ("listed", ["127.0.0.2"])


def test_what_lists_do_not_say_does_not_blur_our_own_records(zone: Zone, check: Check) -> None:
    section = check(blocklists=[IPS])
    assert (section["status"], section["blocklists"]["status"]) == ("complete", "unavailable")


def test_all_of_it_can_be_traced(zone: Zone, check: Check) -> None:
    section = check(mail_domains=[APEX], blocklists=[IPS, DOMAINS])
    known = {row["query"]: row for row in section["queries"]}
    checks = [row[kind] for row in section["domains"] for kind in ("spf", "dkim", "dmarc", "mx", "mta_sts", "tls_rpt")]
    for fact in [*checks, *section["addresses"], *section["blocklists"]["results"]]:
        assert fact["queries"]
        for query in fact["queries"]:
            assert known[query]["resolver"].startswith("127.0.0.1:")
            assert known[query]["time"].endswith("Z")
            assert known[query]["status"] in ("found", "no_name", "no_data")


def test_a_silent_server_ends_in_time(lists: Callable[..., dict[str, Any]]) -> None:
    found = lists(IPS, server=DnsServer({}, raw=lambda wire: None), deadline=0.5, timeout=0.2)
    assert found["status"] == "unavailable"
