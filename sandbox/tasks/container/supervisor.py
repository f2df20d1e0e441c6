#!/usr/local/bin/python3 -IS
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small supervisord: the states, timing rules and log lines of supervisor 4 for the programs of a mail task.

Runs as the first process of the task; standard library only. Reads ``/etc/supervisord.conf`` ([program:x] with
command, startsecs, autostart, autorestart). Standard input is a pipe whose other end the sandbox holds: at its end the
sandbox is gone and so is the task.

Three options are not supervisord's. ``resume`` in [supervisord] (seconds): the task is put into a state whose start
lies that far in the past, so the first starts are logged to the file only, with the times that they would have had. Per
program, ``state`` is handed to that first start as RESUMED, or is dead: it ends with status 1 until supervisord gives
up, which counts as ``died`` seconds ago.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

ROOT = os.environ.get("TASK_ROOT", "")
START_RETRIES = 3
ALL_BACK_OFFS = sum(range(START_RETRIES + 1))
# supervisord waits ten seconds; a program under SIGSTOP would make every end of a sandbox as slow.
STOP_WAIT_SECONDS = 0.5
LOG_FILE = f"{ROOT}/var/log/supervisord.log"


class Log:
    """supervisord's own log: the file, and standard output, which is the container's log."""

    def __init__(self) -> None:
        self._file = open(LOG_FILE, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the process lives

    def write(self, level: str, text: str, *, past_seconds: float | None = None) -> None:
        """``past_seconds``: the event is declared to have happened that long ago; it goes to the file only."""
        now = time.time() - (past_seconds or 0.0)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
        line = f"{stamp},{int(now % 1 * 1000):03d} {level} {text}"
        print(line, file=self._file, flush=True)
        if past_seconds is None:
            print(line, flush=True)


@dataclass
class Program:
    """A supervised program in one of supervisord's states."""

    name: str
    command: list[str]
    startsecs: float
    autostart: bool
    autorestart: bool
    initial: str
    died: float
    state: str = "STOPPED"
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    retry_at: float = 0.0
    backoff: int = 0


def programs(path: str) -> tuple[list[Program], float | None]:
    """The programs of the configuration, and how long ago the task's start is declared to be (None: it starts now)."""
    config = configparser.ConfigParser(interpolation=None)
    with open(path, encoding="utf-8") as file:
        config.read_file(file)
    found = [
        Program(
            name=name.removeprefix("program:"),
            command=section["command"].split(),
            startsecs=section.getfloat("startsecs", 1.0),
            autostart=section.getboolean("autostart", True),
            autorestart=section.getboolean("autorestart", True),
            initial=section.get("state", "running"),
            died=section.getfloat("died", 0.0),
        )
        for name, section in config.items()
        if name.startswith("program:")
    ]
    return found, config.getfloat("supervisord", "resume", fallback=None)


def outcome(status: int) -> str:
    """How supervisord words the end of a process."""
    if status < 0:
        return f"terminated by {signal.Signals(-status).name}; not expected"
    return f"exit status {status}; {'expected' if status == 0 else 'not expected'}"


class Supervisor:
    """Starts the programs, restarts what ends, reaps orphans, ends all of them on SIGTERM."""

    def __init__(self, path: str) -> None:
        self.log = Log()
        self.programs, self.resume = programs(path)
        self.ending = False
        self.ready_descriptor = os.environ.pop("READY_FD", None)
        self.woken, self.waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def spawn(self, program: Program, *, past: float | None = None) -> None:
        environment = os.environ if past is None else {**os.environ, "RESUMED": program.initial}
        program.started = time.monotonic()
        try:
            program.process = subprocess.Popen(program.command, stdin=subprocess.DEVNULL, env=environment)
        except OSError as error:
            self.log.write("INFO", f"spawnerr: {error}", past_seconds=past)
            self._back_off(program)
            return
        program.state = "STARTING"
        self.log.write("INFO", f"spawned: '{program.name}' with pid {program.process.pid}", past_seconds=past)

    def start_all(self) -> None:
        """The first starts. In a resumed task they count as long past, and a program that is declared dead dies now."""
        self.log.write("INFO", f"supervisord started with pid {os.getpid()}", past_seconds=self.resume)
        for program in self.programs:
            if program.autostart and program.initial != "dead":
                self.spawn(program, past=self.resume)
        if self.resume is not None:
            for program in self.programs:
                if program.state == "STARTING":
                    self._runs(program, past=self.resume - program.startsecs)
        for program in self.programs:
            if program.initial == "dead":
                self._die(program)

    def _runs(self, program: Program, *, past: float | None = None) -> None:
        program.state, program.backoff = "RUNNING", 0
        text = (
            f"success: {program.name} entered RUNNING state, process has stayed up for "
            f"> than {program.startsecs:.0f} seconds (startsecs)"
        )
        self.log.write("INFO", text, past_seconds=past)

    def _die(self, program: Program) -> None:
        """Ends at each start, as a broken script does, until supervisord gives up; without waiting between them."""
        intact, program.command = program.command, ["false"]
        for attempt in range(START_RETRIES + 1):
            past = program.died + ALL_BACK_OFFS - sum(range(attempt + 1))
            self.spawn(program, past=past)
            if program.process is not None:
                status = program.process.wait()
                self.log.write("WARN", f"exited: {program.name} ({outcome(status)})", past_seconds=past)
        program.process, program.command = None, intact
        self._give_up(program, past=program.died)

    def _give_up(self, program: Program, *, past: float | None = None) -> None:
        program.state = "FATAL"
        text = f"gave up: {program.name} entered FATAL state, too many start retries too quickly"
        self.log.write("INFO", text, past_seconds=past)

    def _back_off(self, program: Program) -> None:
        program.state, program.process = "BACKOFF", None
        program.backoff += 1
        program.retry_at = time.monotonic() + program.backoff

    def finish(self, program: Program, status: int) -> None:
        """supervisord's rule: too short a life is a failed start; any other end is logged as expected or not."""
        too_quickly = program.state == "STARTING" and time.monotonic() - program.started < program.startsecs
        if self.ending:
            program.state, program.process = "STOPPED", None
            self.log.write("INFO", f"stopped: {program.name} ({outcome(status).partition(';')[0]})")
        elif too_quickly:
            how = outcome(status).partition(";")[0]
            self.log.write("WARN", f"exited: {program.name} ({how}; not expected)")
            self._back_off(program)
        else:
            self.log.write("INFO" if status == 0 else "WARN", f"exited: {program.name} ({outcome(status)})")
            program.state, program.process, program.backoff = "EXITED", None, 0

    def transition(self, program: Program) -> None:
        now = time.monotonic()
        if program.state == "EXITED" and program.autorestart:
            self.spawn(program)
        elif program.state == "BACKOFF" and program.backoff > START_RETRIES:
            self._give_up(program)
        elif program.state == "BACKOFF" and now >= program.retry_at:
            self.spawn(program)
        elif program.state == "STARTING" and now - program.started > program.startsecs:
            self._runs(program)

    def reap(self) -> None:
        """Our programs and, as the first process of the task, every orphan."""
        for program in self.programs:
            if program.process is not None and (status := program.process.poll()) is not None:
                self.finish(program, status)
        ours = {program.process.pid for program in self.programs if program.process is not None}
        while (orphan := self._ended_orphan(ours)) is not None:
            os.waitpid(orphan, 0)

    @staticmethod
    def _ended_orphan(ours: set[int]) -> int | None:
        with contextlib.suppress(ChildProcessError):
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None and found.si_pid not in ours:
                return found.si_pid
        return None

    def _wait_seconds(self) -> float | None:
        """Until the next transition that time alone brings."""
        now = time.monotonic()
        due = [p.retry_at for p in self.programs if p.state == "BACKOFF"]
        due += [p.started + p.startsecs + 0.01 for p in self.programs if p.state == "STARTING"]
        return max(0.0, min(due) - now) if due else None

    def wait(self) -> None:
        readable, _, _ = select.select([0, self.woken], [], [], self._wait_seconds())
        if self.woken in readable:
            os.read(self.woken, 4096)
        if 0 in readable and not os.read(0, 4096):
            # The whole group: without a PID namespace the programs would outlive their supervisor.
            os.killpg(0, signal.SIGKILL)

    def end(self) -> None:
        """What ``docker stop`` asks for: every program gets SIGTERM, and SIGKILL when it does not end."""
        self.log.write("WARN", "received SIGTERM indicating exit request")
        for program in self.programs:
            if program.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    program.process.terminate()
        deadline = time.monotonic() + STOP_WAIT_SECONDS
        for program in self.programs:
            if program.process is None:
                continue
            try:
                status = program.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.log.write("WARN", f"killing '{program.name}' ({program.process.pid}) with SIGKILL")
                program.process.kill()
                status = program.process.wait()
            self.finish(program, status)

    def announce_ready(self) -> None:
        """Tells the sandbox, through the descriptor that it named, that all programs have been started."""
        if self.ready_descriptor is not None:
            os.write(int(self.ready_descriptor), b"ready\n")
            os.close(int(self.ready_descriptor))

    def run(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "ending", True))
        signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
        self.start_all()
        self.announce_ready()
        while not self.ending:
            self.reap()
            for program in self.programs:
                self.transition(program)
            if not self.ending:
                self.wait()
        self.end()


if __name__ == "__main__":
    Supervisor(f"{ROOT}/etc/supervisord.conf").run()
    sys.exit(0)
