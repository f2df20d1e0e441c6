# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one program in many containers at once, each in its own session, and say exactly how each of them ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Final, Literal, TypeVar

from ..session_manager.channel import Closed, Event, Output
from ..session_manager.client import Session, SessionBroke, in_thread
from . import wrapper
from .aws import SERVER, THROTTLED, Aws, Started, error_of, explain_closing
from .targets import Target
from .wrapper import ArmourError, Program, Reader

T = TypeVar("T")

OutcomeWord = Literal["completed", "timed_out", "session_broke", "unreachable"]

START_ALLOWANCE: Final = 15.0  # seconds for the agent to start the command, beyond the command's own limit
END_ALLOWANCE: Final = 5.0  # seconds for the last mark to arrive after the limit
LEAST_TIME: Final = 2.0  # seconds before the deadline below which no session is begun any more
LINGER: Final = 0.3  # seconds to wait for channel_closed before the session is ended from here
INTERRUPT_TIME: Final = 2.0  # seconds for the container to end what it was told to by the terminal
MAX_STDERR: Final = 8 * 1024 * 1024  # bytes of standard error kept where output is not bounded
TERMINATE_TIMEOUT: Final = 5.0
YOUNG: Final = 60.0  # seconds after a task's start in which its agent may still be connecting
_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MAX_RETRY: Final = 20.0  # seconds of repeated ExecuteCommand


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run and within which bounds.

    deadline: ``time.monotonic()`` at which everything has to be over; None: no such time.
    max_output: bytes of standard output and standard error together; None: no bound but MAX_STDERR.
    dest: directory for standard output, one file ``<task id>.out`` each; None: it is kept in memory.
    ca_bundle: file with certificate authorities for the data channel; None: the environment's or the system's.
    reader: descriptor of a pipe that leads to whoever waits for the result. When nobody does any more, as after the
        time limit of an Ansible task, everything ends as by an interrupt; None: nothing is watched.
    """

    program: Program
    stdin: bytes = b""
    max_output: int | None = 8 * 1024 * 1024
    max_parallel: int = 50
    deadline: float | None = None
    dest: Path | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    ca_bundle: str | None = None
    reader: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended in one container.

    ``stdout`` and ``stderr`` are None when they are not known to be whole; for timed_out they hold what came until
    the end. ``stdout`` is None as well when it went to the file ``dest``. ``seconds`` is the wall time of this session.
    """

    target: Target
    outcome: OutcomeWord
    rc: int | None = None
    stdout: bytes | None = None
    stderr: bytes | None = None
    dest: Path | None = None
    reason: str | None = None
    seconds: float = 0.0


class _Unreachable(Exception):
    """The command never started; one sentence."""


class _TooMuch(Exception):
    """More output than the caller wants: how much."""


class _Sink:
    """Where a command's output goes; a file appears under its name only when it is whole.

    A file that can't be written raises SessionBroke.
    """

    def __init__(self, path: Path | None, limit: int | None) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part") if path is not None else None
        self._limit = limit
        self._count = 0
        self._file: BinaryIO | None = None
        self.stdout = bytearray()
        self.stderr = bytearray()

    def __enter__(self) -> _Sink:
        if self._part is not None:
            with self._told():
                self._part.unlink(missing_ok=True)
                descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                self._file = os.fdopen(descriptor, "wb", buffering=1 << 18)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self._part is not None:
            with contextlib.suppress(OSError):  # what could not be written was said before
                self._file.close()
            with contextlib.suppress(OSError):
                self._part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise SessionBroke(
                f"The file '{self._path}' can't be written here ({exc.strerror}), so no output is kept."
            ) from None

    def add(self, piece: wrapper.Piece) -> None:
        self._count += len(piece.stdout) + len(piece.stderr)
        if self._limit is not None and self._count > self._limit:
            raise _TooMuch(f"more than max_output ({self._limit} bytes)")
        if self._file is not None:
            with self._told():
                self._file.write(piece.stdout)
        else:
            self.stdout += piece.stdout
        self.stderr += piece.stderr
        if self._limit is None and len(self.stderr) > MAX_STDERR:
            raise _TooMuch(f"more than {MAX_STDERR} bytes to standard error, which is kept in memory,")

    def finish(self) -> Path | None:
        """Give the file its name; return it, or None when the output was kept in memory."""
        if self._file is None or self._part is None or self._path is None:
            return None
        with self._told():
            self._file.close()
            self._part.replace(self._path)
        return self._path


