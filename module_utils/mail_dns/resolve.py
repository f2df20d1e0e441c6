# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to DNS: asked once each, side by side, each answer kept with who gave it and when.

What DNS says (a record, no such record, no such name) is told apart from DNS not saying anything (a server's failure
or refusal, silence, an answer that cannot be read): the latter is never taken for "missing".
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset

Status = Literal["found", "no_data", "no_name", "server_failure", "refused", "unreachable", "timeout", "malformed"]

MAX_CNAMES = 8
#: Records of one answer, and characters of one record, that are looked at; more is an attack or a mistake.
MAX_RECORDS = 100
MAX_TEXT = 4096
#: Sockets open at once.
MAX_PARALLEL = 64

_WORDS: dict[Status, str] = {
    "found": "answered",
    "no_data": "has no such record",
    "no_name": "does not exist",
    "server_failure": "could not be resolved (server failure)",
    "refused": "was refused by the resolver",
    "unreachable": "could not be asked, since the resolver cannot be reached",
    "timeout": "got no answer in time",
    "malformed": "got an answer that cannot be read",
}


@dataclass(frozen=True)
class Server:
    """A resolver."""

    ip: str
    port: int = 53

    def __str__(self) -> str:
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return host if self.port == 53 else f"{host}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """What DNS said to one question. C(cnames): the aliases that were followed, in order, the last one the owner."""

    name: str
    rtype: str
    status: Status
    records: tuple[str, ...] = ()
    cnames: tuple[str, ...] = ()
    resolver: str = ""
    asked_at: str = ""
    seconds: float = 0.0

    @property
    def known(self) -> bool:
        """Whether DNS said something, be it that there is nothing."""
        return self.status in ("found", "no_data", "no_name")

    def sentence(self) -> str:
        """One sentence on what came of the question."""
        by = f" (asked {self.resolver})" if self.resolver else ""
        return f"{self.name} {self.rtype} {_WORDS[self.status]}{by}."

    def evidence(self) -> dict[str, Any]:
        """The question and the answer as a fact."""
        return {
            "query": f"{self.name} {self.rtype}",
            "status": self.status,
            "answer": list(self.records),
            "cnames": list(self.cnames),
            "resolver": self.resolver,
            "time": self.asked_at,
            "seconds": round(self.seconds, 3),
        }


Ask = Callable[[str, str], Awaitable[Answer]]


def parse_server(text: str) -> Server:
    """C(192.0.2.1), C(192.0.2.1:5353), C(2001:db8::1) or C([2001:db8::1]:5353); ValueError otherwise."""
    host, port = text.strip(), 53
    if host.startswith("["):
        host, bracket, rest = host[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            host = ""
        port = _port(rest[1:], text) if rest.startswith(":") else port
    elif host.count(":") == 1:
        host, _, rest = host.partition(":")
        port = _port(rest, text)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"'{text}' is no resolver: give an IP address, or an IP address and a port.") from None
    return Server(host, port)


def _port(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise ValueError(f"'{whole}' is no resolver: its port is no number from 1 to 65535.")
    return int(text)


def system_servers() -> list[Server]:
    """The resolvers of this machine, none when it has no configuration."""
    try:
        configured = dns.resolver.Resolver(configure=True).nameservers
    except (dns.exception.DNSException, OSError):
        return []
    return [Server(str(address)) for address in configured if _is_ip(str(address))]


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@dataclass
class Resolver:
    """Asks the servers in turn; every question is put once and its answer shared.

    timeout: seconds for one try. tries: tries for one question over all servers. deadline: C(time.monotonic()) after
    which no question is put any more and none is waited for.
    """

    servers: Sequence[Server]
    timeout: float
    tries: int
    deadline: float
    _asked: dict[tuple[str, str], asyncio.Task[Answer]] = field(default_factory=dict)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_PARALLEL))

    async def ask(self, name: str, rtype: str) -> Answer:
        """Return the answer to a question; never raises and never takes longer than the deadline.

        Aliases that the server has not followed are followed here; a circle or a long chain of them tells nothing.
        """
        asked = name.rstrip(".").lower()
        cnames: list[str] = []
        while True:
            answer = await self._once(cnames[-1] if cnames else asked, rtype)
            cnames += answer.cnames
            dangling = answer.status == "no_data" and bool(answer.cnames)
            if not dangling or len(cnames) > MAX_CNAMES:
                return replace(
                    answer, name=asked, status="server_failure" if dangling else answer.status, cnames=tuple(cnames)
                )

    def answers(self) -> list[Answer]:
        """All answers so far, in the order of the questions."""
        return [task.result() for task in self._asked.values() if task.done() and not task.cancelled()]

    def was_asked(self, name: str, rtype: str) -> bool:
        """Whether this very question was put."""
        return (name, rtype) in self._asked

    async def _once(self, name: str, rtype: str) -> Answer:
        if (name, rtype) not in self._asked:
            self._asked[name, rtype] = asyncio.ensure_future(self._tries(name, rtype))
        return await self._asked[name, rtype]

    async def _tries(self, name: str, rtype: str) -> Answer:
        answer = Answer(name, rtype, "timeout")
        try:
            query = dns.message.make_query(dns.name.from_text(name), rtype, use_edns=True, payload=1232)
        except (dns.exception.DNSException, UnicodeError, ValueError):
            return Answer(name, rtype, "no_name")  # what cannot be a name has no record
        for number in range(self.tries if self.servers else 0):
            server = self.servers[number % len(self.servers)]
            async with self._slots:
                left = self.deadline - time.monotonic()
                if left <= 0:
                    break
                answer = await _exchange(query, server, name, rtype, min(self.timeout, left))
            if answer.known:
                break
        return answer


class Trace:
    """Asks a resolver and remembers what was asked, so that a conclusion can name what it rests on."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._asked: dict[str, None] = {}

    async def ask(self, name: str, rtype: str) -> Answer:
        """As C(Resolver.ask)."""
        answer = await self._resolver.ask(name, rtype)
        self._asked[f"{answer.name} {rtype}"] = None
        # Aliases that the server had followed by itself were no questions of ours.
        self._asked.update(
            {f"{alias} {rtype}": None for alias in answer.cnames if self._resolver.was_asked(alias, rtype)}
        )
        return answer

    def queries(self) -> list[str]:
        """The questions in the order in which they were answered."""
        return list(self._asked)


