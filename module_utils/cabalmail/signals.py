# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The measures that the verdict's table speaks in, computed from the evidence of one triage.

A measure is a number, a text, a list or ``None`` for "not known": evidence that could not be had
never counts as zero. Nothing here decides anything; the conditions stand in ``data/findings.yml``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from .alert import DEFERRED, HEARTBEAT, SUPPORTED
from .sending import sending_signals, usable

Facts = Mapping[str, Any]

#: So many providers of a tier are listed in the facts.
LISTED = 50
TIERS = ("imap", "smtp-in", "smtp-out")

#: Reasons (see the reason table) by what they say about outgoing mail.
NAMED_REASONS = ("blocklist", "reputation", "rate_limited")
#: The last one names none of the others: a refusal without a cause.
REFUSAL_REASONS = (*NAMED_REASONS, "policy")
AUTHENTICATION_REASONS = ("authentication",)
RECIPIENT_REASONS = ("recipient_unknown", "recipient_disabled", "recipient_restricted", "mailbox_full", "host_unknown")
CONTENT_REASONS = ("content", "message_too_big")

#: What the maps say of a bounced recipient of ours (see address_map.recipients).
MAP_STATES = ("stale_smtp_in", "stale_imap", "revoked", "lag", "missing_user", "bad_row", "in_order")
STUCK_STATES = ("dead", "hung", "failing", "starved")


def build_signals(triage: Facts, options: Facts) -> dict[str, Any]:
    """Compute every measure.

    :param triage: the fact ``triage`` with the evidence sections.
    :param options: thresholds (role verdict's defaults) and the names of the deployment.
    :returns: nested dictionaries, the namespace of the conditions and texts in ``data/findings.yml``.
    """
    tiers = section(triage, "tiers").get("by_tier") or {}
    bounces, deferrals = bounce_signals(triage, tiers, options), deferral_signals(triage, tiers, options)
    out = outgoing_signals(tiers.get("smtp-out"), options)
    return {
        "options": dict(options),
        "names": names(triage, options),
        "alert": alert_signals(triage),
        "spike": spike_signals(triage, bounces, deferrals),
        "bounces": bounces,
        "deferrals": deferrals,
        "milter": milter_signals(triage, tiers),
        "queues": queue_signals(triage, options),
        "out": out,
        **sending_signals(section(triage, "deliverability"), out, options),
        "own": own_host_signals(tiers),
        "maps": map_signals(triage),
        "loops": loop_signals(triage),
        "local": local_signals(triage, tiers),
        "path": path_signals(triage, tiers),
        "coverage": coverage_signals(triage, tiers),
        "network": network_signals(triage, tiers, options),
        "platform": platform_signals(triage),
    }


def section(triage: Facts, name: str) -> Facts:
    """A section of the facts, or an empty one where the step never ran."""
    value = triage.get(name)
    return value if isinstance(value, Mapping) else {}


def names(triage: Facts, options: Facts) -> dict[str, Any]:
    """Real names for the commands that a person pastes."""
    run = section(triage, "run")
    window = section(triage, "alert").get("window") or {}
    logs = section(triage, "tiers").get("by_tier") or {}
    services = section(triage, "environment").get("services") or {}
    return {
        "service": {tier: (services.get(tier) or {}).get("service") or f"cabal-{tier}" for tier in TIERS},
        "log_group": {tier: (logs.get(tier) or {}).get("log_group") or f"/ecs/cabal-{tier}" for tier in TIERS},
        "task": {tier: task_of(triage, tier) for tier in TIERS},
        "cluster": run.get("cluster"),
        "region": run.get("region"),
        "environment": run.get("environment"),
        "control_domain": options.get("control_domain") or "<control-domain>",
        "window_start": window.get("start"),
        "window_end": window.get("end"),
    }


def task_of(triage: Facts, tier: str) -> str:
    """A task of a tier to look into by hand: one that answered before one that is only listed."""
    rows = [row for row in section(triage, "containers").get("tasks") or [] if row.get("tier") == tier]
    rows.sort(key=lambda row: row.get("outcome") != "completed")
    return str(rows[0]["task"]) if rows else f"<task of {tier}>"


def alert_signals(triage: Facts) -> dict[str, Any]:
    """What started the run."""
    alert = section(triage, "alert")
    threshold = alert.get("threshold") or {}
    deferred = alert.get("name") == DEFERRED
    return {
        "name": alert.get("name"),
        "deferred": deferred,
        "heartbeat": alert.get("name") == HEARTBEAT,
        "bounced": not deferred and alert.get("name") != HEARTBEAT,
        # What the alert counts, and what has become of a recipient that it counts.
        "noun": "deferrals" if deferred else "bounces",
        "fate": "deferred" if deferred else "bounced",
        "threshold": threshold.get("lines", 15),
        "minutes": threshold.get("minutes", 30),
        "pattern": threshold.get("pattern", "dsn=5"),
    }


