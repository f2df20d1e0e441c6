# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide what may be restarted: a plan, and the gates that it has to pass.

A gate is passed, closed, or closed because it could not be evaluated: what is not known never
lets a restart through. Pure decision; nothing here calls AWS and nothing acts.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from .sending import usable
from .signals import section
from .time import parse_rfc3339

CONFIDENCES = ("low", "medium", "high")

#: Sections that each kind of restart rests on.
EVIDENCE = ("tiers", "environment", "containers", "address_map", "reconfigure_loop", "local_delivery")

#: States of a loop that each kind of restart can cure: a process is ended only where there is one that hangs.
CURES = {"restart_loop": ("hung",), "restart_task": ("dead", "hung"), "redeploy_service": ("dead", "hung")}

#: Rows of cabal-addresses that makemap fails on; other odd rows are skipped.
BREAKING_ROWS = ("duplicate_key", "empty_user")

#: What comes next, by hand, where a restart did not cure: the least first.
NEXT_STEP = {
    "restart_loop": "Replace the stuck task (all of them stuck: force a new deployment); run the triage again first.",
    "restart_task": "Force a new deployment of the service; run the triage again first.",
    "redeploy_service": (
        "Restart nothing again. Follow the escalation of the runbook: read the new task's [reconfigure] and"
        " [generate-config] lines and the service's events."
    ),
}

#: How ECS calls a deployment that is over.
SETTLED = ("COMPLETED", "FAILED")
#: Leases, cool-downs and ages are judged by this machine's clock, against times that AWS gave.
MOST_SKEW_SECONDS = 120

#: The only place where ECS could not place a task says so in an event; this one says that it can again.
NO_ROOM_EVENT, STEADY_EVENT = "unable to place a task", "has reached a steady state"


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition of a restart. ``passed`` is None when it could not be evaluated, which closes it as well."""

    name: str
    passed: bool | None
    value: str

    def as_dict(self) -> dict[str, Any]:
        """Its form in facts and reports."""
        return {"name": self.name, "passed": self.passed, "value": self.value}


@dataclass(frozen=True, slots=True)
class Case:
    """What the gates look at. ``live``: what service_restart_info read; ``approved``: what a person agreed to."""

    triage: Mapping[str, Any]
    finding: Mapping[str, Any]
    remedy: Mapping[str, Any]
    options: Mapping[str, Any]
    now: datetime
    live: Mapping[str, Any]
    approved: Mapping[str, Any] | None

    @property
    def tier(self) -> str:
        """The tier whose service would be restarted."""
        return str(self.remedy["service"]).removeprefix(str(self.options.get("service_prefix", "cabal-")))

    @property
    def kind(self) -> str:
        """What would be done."""
        return str(self.remedy["kind"])

    @property
    def tasks(self) -> list[str]:
        """The tasks that it is about."""
        return [str(task) for task in self.remedy.get("tasks") or []]

    @property
    def service(self) -> Mapping[str, Any] | None:
        """What ECS said of that service, None where it could not be read."""
        row = (section(self.triage, "environment").get("services") or {}).get(self.tier)
        return row if usable(row) else None

    @property
    def new_task(self) -> bool:
        """Whether a new task would have to start."""
        return self.kind != "restart_loop"


def plan(
    triage: Mapping[str, Any],
    options: Mapping[str, Any],
    now: datetime,
    live: Mapping[str, Any] | None = None,
    approved: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What would be restarted, and what stops it: the first finding with a remedy that nothing stops, else the first.

    :param triage: the fact ``triage`` with its findings.
    :param options: the role's settings (see its defaults), ``requested`` and ``seen_at``, which is when the evidence
        was read (the run's start when left out).
    :param now: the moment of the decision (aware, UTC).
    :param live: by service, the result of service_restart_info.
    :param approved: ``run``, ``fingerprint`` and ``remedy`` of a finding: nothing else may be acted on.
    :returns: the section ``remediation``.
    """
    found = [row for row in triage.get("findings") or [] if row.get("remedy")]
    found.sort(key=lambda row: str(row["remedy"]["service"]).endswith("smtp-out"))  # users send through it: last
    base = {
        "status": "complete",
        "reasons": [],
        "requested": bool(options.get("requested")),
        "outcome": "not_attempted",
        "to_do": False,
        "approved": dict(approved) if approved else None,
    }
    if approved:
        found = [row for row in found if row.get("fingerprint") == approved.get("fingerprint")]
    if not found:
        return {**base, "finding": None, "fingerprint": None, "plan": None, **_without_remedy(approved)}
    cases = [Case(triage, row, row["remedy"], options, now, _live_of(row, live), approved) for row in found]
    judged = [(case, judge_gates(case)) for case in cases]
    case, gates = next((pair for pair in judged if not stopped_by(pair[1])), judged[0])
    stops = stopped_by(gates)
    return {
        **base,
        "finding": case.finding["id"],
        "fingerprint": case.finding.get("fingerprint"),
        "plan": describe(case),
        "gates": [gate.as_dict() for gate in gates],
        "stopped_by": stops,
        "to_do": base["requested"] and not stops,
    }


