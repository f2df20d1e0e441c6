# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page: what is accepted, what is refused, and which window it means."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ansible.module_utils.cabalmail import alert as page
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 24, 22, 0, tzinfo=UTC)
FIRED = NOW - timedelta(minutes=5)


def entry(**changes: Any) -> dict[str, Any]:
    """One alert as Alertmanager sends it, with changes."""
    labels = {
        "alertname": "SendmailBouncedSpike",
        "severity": "critical",
        "cluster": "cabalmail",
        "environment": "prod",
    }
    labels.update(changes.pop("labels", {}))
    return {
        "status": "firing",
        "labels": {name: value for name, value in labels.items() if value is not None},
        "annotations": {"summary": "s", "runbook_url": "https://example.com/sendmail-bounced-spike.md"},
        "startsAt": "2026-11-24T21:55:00.123456789Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus.example/graph",
        "fingerprint": "aaaa",
        **changes,
    }


def body(*alerts: dict[str, Any], **changes: Any) -> str:
    """A whole webhook body."""
    return json.dumps(
        {
            "version": "4",
            "groupKey": '{}:{alertname="SendmailBouncedSpike"}',
            "truncatedAlerts": 0,
            "status": "firing",
            "receiver": "cabal",
            "groupLabels": {},
            "commonLabels": {},
            "commonAnnotations": {},
            "externalURL": "http://alertmanager.example",
            "alerts": list(alerts),
            **changes,
        }
    )


def choose(text: str, wanted: str | None = None, environment: str = "prod", known: tuple[str, ...] = ("prod",)) -> Any:
    """What is chosen of a payload."""
    return page.choose(page.parse_payload(text), wanted, environment, known)


