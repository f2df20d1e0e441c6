# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the world accept our mail: what the logs, DNS, the DMARC reports and opendkim say, put together.

Nothing is judged here. A share is unknown (None) where its whole is not known, and small numbers are said to be small.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..mail_dns.dmarc import aligned
from .environment.parts import combine
from .signing import TABLES_BLANK
from .time import parse_rfc3339

Facts = Mapping[str, Any]

TIER = "smtp-out"
ADDRESSES_FILE = "addresses.jsonl"
TOP = 20

BLOCKLISTS_BLANK: dict[str, Any] = {"lists": [], "results": []}
DMARC_BLANK: dict[str, Any] = {
    **dict.fromkeys(
        ("ours", "strangers", "period", "newest_report", "rows", "age_hours", "fail_share", "before", "change")
    ),
    "sources": [],
    "reporters": [],
    "domains": [],
}
CONCENTRATION_BLANK: dict[str, Any] = {
    "top_provider": None,
    "share_of_bounces": None,
    "share_of_attempts": None,
    "lift": None,
    "recipients": None,
    "attempts": None,
    "small_sample": None,
    "providers": [],
    "bounce_reasons": {},
}


def outbound_addresses(triage: Facts, override: Sequence[str] = ()) -> list[str]:
    """The addresses that mail leaves from: as told, else those that the environment shows."""
    return list(override) or [str(row["ip"]) for row in _outbound(triage)]


def _outbound(triage: Facts) -> list[Facts]:
    return _section(_section(triage, "environment"), "network").get("outbound") or []


def sending_domains(triage: Facts, control_domain: str, limit: int) -> list[str]:
    """The domains to ask DNS about: the control domain, then ours among the senders of what failed.

    Then those that opendkim found no key for or signed for, known even where sendmail logs nothing. Foreign senders
    (forwarded mail, empty return paths) and hosts of the control domain are left out; at most C(limit) domains.
    """
    log = _tier(triage)
    seen = [str(row.get("domain") or "") for row in _section(log, "bounces").get("sender_domains") or []]
    signing = opendkim(triage)
    seen += [*signing["no_match"], *signing["signed"]]
    apexes = mail_domains(triage)
    control = control_domain.rstrip(".").lower()
    ours = [
        name
        for name in dict.fromkeys(text.strip().rstrip(".").lower() for text in seen)
        if name and not _below(name, [control]) and (not apexes or _below(name, apexes))
    ]
    return [control, *ours][:limit]


def mail_domains(triage: Facts) -> list[str]:
    """The deployment's mail domains (apexes), by the table of addresses."""
    return [str(name) for name in _section(_section(triage, "environment"), "addresses").get("domains") or []]


def _below(name: str, apexes: Iterable[str]) -> bool:
    return any(name == apex or name.endswith("." + apex) for apex in apexes)


def states_of_domains(work_dir: Path, domains: Collection[str]) -> dict[str, str] | None:
    """How each domain stands in the table of addresses: active, suspended, or absent; None when it was not read.

    A suspended or revoked address's DNS is removed by design, unless another active address shares the domain.
    """
    try:
        stream = (work_dir / ADDRESSES_FILE).open(encoding="utf-8")
    except OSError:
        return None
    states = dict.fromkeys(domains, "absent")
    with stream:
        for line in stream:
            row = json.loads(line)
            name = ".".join(part for part in (row.get("subdomain"), row.get("tld")) if part).lower()
            if name in states and states[name] != "active":
                states[name] = "suspended" if row.get("suspended") else "active"
    return states


def deliverability(
    triage: Facts,
    dns: Facts | None,
    states: Mapping[str, str] | None,
    control_domain: str,
    small_sample: int,
    tables: Facts | None = None,
) -> dict[str, Any]:
    """The section C(deliverability).

    dns: what mail_dns_info returned as C(mail_dns), None when it could not run. states: see C(states_of_domains).
    small_sample: fewer failed recipients than this say little about shares. tables: see C(signing.signing_tables).
    """
    checked = dns or {"status": "unavailable", "reasons": ["DNS: not asked."], "domains": [], "addresses": []}
    parts = {
        "blocklists": checked.get("blocklists") or _unavailable(BLOCKLISTS_BLANK, "Blocklists: not asked."),
        "concentration": concentration(triage, small_sample),
        "opendkim": opendkim(triage, tables, checked.get("domains") or []),
        "dmarc": dmarc(triage),
    }
    status, reasons = combine([checked, *parts.values()])
    rows = [_with_key(row, parts["opendkim"]["tables"], control_domain) for row in checked.get("domains") or []]
    if not _all_ways_known(checked.get("addresses") or [], triage):
        rows = [_without_address_list(row, control_domain) for row in rows]
    return {
        "status": status,
        "reasons": reasons,
        "addresses": _with_zones(checked.get("addresses") or [], triage),
        "domains": [_by_design(row, states, control_domain) for row in rows],
        "dns": {
            "status": checked["status"],
            "reasons": list(checked["reasons"]),
            "queries": checked.get("queries") or [],
            "queries_total": checked.get("queries_total"),
        },
        **parts,
    }


