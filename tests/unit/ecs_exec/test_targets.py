# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which containers are meant, and why ECS Exec will not work in one of them, from recorded shapes of ECS answers."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from ansible.module_utils.ecs_exec import targets
from ansible.module_utils.ecs_exec.targets import TargetError

PREFIX = "arn:aws:ecs:us-east-1:123456789012:"


def task(identifier: str, **changes: Any) -> dict[str, Any]:
    """Return a task as DescribeTasks describes one that ECS Exec works in."""
    container = {
        "name": "imap",
        "managedAgents": [{"name": "ExecuteCommandAgent", "lastStatus": "RUNNING"}],
        "networkInterfaces": [{"privateIpv4Address": "10.0.2.45"}],
    }
    return {
        "taskArn": f"{PREFIX}task/cabal-mail/{identifier}",
        "taskDefinitionArn": f"{PREFIX}task-definition/imap:7",
        "group": "service:cabal-imap",
        "availabilityZone": "us-east-1a",
        "startedAt": dt.datetime(2026, 11, 24, 21, 53, tzinfo=dt.UTC),
        "lastStatus": "RUNNING",
        "desiredStatus": "RUNNING",
        "enableExecuteCommand": True,
        "containers": [container],
        **changes,
    }


class Ecs:
    """An ECS client that knows a few tasks and counts its calls."""

    def __init__(self, services: dict[str, list[dict[str, Any]]]) -> None:
        self.services = services
        self.listed: list[dict[str, str]] = []
        self.described: list[list[str]] = []

    def get_paginator(self, name: str) -> Ecs:
        assert name == "list_tasks"
        return self

    def paginate(self, **query: str) -> list[dict[str, list[str]]]:
        self.listed.append(query)
        tasks = self.services.get(query.get("serviceName", query.get("family", "")), [])
        return [{"taskArns": [entry["taskArn"]]} for entry in tasks]

    def describe_tasks(self, *, cluster: str, tasks: list[str]) -> dict[str, Any]:
        self.described.append(tasks)
        known = {entry["taskArn"].rpartition("/")[2]: entry for group in self.services.values() for entry in group}
        identifiers = [name.rpartition("/")[2] for name in tasks]
        return {"tasks": [known[name] for name in reversed(identifiers) if name in known], "failures": []}


def test_services_are_listed_once_each_and_described_together_in_a_stable_order():
    ecs = Ecs({"b": [task("4"), task("3")], "a": [task("2"), task("1")]})
    found = targets.find(ecs, "cabal-mail", services=["b", "a"])
    assert [target.task for target in found] == ["3", "4", "1", "2"]
    assert len(ecs.listed) == 2
    assert len(ecs.described) == 1


def test_a_service_that_is_named_twice_is_meant_once():
    found = targets.find(Ecs({"a": [task("2"), task("1")]}), "c", services=["a", "a"])
    assert [target.task for target in found] == ["1", "2"]


def test_a_target_carries_what_is_reported():
    (found,) = targets.find(Ecs({"a": [task("1")]}), "cabal-mail", services=["a"])
    assert (found.service, found.family, found.container) == ("cabal-imap", "imap", "imap")
    assert (found.zone, found.ip, found.problem) == ("us-east-1a", "10.0.2.45", None)
    assert found.task_definition == f"{PREFIX}task-definition/imap:7"


def test_more_than_a_hundred_tasks_are_described_in_batches():
    ecs = Ecs({"a": [task(f"{number:04}") for number in range(250)]})
    assert len(targets.find(ecs, "c", services=["a"])) == 250
    assert [len(batch) for batch in ecs.described] == [100, 100, 50]


def test_tasks_by_id_or_arn_keep_their_order_and_one_that_is_gone_stays_in_the_list():
    ecs = Ecs({"a": [task("1"), task("2")]})
    found = targets.find(ecs, "c", tasks=["2", f"{PREFIX}task/c/9", "1", "2", f"{PREFIX}task/c/2", "9"])
    assert [target.task for target in found] == ["2", "9", "1"]
    assert "no such task" in (found[1].problem or "")


