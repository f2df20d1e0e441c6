# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines that forbid namespaces or lack a package: commands still really run, and one line says what is lost."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.model import Loop, MapState, QueuedMessage
from sandbox.tasks import debian, isolation, runtime
from sandbox.tasks.isolation import Isolation, Walls

from .conftest import ADDRESSES, TABLE, Cloud

Until = Callable[..., None]
QUEUED = QueuedMessage("4AOM0abc012345", 600, "news@sender.example", ("x@y.example",), "Deferred: Connection refused")


@pytest.fixture(params=[Isolation.PROOT, Isolation.FOLDER])
def degraded(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, endpoint: str, tmp_path: Path
) -> Iterator[Cloud]:
    walls = Walls(request.param)
    if request.param is Isolation.PROOT:
        try:
            walls = Walls(request.param, debian.ensure(debian.PROOT, tmp_path))
        except debian.UnavailableError as error:
            pytest.skip(str(error))
    monkeypatch.setattr(isolation, "detect", lambda cache: walls)
    cloud = Cloud(endpoint, tmp_path / "state")
    cloud.make_table()
    cloud.put(*ADDRESSES)
    yield cloud
    cloud.runtime.close()
    cloud.dynamodb.delete_table(TableName=TABLE)


def test_a_task_runs_commands_in_its_own_files_and_its_loop_works(degraded: Cloud, until: Until) -> None:
    lacks = ("ann@shop.harborlight.example",)
    stale = MapState(18_000, 18_000, text_lacks=lacks, db_lacks=lacks)
    spec, other = (degraded.spec("imap", maps=stale, mailq=(QUEUED,)) for _ in range(2))
    degraded.start(spec, other)
    assert "Deferred: Connection refused" in degraded.shell(spec, "mailq")
    read = "makemap -u hash ${TASK_ROOT:-}/etc/mail/access"
    assert "ann@" not in degraded.shell(spec, read)
    degraded.tell(spec)
    degraded.wait_for(spec, "[reconfigure] Done.")
    assert "to:ann@shop.harborlight.example\tOK" in degraded.shell(spec, read)
    assert "ann@" not in degraded.shell(other, read)
    # The restart of sendmail must stay in the task: there may be a real one on the machine.
    assert not any("exited: sendmail" in line for line in degraded.lines[other.task_id])
    if degraded.runtime.isolation is Isolation.FOLDER:
        degraded.wait_for(spec, "exited: sendmail (exit status 0; expected)")
    assert degraded.runtime.notes[0] == degraded.runtime.isolation.value
    roots = [task.root for task in degraded.runtime.running]
    degraded.runtime.close()
    until(lambda: not any(processes_of(root) for root in roots))


def processes_of(root: Path) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(root).encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


def test_a_stopped_loop_stays_stopped_until_continued(degraded: Cloud, until: Until) -> None:
    spec = degraded.spec("smtp-in", loop=Loop.STOPPED)
    degraded.start(spec)
    degraded.tell(spec)
    degraded.shell(spec, "sleep 1")
    assert degraded.lines[spec.task_id] == []

    def continued() -> bool:
        degraded.runtime.signal_loop(spec.task_id, signal.SIGCONT)
        return "[reconfigure] Done." in degraded.lines[spec.task_id]

    until(continued, 30.0)


def test_without_the_package_makemap_and_mailq_are_stand_ins(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, tmp_path: Path
) -> None:
    def missing(package: str, cache: Path) -> debian.Unpacked:
        raise debian.UnavailableError("this system has no apt-get and dpkg-deb")

    monkeypatch.setattr(runtime, "ensure", missing)
    cloud = Cloud(endpoint, tmp_path / "state")
    try:
        spec = cloud.spec("imap", maps=MapState(60, 7200, db_lacks=("ann@shop.harborlight.example",)), mailq=(QUEUED,))
        cloud.start(spec)
        assert cloud.runtime.notes[-1] == (
            "makemap and mailq are stand-ins, their .db files are not Berkeley databases: "
            "this system has no apt-get and dpkg-deb."
        )
        assert "ann@" not in cloud.shell(spec, "makemap -u hash /etc/mail/access")
        assert "to:ben@shop.harborlight.example\tOK" in cloud.shell(spec, "makemap -u hash /etc/mail/access")
        assert "Deferred: Connection refused" in cloud.shell(spec, "mailq")
        odd = (
            "printf 'A\\t1\\na\\t2\\nb\\n' > /tmp/m; makemap hash /tmp/m < /tmp/m 2>&1; echo $?; makemap -u hash /tmp/m"
        )
        assert cloud.shell(spec, odd).splitlines() == [
            "makemap: /tmp/m: line 2: key a: duplicate key",
            "makemap: /tmp/m: line 3: no RHS for LHS b",
            "65",
            "a\t1",
        ]
    finally:
        cloud.runtime.close()


def test_a_failed_download_is_remembered_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def fails(argv: list[str], cwd: Path | None = None) -> str:
        calls.append(argv)
        raise debian.UnavailableError("apt-get failed: E: no network")

    monkeypatch.setattr(debian, "PROJECT_CACHE", tmp_path / "nothing")
    monkeypatch.setattr(debian, "_run", fails)
    monkeypatch.setattr(debian.shutil, "which", lambda name: f"/usr/bin/{name}")
    for _ in range(2):
        with pytest.raises(debian.UnavailableError, match="no network"):
            debian.ensure(debian.SENDMAIL, tmp_path)
    # One download from the machine's own lists, one update of private lists; the second call tried neither.
    assert next(argv[-2:] for argv in calls) == ["download", "sendmail-bin"]
    assert [argv[-1] for argv in calls][1:] == ["update"]


def test_namespaces_are_tried_not_guessed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def forbidden(argv: list[str], **_options: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(argv, 1 if argv[0] == "unshare" else 0)

    proot = debian.Unpacked(tmp_path, "")
    monkeypatch.setattr(isolation, "ensure", lambda package, cache: proot)
    monkeypatch.setattr(isolation.subprocess, "run", forbidden)
    assert isolation.detect(tmp_path) == Walls(Isolation.PROOT, proot)


def test_two_that_fetch_at_once_both_go_on(tmp_path: Path) -> None:
    first, second, place = tmp_path / "first", tmp_path / "second", tmp_path / "debian"
    for tree in (first, second):
        tree.mkdir()
        (tree / "makemap").write_text(tree.name)
    for tree in (first, second):
        debian._publish(tree, place)
    assert (place / "makemap").read_text() == "first"
