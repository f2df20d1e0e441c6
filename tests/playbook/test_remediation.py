# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restart through the real playbook, on tasks whose loops are really stuck."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import BIN, REPO, Run, Sandbox, ansible_playbook

pytestmark = pytest.mark.playbook

ASKED = ("-e", "triage_remediate=true")
ACTS = ("ecs.UpdateService", "ecs.StopTask", "sqs.SendMessage")
IMAP = ("-e", "triage_remediate_tiers=imap", "-e", "triage_remediate_imap_outage=true")


def acts(sandbox: Sandbox) -> list[str]:
    """What was asked of AWS that changes a service."""
    return [call["operation"] for call in sandbox.operator_calls() if call["operation"] in ACTS]


@pytest.mark.parametrize(
    ("scenario", "more", "kind", "done"),
    [
        ("smtp-in-stale-map", (), "redeploy_service", ["ecs.UpdateService"]),
        ("loop-hung", (), "restart_loop", ["sqs.SendMessage"]),
        ("one-stuck-task-of-three", (), "restart_task", ["ecs.StopTask"]),
        ("imap-unresolvable", IMAP, "redeploy_service", ["ecs.UpdateService"]),
    ],
)
def test_what_is_stuck_is_restarted_and_recovers(
    scenario: str, more: tuple[str, ...], kind: str, done: list[str], triage: Callable[..., Run], sandbox: Sandbox
) -> None:
    run = triage(scenario, *ASKED, *more)
    part = run.triage["remediation"]
    assert (run.status, run.triage["valid"], part["outcome"]) == (0, True, "recovered"), run.output
    assert part["plan"]["kind"] == kind
    assert list(dict.fromkeys(acts(sandbox))) == done
    assert all(check["passed"] for check in part["checks"])
    assert "| | before | after |" in run.markdown
    assert any(line.startswith("Remediation: recovered") for line in run.summary)
    (audit,) = run.report_dir.glob("*/latest/audit.jsonl")
    record = json.loads(audit.read_text(encoding="utf-8"))
    assert (record["outcome"], record["who"]["identity"][:12]) == ("recovered", "arn:aws:sts:")
    # The verdict stands on what was seen before it.
    assert run.verdict == part["finding"]


def test_two_runs_at_once_restart_once(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.load("smtp-in-stale-map")
    words = [str(BIN / "ansible-playbook"), "triage.yml", *ASKED]
    runs = [
        subprocess.Popen(
            [*words, "-e", f"report_dir={tmp_path / name}"],
            cwd=REPO,
            env=sandbox.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        for name in ("one", "two")
    ]
    output = "".join(process.communicate(timeout=300)[0] for process in runs)
    reports = [json.loads(path.read_text()) for path in tmp_path.glob("*/*/latest/triage.json")]
    outcomes = sorted(report["remediation"]["outcome"] for report in reports)
    assert outcomes == ["not_attempted", "recovered"], output
    assert acts(sandbox) == ["ecs.UpdateService"]


def broken(folder: Path, outcome: str) -> Path:
    """The same incident where a new task does not start."""
    shutil.copytree(REPO / "sandbox" / "scenarios" / "smtp-in-stale-map", folder)
    path = folder / "scenario.yml"
    scenario: dict[str, Any] = yaml.safe_load(path.read_text())
    scenario["tiers"]["smtp-in"]["service"] = {"deployment": {"outcome": outcome, "start_seconds": 0.3}}
    path.write_text(yaml.safe_dump(scenario))
    return folder


def test_a_deployment_that_fails_is_told_and_not_tried_again(
    triage: Callable[..., Run], sandbox: Sandbox, tmp_path: Path
) -> None:
    run = triage(broken(tmp_path / "broken", "failed"), *ASKED)
    part = run.triage["remediation"]
    assert (part["outcome"], part["severity"], run.triage["valid"]) == ("not_recovered", "critical", True), run.output
    assert "Essential container in task exited" in part["action"]["msg"]
    assert part["next_step"]
    again = triage(None, *ASKED)
    assert again.triage["remediation"]["outcome"] == "not_attempted"
    assert {"deployment_in_progress", "recently_remediated"} <= set(again.triage["remediation"]["stopped_by"])
    assert acts(sandbox) == ["ecs.UpdateService"]


def test_what_was_approved_is_done_once(triage: Callable[..., Run], sandbox: Sandbox, tmp_path: Path) -> None:
    saved = triage("loop-hung")
    assert acts(sandbox) == []
    path = next(saved.report_dir.glob("*/latest/triage.json"))
    approved = tmp_path / "approved.json"
    shutil.copy(path, approved)
    words = ("remediate.yml", "-e", f"remediate_triage={approved}")
    run = ansible_playbook(tmp_path / "acted", *words, env=sandbox.environment(), cwd=REPO)
    assert run.triage["remediation"]["outcome"] == "recovered", run.output
    replay = ansible_playbook(tmp_path / "replay", *words, env=sandbox.environment(), cwd=REPO)
    assert replay.triage["remediation"]["stopped_by"] == ["finding_gone"]
    assert set(acts(sandbox)) == {"sqs.SendMessage"}
    other = ansible_playbook(
        tmp_path / "other", *words, "-e", "cabalmail_environment=prod", env=sandbox.environment(), cwd=REPO
    )
    assert other.status != 0
    assert "is of the environment 'sandbox', not of prod" in other.output
