# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every check against a real DNS server: in order, bad, and unknown."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import dns.exception
import dns.message
import pytest
from ansible.module_utils.mail_dns import dkim as dkim_records
from ansible.module_utils.mail_dns.blocklist import Blocklist
from ansible.module_utils.mail_dns.blocklist import read as read_listing
from ansible.module_utils.mail_dns.resolve import Answer, parse_server, read_reply
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mail_dns_server import CONTROL, IP, KEY, DnsServer, Zone, public_key, serving, txt

Check = Callable[..., dict[str, Any]]
NEWS = "news.harborlight.example"
UNKNOWN_FAULTS = ("servfail", "refused", "silent", "garbage")


def row(section: dict[str, Any]) -> dict[str, Any]:
    return dict(section["domains"][0])


def test_what_terraform_publishes_is_in_order(check: Check) -> None:
    section = check()
    assert (section["status"], section["reasons"]) == ("complete", [])
    found = row(section)
    assert {kind: found[kind]["status"] for kind in ("spf", "dkim", "dmarc", "mx")} == dict.fromkeys(
        ("spf", "dkim", "dmarc", "mx"), "ok"
    )
    assert found["spf"]["covers"] == {IP: True}
    assert found["spf"]["permits_everybody"] is False
    assert (found["dkim"]["key_type"], found["dkim"]["bits"]) == ("rsa", 2048)
    assert found["dkim"]["alias"] == f"cabal._domainkey.{CONTROL}"
    assert (found["dmarc"]["policy"], found["dmarc"]["alignment"]) == ("reject", {"dkim": "relaxed", "spf": "relaxed"})
    assert not any(found[kind]["differs"] for kind in ("spf", "dkim", "dmarc"))
    (address,) = section["addresses"]
    assert (address["fcrdns"], address["ptr"], address["helo"]["resolves"]) == (True, [f"smtp.{CONTROL}"], True)


def test_the_control_domain_is_judged_by_its_own_shape(check: Check) -> None:
    found = row(check(CONTROL))
    assert found["spf"]["status"] == found["dkim"]["status"] == found["dmarc"]["status"] == "ok"
    assert not any(found[kind]["differs"] for kind in ("spf", "dkim", "dmarc"))


def test_every_answer_is_kept(check: Check) -> None:
    section = check()
    queries = {entry["query"]: entry for entry in section["queries"]}
    assert queries[f"{NEWS} TXT"]["answer"] == [f"v=spf1 include:{CONTROL} ~all"]
    assert queries[f"{NEWS} TXT"]["resolver"].startswith("127.0.0.1:")
    assert queries[f"{NEWS} TXT"]["time"].endswith("Z")
    assert section["queries_total"] == len(queries)


# -- bad


def test_spf_does_not_cover_the_outbound_address(zone: Zone, check: Check) -> None:
    zone[(CONTROL, "TXT")] = [txt("v=spf1 ip4:198.51.100.7/32 ~all")]
    spf = row(check())["spf"]
    assert (spf["status"], spf["covers"]) == ("fail", {IP: False})
    assert IP in spf["problem"]


def test_spf_is_missing(zone: Zone, check: Check) -> None:
    zone[(NEWS, "TXT")] = [txt("google-site-verification=1")]
    assert row(check())["spf"]["status"] == "missing"


def test_two_addresses_of_which_one_is_covered(zone: Zone, check: Check) -> None:
    spf = row(check(addresses=[IP, "198.51.100.126", "2001:db8::1"]))["spf"]
    assert spf["covers"] == {IP: True, "198.51.100.126": False, "2001:db8::1": False}
    assert spf["status"] == "fail"


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ("v=spf1 include:nowhere.example ~all", "no SPF record"),
        ("v=spf1 inlcude:x.example ~all", "no SPF term"),
        ("v=spf1 ip4:300.1.1.1 ~all", "no address"),
        ("v=spf1 redirect=nowhere.example", "no SPF record"),
    ],
)
def test_spf_cannot_be_used(zone: Zone, check: Check, record: str, problem: str) -> None:
    zone[(NEWS, "TXT")] = [txt(record)]
    spf = row(check())["spf"]
    assert spf["status"] == "invalid"
    assert problem in spf["problem"]
    assert record in spf["differs"]


