# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shipped rules, providers, codes and their schemas, and the classifier on them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.maillog.reasons import Classifier

DATA = Path(__file__).resolve().parents[3] / "data"
NAMES = ("reasons", "providers", "enhanced_codes")
LOADED = {name: yaml.safe_load((DATA / f"{name}.yml").read_text()) for name in NAMES}


@pytest.fixture
def rules() -> dict[str, Any]:
    """A copy that a test may change."""
    return copy.deepcopy(LOADED["reasons"])


@pytest.fixture
def providers() -> dict[str, Any]:
    """A copy that a test may change."""
    return copy.deepcopy(LOADED["providers"])


@pytest.fixture(scope="session")
def codes() -> dict[str, Any]:
    return LOADED["enhanced_codes"]


@pytest.fixture(scope="session")
def rule_schema() -> dict[str, Any]:
    return json.loads((DATA / "schema" / "reasons-1.json").read_text())


@pytest.fixture(scope="session")
def provider_schema() -> dict[str, Any]:
    return json.loads((DATA / "schema" / "providers-1.json").read_text())


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    return Classifier(LOADED["reasons"], LOADED["providers"], LOADED["enhanced_codes"])
