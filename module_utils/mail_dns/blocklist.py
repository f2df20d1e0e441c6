# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of senders that receivers ask by DNS (DNSBL, RFC 5782): are our addresses and domains on them?

An answer counts as a listing only when the list documents it. "You may not ask" (127.255.255.x, a refusal, a code of
the list's own), an answer outside 127.0.0.0/8, one that nobody documents, silence, and a list that no longer knows its
own test entry or that lists everything are C(unavailable): neither listed nor not listed.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .resolve import Answer, Ask

Fact = dict[str, Any]

#: Answers of this network are about the question, never about who was asked for (Spamhaus, and others after it).
NOT_ABOUT_US = ipaddress.ip_network("127.255.255.0/24")
LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
#: RFC 5782, 5: an entry that every list of addresses has, and one that none has; the same of domains.
IP_TEST, IP_CONTROL = "127.0.0.2", "127.0.0.1"
DOMAIN_TEST, DOMAIN_CONTROL = "test", "invalid"
MAX_REASON = 300


@dataclass(frozen=True)
class Blocklist:
    """A list. C(codes): documented answers and what they mean; with C(bits) their last numbers are added up.

    C(refused): answers of its own for "you may not ask". C(test): the entry that it always has.
    """

    name: str
    zone: str
    kind: str
    meaning: str
    codes: Mapping[str, str]
    delist: str
    weight: str
    families: Sequence[int] = (4,)
    bits: bool = False
    refused: Sequence[str] = ()
    test: str = ""

    @property
    def test_entry(self) -> str:
        """The entry that the list must have."""
        return self.test or (IP_TEST if self.kind == "ip" else DOMAIN_TEST)

    @property
    def control_entry(self) -> str:
        """The entry that the list must not have."""
        if self.kind != "ip":
            return DOMAIN_CONTROL
        return IP_CONTROL if ":" not in self.test_entry else "::ffff:127.0.0.1"

    def question(self, target: str) -> str:
        """The name to ask for: an address backwards, a domain as it is, before the zone."""
        if self.kind != "ip":
            return f"{target}.{self.zone}"
        address = ipaddress.ip_address(target)
        parts = address.exploded.split(".") if address.version == 4 else list(f"{int(address):032x}")
        return f"{'.'.join(reversed(parts))}.{self.zone}"

    def takes(self, target: str) -> bool:
        """Whether the list is about such a target."""
        return self.kind != "ip" or ipaddress.ip_address(target).version in self.families


@dataclass(frozen=True)
class Reading:
    """What an answer of a list means. C(problem): why nothing can be concluded."""

    status: str
    codes: tuple[str, ...] = ()
    meanings: tuple[str, ...] = ()
    problem: str | None = None


def read(blocklist: Blocklist, answer: Answer) -> Reading:
    """Say what an answer means: C(listed), C(not_listed) or C(unavailable)."""
    if not answer.known:
        return Reading("unavailable", problem=answer.sentence())
    if answer.status != "found":
        return Reading("not_listed")
    texts = sorted(answer.records)
    for text in texts:
        if problem := _no_listing(blocklist, text):
            return Reading("unavailable", (text,), problem=f"{blocklist.zone} {problem}.")
    meanings = {text: _meanings(blocklist, text) for text in texts}
    # A code that nobody documents beside one that is documented does not undo the listing.
    listed = tuple(text for text in texts if meanings[text])
    if not listed:
        said = f"{blocklist.zone} answered {texts[0]}, which it does not document."
        return Reading("unavailable", (texts[0],), problem=said)
    return Reading("listed", listed, tuple(dict.fromkeys(meaning for text in listed for meaning in meanings[text])))


def _no_listing(blocklist: Blocklist, text: str) -> str | None:
    """Why an answer is no listing, whatever the list documents."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "answered what is no address"
    if address in NOT_ABOUT_US or text in blocklist.refused:
        return f"does not answer this resolver ({text}: open resolver, too many questions, or no registration)"
    if address not in LOOPBACK:
        return f"answered {text}, which no blocklist answers: the zone is in other hands"
    return None


def _meanings(blocklist: Blocklist, text: str) -> list[str]:
    if not blocklist.bits:
        return [blocklist.codes[text]] if text in blocklist.codes else []
    number = int(text.rpartition(".")[2])
    return [meaning for code, meaning in blocklist.codes.items() if number & int(code.rpartition(".")[2])]


async def check(ask: Ask, blocklists: Sequence[Blocklist], ips: Sequence[str], domains: Sequence[str]) -> Fact:
    """Ask every list about all that it is about; never raises.

    Returns the lists with their own state, and a row for each pair of target and list.
    """
    found = await asyncio.gather(*(_state(ask, entry) for entry in blocklists))
    states = [state for state, _ in found]
    discerning = {entry.zone for entry, (_, discerns) in zip(blocklists, found, strict=True) if discerns}
    pairs = [
        (entry, state, target)
        for entry, state in zip(blocklists, states, strict=True)
        for target in (ips if entry.kind == "ip" else domains)
        if entry.takes(target)
    ]
    results = await asyncio.gather(
        *(_result(ask, entry, state, entry.zone in discerning, target) for entry, state, target in pairs)
    )
    rows = [_list_fact(entry, state) for entry, state in zip(blocklists, states, strict=True)]
    reasons = [reason for row in rows for reason in _why_unknown(row, results)]
    if len(reasons) > 1 and all(row["problem"] for row in rows):
        reasons = [f"None of the {len(rows)} blocklists told us anything. {reasons[0]}"]
    status = "complete"
    if reasons:
        status = "partial" if any(row["status"] != "unavailable" for row in results) else "unavailable"
    return {"status": status, "reasons": reasons, "lists": rows, "results": list(results)}


def _why_unknown(row: Fact, results: Sequence[Fact]) -> list[str]:
    """One sentence on a list that told us nothing, or not all: not one for each question."""
    if row["problem"]:
        return [f"Blocklist {row['name']}: {row['problem']}"]
    lost = [result for result in results if result["zone"] == row["zone"] and result["status"] == "unavailable"]
    return [f"Blocklist {row['name']}, {len(lost)} of its answers: {lost[0]['problem']}"] if lost else []


async def _state(ask: Ask, entry: Blocklist) -> tuple[str | None, bool]:
    """Why the list cannot be trusted now, None when it can: it must have its test entry and lack the other one.

    And whether it was seen to lack the other one: a list that may hold everything accuses nobody.
    """
    test, control = await asyncio.gather(
        ask(entry.question(entry.test_entry), "A"), ask(entry.question(entry.control_entry), "A")
    )
    found, lacking = read(entry, test), read(entry, control)
    discerns = lacking.status == "not_listed"
    if lacking.status == "listed":
        return f"{entry.zone} lists everything (it has {entry.control_entry}, which no list has): it is dead.", discerns
    if found.status == "not_listed":
        dead = f"{entry.zone} lacks its own test entry ({entry.test_entry}): it is dead, or gives us no answers."
        return dead, discerns
    return found.problem or lacking.problem, discerns


async def _result(ask: Ask, entry: Blocklist, problem: str | None, discerns: bool, target: str) -> Fact:
    question = entry.question(target)
    reading = read(entry, await ask(question, "A"))
    if problem and not (reading.status == "listed" and discerns):
        reading = Reading("unavailable", reading.codes, problem=problem)
    fact: Fact = {
        "target": target,
        "kind": entry.kind,
        "list": entry.name,
        "zone": entry.zone,
        "status": reading.status,
        "codes": list(reading.codes),
        "meanings": list(reading.meanings),
        "says": None,
        "problem": reading.problem,
        "queries": [f"{question} A"],
    }
    if reading.status == "listed":
        said = await ask(question, "TXT")
        fact["says"] = "; ".join(said.records)[:MAX_REASON] or None
        fact["queries"].append(f"{question} TXT")
    return fact


def _list_fact(entry: Blocklist, problem: str | None) -> Fact:
    return {
        "name": entry.name,
        "zone": entry.zone,
        "kind": entry.kind,
        "meaning": entry.meaning,
        "weight": entry.weight,
        "delist": entry.delist,
        "status": "unavailable" if problem else "usable",
        "problem": problem,
    }
