# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ECS Exec: one round trip beside the AWS CLI with the official plugin, the bare channel, many tasks, much output."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import boto3

from module_utils.ecs_exec.aws import Aws
from module_utils.ecs_exec.runner import Outcome, Plan, run
from module_utils.ecs_exec.targets import Target, find
from module_utils.ecs_exec.wrapper import Program
from module_utils.session_manager.channel import Closed, Output
from module_utils.session_manager.client import Session, SessionBroke

from .stand import CLUSTER, CREDENTIALS, REPO, Stand, program, scenario_with_tasks, stand
from .timing import MEGA, BenchmarkError, Options, Row, Usage, command, side_by_side, table, timed

SERVICE, CONTAINER = "cabal-smtp-in", "smtp-in"
WORD = "round-trip"
# Writes what it hashes to standard output and the hash to standard error.
_BLOB = "head -c {size} /dev/urandom >/tmp/blob; sha256sum /tmp/blob >&2; cat /tmp/blob; rm /tmp/blob"


class Bench:
    """The client over one sandbox, ready for sessions."""

    def __init__(self, own: Stand) -> None:
        self.ecs = boto3.client("ecs", endpoint_url=own.url, **CREDENTIALS)
        ssm = boto3.client("ssm", endpoint_url=own.url, **CREDENTIALS)
        self.aws = Aws(self.ecs, ssm, None, CREDENTIALS["region_name"])
        self.targets: list[Target] = find(self.ecs, CLUSTER, services=[SERVICE])

    def run(self, targets: list[Target], *argv: str, **options: Any) -> list[Outcome]:
        """Run a command in the targets.

        :raises BenchmarkError: when it did not end by itself in each.
        """
        program = Program(argv=argv, seconds=300.0)
        outcomes = run(Plan(program, max_parallel=len(targets), **options), targets, self.aws)
        for outcome in outcomes:
            if outcome.outcome != "completed" or outcome.rc != 0:
                raise BenchmarkError(f"A session ended as {outcome.outcome}: {outcome.reason or outcome.stderr!r}")
        return outcomes

    def echo(self, targets: list[Target]) -> Usage:
        """One echo in each of the targets."""
        return timed(lambda: self.run(targets, "echo", WORD))

    def channel(self) -> Usage:
        """The data channel alone: a session that is there, its socket, the agent's own shell command, its end."""
        started = self.aws.execute(self.targets[0], f"/bin/sh -c 'echo {WORD}'")
        begun = time.perf_counter()
        asyncio.run(_converse(Session(started.url, started.token)))
        return Usage(time.perf_counter() - begun, 0.0)


async def _converse(session: Session) -> None:
    seen = b""
    try:
        await session.open(sign=None, environment={})
        while True:
            for event in await session.receive(time.monotonic() + 20):
                if isinstance(event, Output):
                    seen += event.data
                elif isinstance(event, Closed):
                    if seen.strip() != WORD.encode():
                        raise BenchmarkError(f"The channel brought {seen!r}.")
                    return
    except SessionBroke as error:
        raise BenchmarkError(str(error)) from None
    finally:
        await session.close()


def measure(options: Options) -> list[Row]:
    """All rows of ECS Exec."""
    with tempfile.TemporaryDirectory(prefix="cabalmail-bench-") as folder:
        scenario = scenario_with_tasks(Path(folder), "smtp-in", options.tasks)
        with stand(scenario) as own:
            bench = Bench(own)
            bench.echo(bench.targets[:1])
            rows = [row for delays in ("on", "off") for row in _round_trips(own, bench, options, delays)]
            return [*rows, _large(own, bench, options)]


def _round_trips(own: Stand, bench: Bench, options: Options, delays: str) -> list[Row]:
    own.agent(delays=delays)
    return [
        _processes(own, bench, options, delays),
        _bare(bench, options, delays),
        _many(bench, options, delays),
    ]


