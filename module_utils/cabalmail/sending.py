# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures on our own standing as a sender: records, signatures, reverse DNS, blocklists, reports.

Each list holds one entry a cause: when the control domain's record is broken, every domain that refers to it is broken
with it, and the control domain's is the one to mend. Nothing here decides anything; see C(data/findings.yml).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]

BROKEN = ("fail", "missing", "invalid")
RECORDS = ("spf", "dkim", "dmarc")
#: Reasons that a listing may be behind.
REFUSALS = ("blocklist", "reputation", "rate_limited", "policy")
SERIOUS = ("high", "medium")
#: Names in a list of a finding.
SHOWN = 10
#: Reported failures of our own mail that are more than a mishap: so many messages, and this share of all.
MANY_REPORTED, MOST = 10, 0.5


def sending_signals(deliverability: Facts, out: Facts, options: Facts) -> dict[str, Any]:
    """The groups C(dns), C(signing), C(reports) and C(lists).

    out: the measures of what the world said to smtp-out.
    """
    # What of the refusals for authentication each cause explains: the senders of the refused messages say so, and none
    # is counted twice.
    claims = _Claims(out)
    dns = dns_signals(deliverability, options, claims)
    signing = signing_signals(deliverability, claims)
    reports = report_signals(deliverability)
    return {
        "lists": list_signals(deliverability, out, options),
        "dns": dns,
        "signing": signing,
        "reports": reports,
        "auth": {"dmarc": dmarc_causes(dns, signing, reports, deliverability), "explained": claims.explained},
    }


def usable(part: Facts | None) -> bool:
    """Whether a part holds evidence at all (complete or partial)."""
    return bool(part) and part is not None and part.get("status") in ("complete", "partial")


class _Claims:
    """Refused recipients by the domain of the sender, each of which one cause may claim."""

    def __init__(self, out: Facts) -> None:
        rows = out.get("by_sender_domain") or {}
        self._left = {domain: int(reasons.get("authentication", 0)) for domain, reasons in rows.items()}
        self._all = int(out.get("authentication") or 0)
        self.explained = 0

    def take(self, domains: Iterable[str], everybody: bool = False) -> int:
        """Claim what the domains' mail met; everybody: also mail whose sender no line names."""
        wanted = set(domains)
        left = self._all - self.explained
        taken = left if everybody else min(sum(self._left.pop(name, 0) for name in wanted), left)
        self.explained += taken
        return taken


# -- records


def dns_signals(deliverability: Facts, options: Facts, claims: _Claims) -> dict[str, Any]:
    """Broken records of ours, by what DNS answered."""
    names = ("broken", "unreadable", "spf", "dkim", "dmarc", "mx", "reverse")
    if not usable(deliverability):
        return dict.fromkeys(names)
    control = str(options.get("control_domain") or "").rstrip(".").lower()
    rows = deliverability.get("domains") or []
    known = {kind: _any_known(row.get(kind) for row in rows) for kind in RECORDS}
    causes = {kind: _causes(rows, kind, control, claims) if known[kind] else None for kind in RECORDS}
    addresses = deliverability.get("addresses") or []
    unreadable = [
        f"{kind} of {row['domain']}"
        for row in rows
        for kind in RECORDS
        if (row.get(kind) or {}).get("status") == "unavailable"
    ]
    return {
        "broken": [{**cause, "kind": kind} for kind in RECORDS for cause in causes[kind] or []],
        "unreadable": unreadable,
        **causes,
        # Without an MX, or with one that says "no mail" (RFC 7505), many receivers refuse a domain as sender.
        "mx": [
            {"domain": row["domain"], "problem": row["mx"].get("problem"), "publish": row["mx"]["publish"]}
            for row in rows
            if (row.get("mx") or {}).get("status") in BROKEN and row["mx"].get("publish")
        ],
        "reverse": [_reverse(row) for row in addresses if row.get("status") in BROKEN]
        if _any_known(addresses)
        else None,
    }


def _any_known(checks: Iterable[Facts | None]) -> bool:
    """Whether DNS said anything; where nothing was asked nothing is unknown either."""
    states = {(check or {}).get("status") for check in checks} - {None}
    return states != {"unavailable"}