def _live_of(finding: Mapping[str, Any], live: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (live or {}).get(str(finding["remedy"]["service"])) or {}


def _without_remedy(approved: Mapping[str, Any] | None) -> dict[str, Any]:
    if not approved:
        return {"gates": [], "stopped_by": ["no_remedy"]}
    gate = Gate("finding_gone", False, "the evidence of now does not support what was approved")
    return {"gates": [gate.as_dict()], "stopped_by": [gate.name]}


def judge_gates(case: Case) -> list[Gate]:
    """All gates; those that need more than the triage's evidence only where a restart is asked for."""
    gates = [gate(case) for gate in GATES]
    if case.approved:
        gates += [_same(case), _unused(case)]
    if case.options.get("requested"):
        gates += [gate(case) for gate in LIVE_GATES]
    return gates


def stopped_by(gates: Sequence[Gate]) -> list[str]:
    """Names of the gates that are not passed."""
    return list(dict.fromkeys(gate.name for gate in gates if gate.passed is not True))


def services(triage: Mapping[str, Any]) -> list[str]:
    """The services that a finding's remedy names, each once."""
    rows = [row["remedy"] for row in triage.get("findings") or [] if row.get("remedy")]
    return list(dict.fromkeys(str(row["service"]) for row in rows))


def stop(decided: Mapping[str, Any], name: str, passed: bool | None, value: str) -> dict[str, Any]:
    """A plan that is stopped by one more gate, found closed while acting on it."""
    kept = [gate for gate in decided.get("gates") or [] if gate["name"] != name]
    gates = [*kept, Gate(name, passed, value).as_dict()]
    names = dict.fromkeys(gate["name"] for gate in gates if gate["passed"] is not True)
    return {**decided, "gates": gates, "stopped_by": list(names), "to_do": False, "outcome": "not_attempted"}


def describe(case: Case) -> dict[str, Any]:
    """The restart in words and as a command."""
    run = section(case.triage, "run")
    where = ["--region", str(run.get("region")), "--cluster", str(run.get("cluster"))]
    service = str(case.remedy["service"])
    outage = " It is an outage of 1 to 2 minutes." if case.tier == "imap" and case.new_task else ""
    if case.kind == "restart_loop":
        text = (
            f"End the stuck reconfigure loop inside {len(case.tasks)} task(s) of {service}; supervisord starts it anew."
        )
        inside = ["--container", case.tier, "--interactive", "--command", "pkill -KILL -f /reconfigure.sh"]
        commands = [["aws", "ecs", "execute-command", *where, "--task", task, *inside] for task in case.tasks]
    elif case.kind == "restart_task":
        text = f"Replace {len(case.tasks)} stuck task(s) of {service}; ECS starts new ones, the others go on."
        commands = [
            ["aws", "ecs", "stop-task", *where, "--task", task, "--reason", str(case.finding["id"])]
            for task in case.tasks
        ]
    else:
        text = f"Force a new deployment of {service}."
        commands = [["aws", "ecs", "update-service", *where, "--service", service, "--force-new-deployment"]]
    return {
        "kind": case.kind,
        "service": service,
        "tier": case.tier,
        "tasks": case.tasks,
        "text": text + outage,
        "commands": [shlex.join(command) for command in commands],
        "next_step": NEXT_STEP[case.kind],
    }


# --- gates over the evidence -----------------------------------------------------------------------------------------


def _confidence(case: Case) -> Gate:
    least = str(case.options.get("min_confidence", "high"))
    given = str(case.finding["confidence"])
    return Gate("low_confidence", CONFIDENCES.index(given) >= CONFIDENCES.index(least), f"{given}, {least} is needed")


def _complete(case: Case) -> Gate:
    lacking = [name for name in EVIDENCE if section(case.triage, name).get("status") != "complete"]
    return Gate("evidence_incomplete", not lacking, ", ".join(lacking) or "complete")


def _fresh(case: Case) -> Gate:
    limit = timedelta(minutes=float(case.options.get("max_age_minutes", 5)))
    seen = case.options.get("seen_at") or section(case.triage, "run").get("started")
    if not seen:
        return Gate("evidence_stale", None, "nobody knows when the evidence was read")
    age = case.now - parse_rfc3339(str(seen))
    return Gate("evidence_stale", timedelta(minutes=-1) <= age <= limit, f"{round(age.total_seconds())} s old")


def _allowed(case: Case) -> Gate:
    allowed = [str(name) for name in case.options.get("allowed_services") or []]
    service = str(case.remedy["service"])
    if service not in allowed:
        return Gate("service_not_allowed", False, f"{service} is not among {', '.join(allowed) or 'no service'}")
    if case.tier == "imap" and case.new_task and not case.options.get("allow_imap"):
        said = "a new task of imap is an outage of 1 to 2 minutes and needs triage_remediate_imap_outage=true"
        return Gate("service_not_allowed", False, said)
    return Gate("service_not_allowed", True, service)


def _service_gate(name: str, judge: Callable[[Case, Mapping[str, Any]], Gate]) -> Callable[[Case], Gate]:
    """A gate over what ECS said of the service, closed where ECS said nothing."""

    def gate(case: Case) -> Gate:
        row = case.service
        return Gate(name, None, f"{case.remedy['service']} could not be read") if row is None else judge(case, row)

    return gate


def _settled(_case: Case, row: Mapping[str, Any]) -> Gate:
    """ECS knows a deployment that is over as COMPLETED or FAILED; one without a word may be anything."""
    name, rows = "deployment_in_progress", row.get("deployments") or []
    rolling = next((entry for entry in rows if entry.get("rollout_state") == "IN_PROGRESS"), None)
    if rolling is not None:
        return Gate(name, False, str(rolling.get("id")))
    if not rows or any(entry.get("rollout_state") not in SETTLED for entry in rows):
        return Gate(name, None, "the state of its deployments is not known")
    return Gate(name, True, "none")


def _running(_case: Case, row: Mapping[str, Any]) -> Gate:
    return Gate("quiesced", bool(row.get("desired")), f"desired count {row.get('desired')}")


def _healthy(case: Case, row: Mapping[str, Any]) -> Gate:
    """A service that lacks tasks is ECS's own work in hand; a task is replaced only beside healthy ones."""
    desired, running = row.get("desired"), row.get("running")
    if desired is None or running is None:
        return Gate("too_few_healthy", None, "the number of running tasks is not known")
    loops = {str(loop["task"]): loop.get("state") for loop in _loops(case)}
    others = [task for task, state in loops.items() if task not in case.tasks and state == "healthy"]
    enough = running >= desired and (case.kind != "restart_task" or bool(others))
    return Gate("too_few_healthy", enough, f"{running} of {desired} running, {len(others)} others with a healthy loop")


def _cool(case: Case, row: Mapping[str, Any]) -> Gate:
    limit = timedelta(minutes=float(case.options.get("cooldown_minutes", 60)))
    starts = list(_restarts(row))
    if not starts:
        return Gate("recently_remediated", None, "no deployment with a start time")
    at, what = max(starts)
    return Gate("recently_remediated", case.now - at >= limit, f"{what} {at:%Y-%m-%dT%H:%M:%SZ}")


def _restarts(row: Mapping[str, Any]) -> Iterator[tuple[datetime, str]]:
    """Whoever asked for them: deployments, and tasks that somebody stopped (ECS shows those for an hour)."""
    for deployment in row.get("deployments") or []:
        if deployment.get("created_at"):
            yield parse_rfc3339(str(deployment["created_at"])), "last deployment began"
    for task in row.get("tasks") or []:
        if task.get("stop_code") == "UserInitiated" and task.get("stopped_at"):
            yield parse_rfc3339(str(task["stopped_at"])), "a task was stopped by hand"


def _secrets(case: Case, row: Mapping[str, Any]) -> Gate:
    if not case.new_task:
        return Gate("secret_missing", True, "no new task is needed")
    secrets = row.get("secrets") or []
    gone = [str(entry.get("name")) for entry in secrets if entry.get("exists") is False]
    if gone:
        return Gate("secret_missing", False, ", ".join(gone))
    unknown = [str(entry.get("name")) for entry in secrets if entry.get("exists") is None]
    if not unknown and row.get("status") != "complete":
        return Gate("secret_missing", None, "not all of the service could be read")
    return Gate("secret_missing", None if unknown else True, ", ".join(unknown) or "all exist")


def _maintenance(case: Case) -> Gate:
    parameters = section(case.triage, "environment").get("parameters") or {}
    flag = parameters.get("maintenance_imap") if usable(parameters) else None
    if flag is None:
        return Gate("maintenance_active", None, "the maintenance flag could not be read")
    if not flag.get("active"):
        return Gate("maintenance_active", True, "off")
    until = flag.get("until")
    if not until:
        return Gate("maintenance_active", False, "on, without an end")
    over = parse_rfc3339(str(until)) <= case.now
    meaning = "its deployment failed" if over else "a roll of imap is planned"
    return Gate("maintenance_active", False, f"until {until}: {meaning}")


def _rows(case: Case) -> Gate:
    part = section(case.triage, "address_map")
    bad = part.get("bad_rows") if usable(part) else None
    if bad is None:
        return Gate("row_breaks_makemap", None, "the rows of cabal-addresses could not be looked at")
    kinds = bad.get("kinds") or {}
    said = [f"{kinds[kind]} with {kind.replace('_', ' ')}" for kind in BREAKING_ROWS if kinds.get(kind)]
    return Gate("row_breaks_makemap", not said, ", ".join(said) or "none")


def _queue(case: Case) -> Gate:
    name = "queue_would_be_lost"
    if case.tier != "imap" or not case.new_task:
        return Gate(name, True, "the queue outlives this restart")
    tasks = [row for row in section(case.triage, "containers").get("tasks") or [] if row.get("tier") == "imap"]
    depths = [(row.get("queue") or {}).get("messages") for row in tasks]
    stray = section(case.triage, "local_delivery").get("stray_mail")
    if not depths or None in depths or stray is None:
        return Gate(name, None, "imap's queue and stray mail could not be read")
    waiting = sum(int(depth) for depth in depths if depth)
    said = f"{waiting} in the queue, {len(stray)} stray mailboxes"
    if case.options.get("lose_mail"):
        return Gate(name, True, f"{said}; triage_remediate_lose_mail=true")
    return Gate(name, waiting == 0 and not stray, said)


def _loops(case: Case) -> list[Mapping[str, Any]]:
    rows = section(case.triage, "reconfigure_loop").get("tasks") or []
    return [row for row in rows if row.get("tier") == case.tier]


def _cure(case: Case) -> Gate:
    """The restart is one that can cure the finding: of the tier that is wrong, and of loops that are stuck."""
    name = "would_not_cure"
    if case.finding.get("tier") != case.tier:
        return Gate(
            name, False, f"{case.remedy['service']} is not where {case.finding['id']} is ({case.finding.get('tier')})"
        )
    if not case.tasks:
        return _registers(case, name)
    states = {str(row["task"]): row for row in _loops(case)}
    for task in case.tasks:
        row = states.get(task)
        if row is None or row.get("state") in (None, "unknown"):
            return Gate(name, None, f"nothing is known of the loop in task {task}")
        if row["state"] not in CURES[case.kind]:
            return Gate(name, False, f"the loop in task {task} is {row['state']}, which this does not cure")
        if case.kind == "restart_loop" and (why := _no_restart_inside(case, task, row)):
            return Gate(name, None, why)
    return Gate(name, True, f"{len(case.tasks)} stuck loop(s)")


def _no_restart_inside(case: Case, task: str, loop: Mapping[str, Any]) -> str:
    """Why ending a loop would start no new one, or would end nobody knows what; empty where it is sure."""
    if (loop.get("process") or {}).get("process") != "alive":
        return f"the process of the loop in task {task} was not seen"
    rows = section(case.triage, "containers").get("tasks") or []
    entry: Mapping[str, Any] = next((row for row in rows if row.get("task") == task), {})
    return "" if entry.get("supervisord_running") else f"no supervisord was seen in task {task} to start it anew"


def _registers(case: Case, name: str) -> Gate:
    """Only a task that starts is registered in Cloud Map: that is all that a restart without a stuck loop cures."""
    part: Mapping[str, Any] = (section(case.triage, "environment").get("discovery") or {}).get(case.tier) or {}
    if not usable(part) or part.get("instances") is None:
        return Gate(name, None, f"Cloud Map's instances of {case.tier} could not be read")
    return Gate(name, not part["instances"], f"Cloud Map holds {len(part['instances'])} instance(s) of {case.tier}")


# --- gates over what is read only for a restart ----------------------------------------------------------------------


def _lease_part(case: Case) -> Mapping[str, Any] | None:
    part = case.live.get("lease")
    return part if part and part.get("status") == "complete" else None


def _lease(case: Case) -> Gate:
    part = _lease_part(case)
    if part is None:
        return Gate("duplicate_in_progress", None, _why(case, "lease"))
    record = part.get("record")
    if not part.get("held") or (record or {}).get("run") == section(case.triage, "run").get("id"):
        return Gate("duplicate_in_progress", True, "nobody else")
    if record is None:
        return Gate("duplicate_in_progress", None, "the lease holds nothing that can be read")
    return Gate("duplicate_in_progress", False, f"run {record['run']} ({record['by']}) until {record['expires']}")


def _why(case: Case, part: str) -> str:
    reasons = (case.live.get(part) or {}).get("reasons") or ["it was not read"]
    return str(reasons[0])


def _acted(case: Case) -> list[tuple[datetime, Mapping[str, Any]]]:
    """Earlier restarts of this service by this project, the oldest first."""
    part = _lease_part(case) or {}
    # A restart that was announced and then refused, by ECS or for want of rights, was none.
    rows = [row for row in part.get("history") or [] if row.get("acted") and row.get("outcome") != "not_attempted"]
    return sorted(((parse_rfc3339(str(row["acted"])), row) for row in rows), key=lambda pair: pair[0])


def _tried(case: Case) -> Gate:
    if _lease_part(case) is None:
        return Gate("recently_remediated", None, _why(case, "lease"))
    limit = timedelta(minutes=float(case.options.get("cooldown_minutes", 60)))
    same = [(at, row) for at, row in _acted(case) if row.get("kind") == case.kind and case.now - at < limit]
    if not same:
        return Gate("recently_remediated", True, f"no {case.kind} by this project in {limit}")
    at, row = same[-1]
    return Gate(
        "recently_remediated", False, f"{case.kind} by run {row['run']} at {at:%Y-%m-%dT%H:%M:%SZ}: {_end_of(row)}"
    )


def _end_of(row: Mapping[str, Any]) -> str:
    return str(row.get("outcome") or "its end is not known")


def _clock(case: Case) -> Gate:
    skew = (case.live.get("caller") or {}).get("clock_skew_seconds")
    if skew is None:
        return Gate("clock_skew", None, "this machine's clock could not be compared with that of AWS")
    return Gate("clock_skew", abs(skew) <= MOST_SKEW_SECONDS, f"{skew:+d} s against AWS")


def _failures(case: Case) -> Gate:
    if _lease_part(case) is None:
        return Gate("consecutive_failures", None, _why(case, "lease"))
    most = int(case.options.get("most_failures", 2))
    since = case.now - timedelta(hours=float(case.options.get("failure_hours", 24)))
    ends = [_end_of(row) for at, row in _acted(case) if at >= since]
    failed = 0
    for end in reversed(ends):
        if end == "recovered":
            break
        failed += 1
    return Gate("consecutive_failures", failed < most, f"{failed} in a row, {most} are too many")


def _capacity(case: Case) -> Gate:
    name = "no_capacity"
    row = case.service
    if not case.new_task or case.kind == "restart_task":
        return Gate(name, True, "no task is started beside those that run")
    if row is None:
        return Gate(name, None, f"{case.remedy['service']} could not be read")
    if row.get("maximum_percent") is not None and row["maximum_percent"] <= 100:
        return Gate(name, True, "the old task goes before the new one comes")
    said = [str(event.get("message")) for event in row.get("events") or []]
    crowded = next((text for text in said if NO_ROOM_EVENT in text or STEADY_EVENT in text), "")
    if NO_ROOM_EVENT in crowded:
        return Gate(name, False, crowded)
    room = case.live.get("room") or {}
    if room.get("tasks") is None:
        return Gate(name, None, _why(case, "room"))
    return Gate(
        name, room["tasks"] > 0, f"room for {room['tasks']} more task(s) on {room.get('instances')} instance(s)"
    )


# --- gates over what was approved ------------------------------------------------------------------------------------


def _same(case: Case) -> Gate:
    """What a person agreed to is what would be done."""
    given = (case.approved or {}).get("remedy") or {}
    wanted = (given.get("kind"), given.get("service"), sorted(given.get("tasks") or []))
    return Gate(
        "remedy_changed",
        wanted == (case.kind, str(case.remedy["service"]), sorted(case.tasks)),
        f"approved: {given.get('kind')} of {given.get('service')} ({len(given.get('tasks') or [])} task(s))",
    )


def _unused(case: Case) -> Gate:
    """One approval is for one restart."""
    run = (case.approved or {}).get("run")
    if not run:
        return Gate("already_remediated", True, "not from a saved triage")
    if _lease_part(case) is None:
        return Gate("already_remediated", None, _why(case, "lease"))
    used = [row for _at, row in _acted(case) if row.get("approved") == run]
    return Gate(
        "already_remediated", not used, f"triage {run}" + (f" was acted on by {used[-1]['run']}" if used else "")
    )


GATES: Sequence[Callable[[Case], Gate]] = (
    _confidence,
    _complete,
    _fresh,
    _allowed,
    _service_gate("deployment_in_progress", _settled),
    _service_gate("quiesced", _running),
    _service_gate("too_few_healthy", _healthy),
    _service_gate("recently_remediated", _cool),
    _service_gate("secret_missing", _secrets),
    _maintenance,
    _rows,
    _queue,
    _cure,
)
LIVE_GATES: Sequence[Callable[[Case], Gate]] = (_lease, _tried, _clock, _failures, _capacity)