def _processes(own: Stand, bench: Bench, options: Options, delays: str) -> Row:
    """A process that runs one command, whole, beside the CLI's."""
    task = bench.targets[0].task
    client = [sys.executable, "-m", "benchmarks.exec_client", CLUSTER, task, "echo", WORD]
    words = ["ecs", "execute-command", "--cluster", CLUSTER, "--task", task, "--container", CONTAINER]
    cli = ["aws", *words, "--interactive", "--command", f"/bin/sh -c 'echo {WORD}'"]
    absent = [name for name in ("aws", "session-manager-plugin") if program(name) is None]

    def ours() -> Usage:
        return command(client, own.environment, folder=REPO)

    def official() -> Usage:
        return command(cli, own.environment, folder=own.folder, stdin=True)

    found = side_by_side(options.runs, ours=ours) if absent else side_by_side(options.runs, ours=ours, cli=official)
    wall, held = found["ours"].wall, None
    beside_measured = "-"
    if not absent:
        theirs = found["cli"].wall
        beside_measured = f"{theirs:.2f} s, {theirs / wall:.1f} x ours"
        held = wall <= theirs / 2
    return Row(
        f"ECS Exec, one echo, a process each, delays {delays}",
        f"{wall:.2f} s, CPU {found['ours'].cpu:.2f} s",
        f"{' and '.join(absent)} not on PATH" if absent else "aws ecs execute-command, session-manager-plugin",
        beside_measured,
        "half of it, delays on" if delays == "on" else "-",
        held if delays == "on" else None,
    )


def _bare(bench: Bench, options: Options, delays: str) -> Row:
    """Inside one process: the data channel with the plainest command, beside the exact round trip."""
    one = bench.targets[:1]
    found = side_by_side(max(5, 3 * options.runs), channel=bench.channel, client=lambda: bench.echo(one))
    channel, client = found["channel"].wall * 1000, found["client"].wall * 1000
    bar = ("50 ms", channel < 50) if delays == "off" else ("-", None)
    return Row(
        f"  data channel alone, delays {delays}", f"{channel:.0f} ms",
        "client with ExecuteCommand, exact streams and status", f"{client:.0f} ms", *bar,
    )  # fmt: skip


def _many(bench: Bench, options: Options, delays: str) -> Row:
    one, every = bench.targets[:1], bench.targets
    found = side_by_side(options.runs, one=lambda: bench.echo(one), every=lambda: bench.echo(every))
    ratio = found["every"].wall / found["one"].wall
    return Row(
        f"  {len(every)} tasks at once, delays {delays}",
        f"{found['every'].wall:.2f} s, CPU {found['every'].cpu:.2f} s, {ratio:.1f} x one",
        "one task",
        f"{found['one'].wall:.2f} s",
        "3 x one" if delays == "on" else "-",
        ratio <= 3 if delays == "on" else None,
    )


def _large(own: Stand, bench: Bench, options: Options) -> Row:
    """Much output through a file, compared by hash with what the container wrote."""
    own.agent(delays="off")
    same: list[bool] = []

    def fetch() -> Usage:
        with tempfile.TemporaryDirectory(dir=own.folder) as folder:
            argv = ("sh", "-c", _BLOB.format(size=options.size))
            found: list[Outcome] = []
            usage = timed(lambda: found.extend(bench.run(bench.targets[:1], *argv, dest=Path(folder), max_output=None)))
            dest, stderr = found[0].dest, found[0].stderr or b""
            data = dest.read_bytes() if dest is not None else b""
            same.append(len(data) == options.size and hashlib.sha256(data).hexdigest().encode() == stderr[:64])
            return usage

    usage = side_by_side(max(1, options.runs // 2), fetch=fetch)["fetch"]
    rate = options.size / MEGA / usage.wall
    return Row(
        f"  {options.size // MEGA} MB of output through dest, delays off",
        f"{usage.wall:.1f} s ({rate:.1f} MB/s), CPU {usage.cpu:.1f} s",
        "SHA-256 of what the container wrote",
        "the same" if all(same) else "ANOTHER",
        "no lost byte",
        all(same),
    )


def main() -> None:
    print(table(measure(Options())))


if __name__ == "__main__":
    main()
