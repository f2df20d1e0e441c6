# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: ``python -m sandbox up|down|run|check|status``.

The server is a child in a session of its own, so that Ctrl-C at a terminal reaches the command and not the server
below it. It holds the reading end of a pipe whose writing end ``run`` keeps: whatever ends ``run`` closes the pipe, and
so ends the server. What the child says on its standard output is one line: ``ready`` or ``error <sentence>``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import SandboxError
from .model import DEFAULT_PORT

HOST = "127.0.0.1"
DEFAULT_SCENARIO = "smtp-in-stale-map"
START_SECONDS = 60
STOP_SECONDS = 10


@dataclass(frozen=True)
class Settings:
    """Where the sandbox runs."""

    port: int
    state_dir: Path

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


def main(argv: list[str]) -> int:
    """Run one command; return the exit status (2 for whatever the person at the terminal must put right)."""
    try:
        arguments = _parser().parse_args(argv)
        command = arguments.command
        settings = _settings()
        if command == "up":
            return _up(settings, arguments.scenario)
        if command == "down":
            return _down(settings)
        if command == "run":
            return _run(settings, arguments.scenario, arguments.program)
        if command == "check":
            return _check(settings, arguments.folder)
        if command == "status":
            return _status(settings)
        return _serve(settings, arguments.folder, arguments.attached)
    except SandboxError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox", description="The embedded AWS that the runbooks are proved on."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start in the background")
    run = commands.add_parser("run", help="start if needed, run a command, stop what was started")
    for sub in (up, run):
        sub.add_argument("--scenario", help=f"name or folder (default: what is up, else {DEFAULT_SCENARIO})")
    run.add_argument("program", nargs=argparse.REMAINDER, metavar="-- command", help="the command and its arguments")
    commands.add_parser("down", help="stop it")
    commands.add_parser("status", help="say what is up")
    check = commands.add_parser("check", help="check a scenario folder")
    check.add_argument("folder")
    serve = commands.add_parser("serve", help="serve in the foreground (what up and run start)")
    serve.add_argument("folder")
    serve.add_argument("--attached", action="store_true", help="end when standard input ends")
    return parser


def _settings() -> Settings:
    text = os.environ.get("CABALMAIL_SANDBOX_PORT") or str(DEFAULT_PORT)
    if not text.isdecimal() or not 1024 <= int(text) <= 65_534:
        raise SandboxError(f"CABALMAIL_SANDBOX_PORT must be a port from 1024 to 65534, not {text!r}.")
    default = Path(__file__).parent.parent / ".cache" / "sandbox"
    return Settings(int(text), Path(os.environ.get("CABALMAIL_SANDBOX_DIR") or default).resolve())


# -- what is up ------------------------------------------------------------------------------------------------------


