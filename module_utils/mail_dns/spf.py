# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SPF as RFC 7208 says that a receiver evaluates it: does this domain let this address send?"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from .resolve import Answer, Ask

Result = Literal["pass", "fail", "softfail", "neutral", "none", "permerror", "temperror"]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: RFC 7208, 4.6.4.
MAX_LOOKUPS = 10
MAX_VOID_LOOKUPS = 2
MAX_MX = 10
MAX_PTR = 10

_QUALIFIERS: Mapping[str, Result] = {"+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}
_MECHANISM = re.compile(r"([+\-~?]?)(all|include|a|mx|ptr|ip4|ip6|exists)(?=[:/]|$)(.*)", re.IGNORECASE | re.DOTALL)
_MODIFIER = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)
_CIDR = re.compile(r"(?:/(0|[1-9]\d{0,2}))?(?://(0|[1-9]\d{0,2}))?$")
_MACRO = re.compile(r"%(?:\{([slodiphcrtv])(\d*)(r?)([.\-+,/_=]*)\}|([%_-]))", re.IGNORECASE)
_LITERALS = {"%": "%", "_": " ", "-": "%20"}


class SpfError(Exception):
    """A permanent or temporary error; C(result) is permerror or temperror, the text says why."""

    def __init__(self, result: Result, problem: str) -> None:
        super().__init__(problem)
        self.result = result
        self.problem = problem


@dataclass(frozen=True)
class Mechanism:
    """A mechanism of a record."""

    text: str
    result: Result
    kind: str
    target: str = ""
    cidr4: int = 32
    cidr6: int = 128


@dataclass(frozen=True)
class Record:
    """A parsed record."""

    mechanisms: tuple[Mechanism, ...]
    redirect: str | None


@dataclass(frozen=True)
class Verdict:
    """What a receiver concludes. C(matched): the mechanism that decided; C(problem): why there is an error."""

    result: Result
    matched: str | None
    lookups: int
    void_lookups: int
    problem: str | None


@dataclass
class _State:
    """What one evaluation has used up."""

    ask: Ask
    ip: Address
    sender: str
    helo: str
    lookups: int = 0
    void: int = 0
    matched: str | None = None

    def count(self, term: str) -> None:
        self.lookups += 1
        if self.lookups > MAX_LOOKUPS:
            raise SpfError("permerror", f"more than {MAX_LOOKUPS} DNS lookups are needed (the one over is {term})")

    async def look(self, name: str, rtype: str) -> Answer:
        """A lookup for a mechanism; counts the void ones."""
        answer = await self.ask(name, rtype)
        if not answer.known:
            raise SpfError("temperror", answer.sentence().rstrip("."))
        if answer.status != "found":
            self.void += 1
            if self.void > MAX_VOID_LOOKUPS:
                raise SpfError("permerror", f"more than {MAX_VOID_LOOKUPS} lookups find nothing (the last is {name})")
        return answer


def records_of(answer: Answer) -> list[str]:
    """The SPF records among a name's TXT records (RFC 7208, 4.5)."""
    return [text for text in answer.records if re.match(r"v=spf1(?: |$)", text, re.IGNORECASE)]


async def evaluate(ask: Ask, domain: str, ip: Address, helo: str) -> Verdict:
    """Evaluate a domain's SPF for an address as a receiver does; never raises."""
    state = _State(ask, ip, f"postmaster@{domain}", helo)
    try:
        result: Result = await _check_host(state, domain)
        problem = None
    except SpfError as error:
        result, problem = error.result, error.problem
    return Verdict(result, state.matched, state.lookups, state.void, problem)


