# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services, tasks and deployments over time, with a runtime that starts nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sandbox import scenario
from sandbox.ecs import Cluster
from sandbox.errors import ApiError, SandboxError
from sandbox.model import TaskSpec

WriteScenario = Callable[..., Path]
CLUSTER = {"cluster": "cabal-mail"}
FAST = {"start_seconds": 0.03, "drain_seconds": 0.03}


class NoProcesses:
    """Remembers what it was asked to start and stop. ``broken``: tiers whose new tasks do not start."""

    def __init__(self) -> None:
        self.alive: set[str] = set()
        self.broken: set[str] = set()
        self._lock = threading.Lock()

    def start(self, specs: Iterable[TaskSpec]) -> dict[str, Exception | None]:
        results: dict[str, Exception | None] = {}
        for spec in specs:
            if spec.tier in self.broken:
                results[spec.task_id] = RuntimeError("makemap refused")
                continue
            with self._lock:
                self.alive.add(spec.task_id)
            results[spec.task_id] = None
        return results

    def stop(self, task_id: str, *, grace: float) -> None:
        with self._lock:
            self.alive.discard(task_id)


class Setting:
    def __init__(self, folder: Path) -> None:
        loaded = scenario.load(folder, now=datetime.now(UTC), endpoint="http://127.0.0.1:1")
        self.runtime = NoProcesses()
        self.changes: list[tuple[str, str, bool]] = []
        self.cluster = Cluster(loaded, self.runtime, lambda *change: self.changes.append(change))

    def service(self, name: str) -> dict[str, Any]:
        service: dict[str, Any] = self.cluster.describe_services(CLUSTER | {"services": [name]})["services"][0]
        return service

    def tasks(self, service: str, desired: str = "RUNNING") -> list[dict[str, Any]]:
        arns = self.cluster.list_tasks(CLUSTER | {"serviceName": service, "desiredStatus": desired})["taskArns"]
        found: list[dict[str, Any]] = self.cluster.describe_tasks(CLUSTER | {"tasks": arns})["tasks"] if arns else []
        return found

    def redeploy(self, name: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.cluster.update_service(CLUSTER | {"service": name, "forceNewDeployment": True})
        return answer["service"]  # type: ignore[no-any-return]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)


def drive(folder: Path, story: Callable[[Setting], Awaitable[None]]) -> None:
    """Run one story against a started cluster; afterwards nothing is alive."""

    async def whole() -> None:
        setting = Setting(folder)
        await setting.cluster.start()
        try:
            await story(setting)
        finally:
            await setting.cluster.stop()
        assert setting.runtime.alive == set()

    asyncio.run(whole())


def tiers(**changes: Any) -> dict[str, Any]:
    """All tiers, quick deployments; ``changes`` are laid over a tier's service, by tier (``_`` for ``-``)."""
    made: dict[str, Any] = {}
    for tier in ("imap", "smtp-in", "smtp-out"):
        change = dict(changes.get(tier.replace("-", "_"), {}))
        deployment = FAST | change.pop("deployment", {})
        made[tier] = {"log_level": 9, "service": {"deployment": deployment} | change}
    return made


def test_reads_change_nothing(write_scenario: WriteScenario) -> None:
    async def story(it: Setting) -> None:
        first = [it.tasks(name) for name in it.cluster.services]
        await asyncio.sleep(0.05)
        assert [it.tasks(name) for name in it.cluster.services] == first
        (task,) = first[0]
        assert len(task["taskArn"].rsplit("/", 1)[-1]) == 32
        assert task["lastStatus"] == "RUNNING"
        assert task["containers"][0]["managedAgents"][0]["lastStatus"] == "RUNNING"
        assert len(task["containers"][0]["runtimeId"]) == 64

    drive(write_scenario(tiers=tiers()), story)


def test_a_rolling_deployment_starts_new_tasks_before_old_ones_stop(write_scenario: WriteScenario) -> None:
    async def story(it: Setting) -> None:
        (old,) = it.tasks("cabal-smtp-in")
        service = it.redeploy("cabal-smtp-in")
        assert [d["status"] for d in service["deployments"]] == ["PRIMARY", "ACTIVE"]
        assert service["deployments"][0]["rolloutState"] == "IN_PROGRESS"
        fewest = 9
        while it.service("cabal-smtp-in")["deployments"][0]["rolloutState"] != "COMPLETED":
            running = [t for t in it.tasks("cabal-smtp-in") if t["lastStatus"] == "RUNNING"]
            fewest = min(fewest, len(running))
            await asyncio.sleep(0.002)
        assert fewest >= 1
        (new,) = it.tasks("cabal-smtp-in")
        assert new["taskArn"] != old["taskArn"]
        assert new["startedBy"] == service["deployments"][0]["id"]
        (stopped,) = it.tasks("cabal-smtp-in", "STOPPED")
        assert stopped["stopCode"] == "ServiceSchedulerInitiated"
        assert stopped["lastStatus"] == "STOPPED"
        done = it.service("cabal-smtp-in")
        assert [d["status"] for d in done["deployments"]] == ["PRIMARY"]
        assert any("has reached a steady state" in event["message"] for event in done["events"][:2])

    drive(write_scenario(tiers=tiers()), story)


def test_imap_stops_before_it_starts_and_registers_anew(write_scenario: WriteScenario) -> None:
    async def story(it: Setting) -> None:
        (old,) = it.tasks("cabal-imap")
        it.redeploy("cabal-imap")
        most = 0
        while it.service("cabal-imap")["deployments"][0]["rolloutState"] != "COMPLETED":
            most = max(most, sum(t["lastStatus"] == "RUNNING" for t in it.tasks("cabal-imap")))
            await asyncio.sleep(0.002)
        assert most <= 1
        (new,) = it.tasks("cabal-imap")
        address = {d["name"]: d["value"] for d in new["attachments"][0]["details"]}["privateIPv4Address"]
        assert it.changes == [("imap", "10.0.2.45", False), ("imap", address, True)]
        assert new["containers"][0]["networkInterfaces"][0]["privateIpv4Address"] == address
        assert old["taskArn"] != new["taskArn"]

    drive(write_scenario(tiers=tiers()), story)


def test_a_failed_deployment_of_imap_rolls_back(write_scenario: WriteScenario) -> None:
    async def story(it: Setting) -> None:
        failed = it.redeploy("cabal-imap")["deployments"][0]["id"]
        await it.until(lambda: it.service("cabal-imap")["deployments"][0]["rolloutState"] == "COMPLETED")
        back, before = it.service("cabal-imap")["deployments"]
        assert before["id"] == failed
        assert before["rolloutState"] == "FAILED"
        assert before["failedTasks"] == 3
        assert "circuit breaker" in before["rolloutStateReason"]
        assert len(it.tasks("cabal-imap")) == 1
        assert it.tasks("cabal-imap")[0]["startedBy"] == back["id"]

    drive(write_scenario(tiers=tiers(imap={"deployment": {"outcome": "failed"}})), story)


def test_a_failed_deployment_of_an_smtp_tier_stays_in_progress(write_scenario: WriteScenario) -> None:
    async def story(it: Setting) -> None:
        it.redeploy("cabal-smtp-out")
        await it.until(lambda: it.service("cabal-smtp-out")["deployments"][0]["failedTasks"] >= 1)
        new, old = it.service("cabal-smtp-out")["deployments"]
        assert new["rolloutState"] == "IN_PROGRESS"
        assert old["runningCount"] == 1, "the old task goes on"

    drive(write_scenario(tiers=tiers(smtp_out={"deployment": {"outcome": "failed"}})), story)


def test_a_secret_that_is_gone(write_scenario: WriteScenario) -> None:
    async def story(it: Setting) -> None:
        it.redeploy("cabal-imap")
        await it.until(lambda: bool(it.tasks("cabal-imap", "STOPPED")[1:]))
        reasons = {task["stopCode"] for task in it.tasks("cabal-imap", "STOPPED")}
        assert "TaskFailedToStart" in reasons
        assert it.service("cabal-imap")["runningCount"] == 0, "imap is stopped before its successor starts"

    drive(write_scenario(tiers=tiers(imap={"missing_secrets": ["/cabal/master_password"]})), story)


def test_a_task_that_really_does_not_start_fails_its_deployment(write_scenario: WriteScenario) -> None:
    async def story(it: Setting) -> None:
        it.runtime.broken.add("smtp-in")
        it.redeploy("cabal-smtp-in")
        await it.until(lambda: it.service("cabal-smtp-in")["deployments"][0]["failedTasks"] >= 1)
        assert it.tasks("cabal-smtp-in", "STOPPED")[0]["stopCode"] == "EssentialContainerExited"

    drive(write_scenario(tiers=tiers()), story)


def test_a_declared_task_that_does_not_start_is_said(write_scenario: WriteScenario) -> None:
    setting = Setting(write_scenario())
    setting.runtime.broken.add("imap")
    with pytest.raises(SandboxError, match="makemap refused"):
        asyncio.run(setting.cluster.start())


def test_stuck_and_already_in_progress(write_scenario: WriteScenario) -> None:
    async def story(it: Setting) -> None:
        service = it.service("cabal-smtp-in")
        assert [d["rolloutState"] for d in service["deployments"]] == ["IN_PROGRESS", "COMPLETED"]
        assert [d["runningCount"] for d in service["deployments"]] == [0, 1]
        it.redeploy("cabal-smtp-out")
        await asyncio.sleep(0.1)
        stuck = it.service("cabal-smtp-out")
        assert stuck["deployments"][0]["rolloutState"] == "IN_PROGRESS"
        assert "unable to place a task" in stuck["events"][0]["message"]

    drive(
        write_scenario(
            tiers=tiers(
                smtp_in={"deployment": {"in_progress_minutes": 20}}, smtp_out={"deployment": {"outcome": "stuck"}}
            )
        ),
        story,
    )


def test_a_second_deployment_supersedes_the_first(write_scenario: WriteScenario) -> None:
    async def story(it: Setting) -> None:
        it.redeploy("cabal-smtp-in")
        await asyncio.sleep(0.02)
        second = it.redeploy("cabal-smtp-in")["deployments"][0]["id"]
        await it.until(lambda: it.service("cabal-smtp-in")["deployments"][0]["rolloutState"] == "COMPLETED")
        await it.until(lambda: len(it.tasks("cabal-smtp-in")) == 1)
        assert it.tasks("cabal-smtp-in")[0]["startedBy"] == second
        await it.until(lambda: len(it.runtime.alive) == 3)

    drive(write_scenario(tiers=tiers()), story)


def test_stop_task_and_a_task_that_exits_are_replaced(write_scenario: WriteScenario) -> None:
    async def story(it: Setting) -> None:
        (first,) = it.tasks("cabal-smtp-out")
        it.cluster.stop_task(CLUSTER | {"task": first["taskArn"], "reason": "stuck loop"})
        assert it.tasks("cabal-smtp-out", "STOPPED")[0]["stoppedReason"] == "stuck loop"
        await it.until(lambda: [t["lastStatus"] for t in it.tasks("cabal-smtp-out")] == ["RUNNING"])
        (second,) = it.tasks("cabal-smtp-out")
        it.cluster.exited(second["taskArn"].rsplit("/", 1)[-1], 137)
        await it.until(lambda: [t["lastStatus"] for t in it.tasks("cabal-smtp-out")] == ["RUNNING"])
        await it.until(lambda: {t["lastStatus"] for t in it.tasks("cabal-smtp-out", "STOPPED")} == {"STOPPED"})
        codes = {t["containers"][0].get("exitCode") for t in it.tasks("cabal-smtp-out", "STOPPED")}
        assert codes == {0, 137}

    drive(write_scenario(tiers=tiers()), story)


def test_scaling(write_scenario: WriteScenario) -> None:
    async def story(it: Setting) -> None:
        it.cluster.update_service(CLUSTER | {"service": "cabal-smtp-in", "desiredCount": 3})
        await it.until(lambda: it.service("cabal-smtp-in")["runningCount"] == 3)
        it.cluster.update_service(CLUSTER | {"service": "cabal-smtp-in", "desiredCount": 0})
        await it.until(lambda: len(it.tasks("cabal-smtp-in", "STOPPED")) == 3)
        assert it.service("cabal-smtp-in")["runningCount"] == 0

    drive(write_scenario(tiers=tiers()), story)


@pytest.mark.parametrize(
    ("task", "code", "text"),
    [
        ({"exec": "not_connected"}, "TargetNotConnectedException", "internal error"),
        ({"exec": "agent_stopped"}, "InvalidParameterException", "agent isn't running"),
        ({"exec": "disabled"}, "InvalidParameterException", "not enabled"),
    ],
)
def test_exec_is_refused(write_scenario: WriteScenario, task: dict[str, str], code: str, text: str) -> None:
    async def story(it: Setting) -> None:
        (described,) = it.tasks("cabal-imap")
        request = CLUSTER | {"task": described["taskArn"], "command": "true", "interactive": True}
        with pytest.raises(ApiError, match=text) as refused:
            it.cluster.exec_session(request)
        assert refused.value.code == code
        assert described["enableExecuteCommand"] is (task["exec"] != "disabled")

    changed = tiers()
    changed["imap"]["tasks"] = [task]
    drive(write_scenario(tiers=changed), story)


def test_pages_and_filters(write_scenario: WriteScenario) -> None:
    async def story(it: Setting) -> None:
        page = it.cluster.list_tasks(CLUSTER | {"maxResults": 2})
        rest = it.cluster.list_tasks(CLUSTER | {"maxResults": 2, "nextToken": page["nextToken"]})
        assert len(page["taskArns"]) + len(rest["taskArns"]) == 3
        assert "nextToken" not in rest
        assert len(it.cluster.list_tasks(CLUSTER | {"family": "cabal-imap"})["taskArns"]) == 1
        assert it.cluster.list_tasks(CLUSTER | {"launchType": "FARGATE"})["taskArns"] == []

    drive(write_scenario(tiers=tiers()), story)
