# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What proves a recovery: each check once bad and once unknown, and the outcome that follows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from ansible.module_utils.cabalmail.audit import record, result
from ansible.module_utils.cabalmail.failed_recipient import Failure
from ansible.module_utils.cabalmail.recovery import bounced_again, conclude, prove, ready, side

Facts = dict[str, Any]
OLD, NEW = "a" * 32, "b" * 32
ACTED = "2026-11-24T22:00:00Z"
PLAN: Facts = {
    "kind": "redeploy_service",
    "tier": "imap",
    "tasks": [OLD],
    "service": "cabal-imap",
    "next_step": "Stop.",
}


def view(path: str, built: str = "2026-11-24T22:01:00Z") -> Facts:
    same = dict.fromkeys(("missing", "surplus", "wrong_user", "domains_missing"), 0)
    row = {"map": path, "entries": 24, "source": "makemap", "age_seconds": 20, "db_mtime": built}
    return {**row, **same, "db_differs_from_text": False}


def column(task: str, **more: Any) -> Facts:
    maps = [view("/etc/mail/access"), view("/etc/mail/virtusertable")]
    row = {"task": task, "started_at": ACTED, "ip": "10.0.2.45", "loop": "healthy", "loop_pid": 7, "maps": maps}
    whole = {"at": ACTED, "desired": 1, "running": 1, "deployments": [], "queue_visible": 0, "mail_queue": 0}
    return {**whole, "registered": ["10.0.2.45"], "tasks": [row], **more}


def proof(after: Facts, again: int | None = 0, **plan: Any) -> dict[str, bool | None]:
    return {row["name"]: row["passed"] for row in prove(column(OLD), after, {**PLAN, **plan}, ACTED, again)}


def test_a_recovery_is_proven() -> None:
    checks = prove(column(OLD), column(NEW), PLAN, ACTED, 0)
    assert all(check["passed"] for check in checks)
    assert conclude({"outcome": "steady", "changed": True}, checks) == "recovered"


def task(after: Facts) -> Facts:
    row: Facts = after["tasks"][0]
    return row


BAD: list[tuple[str, bool | None, Callable[[Facts], Any]]] = [
    ("tasks_running", False, lambda after: after.update(running=0)),
    ("tasks_running", None, lambda after: after.update(running=None)),
    ("tasks_running", False, lambda after: after["tasks"].extend(column(OLD)["tasks"])),
    ("loop_alive", False, lambda after: task(after).update(loop="failing")),
    ("loop_alive", None, lambda after: task(after).update(loop="unknown")),
    ("maps_fresh", False, lambda after: task(after)["maps"][1].update(db_mtime="2026-11-24T21:59:00Z")),
    ("maps_fresh", None, lambda after: task(after)["maps"][1].update(db_mtime=None)),
    ("maps_equal_table", False, lambda after: task(after)["maps"][0].update(missing=1)),
    ("maps_equal_table", False, lambda after: task(after)["maps"][0].update(db_differs_from_text=True)),
    ("maps_equal_table", None, lambda after: task(after)["maps"][0].update(entries=None)),
    ("registered", False, lambda after: after.update(registered=["10.0.2.99"])),
    ("registered", None, lambda after: after.update(registered=None)),
]


@pytest.mark.parametrize(("name", "passed", "change"), BAD)
def test_each_check_alone_is_no_recovery(name: str, passed: bool | None, change: Callable[[Facts], Any]) -> None:
    after = column(NEW)
    change(after)
    checks = prove(column(OLD), after, PLAN, ACTED, 0)
    assert {row["name"]: row["passed"] for row in checks if not row["passed"]} == {name: passed}
    assert not ready(checks)
    assert conclude({"outcome": "steady", "changed": True}, checks) == "not_recovered"


@pytest.mark.parametrize(("again", "passed"), [(3, False), (None, None)])
def test_bounces_that_go_on_are_no_recovery(again: int | None, passed: bool | None) -> None:
    checks = prove(column(OLD), column(NEW), PLAN, ACTED, again)
    assert {row["name"]: row["passed"] for row in checks if not row["passed"]} == {"bounces_stopped": passed}
    assert ready(checks)
    assert conclude({"outcome": "steady", "changed": True}, checks) == "not_recovered"


def test_what_was_not_watched_for_long_enough_is_not_proven() -> None:
    checks = prove(column(OLD), column(NEW), PLAN, ACTED, 0, (30, 120))
    assert {row["name"]: row["passed"] for row in checks if not row["passed"]} == {"bounces_stopped": None}
    assert ready(checks)
    assert conclude({"outcome": "steady", "changed": True}, checks) == "not_recovered"
    assert prove(column(OLD), column(NEW), PLAN, ACTED, 0, (120, 120))[-2]["passed"] is True


def test_a_map_read_from_its_text_proves_nothing_of_its_db() -> None:
    after = column(NEW)
    task(after)["maps"][0]["source"] = "text"
    found = proof(after)
    assert (found["maps_fresh"], found["maps_equal_table"]) == (None, None)


