# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scores of the classifier on labelled data, with the confusions: shared by the tests of this folder."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Score:
    """Right answers by reason. ``fair`` also takes what the label allows besides (an ambiguous answer)."""

    total: int = 0
    strict: int = 0
    fair: int = 0
    by_reason: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    confusions: Counter[tuple[str, str]] = field(default_factory=Counter)
    misses: list[str] = field(default_factory=list)

    def add(self, wanted: str, also: Iterable[str], got: str, what: str) -> None:
        """One labelled answer and what the classifier made of it."""
        fair = got == wanted or got in also
        self.total += 1
        self.strict += got == wanted
        self.fair += fair
        self.by_reason[wanted][0] += fair
        self.by_reason[wanted][1] += 1
        if got != wanted:
            self.confusions[wanted, got] += 1
        if not fair:
            self.misses.append(f"{wanted} -> {got}: {what}")

    @property
    def fair_share(self) -> float:
        return self.fair / self.total

    @property
    def mean_over_reasons(self) -> float:
        return sum(right / count for right, count in self.by_reason.values()) / len(self.by_reason)

    def table(self, title: str) -> str:
        """The scores, each confusion and each miss, for people."""
        lines = [
            f"{title}: {self.total} answers, strict {self.strict / self.total:.1%}, fair {self.fair_share:.1%}, "
            f"mean over reasons {self.mean_over_reasons:.1%}"
        ]
        lines += [f"  {right:4d}/{count:<4d} {reason}" for reason, (right, count) in sorted(self.by_reason.items())]
        lines += [f"  {wanted} taken for {got}: {count}" for (wanted, got), count in self.confusions.most_common()]
        return "\n".join([*lines, *(f"  MISS {miss}" for miss in self.misses)])
