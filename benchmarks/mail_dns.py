# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All checks on a hundred sending domains and twenty blocklists, against a DNS server that takes 30 ms to answer."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.connection import Connection
from typing import cast

from module_utils.mail_dns.blocklist import Blocklist
from module_utils.mail_dns.check import Request, run
from module_utils.mail_dns.resolve import Server
from sandbox import dkim, dns

from .timing import BenchmarkError, Options, Row, Usage, side_by_side, timed

LATENCY = 0.03
LIMIT_SECONDS = 5.0
CONTROL, IP = "control.example", "198.51.100.125"
LISTS = 20


def measure(options: Options) -> list[Row]:
    """The row of the table."""
    count = min(100, options.tasks)
    names = [f"s{number}.mail{number % 10}.example" for number in range(count)]
    ready, other = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(other, names), daemon=True)
    server.start()
    try:
        if not ready.poll(30):
            raise BenchmarkError("The DNS server did not start.")
        return [_row(names, ready.recv(), options)]
    finally:
        server.kill()
        server.join()


def _row(names: list[str], port: int, options: Options) -> Row:
    request = Request(
        domains=names,
        addresses=[IP],
        control_domain=CONTROL,
        servers=[Server("127.0.0.1", port)],
        mail_domains=names,
        blocklists=[_list(number) for number in range(LISTS)],
        deadline=60.0,
    )
    asked: list[int] = []

    def check() -> Usage:
        facts = {}
        usage = timed(lambda: facts.update(run(request)))
        asked.append(facts["queries_total"])
        if facts["status"] != "complete" or facts["blocklists"]["status"] != "complete":
            raise BenchmarkError(
                f"The checks were not complete: {[*facts['reasons'], *facts['blocklists']['reasons']]}"
            )
        return usage

    took = side_by_side(options.runs, check=check)["check"]
    return Row(
        f"mail_dns_info, {len(names)} domains on {LISTS} lists, {asked[-1]} questions, 30 ms each",
        f"{took.wall:.2f} s ({took.cpu:.2f} s CPU)",
        "one question after another",
        f"{asked[-1] * LATENCY:.0f} s of waiting",
        f"under {LIMIT_SECONDS:.0f} s",
        took.wall < LIMIT_SECONDS,
    )


def _list(number: int) -> Blocklist:
    return Blocklist(f"List {number}", _zone(number), "domain", "spam", {"127.0.0.2": "spam"}, "https://x", "high")


def _zone(number: int) -> str:
    return f"l{number}.lists.example"


def _records(names: list[str]) -> dns.Records:
    """What Terraform publishes for the domains, and lists that are alive."""
    records: dns.Records = {
        (f"{CONTROL}.", "TXT"): [f"v=spf1 ip4:{IP}/32 ~all"],
        (f"cabal._domainkey.{CONTROL}.", "TXT"): [f"v=DKIM1; k=rsa; p={dkim.public_half()}"],
        (f"_dmarc.{CONTROL}.", "TXT"): ["v=DMARC1; p=reject"],
        (f"smtp.{CONTROL}.", "A"): [IP],
        (f"smtp-out.{CONTROL}.", "A"): [IP],
        ("125.100.51.198.in-addr.arpa.", "PTR"): [f"smtp.{CONTROL}."],
    }
    for name in names:
        records[f"{name}.", "TXT"] = [f"v=spf1 include:{CONTROL} ~all"]
        records[f"{name}.", "MX"] = [f"10 smtp-in.{CONTROL}."]
        records[f"cabal._domainkey.{name}.", "CNAME"] = [f"cabal._domainkey.{CONTROL}."]
        records[f"_dmarc.{name}.", "CNAME"] = [f"_dmarc.{CONTROL}."]
    return records | {(f"test.{_zone(number)}.", "A"): ["127.0.0.2"] for number in range(LISTS)}


def _serve(ready: Connection, names: list[str]) -> None:
    asyncio.run(_serve_until_killed(ready, names))


async def _serve_until_killed(ready: Connection, names: list[str]) -> None:
    server = dns.Server(dns.Zone(_records(names)))
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Late(server), local_addr=("127.0.0.1", 0))
    ready.send(transport.get_extra_info("sockname")[1])
    await asyncio.Event().wait()


class _Late(asyncio.DatagramProtocol):
    """Answers each question, but so much later."""

    def __init__(self, server: dns.Server) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        asyncio.get_running_loop().call_later(LATENCY, self._answer, data, addr)

    def _answer(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        answer = self._server.reply(data, udp=True)
        if answer is not None:
            self._transport.sendto(answer, addr)
