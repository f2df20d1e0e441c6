# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A command of a session on a pseudo-terminal inside a task, and what the agent makes of the bytes it prints."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import termios
from pathlib import Path

from .isolation import Isolation, first_process
from .runtime import RunningTask

# The agent's own defaults for a session (agent/session/shell/constants).
TERM = "xterm-256color"
LANG = "C.UTF-8"
REPLACEMENT = "�"
LONGEST_TAIL = 3


class StartError(Exception):
    """The command can't be started; the text is the agent's."""


class Terminal:
    """A running command and the master side of its terminal. Lives on the event loop."""

    def __init__(self, task: RunningTask, argv: list[str]) -> None:
        """Start ``argv`` in the task.

        :raises StartError: when there is no such program in the task.
        """
        environment = {"LANG": LANG, **task.environment, "TERM": TERM}
        _check_program(task, argv[0])
        self._task = task
        self._master, slave = os.openpty()
        os.set_blocking(self._master, False)
        try:
            self._process = subprocess.Popen(
                task.command(argv),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=environment,
                cwd=task.cwd,
                # Without namespaces setsid(1) must not find itself leader of a process group: it would fork.
                start_new_session=task.isolation is not Isolation.FOLDER,
            )
        finally:
            os.close(slave)

    @property
    def finished(self) -> bool:
        """Whether the command was waited for; call it now and then after the end."""
        return self._process.poll() is not None

    def resize(self, columns: int, rows: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; empty when every holder of the terminal has closed it."""
        loop = asyncio.get_running_loop()
        while (descriptor := self._master) >= 0:
            try:
                return os.read(descriptor, size)
            except BlockingIOError:
                ready = loop.create_future()
                loop.add_reader(descriptor, _set, ready)
                try:
                    await ready
                finally:
                    loop.remove_reader(descriptor)
            except OSError:
                break
        return b""

    async def write(self, data: bytes) -> None:
        """Write all of ``data``; waits as long as the command does not read."""
        loop = asyncio.get_running_loop()
        while data and (descriptor := self._master) >= 0:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                ready = loop.create_future()
                loop.add_writer(descriptor, _set, ready)
                try:
                    await ready
                finally:
                    loop.remove_writer(descriptor)
            except OSError:
                break

    def kill(self) -> None:
        """TerminateSession: SIGKILL to the direct child only; closing the terminal hangs up its foreground group."""
        with contextlib.suppress(OSError, ValueError, IndexError, ProcessLookupError):
            os.kill(first_process(self._task.isolation, self._process.pid), signal.SIGKILL)

    def close(self) -> None:
        """Close the master side; a second call does nothing."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _check_program(task: RunningTask, name: str) -> None:
    """What Go's exec.LookPath does, inside the task."""
    root = "" if task.isolation is Isolation.FOLDER else f"/proc/{task.first_process}/root"
    if "/" in name:
        if task.isolation is not Isolation.PROOT and not Path(f"{root}{name}").exists():
            raise StartError(
                f"Unable to start command: Failed to start pty: fork/exec {name}: no such file or directory"
            )
        return
    if task.isolation is Isolation.PROOT:
        found = task.run(["sh", "-c", 'command -v -- "$0"', name]).returncode == 0
    else:
        folders = task.environment["PATH"].split(":")
        found = any(os.access(f"{root}{folder}/{name}", os.X_OK) for folder in folders)
    if not found:
        raise StartError(
            f'Unable to start command: Failed to start pty: exec: "{name}": executable file not found in $PATH'
        )


def pass_utf8(data: bytes) -> tuple[bytes, bytes]:
    """What the agent sends of ``data``, and what it holds back until more comes.

    After processStdoutData in agent/session/plugins/shell/shell.go: whatever does not decode within the last three
    bytes is held back (and lost when nothing follows); before that, of an undecodable character only its first byte
    passes. A real U+FFFD looks undecodable to it.
    """
    if data.isascii():
        return data, b""
    passed = bytearray()
    position = 0
    while position < len(data):
        size = _character_size(data, position)
        if size:
            passed += data[position : position + size]
            position += size
        elif len(data) - position <= LONGEST_TAIL:
            break
        else:
            passed.append(data[position])
            position += 3 if data.startswith(REPLACEMENT.encode(), position) else 1
    return bytes(passed), data[position:]


def _character_size(data: bytes, position: int) -> int:
    """Bytes of the character at ``position``; 0 when there is no valid one, or U+FFFD."""
    first = data[position]
    if first < 0x80:
        return 1
    size = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    try:
        text = data[position : position + size].decode()
    except UnicodeDecodeError:
        return 0
    return 0 if text == REPLACEMENT else size
