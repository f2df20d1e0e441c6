# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A long reading shows how far it is; a short one says nothing."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import pytest
from ansible.module_utils.cabalmail import watch
from maillog_corpus import REPO


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(watch, "INTERVAL_SECONDS", 0.05)
    return []


def in_words(state: object) -> str:
    spec = importlib.util.spec_from_file_location("maillog_action", REPO / "plugins/action/cloudwatch_maillog_info.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.in_words(state))


def test_progress_is_shown(shown: list[str], tmp_path: Path) -> None:
    path = tmp_path / "progress"
    with watch.Watch(path, in_words, shown.append):
        path.write_text(json.dumps({"pages": 12, "events": 120_000, "seconds": 7}))
        deadline = time.monotonic() + 5
        while not shown and time.monotonic() < deadline:
            time.sleep(0.02)
    assert shown[0].strip() == "reading the mail logs: 120,000 lines, 12 pages, 7 s"


def test_nothing_is_shown_without_news(shown: list[str], tmp_path: Path) -> None:
    path = tmp_path / "progress"
    path.write_text("left by an earlier reading")
    with watch.Watch(path, str, shown.append):
        time.sleep(0.2)
        path.write_text("half a li")
        time.sleep(0.2)
    with watch.Watch(None, str, shown.append):
        time.sleep(0.1)
    assert shown == []
