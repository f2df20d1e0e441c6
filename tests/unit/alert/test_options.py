# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a run: read strictly, refused in one sentence."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from ansible.module_utils.cabalmail.options import OptionError, read_options

TIERS = ["imap", "smtp-in", "smtp-out"]


def test_defaults() -> None:
    assert read_options({}, TIERS) == {
        "triage_alert": "",
        "triage_start": None,
        "triage_end": None,
        "triage_exec": True,
        "triage_remediate": False,
        "triage_remediate_min_confidence": "high",
        "triage_remediate_cooldown": 60.0,
        "triage_remediate_imap_outage": False,
        "triage_remediate_lose_mail": False,
        "triage_remediate_tiers": ["smtp-in"],
        "triage_fail_on": None,
        "triage_deadline": 90.0,
        "report_dir": "",
        "report_show_addresses": False,
        "report_url": "",
        "triage_tiers": TIERS,
    }


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("triage_exec", "false", False),
        ("triage_exec", "No", False),
        ("triage_exec", False, False),
        ("triage_remediate", "1", True),
        ("triage_remediate", 1, True),
        ("triage_remediate_tiers", "imap,smtp-in", ["imap", "smtp-in"]),
        ("triage_remediate_cooldown", "90", 90.0),
        ("triage_deadline", "120", 120.0),
        ("triage_deadline", 20, 20.0),
        ("triage_fail_on", "warning", "warning"),
        ("triage_fail_on", "", None),
        ("triage_tiers", "smtp-in, imap,imap", ["smtp-in", "imap"]),
        ("triage_tiers", ["imap"], ["imap"]),
        ("triage_tiers", "", TIERS),
        ("triage_start", "2026-11-24T23:00:00+01:00", datetime(2026, 11, 24, 22, tzinfo=UTC)),
        ("triage_start", datetime(2026, 11, 24, 22, tzinfo=UTC), datetime(2026, 11, 24, 22, tzinfo=UTC)),
        ("report_dir", "/tmp/x", "/tmp/x"),
    ],
)
def test_accepted(name: str, value: Any, read: Any) -> None:
    assert read_options({name: value}, TIERS)[name] == read


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("triage_exec", "perhaps"),
        ("triage_exec", ""),
        ("triage_exec", None),
        ("triage_remediate", ["true"]),
        ("triage_remediate", "{{ false }}"),
        ("triage_deadline", "nan"),
        ("triage_deadline", "inf"),
        ("triage_deadline", "19"),
        ("triage_deadline", True),
        ("triage_deadline", -1),
        ("triage_fail_on", "CRITICAL"),
        ("triage_fail_on", ["critical"]),
        ("triage_tiers", "sinkhole"),
        ("triage_tiers", 7),
        ("triage_start", "2026-11-24"),
        ("triage_start", datetime(2026, 11, 24)),
        ("triage_end", 1763000000),
        ("triage_alert", {"name": "x"}),
        ("triage_alert", "a\nb"),
        ("triage_alert", "a\x1b[31m"),
        ("report_dir", 7),
        ("report_show_addresses", "perhaps"),
        ("report_dir", "a\0b"),
        ("triage_deadlin", 90),
        ("triage_x", 1),
    ],
)
def test_refused_in_a_sentence_that_names_option_and_value(name: str, value: Any) -> None:
    with pytest.raises(OptionError) as caught:
        read_options({name: value}, TIERS)
    sentence = str(caught.value)
    assert name in sentence
    assert sentence.isprintable()
    assert sentence[-1] in ".?"
    assert len(sentence) < 300


def test_other_variables_are_none_of_its_business() -> None:
    read_options({"cabalmail_region": 7, "ansible_x": None, "triage_work_dir": "x", "triage_artifact": {}}, TIERS)
