# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parser and the counting, in lines a second on one core, over the corpus with other ids and people each time."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from module_utils.cabalmail.privacy import Masker
from module_utils.maillog.aggregate import TierAggregator
from module_utils.maillog.parser import Parser
from module_utils.maillog.reasons import Classifier
from module_utils.maillog.records import Delivery, Rejection

from . import corpus
from .timing import Options, Row, Usage, side_by_side, table, timed

DATA = Path(__file__).parents[1] / "data"
_CODE = re.compile(r"dsn=([245]\.\d+\.\d+)")
_WINDOW = 2400.0


def rules() -> dict[str, Any]:
    """The tables that the action plugin hands to the module."""
    names = {"reason_rules": "reasons.yml", "providers": "providers.yml", "enhanced_codes": "enhanced_codes.yml"}
    return {option: yaml.safe_load((DATA / name).read_text(encoding="utf-8")) for option, name in names.items()}


def aggregator(tables: dict[str, Any], start: float) -> TierAggregator:
    """A new aggregator of smtp-out, with nothing in its caches."""
    classifier = Classifier(tables["reason_rules"], tables["providers"], tables["enhanced_codes"])
    first = int(start * 1000)
    return TierAggregator(
        "smtp-out", "/ecs/cabal-smtp-out", classifier, Masker(bytes(32)), first, first + int(_WINDOW * 1000)
    )


def measure(options: Options) -> list[Row]:
    """One row a stage."""
    start = time.time() - _WINDOW
    events = list(corpus.lines(corpus.templates(), options.lines, start, _WINDOW))
    tables = rules()

    def parsed() -> Usage:
        counts = aggregator(tables, start)
        return timed(lambda: _parse(events, counts))

    def counted() -> Usage:
        counts = aggregator(tables, start)
        return timed(lambda: counts.feed(("imap/imap/task", at, line, at + 2000, "") for at, line in events))

    def searched() -> Usage:
        return timed(lambda: Counter(code[1] for _, line in events if (code := _CODE.search(line))))

    found = side_by_side(options.runs, parsed=parsed, counted=counted, searched=searched)
    rates = {name: len(events) / usage.cpu for name, usage in found.items()}
    beside = ("a compiled search for dsn= and a count, a line", f"{rates['searched']:,.0f} lines/s")
    bar = ("150,000 lines/s (goal 300,000)", rates["parsed"] >= 150_000)
    return [
        Row("parser with reasons, one core", f"{rates['parsed']:,.0f} lines/s", *beside, *bar),
        Row("parser, reasons and all counts, one core", f"{rates['counted']:,.0f} lines/s", *beside, "-", None),
    ]


def _parse(events: list[tuple[int, str]], counts: TierAggregator) -> None:
    """Each line to its record, each failure to its reason and the normal form of its answer, as the engine does."""
    parse = Parser().parse
    for at, line in events:
        record = parse(line, at).record
        if type(record) is Delivery:
            if record.outcome in ("bounced", "deferred"):
                counts._failure(record, record.recipients(), counts._failures, counts._reasons)
        elif type(record) is Rejection:
            counts._rejection(record, at, "smtp-out/smtp-out/task", line)


def main() -> None:
    print(table(measure(Options())))


if __name__ == "__main__":
    main()