def test_reads_what_alertmanager_sends() -> None:
    chosen = choose(body(entry()))
    assert (chosen.name, chosen.state, chosen.fingerprint, chosen.environment) == (
        "SendmailBouncedSpike",
        "firing",
        "aaaa",
        "prod",
    )
    assert chosen.starts_at == datetime(2026, 11, 24, 21, 55, 0, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"version": "4", "version": "4", "alerts": []}', "a key stands twice"),
        ('{"version": 4, "alerts": [{}]}', "its version is 4, not '4'"),
        ('{"version": "4", "alerts": "x"}', "no list 'alerts'"),
        ('{"version": "4", "alerts": [7]}', "alerts[0] is not an object"),
        (body(entry(status="maybe")), "alerts[0].status is 'maybe'"),
        (body(entry(), entry(labels={"alertname": None})), "alerts[1].labels has no alertname"),
        (body({**entry(), "labels": {"alertname": ["a"]}}), "not an object of strings"),
        (body(entry(startsAt="2026-11-24 21:55")), "alerts[0].startsAt is '2026-11-24 21:55'"),
        (body(entry(startsAt=7)), "alerts[0].startsAt is 7"),
        (body(entry(status="resolved", endsAt="")), "alerts[0].endsAt"),
        (body(entry(fingerprint="../x")), "alerts[0].fingerprint is '../x'"),
        (body(entry(fingerprint=None)), "alerts[0].fingerprint is None"),
        ("[" * 100_000, "not valid JSON"),
        ('"' + "x" * page.MAX_PAYLOAD_BYTES + '"', "larger than 1,000,000 bytes"),
    ],
)
def test_malformed_is_refused_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(page.AlertError) as caught:
        choose(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_comes_is_refused_or_read_and_never_breaks(value: Any) -> None:
    for text in (json.dumps(value), json.dumps({"version": "4", "alerts": [value]})):
        with pytest.raises(page.AlertError) as caught:
            page.parse_payload(text)
        assert str(caught.value).isprintable()


def test_a_repeat_is_one_incident() -> None:
    assert choose(body(entry(), entry())).fingerprint == "aaaa"


def test_several_incidents_need_a_choice() -> None:
    text = body(entry(), entry(fingerprint="bbbb", startsAt="2026-11-24T21:00:00Z"))
    with pytest.raises(page.AlertError, match=r"2 incidents and a run handles one.*aaaa.*bbbb"):
        choose(text)
    assert choose(text, "bbbb").fingerprint == "bbbb"


def test_another_start_is_another_incident() -> None:
    with pytest.raises(page.AlertError, match="2 incidents"):
        choose(body(entry(), entry(startsAt="2026-11-24T20:00:00Z")))


def test_what_fires_goes_before_what_is_resolved() -> None:
    gone = entry(status="resolved", endsAt="2026-11-24T21:57:00Z", fingerprint="bbbb")
    assert choose(body(gone, entry())).fingerprint == "aaaa"
    assert choose(body(gone)).state == "resolved"


def test_an_alert_that_nobody_knows_beside_one_with_a_triage_does_not_stand_in_the_way() -> None:
    other = entry(labels={"alertname": "DiskFull"}, fingerprint="bbbb")
    assert choose(body(other, entry())).fingerprint == "aaaa"
    with pytest.raises(page.AlertError, match="'DiskFull' is not an alert that is known here; supported: Sendmail"):
        choose(body(other))


def test_the_heartbeat_is_looked_at_from_its_last_ping_on() -> None:
    """Healthchecks waits 30 m and 30 m more, and a pass before that was due within a quarter of an hour."""
    heartbeat = choose(body(entry(labels={"alertname": "heartbeat-ecs-reconfigure"})))
    assert page.SUPPORTED[heartbeat.name].look_back_minutes >= 60 + 16
    assert page.SUPPORTED[heartbeat.name].runbook == "heartbeat-ecs-reconfigure.md"


def test_a_wanted_alert_that_is_not_there() -> None:
    with pytest.raises(
        page.AlertError, match=r"triage_alert='cccc' is not in the payload, which holds: SendmailB.*aaaa"
    ):
        choose(body(entry()), "cccc")


def test_environment_picks_the_host() -> None:
    text = body(entry(labels={"environment": "stage"}), entry(fingerprint="bbbb"))
    assert choose(text, None, "stage", ("prod", "stage")).fingerprint == "aaaa"
    assert choose(text, None, "prod", ("prod", "stage")).fingerprint == "bbbb"
    assert choose(body(entry()), None, "stage", ("prod", "stage")) is None


@pytest.mark.parametrize(
    ("label", "known", "says"),
    [
        ("dev", ("prod", "stage"), "label environment='dev' fits no host of this run"),
        ("prod", ("prod", "prod"), "fits 2 hosts of this run"),
        (None, ("prod", "stage"), "no label 'environment' and this run has 2 hosts"),
    ],
)
def test_no_or_several_hosts_is_one_error_that_names_the_label(
    label: str | None, known: tuple[str, ...], says: str
) -> None:
    with pytest.raises(page.AlertError) as caught:
        choose(body(entry(labels={"environment": label})), None, "prod", known)
    assert says in str(caught.value)


def test_without_a_label_the_only_host_is_meant() -> None:
    assert choose(body(entry(labels={"environment": None}))).fingerprint == "aaaa"


def test_window_with_a_page_reaches_from_before_it_fired_to_now() -> None:
    assert page.window(NOW, None, None, FIRED, 48) == (FIRED - timedelta(minutes=48), NOW)


def test_window_without_a_page_is_the_last_48_minutes() -> None:
    assert page.window(NOW, None, None, None, 48) == (NOW - timedelta(minutes=48), NOW)


def test_window_given_by_hand_wins() -> None:
    start, end = NOW - timedelta(hours=3), NOW - timedelta(hours=2)
    assert page.window(NOW, start, end, FIRED, 48) == (start, end)
    assert page.window(NOW, None, end, FIRED, 48) == (end - timedelta(minutes=48), end)


@pytest.mark.parametrize(
    ("start", "end", "fired", "says"),
    [
        (NOW, NOW - timedelta(hours=1), None, "empty or reversed"),
        (NOW, NOW, None, "empty or reversed"),
        (NOW + timedelta(hours=1), None, None, "triage_start=2026-11-24T23:00:00Z is in the future"),
        (None, NOW + timedelta(hours=1), None, "triage_end=2026-11-24T23:00:00Z is in the future"),
        (None, None, NOW + timedelta(hours=1), "startsAt 2026-11-24T23:00:00Z is in the future"),
        (None, None, datetime(1, 1, 1, tzinfo=UTC), "startsAt 0001-01-01T00:00:00Z is more than 366 days ago"),
        (None, datetime(1, 1, 1, 0, 10, tzinfo=UTC), None, "triage_end 0001-01-01T00:10:00Z is more than"),
        (datetime(1970, 1, 1, tzinfo=UTC), None, None, "triage_start 1970-01-01T00:00:00Z is more than"),
    ],
)
def test_window_in_the_future_or_reversed(
    start: datetime | None, end: datetime | None, fired: datetime | None, says: str
) -> None:
    with pytest.raises(page.AlertError) as caught:
        page.window(NOW, start, end, fired, 48)
    assert says in str(caught.value)


def test_a_pager_whose_clock_is_a_little_ahead_is_heard() -> None:
    start, end = page.window(NOW, None, None, NOW + timedelta(seconds=30), 48)
    assert (start, end) == (NOW - timedelta(minutes=48), NOW)


def test_a_pager_whose_clock_is_far_ahead_is_refused() -> None:
    with pytest.raises(page.AlertError):
        page.window(NOW, None, None, NOW + timedelta(minutes=3), 48)


def test_a_window_never_ends_ahead_of_this_machines_clock() -> None:
    """What has not happened yet would count as a quiet stretch."""
    start, end = page.window(NOW, NOW - timedelta(hours=1), NOW + timedelta(seconds=30), None, 48)
    assert (start, end) == (NOW - timedelta(hours=1), NOW)


def test_section() -> None:
    chosen = choose(body(entry()))
    span = page.window(NOW, None, None, chosen.starts_at, 48)
    section = page.section(chosen.name, "payload", chosen, span, "prod")
    assert section["window"] == {
        "start": "2026-11-24T21:07:00Z",
        "end": "2026-11-24T22:00:00Z",
        "fired_at": "2026-11-24T21:55:00Z",
        "minutes": 53.0,
    }
    assert section["threshold"] == {
        "metric": "SendmailBounced",
        "pattern": "dsn=5",
        "lines": 15,
        "minutes": 30,
        "hold_minutes": 15,
    }


def test_the_deferred_spike_has_its_own_window_threshold_and_runbook() -> None:
    chosen = choose(body(entry(labels={"alertname": "SendmailDeferredSpike", "environment": "prod"})))
    rule = page.SUPPORTED[chosen.name]
    span = page.window(NOW, None, None, chosen.starts_at, rule.look_back_minutes)
    section = page.section(chosen.name, "payload", chosen, span, "prod")
    assert section["window"]["start"] == "2026-11-24T21:27:00Z"
    assert section["threshold"] == {
        "metric": "SendmailDeferred",
        "pattern": "stat=Deferred",
        "lines": 10,
        "minutes": 10,
        "hold_minutes": 15,
    }
    assert section["runbook"] == "sendmail-deferred-spike.md"


def test_healthchecks_own_notice_is_told_how_to_run() -> None:
    body = {
        "summary": "Missed heartbeat: ecs-reconfigure",
        "severity": "critical",
        "source": "healthchecks/ecs-reconfigure",
    }
    with pytest.raises(page.AlertError, match="triage_alert=heartbeat-ecs-reconfigure"):
        page.read_payload(body)