def moment(text: str | None) -> datetime | None:
    """An RFC 3339 text as a moment, None where there is none."""
    if not text:
        return None
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def read_logs(tiers: Mapping[str, Facts]) -> list[Facts]:
    """The tiers whose log could be read and is not known to be blind."""
    return [log for log in tiers.values() if usable(log.get("coverage"))]


def bounce_signals(triage: Facts, tiers: Mapping[str, Facts], options: Facts) -> dict[str, Any]:
    """Bounces over all tiers, as the alert's metric counts them and beyond it."""
    logs = read_logs(tiers)
    alert = alert_signals(triage)
    if not logs:
        unknown = (
            "lines",
            "recipients",
            "unseen",
            "peak",
            "recent",
            "over_threshold",
            "total",
        )
        return dict.fromkeys((*unknown, "minimum"))
    peak = section(triage, "tiers").get("peak") or {}
    peak_lines = peak.get("lines") or 0
    recipients = sum(log["bounces"]["recipients"] for log in logs)
    unseen = sum(log["unseen"]["recipients"] for log in logs)
    own_seen = sum((log["bounces"].get("own_host") or {}).get("recipients") or 0 for log in logs)
    # imap's refusals are the far side of what a relaying tier logs; only what no tier logged is extra.
    extra = max(0, unseen - own_seen)
    return {
        "lines": sum(log["bounces"]["bounced_lines" if alert["deferred"] else "lines"] for log in logs),
        "recipients": recipients,
        "unseen": extra,
        "total": recipients + extra,
        "peak": peak_lines,
        "recent": sum(log["bounces"].get("ongoing_lines_last_10m") or 0 for log in logs),
        "over_threshold": peak_lines > alert["threshold"],
        "minimum": options.get("minimum_recipients", 5),
    }


def spike_signals(triage: Facts, bounces: Facts, deferrals: Facts) -> dict[str, Any]:
    """What the alert at hand is about: its metric's lines, and the recipients behind them."""
    about = deferrals if alert_signals(triage)["deferred"] else bounces
    tiers = section(triage, "tiers")
    change = tiers.get("change") or {}
    condition = change.get("condition") or {}
    return {
        # Lines, peak and what came last are those of the metric, whichever it is.
        **{name: bounces[name] for name in ("peak", "recent", "over_threshold")},
        "total": about["total"],
        "apart": sum(
            (log.get("apart") or {}).get("metric_lines") or 0 for log in (tiers.get("by_tier") or {}).values()
        ),
        "minimum": about["minimum"],
        "said": replies_of([log["bounces"] for log in read_logs(tiers.get("by_tier") or {})], lambda _reason: True),
        "onset": change.get("onset"),
        "condition": condition.get("state"),
    }


#: What holds our mail back for what we are: rate, reputation, authentication.
HELD_BACK_REASONS = (*REFUSAL_REASONS, *AUTHENTICATION_REASONS)


def deferral_signals(triage: Facts, tiers: Mapping[str, Facts], options: Facts) -> dict[str, Any]:
    """Mail that waits, in recipients: other servers by provider and reason, our own imap, local delivery."""
    logs = read_logs(tiers)
    if not logs:
        names = ("spike", "total", "own", "greylisted", "greylisting", "held", "holding", "top_provider")
        more = ("top_share", "dns", "dns_domains", "network", "network_domains", "remote", "remote_reasons", "said")
        return dict.fromkeys((*names, *more, "sent_outside", "local", "minimum", "many_domains"))
    rule = SUPPORTED[DEFERRED]
    parts = [log.get("deferrals") or {} for log in logs]
    outside: Counter[str] = Counter()
    by_provider: dict[str, Counter[str]] = {}
    domains: Counter[str] = Counter()
    for part in parts:
        for row in part.get("providers") or []:
            outside.update(row.get("reasons") or {})
            by_provider.setdefault(row["provider"], Counter()).update(row.get("reasons") or {})
            for name in HELD_BACK_REASONS:
                # A limit of the recipient's own mailbox is nothing that we are held back for.
                limited = theirs(row, (name,))
                by_provider[row["provider"]][name] -= limited
                outside["recipient_restricted"] += limited
        for row in part.get("reasons") or []:
            domains[row["reason"]] += row.get("domains") or 0
    holding = ranked(
        {name: sum(counts[reason] for reason in HELD_BACK_REASONS) for name, counts in by_provider.items()}
    )
    held = sum(count for _, count in holding)
    named = ("greylisted", "dns_failure", "network", *HELD_BACK_REASONS)
    remote = +Counter({reason: count for reason, count in outside.items() if reason not in named})
    return {
        # The alert's own rule, or as many lines in one tier whatever the alert is.
        "spike": alert_signals(triage)["deferred"]
        or any(((part.get("peak") or {}).get("lines") or 0) > rule.lines for part in parts),
        "total": sum(part.get("recipients") or 0 for part in parts),
        "own": sum((part.get("own_host") or {}).get("recipients") or 0 for part in parts),
        "greylisted": outside["greylisted"],
        "greylisting": ranked({name: counts["greylisted"] for name, counts in by_provider.items()}),
        "held": held,
        "holding": holding,
        "top_provider": holding[0][0] if holding else None,
        "top_share": holding[0][1] / held if holding else 0.0,
        "dns": outside["dns_failure"],
        "dns_domains": domains["dns_failure"],
        "network": outside["network"],
        "network_domains": domains["network"],
        "remote": sum(remote.values()),
        "remote_reasons": dict(remote.most_common()),
        "said": {
            "greylisted": replies_of(parts, lambda reason: reason == "greylisted"),
            "held": replies_of(parts, lambda reason: reason in HELD_BACK_REASONS),
            "remote": replies_of(parts, lambda reason: reason not in named),
        },
        "sent_outside": sum(row.get("sent") or 0 for log in logs for row in log["bounces"].get("providers") or []),
        "local": sum(reason_counts(part.get("reasons") or [])["local_error"] for part in parts),
        "minimum": options.get("minimum_recipients", 5),
        "many_domains": options.get("many_domains", 3),
    }


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Names with a count above 0, the largest first."""
    return sorted(((name, count) for name, count in counts.items() if count), key=lambda item: (-item[1], item[0]))


def replies_of(parts: Iterable[Facts], wanted: Callable[[str], bool]) -> list[str]:
    """The three most frequent answers of some reasons, in the far ends' own words."""
    rows = [row for part in parts for row in part.get("replies") or [] if wanted(row["reason"])]
    return [row["text"] for row in sorted(rows, key=lambda row: (-(row.get("recipients") or 0), row["text"]))[:3]]


