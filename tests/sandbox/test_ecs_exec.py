# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ECS Exec against the sandbox: a client and an agent that were written apart, in real tasks."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.ecs_exec import runner, targets
from ansible.module_utils.ecs_exec.aws import Aws
from ansible.module_utils.ecs_exec.runner import Outcome, Plan
from ansible.module_utils.ecs_exec.wrapper import Program
from ansible.module_utils.session_manager import channel

from .conftest import SandboxUnderTest

BYTES = bytes(range(256)) * 300
# The shell's printf makes every byte; nothing has to be there beforehand.
WRITE = "i=0; while [ $i -lt 300 ]; do printf '%b' \"$1\"; i=$((i+1)); done; echo complaint >&2; exit 42\n"
ESCAPES = "".join(f"\\0{byte:03o}" for byte in range(256))
PROGRAM = Program(script=WRITE, arguments=(ESCAPES,), seconds=20)


def agent(sandbox: SandboxUnderTest, **options: Any) -> None:
    request = urllib.request.Request(f"{sandbox.url}/_sandbox/agent", json.dumps(options).encode())
    urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture
def sandbox(quiet: SandboxUnderTest) -> Iterator[SandboxUnderTest]:
    """The sandbox with the agent's waits off, and its agent as it was afterwards."""
    agent(quiet, delays="off")
    quiet.reset_calls()
    yield quiet
    agent(quiet, delays="on", handshake=False, pause_when_away=False, faults={})


def execute(sandbox: SandboxUnderTest, program: Program, service: str = "cabal-imap", **bounds: Any) -> list[Outcome]:
    ecs, ssm = sandbox.client("ecs"), sandbox.client("ssm")
    aws = Aws(ecs, ssm, ecs._request_signer._credentials, "us-east-1")
    return runner.run(Plan(program, **bounds), targets.find(ecs, "cabal-mail", services=[service]), aws)


def operations(sandbox: SandboxUnderTest) -> list[str]:
    return [json.dumps(call) for call in sandbox.calls()]


def test_bytes_streams_and_status_are_exact_and_the_session_ends_by_itself(sandbox):
    (outcome,) = execute(sandbox, PROGRAM)
    assert (outcome.outcome, outcome.rc, outcome.reason) == ("completed", 42, None)
    assert (outcome.stdout, outcome.stderr) == (BYTES, b"complaint\n")
    assert outcome.target.container == "imap"
    assert not any("TerminateSession" in call for call in operations(sandbox))


@pytest.mark.parametrize(
    "faults",
    [
        {"lose": 0.2},
        {"duplicate": 0.3},
        {"reorder": 0.3},
        {"corrupt": 0.2},
        {"garbage": 0.3},
        {"lose_acks": 0.5},
        {"lose_input": 0.3},
        {"lose": 0.1, "duplicate": 0.2, "reorder": 0.2, "corrupt": 0.1, "lose_acks": 0.2, "lose_input": 0.2},
    ],
    ids=lambda faults: "+".join(faults),
)
def test_what_heals_is_exact(sandbox, faults):
    agent(sandbox, faults=faults)
    script = "#" + "x" * 6000 + "\ncat >/dev/null; " + WRITE
    program = Program(script=script, arguments=(ESCAPES,), seconds=30, has_stdin=True)
    (outcome,) = execute(sandbox, program, stdin=BYTES[:20_000])
    assert (outcome.outcome, outcome.rc, outcome.stdout, outcome.stderr) == ("completed", 42, BYTES, b"complaint\n")


def test_a_handshake_changes_nothing(sandbox):
    agent(sandbox, handshake=True)
    (outcome,) = execute(sandbox, PROGRAM)
    assert (outcome.rc, outcome.stdout) == (42, BYTES)


@pytest.mark.parametrize("after", [1, 5, 20])
def test_a_session_whose_connection_breaks_is_carried_on(sandbox, after):
    agent(sandbox, faults={"drop_after": after}, pause_when_away=True)
    program = Program(script="cat >/dev/null; " + WRITE, arguments=(ESCAPES,), seconds=30, has_stdin=True)
    (outcome,) = execute(sandbox, program, stdin=BYTES[:9_000])
    assert (outcome.outcome, outcome.rc, outcome.stdout) == ("completed", 42, BYTES), outcome.reason
    assert sum("ResumeSession" in call for call in operations(sandbox)) == 1


