# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks on sending domains and outbound addresses, run side by side, and their findings as facts.

A check's C(status): C(ok); C(missing) (DNS says that there is no record); C(invalid) (receivers cannot use it);
C(fail) (usable, and against us); C(unavailable) (DNS did not say). C(problem) says why it is not C(ok), C(differs) in
what the record is not the one that the deployment publishes, C(publish) which record that is. C(queries) names the
questions that the check rests on; the section's own C(queries) holds each with its answer, the resolver and the time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import blocklist, dkim, dmarc, spf
from .resolve import Answer, Ask, Resolver, Server, Trace

#: An address that nobody sends from (RFC 5737): a record that lets it pass lets everybody pass.
STRANGER = ipaddress.ip_address("192.0.2.254")
#: Questions that are listed as evidence: a hundred domains on twenty lists, and all the rest.
MAX_EVIDENCE = 5000
#: Kinds of checks of a domain.
KINDS = ("spf", "dkim", "dmarc", "mx", "mta_sts", "tls_rpt")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)+")

Fact = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What to check. C(timeout) is for one try of one question, C(deadline) for everything, both in seconds.

    C(mail_domains): the deployment's apexes, looked up in the lists of domains with the control domain. C(dmarc_inbox):
    where DMARC reports go, up to the apex.
    """

    domains: Sequence[str]
    addresses: Sequence[str]
    control_domain: str
    selector: str = "cabal"
    helo: str = ""
    servers: Sequence[Server] = ()
    timeout: float = 2.0
    tries: int = 2
    deadline: float = 10.0
    mail_domains: Sequence[str] = ()
    dmarc_inbox: str = "dmarc-reports@mail-admin"
    blocklists: Sequence[blocklist.Blocklist] = ()


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
        rows, addresses, lists = await asyncio.gather(
            asyncio.gather(*(self._domain(name) for name in _names(self._request.domains))),
            asyncio.gather(*(self._address(ip) for ip in self._addresses)),
            self._lists(),
        )
        answers = self._resolver.answers()
        zones = tuple(f".{entry.zone}" for entry in self._request.blocklists)
        # What a blocklist does not say is told there.
        ours = [answer for answer in answers if not answer.name.endswith(zones)] if zones else answers
        reasons = self._reasons(ours)
        status = "complete"
        if reasons:
            status = "partial" if any(answer.known for answer in ours) else "unavailable"
        return {
            "status": status,
            "reasons": reasons,
            "domains": list(rows),
            "addresses": list(addresses),
            "blocklists": lists,
            "queries": [answer.evidence() for answer in answers[:MAX_EVIDENCE]],
            "queries_total": len(answers),
        }

    async def _lists(self) -> Fact:
        # One turn later: the few questions about our own records go first.
        await asyncio.sleep(0)
        domains = [name for name in _names([self._control, *self._request.mail_domains]) if _DOMAIN.fullmatch(name)]
        ips = [str(ip) for ip in self._addresses]
        return await blocklist.check(self._resolver.ask, self._request.blocklists, ips, domains)

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
            return {"domain": name, **{kind: {**unknown, "queries": []} for kind in KINDS}}
        checks = (self._spf, self._dkim, self._dmarc, self._mx, self._mta_sts, self._tls_rpt)
        facts = await asyncio.gather(*(self._traced(check, name) for check in checks))
        return {"domain": name, **dict(zip(KINDS, facts, strict=True))}

    async def _traced(self, check: Callable[[str, Ask], Awaitable[Fact]], name: str) -> Fact:
        trace = Trace(self._resolver)
        return {**await check(name, trace.ask), "queries": trace.queries()}

    async def _spf(self, name: str, ask: Ask) -> Fact:
        answer = await ask(name, "TXT")
        records = spf.records_of(answer)
        fact: Fact = {
            "status": "unavailable",
            "record": records[0] if records else None,
            "covers": {str(ip): None for ip in self._addresses},
            "lookups": None,
            "void_lookups": None,
            "permits_everybody": None,
            "differs": None,
            "publish": self._publish(name, "TXT", self._spf_record(name)),
            "problem": None,
        }
        if not answer.known:
            return {**fact, "problem": answer.sentence()}
        if not records:
            return {**fact, "status": "missing", "problem": f"{name} has no SPF record"}
        verdicts = await asyncio.gather(
            *(spf.evaluate(ask, name, ip, self._helo) for ip in (*self._addresses, STRANGER))
        )
        stranger = verdicts[-1]
        fact["covers"] = {str(ip): _covers(verdict) for ip, verdict in zip(self._addresses, verdicts, strict=False)}
        fact["results"] = {
            str(ip): _spf_result(verdict) for ip, verdict in zip(self._addresses, verdicts, strict=False)
        }
        fact["lookups"] = max(verdict.lookups for verdict in verdicts)
        fact["void_lookups"] = max(verdict.void_lookups for verdict in verdicts)
        fact["permits_everybody"] = None if stranger.result == "temperror" else stranger.result == "pass"
        fact["differs"] = self._spf_differs(name, records)
        return {**fact, **_spf_status(name, fact, verdicts)}

    def _spf_record(self, name: str) -> str | None:
        """The deployment lists its addresses at the control domain, and includes that everywhere else."""
        terms = [f"include:{self._control}"]
        if name == self._control:
            terms = [f"ip{ip.version}:{ip}/{ip.max_prefixlen}" for ip in self._addresses]
        return " ".join(["v=spf1", *terms, "~all"]) if terms else None

    def _spf_differs(self, name: str, records: Sequence[str]) -> str | None:
        expected = self._spf_record(name)
        if expected is None or sorted(records[0].lower().split()) == sorted(expected.split()):
            return None
        return f"the SPF record is '{records[0]}' instead of '{expected}'"

    def _publish(self, name: str, rtype: str, value: str | None) -> Fact | None:
        """The record that the deployment publishes, in full; None where that is not known from here."""
        return {"name": name, "type": rtype, "value": value} if value else None

    def _alias(self, prefix: str, name: str) -> Fact | None:
        """What Terraform publishes for a subdomain: an alias of the control domain's record."""
        return (
            None if name == self._control else self._publish(f"{prefix}.{name}", "CNAME", f"{prefix}.{self._control}")
        )

    async def _dkim(self, name: str, ask: Ask) -> Fact:
        host = f"{self._request.selector}._domainkey.{name}"
        control_host = f"{self._request.selector}._domainkey.{self._control}"
        answer, published = await asyncio.gather(ask(host, "TXT"), ask(control_host, "TXT"))
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
            "publish": self._alias(f"{self._request.selector}._domainkey", name),
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

    async def _dmarc(self, name: str, ask: Ask) -> Fact:
        host = f"_dmarc.{name}"
        answer = await ask(host, "TXT")
        organisation = None
        if answer.known and not dmarc.records_of(answer.records):
            organisation = dmarc.organisational_domain(name)
            if organisation and organisation != name:
                host = f"_dmarc.{organisation}"
                answer = await ask(host, "TXT")
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
            "testing": None,
            "rua": [],
            "rua_to_inbox": None,
            "differs": None,
            "publish": self._alias("_dmarc", name),
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
            "policy": await self._policy_for(name, policy, ask) if organisation else policy.policy,
            "alignment": {"dkim": policy.dkim_alignment, "spf": policy.spf_alignment},
            "percent": policy.percent,
            "testing": policy.testing,
            "rua": list(policy.rua),
            "rua_to_inbox": self._to_inbox(policy.rua),
            "differs": await self._dmarc_differs(name, records[0], ask),
        }

    async def _policy_for(self, name: str, policy: dmarc.Policy, ask: Ask) -> str | None:
        """The organisational domain's policy for a name below it; None when it hangs on what DNS does not say."""
        if policy.nonexistent_policy == policy.subdomain_policy:
            return policy.subdomain_policy
        answer = await ask(name, "TXT")
        if not answer.known:
            return None
        return policy.nonexistent_policy if answer.status == "no_name" else policy.subdomain_policy

    def _to_inbox(self, rua: Iterable[str]) -> bool | None:
        """Whether reports go to the deployment's inbox for them; None where its mail domains are not known."""
        inboxes = {f"mailto:{self._request.dmarc_inbox}.{apex}" for apex in _names(self._request.mail_domains)}
        # RFC 7489, 6.2: an address may carry a limit of size, as in mailto:a@example.com!10m.
        return any(uri.partition("!")[0].strip().lower() in inboxes for uri in rua) if inboxes else None

    async def _dmarc_differs(self, name: str, record: str, ask: Ask) -> str | None:
        """The deployment gives every subdomain the control domain's record."""
        published = await ask(f"_dmarc.{self._control}", "TXT")
        if name == self._control or not published.known or record in published.records:
            return None
        return f"the DMARC record is not the one of _dmarc.{self._control}"

    async def _mx(self, name: str, ask: Ask) -> Fact:
        answer = await ask(name, "MX")
        fact: Fact = {
            "status": "unavailable",
            "hosts": [],
            "null_mx": None,
            "differs": None,
            "publish": self._publish(name, "MX", f"10 smtp-in.{self._control}") if name != self._control else None,
            "problem": None,
        }
        if not answer.known:
            return {**fact, "problem": answer.sentence()}
        fact["hosts"] = sorted(answer.records, key=lambda text: (_preference(text), text))
        # RFC 7505: a single MX that names the root says that the domain takes no mail, and many refuse its senders.
        fact["null_mx"] = any(not text.partition(" ")[2].strip(".") for text in answer.records)
        if not answer.records:
            return {**fact, "status": "missing", "problem": f"{name} has no MX record"}
        if fact["publish"] and fact["hosts"] != [fact["publish"]["value"]]:
            fact["differs"] = f"the MX is '{', '.join(fact['hosts'])}' instead of '{fact['publish']['value']}'"
        if fact["null_mx"]:
            return {**fact, "status": "fail", "problem": f"{name} says that it takes no mail (null MX)"}
        return {**fact, "status": "ok"}

    async def _mta_sts(self, name: str, ask: Ask) -> Fact:
        return await _presence(ask, f"_mta-sts.{name}", "v=STSv1", "MTA-STS (RFC 8461)")

    async def _tls_rpt(self, name: str, ask: Ask) -> Fact:
        return await _presence(ask, f"_smtp._tls.{name}", "v=TLSRPTv1", "TLS-RPT (RFC 8460)")

    # -- outbound addresses

    async def _address(self, ip: spf.Address) -> Fact:
        trace = Trace(self._resolver)
        rtype = "A" if ip.version == 4 else "AAAA"
        reverse, helo = await asyncio.gather(trace.ask(ip.reverse_pointer, "PTR"), self._helo_fact(ip, trace.ask))
        fact: Fact = {
            "ip": str(ip),
            "status": "unavailable",
            "ptr": list(reverse.records),
            "fcrdns": None,
            "helo": {**helo, "is_ptr": self._helo in reverse.records if reverse.known else None},
            "expected_ptr": f"smtp.{self._control}",
            "differs": None,
            "problem": None,
        }
        if not reverse.known:
            return {**fact, "ptr": None, "problem": reverse.sentence(), "queries": trace.queries()}
        if fact["expected_ptr"] not in reverse.records:
            found = ", ".join(reverse.records) or "nothing"
            fact["differs"] = f"the PTR of {ip} is '{found}' instead of '{fact['expected_ptr']}'"
        forwards = await asyncio.gather(*(trace.ask(name, rtype) for name in reverse.records[: spf.MAX_PTR]))
        if reverse.records:
            fact |= _forward_status(ip, reverse.records, forwards)
        else:
            fact |= {"status": "missing", "fcrdns": False, "problem": f"{ip} has no PTR record"}
        if fact["status"] == "ok" and helo["resolves"] is False:
            fact |= {"status": "fail", "problem": f"the HELO name {self._helo} does not resolve"}
        return {**fact, "queries": trace.queries()}

    async def _helo_fact(self, ip: spf.Address, ask: Ask) -> Fact:
        """The name in HELO: receivers want it to resolve; that it leads back to the address as well is better."""
        answers = [await ask(self._helo, "A")]
        if ip.version == 6:
            answers.append(await ask(self._helo, "AAAA"))
        resolves: bool | None = any(answer.status == "found" for answer in answers)
        if not resolves and not all(answer.known for answer in answers):
            resolves = None
        leads_back = any(_same(ip, text) for answer in answers for text in answer.records)
        return {"name": self._helo, "resolves": resolves, "leads_back": None if resolves is None else leads_back}


def _names(texts: Iterable[str]) -> list[str]:
    """Domain names in one form, each once."""
    return list(dict.fromkeys(text.strip().rstrip(".").lower() for text in texts))


async def _presence(ask: Ask, host: str, version: str, what: str) -> Fact:
    """A record that a domain may have; without it nothing is wrong."""
    answer = await ask(host, "TXT")
    records = [text for text in answer.records if re.match(rf"{version}\s*(;|$)", text)]
    fact: Fact = {"status": "unavailable", "name": host, "record": records[0] if records else None, "problem": None}
    if not answer.known:
        return {**fact, "problem": answer.sentence()}
    if len(records) > 1:
        return {**fact, "status": "invalid", "problem": f"{host} has {len(records)} {what} records, so none counts"}
    return {**fact, "status": "ok" if records else "missing"}


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
    # A receiver stops at the first match, so an error behind it is met by strangers only. Without an address of ours
    # the stranger's evaluation is all there is.
    ours = verdicts[:-1] or verdicts
    broken = next((verdict for verdict in ours if verdict.result == "permerror"), None)
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
