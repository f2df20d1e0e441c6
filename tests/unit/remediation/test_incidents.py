# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Over 2,000 random incidents: nothing healthy is restarted, nothing on incomplete evidence, all else that is stuck."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.unit.remediation.incidents import TIERS, Incident, decide, draw
from tests.unit.verdict.conftest import options, table

__all__ = ["options", "table"]
CHUNK, CHUNKS = 700, 3


def due(incident: Incident, tier: str) -> bool:
    """Whether something of that tier has to be restarted: proven stuck, curable, and nothing forbids it."""
    loops = {task.loop for task in incident.of(tier)}
    if incident.blind or not incident.stuck(tier) or "failing" in loops:
        return False
    if loops - {"running"} <= {"stopped", "hung"}:
        return not incident.blocked(tier, "restart_loop")
    kind = "restart_task" if "running" in loops else "redeploy_service"
    return not incident.blocked(tier, kind)


def check(incident: Incident, decided: dict[str, Any]) -> str:
    """What is wrong with a decision; empty when nothing is."""
    chosen = decided.get("plan") or {}
    if not decided["to_do"]:
        left = [tier for tier in TIERS if due(incident, tier)]
        return f"leaves {left} alone: {chosen.get('kind')} stopped by {decided['stopped_by']}" if left else ""
    tier = chosen["tier"]
    if incident.blind:
        return f"acts on {tier} on incomplete evidence"
    if not chosen["tasks"] or not set(chosen["tasks"]) <= set(incident.stuck(tier)):
        return f"restarts what is not stuck in {tier}"
    held_back = incident.blocked(tier, chosen["kind"])
    return f"acts on {tier} in spite of {held_back}" if held_back else ""


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_incidents(chunk: int, tmp_path: Path, table: list[Any], options: dict[str, Any]) -> None:
    seen: Counter[str] = Counter()
    wrong = []
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        incident, dice = draw(seed)
        decided = decide(incident, dice, tmp_path, table, options)
        if said := check(incident, decided):
            wrong.append(f"{seed}: {said}")
        seen[f"acts:{decided['plan']['kind']}" if decided["to_do"] else "waits"] += 1
        seen["healthy"] += not any(incident.stuck(tier) for tier in TIERS)
        seen["blind and stuck"] += incident.blind and any(incident.stuck(tier) for tier in TIERS)
    assert wrong == [], len(wrong)
    # The dice are not loaded: each answer is given often.
    kinds = ("acts:restart_loop", "acts:restart_task", "acts:redeploy_service", "waits", "healthy", "blind and stuck")
    assert all(seen[kind] > 10 for kind in kinds), seen
