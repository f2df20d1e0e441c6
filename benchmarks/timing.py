# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clock, processor and memory of commands and functions, and the table that the figures are shown in.

A command's processor time is that of its process and all children it waited for. Memory is sampled in a run of its
own, since sampling takes time: PSS (what is shared between processes counted once) summed over the process and its
descendants, and the largest RSS of one of them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

MEGA = 1_000_000
_SAMPLE_SECONDS = 0.1


class BenchmarkError(Exception):
    """A figure can't be measured; one sentence."""


@dataclass(frozen=True)
class Usage:
    """What a command took: seconds and bytes. Memory is 0 where it was not sampled."""

    wall: float
    cpu: float
    pss: int = 0
    rss: int = 0
    output: bytes = b""


@dataclass(frozen=True)
class Row:
    """A line of the table; the texts say what was measured, and what the comparison and the bar are."""

    what: str
    measured: str
    beside: str
    beside_measured: str
    bar: str
    held: bool | None


@dataclass(frozen=True)
class Options:
    """How much to measure: ``runs`` of each command, ``events`` and ``lines`` of log, ``tasks``, ``size`` bytes,
    ``addresses`` in a table and ``many_addresses`` in a very large one."""

    runs: int = 5
    events: int = 1_000_000
    lines: int = 400_000
    tasks: int = 100
    size: int = 50 * MEGA
    addresses: int = 100_000
    many_addresses: int = 1_000_000

    @classmethod
    def quick(cls) -> Options:
        """Sizes that show that everything works, not how fast."""
        return cls(runs=1, events=30_000, lines=20_000, tasks=6, size=2 * MEGA, addresses=2_000, many_addresses=5_000)


def command(
    argv: Sequence[str], environment: Mapping[str, str], *, folder: Path, memory: bool = False, stdin: bool = False
) -> Usage:
    """Run a command to its end. ``stdin``: its standard input stays open and is empty; otherwise there is none.

    :raises BenchmarkError: when its status is not 0, with the end of what it said.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source = subprocess.PIPE if stdin else subprocess.DEVNULL
        started = time.perf_counter()
        child = subprocess.Popen(argv, stdin=source, stdout=out, stderr=err, env=dict(environment), cwd=folder)
        sampler = _Sampler(child.pid) if memory else None
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.stdin is not None:
            child.stdin.close()
        pss, rss = sampler.stop() if sampler is not None else (0, 0)
        out.seek(0)
        output = out.read()
        if child.returncode != 0:
            err.seek(0)
            said = (output + err.read())[-600:].decode(errors="replace").strip()
            raise BenchmarkError(f"{Path(argv[0]).name} ended with status {child.returncode}: {said}")
    return Usage(wall, used.ru_utime + used.ru_stime, pss, rss, output)


class _Sampler:
    """Watches the memory of a process and its descendants until it is stopped."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._pss = self._rss = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            found = [_memory(pid) for pid in _tree(self._pid)]
            self._pss = max(self._pss, sum(pss for pss, _ in found))
            self._rss = max([self._rss, *(rss for _, rss in found)])

    def stop(self) -> tuple[int, int]:
        self._over.set()
        self._thread.join()
        return self._pss, self._rss


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in path.read_text().split()]
            except OSError:
                continue
    return found


def _memory(pid: int) -> tuple[int, int]:
    """PSS and RSS of a process in bytes; zeros when it has gone."""
    sizes = {"Pss:": 0, "Rss:": 0}
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            words = line.split()
            if words[0] in sizes:
                sizes[words[0]] = int(words[1]) * 1024
    except OSError:
        pass
    return sizes["Pss:"], sizes["Rss:"]


def side_by_side(runs: int, **sides: Callable[[], Usage]) -> dict[str, Usage]:
    """Call each side ``runs`` times in turn, so that what else goes on meets all alike; the medians.

    Memory and output are the largest and the last.
    """
    taken: dict[str, list[Usage]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, side in sides.items():
            taken[name].append(side())
    return {name: _median(usages) for name, usages in taken.items()}


def _median(usages: list[Usage]) -> Usage:
    return replace(
        usages[-1],
        wall=statistics.median(usage.wall for usage in usages),
        cpu=statistics.median(usage.cpu for usage in usages),
        pss=max(usage.pss for usage in usages),
        rss=max(usage.rss for usage in usages),
    )


def timed(function: Callable[[], object]) -> Usage:
    """Clock and this process's processor time of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return Usage(time.perf_counter() - wall, time.process_time() - cpu)


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table that also reads well in a terminal."""
    lines = [["what", "measured", "beside it", "measured", "bar", "held"]]
    marks = {True: "yes", False: "NO", None: "-"}
    lines += [[r.what, r.measured, r.beside, r.beside_measured, r.bar, marks[r.held]] for r in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    cells = (" | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"| {line} |" for line in cells)