def test_several_spf_records(zone: Zone, check: Check) -> None:
    zone[(NEWS, "TXT")] = [txt(f"v=spf1 include:{CONTROL} ~all"), txt("v=spf1 -all")]
    spf = row(check())["spf"]
    assert spf["status"] == "invalid"
    assert "2 SPF records" in spf["problem"]


def test_more_than_ten_lookups(zone: Zone, check: Check) -> None:
    zone[(NEWS, "TXT")] = [txt("v=spf1 " + " ".join(f"include:i{n}.example" for n in range(11)) + " ~all")]
    for number in range(11):
        zone[(f"i{number}.example", "TXT")] = [txt("v=spf1 ?all")]
    spf = row(check())["spf"]
    assert spf["status"] == "invalid"
    assert "more than 10 DNS lookups" in spf["problem"]


def test_a_record_that_lets_everybody_send(zone: Zone, check: Check) -> None:
    zone[(NEWS, "TXT")] = [txt("v=spf1 +all")]
    spf = row(check())["spf"]
    assert (spf["status"], spf["permits_everybody"]) == ("fail", True)


def test_dkim_is_missing(zone: Zone, check: Check) -> None:
    del zone[(f"cabal._domainkey.{NEWS}", "CNAME")]
    dkim = row(check())["dkim"]
    assert (dkim["status"], dkim["record"]) == ("missing", None)


def test_the_alias_leads_nowhere(zone: Zone, check: Check) -> None:
    zone[(f"cabal._domainkey.{NEWS}", "CNAME")] = ["gone.example."]
    dkim = row(check())["dkim"]
    assert (dkim["status"], dkim["alias"]) == ("missing", "gone.example")
    assert "alias of gone.example" in dkim["problem"]


@pytest.mark.parametrize(
    ("record", "status", "problem"),
    [
        ("v=DKIM1; k=rsa; p=", "fail", "revoked"),
        ("v=DKIM1; k=rsa; p=!!!", "invalid", "base64"),
        ("v=DKIM1; k=rsa; p=AAAA", "invalid", "no RSA key"),
        (f"v=DKIM1; k=rsa; p={KEY[:100]}", "invalid", "cut off"),
        (f"v=DKIM1; k=rot13; p={KEY}", "invalid", "rot13"),
        (f"v=DKIM1; h=sha1; p={KEY}", "invalid", "sha256"),
        (f"v=DKIM1; s=xmpp; p={KEY}", "invalid", "email"),
        (f"v=DKIM1; p={KEY}; p={KEY}", "invalid", "twice"),
    ],
)
def test_dkim_cannot_be_used(zone: Zone, check: Check, record: str, status: str, problem: str) -> None:
    zone[(f"cabal._domainkey.{NEWS}", "TXT")] = [txt(record)]
    dkim = row(check())["dkim"]
    assert dkim["status"] == status
    assert problem in dkim["problem"]


def test_a_short_key(zone: Zone, check: Check) -> None:
    # 1024 bits are the least that the library still makes; its modulus is cut to half by hand below.
    zone[(f"cabal._domainkey.{NEWS}", "TXT")] = [txt(f"p={public_key(1024)}")]
    assert row(check())["dkim"]["bits"] == 1024
    modulus = (1 << 511) | 1
    integer = modulus.to_bytes(65, "big")
    assert dkim_records.rsa_numbers(b"\x30\x48\x02\x41" + integer + b"\x02\x03\x01\x00\x01")[0].bit_length() == 512


def test_another_key_than_the_control_domains(zone: Zone, check: Check) -> None:
    zone[(f"cabal._domainkey.{NEWS}", "TXT")] = [txt(f"v=DKIM1; k=rsa; p={public_key()}")]
    dkim = row(check())["dkim"]
    assert dkim["status"] == "ok"
    assert f"cabal._domainkey.{CONTROL}" in dkim["differs"]


def test_dmarc_is_missing_even_at_the_organisational_domain(zone: Zone, check: Check) -> None:
    del zone[(f"_dmarc.{NEWS}", "CNAME")]
    dmarc = row(check())["dmarc"]
    assert dmarc["status"] == "missing"
    assert dmarc["from_organisational_domain"] == "harborlight.example"