def milter_signals(triage: Facts, tiers: Mapping[str, Facts]) -> dict[str, Any]:
    """smtp-in's milters: sessions that it turned away for a dead one, and tasks without opendkim."""
    log = tiers.get("smtp-in")
    refused = None
    if log is not None and usable(log.get("coverage")):
        rows = [row for row in log.get("rejects") or [] if str(row.get("text", "")).startswith("Milter")]
        refused = sum(row.get("lines") or 0 for row in rows)
    seen = [
        row
        for row in section(triage, "containers").get("tasks") or []
        if row.get("tier") == "smtp-in" and isinstance(row.get("opendkim_running"), bool)
    ]
    return {
        "refused": refused,
        "down": sorted(row["task"] for row in seen if not row["opendkim_running"]) if seen else None,
    }


def queue_signals(triage: Facts, options: Facts) -> dict[str, Any]:
    """sendmail's queues by tier. The tasks of a tier share one, so it is taken from one of them and never added up."""
    by_tier = queues_by_tier(triage)
    if not by_tier:
        return {"deep": None}
    limit = options.get("queue_messages", 50)
    return {
        "deep": [
            {
                "tier": tier,
                "messages": queue["messages"],
                "oldest": queue.get("oldest"),
                "complete": bool(queue.get("complete")),
                "reasons": (queue.get("reasons") or [])[:3],
                "why": (queue.get("why") or [])[:4],
            }
            for tier, queue in sorted(by_tier.items(), key=lambda item: (-item[1]["messages"], item[0]))
            if queue["messages"] >= limit
        ],
    }


def queues_by_tier(triage: Facts) -> dict[str, Facts]:
    """A queue a tier: what one task read whole beats what another read in part."""
    by_tier: dict[str, Facts] = {}
    for row in section(triage, "containers").get("tasks") or []:
        queue = row.get("queue") or {}
        if queue.get("messages") is not None:
            known = by_tier.get(row["tier"])
            if known is None or (bool(queue.get("complete")), queue["messages"]) > (
                bool(known.get("complete")),
                known["messages"],
            ):
                by_tier[row["tier"]] = queue
    return by_tier


def reason_counts(rows: Iterable[Mapping[str, Any]], fault: str | None = None) -> Counter[str]:
    """Recipients by reason id."""
    counts: Counter[str] = Counter()
    for row in rows:
        if fault is None or row.get("fault") == fault:
            counts[row["reason"]] += row.get("recipients") or 0
    return counts


