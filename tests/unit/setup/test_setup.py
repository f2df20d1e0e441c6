# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A missing prerequisite gets one sentence that says what to install; a finished set-up costs nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without a virtual environment, and a PATH in it that has the tools of a bare system."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(REPO / "scripts" / "setup", tmp_path / "scripts")
    shutil.copy(REPO / "requirements-dev.txt", tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname", "cksum", "cat", "rm"):
        (tools / name).symlink_to(shutil.which(name) or name)
    return tmp_path


def setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it with only the checkout's own tools in reach."""
    return subprocess.run(
        [str(checkout / "scripts" / "setup")],
        env={"PATH": str(checkout / "bin"), "HOME": str(checkout), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def fake_python(checkout: Path, script: str) -> None:
    """A python3 that answers as the script says."""
    path = checkout / "bin" / "python3"
    path.write_text(f"#!{checkout}/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_no_python(checkout: Path) -> None:
    done = setup(checkout)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Python 3.11, 3.12 or 3.13 is needed (found: none): install it" in done.stderr


def test_python_too_old(checkout: Path) -> None:
    fake_python(checkout, 'case "$1" in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac')
    done = setup(checkout)
    assert done.returncode == 1
    assert "(found: Python 3.9.2)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_python_without_venv(checkout: Path) -> None:
    fake_python(checkout, 'case "$2" in *venv*) exit 1 ;; *) exit 0 ;; esac')
    done = setup(checkout)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Python's venv module is missing: install it (Debian and Ubuntu: apt-get install python3-venv)."
    ]


def finished(checkout: Path, interpreter: str = "") -> None:
    """A virtual environment that was made, perhaps by a set-up that noted the interpreter."""
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "ansible-playbook").symlink_to(sys.executable)
    sums = subprocess.run(
        ["cksum"], stdin=(checkout / "requirements-dev.txt").open(), capture_output=True, text=True, check=True
    )
    (checkout / ".venv" / ".made-for").write_text(f"{os.path.realpath(checkout)} {sums.stdout.strip()}{interpreter}\n")


def test_a_second_run_does_nothing(checkout: Path) -> None:
    finished(checkout)
    began = time.monotonic()
    done = setup(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began < 1


def test_another_interpreter_makes_it_anew(checkout: Path) -> None:
    finished(checkout, " /usr 3.12.1")
    fake_python(
        checkout, 'case "$2" in *base_prefix*) echo /opt 3.11.9 ;; *) echo "$@" >>"$HOME/asked"; exit 0 ;; esac'
    )
    assert setup(checkout).returncode == 0, "without PYTHON, what is there will do"
    done = setup(checkout, PYTHON=str(checkout / "bin" / "python3"))
    assert "Setting up .venv" in done.stderr
    assert "-m venv .venv" in (checkout / "asked").read_text()
    assert not (checkout / ".venv" / "bin" / "ansible-playbook").exists(), "of the other interpreter nothing is left"


def test_the_interpreter_that_made_it_is_not_another(checkout: Path) -> None:
    finished(checkout, " /opt 3.11.9")
    fake_python(checkout, 'case "$2" in *base_prefix*) echo /opt 3.11.9 ;; *) exit 1 ;; esac')
    done = setup(checkout, PYTHON=str(checkout / "bin" / "python3"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_interpreter_that_is_none_is_said(checkout: Path) -> None:
    finished(checkout)
    done = setup(checkout, PYTHON="python9")
    assert done.returncode == 1
    assert done.stderr == "PYTHON=python9 is no Python 3.11, 3.12 or 3.13 that runs here: name another, or none.\n"
