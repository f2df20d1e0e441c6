# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Input that can't be used ends in one sentence and a status other than 0, before any call is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run, Sandbox

pytestmark = pytest.mark.playbook

FAR = "2099-01-01T00:00:00Z"
ALERT = {
    "status": "firing",
    "labels": {"alertname": "SendmailBouncedSpike", "severity": "critical", "environment": "sandbox"},
    "annotations": {},
    "startsAt": "2026-11-24T20:00:00Z",
    "endsAt": "0001-01-01T00:00:00Z",
    "fingerprint": "0123456789abcdef",
}


def payload(**changes: Any) -> str:
    """A webhook body whose one alert differs in the given members."""
    return json.dumps({"version": "4", "status": "firing", "alerts": [{**ALERT, **changes}]})


REFUSED = {
    "unknown alert": (
        {"triage_alert": "DiskFull", "triage_payload": ""},
        "'DiskFull' is not an alert that is known here",
    ),
    "start in the future": ({"triage_start": FAR}, f"triage_start={FAR} is in the future"),
    "end in the future": ({"triage_end": FAR}, f"triage_end={FAR} is in the future"),
    "reversed": (
        {"triage_start": "2026-11-24T20:00:00Z", "triage_end": "2026-11-24T19:00:00Z", "triage_payload": ""},
        "empty or reversed",
    ),
    "no time": ({"triage_start": "yesterday"}, "triage_start='yesterday' can't be used: give an RFC 3339 time"),
    "unknown tier": ({"triage_tiers": "smtp-in,smtp-inn"}, "triage_tiers='smtp-inn': there is no such tier here"),
    "severity": ({"triage_fail_on": "urgent"}, "give one of critical, warning, info"),
    "deadline": ({"triage_deadline": "soon"}, "give a number of seconds from 20 to 3600"),
    "deadline in which nothing can be done": ({"triage_deadline": 10}, "give a number of seconds from 20 to 3600"),
    "no URL": ({"cabalmail_endpoint_url": "notaurl"}, "cabalmail_endpoint_url='notaurl' of the host sandbox can't be"),
    "no list": ({"cabalmail_findings": "x"}, "cabalmail_findings='x' of the host sandbox can't be used: give a list"),
    "no entries": ({"cabalmail_findings": ["x"]}, "give a list of entries such as those of data/findings.yml"),
    "rules": ({"cabalmail_reason_rules": {"id": "x"}}, "give a list of entries such as those of data/reasons.yml"),
    "providers": ({"cabalmail_providers": [7]}, "give a list of entries such as those of data/providers.yml"),
    "boolean": ({"triage_exec": "maybe"}, "triage_exec='maybe' can't be used: give true or false"),
    "misspelt": ({"triage_tier": "imap"}, "triage_tier is not an option of this playbook: did you mean triage_tiers?"),
    "report address": ({"report_url": "here"}, "report_url='here' can't be used: give an URL such as"),
    "nobody to tell": ({"report_notify": ["no-such-service://x"]}, "its URL number 1 is none that Apprise knows"),
    "report folder": ({"report_dir": "/dev/null/reports"}, "report_dir='/dev/null/reports' can't be used"),
    "not JSON": ({"triage_payload": '{"version": "4", '}, "triage_payload is not valid JSON"),
    "no such file": ({"triage_payload": "/nonexistent/page.json"}, "'/nonexistent/page.json' can't be read"),
    "version": ({"triage_payload": '{"version": "3", "alerts": []}'}, "its version is '3', not '4'"),
    "no alerts": ({"triage_payload": '{"version": "4", "alerts": []}'}, "at least one alert"),
    "no startsAt": ({"triage_payload": payload(startsAt=None)}, "alerts[0].startsAt is None"),
    "startsAt in the future": (
        {"triage_payload": payload(startsAt=FAR)},
        "startsAt 2099-01-01T00:00:00Z is in the future",
    ),
    "another environment": (
        {"triage_payload": payload(labels={**ALERT["labels"], "environment": "prod"})},
        "label environment='prod' fits no host of this run",
    ),
    "no region": ({"cabalmail_region": ""}, "No AWS region is known for the host sandbox"),
    "no credentials": ({"cabalmail_access_key": ""}, "No AWS credentials were found for the host sandbox"),
    "no such profile": ({"cabalmail_access_key": "", "cabalmail_profile": "nobody"}, "cabalmail_profile='nobody'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence_before_any_call(
    case: str, sandbox: Sandbox, triage: Callable[..., Run], tmp_path: Path
) -> None:
    variables, sentence = REFUSED[case]
    extra = tmp_path / "extra.json"
    extra.write_text(json.dumps(variables))
    sandbox.reset_calls()
    run = triage(None, "-e", f"@{extra}")
    assert run.status != 0
    errors = [line for line in run.output.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1, run.output
    assert sentence in errors[0]
    assert run.outcome == {}
    assert sandbox.operator_calls() == []


def test_a_resolved_page_starts_nothing(sandbox: Sandbox, triage: Callable[..., Run], tmp_path: Path) -> None:
    page = tmp_path / "page.json"
    page.write_text(payload(status="resolved", endsAt="2026-11-24T20:30:00Z"))
    sandbox.reset_calls()
    run = triage(None, "-e", f"triage_payload={page}")
    assert run.status == 0
    assert "is resolved since 2026-11-24T20:30:00Z: there is nothing to triage, so nothing was done." in run.stdout
    assert run.outcome == {}
    assert sandbox.operator_calls() == []


def test_nothing_in_a_payload_is_rendered_as_a_template(triage: Callable[..., Run], tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    text = "{{ lookup('ansible.builtin.pipe', 'touch " + str(trap) + "') }}"
    body = payload(annotations={"summary": text}, labels={**ALERT["labels"], "note": text})
    extra = tmp_path / "extra.json"
    extra.write_text(json.dumps({"triage_payload": body}))
    as_text = triage(None, "-e", f"@{extra}", "--tags", "alert")
    extra.write_text(json.dumps({"triage_payload": json.loads(body)}))
    as_mapping = triage(None, "-e", f"@{extra}", "--tags", "alert")
    assert as_text.triage["alert"]["fingerprint"] == as_mapping.triage["alert"]["fingerprint"] == "0123456789abcdef"
    assert not trap.exists()


def test_started_from_elsewhere_it_says_what_to_do(
    playbook: Callable[..., Run], sandbox: Sandbox, tmp_path: Path
) -> None:
    environment = {name: value for name, value in sandbox.environment().items() if name != "ANSIBLE_CONFIG"}
    repo = Path(__file__).resolve().parents[2]
    run = playbook(str(repo / "triage.yml"), env=environment, cwd=tmp_path)
    assert run.status != 0
    assert f"Run: export ANSIBLE_CONFIG={repo}/ansible.cfg" in run.output
