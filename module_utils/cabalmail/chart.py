# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the marks of the report's timeline stand: pure geometry, drawn by ``roles/report/templates/timeline.svg.j2``.

Lengths are units of the picture's view box. All panels share one time axis; the same data is laid out once for a wide
page and once for a phone, since text in a picture that is scaled down can't be read.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from .time import parse_rfc3339

Facts = Mapping[str, Any]

MINUTE = timedelta(minutes=1)
# More colours than these can't be told apart; what is left over is drawn as one.
MOST_REASONS = 6
OTHERS = "others"
UNSEEN = "not seen by the alert"
#: Steps of the time axis, minutes.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 240, 480, 720, 1440)
_LEFT, _RIGHT, _PANEL, _GAP, _AXIS, _LANE = 34, 10, 64, 26, 20, 34
# A window of days has more minutes than a picture has dots.
MOST_BARS = 360


@dataclass(frozen=True, slots=True)
class Bar:
    """One coloured piece of a column."""

    x: float
    y: float
    width: float
    height: float
    colour: int
    title: str


@dataclass(frozen=True, slots=True)
class Dot:
    """One value of the deployed rule's own measure."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One tier, or the sliding count of all."""

    title: str
    top: float
    height: float
    ceiling: int
    bars: Sequence[Bar]
    line: str = ""
    threshold: float | None = None
    dots: Sequence[Dot] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment on the axis: a number in the lane on top, or a named line through all panels."""

    x: float
    label: str
    kind: str
    anchor: str = "middle"


@dataclass(frozen=True, slots=True)
class Chart:
    """The whole picture."""

    width: int
    height: float
    left: int
    panels: Sequence[Panel]
    ticks: Sequence[Mark]
    events: Sequence[Mark]
    moments: Sequence[Mark]


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn, before it is laid out."""

    start: datetime
    end: datetime
    tiers: Mapping[str, Mapping[datetime, Counter[str]]]
    lines: Counter[datetime]
    reasons: Sequence[tuple[str, int]]
    threshold: int | None
    minutes: int
    events: Sequence[datetime]
    moments: Sequence[tuple[datetime, str, str]]
    rule: Sequence[tuple[datetime, float]]

    def colour(self, reason: str) -> int:
        """Number of the reason's colour; the last one is of all that have none of their own."""
        names = [name for name, _count in self.reasons]
        return names.index(reason) if reason in names else MOST_REASONS


def series(triage: Facts, changes: Sequence[Facts], deferred: bool) -> Series | None:
    """What the timeline shows; None when there is no window or no log was read.

    Args:
        triage: the fact.
        changes: the environment's dated changes, each with ``time``.
        deferred: whether deferrals are the alert's matter, else bounces.
    """
    window = (triage.get("alert") or {}).get("window")
    logs = (triage.get("tiers") or {}).get("by_tier")
    if not window or not logs:
        return None
    start, end = parse_rfc3339(window["start"]), parse_rfc3339(window["end"])
    tiers = {tier: dict(_minutes(log, deferred, start, end)) for tier, log in logs.items()}
    lines: Counter[datetime] = Counter()
    for log in logs.values():
        for row in log.get("timeline") or []:
            lines[parse_rfc3339(row["minute"])] += int(row.get("deferred" if deferred else "bounced_lines") or 0)
    total: Counter[str] = Counter()
    for minutes in tiers.values():
        for counts in minutes.values():
            total.update(counts)
    threshold = (triage.get("alert") or {}).get("threshold") or {}
    return Series(
        start=start,
        end=end,
        tiers={tier: minutes for tier, minutes in tiers.items() if minutes},
        lines=lines,
        reasons=_ranked(total),
        threshold=threshold.get("lines"),
        minutes=int(threshold.get("minutes") or 30),
        events=[parse_rfc3339(change["time"]) for change in changes],
        moments=list(_moments(triage, window)),
        rule=list(_rule(triage, window)),
    )


def _minutes(log: Facts, deferred: bool, start: datetime, end: datetime) -> Iterator[tuple[datetime, Counter[str]]]:
    """Recipients by reason of each minute that has some."""
    for row in log.get("timeline") or []:
        counts: Counter[str] = Counter()
        known = row.get("deferral_reasons" if deferred else "reasons") or {}
        counts.update({str(reason): int(count) for reason, count in known.items()})
        total = int(row.get("deferred" if deferred else "bounced_recipients") or 0)
        if total > counts.total():
            counts[OTHERS if known else "deferred" if deferred else "bounced"] += total - counts.total()
        if not deferred and row.get("unseen"):
            counts[UNSEEN] += int(row["unseen"])
        minute = parse_rfc3339(row["minute"])
        if counts.total() and start - MINUTE < minute <= end:
            yield minute, counts


def _ranked(total: Counter[str]) -> list[tuple[str, int]]:
    named = [(reason, count) for reason, count in total.most_common() if reason != OTHERS]
    left = total[OTHERS] + sum(count for _reason, count in named[MOST_REASONS:])
    return [*named[:MOST_REASONS], *([(OTHERS, left)] if left else [])]


def _moments(triage: Facts, window: Facts) -> Iterator[tuple[datetime, str, str]]:
    change = (triage.get("tiers") or {}).get("change") or {}
    for when, label, kind in (
        (change.get("onset"), "onset", "onset"),
        (change.get("ended"), "ended", "onset"),
        (window.get("fired_at"), "page", "page"),
    ):
        if when:
            yield parse_rfc3339(when), label, kind