def outgoing_signals(log: Facts | None, options: Facts) -> dict[str, Any]:
    """What the rest of the world said to smtp-out, its own imap host left out."""
    unknown = dict.fromkeys(
        (
            "failed",
            "refused",
            "authentication",
            "recipient",
            "content",
            "refusing",
            "top_provider",
            "top_share",
            "top_form",
            "refusing_providers",
            "others_accept",
            "reasons",
            "top_refused",
            "top_named",
            "rejected_sender",
            "top_attempts",
            "top_rate",
            "other_rate",
            "top_replies",
            "attempts",
            "reverse_dns",
            "sender_rejected",
            "tls_required",
            "rejecting_authentication",
            "bad_domains",
            "relay",
            "by_sender_domain",
            "named",
            "mailbox",
            "accepted",
            "refused_sender",
            "bad_sender",
            "bad_sender_share",
            "bad_senders",
            "minimum",
        )
    )
    if log is None or not usable(log.get("coverage")):
        return unknown
    providers = log["bounces"].get("providers") or []
    reasons = reason_counts(log["bounces"].get("reasons") or [])
    reasons.subtract((log["bounces"].get("own_host") or {}).get("reasons") or {})
    reasons = +reasons
    refusing = {row["provider"]: refused for row in providers if (refused := refusals(row, REFUSAL_REASONS))}
    top = max(refusing, key=lambda name: refusing[name], default=None)
    refused = sum(refusing.values())
    failed = sum(reasons.values())
    senders = log["bounces"].get("senders") or []
    bad_senders = by_sender(senders, RECIPIENT_REASONS)
    # Answers about a mailbox, its own limits among them; a host that no name server knows says nothing of one.
    mailbox = sum(reasons[name] for name in RECIPIENT_REASONS if name != "host_unknown") + sum(
        theirs(row, REFUSAL_REASONS) for row in providers
    )
    groups = {
        "authentication": sum(reasons[name] for name in AUTHENTICATION_REASONS),
        "recipient": mailbox + reasons["host_unknown"],
        "content": sum(reasons[name] for name in CONTENT_REASONS),
        "mailbox": mailbox,
        "named": sum(refusals(row, NAMED_REASONS) for row in providers),
        "accepted": accepted(log, providers),
    }
    at_top: Mapping[str, Any] = next((row for row in providers if row["provider"] == top), {})
    return {
        "failed": failed,
        "refused": refused,
        **groups,
        "refusing": sorted(refusing.items(), key=lambda item: (-item[1], item[0])),
        "refusing_providers": len(refusing),
        "top_provider": top,
        "top_share": refusing[top] / refused if top else 0.0,
        "top_form": (options.get("postmasters") or {}).get(top),
        "top_refused": refusing[top] if top else 0,
        "top_named": refusals(at_top, NAMED_REASONS),
        "top_attempts": at_top.get("attempts"),
        # Everybody writes to the large providers: a block shows in what share of its own mail a provider refuses.
        "top_rate": refusing[top] / at_top["attempts"] if top and at_top.get("attempts") else None,
        "other_rate": refused_elsewhere(providers, top, refusing),
        "top_replies": [
            row["text"]
            for row in log["bounces"].get("replies") or []
            if row.get("provider") == top and row.get("reason") in REFUSAL_REASONS
        ][:3],
        "attempts": sum(row.get("attempts") or 0 for row in providers),
        **{name: reasons[name] for name in ("reverse_dns", "sender_rejected", "tls_required")},
        "others_accept": accepted_elsewhere(log, at_top),
        "reasons": dict(reasons.most_common()),
        "rejecting_authentication": sorted(r["provider"] for r in providers if total(r, AUTHENTICATION_REASONS)),
        "bad_domains": len({d["domain"] for d in log["bounces"].get("domains") or []}),
        "relay": next((row["relay"] for row in log["bounces"].get("relays") or []), None),
        "by_sender_domain": {
            row["domain"]: row.get("reasons") or {} for row in log["bounces"].get("sender_domains") or []
        },
        "bad_sender": bad_senders[0][0] if bad_senders else None,
        "bad_sender_share": share_of_first(bad_senders),
        "bad_senders": bad_senders[:5],
        "refused_sender": main_sender(by_sender(senders, REFUSAL_REASONS), 0.8),
        "rejected_sender": main_sender(by_sender(senders, ("sender_rejected",)), 0.5),
        "minimum": options.get("minimum_recipients", 5),
    }


def by_sender(senders: Iterable[Mapping[str, Any]], wanted: Iterable[str]) -> list[tuple[str, int]]:
    """Senders by the recipients that failed for one of these reasons, most first."""
    names = tuple(wanted)
    return ranked({str(row["sender"]): total(row, names) for row in senders})


def share_of_first(counts: Sequence[tuple[str, int]]) -> float | None:
    """What part of all the first one has; None where there is none."""
    return counts[0][1] / sum(count for _, count in counts) if counts else None


def main_sender(counts: Sequence[tuple[str, int]], least: float) -> str | None:
    """The one sender that has at least that share, if there is one."""
    share = share_of_first(counts)
    return counts[0][0] if share is not None and share >= least else None


def accepted(log: Facts, providers: Sequence[Mapping[str, Any]]) -> int:
    """Recipients that took our mail; the providers are listed up to a number, beyond it all of the tier's count."""
    sent = sum(row.get("sent") or 0 for row in providers)
    return sent if sent or len(providers) < LISTED else int((log.get("deliveries") or {}).get("sent") or 0)


def refusals(row: Mapping[str, Any], wanted: Iterable[str]) -> int:
    """Recipients that a provider refused for what we are; a limit of the recipient's own mailbox is none of it."""
    names = tuple(wanted)
    return total(row, names) - theirs(row, names)