def _causes(rows: Sequence[Facts], kind: str, control: str, claims: _Claims) -> list[dict[str, Any]]:
    """The broken records of a kind, those that are only the control domain's echo folded into it."""
    broken = [row for row in rows if _problem(row.get(kind) or {})]
    root = next((row for row in broken if row["domain"] == control), None)
    echoes = [row for row in broken if row is not root and root is not None and _is_echo(row[kind], kind, control)]
    entries = []
    for row in broken:
        if any(row is echo for echo in echoes):
            continue
        check = row[kind]
        affected = [str(echo["domain"]) for echo in echoes] if row is root else []
        entries.append(
            {
                "domain": str(row["domain"]),
                "name": check.get("name"),
                "problem": _problem(check),
                "differs": check.get("differs"),
                "status": check.get("status"),
                "record": check.get("record"),
                "publish": check.get("publish"),
                "affected": affected,
                "uncovered": [ip for ip, covered in (check.get("covers") or {}).items() if covered is False],
                "recipients": claims.take([str(row["domain"]), *affected], everybody=row is root),
            }
        )
    return sorted(entries, key=lambda entry: (-entry["recipients"], entry["domain"] != control, entry["domain"]))


def _problem(check: Facts) -> str | None:
    """Why receivers can't use a record; a key that is not the one that mail is signed with is useless too."""
    if check.get("status") in BROKEN:
        return str(check.get("problem") or check.get("status"))
    if "key_sha256" in check and check.get("status") == "ok":
        if check.get("matches_tier") is False:
            return f"the DKIM key of {check.get('name')} is not the one that smtp-out signs with"
        if check.get("matches_tier") is None and check.get("differs"):
            return str(check["differs"])
    return None


def _is_echo(check: Facts, kind: str, control: str) -> bool:
    """Whether a record is what the deployment publishes and only what it refers to is broken."""
    if kind == "spf":
        return check.get("status") != "missing" and not check.get("differs")
    prefix = "_dmarc" if kind == "dmarc" else f"{check.get('selector')}._domainkey"
    return check.get("alias") == f"{prefix}.{control}"


def _reverse(row: Facts) -> dict[str, Any]:
    return {name: row.get(name) for name in ("ip", "zone", "ptr", "expected_ptr", "problem", "status")}


# -- signatures


def signing_signals(deliverability: Facts, claims: _Claims) -> dict[str, Any]:
    """Mail of ours that goes out without a signature, or with one that does not speak for its sender."""
    part = deliverability.get("opendkim") or {}
    names = ("down", "no_match", "key_errors", "missing", "unsigned", "foreign")
    if not usable(part):
        return dict.fromkeys(names)
    running = {task: value for task, value in (part.get("running") or {}).items() if value is not None}
    down = sorted(task for task, value in running.items() if value is False) if running else None
    tables = part.get("tables") or {}
    missing = tables.get("missing") if usable(tables) else None
    no_match = part.get("no_match_ours") or {}
    unsigned = sorted({*no_match, *(missing or [])})
    broken = bool(down) or bool(part.get("key_errors"))
    entries = []
    if broken or unsigned:
        entries.append(
            {
                "domains": unsigned[:SHOWN],
                "recipients": claims.take(unsigned, everybody=broken),
            }
        )
    foreign = _foreign(part.get("foreign") or [], claims)
    return {
        "down": down,
        "no_match": sorted(no_match.items(), key=lambda item: (-item[1], item[0]))[:SHOWN],
        "key_errors": part.get("key_errors"),
        "missing": missing,
        "unsigned": entries,
        "foreign": foreign,
    }


def _foreign(rows: Iterable[Facts], claims: _Claims) -> list[dict[str, Any]]:
    """Signatures that do not align, an entry a signing domain: what is signed for it has one cause."""
    by_signer: dict[str, list[str]] = {}
    for row in rows:
        by_signer.setdefault(str(row["signed_by"]), []).append(str(row["sender_domain"]))
    return [
        {"signed_by": signer, "domains": sorted(domains), "recipients": claims.take(domains)}
        for signer, domains in by_signer.items()
    ]


# -- reports


def report_signals(deliverability: Facts) -> dict[str, Any]:
    """What DMARC reporters said of our own mail."""
    part = deliverability.get("dmarc") or {}
    ours = part.get("ours")
    if not usable(part) or not isinstance(ours, Mapping):
        return dict.fromkeys(("messages", "fail", "share", "domains", "age_hours"))
    return {
        "messages": ours.get("messages"),
        "fail": ours.get("fail"),
        "share": ours["fail"] / ours["messages"] if ours.get("messages") else None,
        "domains": [
            {"domain": row["domain"], **row["ours"]}
            for row in part.get("domains") or []
            if (row.get("ours") or {}).get("fail")
        ][:SHOWN],
        "age_hours": part.get("age_hours"),
    }


