# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is broken around a run, or left out of it, costs the evidence that it costs, and never the report."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from .conftest import BIN, REPO, RUN_SECONDS, Run, Sandbox, ansible_playbook, operator_writes

pytestmark = pytest.mark.playbook

SCENARIOS = REPO / "sandbox" / "scenarios"
SCHEMA = json.loads((REPO / "data" / "schema" / "triage-1.json").read_text(encoding="utf-8"))
# Roles in the order of the playbook, with what each leaves in the facts.
SECTIONS = {
    "tier_bounces": "tiers",
    "environment": "environment",
    "container_evidence": "containers",
    "deliverability": "deliverability",
    "address_map": "address_map",
    "reconfigure_loop": "reconfigure_loop",
    "local_delivery": "local_delivery",
    "remediation": "remediation",
}
ALWAYS = ("alert", "verdict", "report")
# From the last step that a deadline stops to the end of the process.
MARGIN_SECONDS = 10


def sound(run: Run) -> None:
    """The run ended by itself and its report fits the schema."""
    assert run.status == 0, run.output
    jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(run.triage)
    assert run.triage["valid"] is True
    assert any(line.startswith("Report: ") for line in run.summary)
    assert "Traceback" not in run.output


def with_faults(folder: Path, base: str, *faults: dict[str, Any]) -> Path:
    """A scenario of ours with other faults, in a folder of its own."""
    made = folder / "scenario"
    shutil.copytree(SCENARIOS / base, made)
    declared = yaml.safe_load((made / "scenario.yml").read_text())
    declared["faults"] = list(faults)
    (made / "scenario.yml").write_text(yaml.safe_dump(declared))
    return made


# -- the network -------------------------------------------------------------------------------------------------------