async def _check_host(state: _State, domain: str) -> Result:
    """RFC 7208, 4: check_host()."""
    answer = await state.ask(domain, "TXT")
    if not answer.known:
        raise SpfError("temperror", answer.sentence().rstrip("."))
    found = records_of(answer)
    if not found:
        return "none"
    if len(found) > 1:
        raise SpfError("permerror", f"{domain} has {len(found)} SPF records, one is allowed")
    record = parse(found[0])
    for mechanism in record.mechanisms:
        if await _matches(state, mechanism, domain):
            state.matched = f"{mechanism.text} of {domain}"
            return mechanism.result
    if record.redirect is None:
        return "neutral"
    state.count(f"redirect={record.redirect}")
    target = _expand(record.redirect, state, domain)
    result = await _check_host(state, target)
    if result == "none":
        raise SpfError("permerror", f"redirect of {domain} leads to {target}, which has no SPF record")
    return result


async def _matches(state: _State, mechanism: Mechanism, domain: str) -> bool:
    kind = mechanism.kind
    if kind == "all":
        return True
    if kind in ("ip4", "ip6"):
        return state.ip in ipaddress.ip_network(mechanism.target, strict=False)
    state.count(mechanism.text)
    target = _expand(mechanism.target, state, domain) if mechanism.target else domain
    if kind == "include":
        return await _include(state, target, domain)
    if kind == "exists":
        return (await state.look(target, "A")).status == "found"
    if kind == "a":
        return await _host_matches(state, target, mechanism)
    if kind == "mx":
        return await _mx_matches(state, target, mechanism)
    return await _ptr_matches(state, target)


async def _include(state: _State, target: str, domain: str) -> bool:
    result = await _check_host(state, target)
    if result == "none":
        raise SpfError("permerror", f"{domain} includes {target}, which has no SPF record")
    return result == "pass"


async def _host_matches(state: _State, host: str, mechanism: Mechanism) -> bool:
    answer = await state.look(host, "A" if state.ip.version == 4 else "AAAA")
    prefix = mechanism.cidr4 if state.ip.version == 4 else mechanism.cidr6
    return any(_within(state.ip, text, prefix) for text in answer.records)


def _within(ip: Address, text: str, prefix: int) -> bool:
    try:
        return ip in ipaddress.ip_network(f"{text}/{prefix}", strict=False)
    except ValueError:
        return False


async def _mx_matches(state: _State, target: str, mechanism: Mechanism) -> bool:
    answer = await state.look(target, "MX")
    hosts = [host for host in (text.partition(" ")[2].rstrip(".") for text in answer.records) if host]
    if len(hosts) > MAX_MX:
        raise SpfError("permerror", f"mx:{target} has more than {MAX_MX} hosts")
    for host in hosts:
        if await _host_matches(state, host, mechanism):
            return True
    return False


async def _ptr_matches(state: _State, target: str) -> bool:
    answer = await state.look(state.ip.reverse_pointer, "PTR")
    rtype = "A" if state.ip.version == 4 else "AAAA"
    wanted = target.rstrip(".").lower()
    silent: Answer | None = None
    for name in answer.records[:MAX_PTR]:
        if name == wanted or name.endswith("." + wanted):
            forward = await state.ask(name, rtype)
            if any(_within(state.ip, text, state.ip.max_prefixlen) for text in forward.records):
                return True
            silent = silent or (None if forward.known else forward)
    # RFC 7208, 5.5 skips names that DNS does not answer for. That our resolver is silent says nothing of a receiver's.
    if silent:
        raise SpfError("temperror", silent.sentence().rstrip("."))
    return False


def parse(text: str) -> Record:
    """Parse a record; SpfError (permerror) when any of its terms is wrong, as a receiver must."""
    mechanisms: list[Mechanism] = []
    modifiers: dict[str, str] = {}
    for term in text.split(" ")[1:]:
        if not term:
            continue
        modifier = _MODIFIER.fullmatch(term)
        if modifier:
            name = modifier[1].lower()
            if name in ("redirect", "exp") and (name in modifiers or not modifier[2]):
                raise SpfError("permerror", f"'{term}' is empty or stands twice")
            modifiers[name] = modifier[2]
            continue
        mechanisms.append(_mechanism(term))
    _check_macros(modifiers.get("redirect", ""), text)
    all_ends = any(mechanism.kind == "all" for mechanism in mechanisms)
    return Record(tuple(mechanisms), None if all_ends else modifiers.get("redirect"))


