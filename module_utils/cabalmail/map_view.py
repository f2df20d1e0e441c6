# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One map of one task against the table: what it lacks, what it has too much, how old it is.

One task's maps are held at a time, and of each no more is kept than counts and the recipients that failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .address_table import AddressTable
from .freshness import REBUILT, Limits, epoch, minutes
from .probe import Content, Probe, parse

Facts = Mapping[str, Any]

ACCESS, VIRTUSERTABLE, ALIASES = "/etc/mail/access", "/etc/mail/virtusertable", "/etc/aliases"


@dataclass
class MapView:
    """What one map of one task says, as far as the questions of this triage go."""

    tier: str
    task: str
    path: str
    stale: bool | None
    built: float | None
    known: bool = False
    entries: int | None = None
    missing: int | None = None
    lag: int | None = None
    surplus: int | None = None
    wrong_user: int | None = None
    #: rows of the table that makemap left out or let another row stand for
    lost: int | None = None
    domains_missing: int | None = None
    differs: bool | None = None
    source: str | None = None
    #: value by digest, of the recipients that failed only
    found: dict[int, bytes] = field(default_factory=dict)


def compare_map(
    view: MapView, content: Content, table: AddressTable | None, wanted: frozenset[int], limits: Limits
) -> int:
    """Fill in the view from a map's content; returns a checksum of all pairs that their order does not change."""
    index = table.index if table else {}
    users = table.users if table else []
    bad = table.bad if table else {}
    seen = bytearray(len(users))
    named: set[bytes] = set()
    entries = surplus = wrong = checksum = 0
    check_user = view.path == VIRTUSERTABLE
    for key, value in content.pairs():
        key = key.lower()
        entries += 1
        checksum += hash((key, value))
        address = key[3:] if key[:3] == b"to:" else key
        if b"@" not in address or address[:1] == b"@":
            named.add(address)
            continue
        mark = hash(address)
        if mark in wanted:
            view.found[mark] = value
        position = index.get(mark)
        if position is None:
            surplus += 1
        else:
            seen[position] = 1
            wrong += check_user and value != users[position] and not (bad and mark in bad)
    view.known, view.entries = True, entries
    if table:
        _count_missing(view, table, seen, named, limits)
        view.surplus = surplus if view.path in (ACCESS, VIRTUSERTABLE) else None
        view.wrong_user = wrong if check_user else None
    return checksum


def _count_missing(view: MapView, table: AddressTable, seen: bytearray, named: set[bytes], limits: Limits) -> None:
    if view.path in (ACCESS, VIRTUSERTABLE):
        lag = total = 0
        lost = _lost(view, table, seen)
        for position in (place for place, present in enumerate(seen) if not present and place not in lost):
            total += 1
            lag += too_new(table.requested[position], view, limits)
        if view.stale:
            lag = 0  # a loop that had kept its interval would have built the map since
        view.missing, view.lag = total - lag, lag
    if view.path == ACCESS:
        view.domains_missing = len((table.domains | table.tlds) - named)
    elif view.path.endswith("mailertable"):
        view.domains_missing = len((table.tlds | {b"." + tld for tld in table.tlds}) - named)
    elif view.path == ALIASES:
        view.missing, view.lag = len(table.aliases.keys() - named), 0


def _lost(view: MapView, table: AddressTable, seen: bytearray) -> set[int]:
    """Rows that makemap refused: their absence is no sign of age. Sets ``view.lost``, duplicates included."""
    refused = {"duplicate_key": 0, "empty_user": 0}
    absent = set()
    for mark, problem in table.bad.items():
        position = table.index.get(mark)
        if position is None or problem not in refused:
            continue
        if problem == "duplicate_key" or not seen[position]:
            refused[problem] += 1
        if not seen[position]:
            absent.add(position)
    # An access map needs no user.
    view.lost = refused["duplicate_key"] + (refused["empty_user"] if view.path == VIRTUSERTABLE else 0)
    return absent if view.path == VIRTUSERTABLE else set()


def too_new(requested: float, view: MapView, limits: Limits) -> bool:
    """Whether the row came after the scan that this map was built from."""
    return bool(requested) and view.built is not None and requested > view.built - limits.slack_seconds


