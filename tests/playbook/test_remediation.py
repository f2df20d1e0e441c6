# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restart through the real playbook, on tasks whose loops are really stuck."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from .conftest import BIN, REPO, Run, Sandbox, ansible_playbook, operator_writes

pytestmark = pytest.mark.playbook

ASKED = ("-e", "triage_remediate=true")
ACTS = ("ecs.UpdateService", "ecs.StopTask", "sqs.SendMessage")


def acts(sandbox: Sandbox) -> list[str]:
    """What was asked of AWS that changes a service."""
    return [call["operation"] for call in sandbox.operator_calls() if call["operation"] in ACTS]


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


def deploying(folder: Path, **deployment: Any) -> Path:
    """smtp-in's dead loop, where deployments go as declared."""
    shutil.copytree(REPO / "sandbox" / "scenarios" / "smtp-in-stale-map", folder)
    path = folder / "scenario.yml"
    scenario: dict[str, Any] = yaml.safe_load(path.read_text())
    scenario["tiers"]["smtp-in"]["service"] = {"deployment": deployment}
    path.write_text(yaml.safe_dump(scenario))
    return folder


def test_a_deployment_that_fails_is_told_and_not_tried_again(
    triage: Callable[..., Run], sandbox: Sandbox, tmp_path: Path
) -> None:
    run = triage(deploying(tmp_path / "broken", outcome="failed", start_seconds=0.3), *ASKED)
    part = run.triage["remediation"]
    assert (part["outcome"], part["severity"], run.triage["valid"]) == ("not_recovered", "critical", True), run.output
    assert "Essential container in task exited" in part["action"]["msg"]
    assert part["next_step"]
    again = triage(None, *ASKED)
    assert again.triage["remediation"]["outcome"] == "not_attempted"
    assert {"deployment_in_progress", "recently_remediated"} <= set(again.triage["remediation"]["stopped_by"])
    assert acts(sandbox) == ["ecs.UpdateService"]


def test_a_new_task_that_is_stuck_too_is_no_recovery(
    triage: Callable[..., Run], sandbox: Sandbox, tmp_path: Path
) -> None:
    folder = deploying(tmp_path / "stuck", start_seconds=0.3, drain_seconds=0.2, loop="stopped")
    run = triage(folder, *ASKED, "-e", "remediation_proof_seconds=1")
    part = run.triage["remediation"]
    assert (part["outcome"], part["severity"], part["action"]["outcome"]) == ("not_recovered", "critical", "steady")
    assert {check["name"]: check["passed"] for check in part["checks"]}["loop_alive"] is False
    assert part["next_step"].startswith("Restart nothing again.")
    assert acts(sandbox) == ["ecs.UpdateService"]


