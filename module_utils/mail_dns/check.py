# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks on sending domains and outbound addresses, run side by side, and their findings as facts.

A check's C(status): C(ok); C(missing) (DNS says that there is no record); C(invalid) (receivers cannot use it);
C(fail) (usable, and against us); C(unavailable) (DNS did not say). C(problem) says why it is not C(ok), C(differs) in
what the record is not the one that the deployment publishes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import dkim, dmarc, spf
from .resolve import Answer, Resolver, Server

#: An address that nobody sends from (RFC 5737): a record that lets it pass lets everybody pass.
STRANGER = ipaddress.ip_address("192.0.2.254")
MAX_EVIDENCE = 2000
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)+")

Fact = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What to check. C(timeout) is for one try of one question, C(deadline) for everything, both in seconds."""

    domains: Sequence[str]
    addresses: Sequence[str]
    control_domain: str
    selector: str = "cabal"
    helo: str = ""
    servers: Sequence[Server] = ()
    timeout: float = 2.0
    tries: int = 2
    deadline: float = 10.0


def run(request: Request) -> Fact:
    """Check everything and return the section; ends at the deadline with what it has."""
    return asyncio.run(_Checks(request).section())


class _Checks:
    def __init__(self, request: Request) -> None:
        self._request = request
        self._control = request.control_domain.rstrip(".").lower()
        self._helo = request.helo or f"smtp-out.{self._control}"
        self._resolver = Resolver(request.servers, request.timeout, request.tries, time.monotonic() + request.deadline)
        self._addresses = [ipaddress.ip_address(text) for text in dict.fromkeys(request.addresses)]

    async def section(self) -> Fact:
        domains = list(dict.fromkeys(name.strip().rstrip(".").lower() for name in self._request.domains))
        rows, addresses = await asyncio.gather(
            asyncio.gather(*(self._domain(name) for name in domains)),
            asyncio.gather(*(self._address(ip) for ip in self._addresses)),
        )
        answers = self._resolver.answers()
        reasons = self._reasons(answers)
        status = "complete"
        if reasons:
            status = "partial" if any(answer.known for answer in answers) else "unavailable"
        return {
            "status": status,
            "reasons": reasons,
            "domains": list(rows),
            "addresses": list(addresses),
            "queries": [answer.evidence() for answer in answers[:MAX_EVIDENCE]],
            "queries_total": len(answers),
        }

    def _reasons(self, answers: Sequence[Answer]) -> list[str]:
        """What DNS did not say: a sentence for each kind of failure, not for each question."""
        if not self._request.servers:
            return ["No DNS resolver is known: set cabalmail_dns_resolvers in the inventory."]
        failed: dict[str, list[Answer]] = {}
        for answer in answers:
            if not answer.known:
                failed.setdefault(answer.status, []).append(answer)
        return [
            rows[0].sentence() if len(rows) == 1 else f"{len(rows)} DNS questions failed alike: {rows[0].sentence()}"
            for rows in failed.values()
        ]

    # -- domains

    async def _domain(self, name: str) -> Fact:
        if not _DOMAIN.fullmatch(name):
            unknown = {"status": "unavailable", "problem": "it is no domain name that DNS could be asked about"}
            return {"domain": name, **{kind: dict(unknown) for kind in ("spf", "dkim", "dmarc", "mx")}}
        spf_fact, dkim_fact, dmarc_fact, mx_fact = await asyncio.gather(
            self._spf(name), self._dkim(name), self._dmarc(name), self._mx(name)
        )
        return {"domain": name, "spf": spf_fact, "dkim": dkim_fact, "dmarc": dmarc_fact, "mx": mx_fact}

    async def _spf(self, name: str) -> Fact:
        answer = await self._resolver.ask(name, "TXT")
        records = spf.records_of(answer)
        fact: Fact = {
            "status": "unavailable",
            "record": records[0] if records else None,
            "covers": {str(ip): None for ip in self._addresses},
            "lookups": None,
            "permits_everybody": None,
            "differs": None,
            "problem": None,
        }
        if not answer.known:
            return {**fact, "problem": answer.sentence()}
        if not records:
            return {**fact, "status": "missing", "problem": f"{name} has no SPF record"}
        verdicts = await asyncio.gather(
            *(spf.evaluate(self._resolver.ask, name, ip, self._helo) for ip in (*self._addresses, STRANGER))
        )
        stranger = verdicts[-1]
        fact["covers"] = {str(ip): _covers(verdict) for ip, verdict in zip(self._addresses, verdicts, strict=False)}
        fact["results"] = {
            str(ip): _spf_result(verdict) for ip, verdict in zip(self._addresses, verdicts, strict=False)
        }
        fact["lookups"] = max(verdict.lookups for verdict in verdicts)
        fact["permits_everybody"] = None if stranger.result == "temperror" else stranger.result == "pass"
        fact["differs"] = self._spf_differs(name, records)
        return {**fact, **_spf_status(name, fact, verdicts)}

    def _spf_differs(self, name: str, records: Sequence[str]) -> str | None:
        """The deployment lists its addresses at the control domain, and includes that everywhere else."""
        terms = [f"include:{self._control}"]
        if name == self._control:
            terms = [f"ip{ip.version}:{ip}/{ip.max_prefixlen}" for ip in self._addresses]
        expected = " ".join(["v=spf1", *terms, "~all"])
        if not terms or sorted(records[0].lower().split()) == sorted(expected.split()):
            return None
        return f"the SPF record is '{records[0]}' instead of '{expected}'"

    async def _dkim(self, name: str) -> Fact:
        host = f"{self._request.selector}._domainkey.{name}"
        control_host = f"{self._request.selector}._domainkey.{self._control}"
        answer, published = await asyncio.gather(
            self._resolver.ask(host, "TXT"), self._resolver.ask(control_host, "TXT")
        )
        texts = [text for text in answer.records if dkim.looks_like_key(text)]
        fact: Fact = {
            "status": "unavailable",
            "name": host,
            "selector": self._request.selector,
            "record": texts[0] if texts else None,
            "alias": answer.cnames[-1] if answer.cnames else None,
            "key_type": None,
            "bits": None,
            "revoked": None,
            "testing": None,
            "key_sha256": None,
            "differs": None,
            "problem": None,
        }
        if not answer.known:
            return {**fact, "problem": answer.sentence()}
        if not texts:
            return {**fact, "status": "missing", "problem": f"{host} has no DKIM key{_through(answer)}"}
        if len(texts) > 1:
            return {**fact, "status": "invalid", "problem": f"{host} has {len(texts)} keys, one is allowed"}
        try:
            key = dkim.parse_key(texts[0])
        except ValueError as error:
            return {**fact, "status": "invalid", "problem": f"the DKIM record of {host} cannot be used: {error}"}
        fact |= {"key_type": key.kind, "bits": key.bits, "revoked": key.revoked, "testing": key.testing}
        fact["key_sha256"] = key.digest
        return {**fact, **_dkim_status(host, key), "differs": _key_differs(key, control_host, published)}

    async def _dmarc(self, name: str) -> Fact:
        host = f"_dmarc.{name}"
        answer = await self._resolver.ask(host, "TXT")
        organisation = None
        if answer.known and not dmarc.records_of(answer.records):
            organisation = dmarc.organisational_domain(name)
            if organisation and organisation != name:
                host = f"_dmarc.{organisation}"
                answer = await self._resolver.ask(host, "TXT")
            else:
                organisation = None
        records = dmarc.records_of(answer.records)
        fact: Fact = {
            "status": "unavailable",
            "name": host,
            "record": records[0] if records else None,
            "alias": answer.cnames[-1] if answer.cnames else None,
            "from_organisational_domain": organisation,
            "policy": None,
            "alignment": None,
            "percent": None,
            "rua": [],
            "differs": None,
            "problem": None,
        }
        if not answer.known:
            return {**fact, "problem": answer.sentence()}
        if not records:
            problem = f"_dmarc.{name} has no DMARC record{_through(answer)}"
            return {**fact, "status": "missing", "problem": problem}
        if len(records) > 1:
            return {**fact, "status": "invalid", "problem": f"{host} has {len(records)} DMARC records, so none counts"}
        try:
            policy = dmarc.parse_policy(records[0])
        except ValueError as error:
            return {**fact, "status": "invalid", "problem": f"the DMARC record of {host} cannot be used: {error}"}
        return {
            **fact,
            "status": "ok",
            "policy": policy.subdomain_policy if organisation else policy.policy,
            "alignment": {"dkim": policy.dkim_alignment, "spf": policy.spf_alignment},
            "percent": policy.percent,
            "rua": list(policy.rua),
            "differs": await self._dmarc_differs(name, records[0]),
        }

    async def _dmarc_differs(self, name: str, record: str) -> str | None:
        """The deployment gives every subdomain the control domain's record."""
        published = await self._resolver.ask(f"_dmarc.{self._control}", "TXT")
        if name == self._control or not published.known or record in published.records:
            return None
        return f"the DMARC record is not the one of _dmarc.{self._control}"

    async def _mx(self, name: str) -> Fact:
        answer = await self._resolver.ask(name, "MX")
        fact: Fact = {"status": "unavailable", "hosts": [], "null_mx": None, "problem": None}
        if not answer.known:
            return {**fact, "problem": answer.sentence()}
        fact["hosts"] = sorted(answer.records, key=lambda text: (_preference(text), text))
        # RFC 7505: a single MX that names the root says that the domain takes no mail, and many refuse its senders.
        fact["null_mx"] = any(not text.partition(" ")[2].strip(".") for text in answer.records)
        if not answer.records:
            return {**fact, "status": "missing", "problem": f"{name} has no MX record"}
        if fact["null_mx"]:
            return {**fact, "status": "fail", "problem": f"{name} says that it takes no mail (null MX)"}
        return {**fact, "status": "ok"}

    # -- outbound addresses

    async def _address(self, ip: spf.Address) -> Fact:
        rtype = "A" if ip.version == 4 else "AAAA"
        reverse, helo = await asyncio.gather(
            self._resolver.ask(ip.reverse_pointer, "PTR"), self._resolver.ask(self._helo, rtype)
        )
        fact: Fact = {
            "ip": str(ip),
            "status": "unavailable",
            "ptr": list(reverse.records),
            "fcrdns": None,
            "helo": {"name": self._helo, "resolves": helo.status == "found" if helo.known else None},
            "expected_ptr": f"smtp.{self._control}",
            "problem": None,
        }
        if not reverse.known:
            return {**fact, "ptr": None, "problem": reverse.sentence()}
        if not reverse.records:
            return {**fact, "status": "missing", "fcrdns": False, "problem": f"{ip} has no PTR record"}
        forwards = await asyncio.gather(*(self._resolver.ask(name, rtype) for name in reverse.records[: spf.MAX_PTR]))
        return {**fact, **_forward_status(ip, reverse.records, forwards)}


