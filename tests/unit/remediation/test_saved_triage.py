# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be taken from a saved triage, and what is refused in a sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from ansible.module_utils.cabalmail.options import OptionError
from ansible.module_utils.cabalmail.saved_triage import approve

NOW = datetime(2026, 11, 24, 22, 30, tzinfo=UTC)
SAVED: dict[str, Any] = {
    "run": {"id": "20261124T220000Z-1f3a", "environment": "prod", "started": "2026-11-24T22:00:00Z"},
    "alert": {"name": "SendmailBouncedSpike", "source": "payload", "window": {"start": "2026-11-24T21:00:00Z"}},
    "remediation": {
        "fingerprint": "f" * 64,
        "plan": {"kind": "restart_loop", "service": "cabal-smtp-in", "tasks": ["a" * 32]},
    },
}


def test_the_plan_is_taken() -> None:
    assert approve(SAVED, "prod", NOW, 60) == {
        "run": "20261124T220000Z-1f3a",
        "fingerprint": "f" * 64,
        "remedy": {"kind": "restart_loop", "service": "cabal-smtp-in", "tasks": ["a" * 32]},
        "alert": "SendmailBouncedSpike",
        "start": "2026-11-24T21:00:00Z",
    }


REFUSED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda saved: saved["run"].update(environment="stage"), "is of the environment"),
    (lambda saved: saved["run"].update(started="2026-11-24T21:20:00Z"), "is 70 minutes old and remediate_max_age=60"),
    (lambda saved: saved["run"].update(started="2026-11-24T22:40:00Z"), "minutes old"),
    (lambda saved: saved["run"].update(started="today"), "can't be read"),
    (lambda saved: saved["run"].update(id="{{ lookup('pipe', 'id') }}"), "can't be read"),
    (lambda saved: saved["remediation"].update(plan=None), "planned no restart"),
    (lambda saved: saved["remediation"]["plan"].update(kind="delete_service"), "can't be read"),
    (lambda saved: saved["remediation"]["plan"].update(tasks=["a; rm -rf /"]), "can't be read"),
    (lambda saved: saved["remediation"].pop("fingerprint"), "can't be read"),
    (lambda saved: saved.pop("alert"), "it has no alert"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_what_can_t_be_acted_on_is_refused_in_a_sentence(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    saved = copy.deepcopy(SAVED)
    change(saved)
    with pytest.raises(OptionError, match=words.replace("?", r"\?")):
        approve(saved, "prod", NOW, 60)


@pytest.mark.parametrize("document", [None, [], "x", {}, {"run": 3}])
def test_what_is_no_triage_is_refused(document: Any) -> None:
    with pytest.raises(OptionError, match="can't be read"):
        approve(document, "prod", NOW, 60)
