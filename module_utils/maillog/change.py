# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a spike began, whether it goes on, and whether the runbook's condition holds: from the metric's lines alone.

The onset is a change point. Of all spans of minutes, the one is taken whose rate stands out most from the minutes
outside it by the likelihood ratio of two Poisson rates (the scan statistic of Kulldorff, 1997,
https://doi.org/10.1080/03610929708831995), and only when a steady rate would hardly ever show such a span.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from ..cabalmail.time import format_rfc3339

# A steady rate shows a span that stands out as much once in this many windows at most.
_ODDS = 1000
# The scan looks at every pair of bins; more bins than this are put together first, and the edges refined afterwards.
_MAX_BINS = 240
# What ended less than this before the window's end goes on: retries come in bursts.
ONGOING_SECONDS = 600


class Rule(NamedTuple):
    """The runbook's condition: more than `lines` in `minutes`, held for `hold_minutes`."""

    lines: int
    minutes: int
    hold_minutes: int


def change(seconds: Mapping[int, int], start_ms: int, end_ms: int, rule: Rule, fired_ms: int | None) -> dict[str, Any]:
    """The section `change` of the tiers' facts.

    Args:
        seconds: lines of the metric by second since 1970, of all tiers together, since the metric has no dimension.
        start_ms, end_ms: the window that was read, milliseconds since 1970.
        rule: the runbook's condition.
        fired_ms: when the alert fired; None without a page.

    Returns:
        `state` (`none`: no line; `steady`: nothing stands out; `ongoing`, `ended`), `onset` and `ended` (minutes, null
        where nothing stands out), `before` and `since` (lines, minutes, lines a minute), `condition` (see `condition`)
        and `deployed_rule` (see `deployed_rule`).
    """
    start, end = start_ms // 1000, max(start_ms // 1000 + 1, -(-end_ms // 1000))
    inside = {second: lines for second, lines in seconds.items() if start <= second < end}
    span = standing_out(inside, start, end)
    latest = max(inside, default=None)
    state = "none" if latest is None else "steady"
    onset = ended = None
    if span is not None and latest is not None:
        onset = max(span[0], start)
        state = "ended" if end - span[1] > ONGOING_SECONDS else "ongoing"
        ended = span[1] if state == "ended" else None
    return {
        "state": state,
        "onset": _time(onset),
        "ended": _time(ended),
        "before": None if onset is None else _rate(inside, start, onset),
        "since": None if onset is None else _rate(inside, onset, ended or end),
        "condition": condition(inside, start, end, rule, None if fired_ms is None else fired_ms // 1000),
        "deployed_rule": deployed_rule(inside, start, end, rule, None if fired_ms is None else fired_ms // 1000),
    }


def standing_out(seconds: Mapping[int, int], start: int, end: int) -> tuple[int, int] | None:
    """First second of the first minute and end of the last one of the span whose rate stands out; None without one."""
    first, last = start // 60, -(-end // 60)
    by_minute = [0] * (last - first)
    for second, lines in seconds.items():
        by_minute[second // 60 - first] += lines
    width = -(-len(by_minute) // _MAX_BINS)
    bins = [sum(by_minute[at : at + width]) for at in range(0, len(by_minute), width)]
    found = _best(bins, range(len(bins)), range(1, len(bins) + 1))
    # As many spans as there are may stand out by chance.
    if found is None or found[0] < math.log(_ODDS * len(bins) * (len(bins) + 1) / 2):
        return None
    _, head, tail = found
    if width > 1:
        count = len(by_minute)
        heads = range(max(0, (head - 1) * width), min(count, (head + 1) * width))
        tails = range(max(1, (tail - 1) * width), min(count, (tail + 1) * width) + 1)
        _, head, tail = _best(by_minute, heads, tails) or (0.0, head * width, min(count, tail * width))
    return (first + head) * 60, (first + tail) * 60


def _best(counts: list[int], heads: range, tails: range) -> tuple[float, int, int] | None:
    """Likelihood ratio, beginning and end of the span that stands out most; the shortest of equals."""
    sums = [0]
    for lines in counts:
        sums.append(sums[-1] + lines)
    total, size = sums[-1], len(counts)
    best: tuple[float, int, int] | None = None
    for head in heads:
        if not counts[head]:
            continue
        for tail in tails:
            # A span that begins or ends with nothing is never the best one.
            if tail <= head or tail - head == size or not counts[tail - 1]:
                continue
            lines, length = sums[tail] - sums[head], tail - head
            if lines * size <= total * length:
                continue
            ratio = _ratio(lines, length, total, size)
            if best is None or (ratio, -length, -head) > (best[0], best[1] - best[2], -best[1]):
                best = (ratio, head, tail)
    return best


def _ratio(lines: int, length: int, total: int, size: int) -> float:
    outside = total - lines
    ratio = lines * math.log(lines * size / (total * length))
    if outside:
        ratio += outside * math.log(outside * size / (total * (size - length)))
    return ratio


def condition(seconds: Mapping[int, int], start: int, end: int, rule: Rule, fired: int | None) -> dict[str, Any]:
    """Whether the runbook's condition holds, counted in lines.

    Returns:
        `lines`, `minutes`, `hold_minutes`; `now`, `when_fired` (null: no page, or the window begins too late to tell);
        `state`: `holds`, `ended` (it held in this window and does no more), `not_met` or `unknown`; `from` and `until`
        of the last time that it held.
    """
    hold = rule.hold_minutes * 60
    # Lines that were read go on to count after the window's end, which is nothing that was seen.
    seen = [(since, min(until, end)) for since, until in over(seconds, rule)]
    spans = [span for span in seen if span[1] - span[0] >= hold]
    now = _held_at(spans, end, start, rule)
    last = spans[-1] if spans else None
    state = {True: "holds", False: "ended" if last else "not_met", None: "unknown"}[now]
    return {
        "lines": rule.lines,
        "minutes": rule.minutes,
        "hold_minutes": rule.hold_minutes,
        "state": state,
        "now": now,
        "when_fired": None if fired is None else _held_at(spans, min(fired, end), start, rule),
        "from": _time(last[0] + hold) if last else None,
        "until": _time(last[1]) if last and not now else None,
    }


def over(seconds: Mapping[int, int], rule: Rule) -> list[tuple[int, int]]:
    """Spans of time in which the lines of the `minutes` before are more than `lines`; exact to the second."""
    steps: dict[int, int] = {}
    for second, lines in seconds.items():
        steps[second] = steps.get(second, 0) + lines
        steps[second + rule.minutes * 60] = steps.get(second + rule.minutes * 60, 0) - lines
    spans, count, since = [], 0, None
    for second in sorted(steps):
        count += steps[second]
        if count > rule.lines and since is None:
            since = second
        elif count <= rule.lines and since is not None:
            spans.append((since, second))
            since = None
    return spans


def _held_at(spans: list[tuple[int, int]], at: int, start: int, rule: Rule) -> bool | None:
    hold = rule.hold_minutes * 60
    if any(since + hold <= at <= until for since, until in spans):
        return True
    return False if start <= at - rule.minutes * 60 - hold else None


def deployed_rule(seconds: Mapping[int, int], start: int, end: int, rule: Rule, fired: int | None) -> dict[str, Any]:
    """What `increase()` makes of the exporter's gauges, one a minute: no number of lines.

    PromQL takes each fall of a series for a restart of its counter: `increase()` is the sum of the rises, and after a
    fall of the whole value (https://prometheus.io/docs/prometheus/latest/querying/functions/#increase). Its
    extrapolation to the edges of the window is left out.

    Returns:
        `increase_now`, `increase_when_fired` (null where the window does not reach back), `over_now` and
        `over_when_fired`.
    """
    by_minute: dict[int, int] = {}
    for second, lines in seconds.items():
        by_minute[second // 60] = by_minute.get(second // 60, 0) + lines

    def increase(at: int) -> int | None:
        last = at // 60
        if (last - rule.minutes) * 60 < start - 60:
            return None
        values = [by_minute.get(minute, 0) for minute in range(last - rule.minutes, last)]
        return sum(value - before if value >= before else value for before, value in pairwise(values))

    now = increase(end)
    then = None if fired is None else increase(min(fired, end))
    return {
        "increase_now": now,
        "increase_when_fired": then,
        "over_now": None if now is None else now > rule.lines,
        "over_when_fired": None if then is None else then > rule.lines,
    }


def _rate(seconds: Mapping[int, int], start: int, end: int) -> dict[str, Any]:
    lines = sum(count for second, count in seconds.items() if start <= second < end)
    minutes = max(0.0, (end - start) / 60)
    return {
        "lines": lines,
        "minutes": round(minutes, 1),
        "per_minute": round(lines / minutes, 2) if minutes else None,
    }


def _time(seconds: int | None) -> str | None:
    return None if seconds is None else format_rfc3339(seconds * 1000)