def theirs(row: Mapping[str, Any], wanted: Iterable[str]) -> int:
    """Recipients of a provider for whom such a reason was a matter of their own mailbox."""
    faults: Mapping[str, int] = row.get("recipient_faults") or {}
    return sum(faults.get(name, 0) for name in wanted)


def total(row: Mapping[str, Any], wanted: Iterable[str]) -> int:
    """Recipients of a provider that failed for one of these reasons."""
    reasons = row.get("reasons") or {}
    return sum(reasons.get(name, 0) for name in wanted)


def refused_elsewhere(
    providers: Iterable[Mapping[str, Any]], top: str | None, refusing: Mapping[str, int]
) -> float | None:
    """Share of the mail to all providers but the top one that they refused; None where none was sent."""
    attempts = sum(row.get("attempts") or 0 for row in providers if row["provider"] != top)
    return sum(count for name, count in refusing.items() if name != top) / attempts if attempts else None


def accepted_elsewhere(log: Facts, at_top: Mapping[str, Any]) -> int | None:
    """Recipients that providers other than the top one accepted; None when the log does not tell."""
    sent = (log.get("deliveries") or {}).get("sent")
    return None if sent is None else max(0, int(sent) - int(at_top.get("sent") or 0))


def own_host_signals(tiers: Mapping[str, Facts]) -> dict[str, Any]:
    """Recipients that our own imap tier refused, from whichever side logged it."""
    imap = tiers.get("imap")
    unseen = imap["unseen"] if imap is not None and usable(imap.get("coverage")) else None
    codes: Counter[str] = Counter()
    for log in tiers.values():
        if usable(log.get("coverage")):
            codes.update((log["bounces"].get("own_host") or {}).get("codes") or {})
    kinds = (unseen or {}).get("kinds") or {}
    rejected = kinds.get("reject_553") if unseen is not None else None
    unknown_user = kinds.get("user_unknown") if unseen is not None else None
    return {
        "tempfail": larger(codes["5.3.0"], rejected),
        "unknown_user": larger(codes["5.1.1"], unknown_user),
    }


def larger(seen: int, other: int | None) -> int | None:
    """The larger of two views of the same refusals; unknown only when neither side says anything."""
    return max(seen, other) if other is not None else (seen or None)


def map_signals(triage: Facts) -> dict[str, Any]:
    """Which maps are wrong, and what the bounced recipients say about them."""
    part = section(triage, "address_map")
    keys = (*MAP_STATES, "checked", "smtp_in", "imap")
    doubt = imap_map_in_doubt(triage, part)
    if not usable(part):
        return {**dict.fromkeys(keys), "refusals": None, "bad_rows": None, "imap_in_doubt": doubt}
    recipients = part.get("recipients") or {}
    known = recipients if usable(recipients) else {}
    by_state = known.get("by_state") or {}
    refusals = known.get("refusals_by_state") or {}
    stale = part.get("stale_tasks") or {}
    sizes = part.get("tasks_of_tier") or {}
    read = [row for row in part.get("tasks") or [] if row.get("stale") is not None]
    hung = {row["task"] for row in section(triage, "reconfigure_loop").get("tasks") or [] if row.get("state") == "hung"}
    result: dict[str, Any] = {name: by_state.get(name, 0) if known else None for name in MAP_STATES}
    result["checked"] = known.get("checked")
    result["refusals"] = {name: refusals.get(name, 0) for name in MAP_STATES} if known else None
    result["bad_rows"] = bad_row_signals(part.get("bad_rows"))
    result["imap_in_doubt"] = doubt
    for key, tier in (("smtp_in", "smtp-in"), ("imap", "imap")):
        rows = [row for row in read if row.get("tier") == tier]
        tasks = sorted(stale.get(tier) or [])
        result[key] = {
            "read": bool(rows),
            "stale": tasks if rows or tasks else None,
            "all": bool(tasks) and len(tasks) >= (sizes.get(tier) or len(tasks)),
            "count": sizes.get(tier),
            "unseen": max(0, number(sizes.get(tier)) - len(rows)),
            # Ending a loop's process helps only where there is one.
            "all_hung": bool(tasks) and set(tasks) <= hung,
            "rows": [row for row in rows if row.get("task") in tasks],
            "wrong": sum(
                number(row.get("missing")) + number(row.get("surplus")) + number(row.get("wrong_user"))
                for row in rows
                if row.get("task") in tasks
            ),
            "oldest_minutes": oldest_minutes(row for row in rows if row.get("task") in tasks),
        }
    return result


def imap_map_in_doubt(triage: Facts, maps: Facts) -> bool:
    """Whether imap's map may lack what the table has: its loop is stuck, or can't be seen and a row stops makemap."""
    loops = [row for row in section(triage, "reconfigure_loop").get("tasks") or [] if row.get("tier") == "imap"]
    if any(row.get("state") in STUCK_STATES for row in loops):
        return True
    built = bool(loops) and all(row.get("state") in ("healthy", "no_ping") for row in loops)
    return not built and bool((bad_row_signals(maps.get("bad_rows")) or {}).get("breaking"))


