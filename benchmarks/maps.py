# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maps of six tasks against a large table, as the role address_map compares them; the probe's output is made up.

Each size runs in a process of its own, whose memory is what the comparison needs beside Python itself.
"""

from __future__ import annotations

import base64
import gzip
import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from module_utils.cabalmail import containers
from module_utils.cabalmail.address_map import address_map
from module_utils.cabalmail.freshness import Limits
from module_utils.cabalmail.privacy import Masker
from module_utils.cabalmail.probe import parse

from .timing import MEGA, Options, Row, command, timed

TASKS = ("imap", "smtp-in", "smtp-in", "smtp-in", "smtp-out", "smtp-out")
TLD = "harborlight.example"
_NOW = datetime(2026, 11, 24, 22, 0, tzinfo=UTC).timestamp()
_WORDS = {"imap": ("OK", "TEMPFAIL"), "smtp-in": ("RELAY", "REJECT")}


def measure(options: Options) -> list[Row]:
    """One row a size."""
    return [_row(options.addresses, bar_seconds=5.0), _row(options.many_addresses, bar_seconds=None)]


def _row(addresses: int, bar_seconds: float | None) -> Row:
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    argv = [sys.executable, "-m", "benchmarks.maps", str(addresses)]
    said = json.loads(command(argv, environment, folder=Path(__file__).parents[1]).output)
    return Row(
        f"maps of {len(TASKS)} tasks against {addresses:,} addresses",
        f"{said['seconds']:.1f} s CPU, {said['bytes'] / MEGA:,.0f} MB at most",
        "the same output, unpacked and split into lines",
        f"{said['beside']:.1f} s CPU",
        f"{bar_seconds:g} s" if bar_seconds else "-",
        said["seconds"] <= bar_seconds if bar_seconds else None,
    )


def _addresses(count: int) -> Iterator[tuple[str, str]]:
    for number in range(count):
        yield f"user{number}", f"s{number % 997}"


def _text(tier: str, path: str, count: int) -> bytes:
    """A map's text, as generate-config writes it."""
    if path.endswith("mailertable"):
        return f"{TLD}\tsmtp:[imap.cabal.internal]\n.{TLD}\tsmtp:[imap.cabal.internal]\n".encode()
    if path.endswith("virtusertable"):
        return "".join(f"{name}@{sub}.{TLD}\tu{hash(sub) % 50}\n" for name, sub in _addresses(count)).encode()
    known, unknown = _WORDS[tier]
    domains = "".join(f"To:{sub}.{TLD}\t{unknown}\n" for sub in sorted({sub for _, sub in _addresses(count)}))
    rows = "".join(f"To:{name}@{sub}.{TLD}\t{known}\n" for name, sub in _addresses(count))
    return f"{rows}{domains}To:{TLD}\t{unknown}\n".encode()


def _packed(kind: str, path: str, data: bytes) -> Iterator[bytes]:
    yield f"begin {kind} gzip {path}\n".encode()
    yield base64.encodebytes(gzip.compress(data + b"\n\t#status 0\n", 1))
    yield f"end {kind}\n".encode()


def _probe(tier: str, count: int) -> Iterator[bytes]:
    paths = {
        "imap": ("/etc/mail/access", "/etc/mail/virtusertable"),
        "smtp-in": ("/etc/mail/access", "/etc/mail/virtusertable", "/etc/mail/mailertable"),
        "smtp-out": ("/etc/mail/mailertable",),
    }[tier]
    yield f"cabalmail-probe 1\nclock {_NOW:.0f}\n".encode()
    for path in paths:
        yield f"file {_NOW - 240:.0f} 9 {path}\nfile {_NOW - 240:.0f} 9 {path}.db\n".encode()
    for path in paths:
        text = _text(tier, path, count)
        yield from _packed("db", f"{path}.db", text.lower())
        yield from _packed("text", path, text)
    yield f"clock {_NOW:.0f}\ncabalmail-probe end\n".encode()


def _write(folder: Path, count: int) -> list[str]:
    """The run's private directory: the table, and what each task printed. Returns the tasks' ids."""
    with (folder / "addresses.jsonl").open("w") as stream:
        for name, sub in _addresses(count):
            row = {"address": f"{name}@{sub}.{TLD}", "username": name, "subdomain": sub, "tld": TLD}
            row |= {"user": f"u{hash(sub) % 50}", "requested": "2026-11-02T03:04:05Z"}
            stream.write(json.dumps(row) + "\n")
    with (folder / "failed_recipients.jsonl").open("w") as stream:
        for name, sub in _addresses(min(count, 500)):
            record = {"address": f"{name}@{sub}.{TLD}", "tier": "imap", "code": "5.3.0", "seen": "reject"}
            stream.write(json.dumps(record) + "\n")
    made: dict[str, bytes] = {}
    ids = []
    for number, tier in enumerate(TASKS):
        made[tier] = made.get(tier) or b"".join(_probe(tier, count))
        ids.append(f"{number:032x}")
        (folder / f"{ids[-1]}.out").write_bytes(made[tier])
    return ids


def _tasks(folder: Path, ids: list[str], masker: Masker) -> list[dict[str, object]]:
    return [
        containers.container_facts(
            {"task": task, "outcome": "completed"}, tier, parse((folder / f"{task}.out").read_bytes()), _NOW, masker
        )
        for task, tier in zip(ids, TASKS, strict=True)
    ]


def _split(folder: Path, ids: list[str]) -> int:
    """What no comparison can do without: unpack each section, look at each line."""
    lines = 0
    for task in ids:
        for section in parse((folder / f"{task}.out").read_bytes()).sections.values():
            lines += sum(1 for _ in section.read().pairs())
    return lines


def main() -> None:
    """Compare, for so many addresses as the argument says, and print what it took."""
    masker = Masker(bytes(32))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        child = _made_elsewhere(folder, int(sys.argv[1]))
        triage = {"containers": {"tasks": _tasks(folder, child, masker)}, "environment": {"addresses": {}}}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found: dict[str, object] = {}
        usage = timed(lambda: found.update(address_map(triage, folder, masker, Limits())))
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        beside = timed(lambda: _split(folder, child))
        recipients = found["recipients"]
        assert isinstance(recipients, dict)
        wrong = recipients["by_state"]["in_order"] != recipients["checked"]
        if wrong:
            raise SystemExit(f"the comparison is wrong: {recipients['by_state']}")
    print(json.dumps({"seconds": usage.cpu, "bytes": most, "before": before * 1024, "beside": beside.cpu}))


def _made_elsewhere(folder: Path, count: int) -> list[str]:
    """Write the input in a child process, whose memory then does not count."""
    import os

    child = os.fork()
    if child == 0:
        _write(folder, count)
        os._exit(0)
    os.waitpid(child, 0)
    return [f"{number:032x}" for number in range(len(TASKS))]


if __name__ == "__main__":
    main()