def test_every_call_hangs(triage: Callable[..., Run], sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.load(with_faults(tmp_path, "smtp-in-stale-map", {"operation": "*", "hang": True}))
    began = time.monotonic()
    run = triage(None, "-e", "triage_deadline=20")
    assert time.monotonic() - began < 20 + MARGIN_SECONDS
    sound(run)
    assert run.outcome["status"] == "incomplete"
    for section in ("tiers", "environment", "containers"):
        assert run.triage[section]["status"] == "unavailable"
        assert any("triage_deadline=20 was too short" in reason for reason in run.triage[section]["reasons"])
    assert not {"none.below_threshold", "none.ended"} & set(run.findings)
    assert any(line.startswith("Not checked: ") for line in run.summary)


def test_an_endpoint_and_a_resolver_that_never_answer(triage: Callable[..., Run]) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        port = server.getsockname()[1]
        extra = {
            "cabalmail_endpoint_url": f"http://127.0.0.1:{port}",
            "cabalmail_dns_resolvers": [f"127.0.0.1:{port}"],
            "triage_deadline": 20,
        }
        began = time.monotonic()
        run = triage(None, "-e", json.dumps(extra))
        assert time.monotonic() - began < 20 + MARGIN_SECONDS
    sound(run)
    assert run.outcome["status"] == "incomplete"
    for section in ("tiers", "environment", "containers"):
        assert run.triage[section]["status"] == "unavailable"
    assert any(line.startswith("Not checked: ") for line in run.summary)


def test_sessions_hang(triage: Callable[..., Run], sandbox: Sandbox) -> None:
    """The API answers, ECS Exec opens its sessions, and nothing comes out of them."""
    sandbox.load("smtp-out-provider-block")
    sandbox.post("agent", {"first_read_delay": 3600})
    began = time.monotonic()
    run = triage(None, "-e", "triage_deadline=30")
    assert time.monotonic() - began < 30 + MARGIN_SECONDS
    sound(run)
    assert run.verdict == "smtp_out.provider_block"
    assert run.triage["containers"]["status"] == "unavailable"
    assert run.triage["tiers"]["status"] == run.triage["environment"]["status"] == "complete"


def test_one_service_hangs(triage: Callable[..., Run], sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.load(with_faults(tmp_path, "smtp-out-provider-block", {"operation": "dynamodb.*", "hang": True}))
    began = time.monotonic()
    run = triage(None, "-e", "triage_deadline=40")
    assert time.monotonic() - began < 40 + MARGIN_SECONDS
    sound(run)
    assert run.verdict == "smtp_out.provider_block"
    assert run.triage["tiers"]["status"] == "complete"
    assert run.triage["environment"]["addresses"]["status"] == "unavailable"
    assert run.triage["environment"]["services"]["imap"]["status"] == "complete"


def test_every_call_is_denied(triage: Callable[..., Run], tmp_path: Path) -> None:
    run = triage(
        with_faults(tmp_path, "smtp-in-stale-map", {"operation": "*", "error": "AccessDeniedException"}),
        "--skip-tags",
        "deliverability",
    )
    sound(run)
    assert run.outcome["status"] == "incomplete"
    assert "AccessDeniedException" in json.dumps(run.triage["tiers"]["reasons"])
    assert run.triage["environment"]["status"] == "unavailable"
    assert not {"none.below_threshold", "none.ended"} & set(run.findings)


def test_answers_are_garbage(triage: Callable[..., Run], tmp_path: Path) -> None:
    run = triage(with_faults(tmp_path, "smtp-in-stale-map", {"operation": "*", "garbage": True}))
    sound(run)
    assert run.outcome["status"] == "incomplete"
    assert not {"none.below_threshold", "none.ended"} & set(run.findings)


# -- check mode --------------------------------------------------------------------------------------------------------


def test_check_mode_shows_the_remedy_and_does_nothing(sandbox: Sandbox, triage: Callable[..., Run]) -> None:
    run = triage("smtp-in-stale-map", "--check", "-e", "triage_remediate=true")
    sound(run)
    assert run.verdict == "smtp_in.stale_map"
    assert run.triage["run"]["check_mode"] is True
    assert "cabal-smtp-in" in json.dumps(run.triage["remediation"])
    assert operator_writes(sandbox.calls()) == []


# -- tags --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _stale_map(sandbox: Sandbox) -> None:
    """Loaded once: what is run with tags only reads."""
    sandbox.load("smtp-in-stale-map")
    sandbox.post("agent", {"delays": "off"})


@pytest.fixture
def tagged(_stale_map: None, triage: Callable[..., Run]) -> Callable[..., Run]:
    """Run with some tags: ``tagged("--skip-tags", "alert")``."""
    return lambda *words: triage(None, *words)


def skipped(run: Run) -> set[str]:
    """Sections that say that their step was left out."""
    sections = {name: run.triage[name] for name in SECTIONS.values()}
    said = {name for name, section in sections.items() if section["reasons"] == ["skipped"]}
    assert all(sections[name]["status"] == "unavailable" for name in said)
    return said


@pytest.mark.parametrize("role", [*SECTIONS, *ALWAYS])
def test_only_one_role(role: str, tagged: Callable[..., Run]) -> None:
    run = tagged("--tags", role)
    sound(run)
    assert skipped(run) == set(SECTIONS.values()) - {SECTIONS.get(role, "")}
    assert run.triage["alert"]["status"] == "complete"
    assert run.verdict is not None
    assert run.outcome["status"] != "ok"


@pytest.mark.parametrize("role", SECTIONS)
def test_all_but_one_role(role: str, tagged: Callable[..., Run]) -> None:
    run = tagged("--skip-tags", role)
    sound(run)
    assert skipped(run) == {SECTIONS[role]}
    assert run.verdict is not None


def test_without_the_page_there_is_no_window_to_read(tagged: Callable[..., Run]) -> None:
    """`alert` is always played, unless somebody says in so many words that it is not to be."""
    run = tagged("--skip-tags", "alert")
    sound(run)
    for section in ("alert", "tiers"):
        assert run.triage[section]["status"] == "unavailable"
    assert run.triage["alert"]["reasons"] == ["skipped"]
    (why,) = run.triage["tiers"]["reasons"]
    assert "window" in why
    assert run.triage["containers"]["status"] == "complete"
    assert not {"none.below_threshold", "none.ended"} & set(run.findings)


def test_without_judgement_there_is_still_the_evidence(tagged: Callable[..., Run]) -> None:
    run = tagged("--skip-tags", "verdict")
    sound(run)
    assert run.verdict is None
    assert run.summary[1] == "NO VERDICT: judgement was skipped"
    assert run.triage["tiers"]["status"] == "complete"
    assert run.outcome["status"] == "incomplete"


def test_a_judgement_that_breaks_is_an_error_and_the_evidence_is_there(tagged: Callable[..., Run]) -> None:
    """A row of the operator's own that is none."""
    run = tagged("-e", json.dumps({"cabalmail_findings": [{"id": "own.broken"}]}), "--tags", "tier_bounces")
    assert run.status != 0
    assert run.outcome["status"] == "error"
    assert "own.broken" in run.outcome["error"]
    assert run.triage["tiers"]["status"] == "complete"


def test_without_report_nothing_is_written(tagged: Callable[..., Run]) -> None:
    run = tagged("--skip-tags", "report")
    assert run.status == 0, run.output
    assert not list(run.report_dir.rglob("*.json"))


# -- exit status -------------------------------------------------------------------------------------------------------


def test_fail_on_critical_without_a_critical_finding(triage: Callable[..., Run]) -> None:
    run = triage("quiet", "-e", "triage_fail_on=critical")
    sound(run)
    assert run.outcome["severity"] == "info"
    assert run.outcome["status"] == "ok"


# -- where it is started -----------------------------------------------------------------------------------------------


def test_started_from_another_folder_with_the_project_s_configuration(
    triage: Callable[..., Run], sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.load("quiet")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = ansible_playbook(
        tmp_path / "reports",
        str(REPO / "triage.yml"),
        "--tags",
        "tier_bounces",
        env=sandbox.environment(),
        cwd=elsewhere,
    )
    sound(run)
    assert run.triage["tiers"]["status"] == "complete"
    assert list(elsewhere.iterdir()) == []


def test_make_from_another_folder(tmp_path: Path) -> None:
    own = Sandbox(tmp_path / "sandbox")
    environment = {name: value for name, value in own.environment().items() if name != "ANSIBLE_CONFIG"}
    done = subprocess.run(
        [
            *("make", "-s", "-f", str(REPO / "Makefile"), "triage", "SCENARIO=quiet"),
            f"ARGS=--tags tier_bounces -e report_dir={tmp_path}/reports",
        ],
        cwd=tmp_path,
        env={**environment, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Report: {tmp_path}/reports/sandbox/" in done.stdout
    assert not (own.state / "state.json").exists(), "the sandbox is still up"


@pytest.fixture
def world_writable(tmp_path: Path) -> Path:
    """A copy of the project in a folder where everybody may write: Ansible passes over its ansible.cfg."""
    folder = tmp_path / "checkout"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        check=True,
    )
    for name in files.stdout.decode().split("\0"):
        source = REPO / name
        if name and source.is_file() and not name.startswith(("tests/", "sandbox/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    folder.chmod(0o777)
    return folder


def test_a_world_writable_checkout_says_what_to_do_and_then_works(
    playbook: Callable[..., Run], sandbox: Sandbox, world_writable: Path
) -> None:
    sandbox.load("quiet")
    environment = {name: value for name, value in sandbox.environment().items() if name != "ANSIBLE_CONFIG"}
    run = playbook("triage.yml", env=environment, cwd=world_writable)
    assert run.status != 0
    assert run.outcome == {}
    advice = f"Run: export ANSIBLE_CONFIG={world_writable}/ansible.cfg"
    assert advice in run.output
    advised = {**environment, "ANSIBLE_CONFIG": f"{world_writable}/ansible.cfg"}
    sound(playbook("triage.yml", "--tags", "tier_bounces", env=advised, cwd=world_writable))


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paged(sandbox: Sandbox) -> dict[str, Any]:
    """The page of the loaded scenario."""
    sandbox.load("smtp-out-provider-block")
    return dict(json.loads((sandbox.state / "alert.json").read_text()))


@pytest.mark.parametrize("form", ["text", "mapping", "file", "the sandbox's own"])
def test_a_page_in_any_form(form: str, triage: Callable[..., Run], paged: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "page.json"
    file.write_text(json.dumps(paged))
    given: dict[str, Any] = {"text": json.dumps(paged), "mapping": paged, "file": str(file)}
    extra = tmp_path / "extra.json"
    extra.write_text(json.dumps({"triage_payload": given[form]} if form in given else {}))
    run = triage(None, "-e", f"@{extra}", "--tags", "tier_bounces")
    sound(run)
    alert, page = run.triage["alert"], paged["alerts"][0]
    assert (alert["source"], alert["state"], alert["fingerprint"]) == ("payload", "firing", page["fingerprint"])
    fired = datetime.fromisoformat(page["startsAt"])
    window = {name: datetime.fromisoformat(alert["window"][name]) for name in ("start", "end", "fired_at")}
    assert abs(window["fired_at"] - fired) < timedelta(seconds=1)
    assert abs(fired - window["start"] - timedelta(minutes=48)) < timedelta(seconds=1)
    assert window["end"] > fired
    assert run.triage["tiers"]["by_tier"]["smtp-out"]["bounces"]["peak"]["lines"] > 15


def test_no_page_is_a_look_at_the_last_48_minutes(triage: Callable[..., Run], paged: dict[str, Any]) -> None:
    before = datetime.now().astimezone() - timedelta(seconds=1)
    run = triage(None, "-e", "triage_payload=", "--tags", "tier_bounces")
    sound(run)
    alert = run.triage["alert"]
    assert (alert["source"], alert["state"], alert["window"]["fired_at"]) == ("none", None, None)
    start, end = (datetime.fromisoformat(alert["window"][name]) for name in ("start", "end"))
    assert before < end
    assert end - start == timedelta(minutes=48)


def test_a_window_of_one_s_own(triage: Callable[..., Run], paged: dict[str, Any]) -> None:
    fired = datetime.fromisoformat(paged["alerts"][0]["startsAt"])
    start, end = (f"{fired - timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%SZ}" for minutes in (300, 240))
    run = triage(None, "-e", f"triage_start={start}", "-e", f"triage_end={end}", "--tags", "tier_bounces")
    sound(run)
    assert (run.triage["alert"]["window"]["start"], run.triage["alert"]["window"]["end"]) == (start, end)
    assert run.triage["tiers"]["by_tier"]["smtp-out"]["bounces"]["lines"] == 0


# -- the sandbox's own input -------------------------------------------------------------------------------------------


def test_a_broken_scenario_ends_in_one_sentence_before_anything_starts(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(SCENARIOS / "quiet", folder)
    declared = yaml.safe_load((folder / "scenario.yml").read_text())
    declared["tiers"]["imap"]["log_levle"] = 9
    (folder / "scenario.yml").write_text(yaml.safe_dump(declared))
    own = Sandbox(tmp_path / "sandbox")
    done = subprocess.run(
        [
            *(str(BIN / "python"), "-m", "sandbox", "run", "--scenario", str(folder), "--"),
            *("ansible-playbook", "triage.yml", "-e", f"report_dir={tmp_path}/reports"),
        ],
        cwd=REPO,
        env=own.environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=RUN_SECONDS,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert "log_levle" in sentence
    assert str(folder / "scenario.yml") in sentence
    assert not (tmp_path / "reports").exists()
