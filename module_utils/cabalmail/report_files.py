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

from .address_table import json_lines

MOST_ADDRESSES = 20
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


def place(folder: Path, host: str, run: str) -> Path:
    """The folder of a run."""
    return folder / safe_name(host) / safe_name(run)


def write(place: Path, files: Mapping[str, str], beside: Mapping[str, str]) -> None:
    """Write the files of a run, those that are the host's, and point ``latest`` at the run. Raises OSError.

    Args:
        place: the run's folder.
        files: names and contents of what lies in it.
        beside: the same of what lies above it; a reader finds the old or the new one, whole.
    """
    place.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (place / name).write_text(content, encoding="utf-8")
    for name, content in beside.items():
        draft = place / f".{name}"
        draft.write_text(content, encoding="utf-8")
        draft.replace(place.parent / name)
    _point(place.parent / "latest", place.name)


def clear_addresses(work_dir: str | None) -> list[str] | None:
    """The failed recipients in clear, each once, the first ``MOST_ADDRESSES``; None when no directory is given.

    Args:
        work_dir: the run's private directory, the only place where addresses are in clear.
    """
    if not work_dir:
        return None
    found: dict[str, None] = {}
    try:
        for record in json_lines(Path(work_dir) / "failed_recipients.jsonl"):
            address = str(record.get("address") or "").strip("<>")
            if address:
                found[address] = None
            if len(found) == MOST_ADDRESSES:
                break
    except FileNotFoundError:
        # No log was read.
        return []
    return list(found)


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
