# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask ECS once for a restart, and follow it to an end that is true.

UpdateService has no condition and no token that would make it idempotent. So it is sent once, never again by a retry
below; when its answer is lost, the service is asked whether the deployment is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from .rollout import (
    ENDED,
    Aws,
    describe,
    events_since,
    failed_starts,
    judge_deployment,
    judge_tasks,
    moment,
    primary,
    stop_reasons,
    task_id,
    under_way,
)

#: DescribeTasks takes no more at once.
TASKS_PER_CALL = 100
#: How often a request that AWS throttled, so that it did nothing, is sent.
MOST_REQUESTS = 5
#: So many refusals in a row while waiting, and the end will not be seen.
MOST_DENIALS = 3
MOST_EVENTS = 20
#: ECS's clock and ours may differ by so much.
CLOCK_SLACK = timedelta(seconds=5)
FIRST_PAUSE_SECONDS = 0.5


class RefusedError(Exception):
    """Nothing was done; the text is one sentence that says why, ``gate`` which condition was not met."""

    def __init__(self, text: str, gate: str | None = None) -> None:
        super().__init__(text)
        self.gate = gate


class UnclearError(Exception):
    """A request may have been heard, and ECS can't be asked whether it was; the text says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to restart and how long to wait for it. ``strategy``: service or task; times in seconds."""

    cluster: str
    service: str
    strategy: str
    tasks: tuple[str, ...] = ()
    reason: str = ""
    if_older_than: datetime | None = None
    refuse_if_deploying: bool = False
    wait: bool = True
    timeout: float = 900.0
    poll: float = 5.0
    most_failed_starts: int = 3


@dataclass(slots=True)
class Clients:
    """How AWS is reached. ``write`` must not retry by itself; ``kind`` and ``explain`` judge and word an exception."""

    read: Any
    write: Any
    kind: Callable[[BaseException], str]
    explain: Callable[[BaseException], str]


