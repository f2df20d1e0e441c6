# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What changed, and what a change of all services at once says."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.cabalmail.environment.changes import changes

TIERS = ("imap", "smtp-in", "smtp-out")


def services(began: dict[str, str], registered: str | None = "2026-11-01T00:00:00Z") -> dict[str, dict[str, Any]]:
    return {
        tier: {
            "task_definition": f"{tier}:7",
            "registered_at": registered,
            "image": "x:sha-1",
            "deployments": [{"created_at": began[tier], "rollout_state": "COMPLETED", "task_definition": f"{tier}:7"}],
        }
        for tier in TIERS
    }


@pytest.mark.parametrize(
    ("minutes", "registered", "told"),
    [
        ((0, 0, 0), "2026-11-01T00:00:00Z", True),
        ((0, 0, 9), "2026-11-01T00:00:00Z", False),
        ((0, 0, 0), "2026-11-24T19:55:00Z", False),
        ((0, 0, 0), None, False),
    ],
)
def test_a_sign_up_rolls_all_services_with_the_definitions_they_had(
    minutes: tuple[int, int, int], registered: str | None, told: bool
) -> None:
    """Who redeploys looks alike but for task definition and time; a definition of unknown age proves nothing."""
    began = {tier: f"2026-11-24T20:{minute:02d}:00Z" for tier, minute in zip(TIERS, minutes, strict=True)}
    rows = [row for row in changes(services(began, registered), {}) if row["kind"] == "redeploy"]
    assert bool(rows) is told
    assert all("assign_osid" in row["what"] and row["tier"] is None for row in rows)


def test_preflight_tasks_are_set_apart_and_steady_states_left_out() -> None:
    service = {
        "tasks": [{"id": "a", "started_by": "deploy-preflight", "started_at": "2026-11-24T20:00:00Z"}],
        "events": [
            {"time": "2026-11-24T20:01:00Z", "message": "(service cabal-imap) has reached a steady state."},
            {"time": "2026-11-24T20:02:00Z", "message": "(service cabal-imap) was unable to place a task."},
        ],
    }
    rows = changes({"imap": service}, {})
    assert [row["kind"] for row in rows] == ["preflight", "event"]
    assert "unable to place" in rows[1]["what"]


def test_nothing_known_is_no_change() -> None:
    assert changes({}, {"heartbeat": None, "maintenance_imap": None}) == []
