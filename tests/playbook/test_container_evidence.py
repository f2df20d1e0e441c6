# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One session a task brings back all evidence, writes nothing, and can be left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.playbook

#: All of a task's own tree but what its programs write all the time: the loops' logs and the control pipes.
LOOKED_AT = ("etc", "home", "var/spool", "var/tmp", "tmp", "root", "run")


def listing(state: Path) -> dict[str, tuple[int, str]]:
    """Mode and content of every file of every task, below the folders that the probe looks into."""
    found = {}
    for root in (state / "tasks").iterdir():
        for folder in LOOKED_AT:
            for path in (root / folder).rglob("*"):
                if path.is_file() and not path.is_symlink():
                    found[str(path)] = (path.stat().st_mode, hashlib.sha256(path.read_bytes()).hexdigest())
    return found


#: What a triage of three tiers in five tasks may call, and how often; a page of an answer is a call.
ALLOWED = {
    "ecs.ExecuteCommand": 5,
    "ecs.ListTasks": 2 * 3 + 3,  # running and stopped ones with the environment, running ones for the sessions
    "ecs.DescribeTasks": 3 + 3,
    "ecs.DescribeServices": 3 + 1,
    "ecs.DescribeTaskDefinition": 3,
    "dynamodb.Scan": 2,  # addresses and DMARC reports, a page each
    "sqs.GetQueueUrl": 3,
    "sqs.GetQueueAttributes": 3,
    "sns.ListSubscriptionsByTopic": 1,
    "cloudwatch.GetMetricData": 2,  # the environment's, and the 24 hours before with the logs
    "ssm.DescribeParameters": 2,  # moto's pages hold 10 whatever is asked for
    "ssm.GetParameter": 1,
}


def too_many(calls: list[dict[str, Any]]) -> dict[str, int]:
    """Operations about containers, maps and loops that were called more often than tasks and tables require."""
    counts = Counter(call["operation"] for call in calls)
    services = {name.partition(".")[0] for name in ALLOWED}
    return {
        name: count
        for name, count in counts.items()
        if name.partition(".")[0] in services and count > ALLOWED.get(name, 0)
    }


def sessions(sandbox: Any) -> int:
    return sum(call["operation"] == "ecs.ExecuteCommand" for call in sandbox.calls())


def test_one_session_a_task_and_nothing_written(sandbox: Any, triage: Callable[..., Any]) -> None:
    sandbox.load("one-stuck-task-of-three")
    before = listing(sandbox.state)
    sandbox.reset_calls()
    run = triage(None)
    tasks = run.triage["containers"]["tasks"]
    assert (len(tasks), sessions(sandbox)) == (5, 5)
    assert too_many(sandbox.operator_calls()) == {}
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
