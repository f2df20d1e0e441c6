# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the real ansible-playbook against one sandbox a test session."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# A run that takes longer than this hangs: the deadline of a triage is 90 s.
RUN_SECONDS = 180
READS = re.compile(
    r"[a-z0-9-]+\.(Describe|List|Get(?!Secret)|Filter|Scan|Query|AdminGet|Discover)|ecs\.ExecuteCommand$"
)


@dataclass(frozen=True)
class Run:
    """What one ansible-playbook process left behind."""

    status: int
    stdout: str
    stderr: str
    report_dir: Path
    triage: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    markdown: str = ""

    @property
    def output(self) -> str:
        """All that a person would have seen."""
        return self.stdout + self.stderr

    @property
    def verdict(self) -> str | None:
        """Id of the first finding."""
        return self.outcome.get("verdict")

    @property
    def findings(self) -> list[str]:
        """Ids of all findings, ranked."""
        return [finding["id"] for finding in self.triage.get("findings") or []]

    @property
    def summary(self) -> list[str]:
        """The lines of the terminal summary."""
        lines = self.stdout.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("== "))
        end = next(number for number, line in enumerate(lines) if line.startswith("Report: "))
        return lines[start : end + 1]


class Sandbox:
    """A sandbox of this test process alone, on ports of its own."""

    def __init__(self, state: Path) -> None:
        self.port = _free_port_pair()
        self.url = f"http://127.0.0.1:{self.port}"
        self.state = state

    def environment(self) -> dict[str, str]:
        """Environment in which every command of the project finds this sandbox."""
        # No colours, no AWS configuration of whoever runs the tests.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "ANSIBLE_", "AWX_"))}
        return {
            **kept,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
            "ANSIBLE_DEPRECATION_WARNINGS": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
            "CABALMAIL_SANDBOX_PORT": str(self.port),
            "CABALMAIL_SANDBOX_DIR": str(self.state),
            "NO_COLOR": "1",
        }

    def command(self, *words: str) -> None:
        """Run ``python -m sandbox ...``; fails the test with what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "sandbox", *words],
            cwd=REPO,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def load(self, scenario: str | Path) -> None:
        """Load a scenario, by name or folder, as freshly as if it had just begun."""
        self.post("scenario", {"path": str(scenario)})

    def post(self, what: str, body: Any) -> Any:
        """POST to the control interface."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/_sandbox/{what}", data, {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else None

    def calls(self) -> list[dict[str, Any]]:
        """Every AWS call since the last reset."""
        with urllib.request.urlopen(f"{self.url}/_sandbox/calls", timeout=60) as answer:
            return [json.loads(line) for line in answer.read().decode().splitlines() if line.strip()]

    def operator_calls(self) -> list[dict[str, Any]]:
        """Those of them that are not the loops' inside the tasks, which go on all the time."""
        return [call for call in self.calls() if call["principal"] != "task"]

    def reset_calls(self) -> None:
        """Forget the calls so far."""
        self.post("reset-calls", {})


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """The running sandbox."""
    own = Sandbox(tmp_path_factory.mktemp("sandbox"))
    own.command("up")
    yield own
    own.command("down")


@pytest.fixture
def playbook(tmp_path: Path) -> Callable[..., Run]:
    """Run ansible-playbook without any sandbox: ``playbook("triage.yml", "-e", "...", env={...})``."""

    def run(*words: str, env: dict[str, str] | None = None, cwd: Path = REPO) -> Run:
        return ansible_playbook(tmp_path / "reports", *words, env=env or _plain_environment(), cwd=cwd)

    return run


@pytest.fixture
def triage(sandbox: Sandbox, tmp_path: Path) -> Callable[..., Run]:
    """Load a scenario and triage it: ``triage("smtp-in-stale-map", "-e", "triage_exec=false")``.

    With None for the scenario what is loaded stays. ``env`` adds to the environment.
    """

    def run(scenario: str | Path | None, *words: str, env: dict[str, str] | None = None) -> Run:
        if scenario is not None:
            sandbox.load(scenario)
        return ansible_playbook(
            tmp_path / "reports", "triage.yml", *words, env={**sandbox.environment(), **(env or {})}, cwd=REPO
        )

    return run


def ansible_playbook(report_dir: Path, *words: str, env: dict[str, str], cwd: Path) -> Run:
    """One real process, and what it wrote for the host that it ran for."""
    done = run_playbook(report_dir, *words, env=env, cwd=cwd)
    latest = next(iter(sorted(report_dir.glob("*/latest"))), None)
    if latest is None:
        return Run(done.returncode, done.stdout, done.stderr, report_dir)
    return Run(
        done.returncode,
        done.stdout,
        done.stderr,
        report_dir,
        triage=json.loads((latest / "triage.json").read_text(encoding="utf-8")),
        outcome=json.loads((latest / "outcome.json").read_text(encoding="utf-8")),
        markdown=(latest / "triage.md").read_text(encoding="utf-8"),
    )


def run_playbook(
    report_dir: Path, *words: str, env: dict[str, str], cwd: Path = REPO, seconds: float = RUN_SECONDS
) -> subprocess.CompletedProcess[str]:
    """One real process, for any number of hosts."""
    return subprocess.run(
        [str(BIN / "ansible-playbook"), "-e", f"report_dir={report_dir}", *words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=seconds,
    )


def operator_writes(calls: list[dict[str, Any]]) -> list[str]:
    """Calls that are not reads. What the loops inside the tasks do is theirs; a session of ECS Exec is for reading."""
    own = [call["operation"] for call in calls if call["principal"] != "task"]
    assert own, "the log of calls is empty"
    return [name for name in own if not READS.match(name)]


def without_colours(text: str) -> str:
    """The text as a pager shows it."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _plain_environment() -> dict[str, str]:
    return Sandbox(Path("/nonexistent")).environment()


def _free_port_pair() -> int:
    """A port that is free together with the next one, which the sandbox's DNS server takes."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second, socket.socket(type=socket.SOCK_DGRAM) as datagram:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
                datagram.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return int(port)
    raise RuntimeError("no two neighbouring free ports")
