# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two thousand made-up incidents, each from a truth to a decision: evidence, the shipped table, the gates.

Whatever the truth, nothing healthy is restarted and nothing on evidence that is not whole; and every loop that is
proven stuck, with nothing in the way, is acted on, by the least step.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ansible.module_utils.cabalmail.remediation import plan
from ansible.module_utils.cabalmail.verdict import judge

from .conftest import complete

INCIDENTS = 2000
NOW = datetime(2026, 11, 24, 21, 48, 30, tzinfo=UTC)
TIERS = ("imap", "smtp-in", "smtp-out")
SECTIONS = ("tiers", "environment", "containers", "address_map", "reconfigure_loop", "local_delivery")
STUCK = ("dead", "hung")
Facts = dict[str, Any]


@dataclass
class Truth:
    """What is the case. ``loops``: state by task and tier; ``obstacles``: names of gates that must stop a restart."""

    loops: dict[str, dict[str, str]]
    denied: list[str] = field(default_factory=list)
    obstacles: set[str] = field(default_factory=set)
    options: Facts = field(default_factory=dict)

    def stuck(self, tier: str) -> list[str]:
        return sorted(task for task, state in self.loops[tier].items() if state in STUCK)

    def least(self, tier: str) -> str | None:
        """The least step that can cure; None where no restart can, or ECS or a person has to come first."""
        states = list(self.loops[tier].values())
        stuck = self.stuck(tier)
        if not stuck or "failing" in states or tier == "smtp-out":
            return None
        if all(self.loops[tier][task] == "hung" for task in stuck):
            return "restart_loop"
        return "redeploy_service" if len(stuck) == len(states) or tier == "imap" else "restart_task"


def made_up(chance: random.Random) -> Truth:
    loops = {}
    for tier in TIERS:
        states = chance.choices(["healthy", "dead", "hung", "failing"], [6, 2, 2, 0.5], k=chance.choice([1, 1, 2, 3]))
        states = states[:1] if tier == "imap" else states
        loops[tier] = {f"{chance.getrandbits(128):032x}": state for state in states}
    truth = Truth(loops)
    truth.denied = [name for name in SECTIONS if chance.random() < 0.04]
    for name in ("deployment_in_progress", "recently_remediated", "secret_missing", "maintenance_active"):
        if chance.random() < 0.05:
            truth.obstacles.add(name)
    for name in ("duplicate_in_progress", "no_capacity", "row_breaks_makemap", "too_few_healthy", "evidence_stale"):
        if chance.random() < 0.05:
            truth.obstacles.add(name)
    allowed = [f"cabal-{tier}" for tier in TIERS if tier == "smtp-in" or chance.random() < 0.3]
    truth.options = {"requested": True, "allowed_services": allowed, "allow_imap": chance.random() < 0.5}
    return truth


def service(truth: Truth, tier: str) -> Facts:
    """What ECS says."""
    count = len(truth.loops[tier])
    began = NOW - timedelta(minutes=30 if "recently_remediated" in truth.obstacles else 1560)
    state = "IN_PROGRESS" if "deployment_in_progress" in truth.obstacles else "COMPLETED"
    moment = began.strftime("%Y-%m-%dT%H:%M:%SZ")
    return complete(
        service=f"cabal-{tier}",
        desired=count + ("too_few_healthy" in truth.obstacles),
        running=count,
        pending=0,
        maximum_percent=100 if tier == "imap" else 200,
        secrets=[{"name": "TLS_KEY", "exists": "secret_missing" not in truth.obstacles}],
        deployments=[{"id": "d", "status": "PRIMARY", "rollout_state": state, "created_at": moment}],
        events=[],
        tasks=[{"id": task, "last_status": "RUNNING"} for task in truth.loops[tier]],
    )


