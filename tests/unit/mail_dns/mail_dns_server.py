# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small real DNS server on loopback, UDP and TCP, with the faults that real ones have, and a deployment's zone."""

from __future__ import annotations

import base64
import contextlib
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

#: A zone: records by name and type; a string instead of a list is a fault.
Zone = dict[tuple[str, str], list[str] | str]


class DnsServer:
    """Answers from C(zone). Faults: servfail, refused, silent, truncated, garbage. C(raw) makes any answer's bytes."""

    def __init__(self, zone: Zone, latency: float = 0.0, raw: Callable[[bytes], bytes | None] | None = None) -> None:
        self.zone = zone
        self.latency = latency
        self.raw = raw
        self.asked: list[tuple[str, str]] = []
        self.over_tcp = 0

    def answer(self, wire: bytes, tcp: bool) -> bytes | None:
        """The reply to a query, None for silence."""
        self.over_tcp += tcp
        if self.latency:
            time.sleep(self.latency)
        if self.raw:
            return self.raw(wire)
        query = dns.message.from_wire(wire)
        reply = dns.message.make_response(query, recursion_available=True)
        name, rtype = query.question[0].name, dns.rdatatype.to_text(query.question[0].rdtype)
        self.asked.append((name.to_text(omit_final_dot=True).lower(), rtype))
        fault = self._fill(reply, name.to_text(omit_final_dot=True).lower(), rtype)
        if fault == "silent":
            return None
        if fault == "garbage":
            return wire[:2] + b"\x84\x00garbage"
        too_long = len(reply.to_wire(max_size=65535)) > query.payload
        if not tcp and (fault == "truncated" or too_long):
            reply.answer.clear()
            reply.flags |= dns.flags.TC
        if fault in ("servfail", "refused"):
            reply.set_rcode(dns.rcode.SERVFAIL if fault == "servfail" else dns.rcode.REFUSED)
        return reply.to_wire(max_size=65535)

    def _fill(self, reply: dns.message.Message, name: str, rtype: str) -> str | None:
        fault = self.zone.get((name, "fault"))
        found = self.zone.get((name, rtype))
        if isinstance(found, str):
            return found
        if found is not None:
            reply.answer.append(dns.rrset.from_text_list(name + ".", 60, dns.rdataclass.IN, rtype, found))
        elif alias := self.zone.get((name, "CNAME")):
            reply.answer.append(dns.rrset.from_text_list(name + ".", 60, dns.rdataclass.IN, "CNAME", alias))
        elif not any(owner == name or owner.endswith("." + name) for owner, _ in self.zone):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return fault if isinstance(fault, str) else None


@contextlib.contextmanager
def serving(server: DnsServer) -> Iterator[str]:
    """Run the server; gives its address as the option C(resolvers) takes it."""

    class Udp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            wire, sock = self.request
            if reply := server.answer(wire, tcp=False):
                sock.sendto(reply, self.client_address)

    class Tcp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            (length,) = struct.unpack("!H", self.request.recv(2))
            if reply := server.answer(self.request.recv(length), tcp=True):
                self.request.sendall(struct.pack("!H", len(reply)) + reply)

    class ThreadingTcp(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    class ThreadingUdp(socketserver.ThreadingUDPServer):
        daemon_threads = True
        request_queue_size = 512

    tcp = ThreadingTcp(("127.0.0.1", 0), Tcp)
    udp = ThreadingUdp(tcp.server_address, Udp)
    udp.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    running: list[Any] = [tcp, udp]
    for part in running:
        threading.Thread(target=part.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"127.0.0.1:{tcp.server_address[1]}"
    finally:
        for part in running:
            part.shutdown()
            part.server_close()


CONTROL = "cabal-control.example"
IP = "198.51.100.125"


def public_key(bits: int = 2048) -> str:
    """A real RSA key, base64 as DKIM publishes it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits).public_key()
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


KEY = public_key()


def txt(text: str) -> str:
    """A TXT record's text, in strings of at most 255 characters."""
    parts = [text[at : at + 255] for at in range(0, len(text), 255)] or [""]
    return " ".join('"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"' for part in parts)


def standard() -> Zone:
    """Control domain, one address subdomain, one outbound address."""
    return {
        (CONTROL, "TXT"): [txt(f"v=spf1 ip4:{IP}/32 ~all"), txt("some-verification=1")],
        (f"cabal._domainkey.{CONTROL}", "TXT"): [txt(f"v=DKIM1; k=rsa; p={KEY}")],
        (f"_dmarc.{CONTROL}", "TXT"): [txt("v=DMARC1; p=reject; rua=mailto:dmarc@x.example; fo=1; pct=100")],
        (f"smtp.{CONTROL}", "A"): [IP],
        (f"smtp-out.{CONTROL}", "A"): ["203.0.113.10"],
        ("125.100.51.198.in-addr.arpa", "PTR"): [f"smtp.{CONTROL}."],
        ("news.harborlight.example", "MX"): [f"10 smtp-in.{CONTROL}."],
        ("news.harborlight.example", "TXT"): [txt(f"v=spf1 include:{CONTROL} ~all")],
        ("cabal._domainkey.news.harborlight.example", "CNAME"): [f"cabal._domainkey.{CONTROL}."],
        ("_dmarc.news.harborlight.example", "CNAME"): [f"_dmarc.{CONTROL}."],
    }
