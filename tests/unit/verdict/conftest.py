# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A healthy deployment's evidence, which each test breaks in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[3]
START, END = "2026-11-24T21:00:00Z", "2026-11-24T21:48:00Z"
TASKS = {"imap": "a" * 32, "smtp-in": "b" * 32, "smtp-out": "c" * 32}


def healthy_log(tier: str) -> dict[str, Any]:
    return {
        "tier": tier,
        "log_group": f"/ecs/cabal-{tier}",
        "coverage": {
            "status": "complete",
            "reasons": [],
            "events": 400,
            "last_event": "2026-11-24T21:47:50Z",
            "blind": False,
            "log_level": {"value": 9, "source": "container", "at_least": 9},
        },
        "deliveries": {"sent": 120, "deferred": 1, "bounced": 0, "rejected": 0, "expired": 0},
        "bounces": {
            "lines": 0,
            "bounced_lines": 0,
            "messages": 0,
            "recipients": 0,
            "ongoing_lines_last_10m": 0,
            "codes": [],
            "reasons": [],
            "providers": [],
            "domains": [],
            "senders": [],
            "replies": [],
            "own_host": {"recipients": 0, "relay": None, "reasons": {}, "codes": {}},
        },
        "unseen": {
            "lines": 0,
            "messages": 0,
            "recipients": 0,
            "by_relay": [],
            "reasons": [],
            "kinds": {"reject_553": 0, "user_unknown": 0, "other_reject": 0},
        },
        "deferrals": {
            "lines": 0,
            "messages": 0,
            "recipients": 0,
            "peak": {"lines": 0},
            "codes": [],
            "reasons": [],
            "relays": [],
            "providers": [],
            "replies": [],
            "own_host": {"lines": 0, "recipients": 0, "reasons": {}},
        },
        "expired": {"messages": 0, "recipients": 0, "causes": []},
        "apart": {"domain": "sinkhole.test", "metric_lines": 0, "sent": 0, "deferred": 0, "bounced": 0},
        "timeline": [],
    }


def complete(**more: Any) -> dict[str, Any]:
    return {"status": "complete", "reasons": [], **more}


@pytest.fixture
def triage() -> dict[str, Any]:
    """The fact ``triage`` of a deployment in which nothing is wrong."""
    return {
        "schema_version": 1,
        "run": {"id": "r", "host": "prod", "environment": "prod", "region": "us-east-1", "cluster": "cabal-mail"},
        "alert": complete(
            name="SendmailBouncedSpike",
            source="payload",
            state="firing",
            starts_at="2026-11-24T21:48:00Z",
            window={"start": START, "end": END, "fired_at": END, "minutes": 48},
            threshold={"pattern": "dsn=5", "lines": 15, "minutes": 30, "hold_minutes": 15},
        ),
        "tiers": complete(peak={"lines": 0}, by_tier={tier: healthy_log(tier) for tier in TASKS}),
        "environment": complete(
            services={
                tier: complete(
                    service=f"cabal-{tier}",
                    desired=1,
                    running=1,
                    pending=0,
                    deployments=[{"id": "d", "status": "PRIMARY", "rollout_state": "COMPLETED"}],
                )
                for tier in TASKS
            },
            discovery={"imap": complete(instances=["10.0.2.45"])},
            parameters=complete(maintenance_imap={"exists": False, "active": False}),
            network=complete(nat_instances=[{"id": "i-1", "state": "running"}], nat_gateways=[]),
        ),
        "containers": complete(
            tasks=[{"tier": tier, "task": task, "outcome": "completed"} for tier, task in TASKS.items()],
            unreachable=[],
        ),
        "deliverability": complete(
            addresses=[{"ip": "198.51.100.125", "zone": "us-east-1a", "status": "ok"}],
            domains=[],
            dns=complete(),
            blocklists=complete(lists=[], results=[]),
            opendkim=complete(
                signed={},
                no_match={},
                no_match_ours={},
                key_errors=0,
                foreign=[],
                running={"c" * 32: True},
                tables=complete(missing=[]),
            ),
            dmarc=complete(ours={"messages": 0, "fail": 0}, domains=[], age_hours=None),
            concentration=complete(),
        ),
        "address_map": complete(
            tasks=[
                {
                    "tier": tier,
                    "task": TASKS[tier],
                    "map": "/etc/mail/access",
                    "missing": 0,
                    "surplus": 0,
                    "wrong_user": 0,
                    "stale": False,
                    "age_seconds": 200,
                }
                for tier in ("imap", "smtp-in")
            ],
            recipients=complete(checked=0, by_state={}),
            bad_rows={"count": 0, "kinds": {}, "examples": []},
            stale_tasks={},
            tasks_of_tier=dict.fromkeys(TASKS, 1),
        ),
        "reconfigure_loop": complete(
            tasks=[
                {"tier": tier, "task": task, "state": "healthy", "sources": ["exec", "logs"]}
                for tier, task in TASKS.items()
            ],
            by_state={"healthy": list(TASKS.values())},
            queues={},
            heartbeat={"exists": True, "missed": False, "tasks_with_old_value": [], "silent_tasks": []},
        ),
        "local_delivery": complete(missing_users=[], unwritable=[], disk_full=[], stray_mail=[], pin_sentinel=[]),
    }


@pytest.fixture(scope="session")
def table() -> list[dict[str, Any]]:
    """The shipped table of findings."""
    rows: list[dict[str, Any]] = yaml.safe_load((REPO / "data" / "findings.yml").read_text())
    return rows


@pytest.fixture(scope="session")
def options() -> dict[str, Any]:
    """The role's own thresholds, as it ships them; what it takes from the inventory by hand."""
    defaults = yaml.safe_load((REPO / "roles" / "verdict" / "defaults" / "main.yml").read_text(encoding="utf-8"))
    thresholds = {name: value for name, value in defaults["verdict_options"].items() if not isinstance(value, str)}
    assert thresholds
    return {**thresholds, "control_domain": "control.example"}
