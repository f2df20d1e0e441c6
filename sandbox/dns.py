# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An authoritative DNS server, UDP and TCP, for what Terraform publishes at release 1.3.5 and the scenario overrides.

It answers for the whole name space: a name that nobody published does not exist.
"""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections import defaultdict
from pathlib import Path
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset
import yaml

from . import dkim
from .model import NAMESPACE, DnsRecord, Scenario

TTL = 3600
NLB_ADDRESS = "203.0.113.25"
SELECTOR = "cabal"
BLOCKLISTS = Path(__file__).parents[1] / "data" / "blocklists.yml"
_TYPES = ("A", "AAAA", "MX", "TXT", "CNAME", "PTR", "NS")
_RCODES = {"servfail": dns.rcode.SERVFAIL, "refused": dns.rcode.REFUSED, "nxdomain": dns.rcode.NXDOMAIN}
_MAX_CHAIN = 8

Records = dict[tuple[str, str], list[str]]


def published(scenario: Scenario) -> Records:
    """What Terraform and the address Lambdas publish: (name with a dot at its end, type) to texts as in a zone file."""
    records: Records = defaultdict(list)
    control = scenario.control_domain + "."
    eips = [eip.ip for eip in scenario.network.addresses]
    records[control, "TXT"] = [" ".join(["v=spf1", *(f"ip4:{ip}/32" for ip in eips), "~all"])]
    records[f"{SELECTOR}._domainkey.{control}", "TXT"] = [f"v=DKIM1; k=rsa; p={dkim.public_half()}"]
    apexes = scenario.apexes
    if apexes:
        reports = f"mailto:dmarc-reports@mail-admin.{apexes[0]}"
        records[f"_dmarc.{control}", "TXT"] = [f"v=DMARC1; p=reject; rua={reports}; ruf={reports}; fo=1; pct=100"]
    records[f"smtp.{control}", "A"] = eips
    for host in ("imap", "smtp-in", "smtp-out"):
        records[f"{host}.{control}", "A"] = [NLB_ADDRESS]
    for ip in eips:
        records[dns.reversename.from_address(ip).to_text(), "PTR"] = [f"smtp.{control}"]
    for domain in _address_domains(scenario):
        records[domain, "MX"] = [f"10 smtp-in.{control}"]
        records[domain, "TXT"] = [f"v=spf1 include:{scenario.control_domain} ~all"]
        records[f"{SELECTOR}._domainkey.{domain}", "CNAME"] = [f"{SELECTOR}._domainkey.{control}"]
        records[f"_dmarc.{domain}", "CNAME"] = [f"_dmarc.{control}"]
        records[f"default._bimi.{domain}", "TXT"] = ["v=BIMI1; l=; a="]
    for apex in apexes:
        records[apex + ".", "NS"] = [f"ns.{control}"]
    records[control, "NS"] = [f"ns.{control}"]
    records |= _test_entries()
    for name, addresses in scenario.discovery.items():
        if addresses:
            records[f"{name}.{NAMESPACE}.", "A"] = list(addresses)
    return dict(records)


def _test_entries() -> Records:
    """The entries that blocklists have for tests (RFC 5782), so that they are alive here and list nobody else."""
    entries = {}
    for row in yaml.safe_load(BLOCKLISTS.read_text(encoding="utf-8"))["blocklists"]:
        name = row.get("test", "127.0.0.2" if row["kind"] == "ip" else "test")
        if row["kind"] == "ip":
            address = ipaddress.ip_address(name)
            parts = name.split(".") if address.version == 4 else list(f"{int(address):032x}")
            name = ".".join(reversed(parts))
        entries[f"{name}.{row['zone']}.", "A"] = [next(iter(row["codes"]))]
    return entries


def _address_domains(scenario: Scenario) -> list[str]:
    """Address subdomains with an active address: a suspended one's records go, unless another shares them."""
    return sorted(
        {f"{row.subdomain}.{row.tld}." for row in scenario.addresses if row.subdomain is not None and not row.suspended}
    )