def dmarc_causes(dns: Facts, signing: Facts, reports: Facts, deliverability: Facts) -> list[dict[str, Any]] | None:
    """Why DMARC fails: a record, a signature for another domain, or what reporters saw and nothing else explains."""
    if dns["dmarc"] is None:
        return None
    policies = {row["domain"]: (row.get("dmarc") or {}).get("policy") for row in deliverability.get("domains") or []}
    causes = [{**cause, "kind": "record", "policy": None, "source": "its records"} for cause in dns["dmarc"]]
    causes += [
        {
            "kind": "alignment",
            "domain": row["signed_by"],
            "problem": f"mail of {', '.join(row['domains'][:3])}{_more(row['domains'], 3)} is signed for"
            f" {row['signed_by']}, which does not align",
            "policy": next((policies[name] for name in row["domains"] if policies.get(name)), None),
            "publish": None,
            "affected": row["domains"],
            "recipients": row["recipients"],
            "source": "the signatures that opendkim logged",
        }
        for row in signing["foreign"] or []
    ]
    failed, share = reports["fail"], reports["share"]
    if not causes and not dns["broken"] and share is not None and failed >= MANY_REPORTED and share >= MOST:
        domain = next((str(row["domain"]) for row in reports["domains"]), "")
        causes.append(
            {
                "kind": "reports",
                "domain": domain,
                "problem": f"reporters saw {failed} of {reports['messages']} messages from our addresses fail",
                "policy": policies.get(domain),
                "publish": None,
                "affected": [],
                "recipients": 0,
                "source": "the reporters",
            }
        )
    return causes


def _more(names: Sequence[str], shown: int) -> str:
    return f" and {len(names) - shown} more" if len(names) > shown else ""


# -- blocklists


def list_signals(deliverability: Facts, out: Facts, options: Facts) -> dict[str, Any]:
    """What of ours is on lists that receivers ask, an entry for each address or domain."""
    part = deliverability.get("blocklists") or {}
    if not usable(part):
        return dict.fromkeys(("listed", "minor", "explained", "silent", "asked"))
    lists = {row["zone"]: row for row in part.get("lists") or []}
    by_target: dict[str, list[dict[str, Any]]] = {}
    for row in part.get("results") or []:
        if row.get("status") == "listed":
            entry = {**{name: lists.get(row["zone"], {}).get(name) for name in ("weight", "delist", "meaning")}, **row}
            by_target.setdefault(str(row["target"]), []).append(entry)
    zones = {str(row["ip"]): row.get("zone") for row in deliverability.get("addresses") or []}
    entries = [_listed(target, rows, zones.get(target)) for target, rows in by_target.items()]
    entries.sort(key=lambda entry: (SERIOUS.index(entry["weight"]) if entry["serious"] else 9, entry["kind"] != "ip"))
    serious = [entry for entry in entries if entry["serious"]]
    explained = _share_out(serious, deliverability, _refused_for_lists(out, options)) if serious else 0
    answered = {row["zone"] for row in part.get("results") or [] if row.get("status") != "unavailable"}
    return {
        "listed": serious,
        "minor": [entry for entry in entries if not entry["serious"]],
        "explained": explained,
        "silent": sorted(row["name"] for row in lists.values() if row.get("status") == "unavailable"),
        "asked": len(answered),
    }


def _share_out(entries: Sequence[dict[str, Any]], deliverability: Facts, refused: int | None) -> int | None:
    """Give each entry the refusals that it may explain, the gravest first; returns how many all of them explain.

    An address explains what was refused to the tasks that leave by it, where that is known; a domain the rest.
    """
    by_ip = {str(row["ip"]): row.get("bounced") for row in deliverability.get("addresses") or []}
    left = refused or 0
    for entry in entries:
        bounced = by_ip.get(entry["target"])
        via = left if bounced is None else sum(bounced.get(reason, 0) for reason in REFUSALS)
        entry["recipients"] = min(left, via)
        left -= entry["recipients"]
    return None if refused is None else refused - left


def _listed(target: str, rows: Sequence[Facts], zone: str | None) -> dict[str, Any]:
    weights = [str(row.get("weight")) for row in rows]
    weight = next((weight for weight in SERIOUS if weight in weights), "low")
    return {
        "target": target,
        "kind": rows[0]["kind"],
        "zone": zone,
        "weight": weight,
        "serious": weight in SERIOUS,
        "lists": [{name: row.get(name) for name in ("list", "weight", "delist", "meanings", "says")} for row in rows],
    }


def _refused_for_lists(out: Facts, options: Facts) -> int | None:
    """Refused recipients that a listing explains: many providers at once, or an answer that names a list."""
    if out.get("refused") is None:
        return None
    if int(out["refusing_providers"] or 0) >= 2 and out["top_share"] < options.get("provider_share", 0.6):
        return int(out["refused"])
    return int((out.get("reasons") or {}).get("blocklist", 0)) if int(out["refusing_providers"] or 0) >= 2 else 0
