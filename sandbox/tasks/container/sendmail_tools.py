#!/usr/local/bin/python3 -IS
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-in for sendmail's makemap, newaliases and mailq where Debian's package can't be had.

Keeps what the project relies on: ``makemap hash FILE < text`` folds keys to lower case, reports duplicate keys and
empty right-hand sides by line, writes the other lines and ends with status 65; ``makemap -u hash FILE`` prints ``key
TAB value``; the .db file changes only when makemap runs. The .db is a text file, not a Berkeley database. The name
it is called by decides which program it is.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

DATA_ERROR = 65
CANNOT_CREATE = 73
ROOT = os.environ.get("TASK_ROOT", "")
QUEUE = Path(f"{ROOT}/var/spool/mqueue")
MAGIC = "stand-in map\n"


def parse(name: str, lines: list[str]) -> tuple[dict[str, str], list[str]]:
    """The map, and makemap's complaints in its own words."""
    found: dict[str, str] = {}
    complaints = []
    for number, line in enumerate(lines, 1):
        fields = line.split(None, 1)
        if not fields or line.startswith("#"):
            continue
        key = fields[0].lower()
        if len(fields) == 1:
            complaints.append(f"makemap: {name}: line {number}: no RHS for LHS {fields[0]}")
        elif key in found:
            complaints.append(f"makemap: {name}: line {number}: key {key}: duplicate key")
        else:
            found[key] = fields[1].strip()
    return found, complaints


def write(path: str, found: dict[str, str]) -> bool:
    try:
        Path(f"{path}.db").write_text(MAGIC + "".join(f"{key}\t{value}\n" for key, value in found.items()))
    except OSError as error:
        print(f"makemap: error opening type hash map {path}: {error.strerror}", file=sys.stderr)
        return False
    return True


def makemap(arguments: list[str]) -> int:
    path = arguments[-1].removesuffix(".db")
    if "-u" in arguments:
        sys.stdout.write(Path(f"{path}.db").read_text().removeprefix(MAGIC))
        return 0
    found, complaints = parse(path, sys.stdin.read().splitlines())
    if not write(path, found):
        return CANNOT_CREATE
    print("".join(f"{line}\n" for line in complaints), end="", file=sys.stderr)
    return DATA_ERROR if complaints else 0


def newaliases(_arguments: list[str]) -> int:
    path = f"{ROOT}/etc/aliases"
    lines = [line.replace(":", "\t", 1) for line in Path(path).read_text().splitlines()]
    found, _ = parse(path, lines)
    return 0 if write(path, found) else CANNOT_CREATE


def queued(path: Path) -> str:
    """One message as ``mailq`` shows it, read from its control file."""
    sender, reason, recipients, moment = "", "", [], 0
    for line in path.read_text().splitlines():
        kind, rest = line[:1], line[1:]
        if kind == "T":
            moment = int(rest)
        elif kind == "S":
            sender = rest
        elif kind == "M":
            reason = f"                 ({rest})\n"
        elif kind == "R":
            recipients.append(f"\t\t\t\t\t {rest.rpartition(':')[2]}\n")
    data = path.with_name("df" + path.name[2:])
    when = time.strftime("%a %b %e %H:%M", time.gmtime(moment))
    return f"{path.name[2:]} {data.stat().st_size:8d} {when} {sender}\n{reason}{''.join(recipients)}"


def mailq(_arguments: list[str]) -> int:
    files = sorted(QUEUE.glob("qf*"))
    if not files:
        print(f"{QUEUE} is empty\n\t\tTotal requests: 0")
        return 0
    print(f"\t\t{QUEUE} ({len(files)} request{'s' if len(files) > 1 else ''})")
    print("-----Q-ID----- --Size-- -----Q-Time----- ------------Sender/Recipient-----------")
    for path in files:
        print(queued(path), end="")
    print(f"\t\tTotal requests: {len(files)}")
    return 0


if __name__ == "__main__":
    program = {"makemap": makemap, "newaliases": newaliases, "mailq": mailq}[Path(sys.argv[0]).name]
    sys.exit(program(sys.argv[1:]))
