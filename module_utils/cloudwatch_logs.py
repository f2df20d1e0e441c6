# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads whole log groups with FilterLogEvents, side by side and within the account's quota.

Behaviour after https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_FilterLogEvents.html: a page
holds 1 MB or 10,000 events, may be empty and still carry a token, and only an absent token ends. Both ends of the range
are inclusive. The quota counts requests of the account and region, so one bucket serves all threads; botocore's own
retries would not know it and are off.

A group is asked for whole first, which is all for a small incident. When there is a second page, the window is cut into
slices of a few pages each, read side by side. A free thread takes a slice of the group that the fewest are at, so that
pages of all groups come at the same time. What two requests both bring is dropped by the receiver by event id.
"""

from __future__ import annotations

import json
import queue
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from .aws_support import classify, explain

try:
    from botocore.parsers import JSONParser, ResponseParserFactory
except ImportError:  # the module says which library is missing when it is built
    JSONParser = ResponseParserFactory = object

PAGE_EVENTS = 10_000
_MAX_SLICES = 32
_MIN_SLICE_MS = 60_000
_ATTEMPTS = 6
_TOKEN = re.compile(rb'"nextToken"\s*:\s*"((?:[^"\\]|\\.)*+)"')


class Page(NamedTuple):
    """One answer, not decoded: the reading threads wait for the network and do nothing else."""

    tier: str
    body: bytes

    def events(self) -> list[dict[str, Any]]:
        """The events as FilterLogEvents returns them."""
        found = json.loads(self.body).get("events")
        return found if isinstance(found, list) else []

    def size(self) -> int:
        """How many events there are; a key can't stand inside a message, whose quotes JSON escapes."""
        return self.body.count(b'"eventId":')


class Outcome:
    """How the reading of one group went."""

    def __init__(self) -> None:
        self.exists: bool | None = None
        self.pages = 0
        self.finished = False
        self.problem: str | None = None

    @property
    def status(self) -> str:
        """`complete`, `partial` (something was read) or `unavailable`."""
        if self.finished and self.problem is None:
            return "complete"
        return "partial" if self.pages else "unavailable"


class TokenBucket:
    """Lets `rate` requests a second through, of all threads together; slows down when AWS throttles all the same."""

    def __init__(self, rate: float) -> None:
        self._full = self._rate = max(rate, 0.1)
        self._tokens = max(1.0, self._full)
        self._checked = time.monotonic()
        self._lock = threading.Lock()
        self.throttled = 0

    def take(self, until: float) -> bool:
        """Wait for a turn; False when it would come after the monotonic time `until`."""
        with self._lock:
            now = time.monotonic()
            self._tokens = min(max(1.0, self._full), self._tokens + (now - self._checked) * self._rate)
            self._checked = now
            wait = max(0.0, (1.0 - self._tokens) / self._rate)
            if now + wait >= until:
                return False
            self._tokens -= 1.0
        if wait:
            time.sleep(wait)
        return True

    def slow_down(self) -> None:
        """AWS throttled: half the pace, no burst."""
        with self._lock:
            self.throttled += 1
            self._rate = max(self._rate / 2, 0.5)
            self._tokens = min(self._tokens, 0.0)

    def speed_up(self) -> None:
        """An answer came: a little faster again, up to the rate that was asked for."""
        with self._lock:
            self._rate = min(self._full, self._rate * 1.1)


class Slice(NamedTuple):
    """A part of the window of one group, both ends included; `whole`: nothing was cut yet."""

    tier: str
    group: str
    start: int
    end: int
    whole: bool


class _RawPages(JSONParser):  # type: ignore[misc]
    """botocore's parser walks each event by its model, which takes longer than all else; these pages stay bytes."""

    def _handle_json_body(self, raw_body: bytes, shape: Any) -> Any:
        if shape is not None and shape.name == "FilterLogEventsResponse" and raw_body[:1] == b"{":
            return {"body": raw_body}
        return super()._handle_json_body(raw_body, shape)


class RawPagesFactory(ResponseParserFactory):  # type: ignore[misc]
    """Component `response_parser_factory` of a botocore session whose clients leave pages of events undecoded."""

    def create_parser(self, protocol_name: str) -> Any:
        if protocol_name == "json":
            return _RawPages(**self._defaults)
        return super().create_parser(protocol_name)


def next_token(body: bytes) -> str | None:
    """The page's `nextToken`.

    The bytes `"nextToken":` can't stand inside a message, whose quotes JSON escapes.
    """
    at = body.rfind(b'"nextToken"')
    while at >= 0:
        match = _TOKEN.match(body, at)
        if match is not None:
            token = json.loads(b'"' + match[1] + b'"')
            return str(token) or None
        at = body.rfind(b'"nextToken"', 0, at)
    return None