def _through(answer: Answer) -> str:
    """Where an alias leads to, since that is where a record has to be mended."""
    return f" (it is an alias of {answer.cnames[-1]})" if answer.cnames else ""


def _covers(verdict: spf.Verdict) -> bool | None:
    """Whether SPF lets an address send; None when DNS did not say."""
    return None if verdict.result == "temperror" else verdict.result == "pass"


def _spf_result(verdict: spf.Verdict) -> Fact:
    return {"result": verdict.result, "matched": verdict.matched, "problem": verdict.problem}


def _spf_status(name: str, fact: Mapping[str, Any], verdicts: Sequence[spf.Verdict]) -> Fact:
    """Status and problem from the verdicts on our addresses (all but the last) and on the stranger (the last)."""
    broken = next((verdict for verdict in verdicts if verdict.result == "permerror"), None)
    if broken:
        return {"status": "invalid", "problem": f"the SPF record of {name} cannot be evaluated: {broken.problem}"}
    uncovered = [ip for ip, covered in fact["covers"].items() if covered is False]
    if uncovered:
        return {"status": "fail", "problem": f"the SPF record of {name} does not cover {', '.join(uncovered)}"}
    silent = next((verdict for verdict in verdicts if verdict.result == "temperror"), None)
    if silent:
        return {"status": "unavailable", "problem": f"{silent.problem}."}
    if not fact["covers"]:
        return {"status": "unavailable", "problem": "our outbound addresses are not known, so nothing can be compared"}
    if fact["permits_everybody"]:
        return {"status": "fail", "problem": f"the SPF record of {name} lets every address send"}
    return {"status": "ok"}


