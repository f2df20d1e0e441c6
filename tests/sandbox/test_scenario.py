# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a folder becomes an environment: defaults, times, log lines, the alert."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sandbox import alert, history, maillog, scenario
from sandbox.model import Loop, Scenario

WriteScenario = Callable[..., Path]
NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
DECLARED = datetime(2026, 11, 29, 1, 0, 0, tzinfo=UTC)


def load(folder: Path) -> Scenario:
    return scenario.load(folder, now=NOW, endpoint="http://127.0.0.1:1")


def history_of(loaded: Scenario, tier: str = "smtp-in") -> list[tuple[datetime, str]]:
    spec = loaded.tiers[tier].tasks[0].spec
    changes = [row.requested for row in loaded.addresses if row.requested]
    return history.lines(spec, loaded.now, changes, pings=loaded.heartbeat_modified is not None)


def one_task(tier: str, **task: Any) -> dict[str, Any]:
    tiers: dict[str, Any] = {name: {"log_level": 9} for name in ("imap", "smtp-in", "smtp-out")}
    tiers[tier]["tasks"] = [task]
    return tiers


def test_defaults(write_scenario: WriteScenario) -> None:
    loaded = load(write_scenario())
    spec = loaded.tiers["smtp-in"].tasks[0].spec
    assert spec.task_id == hashlib.md5(b"made/smtp-in/0").hexdigest()
    assert spec.ip == "10.0.1.23"
    assert spec.pin == "10.0.2.45"
    assert spec.started_at == NOW - timedelta(hours=26)
    assert loaded.discovery == {"imap": ("10.0.2.45",), "smtp-out": ("10.0.1.57",)}
    assert loaded.apexes == ["harborlight.example"]
    assert loaded.tiers["imap"].service.circuit_breaker
    assert not loaded.tiers["smtp-in"].service.circuit_breaker


def test_the_alert_has_exactly_the_deployments_labels(write_scenario: WriteScenario) -> None:
    loaded = load(write_scenario(environment="stage"))
    assert loaded.alert
    body = alert.payload(loaded, loaded.alert)
    (one,) = body["alerts"]
    assert one["labels"] == {
        "alertname": "SendmailBouncedSpike",
        "severity": "critical",
        "cluster": "cabalmail",
        "environment": "stage",
    }
    assert set(one["annotations"]) == {"summary", "description", "runbook_url"}
    assert one["annotations"]["runbook_url"].endswith("/sendmail-bounced-spike.md")
    assert one["startsAt"] == "2027-03-01T11:55:00.000Z"
    assert body["version"] == "4"
    json.dumps(body)


LINES = [
    ("2026-11-29T00:59:00.123456+00:00 host sendmail[1]: x", "2027-03-01T11:59:00.123456+00:00 host sendmail[1]: x"),
    ("Nov 29 00:59:00 host sendmail[1]: x", "Mar  1 11:59:00 host sendmail[1]: x"),
    ("2026-11-29 00:59:00,250 INFO spawned", "2027-03-01 11:59:00,250 INFO spawned"),
    ("2026-11-29 00:59:00 imap-login: Info", "2027-03-01 11:59:00 imap-login: Info"),
]


@pytest.mark.parametrize(("line", "shifted"), LINES)
def test_every_kind_of_time_is_shifted_in_its_own_form(line: str, shifted: str) -> None:
    ((at, text),) = maillog.events(iter([line]), DECLARED, NOW)
    assert text == shifted
    assert timedelta(seconds=59) <= NOW - datetime.fromtimestamp(at / 1000, UTC) <= timedelta(seconds=60)


def test_lines_without_a_time_take_that_of_the_line_before() -> None:
    lines = ["[first]", LINES[1][0], "[reconfigure] Done.", "Nov 29 00:59:30 host x"]
    found = list(maillog.events(iter(lines), DECLARED, NOW))
    assert [text for _at, text in found] == ["[first]", LINES[1][1], "[reconfigure] Done.", "Mar  1 11:59:30 host x"]
    assert found[0][0] == found[1][0] == found[2][0] < found[3][0]


def test_the_traditional_form_before_new_year() -> None:
    new_year = datetime(2027, 1, 1, 0, 5, tzinfo=UTC)
    ((at, _text),) = maillog.events(iter(["Dec 31 23:55:00 h x"]), new_year, new_year)
    assert datetime.fromtimestamp(at / 1000, UTC) == datetime(2026, 12, 31, 23, 55, tzinfo=UTC)


def dones(lines: list[tuple[datetime, str]]) -> list[datetime]:
    return [at for at, text in lines if text == "[reconfigure] Done."]


def test_a_healthy_loop_regenerates_every_quarter_hour_up_to_the_maps_age(write_scenario: WriteScenario) -> None:
    lines = history_of(load(write_scenario(tiers=one_task("smtp-in", maps={"age_minutes": 4}))))
    done = dones(lines)
    gaps = [later - earlier for earlier, later in itertools.pairwise(done)]
    assert timedelta(minutes=3.9) < NOW - done[-1] <= timedelta(minutes=4)
    assert all(timedelta(seconds=900) < gap <= timedelta(seconds=920) for gap in gaps)
    assert done[0] - (NOW - timedelta(hours=26)) < timedelta(seconds=960)
    starts = [at for at, text in lines if "Regenerating" in text]
    assert len(starts) == len(done)
    assert sum("Healthchecks ping sent" in text for _at, text in lines) == len(done)
    assert lines == sorted(lines, key=lambda line: line[0])