def test_dmarc_of_the_organisational_domain(zone: Zone, check: Check) -> None:
    del zone[(f"_dmarc.{NEWS}", "CNAME")]
    zone[("_dmarc.harborlight.example", "TXT")] = [txt("v=DMARC1; p=none; sp=quarantine; adkim=s")]
    dmarc = row(check())["dmarc"]
    assert (dmarc["status"], dmarc["policy"], dmarc["alignment"]["dkim"]) == ("ok", "quarantine", "strict")


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        (["v=DMARC1; p=rejct"], "p=rejct"),
        (["v=DMARC1"], "p=(nothing)"),
        (["v=DMARC1; p=none; reject"], "no tag=value"),
        (["v=DMARC1; p=none", "v=DMARC1; p=reject"], "2 DMARC records"),
    ],
)
def test_dmarc_cannot_be_used(zone: Zone, check: Check, records: list[str], problem: str) -> None:
    zone[(f"_dmarc.{NEWS}", "TXT")] = [txt(record) for record in records]
    dmarc = row(check())["dmarc"]
    assert dmarc["status"] == "invalid"
    assert problem in dmarc["problem"]


@pytest.mark.parametrize(("hosts", "status"), [(["0 ."], "fail"), ([], "missing")])
def test_mx(zone: Zone, check: Check, hosts: list[str], status: str) -> None:
    zone.pop((NEWS, "MX"))
    if hosts:
        zone[(NEWS, "MX")] = hosts
    assert row(check())["mx"]["status"] == status


def test_ptr_is_missing(zone: Zone, check: Check) -> None:
    del zone[("125.100.51.198.in-addr.arpa", "PTR")]
    (address,) = check()["addresses"]
    assert (address["status"], address["fcrdns"], address["ptr"]) == ("missing", False, [])


def test_ptr_does_not_lead_back(zone: Zone, check: Check) -> None:
    zone[(f"smtp.{CONTROL}", "A")] = ["198.51.100.9"]
    (address,) = check()["addresses"]
    assert (address["status"], address["fcrdns"]) == ("fail", False)


def test_reverse_dns_of_ipv6(zone: Zone, check: Check) -> None:
    name = "1." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa"
    zone[(name, "PTR")] = [f"smtp.{CONTROL}."]
    zone[(f"smtp.{CONTROL}", "AAAA")] = ["2001:db8::1"]
    (address,) = check(addresses=["2001:db8::1"])["addresses"]
    assert address["fcrdns"] is True


# -- unknown


@pytest.mark.parametrize("fault", UNKNOWN_FAULTS)
@pytest.mark.parametrize(
    ("name", "rtype", "kind"),
    [
        (NEWS, "TXT", "spf"),
        (CONTROL, "TXT", "spf"),
        (f"cabal._domainkey.{NEWS}", "TXT", "dkim"),
        (f"cabal._domainkey.{CONTROL}", "TXT", "dkim"),
        (f"_dmarc.{NEWS}", "TXT", "dmarc"),
        (NEWS, "MX", "mx"),
    ],
)
def test_what_dns_does_not_say_is_unavailable(
    zone: Zone, check: Check, name: str, rtype: str, kind: str, fault: str
) -> None:
    zone[(name, rtype)] = fault
    section = check(timeout=0.15)
    found = row(section)[kind]
    assert found["status"] == "unavailable"
    assert found["problem"]
    assert section["status"] == "partial"
    assert section["reasons"]
    assert row(section)["mx" if kind != "mx" else "spf"]["status"] == "ok"
    if kind == "spf":
        assert found["covers"] == {IP: None}


@pytest.mark.parametrize("fault", UNKNOWN_FAULTS)
@pytest.mark.parametrize("name", ["125.100.51.198.in-addr.arpa", f"smtp.{CONTROL}"])
def test_reverse_dns_unknown(zone: Zone, check: Check, name: str, fault: str) -> None:
    zone[(name, "PTR" if "arpa" in name else "A")] = fault
    (address,) = check(timeout=0.15)["addresses"]
    assert (address["status"], address["fcrdns"]) == ("unavailable", None)


def test_without_outbound_addresses_spf_is_not_called_in_order(check: Check) -> None:
    spf = row(check(addresses=[]))["spf"]
    assert spf["status"] == "unavailable"
    assert "not known" in spf["problem"]


