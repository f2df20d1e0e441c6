# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A sandbox of one's own for the tests: its own ports, its own state folder, ended with the session."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

REPO = Path(__file__).resolve().parents[2]
SCENARIOS = REPO / "sandbox" / "scenarios"


def free_port() -> int:
    """A port whose successor is free as well."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            if port < 65_000:
                return port


@dataclass
class SandboxUnderTest:
    port: int
    state_dir: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"CABALMAIL_SANDBOX_PORT": str(self.port), "CABALMAIL_SANDBOX_DIR": str(self.state_dir)}

    def cli(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "sandbox", *arguments]
        return subprocess.run(
            argv, cwd=REPO, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def client(self, service: str, key: str = "operator") -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key="x",
            config=Config(retries={"total_max_attempts": 1}, read_timeout=10),
        )

    def load(self, folder: Path | str) -> dict[str, Any]:
        body = json.dumps({"path": str(folder)}).encode()
        with urllib.request.urlopen(f"{self.url}/_sandbox/scenario", body, timeout=60) as answer:
            state: dict[str, Any] = json.loads(answer.read())
        return state

    def calls(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/_sandbox/calls", timeout=10) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def reset_calls(self) -> None:
        urllib.request.urlopen(f"{self.url}/_sandbox/reset-calls", b"", timeout=10).close()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxUnderTest]:
    """One running sandbox for all tests of the session; they load the scenario that they need."""
    sandbox = SandboxUnderTest(free_port(), tmp_path_factory.mktemp("sandbox"))
    up = sandbox.cli("up", "--scenario", "quiet")
    assert up.returncode == 0, up.stderr
    yield sandbox
    assert sandbox.cli("down").returncode == 0


@pytest.fixture
def quiet(running: SandboxUnderTest) -> SandboxUnderTest:
    """The running sandbox, the scenario ``quiet`` loaded afresh."""
    running.load("quiet")
    return running


@pytest.fixture
def write_scenario(tmp_path: Path) -> Callable[..., Path]:
    """Write a scenario folder: a small sound one, with what the test changes in it."""
    import yaml

    def write(name: str = "made", logs: dict[str, str] | None = None, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        document: dict[str, Any] = {
            "schema": 1,
            "title": "Made by a test.",
            "now": "2026-11-29T01:00:00Z",
            "alert": {"name": "SendmailBouncedSpike", "fired_minutes_ago": 5},
            "tiers": {tier: {"log_level": 9} for tier in ("imap", "smtp-in", "smtp-out")},
            "addresses": [{"address": "a@s.harborlight.example", "user": "alice"}],
            "users": [{"name": "alice"}],
        } | changes
        (folder / "scenario.yml").write_text(yaml.safe_dump(document))
        for file, text in (logs or {}).items():
            (folder / file).write_text(text)
        return folder

    return write