def checksum_of(content: Content, path: str) -> int:
    """The same checksum over a map's text."""
    if path == ALIASES:
        raise ValueError("aliases are not written as a map is")
    return sum(hash((key.lower(), value)) for key, value in content.pairs())


def read_task(
    entry: Facts, raw: bytes, table: AddressTable | None, wanted: frozenset[int], limits: Limits
) -> list[MapView]:
    """The views of all maps of one task."""
    probe = parse(raw)
    views = []
    tier = str(entry.get("tier"))
    for path in (*REBUILT.get(tier, ()), *((ALIASES,) if tier == "imap" else ())):
        files = entry.get("files") or {}
        age = (files.get(f"{path}.db") or {}).get("age_seconds")
        built = epoch((files.get(f"{path}.db") or {}).get("mtime"))
        stale = None if age is None or path == ALIASES else age > limits.stale_after_seconds
        view = MapView(tier, str(entry.get("task")), path, stale, built)
        text_age = (files.get(path) or {}).get("age_seconds")
        # Written after the .db, the text is not what sendmail reads: makemap has failed since, or is under way.
        ahead = age is not None and text_age is not None and text_age < age
        _read_map(view, probe, table, wanted, limits, text_stands=not ahead)
        views.append(view)
    return views


def _read_map(
    view: MapView,
    probe: Probe,
    table: AddressTable | None,
    wanted: frozenset[int],
    limits: Limits,
    *,
    text_stands: bool,
) -> None:
    """Compare the map's .db, else its text, where that stands for it; where both are there, whether they differ.

    One at a time is unpacked.
    """
    dump = probe.section("db", f"{view.path}.db")
    checksum = None
    if dump and dump.good:
        checksum = compare_map(view, dump, table, wanted, limits)
        view.source = "makemap"
    del dump
    text = probe.section("text", view.path) if view.path != ALIASES else None
    if text is None or not text.good:
        return
    if checksum is None and not text_stands:
        return
    if checksum is None:
        compare_map(view, text, table, wanted, limits)
        view.source = "text"
    else:
        view.differs = checksum != checksum_of(text, view.path)


def map_row(view: MapView, entry: Facts, limits: Limits) -> dict[str, Any]:
    """A view as an entry of ``address_map.tasks``."""
    files = entry.get("files") or {}
    db, text = files.get(f"{view.path}.db") or {}, files.get(view.path) or {}
    sendmail_age = entry.get("sendmail_age_seconds")
    row = {
        "tier": view.tier,
        "task": view.task,
        "map": view.path,
        "source": view.source,
        "entries": view.entries,
        "missing": view.missing,
        "lag": view.lag,
        "surplus": view.surplus,
        "wrong_user": view.wrong_user,
        "lost_to_makemap": view.lost,
        "domains_missing": view.domains_missing,
        "db_differs_from_text": view.differs,
        "db_mtime": db.get("mtime"),
        "text_mtime": text.get("mtime"),
        "age_seconds": db.get("age_seconds"),
        "text_age_seconds": text.get("age_seconds"),
        "stale": view.stale,
        # sendmail reads its domain lists only when it starts; the loop ends it after each build.
        "sendmail_older_than_map": None
        if sendmail_age is None or db.get("age_seconds") is None
        else sendmail_age > db["age_seconds"] + limits.slack_seconds,
    }
    return {**row, "why": _why(row, limits)}


def _why(row: Facts, limits: Limits) -> str:
    if row["age_seconds"] is None:
        return "its .db was not seen"
    age, text_age = row["age_seconds"], row["text_age_seconds"]
    if row["stale"]:
        if text_age is not None and text_age <= limits.stale_after_seconds:
            return (
                f"the text is {minutes(text_age)} old and its .db {minutes(age)}: "
                "generate-config runs and makemap does not finish"
            )
        return f"the .db is {minutes(age)} old, a healthy one at most {minutes(limits.stale_after_seconds)}"
    if row["missing"] or row["wrong_user"]:
        return f"built {minutes(age)} ago and yet not what the table says"
    if row["lost_to_makemap"]:
        return f"{row['lost_to_makemap']} rows that makemap refuses are not in it"
    if row["sendmail_older_than_map"]:
        return "sendmail was not restarted after this map was built"
    if row["lag"]:
        return f"{row['lag']} newer than this map: by design they wait for the next build"
    return ""