def test_a_loop_without_a_url_pings_nobody(write_scenario: WriteScenario) -> None:
    lines = history_of(load(write_scenario(parameters={"heartbeat": None})))
    assert not any("ping" in text for _at, text in lines)


def test_a_failing_loop_never_finishes_a_pass(write_scenario: WriteScenario) -> None:
    task = {"loop": "failing", "maps": {"text_age_minutes": 5, "db_age_minutes": 400}}
    lines = history_of(load(write_scenario(tiers=one_task("smtp-in", **task))))
    last_done = dones(lines)[-1]
    assert timedelta(minutes=399) < NOW - last_done < timedelta(minutes=401)
    after = [text for at, text in lines if at > last_done + timedelta(seconds=1)]
    exits = [text for text in after if "exited: reconfigure (exit status 65; not expected)" in text]
    assert len(exits) == sum("Regenerating" in text for text in after) >= 24
    assert sum(text.startswith("makemap: ") for text in after) == len(exits)
    assert not any("ping" in text for text in after)


def test_a_dead_loop_was_given_up(write_scenario: WriteScenario) -> None:
    lines = history_of(load(write_scenario(tiers=one_task("smtp-in", loop="dead", maps={"age_minutes": 300}))))
    gave_up = [at for at, text in lines if "gave up: reconfigure entered FATAL state" in text]
    assert len(gave_up) == 1
    assert timedelta() < gave_up[0] - dones(lines)[-1] < timedelta(minutes=10)
    assert sum("exited: reconfigure" in text for _at, text in lines) == 4


@pytest.mark.parametrize(("loop", "last"), [("hung", "Scanning DynamoDB"), ("stopped", "heartbeat")])
def test_a_hung_and_a_stopped_loop_fall_silent(write_scenario: WriteScenario, loop: str, last: str) -> None:
    lines = history_of(load(write_scenario(tiers=one_task("smtp-in", loop=loop, maps={"age_minutes": 300}))))
    assert timedelta(minutes=299) < NOW - dones(lines)[-1] < timedelta(minutes=301)
    own = [text for _at, text in lines if text.startswith(("[reconfigure]", "[generate-config]"))]
    assert ("Scanning" in own[-1]) is (loop == Loop.HUNG)
    assert last in (own[-1] if loop == Loop.HUNG else lines[-1][1])


def test_a_changed_address_was_regenerated_on_a_message(write_scenario: WriteScenario) -> None:
    changed = [{"address": "new@s.harborlight.example", "user": "alice", "requested_days_ago": 0.5}]
    lines = history_of(load(write_scenario(addresses=changed)))
    messages = [at for at, text in lines if "SQS message received" in text]
    assert len(messages) == 1
    assert timedelta(0) < messages[0] - (NOW - timedelta(days=0.5)) < timedelta(seconds=30)
    assert sum("Drained stale" in text for _at, text in lines) == 1


def test_the_pin_while_imap_is_gone(write_scenario: WriteScenario) -> None:
    tiers = one_task("smtp-in", pin="192.0.2.1", started_hours_ago=1)
    lines = history_of(load(write_scenario(tiers=tiers, discovery={"imap": []})))
    texts = [text for _at, text in lines if text.startswith("[hosts-pin]")]
    assert texts[1] == "[hosts-pin] resolve failed with no prior pin; wrote sentinel 192.0.2.1"
    assert texts[-1] == "[hosts-pin] resolve empty; keeping pin (192.0.2.1)"
    assert sum("resolve empty" in text for text in texts) in range(117, 121)


def test_every_line_of_a_history_is_of_a_known_form(write_scenario: WriteScenario) -> None:
    form = re.compile(
        r"\[(entrypoint|sync-users|generate-config|reconfigure|hosts-pin|prepare-sendmail)\] |  Generated /etc/"
        r"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARN) |\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00 ip-"
    )
    loaded = load(write_scenario())
    for tier in loaded.tiers:
        assert [text for _at, text in history_of(loaded, tier) if not form.match(text)] == []


def test_rows_from_a_file(write_scenario: WriteScenario) -> None:
    text = "# address\tuser\tdays\nb@s.quietmail.example\tbob\t3\nc@s.quietmail.example\tcarol/bob\t9\tsuspended\n"
    loaded = load(write_scenario(logs={"rows.tsv": text}, addresses_file="rows.tsv"))
    assert [row.address for row in loaded.addresses] == [
        "a@s.harborlight.example",
        "b@s.quietmail.example",
        "c@s.quietmail.example",
    ]
    assert loaded.addresses[1].requested == NOW - timedelta(days=3)
    assert loaded.addresses[2].suspended


def test_the_smallest_scenario_of_the_documentation_is_sound(tmp_path: Path) -> None:
    documentation = (Path(__file__).parents[2] / "docs" / "scenarios.md").read_text()
    (example,) = re.findall(r"```yaml\n(schema: 1\n.*?)```", documentation, re.DOTALL)
    (tmp_path / "scenario.yml").write_text(example)
    assert load(tmp_path).alert is None
