# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What opendkim in the smtp-out tasks would sign and with which key: its tables against cabal-addresses.

Read from what the probe brought back; of the key only its public numbers. Domains are shown, addresses never.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..mail_dns import dkim
from .probe import Probe, parse

Facts = Mapping[str, Any]

KEY_TABLE, SIGNING_TABLE = "/etc/opendkim/KeyTable", "/etc/opendkim/SigningTable"
KEY = "/etc/opendkim/keys/cabal"
#: Domains that are named; the rest is counted.
SHOWN = 20

TABLES_BLANK: dict[str, Any] = {"tasks": [], "missing": None, "foreign": [], "key_sha256": None, "key_record": None}


@dataclass(frozen=True)
class Tables:
    """A task's tables. C(keys): name of a key to the domain that it signs for; C(signed): sender domain to its key."""

    keys: Mapping[str, str]
    signed: Mapping[str, str]


def read_tables(probe: Probe) -> Tables | None:
    """KeyTable and SigningTable of a task, None where one of them did not arrive whole."""
    texts = []
    for path in (KEY_TABLE, SIGNING_TABLE):
        content = probe.section("table", path)
        if content is None or not content.good:
            return None
        texts.append(content.data.decode("utf-8", "replace"))
    keys = {row[0]: row[1].partition(":")[0].lower() for row in _rows(texts[0])}
    signed = {row[0].lower().rpartition("@")[2]: row[1] for row in _rows(texts[1])}
    return Tables(keys, signed)


def _rows(text: str) -> list[list[str]]:
    rows = (line.split() for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [row for row in rows if len(row) >= 2]


def read_key(probe: Probe) -> tuple[int, int] | None:
    """Modulus and exponent of the key that a task signs with, None where they could not be read."""
    content = probe.section("key", KEY)
    found = re.fullmatch(rb"([0-9a-f]{2,4096}) ([0-9a-f]{2,64})\s*", content.data) if content and content.good else None
    return (int(found[1], 16), int(found[2], 16)) if found else None


def expected_domains(work_dir: Path) -> dict[str, str] | None:
    """The domains that opendkim should sign for, each with when its first address was asked for; None when not read.

    Apexes get no line, suspended addresses stay in the tables, and rows that the loop's script skips have none.
    """
    try:
        stream = (work_dir / "addresses.jsonl").open(encoding="utf-8")
    except OSError:
        return None
    domains: dict[str, str] = {}
    with stream:
        for line in stream:
            row = json.loads(line)
            if row.get("subdomain") and row.get("tld") and row.get("username"):
                name = f"{row['subdomain']}.{row['tld']}".lower()
                requested = row.get("requested") or ""
                domains[name] = min(requested, domains.get(name, requested))
    return domains


def signing_tables(tasks: Iterable[Facts], work_dir: Path, expected: Mapping[str, str] | None) -> dict[str, Any]:
    """The part C(tables): each smtp-out task's tables against the table of addresses, and the key.

    tasks: entries of the section C(containers) of that tier.
    """
    rows, reasons, numbers = [], [], []
    for entry in tasks:
        try:
            probe = parse((work_dir / f"{entry.get('task')}.out").read_bytes())
        except OSError:
            reasons.append(f"opendkim's tables of task {entry.get('task')} could not be read.")
            continue
        tables = read_tables(probe)
        numbers.append(read_key(probe))
        if tables is None:
            reasons.append(f"opendkim's tables of task {entry.get('task')} could not be read.")
        else:
            rows.append(_task_row(entry, tables, expected))
    if expected is None and rows:
        reasons.append("opendkim's tables: the table cabal-addresses was not read, so nothing can be missing in them.")
    status = "partial" if reasons else "complete"
    if not rows:
        status, reasons = "unavailable", reasons or ["opendkim's tables: no smtp-out task was looked into."]
    return {
        "status": status,
        "reasons": reasons,
        "tasks": rows,
        "missing": _union(rows, "missing") if rows and expected is not None else None,
        "foreign": [found for row in rows for found in row["foreign"]],
        **_key_facts(numbers),
    }


def _task_row(entry: Facts, tables: Tables, expected: Mapping[str, str] | None) -> dict[str, Any]:
    built = str(((entry.get("files") or {}).get(SIGNING_TABLE) or {}).get("mtime") or "")
    missing = surplus = None
    if expected is not None:
        # What was asked for after the table was built waits for the next build, by design.
        missing = sorted(name for name, when in expected.items() if name not in tables.signed and when < built)
        surplus = len(set(tables.signed) - set(expected))
    foreign = sorted(
        (name, tables.keys[key]) for name, key in tables.signed.items() if tables.keys.get(key, name) != name
    )
    return {
        "task": entry.get("task"),
        "zone": entry.get("zone"),
        "built": built or None,
        "domains": len(tables.signed),
        "missing": missing[:SHOWN] if missing is not None else None,
        "missing_total": len(missing) if missing is not None else None,
        "surplus_total": surplus,
        "without_key": sorted(name for name, key in tables.signed.items() if key not in tables.keys)[:SHOWN],
        "foreign": [{"sender_domain": name, "signed_by": domain, "messages": None} for name, domain in foreign[:SHOWN]],
    }


def _union(rows: Sequence[Facts], name: str) -> list[str]:
    return sorted({domain for row in rows for domain in row[name] or []})[:SHOWN]


def _key_facts(numbers: Sequence[tuple[int, int] | None]) -> dict[str, Any]:
    """The key, where every task that was read has the same one."""
    known = set(numbers)
    if len(known) != 1 or None in known:
        return {"key_sha256": None, "key_record": None}
    modulus, exponent = next(number for number in known if number is not None)
    return {"key_sha256": dkim.rsa_digest(modulus, exponent), "key_record": dkim.rsa_record(modulus, exponent)}