def concentration(triage: Facts, small_sample: int) -> dict[str, Any]:
    """The provider with the most bounces: its share of them against its share of all attempts.

    C(lift) is the ratio of the two: near 1, everybody simply writes to that provider; well above, it refuses more than
    others do.
    """
    log = _tier(triage)
    coverage = _section(log, "coverage")
    if coverage.get("status") not in ("complete", "partial"):
        reasons = [str(reason) for reason in coverage.get("reasons") or []]
        return _unavailable(CONCENTRATION_BLANK, f"bounces by provider: {' '.join(reasons) or 'the log was not read.'}")
    bounces = _section(log, "bounces")
    if coverage.get("blind") and not bounces.get("lines"):
        return _unavailable(CONCENTRATION_BLANK, f"bounces by provider: {TIER} logs no deliveries at its LogLevel.")
    rows = [row for row in bounces.get("providers") or [] if row.get("recipients")]
    recipients = sum(row["recipients"] for row in rows)
    top = max(rows, key=lambda row: row["recipients"], default=None)
    attempts = _attempts(bounces, coverage)
    share = top["recipients"] / recipients if top else None
    usual = top["attempts"] / attempts if top and attempts else None
    reasons = [str(reason) for reason in coverage.get("reasons") or []]
    return {
        "status": coverage["status"],
        "reasons": [f"bounces by provider: {reason}" for reason in reasons],
        "top_provider": top["provider"] if top else None,
        "share_of_bounces": _rounded(share),
        "share_of_attempts": _rounded(usual),
        "lift": _rounded(share / usual) if share is not None and usual else None,
        "recipients": recipients,
        "attempts": attempts,
        "small_sample": recipients < small_sample,
        "providers": [_provider(row, recipients, attempts) for row in rows[:TOP]],
        "bounce_reasons": {row["reason"]: row["recipients"] for row in bounces.get("reasons") or []},
    }


def _attempts(bounces: Facts, coverage: Facts) -> int | None:
    """All attempts, Sent included; None where the log's level leaves sent mail out."""
    level = coverage.get("log_level") or {}
    known = level.get("value") if level.get("value") is not None else level.get("at_least")
    if known is None or known < 8:
        return None
    return sum(row.get("attempts") or 0 for row in bounces.get("providers") or [])


def _provider(row: Facts, recipients: int, attempts: int | None) -> dict[str, Any]:
    return {
        "provider": row["provider"],
        "recipients": row["recipients"],
        "attempts": row.get("attempts") if attempts is not None else None,
        "sent": row.get("sent") if attempts is not None else None,
        "share_of_bounces": _rounded(row["recipients"] / recipients),
        "share_of_attempts": _rounded(row["attempts"] / attempts) if attempts else None,
    }