class Redeploy:
    """One restart of one service."""

    def __init__(
        self,
        wanted: Wanted,
        clients: Clients,
        note: Callable[[dict[str, Any]], None] = lambda _state: None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``note`` is told how far it is, now and then."""
        self._wanted = wanted
        self._aws = clients
        self._note = note
        self._sleep = sleep
        self._clock = clock
        self._asked_at = datetime.now(UTC)
        self._deployment: str | None = None
        self._stopped: tuple[str, ...] = ()
        self._refused: str | None = None
        #: Whether a request was sent: what breaks off from then on is no proof that nothing was done.
        self.begun = False

    def run(self, check_mode: bool) -> dict[str, Any]:
        """Restart what is wanted, unless it was restarted already.

        :returns: the module's result; ``outcome`` tells the end.
        :raises RefusedError: when nothing may be done, or ECS refused it.
        """
        service = self._service()
        running = self._task_ids("RUNNING")
        before = {**describe(service), "tasks": sorted(running)}
        due = self._due(service, running)
        if due and check_mode:
            return self._result("would_act", True, before, self._foreseen(before))
        if due:
            try:
                self._act(service, due)
            except UnclearError as error:
                return self._unseen("unknown", True, before, str(error))
        elif self._deployment is None:
            return self._result("nothing_to_do", False, before, before)
        if not self._wanted.wait:
            return self._result("requested" if due else "in_progress", bool(due), before, before)
        return self._follow(bool(due), before)

    # -- before

    def _due(self, service: Aws, running: set[str]) -> tuple[str, ...]:
        """What has to be done: the service's name or ids of tasks; empty when nothing has."""
        wanted = self._wanted
        rolling = under_way(service)
        if rolling is not None:
            if wanted.refuse_if_deploying:
                raise RefusedError(
                    f"A deployment of {wanted.service} is in progress ({rolling.get('id')}).", "deployment_in_progress"
                )
            self._deployment = str(rolling.get("id"))
            return ()
        if not service.get("desiredCount"):
            raise RefusedError(f"{wanted.service} is scaled to zero: there is nothing to restart.", "quiesced")
        if wanted.strategy == "task":
            return tuple(task for task in wanted.tasks if task in running)
        created = moment((primary(service) or {}).get("createdAt"))
        if wanted.if_older_than is not None and (created is None or created >= wanted.if_older_than):
            return ()
        return (wanted.service,)

    def _foreseen(self, before: dict[str, Any]) -> dict[str, Any]:
        """What the restart would make of the service."""
        if self._wanted.strategy == "task":
            kept = [task for task in before["tasks"] if task not in self._wanted.tasks]
            return {**before, "tasks": [*kept, *["(new)"] * (len(before["tasks"]) - len(kept))]}
        new = {"id": "(new)", "status": "PRIMARY", "rollout_state": "IN_PROGRESS", "created_at": None}
        old = [{**row, "status": "ACTIVE"} for row in before["deployments"]]
        return {**before, "deployments": [{**new, "running": 0, "failed": 0}, *old], "tasks": ["(new)"]}

    # -- the request

    def _act(self, service: Aws, due: tuple[str, ...]) -> None:
        self._asked_at, self.begun = datetime.now(UTC), True
        if self._wanted.strategy == "task":
            self._stop_all(due)
            return
        known = {str(row.get("id")) for row in service.get("deployments") or []}
        self._deployment = self._send(lambda: self._force(known))

    def _stop_all(self, due: tuple[str, ...]) -> None:
        """Stop tasks one by one. Once one is stopped, a refusal ends the asking and not the following."""
        for task in due:
            try:
                self._send(lambda task=task: self._stop(task))  # type: ignore[misc]
            except RefusedError as error:
                if not self._stopped:
                    raise
                self._refused = str(error)
                return
            self._stopped += (task,)

    def _stop(self, task: str) -> None:
        """StopTask of a task that is stopped already changes nothing, so that it may be repeated."""
        wanted = self._wanted
        try:
            self._aws.write.stop_task(cluster=wanted.cluster, task=task, reason=wanted.reason)
        except Exception as error:
            if self._aws.kind(error) in ("denied", "throttled") or task in self._asked(self._task_ids, "RUNNING"):
                raise

    def _force(self, known: set[str]) -> str:
        """UpdateService; when its answer is lost, what ECS shows decides whether it was heard."""
        wanted = self._wanted
        try:
            answer = self._aws.write.update_service(
                cluster=wanted.cluster, service=wanted.service, forceNewDeployment=True
            )
            service = answer["service"]
        except Exception as error:
            if self._aws.kind(error) in ("denied", "throttled", "missing"):
                raise
            service = self._asked(self._service)
            found = primary(service)
            if found is None or str(found.get("id")) in known:
                raise
        first = primary(service)
        return str((first or {}).get("id"))

    def _asked(self, read: Callable[..., Any], *arguments: Any) -> Any:
        """What ECS shows after an answer was lost; UnclearError when it does not say either."""
        for attempt in range(1, MOST_REQUESTS + 1):
            try:
                return read(*arguments)
            except Exception as error:
                if attempt == MOST_REQUESTS or self._aws.kind(error) == "denied":
                    raise UnclearError(self._aws.explain(error)) from error
            self._sleep(FIRST_PAUSE_SECONDS * 2**attempt)
        raise AssertionError("the loop returns or raises")

    def _send(self, request: Callable[[], Any]) -> Any:
        """Send a request; again only where AWS throttled it, since then it did nothing."""
        for attempt in range(1, MOST_REQUESTS + 1):
            try:
                return request()
            except UnclearError:
                raise
            except Exception as error:
                if self._aws.kind(error) != "throttled" or attempt == MOST_REQUESTS:
                    raise RefusedError(self._aws.explain(error)) from error
            self._sleep(FIRST_PAUSE_SECONDS * 2**attempt)
        raise AssertionError("the loop returns or raises")

    # -- after

    def _follow(self, changed: bool, before: dict[str, Any]) -> dict[str, Any]:
        """Look again and again until it is over, or nobody can say, or the time is."""
        state, said, denials = "in_progress", "", 0
        for left in self._looks():
            try:
                service = self._service()
                running = self._task_ids("RUNNING")
            except Exception as error:
                said = self._aws.explain(error)
                denials = denials + 1 if self._aws.kind(error) == "denied" else 0
                if denials >= MOST_DENIALS:
                    return self._unseen("unknown", changed, before, said)
                continue
            denials, said = 0, ""
            state = self._judge(service, running)
            self._note({"state": state, "left": round(left), **describe(service)})
            if state in ENDED or self._hopeless(service):
                break
        if said:
            return self._unseen("unknown", changed, before, said)
        if state not in ENDED:
            state = "failed" if self._hopeless(service) else "timed_out"
        return self._ended(state, changed, before, service, running)

    def _looks(self) -> Iterator[float]:
        """Yield the seconds left, at growing intervals, and once more at the end."""
        end = self._clock() + self._wanted.timeout
        pause = min(FIRST_PAUSE_SECONDS, self._wanted.poll)
        while (left := end - self._clock()) > 0:
            yield left
            self._sleep(min(pause, max(0.0, end - self._clock())))
            pause = min(pause * 2, self._wanted.poll)
        yield 0.0

    def _judge(self, service: Aws, running: set[str]) -> str:
        if self._deployment is None:
            return judge_tasks(service, running, self._stopped)
        return judge_deployment(service, self._deployment)

    def _hopeless(self, service: Aws) -> bool:
        """Without a circuit breaker ECS goes on for ever with tasks that do not start."""
        breaker = (service.get("deploymentConfiguration") or {}).get("deploymentCircuitBreaker") or {}
        if self._deployment is None or breaker.get("enable"):
            return False
        return failed_starts(service, self._deployment) >= self._wanted.most_failed_starts

    def _ended(
        self, state: str, changed: bool, before: dict[str, Any], service: Aws, running: set[str]
    ) -> dict[str, Any]:
        after = {**describe(service), "tasks": sorted(running)}
        result = self._result(state, changed, before, after)
        since = self._asked_at - CLOCK_SLACK
        result["new_tasks"] = sorted(running - set(before["tasks"]))
        result["events"] = [*filter(None, [self._refused]), *events_since(service, since)[-MOST_EVENTS:]]
        if state != "steady":
            result["stopped"] = self._stop_reasons(since, before["tasks"])
        return result

    def _stop_reasons(self, since: datetime, old: list[str]) -> list[dict[str, Any]]:
        """Why tasks ended; empty where ECS does not say."""
        try:
            tasks = self._tasks(self._task_ids("STOPPED"))
        except Exception:
            return []  # the end is known all the same, and the service's events are told
        return stop_reasons(tasks, since, old)

    def _unseen(self, state: str, changed: bool, before: dict[str, Any], said: str) -> dict[str, Any]:
        result = self._result(state, changed, before, None)
        result["events"] = [said]
        return result

    def _result(
        self, outcome: str, changed: bool, before: dict[str, Any], after: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {
            "changed": changed,
            "outcome": outcome,
            "deployment": self._deployment,
            "stopped_tasks": list(self._stopped),
            "asked_at": self._asked_at.strftime("%Y-%m-%dT%H:%M:%SZ") if changed else None,
            "before": before,
            "after": after,
            "new_tasks": [],
            "events": [],
            "stopped": [],
        }

    # -- reads

    def _service(self) -> Aws:
        wanted = self._wanted
        found = self._aws.read.describe_services(cluster=wanted.cluster, services=[wanted.service]).get("services")
        if not found or found[0].get("status") == "INACTIVE":
            raise RefusedError(f"There is no service {wanted.service} in the cluster {wanted.cluster}.")
        return dict(found[0])

    def _task_ids(self, status: str) -> set[str]:
        pages = self._aws.read.get_paginator("list_tasks").paginate(
            cluster=self._wanted.cluster, serviceName=self._wanted.service, desiredStatus=status
        )
        return {str(arn).rsplit("/", 1)[-1] for page in pages for arn in page.get("taskArns") or []}

    def _tasks(self, ids: set[str]) -> list[Aws]:
        wanted, rows = sorted(ids), list[Aws]()
        for at in range(0, len(wanted), TASKS_PER_CALL):
            chunk = wanted[at : at + TASKS_PER_CALL]
            rows += self._aws.read.describe_tasks(cluster=self._wanted.cluster, tasks=chunk).get("tasks") or []
        return sorted(rows, key=task_id)


WORDS = {
    "steady": "{service} is in a steady state",
    "failed": "the deployment of {service} failed",
    "rolled_back": "ECS rolled the deployment of {service} back",
    "timed_out": "{service} did not settle in {timeout:g} s",
    "superseded": "another deployment of {service} took the place of this one",
    "unknown": "how it went with {service} could not be seen",
    "nothing_to_do": "{service} was restarted already",
    "would_act": "{service} would be restarted",
    "requested": "the restart of {service} was asked for",
    "in_progress": "a deployment of {service} is in progress",
}


def sentence(wanted: Wanted, result: dict[str, Any]) -> str:
    """One sentence that says how it ended, and why, with the stopped tasks' reasons before the service's events."""
    said = WORDS[result["outcome"]].format(service=wanted.service, timeout=wanted.timeout)
    said = said[0].upper() + said[1:]
    if result["outcome"] in ("steady", "nothing_to_do", "would_act", "requested", "in_progress"):
        return f"{said}."
    why = [f"task {row['task']}: {row['reason']}" for row in result["stopped"][-1:]]
    why += [text.rstrip(".") for text in result["events"][-1:] if not why]
    return f"{said}{': ' + why[0].rstrip('.') if why else ''}."