def _health(settings: Settings) -> dict[str, Any] | None:
    """State of the sandbox on the port; None when nothing listens there.

    :raises SandboxError: when something else does.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    busy = SandboxError(
        f"Port {settings.port} on {HOST} is in use by another program: free it, or set CABALMAIL_SANDBOX_PORT."
    )
    try:
        with opener.open(f"{settings.url}/_sandbox/health", timeout=5) as answer:
            state = json.loads(answer.read())
    except urllib.error.HTTPError:
        raise busy from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            return None
        raise busy from None
    except (OSError, ValueError):
        raise busy from None
    if not isinstance(state, dict) or "endpoint_url" not in state:
        raise busy
    return state


def _same(state: dict[str, Any], wanted: str | None) -> bool:
    from .scenario import find

    return wanted is None or state.get("folder") == str(find(wanted))


# -- commands --------------------------------------------------------------------------------------------------------


def _up(settings: Settings, wanted: str | None) -> int:
    state = _health(settings)
    if state is None:
        _start(settings, wanted or DEFAULT_SCENARIO, attached=False)
        state = _health(settings) or {}
    elif not _same(state, wanted):
        raise SandboxError(_other_scenario(state, wanted))
    _tell(state)
    return 0


def _run(settings: Settings, wanted: str | None, program: list[str]) -> int:
    program = program[1:] if program[:1] == ["--"] else program
    if not program:
        raise SandboxError("Say what to run: python -m sandbox run [--scenario NAME] -- command...")
    state = _health(settings)
    if state is not None and not _same(state, wanted):
        raise SandboxError(_other_scenario(state, wanted))
    server = None if state is not None else _start(settings, wanted or DEFAULT_SCENARIO, attached=True)
    try:
        return _child(program, settings)
    finally:
        if server is not None:
            _end(server)


def _child(program: list[str], settings: Settings) -> int:
    environment = os.environ | {
        "CABALMAIL_SANDBOX_PORT": str(settings.port),
        "CABALMAIL_SANDBOX_DIR": str(settings.state_dir),
    }
    try:
        child = subprocess.Popen(program, env=environment)
    except OSError as error:
        raise SandboxError(f"{program[0]} can't be run: {error.strerror}.") from None
    old = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        while True:
            # Ctrl-C reaches the command as well, which has its own way to end: wait for it.
            with contextlib.suppress(KeyboardInterrupt):
                status = child.wait()
                return status if status >= 0 else 128 - status
    finally:
        signal.signal(signal.SIGTERM, old)


def _down(settings: Settings) -> int:
    state = _health(settings)
    if state is None:
        print("No sandbox is up.")
        return 0
    pid = int(state["pid"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    if not _gone(pid, STOP_SECONDS):
        os.kill(pid, signal.SIGKILL)
        _gone(pid, 2)
    print("The sandbox is down.")
    return 0


def _gone(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def _status(settings: Settings) -> int:
    state = _health(settings)
    if state is None:
        print("No sandbox is up.")
        return 1
    _tell(state)
    return 0


def _check(settings: Settings, folder: str) -> int:
    from .scenario import find, load

    loaded = load(find(folder), now=datetime.now(UTC), endpoint=settings.url)
    print(f"{loaded.name}: {loaded.title}")
    return 0


def _tell(state: dict[str, Any]) -> None:
    print(f"Sandbox at {state['endpoint_url']}, DNS at {state['dns']}, scenario {state['scenario']}: {state['title']}")
    for sentence in state.get("degraded") or []:
        print(f"Note: {sentence}")


def _other_scenario(state: dict[str, Any], wanted: str | None) -> str:
    return (
        f"A sandbox with scenario {state['scenario']!r} is up at {state['endpoint_url']}, not {wanted!r}: "
        f"stop it first (make sandbox-down)."
    )


# -- the server process ----------------------------------------------------------------------------------------------


def _start(settings: Settings, wanted: str, *, attached: bool) -> subprocess.Popen[str]:
    """Start the server and wait until it is ready.

    :raises SandboxError: its own sentence, when it can't.
    """
    from .scenario import find

    folder = find(wanted)
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        log = (settings.state_dir / "server.log").open("w")
    except OSError as error:
        raise SandboxError(f"{settings.state_dir} can't be written: {error.strerror}.") from None
    argv = [sys.executable, "-m", "sandbox", "serve", str(folder), *(["--attached"] if attached else [])]
    with log:
        server = subprocess.Popen(
            argv,
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE if attached else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env=os.environ | {"CABALMAIL_SANDBOX_DIR": str(settings.state_dir)},
        )
    try:
        line = server.stdout.readline().strip() if server.stdout else ""
    except KeyboardInterrupt:
        _end(server)
        raise
    if line == "ready":
        return server
    _end(server)
    if line.startswith("error "):
        raise SandboxError(line.removeprefix("error "))
    raise SandboxError(f"The sandbox did not start: see {settings.state_dir / 'server.log'}.")


def _end(server: subprocess.Popen[str]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    if server.stdin:
        server.stdin.close()
    if server.stdout:
        server.stdout.close()


def _serve(settings: Settings, folder: str, attached: bool) -> int:
    from .scenario import find

    try:
        asyncio.run(_serve_until_told(settings, find(folder), attached))
    except SandboxError as error:
        print(f"error {error}", flush=True)
        return 2
    return 0


async def _serve_until_told(settings: Settings, folder: Path, attached: bool) -> None:
    from .server import Sandbox

    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, told.set)
    if attached:
        loop.add_reader(sys.stdin.fileno(), told.set)
    sandbox = Sandbox(settings.port, settings.state_dir)
    try:
        await sandbox.start()
        loading = asyncio.create_task(sandbox.load(folder))
        ended = asyncio.create_task(told.wait())
        await asyncio.wait({loading, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            loading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loading
        if not told.is_set():
            print("ready", flush=True)
        await ended
    finally:
        await sandbox.stop()
