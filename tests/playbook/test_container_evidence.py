# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One session a task brings back all evidence, writes nothing, and can be left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.playbook

LOOKED_AT = ("etc", "home", "var/spool", "tmp")


def listing(state: Path) -> dict[str, tuple[int, str]]:
    """Mode and content of every file of every task, below the folders that the probe looks into."""
    found = {}
    for root in (state / "tasks").iterdir():
        for folder in LOOKED_AT:
            for path in (root / folder).rglob("*"):
                if path.is_file() and not path.is_symlink():
                    found[str(path)] = (path.stat().st_mode, hashlib.sha256(path.read_bytes()).hexdigest())
    return found


def sessions(sandbox: Any) -> int:
    return sum(call["operation"] == "ecs.ExecuteCommand" for call in sandbox.calls())


def test_one_session_a_task_and_nothing_written(sandbox: Any, triage: Callable[..., Any]) -> None:
    sandbox.load("one-stuck-task-of-three")
    before = listing(sandbox.state)
    sandbox.reset_calls()
    run = triage(None)
    tasks = run.triage["containers"]["tasks"]
    assert (len(tasks), sessions(sandbox)) == (5, 5)
    assert {row["status"] for row in tasks} == {"complete"}
    assert all(row["source"] == "makemap" for row in run.triage["address_map"]["tasks"])
    assert any("/etc/mail/" in path for path in before)
    assert listing(sandbox.state) == before


def test_without_exec_no_session_is_opened_and_the_logs_give_the_same_verdict(
    sandbox: Any, triage: Callable[..., Any]
) -> None:
    sandbox.load("smtp-in-stale-map")
    sandbox.reset_calls()
    run = triage(None, "-e", "triage_exec=false")
    assert sessions(sandbox) == 0
    assert run.triage["containers"]["reasons"] == ["skipped"]
    assert run.verdict == "smtp_in.stale_map"
    assert run.triage["verdict"]["confidence"] != "high"
    (stuck,) = [row for row in run.triage["reconfigure_loop"]["tasks"] if row["stuck"]]
    assert (stuck["tier"], stuck["sources"], stuck["could_be"]) == ("smtp-in", ["logs"], ["dead"])
