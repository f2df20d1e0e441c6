# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets and maps of 64-bit digests in about ten bytes an entry, where Python's own take eighty.

A digest is what `hash()` gives for a text: SipHash with a key of the process, so nobody outside can make two texts meet
(of a million, two meet by chance once in 30 million runs). Digests have no meaning outside the process.
"""

from __future__ import annotations

from struct import Struct

_BUCKETS = 1 << 12
_MASK = _BUCKETS - 1
_DIGEST = Struct("<q").pack
_ENTRY = Struct("<qQ").pack
_WIDTH = 8


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
    """A map from digests to whole numbers below 2**64. The first value put for a digest stays."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = [None] * _BUCKETS

    def put(self, digest: int, value: int) -> bool:
        """Store a value; False (and nothing stored) when the digest has one."""
        entry = _ENTRY(digest, value)
        index = digest & _MASK
        bucket = self._buckets[index]
        if bucket is None:
            self._buckets[index] = bytearray(entry)
            return True
        if _find(bucket, entry[:_WIDTH], 2 * _WIDTH) >= 0:
            return False
        bucket += entry
        return True

    def get(self, digest: int) -> int | None:
        """The value of a digest, or None."""
        bucket = self._buckets[digest & _MASK]
        if bucket is None:
            return None
        at = _find(bucket, _DIGEST(digest), 2 * _WIDTH)
        return None if at < 0 else int.from_bytes(bucket[at + _WIDTH : at + 2 * _WIDTH], "little")


def _find(bucket: bytearray, packed: bytes, stride: int) -> int:
    """Where an entry starts, or -1. A hit that is not at the start of an entry is a coincidence of two neighbours."""
    at = bucket.find(packed)
    while at >= 0 and at % stride:
        at = bucket.find(packed, at + 1)
    return at
