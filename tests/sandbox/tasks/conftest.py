# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cloud for tasks: moto on a thread with the loop's queue and table, and a runtime over a temporary folder."""

from __future__ import annotations

import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from sandbox.model import Address, Exec, Loop, MapState, TaskSpec, User
from sandbox.tasks.runtime import Runtime

TABLE = "cabal-addresses"
ADDRESSES = tuple(
    Address(f"{name}@shop.harborlight.example", user, name, "harborlight.example", "shop", datetime.now(UTC))
    for name, user in (("ann", "alice"), ("ben", "bob"), ("both", "bob/alice"))
)
NEW = Address("new@shop.harborlight.example", "alice", "new", "harborlight.example", "shop", datetime.now(UTC))
USERS = (
    User("alice", 2001),
    User("bob", 2002, "missing"),
    User("carl", 2003, "unwritable"),
    User("dora", 2004, present=False),
)


class Cloud:
    """Queues, table, running tasks, and all lines they wrote."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self.endpoint = endpoint
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        self.sqs: Any = boto3.client("sqs", endpoint_url=endpoint, **keys)
        self.dynamodb: Any = boto3.client("dynamodb", endpoint_url=endpoint, **keys)
        self.lines: dict[str, list[str]] = defaultdict(list)
        self.exits: dict[str, int] = {}
        self._more = threading.Condition()
        self.runtime = Runtime(folder, folder, endpoint=endpoint, on_line=self._said, on_exit=self._ended)
        self._count = 0

    def _said(self, spec: TaskSpec, _at: int, line: str) -> None:
        with self._more:
            self.lines[spec.task_id].append(line)
            self._more.notify_all()

    def _ended(self, spec: TaskSpec, status: int) -> None:
        self.exits[spec.task_id] = status

    def wait_for(self, spec: TaskSpec, text: str, seconds: float = 30.0) -> list[str]:
        """All lines of the task, once one of them contains ``text``."""
        with self._more:
            found = self._more.wait_for(lambda: any(text in line for line in self.lines[spec.task_id]), seconds)
        assert found, f"no {text!r} in {self.lines[spec.task_id]}"
        return self.lines[spec.task_id]

    def spec(self, tier: str = "smtp-in", **changes: Any) -> TaskSpec:
        self._count += 1
        values: dict[str, Any] = {
            "task_id": f"{self._count:032x}",
            "tier": tier,
            "index": 0,
            "ip": f"10.0.1.{self._count}",
            "zone": "us-east-1a",
            "started_at": datetime.now(UTC) - timedelta(hours=26),
            "log_level": 9,
            "loop": Loop.RUNNING,
            "maps": MapState(240, 240),
            "exec_state": Exec.OK,
            "sendmail_running": True,
            "pin": "10.0.2.45" if tier == "smtp-in" else None,
            "control_domain": "cabal-control.example",
            "queue_url": self.sqs.create_queue(QueueName=f"cabal-reconfig-{uuid.uuid4().hex}")["QueueUrl"],
            "addresses": ADDRESSES,
            "users": USERS,
        }
        return TaskSpec(**(values | changes))

    def start(self, *specs: TaskSpec) -> None:
        assert self.runtime.start(specs) == {spec.task_id: None for spec in specs}

    def shell(self, spec: TaskSpec, script: str) -> str:
        """Standard output of a script run inside the task."""
        task = self.runtime.task(spec.task_id)
        assert task is not None
        done = task.run(["sh", "-c", script])
        return done.stdout.decode()

    def make_table(self) -> None:
        self.dynamodb.create_table(
            TableName=TABLE,
            KeySchema=[{"AttributeName": "address", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "address", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )

    def put(self, *rows: Address) -> None:
        for row in rows:
            item = {"address": row.address, "username": row.username, "tld": row.tld, "user": row.user}
            if row.subdomain:
                item["subdomain"] = row.subdomain
            self.dynamodb.put_item(TableName=TABLE, Item={name: {"S": value} for name, value in item.items()})

    def remove(self, row: Address) -> None:
        self.dynamodb.delete_item(TableName=TABLE, Key={"address": {"S": row.address}})

    def tell(self, spec: TaskSpec) -> None:
        self.sqs.send_message(QueueUrl=spec.queue_url, MessageBody="changed")


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def cloud(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    made = Cloud(endpoint, tmp_path_factory.mktemp("sandbox"))
    made.make_table()
    made.put(*ADDRESSES)
    yield made
    made.runtime.close()
    made.dynamodb.delete_table(TableName=TABLE)


@pytest.fixture
def until() -> Callable[[Callable[[], bool], float], None]:
    """Wait until a condition holds."""

    def wait(condition: Callable[[], bool], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition never held"
            time.sleep(0.05)

    return wait