def evidence(truth: Truth, healthy: Facts) -> Facts:
    """What a triage sees of the truth."""
    triage = copy.deepcopy(healthy)
    age = timedelta(minutes=9 if "evidence_stale" in truth.obstacles else 1)
    triage["run"].update(id="mine", started=(NOW - age).strftime("%Y-%m-%dT%H:%M:%SZ"))
    environment = triage["environment"]
    environment["services"] = {tier: service(truth, tier) for tier in TIERS}
    environment["parameters"]["maintenance_imap"] = {"active": "maintenance_active" in truth.obstacles, "until": None}
    rows = [(tier, task, state) for tier in TIERS for task, state in truth.loops[tier].items()]
    triage["containers"]["tasks"] = [
        {"tier": tier, "task": task, "outcome": "completed", "queue": {"messages": 0}} for tier, task, _state in rows
    ]
    triage["reconfigure_loop"]["tasks"] = [
        {
            "tier": tier,
            "task": task,
            "state": state,
            "why": f"it is {state}",
            "sources": ["exec", "logs"],
            "exit_status": 65 if state == "failing" else None,
            "process": {"process": "dead" if state == "dead" else "alive"},
        }
        for tier, task, state in rows
    ]
    old = [(tier, task) for tier, task, state in rows if state != "healthy" and tier != "smtp-out"]
    part = triage["address_map"]
    part["tasks"] = [map_row(tier, task, (tier, task) in old) for tier, task, _state in rows if tier != "smtp-out"]
    part["stale_tasks"] = {
        tier: sorted(task for where, task in old if where == tier) for tier in {row[0] for row in old}
    }
    part["tasks_of_tier"] = {tier: len(truth.loops[tier]) for tier in TIERS}
    if "row_breaks_makemap" in truth.obstacles:
        part["bad_rows"] = {"count": 1, "kinds": {"empty_user": 1}, "examples": []}
    for name in truth.denied:
        triage[name].update(status="partial", reasons=["DescribeTasks was denied (AccessDeniedException)."])
    return triage


def map_row(tier: str, task: str, old: bool) -> Facts:
    row = {"tier": tier, "task": task, "map": "/etc/mail/access", "missing": 2 if old else 0, "surplus": 0}
    return {**row, "wrong_user": 0, "stale": old, "age_seconds": 18_600 if old else 200}


def live(truth: Truth) -> Facts:
    """What is read only for a restart."""
    record = {"run": "theirs", "by": "them", "expires": "2026-11-24T22:00:00Z"}
    held = "duplicate_in_progress" in truth.obstacles
    part = complete(held=held, record=record if held else None, history=[])
    room = complete(tasks=0 if "no_capacity" in truth.obstacles else 4, instances=2)
    return {f"cabal-{tier}": {"lease": part, "room": room} for tier in TIERS}


def stops(truth: Truth, tier: str, kind: str) -> bool:
    """Whether something that is true must stop this restart."""
    real = set(truth.obstacles)
    if kind == "restart_loop":
        real.discard("secret_missing")
    if kind != "redeploy_service" or tier == "imap":
        real.discard("no_capacity")
    if kind == "restart_task" and "healthy" not in truth.loops[tier].values():
        return True
    outage = tier == "imap" and kind != "restart_loop" and not truth.options["allow_imap"]
    return bool(real or truth.denied) or outage or f"cabal-{tier}" not in truth.options["allowed_services"]


def test_incidents(triage: Facts, table: list[Facts], options: Facts) -> None:
    chance = random.Random(9)
    remedies = [row for row in table if row.get("remedy")]  # the others decide nothing here, and cost most of the time
    acted = refused = 0
    for number in range(INCIDENTS):
        truth = made_up(chance)
        seen = evidence(truth, triage)
        seen.update(judge(seen, remedies, options))
        decided = plan(seen, truth.options, NOW, live(truth))
        wanted = {
            tier: kind for tier in TIERS if (kind := truth.least(tier)) is not None and not stops(truth, tier, kind)
        }
        said = f"incident {number}: {truth}, {decided['stopped_by']}, {decided['plan']}"
        if decided["to_do"]:
            acted += 1
            tier, kind = decided["plan"]["tier"], decided["plan"]["kind"]
            assert not truth.denied, said
            assert set(decided["plan"]["tasks"]) <= set(truth.stuck(tier)), said
            assert not stops(truth, tier, kind), said
        else:
            refused += 1
            assert not wanted, said
            assert decided["stopped_by"], said
    assert min(acted, refused) > INCIDENTS / 20
