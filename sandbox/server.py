# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sandbox's front: one HTTP port that routes each call to our own services or to moto, and the control API.

Control: ``GET /_sandbox/health``; ``GET /_sandbox/calls`` (JSON lines); ``POST /_sandbox/reset-calls``;
``POST /_sandbox/scenario`` (``{"path": name or folder}``); ``POST /_sandbox/events?group=&stream=`` (log lines as the
body); ``POST /_sandbox/agent`` (options of the ECS Exec agent). ``GET /_sandbox/ping`` is the tasks' Healthchecks URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from aiohttp import web
from botocore.config import Config

from . import alert, dns, history, maillog, scenario
from .cognito import UserPool
from .ecs import Cluster
from .errors import ApiError, SandboxError
from .faults import TASK_PRINCIPAL, Faults, message
from .insights import Queries
from .logs import LogStore
from .model import EXEC_KEY, NAMESPACE, REGION, ExecSession, Fault, Scenario, TaskSpec, TierSpec
from .moto_backend import Moto
from .seed import Seeder
from .tasks.agent import Gateway
from .tasks.encryption import Encryption
from .tasks.runtime import Runtime
from .wire import Call, error_body, read_call

HOST = "127.0.0.1"
# What is fetched once for all sandboxes of this checkout.
CACHE = Path(__file__).parents[1] / ".cache" / "sandbox"
CALLS_KEPT = 200_000
WORKERS = 64
GARBAGE = b"<html><body>502 Bad Gateway</body></html>"
# How often a waiting client's queue is looked at when nothing was sent: messages also come back by themselves.
POLL_SECONDS = 1.0
HANG_SECONDS = 24 * 3600
MAX_BODY = 256 * 1024 * 1024
Answer = dict[str, Any] | bytes
Handler = Callable[[dict[str, Any]], Answer | Awaitable[Answer]]


