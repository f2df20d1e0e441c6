#!/usr/local/bin/python3 -S
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""generate-config: scan the table, write the text maps atomically, then build each .db with makemap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import maps
else:
    import maps  # beside this file in the task

ROOT = os.environ.get("TASK_ROOT", "")
TABLE = "cabal-addresses"


def say(text: str) -> None:
    print(f"[generate-config] {text}", flush=True)


def text_of(item: dict[str, Any], name: str) -> str:
    return str(item.get(name, {}).get("S", ""))


def rows() -> list[maps.Row]:
    """The table's rows. Raises CalledProcessError with the status of aws, whose error text stands on standard error."""
    argv = ["aws", "dynamodb", "scan", "--table-name", TABLE, "--consistent-read", "--output", "json"]
    answer = subprocess.run(argv, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL).stdout
    items = json.loads(answer)["Items"]
    return [maps.Row(*(text_of(item, name) for name in ("username", "subdomain", "tld", "user"))) for item in items]


def date_by_own_clock(path: str) -> None:
    """The kernel dates files by the machine's clock, and the task's own may be declared to differ."""
    with open(f"{ROOT}/run/clock-skew", encoding="ascii") as file:
        skew = float(file.read() or 0)
    if skew:
        os.utime(f"{ROOT}{path}", (time.time() + skew,) * 2)


def write(path: str, text: str) -> None:
    """Readers see the old file or the new one, never half of it."""
    with open(f"{ROOT}{path}.tmp", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{ROOT}{path}.tmp", f"{ROOT}{path}")
    date_by_own_clock(path)
    print(f"  Generated {path}", flush=True)


def make_database(path: str) -> None:
    with open(f"{ROOT}{path}", "rb") as text:
        subprocess.run(["makemap", "hash", f"{ROOT}{path}"], check=True, stdin=text)
    date_by_own_clock(f"{path}.db")


def generate(tier: str) -> None:
    say(f"Scanning DynamoDB {TABLE} table...")
    table = rows()
    say(f"Generating config files for tier={tier}...")
    for row in table:
        if not maps.usable(row):
            print(f"  WARNING: skipping address with invalid username {row.username!r}", flush=True)
    for path, text in maps.render(tier, table).items():
        write(path, text)
    for path in maps.DATABASES.get(tier, ()):
        make_database(path)
    say("Done.")


def main() -> int:
    try:
        generate(os.environ["TIER"])
    except subprocess.CalledProcessError as error:
        return error.returncode
    except OSError as error:
        print(f"/usr/local/bin/generate-config.sh: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
