# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only writer of the fact."""

from __future__ import annotations

import importlib.util
import stat
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ansible import constants as C
from ansible.errors import AnsibleActionFail

PLUGINS = Path(__file__).resolve().parents[3] / "plugins"


def load(path: Path) -> ModuleType:
    """A plugin as a Python module."""
    spec = importlib.util.spec_from_file_location(f"plugin_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


record = load(PLUGINS / "action" / "triage_record.py")


@pytest.fixture(autouse=True)
def _private_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(C, "DEFAULT_LOCAL_TMP", str(tmp_path))


def run(
    triage: Any, host: str = "prod", tags: tuple[str, ...] = ("all",), skip: tuple[str, ...] = (), **args: Any
) -> Any:
    """The facts that a task with these options sets."""
    task = SimpleNamespace(
        args=args, async_val=0, check_mode=False, diff=False, action="triage_record", delegate_to=None
    )
    plugin = record.ActionModule(
        task, SimpleNamespace(_shell=SimpleNamespace(tmpdir="")), SimpleNamespace(), None, None, None
    )
    variables = {
        "inventory_hostname": host,
        "ansible_facts": {"triage": triage} if triage is not None else {},
        "ansible_run_tags": list(tags),
        "ansible_skip_tags": list(skip),
    }
    return plugin.run(task_vars=variables)["ansible_facts"]


def test_run_begins_anew_with_everything_skipped_and_a_private_directory(tmp_path: Path) -> None:
    facts = run({"run": {"id": "old"}, "tiers": {"status": "complete"}}, section="run", value={"id": "new"})
    assert facts["triage"]["run"] == {"id": "new"}
    assert facts["triage"]["tiers"]["status"] == "unavailable"
    work = Path(facts["triage_work_dir"])
    assert work.parent == tmp_path
    assert stat.S_IMODE(work.stat().st_mode) == 0o700


@pytest.mark.parametrize("host", ["../../etc", "a/b", "..", ".hidden", "prod eu", "x" * 50])
def test_no_host_name_leads_out_of_the_temporary_directory(host: str, tmp_path: Path) -> None:
    assert Path(run(None, host=host, section="run", value={})["triage_work_dir"]).parent == tmp_path


def test_a_step_that_is_left_out_reads_otherwise_than_one_that_broke_off() -> None:
    reasons = {
        name: run(None, tags=tags, skip=skip, section="run", value={})["triage"]["tiers"]["reasons"]
        for name, tags, skip in [
            ("runs", ("all",), ()),
            ("chosen", ("tier_bounces",), ()),
            ("another chosen", ("deliverability",), ()),
            ("left out", ("all",), ("tier_bounces",)),
        ]
    }
    assert reasons["another chosen"] == reasons["left out"] == ["skipped"]
    assert reasons["runs"] == reasons["chosen"] != ["skipped"]


def test_sections_are_merged() -> None:
    triage = run(None, section="run", value={})["triage"]
    triage = run(triage, section="/tiers", value={"status": "complete"})["triage"]
    triage = run(triage, sections={"findings": [1], "verdict": 1})["triage"]
    assert (triage["tiers"], triage["findings"], triage["verdict"]) == ({"status": "complete"}, [1], 1)


@pytest.mark.parametrize(
    ("result", "section"),
    [
        ({"tiers": {"status": "partial", "reasons": ["x"]}}, {"status": "partial", "reasons": ["x"]}),
        ({"failed": True, "msg": "Task failed: no\n route"}, {"status": "unavailable", "reasons": ["no route"]}),
        (
            {"failed": True, "msg": "no route", "tiers": {"status": "complete", "reasons": []}},
            {"status": "unavailable", "reasons": ["no route"]},
        ),
        ({"skipped": True}, {"status": "unavailable", "reasons": ["skipped"]}),
        ({}, {"status": "unavailable", "reasons": ["the step failed and did not say why"]}),
    ],
)
def test_a_result_without_evidence_is_unavailable_and_says_why(result: dict[str, Any], section: dict[str, Any]) -> None:
    triage = run(None, section="run", value={})["triage"]
    assert run(triage, section="tiers", result=result)["triage"]["tiers"] == section


@pytest.mark.parametrize(
    "args",
    [
        {"section": "tiers"},
        {"value": 1},
        {"section": "nope", "value": 1},
        {"section": "tiers", "value": 1, "result": {}},
        {"section": "tiers", "sections": {"tiers": 1}},
        {"section": "tiers", "valeu": 1},
    ],
)
def test_wrong_use_is_refused(args: dict[str, Any]) -> None:
    triage = run(None, section="run", value={})["triage"]
    with pytest.raises(AnsibleActionFail, match="triage_record"):
        run(triage, **args)


def test_nothing_is_recorded_before_the_run_began() -> None:
    with pytest.raises(AnsibleActionFail, match="'run' must be recorded first"):
        run(None, section="tiers", value={})


BOOTSTRAP = (
    "ansible.module_utils.__path__ = list("
    "dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))"
)


@pytest.mark.parametrize("path", sorted(PLUGINS.rglob("*.py")), ids=lambda path: path.name)
def test_every_plugin_that_needs_our_packages_finds_them_in_the_same_way(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    needs = any(f"ansible.module_utils.{name}" in text for name in ("cabalmail", "maillog", "mail_dns", "ecs_exec"))
    squeezed = "".join(text.split())
    assert ("".join(BOOTSTRAP.split()) in squeezed) == needs


@pytest.mark.parametrize(
    "said",
    [
        "Timed out after 6 second(s).",
        "Reading the log group /ecs/cabal-imap ended early: its time was up.",
        "DynamoDB: no complete answer within 4.8 s.",
        "The tasks can't be found: ECS did not answer within 5 s.",
        "the session ran out of time before the probe had said everything",
    ],
)
def test_a_step_ended_by_its_deadline_says_which(said: str) -> None:
    triage = run(None, section="run", value={"deadline_seconds": 20.0})["triage"]
    wanted = f"{said.rstrip('.')} (triage_deadline=20 was too short for it, or nothing answered)."
    failed = run(triage, section="tiers", result={"failed": True, "msg": f"Task failed: {said}"})["triage"]
    assert failed["tiers"]["reasons"] == [wanted]
    partial = {"status": "partial", "reasons": [said, "Denied."]}
    again = run(run(triage, section="tiers", value=partial)["triage"], section="tiers", value=partial)["triage"]
    assert again["tiers"]["reasons"] == [wanted, "Denied."]
