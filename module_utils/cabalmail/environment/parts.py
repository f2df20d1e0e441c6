# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence that is read in parts, side by side, each of which may fail or hang without harming the others."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


class Part:
    """One part of the evidence: what is known of it so far, and why the rest is not.

    name: how reasons and sections call the part.
    blank: the part's fields while nothing is known (None for unknown numbers, empty lists).
    """

    def __init__(self, name: str, blank: Mapping[str, Any], explain: Callable[[BaseException], str]) -> None:
        self.name = name
        self._explain = explain
        self._lock = threading.Lock()
        self._fields = dict(blank)
        self._known = False
        self._reasons: dict[str, None] = {}

    def put(self, **fields: Any) -> None:
        """Record fields that are now known; the values must not be changed afterwards."""
        with self._lock:
            self._fields.update(fields)
            self._known = True

    def fail(self, reason: str) -> None:
        """Record one sentence that says what could not be known, and why; the part's name is put in front."""
        with self._lock:
            self._reasons[f"{self.name}: {reason}"] = None

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Turn a failure of the block into a reason, so that what follows is still read."""
        try:
            yield
        except Exception as exc:
            self.fail(self._explain(exc))

    def result(self) -> dict[str, Any]:
        """Return the fields with C(status) and C(reasons), as they are now. What was not read is never complete."""
        with self._lock:
            reasons = list(self._reasons)
            if not self._known:
                status = "unavailable"
                reasons = reasons or [f"{self.name}: not read, since what leads to it could not be read."]
            else:
                status = "partial" if reasons else "complete"
            return {"status": status, "reasons": reasons, **copy.deepcopy(self._fields)}


class Runner:
    """Runs jobs in daemon threads until all are done or the deadline is reached; what hangs is left behind.

    seconds: the time all jobs have together.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._end = clock() + seconds
        self._changed = threading.Condition()
        self._running: list[Part] = []

    def start(self, part: Part, job: Callable[[], None]) -> None:
        """Begin a job that fills C(part). Jobs may start others."""
        with self._changed:
            self._running.append(part)
        threading.Thread(target=self._run, args=(part, job), name=part.name, daemon=True).start()

    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self._end - self._clock())

    def wait(self) -> None:
        """Wait for all jobs; a part with a job still under way at the deadline gets that as a reason."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running, timeout=self.remaining())
            late = list(self._running)
        for part in late:
            part.fail(f"no complete answer within {self._seconds:g} s.")

    def _run(self, part: Part, job: Callable[[], None]) -> None:
        try:
            with part.attempt():
                job()
        finally:
            with self._changed:
                self._running.remove(part)
                self._changed.notify_all()


def combine(parts: Iterable[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Return status and reasons of a whole that consists of these finished parts.

    Complete or unavailable when all parts are; else partial. Each reason is told once.
    """
    finished = list(parts)
    states = {str(part["status"]) for part in finished}
    reasons = list(dict.fromkeys(reason for part in finished for reason in part["reasons"]))
    if states <= {"complete"}:
        return "complete", reasons
    return ("unavailable" if states == {"unavailable"} else "partial"), reasons
