# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn a file of log lines into events on the real clock.

The time at the head of a line is read in whichever form its program writes it, and rewritten in the same form after the
shift. A line without one takes the time of the line before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

_HEAD = re.compile(
    r"(?P<iso>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?P<fraction>\.\d{1,6})?(?P<zone>\+00:00|Z))"
    r"|(?P<plain>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?P<comma>,\d{3})?"
    r"|(?P<bsd>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d)"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def events(lines: Iterator[str], declared_now: datetime, now: datetime) -> Iterator[tuple[int, str]]:
    """Yield ``(epoch milliseconds, line)`` of each line, shifted by ``now - declared_now``.

    Lines before the first that has a time take that one's.
    """
    shift = now - declared_now
    waiting: list[str] = []
    last: int | None = None
    for line in lines:
        stamp = _stamp(line, declared_now, shift)
        if stamp is None:
            if last is None:
                waiting.append(line)
            else:
                yield last, line
            continue
        last, text = stamp
        for earlier in waiting:
            yield last, earlier
        waiting.clear()
        yield last, text


def _stamp(line: str, declared_now: datetime, shift: timedelta) -> tuple[int, str] | None:
    match = _HEAD.match(line)
    if match is None:
        return None
    rest = line[match.end() :]
    if match["iso"]:
        moment = datetime.fromisoformat(match["iso"]) + shift
        if not shift:
            return _millis(moment), line
        digits = len(match["fraction"] or ".") - 1
        fraction = f".{moment.microsecond:06d}"[: digits + 1] if digits else ""
        return _millis(moment), f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}{match['zone']}{rest}"
    if match["plain"]:
        milliseconds = int((match["comma"] or ",0")[1:])
        moment = datetime.fromisoformat(match["plain"]).replace(tzinfo=UTC) + shift
        moment += timedelta(milliseconds=milliseconds)
        comma = f",{moment.microsecond // 1000:03d}" if match["comma"] else ""
        return _millis(moment), f"{moment:%Y-%m-%d %H:%M:%S}{comma}{rest}"
    moment = _bsd(match["bsd"], declared_now) + shift
    return _millis(moment), f"{bsd_time(moment)}{rest}"


def _bsd(text: str, near: datetime) -> datetime:
    """The traditional form has no year: take the one that lies nearest before ``near``."""
    month, day = _MONTHS.index(text[:3]) + 1, int(text[4:6])
    hour, minute, second = (int(part) for part in text[7:].split(":"))
    moment = datetime(near.year, month, day, hour, minute, second, tzinfo=UTC)
    return moment.replace(year=near.year - 1) if moment > near + timedelta(days=1) else moment


def bsd_time(moment: datetime) -> str:
    """``Nov  4 17:37:22``."""
    return f"{_MONTHS[moment.month - 1]} {moment.day:2d} {moment:%H:%M:%S}"


def _millis(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