@pytest.mark.parametrize(("txt_of_name", "policy"), [(None, "reject"), ([txt("hello")], "none"), ("servfail", None)])
def test_a_name_that_dns_does_not_know_has_the_policy_of_its_own(
    zone: Zone, check: Check, txt_of_name: list[str] | str | None, policy: str | None
) -> None:
    for key in [key for key in zone if key[0] == NEWS or key[0].endswith("." + NEWS)]:
        del zone[key]
    if txt_of_name:
        zone[(NEWS, "TXT")] = txt_of_name
    zone[("_dmarc.harborlight.example", "TXT")] = [txt("v=DMARC1; p=quarantine; sp=none; np=reject")]
    assert row(check())["dmarc"]["policy"] == policy


def test_an_error_behind_the_term_that_covers_us_does_not_reach_us(zone: Zone, check: Check) -> None:
    includes = " ".join(f"include:i{number}.example" for number in range(11))
    zone.update({(f"i{number}.example", "TXT"): [txt("v=spf1 -all")] for number in range(11)})
    zone[(NEWS, "TXT")] = [txt(f"v=spf1 ip4:{IP} {includes} ~all")]
    assert row(check())["spf"]["status"] == "ok"
    zone[(NEWS, "TXT")] = [txt(f"v=spf1 {includes} ip4:{IP} ~all")]
    assert row(check())["spf"]["status"] == "invalid"
    assert "more than 10" in row(check(addresses=[]))["spf"]["problem"]


def test_dmarc_of_the_parent_unknown_is_not_missing(zone: Zone, check: Check) -> None:
    del zone[(f"_dmarc.{NEWS}", "CNAME")]
    zone[("_dmarc.harborlight.example", "TXT")] = "servfail"
    assert row(check())["dmarc"]["status"] == "unavailable"


def test_no_resolver(check: Check) -> None:
    section = check(servers=[])
    assert section["status"] == "unavailable"
    assert "cabalmail_dns_resolvers" in section["reasons"][0]
    assert row(section)["spf"]["status"] == "unavailable"


def test_all_of_dns_is_silent(check: Check) -> None:
    began = time.monotonic()
    section = check(server=DnsServer({}, raw=lambda wire: None), deadline=0.6, timeout=0.25)
    assert time.monotonic() - began < 2
    assert section["status"] == "unavailable"
    assert {row(section)[kind]["status"] for kind in ("spf", "dkim", "dmarc", "mx")} == {"unavailable"}


def test_the_deadline_holds_for_many_domains(zone: Zone, check: Check) -> None:
    began = time.monotonic()
    names = [f"d{number}.example" for number in range(300)]
    section = check(server=DnsServer(zone, raw=lambda wire: None), domains=names, deadline=0.7, timeout=0.3)
    assert time.monotonic() - began < 3
    assert len(section["domains"]) == 300


# -- the way there


def test_long_answers_come_over_tcp(zone: Zone, check: Check) -> None:
    server = DnsServer(zone)
    zone[(f"cabal._domainkey.{CONTROL}", "fault")] = "truncated"
    assert row(check(server=server))["dkim"]["status"] == "ok"
    assert server.over_tcp


def test_a_second_try_and_a_second_resolver(zone: Zone, check: Check) -> None:

    with serving(DnsServer({}, raw=lambda wire: None)) as dead, serving(DnsServer(zone)) as living:
        servers = [parse_server(dead), parse_server(living)]
        section = check(servers=servers, timeout=0.2)
    assert row(section)["spf"]["status"] == "ok"


def test_each_question_is_put_once(zone: Zone, check: Check) -> None:
    server = DnsServer(zone)
    check(server=server, domains=[NEWS, NEWS.upper() + ".", NEWS])
    assert len(server.asked) == len(set(server.asked))


def test_aliases_in_a_circle(zone: Zone, check: Check) -> None:
    zone[(f"cabal._domainkey.{NEWS}", "CNAME")] = ["b.example."]
    zone[("b.example", "CNAME")] = [f"cabal._domainkey.{NEWS}."]
    assert row(check())["dkim"]["status"] == "unavailable"


@pytest.mark.parametrize(
    "name", ["", "nodots", "a..b", "-x.example", "x" * 64 + ".example", "a b.example", "\ud800.x", "é.example"]
)
def test_odd_domain_names_end_quietly(check: Check, name: str) -> None:
    found = row(check(name))
    assert all(found[kind]["status"] != "ok" for kind in ("spf", "dkim", "dmarc", "mx"))


