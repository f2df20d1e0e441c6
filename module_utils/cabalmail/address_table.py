# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table cabal-addresses as the containers write it into their maps.

What generate-config.sh makes of a row is made again here, so that a difference is a fact about a map and not about the
comparison. A million rows fit: an address is kept as a 64-bit digest.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .freshness import epoch

Facts = Mapping[str, Any]


def digest(address: bytes) -> int:
    """64 bits that stand for an address in memory; keys are compared as makemap folds them."""
    return hash(address.lower())


@dataclass
class AddressTable:
    """The rows of cabal-addresses as the maps should show them."""

    index: dict[int, int] = field(default_factory=dict)
    users: list[bytes] = field(default_factory=list)
    requested: array[float] = field(default_factory=lambda: array("d"))
    suspended: bytearray = field(default_factory=bytearray)
    exact: array[int] = field(default_factory=lambda: array("q"))
    domains: set[bytes] = field(default_factory=set)
    tlds: set[bytes] = field(default_factory=set)
    #: name of a group alias to its users
    aliases: dict[bytes, tuple[str, ...]] = field(default_factory=dict)
    #: digest to what keeps the row out of the maps
    bad: dict[int, str] = field(default_factory=dict)
    bad_examples: list[tuple[str, str]] = field(default_factory=list)
    #: when the first of the rows was made that makemap can't have beside another; no pass has come to its end since
    clash: float | None = None
    rows: int = 0

    def add(self, row: Facts, examples: int = 20) -> None:
        """Take in a row of addresses.jsonl."""
        self.rows += 1
        tld = str(row.get("tld") or "").encode()
        subdomain = str(row.get("subdomain") or "").encode()
        username = str(row.get("username") or "")
        domain = subdomain + b"." + tld if subdomain else tld
        if not username or any(character.isspace() for character in username):
            name = str(row.get("address") or username)
            self._problem(name, digest(name.encode()), "invalid_username", examples)
            return
        address = username.encode() + b"@" + domain
        key, exact = digest(address), hash(address)
        self.domains.add(domain.lower())
        self.tlds.add(tld.lower())
        known = self.index.get(key)
        if known is not None and self.exact[known] != exact:
            self._problem(address.decode(), key, "duplicate_key", examples)
            self._clash(self.requested[known], epoch(row.get("requested")))
        user = str(row.get("user") or "")
        if not user.strip():
            self._problem(address.decode(), key, "empty_user", examples)
        # White space around it is no part of a name: makemap skips it in front, sendmail behind.
        user = user.strip()
        names = user.split("/")
        if subdomain and len(names) > 1:
            user = "_".join(sorted(names))
            self.aliases[user.lower().encode()] = tuple(sorted(names))
        values = (user.encode(), epoch(row.get("requested")) or 0.0, bool(row.get("suspended")))
        if known is None:
            self.index[key] = len(self.users)
            self.users.append(_shared(values[0]))
            self.requested.append(values[1])
            self.suspended.append(values[2])
            self.exact.append(exact)
        else:
            self.users[known], self.requested[known], self.suspended[known] = values

    def _problem(self, address: str, key: int, problem: str, examples: int) -> None:
        self.bad[key] = problem
        if len(self.bad_examples) < examples:
            self.bad_examples.append((address, problem))

    def _clash(self, one: float, other: float | None) -> None:
        if one and other:
            made = max(one, other)
            self.clash = made if self.clash is None else min(made, self.clash)

    def people_of(self, position: int) -> Sequence[str]:
        """OS users that a row delivers to; an apex row with a slash delivers to a user of that very name."""
        user = self.users[position]
        return self.aliases.get(user.lower()) or (user.decode("utf-8", "replace"),)


_NAMES: dict[bytes, bytes] = {}


def _shared(name: bytes) -> bytes:
    """One object for a user's name, however many addresses the user has."""
    return _NAMES.setdefault(name, name)


def read_table(path: Path) -> AddressTable | None:
    """The table from addresses.jsonl; None when there is no such file (the scan was denied or did not end)."""
    table = AddressTable()
    _NAMES.clear()
    try:
        for row in json_lines(path):
            table.add(row)
    except FileNotFoundError:
        return None
    return table


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as stream:
        for line in stream:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row