class Zone:
    """The records and faults that the server answers from."""

    def __init__(self, records: Records, overrides: tuple[DnsRecord, ...] = ()) -> None:
        self._records = {(name.lower(), kind): values for (name, kind), values in records.items()}
        self._faults: dict[tuple[str, str], str] = {}
        for override in overrides:
            self._override(override)
        self._names = _with_parents({name for name, _kind in self._records})

    def _override(self, record: DnsRecord) -> None:
        if record.name == "*.":
            self._faults["*.", "ANY"] = record.fault or ""
            return
        kinds = _TYPES if record.type == "ANY" else (record.type,)
        for kind in kinds:
            if record.fault is not None:
                self._faults[record.name, kind] = record.fault
            elif record.values is None:
                self._records.pop((record.name, kind), None)
        if record.values is not None and record.type != "ANY":
            self._records[record.name, record.type] = list(record.values)
            if record.type == "CNAME":
                for kind in _TYPES:
                    if kind != "CNAME":
                        self._records.pop((record.name, kind), None)
            elif (record.name, "CNAME") in self._records:
                del self._records[record.name, "CNAME"]

    def _everywhere(self, name: str) -> str | None:
        """The fault of all names but those of the VPC's own zone, which another resolver answers for."""
        return None if name.endswith(f".{NAMESPACE}.") else self._faults.get(("*.", "ANY"))

    def set_address(self, name: str, address: str, present: bool) -> None:
        """Add or remove one A record, as Cloud Map does."""
        values = self._records.setdefault((name, "A"), [])
        if present and address not in values:
            values.append(address)
        elif not present and address in values:
            values.remove(address)
        if not values:
            del self._records[name, "A"]
        self._names = _with_parents({name for name, _kind in self._records})

    def addresses(self, name: str) -> list[str]:
        """The A records of a name."""
        return list(self._records.get((name, "A"), []))

    def answer(self, query: dns.message.Message) -> dns.message.Message | None:
        """Answer a query; None means silence."""
        response = dns.message.make_response(query, recursion_available=True)
        response.flags |= dns.flags.AA
        if not query.question:
            response.set_rcode(dns.rcode.FORMERR)
            return response
        question = query.question[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        name = question.name.to_text().lower()
        for _step in range(_MAX_CHAIN):
            fault = self._faults.get((name, kind)) or self._everywhere(name)
            if fault == "timeout":
                return None
            if fault is not None:
                response.set_rcode(_RCODES[fault])
                return response
            if (name, kind) in self._records:
                response.answer.append(_rrset(name, kind, self._records[name, kind]))
                return response
            alias = self._records.get((name, "CNAME"))
            if alias is None:
                break
            response.answer.append(_rrset(name, "CNAME", alias))
            name = alias[0].lower()
        if name not in self._names:
            response.set_rcode(dns.rcode.NXDOMAIN)
        response.authority.append(_soa(name))
        return response


def _with_parents(names: set[str]) -> set[str]:
    """Every name with the empty non-terminals above it: those exist, without records."""
    found = {"."}
    for name in names:
        labels = name.split(".")
        found.update(".".join(labels[n:]) for n in range(len(labels) - 1))
    return found


def _rrset(name: str, kind: str, values: list[str]) -> dns.rrset.RRset:
    texts = [_txt(value) if kind == "TXT" else value for value in values]
    return dns.rrset.from_text_list(name, TTL if kind != "A" else 10, "IN", kind, texts)


def _txt(value: str) -> str:
    """Quote a text, in strings of at most 255 bytes."""
    parts = [value[n : n + 255] for n in range(0, len(value), 255)] or [""]
    return " ".join('"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"' for part in parts)


def _soa(name: str) -> dns.rrset.RRset:
    zone = ".".join(name.split(".")[-3:]) or "."
    text = "ns.cabal-control.example. hostmaster.cabal-control.example. 1 7200 900 1209600 60"
    return dns.rrset.from_text(zone, 60, "IN", "SOA", text)


class Server:
    """Serves a zone on one port, UDP and TCP. ``zone`` may be replaced while it runs."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.queries = 0
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """:raises OSError: when the port is taken."""
        loop = asyncio.get_running_loop()
        self._udp, _protocol = await loop.create_datagram_endpoint(lambda: _Udp(self), local_addr=(host, port))
        self._tcp = await asyncio.start_server(self._serve_tcp, host, port)

    async def stop(self) -> None:
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()

    def reply(self, wire: bytes, *, udp: bool) -> bytes | None:
        """Answer one message in wire form; None for silence, also to what is no DNS message."""
        self.queries += 1
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        response = self.zone.answer(query)
        if response is None:
            return None
        if not udp:
            return response.to_wire()
        limit = query.payload if query.edns >= 0 else 512
        try:
            return response.to_wire(max_size=max(limit, 512))
        except dns.exception.TooBig:
            response.answer.clear()
            response.authority.clear()
            response.flags |= dns.flags.TC
            return response.to_wire()

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                answer = self.reply(await reader.readexactly(length), udp=False)
                if answer is not None:
                    writer.write(struct.pack("!H", len(answer)) + answer)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        answer = self._server.reply(data, udp=True)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)