def opendkim(triage: Facts, tables: Facts | None = None, checked: Sequence[Facts] = ()) -> dict[str, Any]:
    """What opendkim on smtp-out signed and what not, over all tasks, and whether it runs (None: not looked).

    tables: its tables in the tasks. checked: the domains that DNS was asked about, for how strictly they align.
    """
    log = _tier(triage)
    tasks = _section(log, "tasks")
    signed: Counter[str] = Counter()
    no_match: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for task in tasks.values():
        said = _section(task, "opendkim")
        signed.update(said.get("signed") or {})
        no_match.update(said.get("no_match") or {})
        numbers.update({name: said.get(name) or 0 for name in ("key_errors", "not_internal")})
    running = {
        str(row["task"]): row.get("opendkim_running")
        for row in _section(triage, "containers").get("tasks") or []
        if row.get("tier") == TIER
    }
    read = _section(log, "coverage").get("status") in ("complete", "partial")
    apexes = mail_domains(triage)
    tables = tables or _unavailable(TABLES_BLANK, "opendkim's tables: not read.")
    foreign = [*(log.get("foreign_signatures") or []), *tables["foreign"]]
    return {
        "status": "complete" if read else "unavailable",
        "reasons": [] if read else [f"opendkim: the log of {TIER} was not read."],
        "signed": dict(signed.most_common(TOP)),
        "no_match": dict(no_match.most_common(TOP)),
        # By design apexes have no line, and mail of others that we forward is not ours to sign.
        "no_match_ours": {name: count for name, count in no_match.most_common(TOP) if _is_address_domain(name, apexes)},
        "key_errors": numbers["key_errors"] if read else None,
        "not_internal": numbers["not_internal"] if read else None,
        "running": running,
        "foreign": _misaligned(foreign, apexes, checked),
        "tables": dict(tables),
    }


def _is_address_domain(name: str, apexes: Sequence[str]) -> bool:
    return name not in apexes and _below(name, apexes)


def _misaligned(foreign: Iterable[Facts], apexes: Sequence[str], checked: Sequence[Facts]) -> list[dict[str, Any]]:
    """Signatures that do not speak for their sender (RFC 7489, 3.1), one entry a pair of domains."""
    modes = {
        str(row["domain"]): (_section(row.get("dmarc") or {}, "alignment").get("dkim") or "relaxed") for row in checked
    }
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in foreign:
        sender, signer = str(row["sender_domain"]), str(row["signed_by"])
        if _below(sender, apexes) and not aligned(signer, sender, modes.get(sender, "relaxed")):
            found.setdefault((sender, signer), dict(row))
    return list(found.values())[:TOP]


def _all_ways_known(addresses: Iterable[Facts], triage: Facts) -> bool:
    """Whether the addresses are all that mail leaves from: found by a whole search, or told by the operator."""
    network = _section(_section(triage, "environment"), "network")
    found = {str(row["ip"]) for row in _outbound(triage)}
    return network.get("status") == "complete" or not {str(row["ip"]) for row in addresses} <= found


def _without_address_list(row: Facts, control_domain: str) -> dict[str, Any]:
    """Whoever publishes half of the addresses shuts the others out, so no record is told then."""
    if row["domain"] != control_domain.rstrip(".").lower():
        return dict(row)
    return {**row, "spf": {**(row.get("spf") or {}), "differs": None, "publish": None}}


def _with_key(row: Facts, tables: Facts, control_domain: str) -> dict[str, Any]:
    """Whether a domain's key is the one that the tier signs with (None: not known), and the record to publish it by."""
    check = dict(row.get("dkim") or {})
    digest = tables.get("key_sha256")
    published = check.get("key_sha256")
    check["matches_tier"] = published == digest if published and digest else None
    if tables.get("key_record") and row["domain"] == control_domain.rstrip(".").lower():
        check["publish"] = {"name": check.get("name"), "type": "TXT", "value": tables["key_record"]}
    return {**row, "dkim": check}


def dmarc(triage: Facts) -> dict[str, Any]:
    """What reporters said of our own addresses in the period, and of strangers who use our names."""
    section = _section(_section(triage, "environment"), "dmarc")
    if section.get("status") not in ("complete", "partial"):
        reasons = [str(reason) for reason in section.get("reasons") or []] or ["DMARC reports: not read."]
        return {"status": "unavailable", "reasons": reasons, **DMARC_BLANK}
    ours, before = section.get("ours"), _section(section, "before").get("ours")
    reasons = [str(reason) for reason in section.get("reasons") or []]
    if ours is None:
        reasons.append(
            "DMARC reports: our outbound addresses are not known, so own and foreign mail cannot be told apart."
        )
    share, share_before = _fail_share(ours), _fail_share(before)
    known = share is not None and share_before is not None
    return {
        "status": "partial" if reasons else "complete",
        "reasons": reasons,
        **{name: section.get(name) for name in ("ours", "strangers", "period", "newest_report", "rows")},
        "age_hours": _hours(section.get("newest_report"), _section(section, "period").get("end")),
        "fail_share": _rounded(share),
        "before": {"ours": before, "fail_share": _rounded(share_before)},
        "change": _rounded((share or 0) - (share_before or 0)) if known else None,
        "sources": list(section.get("sources") or [])[:TOP],
        "reporters": list(section.get("reporters") or []),
        "domains": list(section.get("domains") or []),
    }


