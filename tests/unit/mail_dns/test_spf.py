# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SPF by the examples and rules of RFC 7208, over a table in place of DNS."""

from __future__ import annotations

import asyncio
import ipaddress

import pytest
from ansible.module_utils.mail_dns import spf
from ansible.module_utils.mail_dns.resolve import Answer
from hypothesis import given
from hypothesis import strategies as st

# RFC 7208, appendix A.
RFC: dict[tuple[str, str], list[str]] = {
    ("example.com", "A"): ["192.0.2.10", "192.0.2.11"],
    ("example.com", "MX"): ["10 mail-a.example.com", "20 mail-b.example.com"],
    ("mail-a.example.com", "A"): ["192.0.2.129"],
    ("mail-b.example.com", "A"): ["192.0.2.130"],
    ("example.org", "MX"): ["10 mail-c.example.org"],
    ("mail-c.example.org", "A"): ["192.0.2.140"],
    ("10.2.0.192.in-addr.arpa", "PTR"): ["example.com"],
    ("65.2.0.192.in-addr.arpa", "PTR"): ["amy.example.com"],
    ("amy.example.com", "A"): ["192.0.2.65"],
    ("140.2.0.192.in-addr.arpa", "PTR"): ["mail-c.example.org"],
}


def evaluated(record: str, ip: str, extra: dict[tuple[str, str], list[str]] | None = None) -> spf.Verdict:
    zone = {**RFC, ("example.com", "TXT"): [record], **(extra or {})}

    async def ask(name: str, rtype: str) -> Answer:
        name = name.rstrip(".").lower()
        if name.startswith("silent"):
            return Answer(name, rtype, "timeout")
        records = zone.get((name, rtype), [])
        known = any(owner == name for owner, _ in zone)
        return Answer(name, rtype, "found" if records else "no_data" if known else "no_name", tuple(records))

    return asyncio.run(spf.evaluate(ask, "example.com", ipaddress.ip_address(ip), "smtp.example.com"))


@pytest.mark.parametrize(
    ("record", "passes", "fails"),
    [
        ("v=spf1 +all", ["192.0.2.129", "2001:db8::1"], []),
        ("v=spf1 a -all", ["192.0.2.10", "192.0.2.11"], ["192.0.2.129"]),
        ("v=spf1 a:example.org -all", [], ["192.0.2.10", "192.0.2.140"]),
        ("v=spf1 mx -all", ["192.0.2.129", "192.0.2.130"], ["192.0.2.10"]),
        ("v=spf1 mx:example.org -all", ["192.0.2.140"], ["192.0.2.129"]),
        ("v=spf1 mx mx:example.org -all", ["192.0.2.129", "192.0.2.130", "192.0.2.140"], ["192.0.2.10"]),
        ("v=spf1 mx/30 mx:example.org/30 -all", ["192.0.2.131", "192.0.2.143"], ["192.0.2.127", "192.0.2.144"]),
        ("v=spf1 ptr -all", ["192.0.2.10", "192.0.2.65"], ["192.0.2.140"]),
        ("v=spf1 ip4:192.0.2.128/28 -all", ["192.0.2.129", "192.0.2.140"], ["192.0.2.65"]),
        ("v=spf1 ip6:2001:db8::/32 -all", ["2001:db8::5"], ["192.0.2.65", "2001:db9::5"]),
        ("V=SPF1 IP4:192.0.2.65 -ALL", ["192.0.2.65"], ["192.0.2.66"]),
    ],
)
def test_appendix_a(record: str, passes: list[str], fails: list[str]) -> None:
    assert [evaluated(record, ip).result for ip in passes] == ["pass"] * len(passes)
    assert [evaluated(record, ip).result for ip in fails] == ["fail"] * len(fails)


