# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines that a task wrote by itself before the sandbox loaded it: start, loop, makemap, sendmail restarts, pin.

They are derived from the declared state of the task, so that the logs and the container agree. Texts are those
of docker/shared/{entrypoint,reconfigure,generate-config,hosts-pin}.sh and of supervisord at release 1.3.5.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta

from .model import PIN_SENTINEL, Loop, TaskSpec
from .tasks.container import maps
from .tasks.rootfs import rows_of

Line = tuple[datetime, str]

INTERVAL_SECONDS = 900
POLL_SECONDS = 20
MAKEMAP_FAILED = 65
PIN_HEARTBEAT_SECONDS = 600
PIN_EMPTY_SECONDS = 30
KEPT = timedelta(hours=72)
PIN_EMPTY_KEPT = timedelta(hours=6)
IMAP_HOST = "imap.cabal.internal"

_PROGRAMS = {
    "imap": ("rsyslog", "log-tailer", "dovecot", "prepare-sendmail", "sendmail", "reconfigure"),
    "smtp-in": ("rsyslog", "log-tailer", "opendkim", "opendmarc", "hosts-pin", "sendmail", "reconfigure"),
    "smtp-out": ("rsyslog", "log-tailer", "dovecot", "opendkim", "sendmail", "reconfigure"),
    "sinkhole": (),
}
_FILES = {
    "imap": ("local-host-names", "relay-domains", "access", "virtusertable"),
    "smtp-in": ("relay-domains", "masq-domains", "access", "virtusertable", "mailertable"),
    "smtp-out": ("masq-domains", "mailertable"),
    "sinkhole": (),
}
_DAEMON = "starting daemon (8.17.1.9): SMTP+queueing@00:15:00"


class _Writer:
    """Collects a task's lines; pids count up as they would."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.lines: list[Line] = []
        self.random = random.Random(spec.task_id)  # noqa: S311 - repeatable jitter, not a secret
        self._pid = 7

    def say(self, moment: datetime, text: str) -> None:
        self.lines.append((moment, text))

    def supervisor(self, moment: datetime, text: str, level: str = "INFO") -> None:
        own = moment + timedelta(seconds=self.spec.clock_skew_seconds)
        self.say(moment, f"{own:%Y-%m-%d %H:%M:%S},{own.microsecond // 1000:03d} {level} {text}")

    def sendmail_starts(self, moment: datetime) -> None:
        pid = self.pid()
        stamp = (moment + timedelta(seconds=self.spec.clock_skew_seconds)).isoformat(timespec="microseconds")
        self.say(moment, f"{stamp} {self.spec.host_name} sendmail[{pid}]: {_DAEMON}")

    def pid(self) -> int:
        self._pid += self.random.randint(3, 40)
        return self._pid

    def spawned(self, moment: datetime, program: str) -> None:
        self.supervisor(moment, f"spawned: '{program}' with pid {self.pid()}")


def lines(spec: TaskSpec, now: datetime, address_changes: list[datetime], pings: bool) -> list[Line]:
    """Return the history of one task up to ``now``, in order of time.

    :param address_changes: when the table changed; the first task of a tier got the message of each.
    :param pings: whether the task knows a Healthchecks URL.
    """
    writer = _Writer(spec)
    _start(writer)
    since = max(spec.started_at + timedelta(seconds=20), now - KEPT)
    passes = _passes(writer, since, now, address_changes if spec.index == 0 and spec.hears_queue else [])
    for moment, by_message in passes:
        _regenerate(writer, moment, by_message, pings)
    _ending(writer, now, passes[-1][0] if passes else spec.started_at + timedelta(seconds=8))
    if spec.tier == "smtp-in":
        _pin(writer, since, now)
    writer.lines.sort(key=lambda line: line[0])
    return [line for line in writer.lines if line[0] <= now]


def _start(writer: _Writer) -> None:
    spec, start = writer.spec, writer.spec.started_at
    writer.say(start, f"[entrypoint] Starting {spec.tier} tier configuration...")
    if spec.tier in ("imap", "smtp-out"):
        writer.say(start + timedelta(seconds=2.2), "[sync-users] Done.")
    _generate(writer, start + timedelta(seconds=3))
    begun = start + timedelta(seconds=5)
    writer.say(begun, "[entrypoint] Starting services via supervisord...")
    for n, program in enumerate(_PROGRAMS[spec.tier]):
        writer.spawned(begun + timedelta(milliseconds=300 + 7 * n), program)
    writer.say(begun + timedelta(seconds=1), f"[reconfigure] Starting config watch loop (tier: {spec.tier})")
    writer.say(begun + timedelta(seconds=1.01), f"[reconfigure] SQS mode: polling {spec.queue_url}")
    if spec.tier == "imap":
        writer.say(begun + timedelta(seconds=3), "[prepare-sendmail] Sendmail prerequisites ready.")
    writer.sendmail_starts(begun + timedelta(seconds=4))
    running = "entered RUNNING state, process has stayed up for > than 1 seconds (startsecs)"
    writer.supervisor(begun + timedelta(seconds=2), f"success: reconfigure {running}")


def _passes(writer: _Writer, since: datetime, now: datetime, changes: list[datetime]) -> list[tuple[datetime, bool]]:
    """When the loop regenerated with success, and whether a message made it: counted back from the maps' age."""
    spec = writer.spec
    moment = now - timedelta(seconds=spec.maps.db_age_seconds + 3)
    found: list[tuple[datetime, bool]] = []
    changes = sorted(changes, reverse=True)
    while moment > since:
        changed = next((c for c in changes if moment - timedelta(seconds=25) <= c < moment), None)
        found.append((moment, changed is not None))
        gap = INTERVAL_SECONDS + writer.random.uniform(1, POLL_SECONDS)
        earlier = moment - timedelta(seconds=gap)
        change = next((c for c in changes if earlier < c < moment - timedelta(seconds=60)), None)
        moment = earlier if change is None else change + timedelta(seconds=writer.random.uniform(1, 4))
    found.reverse()
    return found


