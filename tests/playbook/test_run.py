# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a run behaves, whatever it finds: what it leaves behind, exit status, several hosts, privacy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import REPO, Run, Sandbox

pytestmark = pytest.mark.playbook

SCENARIO = "smtp-out-provider-block"
VERDICT = "smtp_out.provider_block"


@pytest.fixture(scope="module", autouse=True)
def _scenario(sandbox: Sandbox) -> None:
    sandbox.load(SCENARIO)


def test_a_run_leaves_report_artifact_and_summary(triage: Callable[..., Run]) -> None:
    run = triage(None)
    assert run.status == 0, run.output
    assert run.verdict == VERDICT
    assert run.outcome["status"] == "finding"
    assert run.triage["valid"] is True, run.triage["invalid_because"]
    assert {path.name for path in (run.report_dir / "sandbox" / "latest").iterdir()} == {
        "outcome.json",
        "report.html",
        "triage.json",
        "triage.md",
    }
    assert len(run.summary) <= 19
    assert VERDICT in run.summary[1]
    assert "\x1b" not in run.output
    assert run.stdout.index("Report: ") < run.stdout.index("PLAY RECAP")


def test_the_default_run_changes_nothing(sandbox: Sandbox, triage: Callable[..., Run]) -> None:
    sandbox.reset_calls()
    run = triage(None)
    assert "changed=0" in run.stdout
    written = re.compile(r"\.(Put|Update|Delete|Create|Stop|Run|Send|Start(?!Query)|Purge|Register|Set)")
    ours = [call["operation"] for call in sandbox.calls() if call["principal"] == "AKIASANDBOXSANDBOX00"]
    assert ours
    assert [operation for operation in ours if written.search(operation)] == []


def test_without_exec_there_is_a_verdict_and_it_says_so(sandbox: Sandbox, triage: Callable[..., Run]) -> None:
    sandbox.reset_calls()
    run = triage(None, "-e", "triage_exec=false")
    assert run.status == 0, run.output
    assert run.verdict == VERDICT
    assert run.triage["containers"]["status"] == "unavailable"
    assert not any("ExecuteCommand" in call["operation"] for call in sandbox.calls())


def test_some_tiers_only(triage: Callable[..., Run]) -> None:
    run = triage(None, "-e", "triage_tiers=smtp-out,imap", "-e", "triage_exec=false")
    assert list(run.triage["tiers"]["by_tier"]) == ["smtp-out", "imap"]


@pytest.mark.parametrize(("severity", "status"), [("critical", 2), ("info", 2), ("", 0)])
def test_fail_on(triage: Callable[..., Run], severity: str, status: int) -> None:
    run = triage(None, "-e", f"triage_fail_on={severity}", "-e", "triage_exec=false")
    assert run.outcome["severity"] == "critical"
    assert run.status == status, run.output
    assert run.outcome["status"] == "finding"
    if status:
        assert f"triage_fail_on={severity}: " in run.output


def test_no_secret_and_no_clear_address_reaches_screen_or_report(triage: Callable[..., Run]) -> None:
    run = triage(None, "-vvv")
    everything = run.output + run.markdown + json.dumps(run.triage) + json.dumps(run.outcome)
    assert "sandbox-secret-that-opens-nothing" not in everything
    addresses = set(re.findall(r"[^\s<>\"'=,;:()\[\]{}\\]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.example", everything))
    assert {address for address in addresses if not re.match(r".\*\*\*~[0-9a-f]{6}@", address)} <= {
        # Published in DNS, in our own DMARC record.
        "dmarc-reports@mail-admin.harborlight.example"
    }


@pytest.fixture
def two_environments(tmp_path: Path) -> Path:
    """An inventory of two hosts that differ in their label."""
    import yaml

    hosts = yaml.safe_load((REPO / "inventory" / "sandbox" / "hosts.yml").read_text())["all"]["hosts"]
    prod = {**hosts["sandbox"], "triage_payload": ""}
    stage = {**prod, "cabalmail_environment": "stage"}
    path = tmp_path / "inventory.yml"
    path.write_text(yaml.safe_dump({"all": {"hosts": {"prod": prod, "stage": stage}}}))
    return path


def test_several_environments_in_one_run(triage: Callable[..., Run], two_environments: Path) -> None:
    shown_stats = {"ANSIBLE_SHOW_CUSTOM_STATS": "true", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    run = triage(None, "-i", str(two_environments), "--tags", "tier_bounces", env=shown_stats)
    assert run.status == 0, run.output
    assert sorted(path.name for path in run.report_dir.iterdir()) == ["prod", "stage"]
    shown = run.stdout[run.stdout.index("CUSTOM STATS") :]
    assert '"prod": {' in shown
    assert '"stage": {' in shown


def test_a_page_of_one_environment_leaves_the_other_alone(
    triage: Callable[..., Run], two_environments: Path, sandbox: Sandbox
) -> None:
    page = sandbox.state / "alert.json"
    run = triage(None, "-i", str(two_environments), "--tags", "alert", "-e", f"triage_payload={page}")
    assert run.status == 0, run.output
    assert [path.name for path in run.report_dir.iterdir()] == ["prod"]
    assert "stage: the page is not about the environment stage, so nothing was done." in run.stdout
