# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Next actions: what is not known is never told as a fact, and a command can be pasted as it stands."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from ansible.module_utils.cabalmail.verdict import judge

from .test_verdict import BAD, SMTP_IN, Triage, deploying, smtp_in_stale, unavailable


def actions(triage: Triage, table: list[Any], options: Triage, identity: str) -> list[dict[str, Any]]:
    found = next(f for f in judge(triage, table, options)["findings"] if f["id"] == identity)
    return list(found["next_actions"])


@pytest.mark.parametrize(
    ("step", "unseen", "command"),
    [
        ("environment", "whether a deployment is in progress", "describe-services"),
        ("reconfigure_loop", "whether makemap fails on a row", "exited: reconfigure"),
    ],
)
def test_what_could_not_be_seen_is_looked_at_before_a_restart(
    step: str, unseen: str, command: str, triage: Triage, table: list[Any], options: Triage
) -> None:
    smtp_in_stale(triage)
    triage[step] = unavailable()
    told = actions(triage, table, options, "smtp_in.stale_map")
    assert unseen in told[0]["text"]
    assert command in told[0]["command"]
    words = " ".join(action["text"] for action in told)
    assert "Restart what is stuck" not in words
    assert "is in progress. Wait" not in words
    assert "Do not restart anything yet" not in words


@pytest.mark.parametrize("identity", BAD)
def test_commands_can_be_pasted(identity: str, triage: Triage, table: list[Any], options: Triage) -> None:
    BAD[identity](triage)
    for finding in judge(triage, table, options)["findings"]:
        commands = [action["command"] for action in finding["next_actions"] if action["command"]]
        for command in [*commands, *finding["reproduce"]]:
            assert not [word for word in shlex.split(command, posix=False) if word.startswith("<")], command
            assert "None" not in shlex.split(command), command
            assert "unknown" not in shlex.split(command), command


def test_names_are_those_of_the_deployment(triage: Triage, table: list[Any], options: Triage) -> None:
    smtp_in_stale(triage)
    triage["environment"]["services"]["smtp-in"]["service"] = "mail-smtp-in"
    told = actions(triage, table, options, "smtp_in.stale_map")
    assert "--service mail-smtp-in " in told[0]["command"]
    verdict = judge(triage, table, options)["verdict"]
    assert verdict["remedy"]["service"] == "mail-smtp-in"


def test_a_deployment_that_is_seen_is_waited_for(triage: Triage, table: list[Any], options: Triage) -> None:
    smtp_in_stale(triage)
    deploying(triage)
    assert "Wait until it has settled" in actions(triage, table, options, "smtp_in.stale_map")[0]["text"]


def test_siblings_that_were_not_seen_are_not_called_healthy(triage: Triage, table: list[Any], options: Triage) -> None:
    smtp_in_stale(triage)
    triage["address_map"]["tasks_of_tier"]["smtp-in"] = 3
    found = judge(triage, table, options)["verdict"]
    assert "1 of 3 tasks, 2 not seen" in found["summary"]
    assert "the others go on" not in found["next_actions"][0]["text"]
    seen = [{"tier": "smtp-in", "task": letter * 32, "stale": False} for letter in "de"]
    triage["address_map"]["tasks"] += seen
    found = judge(triage, table, options)["verdict"]
    assert "1 of 3 tasks)" in found["summary"]
    assert "the others go on" in found["next_actions"][0]["text"]
    assert found["remedy"]["tasks"] == [SMTP_IN]


def siblings_of(triage: Triage, state: str, sources: list[str]) -> list[str]:
    """Three tasks of smtp-in, two of them in that state."""
    rows = [row for row in triage["reconfigure_loop"]["tasks"] if row["tier"] != "smtp-in"]
    names = [letter * 32 for letter in "def"]
    rows += [{"tier": "smtp-in", "task": name, "state": "healthy", "sources": ["exec", "logs"]} for name in names]
    for row in rows[-2:]:
        row.update(state=state, sources=sources)
    triage["reconfigure_loop"]["tasks"] = rows
    return names


@pytest.mark.parametrize("state", ["dead", "hung"])
def test_the_commands_reach_every_stuck_task_and_no_other(
    state: str, triage: Triage, table: list[Any], options: Triage
) -> None:
    healthy, *stuck = siblings_of(triage, state, ["exec", "logs"])
    for action in actions(triage, table, options, f"reconfigure.{state}"):
        if action["command"]:
            assert all(f"--task {name} " in action["command"] for name in stuck)
            assert healthy not in action["command"]


def test_where_exec_is_denied_nobody_is_sent_into_the_container(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    siblings_of(triage, "hung", ["logs"])
    told = actions(triage, table, options, "reconfigure.hung")
    assert not any("execute-command" in (action["command"] or "") for action in told)
    assert "stop-task" in told[0]["command"]


def test_homes_off_efs_are_named_where_a_maildir_is_missing(triage: Triage, table: list[Any], options: Triage) -> None:
    BAD["imap.maildir_unwritable"](triage)
    for known, said in ((False, True), (True, False), (None, False)):
        triage["local_delivery"]["home_on_efs"] = known
        words = " ".join(action["text"] for action in actions(triage, table, options, "imap.maildir_unwritable"))
        assert ("no NFS mount" in words) is said


def test_an_orphan_of_cloud_map_is_named_since_no_restart_removes_it(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    BAD["deferred.imap_unreachable"](triage)
    for known, said in ((["10.0.2.99"], True), ([], False), (None, False)):
        triage["local_delivery"]["discovery_orphans"] = known
        words = " ".join(action["text"] for action in actions(triage, table, options, "deferred.imap_unreachable"))
        assert ("10.0.2.99" in words) is said


def test_the_key_is_looked_up_and_restored_under_its_own_selector(
    triage: Triage, table: list[Any], options: Triage
) -> None:
    row = {"status": "missing", "problem": "it has none", "name": "other._domainkey.s.example.com"}
    triage["deliverability"]["domains"].append({"domain": "s.example.com", "dkim": row})
    found = next(f for f in judge(triage, table, options)["findings"] if f["id"] == "smtp_out.dkim")
    assert found["reproduce"] == ["dig +short TXT other._domainkey.s.example.com"]
    assert "other._domainkey.s.example.com" in found["next_actions"][0]["text"]
