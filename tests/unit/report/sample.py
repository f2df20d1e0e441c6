# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small fact ``triage`` that fits the schema."""

from __future__ import annotations

from typing import Any

START, END = "2026-11-24T21:12:00Z", "2026-11-24T22:00:00Z"


def complete(**members: Any) -> dict[str, Any]:
    """A section or part with nothing to explain."""
    return {"status": "complete", "reasons": [], **members}


def unavailable(reason: str) -> dict[str, Any]:
    """A section or part that could not be had."""
    return {"status": "unavailable", "reasons": [reason]}


def tier_log(tier: str, recipients: int = 0, **coverage: Any) -> dict[str, Any]:
    """What one tier logged."""
    return {
        "tier": tier,
        "log_group": f"/ecs/cabal-{tier}",
        "coverage": complete(
            log_group_exists=True,
            events=100,
            mail_lines=90,
            first_event=START,
            last_event=END,
            last_ingested=END,
            max_lag_seconds=1.5,
            blind=False,
            log_level={"value": None, "source": "inferred", "at_least": 9},
        )
        | coverage,
        "deliveries": {"sent": 40, "deferred": 0, "bounced": recipients, "rejected": 0, "expired": 0},
        "bounces": {
            "lines": recipients,
            "bounced_lines": recipients,
            "messages": recipients,
            "recipients": recipients,
            "peak": {"lines": recipients, "start": START, "end": END, "minutes": 30},
            "first": START if recipients else None,
            "last": END if recipients else None,
            "ongoing_lines_last_10m": 0,
            "codes": [
                {"code": "5.7.1", "lines": recipients, "recipients": recipients, "text": "Delivery not authorized"}
            ]
            if recipients
            else [],
            "reasons": [],
            "providers": [],
            "domains": [],
            "sender_domains": [],
            "senders": [],
            "relays": [],
            "replies": [],
            "samples": [],
            "own_host": None,
        },
        "unseen": {"lines": 0, "messages": 0, "recipients": 0, "by_relay": [], "reasons": [], "kinds": {}},
        "rejects": [],
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
        "tasks": {},
    }


def finding(identity: str = "smtp_out.provider_block", severity: str = "critical", **members: Any) -> dict[str, Any]:
    """One finding."""
    return {
        "id": identity,
        "fingerprint": "ab" * 32,
        "tier": "smtp-out",
        "key": "",
        "severity": severity,
        "confidence": "high",
        "confidence_reason": "all of it comes from one provider",
        "fault": "us",
        "recipients": 40,
        "summary": "One provider refuses our mail.",
        "expected": "It accepts it.",
        "found": "It answers 5.7.1.",
        "evidence": ["/tiers/by_tier/smtp-out/bounces/providers"],
        "reproduce": ["aws logs tail /ecs/cabal-smtp-out"],
        "runbook_step": "SendmailBouncedSpike, step 2",
        "next_actions": [{"text": "Ask the provider why.", "command": None}],
        "remedy": None,
        **members,
    }


def triage(*findings: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A whole fact; sections given replace the usual ones."""
    return {
        "schema_version": 1,
        "run": {
            "id": "20261124T220000Z-beef",
            "host": "prod",
            "environment": "prod",
            "started": "2026-11-24T22:00:00.123Z",
            "region": "us-east-1",
            "cluster": "cabal-mail",
            "check_mode": False,
            "deadline_seconds": 90.0,
            "project_version": "0.1.0",
        },
        "alert": complete(
            name="SendmailBouncedSpike",
            source="none",
            state=None,
            starts_at=None,
            fingerprint=None,
            environment="prod",
            window={"start": START, "end": END, "fired_at": None, "minutes": 48.0},
            threshold={"pattern": "dsn=5", "lines": 15, "minutes": 30, "hold_minutes": 15},
            runbook="sendmail-bounced-spike.md",
        ),
        "tiers": complete(
            by_tier={"imap": tier_log("imap"), "smtp-in": tier_log("smtp-in"), "smtp-out": tier_log("smtp-out", 40)}
        ),
        "environment": complete(
            services={},
            queues={},
            parameters=complete(),
            discovery={},
            addresses=complete(),
            network=complete(),
            dmarc=complete(),
        ),
        "containers": complete(tasks=[], unreachable=[]),
        "deliverability": complete(addresses=[], domains=[]),
        "address_map": complete(tasks=[], recipients={}),
        "reconfigure_loop": complete(tasks=[], by_state={}),
        "local_delivery": complete(),
        "findings": list(findings),
        "verdict": findings[0] if findings else None,
        "not_judged": [],
        "remediation": complete(
            requested=False, outcome="not_attempted", finding=None, plan=None, gates=[], stopped_by=["no_remedy"]
        ),
        **sections,
    }
