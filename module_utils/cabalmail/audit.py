# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of a remediation as facts, and its audit record: who, what, when, why, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .recovery import UNDONE, conclude
from .remediation import stop

Facts = Mapping[str, Any]

#: Exit status of files/end_loop.sh where the process is another one by now.
LOOP_GONE = 3
#: The gate that was found closed when ECS was to act: somebody else's deployment is younger than the evidence.
CLOSED_BY = {"nothing_to_do": "recently_remediated"}
#: What of an action is kept; the rest of a module's result is noise.
ACTION = (
    "outcome",
    "changed",
    "msg",
    "asked_at",
    "deployment",
    "stopped_tasks",
    "new_tasks",
    "events",
    "stopped",
    "diff",
)


def result(decided: Facts, action: Facts, proof: Facts, before: Facts, said: str) -> dict[str, Any]:
    """The section ``remediation`` once an action was begun.

    :param decided: the plan that was acted on.
    :param action: what the module said; empty when it was not reached.
    :param proof: the last look; empty when there was none.
    :param before: the side before.
    :param said: why it broke off, empty when it did not.
    """
    outcome = conclude(action, proof.get("checks") or []) if action else "not_attempted"
    gate = action.get("refused_by") or CLOSED_BY.get(str(action.get("outcome")))
    reasons = [said] if said else []
    if outcome == "not_attempted" and action.get("outcome") in UNDONE and not said:
        reasons.append(str(action.get("msg") or "nothing was done"))
    cured = outcome in ("recovered", "not_attempted")
    if outcome == "not_attempted" and gate:
        decided = stop(decided, str(gate), False, reasons[0] if reasons else str(gate))
    return {
        **decided,
        "status": "partial" if reasons else "complete",
        "reasons": reasons,
        "outcome": outcome,
        "to_do": False,
        "action": {key: action[key] for key in ACTION if action.get(key) is not None} if action else None,
        "checks": list(proof.get("checks") or []),
        "before": dict(before) or None,
        "after": proof.get("after"),
        # What a restart could not cure is worse than what it was for: it needs a person now.
        "severity": None if cured else "critical",
        "next_step": None if cured else _next_step(decided, proof),
    }


def _next_step(decided: Facts, proof: Facts) -> str:
    plan = decided["plan"]
    passed = {check["name"]: check["passed"] for check in proof.get("checks") or []}
    if plan["kind"] == "restart_loop" and passed.get("loop_alive") is not None and passed.get("maps_fresh") is False:
        return (
            "The new loop rebuilds its maps within 920 s of its start by itself: run the triage again then. If they are"
            f" old still: {plan['next_step']}"
        )
    return str(plan["next_step"])


def record(triage: Facts, who: Facts, at: str) -> dict[str, Any]:
    """One flat record for a log collector. It holds no address.

    :param who: ``identity`` (the caller's ARN), ``awx_job``, ``awx_user``, ``ci_run``; None where there is none.
    :param at: when it was written, RFC 3339.
    """
    part, run = triage["remediation"], triage["run"]
    finding: Facts = next((row for row in triage.get("findings") or [] if row["id"] == part.get("finding")), {})
    plan, action = part.get("plan") or {}, part.get("action") or {}
    return {
        "event": "cabalmail.remediation",
        "at": at,
        "run": run["id"],
        "environment": run["environment"],
        "cluster": run["cluster"],
        "check_mode": run["check_mode"],
        "who": dict(who),
        "approved_triage": (part.get("approved") or {}).get("run"),
        "outcome": part["outcome"],
        "stopped_by": part.get("stopped_by") or [],
        "what": {key: plan.get(key) for key in ("kind", "service", "tasks", "commands")},
        "asked_at": action.get("asked_at"),
        "why": {
            "finding": part.get("finding"),
            "fingerprint": part.get("fingerprint"),
            "confidence": finding.get("confidence"),
            "summary": finding.get("summary"),
            "evidence": finding.get("evidence") or [],
        },
        "before": _short(part.get("before")),
        "after": _short(part.get("after")),
        "checks": {check["name"]: check["passed"] for check in part.get("checks") or []},
    }


def _short(side: Facts | None) -> dict[str, Any] | None:
    if not side:
        return None
    return {
        "at": side["at"],
        "running": side["running"],
        "loops": {row["task"]: row["loop"] for row in side["tasks"]},
        "oldest_map_seconds": max(
            (view["age_seconds"] for row in side["tasks"] for view in row["maps"] if view["age_seconds"] is not None),
            default=None,
        ),
    }
