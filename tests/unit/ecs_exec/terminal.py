# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a prepared call in a real shell under a real terminal, as the agent does, without any network."""

from __future__ import annotations

import os
import pty
import select
import shlex
import signal
import time
from dataclasses import dataclass, field

from ansible.module_utils.ecs_exec import wrapper


@dataclass
class Result:
    """What came back over the terminal."""

    stdout: bytes = b""
    stderr: bytes = b""
    ending: wrapper.Ending | None = None
    missing: list[str] = field(default_factory=list)
    group: str = ""
    seconds: float = 0.0
    raw: bytes = b""


def spawn(command: str, environment: dict[str, str]) -> tuple[int, int]:
    """Start the command line on a new terminal; return its pid and the terminal's master side."""
    argv = shlex.split(command)
    pid, master = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, the agent does not
        try:
            os.execvpe(argv[0], argv, environment)
        finally:
            os._exit(127)
    return pid, master


def run(
    program: wrapper.Program,
    *,
    stdin: bytes = b"",
    shell: str = "/bin/sh",
    environment: dict[str, str] | None = None,
    cut: int = 1024,
    limit: float = 30.0,
) -> Result:
    """Run the program to its last mark; ``cut`` is the most bytes that are fed to the reader at a time."""
    call = wrapper.prepare(program)
    command = call.command.replace("/bin/sh -c ", shell + " -c ", 1)
    started = time.monotonic()
    pid, master = spawn(command, environment or dict(os.environ, TERM="xterm-256color"))
    reader, result = wrapper.Reader(call.nonce), Result()
    pending = b""
    try:
        while reader.ending is None and not reader.missing:
            assert time.monotonic() - started < limit, result.raw[-2000:]
            readable, writable, _ = select.select([master], [master] if pending else [], [], 0.2)
            if writable:
                pending = pending[os.write(master, pending[:512]) :]
            if not readable:
                continue
            try:
                data = os.read(master, cut)
            except OSError:
                break
            result.raw += data[: max(0, 10_000 - len(result.raw))]
            piece = reader.feed(data)
            result.stdout += piece.stdout
            result.stderr += piece.stderr
            if reader.wants:
                pending += b"".join(wrapper.armour(call.script if reader.wants == "script" else stdin, reader.armour))
                reader.wants = None
        os.write(master, wrapper.CONFIRMATION)
    finally:
        os.close(master)
        for _ in range(50):
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
            time.sleep(0.02)
        else:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    result.ending, result.missing, result.group = reader.ending, reader.missing, reader.group
    result.seconds = time.monotonic() - started
    return result
