# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease on the sandbox's real Parameter Store: one holder at a time, whatever happens to the others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.remediation.conftest import finish_module, run_module, start_module, writes
from tests.sandbox.conftest import SandboxUnderTest

Cluster = Callable[..., SandboxUnderTest]
NAME = "/cabal-runbooks/lease/cabal-smtp-in"
PUT = "ssm.PutParameter"


def lease(sandbox: SandboxUnderTest, run: str, check: bool = False, **options: Any) -> dict[str, Any]:
    return run_module(sandbox, "service_lease", check, service="cabal-smtp-in", run=run, by="jane", **options)


def info(sandbox: SandboxUnderTest) -> dict[str, Any]:
    return run_module(sandbox, "service_restart_info", cluster="cabal-mail", service="cabal-smtp-in")


def put(sandbox: SandboxUnderTest, name: str, value: str) -> None:
    sandbox.client("ssm", "test").put_parameter(Name=name, Value=value, Type="String")


def ended(run: str) -> str:
    past = (datetime.now(UTC) - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return json.dumps({"run": run, "by": "them", "taken": past, "expires": past, "state": "held", "acted": past})


def test_it_is_held_noted_in_given_back_and_taken_again(cluster: Cluster) -> None:
    sandbox = cluster()
    assert info(sandbox)["lease"]["history"] == []
    assert lease(sandbox, "one")["lease"]["state"] == "held"
    second = lease(sandbox, "two")
    assert (second["failed"], second["taken"]) == (True, True)
    assert "is held by run one (jane) until" in second["msg"]
    assert lease(sandbox, "two", state="noted")["taken"] is True
    lease(sandbox, "one", state="noted", record={"acted": "2026-11-24T22:00:00Z", "kind": "restart_loop"})
    lease(sandbox, "one", state="released", record={"outcome": "recovered"})
    seen = info(sandbox)
    assert seen["lease"]["held"] is False
    assert [(row["run"], row["kind"], row["outcome"]) for row in seen["lease"]["history"]] == [
        ("one", "restart_loop", "recovered")
    ]
    assert seen["room"]["tasks"] > 0
    assert seen["caller"]["arn"].startswith("arn:aws:sts::")
    assert abs(seen["caller"]["clock_skew_seconds"]) < 60
    assert lease(sandbox, "two")["lease"]["run"] == "two"
    assert [row["run"] for row in info(sandbox)["lease"]["history"]] == ["one", "two"]


@pytest.mark.parametrize("before", [(), (NAME,), (NAME, f"{NAME}/1")])
def test_of_many_at_once_exactly_one_gets_it(before: tuple[str, ...], cluster: Cluster) -> None:
    """Nobody held it yet; a run that died held it; and another died while it took that one's lease over."""
    sandbox = cluster()
    for name in before:
        put(sandbox, name, ended("dead"))
    runs = [f"run{number}" for number in range(4)]
    started = [
        start_module(sandbox, "service_lease", service="cabal-smtp-in", run=run, by="them", seconds=60) for run in runs
    ]
    answers = [finish_module(process) for process in started]
    (winner,) = [answer["lease"]["run"] for answer in answers if not answer.get("failed")]
    assert all(answer["taken"] for answer in answers if answer.get("failed"))
    assert info(sandbox)["lease"]["record"]["run"] == winner


def test_a_lease_ends_by_itself(cluster: Cluster) -> None:
    sandbox = cluster()
    assert lease(sandbox, "one", seconds=0.5)["lease"]["run"] == "one"
    time.sleep(1.5)
    assert lease(sandbox, "two")["lease"]["run"] == "two"


def test_nothing_is_begun_under_a_lease_that_has_ended(cluster: Cluster) -> None:
    sandbox = cluster()
    lease(sandbox, "one", seconds=0.5)
    time.sleep(1.5)
    assert "of this run ended at" in lease(sandbox, "one", state="noted")["msg"]
    assert "failed" not in lease(sandbox, "one", state="released", record={"outcome": "not_attempted"})


def test_what_is_no_lease_is_held_by_nobody_knows_whom(cluster: Cluster) -> None:
    sandbox = cluster()
    put(sandbox, NAME, "{}")
    assert "holds no lease that can be read" in lease(sandbox, "one")["msg"]
    assert info(sandbox)["lease"]["held"] is True


def test_check_mode_writes_nothing(cluster: Cluster) -> None:
    sandbox = cluster()
    assert lease(sandbox, "one", check=True)["changed"] is True
    assert info(sandbox)["lease"]["record"] is None
    lease(sandbox, "one")
    sandbox.reset_calls()
    assert lease(sandbox, "two", check=True)["taken"] is True
    assert writes(sandbox, PUT) == []


def test_without_the_right_to_write_there_is_no_lease(cluster: Cluster) -> None:
    sandbox = cluster(faults=[{"operation": PUT, "error": "AccessDeniedException"}])
    answer = lease(sandbox, "one")
    assert (answer["failed"], answer["taken"]) == (True, False)
    assert answer["msg"].startswith("PutParameter was denied")


def test_a_lost_answer_is_still_our_lease(cluster: Cluster) -> None:
    sandbox = cluster(faults=[{"operation": PUT, "drop": True, "after": True, "times": 1}])
    assert lease(sandbox, "one")["lease"]["run"] == "one"


def test_what_is_denied_is_unknown_and_leaves_the_rest(cluster: Cluster) -> None:
    denied = ["ssm.GetParameter", "ecs.DescribeContainerInstances"]
    sandbox = cluster(faults=[{"operation": name, "error": "AccessDeniedException"} for name in denied])
    seen = info(sandbox)
    assert (seen["lease"]["status"], seen["lease"]["held"]) == ("unavailable", None)
    assert (seen["room"]["status"], seen["room"]["tasks"]) == ("unavailable", None)
    assert seen["caller"]["status"] == "complete"


def test_a_message_asks_for_new_maps(cluster: Cluster) -> None:
    sandbox = cluster()
    ask = {"queue": "cabal-reconfig-smtp-in", "run": "one"}
    assert run_module(sandbox, "reconfigure_request", check=True, **ask)["message_id"] is None
    assert run_module(sandbox, "reconfigure_request", **ask)["message_id"]
    assert writes(sandbox, "sqs.SendMessage") == ["sqs.SendMessage"]
    assert run_module(sandbox, "reconfigure_request", queue="cabal-none", run="one")["failed"] is True
