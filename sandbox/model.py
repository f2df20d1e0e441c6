# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scenario declares, as typed values that every part of the sandbox shares.

Times of day are aware UTC datetimes, already shifted to the real clock; durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

ACCOUNT_ID = "123456789012"
REGION = "us-east-1"
CLUSTER = "cabal-mail"
ADDRESS_TABLE = "cabal-addresses"
DMARC_TABLE = "cabal-dmarc-reports"
ADDRESS_TOPIC = "cabal-address-changed"
NAMESPACE = "cabal.internal"
EXEC_KEY = "alias/cabal-ecs-exec"
DEFAULT_PORT = 45990
TIERS = ("imap", "smtp-in", "smtp-out")
PIN_SENTINEL = "192.0.2.1"


class Loop(StrEnum):
    """State of a task's reconfigure loop.

    ``running`` works; ``stopped`` is under SIGSTOP; ``dead`` was killed and supervisord gave up; ``hung`` waits for an
    AWS call that never returns; ``failing`` leaves makemap with status 65 at each pass.
    """

    RUNNING = "running"
    STOPPED = "stopped"
    DEAD = "dead"
    HUNG = "hung"
    FAILING = "failing"


class Exec(StrEnum):
    """How ECS Exec finds a task."""

    OK = "ok"
    NOT_CONNECTED = "not_connected"
    AGENT_STOPPED = "agent_stopped"
    DISABLED = "disabled"


@dataclass(frozen=True)
class Address:
    """A row of the table cabal-addresses. ``user`` may hold several names, separated by slashes."""

    address: str
    user: str
    username: str
    tld: str
    subdomain: str | None
    requested: datetime | None
    suspended: bool = False
    comment: str = ""


@dataclass(frozen=True)
class User:
    """A mail user: a CONFIRMED Cognito user becomes an OS user when a task starts.

    ``present`` false: the OS user is missing in the imap tasks that the scenario starts with (a redeployed task has it,
    if it is confirmed). ``maildir`` is ok, missing or unwritable. ``stray_bytes`` > 0: a mailbox of that size lies in
    /var/spool/mail.
    """

    name: str
    uid: int
    maildir: str = "ok"
    present: bool = True
    cognito: str = "CONFIRMED"
    stray_bytes: int = 0


@dataclass(frozen=True)
class MapState:
    """What a task's map files hold, against the table: addresses left out, and addresses that the table no longer has.

    ``text`` is the file that generate-config writes, ``db`` what makemap made of it. Ages count from now to the file's
    mtime.
    """

    text_age_seconds: float
    db_age_seconds: float
    text_lacks: tuple[str, ...] = ()
    db_lacks: tuple[str, ...] = ()
    text_extra: tuple[Address, ...] = ()
    db_extra: tuple[Address, ...] = ()


@dataclass(frozen=True)
class QueuedMessage:
    """A message that waits in a tier's sendmail queue, as mailq shows it."""

    queue_id: str
    age_seconds: float
    sender: str
    recipients: tuple[str, ...]
    reason: str
    size: int = 1024


@dataclass(frozen=True)
class TaskSpec:
    """All that a task's root file system and processes are made from.

    ``fresh`` true: started by the sandbox's clock (a deployment), so that its entrypoint builds users and maps from the
    live tables instead of the declared ``maps``; else the task is put into the declared state at once.
    ``environment`` is the container's, made-up secrets included.
    """

    task_id: str
    tier: str
    index: int
    ip: str
    zone: str
    started_at: datetime
    log_level: int
    loop: Loop
    maps: MapState
    exec_state: Exec
    sendmail_running: bool
    pin: str | None
    control_domain: str
    queue_url: str | None
    addresses: tuple[Address, ...]
    users: tuple[User, ...]
    mailq: tuple[QueuedMessage, ...] = ()
    fresh: bool = False
    loop_error: str | None = None
    loop_exit_status: int = 65
    hears_queue: bool = True
    pin_empty_seconds: float = 0
    clock_skew_seconds: float = 0
    full_disk: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    ipv6: str | None = None

    @property
    def stream(self) -> str:
        """The log stream of the task's container."""
        return f"{self.tier}/{self.tier}/{self.task_id}"

    @property
    def host_name(self) -> str:
        """The task's host name, as awsvpc names it and sendmail logs it."""
        return "ip-" + self.ip.replace(".", "-")


