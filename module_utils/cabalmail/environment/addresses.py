# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of addresses: streamed to a file in the run's private directory, summarised without addresses."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

FILE_NAME = "addresses.jsonl"
MAX_ODD_ROWS = 50

ADDRESSES_BLANK: dict[str, Any] = {
    "rows": None,
    "suspended": None,
    "apexes": None,
    "subdomains": None,
    "domains": [],
    "odd_rows": [],
    "odd_rows_total": None,
    "newest_request": None,
}
# What the loop's script skips: a user name that is empty or has white space in it.
_BAD_NAME = re.compile(r"\s")


def plain_row(item: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table, from DynamoDB's typed attributes; attributes that are absent are None."""

    def text(name: str) -> str | None:
        value = (item.get(name) or {}).get("S")
        return None if value is None else str(value)

    return {
        "address": text("address") or "",
        "user": text("user"),
        "username": text("username"),
        "subdomain": text("subdomain") or None,
        "tld": text("tld"),
        "suspended": (item.get("suspended") or {}).get("BOOL") is True,
        "requested": _time(text("RequestTime")),
    }


def _time(value: str | None) -> str | None:
    """RequestTime is ISO 8601; only the zone's spelling is made uniform, an odd value is kept as unknown."""
    match = re.match(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|\+00:?00)?$", value or "")
    return f"{match[1]}T{match[2]}Z" if match else None


class AddressWriter:
    """Writes rows one by one and keeps only counts, so that memory grows with distinct names, not with rows.

    The file gets its name when C(finish) is called: who finds it may rely on it being the whole table.
    work_dir: the run's private directory; None writes no file. mask: masks an address for the facts.
    """

    def __init__(self, work_dir: str | None, mask: Callable[[str], str]) -> None:
        self._mask = mask
        self._target = Path(work_dir) / FILE_NAME if work_dir else None
        self._stream: TextIO | None = None
        self._rows = self._suspended = self._apexes = self._odd_total = 0
        self._subdomains: set[bytes] = set()
        self._keys: set[bytes] = set()
        self._domains: Counter[str] = Counter()
        self._odd: list[dict[str, Any]] = []
        self._newest: str | None = None

    def __enter__(self) -> AddressWriter:
        if self._target:
            draft = self._draft(self._target)
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._stream = os.fdopen(handle, "w", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream and self._target:
            self._stream.close()
            with contextlib.suppress(FileNotFoundError):
                self._draft(self._target).unlink()

    def add(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Take a page of items as DynamoDB's low-level interface gives them."""
        for item in items:
            row = plain_row(item)
            if self._stream:
                self._stream.write(json.dumps(row, separators=(",", ":")) + "\n")
            self._count(row)

    def finish(self) -> dict[str, Any]:
        """Give the file its name and return the summary."""
        if self._stream and self._target:
            self._stream.flush()
            self._draft(self._target).replace(self._target)
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """What is known of the table so far."""
        return {
            "rows": self._rows,
            "suspended": self._suspended,
            "apexes": self._apexes,
            "subdomains": len(self._subdomains),
            "domains": sorted(self._domains),
            "odd_rows": list(self._odd),
            "odd_rows_total": self._odd_total,
            "newest_request": self._newest,
        }

    def _count(self, row: Mapping[str, Any]) -> None:
        self._rows += 1
        self._suspended += row["suspended"]
        tld = str(row["tld"] or "").lower()
        if tld:
            self._domains[tld] += 1
        if row["subdomain"]:
            self._subdomains.add(_digest(f"{row['subdomain']}.{tld}"))
        else:
            self._apexes += 1
        if row["requested"] and row["requested"] > (self._newest or ""):
            self._newest = row["requested"]
        key = _digest(row["address"])
        problem = odd(row, key in self._keys)
        self._keys.add(key)
        if problem:
            self._odd_total += 1
            if len(self._odd) < MAX_ODD_ROWS:
                self._odd.append({"address": self._mask(row["address"]), "problem": problem})

    @staticmethod
    def _draft(target: Path) -> Path:
        return target.with_name(target.name + ".part")


def odd(row: Mapping[str, Any], seen: bool) -> str | None:
    """Name what makes the loop's script skip this row or makemap fail on it, None for a row in order.

    seen: another row has the same address but for upper and lower case.
    """
    checks: tuple[tuple[bool, str], ...] = (
        (not row["username"], "no user name: the row is skipped"),
        (bool(_BAD_NAME.search(row["username"] or "")), "white space in the user name: the row is skipped"),
        (not row["tld"], "no domain (tld)"),
        (not (row["user"] or "").strip(), "no user: makemap fails on this row (no RHS)"),
        (seen, "differs from another row only in upper and lower case: makemap fails (duplicate key)"),
        (
            not row["subdomain"] and "/" in (row["user"] or ""),
            "several users on an address without subdomain: no alias",
        ),
    )
    return next((problem for found, problem in checks if found), None)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.lower().encode("utf-8", "surrogatepass"), digest_size=8).digest()