def _rule(triage: Facts, window: Facts) -> Iterator[tuple[datetime, float]]:
    """What the deployed rule makes of the same lines, when it fired and at the end of the window."""
    rule = ((triage.get("tiers") or {}).get("change") or {}).get("deployed_rule") or {}
    for when, value in (
        (window.get("fired_at"), rule.get("increase_when_fired")),
        (window["end"], rule.get("increase_now")),
    ):
        if when and value is not None:
            yield parse_rfc3339(when), float(value)


def layout(data: Series, width: int) -> Chart:
    """The picture, ``width`` units wide."""
    span = max((data.end - data.start).total_seconds(), 60.0)
    room = width - _LEFT - _RIGHT

    def place(when: datetime) -> float:
        share = (when - data.start).total_seconds() / span
        return round(_LEFT + room * min(1.0, max(0.0, share)), 1)

    top = _LANE + 14.0
    panels = []
    for tier, minutes in data.tiers.items():
        panels.append(_tier_panel(data, tier, minutes, top, place, room / span))
        top += _PANEL + _GAP
    if data.threshold is not None:
        panels.append(_sliding_panel(data, top, place))
        top += _PANEL + _GAP
    return Chart(
        width=width,
        height=top - _GAP + _AXIS,
        left=_LEFT,
        panels=panels,
        ticks=[Mark(place(when), f"{when:%H:%M}", "tick") for when in _ticks(data.start, data.end, width)],
        events=_lane(data.events, place),
        moments=[
            Mark(place(when), label, kind, "end" if place(when) > width - 40 else "middle")
            for when, label, kind in data.moments
        ],
    )


def _tier_panel(
    data: Series, tier: str, minutes: Mapping[datetime, Counter[str]], top: float, place: Any, scale: float
) -> Panel:
    step = timedelta(minutes=max(1, -(-int((data.end - data.start) / MINUTE) // MOST_BARS)))
    columns: dict[datetime, Counter[str]] = {}
    for minute, counts in minutes.items():
        first = data.start + (minute - data.start) // step * step if step > MINUTE else minute
        columns.setdefault(first, Counter()).update(counts)
    ceiling = max(counts.total() for counts in columns.values())
    width = max(1.5, round(step.total_seconds() * scale - 0.6, 1))
    bars = []
    for minute, counts in sorted(columns.items()):
        base = top + _PANEL
        for reason, count in sorted(counts.items(), key=lambda entry: data.colour(entry[0])):
            height = round(_PANEL * count / ceiling, 2)
            base -= height
            title = f"{minute:%H:%M} {tier}: {count} x {reason}"
            bars.append(Bar(place(minute), round(base, 2), width, height, data.colour(reason), title))
    return Panel(f"{tier}: recipients a minute", top, _PANEL, ceiling, bars)


def _sliding_panel(data: Series, top: float, place: Any) -> Panel:
    """Lines of the metric in the rule's window up to each minute, all tiers together, as the runbook means them."""
    threshold = data.threshold or 0
    counts = list(sliding(data.lines, data.start, data.end, data.minutes))
    values = [*(count for _when, count in counts), *(value for _when, value in data.rule)]
    ceiling = max([threshold + 1, *(math.ceil(value) for value in values)])

    def level(count: float) -> float:
        return round(top + _PANEL * (1 - count / ceiling), 2)

    path = " ".join(f"{place(when)},{level(count)}" for when, count in counts)
    title = f"Lines in the last {data.minutes} minutes, all tiers (threshold {threshold})"
    dots = [Dot(place(when), level(value), f"{when:%H:%M} the rule saw {value:g}") for when, value in data.rule]
    return Panel(title, top, _PANEL, ceiling, [], path, level(threshold), dots)


def sliding(
    lines: Mapping[datetime, int], start: datetime, end: datetime, minutes: int
) -> Iterator[tuple[datetime, int]]:
    """At each minute of the window, how many lines there were in the ``minutes`` before; exact to the minute."""
    moments = sorted(lines)
    totals = [0]
    for moment in moments:
        totals.append(totals[-1] + lines[moment])
    first = start.replace(second=0, microsecond=0)
    whole = int((end - first) / MINUTE)
    step = max(1, -(-whole // MOST_BARS))
    for number in range(whole + 1):
        when = first + number * MINUTE
        if number % step == 0 or number == whole:
            before, until = bisect_left(moments, when - minutes * MINUTE), bisect_left(moments, when)
            yield when, totals[until] - totals[before]


def _ticks(start: datetime, end: datetime, width: int) -> Iterator[datetime]:
    whole = (end - start) / MINUTE
    most = max(2, width // 90)
    step = next((step for step in _STEPS if whole / step <= most), _STEPS[-1])
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
    number = -(-int((start - midnight) / MINUTE) // step)
    while (when := midnight + timedelta(minutes=number * step)) <= end:
        if when >= start:
            yield when
        number += 1


def _lane(events: Iterable[datetime], place: Any) -> list[Mark]:
    """Numbers of the events; those that would stand on each other are joined."""
    marks: list[Mark] = []
    for number, when in enumerate(events, 1):
        x = place(when)
        if marks and x - marks[-1].x < 16:
            first = marks[-1].label.partition("-")[0]
            marks[-1] = Mark(marks[-1].x, f"{first}-{number}", "event")
        else:
            marks.append(Mark(x, str(number), "event"))
    return marks
