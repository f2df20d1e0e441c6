# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each gate alone stops a restart, and stops it as well when it can't be evaluated."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from ansible.module_utils.cabalmail.remediation import GATES, plan

NOW = datetime(2026, 11, 24, 22, 0, tzinfo=UTC)
TASK = "b" * 32
Facts = dict[str, Any]


def complete(**more: Any) -> Facts:
    return {"status": "complete", "reasons": [], **more}


@pytest.fixture
def triage() -> Facts:
    """A proven stuck loop on smtp-in, with nothing in the way of a restart."""
    service = complete(
        service="cabal-smtp-in",
        desired=1,
        running=1,
        secrets=[{"name": "PING", "exists": True}],
        deployments=[{"id": "d1", "rollout_state": "COMPLETED", "created_at": "2026-11-20T10:00:00Z"}],
    )
    remedy = {"kind": "redeploy_service", "service": "cabal-smtp-in", "tasks": [TASK]}
    return {
        "run": {"region": "us-east-1", "cluster": "cabal-mail", "started": "2026-11-24T21:59:30Z"},
        "tiers": complete(),
        "environment": complete(
            services={"smtp-in": service, "imap": {**service, "service": "cabal-imap"}},
            parameters=complete(maintenance_imap={"active": False}),
            addresses=complete(odd_rows=[]),
        ),
        "containers": complete(tasks=[{"tier": "imap", "queue": {"messages": 0}}]),
        "address_map": complete(),
        "reconfigure_loop": complete(),
        "local_delivery": complete(stray_mail=[]),
        "findings": [{"id": "smtp_in.stale_map", "confidence": "high", "remedy": remedy}],
    }


OPTIONS: Facts = {"requested": True, "allowed_services": ["cabal-smtp-in"]}


def test_an_open_way_is_planned_and_still_not_taken(triage: Facts) -> None:
    decided = plan(triage, OPTIONS, NOW)
    assert decided["stopped_by"] == []
    assert decided["outcome"] == "not_attempted"
    assert shlex.split(decided["plan"]["commands"][0])[-1] == "--force-new-deployment"


def imap(triage: Facts) -> None:
    triage["findings"][0]["remedy"]["service"] = "cabal-imap"


def second_deployment(triage: Facts) -> None:
    service(triage)["deployments"].append({"id": "d2", "created_at": "2026-11-24T21:30:00Z"})


def service(triage: Facts) -> Facts:
    found: Facts = triage["environment"]["services"]["smtp-in"]
    return found


CLOSED: list[tuple[str, Callable[[Facts], Any], Facts]] = [
    ("low_confidence", lambda t: t["findings"][0].update(confidence="medium"), {}),
    ("evidence_incomplete", lambda t: t["address_map"].update(status="partial"), {}),
    ("evidence_stale", lambda t: t["run"].update(started="2026-11-24T21:50:00Z"), {}),
    ("evidence_stale", lambda t: t["run"].update(started=None), {}),
    ("service_not_allowed", lambda t: None, {"allowed_services": []}),
    ("service_not_allowed", imap, {"allowed_services": ["cabal-imap"]}),
    ("deployment_in_progress", lambda t: service(t)["deployments"][0].update(rollout_state="IN_PROGRESS"), {}),
    ("quiesced", lambda t: service(t).update(desired=0), {}),
    ("recently_remediated", lambda t: service(t)["deployments"][0].update(created_at="2026-11-24T21:30:00Z"), {}),
    ("recently_remediated", second_deployment, {}),
    ("recently_remediated", lambda t: service(t).update(deployments=[]), {}),
    ("secret_missing", lambda t: service(t)["secrets"][0].update(exists=False), {}),
    ("secret_missing", lambda t: service(t)["secrets"][0].update(exists=None), {}),
    ("maintenance_active", lambda t: t["environment"]["parameters"]["maintenance_imap"].update(active=True), {}),
    ("maintenance_active", lambda t: t["environment"]["parameters"].update(status="unavailable"), {}),
    (
        "row_breaks_makemap",
        lambda t: t["environment"]["addresses"].update(odd_rows=[{"address": "x", "breaks_makemap": True}]),
        {},
    ),
    ("row_breaks_makemap", lambda t: t["environment"]["addresses"].update(status="unavailable"), {}),
]


@pytest.mark.parametrize(("name", "change", "options"), CLOSED)
def test_each_gate_alone_stops_it(name: str, change: Callable[[Facts], Any], options: Facts, triage: Facts) -> None:
    change(triage)
    assert plan(triage, {**OPTIONS, **options}, NOW)["stopped_by"] == [name]


@pytest.mark.parametrize("depth", [3, None])
def test_imaps_queue_is_not_thrown_away(depth: int | None, triage: Facts) -> None:
    imap(triage)
    triage["containers"]["tasks"][0]["queue"]["messages"] = depth
    options = {"allowed_services": ["cabal-imap"], "allow_imap": True}
    assert plan(triage, options, NOW)["stopped_by"] == ["queue_would_be_lost"]


def test_an_unread_service_closes_every_gate_that_needs_it(triage: Facts) -> None:
    triage["environment"]["services"]["smtp-in"]["status"] = "unavailable"
    stopped = plan(triage, OPTIONS, NOW)["stopped_by"]
    assert stopped == ["deployment_in_progress", "quiesced", "recently_remediated", "secret_missing"]


def test_no_evidence_at_all_closes_all_but_the_harmless_gates(triage: Facts) -> None:
    bare = {"run": {}, "findings": triage["findings"]}
    assert len(plan(bare, {}, NOW)["stopped_by"]) == len(GATES) - 2


def test_without_a_remedy_nothing_is_planned(triage: Facts) -> None:
    triage["findings"][0]["remedy"] = None
    assert plan(triage, OPTIONS, NOW)["stopped_by"] == ["no_remedy"]


def test_task_names_are_quoted(triage: Facts) -> None:
    triage["findings"][0]["remedy"].update(kind="restart_task", tasks=["x; rm -rf /"])
    command = plan(triage, OPTIONS, NOW)["plan"]["commands"][0]
    assert "x; rm -rf /" in shlex.split(command)