def test_a_gateway_that_does_not_pause_its_agent_may_cost_the_session_but_never_a_byte(sandbox, monkeypatch):
    monkeypatch.setattr(channel, "GAP_LIMIT", 3.0)
    agent(sandbox, faults={"drop_after": 12}, pause_when_away=False)
    (outcome,) = execute(sandbox, PROGRAM)
    if outcome.outcome == "completed":
        assert (outcome.rc, outcome.stdout) == (42, BYTES)
    else:
        assert (outcome.outcome, outcome.stdout) == ("session_broke", None)


@pytest.mark.parametrize(
    "faults",
    [{"drop_after": 5, "refuse_resume": True}, {"silent_after": 5}],
    ids=["dropped", "silent"],
)
def test_what_breaks_is_one_sentence_and_ends_the_session(sandbox, monkeypatch, faults):
    monkeypatch.setattr(runner, "START_ALLOWANCE", 1.0)
    agent(sandbox, faults=faults)
    started = time.monotonic()
    (outcome,) = execute(sandbox, Program(script=WRITE, arguments=(ESCAPES,), seconds=2))
    assert time.monotonic() - started < 15
    assert (outcome.outcome, outcome.rc, outcome.stdout) == ("session_broke", None, None)
    assert "before the command's end" in (outcome.reason or "") or "is unknown" in (outcome.reason or "")
    assert any("TerminateSession" in call for call in operations(sandbox))


def test_a_time_limit_ends_the_command_in_the_container(sandbox):
    (outcome,) = execute(sandbox, Program(argv=("sh", "-c", "echo before; sleep 641 & sleep 642"), seconds=1))
    assert (outcome.outcome, outcome.stdout) == ("timed_out", b"before\n")
    (outcome,) = execute(sandbox, Program(argv=("pgrep", "-fx", "sleep 64[12]"), seconds=5))
    assert (outcome.rc, outcome.stdout) == (1, b"")


def test_output_goes_to_a_file(sandbox, tmp_path):
    program = Program(argv=("head", "-c", "2000000", "/dev/zero"), seconds=30)
    (outcome,) = execute(sandbox, program, dest=tmp_path, max_output=None)
    assert outcome.dest is not None
    assert outcome.dest.read_bytes() == bytes(2_000_000)


def test_nothing_is_left_in_the_container(sandbox):
    """Neither files nor processes, after a script and input that were sent over the terminal."""
    look = Program(script="ls -A /tmp /var/tmp /dev/shm 2>/dev/null; ps -eo args\n", seconds=21)
    (before,) = execute(sandbox, look)
    execute(sandbox, Program(script="#" + "x" * 9000 + "\ncat\n", has_stdin=True, seconds=22), stdin=BYTES)
    (after,) = execute(sandbox, look)
    assert before.stdout is not None
    assert after.stdout is not None
    new = set(after.stdout.splitlines()) - set(before.stdout.splitlines())
    # What looks sees itself, under another nonce.
    assert [line for line in new if not line.startswith(b"/bin/sh -c exec 6<&0")] == []


def test_tasks_out_of_reach_are_explained(running: SandboxUnderTest, write_scenario: Callable[..., Path]):
    tasks = {"imap": "disabled", "smtp-in": "agent_stopped", "smtp-out": "not_connected"}
    tiers = {tier: {"log_level": 9, "tasks": [{"started_hours_ago": 5, "exec": how}]} for tier, how in tasks.items()}
    running.load(write_scenario(tiers=tiers))
    reasons = {}
    for tier in tasks:
        (outcome,) = execute(running, Program(argv=("true",), seconds=5), f"cabal-{tier}")
        assert outcome.outcome == "unreachable"
        reasons[tier] = outcome.reason or ""
    assert "was not enabled when this task was started" in reasons["imap"]
    assert "The ECS Exec agent in the container is STOPPED" in reasons["smtp-in"]
    assert "TargetNotConnectedException" in reasons["smtp-out"]
