# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lines of a task's other programs say: the reconfigure loop, opendkim, hosts-pin, supervisord."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from ..cabalmail.privacy import Masker
from ..cabalmail.time import format_rfc3339
from .records import Other

SENTINEL = "192.0.2.1"
_NEVER = 1 << 62
_MAX_EVENTS = 50_000
_MAX_STRAYS = 2_000
_MAX_ERRORS = 20
#: Lines of a clock that is off by one span differ by no more; a repeated line's distance is anybody's guess.
_SAME_SPAN_MS = 60_000

_LOOP = (
    ("Regenerating configs", "start"),
    ("Done.", "done"),
    ("Healthchecks ping sent", "ping"),
    ("Healthchecks ping failed", "ping_failed"),
    ("SQS message received", "message"),
    ("Periodic fallback regeneration", "fallback"),
    ("Periodic regeneration", "fallback"),
    ("Starting config watch loop", "boot"),
    ("WARNING: SQS_QUEUE_URL not set", "periodic"),
)
_SUPERVISOR = re.compile(
    r"(?P<event>spawned|exited|gave up): (?:'(?P<quoted>[\w-]+)'|(?P<program>[\w-]+))"
    r"(?: \((?:exit status (?P<status>\d+)|terminated by (?P<signal>\w+)))?"
)
_SIGNED = re.compile(r"(?P<id>\w+): DKIM-Signature field added \(s=[^,)]*, d=(?P<domain>[^,)]+)\)")
_NO_MATCH = re.compile(r"\w+: no signing table match for '.*@(?P<domain>[^'@]+)'")
_KEY_ERROR = re.compile(r"signing table references unknown key|error loading key|can't load key")
_PIN = re.compile(r"(?:heartbeat: \S+ pinned to |\S+ -> |resolve empty; keeping pin \()(?P<ip>[0-9a-fA-F.:]+)")
# What the AWS client, makemap and the shell say when a scan or a rebuild fails; anything else is somebody's chatter.
_ERROR = re.compile(
    r"An error occurred \(|Could not connect to the endpoint|Connect(?:ion)? (?:timeout|was closed)|Read timeout on|"
    r"Unable to locate credentials|makemap: |newaliases: |jq: error|Traceback \(most recent|Error: |error: |"
    r"(?:generate-config|reconfigure)\.sh: line \d+|ExpiredToken|Throttling|No space left on device|Permission denied"
)


def signature_of(text: str) -> tuple[str, str] | None:
    """Queue id and domain of a line in which opendkim says that it signed; None for its other lines."""
    match = _SIGNED.match(text)
    return (match["id"], match["domain"].lower()) if match else None


