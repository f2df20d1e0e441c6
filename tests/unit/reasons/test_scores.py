# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How often the reason is right: on public replies, on a real sendmail's log, on replies from documentation."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ansible.module_utils.maillog.parser import Parser
from ansible.module_utils.maillog.reasons import Attempt, Classifier
from ansible.module_utils.maillog.records import Delivery, Notice, Rejection

DATA = Path(__file__).resolve().parents[2] / "data"
EVENT_MS = 1_795_000_000_000  # 2026-11, the year of the corpus's year-less prefixes


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


def rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def show(capsys: pytest.CaptureFixture[str], table: str) -> None:
    with capsys.disabled():
        print(f"\n{table}")


def test_public_replies(classifier: Classifier, capsys: pytest.CaptureFixture[str]) -> None:
    score = Score()
    for row in rows(DATA / "bounces" / "replies.tsv"):
        attempt = Attempt(
            code=row["smtp_code"] or None,
            enhanced=row["enhanced_code"] or None,
            reply=row["reply"],
            stat="User unknown",
        )
        score.add(row["our_reason"], row["also"].split(","), classifier.classify(attempt).id, row["reply"])
    show(capsys, score.table("public replies"))
    assert score.fair_share >= 0.95
    assert score.mean_over_reasons >= 0.90


def test_replies_in_other_words(classifier: Classifier, capsys: pytest.CaptureFixture[str]) -> None:
    """Labelled before they were run; the README beside the file says what the rules made of them at first sight."""
    score = Score()
    for row in rows(DATA / "replies_extra.tsv"):
        reason = classifier.classify(Attempt(reply=row["reply"]))
        score.add(row["our_reason"], row["also"].split(","), reason.id, row["reply"])
    show(capsys, score.table("replies in other words"))
    assert score.fair_share >= 0.95
    assert score.mean_over_reasons >= 0.90


def attempt_of(line: str) -> Attempt | None:
    """The failure that one line of the log reports, as the parser reads it."""
    record = Parser().parse(line, EVENT_MS).record
    if isinstance(record, Delivery):
        return Attempt(
            enhanced=record.dsn, reply=record.reply, stat=record.stat, relay=record.relay, mailer=record.mailer
        )
    if isinstance(record, Rejection):
        has_code = record.reply[:3].isdecimal()
        return Attempt(reply=record.reply if has_code else None, stat="" if has_code else record.reply)
    return Attempt(stat=record.text) if isinstance(record, Notice) else None


def test_log_of_a_real_sendmail(classifier: Classifier, capsys: pytest.CaptureFixture[str]) -> None:
    """Every failure that has a line; where that lacks the telling part, what the line alone supports is right too."""
    score = Score()
    logs: dict[str, list[str]] = {}
    faults: set[tuple[str, str, str]] = set()
    for text in (DATA / "maillog" / "truth.jsonl").read_text().splitlines():
        truth = json.loads(text)
        if truth["reason"] is None or truth["line"] is None:
            continue
        file = truth["file"]
        lines = logs.setdefault(file, (DATA / "maillog" / file).read_text(errors="surrogateescape").split("\n"))
        line = lines[truth["line"] - 1]
        attempt = attempt_of(line)
        if attempt is None:
            score.add(truth["reason"], (), "not parsed", line)
            continue
        reason = classifier.classify(attempt)
        wanted = truth["reason"] if truth.get("logged_text_tells", True) else truth["reason_from_log"]
        score.add(wanted, [*truth.get("also", ()), truth["reason"]], reason.id, line)
        if reason.id == truth["reason"] and reason.fault != truth["fault"]:
            faults.add((reason.id, reason.fault, truth["fault"]))
    show(capsys, score.table("log of a real sendmail"))
    assert score.fair_share >= 0.98
    # By the rulings a recipient's own limit is the recipient's fault; one line can't show that only one domain fails in
    # DNS; and a refusal that our own mailertable words reads like anyone's.
    assert faults <= {("rate_limited", "recipient", "us"), ("dns_failure", "us", "remote"), ("policy", "remote", "us")}
