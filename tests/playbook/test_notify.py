# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Notifications of whole runs: told once, nothing secret in what a run shows or leaves, a dead sink is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.report.sink_servers import Web, http

from .conftest import Run, Sandbox

pytestmark = pytest.mark.playbook

SECRET = "s3cret-of-the-sink"


def test_the_pager_hears_once_and_a_dead_sink_is_one_line(
    triage: Callable[..., Run], sandbox: Sandbox, tmp_path: Path
) -> None:
    web = Web(204)
    with http(web) as url:
        asked = tmp_path / "notify.json"
        dead = {"apprise": "file:" + str(tmp_path / "urls")}
        (tmp_path / "urls").write_text(f"json://127.0.0.1:9/{SECRET}", encoding="utf-8")
        told = {"report_notify": [{"alert_sink": url, "secret": "env:SINK_SECRET"}, dead]}
        asked.write_text(json.dumps(told), encoding="utf-8")
        words = ("-e", f"@{asked}", "-e", "report_url=https://reports.example", "-vvv")
        runs = [triage(name, *words, env={"SINK_SECRET": SECRET}) for name in ("smtp-in-stale-map", None)]
    for run in runs:
        assert run.status == 0, run.output
        assert run.outcome["status"] == "finding"
        assert SECRET not in run.output
        assert all(SECRET not in path.read_text() for path in run.report_dir.rglob("*") if path.is_file())
    assert [[note["outcome"] for note in run.outcome["notifications"]] for run in runs] == [
        ["sent", "failed"],
        ["nothing_new", "failed"],
    ]
    (request,) = web.requests
    assert request["headers"]["x-alert-secret"] == SECRET
    place = f"https://reports.example/sandbox/{runs[0].outcome['run']}/report.html"
    assert request["body"]["runbook_url"] == place
    assert "NOT told" in runs[0].markdown
    assert runs[1].outcome["seen_before"][0]["runs"] == 1
    index = (runs[1].report_dir / "sandbox" / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{run.outcome["run"]}/report.html"' in index for run in runs)


def test_a_secret_on_the_command_line_is_refused(triage: Callable[..., Run], sandbox: Sandbox) -> None:
    sandbox.reset_calls()
    run = triage(None, "-e", f"report_notify=ntfy://{SECRET}@127.0.0.1/a")
    assert run.status == 2
    assert "stands on the command line, where others can read it: give env:NAME or file:PATH" in run.output
    assert SECRET not in run.output
    assert sandbox.operator_calls() == []
