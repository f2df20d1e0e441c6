# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random incidents with their truth: what is stuck, what could not be seen, and what forbids a restart of a tier.

The truth is drawn first; evidence is made from it as the readers leave it (maps as files, processes, lines of the log,
ECS's answers), and the project's own code makes sections, findings and a plan of that.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from ansible.module_utils.cabalmail.local_delivery import DiskLimits, local_delivery
from ansible.module_utils.cabalmail.reconfigure_loop import LoopLimits, reconfigure_loop
from ansible.module_utils.cabalmail.remediation import plan
from ansible.module_utils.cabalmail.verdict import judge

from tests.unit.address_map.conftest import NOW, World, stamp
from tests.unit.verdict.conftest import complete, healthy_log

Facts = dict[str, Any]
TIERS = ("imap", "smtp-in", "smtp-out")
STUCK = ("dead", "stopped", "hung")
PARTS = ("services", "queues", "discovery", "parameters", "addresses", "network")
ADDRESSES = ("ann@s.harborlight.example", "team@s.harborlight.example", "info@n.harborlight.example")

#: What alone forbids the restart of one tier, and what of it holds for ending a loop as well as for a new task.
OF_A_TIER = {
    "not_allowed": 0.12,
    "deploying": 0.06,
    "deployed_lately": 0.06,
    "stopped_by_hand": 0.03,
    "tasks_missing": 0.04,
    "quiesced": 0.03,
    "held": 0.05,
    "lease_unread": 0.03,
    "tried_lately": 0.04,
    "failed_twice": 0.04,
    "secret_gone": 0.06,
    "no_room": 0.06,
}
OF_ALL = {"maintenance": 0.05, "breaking_row": 0.05, "clock_off": 0.04, "stale": 0.04}
ONLY_NEW_TASKS = ("secret_gone",)


@dataclass
class Task:
    """A task and its loop: running, dead, stopped, hung in a call, or failing. ``age``: of its maps, in seconds."""

    id: str
    tier: str
    loop: str
    age: float
    unreachable: bool = False


@dataclass
class Incident:
    """The truth."""

    tasks: list[Task] = field(default_factory=list)
    denied_logs: list[str] = field(default_factory=list)
    denied_parts: list[str] = field(default_factory=list)
    blocks: dict[str, list[str]] = field(default_factory=dict)
    forbidden: list[str] = field(default_factory=list)
    imap_outage: bool = True
    waiting_mail: int = 0

    def of(self, tier: str) -> list[Task]:
        return [task for task in self.tasks if task.tier == tier]

    @property
    def blind(self) -> bool:
        """Whether something could not be read."""
        return bool(self.denied_logs or self.denied_parts or any(task.unreachable for task in self.tasks))

    def stuck(self, tier: str) -> list[str]:
        """The tasks that a restart cures."""
        return [task.id for task in self.of(tier) if task.loop in STUCK]

    def blocked(self, tier: str, kind: str) -> list[str]:
        """What forbids a restart of that kind of that tier."""
        said = [*self.blocks[tier], *self.forbidden]
        # Beside those that run a task is started only by a deployment of an smtp tier.
        needless = [] if kind == "redeploy_service" and tier != "imap" else ["no_room"]
        if kind == "restart_loop":
            return [name for name in said if name not in (*needless, *ONLY_NEW_TASKS)]
        if tier == "imap":
            said += [] if self.imap_outage else ["imap_outage"]
            said += ["waiting_mail"] if self.waiting_mail else []
        return [name for name in said if name not in needless]


def draw(seed: int) -> tuple[Incident, random.Random]:
    """One incident; most have one thing wrong, some none, some several."""
    dice = random.Random(seed)
    incident = Incident()
    for tier in TIERS:
        count = 1 if tier == "imap" else dice.randint(1, 3)
        sick = dice.random() < 0.4
        whole = dice.random() < 0.5
        kind = dice.choices(["dead", "stopped", "hung", "failing"], [5, 3, 3, 2])[0]
        for number in range(count):
            stuck = sick and (whole or number == 0)
            loop = dice.choice([kind, kind, kind, "dead"]) if stuck else "running"
            age = dice.uniform(1100, 40_000) if loop != "running" else dice.uniform(5, 900)
            incident.tasks.append(Task("", tier, loop, round(age)))
        incident.blocks[tier] = [name for name, share in OF_A_TIER.items() if dice.random() < share]
    if dice.random() < 0.12:
        dice.choice(incident.tasks).unreachable = True
    if dice.random() < 0.1:
        incident.denied_logs = [dice.choice(TIERS)]
    if dice.random() < 0.1:
        incident.denied_parts = [dice.choice(PARTS)]
    incident.forbidden = [name for name, share in OF_ALL.items() if dice.random() < share]
    incident.imap_outage = dice.random() < 0.7
    incident.waiting_mail = dice.choice([0, 0, 0, 3])
    return incident, dice


def decide(incident: Incident, dice: random.Random, folder: Path, table: list[Facts], thresholds: Facts) -> Facts:
    """What the project's code makes of it: the section ``remediation``."""
    triage = evidence(incident, dice, folder)
    triage |= judge(triage, table, thresholds)
    services = [f"cabal-{tier}" for tier in TIERS if "not_allowed" not in incident.blocks[tier]]
    age = timedelta(minutes=9) if "stale" in incident.forbidden else timedelta(seconds=dice.randint(0, 250))
    options = {
        "requested": True,
        "allowed_services": services,
        "allow_imap": incident.imap_outage,
        "seen_at": stamp(age),
    }
    return plan(triage, options, NOW, {f"cabal-{tier}": live(incident, tier) for tier in TIERS})


def evidence(incident: Incident, dice: random.Random, folder: Path) -> Facts:
    """The sections before the verdict."""
    world = World(folder, failures=[])
    for address in ADDRESSES:
        world.row(address)
    for task in incident.tasks:
        _look_into(world, task, incident, dice)
    if "breaking_row" in incident.forbidden:  # it came after the maps were built
        world.row("Ann@s.harborlight.example")
    triage: Facts = {
        **world.triage(),
        "run": {"id": "mine", "region": "us-east-1", "cluster": "cabal-mail", "environment": "prod"},
        "containers": _overall(world.tasks),
        "environment": _environment(incident),
        "tiers": _logs(incident),
        "deliverability": complete(),
    }
    triage["alert"] = complete(name="", source="none", window=triage["alert"]["window"])
    world.triage = lambda: triage  # type: ignore[method-assign]
    triage["address_map"] = world.section()
    triage["reconfigure_loop"] = reconfigure_loop(triage, LoopLimits())
    triage["local_delivery"] = local_delivery(triage, folder, DiskLimits(90, 90))
    return triage


def _look_into(world: World, task: Task, incident: Incident, dice: random.Random) -> None:
    """What the probe says of a task. A stuck one may have maps that lack what came since."""
    if task.unreachable:
        task.id = world.unreachable(task.tier)
        return
    old = world.right_maps(task.tier)
    if task.loop != "running" and dice.random() < 0.5 and "/etc/mail/access" in old:
        old["/etc/mail/access"].pop(f"To:{dice.choice(ADDRESSES)}")
    text_age = dice.uniform(5, 600) if task.loop == "failing" else None
    skew = dice.choice([0, 0, 0, -900, 4000])
    task.id = world.task(task.tier, old, task.age, text_age, skew=skew)
    facts = world.tasks[-1]
    mail = {"messages": incident.waiting_mail if task.tier == "imap" else 0, "oldest": None, "reasons": []}
    facts.update(
        started_at=stamp(timedelta(hours=26)),
        supervisord_running=True,
        sendmail_running=True,
        sendmail_age_seconds=task.age,
        queue=mail,
        stray_mail=[],
        users=[],
        homes={},
        status="complete",
        reasons=[],
        loop=_process(task),
    )


def _process(task: Task) -> Facts:
    gone = {"process": "dead", "pid": None, "state": None, "stopped": None, "age_seconds": None, "children": []}
    if task.loop == "dead":
        return gone
    stopped = task.loop == "stopped"
    calls = [{"name": "aws", "call": "dynamodb scan", "state": "S", "age_seconds": task.age - 5}]
    return {
        "process": "alive",
        "pid": 40,
        "state": "T" if stopped else "S",
        "stopped": stopped,
        "age_seconds": 200.0 if task.loop == "failing" else 93_000.0,
        "children": calls if task.loop == "hung" else [],
        "count": 1,
    }


def _overall(tasks: list[Facts]) -> Facts:
    gone = [row for row in tasks if row["status"] == "unavailable"]
    status = "partial" if gone else "complete"
    return {"status": status, "reasons": ["unreachable"] * len(gone), "tasks": tasks, "unreachable": []}


def _logs(incident: Incident) -> Facts:
    by_tier = {}
    for tier in TIERS:
        log = healthy_log(tier)
        log["coverage"] |= {"log_group_exists": True, "last_event": stamp(timedelta(seconds=20))}
        log["tasks"] = {task.id: {"loop": _lines(task)} for task in incident.of(tier)}
        if tier in incident.denied_logs:
            log["coverage"] |= {"status": "unavailable", "reasons": ["FilterLogEvents was denied."], "last_event": None}
            log["tasks"] = {}
        by_tier[tier] = log
    window = {"start": stamp(timedelta(minutes=48)), "end": stamp(timedelta())}
    status = "partial" if incident.denied_logs else "complete"
    return {"status": status, "reasons": [], "peak": {"lines": 0}, "by_tier": by_tier, "window": window}


def _lines(task: Task) -> Facts:
    """The loop's lines of 48 minutes."""
    seen = task.age < 2800
    done = stamp(timedelta(seconds=task.age)) if seen else None
    lines: Facts = {"starts": 3, "dones": 3 if seen else 0, "fallbacks": 3, "last_done": done, "last_ping": done}
    lines |= {"pings_sent": 3 if seen else 0, "pings_failed": 0, "messages": 1, "exits": [], "errors": []}
    if task.loop == "failing":
        lines["exits"] = [{"status": "65", "count": 3, "last": stamp(timedelta(seconds=60))}]
        lines["starts"] = 6
    if task.loop == "hung":
        lines["unfinished_since"] = stamp(timedelta(seconds=task.age - 5)) if seen else None
    if task.loop == "dead" and seen:
        lines["gave_up"] = stamp(timedelta(seconds=task.age - 20))
    return lines


def _environment(incident: Incident) -> Facts:
    services = {tier: _service(incident, tier) for tier in TIERS}
    flag = {"exists": True, "active": "maintenance" in incident.forbidden, "until": stamp(timedelta(minutes=-5))}
    parts: Facts = {
        "services": services,
        "queues": {tier: complete(visible=0, not_visible=0, subscribed=True) for tier in TIERS},
        "discovery": {"imap": complete(instances=["10.0.1.23"])},
        "parameters": complete(maintenance_imap=flag, heartbeat={"exists": False}),
        "addresses": complete(newest_request=stamp(timedelta(days=30))),
        "network": complete(nat_instances=[{"id": "i-1", "state": "running"}], nat_gateways=[]),
    }
    for name in incident.denied_parts:
        rows = parts[name].values() if name in ("services", "queues", "discovery") else [parts[name]]
        for row in rows:
            row.update(dict.fromkeys(row), status="unavailable", reasons=["It was denied."])
    status = "partial" if incident.denied_parts else "complete"
    return {"status": status, "reasons": [], "changes": [], **parts}


def _service(incident: Incident, tier: str) -> Facts:
    blocks = incident.blocks[tier]
    count = 0 if "quiesced" in blocks else len(incident.of(tier))
    began = timedelta(minutes=20) if "deployed_lately" in blocks else timedelta(hours=26)
    deployments = [{"id": "d1", "status": "PRIMARY", "rollout_state": "COMPLETED", "created_at": stamp(began)}]
    if "deploying" in blocks:
        row = {"id": "d2", "status": "PRIMARY", "rollout_state": "IN_PROGRESS"}
        deployments.insert(0, {**row, "created_at": stamp(timedelta(hours=3))})
    tasks = [
        {"id": task.id, "last_status": "RUNNING", "started_at": stamp(timedelta(hours=26))}
        for task in incident.of(tier)
    ]
    if "stopped_by_hand" in blocks:
        gone = {"id": "f" * 32, "last_status": "STOPPED", "stop_code": "UserInitiated"}
        tasks.append({**gone, "stopped_at": stamp(timedelta(minutes=10)), "started_at": stamp(timedelta(hours=2))})
    return complete(
        service=f"cabal-{tier}",
        desired=count + ("tasks_missing" in blocks),
        running=count,
        pending=0,
        deployments=deployments,
        events=[],
        maximum_percent=100 if tier == "imap" else 200,
        secrets=[{"name": "PING", "exists": "secret_gone" not in blocks}],
        tasks=tasks,
    )


def live(incident: Incident, tier: str) -> Facts:
    """What service_restart_info says."""
    blocks = incident.blocks[tier]
    row = {"run": "theirs", "by": "jane", "expires": stamp(timedelta(minutes=-9)), "state": "held"}
    history = []
    if "tried_lately" in blocks:
        kinds = ("restart_loop", "restart_task", "redeploy_service")
        history = [
            {**row, "acted": stamp(timedelta(minutes=20)), "kind": kind, "outcome": "recovered"} for kind in kinds
        ]
    if "failed_twice" in blocks:
        bad = {**row, "kind": "restart_loop", "outcome": "not_recovered"}
        history += [{**bad, "acted": stamp(timedelta(hours=hours))} for hours in (9, 4)]
    lease = complete(held="held" in blocks, record=row if "held" in blocks else None, history=history)
    if "lease_unread" in blocks:
        lease = {"status": "unavailable", "reasons": ["GetParameter was denied."], "held": None}
    skew = 400 if "clock_off" in incident.forbidden else 1
    return {
        "lease": lease,
        "room": complete(tasks=0 if "no_room" in blocks else 4, instances=2),
        "caller": complete(arn="me", clock_skew_seconds=skew),
    }
