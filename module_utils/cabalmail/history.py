# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runs of one host over time, from the outcome.json of each: which finding was seen before, and what came of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Facts = Mapping[str, Any]

# Reading more would cost a run a noticeable time; a host that is triaged twice a day has them for eight months.
MOST_RUNS = 500
_RUN = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z-[0-9a-f]+\Z")
_LARGEST = 1_000_000
NOT_ATTEMPTED = "not_attempted"


@dataclass(frozen=True, slots=True)
class Row:
    """One run in the index."""

    run: str
    begun: str
    status: str
    severity: str | None
    verdict: str | None
    confidence: str | None
    page: bool
    since: str
    first: str
    first_page: bool
    times: int
    remediation: str


def begun(run: str) -> str:
    """When a run began, by its id: ``2026-11-25 00:18``."""
    found = _RUN.match(run)
    return f"{found[1]}-{found[2]}-{found[3]} {found[4]}:{found[5]}" if found else ""


def earlier(place: Path, but: str = "") -> tuple[list[dict[str, Any]], int]:
    """The newest runs' outcomes, newest first, and how many older ones were left out.

    Args:
        place: the host's folder. A run whose outcome can't be read is passed over.
        but: a run to leave out.
    """
    try:
        names = sorted((entry.name for entry in place.iterdir() if _RUN.match(entry.name)), reverse=True)
    except OSError:
        return [], 0
    names = [name for name in names if name != but]
    return [found for name in names[:MOST_RUNS] if (found := _outcome(place / name))], max(0, len(names) - MOST_RUNS)


def _outcome(folder: Path) -> dict[str, Any] | None:
    path = folder / "outcome.json"
    try:
        if path.stat().st_size > _LARGEST:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("findings"), list):
        return None
    return {**found, "run": folder.name, "page": (folder / "report.html").is_file()}


def fingerprints(outcome: Facts) -> set[str]:
    """Those of a run's findings."""
    return {str(row.get("fingerprint")) for row in outcome["findings"] if isinstance(row, Mapping)}


def seen_before(outcome: Facts, runs: Sequence[Facts]) -> list[dict[str, Any]]:
    """Of each finding of a run that says that something is wrong and was seen before: since when, and what was done.

    Args:
        outcome: the run's own outcome.
        runs: earlier ones, newest first.
    """
    said = []
    for finding in outcome["findings"]:
        known = [run for run in runs if finding["fingerprint"] in fingerprints(run)]
        if finding["severity"] == "info" or not known:
            continue
        said.append(
            {
                "id": finding["id"],
                "fingerprint": finding["fingerprint"],
                "runs": len(known),
                "since": begun(known[-1]["run"]),
                "first": known[-1]["run"],
                "last": known[0]["run"],
                "done": " ".join(_what_was_done(finding["fingerprint"], known, runs)),
            }
        )
    return said


def _what_was_done(fingerprint: str, known: Sequence[Facts], runs: Sequence[Facts]) -> Iterator[str]:
    """Sentences: the last remediation, and whether the finding had gone and came back."""
    acted = next((run for run in known if remediation_of(run) not in ("", NOT_ATTEMPTED)), None)
    if acted is None:
        yield "Nothing was restarted then."
    else:
        yield f"A restart in run {acted['run']} ended as: {remediation_of(acted).replace('_', ' ')}."
    newer = runs[: runs.index(known[0])]
    if newer:
        yield f"It was absent in the {len(newer)} runs since, so it came back."
    elif acted is not None and acted is not known[0]:
        yield "It is still there, so that did not help."


def remediation_of(outcome: Facts) -> str:
    """How the run's remediation ended; empty where its outcome does not say."""
    part = outcome.get("remediation")
    return str(part.get("outcome") or "") if isinstance(part, Mapping) else ""


def index_rows(runs: Sequence[Facts]) -> list[Row]:
    """The index of runs, newest first as they are given."""
    rows = []
    first: dict[str, tuple[Facts, int]] = {}
    for run in reversed(runs):
        own = str(run.get("fingerprint"))
        before, times = first.get(own, (None, 0))
        for fingerprint in fingerprints(run):
            known = first.get(fingerprint, (run, 0))
            first[fingerprint] = (known[0], known[1] + 1)
        done = remediation_of(run)
        rows.append(
            Row(
                run=run["run"],
                begun=begun(run["run"]),
                status=str(run.get("status")),
                severity=run.get("severity"),
                verdict=run.get("verdict"),
                confidence=run.get("confidence"),
                page=run["page"],
                since=begun(before["run"]) if before else "",
                first=before["run"] if before else "",
                first_page=bool(before and before["page"]),
                times=times,
                remediation="" if done == NOT_ATTEMPTED else done.replace("_", " "),
            )
        )
    return rows[::-1]
