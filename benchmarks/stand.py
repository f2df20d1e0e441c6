# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A sandbox of the benchmarks' own, and the programs that the figures are compared to."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from .timing import BenchmarkError

REPO = Path(__file__).parents[1]
CREDENTIALS = {
    "region_name": "us-east-1",
    "aws_access_key_id": "AKIASANDBOXSANDBOX00",
    "aws_secret_access_key": "sandbox-secret-that-opens-nothing",
}
TIERS = ("imap", "smtp-in", "smtp-out")
CLUSTER = "cabal-mail"


class Stand:
    """A running sandbox and a private folder that goes with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which the project's commands and the AWS tools find this sandbox and nothing else."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "ANSIBLE_"))}
        return kept | {
            "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
            "AWS_ACCESS_KEY_ID": CREDENTIALS["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS["aws_secret_access_key"],
            "AWS_DEFAULT_REGION": CREDENTIALS["region_name"],
            "AWS_ENDPOINT_URL": self.url,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_PAGER": "",
            "CABALMAIL_SANDBOX_PORT": str(self.port),
            "CABALMAIL_SANDBOX_DIR": str(self.folder / "sandbox"),
            "NO_COLOR": "1",
            "PYTHONPATH": str(REPO),
        }

    def post(self, what: str, body: bytes) -> None:
        """POST to the sandbox's control interface."""
        request = urllib.request.Request(f"{self.url}/_sandbox/{what}", body, method="POST")
        with urllib.request.urlopen(request, timeout=600) as answer:
            answer.read()

    def agent(self, **options: Any) -> None:
        """Set options of the ECS Exec agent for the sessions to come."""
        self.post("agent", json.dumps(options).encode())

    def sandbox(self, *words: str) -> None:
        """Run ``python -m sandbox``.

        :raises BenchmarkError: with what it says, when it fails.
        """
        done = subprocess.run(
            [sys.executable, "-m", "sandbox", *words], env=self.environment, cwd=REPO, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise BenchmarkError(f"The sandbox can't be used: {done.stderr.strip()}")


@contextmanager
def stand(scenario: str | Path) -> Iterator[Stand]:
    """A sandbox with a scenario (name or folder), taken down with all its files at the end."""
    with tempfile.TemporaryDirectory(prefix="cabalmail-bench-") as folder:
        own = Stand(Path(folder))
        own.sandbox("up", "--scenario", str(scenario))
        try:
            yield own
        finally:
            own.sandbox("down")


def scenario_with_tasks(folder: Path, tier: str, count: int) -> Path:
    """A copy of the scenario ``quiet`` whose tier has ``count`` tasks with stopped loops, which cost nothing."""
    made = folder / "scenario"
    shutil.copytree(REPO / "sandbox" / "scenarios" / "quiet", made)
    declared = yaml.safe_load((made / "scenario.yml").read_text(encoding="utf-8"))
    task = {"started_hours_ago": 26, "loop": "stopped"}
    tasks = [task | {"ip": f"10.0.{100 + number // 250}.{number % 250 + 1}"} for number in range(count)]
    declared["tiers"][tier]["tasks"] = tasks
    (made / "scenario.yml").write_text(yaml.safe_dump(declared), encoding="utf-8")
    return made


def program(name: str) -> str | None:
    """Path of a program on PATH; None when it is not there."""
    return shutil.which(name)


def _free_port() -> int:
    """A free port whose neighbour, which the sandbox's DNS server takes, is free as well."""
    for port in range(46_100, 46_900, 2):
        try:
            with socket.socket() as first, socket.socket(type=socket.SOCK_DGRAM) as second:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
        except OSError:
            continue
        return port
    raise BenchmarkError("No port from 46100 on is free.")
