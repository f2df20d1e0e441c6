# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Delivery on imap and the way to it: bad, in order, and not to be known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.cabalmail.local_delivery import DiskLimits, local_delivery

GOOD_HOME = {"exists": True, "path": "/home/alice", "maildir": True, "uid": 2001, "owner_uid": 2001, "problem": None}


def imap(**more: Any) -> dict[str, Any]:
    return {
        "tier": "imap",
        "task": "a" * 32,
        "status": "complete",
        "ip": "10.0.2.45",
        "users": ["alice"],
        "homes": {"alice": GOOD_HOME},
        "stray_mail": [],
        "disk": {"/tmp": {"used_percent": 40, "inodes_used_percent": 3}},
        "queue": {"messages": 3, "oldest": None},
        "hosts_pin": None,
        **more,
    }


def smtp_in(pin: str | None) -> dict[str, Any]:
    return {"tier": "smtp-in", "task": "b" * 32, "status": "complete", "hosts_pin": pin, "disk": {}}


def facts(*entries: dict[str, Any], **environment: Any) -> dict[str, Any]:
    return {
        "containers": {"status": "complete", "reasons": [], "tasks": list(entries), "unreachable": []},
        "environment": {
            "services": {"imap": {"status": "complete", "running": 1, "tasks": [{"id": "a" * 32, "ip": "10.0.2.45"}]}},
            "discovery": {"imap": {"status": "complete", "instances": ["10.0.2.45"]}},
            **environment,
        },
        "tiers": {"by_tier": {}},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"username": "ann", "subdomain": "s", "tld": "harborlight.example", "user": "alice"},
        {"username": "eve", "subdomain": "s", "tld": "harborlight.example", "user": "eve"},
    ]
    (tmp_path / "addresses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fail(tmp_path)
    return tmp_path


def fail(folder: Path, *addresses: str) -> None:
    rows = [{"address": address, "tier": "imap", "code": "5.1.1", "seen": "user_unknown"} for address in addresses]
    (folder / "failed_recipients.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def section(triage: dict[str, Any], folder: Path) -> dict[str, Any]:
    found = local_delivery(triage, folder, DiskLimits())
    json.dumps(found)
    return found


def test_in_order(folder: Path) -> None:
    found = section(facts(imap(users=["alice", "eve"]), smtp_in("10.0.2.45")), folder)
    assert (found["status"], found["reasons"]) == ("complete", [])
    for key in ("missing_users", "users_of_table_missing", "unwritable", "disk_full", "stray_mail", "pin_sentinel"):
        assert found[key] == []
    assert (found["discovery_empty"], found["discovery_orphans"], found["imap_running"]) == (False, [], 1)
    assert found["pins"] == [{"task": "b" * 32, "ip": "10.0.2.45", "sentinel": False, "is_imap": True}]
    assert found["imap_queue"]["messages"] == 3


def test_a_missing_user_and_how_many_recipients_it_cost(folder: Path) -> None:
    fail(folder, "eve@s.harborlight.example", "ann@s.harborlight.example", "zoe")
    found = section(facts(imap()), folder)
    assert found["missing_users"] == [
        {"user": "eve", "recipients": 1, "confirmed": True, "cognito": "unknown", "osid": None},
        {"user": "zoe", "recipients": 1, "confirmed": True, "cognito": "unknown", "osid": None},
    ]
    assert found["users_of_table_missing"] == [{"user": "eve", "addresses": 1}]


def test_a_missing_user_s_account(folder: Path) -> None:
    """A restart brings a CONFIRMED user with a UID, and nobody else."""
    fail(folder, "eve@s.harborlight.example", "zoe")
    accounts = {"users": [{"user": "eve", "status": "UNCONFIRMED", "osid": True}]}
    found = section(facts(imap(), users=accounts), folder)
    assert [(row["user"], row["cognito"], row["osid"]) for row in found["missing_users"]] == [
        ("eve", "UNCONFIRMED", True),
        ("zoe", "unknown", None),
    ]


@pytest.mark.parametrize(
    ("mounts", "known"),
    [({"/": "overlay", "/home": "nfs4"}, True), ({"/": "overlay"}, False), ({}, None)],
)
def test_whether_home_outlives_the_task(folder: Path, mounts: dict[str, str], known: bool | None) -> None:
    assert section(facts(imap(mounts=mounts)), folder)["home_on_efs"] is known


def test_errors_of_local_delivery_from_the_log(folder: Path) -> None:
    triage = facts(imap())
    assert section(triage, folder)["procmail_errors"] is None
    words = "local mailer (/usr/bin/procmail) exited with EX_TEMPFAIL"
    rows = [{"text": words, "reason": "local_error", "recipients": 3}, {"text": "x", "reason": "other"}]
    triage["tiers"]["by_tier"]["imap"] = {"coverage": {"status": "complete"}, "deferrals": {"replies": rows}}
    assert section(triage, folder)["procmail_errors"] == [{"text": words, "recipients": 3}]


def test_imap_in_dns_as_the_tasks_see_it(folder: Path) -> None:
    asked = {**smtp_in("10.0.2.45"), "imap_in_dns": []}
    assert section(facts(imap(), asked), folder)["imap_in_dns"] == {"b" * 32: []}
    assert section(facts(imap(), smtp_in("10.0.2.45")), folder)["imap_in_dns"] == {}


def test_without_the_container_the_answers_of_imap_speak_unconfirmed(folder: Path) -> None:
    fail(folder, "eve@s.harborlight.example")
    triage = facts()
    triage["containers"]["unreachable"] = [{"tier": "imap", "task": "a" * 32, "reason": "The agent is not connected."}]
    found = section(triage, folder)
    assert found["status"] == "partial"
    assert "The agent is not connected." in found["reasons"][0]
    assert found["missing_users"] == [
        {"user": "eve", "recipients": 1, "confirmed": None, "cognito": "unknown", "osid": None}
    ]
    for key in ("users_of_table_missing", "unwritable", "disk_full", "stray_mail", "imap_queue"):
        assert found[key] is None


def test_a_maildir_that_cannot_be_written(folder: Path) -> None:
    home = {**GOOD_HOME, "owner_uid": 0, "mode": "0700", "problem": "maildir_not_writable"}
    # The home of somebody who has no address is nobody's trouble.
    found = section(facts(imap(homes={"alice": home, "operator": home})), folder)
    (row,) = found["unwritable"]
    assert (row["user"], row["problem"], row["path"], row["addresses"]) == (
        "alice",
        "maildir_not_writable",
        "/home/alice/Maildir",
        1,
    )


@pytest.mark.parametrize(
    ("disk", "full"),
    [
        ({"used_percent": 95, "inodes_used_percent": 1}, True),
        ({"used_percent": 10, "inodes_used_percent": 100}, True),
        ({"used_percent": 94, "inodes_used_percent": None}, False),
    ],
)
def test_full_disks(folder: Path, disk: dict[str, Any], full: bool) -> None:
    found = section(facts(imap(disk={"/var/spool/mail": disk})), folder)
    assert bool(found["disk_full"]) is full


def test_stray_mail(folder: Path) -> None:
    found = section(facts(imap(stray_mail=[{"user": "alice", "bytes": 900, "newest": None}])), folder)
    assert found["stray_mail"] == [{"task": "a" * 32, "user": "alice", "bytes": 900, "newest": None}]


@pytest.mark.parametrize(
    ("instances", "running", "empty"),
    [([], 1, True), ([], 0, False), (["10.0.2.45"], 1, False), (None, 1, None), ([], None, None)],
)
def test_cloud_map_empty_while_imap_runs(
    folder: Path, instances: list[str] | None, running: int | None, empty: bool | None
) -> None:
    found = section(
        facts(
            imap(),
            services={"imap": {"status": "complete" if running is not None else "unavailable", "running": running}},
            discovery={"imap": {"status": "unavailable" if instances is None else "complete", "instances": instances}},
        ),
        folder,
    )
    assert found["discovery_empty"] is empty
    assert any("Cloud Map" in reason for reason in found["reasons"]) is (empty is None)


def test_an_address_of_a_task_that_is_gone(folder: Path) -> None:
    discovery = {"imap": {"status": "complete", "instances": ["10.0.2.45", "10.0.2.99"]}}
    assert section(facts(imap(), discovery=discovery), folder)["discovery_orphans"] == ["10.0.2.99"]


def test_the_pin_on_the_sentinel_from_container_and_from_log(folder: Path) -> None:
    assert section(facts(smtp_in("192.0.2.1")), folder)["pin_sentinel"] == ["b" * 32]
    triage = facts()
    triage["tiers"]["by_tier"]["smtp-in"] = {"tasks": {"c" * 32: {"hosts_pin": {"sentinel": True}}}}
    assert section(triage, folder)["pin_sentinel"] == ["c" * 32]
    # What the container shows now beats what was logged before.
    triage = facts(smtp_in("10.0.2.45"))
    triage["tiers"]["by_tier"]["smtp-in"] = {"tasks": {"b" * 32: {"hosts_pin": {"sentinel": True}}}}
    assert section(triage, folder)["pin_sentinel"] == []


def test_mail_that_does_not_find_imap(folder: Path) -> None:
    triage = facts(imap())
    triage["tiers"]["by_tier"] = {
        "smtp-out": {
            "coverage": {"status": "complete"},
            "bounces": {"own_host": {"reasons": {"host_unknown": 7}}},
        },
        "smtp-in": {
            "coverage": {"status": "complete"},
            "deferrals": {"relays": [{"relay": "imap.cabal.internal.", "recipients": 4}, {"relay": "mx.x.example."}]},
        },
    }
    assert section(triage, folder)["unresolvable"] == {
        "recipients": 7,
        "tiers": {"smtp-out": {"not_found": 7, "deferred": 0}, "smtp-in": {"not_found": 0, "deferred": 4}},
    }


def test_nothing_to_look_at_is_unavailable(tmp_path: Path) -> None:
    found = section({}, tmp_path)
    assert found["status"] == "unavailable"
    assert found["missing_users"] is None
    assert found["discovery_empty"] is None
