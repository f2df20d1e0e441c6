# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every scenario, through the real ansible-playbook, says what its `expect` says, and shows nothing that is private."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ansible.module_utils.cabalmail.reconfigure_loop import LoopLimits, reconfigure_loop

from sandbox.scenario import secrets_of
from tests.browser import Chromium

from .conftest import REPO, Run, Sandbox, operator_writes

pytestmark = pytest.mark.playbook

SCENARIOS = REPO / "sandbox" / "scenarios"
SCHEMA = json.loads((REPO / "data" / "schema" / "triage-1.json").read_text(encoding="utf-8"))
ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
# A message id has the form of an address, but names nobody.
MESSAGE_ID = re.compile(r"msgid=\S+")
# How links, quoted-printable, HTML and JSON write the "@".
ENCODED_AT = re.compile(r"%(?:25)?40|=40(?=[A-Za-z])|&#(?:64|x40);|\\u0040", re.IGNORECASE)
# What ExecuteCommand gives as the token of a session: 96 random bytes.
TOKEN = re.compile(r"(?<![\w+/=-])[\w-]{128}(?![\w+/=-])")


def expected(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((folder / "scenario.yml").read_text(encoding="utf-8"))["expect"])


def differences(run: Run, wanted: dict[str, Any]) -> list[str]:
    """In what the verdict is not the expected one."""
    verdict = run.triage["verdict"] or {}
    found = {
        "verdict": verdict.get("id"),
        "severity": verdict.get("severity"),
        "confidence": verdict.get("confidence"),
        "remedy": (verdict.get("remedy") or {}).get("kind"),
    }
    said = [f"{key}: {found[key]}, not {wanted[key]}" for key in found if key in wanted and found[key] != wanted[key]]
    said += [f"missing: {finding}" for finding in wanted.get("findings", []) if finding not in run.findings]
    said += [f"must not stand: {finding}" for finding in wanted.get("absent", []) if finding in run.findings]
    return said


def everything(run: Run) -> Iterator[tuple[str, str]]:
    """Name and text of all that outlives the run."""
    yield "stdout", run.stdout
    yield "stderr", run.stderr
    for path in sorted(run.report_dir.rglob("*")):
        if path.is_file():
            yield path.name, path.read_text(encoding="utf-8")


def addresses(folder: Path) -> set[str]:
    """Every address in a scenario's table, maps and log lines."""
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in folder.iterdir())
    return set(written_out(MESSAGE_ID.sub("", text)))


def written_out(text: str) -> list[str]:
    """The addresses in a text, plain and encoded ones; of a link's value (``id=jane``) also what follows the sign."""
    whole = [found.lower() for found in ADDRESS.findall(ENCODED_AT.sub("@", text))]
    return [*whole, *(found.rpartition("=")[2] for found in whole if "=" in found)]


def shown(run: Run, folder: Path, secret_key: str) -> list[str]:
    """What of a scenario's private things stands in the open."""
    named = {f"secret-{name}" for tier in ("imap", "smtp-in", "smtp-out") for name in secrets_of(tier)}
    private = {*named, "hc-ping.invalid", secret_key}
    known = addresses(folder)
    assert len(known) > 10
    said = []
    for name, text in everything(run):
        said += [f"{name}: {secret}" for secret in private if secret in text]
        said += [f"{name}: {found}" for found in written_out(text) if found in known]
        said += [f"{name}: a token" for _found in TOKEN.findall(text)]
    return said


def not_found_without_exec(run: Run) -> list[str]:
    """Stuck loops that their own log lines alone, with no container looked into, do not show as what they are."""
    facts = {**run.triage, "containers": {"status": "unavailable", "reasons": ["skipped"], "tasks": []}}
    alone = {row["task"]: row for row in reconfigure_loop(facts, LoopLimits())["tasks"]}
    return [
        f"{row['tier']} {row['task']}: {row['state']}, by its log {seen['state']} ({seen['why']})"
        for row in run.triage["reconfigure_loop"]["tasks"]
        if row["stuck"]
        and (seen := alone[row["task"]])
        and (not seen["stuck"] or row["state"] not in (seen["state"], *seen["could_be"]))
    ]


def check(run: Run, folder: Path, sandbox: Sandbox) -> None:
    """All that holds for every scenario."""
    assert run.status == 0, run.output
    assert differences(run, expected(folder)) == [], run.summary
    jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(run.triage)
    assert run.triage["valid"] is True
    assert run.outcome["verdict"] == run.triage["verdict"]["id"]
    assert all(finding["next_actions"] for finding in run.triage["findings"])
    assert shown(run, folder, "sandbox-secret-that-opens-nothing") == []
    assert operator_writes(sandbox.calls()) == []
    assert not_found_without_exec(run) == []


@pytest.mark.parametrize("name", sorted(path.parent.name for path in SCENARIOS.glob("*/scenario.yml")))
def test_scenario(
    name: str, triage: Callable[..., Run], sandbox: Sandbox, tmp_path: Path, chromium: Chromium | None
) -> None:
    private = tmp_path / "private"
    run = triage(name, env={"ANSIBLE_LOCAL_TEMP": str(private)})
    check(run, SCENARIOS / name, sandbox)
    page = next(run.report_dir.glob("*/latest")) / "report.html"
    assert page.stat().st_size < 300_000
    # Where there is no browser, the tests of the page alone say so.
    assert chromium is None or chromium.faults(page) == []
    assert [path for path in private.rglob("*") if path.is_file()] == [], "clear addresses outlive the run"


def test_a_folder_outside_the_repository(triage: Callable[..., Run], sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "an incident of mine"
    shutil.copytree(SCENARIOS / "smtp-out-provider-block", folder)
    check(triage(folder), folder, sandbox)
    assert json.loads((sandbox.state / "state.json").read_text())["folder"] == str(folder)


def test_addresses_in_clear_are_shown_when_asked_for_and_only_to_people(triage: Callable[..., Run]) -> None:
    run = triage("smtp-out-provider-block", "-e", "report_show_addresses=true")
    known = addresses(SCENARIOS / "smtp-out-provider-block")
    said = [line.partition(": ")[2] for line in run.stdout.splitlines() if line.startswith("Failed recipient: ")]
    assert 0 < len(said) <= 20
    assert set(said) <= known
    assert all(f"`{address}`" in run.markdown for address in said)
    for document in (run.triage, run.outcome):
        assert not known & set(written_out(json.dumps(document)))
