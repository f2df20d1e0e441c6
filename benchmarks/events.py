# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A million events over three tiers: our reading and counting, boto3's bare pagination, awslogs with the shell."""

from __future__ import annotations

import json
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import corpus
from .parser import rules
from .stand import CREDENTIALS, REPO, TIERS, Stand, stand
from .timing import MEGA, Options, Row, Usage, command, side_by_side, table

_WINDOW = 2400.0
_BATCH = 50_000
# Above what the server can give: what is measured is the reading, not the account's quota.
_REQUESTS_PER_SECOND = 10_000


def measure(options: Options) -> list[Row]:
    """Rows for time, processor and memory: with the corpus's mix of lines, and with every event a bounce."""
    with stand("quiet") as own:
        start = time.time() - _WINDOW - 60
        _load(own, options.events, start, {tier: corpus.templates(tier) for tier in TIERS})
        window = (start, time.time() + 30)
        mixed = _sides(own, window, options)
        # Minutes long, so once, with its memory in the same run.
        shell = command(["bash", "-c", _awslogs(own, window)], own.environment, folder=own.folder, memory=True)
        rows = [_time("lines as they are logged", mixed), _shell(mixed["ours"], shell)]
        memory = _sides(own, window, options, memory=True)
        rows.append(_memory("lines as they are logged", memory, shell))
        own.post("scenario", b'{"path": "quiet"}')
        start = time.time() - _WINDOW - 60
        _load(own, options.events, start, dict.fromkeys(TIERS, corpus.templates("smtp-out", "dsn=5")))
        window = (start, time.time() + 30)
        bounces = _sides(own, window, options)
        rows.append(_time("every event a bounce", bounces))
        rows.append(_memory("every event a bounce", _sides(own, window, options, memory=True)))
        return rows


def _sides(own: Stand, window: tuple[float, float], options: Options, *, memory: bool = False) -> dict[str, Usage]:
    ours, boto = _ours(own, window), _boto(own, window)
    return side_by_side(
        1 if memory else min(options.runs, 3),
        ours=lambda: command(ours, own.environment, folder=REPO, memory=memory),
        boto3=lambda: command(boto, own.environment, folder=REPO, memory=memory),
    )


def _load(own: Stand, count: int, start: float, sources: dict[str, list[str]]) -> None:
    """Put ``count`` events into the log groups, made from the lines of each tier."""
    for number, tier in enumerate(TIERS):
        size = count // len(TIERS) + (number < count % len(TIERS))
        batch: list[str] = []
        for _, line in corpus.lines(sources[tier], size, start, _WINDOW):
            batch.append(line)
            if len(batch) == _BATCH:
                _post(own, tier, batch)
        _post(own, tier, batch)


def _post(own: Stand, tier: str, batch: list[str]) -> None:
    if batch:
        own.post(f"events?group=/ecs/cabal-{tier}&stream={tier}/{tier}/bench", "\n".join(batch).encode())
        batch.clear()


def _ours(own: Stand, window: tuple[float, float]) -> list[str]:
    arguments: dict[str, Any] = rules() | {
        "region": CREDENTIALS["region_name"],
        "access_key": CREDENTIALS["aws_access_key_id"],
        "secret_key": CREDENTIALS["aws_secret_access_key"],
        "endpoint_url": own.url,
        "groups": [{"tier": tier, "log_group": f"/ecs/cabal-{tier}"} for tier in TIERS],
        "start": _rfc3339(window[0]),
        "end": _rfc3339(window[1]),
        "requests_per_second": _REQUESTS_PER_SECOND,
        "deadline": 600,
    }
    path = own.folder / "arguments.json"
    path.write_text(json.dumps(arguments), encoding="utf-8")
    return [sys.executable, "-m", "benchmarks.read_with_module", str(path)]


def _boto(own: Stand, window: tuple[float, float]) -> list[str]:
    bounds = [str(int(moment * 1000)) for moment in window]
    return [sys.executable, "-m", "benchmarks.read_with_boto3", *bounds, *(f"/ecs/cabal-{tier}" for tier in TIERS)]


def _awslogs(own: Stand, window: tuple[float, float]) -> str:
    """The runbook's histogram of codes with awslogs in place of `aws logs tail`."""
    program = shlex.quote(str(Path(sys.executable).parent / "awslogs"))
    bounds = " ".join(
        f"-{name} '{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S}'"
        for name, moment in zip("se", window, strict=True)
    )
    options = f"{bounds} --aws-endpoint-url {own.url} --aws-region {CREDENTIALS['region_name']} --color never"
    return "\n".join(
        f"{program} get /ecs/cabal-{tier} ALL {options}"
        r" | grep -oE 'dsn=5\.[0-9]+\.[0-9]+' | sort | uniq -c | sort -rn"
        for tier in TIERS
    )


def _rfc3339(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _time(what: str, found: dict[str, Usage]) -> Row:
    ours, boto = found["ours"], found["boto3"]
    counted = json.loads(ours.output.splitlines()[-1])
    ratio = ours.wall / boto.wall
    return Row(
        f"{counted['events']:,} events, {counted['pages']} pages, 3 tiers, {what}",
        f"{ours.wall:.1f} s, CPU {ours.cpu:.1f} s, {ratio:.2f} x boto3",
        f"boto3 paginates and discards {int(boto.output):,}",
        f"{boto.wall:.1f} s, CPU {boto.cpu:.1f} s",
        "1.5 x boto3 (goal 1.3 x)",
        ratio <= 1.5,
    )


def _shell(ours: Usage, shell: Usage) -> Row:
    seen = sum(int(line.split()[0]) for line in shell.output.decode().splitlines())
    faster = shell.wall / ours.wall
    return Row(
        "  the same",
        f"{ours.wall:.1f} s",
        f"awslogs | grep | sort | uniq, tier after tier: {seen:,} codes",
        f"{shell.wall:.1f} s, CPU {shell.cpu:.1f} s, {faster:.1f} x ours",
        "5 x faster",
        faster >= 5,
    )


def _memory(what: str, memory: dict[str, Usage], shell: Usage | None = None) -> Row:
    beside, figures = "boto3", _megabytes(memory["boto3"])
    if shell is not None:
        beside, figures = "boto3; awslogs and the shell", f"{figures}; {_megabytes(shell)}"
    held = memory["ours"].pss <= 200 * MEGA
    return Row(
        f"  PSS of all processes, largest RSS; {what}", _megabytes(memory["ours"]), beside, figures, "200 MB", held
    )


def _megabytes(usage: Usage) -> str:
    return f"{usage.pss / MEGA:.0f} MB, {usage.rss / MEGA:.0f} MB"


def main() -> None:
    print(table(measure(Options())))


if __name__ == "__main__":
    main()
