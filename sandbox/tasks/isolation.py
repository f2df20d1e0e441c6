# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far this machine can keep tasks apart, and the commands that start one and enter it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from .debian import PROOT, UnavailableError, Unpacked, ensure

SETUP = Path(__file__).parent / "container" / "setup.sh"
SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64")
_PROBE = "mount -t proc proc /proc && mount --bind /usr /usr"
_PROBE_SECONDS = 10


class Isolation(Enum):
    """What surrounds a task. The value is the line that tells the user what is lost ("" when nothing is)."""

    ROOT = ""
    USER = "Tasks run in user namespaces: every user in them has the user id 0, and file ownership can't be shown."
    PROOT = (
        "This machine forbids namespaces, so tasks run under proot: commands see the task's own files, but no process "
        "list, and mailq is a stand-in."
    )
    FOLDER = (
        "This machine forbids namespaces and has no proot, so tasks are plain processes over private folders: commands "
        "sent to a task see the machine's own files and processes, with the task's files under $TASK_ROOT, and makemap "
        "and mailq are stand-ins."
    )

    @property
    def namespaces(self) -> bool:
        """Whether the kernel ends everything in a task with its first process."""
        return self in (Isolation.ROOT, Isolation.USER)


@dataclass(frozen=True)
class Walls:
    """The isolation that this machine allows, and the proot that makes it where it is one."""

    isolation: Isolation
    proot: Unpacked | None = None


def detect(cache: Path) -> Walls:
    """Try it: namespaces may exist and still be switched off for this user, or without the right to mount."""
    if shutil.which("unshare") and shutil.which("nsenter"):
        for isolation in (Isolation.ROOT, Isolation.USER):
            if isolation is Isolation.ROOT and os.geteuid() != 0:
                continue
            if _works([*_unshare(isolation), "sh", "-c", _PROBE]):
                return Walls(isolation)
    try:
        proot = ensure(PROOT, cache)
    except UnavailableError:
        return Walls(Isolation.FOLDER)
    if _works([*_proot(proot), "-r", "/", "-b", "/usr", "sh", "-c", "true"]):
        return Walls(Isolation.PROOT, proot)
    return Walls(Isolation.FOLDER)


def _works(argv: list[str]) -> bool:
    try:
        return (
            subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PROBE_SECONDS).returncode == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def _unshare(isolation: Isolation) -> list[str]:
    user = ["--map-root-user"] if isolation is Isolation.USER else []
    return ["unshare", *user, "--mount", "--pid", "--uts", "--fork", "--kill-child=SIGKILL"]


def _proot(proot: Unpacked) -> list[str]:
    root_id = [] if os.geteuid() == 0 else ["-0"]
    return ["env", f"LD_LIBRARY_PATH={proot.library_path}", str(proot.folder / "usr" / "bin" / "proot"), *root_id]


def _under_proot(walls: Walls, root: Path, shares: dict[str, str]) -> list[str]:
    assert walls.proot is not None  # noqa: S101 - detect sets both
    tree = [name for name in SYSTEM_FOLDERS if (root / name).is_dir() and not (root / name).is_symlink()]
    binds = {"/usr": "/usr", "/dev": "/dev", **{f"/{name}": f"/{name}" for name in tree}, **shares}
    return [*_proot(walls.proot), "-r", str(root), *(f"--bind={a}:{b}" for b, a in binds.items()), "-w", "/"]


def start_command(walls: Walls, root: Path, host_name: str, shares: dict[str, str], program: str) -> list[str]:
    """argv that makes the task in ``root`` and runs ``program`` (found on the task's PATH) as its first process.

    ``shares``: folder of the task -> folder of this machine that it shows.
    """
    if walls.isolation is Isolation.FOLDER:
        return [program]
    if walls.isolation is Isolation.PROOT:
        return [*_under_proot(walls, root, shares), program]
    return [*_unshare(walls.isolation), "sh", str(SETUP), str(root), host_name, program]


def enter_command(
    walls: Walls, root: Path, shares: dict[str, str], first: int, argv: list[str], *, terminal: bool = False
) -> list[str]:
    """argv that runs ``argv`` inside the task whose first process has the host pid ``first``, as leader of a session.

    ``terminal``: its standard input is a terminal, which becomes its controlling one.
    """
    session = ["setsid", *(["--ctty"] if terminal else []), *argv]
    if walls.isolation is Isolation.FOLDER:
        return session
    if walls.isolation is Isolation.PROOT:
        return [*_under_proot(walls, root, shares), *session]
    user = ["--user", "--preserve-credentials"] if walls.isolation is Isolation.USER else []
    return ["nsenter", "--target", str(first), *user, "--mount", "--pid", "--uts", "--root", "--wd", *session]


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
