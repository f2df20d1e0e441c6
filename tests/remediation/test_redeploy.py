# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ecs_service_redeploy on the real ECS endpoint of the sandbox: what it does, once, and what it says of the end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.remediation.conftest import fast, finish_module, run_module, start_module, writes
from tests.sandbox.conftest import SandboxUnderTest

Cluster = Callable[..., SandboxUnderTest]
SMTP_IN: dict[str, Any] = {"cluster": "cabal-mail", "service": "cabal-smtp-in", "timeout": 20, "poll": 0.3}
ACTS = ("ecs.UpdateService", "ecs.StopTask")


def redeploy(sandbox: SandboxUnderTest, check: bool = False, **options: Any) -> dict[str, Any]:
    return run_module(sandbox, "ecs_service_redeploy", check, **{**SMTP_IN, **options})


def tasks_of(sandbox: SandboxUnderTest, service: str = "cabal-smtp-in") -> list[str]:
    arns = sandbox.client("ecs", "test").list_tasks(cluster="cabal-mail", serviceName=service)["taskArns"]
    return sorted(arn.rsplit("/", 1)[-1] for arn in arns)


def test_a_service_is_rolled_once(cluster: Cluster) -> None:
    sandbox = cluster()
    old = tasks_of(sandbox)
    began = (datetime.now(UTC) - timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    done = redeploy(sandbox, if_older_than=began)
    assert (done["outcome"], done["changed"], done["msg"]) == (
        "steady",
        True,
        "Cabal-smtp-in is in a steady state.",
    )
    assert done["new_tasks"] == tasks_of(sandbox)
    assert not set(old) & set(done["new_tasks"])
    assert done["diff"]["before"]["tasks"] == old
    assert done["diff"]["after"]["deployments"][0]["id"] == done["deployment"]
    assert any("steady state" in event for event in done["events"])
    again = redeploy(sandbox, if_older_than=began)
    assert (again["outcome"], again["changed"]) == ("nothing_to_do", False)
    assert writes(sandbox, *ACTS) == ["ecs.UpdateService"]


def test_check_mode_shows_it_and_changes_nothing(cluster: Cluster) -> None:
    sandbox = cluster()
    old = tasks_of(sandbox)
    shown = redeploy(sandbox, check=True)
    assert (shown["outcome"], shown["changed"]) == ("would_act", True)
    assert shown["diff"]["after"]["deployments"][0]["id"] == "(new)"
    one = redeploy(sandbox, check=True, strategy="task", tasks=old)
    assert one["diff"]["after"]["tasks"] == ["(new)"]
    assert writes(sandbox, *ACTS) == []
    assert tasks_of(sandbox) == old


def test_only_the_named_task_is_replaced(cluster: Cluster) -> None:
    sandbox = cluster(tiers={"smtp-in": fast({"tasks": [{}, {}, {}]})})
    old = tasks_of(sandbox)
    done = redeploy(sandbox, strategy="task", tasks=[old[1], "f" * 32], reason="stuck")
    assert (done["outcome"], done["stopped_tasks"]) == ("steady", [old[1]])
    assert len(done["new_tasks"]) == 1
    assert set(tasks_of(sandbox)) == {old[0], old[2], *done["new_tasks"]}
    again = redeploy(sandbox, strategy="task", tasks=[old[1]])
    assert (again["outcome"], again["changed"]) == ("nothing_to_do", False)
    assert writes(sandbox, *ACTS) == ["ecs.StopTask"]


def test_two_at_once_make_one_deployment(cluster: Cluster) -> None:
    sandbox = cluster(tiers={"smtp-in": fast(start_seconds=3)})
    began = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    first = start_module(sandbox, "ecs_service_redeploy", **SMTP_IN, if_older_than=began)
    while not writes(sandbox, *ACTS):
        assert first.poll() is None
    second = redeploy(sandbox, if_older_than=began)
    refused = redeploy(sandbox, if_older_than=began, refuse_if_deploying=True)
    done = finish_module(first)
    assert (done["outcome"], second["outcome"], second["changed"]) == ("steady", "steady", False)
    assert second["deployment"] == done["deployment"]
    assert refused["outcome"] in ("refused", "nothing_to_do")
    assert writes(sandbox, *ACTS) == ["ecs.UpdateService"]


@pytest.mark.parametrize(
    ("tier", "deployment", "outcome", "words"),
    [
        ("smtp-in", {"outcome": "failed"}, "failed", "Essential container in task exited"),
        ("imap", {"outcome": "failed"}, "rolled_back", "Essential container in task exited"),
        ("smtp-in", {"outcome": "stuck"}, "timed_out", "unable to place a task"),
    ],
)
def test_a_bad_end_is_told_with_its_reason(
    tier: str, deployment: dict[str, Any], outcome: str, words: str, cluster: Cluster
) -> None:
    sandbox = cluster(tiers={tier: fast(**deployment)})
    timeout = 3 if outcome == "timed_out" else 30
    done = redeploy(sandbox, service=f"cabal-{tier}", timeout=timeout)
    assert (done["outcome"], done["failed"], done["changed"]) == (outcome, True, True)
    assert words in done["msg"]
    assert writes(sandbox, *ACTS) == ["ecs.UpdateService"]


def fault(operation: str, **what: Any) -> dict[str, Any]:
    return {"faults": [{"operation": operation, "where": {"cluster": "cabal-mail"}, **what}]}


@pytest.mark.parametrize("how", [{"drop": True}, {"error": "ServerException", "status": 500}])
def test_a_lost_answer_leads_to_no_second_deployment(how: dict[str, Any], cluster: Cluster) -> None:
    sandbox = cluster(**fault("ecs.UpdateService", after=True, times=1, **how))
    done = redeploy(sandbox)
    assert (done["outcome"], done["changed"]) == ("steady", True)
    assert writes(sandbox, *ACTS) == ["ecs.UpdateService"]


def test_a_request_that_was_not_heard_is_an_error_and_not_sent_again(cluster: Cluster) -> None:
    sandbox = cluster(**fault("ecs.UpdateService", drop=True, times=1))
    done = redeploy(sandbox)
    assert (done["outcome"], done["failed"], done.get("changed", False)) == ("refused", True, False)
    assert writes(sandbox, *ACTS) == ["ecs.UpdateService"]


def test_a_lost_answer_that_nobody_can_check_is_unknown(cluster: Cluster) -> None:
    """It was heard, its answer got lost, and from then on the service can't be read: that is no "not attempted"."""
    lost = {"operation": "ecs.UpdateService", "drop": True, "after": True, "times": 1}
    denied = {"operation": "ecs.DescribeServices", "error": "AccessDeniedException", "rate": 0.5}
    sandbox = cluster(faults=[lost, denied])
    done = redeploy(sandbox)
    assert (done["outcome"], done["changed"], done["failed"]) == ("unknown", True, True)
    assert writes(sandbox, *ACTS) == ["ecs.UpdateService"]


def test_a_throttled_request_is_sent_again(cluster: Cluster) -> None:
    sandbox = cluster(**fault("ecs.UpdateService", error="ThrottlingException", times=2))
    assert redeploy(sandbox)["outcome"] == "steady"
    assert writes(sandbox, *ACTS) == ["ecs.UpdateService"] * 3


def test_a_denied_request_is_refused_in_a_sentence(cluster: Cluster) -> None:
    sandbox = cluster(**fault("ecs.UpdateService", error="AccessDeniedException"))
    done = redeploy(sandbox)
    assert (done["outcome"], done["failed"]) == ("refused", True)
    assert done["msg"].startswith("UpdateService was denied (AccessDeniedException")


def test_throttled_looks_are_waited_out(cluster: Cluster) -> None:
    sandbox = cluster(**fault("ecs.DescribeServices", error="ThrottlingException", rate=0.6, times=8))
    assert redeploy(sandbox)["outcome"] == "steady"


def test_an_end_that_cant_be_seen_is_unknown(cluster: Cluster) -> None:
    """Denied from the second look on: the request went out and nobody can say how it ended."""
    sandbox = cluster(**fault("ecs.ListTasks", error="AccessDeniedException", rate=0.75))
    done = redeploy(sandbox)
    assert (done["outcome"], done["failed"], done["changed"]) == ("unknown", True, True)
    assert "AccessDeniedException" in done["msg"]


def test_a_service_that_is_scaled_to_zero_is_left_alone(cluster: Cluster) -> None:
    sandbox = cluster(tiers={"smtp-in": fast({"service": {"desired": 0}, "tasks": []})})
    done = redeploy(sandbox)
    assert done["msg"] == "cabal-smtp-in is scaled to zero: there is nothing to restart."
    assert writes(sandbox, *ACTS) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "task"}, "names the tasks to replace"),
        ({"tasks": ["a"]}, "names the tasks to replace"),
        ({"timeout": 0}, "The option timeout must be more than 0"),
        ({"if_older_than": "yesterday"}, "is not an RFC 3339 time"),
        ({"service": "cabal-none"}, "There is no service cabal-none"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(options: dict[str, Any], words: str, cluster: Cluster) -> None:
    sandbox = cluster()
    done = redeploy(sandbox, **options)
    assert done["failed"] is True
    assert words in done["msg"]
    assert writes(sandbox, *ACTS) == []