def _regenerate(writer: _Writer, moment: datetime, by_message: bool, pings: bool) -> None:
    _begin(writer, moment, by_message)
    _generate(writer, moment + timedelta(milliseconds=400))
    done = moment + timedelta(seconds=3)
    writer.say(done - timedelta(milliseconds=400), "[reconfigure] Killing sendmail; supervisord will restart it...")
    writer.supervisor(done - timedelta(milliseconds=300), "exited: sendmail (exit status 0; expected)")
    writer.say(done, "[reconfigure] Done.")
    if pings:
        writer.say(done + timedelta(milliseconds=350), "[reconfigure] Healthchecks ping sent.")
    if by_message:
        writer.say(done + timedelta(milliseconds=900), "[reconfigure] Drained stale SQS messages.")
    if writer.spec.sendmail_running:
        writer.spawned(done + timedelta(milliseconds=700), "sendmail")
        writer.sendmail_starts(done + timedelta(milliseconds=760))
        stayed = "process has stayed up for > than 5 seconds (startsecs)"
        writer.supervisor(done + timedelta(seconds=5.8), f"success: sendmail entered RUNNING state, {stayed}")


def _begin(writer: _Writer, moment: datetime, by_message: bool = False) -> None:
    why = "SQS message received, triggering" if by_message else "Periodic fallback"
    tail = "" if by_message else f" (every {INTERVAL_SECONDS}s)"
    writer.say(moment, f"[reconfigure] {why} regeneration{tail}...")
    writer.say(moment + timedelta(milliseconds=5), "[reconfigure] Regenerating configs from DynamoDB...")


def _generate(writer: _Writer, moment: datetime, complete: bool = True) -> None:
    tier = writer.spec.tier
    writer.say(moment, "[generate-config] Scanning DynamoDB cabal-addresses table...")
    moment += timedelta(milliseconds=900)
    writer.say(moment, f"[generate-config] Generating config files for tier={tier}...")
    for n, name in enumerate(_FILES[tier]):
        writer.say(moment + timedelta(milliseconds=20 + 4 * n), f"  Generated /etc/mail/{name}")
    if complete:
        writer.say(moment + timedelta(milliseconds=200), "[generate-config] Done.")