def begin(sandbox: Sandbox, report_dir: Path, call: str) -> subprocess.Popen[str]:
    """Start a run that may restart, and return when it has made that call."""
    process = subprocess.Popen(
        [str(BIN / "ansible-playbook"), "triage.yml", *ASKED, "-e", f"report_dir={report_dir}"],
        cwd=REPO,
        env=sandbox.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    while call not in {row["operation"] for row in sandbox.operator_calls()}:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    return process


def below(pid: int) -> list[int]:
    """A process and all below it, as the machine's end would end them."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = children.read_text().split() if children.exists() else []
    return [pid, *(number for child in found for number in below(int(child)))]


def test_a_run_that_was_killed_is_understood_by_the_next(
    triage: Callable[..., Run], sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.load(deploying(tmp_path / "slow", start_seconds=120))
    process = begin(sandbox, tmp_path / "killed", "ecs.UpdateService")
    for pid in below(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    again = triage(None, *ASKED)
    part = again.triage["remediation"]
    assert (part["outcome"], again.triage["valid"]) == ("not_attempted", True), again.output
    gates = {gate["name"]: gate["value"] for gate in part["gates"] if gate["passed"] is False}
    assert {"deployment_in_progress", "duplicate_in_progress", "recently_remediated"} <= set(gates)
    assert acts(sandbox) == ["ecs.UpdateService"]
    (record,) = leases(sandbox)
    assert (record["state"], record["kind"], "outcome" in record) == ("held", "redeploy_service", False)


def test_beside_somebody_elses_deployment_nothing_is_deployed(sandbox: Sandbox, tmp_path: Path) -> None:
    """It begins once the run has its lease and is about to look again."""
    sandbox.load(deploying(tmp_path / "slow", start_seconds=60))
    process = begin(sandbox, tmp_path / "reports", "ssm.PutParameter")
    client(sandbox, "ecs").update_service(cluster="cabal-mail", service="cabal-smtp-in", forceNewDeployment=True)
    output = process.communicate(timeout=200)[0]
    (path,) = (tmp_path / "reports").glob("*/latest/triage.json")
    part = json.loads(path.read_text())["remediation"]
    assert part["outcome"] == "not_attempted", output
    assert {"deployment_in_progress", "recently_remediated"} & set(part["stopped_by"])
    assert acts(sandbox) == ["ecs.UpdateService"]
    (record,) = leases(sandbox)
    assert (record["state"], record["outcome"]) == ("released", "not_attempted")


def client(sandbox: Sandbox, service: str) -> Any:
    """Somebody else's way to AWS."""
    keys = {"aws_access_key_id": "somebody", "aws_secret_access_key": "else"}
    return boto3.client(service, region_name="us-east-1", endpoint_url=sandbox.url, **keys)


def leases(sandbox: Sandbox) -> list[dict[str, Any]]:
    """What the lease holds, if there is one."""
    names = ["/cabal-runbooks/lease/cabal-smtp-in"]
    return [json.loads(row["Value"]) for row in client(sandbox, "ssm").get_parameters(Names=names)["Parameters"]]


@pytest.mark.parametrize("scenario", ["smtp-in-stale-map", "loop-hung-loglevel-2"])
def test_check_mode_shows_the_plan_and_changes_nothing(
    scenario: str, triage: Callable[..., Run], sandbox: Sandbox
) -> None:
    run = triage(scenario, *ASKED, "--check")
    part = run.triage["remediation"]
    assert (run.status, part["outcome"], part["stopped_by"]) == (0, "not_attempted", []), run.output
    assert part["action"]["outcome"] == "would_act"
    assert part["plan"]["commands"]
    assert operator_writes(sandbox.calls()) == []
    assert leases(sandbox) == []
    # Each of the three tasks was looked into, and no other command was run in any.
    sessions = [call for call in sandbox.operator_calls() if call["operation"] == "ecs.ExecuteCommand"]
    assert len(sessions) == 3


def test_an_approval_that_does_not_hold_is_refused(
    triage: Callable[..., Run], sandbox: Sandbox, tmp_path: Path
) -> None:
    """Of an environment that has recovered since, of another one, and of yesterday."""
    saved = triage("loop-hung")
    approved = tmp_path / "approved.json"
    shutil.copy(next(saved.report_dir.glob("*/latest/triage.json")), approved)
    words = ("remediate.yml", "-e", f"remediate_triage={approved}")
    sandbox.load("quiet")
    gone = ansible_playbook(tmp_path / "gone", *words, env=sandbox.environment(), cwd=REPO)
    assert gone.triage["remediation"]["stopped_by"] == ["finding_gone"], gone.output
    other = ansible_playbook(
        tmp_path / "other", *words, "-e", "cabalmail_environment=prod", env=sandbox.environment(), cwd=REPO
    )
    assert other.status != 0
    assert "is of the environment 'sandbox', not of prod" in other.output
    old = ansible_playbook(
        tmp_path / "old", *words, "-e", "remediate_max_age=0.01", env=sandbox.environment(), cwd=REPO
    )
    assert old.status != 0
    assert "run the triage again" in old.output
    assert operator_writes(sandbox.calls()) == []