def test_no_new_task_is_no_recovery() -> None:
    found = proof(column(OLD))
    assert (found["tasks_running"], found["loop_alive"], found["maps_fresh"]) == (False, None, None)


def test_where_a_loop_was_ended_its_own_task_is_looked_at() -> None:
    assert set(proof(column(OLD), kind="restart_loop").values()) == {True}
    assert "registered" not in proof(column(OLD), kind="restart_loop")


@pytest.mark.parametrize(
    ("action", "outcome"),
    [
        ({"outcome": "rolled_back", "changed": True}, "rolled_back"),
        ({"outcome": "refused"}, "not_attempted"),
        ({"outcome": "nothing_to_do", "changed": False}, "not_attempted"),
        ({"outcome": "would_act", "changed": False}, "not_attempted"),
        ({"outcome": "failed", "changed": True}, "not_recovered"),
        ({"outcome": "unknown", "changed": True}, "not_recovered"),
    ],
)
def test_outcomes_without_a_proof(action: Facts, outcome: str) -> None:
    assert conclude(action, []) == outcome


def decided() -> Facts:
    return {
        "plan": PLAN,
        "gates": [],
        "stopped_by": [],
        "finding": "imap.stale_map",
        "fingerprint": "f",
        "approved": None,
    }


def test_what_was_not_cured_is_critical_and_names_what_comes_next() -> None:
    action = {"outcome": "steady", "changed": True, "asked_at": ACTED, "msg": "Steady."}
    part = result(decided(), action, {"checks": [], "after": None}, column(OLD), "")
    assert (part["outcome"], part["severity"], part["next_step"]) == ("not_recovered", "critical", "Stop.")


def test_somebody_elses_deployment_is_a_closed_gate() -> None:
    part = result(decided(), {"outcome": "nothing_to_do", "changed": False, "msg": "Done before."}, {}, column(OLD), "")
    assert (part["outcome"], part["stopped_by"], part["reasons"]) == (
        "not_attempted",
        ["recently_remediated"],
        ["Done before."],
    )
    refused = {"outcome": "refused", "refused_by": "deployment_in_progress", "msg": "A deployment is in progress."}
    assert result(decided(), refused, {}, column(OLD), "")["stopped_by"] == ["deployment_in_progress"]


def test_a_break_before_the_action_is_no_action_and_one_after_it_no_recovery() -> None:
    assert result(decided(), {}, {}, {}, "it broke")["outcome"] == "not_attempted"
    action = {"outcome": "steady", "changed": True, "asked_at": ACTED}
    part = result(decided(), action, {}, column(OLD), "it broke")
    assert (part["outcome"], part["status"], part["reasons"]) == ("not_recovered", "partial", ["it broke"])


def failure(mark: int, refused_by: str, second: int) -> Failure:
    at = datetime(2026, 11, 24, 22, 0, second, tzinfo=UTC).timestamp()
    return Failure(b"a@b.example", mark, refused_by, False, "5.3.0", "imap", "", at)


def test_only_affected_recipients_that_should_not_fail_count() -> None:
    since = datetime(2026, 11, 24, 22, 0, 10, tzinfo=UTC)
    before = [failure(1, "imap", 0), failure(2, "imap", 0)]
    after = [
        failure(1, "imap", 20),
        failure(2, "smtp-in", 20),  # refused at the door, since it is not in the table: with right
        failure(3, "imap", 20),  # not affected before
        failure(2, "imap", 5),  # before the new maps
    ]
    assert bounced_again(before, after, since, {1: 0}) == 1
    assert bounced_again(before, after, since, {1: 0, 2: 1}) == 2
    assert bounced_again(before, None, since, {}) is None


def test_a_side_of_nothing_is_unknown_everywhere() -> None:
    empty = side({}, "imap", ACTED)
    assert (empty["running"], empty["tasks"], empty["registered"]) == (None, [], None)
    assert not any(row["passed"] for row in prove(empty, empty, PLAN, ACTED, None))


def test_the_audit_record_says_who_what_when_why() -> None:
    part = {
        **decided(),
        "outcome": "recovered",
        "before": column(OLD),
        "after": column(NEW),
        "action": {"asked_at": ACTED},
    }
    run = {"id": "r", "environment": "prod", "cluster": "cabal-mail", "check_mode": False}
    finding = {"id": "imap.stale_map", "confidence": "high", "summary": "Old map.", "evidence": ["/address_map"]}
    said = record({"run": run, "remediation": part, "findings": [finding]}, {"identity": "arn:me"}, ACTED)
    assert (said["who"]["identity"], said["what"]["service"], said["asked_at"]) == ("arn:me", "cabal-imap", ACTED)
    assert (said["why"]["finding"], said["before"]["loops"], said["after"]["loops"]) == (
        "imap.stale_map",
        {OLD: "healthy"},
        {NEW: "healthy"},
    )
    assert copy.deepcopy(said) == said