class Reader:
    """Reads groups into a queue of pages.

    Args:
        client: a boto3 client for Logs whose session has `RawPagesFactory`, with one attempt a call.
        until: monotonic time at which reading ends, finished or not.
        requests_per_second: requests of all threads together.
        threads: requests under way at once.
    """

    def __init__(self, client: Any, until: float, requests_per_second: float, threads: int = 8) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.bytes = 0
        self.bucket = TokenBucket(requests_per_second)
        self._client = client
        self._until = until
        self._threads = threads
        self._work: list[Slice] = []
        self._busy: Counter[str] = Counter()
        self._open: dict[str, int] = {}
        self._failed: set[str] = set()
        self._change = threading.Condition()
        self._pages: queue.Queue[Page | None] = queue.Queue(maxsize=2)

    def read(self, groups: list[tuple[str, str]], start: int, end: int) -> Iterator[Page]:
        """Yield the pages of `(tier, log group)` pairs between two times (milliseconds, both included), as they come.

        When the iteration ends, `outcomes` says for each tier whether all was read.
        """
        for tier, group in groups:
            self.outcomes[tier] = Outcome()
            self._open[tier] = 1
            self._work.append(Slice(tier, group, start, end, True))
        for _ in range(self._threads):
            # Daemons, since a thread that hangs in a call must not keep the module from ending in time.
            threading.Thread(target=self._run, daemon=True).start()
        while True:
            left = self._until - time.monotonic()
            try:
                page = self._pages.get(timeout=max(left, 0.01))
            except queue.Empty:
                page = None
                if left > 0:
                    continue
            if page is None:
                break
            yield page
            if time.monotonic() > self._until:
                break
        with self._change:
            for tier, outcome in self.outcomes.items():
                outcome.finished = self._open[tier] == 0 and tier not in self._failed

    def why(self, tier: str, group: str) -> list[str]:
        """Why a group was not read whole, after `read`; nothing when it was."""
        outcome = self.outcomes[tier]
        if outcome.status == "complete":
            return []
        return [outcome.problem or f"Reading the log group {group} ended early: its time was up."]

    def _run(self) -> None:
        while (piece := self._next()) is not None:
            try:
                self._read_slice(piece)
            except Exception as error:
                # A thread must not die with its slice unaccounted for.
                self._give_up(piece.tier, f"Reading {piece.group} failed: {explain(error)}")
            self._close(piece.tier)

    def _next(self) -> Slice | None:
        with self._change:
            while not self._work:
                if not any(self._open.values()) or time.monotonic() > self._until:
                    return None
                self._change.wait(0.2)
            piece = min(self._work, key=lambda waiting: self._busy[waiting.tier])
            self._work.remove(piece)
            self._busy[piece.tier] += 1
            return piece

    def _close(self, tier: str) -> None:
        with self._change:
            self._open[tier] -= 1
            self._busy[tier] -= 1
            done = not any(self._open.values())
            self._change.notify_all()
        if done:
            self._pages.put(None)

    def _give_up(self, tier: str, problem: str) -> None:
        with self._change:
            self._failed.add(tier)
            if self.outcomes[tier].problem is None:
                self.outcomes[tier].problem = problem
            kept = [piece for piece in self._work if piece.tier != tier]
            self._open[tier] -= len(self._work) - len(kept)
            self._work = kept

    def _read_slice(self, piece: Slice) -> None:
        token: str | None = None
        while piece.tier not in self._failed:
            body = self._page(piece, token)
            if body is None:
                return
            outcome = self.outcomes[piece.tier]
            with self._change:
                outcome.pages += 1
                outcome.exists = True
                self.bytes += len(body)
            token = next_token(body)
            self._pages.put(Page(piece.tier, body))
            if token is None:
                return
            if piece.whole and self._cut(piece, body):
                return

    def _cut(self, piece: Slice, body: bytes) -> bool:
        """Cut a window that has more than a page into slices; False when it's too short for that."""
        if piece.end - piece.start < 2 * _MIN_SLICE_MS:
            return False
        stamps = [int(stamp) for stamp in re.findall(rb'"timestamp"\s*:\s*(\d{1,15})', body)]
        count = 4
        if stamps:
            # The first page reaches so far into the window: the rest is likely as dense.
            covered = max(max(stamps) - piece.start, 1)
            count = (piece.end - piece.start) // covered
        count = max(2, min(_MAX_SLICES, int(count) // 2, (piece.end - piece.start) // _MIN_SLICE_MS))
        bounds = [piece.start + (piece.end + 1 - piece.start) * part // count for part in range(count + 1)]
        slices = [Slice(piece.tier, piece.group, low, high - 1, False) for low, high in pairwise(bounds)]
        with self._change:
            self._open[piece.tier] += len(slices)
            self._work.extend(slices)
            self._change.notify_all()
        return True

    def _page(self, piece: Slice, token: str | None) -> bytes | None:
        """One page; None when the reading of the group is over."""
        request: dict[str, Any] = {"logGroupName": piece.group, "startTime": piece.start, "endTime": piece.end}
        if token is not None:
            request["nextToken"] = token
        answer = self._ask(piece, lambda: self._client.filter_log_events(**request))
        return None if answer is None else answer["body"]

    def _ask(self, piece: Slice, call: Callable[[], Any]) -> Any | None:
        """The answer to a call, tried again when throttled or interrupted; None when the group is given up."""
        problem = ""
        for attempt in range(_ATTEMPTS):
            if not self.bucket.take(self._until):
                break
            try:
                answer = call()
            except Exception as error:
                kind = classify(error)
                problem = explain(error)
                if kind == "missing":
                    self.outcomes[piece.tier].exists = False
                    self._give_up(piece.tier, f"The log group {piece.group} does not exist: {problem}")
                    return None
                if kind == "denied":
                    self._give_up(piece.tier, f"The log group {piece.group} may not be read: {problem}")
                    return None
                if kind == "throttled":
                    self.bucket.slow_down()
                elif kind == "other" and not _is_passing(error):
                    break
                self._pause(attempt)
            else:
                self.bucket.speed_up()
                return answer
        sentence = f"Reading the log group {piece.group} ended early"
        self._give_up(piece.tier, f"{sentence}: {problem}" if problem else f"{sentence}: its time was up.")
        return None

    def _pause(self, attempt: int) -> None:
        pause = random.uniform(0.5, 1.0) * 0.2 * 2**attempt  # noqa: S311 - spreads retries, decides nothing
        time.sleep(max(0.0, min(pause, self._until - time.monotonic())))


def _is_passing(error: BaseException) -> bool:
    """Whether AWS says that the fault is its own."""
    response = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) >= 500