class Sandbox:
    """One environment, served. ``start`` binds the ports; ``load`` puts a scenario in, also in place of another."""

    def __init__(self, port: int, state_dir: Path) -> None:
        self.port = port
        self.state_dir = state_dir
        self.scenario: Scenario | None = None
        self._loaded = asyncio.Event()
        self.calls: deque[dict[str, Any]] = deque(maxlen=CALLS_KEPT)
        self.logs = LogStore()
        self.moto = Moto()
        self.cluster: Cluster | None = None
        self.dns = dns.Server(dns.Zone({}))
        self._faults = Faults()
        self._handlers: dict[str, Handler] = {}
        self._runner: web.AppRunner | None = None
        self._runtime: Runtime | None = None
        self._gateway = Gateway()
        self._sessions: set[str] = set()
        self._queues_changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loading = asyncio.Lock()
        self._parameter_writes = asyncio.Lock()

    @property
    def ready(self) -> bool:
        """Whether a scenario is in place."""
        return self._loaded.is_set()

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind the ports.

        :raises SandboxError: when one is taken.
        """
        loop = self._loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(WORKERS))
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_get("/_sandbox/health", self._health)
        app.router.add_get("/_sandbox/calls", self._show_calls)
        app.router.add_get("/_sandbox/ping", self._ping)
        app.router.add_post("/_sandbox/reset-calls", self._reset_calls)
        app.router.add_post("/_sandbox/scenario", self._switch)
        app.router.add_post("/_sandbox/events", self._put_events)
        app.router.add_post("/_sandbox/agent", self._configure_agent)
        app.router.add_get("/v1/data-channel/{session}", self._data_channel)
        app.router.add_route("*", "/{path:.*}", self._api)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, HOST, self.port).start()
        except OSError as error:
            raise SandboxError(_port_taken(self.port, error)) from None
        try:
            await self.dns.start(HOST, self.port + 1)
        except OSError as error:
            raise SandboxError(_port_taken(self.port + 1, error)) from None

    async def stop(self) -> None:
        """End everything that was started."""
        self._loaded.clear()
        await self._gateway.close()
        if self.cluster is not None:
            await self.cluster.stop()
        if self._runtime is not None:
            await asyncio.to_thread(self._runtime.close)
        await self.dns.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        for name in ("state.json", "alert.json"):
            (self.state_dir / name).unlink(missing_ok=True)

    async def load(self, folder: Path) -> None:
        """Put the scenario of ``folder`` in place of the one before.

        :raises SandboxError: when the folder holds no sound scenario; what was loaded before stays.
        """
        async with self._loading:
            fresh = scenario.load(folder, now=datetime.now(UTC), endpoint=self.endpoint)
            gateway = _gateway(fresh)
            self._loaded.clear()
            await self._gateway.close()
            self._gateway = gateway
            if self.cluster is not None:
                await self.cluster.stop()
                await asyncio.to_thread(self.moto.reset)
            self._faults = Faults()
            self.scenario, self.logs = fresh, await asyncio.to_thread(_build_logs, fresh)
            self.dns.zone = dns.Zone(dns.published(fresh), fresh.dns)
            seeder = Seeder(fresh, self.moto, self.endpoint, self.logs)
            seeding = asyncio.create_task(asyncio.to_thread(seeder.run))
            runtime = await self._open_runtime()
            runtime.set_imap_address(next(iter(fresh.discovery["imap"]), None))
            self.cluster = Cluster(fresh, runtime, lambda *change: self._registered(seeder, *change))
            self._handlers = self._own_operations(self.cluster, self.logs, UserPool(fresh))
            await asyncio.gather(seeding, self.cluster.start())
            self._faults = Faults(fresh.faults)
            self.calls.clear()
            self._loaded.set()
            self._write_state(fresh)

    async def _open_runtime(self) -> Runtime:
        if self._runtime is None:
            hooks: dict[str, Any] = {"on_line": self._task_said, "on_exit": self._task_ended}
            self._runtime = await asyncio.to_thread(Runtime, self.state_dir, CACHE, endpoint=self.endpoint, **hooks)
        return self._runtime

    def _registered(self, seeder: Seeder, name: str, address: str, present: bool) -> None:
        zone_name = f"{name}.{NAMESPACE}."
        self.dns.zone.set_address(zone_name, address, present)
        addresses = self.dns.zone.addresses(zone_name)
        asyncio.get_running_loop().run_in_executor(None, seeder.set_registered, name, address, present)
        if name == "imap" and self._runtime is not None:
            self._runtime.set_imap_address(addresses[0] if addresses else None)

    def _write_state(self, loaded: Scenario) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        alert_file = self.state_dir / "alert.json"
        alert_file.unlink(missing_ok=True)
        if loaded.alert is not None:
            alert_file.write_text(json.dumps(alert.payload(loaded, loaded.alert), indent=2) + "\n")
        (self.state_dir / "state.json").write_text(json.dumps(self.state(), indent=2) + "\n")

    def state(self) -> dict[str, Any]:
        """What state.json and /_sandbox/health say."""
        loaded = self.scenario
        return {
            "pid": os.getpid(),
            "ready": self.ready,
            "endpoint_url": self.endpoint,
            "dns": f"{HOST}:{self.port + 1}",
            "scenario": loaded.name if loaded else None,
            "folder": str(loaded.folder) if loaded else None,
            "title": loaded.title if loaded else None,
            "environment": loaded.environment if loaded else None,
            "loaded": loaded.now.isoformat(timespec="seconds") if loaded else None,
            "state_dir": str(self.state_dir),
            "degraded": self._runtime.notes if self._runtime else [],
        }

    # -- what the tasks' threads say -----------------------------------------------------------------------------

    def _task_said(self, spec: TaskSpec, at: int, line: str) -> None:
        self._from_thread(self._append, spec, at, line)

    def _task_ended(self, spec: TaskSpec, status: int) -> None:
        if self.cluster is not None:
            self._from_thread(self.cluster.exited, spec.task_id, status)

    def _from_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _append(self, spec: TaskSpec, at: int, line: str) -> None:
        tier = self.scenario.tiers.get(spec.tier) if self.scenario else None
        if tier is not None and not tier.silent_minutes:
            self.logs.put(tier.log_group, spec.stream, [(at, at + int(tier.ingestion_lag_seconds * 1000), line)])

    # -- the API -------------------------------------------------------------------------------------------------

    async def _api(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        call = read_call(request.path, request.headers, body)
        if call.principal == TASK_PRINCIPAL:
            # Tasks start beside the seeding: what they ask for must be there first.
            await self._loaded.wait()
        self._record(call)
        fault = self._faults.pick(call)
        if fault is None:
            return await self._answer(request, call, body)
        done = await self._answer(request, call, body) if fault.after else None
        suffered = await self._suffer(request, call, fault)
        if suffered is not None:
            return suffered
        return await self._answer(request, call, body) if done is None else done

    async def _answer(self, request: web.Request, call: Call, body: bytes) -> web.Response:
        handler = self._handlers.get(call.name)
        if handler is None:
            return await self._from_moto(request, call, body)
        try:
            answer_body = handler(call.parameters)
            if isinstance(answer_body, Awaitable):
                answer_body = await answer_body
        except ApiError as error:
            return _error(call, error)
        if isinstance(answer_body, dict):
            answer_body = json.dumps(answer_body, separators=(",", ":")).encode()
        headers = {"x-amzn-RequestId": str(uuid.uuid4()), "Content-Type": call.content_type}
        return web.Response(body=answer_body, headers=headers)

    async def _from_moto(self, request: web.Request, call: Call, body: bytes) -> web.Response:
        wait = call.parameters.get("WaitTimeSeconds")
        if call.name == "sqs.ReceiveMessage" and call.protocol == "json" and isinstance(wait, int) and wait > 0:
            return await self._long_poll(request, call, wait)
        if call.name == "ssm.PutParameter":
            # AWS decides Overwrite=false for one caller at a time; moto looks first and writes then.
            async with self._parameter_writes:
                return await self._ask_moto(request, body)
        answer = await self._ask_moto(request, body)
        if call.service in ("sqs", "sns"):
            self._queues_changed.set()
            self._queues_changed.clear()
        return answer

    async def _ask_moto(self, request: web.Request, body: bytes) -> web.Response:
        status, headers, content = await asyncio.to_thread(
            self.moto.call, request.method, request.path_qs, request.headers, body
        )
        return web.Response(status=status, headers=headers, body=content)

    async def _long_poll(self, request: web.Request, call: Call, seconds: int) -> web.Response:
        """A long poll of a queue, as a wait here and short polls there.

        moto itself would hold a thread and look every 10 ms, and take a message for a client that has gone meanwhile.
        """
        body = json.dumps(call.parameters | {"WaitTimeSeconds": 0}).encode()
        until = time.monotonic() + seconds
        while True:
            answer = await self._ask_moto(request, body)
            left = until - time.monotonic()
            if answer.status != 200 or b'"Messages"' in (answer.body or b"") or left <= 0:  # type: ignore[operator]
                return answer
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, POLL_SECONDS)):
                    await self._queues_changed.wait()
            if request.transport is None or request.transport.is_closing():
                return answer

    def _own_operations(self, cluster: Cluster, logs: LogStore, users: UserPool) -> dict[str, Handler]:
        """The operations that do not go to moto."""
        queries = Queries(logs)
        return {
            "ecs.ListClusters": cluster.list_clusters,
            "ecs.DescribeClusters": cluster.describe_clusters,
            "ecs.ListContainerInstances": cluster.list_container_instances,
            "ecs.DescribeContainerInstances": cluster.describe_container_instances,
            "ecs.ListServices": cluster.list_services,
            "ecs.DescribeServices": cluster.describe_services,
            "ecs.ListTasks": cluster.list_tasks,
            "ecs.DescribeTasks": cluster.describe_tasks,
            "ecs.DescribeTaskDefinition": cluster.describe_task_definition,
            "ecs.UpdateService": cluster.update_service,
            "ecs.StopTask": cluster.stop_task,
            "ecs.ExecuteCommand": self._execute_command,
            "ssm.ResumeSession": self._resume_session,
            "ssm.TerminateSession": self._terminate_session,
            "cognito-idp.AdminGetUser": users.admin_get_user,
            "logs.FilterLogEvents": logs.filter_log_events,
            "logs.DescribeLogGroups": logs.describe_log_groups,
            "logs.DescribeLogStreams": logs.describe_log_streams,
            "logs.StartQuery": queries.start_query,
            "logs.GetQueryResults": queries.get_query_results,
        }

    async def _suffer(self, request: web.Request, call: Call, fault: Fault) -> web.StreamResponse | None:
        """Apply a fault. None: it was only latency, the call goes on."""
        if fault.latency_seconds:
            await asyncio.sleep(fault.latency_seconds)
        if fault.hang:
            await asyncio.sleep(HANG_SECONDS)
        if fault.drop and request.transport is not None:
            request.transport.abort()
            return web.Response(status=500)
        if fault.garbage:
            return web.Response(body=GARBAGE, headers={"Content-Type": call.content_type})
        if fault.error is None:
            return None
        return _error(call, ApiError(fault.error, message(fault, call), fault.status))

    def _record(self, call: Call) -> None:
        self.calls.append(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "operation": call.name,
                "principal": call.principal,
                "parameters": call.shown(),
            }
        )

    # -- ECS Exec ------------------------------------------------------------------------------------------------

    def _execute_command(self, parameters: dict[str, Any]) -> Answer:
        if self.cluster is None or self._runtime is None:
            raise ApiError("ServerException", "No scenario is loaded.", 500)
        session, answer = self.cluster.exec_session(parameters)
        running = self._runtime.task(session.task_id)
        if running is None:
            raise ApiError("ServerException", "The task has no processes.", 500)
        self._gateway.open(session, running, self._encryption(session))
        self._sessions.add(session.session_id)
        url = self._stream_url(session.session_id)
        return answer | {
            "session": {"sessionId": session.session_id, "streamUrl": url, "tokenValue": session.token},
        }

    def _encryption(self, session: ExecSession) -> Encryption | None:
        if self.scenario is None or not self.scenario.exec_encrypted:
            return None
        return Encryption(EXEC_KEY, session.target, self._decrypt_as_task)

    def _decrypt_as_task(self, key_id: str, data: bytes, context: dict[str, str]) -> bytes:
        """The agent's call of kms:Decrypt, by the task role and through the front, so that faults can hit it."""
        kms = boto3.Session().client(
            "kms",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=TASK_PRINCIPAL,
            aws_secret_access_key="task",  # noqa: S106 - moto takes any
            config=Config(retries={"total_max_attempts": 1}, read_timeout=10),
        )
        opened = kms.decrypt(KeyId=key_id, CiphertextBlob=data, EncryptionContext=context)
        return bytes(opened["Plaintext"])

    def _stream_url(self, session_id: str) -> str:
        return f"ws://{HOST}:{self.port}/v1/data-channel/{session_id}?role=publish_subscribe"

    def _resume_session(self, parameters: dict[str, Any]) -> Answer:
        session_id = str(parameters.get("SessionId", ""))
        if session_id not in self._sessions:
            raise ApiError("DoesNotExistException", f"Session {session_id} does not exist.")
        token = self._gateway.resume(session_id)
        if token is None:
            return {"SessionId": session_id}
        return {"SessionId": session_id, "TokenValue": token, "StreamUrl": self._stream_url(session_id)}

    async def _terminate_session(self, parameters: dict[str, Any]) -> Answer:
        session_id = str(parameters.get("SessionId", ""))
        await self._gateway.terminate(session_id)
        return {"SessionId": session_id}

    async def _data_channel(self, request: web.Request) -> web.StreamResponse:
        return await self._gateway.answer(request, request.match_info["session"])

    # -- control -------------------------------------------------------------------------------------------------

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response(self.state())

    async def _ping(self, request: web.Request) -> web.Response:
        """Stands in for the Healthchecks check ``ecs-reconfigure``."""
        self._record(Call("healthchecks", "Ping", {}, TASK_PRINCIPAL, "rest"))
        return web.Response(text="OK")

    async def _show_calls(self, request: web.Request) -> web.Response:
        text = "".join(json.dumps(call, default=str) + "\n" for call in self.calls)
        return web.Response(text=text, content_type="application/x-ndjson")

    async def _reset_calls(self, request: web.Request) -> web.Response:
        self.calls.clear()
        return web.json_response({})

    async def _switch(self, request: web.Request) -> web.Response:
        try:
            wanted = (await request.json())["path"]
            await self.load(scenario.find(str(wanted)))
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": 'The body must be {"path": "<name or folder>"}.'}, status=400)
        except SandboxError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(self.state())

    async def _configure_agent(self, request: web.Request) -> web.Response:
        try:
            self._gateway.configure(await request.json())
        except (ValueError, TypeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({})

    async def _put_events(self, request: web.Request) -> web.Response:
        group, stream = request.query.get("group", ""), request.query.get("stream", "")
        if group not in self.logs.groups or not stream:
            return web.json_response({"error": "Name an existing group and a stream."}, status=400)
        now = datetime.now(UTC)
        lines = iter((await request.text()).splitlines())
        events = [(at, at + 2000, line) for at, line in maillog.events(lines, now, now)]
        self.logs.put(group, stream, events)
        return web.json_response({"events": len(events)})


def _gateway(loaded: Scenario) -> Gateway:
    gateway = Gateway()
    try:
        gateway.configure(loaded.agent)
    except (ValueError, TypeError) as error:
        raise SandboxError(f"{loaded.folder / 'scenario.yml'}: agent: {error}") from None
    return gateway


def _error(call: Call, error: ApiError) -> web.Response:
    body, headers = error_body(call, error.code, error.message)
    return web.Response(status=error.status, body=body, headers=headers)


def _port_taken(port: int, error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"Port {port} on {HOST} can't be used ({reason}): free it, or set CABALMAIL_SANDBOX_PORT to another port."


def _build_logs(loaded: Scenario) -> LogStore:
    logs = LogStore()
    logs.empty_pages = loaded.empty_pages
    created = int((loaded.now.timestamp() - 200 * 86_400) * 1000)
    for tier in loaded.tiers.values():
        if tier.log_group_present:
            logs.create_group(tier.log_group, created, metric_filters=2 if loaded.heartbeat_modified else 0)
            _fill(logs, loaded, tier)
    return logs


def _fill(logs: LogStore, loaded: Scenario, tier: TierSpec) -> None:
    silent_from = int((loaded.now.timestamp() - tier.silent_minutes * 60) * 1000)
    lag = int(tier.ingestion_lag_seconds * 1000)
    changes = [row.requested for row in loaded.addresses if row.requested is not None]
    for entry in tier.tasks:
        events: list[tuple[int, str]] = []
        if entry.log is not None:
            lines = entry.log.read_text(errors="replace").splitlines()
            events += maillog.events(iter(lines), loaded.declared_now, loaded.now)
        if tier.loop_history:
            past = history.lines(entry.spec, loaded.now, changes, loaded.heartbeat_modified is not None)
            events += [(int(moment.timestamp() * 1000), line) for moment, line in past]
        events.sort(key=lambda event: event[0])
        if tier.silent_minutes:
            events = [event for event in events if event[0] < silent_from]
        logs.put(tier.log_group, entry.spec.stream, ((at, at + lag, line) for at, line in events))
