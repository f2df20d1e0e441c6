# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The second runbook, asked for by name: its window, threshold and words, without a page."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from .conftest import Run

pytestmark = pytest.mark.playbook


def test_asked_for_by_name_the_other_runbook_is_followed(triage: Callable[..., Run]) -> None:
    asked = '{"triage_alert": "SendmailDeferredSpike", "triage_payload": ""}'
    run = triage("deferred-greylisting", "-e", asked)
    assert run.status == 0, run.output
    assert run.verdict == "deferred.greylisting"
    alert, tiers = run.triage["alert"], run.triage["tiers"]
    assert (alert["source"], alert["runbook"]) == ("extra_vars", "sendmail-deferred-spike.md")
    assert alert["threshold"] == {
        "pattern": "stat=Deferred",
        "metric": "SendmailDeferred",
        "lines": 10,
        "minutes": 10,
        "hold_minutes": 15,
    }
    start, end = (datetime.fromisoformat(alert["window"][name]) for name in ("start", "end"))
    assert end - start == timedelta(minutes=28)
    waiting = tiers["by_tier"]["smtp-out"]["deferrals"]
    assert (waiting["lines"], waiting["messages"], waiting["recipients"]) == (36, 30, 30)
    assert tiers["by_tier"]["smtp-out"]["bounces"]["lines"] == 36, "what the metric of this alert counts"
    assert tiers["change"]["state"] == "ongoing"
    assert tiers["change"]["condition"]["minutes"] == 10
    assert any(line.startswith("Since ") and "going on" in line for line in run.summary)
    assert "| greylisted | remote | 30 |" in run.markdown
    assert "dsn=5" not in run.markdown.split("## Tiers")[1].split("`?` is unknown")[0]
