# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Room on container instances, as ECS's scheduler counts it: CPU units and memory that nobody has reserved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Aws = Mapping[str, Any]


def needs(definition: Aws) -> dict[str, int]:
    """CPU units and MiB of memory that a task reserves: the task's own figures, else the sum of its containers'."""
    containers = definition.get("containerDefinitions") or []
    memory = sum(int(row.get("memoryReservation") or row.get("memory") or 0) for row in containers)
    cpu = sum(int(row.get("cpu") or 0) for row in containers)
    return {"CPU": int(definition.get("cpu") or cpu), "MEMORY": int(definition.get("memory") or memory)}


def room_for(task: Mapping[str, int], instances: Iterable[Aws]) -> int:
    """How many more such tasks the instances could take; one that is not ACTIVE or not connected takes none."""
    return sum(_fits(task, row) for row in instances if row.get("status") == "ACTIVE" and row.get("agentConnected"))


def _fits(task: Mapping[str, int], instance: Aws) -> int:
    left = {row.get("name"): row.get("integerValue") for row in instance.get("remainingResources") or []}
    shares = [int(left.get(name) or 0) // amount for name, amount in task.items() if amount]
    return max(0, min(shares, default=0))
