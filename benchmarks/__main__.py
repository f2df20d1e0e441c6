# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All benchmarks in one table: ``python -m benchmarks [--quick] [NAME...]``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace

from . import events, exec_sessions, mail_dns, maps, parser, triage
from .timing import BenchmarkError, Options, Row, table

BENCHMARKS: dict[str, Callable[[Options], list[Row]]] = {
    "triage": triage.measure,
    "events": events.measure,
    "parser": parser.measure,
    "exec": exec_sessions.measure,
    "dns": mail_dns.measure,
    "maps": maps.measure,
}


def main(argv: list[str]) -> int:
    """Measure what is asked for, all by default; return the exit status."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    arguments.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default")
    arguments.add_argument("--quick", action="store_true", help="small sizes: shows that it works, not how fast")
    arguments.add_argument("--runs", type=int, help=f"of each command (default {Options.runs}); medians are shown")
    arguments.add_argument("--events", type=int, help=f"log events to read and count (default {Options.events:,})")
    wanted = arguments.parse_args(argv)
    if unknown := set(wanted.names) - set(BENCHMARKS):
        arguments.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    options = Options.quick() if wanted.quick else Options()
    if wanted.runs is not None:
        options = replace(options, runs=max(1, wanted.runs))
    if wanted.events is not None:
        options = replace(options, events=max(3, wanted.events))
    rows: list[Row] = []
    status = 0
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} at the start")
    for name in wanted.names or BENCHMARKS:
        print(f"measuring {name} ...", file=sys.stderr)
        try:
            found = BENCHMARKS[name](options)
            print(table(found), file=sys.stderr)
            rows += found
        except BenchmarkError as error:
            status = 1
            print(f"{name}: {error}", file=sys.stderr)
    print(table(rows))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
