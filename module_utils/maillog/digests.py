# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets and maps of 64-bit digests in about ten bytes an entry, where Python's own take eighty.

A digest is what `hash()` gives for a text: SipHash with a key of the process, so nobody outside can make two texts meet
(of a million, two meet by chance once in 30 million runs). Digests have no meaning outside the process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from struct import Struct

_BUCKETS = 1 << 12
_MASK = _BUCKETS - 1
_DIGEST = Struct("<q").pack
_ENTRY = Struct("<qQ").pack
_ENTRIES = Struct("<qQ").iter_unpack
_WIDTH = 8
_MARK, _OTHER = (1 << 16) - 1, (1 << 24) - 1


class DigestSet:
    """A set of digests. A bucket is its digests end to end; finding one in it is a search of the C library."""

    __slots__ = ("_buckets", "size")

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = [None] * _BUCKETS
        self.size = 0

    def add(self, digest: int) -> bool:
        """Add a digest; True when it was not there."""
        packed = _DIGEST(digest)
        index = digest & _MASK
        bucket = self._buckets[index]
        if bucket is None:
            self._buckets[index] = bytearray(packed)
            self.size += 1
            return True
        at = bucket.find(packed)
        if at >= 0 and (at % _WIDTH == 0 or _find(bucket, packed, _WIDTH) >= 0):
            return False
        bucket += packed
        self.size += 1
        return True

    def __contains__(self, digest: int) -> bool:
        bucket = self._buckets[digest & _MASK]
        return bucket is not None and _find(bucket, _DIGEST(digest), _WIDTH) >= 0

    def __len__(self) -> int:
        return self.size


class DigestMap:
    """A map from digests to whole numbers below 2**64."""

    __slots__ = ("_buckets", "size")

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = [None] * _BUCKETS
        self.size = 0

    def put(self, digest: int, value: int) -> bool:
        """Store a value; False (and nothing stored) when the digest has one."""
        entry = _ENTRY(digest, value)
        index = digest & _MASK
        bucket = self._buckets[index]
        if bucket is None:
            self._buckets[index] = bytearray(entry)
        elif _find(bucket, entry[:_WIDTH], 2 * _WIDTH) >= 0:
            return False
        else:
            bucket += entry
        self.size += 1
        return True

    def replace(self, digest: int, value: int) -> None:
        """Store another value for a digest that has one."""
        bucket = self._buckets[digest & _MASK] or bytearray()
        at = _find(bucket, _DIGEST(digest), 2 * _WIDTH)
        if at < 0:
            raise KeyError(digest)
        bucket[at : at + 2 * _WIDTH] = _ENTRY(digest, value)

    def get(self, digest: int) -> int | None:
        """The value of a digest, or None."""
        bucket = self._buckets[digest & _MASK]
        if bucket is None:
            return None
        at = _find(bucket, _DIGEST(digest), 2 * _WIDTH)
        return None if at < 0 else int.from_bytes(bucket[at + _WIDTH : at + 2 * _WIDTH], "little")

    def items(self) -> Iterator[tuple[int, int]]:
        """Every digest with its value, in no order that means anything."""
        for bucket in filter(None, self._buckets):
            yield from _ENTRIES(bucket)

    def __len__(self) -> int:
        return self.size


class Marked:
    """Digests, each with the marks that it was given, of two kinds, and an amount for each mark of the first kind.

    Mostly there is one mark of a kind: it stands by the digest, others apart. A mark is a whole number above 0 (below
    2**16 of the first kind and 2**24 of the second); 0 is none. Amounts go up to 2**24.
    """

    __slots__ = ("_first", "_more", "_more_amounts")

    def __init__(self) -> None:
        self._first = DigestMap()
        self._more = DigestSet()
        self._more_amounts: Counter[tuple[int, int]] = Counter()

    def add(self, digest: int, mark: int, other: int = 0, amount: int = 0) -> tuple[bool, bool]:
        """Give a digest two marks, and an amount to the first of them; whether it had not that of each kind."""
        first = self._first
        if first.put(digest, amount << 40 | other << 16 | mark):
            return True, other > 0
        held = first.get(digest) or 0
        known, known_other = held & _MARK, held >> 16 & _OTHER
        fresh = mark != known and self._more.add(hash((digest, mark)))
        if known_other:
            fresh_other = other not in (0, known_other) and self._more.add(hash((digest, other << 16)))
        else:
            known_other, fresh_other = other, other > 0
        if amount and mark != known:
            self._more_amounts[digest, mark] += amount
            amount = 0
        if amount or fresh_other:
            total = min((held >> 40) + amount, _OTHER)
            first.replace(digest, total << 40 | known_other << 16 | known)
        return fresh, fresh_other

    def amounts(self) -> Iterator[tuple[int, int, int]]:
        """Digest, mark of the first kind and amount, of all that have one."""
        for digest, held in self._first.items():
            if held >> 40:
                yield digest, held & _MARK, held >> 40
        for (digest, mark), amount in self._more_amounts.items():
            yield digest, mark, amount

    def __contains__(self, digest: int) -> bool:
        return self._first.get(digest) is not None

    def __len__(self) -> int:
        return self._first.size


def _find(bucket: bytearray, packed: bytes, stride: int) -> int:
    """Where an entry starts, or -1. A hit that is not at the start of an entry is a coincidence of two neighbours."""
    at = bucket.find(packed)
    while at >= 0 and at % stride:
        at = bucket.find(packed, at + 1)
    return at