def bad_row_signals(part: Facts | None) -> dict[str, Any] | None:
    """Rows of the table that no map can be made of; those that makemap stumbles over apart from those left out."""
    if part is None:
        return None
    kinds = part.get("kinds") or {}
    return {
        "count": part.get("count") or 0,
        "breaking": sum(count for kind, count in kinds.items() if kind != "invalid_username"),
        "kinds": kinds,
        "examples": part.get("examples") or [],
    }


def number(value: Any) -> int:
    """A count that may be given as a list of its members."""
    return len(value) if isinstance(value, (list, tuple)) else int(value or 0)


def oldest_minutes(rows: Iterable[Mapping[str, Any]]) -> int | None:
    """Age of the oldest map in whole minutes."""
    ages = [row["age_seconds"] for row in rows if row.get("age_seconds") is not None]
    return round(max(ages) / 60) if ages else None


def loop_signals(triage: Facts) -> dict[str, Any]:
    """The reconfigure loops by state and tier."""
    part = section(triage, "reconfigure_loop")
    if not usable(part):
        keys = (*STUCK_STATES, "no_ping", "stuck", "healthy_tiers", "unknown", "tasks_of_tier")
        more = ("disagreements", "backlog", "rotated", "ping_missed", "last_ping")
        return dict.fromkeys((*keys, *more, "heartbeat_exists", "sync_users"))
    tasks = part.get("tasks") or []
    result: dict[str, Any] = {state: by_tier(tasks, state) for state in (*STUCK_STATES, "no_ping")}
    result["stuck"] = sorted({row["tier"] for row in tasks if row.get("state") in STUCK_STATES})
    result["healthy_tiers"] = sorted(
        {row["tier"] for row in tasks} - {row["tier"] for row in tasks if row.get("state") != "healthy"}
    )
    result["unknown"] = sorted(row["task"] for row in tasks if row.get("state") == "unknown")
    result["tasks_of_tier"] = dict(Counter(row["tier"] for row in tasks))
    result["disagreements"] = [
        {name: row[name] for name in ("tier", "task", "disagreement")} for row in tasks if row.get("disagreement")
    ]
    result["backlog"] = [
        {"tier": tier, **queue}
        for tier, queue in sorted((part.get("queues") or {}).items())
        if queue.get("signal") == "backing_up"
    ]
    heartbeat = part.get("heartbeat") or {}
    result["rotated"] = heartbeat.get("tasks_with_old_value") if heartbeat.get("exists") else [] if heartbeat else None
    result["ping_missed"] = heartbeat.get("missed")
    result["last_ping"] = heartbeat.get("last_ping")
    result["heartbeat_exists"] = heartbeat.get("exists")
    running = {row["task"] for row in tasks}
    # What a task that has gone met at its start is over.
    errors = [row for row in part.get("sync_users_errors") or [] if row["task"] in running]
    result["sync_users"] = [
        {
            "tier": tier,
            "tasks": [row["task"] for row in errors if row["tier"] == tier],
            "lines": sum(row["lines"] for row in errors if row["tier"] == tier),
        }
        for tier in sorted({row["tier"] for row in errors})
    ]
    return result


def by_tier(tasks: Iterable[Mapping[str, Any]], state: str) -> list[dict[str, Any]]:
    """Tasks in one state, an entry a tier: what a finding about a loop is raised for."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    sizes: Counter[str] = Counter()
    for row in tasks:
        sizes[row["tier"]] += 1
        if row.get("state") == state:
            grouped.setdefault(row["tier"], []).append(row)
    return [
        {
            "tier": tier,
            "tasks": sorted(row["task"] for row in rows),
            "all": len(rows) == sizes[tier],
            "of": sizes[tier],
            "since": min((row["since"] for row in rows if row.get("since")), default=None),
            "why": next((row["why"] for row in rows if row.get("why")), ""),
            "exec": all("exec" in (row.get("sources") or []) for row in rows),
            "exit_status": next((row["exit_status"] for row in rows if row.get("exit_status") is not None), None),
        }
        for tier, rows in sorted(grouped.items())
    ]


def local_signals(triage: Facts, tiers: Mapping[str, Facts]) -> dict[str, Any]:
    """imap's own delivery: users, Maildirs, disk."""
    part = section(triage, "local_delivery")
    imap = tiers.get("imap")
    log = imap if imap is not None and usable(imap.get("coverage")) else None
    errors = reason_counts(log["bounces"].get("reasons") or [])["local_error"] if log else None
    deferred = reason_counts((log.get("deferrals") or {}).get("reasons") or [])["local_error"] if log else None
    if not usable(part):
        keys = ("missing_users", "unwritable", "disk_full", "disk_full_elsewhere", "stray_mail", "home_on_efs")
        nobody: dict[str, Any] = {"suspected_users": [], "lacking": [], "said": []}
        return {**dict.fromkeys(keys), **nobody, "errors": errors, "deferred": deferred}
    disks = part.get("disk_full")
    refused = part.get("missing_users")
    unread = any(row["confirmed"] is None for row in refused or [])
    # By imap's answers alone, where its OS users could not be read.
    suspected = refused if unread and not imap_map_in_doubt(triage, section(triage, "address_map")) else []
    return {
        "missing_users": None if unread else refused,
        "suspected_users": suspected,
        "lacking": [row["user"] for row in (suspected if unread else refused) or []],
        "unwritable": part.get("unwritable"),
        "disk_full": full_disks([row for row in disks if row.get("tier") == "imap"] if disks is not None else None),
        "disk_full_elsewhere": full_disks(
            [row for row in disks if row.get("tier") != "imap"] if disks is not None else None
        ),
        "stray_mail": part.get("stray_mail"),
        "home_on_efs": part.get("home_on_efs"),
        "errors": errors,
        "deferred": deferred,
        "said": [str(row.get("text")) for row in (part.get("procmail_errors") or [])[:3]],
    }


