# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole run that reads the logs with Insights comes to what the run with FilterLogEvents comes to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .conftest import Run, Sandbox, operator_writes

pytestmark = pytest.mark.playbook


def test_both_engines_come_to_the_same_verdict(triage: Callable[..., Run], sandbox: Sandbox) -> None:
    plain = triage("smtp-out-provider-block", "-e", "triage_exec=false")
    queried = triage(None, "-e", "triage_exec=false", "-e", "tier_bounces_engine=insights")
    chosen = queried.triage["tiers"]["stats"]
    assert (plain.triage["tiers"]["stats"]["engine"], chosen["engine"]) == ("filter", "insights")
    assert plain.triage["tiers"]["stats"]["scanned_bytes"] is None
    assert chosen["scanned_bytes"] > 1000
    assert queried.verdict == plain.verdict == "smtp_out.provider_block"
    for tier, log in plain.triage["tiers"]["by_tier"].items():
        other = queried.triage["tiers"]["by_tier"][tier]
        # Masks are of a run, so what holds masked addresses is left out.
        for part in ("codes", "reasons", "providers", "domains", "recipients", "messages", "lines", "own_host"):
            assert other["bounces"][part] == log["bounces"][part], (tier, part)
        for part in ("deliveries", "unseen", "timeline", "apart"):
            assert other[part] == log[part], (tier, part)
    assert {"logs.StartQuery", "logs.GetQueryResults"} <= {call["operation"] for call in sandbox.calls()}
    # To start a query is the one call whose name does not say that it only reads.
    assert set(operator_writes(sandbox.calls())) == {"logs.StartQuery"}
