# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts the tiers' pages on several cores, a process for each tier.

A tier's counts live in one process, so they need no merging. The processes are forked before any thread is started; the
reading threads stay in the parent and wait for the network, the children parse.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import queue
import sys
import threading
from collections import Counter
from multiprocessing.connection import Connection
from operator import itemgetter
from typing import Any, NamedTuple

from .aggregate import TierAggregator
from .providers import load_suffixes

# Pages that wait for a busy process; each is up to 1 MB.
_BACKLOG = 1
_FIELDS = itemgetter("logStreamName", "timestamp", "message", "ingestionTime", "eventId")
_UNREADABLE = "What AWS answered could not be counted: it is not as documented, or the counting process was ended."


class Tally(NamedTuple):
    """What is known of one tier: its section, its failed recipients in clear, the metric's lines by second."""

    section: dict[str, Any]
    failed: list[dict[str, Any]]
    metric_seconds: Counter[int]


class CrewError(Exception):
    """A counting process ended without its result."""


def feed_page(aggregator: TierAggregator, body: bytes) -> None:
    """Count the events of a FilterLogEvents answer. AWS promises none of an event's members; one without text is none.

    Raises:
        ValueError: the answer is not JSON.
    """
    events = json.loads(body).get("events") or []
    try:
        rows = list(map(_FIELDS, events))
    except KeyError:
        rows = [
            (
                item.get("logStreamName", ""),
                item.get("timestamp"),
                item.get("message"),
                item.get("ingestionTime"),
                item.get("eventId", ""),
            )
            for item in events
        ]
    aggregator.feed(rows)


class Crew:
    """The aggregators of all tiers and the processes they are in.

    Args:
        aggregators: by tier; after the crew is made they belong to it.
        processes: how many to use at most. By default one a tier, up to eight, where there is more than one core: the
            system shares the cores out better than tiers can be dealt. With one, the work is done here.
    """

    def __init__(self, aggregators: dict[str, TierAggregator], processes: int | None = None) -> None:
        if processes is None:
            processes = 8 if sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1 else 1
        count = min(processes, len(aggregators))
        self._here = aggregators if count < 2 else {}
        self._unreadable: set[str] = set()
        self._hands: list[_Hand] = []
        self._of: dict[str, _Hand] = {}
        if count > 1:
            load_suffixes()
            # What is there already stays shared with the children: a collection would touch, and so copy, all of it.
            gc.freeze()
            tiers = list(aggregators)
            for number in range(count):
                share = {tier: aggregators[tier] for tier in tiers[number::count]}
                hand = _Hand(share)
                self._hands.append(hand)
                self._of.update(dict.fromkeys(share, hand))

    def start(self) -> None:
        """Start the threads that hand pages over; the processes run since the crew was made."""
        for hand in self._hands:
            hand.start()

    def feed(self, tier: str, body: bytes) -> None:
        """Count a page, or hand it to the process of its tier; waits when that is behind."""
        if tier in self._here:
            try:
                feed_page(self._here[tier], body)
            except ValueError:
                self._unreadable.add(tier)
        else:
            self._of[tier].give(tier, body)

    def finish(self, outcomes: dict[str, tuple[str, list[str]]]) -> dict[str, Tally | CrewError]:
        """The tallies of the tiers in `outcomes` (status and reasons by tier); the crew is over then."""
        found: dict[str, Tally | CrewError] = {}
        for tier, aggregator in self._here.items():
            if tier in self._unreadable:
                found[tier] = CrewError(_UNREADABLE)
            elif tier in outcomes:
                found[tier] = _tally(aggregator, *outcomes[tier])
        for hand in self._hands:
            found.update(hand.finish(outcomes))
        return found


def _tally(aggregator: TierAggregator, status: str, reasons: list[str]) -> Tally:
    section = aggregator.result(status, reasons)
    return Tally(section, aggregator.failed, aggregator.metric_seconds)


class _Hand:
    """One process, and the thread of the parent that gives it pages."""

    def __init__(self, aggregators: dict[str, TierAggregator]) -> None:
        context = multiprocessing.get_context("fork")
        self._tiers = list(aggregators)
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_count, args=(far, self._pipe, aggregators), daemon=True)
        self._process.start()
        far.close()
        self._pages: queue.Queue[tuple[str, bytes] | None] = queue.Queue(maxsize=_BACKLOG)
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._gone = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def give(self, tier: str, body: bytes) -> None:
        while not self._gone.is_set():
            try:
                self._pages.put((tier, body), timeout=0.2)
            except queue.Full:
                continue
            return

    def _send(self) -> None:
        try:
            while (page := self._pages.get()) is not None:
                tier, body = page
                self._pipe.send_bytes(bytes([self._tiers.index(tier)]))
                self._pipe.send_bytes(body)
                del page, body
        except OSError:
            self._gone.set()

    def finish(self, outcomes: dict[str, tuple[str, list[str]]]) -> dict[str, Tally | CrewError]:
        mine = {tier: outcomes[tier] for tier in self._tiers if tier in outcomes}
        try:
            while not self._gone.is_set():
                try:
                    self._pages.put(None, timeout=0.2)
                except queue.Full:
                    continue
                break
            self._thread.join()
            self._pipe.send_bytes(b"")
            self._pipe.send(mine)
            found: dict[str, Tally | CrewError] = dict(self._pipe.recv())
        except (OSError, EOFError):
            found = {tier: CrewError(_UNREADABLE) for tier in mine}
        self._pipe.close()
        self._process.join(1)
        return found


def _count(pipe: Connection, near: Connection, aggregators: dict[str, TierAggregator]) -> None:
    """What the process does: count pages, each after the number of its tier, until an empty number; then answer."""
    # The parent's end: while it is open here, the end of the parent would go unnoticed.
    near.close()
    # What counting leaves has no cycles, and looking for them takes a tenth of the time.
    gc.disable()
    order = list(aggregators.values())
    try:
        while which := pipe.recv_bytes():
            feed_page(order[which[0]], pipe.recv_bytes())
        outcomes: dict[str, tuple[str, list[str]]] = pipe.recv()
        pipe.send({tier: _tally(aggregators[tier], *outcome) for tier, outcome in outcomes.items()})
    except (OSError, EOFError, ValueError):
        # The parent is gone and nobody is left to tell, or the answer is unreadable and the parent sees this end.
        return
