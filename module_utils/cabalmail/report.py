# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person and a pipeline are told: outcome, terminal summary, and the parts of the Markdown report.

Everything is derived from the fact ``triage`` alone. Text in it may come from strangers; it leaves here only through
the functions of ``inert``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .alert import DEFERRED, HEARTBEAT
from .freshness import epoch
from .freshness import minutes as duration
from .inert import inert
from .signals import coverage_signals

Facts = Mapping[str, Any]

SEVERITIES = ("critical", "warning", "info")
# Findings that speak of the evidence and not of the mail.
ABOUT_EVIDENCE = ("coverage.", "alert.", "inconclusive")
NO_FAULT = "none."
WIDTH = 80
HEIGHT = 19  # of 24 rows; the recap and the prompt need the others
MOST_UNCHECKED = 3

# What a person calls the sections of the fact, in the order of the runbook.
STEPS = {
    "tiers": "mail logs",
    "environment": "state of the environment",
    "containers": "inside the containers",
    "deliverability": "deliverability",
    "address_map": "address maps",
    "reconfigure_loop": "reconfigure loops",
    "local_delivery": "local delivery",
    "remediation": "remediation",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the terminal summary; ``kind`` is a severity, ``dim``, or nothing."""

    text: str
    kind: str = ""

    @property
    def rows(self) -> int:
        """Rows that it takes on the screen: a command is never broken, so that it can be copied."""
        return max(1, -(-len(self.text) // WIDTH))


def outcome(triage: Facts, error: str | None) -> dict[str, Any]:
    """The content of ``outcome.json``, which tells a finding from a broken run.

    Args:
        triage: the fact.
        error: why the run or its report is broken, None when it is not.
    """
    verdict = triage.get("verdict") or {}
    return {
        "schema_version": 1,
        "status": "error" if error else _status(triage),
        "error": error,
        "verdict": verdict.get("id"),
        "fingerprint": verdict.get("fingerprint"),
        "severity": verdict.get("severity"),
        "confidence": verdict.get("confidence"),
        "summary": verdict.get("summary"),
        "findings": [
            {key: finding.get(key) for key in ("id", "fingerprint", "tier", "severity", "confidence")}
            for finding in triage.get("findings") or []
        ],
        "unchecked": unchecked(triage),
        "host": triage["run"]["host"],
        "environment": triage["run"]["environment"],
        "run": triage["run"]["id"],
        "remediation": {
            key: triage["remediation"].get(key)
            for key in ("requested", "outcome", "stopped_by", "severity", "next_step")
        },
    }


def _status(triage: Facts) -> str:
    """``finding`` when something is wrong with the mail, ``incomplete`` when nobody can say, else ``ok``."""
    findings = triage.get("findings") or []
    if any(row["severity"] != "info" and not row["id"].startswith((*ABOUT_EVIDENCE, NO_FAULT)) for row in findings):
        return "finding"
    # Without a verdict judgement was left out: a judgement that broke is an error.
    verdict = triage.get("verdict") or {"id": ""}
    known = verdict["id"].startswith(NO_FAULT) and triage["tiers"]["status"] == "complete"
    return "ok" if known else "incomplete"


def standing(triage: Facts, severity: str) -> list[str]:
    """Ids of the findings of this severity or above."""
    bar = SEVERITIES.index(severity)
    return [row["id"] for row in triage.get("findings") or [] if SEVERITIES.index(row["severity"]) <= bar]


def unchecked(triage: Facts) -> list[str]:
    """One sentence for each thing that could not be checked, or only in part."""
    said: list[str] = []
    for name, title in STEPS.items():
        part = triage.get(name) or {}
        if name == "tiers":
            said += _blind_spots(triage)
        if part.get("status") != "complete":
            reasons = [str(reason) for reason in part.get("reasons") or []] or [str(part.get("status"))]
            said += [f"{title}: {reason}" for reason in reasons]
    return list(dict.fromkeys(inert(sentence) for sentence in said))


def skipped(triage: Facts) -> list[str]:
    """Steps that the operator left out."""
    return [title for name, title in STEPS.items() if (triage.get(name) or {}).get("reasons") == ["skipped"]]


def _blind_spots(triage: Facts) -> list[str]:
    blind = [row.tier for row in tier_rows(triage) if row.coverage == "blind"]
    why = "does not log deliveries at its LogLevel: its counts are unknown, not zero"
    return [f"{STEPS['tiers']}: {tier} {why}" for tier in blind]


@dataclass(frozen=True, slots=True)
class TierRow:
    """What the table of tiers says of one tier; None is unknown."""

    tier: str
    lines: int | None
    messages: int | None
    recipients: int | None
    peak: int | None
    unseen: int | None
    sent: int | None
    other: int | None
    coverage: str

    def cells(self) -> list[str]:
        """The row as text, a question mark for what is unknown."""
        numbers = (self.lines, self.messages, self.recipients, self.peak, self.unseen, self.sent, self.other)
        return [inert(self.tier, 20), *("?" if number is None else f"{number}" for number in numbers), self.coverage]


def about_deferrals(triage: Facts) -> bool:
    """Whether the alert at hand counts deferrals; otherwise it counts bounces."""
    return bool((triage.get("alert") or {}).get("name") == DEFERRED)


def about_loops(triage: Facts) -> bool:
    """Whether the alert at hand is the loops' heartbeat, which no rule over lines stands behind."""
    return bool((triage.get("alert") or {}).get("name") == HEARTBEAT)


#: Changes shown in the report: those of the day before the onset and on to now, the newest.
MOST_CHANGES = 20
CHANGES_SECONDS = 86_400


def change_rows(triage: Facts) -> list[list[str]]:
    """What changed around the onset (without one: the window's beginning): time, distance to it, tier, what.

    The onset stands among them as a row of its own.
    """
    window = (triage.get("alert") or {}).get("window") or {}
    found = ((triage.get("tiers") or {}).get("change") or {}).get("onset")
    mark = epoch(found or window.get("start"))
    if mark is None:
        return []
    rows = [
        (at, row)
        for row in _part(triage, "environment").get("changes") or []
        if (at := epoch(row["time"])) is not None and at >= mark - CHANGES_SECONDS
    ][-MOST_CHANGES:]
    if not rows:
        return []
    here = {"time": found or window["start"], "tier": None, "what": "onset of the spike" if found else "window begins"}
    return [
        [str(row["time"]), _distance(at - mark), str(row.get("tier") or "-"), str(row["what"])]
        for at, row in sorted([*rows, (mark, here)], key=lambda pair: pair[0])
    ]


def _distance(seconds: float) -> str:
    return f"{duration(abs(seconds))} {'before' if seconds < 0 else 'after'}" if round(seconds) else "-"


def loop_rows(triage: Facts) -> list[list[str]]:
    """Each task's loop: tier, task, state, last completed pass, its longest one, why."""
    return [
        [
            str(row["tier"]),
            str(row["task"]),
            str(row["state"]),
            str(row.get("last_done") or "none seen"),
            "?" if row.get("longest_pass_seconds") is None else f"{row['longest_pass_seconds']:g} s",
            str(row.get("why") or ""),
        ]
        for row in _part(triage, "reconfigure_loop").get("tasks") or []
    ]


def tier_columns(triage: Facts, short: bool = False) -> list[str]:
    """Heads of the table of tiers; its last number is of what the alert does not count."""
    minutes = ((triage.get("alert") or {}).get("threshold") or {}).get("minutes", 30)
    other = "bounced" if about_deferrals(triage) else "deferred"
    if short:
        return ["tier", "lines", "msgs", "rcpts", f"peak/{minutes}m", "unseen", "sent", other, "log"]
    return ["tier", "lines", "messages", "recipients", f"peak {minutes} m", "unseen", "sent", other, "log"]


def tier_rows(triage: Facts) -> list[TierRow]:
    """The table of tiers. A tier that is blind or unread has no numbers: what was not seen is not zero."""
    deferred = about_deferrals(triage)
    blind = {row["tier"] for row in coverage_signals(triage, triage["tiers"].get("by_tier") or {})["blind_tiers"]}
    return [
        _tier_row(tier, log, deferred, tier in blind) for tier, log in (triage["tiers"].get("by_tier") or {}).items()
    ]


def _tier_row(tier: str, log: Facts, deferred: bool, blind: bool) -> TierRow:
    coverage = log.get("coverage") or {}
    status = "blind" if blind or coverage.get("blind") else str(coverage.get("status", "unavailable"))
    if status in ("blind", "unavailable"):
        return TierRow(tier, None, None, None, None, None, None, None, status)
    bounces, deliveries, deferrals = (log.get(name) or {} for name in ("bounces", "deliveries", "deferrals"))
    counted = deferrals if deferred else bounces
    return TierRow(
        tier,
        bounces.get("lines"),
        counted.get("messages"),
        counted.get("recipients"),
        (bounces.get("peak") or {}).get("lines"),
        (log.get("unseen") or {}).get("recipients"),
        deliveries.get("sent"),
        bounces.get("recipients") if deferred else deferrals.get("messages"),
        status,
    )


def top_codes(triage: Facts, limit: int) -> list[dict[str, Any]]:
    """The most frequent enhanced status codes over all tiers: code, count, text.

    Bounces are counted in recipients, deferrals in lines: a recipient may wait for several reasons in turn.
    """
    part, unit = ("deferrals", "lines") if about_deferrals(triage) else ("bounces", "recipients")
    total: dict[str, dict[str, Any]] = {}
    for log in (triage["tiers"].get("by_tier") or {}).values():
        for row in (log.get(part) or {}).get("codes") or []:
            known = total.setdefault(row["code"], {"code": row["code"], "count": 0, "text": row.get("text") or ""})
            known["count"] += row.get(unit) or 0
    return sorted(total.values(), key=lambda row: (-row["count"], row["code"]))[:limit]


def course(triage: Facts) -> str:
    """When it began, whether it goes on, the rate now against before, the runbook's condition, the day before."""
    tiers = triage.get("tiers") or {}
    change = tiers.get("change")
    if not change or change["state"] == "none" or about_loops(triage):
        return ""
    if change["onset"]:
        onset, ended = change["onset"][11:16], (change["ended"] or "")[11:16]
        span = f"From {onset} to {ended} UTC" if ended else f"Since {onset} UTC, going on"
        said = f"{span}: {change['since']['per_minute']:g} lines/min, {_before(change['before'])}"
    else:
        said = "No sharp onset: it came evenly over the window"
    parts = [said, _condition_words(triage, change["condition"]), _day_words(tiers.get("day_before"))]
    return "; ".join(part for part in parts if part)


def _condition_words(triage: Facts, condition: Facts) -> str:
    """The runbook's condition in a few words; that it is not met never makes a page false."""
    if condition["state"] == "holds":
        return "the runbook's condition holds"
    if condition["state"] == "ended":
        return f"the runbook's condition held until {condition['until'][11:16]}"
    if condition["state"] == "unknown":
        return "whether the runbook's condition holds is not known"
    peak = ((triage["tiers"].get("peak") or {}).get("lines")) or 0
    lines, minutes, hold = (condition[name] for name in ("lines", "minutes", "hold_minutes"))
    if peak > lines:
        said = f"{peak} in {minutes} m are over the runbook's {lines}, but for less than {hold} m"
    else:
        said = f"at most {peak} in {minutes} m, the runbook's condition is over {lines}"
    paged = (triage.get("alert") or {}).get("source") == "payload"
    return f"{said} (the page's own rule counts otherwise)" if paged else said


def _day_words(day: Facts | None) -> str:
    """The 24 hours before in a few words; empty where they were not asked for."""
    if not day:
        return ""
    if day["lines"] is None:
        return "the 24 h before are not known"
    busiest = day["busiest"]
    most = f", at most {busiest['lines']} in {busiest['minutes']} m" if day["lines"] else ""
    return f"the 24 h before: {day['lines']} line{'' if day['lines'] == 1 else 's'}{most}"


def _before(rate: Facts) -> str:
    return "nothing known before" if rate["per_minute"] is None else f"{rate['per_minute']:g} before"


def course_lines(triage: Facts) -> list[str]:
    """The same for the report, in sentences, and what the deployment's own rule can see of it."""
    tiers = triage.get("tiers") or {}
    change = tiers.get("change")
    if not change or about_loops(triage):
        return []
    return [
        *_onset_sentences(change),
        *_day_sentences(tiers.get("day_before")),
        _condition_sentence(change["condition"]),
        *_rule_sentences(change),
    ]


def _day_sentences(day: Facts | None) -> list[str]:
    """The 24 hours before the window, and where the number is from."""
    if not day:
        return []
    if day["lines"] is None:
        return [f"The 24 hours before are not known. {' '.join(day['reasons'])}"]
    busiest = day["busiest"]
    scanned = day["scanned_bytes"]
    source = (
        "by CloudWatch's metric"
        if scanned is None
        else f"counted by a Logs Insights query ({scanned / 1e6:,.1f} MB scanned), since there is no metric"
    )
    most = (
        f"; the busiest {busiest['minutes']} minutes, from {busiest['start']}, had {busiest['lines']}"
        if day["lines"]
        else ""
    )
    said = f"The 24 hours before, {day['start']} to {day['end']}: {day['lines']} lines {source}{most}."
    return [" ".join([said, *day["reasons"]])]


def _onset_sentences(change: Facts) -> list[str]:
    if change["state"] == "none":
        return ["No line of the metric in the window."]
    if change["onset"] is None:
        return ["No minute stands out: the lines came evenly over the window, which says nothing of how many they are."]
    since = change["since"]
    over = f"ended at {change['ended']}" if change["ended"] else "is still going on"
    return [
        f"It began at {change['onset']} and {over}: {since['lines']} lines in {since['minutes']:g} minutes"
        f" ({since['per_minute']} a minute); {_before(change['before'])}."
    ]


def _condition_sentence(condition: Facts) -> str:
    lines, minutes, hold = (condition[name] for name in ("lines", "minutes", "hold_minutes"))
    what = f"more than {lines} lines in {minutes} minutes, {hold} minutes long"
    state = {
        "holds": f"holds now, since {condition['from']}",
        "ended": f"held from {condition['from']} to {condition['until']} and holds no more",
        "not_met": "does not hold and did not in this window (a page may come nevertheless: see the deployed rule)",
        "unknown": "can't be told: the window begins too late",
    }[condition["state"]]
    fired = {True: " It held when the alert fired.", False: " It did not hold when the alert fired.", None: ""}
    return f"The runbook's condition ({what}), counted in lines, {state}.{fired[condition['when_fired']]}"


def _rule_sentences(change: Facts) -> list[str]:
    """The deployed rule applies increase() to gauges and names a series that release 1.3.5's exporter has not."""
    rule = change["deployed_rule"]
    seen = {"now": rule["increase_now"], "when it fired": rule["increase_when_fired"]}
    told = ", ".join(f"{value} {when}" for when, value in seen.items() if value is not None)
    if not told:
        return []
    return [
        "The deployed rule can't see that number: increase() of the exporter's one-minute sums makes of the same lines"
        f" {told}, and at release 1.3.5 it names a series that the exporter does not publish. So neither a page nor its"
        " absence proves anything."
    ]


def domain_rows(triage: Facts) -> list[list[str]]:
    """Domain, and what became of its SPF, DKIM and DMARC."""
    rows = _part(triage, "deliverability").get("domains") or []
    return [[str(row["domain"]), *(_check_words(row.get(kind)) for kind in ("spf", "dkim", "dmarc"))] for row in rows]


def outbound_rows(triage: Facts) -> list[list[str]]:
    """Outbound address, its zone, what became of its PTR, and the blocklists that it is on."""
    rows = _part(triage, "deliverability").get("addresses") or []
    return [
        [
            str(row["ip"]),
            str(row.get("zone") or "?"),
            _check_words({**row, "problem": row.get("problem") or _names(row)}),
            _list_words(triage, str(row["ip"])),
        ]
        for row in rows
    ]


def _names(row: Facts) -> str:
    return ", ".join(str(name) for name in row.get("ptr") or [])


def _list_words(triage: Facts, target: str) -> str:
    """The lists that an address or domain is on, of how many that answered."""
    section = _part(triage, "deliverability").get("blocklists") or {}
    rows = [row for row in section.get("results") or [] if row["target"] == target]
    answered = [row for row in rows if row["status"] != "unavailable"]
    if not answered:
        return "?"
    listed = [str(row["list"]) for row in answered if row["status"] == "listed"]
    return f"{', '.join(listed) or 'none'} (of {len(answered)} that answered)"


def listed_domain_lines(triage: Facts) -> list[str]:
    """A sentence for each mail domain that is on a list of domains."""
    section = _part(triage, "deliverability").get("blocklists") or {}
    names = {row["target"] for row in section.get("results") or [] if row["kind"] != "ip" and row["status"] == "listed"}
    return [f"{name} is on {_list_words(triage, name)}." for name in sorted(names)]


def dmarc_line(triage: Facts) -> str:
    """One sentence of what DMARC reporters said in the period; empty when nothing was looked at."""
    section = _part(triage, "deliverability").get("dmarc")
    if not isinstance(section, Mapping):
        return ""
    if section.get("status") == "unavailable":
        return " ".join(map(str, section.get("reasons") or ["DMARC reports: not read."]))
    period = section.get("period") or {}
    span = f" of {str(period.get('start'))[:10]} to {str(period.get('end'))[:10]}" if period else ""
    if not section.get("rows"):
        return f"DMARC reports{span}: none."
    told = [
        f"{who} {part['messages']} messages, {part['fail']} of them failed"
        for name, who in (("ours", "from our addresses"), ("strangers", "from others"))
        if (part := section.get(name))
    ]
    told += _dmarc_course(section)
    return f"DMARC reports{span}: {'; '.join(told) or 'own and foreign mail cannot be told apart'}."


def _dmarc_course(section: Facts) -> list[str]:
    """The change against the period before, and how old the newest report is: they lag by a day and more."""
    told = []
    before, now = (section.get("before") or {}).get("fail_share"), section.get("fail_share")
    if before is not None and now is not None:
        told.append(f"{now * 100:.0f} % of ours failed, {before * 100:.0f} % in the period before")
    if section.get("age_hours") is not None:
        told.append(f"the newest is {section['age_hours']} hours old")
    return told


def _part(triage: Facts, name: str) -> Facts:
    return triage.get(name) or {}


def _check_words(check: Facts | None) -> str:
    """``ok``, or the status and the problem; a question mark for what was not looked at."""
    if not check or not check.get("status"):
        return "?"
    return f"{check['status']}: {check['problem']}" if check.get("problem") else str(check["status"])


def before_after(triage: Facts) -> list[list[str]]:
    """What is true before a restart and after it, side by side; empty where nothing was done."""
    part = triage["remediation"]
    before, after = part.get("before"), part.get("after")
    if not before:
        return []
    columns = [_side(before), _side(after) if after else {}]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [[name, *(column.get(name, "?" if column else "not looked at") for column in columns)] for name in names]


def _side(side: Facts) -> dict[str, str]:
    newest = (side["deployments"] or [{}])[0]
    cells = {
        "at": str(side["at"]),
        "tasks running": f"{_told(side['running'])} of {_told(side['desired'])}",
        "deployment": f"{_told(newest.get('id'))}, {_told(newest.get('rollout_state'))}",
        "messages in the reconfigure queue": _told(side["queue_visible"]),
        "mail waiting": _told(side["mail_queue"]),
    }
    for number, task in enumerate(side["tasks"], 1):
        cells[f"task {number}"] = f"{task['task']}, since {_told(task['started_at'])}, loop {_told(task['loop'])}"
        for view in task["maps"]:
            cells[f"task {number}: {view['map']}"] = _map_words(view)
    return cells


def _map_words(view: Facts) -> str:
    age = view.get("age_seconds")
    old = "?" if age is None else f"{round(age)} s" if age < 120 else f"{round(age / 60)} min"
    wrong = [f"{view[key]} {key.replace('_', ' ')}" for key in ("missing", "surplus", "wrong_user") if view.get(key)]
    wrong += [".db differs from the text"] if view.get("db_differs_from_text") else []
    return f"{_told(view.get('entries'))} entries, {old} old{', ' + ', '.join(wrong) if wrong else ''}"


def _told(value: Any) -> str:
    return "?" if value is None else str(value)


def _remediation_lines(triage: Facts) -> list[Line]:
    """What came of a restart that was asked for."""
    part = triage["remediation"]
    if not part.get("requested"):
        return []
    said = f"Remediation: {part['outcome'].replace('_', ' ')}"
    if part["outcome"] != "not_attempted":
        text = f"{said}: {part['plan']['text']}" + (f" Next: {part['next_step']}" if part.get("next_step") else "")
        return _wrapped(text, 3, part.get("severity") or "info")
    first = next((gate for gate in part["gates"] if gate["passed"] is not True), None)
    why = f"{first['name']}: {first['value']}" if first else ", ".join([*part["reasons"], *part["stopped_by"]])
    if not why and triage["run"]["check_mode"]:
        why = f"check mode; it would: {part['plan']['text']}"
    return _wrapped(f"{said} ({why})", 2, "warning")


def summary(triage: Facts, result: Facts, where: str, judged: bool = True) -> list[Line]:
    """The terminal summary: at most ``HEIGHT`` lines of ``WIDTH`` columns.

    Args:
        triage: the fact.
        result: what :func:`outcome` said.
        where: path of the report.
        judged: whether the run judged; False where it was told to leave that out.
    """
    head = [*_head(triage, result, judged), *_remediation_lines(triage)]
    table = _table(tier_columns(triage, short=True), tier_rows(triage))
    foot = [Line(f"Report: {inert(where, 400)}")]
    room = HEIGHT - _rows(head) - _rows(table) - _rows(foot)
    codes, actions = _codes(triage), _actions(triage)
    room -= _rows(codes)
    # A row is for how many actions were left out.
    least = _rows(actions[0]) + (len(actions) > 1) if actions else 0
    unknown = _unchecked_lines(triage, room - least)
    kept = _whole(actions, room - _rows(unknown))
    more = [Line(f"   ({len(actions) - len(kept)} more in the report)", "dim")] if len(kept) < len(actions) else []
    return [*head, *table, *codes, *(line for action in kept for line in action), *more, *unknown, *foot]


def _rows(lines: Iterable[Line]) -> int:
    return sum(line.rows for line in lines)


def _whole(blocks: list[list[Line]], room: int) -> list[list[Line]]:
    """The first block, and of the others those that fit whole: half an instruction misleads; the report has them.

    Where some are left out, a row is left for saying so.
    """
    if _rows(line for block in blocks for line in block) <= room:
        return blocks
    kept = blocks[:1]
    for block in blocks[1:]:
        if _rows(line for known in [*kept, block] for line in known) > room - 1:
            break
        kept.append(block)
    return kept


def _head(triage: Facts, result: Facts, judged: bool) -> list[Line]:
    run, alert = triage["run"], triage["alert"]
    window = alert.get("window") or {}
    about = f"{alert.get('name', 'no alert')}" if alert.get("source") != "none" else "no page"
    fired = f" fired {window['fired_at'][11:16]}," if window.get("fired_at") else ","
    span = f"{window['start'][:16].replace('T', ' ')} to {window['end'][11:16]} UTC" if window else "no window"
    title = Line(_fit(f"== {inert(run['environment'], 20)}: {about}{fired} {span} =="), "dim")
    verdict = triage.get("verdict")
    if not verdict:
        why = "judgement found nothing" if judged else "judgement was skipped"
        return [title, *_wrapped(f"NO VERDICT: {result['error'] or why}", 2, "critical")]
    fault = f", fault: {verdict['fault']}" if verdict.get("fault") not in (None, "unknown") else ""
    lines = [
        title,
        Line(
            _fit(f"{verdict['severity'].upper()}  {verdict['id']}  (confidence {verdict['confidence']}{fault})"),
            verdict["severity"],
        ),
        *_wrapped(verdict["summary"], 3),
        *_wrapped(f"Confidence: {verdict['confidence_reason']}", 2, "dim"),
        *(_wrapped(said, 2) if (said := course(triage)) else []),
    ]
    others = [
        f"{row['id']} ({row['tier']})" if row.get("tier") else row["id"] for row in (triage.get("findings") or [])[1:]
    ]
    if others:
        lines += _wrapped(f"Also: {', '.join(dict.fromkeys(others))}", 1)
    if result["status"] == "error":
        lines += _wrapped(f"BROKEN: {result['error']}", 2, "critical")
    return lines


def _codes(triage: Facts) -> list[Line]:
    codes = top_codes(triage, 4)
    listed = ", ".join(f"{row['code']} x{row['count']} {inert(row['text'], 40)}".rstrip() for row in codes)
    return [Line(_fit(f"Codes: {listed}"))] if codes else []


def _actions(triage: Facts) -> list[list[Line]]:
    blocks = []
    for number, action in enumerate((triage.get("verdict") or {}).get("next_actions") or [], 1):
        block = _wrapped(f"{number}. {action['text']}", 2, hang="   ")
        if action.get("command"):
            block.append(Line(f"   $ {inert(action['command'], 2000)}"))
        blocks.append(block)
    return blocks


def _unchecked_lines(triage: Facts, room: int) -> list[Line]:
    """A line a step with its first reason, since one cause often has many effects.

    At most ``MOST_UNCHECKED`` lines and no more than fit; the last of them then stands for all steps that are left.
    """
    left_out = skipped(triage)
    by_step: dict[str, list[str]] = {}
    for sentence in unchecked(triage):
        step, _, reason = sentence.partition(": ")
        if step not in left_out:
            by_step.setdefault(step, []).append(reason)
    skips = [Line(_fit(f"Skipped: {', '.join(left_out)}"), "dim")] if left_out else []
    most = max(1, min(MOST_UNCHECKED, room - len(skips)))
    steps = list(by_step.items())
    said = []
    for number, (step, reasons) in enumerate(steps[:most], 1):
        others = len(steps) - number if number == most else 0
        who = f"{step} (and {others} more steps)" if others > 1 else f"{step} (and 1 more step)" if others else step
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        start = f"Not checked: {who}: "
        said.append(Line(start + _fit(reasons[0], WIDTH - len(start) - len(more)) + more, "warning"))
    return [*said, *skips]


def _table(columns: list[str], rows: Iterable[TierRow]) -> list[Line]:
    table = [columns, *(row.cells() for row in rows)]
    if len(table) == 1:
        return []
    widths = [max(len(row[column]) for row in table) for column in range(len(columns))]
    last = len(columns) - 1
    return [
        Line(
            _fit(
                "  ".join(
                    cell.ljust(width) if column in (0, last) else cell.rjust(width)
                    for column, (cell, width) in enumerate(zip(row, widths, strict=True))
                ).rstrip()
            ),
            "" if number else "dim",
        )
        for number, row in enumerate(table)
    ]


def _wrapped(text: str, most: int, kind: str = "", hang: str = "") -> list[Line]:
    """The text over at most ``most`` lines."""
    lines = textwrap.wrap(
        inert(text, 1000), WIDTH, subsequent_indent=hang, max_lines=most, placeholder=" ...", break_on_hyphens=False
    )
    return [Line(line, kind) for line in lines]


def _fit(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