def full_disks(disks: Any) -> list[str] | None:
    """Full file systems in words."""
    if disks is None:
        return None
    return [f"{row.get('tier')} {row.get('path')} {row.get('used_percent')} %" for row in disks]


def path_signals(triage: Facts, tiers: Mapping[str, Facts]) -> dict[str, Any]:
    """The way from the smtp tiers to imap: Cloud Map, the pin, refusals by name."""
    part = section(triage, "local_delivery")
    discovery = (section(triage, "environment").get("discovery") or {}).get("imap") or {}
    instances = discovery.get("instances") if usable(discovery) else None
    service = (section(triage, "environment").get("services") or {}).get("imap") or {}
    running, desired = (service.get(name) if usable(service) else None for name in ("running", "desired"))
    unresolvable = 0
    refused = 0
    for log in tiers.values():
        if usable(log.get("coverage")):
            unresolvable += ((log["bounces"].get("own_host") or {}).get("codes") or {}).get("5.1.2", 0)
            refused += sum(
                row.get("recipients") or row.get("lines") or 0
                for row in (log.get("deferrals") or {}).get("relays") or []
                if str(row.get("relay", "")).strip("[].").startswith("imap.")
            )
    return {
        "imap_registered": None if instances is None else bool(instances),
        "imap_running": running,
        "imap_desired": desired,
        "unresolvable": unresolvable,
        "deferred_at_imap": refused,
        "imap_sendmail": imap_sendmail(triage),
        "sentinel_tasks": part.get("pin_sentinel") if usable(part) else None,
        # Cloud Map hands these out, and no imap task has them.
        "orphans": part.get("discovery_orphans") if usable(part) else None,
        "dns_missing": not_in_dns(part.get("imap_in_dns")) if usable(part) else None,
    }


def not_in_dns(answers: Mapping[str, Any] | None) -> list[str] | None:
    """Tasks in which DNS has no address of imap; None where no task could ask."""
    return sorted(task for task, found in answers.items() if not found) if answers else None


def imap_sendmail(triage: Facts) -> bool | None:
    """Whether sendmail runs in an imap task; None where no task was looked into."""
    tasks = section(triage, "containers").get("tasks") or []
    seen = [row.get("sendmail_running") for row in tasks if row.get("tier") == "imap"]
    known = [value for value in seen if isinstance(value, bool)]
    return any(known) if known else None


def coverage_signals(triage: Facts, tiers: Mapping[str, Facts]) -> dict[str, Any]:
    """What could not be seen."""
    unreadable = [
        {"tier": tier, "why": first((log.get("coverage") or {}).get("reasons"))}
        for tier, log in sorted(tiers.items())
        if not usable(log.get("coverage"))
    ]
    levels = log_levels(triage)
    needed = DEFERRALS_LOGGED_FROM if alert_signals(triage)["deferred"] else BOUNCES_LOGGED_FROM
    sight = {
        tier: is_blind(log, levels.get(tier), needed) for tier, log in tiers.items() if usable(log.get("coverage"))
    }
    if alert_signals(triage)["heartbeat"]:
        sight = {}  # sendmail's LogLevel is no matter of the loops' own lines
    blind = [blind_tier(triage, tier, levels.get(tier)) for tier in sorted(sight) if sight[tier]]
    unproven = sorted(tier for tier, value in sight.items() if value is None)
    partial = sorted(tier for tier, log in tiers.items() if (log.get("coverage") or {}).get("status") == "partial")
    logs = section(triage, "tiers")
    steps = []
    for name in (
        "tiers",
        "environment",
        "containers",
        "deliverability",
        "address_map",
        "reconfigure_loop",
        "local_delivery",
    ):
        part = section(triage, name)
        if part and not usable(part) and not (name == "tiers" and tiers):
            steps.append({"step": name, "why": first(part.get("reasons"))})
    return {
        "unreadable_tiers": unreadable,
        "blind_tiers": blind,
        "steps": steps,
        "logs_unavailable": not usable(logs) and not any(usable(log.get("coverage")) for log in tiers.values()),
        "unread": sum((log.get("coverage") or {}).get("unread_lines") or 0 for log in tiers.values()),
        "complete": not unreadable and not blind and not partial and not unproven and usable(logs),
    }


