# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the DNS server publishes and how it fails."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.resolver
import pytest

from sandbox import scenario
from sandbox.dns import Server, Zone, published
from tests.sandbox.conftest import SandboxUnderTest

WriteScenario = Callable[..., Path]
ADDRESSES = [
    {"address": "a@s.harborlight.example", "user": "alice"},
    {"address": "b@t.harborlight.example", "user": "alice", "suspended": True},
    {"address": "apex@harborlight.example", "user": "alice"},
]


def zone(folder: Path) -> Zone:
    loaded = scenario.load(folder, now=datetime.now(UTC), endpoint="http://127.0.0.1:1")
    return Zone(published(loaded), loaded.dns)


def ask(zone: Zone, name: str, kind: str) -> tuple[str, list[str]]:
    answer = zone.answer(dns.message.make_query(name, kind))
    assert answer is not None
    texts = [rdata.to_text() for rrset in answer.answer for rdata in rrset]
    return dns.rcode.to_text(answer.rcode()), texts


def test_what_terraform_publishes(write_scenario: WriteScenario) -> None:
    it = zone(
        write_scenario(addresses=ADDRESSES, network={"addresses": [{"ip": "198.51.100.1"}, {"ip": "198.51.100.2"}]})
    )
    control = "cabal-control.example"
    assert ask(it, control, "TXT")[1] == ['"v=spf1 ip4:198.51.100.1/32 ip4:198.51.100.2/32 ~all"']
    assert ask(it, f"smtp.{control}", "A")[1] == ["198.51.100.1", "198.51.100.2"]
    assert ask(it, "2.100.51.198.in-addr.arpa", "PTR")[1] == [f"smtp.{control}."]
    assert ask(it, "s.harborlight.example", "MX")[1] == [f"10 smtp-in.{control}."]
    assert ask(it, "s.harborlight.example", "TXT")[1] == [f'"v=spf1 include:{control} ~all"']
    alias, key = ask(it, "cabal._domainkey.s.harborlight.example", "TXT")[1]
    assert alias == f"cabal._domainkey.{control}."
    assert key.startswith('"v=DKIM1; k=rsa; p=')
    assert '" "' in key, "a 2048-bit key takes two strings"
    assert "p=reject" in ask(it, "_dmarc.s.harborlight.example", "TXT")[1][1]
    assert ask(it, "imap.cabal.internal", "A")[1] == ["10.0.2.45"]


@pytest.mark.parametrize("name", ["t.harborlight.example", "nowhere.example", "7.100.51.198.in-addr.arpa"])
def test_what_nobody_published_does_not_exist(write_scenario: WriteScenario, name: str) -> None:
    assert ask(zone(write_scenario(addresses=ADDRESSES)), name, "TXT") == ("NXDOMAIN", [])


def test_an_apex_exists_without_mail_records(write_scenario: WriteScenario) -> None:
    it = zone(write_scenario(addresses=ADDRESSES))
    assert ask(it, "harborlight.example", "MX") == ("NOERROR", [])
    assert ask(it, "_domainkey.s.harborlight.example", "TXT") == ("NOERROR", []), "an empty non-terminal"


def test_overrides(write_scenario: WriteScenario) -> None:
    records = [
        {"name": "cabal-control.example", "type": "TXT", "value": ["v=spf1 -all"]},
        {"name": "s.harborlight.example", "type": "MX", "value": None},
        {"name": "_dmarc.cabal-control.example", "type": "TXT", "fault": "servfail"},
        {"name": "slow.example", "type": "A", "fault": "timeout"},
        {"name": "cabal._domainkey.s.harborlight.example", "type": "ANY", "value": None},
    ]
    it = zone(write_scenario(dns={"records": records}))
    assert ask(it, "CABAL-control.example", "TXT")[1] == ['"v=spf1 -all"']
    assert ask(it, "s.harborlight.example", "MX") == ("NOERROR", [])
    assert ask(it, "_dmarc.s.harborlight.example", "TXT")[0] == "SERVFAIL"
    assert it.answer(dns.message.make_query("slow.example", "A")) is None
    assert ask(it, "cabal._domainkey.s.harborlight.example", "TXT")[0] == "NXDOMAIN"


def test_a_task_comes_and_goes(write_scenario: WriteScenario) -> None:
    it = zone(write_scenario())
    it.set_address("imap.cabal.internal.", "10.0.2.45", False)
    assert ask(it, "imap.cabal.internal", "A") == ("NXDOMAIN", [])
    it.set_address("imap.cabal.internal.", "10.0.2.99", True)
    assert ask(it, "imap.cabal.internal", "A")[1] == ["10.0.2.99"]


def test_udp_truncates_and_noise_is_ignored() -> None:
    server = Server(Zone({("big.example.", "TXT"): [f"{n}" * 250 for n in range(8)]}))
    query = dns.message.make_query("big.example", "TXT")
    cut = dns.message.from_wire(server.reply(query.to_wire(), udp=True) or b"")
    assert cut.flags & dns.flags.TC
    whole = dns.message.from_wire(server.reply(query.to_wire(), udp=False) or b"")
    assert len(whole.answer[0]) == 8
    assert server.reply(b"\x00noise", udp=True) is None


def test_over_the_network(quiet: SandboxUnderTest) -> None:
    query = dns.message.make_query("cabal._domainkey.cabal-control.example", "TXT")
    for ask_by in (dns.query.udp, dns.query.tcp):
        answer = ask_by(query, "127.0.0.1", port=quiet.port + 1, timeout=5)
        assert answer.rcode() == dns.rcode.NOERROR
        assert answer.flags & dns.flags.AA
    with socket.create_connection(("127.0.0.1", quiet.port + 1), timeout=5) as connection:
        connection.sendall(b"\x00\x05noise")
    assert dns.query.udp(query, "127.0.0.1", port=quiet.port + 1, timeout=5).answer
