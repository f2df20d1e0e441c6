# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ECS Exec in a cluster whose key encrypts the sessions: client, agent and KMS, end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.ecs_exec import runner, targets
from ansible.module_utils.ecs_exec.aws import Aws
from ansible.module_utils.ecs_exec.runner import Outcome, Plan
from ansible.module_utils.ecs_exec.wrapper import Program

from .conftest import SandboxUnderTest
from .test_ecs_exec import agent

BYTES = bytes(range(256)) * 40
PROGRAM = Program(argv=("sh", "-c", "cat; echo complaint >&2; exit 7"), seconds=20, has_stdin=True)


@pytest.fixture
def encrypted(running: SandboxUnderTest, write_scenario: Callable[..., Path]) -> Callable[..., SandboxUnderTest]:
    """Load a scenario with a cluster key, and faults if any."""

    def load(*faults: dict[str, Any], **options: Any) -> SandboxUnderTest:
        running.load(write_scenario(cluster={"exec_encrypted": True}, faults=list(faults)))
        agent(running, delays="off", **options)
        running.reset_calls()
        return running

    return load


def execute(sandbox: SandboxUnderTest, **changes: Any) -> Outcome:
    ecs, ssm = sandbox.client("ecs"), sandbox.client("ssm")
    aws = Aws(ecs, ssm, ecs._request_signer._credentials, "us-east-1", lambda: sandbox.client("kms"))
    (target,) = targets.find(ecs, "cabal-mail", services=["cabal-imap"])
    (outcome,) = runner.run(Plan(PROGRAM, BYTES), [replace(target, **changes)], aws)
    return outcome


def exact(outcome: Outcome) -> bool:
    assert outcome.outcome == "completed", outcome.reason
    return (outcome.rc, outcome.stdout, outcome.stderr) == (7, BYTES, b"complaint\n")


def contexts(sandbox: SandboxUnderTest) -> dict[str, dict[str, str]]:
    return {
        f"{call['operation']} by {call['principal']}": call["parameters"]["EncryptionContext"]
        for call in sandbox.calls()
        if call["operation"].startswith("kms.")
    }


def test_client_and_agent_agree_on_a_key_that_is_bound_to_session_container_and_challenge(encrypted):
    sandbox = encrypted()
    (cluster,) = sandbox.client("ecs").describe_clusters(clusters=["cabal-mail"])["clusters"]
    assert cluster["configuration"]["executeCommandConfiguration"]["kmsKeyId"].startswith("alias/")
    assert exact(execute(sandbox))
    asked, opened = contexts(sandbox)["kms.GenerateDataKey by operator"], contexts(sandbox)["kms.Decrypt by task"]
    assert asked == opened
    assert asked.keys() == {"aws:ssm:SessionId", "aws:ssm:TargetId", "aws:ssm:RandomChallenge"}
    assert asked["aws:ssm:SessionId"].startswith("ecs-execute-command-")
    assert asked["aws:ssm:TargetId"].startswith("ecs:cabal-mail_")


def test_an_agent_of_before_the_challenge_works_as_well(encrypted):
    sandbox = encrypted(challenge=False)
    assert exact(execute(sandbox))
    assert contexts(sandbox)["kms.Decrypt by task"].keys() == {"aws:ssm:SessionId", "aws:ssm:TargetId"}


def test_lost_doubled_and_reordered_frames_heal_as_in_a_plain_session(encrypted):
    faults = {"lose": 0.05, "duplicate": 0.2, "reorder": 0.2, "lose_acks": 0.2, "lose_input": 0.1}
    assert exact(execute(encrypted(faults=faults)))


def test_a_session_that_is_carried_on_keeps_its_key(encrypted):
    sandbox = encrypted(faults={"drop_after": 15}, pause_when_away=True)
    assert exact(execute(sandbox))
    calls = [call["operation"] for call in sandbox.calls()]
    assert (calls.count("ssm.ResumeSession"), calls.count("kms.GenerateDataKey")) == (1, 1)


def test_a_key_for_another_container_does_not_open(encrypted):
    outcome = execute(encrypted(), runtime_id="0" * 64)
    assert (outcome.outcome, outcome.stdout) == ("unreachable", None)
    assert "Fetching data key failed" in (outcome.reason or "")


@pytest.mark.parametrize(
    ("operation", "who", "words"),
    [
        ("kms.GenerateDataKey", "operator", "kms:GenerateDataKey was denied"),
        ("kms.Decrypt", "task", "kms:Decrypt"),
    ],
)
def test_a_denied_call_of_kms_is_explained_and_nothing_runs(encrypted, operation, who, words):
    outcome = execute(encrypted({"operation": operation, "who": who, "error": "AccessDeniedException"}))
    assert (outcome.outcome, outcome.rc, outcome.stdout) == ("unreachable", None, None)
    assert words in (outcome.reason or "")
