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

from .signals import section, usable
from .time import parse_rfc3339

CONFIDENCES = ("low", "medium", "high")

#: Sections that each kind of restart rests on.
EVIDENCE = ("tiers", "environment", "containers", "address_map", "reconfigure_loop")


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
    """What the gates look at."""

    triage: Mapping[str, Any]
    finding: Mapping[str, Any]
    remedy: Mapping[str, Any]
    options: Mapping[str, Any]
    now: datetime

    @property
    def tier(self) -> str:
        """The tier whose service would be restarted."""
        return str(self.remedy["service"]).removeprefix(str(self.options.get("service_prefix", "cabal-")))

    @property
    def service(self) -> Mapping[str, Any] | None:
        """What ECS said of that service, None where it could not be read."""
        row = (section(self.triage, "environment").get("services") or {}).get(self.tier)
        return row if usable(row) else None


def plan(triage: Mapping[str, Any], options: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """What would be restarted for the first finding that names a remedy, and what stops it.

    :param triage: the fact ``triage`` with its findings.
    :param options: the role's settings: ``requested``, ``min_confidence``, ``allowed_services``, ``allow_imap``,
        ``cooldown_minutes``, ``max_age_minutes``.
    :param now: the moment of the decision (aware, UTC).
    :returns: the section ``remediation``.
    """
    finding = next((row for row in triage.get("findings") or [] if row.get("remedy")), None)
    base = {
        "status": "complete",
        "reasons": [],
        "requested": bool(options.get("requested")),
        "outcome": "not_attempted",
    }
    if finding is None:
        return {**base, "finding": None, "plan": None, "gates": [], "stopped_by": ["no_remedy"]}
    case = Case(triage, finding, finding["remedy"], options, now)
    gates = [gate(case) for gate in GATES]
    return {
        **base,
        "finding": finding["id"],
        "plan": describe(case),
        "gates": [gate.as_dict() for gate in gates],
        "stopped_by": [gate.name for gate in gates if gate.passed is not True],
    }


def describe(case: Case) -> dict[str, Any]:
    """The restart in words and as a command."""
    run = section(case.triage, "run")
    where = ["--region", str(run.get("region")), "--cluster", str(run.get("cluster"))]
    tasks = [str(task) for task in case.remedy.get("tasks") or []]
    service = str(case.remedy["service"])
    kind = case.remedy["kind"]
    if kind == "restart_loop":
        text = f"End the stuck reconfigure loop inside {len(tasks)} task(s) of {service}; supervisord starts it anew."
        inside = ["--container", case.tier, "--interactive", "--command", "pkill -KILL -f /reconfigure.sh"]
        commands = [["aws", "ecs", "execute-command", *where, "--task", task, *inside] for task in tasks]
    elif kind == "restart_task":
        text = f"Replace {len(tasks)} stuck task(s) of {service}; ECS starts new ones, the others go on."
        commands = [
            ["aws", "ecs", "stop-task", *where, "--task", task, "--reason", str(case.finding["id"])] for task in tasks
        ]
    else:
        text = f"Force a new deployment of {service}."
        commands = [["aws", "ecs", "update-service", *where, "--service", service, "--force-new-deployment"]]
    return {
        "kind": kind,
        "service": service,
        "tasks": tasks,
        "text": text,
        "commands": [shlex.join(command) for command in commands],
    }


def _confidence(case: Case) -> Gate:
    least = str(case.options.get("min_confidence", "high"))
    given = str(case.finding["confidence"])
    return Gate("low_confidence", CONFIDENCES.index(given) >= CONFIDENCES.index(least), f"{given}, {least} is needed")


def _complete(case: Case) -> Gate:
    lacking = [name for name in EVIDENCE if section(case.triage, name).get("status") != "complete"]
    return Gate("evidence_incomplete", not lacking, ", ".join(lacking) or "complete")


def _fresh(case: Case) -> Gate:
    limit = timedelta(minutes=float(case.options.get("max_age_minutes", 5)))
    started = section(case.triage, "run").get("started")
    if not started:
        return Gate("evidence_stale", None, "the run has no start time")
    age = case.now - parse_rfc3339(str(started))
    return Gate("evidence_stale", age <= limit, f"{round(age.total_seconds())} s old")


def _allowed(case: Case) -> Gate:
    service = str(case.remedy["service"])
    allowed = [str(name) for name in case.options.get("allowed_services") or []]
    if service not in allowed:
        return Gate("service_not_allowed", False, f"{service} is not among {', '.join(allowed) or 'no service'}")
    if case.tier == "imap" and not case.options.get("allow_imap"):
        return Gate("service_not_allowed", False, "a restart of imap is an outage and needs its own switch")
    return Gate("service_not_allowed", True, service)


def _service_gate(name: str, judge: Callable[[Case, Mapping[str, Any]], Gate]) -> Callable[[Case], Gate]:
    """A gate over what ECS said of the service, closed where ECS said nothing."""

    def gate(case: Case) -> Gate:
        row = case.service
        return Gate(name, None, f"{case.remedy['service']} could not be read") if row is None else judge(case, row)

    return gate


def _settled(_case: Case, row: Mapping[str, Any]) -> Gate:
    rolling = [d for d in row.get("deployments") or [] if d.get("rollout_state") == "IN_PROGRESS"]
    return Gate("deployment_in_progress", not rolling, str(rolling[0].get("id")) if rolling else "none")


def _running(_case: Case, row: Mapping[str, Any]) -> Gate:
    return Gate("quiesced", bool(row.get("desired")), f"desired count {row.get('desired')}")


def _cool(case: Case, row: Mapping[str, Any]) -> Gate:
    limit = timedelta(minutes=float(case.options.get("cooldown_minutes", 60)))
    starts = list(_restarts(row))
    if not starts:
        return Gate("recently_remediated", None, "no deployment with a start time")
    newest = max(starts)
    return Gate("recently_remediated", case.now - newest >= limit, f"last deployment began {newest:%Y-%m-%dT%H:%M:%SZ}")


def _restarts(row: Mapping[str, Any]) -> Iterator[datetime]:
    for deployment in row.get("deployments") or []:
        if deployment.get("created_at"):
            yield parse_rfc3339(str(deployment["created_at"]))


def _secrets(_case: Case, row: Mapping[str, Any]) -> Gate:
    secrets = row.get("secrets") or []
    gone = [str(entry.get("name")) for entry in secrets if entry.get("exists") is False]
    if gone:
        return Gate("secret_missing", False, ", ".join(gone))
    unknown = [str(entry.get("name")) for entry in secrets if entry.get("exists") is None]
    return Gate("secret_missing", None if unknown else True, ", ".join(unknown) or "all exist")


def _maintenance(case: Case) -> Gate:
    parameters = section(case.triage, "environment").get("parameters") or {}
    flag = parameters.get("maintenance_imap") if usable(parameters) else None
    if flag is None:
        return Gate("maintenance_active", None, "the maintenance flag could not be read")
    return Gate(
        "maintenance_active", not flag.get("active"), f"until {flag.get('until')}" if flag.get("active") else "off"
    )


def _rows(case: Case) -> Gate:
    addresses = section(case.triage, "environment").get("addresses") or {}
    if not usable(addresses):
        return Gate("row_breaks_makemap", None, "cabal-addresses could not be read")
    odd = [row for row in addresses.get("odd_rows") or [] if row.get("breaks_makemap")]
    return Gate("row_breaks_makemap", not odd, str(odd[0].get("address")) if odd else "none")


def _queue(case: Case) -> Gate:
    if case.tier != "imap" or case.remedy["kind"] == "restart_loop":
        return Gate("queue_would_be_lost", True, "the queue outlives this restart")
    tasks = [row for row in section(case.triage, "containers").get("tasks") or [] if row.get("tier") == "imap"]
    depths = [(row.get("queue") or {}).get("messages") for row in tasks]
    if not depths or None in depths:
        return Gate("queue_would_be_lost", None, "imap's queue could not be read")
    stray = list(section(case.triage, "local_delivery").get("stray_mail") or [])
    waiting = sum(int(depth) for depth in depths if depth)
    return Gate(
        "queue_would_be_lost", waiting == 0 and not stray, f"{waiting} in the queue, {len(stray)} stray mailboxes"
    )


GATES: Sequence[Callable[[Case], Gate]] = (
    _confidence,
    _complete,
    _fresh,
    _allowed,
    _service_gate("deployment_in_progress", _settled),
    _service_gate("quiesced", _running),
    _service_gate("recently_remediated", _cool),
    _service_gate("secret_missing", _secrets),
    _maintenance,
    _rows,
    _queue,
)