def _fail_share(part: Facts | None) -> float | None:
    return part["fail"] / part["messages"] if part and part.get("messages") else None


def _hours(since: Any, until: Any) -> int | None:
    """Whole hours between two RFC 3339 times."""
    if not since or not until:
        return None
    return round((parse_rfc3339(str(until)) - parse_rfc3339(str(since))).total_seconds() / 3600)


def _by_design(row: Facts, states: Mapping[str, str] | None, control_domain: str) -> dict[str, Any]:
    """Mark what is missing on purpose: all of a suspended or revoked address's records, the control domain's MX."""
    name = str(row["domain"])
    if name == control_domain.rstrip(".").lower():
        return _absent(row, ("mx",), "none is published for the control domain") | {"state": "active"}
    if states is None:
        return _not_known_as_ours(row) | {"state": None}
    state = states.get(name)
    if state in ("suspended", "absent"):
        why = f"its addresses are {'suspended' if state == 'suspended' else 'revoked'}"
        return _absent(row, ("spf", "dkim", "dmarc", "mx"), why) | {"state": state}
    return {**row, "state": state}


def _not_known_as_ours(row: Facts) -> dict[str, Any]:
    """Without the table of addresses a foreign or suspended sender's records look as broken as those of ours.

    A domain with the SPF record that the deployment publishes is an active one of ours: a suspended one has none.
    """
    spf = row.get("spf") or {}
    if spf.get("record") and not spf.get("differs"):
        return dict(row)
    marked = dict(row)
    for kind in ("spf", "dkim", "dmarc", "mx"):
        check = row.get(kind) or {}
        if check.get("status") in ("missing", "invalid", "fail"):
            why = "whether it is an active domain of ours is not known, since the table of addresses was not read"
            marked[kind] = {**check, "status": "unavailable", "problem": f"{check.get('problem')}; {why}"}
    return marked


def _absent(row: Facts, kinds: Iterable[str], why: str) -> dict[str, Any]:
    marked = dict(row)
    for kind in kinds:
        check = row.get(kind) or {}
        if check.get("status") == "missing":
            marked[kind] = {
                **check,
                "status": "absent_by_design",
                "problem": f"{check.get('problem')}; by design, {why}",
            }
    return marked


def _with_zones(addresses: Iterable[Facts], triage: Facts) -> list[dict[str, Any]]:
    """Each address with its zone, the smtp-out tasks there, and what their mail met.

    A task leaves by its own zone's address, so each is judged apart. C(bounced) is None where that is not known.
    """
    known = {row["ip"]: row for row in _outbound(triage)}
    service = _section(_section(_section(triage, "environment"), "services"), TIER)
    zones = {str(row["id"]): row.get("zone") for row in service.get("tasks") or []}
    rows = list(addresses)
    return [
        {
            **row,
            "zone": (zone := known.get(row["ip"], {}).get("zone")),
            "via": known.get(row["ip"], {}).get("via"),
            "tasks": sorted(task for task, where in zones.items() if zone and where == zone),
            "bounced": _bounced_by_way(triage, zones, zone, alone=len(rows) == 1),
        }
        for row in rows
    ]


def _bounced_by_way(
    triage: Facts, zones: Mapping[str, str | None], zone: str | None, *, alone: bool
) -> dict[str, int] | None:
    """Refused recipients by reason of the tasks of a zone; of all tasks where there is one way out only."""
    tasks = _section(_tier(triage), "tasks")
    if not alone and (zone is None or any(zones.get(task) is None for task in tasks)):
        return None
    counts: Counter[str] = Counter()
    for task, log in tasks.items():
        if alone or zones.get(task) == zone:
            counts.update(log.get("bounced") or {})
    return dict(counts.most_common())


def _tier(triage: Facts) -> Facts:
    return _section(_section(_section(triage, "tiers"), "by_tier"), TIER)


def _section(facts: Facts, name: str) -> Facts:
    value = facts.get(name)
    return value if isinstance(value, Mapping) else {}


def _unavailable(blank: Facts, reason: str) -> dict[str, Any]:
    return {"status": "unavailable", "reasons": [reason], **blank}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