@pytest.mark.parametrize(
    ("record", "result"),
    [
        ("v=spf1 ~all", "softfail"),
        ("v=spf1 ?all", "neutral"),
        ("v=spf1", "neutral"),
        ("v=spf1 -all +all", "fail"),
        ("v=spf10 +all", "none"),
        ("v=spf1 exists:%{ir}.x.example -all", "pass"),
        ("v=spf1 exists:%{l}.%{o}.%{d2}.%{v}.x.example -all", "pass"),
        ("v=spf1 unknown=%{d} -all", "fail"),
        ("v=spf1 include:ok.example -all", "pass"),
        ("v=spf1 include:soft.example -all", "fail"),
        ("v=spf1 redirect=ok.example", "pass"),
        ("v=spf1 -all redirect=ok.example", "fail"),
        ("v=spf1 include:silent.example -all", "temperror"),
        ("v=spf1 a:silent.example -all", "temperror"),
        ("v=spf1 include:example.com -all", "permerror"),
        ("v=spf1 redirect=example.com", "permerror"),
        ("v=spf1 include:none.example -all", "permerror"),
        ("v=spf1 a:v1.example a:v2.example a:v3.example +all", "permerror"),
        ("v=spf1 a:v1.example a:v2.example +all", "pass"),
        ("v=spf1 include:two.example +all", "permerror"),
        ("v=spf1 all:x +all", "permerror"),
        ("v=spf1 include +all", "permerror"),
        ("v=spf1 a: +all", "permerror"),
        ("v=spf1 a/33 +all", "permerror"),
        ("v=spf1 ip4:1.2.3.4/255.0.0.0 +all", "permerror"),
        ("v=spf1 ip6:1.2.3.4 +all", "permerror"),
        ("v=spf1 ip4=1.2.3.4 foo +all", "permerror"),
        ("v=spf1 a:%{q}.example +all", "permerror"),
        ("v=spf1 +all redirect=%(x) foo:bar", "permerror"),
        ("v=spf1 redirect=a.example redirect=b.example", "permerror"),
    ],
)
def test_rules(record: str, result: str) -> None:
    extra = {
        ("ok.example", "TXT"): ["v=spf1 ip4:192.0.2.65 -all"],
        ("soft.example", "TXT"): ["v=spf1 ~all"],
        ("two.example", "TXT"): ["v=spf1 -all", "v=spf1 +all"],
        ("none.example", "TXT"): ["hello"],
        ("65.2.0.192.x.example", "A"): ["127.0.0.2"],
        ("postmaster.example.com.example.com.in-addr.x.example", "A"): ["127.0.0.2"],
    }
    verdict = evaluated(record, "192.0.2.65", extra)
    assert verdict.result == result
    assert bool(verdict.problem) is (result in ("permerror", "temperror"))


def test_ten_lookups_are_allowed() -> None:
    extra = {(f"i{n}.example", "TXT"): ["v=spf1 ?all"] for n in range(11)}
    ten = " ".join(f"include:i{n}.example" for n in range(10))
    verdict = evaluated(f"v=spf1 {ten} +all", "192.0.2.65", extra)
    assert (verdict.result, verdict.lookups) == ("pass", 10)
    assert evaluated(f"v=spf1 {ten} include:i10.example +all", "192.0.2.65", extra).result == "permerror"


def test_eleven_mail_hosts_are_too_many() -> None:
    hosts = [f"10 m{n}.example" for n in range(11)]
    assert evaluated("v=spf1 mx:many.example -all", "192.0.2.65", {("many.example", "MX"): hosts}).result == "permerror"


def test_what_matched_is_named() -> None:
    verdict = evaluated(
        "v=spf1 include:ok.example ~all", "192.0.2.65", {("ok.example", "TXT"): ["v=spf1 ip4:192.0.2.65"]}
    )
    assert verdict.matched == "include:ok.example of example.com"


@given(st.text(alphabet=st.sampled_from("v=spf1 aimxptrcludeip46:/%{}~-+?.0123456789redirect=all"), max_size=80))
def test_no_record_raises(text: str) -> None:
    assert evaluated("v=spf1 " + text, "192.0.2.65").result in (
        "pass",
        "fail",
        "softfail",
        "neutral",
        "none",
        "permerror",
        "temperror",
    )


@pytest.mark.parametrize(("record", "result"), [("ptr:example.com.", "pass"), ("ptr:example.com", "pass")])
def test_a_target_may_end_in_a_dot(record: str, result: str) -> None:
    assert evaluated(f"v=spf1 {record} -all", "192.0.2.65").result == result


def test_a_ptr_name_that_dns_is_silent_about_is_unknown() -> None:
    extra = {("99.2.0.192.in-addr.arpa", "PTR"): ["silent.example.com"]}
    # Names that the mechanism does not ask for decide nothing.
    assert evaluated("v=spf1 ptr:example.org -all", "192.0.2.99", extra).result == "fail"
    assert evaluated("v=spf1 ptr:silent.example.com -all", "192.0.2.99", extra).result == "temperror"
