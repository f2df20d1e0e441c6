# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far this machine can keep tasks apart, and the commands that start one and enter it."""

from __future__ import annotations

import os
import shutil
import subprocess
from enum import Enum
from pathlib import Path

SETUP = Path(__file__).parent / "container" / "setup.sh"
_PROBE = "mount -t proc proc /proc && mount --bind /usr /usr"
_PROBE_SECONDS = 10


class Isolation(Enum):
    """What surrounds a task. The value is the line that tells the user what is lost ("" when nothing is)."""

    ROOT = ""
    USER = "Tasks run in user namespaces: every user in them has the user id 0, and file ownership can't be shown."
    FOLDER = (
        "This machine forbids namespaces, so tasks are plain processes over private folders: commands sent to a task "
        "see the machine's own files and processes, with the task's files under $TASK_ROOT, and makemap and mailq are "
        "stand-ins."
    )


def detect() -> Isolation:
    """Try it: namespaces may exist and still be switched off for this user, or without the right to mount."""
    if shutil.which("unshare") and shutil.which("nsenter"):
        for isolation in (Isolation.ROOT, Isolation.USER):
            if isolation is Isolation.ROOT and os.geteuid() != 0:
                continue
            try:
                argv = [*_unshare(isolation), "sh", "-c", _PROBE]
                done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PROBE_SECONDS)
            except (OSError, subprocess.TimeoutExpired):
                continue
            if done.returncode == 0:
                return isolation
    return Isolation.FOLDER


def _unshare(isolation: Isolation) -> list[str]:
    user = ["--map-root-user"] if isolation is Isolation.USER else []
    return ["unshare", *user, "--mount", "--pid", "--uts", "--fork", "--kill-child=SIGKILL"]


def start_command(isolation: Isolation, root: Path, host_name: str, program: str) -> list[str]:
    """argv that makes the task in ``root`` and runs ``program`` (found on the task's PATH) as its first process."""
    if isolation is Isolation.FOLDER:
        return [program]
    return [*_unshare(isolation), "sh", str(SETUP), str(root), host_name, program]


def enter_command(isolation: Isolation, first_process: int, argv: list[str], *, terminal: bool = False) -> list[str]:
    """argv that runs ``argv`` inside the task whose first process has this host pid, as leader of a session of its own.

    ``terminal``: its standard input is a terminal, which becomes its controlling one.
    """
    session = ["setsid", *(["--ctty"] if terminal else []), *argv]
    if isolation is Isolation.FOLDER:
        return session
    user = ["--user", "--preserve-credentials"] if isolation is Isolation.USER else []
    return ["nsenter", "--target", str(first_process), *user, "--mount", "--pid", "--uts", "--root", "--wd", *session]


def first_process(isolation: Isolation, started: int) -> int:
    """Host pid of the task's first process, given the pid of what :func:`start_command` made."""
    if isolation is Isolation.FOLDER:
        return started
    children = Path(f"/proc/{started}/task/{started}/children")
    if children.exists():
        return int(children.read_text().split()[0])
    for status in Path("/proc").glob("[0-9]*/status"):
        if f"\nPPid:\t{started}\n" in status.read_text():
            return int(status.parent.name)
    raise ProcessLookupError(f"process {started} has no child")