def test_a_family_is_asked_for_as_such():
    ecs = Ecs({"imap": [task("1")]})
    assert len(targets.find(ecs, "c", family="imap")) == 1
    assert ecs.listed == [{"cluster": "c", "family": "imap"}]


TWO = [{"name": "imap", "managedAgents": [{"name": "ExecuteCommandAgent", "lastStatus": "RUNNING"}]}, {"name": "side"}]


def test_an_ambiguous_container_has_to_be_named():
    ecs = Ecs({"a": [task("1", containers=TWO)]})
    with pytest.raises(TargetError, match="2 containers; choose one with container: imap, side"):
        targets.find(ecs, "c", services=["a"])
    (found,) = targets.find(ecs, "c", services=["a"], container="imap")
    assert (found.container, found.problem) == ("imap", None)
    with pytest.raises(TargetError, match="no container 'x'; it has: imap, side"):
        targets.find(ecs, "c", services=["a"], container="x")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"enableExecuteCommand": False}, "was not enabled when this task was started"),
        ({"lastStatus": "PENDING"}, "PENDING and not yet RUNNING"),
        (
            {"desiredStatus": "STOPPED", "stoppedReason": "Scaling activity"},
            "stopping or has stopped (Scaling activity)",
        ),
        ({"lastStatus": "DEPROVISIONING"}, "stopping or has stopped."),
        ({"launchType": "FARGATE", "platformVersion": "1.3.0"}, "platform version 1.3.0"),
        ({"containers": [{"name": "imap"}]}, "no ECS Exec agent"),
        (
            {
                "containers": [
                    {
                        "name": "imap",
                        "managedAgents": [
                            {
                                "name": "ExecuteCommandAgent",
                                "lastStatus": "STOPPED",
                                "reason": "Received Container Stopped",
                            }
                        ],
                    }
                ]
            },
            "is STOPPED (Received Container Stopped)",
        ),
    ],
)
def test_what_would_make_it_fail_is_said_before_it_is_tried(changes, words):
    (found,) = targets.find(Ecs({"a": [task("1", **changes)]}), "c", services=["a"])
    assert words in (found.problem or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"launchType": "FARGATE", "platformVersion": "1.4.0"},
        {"launchType": "FARGATE", "platformVersion": "LATEST"},
        {"launchType": "FARGATE", "platformVersion": "1.0.0", "platformFamily": "Windows_Server_2019_Core"},
        {"launchType": "EC2", "platformVersion": "1.0.0"},
    ],
)
def test_what_works_is_not_called_a_problem(changes):
    (found,) = targets.find(Ecs({"a": [task("1", **changes)]}), "c", services=["a"])
    assert found.problem is None


@pytest.mark.parametrize(
    ("container", "definition", "words"),
    [
        ({"readonlyRootFilesystem": True}, {}, "read-only"),
        ({"environment": [{"name": "AWS_ACCESS_KEY_ID", "value": "x"}]}, {}, "sets AWS_ACCESS_KEY_ID"),
        ({"secrets": [{"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": "x"}]}, {}, "sets AWS_SECRET_ACCESS_KEY"),
        ({}, {"pidMode": "task"}, "PID namespace"),
        ({}, {"taskRoleArn": None}, "no task role"),
    ],
)
def test_what_a_task_definition_breaks_is_named(container, definition, words):
    whole = {
        "taskRoleArn": "arn:aws:iam::1:role/r",
        "containerDefinitions": [{"name": "imap", **container}, {"name": "side", "readonlyRootFilesystem": True}],
        **definition,
    }
    (problem,) = targets.definition_problems(whole, "imap")
    assert words in problem


def test_a_sound_task_definition_has_no_problem():
    whole = {"taskRoleArn": "arn:aws:iam::1:role/r", "containerDefinitions": [{"name": "imap"}]}
    assert targets.definition_problems(whole, "imap") == []
