# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was done when it is not plain to see: nothing that may have acted is called not attempted."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.cabalmail.recovery import conclude

FILE = Path(__file__).resolve().parents[3] / "plugins" / "filter" / "remediation.py"
ASKED = "2026-11-24T22:00:00Z"


@pytest.fixture(scope="module")
def filters() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("remediation_filters", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.FilterModule().filters())


@pytest.mark.parametrize("result", [{}, {"failed": True, "changed": False, "msg": "MODULE FAILURE", "rc": -9}])
def test_a_module_that_died_may_have_acted(result: dict[str, Any], filters: dict[str, Any]) -> None:
    action = filters["remediation_done"](result, ASKED)
    assert (action["outcome"], action["changed"], action["asked_at"]) == ("unknown", True, ASKED)
    assert conclude(action, []) == "not_recovered"


def test_what_a_module_said_is_kept(filters: dict[str, Any]) -> None:
    said = {"outcome": "refused", "changed": False, "msg": "Denied."}
    assert filters["remediation_done"](said, ASKED) == said


def session(outcome: str = "completed", rc: int | None = 0, **more: Any) -> dict[str, Any]:
    return {"results": [{"outcome": outcome, "rc": rc, "reason": "why", **more}]}


@pytest.mark.parametrize(
    ("results", "outcome", "changed", "concluded"),
    [
        ([session()], "steady", True, "not_recovered"),
        ([session(rc=3)], "nothing_to_do", False, "not_attempted"),
        ([session(rc=3), session()], "unknown", True, "not_recovered"),
        ([session("unreachable", None)], "refused", False, "not_attempted"),
        ([session("session_broke", None)], "unknown", True, "not_recovered"),
        ([session("timed_out", None)], "unknown", True, "not_recovered"),
        # It was ended, and supervisord started no new one.
        ([session(rc=1)], "unknown", True, "not_recovered"),
        # The module itself died.
        ([{"failed": True, "changed": False, "msg": "MODULE FAILURE"}], "unknown", True, "not_recovered"),
        ([], "nothing_to_do", False, "not_attempted"),
    ],
)
def test_sessions_that_ended_loops(
    results: list[Any], outcome: str, changed: bool, concluded: str, filters: dict[str, Any]
) -> None:
    action = filters["remediation_ended_loops"](results, ASKED)
    assert (action["outcome"], action["changed"]) == (outcome, changed)
    assert conclude(action, []) == concluded
