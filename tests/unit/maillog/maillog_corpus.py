# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The committed corpus of real sendmail lines, with the truth of each delivery."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.cabalmail.privacy import Masker
from ansible.module_utils.maillog.aggregate import Event, TierAggregator
from ansible.module_utils.maillog.parser import Parser
from ansible.module_utils.maillog.reasons import Classifier

REPO = Path(__file__).resolve().parents[3]
FOLDER = REPO / "tests" / "data" / "maillog"
NOW = 1_796_000_000_000
MASKER = Masker(b"a fixed key for the tests only...")


@lru_cache
def data(name: str) -> Any:
    return yaml.load((REPO / "data" / name).read_text(), Loader=yaml.CSafeLoader)


@lru_cache
def classifier() -> Classifier:
    return Classifier(data("reasons.yml"), data("providers.yml"), data("enhanced_codes.yml"))


@lru_cache
def counts() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((FOLDER / "counts.json").read_text())
    return found


@lru_cache
def truth() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in (FOLDER / "truth.jsonl").read_text().splitlines():
        row = json.loads(line)
        found[row["file"]].append(row)
    return found


@lru_cache
def lines(name: str) -> list[str]:
    return (FOLDER / name).read_text(errors="surrogateescape").split("\n")


def tier_of(name: str) -> str:
    return name.split(".")[0]


@lru_cache
def events(name: str) -> list[Event]:
    """The file's lines as events of one task; a line without a time has that of the line before."""
    parser, when, found = Parser(), NOW, []
    tier = tier_of(name)
    for number, line in enumerate(lines(name)):
        if line:
            when = parser.parse(line, when).stamp or when
            found.append(Event(f"{tier}/{tier}/0123456789abcdef", when, line, when + 1500, f"{when:014d}{number:042d}"))
    return found


def window_of(found: list[Event]) -> tuple[int, int]:
    times = [event.timestamp for event in found] or [NOW]
    return min(times), max(times)


def aggregate(found: list[Event], tier: str, window: tuple[int, int] | None = None, **options: Any) -> TierAggregator:
    start, end = window or window_of(found)
    aggregator = TierAggregator(tier, f"/ecs/cabal-{tier}", classifier(), MASKER, start, end, **options)
    aggregator.feed(found)
    return aggregator


@lru_cache
def section(name: str) -> dict[str, Any]:
    return aggregate(events(name), tier_of(name)).result("complete", [])
