# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page as Alertmanager posts it: webhook body, version 4, with the labels of release 1.3.5's rules."""

from __future__ import annotations

import hashlib
from typing import Any

from .model import Alert, Scenario

_RUNBOOKS = "https://github.com/cabalmail/cabal-infra/blob/main/docs/operations/runbooks"
_RULES = {
    "SendmailBouncedSpike": (
        "critical",
        "sendmail-bounced-spike.md",
        "Sendmail is bouncing mail",
        "More than 15 bounced lines in 30 minutes.",
    ),
    "SendmailDeferredSpike": (
        "warning",
        "sendmail-deferred-spike.md",
        "Sendmail is deferring mail",
        "More than 10 deferred lines in 10 minutes.",
    ),
    "heartbeat-ecs-reconfigure": (
        "critical",
        "heartbeat-ecs-reconfigure.md",
        "Missed heartbeat: ecs-reconfigure",
        "No task has pinged for 60 minutes.",
    ),
}


def payload(scenario: Scenario, alert: Alert) -> dict[str, Any]:
    """The webhook body for a scenario's page."""
    severity, runbook, summary, description = _RULES[alert.name]
    labels = {
        "alertname": alert.name,
        "cluster": "cabalmail",
        "environment": scenario.environment,
        "severity": severity,
    }
    annotations = {"description": description, "runbook_url": f"{_RUNBOOKS}/{runbook}", "summary": summary}
    started = alert.fired_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    ended = "0001-01-01T00:00:00Z"
    if alert.state == "resolved":
        ended = scenario.now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    one = {
        "status": alert.state,
        "labels": labels,
        "annotations": annotations,
        "startsAt": started,
        "endsAt": ended,
        "generatorURL": "http://prometheus:9090/graph",
        "fingerprint": hashlib.sha256(repr(sorted(labels.items())).encode()).hexdigest()[:16],
    }
    return {
        "version": "4",
        "groupKey": f'{{}}:{{alertname="{alert.name}", severity="{severity}"}}',
        "truncatedAlerts": 0,
        "status": alert.state,
        "receiver": "alert-sink",
        "groupLabels": {"alertname": alert.name, "severity": severity},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "http://alertmanager:9093",
        "alerts": [one],
    }