def blind_tier(triage: Facts, tier: str, level: int | None) -> dict[str, Any]:
    """What is left to see of a tier that logs no delivery: what opendkim signed, and what mailq says of its queue."""
    log = (section(triage, "tiers").get("by_tier") or {}).get(tier) or {}
    signed = [(task.get("opendkim") or {}).get("signed") or {} for task in (log.get("tasks") or {}).values()]
    queue = queues_by_tier(triage).get(tier) or {}
    return {
        "tier": tier,
        "log_level": level,
        "signed": sum(count for domains in signed for count in domains.values()),
        "queued": queue.get("messages"),
        "why": queue.get("why") or [],
    }


#: sendmail logs a permanent failure from this LogLevel on.
BOUNCES_LOGGED_FROM = 7
#: And a deferral from this one on.
DEFERRALS_LOGGED_FROM = 9


def log_levels(triage: Facts) -> dict[str, int]:
    """sendmail's LogLevel by tier as its tasks have it; the lowest where they differ."""
    levels: dict[str, int] = {}
    for row in section(triage, "containers").get("tasks") or []:
        level = row.get("log_level")
        if isinstance(level, int):
            levels[row["tier"]] = min(level, levels.get(row["tier"], level))
    return levels


def is_blind(log: Facts, level: int | None, needed: int) -> bool | None:
    """Whether what is logged from the level `needed` on leaves no line; None where nothing tells."""
    if needed > BOUNCES_LOGGED_FROM:
        shown = ((log["coverage"].get("log_level") or {}).get("at_least")) or 0
        if shown >= needed:
            return False
        # No deferral was logged; that is news only where the level is known.
        return True if log["coverage"].get("blind") else None if level is None else level < needed
    seen = log["coverage"].get("blind")
    if seen is not None or level is None:
        return seen if seen is None else bool(seen)
    return level < needed


def first(reasons: Any) -> str:
    """The first reason of a part, or a plain word."""
    return str(reasons[0]) if reasons else "no reason was given"


def network_signals(triage: Facts, tiers: Mapping[str, Facts], options: Facts) -> dict[str, Any]:
    """Silence of all tiers at once, and the state of the way out."""
    network = section(triage, "environment").get("network") or {}
    ways: list[Mapping[str, Any]] = []
    if usable(network):
        ways = [*(network.get("nat_instances") or []), *(network.get("nat_gateways") or [])]
    # What was replaced stays listed for a while; it is the way out only where nothing took its place.
    standing = [way for way in ways if way.get("state") not in ("terminated", "deleted")] or ways
    down = [way for way in standing if way.get("state") not in ("running", "available", "pending")]
    window = section(triage, "alert").get("window") or {}
    end = moment(window.get("end"))
    limit = timedelta(minutes=options.get("silent_minutes", 18))
    last = {
        tier: moment(log["coverage"].get("last_event")) for tier, log in tiers.items() if usable(log.get("coverage"))
    }
    silent: bool | None = None
    # One tier may be silent for reasons of its own.
    if len(last) > 1 and end is not None:
        start = moment(window.get("start"))
        # A window shorter than a healthy tier's own silence proves nothing.
        if start is not None and end - start > limit:
            silent = all(at is None or end - at > limit for at in last.values())
    containers = section(triage, "containers")
    tasks = containers.get("tasks") or []
    unreached = containers.get("unreachable") or []
    asked = len(tasks) + len(unreached)
    return {
        "silent": silent,
        "last_event": max((at for at in last.values() if at is not None), default=None),
        "nat_down": [str(way.get("id")) for way in down] if usable(network) and ways else None,
        "exec_dead": (not any(row.get("outcome") == "completed" for row in tasks)) if asked else None,
    }


def platform_signals(triage: Facts) -> dict[str, Any]:
    """Deployments, scale and the maintenance flag."""
    environment = section(triage, "environment")
    services = {tier: row for tier, row in (environment.get("services") or {}).items() if usable(row)}
    flag = (environment.get("parameters") or {}).get("maintenance_imap") or {}
    until = flag.get("until")
    end = moment((section(triage, "alert").get("window") or {}).get("end"))
    active = flag.get("active")
    ahead: bool | None = None
    if active and until is not None and end is not None:
        at = moment(until) if isinstance(until, str) else datetime.fromtimestamp(float(until), tz=UTC)
        ahead = at is not None and at > end
    return {
        "quiesced": bool(services) and all(row.get("desired") == 0 for row in services.values()) if services else None,
        "deploying": sorted(
            tier
            for tier, row in services.items()
            if any(d.get("rollout_state") == "IN_PROGRESS" for d in row.get("deployments") or [])
        )
        if services
        else None,
        "maintenance": None if active is None else bool(active),
        "planned_roll": ahead if active else None if active is None else False,
        "maintenance_message": flag.get("message"),
    }
