# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Log lines in any number: those of tests/data/maillog again and again, each time with other ids, times and people."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "tests" / "data" / "maillog"
_PREFIX = re.compile(r"(?:\d{4}-\d\d-\d\dT\S+|[A-Z][a-z]{2} [ \d]\d [\d:]{8}) (\S+ [\w-]+)\[\d+\]: ")
_QUEUE_ID = re.compile(r"(?<!\w)6A[OPT]\w{11}(?!\w)", re.ASCII)
_LOCAL_PART = re.compile(r"(?<=<)[^<>@\s\"%]+(?=@[\w.-]+>)")
# How many people there are: some get the same answer again and again.
_PEOPLE = 20_000


def templates(tier: str = "*", containing: str = "") -> list[str]:
    """The corpus's lines of a tier (all tiers by default) that hold ``containing``, as formats of ``lines``."""
    paths = sorted(CORPUS.glob(f"{tier}.*.maillog"))
    found = (line for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return [_template(line) for line in found if containing in line]


def _template(line: str) -> str:
    text = line.replace("%", "%%")
    person = _LOCAL_PART.search(text)
    if person is not None:
        text = text.replace(f"<{person.group()}@", "<%(person)s@")
    return _PREFIX.sub(r"%(time)s \1[%(pid)d]: ", _QUEUE_ID.sub("%(id)s", text), count=1)


def lines(sources: list[str], count: int, start: float, seconds: float) -> Iterator[tuple[int, str]]:
    """Yield ``count`` pairs of time (milliseconds) and line, spread over ``seconds`` from ``start`` on (epoch)."""
    for number, template in zip(range(count), itertools.cycle(sources), strict=False):
        at = start + seconds * number / count
        values = {
            "time": f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S.%f}+00:00",
            "pid": number % 30_000 + 100,
            "id": f"6AT{number:011x}",
            "person": f"u{number % _PEOPLE}",
        }
        yield int(at * 1000), template % values