@dataclass(frozen=True)
class DeploymentSpec:
    """How a deployment of a service behaves once it is asked for, and what is under way when the scenario begins.

    ``outcome``: completed, failed (circuit breaker; rolls back where the service has one), stuck (stays IN_PROGRESS).
    ``loop``: that of the new tasks, running or stopped.
    """

    outcome: str = "completed"
    start_seconds: float = 1.5
    drain_seconds: float = 1.0
    in_progress_minutes: float | None = None
    loop: Loop = Loop.RUNNING


@dataclass(frozen=True)
class ServiceSpec:
    """An ECS service."""

    desired: int
    minimum_healthy_percent: int
    maximum_percent: int
    circuit_breaker: bool
    deployment: DeploymentSpec
    image_tag: str
    registered_days_ago: float
    missing_secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskEntry:
    """A declared task with its log file."""

    spec: TaskSpec
    log: Path | None


@dataclass(frozen=True)
class TierSpec:
    """One mail tier: its service, tasks, log group."""

    name: str
    log_level: int
    log_group_present: bool
    loop_history: bool
    ingestion_lag_seconds: float
    silent_minutes: float
    service: ServiceSpec
    tasks: tuple[TaskEntry, ...]
    queue_visible: int = 0
    queue_not_visible: int = 0
    queue_oldest_seconds: float | None = None
    queue_subscribed: bool = True

    @property
    def log_group(self) -> str:
        return f"/ecs/cabal-{self.name}"

    @property
    def service_name(self) -> str:
        return f"cabal-{self.name}"


@dataclass(frozen=True)
class Eip:
    """An outbound Elastic IP address."""

    ip: str
    zone: str
    attached: bool = True


@dataclass(frozen=True)
class Network:
    addresses: tuple[Eip, ...]
    nat: str
    nat_state: str


@dataclass(frozen=True)
class DnsRecord:
    """Overrides what Terraform publishes under a name and type.

    ``values`` None: no such record. ``fault``: servfail, refused, nxdomain or timeout, whatever the values.
    """

    name: str
    type: str
    values: tuple[str, ...] | None
    fault: str | None = None


@dataclass(frozen=True)
class Fault:
    """Laid over every call of ``operation`` whose parameters have all of ``where``.

    ``operation`` is ``service.Operation``, ``service.*`` or ``*``. ``who``: operator, task or any. ``times``: only so
    many calls, then it is over. ``drop`` closes the connection unanswered, ``garbage`` answers 200 with what is no AWS
    answer, ``hang`` never answers. ``after``: the call is done first, and only its answer is lost.
    """

    operation: str
    where: dict[str, Any]
    error: str | None
    status: int
    message: str
    rate: float
    latency_seconds: float
    hang: bool = False
    drop: bool = False
    garbage: bool = False
    after: bool = False
    who: str = "operator"
    times: int | None = None


@dataclass(frozen=True)
class Alert:
    name: str
    fired_at: datetime
    state: str


@dataclass(frozen=True)
class Expect:
    verdict: str
    findings: tuple[str, ...]
    absent: tuple[str, ...]
    confidence: str | None
    remedy: str | None


@dataclass(frozen=True)
class Scenario:
    """A whole environment at the moment that the sandbox loads it."""

    name: str
    folder: Path
    title: str
    description: str
    declared_now: datetime
    now: datetime
    environment: str
    control_domain: str
    alert: Alert | None
    tiers: dict[str, TierSpec]
    addresses: tuple[Address, ...]
    users: tuple[User, ...]
    discovery: dict[str, tuple[str, ...]]
    maintenance_imap: str | None
    heartbeat_modified: datetime | None
    throttled_reads: int
    network: Network
    dns: tuple[DnsRecord, ...]
    dmarc_reports: tuple[dict[str, str], ...]
    faults: tuple[Fault, ...]
    empty_pages: int
    exec_encrypted: bool
    agent: dict[str, Any]
    expect: Expect | None

    @property
    def apexes(self) -> list[str]:
        """The mail apexes that the addresses name, sorted."""
        return sorted({row.tld for row in self.addresses})

    @property
    def tasks(self) -> list[TaskSpec]:
        return [entry.spec for tier in self.tiers.values() for entry in tier.tasks]


@dataclass(frozen=True)
class ExecSession:
    """One ECS Exec session: what ExecuteCommand was asked for and what its answer named."""

    session_id: str
    token: str
    task_id: str
    container: str
    runtime_id: str
    command: str

    @property
    def target(self) -> str:
        """What Systems Manager calls the container."""
        return f"ecs:{CLUSTER}_{self.task_id}_{self.runtime_id}"