def _ending(writer: _Writer, now: datetime, last: datetime) -> None:
    """What came after the last pass that succeeded."""
    loop = writer.spec.loop
    due = last + timedelta(seconds=INTERVAL_SECONDS + writer.random.uniform(1, POLL_SECONDS))
    if loop is Loop.HUNG:
        _begin(writer, due)
        writer.say(due + timedelta(milliseconds=400), "[generate-config] Scanning DynamoDB cabal-addresses table...")
    elif loop is Loop.DEAD:
        _dies(writer, last + timedelta(seconds=writer.random.uniform(40, 300)))
    elif loop is Loop.FAILING:
        while due < now:
            _fails(writer, due)
            due += timedelta(seconds=INTERVAL_SECONDS + writer.random.uniform(2, POLL_SECONDS))


def _dies(writer: _Writer, moment: datetime) -> None:
    """Four quick deaths: supervisord retries three times, then gives up."""
    for attempt in range(4):
        if writer.spec.loop_error:
            writer.say(moment - timedelta(milliseconds=80), writer.spec.loop_error)
        writer.supervisor(moment, "exited: reconfigure (exit status 1; not expected)", "WARN")
        if attempt == 3:
            gave_up = "gave up: reconfigure entered FATAL state, too many start retries too quickly"
            writer.supervisor(moment + timedelta(seconds=1), gave_up)
            return
        moment += timedelta(seconds=1 + attempt)
        writer.spawned(moment, "reconfigure")
        moment += timedelta(milliseconds=250)


def _fails(writer: _Writer, moment: datetime) -> None:
    """One pass that ends early; supervisord starts the loop anew. Status 65 (EX_DATAERR) comes from makemap."""
    spec = writer.spec
    _begin(writer, moment)
    if spec.loop_exit_status == MAKEMAP_FAILED:
        _generate(writer, moment + timedelta(milliseconds=400), complete=False)
    else:
        scanning = "[generate-config] Scanning DynamoDB cabal-addresses table..."
        writer.say(moment + timedelta(milliseconds=400), scanning)
    ended = moment + timedelta(seconds=2.4)
    writer.say(ended - timedelta(milliseconds=60), spec.loop_error or _makemap_error(spec))
    writer.supervisor(ended, f"exited: reconfigure (exit status {spec.loop_exit_status}; not expected)", "WARN")
    writer.spawned(ended + timedelta(seconds=1), "reconfigure")
    writer.say(ended + timedelta(seconds=1.2), f"[reconfigure] Starting config watch loop (tier: {spec.tier})")
    writer.say(ended + timedelta(seconds=1.21), f"[reconfigure] SQS mode: polling {spec.queue_url}")


def _makemap_error(spec: TaskSpec) -> str:
    texts = maps.render(spec.tier, rows_of(spec.addresses, spec.maps.text_lacks, spec.maps.text_extra))
    refused = maps.first_refusal(spec.tier, texts)
    return refused[1] if refused else "makemap: error writing the database"


def _pin(writer: _Writer, since: datetime, now: datetime) -> None:
    spec = writer.spec
    start = spec.started_at + timedelta(seconds=6)
    empty_from = now - timedelta(seconds=spec.pin_empty_seconds)
    writer.say(start, f"[hosts-pin] daemon: target={IMAP_HOST}")
    if spec.pin == PIN_SENTINEL and not spec.pin_empty_seconds:
        empty_from = start
    if empty_from <= start:
        failed = f"resolve failed with no prior pin; wrote sentinel {PIN_SENTINEL}"
        writer.say(start + timedelta(seconds=5), f"[hosts-pin] {failed}")
    else:
        writer.say(start + timedelta(seconds=1), f"[hosts-pin] {IMAP_HOST} -> {spec.pin}")
    for moment in _every(max(start, since), min(empty_from, now), PIN_HEARTBEAT_SECONDS):
        writer.say(moment, f"[hosts-pin] heartbeat: {IMAP_HOST} pinned to {spec.pin}")
    for moment in _every(max(empty_from, start, now - PIN_EMPTY_KEPT), now, PIN_EMPTY_SECONDS):
        writer.say(moment, f"[hosts-pin] resolve empty; keeping pin ({spec.pin})")


def _every(begin: datetime, end: datetime, seconds: float) -> Iterator[datetime]:
    """Moments after ``begin`` up to ``end``, so that the last one is less than ``seconds`` before ``end``."""
    moment = begin + timedelta(seconds=seconds)
    while moment <= end:
        yield moment
        moment += timedelta(seconds=seconds)
