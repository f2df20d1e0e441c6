# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules, providers and texts of codes of the folder ``data``, for whoever runs on the controller.

A module is sent with Python files only: it is given these tables as options.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .rules import merge_providers, merge_rules

DATA = Path(__file__).resolve().parents[2] / "data"

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(name: str) -> dict[str, Any]:
    """A data file of the project: YAML, or JSON, which is YAML as well."""
    with (DATA / name).open(encoding="utf-8") as stream:
        loaded = yaml.load(stream, Loader=_LOADER)  # noqa: S506 - a safe loader, the C one where there is one
    return dict(loaded)


def tables(own_rules: list[dict[str, Any]], own_providers: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The three tables that a classifier takes, the inventory's entries first.

    Raises:
        RuleError: an entry of the inventory can't be used; its sentence says which one.
    """
    rules, providers = load("reasons.yml"), load("providers.yml")
    if own_providers:
        providers = merge_providers(providers, own_providers, load("schema/providers-1.json"))
    if own_rules:
        rules = merge_rules(rules, own_rules, load("schema/reasons-1.json"), providers)
    # The examples are for whoever checks the rules; the module does without.
    slim = [{name: value for name, value in rule.items() if name != "examples"} for rule in rules["rules"]]
    return {
        "reason_rules": {**rules, "rules": slim},
        "providers": providers,
        "enhanced_codes": load("enhanced_codes.yml"),
    }