KINDS = ("spf", "dkim", "dmarc", "mx", "mta_sts", "tls_rpt")
LIST = Blocklist("Some", "bl.example", "ip", "spam", {"127.0.0.2": "spam"}, "https://x", "high", families=(4, 6))


@st.composite
def mangled(draw: st.DrawFn) -> Callable[[bytes, bytes], bytes | None]:
    """How a hostile or broken server turns the right answer to a question into what it sends."""
    kind = draw(st.sampled_from(["noise", "header", "cut", "damage", "padding", "other", "silence"]))
    noise = draw(st.binary(max_size=600))
    places = draw(st.lists(st.tuples(st.integers(2, 500), st.integers(0, 255)), min_size=1, max_size=12))
    at = draw(st.integers(0, 600))

    def answer(question: bytes, good: bytes) -> bytes | None:
        if kind == "silence":
            return None
        if kind == "noise":
            return noise
        if kind == "header":
            return question[:2] + noise
        if kind == "cut":
            return good[:at]
        if kind == "padding":
            return good + b"\xc0\x0c" * 50
        if kind == "other":
            # Another type of record under the name that was asked for, with whatever bytes in it.
            return question[:2] + b"\x84\x00\x00\x01\x00\x01\x00\x00\x00\x00" + question[12:] + noise
        damaged = bytearray(good)
        for place, value in places:
            if place < len(damaged):
                damaged[place] = value
        return bytes(damaged)

    return answer


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(mangled(), min_size=1, max_size=4))
def test_no_answer_of_any_shape_raises_or_hangs(
    zone: Zone, check: Check, manglers: list[Callable[[bytes, bytes], bytes | None]]
) -> None:
    turn = itertools.cycle(manglers)

    def raw(question: bytes) -> bytes | None:
        return next(turn)(question, DnsServer(zone).answer(question, tcp=False) or b"")

    server = DnsServer(zone, raw=raw)
    section = check(server=server, timeout=0.05, deadline=0.5, blocklists=[LIST], addresses=[IP, "2001:db8::1"])
    assert section["status"] in ("complete", "partial", "unavailable")
    assert set(row(section)) == {"domain", *KINDS}


@given(st.sampled_from(["TXT", "A", "MX", "PTR", "AAAA", "CNAME"]), st.binary(max_size=400))
def test_no_reply_makes_the_reader_fail_otherwise(rtype: str, data: bytes) -> None:
    """What a reply says is read as a status, whatever stands in it."""
    question = dns.message.make_query("news.harborlight.example", rtype)
    wire = question.to_wire()
    try:
        reply = dns.message.from_wire(wire[:2] + b"\x84\x00\x00\x01\x00\x01\x00\x00\x00\x00" + wire[12:] + data)
    except (dns.exception.DNSException, ValueError, IndexError):
        return
    status, records, _ = read_reply(reply, rtype)
    assert status in ("found", "no_data", "no_name", "server_failure", "refused")
    for record in records:
        answer = Answer("x", "A", status, (record,))
        assert read_listing(LIST, answer).status in ("listed", "not_listed", "unavailable")


HOSTILE = [
    "v=spf1 " + "include:" * 50,
    "v=spf1 a:%{" * 20,
    "v=spf1 exists:%{i99999999r}.%{d0}.%{S1r-}.example -all",
    "v=spf1 ip4:1.2.3.4/99999999999999999999",
    "v=spf1 a//999 mx/33",
    "v=spf1 redirect=redirect=x redirect=y",
    "v=spf1 include:" + "a." * 2000 + "example",
    "v=spf1 \\000\\255",
    "v=DKIM1; p=" + "A" * 4000,
    "v=DKIM1;" + ";" * 3000,
    "v=DMARC1; p=reject; pct=999999999999999999999999999; rua=" + "," * 3000,
    "v=DMARC1; p=\u0660",
]


@pytest.mark.parametrize("record", HOSTILE)
def test_hostile_records(zone: Zone, check: Check, record: str) -> None:
    texts = [txt(record.encode("ascii", "backslashreplace").decode())]
    for name in (NEWS, f"cabal._domainkey.{NEWS}", f"_dmarc.{NEWS}"):
        zone[(name, "TXT")] = texts
    found = row(check())
    assert {found[kind]["status"] for kind in ("spf", "dkim", "dmarc")} <= {"ok", "missing", "invalid", "fail"}
