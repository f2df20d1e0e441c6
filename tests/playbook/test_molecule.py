# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`molecule test` runs each of its scenarios from the start of the sandbox to its end."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from .conftest import BIN, REPO, Sandbox

pytestmark = pytest.mark.playbook

SECONDS = 300


@pytest.mark.parametrize("name", sorted(path.parent.name for path in REPO.glob("molecule/*/molecule.yml")))
def test_molecule(name: str, tmp_path: Path) -> None:
    own = Sandbox(tmp_path / "sandbox")
    done = subprocess.run(
        [str(BIN / "molecule"), "test", "--scenario-name", name],
        cwd=REPO,
        env={**own.environment(), "MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path / "ephemeral")},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^{name} +: actions=5 +successful=5 .*failed=0$", done.stderr, re.MULTILINE), done.stderr
    assert not (own.state / "state.json").exists(), "the sandbox is still up"