async def _exchange(query: dns.message.Message, server: Server, name: str, rtype: str, timeout: float) -> Answer:
    """One try with one server, over TCP when the answer does not fit into a datagram."""
    began = time.monotonic()
    asked_at = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
    records: tuple[str, ...] = ()
    cnames: tuple[str, ...] = ()
    try:
        async with asyncio.timeout(timeout):
            reply, _ = await dns.asyncquery.udp_with_fallback(
                query, server.ip, timeout=timeout, port=server.port, ignore_unexpected=True
            )
        status, records, cnames = read_reply(reply, rtype)
    except (TimeoutError, dns.exception.Timeout):
        status = "timeout"
    except OSError:
        status = "unreachable"
    except Exception:  # whatever shape a hostile answer has, it is an answer that cannot be read
        status = "malformed"
    return Answer(name, rtype, status, records, cnames, str(server), asked_at, time.monotonic() - began)


def read_reply(reply: dns.message.Message, rtype: str) -> tuple[Status, tuple[str, ...], tuple[str, ...]]:
    """Status, records and aliases of a reply."""
    rcode = reply.rcode()
    if rcode == dns.rcode.REFUSED:
        return "refused", (), ()
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return "server_failure", (), ()
    cnames, owner = _follow(reply)
    found = [
        text
        for rrset in reply.answer
        if rrset.name == owner and rrset.rdtype == dns.rdatatype.from_text(rtype)
        for text in (_text(rdata) for rdata in rrset)
    ]
    if found:
        return "found", tuple(found[:MAX_RECORDS]), cnames
    if rcode == dns.rcode.NXDOMAIN:
        return "no_name", (), cnames
    if not cnames and _is_referral(reply):
        return "server_failure", (), ()
    return "no_data", (), cnames


def _follow(reply: dns.message.Message) -> tuple[tuple[str, ...], dns.name.Name]:
    """The aliases in a reply from the name asked for on, and the name they end at."""
    owner = reply.question[0].name
    targets = {
        rrset.name: rrset[0].target for rrset in reply.answer if rrset.rdtype == dns.rdatatype.CNAME and len(rrset)
    }
    cnames: list[str] = []
    while owner in targets and len(cnames) <= MAX_CNAMES:
        owner = targets[owner]
        cnames.append(owner.to_text(omit_final_dot=True).lower())
    return tuple(cnames), owner


def _is_referral(reply: dns.message.Message) -> bool:
    """Whether a server that answers only for its own zones sends us elsewhere; that says nothing on the name."""
    kinds = {rrset.rdtype for rrset in reply.authority}
    return (
        dns.rdatatype.NS in kinds and dns.rdatatype.SOA not in kinds and not reply.flags & (dns.flags.AA | dns.flags.RA)
    )


def _text(rdata: Any) -> str:
    """A record as text: a TXT record's strings joined, as SPF, DKIM and DMARC want it; others in zone file form."""
    if rdata.rdtype == dns.rdatatype.TXT:
        joined: bytes = b"".join(rdata.strings)
        return joined.decode("ascii", "backslashreplace")[:MAX_TEXT]
    return str(rdata.to_text(origin=None, relativize=False))[:MAX_TEXT].rstrip(".").lower()
