# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The script that ends a hung loop: that process and what is below it, and never another one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "roles" / "remediation" / "files" / "end_loop.sh"
# Starts the loop anew whenever it ends, as supervisord does.
SUPERVISOR = "while :; do sh ./reconfigure.sh; done"


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[int]:
    """A supervised loop that hangs; its process id."""
    (tmp_path / "reconfigure.sh").write_text("sleep 300\necho done\n")
    parent = subprocess.Popen(["sh", "-c", SUPERVISOR], cwd=tmp_path, start_new_session=True)
    yield child_of(parent.pid)
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()


def child_of(parent: int, name: bytes = b"reconfigure.sh") -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children")
    for _attempt in range(500):
        found = children.read_text().split()
        if found and name in Path(f"/proc/{found[0]}/cmdline").read_bytes():
            return int(found[0])
        time.sleep(0.01)
    raise AssertionError(f"no {name.decode()} started")


def end(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=60)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_loop_and_what_it_waits_for_are_ended(loop: int) -> None:
    sleeper = child_of(loop, b"sleep\0")
    done = end(loop, 0)
    assert (done.returncode, done.stdout.startswith(f"ended {loop}, now runs ")) == (0, True), done.stderr
    assert not alive(loop)
    assert not alive(sleeper)


def test_a_process_that_is_younger_than_the_one_seen_is_another_one(loop: int) -> None:
    done = end(loop, 3600)
    assert done.returncode == 3
    assert alive(loop)


def test_a_process_that_is_no_loop_is_left_alone(loop: int) -> None:
    sleeper = child_of(loop, b"sleep\0")
    assert end(sleeper, 0).returncode == 3
    assert end(2**22 + 1, 0).returncode == 3
    assert alive(sleeper)


@pytest.mark.parametrize("arguments", [(), (1,), ("1; kill 1", 0), ("", 0), (1, "-5")])
def test_what_is_no_process_id_is_refused(arguments: tuple[object, ...]) -> None:
    assert end(*arguments).returncode == 2
