# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: one clear sentence for each mistake, and nothing left running."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import REPO, SCENARIOS, SandboxUnderTest, free_port

WriteScenario = Callable[..., Path]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[SandboxUnderTest]:
    """Settings for a sandbox that a test starts by itself; down in any case."""
    sandbox = SandboxUnderTest(free_port(), tmp_path / "state")
    yield sandbox
    sandbox.cli("down")


def processes(state_dir: Path) -> list[str]:
    """Commands of processes that know the state folder: the server by its environment, tasks by their root."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            known = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if str(state_dir).encode() in known and state != "Z" and int(folder.name) != os.getpid():
            found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


def gone(state_dir: Path) -> bool:
    until = time.monotonic() + 5
    while processes(state_dir):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def one_sentence(text: str) -> bool:
    return len(text.strip().splitlines()) == 1 and "Traceback" not in text and text.strip().endswith(".")


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in SCENARIOS.glob("*/scenario.yml")))
def test_every_scenario_of_the_project_is_sound(own: SandboxUnderTest, folder: str) -> None:
    from datetime import UTC, datetime

    from sandbox import scenario

    loaded = scenario.load(SCENARIOS / folder, now=datetime.now(UTC), endpoint="http://127.0.0.1:1")
    assert loaded.expect is not None


def test_up_twice_status_down_twice(own: SandboxUnderTest) -> None:
    begun = time.monotonic()
    up = own.cli("up", "--scenario", "quiet")
    assert up.returncode == 0, up.stderr
    assert "quiet" in up.stdout
    assert time.monotonic() - begun < 30
    state = json.loads((own.state_dir / "state.json").read_text())
    assert state["endpoint_url"] == own.url
    assert own.cli("up", "--scenario", "quiet").returncode == 0
    other = own.cli("up", "--scenario", "smtp-in-stale-map")
    assert other.returncode == 2
    assert one_sentence(other.stderr)
    assert own.cli("status").returncode == 0
    assert own.cli("down").returncode == 0
    assert own.cli("down").returncode == 0
    assert own.cli("status").returncode == 1
    assert gone(own.state_dir)
    assert not (own.state_dir / "tasks").exists()


def test_run_passes_the_status_on_and_leaves_nothing(own: SandboxUnderTest) -> None:
    code = "import os,sys; print(os.environ['CABALMAIL_SANDBOX_PORT']); sys.exit(7)"
    run = own.cli("run", "--scenario", "quiet", "--", sys.executable, "-c", code)
    assert run.returncode == 7
    assert run.stdout.strip() == str(own.port)
    assert gone(own.state_dir)
    assert not listening(own.port)


def test_run_uses_and_leaves_what_is_up(running: SandboxUnderTest) -> None:
    running.load("quiet")
    assert running.cli("run", "--", "true").returncode == 0
    assert running.cli("run", "--scenario", str(SCENARIOS / "quiet"), "--", "true").returncode == 0
    assert listening(running.port)
    assert running.cli("run", "--scenario", "smtp-in-stale-map", "--", "true").returncode == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_survives_the_end_of_run(own: SandboxUnderTest, how: signal.Signals) -> None:
    argv = [sys.executable, "-m", "sandbox", "run", "--scenario", "quiet", "--", "sleep", "60"]
    run = subprocess.Popen(argv, cwd=REPO, env=own.environment, start_new_session=True)
    until = time.monotonic() + 30
    while not any("sleep 60" in command for command in processes(own.state_dir)):
        assert time.monotonic() < until
        time.sleep(0.1)
    if how is signal.SIGINT:
        os.killpg(run.pid, how)  # what Ctrl-C at a terminal does
    else:
        run.send_signal(how)
    run.wait(15)
    if how is signal.SIGKILL:
        subprocess.run(["pkill", "-s", str(run.pid)], check=False)  # the command is not the sandbox's to end
    assert gone(own.state_dir)
    assert not listening(own.port)


def test_a_killed_server_takes_its_tasks_along(own: SandboxUnderTest) -> None:
    assert own.cli("up", "--scenario", "quiet").returncode == 0
    state = json.loads((own.state_dir / "state.json").read_text())
    os.kill(state["pid"], signal.SIGKILL)
    assert gone(own.state_dir)
    assert own.cli("up", "--scenario", "quiet").returncode == 0, "what is left behind does not hinder the next start"


def test_a_busy_port(own: SandboxUnderTest) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", own.port + 1))
        taken.listen()
        result = own.cli("up", "--scenario", "quiet")
    assert result.returncode == 2
    assert one_sentence(result.stderr)
    assert str(own.port + 1) in result.stderr
    assert gone(own.state_dir)


def test_a_port_held_by_something_else(own: SandboxUnderTest) -> None:
    argv = [sys.executable, "-m", "http.server", str(own.port), "--bind", "127.0.0.1"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as other:
        until = time.monotonic() + 10
        while not listening(own.port) and time.monotonic() < until:
            time.sleep(0.05)
        results = [own.cli("up"), own.cli("down"), own.cli("run", "--", "true")]
        other.terminate()
    for result in results:
        assert result.returncode == 2
        assert one_sentence(result.stderr)
        assert "another program" in result.stderr


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"now": "yesterday"}, "breaks the schema at now"),
        ({"tiers": {}}, "breaks the schema at tiers"),
        ({"surprise": 1}, "surprise"),
        ({"tiers": {t: {"log_level": 9} for t in ("imap", "smtp-in")}}, "smtp-out"),
        ({"addresses": [{"address": "a@s.x.example", "tld": "y.example"}]}, "not under its tld"),
        ({"addresses_file": "missing.tsv"}, "missing.tsv can't be read"),
    ],
)
def test_a_broken_scenario(
    own: SandboxUnderTest, write_scenario: WriteScenario, document: dict[str, object], says: str
) -> None:
    folder = write_scenario(**document)
    for result in (own.cli("check", str(folder)), own.cli("up", "--scenario", str(folder))):
        assert result.returncode == 2
        assert one_sentence(result.stderr)
        assert says in result.stderr
        assert str(folder) in result.stderr


def test_not_yaml_and_not_there(own: SandboxUnderTest, tmp_path: Path) -> None:
    (tmp_path / "scenario.yml").write_text("a: [")
    assert one_sentence(own.cli("check", str(tmp_path)).stderr)
    unknown = own.cli("up", "--scenario", "no-such")
    assert unknown.returncode == 2
    assert one_sentence(unknown.stderr)
    assert "quiet" in unknown.stderr


@pytest.mark.parametrize("port", ["x", "80", "99999"])
def test_a_bad_port(own: SandboxUnderTest, port: str) -> None:
    argv = [sys.executable, "-m", "sandbox", "status"]
    environment = own.environment | {"CABALMAIL_SANDBOX_PORT": port}
    result = subprocess.run(argv, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "CABALMAIL_SANDBOX_PORT" in result.stderr


def test_a_state_folder_that_cannot_be(own: SandboxUnderTest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = SandboxUnderTest(own.port, tmp_path / "file" / "state").cli("up", "--scenario", "quiet")
    assert result.returncode == 2
    assert one_sentence(result.stderr)


def test_run_without_a_command_and_with_one_that_is_not_there(own: SandboxUnderTest) -> None:
    assert own.cli("run").returncode == 2
    missing = own.cli("run", "--scenario", "quiet", "--", "/no/such/program")
    assert missing.returncode == 2
    assert one_sentence(missing.stderr)
    assert gone(own.state_dir)
