# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What sendmail's ``mailq`` prints: what waits, since when, and why. The only reasons there are at LogLevel 2.

``mailq -v`` shows 100 characters of a reason where ``mailq`` shows 60 (printqueue in sendmail's queue.c), and the
reason of each recipient; both forms are read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from .reasons import Attempt, Reason

MOST_TEXTS = 10

Judge = Callable[[Attempt], Reason]

_QUEUED = re.compile(
    r"\s*[0-9A-Za-z]{8,20}[*X?-]?\s+(?:\d+|\([^)]*\))\s+(?:\w{3} |-?\d+[+ ])(?P<time>\w{3} +\d+ \d\d:\d\d)"
)
# After the body type, if any; "(---user---)" is the controlling user of a recipient.
_REASON = re.compile(r"\s+(?:[0-9A-Z]{1,10}\s+)?\((?!---)(?P<text>.+)$")
_TOTAL = re.compile(r"Total requests: (\d+)")
_HOST_AT_END = re.compile(r"\b(?:by|with|to|from) \[?([\w-]+(?:\.[\w-]+)+)\.?\]?\.?$")
# What a queue says of itself and not of a far end: the warning after four hours hides the reason.
_NO_REASON = re.compile(r"(?:Warning: |Deferred$|queued$)")


class Queue:
    """One listing, as far as it can be read.

    Attributes:
        messages: how many wait; None where nothing tells.
        complete: whether the listing has its end.
        oldest: when the oldest of them came, epoch seconds by the container's clock; None where not known.
        texts: messages by reason in sendmail's words, addresses in clear.
    """

    def __init__(self, text: str, clock: int | None) -> None:
        """Read what ``mailq`` printed; `clock` is the container's, epoch seconds, since the listing has no year."""
        times: list[int] = []
        said: list[set[str]] = []
        for line in text.splitlines():
            if queued := _QUEUED.match(line):
                said.append(set())
                at = _moment(queued["time"], clock)
                if at is not None:
                    times.append(at)
            elif said and (reason := _REASON.match(line)):
                said[-1].add(reason["text"].rstrip().removesuffix(")"))
        total = _TOTAL.findall(text)
        empty = "is empty" in text and not total
        self.complete = empty or bool(total)
        # mailq of several queue groups prints several totals; the list is what is left when it was cut before them.
        self.messages = sum(map(int, total)) if total else 0 if empty else len(said) or None
        self.oldest = min(times, default=None)
        self.texts = Counter(text for texts in said for text in texts)

    def reasons(self, judge: Judge | None, mask: Callable[[str], str]) -> dict[str, Any]:
        """``reasons`` (the most frequent texts, masked) and ``why`` (messages by reason id; None without a judge)."""
        masked: Counter[tuple[str, str | None, str | None]] = Counter()
        why: Counter[tuple[str, str]] = Counter()
        for text, count in self.texts.items():
            found = None if judge is None else judge(_attempt(text))
            masked[mask(text), found and found.id, found and found.fault] += count
            if found is not None and not _NO_REASON.match(text):
                why[found.id, found.fault] += count
        return {
            "reasons": [
                {"text": text, "count": count, "reason": reason, "fault": fault}
                for (text, reason, fault), count in masked.most_common(MOST_TEXTS)
            ],
            "why": None
            if judge is None
            else [
                {"reason": reason, "fault": fault, "messages": count} for (reason, fault), count in why.most_common()
            ],
        }


def _attempt(text: str) -> Attempt:
    host = _HOST_AT_END.search(text)
    return Attempt(stat=text, relay=host and host[1])


def _moment(text: str, clock: int | None) -> int | None:
    """``Nov 24 21:00`` (no year, the container's time, which is UTC) as epoch seconds."""
    if clock is None:
        return None
    now = datetime.fromtimestamp(clock, UTC)
    for year in (now.year, now.year - 1):
        try:
            at = datetime.strptime(f"{year} {text}", "%Y %b %d %H:%M").replace(tzinfo=UTC)
        except ValueError:
            continue
        if at <= now + timedelta(days=1):
            return int(at.timestamp())
    return None
