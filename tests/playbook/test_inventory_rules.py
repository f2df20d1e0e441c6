# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator writes into the inventory, and nowhere else, decides: a reason rule, a provider, a finding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import REPO, Run

pytestmark = pytest.mark.playbook

OWN = {
    "cabalmail_providers": [{"name": "Redmond", "mx": ["outlook.com"]}],
    "cabalmail_reason_rules": [
        {
            "id": "our-s3140",
            "reason": "content",
            "text": ["s3140"],
            "examples": [{"reply": "550 5.7.1 on list S3140", "enhanced": "5.7.1"}],
        }
    ],
}


def test_a_rule_and_a_provider_of_the_inventory_change_the_verdict(triage: Callable[..., Run], tmp_path: Path) -> None:
    own = tmp_path / "own.yml"
    own.write_text(json.dumps({"all": {"hosts": {"sandbox": OWN}}}), encoding="utf-8")
    run = triage("smtp-out-provider-block", "-i", str(REPO / "inventory" / "sandbox"), "-i", str(own))
    assert run.status == 0, run.output
    bounces = run.triage["tiers"]["by_tier"]["smtp-out"]["bounces"]
    assert bounces["providers"][0]["provider"] == "Redmond"
    assert bounces["reasons"][0]["reason"] == "content"
    assert run.verdict == "smtp_out.content"
    assert "smtp_out.provider_block" not in run.findings
