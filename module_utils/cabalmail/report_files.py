# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a run's report lies: ``<folder>/<host>/<run id>/``, and ``<folder>/<host>/latest`` pointing at it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

DEFAULT_FOLDER = "reports"
# ansible-runner, and so AWX, names its artifact directory in this variable of the playbook's environment.
RUNNER_VARIABLE = "AWX_ISOLATED_DATA_DIR"


def choose_folder(given: str, environment: Mapping[str, str]) -> Path:
    """The folder for reports, made if need be.

    Args:
        given: what the operator asked for; empty: ``./reports``, where that can't be written (AWX mounts a project
            read-only) the runner's artifact directory, else a temporary one.
        environment: environment variables.

    Raises:
        OSError: the folder that the operator asked for can't be made or written.
    """
    if given:
        folder = Path(given).expanduser().absolute()
        _prepare(folder)
        return folder
    candidates = [Path(DEFAULT_FOLDER).absolute()]
    if environment.get(RUNNER_VARIABLE):
        candidates.append(Path(environment[RUNNER_VARIABLE]) / DEFAULT_FOLDER)
    for folder in candidates:
        try:
            _prepare(folder)
        except OSError:
            continue
        return folder
    return Path(tempfile.mkdtemp(prefix="cabalmail-reports-"))


def write(folder: Path, host: str, run: str, files: Mapping[str, str]) -> Path:
    """Write the files of a run and point ``latest`` at it; returns the run's folder. Raises OSError."""
    place = folder / safe_name(host) / safe_name(run)
    place.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (place / name).write_text(content, encoding="utf-8")
    _point(place.parent / "latest", place.name)
    return place


def safe_name(text: str) -> str:
    """A file name made of the text; never empty, hidden or a way out of the folder."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip(".") or "_"


def _point(link: Path, target: str) -> None:
    """Replace the link in one step, so that a reader finds the old or the new one and never none."""
    fresh = link.with_name(f".latest-{target}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


def _prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, os.strerror(13), str(folder))
