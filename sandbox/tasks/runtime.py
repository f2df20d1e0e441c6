# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks as process trees: start many at once, follow their output, enter them, end them without a trace.

A task lives in namespaces of its own (see isolation.py). Its first process reads a pipe that only this process
holds, so tasks end with the sandbox however it ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..model import TaskSpec
from . import isolation as isolating
from . import rootfs
from .debian import SENDMAIL, UnavailableError, Unpacked, ensure
from .isolation import Isolation, Walls

READY_SECONDS = 20.0
STOP_SECONDS = 5.0
SIGNAL_SECONDS = 1.0
MAX_LINE_BYTES = 256 * 1024
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The key that the tasks' own calls carry, so that they can be told from those of the programs under test.
TASK_ACCESS_KEY = "task"

OnLine = Callable[[TaskSpec, int, str], None]
OnExit = Callable[[TaskSpec, int], None]

_log = logging.getLogger(__name__)


class TaskStartError(Exception):
    """The task's first program ended, or said nothing, before its services were started."""


@dataclass
class RunningTask:
    """A started task. ``exit_status`` is None while it runs; ``ended`` is set when its last process has gone."""

    spec: TaskSpec
    root: Path
    process: subprocess.Popen[bytes]
    walls: Walls
    shares: dict[str, str]
    environment: dict[str, str]
    first_process: int = 0
    exit_status: int | None = None
    stopping: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def running(self) -> bool:
        return not self.ended.is_set()

    def alive(self) -> bool:
        """Whether the first process runs. One that ends loses its program before its children are killed."""
        if not self.running:
            return False
        try:
            os.readlink(f"/proc/{self.first_process}/exe")
        except PermissionError:
            return True
        except OSError:
            return False
        return True

    def command(self, argv: list[str]) -> list[str]:
        """argv for this machine that runs ``argv`` inside the task on the terminal that is its standard input."""
        return self._inside(argv, terminal=True)

    def _inside(self, argv: list[str], *, terminal: bool = False) -> list[str]:
        return isolating.enter_command(self.walls, self.root, self.shares, self.first_process, argv, terminal=terminal)

    @property
    def isolation(self) -> Isolation:
        return self.walls.isolation

    def run(self, argv: list[str], *, timeout: float = 30.0, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a command inside the task without a terminal and return what it printed."""
        return subprocess.run(
            self._inside(argv), input=stdin, capture_output=True, timeout=timeout, env=self.environment, cwd=self.cwd
        )

    @property
    def cwd(self) -> Path:
        """Where commands of the task start, as this machine names it."""
        return self.root if self.isolation is Isolation.FOLDER else Path("/")


class Runtime:
    """All tasks of the sandbox.

    :param folder: private folder for the tasks' files; its content is removed at the start and at the end.
    :param cache: folder for what is fetched once (sendmail's tools).
    :param endpoint: URL of the sandbox's AWS endpoint, as the tasks reach it.
    :param on_line: called for each line of a task's output with the time in epoch milliseconds, from a thread of the
    task.
    :param on_exit: called when a task ends by itself (not by :meth:`stop` or :meth:`close`), with its exit status.
    """

    def __init__(
        self, folder: Path, cache: Path, *, endpoint: str, on_line: OnLine, on_exit: OnExit | None = None
    ) -> None:
        self._walls = isolating.detect(cache)
        self.isolation = self._walls.isolation
        self.notes = [self.isolation.value] if self.isolation.value else []
        self._folder = folder
        self._endpoint = endpoint
        self._on_line = on_line
        self._on_exit = on_exit
        self._tasks: dict[str, RunningTask] = {}
        self._imap_address: str | None = None
        folder.mkdir(parents=True, exist_ok=True)
        _remove(folder / "tasks")
        self._host = rootfs.prepare_host(self.isolation, folder / "local", self._tools(cache))
        self._map_maker = rootfs.MapMaker(self._host)

    def _tools(self, cache: Path) -> Unpacked | None:
        if self.isolation is Isolation.FOLDER:
            return None  # they only know /etc/mail, which is the machine's own then
        try:
            return ensure(SENDMAIL, cache)
        except UnavailableError as error:
            self.notes.append(f"makemap and mailq are stand-ins, their .db files are not Berkeley databases: {error}.")
            return None

    # -- starting ------------------------------------------------------------------------------------------------

    def task(self, task_id: str) -> RunningTask | None:
        """The task with this id, running or not; None when it was never started."""
        return self._tasks.get(task_id)

    @property
    def running(self) -> list[RunningTask]:
        return [task for task in self._tasks.values() if task.running]

    def start(self, specs: Iterable[TaskSpec]) -> dict[str, Exception | None]:
        """Start tasks side by side and wait until each has started its services.

        Returns by task id None, or why that task could not start (it has ended then).
        """
        wanted = list(specs)
        with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
            results = pool.map(self._try_start, wanted)
            return {spec.task_id: result for spec, result in zip(wanted, results, strict=True)}

    def _try_start(self, spec: TaskSpec) -> Exception | None:
        try:
            self._start(spec)
        except (OSError, RuntimeError, TaskStartError) as error:
            return error
        return None

    def _start(self, spec: TaskSpec) -> None:
        root = self._folder / "tasks" / spec.task_id
        root.mkdir(parents=True)
        rootfs.build(spec, root, self._host, self._map_maker, self._imap_address)
        ready, announce = os.pipe()
        try:
            task = self._spawn(spec, root, announce)
        finally:
            os.close(announce)
        threading.Thread(target=self._follow, args=(task,), name=f"task-{spec.task_id[:8]}", daemon=True).start()
        try:
            if not _announced(ready):
                self._end(task)
                raise TaskStartError(f"the task ended with status {task.exit_status} before its services were started")
        finally:
            os.close(ready)
        task.first_process = isolating.first_process(self.isolation, task.process.pid)

    def _spawn(self, spec: TaskSpec, root: Path, announce: int) -> RunningTask:
        environment = self._environment(spec, root)
        inside = environment | {"READY_FD": str(announce)}
        if self.isolation.namespaces:
            inside |= {"LOCAL_HOME": str(self._host.local), "PYTHON_HOME": self._host.python or ""}
            inside |= {"DEBIAN_HOME": str(self._host.tools.folder) if self._host.tools else ""}
        program = "entrypoint.sh" if spec.fresh else "supervisord"
        if self.isolation is Isolation.FOLDER:
            program = str(self._host.local / "bin" / program)
        process = subprocess.Popen(
            isolating.start_command(self._walls, root, spec.host_name, self._host.shares, program),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=inside,
            cwd=root if self.isolation is Isolation.FOLDER else "/",
            pass_fds=(announce,),
            start_new_session=True,
        )
        task = RunningTask(spec, root, process, self._walls, self._host.shares, environment)
        self._tasks[spec.task_id] = task
        return task

    def _environment(self, spec: TaskSpec, root: Path) -> dict[str, str]:
        """The container's variables; commands that are sent to the task see the same."""
        environment = {
            "PATH": PATH,
            "HOME": "/root",
            "HOSTNAME": spec.host_name,
            **spec.environment,
            "TIER": spec.tier,
            "AWS_ENDPOINT_URL": self._endpoint,
            "SANDBOX_TASK_ACCESS_KEY": TASK_ACCESS_KEY,
        }
        if spec.queue_url is not None:
            environment["SQS_QUEUE_URL"] = spec.queue_url
        if not self.isolation.namespaces:
            environment["SANDBOX_TASK_ROOT"] = str(root)
        if self.isolation is Isolation.FOLDER:
            local = self._host.local
            environment |= {"TASK_ROOT": str(root), "PATH": f"{local}/sbin:{local}/bin:{PATH}", "HOME": f"{root}/root"}
        return environment

    # -- output and end ------------------------------------------------------------------------------------------

    def _follow(self, task: RunningTask) -> None:
        """Hands on each line; the stream ends when the last process of the task has gone."""
        stream = task.process.stdout
        assert stream is not None  # noqa: S101 - made with stdout=PIPE
        while line := stream.readline(MAX_LINE_BYTES):
            text = line.decode("utf-8", "replace").rstrip("\n")
            try:
                self._on_line(task.spec, time.time_ns() // 1_000_000, text)
            except Exception:
                _log.exception("A line of task %s could not be stored", task.spec.task_id)
        stream.close()
        task.exit_status = task.process.wait()
        task.ended.set()
        if self._on_exit is not None and not task.stopping:
            self._on_exit(task.spec, task.exit_status)

    def stop(self, task_id: str, *, grace: float = STOP_SECONDS) -> None:
        """End a task as ECS does: SIGTERM to its first process, SIGKILL after ``grace`` seconds. Removes its files."""
        task = self._tasks.get(task_id)
        if task is None:
            return
        task.stopping = True
        if task.running and grace > 0 and task.first_process:
            with contextlib.suppress(ProcessLookupError):
                os.kill(task.first_process, signal.SIGTERM)
            task.ended.wait(grace)
        self._end(task)

    def _end(self, task: RunningTask) -> None:
        """Nothing of the task survives this: the kernel ends a PID namespace with its first process."""
        task.stopping = True
        task.process.kill()
        if not self.isolation.namespaces:
            _kill_all(str(task.root))
        if task.process.stdin is not None:
            task.process.stdin.close()
        task.ended.wait(STOP_SECONDS)
        _remove(task.root)

    def close(self) -> None:
        """End all tasks at once and remove their files."""
        tasks = list(self._tasks.values())
        with ThreadPoolExecutor(max_workers=max(1, len(tasks))) as pool:
            list(pool.map(self._end, tasks))
        self._tasks.clear()
        _remove(self._folder / "tasks")
        _remove(self._folder / "local")

    # -- what a scenario or a test changes while tasks run ----------------------------------------------------------

    def signal_loop(self, task_id: str, signal_number: signal.Signals) -> None:
        """Send a signal to the reconfigure loop's own process (not to what it runs).

        :raises ProcessLookupError: when the task has no such process.
        """
        first = self._tasks[task_id].first_process
        deadline = time.monotonic() + SIGNAL_SECONDS
        while True:
            for child in Path(f"/proc/{first}/task/{first}/children").read_text().split():
                # A process that has only just been started has no command line for an instant.
                if b"/reconfigure.sh\0" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal_number)
                    return
            if time.monotonic() > deadline:
                raise ProcessLookupError(f"task {task_id} runs no reconfigure loop")
            time.sleep(0.01)

    def set_imap_address(self, address: str | None) -> None:
        """What imap.cabal.internal resolves to, for the hosts-pin daemons of running and later tasks; None: nothing."""
        self._imap_address = address
        for task in self.running:
            (task.root / "run" / "imap-address").write_text(f"{address or ''}\n", encoding="utf-8")


def _announced(descriptor: int) -> bool:
    """Whether the task said that its services are started, in time and before its end."""
    readable, _, _ = select.select([descriptor], [], [], READY_SECONDS)
    return bool(readable) and os.read(descriptor, 64) == b"ready\n"


def _kill_all(root: str) -> None:
    """Without namespaces: every process that was started with the task's variables, and what those start meanwhile."""
    marker = f"SANDBOX_TASK_ROOT={root}\0".encode()
    deadline = time.monotonic() + STOP_SECONDS
    found = True
    while found and time.monotonic() < deadline:
        found = False
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if marker in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
                    found = True


def _remove(folder: Path) -> None:
    """Remove a tree, folders without write permission included."""

    def retry(function: Callable[..., object], path: str, _error: object) -> None:
        with contextlib.suppress(OSError):
            Path(path).parent.chmod(0o700)
            Path(path).chmod(0o700)
            function(path)

    if folder.exists():
        shutil.rmtree(folder, onerror=retry)
