# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ECS: services whose tasks really run, and deployments that time drives.

Reads change nothing. Behaviour after the API reference (https://docs.aws.amazon.com/AmazonECS/latest/APIReference/) and
https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-lifecycle-explanation.html: a task goes PROVISIONING,
PENDING, RUNNING, DEACTIVATING, STOPPING, DEPROVISIONING, STOPPED; a stopped one is listed for an hour.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
import signal
import string
import uuid
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

from .errors import ApiError, SandboxError
from .model import (
    ACCOUNT_ID,
    CLUSTER,
    EXEC_KEY,
    REGION,
    Exec,
    ExecSession,
    Loop,
    MapState,
    Scenario,
    TaskSpec,
    TierSpec,
)
from .scenario import secrets_of

T = TypeVar("T")
Json = dict[str, Any]
ARN = f"arn:aws:ecs:{REGION}:{ACCOUNT_ID}"
CLUSTER_ARN = f"{ARN}:cluster/{CLUSTER}"
CAPACITY_PROVIDER = "cabal-ec2"
STOPPED_LISTED = timedelta(hours=1)
BREAKER_THRESHOLD = 3
STOP_GRACE_SECONDS = 5.0
RETRY_SECONDS = 1.0
RETRY_SECONDS_MAX = 60.0
DISCOVERED = ("imap", "smtp-out")
EVENTS_KEPT = 100
INSTANCES = 2
INSTANCE_TASKS = 8
TASK_CPU, TASK_MEMORY = 256, 512
_DRAINING = ("DEACTIVATING", "STOPPING", "DEPROVISIONING")


class Runtime(Protocol):
    """Makes processes of task specifications. Both calls block, so they run on worker threads."""

    def start(self, specs: Iterable[TaskSpec]) -> dict[str, Exception | None]:
        """Start tasks; by task id None, or why it could not start."""

    def stop(self, task_id: str, *, grace: float) -> None:
        """End a task and whatever runs in it, after ``grace`` seconds by force."""

    def signal_loop(self, task_id: str, signal_number: signal.Signals) -> None:
        """Send a signal to a task's reconfigure loop."""


@dataclass(eq=False)
class Task:
    """A task at any point of its life."""

    spec: TaskSpec
    service: str
    deployment: str
    definition: str
    image: str
    created_at: datetime
    last_status: str = "PROVISIONING"
    desired_status: str = "RUNNING"
    started_at: datetime | None = None
    stopping_at: datetime | None = None
    stopped_at: datetime | None = None
    stop_code: str | None = None
    stopped_reason: str | None = None
    exit_code: int | None = None
    version: int = 1
    alive: bool = False

    @property
    def id(self) -> str:
        return self.spec.task_id

    @property
    def arn(self) -> str:
        return f"{ARN}:task/{CLUSTER}/{self.id}"

    @property
    def runtime_id(self) -> str:
        return hashlib.sha256(f"runtime/{self.id}".encode()).hexdigest()

    @property
    def agent_runs(self) -> bool:
        return self.last_status == "RUNNING" and self.spec.exec_state in (Exec.OK, Exec.NOT_CONNECTED)

    def uuid(self, what: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{what}/{self.id}"))

    def move(self, status: str) -> None:
        self.last_status = status
        self.version += 1


@dataclass(eq=False)
class Deployment:
    """A deployment of a service."""

    id: str
    definition: str
    created_at: datetime
    status: str = "PRIMARY"
    rollout_state: str = "COMPLETED"
    rollout_reason: str = ""
    updated_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    failed: int = 0
    desired: int = 0
    rolls_back: bool = False

    def set(self, state: str, reason: str) -> None:
        self.rollout_state, self.rollout_reason, self.updated_at = state, reason, datetime.now(UTC)


@dataclass(eq=False)
class Service:
    """A service; ``work`` is the running controller of its newest deployment."""

    tier: TierSpec
    created_at: datetime
    definition: str
    registered_at: datetime
    desired: int
    deployments: list[Deployment] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    events: list[Json] = field(default_factory=list)
    work: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.tier.service_name

    @property
    def arn(self) -> str:
        return f"{ARN}:service/{CLUSTER}/{self.name}"

    @property
    def primary(self) -> Deployment:
        return self.deployments[0]

    def of(self, deployment: Deployment) -> list[Task]:
        """Tasks of a deployment that are meant to run."""
        return [t for t in self.tasks if t.deployment == deployment.id and t.desired_status == "RUNNING"]

    def event(self, text: str, at: datetime | None = None) -> None:
        moment = at or datetime.now(UTC)
        entry = {"id": str(uuid.uuid4()), "createdAt": moment.timestamp(), "message": f"(service {self.name}) {text}"}
        self.events.insert(0, entry)
        del self.events[EVENTS_KEPT:]


class Cluster:
    """All of the sandbox's ECS. Lives on the event loop; the runtime's calls go to worker threads."""

    def __init__(self, scenario: Scenario, runtime: Runtime, discovery: Callable[[str, str, bool], None]) -> None:
        """:param discovery: called with a tier, a task's address and whether it came (a start) or goes (a stop)."""
        self.scenario = scenario
        self.runtime = runtime
        self.discovery = discovery
        self.services = {tier.service_name: self._service(tier) for tier in scenario.tiers.values()}
        self._new_index = itertools.count(100)
        self._background: set[asyncio.Task[Any]] = set()

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the processes of all declared tasks, side by side.

        :raises SandboxError: when one does not start.
        """
        failure = await self._launch([task for service in self.services.values() for task in service.tasks])
        if failure is not None:
            raise SandboxError(f"A task could not be started: {failure}.")

    async def stop(self) -> None:
        """End every deployment and every task's processes."""
        work = [service.work for service in self.services.values() if service.work]
        for job in [*work, *self._background]:
            job.cancel()
        await asyncio.gather(*work, *self._background, return_exceptions=True)
        tasks = [task for service in self.services.values() for task in service.tasks]
        await asyncio.gather(*(self._kill(task, grace=0) for task in tasks))

    async def _launch(self, tasks: list[Task]) -> Exception | None:
        """Start processes; return the first failure."""
        results = await asyncio.to_thread(self.runtime.start, [task.spec for task in tasks])
        for task in tasks:
            task.alive = results[task.id] is None
        return next((error for error in results.values() if error is not None), None)

    async def _kill(self, task: Task, grace: float = STOP_GRACE_SECONDS) -> None:
        if task.alive:
            task.alive = False
            await asyncio.to_thread(self.runtime.stop, task.id, grace=grace)

    def exited(self, task_id: str, status: int) -> None:
        """A task ended by itself: its essential container exited, and the service replaces it."""
        task = self._find_task(task_id)
        if task is None or task.desired_status != "RUNNING" or task.last_status != "RUNNING":
            return
        service = self.services[task.service]
        task.exit_code = status
        self._begin_stop(task, "EssentialContainerExited", "Essential container in task exited")
        self._spawn(self._drain(service, task))
        self._replace(service)

    def _service(self, tier: TierSpec) -> Service:
        now, spec = self.scenario.now, tier.service
        registered = now - timedelta(days=spec.registered_days_ago)
        definition = f"{ARN}:task-definition/cabal-{tier.name}:{_revision(tier.name)}"
        service = Service(tier, now - timedelta(days=200), definition, registered, spec.desired)
        starts = [entry.spec.started_at for entry in tier.tasks]
        first = Deployment(_deployment_id(tier.name), definition, min(starts, default=now) - timedelta(seconds=20))
        first.desired = spec.desired
        first.rollout_reason = f"ECS deployment {first.id} completed."
        first.updated_at = first.created_at + timedelta(seconds=90)
        service.deployments = [first]
        for entry in tier.tasks:
            started = entry.spec.started_at
            task = Task(
                entry.spec, service.name, first.id, definition, image(tier), started - timedelta(seconds=12), "RUNNING"
            )
            task.started_at = started
            service.tasks.append(task)
            service.event(f"has started 1 tasks: (task {task.id}).", started)
        service.event(f"(deployment {first.id}) deployment completed.", first.updated_at)
        service.event("has reached a steady state.", max([first.updated_at, now - timedelta(hours=2)]))
        service.events.sort(key=lambda entry: -float(entry["createdAt"]))
        if spec.deployment.in_progress_minutes is not None:
            self._under_way(service, now - timedelta(minutes=spec.deployment.in_progress_minutes))
        return service

    def _under_way(self, service: Service, since: datetime) -> None:
        """A deployment that the scenario finds in progress: no task of its own runs yet."""
        old = service.primary
        old.status = "ACTIVE"
        new = Deployment(_new_deployment_id(), service.definition, since, "PRIMARY", "IN_PROGRESS")
        new.rollout_reason, new.updated_at, new.desired = (
            f"ECS deployment {new.id} in progress.",
            since,
            service.desired,
        )
        service.deployments.insert(0, new)
        service.event(_NO_ROOM, since + timedelta(seconds=40))

    # -- reads ---------------------------------------------------------------------------------------------------

    def list_clusters(self, request: Json) -> Json:
        return {"clusterArns": [CLUSTER_ARN]}

    def describe_clusters(self, request: Json) -> Json:
        found, failures = [], []
        for name in request.get("clusters") or ["default"]:
            if name in (CLUSTER, CLUSTER_ARN):
                found.append(self._cluster_facts())
            else:
                failures.append(_missing(name if name.startswith("arn:") else f"{ARN}:cluster/{name}"))
        return {"clusters": found, "failures": failures}

    def _cluster_facts(self) -> Json:
        tasks = [task for service in self.services.values() for task in service.tasks]
        facts: Json = {
            "clusterArn": CLUSTER_ARN,
            "clusterName": CLUSTER,
            "status": "ACTIVE",
            "registeredContainerInstancesCount": INSTANCES,
            "runningTasksCount": sum(task.last_status == "RUNNING" for task in tasks),
            "pendingTasksCount": sum(task.last_status in ("PROVISIONING", "PENDING") for task in tasks),
            "activeServicesCount": len(self.services),
            "statistics": [],
            "tags": [],
            "settings": [{"name": "containerInsights", "value": "enabled"}],
            "capacityProviders": [CAPACITY_PROVIDER],
            "defaultCapacityProviderStrategy": [{"capacityProvider": CAPACITY_PROVIDER, "weight": 1, "base": 0}],
        }
        if self.scenario.exec_encrypted:
            facts["configuration"] = {"executeCommandConfiguration": {"kmsKeyId": EXEC_KEY, "logging": "DEFAULT"}}
        return facts

    def list_container_instances(self, request: Json) -> Json:
        self._check_cluster(request)
        if request.get("status", "ACTIVE") != "ACTIVE":
            return {"containerInstanceArns": []}
        return _paged("containerInstanceArns", [_instance_arn(n) for n in range(INSTANCES)], request, 100)

    def describe_container_instances(self, request: Json) -> Json:
        self._check_cluster(request)
        names = request.get("containerInstances") or []
        if not 1 <= len(names) <= 100:
            raise ApiError("InvalidParameterException", "containerInstances must have 1 to 100 members.")
        by_id = {_instance_arn(n).rsplit("/", 1)[-1]: n for n in range(INSTANCES)}
        found = [name for name in names if name.rsplit("/", 1)[-1] in by_id]
        return {
            "containerInstances": [self._instance_facts(by_id[name.rsplit("/", 1)[-1]]) for name in found],
            "failures": [_missing(name) for name in names if name not in found],
        }

    def _instance_facts(self, number: int) -> Json:
        """An instance has room for eight tasks, less those on it; none where the scenario says that tasks find none."""
        arn = _instance_arn(number)
        tasks = [
            task
            for service in self.services.values()
            for task in service.tasks
            if task.last_status != "STOPPED" and _instance_of(task) == arn
        ]
        crowded = any(tier.service.deployment.outcome == "stuck" for tier in self.scenario.tiers.values())
        free = 0 if crowded else max(0, INSTANCE_TASKS - len(tasks))
        return {
            "containerInstanceArn": arn,
            "ec2InstanceId": f"i-{arn[-17:]}",
            "capacityProviderName": CAPACITY_PROVIDER,
            "version": 1,
            "status": "ACTIVE",
            "agentConnected": True,
            "runningTasksCount": sum(task.last_status == "RUNNING" for task in tasks),
            "pendingTasksCount": sum(task.last_status in ("PROVISIONING", "PENDING") for task in tasks),
            "remainingResources": _resources(free),
            "registeredResources": _resources(INSTANCE_TASKS),
            "attributes": [{"name": "ecs.cpu-architecture", "value": "arm64"}],
        }

    def list_services(self, request: Json) -> Json:
        self._check_cluster(request)
        arns = [service.arn for service in self.services.values()]
        return _paged("serviceArns", arns, request, 10)

    def describe_services(self, request: Json) -> Json:
        self._check_cluster(request)
        names = request.get("services") or []
        if not 1 <= len(names) <= 10:
            raise ApiError("InvalidParameterException", "Services must have 1 to 10 members.")
        found, failures = [], []
        for name in names:
            service = self.services.get(name.rsplit("/", 1)[-1])
            if service is None:
                failures.append(_missing(f"{ARN}:service/{CLUSTER}/{name}"))
            else:
                found.append(service_facts(service))
        return {"services": found, "failures": failures}

    def list_tasks(self, request: Json) -> Json:
        self._check_cluster(request)
        desired = request.get("desiredStatus", "RUNNING")
        if desired not in ("RUNNING", "PENDING", "STOPPED"):
            raise ApiError("InvalidParameterException", "desiredStatus must be RUNNING, PENDING or STOPPED.")
        services = list(self.services.values())
        if "serviceName" in request:
            services = [self._find_service(request["serviceName"])]
        tasks = [task for service in services for task in self._listed(service) if task.desired_status == desired]
        if "family" in request:
            tasks = [task for task in tasks if _family(task.definition) == request["family"]]
        if "startedBy" in request:
            tasks = [task for task in tasks if task.deployment == request["startedBy"]]
        if request.get("launchType", "EC2") != "EC2":
            tasks = []
        return _paged("taskArns", [task.arn for task in tasks], request, 100)

    def describe_tasks(self, request: Json) -> Json:
        self._check_cluster(request)
        names = request.get("tasks") or []
        if not 1 <= len(names) <= 100:
            raise ApiError("InvalidParameterException", "Tasks must have 1 to 100 members.")
        found, failures = [], []
        for name in names:
            task = self._find_task(name)
            if task is None:
                failures.append(_missing(name if name.startswith("arn:") else f"{ARN}:task/{CLUSTER}/{name}"))
            else:
                found.append(task_facts(task))
        return {"tasks": found, "failures": failures}

    def describe_task_definition(self, request: Json) -> Json:
        wanted = str(request.get("taskDefinition", "")).rsplit("/", 1)[-1]
        for service in self.services.values():
            current = service.definition.rsplit("/", 1)[-1]
            if wanted in (current, current.rsplit(":", 1)[0]):
                return {"taskDefinition": self._definition_facts(service), "tags": []}
        raise ApiError("ClientException", "Unable to describe task definition.")

    def _definition_facts(self, service: Service) -> Json:
        tier = service.tier
        hidden = secrets_of(tier.name)
        pings = self.scenario.heartbeat_modified is not None
        secret = [(k, v) for k, v in hidden.items() if pings or k != "HEALTHCHECK_PING_URL"]
        environment = next((entry.spec.environment for entry in tier.tasks), {})
        container: Json = {
            "name": tier.name,
            "image": image(tier),
            "cpu": 0,
            "memoryReservation": 384,
            "memory": 512,
            "essential": True,
            "environment": [{"name": k, "value": v} for k, v in environment.items() if k not in hidden],
            "secrets": [{"name": k, "valueFrom": v} for k, v in secret],
            "portMappings": [],
            "mountPoints": [],
            "volumesFrom": [],
            "linuxParameters": {"initProcessEnabled": True},
            "logConfiguration": {
                "logDriver": "awslogs",
                "options": {
                    "awslogs-group": tier.log_group,
                    "awslogs-region": REGION,
                    "awslogs-stream-prefix": tier.name,
                    "mode": "non-blocking",
                },
            },
            "systemControls": [],
        }
        if tier.name != "imap":
            container["stopTimeout"] = 120
        return {
            "taskDefinitionArn": service.definition,
            "family": _family(service.definition),
            "revision": int(service.definition.rsplit(":", 1)[-1]),
            "status": "ACTIVE",
            "networkMode": "awsvpc",
            "cpu": str(TASK_CPU),
            "memory": str(TASK_MEMORY),
            "requiresCompatibilities": ["EC2"],
            "compatibilities": ["EC2"],
            "containerDefinitions": [container],
            "taskRoleArn": f"arn:aws:iam::{ACCOUNT_ID}:role/cabal-ecs-task",
            "executionRoleArn": f"arn:aws:iam::{ACCOUNT_ID}:role/cabal-ecs-execution",
            "volumes": [],
            "placementConstraints": [],
            "registeredAt": service.registered_at.timestamp(),
            "registeredBy": f"arn:aws:iam::{ACCOUNT_ID}:role/terraform",
        }

    # -- changes -------------------------------------------------------------------------------------------------

    def update_service(self, request: Json) -> Json:
        self._check_cluster(request)
        service = self._find_service(str(request.get("service", "")))
        desired = request.get("desiredCount")
        if desired is not None:
            if not isinstance(desired, int) or desired < 0:
                raise ApiError("InvalidParameterException", "desiredCount must be 0 or more.")
            service.desired = desired
        if request.get("forceNewDeployment"):
            self._deploy(service)
        elif desired is not None:
            service.primary.desired = desired
            self._run(service, self._settle(service, service.primary))
        return {"service": service_facts(service)}

    def stop_task(self, request: Json) -> Json:
        self._check_cluster(request)
        task = self._find_task(str(request.get("task", "")))
        if task is None:
            raise ApiError("InvalidParameterException", "The referenced task was not found.")
        service = self.services[task.service]
        if task.desired_status == "RUNNING":
            reason = request.get("reason") or "Task stopped by user"
            self._begin_stop(task, "UserInitiated", reason)
            self._spawn(self._drain(service, task))
            self._replace(service)
        return {"task": task_facts(task)}

    def _replace(self, service: Service) -> None:
        """Bring the service back to its number, unless a deployment is at it anyway."""
        if service.work is None or service.work.done():
            self._run(service, self._settle(service, service.primary))

    def exec_session(self, request: Json) -> tuple[ExecSession, Json]:
        """Make the session that ExecuteCommand asks for, and its answer without the session; or refuse as AWS does."""
        task, container = self._exec_target(request)
        session = ExecSession(
            session_id="ecs-execute-command-" + _opaque(26),
            token=secrets.token_urlsafe(96),
            task_id=task.id,
            container=container,
            runtime_id=task.runtime_id,
            command=request["command"],
        )
        answer = {
            "clusterArn": CLUSTER_ARN,
            "containerArn": _container_arn(task),
            "containerName": container,
            "interactive": True,
            "taskArn": task.arn,
        }
        return session, answer

    def _exec_target(self, request: Json) -> tuple[Task, str]:
        self._check_cluster(request)
        if not request.get("interactive"):
            raise ApiError("InvalidParameterException", "Interactive must be true.")
        if not request.get("command"):
            raise ApiError("InvalidParameterException", "Command must not be empty.")
        task = self._find_task(str(request.get("task", "")))
        if task is None or task.last_status == "STOPPED":
            raise ApiError("InvalidParameterException", "The specified task was not found or is not running.")
        container = str(request.get("container", task.spec.tier))
        if container != task.spec.tier:
            raise ApiError("InvalidParameterException", f"The container {container} doesn't exist in the task.")
        if not task.agent_runs or not task.alive:
            raise ApiError("InvalidParameterException", _NO_AGENT)
        if task.spec.exec_state is Exec.NOT_CONNECTED:
            text = "The execute command failed due to an internal error. Try again later."
            raise ApiError("TargetNotConnectedException", text)
        return task, container

    # -- deployments ---------------------------------------------------------------------------------------------

    def _deploy(self, service: Service) -> None:
        for deployment in service.deployments:
            if deployment.status == "PRIMARY":
                deployment.status = "ACTIVE"
        new = Deployment(_new_deployment_id(), service.definition, datetime.now(UTC))
        new.set("IN_PROGRESS", f"ECS deployment {new.id} in progress.")
        new.desired = service.desired
        service.deployments.insert(0, new)
        self._run(service, self._roll(service, new))

    def _run(self, service: Service, work: Coroutine[Any, Any, None]) -> None:
        """Make ``work`` the service's controller in place of the one before."""
        if service.work is not None:
            service.work.cancel()
        service.work = asyncio.create_task(work)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        job = asyncio.create_task(work)
        self._background.add(job)
        job.add_done_callback(self._background.discard)
        return job

    async def _all(self, work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """Do work side by side; it goes on to its end even when the deployment that asked for it is superseded."""
        return await asyncio.gather(*(asyncio.shield(self._spawn(coroutine)) for coroutine in work))

    async def _roll(self, service: Service, new: Deployment) -> None:
        if service.tier.service.maximum_percent <= 100:
            await self._retire_others(service, new)
        if service.tier.service.deployment.outcome == "stuck":
            service.event(_NO_ROOM)
            return
        await self._settle(service, new)

    async def _settle(self, service: Service, deployment: Deployment) -> None:
        """Start or stop tasks until the deployment has its number; then retire the others and complete."""
        wanted = deployment.desired = service.desired
        current = service.of(deployment)
        surplus = current[wanted:]
        for task in surplus:
            self._begin_stop(task, "ServiceSchedulerInitiated", _scaling(deployment))
        await self._all(self._drain(service, task) for task in surplus)
        while missing := wanted - len(service.of(deployment)):
            # A task may also end while its successors start: count again after each round.
            started = await self._all(self._start_task(service, deployment) for _ in range(missing))
            if all(started):
                await self._retire_others(service, deployment)
                continue
            if service.tier.service.circuit_breaker and deployment.failed >= BREAKER_THRESHOLD:
                await self._roll_back(service, deployment)
                return
            await asyncio.sleep(min(RETRY_SECONDS * deployment.failed, RETRY_SECONDS_MAX))
        await self._retire_others(service, deployment)
        self._complete(service, deployment)

    @staticmethod
    def _complete(service: Service, deployment: Deployment) -> None:
        service.deployments = [deployment]
        if deployment.rollout_state != "COMPLETED":
            deployment.set("COMPLETED", f"ECS deployment {deployment.id} completed.")
            service.event(f"(deployment {deployment.id}) deployment completed.")
        service.event("has reached a steady state.")

    async def _retire_others(self, service: Service, keep: Deployment) -> None:
        old = [t for t in service.tasks if t.deployment != keep.id and t.desired_status == "RUNNING"]
        if not old:
            return
        for task in old:
            self._begin_stop(task, "ServiceSchedulerInitiated", _scaling(keep))
        service.event(f"has begun draining connections on {len(old)} tasks.")
        await self._all(self._drain(service, task) for task in old)
        ids = " ".join(f"(task {task.id})" for task in old)
        service.event(f"has stopped {len(old)} running tasks: {ids}.")

    async def _roll_back(self, service: Service, failed: Deployment) -> None:
        """The circuit breaker: a deployment of the old definition, whose tasks the scenario lets live."""
        back = Deployment(_new_deployment_id(), service.definition, datetime.now(UTC))
        back.rolls_back = True
        back.set("IN_PROGRESS", f"ECS deployment circuit breaker: rolling back to deploymentId {back.id}.")
        failed.status = "ACTIVE"
        failed.set("FAILED", "ECS deployment circuit breaker: tasks failed to start.")
        service.deployments.insert(0, back)
        service.event(f"(deployment {failed.id}) deployment failed: tasks failed to start.")
        service.event(f"rolling back to (deployment {back.id}).")
        await self._settle(service, back)
        if back.rollout_state == "COMPLETED":
            failed.status = "INACTIVE"
            service.deployments.append(failed)

    async def _start_task(self, service: Service, deployment: Deployment) -> bool:
        """Take one new task from PROVISIONING to RUNNING; False when it ended before."""
        pace = service.tier.service.deployment.start_seconds / 3
        spec = self._fresh_spec(service)
        created = datetime.now(UTC)
        task = Task(spec, service.name, deployment.id, service.definition, image(service.tier), created)
        service.tasks.append(task)
        await asyncio.sleep(pace)
        task.move("PENDING")
        await asyncio.sleep(pace)
        failure = self._declared_failure(service, deployment)
        if failure is None:
            task.spec = replace(task.spec, started_at=datetime.now(UTC))
            error = await self._launch([task])
            failure = None if error is None else ("EssentialContainerExited", "Essential container in task exited", 1)
            if error is None and service.tier.service.deployment.loop is Loop.STOPPED:
                await asyncio.to_thread(self.runtime.signal_loop, task.id, signal.SIGSTOP)
        if failure is not None:
            await self._start_failed(service, deployment, task, failure)
            return False
        if task.desired_status == "STOPPED":
            await self._kill(task)
            return False
        task.started_at = task.spec.started_at
        task.move("RUNNING")
        service.event(f"has started 1 tasks: (task {task.id}).")
        if task.spec.tier in DISCOVERED:
            self.discovery(task.spec.tier, task.spec.ip, True)
        await asyncio.sleep(pace)
        return True

    @staticmethod
    def _declared_failure(service: Service, deployment: Deployment) -> tuple[str, str, int | None] | None:
        spec = service.tier.service
        if spec.missing_secrets:
            reason = (
                "ResourceInitializationError: unable to pull secrets or registry auth: unable to retrieve secrets from "
                f"ssm: invalid parameters: {', '.join(spec.missing_secrets)}"
            )
            return "TaskFailedToStart", reason, None
        if spec.deployment.outcome == "failed" and not deployment.rolls_back:
            return "EssentialContainerExited", "Essential container in task exited", 1
        return None

    async def _start_failed(
        self, service: Service, deployment: Deployment, task: Task, failure: tuple[str, str, int | None]
    ) -> None:
        code, reason, task.exit_code = failure
        deployment.failed += 1
        deployment.updated_at = datetime.now(UTC)
        self._begin_stop(task, code, reason)
        service.event(f"(task {task.id}) failed to start: {reason}")
        await self._drain(service, task)

    def _fresh_spec(self, service: Service) -> TaskSpec:
        """A new task of a service: like the declared ones, but healthy and built from the live tables."""
        index = next(self._new_index)
        tier = service.tier
        model = tier.tasks[index % len(tier.tasks)].spec if tier.tasks else None
        if model is None:
            raise ApiError(
                "ServerException", f"The scenario declares no task of {tier.name} to start others after.", 500
            )
        prefix, last = model.ip.rsplit(".", 1)
        imap = next(iter(self.scenario.discovery.get("imap", ())), None)
        return replace(
            model,
            task_id=secrets.token_hex(16),
            index=index,
            ip=f"{prefix}.{(int(last) + index) % 250 + 1}",
            started_at=datetime.now(UTC),
            loop=Loop.RUNNING,
            loop_error=None,
            maps=MapState(0, 0),
            exec_state=Exec.OK,
            sendmail_running=True,
            pin=imap if tier.name == "smtp-in" else None,
            pin_empty_seconds=0,
            mailq=() if tier.name == "imap" else model.mailq,
            users=tuple(replace(user, present=user.cognito == "CONFIRMED", stray_bytes=0) for user in model.users),
            fresh=True,
        )

    def _begin_stop(self, task: Task, code: str, reason: str) -> None:
        task.desired_status, task.stop_code, task.stopped_reason = "STOPPED", code, reason
        task.stopping_at = datetime.now(UTC)
        task.move("DEACTIVATING")
        if task.spec.tier in DISCOVERED and task.started_at is not None:
            self.discovery(task.spec.tier, task.spec.ip, False)

    async def _drain(self, service: Service, task: Task) -> None:
        pace = service.tier.service.deployment.drain_seconds / len(_DRAINING)
        for status in _DRAINING:
            task.move(status)
            await asyncio.sleep(pace)
            if status == "STOPPING":
                await self._kill(task)
                if task.exit_code is None and task.started_at is not None:
                    task.exit_code = 0
        task.stopped_at = datetime.now(UTC)
        task.move("STOPPED")

    # -- finding -------------------------------------------------------------------------------------------------

    def _check_cluster(self, request: Json) -> None:
        if request.get("cluster", "default") not in (CLUSTER, CLUSTER_ARN):
            raise ApiError("ClusterNotFoundException", "Cluster not found.")

    def _find_service(self, name: str) -> Service:
        service = self.services.get(name.rsplit("/", 1)[-1])
        if service is None:
            raise ApiError("ServiceNotFoundException", "Service not found.")
        return service

    def _find_task(self, name: str) -> Task | None:
        task_id = name.rsplit("/", 1)[-1]
        for service in self.services.values():
            for task in self._listed(service):
                if task.id == task_id:
                    return task
        return None

    @staticmethod
    def _listed(service: Service) -> list[Task]:
        limit = datetime.now(UTC) - STOPPED_LISTED
        return [task for task in service.tasks if task.stopped_at is None or task.stopped_at > limit]


_NO_AGENT = (
    "The execute command failed because execute command was not enabled when the task was run or the execute command "
    "agent isn't running. Wait and try again or run a new task with execute command enabled and try again."
)
_NO_ROOM = (
    "was unable to place a task because no container instance met all of its requirements. Reason: No Container "
    "Instances were found in your capacity provider. For more information, see the Troubleshooting section of the "
    "Amazon ECS Developer Guide."
)


def _scaling(deployment: Deployment) -> str:
    return f"Scaling activity initiated by (deployment {deployment.id})"


def image(tier: TierSpec) -> str:
    """The image reference of a tier's container."""
    return f"{ACCOUNT_ID}.dkr.ecr.{REGION}.amazonaws.com/cabal-{tier.name}:{tier.service.image_tag}"


def service_facts(service: Service) -> Json:
    """A service as DescribeServices shows it."""
    spec = service.tier.service
    alive = [task for task in service.tasks if task.desired_status == "RUNNING"]
    configuration: Json = {
        "maximumPercent": spec.maximum_percent,
        "minimumHealthyPercent": spec.minimum_healthy_percent,
        "deploymentCircuitBreaker": {"enable": spec.circuit_breaker, "rollback": spec.circuit_breaker},
        "strategy": "ROLLING",
    }
    return {
        "serviceArn": service.arn,
        "serviceName": service.name,
        "clusterArn": CLUSTER_ARN,
        "loadBalancers": [],
        "serviceRegistries": [],
        "status": "ACTIVE",
        "desiredCount": service.desired,
        "runningCount": sum(task.last_status == "RUNNING" for task in alive),
        "pendingCount": sum(task.last_status in ("PROVISIONING", "PENDING") for task in alive),
        "capacityProviderStrategy": _CAPACITY,
        "taskDefinition": service.definition,
        "deploymentConfiguration": configuration,
        "deployments": [_deployment_facts(service, deployment) for deployment in service.deployments],
        "events": service.events,
        "createdAt": service.created_at.timestamp(),
        "placementConstraints": [],
        "placementStrategy": [],
        "networkConfiguration": _NETWORK,
        "schedulingStrategy": "REPLICA",
        "deploymentController": {"type": "ECS"},
        "enableECSManagedTags": False,
        "propagateTags": "NONE",
        "enableExecuteCommand": True,
    }


_CAPACITY = [{"capacityProvider": CAPACITY_PROVIDER, "weight": 1, "base": 0}]
_NETWORK = {
    "awsvpcConfiguration": {
        "subnets": ["subnet-0a11aa11", "subnet-0b22bb22"],
        "securityGroups": ["sg-0c33cc33"],
        "assignPublicIp": "DISABLED",
    }
}


def _deployment_facts(service: Service, deployment: Deployment) -> Json:
    tasks = service.of(deployment)
    return {
        "id": deployment.id,
        "status": deployment.status,
        "taskDefinition": deployment.definition,
        "desiredCount": deployment.desired,
        "pendingCount": sum(task.last_status in ("PROVISIONING", "PENDING") for task in tasks),
        "runningCount": sum(task.last_status == "RUNNING" for task in tasks),
        "failedTasks": deployment.failed,
        "createdAt": deployment.created_at.timestamp(),
        "updatedAt": deployment.updated_at.timestamp(),
        "capacityProviderStrategy": _CAPACITY,
        "networkConfiguration": _NETWORK,
        "rolloutState": deployment.rollout_state,
        "rolloutStateReason": deployment.rollout_reason,
    }


def task_facts(task: Task) -> Json:
    """A task as DescribeTasks shows it."""
    spec = task.spec
    health = _health(task)
    facts: Json = {
        "attachments": [_attachment(task)],
        "attributes": [{"name": "ecs.cpu-architecture", "value": "arm64"}],
        "availabilityZone": spec.zone,
        "capacityProviderName": CAPACITY_PROVIDER,
        "clusterArn": CLUSTER_ARN,
        "connectivity": "CONNECTED",
        "connectivityAt": (task.created_at + timedelta(seconds=3)).timestamp(),
        "containerInstanceArn": _instance_of(task),
        "containers": [_container_facts(task, health)],
        "cpu": str(TASK_CPU),
        "createdAt": task.created_at.timestamp(),
        "desiredStatus": task.desired_status,
        "enableExecuteCommand": spec.exec_state is not Exec.DISABLED,
        "group": f"service:{task.service}",
        "healthStatus": health,
        "lastStatus": task.last_status,
        "launchType": "EC2",
        "memory": str(TASK_MEMORY),
        "overrides": {"containerOverrides": [], "inferenceAcceleratorOverrides": []},
        "startedBy": task.deployment,
        "tags": [],
        "taskArn": task.arn,
        "taskDefinitionArn": task.definition,
        "version": task.version,
    }
    times = {"startedAt": task.started_at, "stoppingAt": task.stopping_at, "stoppedAt": task.stopped_at}
    facts |= {name: moment.timestamp() for name, moment in times.items() if moment is not None}
    texts = {"stopCode": task.stop_code, "stoppedReason": task.stopped_reason}
    return facts | {name: text for name, text in texts.items() if text is not None}


def _health(task: Task) -> str:
    """smtp-in has no health check, so that its health is never known."""
    if task.spec.tier == "smtp-in" or task.last_status != "RUNNING":
        return "UNKNOWN"
    return "HEALTHY"


def _attachment(task: Task) -> Json:
    details = {
        "subnetId": "subnet-0a11aa11",
        "networkInterfaceId": f"eni-{task.id[:17]}",
        "macAddress": "0a:ff:" + ":".join(task.id[n : n + 2] for n in (0, 2, 4, 6)),
        "privateDnsName": f"{task.spec.host_name}.ec2.internal",
        "privateIPv4Address": task.spec.ip,
    }
    states = {"PROVISIONING": "PRECREATED", "STOPPED": "DELETED", "DEPROVISIONING": "DELETED"}
    return {
        "id": task.uuid("attachment"),
        "type": "ElasticNetworkInterface",
        "status": states.get(task.last_status, "ATTACHED"),
        "details": [{"name": name, "value": value} for name, value in details.items()],
    }


def _container_facts(task: Task, health: str) -> Json:
    facts: Json = {
        "containerArn": _container_arn(task),
        "taskArn": task.arn,
        "name": task.spec.tier,
        "image": task.image,
        "imageDigest": "sha256:" + hashlib.sha256(task.image.encode()).hexdigest(),
        "lastStatus": task.last_status if task.last_status in ("RUNNING", "STOPPED") else "PENDING",
        "networkInterfaces": [
            {"attachmentId": task.uuid("attachment"), "privateIpv4Address": task.spec.ip}
            | ({"ipv6Address": task.spec.ipv6} if task.spec.ipv6 else {})
        ],
        "healthStatus": health,
        "cpu": "0",
        "memory": "512",
        "memoryReservation": "384",
    }
    if task.started_at is not None:
        facts["runtimeId"] = task.runtime_id
    if task.stopped_at is not None and task.exit_code is not None:
        facts["exitCode"] = task.exit_code
    if task.spec.exec_state is not Exec.DISABLED:
        facts["managedAgents"] = [_agent_facts(task)]
    return facts


def _agent_facts(task: Task) -> Json:
    if task.agent_runs and task.started_at is not None:
        status: Json = {"lastStatus": "RUNNING", "lastStartedAt": (task.started_at + timedelta(seconds=1)).timestamp()}
    elif task.last_status in ("PROVISIONING", "PENDING"):
        status = {"lastStatus": "PENDING"}
    else:
        status = {"lastStatus": "STOPPED", "reason": "Received Container Exited event"}
    return {"name": "ExecuteCommandAgent"} | status


def _container_arn(task: Task) -> str:
    return f"{ARN}:container/{CLUSTER}/{task.id}/{task.uuid('container')}"


def _instance_arn(number: int) -> str:
    return f"{ARN}:container-instance/{CLUSTER}/{hashlib.sha256(f'instance/{number}'.encode()).hexdigest()[:32]}"


def _instance_of(task: Task) -> str:
    return _instance_arn(int(task.id, 16) % INSTANCES)


def _resources(tasks: int) -> list[Json]:
    """What so many tasks need."""
    amounts = (("CPU", tasks * TASK_CPU), ("MEMORY", tasks * TASK_MEMORY))
    return [{"name": name, "type": "INTEGER", "integerValue": amount} for name, amount in amounts]


def _family(definition: str) -> str:
    return definition.rsplit("/", 1)[-1].rsplit(":", 1)[0]


def _missing(arn: str) -> Json:
    return {"arn": arn, "reason": "MISSING"}


def _paged(key: str, values: list[str], request: Json, default: int) -> Json:
    limit = request.get("maxResults", default)
    if not isinstance(limit, int) or not 1 <= limit <= 100:
        raise ApiError("InvalidParameterException", "maxResults must be between 1 and 100.")
    token = request.get("nextToken")
    if token is not None and token not in values:
        raise ApiError("InvalidParameterException", "Invalid token.")
    first = values.index(token) if token else 0
    answer: Json = {key: values[first : first + limit]}
    return answer | ({"nextToken": values[first + limit]} if first + limit < len(values) else {})


def _revision(tier: str) -> int:
    return 40 + len(tier)


def _deployment_id(tier: str) -> str:
    return f"ecs-svc/{int.from_bytes(hashlib.sha256(tier.encode()).digest()[:8]) % 9 * 10**18 + 10**18:019d}"


def _new_deployment_id() -> str:
    return f"ecs-svc/{secrets.randbelow(9 * 10**18) + 10**18:019d}"


def _opaque(length: int) -> str:
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(length))