def run(plan: Plan, targets: Sequence[Target], aws: Aws) -> list[Outcome]:
    """Run the plan in all targets; the outcomes stand in the order of the targets.

    An interrupt (SIGINT, SIGTERM, SIGHUP) ends the sessions; then its own handler gets it, or CancelledError is raised.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _INTERRUPTS} if in_main_thread else {}
    interrupts: list[int] = []
    wanted = [number for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)]
    try:
        return asyncio.run(_run_all(plan, targets, aws, wanted, interrupts))
    finally:
        for number in wanted:
            signal.signal(number, handlers[number])
        for interrupt in interrupts:
            if callable(handlers[signal.Signals(interrupt)]):
                signal.raise_signal(interrupt)


async def _run_all(
    plan: Plan, targets: Sequence[Target], aws: Aws, signals: Sequence[int], interrupts: list[int]
) -> list[Outcome]:
    loop, main = asyncio.get_running_loop(), asyncio.current_task()
    ending = False

    def end() -> None:
        """Begin to end everything, once: a second interrupt must not disturb what the first one began."""
        nonlocal ending
        if main is not None and not ending:
            ending = True
            main.cancel()

    def interrupted(number: int) -> None:
        if not ending:
            interrupts.append(number)
        end()

    for number in signals:
        loop.add_signal_handler(number, interrupted, number)
    if plan.reader is not None and stat.S_ISFIFO(os.fstat(plan.reader).st_mode):
        _when_reader_goes(loop, plan.reader, end)
    slots = asyncio.Semaphore(plan.max_parallel)

    async def bounded(target: Target) -> Outcome:
        async with slots:
            return await _Run(plan, target, aws).outcome()

    return list(await asyncio.gather(*(bounded(target) for target in targets)))


def _when_reader_goes(loop: asyncio.AbstractEventLoop, descriptor: int, then: Callable[[], object]) -> None:
    """Call ``then`` when the other end of a pipe that is written to has been closed, which is all it reports."""

    def gone() -> None:
        loop.remove_reader(descriptor)
        then()

    loop.add_reader(descriptor, gone)


class _Run:
    """One session from ExecuteCommand to its end."""

    def __init__(self, plan: Plan, target: Target, aws: Aws) -> None:
        self._plan = plan
        self._target = target
        self._aws = aws
        self._started = time.monotonic()
        self._closing: str | None = None
        self._input: Iterator[bytes] = iter(())
        # The command waits for a word from here. Before it was given, nothing can have run.
        self._may_run = False
        self._ended = False

    async def outcome(self) -> Outcome:
        """Run to the end; never raises for anything that is the container's or the network's fault."""
        try:
            found = await self._attempt()
        except _Unreachable as exc:
            found = Outcome(self._target, "unreachable", reason=str(exc))
        except (SessionBroke, ArmourError) as exc:
            found = self._broke(str(exc))
        except _TooMuch as exc:
            found = self._broke(f"The command wrote {exc} so its session was ended and what had come was thrown away.")
        return replace(found, seconds=round(time.monotonic() - self._started, 3))

    def _broke(self, reason: str) -> Outcome:
        if self._may_run:
            return Outcome(self._target, "session_broke", reason=reason)
        return Outcome(self._target, "unreachable", reason=f"{reason} The command was not started.")

    async def _attempt(self) -> Outcome:
        if self._target.problem:
            raise _Unreachable(self._target.problem)
        remaining = self._remaining()
        if remaining < LEAST_TIME:
            raise _Unreachable("The time for all tasks was over before this one's turn came.")
        limit = min(self._plan.program.seconds, max(1.0, remaining - END_ALLOWANCE))
        call = wrapper.prepare(replace(self._plan.program, seconds=limit))
        path = self._plan.dest / f"{self._target.task}.out" if self._plan.dest is not None else None
        with _Sink(path, self._plan.max_output) as sink:
            return await self._session(call, limit, sink)

    async def _session(self, call: wrapper.Call, limit: float, sink: _Sink) -> Outcome:
        started = await self._execute(call.command)
        session = Session(
            started.url,
            started.token,
            key_source=lambda request: self._aws.data_key(self._target, started.session_id, request),
            resume_source=lambda: self._aws.resume(started.session_id),
        )
        try:
            await session.open(sign=self._aws.sign, environment=self._plan.environment, ca_bundle=self._plan.ca_bundle)
            return await self._converse(session, call, limit, sink)
        finally:
            await self._finish(session, started)

    def _remaining(self) -> float:
        return float("inf") if self._plan.deadline is None else self._plan.deadline - time.monotonic()

    async def _execute(self, command: str) -> Started:
        """Call ExecuteCommand, again where the failure is one that passes."""
        give_up = time.monotonic() + min(MAX_RETRY, max(0.0, self._remaining() - END_ALLOWANCE))
        for attempt in itertools.count(1):
            try:
                return await self._execute_once(command, min(self._remaining(), MAX_RETRY + END_ALLOWANCE))
            except TimeoutError:
                raise _Unreachable("ecs:ExecuteCommand did not answer in time.") from None
            except Exception as exc:  # boto3's exceptions are made at run time; the answer's code decides
                code, message = error_of(exc)
            pause = self._pause(code, message, attempt)
            if pause is None or time.monotonic() + pause >= give_up:
                break
            await asyncio.sleep(pause)
        raise _Unreachable(await self._diagnose(code, message))

    async def _execute_once(self, command: str, seconds: float) -> Started:
        """Call ExecuteCommand; a session that it makes while everything is being ended is ended as well."""
        answer = asyncio.ensure_future(in_thread(lambda: self._aws.execute(self._target, command), seconds))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            await asyncio.wait([answer], timeout=TERMINATE_TIMEOUT)
            if answer.done() and answer.exception() is None:
                await self._terminate(answer.result())
            raise

    async def _diagnose(self, code: str, message: str) -> str:
        try:
            return await in_thread(
                lambda: self._aws.diagnose(self._target, code, message), max(1.0, min(MAX_RETRY, self._remaining()))
            )
        except TimeoutError:
            return f"ecs:ExecuteCommand failed ({code})."

    def _pause(self, code: str, message: str, attempt: int) -> float | None:
        """Return the seconds to wait before the next ExecuteCommand; None: it would fail again."""
        if code in THROTTLED or code in SERVER:
            return float(random.uniform(0.5, 1.0) * min(8, 2 ** (attempt - 1)))  # noqa: S311 - jitter, no secret
        starting = code == "TargetNotConnectedException" or (
            code == "InvalidParameterException" and "agent isn" in message
        )
        if starting and (attempt == 1 or self._is_young()):
            return 1.0
        return None

    def _is_young(self) -> bool:
        started = self._target.started_at
        return started is not None and time.time() - started.timestamp() < YOUNG

    async def _converse(self, session: Session, call: wrapper.Call, limit: float, sink: _Sink) -> Outcome:
        reader = Reader(call.nonce)
        until = time.monotonic() + min(START_ALLOWANCE + limit + wrapper.GRACE + END_ALLOWANCE, self._remaining())
        while reader.ending is None:
            if time.monotonic() >= until:
                raise self._overdue(reader)
            for event in await self._next_events(session, until):
                self._take(event, reader, sink)
            if reader.missing:
                raise _Unreachable(f"The container lacks what running a command needs: {', '.join(reader.missing)}.")
            self._feed(session, reader, call)
        self._ended = True
        session.channel.send(wrapper.CONFIRMATION)
        return self._result(reader, limit, sink)

    async def _next_events(self, session: Session, until: float) -> list[Event]:
        try:
            return await session.receive(until)
        except SessionBroke as exc:
            if self._closing is None:
                raise
            raise self._closed_early(exc) from None

    def _take(self, event: Event, reader: Reader, sink: _Sink) -> None:
        if isinstance(event, Output):
            sink.add(reader.feed(event.data))
        elif isinstance(event, Closed):
            self._closing = event.message

    def _feed(self, session: Session, reader: Reader, call: wrapper.Call) -> None:
        """Queue as much input as the channel takes; the rest waits in the iterator."""
        if reader.wants is not None:
            data = {"script": call.script, "stdin": self._plan.stdin}.get(reader.wants, b"")
            self._input = wrapper.armour(data, reader.armour)
            reader.wants = None
            self._may_run = True
        while session.channel.input_room:
            piece = next(self._input, None)
            if piece is None:
                return
            session.channel.send(piece)

    def _result(self, reader: Reader, limit: float, sink: _Sink) -> Outcome:
        ending = reader.ending
        if ending is None or (ending.status is None and not ending.timed_out):
            raise SessionBroke("The container ended the session without the command's exit status.")
        path = sink.finish()
        stdout = bytes(sink.stdout) if path is None else None
        if not ending.timed_out:
            return Outcome(self._target, "completed", ending.status, stdout, bytes(sink.stderr), path)
        reason = f"The command was still running after {limit:.0f} s and was ended in the container."
        if ending.status is not None and ending.status < 128:
            reason = (
                f"The command ended with status {ending.status}, but a process that it left behind held its output open"
                f" for {limit:.0f} s and was ended."
            )
        if reader.group == "none":
            reason += " The container has neither setsid nor GNU timeout, so processes it started may live on."
        return Outcome(self._target, "timed_out", ending.status, stdout, bytes(sink.stderr), path, reason)

    def _overdue(self, reader: Reader) -> Exception:
        if reader.started:
            return SessionBroke(
                "The command's time was over, but the container did not report its end: whether it still runs is"
                " unknown."
            )
        if self._may_run:
            return SessionBroke("The container did not start the command in time; whether it will is unknown.")
        return SessionBroke(
            "The container did not answer in time (an agent runs two sessions in a container at a time, and others"
            " wait)."
        )

    def _closed_early(self, exc: SessionBroke) -> Exception:
        words = self._closing or ""
        if not self._may_run and "Unable to start command" in words:
            return _Unreachable(f"The container cannot start /bin/sh, which running a command needs ({words}).")
        if not words:
            return SessionBroke(f"The session was closed before the command's end was seen. {exc}")
        when = "the command's end" if self._may_run else "the command started"
        return SessionBroke(f"Systems Manager closed the session before {when}: {explain_closing(words)}")

    async def _finish(self, session: Session, started: Started) -> None:
        """Leave no session behind, and no wait for it: the command's own time limit holds whatever happens here."""
        session.settle()
        if not await self._closed_by_itself(session, LINGER) and not await self._terminate(started) and not self._ended:
            session.channel.send(wrapper.INTERRUPT)
            await self._closed_by_itself(session, INTERRUPT_TIME)
        await session.close()

    async def _terminate(self, started: Started) -> bool:
        """Call ssm:TerminateSession; return whether that ended the session."""
        try:
            await asyncio.shield(in_thread(lambda: self._aws.terminate(started.session_id), TERMINATE_TIMEOUT))
        except Exception:  # the caller may lack the permission; the command's own time limit holds
            return False
        return True

    async def _closed_by_itself(self, session: Session, seconds: float) -> bool:
        until = time.monotonic() + seconds
        with contextlib.suppress(SessionBroke):
            while self._closing is None and time.monotonic() < until:
                for event in await session.receive(until):
                    if isinstance(event, Closed):
                        self._closing = event.message
        return self._closing is not None


def call_within(function: Callable[[], T], seconds: float) -> T:
    """Call something that blocks; raise TimeoutError when it takes longer, and leave it to end with the process."""
    return asyncio.run(in_thread(function, seconds))