def _mechanism(term: str) -> Mechanism:
    found = _MECHANISM.fullmatch(term)
    if not found:
        raise SpfError("permerror", f"'{term}' is no SPF term")
    result = _QUALIFIERS[found[1] or "+"]
    kind, rest = found[2].lower(), found[3]
    if kind == "all":
        if rest:
            raise SpfError("permerror", f"'{term}' takes no argument")
        return Mechanism(term, result, kind)
    if kind in ("ip4", "ip6"):
        return Mechanism(term, result, kind, _network(term, kind, rest))
    return _domain_mechanism(term, result, kind, rest)


def _network(term: str, kind: str, rest: str) -> str:
    try:
        network = ipaddress.ip_network(rest.removeprefix(":"), strict=False)
    except ValueError:
        raise SpfError("permerror", f"'{term}' holds no address") from None
    # ip_network takes netmasks as well (10.0.0.0/255.0.0.0), SPF takes prefix lengths only.
    if not rest.startswith(":") or f"ip{network.version}" != kind or not re.fullmatch(r"[^/]*(/\d+)?", rest):
        raise SpfError("permerror", f"'{term}' holds no {kind} address")
    return str(network)


def _domain_mechanism(term: str, result: Result, kind: str, rest: str) -> Mechanism:
    cidr4, cidr6 = 32, 128
    if kind in ("a", "mx"):
        found = _CIDR.search(rest)
        if found:
            cidr4, cidr6 = int(found[1] or 32), int(found[2] or 128)
            rest = rest[: found.start()]
        if cidr4 > 32 or cidr6 > 128:
            raise SpfError("permerror", f"'{term}' has an impossible prefix length")
    target = rest.removeprefix(":")
    needs_target = kind in ("include", "exists")
    if (rest and not rest.startswith(":")) or (rest == ":") or (needs_target and not target):
        raise SpfError("permerror", f"'{term}' names no domain")
    if "/" in _MACRO.sub("", target):
        raise SpfError("permerror", f"'{term}' has an impossible prefix length")
    _check_macros(target, term)
    return Mechanism(term, result, kind, target, cidr4, cidr6)


def _check_macros(target: str, term: str) -> None:
    if "%" in _MACRO.sub("", target):
        raise SpfError("permerror", f"'{term}' has a macro that is not one")


def _expand(target: str, state: _State, domain: str) -> str:
    """RFC 7208, 7: macros. C(%{p}) is always C(unknown), which a receiver may choose and most do."""
    local, _, origin = state.sender.partition("@")
    dotted = str(state.ip) if state.ip.version == 4 else ".".join(state.ip.exploded.replace(":", ""))
    values = {
        "s": state.sender,
        "l": local,
        "o": origin,
        "d": domain,
        "i": dotted,
        "p": "unknown",
        "v": "in-addr" if state.ip.version == 4 else "ip6",
        "h": state.helo,
        "c": str(state.ip),
        "r": "unknown",
        "t": "0",
    }

    def replaced(found: re.Match[str]) -> str:
        if found[5]:
            return _LITERALS[found[5]]
        letter, count, backwards, delimiters = found[1], found[2], found[3], found[4]
        parts = re.split(f"[{re.escape(delimiters or '.')}]", values[letter.lower()])
        if backwards:
            parts.reverse()
        kept = ".".join(parts[-int(count) :] if count and int(count[:4]) else parts)
        return quote(kept, safe="") if letter.isupper() else kept

    expanded = _MACRO.sub(replaced, target)
    while len(expanded) > 253 and "." in expanded:
        expanded = expanded.partition(".")[2]
    return expanded