def _dkim_status(host: str, key: dkim.Key) -> Fact:
    if key.revoked:
        return {"status": "fail", "problem": f"the DKIM key of {host} is revoked (p= is empty)"}
    if key.kind == "rsa" and (key.bits or 0) < dkim.MIN_RSA_BITS:
        return {"status": "fail", "problem": f"the DKIM key of {host} has {key.bits} bits, receivers want 1024 or more"}
    return {"status": "ok"}


def _key_differs(key: dkim.Key, control_host: str, published: Answer) -> str | None:
    """The deployment signs all domains with one key, the control domain's; a difference that cannot be seen is none."""
    for text in published.records:
        try:
            theirs = dkim.parse_key(text)
        except ValueError:
            continue
        if theirs.digest != key.digest:
            return f"the DKIM key is not the one of {control_host}"
    return None


def _forward_status(ip: spf.Address, names: Sequence[str], forwards: Sequence[Answer]) -> Fact:
    """Forward-confirmed reverse DNS: one of the PTR names has to lead back to the address."""
    for answer in forwards:
        if any(_same(ip, text) for text in answer.records):
            return {"fcrdns": True, "status": "ok"}
    silent = next((answer for answer in forwards if not answer.known), None)
    if silent:
        return {"fcrdns": None, "status": "unavailable", "problem": silent.sentence()}
    return {"fcrdns": False, "status": "fail", "problem": f"the PTR name {names[0]} does not lead back to {ip}"}


def _same(ip: spf.Address, text: str) -> bool:
    try:
        return ipaddress.ip_address(text) == ip
    except ValueError:
        return False


def _preference(text: str) -> int:
    number = text.partition(" ")[0]
    return int(number) if number.isdigit() else 0