class TaskLog:
    """The evidence of one task, gathered line by line in any order."""

    def __init__(self) -> None:
        self.events = 0
        self.mail_lines = 0
        self.first = _NEVER
        self.last = 0
        self.sendmail_starts = 0
        #: Recipients that others refused, by reason: each task leaves by its own zone's address.
        self.bounced: dict[str, int] = {}
        self._loop: list[tuple[int, str, str]] = []
        self._strays: list[tuple[int, str, str]] = []
        self._counts: Counter[str] = Counter()
        self._spawned: Counter[str] = Counter()
        self._exited: Counter[str] = Counter()
        self._loop_exits: dict[str, list[int]] = {}
        self._fatal: dict[str, int] = {}
        self._signed: Counter[str] = Counter()
        self._no_match: Counter[str] = Counter()
        self._pin: tuple[int, str, str] | None = None
        self._heartbeat: int | None = None
        self._pin_event: int | None = None
        self._far: tuple[int, int] | None = None

    def clock_is_off(self, span: int, timestamp: int) -> bool:
        """Whether the container's clock is off by this span (milliseconds): an earlier line was off by the same."""
        before, self._far = self._far, (span, timestamp)
        return before is not None and abs(span - before[0]) < _SAME_SPAN_MS and abs(timestamp - before[1]) > 1000

    def add(self, line: Other, when: int, event_id: str) -> None:
        """Take a line of another program than sendmail."""
        if line.kind == "loop":
            self._add_loop(line.text, when, event_id)
        elif line.kind == "config":
            if line.text.startswith("Scanning"):
                self._remember(when, event_id, "scan")
        elif line.kind == "supervisor":
            self._add_supervisor(line.text, when)
        elif line.kind == "opendkim":
            self._add_opendkim(line.text)
        elif line.kind == "hosts_pin":
            self._add_pin(line.text, when, event_id)
        elif line.kind == "daemon":
            self.sendmail_starts += 1
        elif line.kind == "sync_users":
            if re.search(r"error|fail|denied|throttl", line.text, re.I):
                self._counts["sync_users_errors"] += 1
        elif line.kind == "stray" and len(self._strays) < _MAX_STRAYS and _ERROR.search(line.text[:2000]):
            self._strays.append((when, event_id, line.text[:500]))

    def _remember(self, when: int, event_id: str, what: str) -> None:
        if len(self._loop) < _MAX_EVENTS:
            self._loop.append((when, event_id, what))

    def _add_loop(self, text: str, when: int, event_id: str) -> None:
        for words, what in _LOOP:
            if text.startswith(words):
                self._remember(when, event_id, what)
                return

    def _add_supervisor(self, text: str, when: int) -> None:
        match = _SUPERVISOR.match(text)
        if match is None:
            return
        program = match["quoted"] or match["program"]
        if match["event"] == "spawned":
            self._spawned[program] += 1
        elif match["event"] == "gave up":
            self._fatal[program] = max(when, self._fatal.get(program, 0))
        else:
            self._exited[program] += 1
            if program == "reconfigure":
                self._loop_exits.setdefault(match["status"] or match["signal"] or "unknown", []).append(when)

    def _add_opendkim(self, text: str) -> None:
        if match := _SIGNED.match(text):
            self._signed[match["domain"].lower()] += 1
        elif match := _NO_MATCH.match(text):
            self._no_match[match["domain"].lower()] += 1
        elif _KEY_ERROR.search(text):
            self._counts["key_errors"] += 1
        elif text.endswith(" not internal"):
            self._counts["not_internal"] += 1

    def _add_pin(self, text: str, when: int, event_id: str) -> None:
        self._pin_event = max(when, self._pin_event or 0)
        if text.startswith("heartbeat:"):
            self._heartbeat = max(when, self._heartbeat or 0)
        address = None
        if "wrote sentinel" in text:
            self._counts["sentinel"] += 1
            address = SENTINEL
        elif match := _PIN.match(text):
            address = match["ip"]
        if text.startswith("resolve empty"):
            self._counts["resolve_empty"] += 1
        if address is not None:
            self._pin = max((when, event_id, address), self._pin or (0, "", ""))

    @property
    def signed_messages(self) -> int:
        """Messages that opendkim signed: the volume of a tier whose sendmail says nothing."""
        return sum(self._signed.values())

    def facts(self, masker: Masker) -> dict[str, Any]:
        """The task's section of the facts."""
        return {
            "events": self.events,
            "first_event": _time(self.first if self.events else None),
            "last_event": _time(self.last if self.events else None),
            "mail_lines": self.mail_lines,
            "loop": self._loop_facts(masker),
            "opendkim": {
                "signed": dict(self._signed.most_common(100)),
                "no_match": dict(self._no_match.most_common(100)),
                "key_errors": self._counts["key_errors"],
                "not_internal": self._counts["not_internal"],
            },
            "hosts_pin": {
                "pinned_ip": self._pin[2] if self._pin else None,
                "last_heartbeat": _time(self._heartbeat),
                "resolve_empty": self._counts["resolve_empty"],
                "sentinel": self._pin is not None and self._pin[2] == SENTINEL,
                "last_event": _time(self._pin_event),
            },
            "supervisor": {
                "spawned": dict(sorted(self._spawned.items())),
                "exited": dict(sorted(self._exited.items())),
                "fatal": sorted(self._fatal),
            },
            "sendmail_starts": self.sendmail_starts,
            "bounced": dict(sorted(self.bounced.items())),
            "sync_users_errors": self._counts["sync_users_errors"],
        }

    def _loop_facts(self, masker: Masker) -> dict[str, Any]:
        history = sorted([*self._loop, *((when, key, text) for when, key, text in self._strays)])
        strays = {(when, key) for when, key, _ in self._strays}
        counts: Counter[str] = Counter()
        last: dict[str, int] = {}
        errors: list[dict[str, str]] = []
        began: int | None = None
        longest: float | None = None
        for when, key, what in history:
            if (when, key) in strays:
                # Only what comes between the start of a rebuild and its end is about the loop.
                if began is not None:
                    errors.append({"time": format_rfc3339(when), "text": masker.text(what)})
                continue
            counts[what] += 1
            last[what] = when
            if what == "start" or (what == "scan" and began is None):
                began = when
            elif what == "done" and began is not None:
                seconds = (when - began) / 1000
                longest = seconds if longest is None else max(longest, seconds)
                began = None
            elif what == "boot":
                began = None  # whatever pass was under way went with the process before
        return {
            "started": _time(last.get("boot")),
            "last_start": _time(last.get("start")),
            "last_done": _time(last.get("done")),
            "starts": counts["start"],
            "dones": counts["done"],
            "messages": counts["message"],
            "fallbacks": counts["fallback"],
            "periodic_only": counts["periodic"] > 0,
            "pings_sent": counts["ping"],
            "pings_failed": counts["ping_failed"],
            "last_ping": _time(last.get("ping")),
            "exits": [
                {"status": status, "count": len(times), "last": _time(max(times))}
                for status, times in sorted(self._loop_exits.items())
            ],
            "gave_up": _time(self._fatal.get("reconfigure")),
            "errors": errors[-_MAX_ERRORS:],
            "max_seconds": longest,
            "unfinished_since": _time(began),
        }


def _time(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else format_rfc3339(milliseconds)
