# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-runner, the engine inside AWX: the same findings, facts and artifacts as from a terminal.

The private data directory is laid out as AWX does it: the project read-only, extra variables in a file, a credential's
variables in another, no terminal, no HOME, and no environment but what AWX passes.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import REPO, Run, Sandbox, operator_writes

pytestmark = pytest.mark.playbook

SCENARIO = "smtp-in-stale-map"
VOLATILE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z|(?<=~)[0-9a-f]{6}\b|\b\d+ (?:minutes|s) old\b|\d{8}T\d{6}Z-[0-9a-f]{4}"
)

# What AWX does, in a process of its own: ansible_runner.run() and nothing printed but what it says itself.
ENGINE = """
import json, sys
import ansible_runner
runner = ansible_runner.run(private_data_dir=sys.argv[1], playbook=sys.argv[2], ident="7", quiet=True)
print(json.dumps({"status": runner.status, "rc": runner.rc}))
"""


@dataclass(frozen=True)
class Job:
    """One job of the engine."""

    rc: int
    status: str
    stdout: str
    facts: dict[str, Any]
    artifact: dict[str, Any]
    report: Path


@pytest.fixture
def job(sandbox: Sandbox, tmp_path: Path) -> Callable[..., Job]:
    """Run the project as a job: ``job({"triage_exec": True})``, ``job({...}, "remediate.yml")``."""
    numbers = itertools.count()

    def run(extra_vars: dict[str, Any], playbook: str = "triage.yml") -> Job:
        private = tmp_path / f"private{next(numbers)}"
        (private / "env").mkdir(parents=True)
        (private / "env" / "extravars").write_text(yaml.safe_dump(extra_vars))
        (private / "env" / "envvars").write_text(
            json.dumps({"CABALMAIL_SANDBOX_PORT": str(sandbox.port), "CABALMAIL_SANDBOX_DIR": str(sandbox.state)})
        )
        _copy_project(private / "project")
        done = subprocess.run(
            [*_read_only(private / "project"), sys.executable, "-c", ENGINE, str(private), playbook],
            cwd=tmp_path,
            env={"PATH": sandbox.environment()["PATH"], "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        answer = json.loads(done.stdout.splitlines()[-1])
        artifacts = private / "artifacts" / "7"
        stats = [json.loads(path.read_text()) for path in (artifacts / "job_events").glob("*.json")]
        (stats,) = [event for event in stats if event["event"] == "playbook_on_stats"]
        artifact = stats["event_data"].get("artifact_data", {})
        stdout = (artifacts / "stdout").read_text()
        assert answer["rc"] == 0, stdout
        (report,) = private.rglob("latest")
        facts = json.loads((report / "triage.json").read_text())
        return Job(answer["rc"], answer["status"], stdout, facts, artifact, report)

    return run


def _copy_project(folder: Path) -> None:
    """A clone as AWX makes it: what git knows, nothing else."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (REPO / name).is_file() and not name.startswith(("tests/", "sandbox/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, folder / name)


def _read_only(folder: Path) -> list[str]:
    """Words before a command that then can't write to the folder: a mount, since root may write to any file."""
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    words += ['mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"', str(folder)]
    tried = subprocess.run([*words, "touch", str(folder / "written")], capture_output=True, text=True)
    if "Read-only file system" in tried.stderr:
        return words
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    return []


def steady(value: Any, key: str = "") -> Any:
    """The facts without clocks, ages, and what a run's own masking key makes."""
    if isinstance(value, dict):
        return {name: steady(member, name) for name, member in value.items()}
    if isinstance(value, list):
        return [steady(member, key) for member in value]
    if isinstance(value, str):
        return VOLATILE.sub("-", value)
    return None if isinstance(value, float) or key.endswith(("_seconds", "seconds", "minutes")) else value


def test_the_same_findings_facts_and_artifacts(job: Callable[..., Job], triage: Callable[..., Run]) -> None:
    plain = triage(SCENARIO).triage
    done = job({"triage_fail_on": "", "triage_deadline": 90, "triage_tiers": ["imap", "smtp-in", "smtp-out"]})
    assert done.status == "successful"
    assert done.facts["valid"] is True
    assert steady(done.facts["findings"]) == steady(plain["findings"])
    assert [row["fingerprint"] for row in done.facts["findings"]] == [row["fingerprint"] for row in plain["findings"]]
    assert steady(done.facts["alert"]) == steady(plain["alert"])
    for tier, log in plain["tiers"]["by_tier"].items():
        for part in ("bounces", "deliveries", "unseen", "rejects", "deferrals"):
            assert steady(done.facts["tiers"]["by_tier"][tier][part]) == steady(log[part]), (tier, part)
    for section in ("address_map", "local_delivery", "deliverability", "remediation"):
        assert steady(done.facts[section]) == steady(plain[section]), section
    for section in ("tiers", "environment", "containers", "reconfigure_loop"):
        assert (done.facts[section]["status"], done.facts[section]["reasons"]) == ("complete", []), section
    assert done.artifact == {"triage_artifact": {"sandbox": done.facts}}


def test_a_workflow_restarts_once_what_its_triage_planned(job: Callable[..., Job], sandbox: Sandbox) -> None:
    """AWX hands the artifacts of the triage node on, as extra variables, once a person has approved."""
    sandbox.load("loop-hung-loglevel-2")
    planned = job({"triage_payload": ""})
    assert operator_writes(sandbox.calls()) == []
    workflow = {**planned.artifact, "triage_payload": ""}
    acted = job(workflow, "remediate.yml")
    part = acted.facts["remediation"]
    assert (part["outcome"], part["plan"]["kind"]) == ("recovered", "restart_loop"), acted.stdout
    assert part["approved"]["run"] == planned.facts["run"]["id"]
    sandbox.reset_calls()
    replay = job(workflow, "remediate.yml")
    assert replay.facts["remediation"]["stopped_by"] == ["finding_gone"]
    assert operator_writes(sandbox.calls()) == []


def test_what_a_job_leaves_behind(job: Callable[..., Job], triage: Callable[..., Run], sandbox: Sandbox) -> None:
    sandbox.load(SCENARIO)
    done = job({"triage_exec": False})
    assert done.artifact["triage_artifact"]["sandbox"]["containers"]["status"] == "unavailable"
    # The project can't be written to: the report is among the artifacts, where AWX keeps it.
    assert done.report.parent.parent.parent.name == "7"
    assert {path.name for path in done.report.iterdir()} == {
        "outcome.json",
        "report.html",
        "triage.json",
        "triage.md",
    }
    assert re.search(r"^Report: .+/triage\.md\r?$", done.stdout, re.MULTILINE)
    # An artifact comes back as an extra variable of the next job of a workflow: that must not stand in its way.
    again = triage(None, "-e", json.dumps(done.artifact), "--tags", "tier_bounces")
    assert again.status == 0, again.output
    assert again.triage["run"]["id"] != done.facts["run"]["id"]
