# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``roles/container_evidence/files/probe.sh`` printed, taken apart.

The output may be cut anywhere, garbled, or come from a container that lacks half the tools: nothing here raises on it.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

VERSION = 1
#: More than any map of ours; a container that sends more is cut here and reported as partial.
SECTION_LIMIT_BYTES = 512 * 1024 * 1024

_STATUS = re.compile(rb"\n?\t#status (\d+)\n?\Z")


@dataclass(frozen=True)
class Section:
    """A packed part of the probe's output."""

    kind: str
    path: str
    pack: str
    lines: Sequence[bytes]
    ended: bool

    def read(self) -> Content:
        """Unpack it; what is damaged is left out and the content is marked as not whole."""
        packed, whole = from_base64(self.lines)
        if self.pack == "gzip":
            data, inflated = _inflate(packed)
            whole = whole and inflated
        else:
            data = packed
        status = _STATUS.search(data[-64:])
        if status is None:
            return Content(data, None, False)
        return Content(data[: len(data) - len(status[0])], int(status[1]), whole and self.ended)


@dataclass(frozen=True)
class Content:
    """What a section held: the command's output, its exit status (None: cut off) and whether nothing is missing."""

    data: bytes
    status: int | None
    whole: bool

    @property
    def good(self) -> bool:
        """The command ran to its end and succeeded, and all of it arrived."""
        return self.whole and self.status == 0

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of each line of a map or of its text, keys as the map has them."""
        # Line by line: a list of a million lines would take more room than all that is kept of them.
        for line in io.BytesIO(self.data):
            key, tab, value = line.partition(b"\t")
            if tab and key and not key.startswith(b"#"):
                yield key.rstrip(b"\0"), value.strip(b"\0\t \r\n")


@dataclass(frozen=True)
class Process:
    """A line of the container's process table."""

    pid: int
    parent: int
    state: str
    age_seconds: float
    wchan: str | None
    script: str | None
    call: str | None
    name: str


@dataclass
class Probe:
    """The parsed output: records by keyword, sections by kind and path."""

    version: int | None = None
    whole: bool = False
    records: dict[str, list[list[str]]] = field(default_factory=dict)
    sections: dict[tuple[str, str], Section] = field(default_factory=dict)

    def first(self, keyword: str) -> list[str] | None:
        """Fields of the first record of that keyword."""
        found = self.records.get(keyword)
        return found[0] if found else None

    @property
    def clock(self) -> int | None:
        """The container's clock when the probe began, in epoch seconds."""
        return integer(text_of(self, "clock", 0))

    def section(self, kind: str, path: str) -> Content | None:
        """The content of a section, None where the probe had none."""
        part = self.sections.get((kind, path))
        return part.read() if part else None


def parse(raw: bytes) -> Probe:
    """Read the probe's output. Never raises; ``version`` None means that it is none of ours."""
    probe = Probe()
    opened: tuple[str, str, str] | None = None
    body: list[bytes] = []
    for line in io.BytesIO(raw):
        line = line.rstrip(b"\r\n")
        if opened and not line.startswith((b"end ", b"begin ", b"cabalmail-probe ")):
            body.append(line)
            continue
        text = line.decode("utf-8", "replace")
        if opened:
            _close(probe, opened, body, ended=text == f"end {opened[0]}")
            opened, body = None, []
        if text.startswith("begin "):
            kind, pack, path = (*text.split(" ", 3)[1:], "", "", "")[:3]
            opened = (kind, path, pack)
        elif text.startswith("cabalmail-probe "):
            _mark(probe, text)
        elif probe.version is not None and " " in text:
            keyword, _, rest = text.partition(" ")
            probe.records.setdefault(keyword, []).append(rest.split(" "))
    if opened:
        _close(probe, opened, body, ended=False)
    return probe


def _mark(probe: Probe, text: str) -> None:
    word = text.removeprefix("cabalmail-probe ")
    if word == "end":
        probe.whole = probe.version is not None
    elif probe.version is None:
        probe.version = integer(word)


def _close(probe: Probe, opened: tuple[str, str, str], body: list[bytes], *, ended: bool) -> None:
    if probe.version is not None:
        kind, path, pack = opened
        # One piece instead of a hundred thousand lines, which would take twice the room.
        probe.sections.setdefault((kind, path), Section(kind, path, pack, (b"".join(body),), ended))


def from_base64(lines: Iterable[bytes]) -> tuple[bytes, bool]:
    joined = b"".join(lines)
    try:
        return base64.b64decode(joined, validate=True), True
    except (binascii.Error, ValueError):
        clean = re.match(rb"[A-Za-z0-9+/]*", joined)
        kept = clean[0] if clean else b""
        return base64.b64decode(kept[: len(kept) // 4 * 4]), False


def _inflate(packed: bytes) -> tuple[bytes, bool]:
    """What a gzip stream holds, and whether that is all of it."""
    engine = zlib.decompressobj(wbits=31)
    try:
        return engine.decompress(packed, SECTION_LIMIT_BYTES), engine.eof
    except zlib.error:
        return _inflate_damaged(packed)


def _inflate_damaged(packed: bytes) -> tuple[bytes, bool]:
    """In steps, so that what precedes a damaged place is kept."""
    engine = zlib.decompressobj(wbits=31)
    data = bytearray()
    for start in range(0, len(packed), 65536):
        try:
            data += engine.decompress(packed[start : start + 65536], SECTION_LIMIT_BYTES - len(data))
        except zlib.error:
            break
    return bytes(data), False


def processes(probe: Probe) -> list[Process] | None:
    """The container's processes without the probe's own tree; None when the table is cut or missing."""
    uptime, ticks = number(text_of(probe, "uptime", 0)), integer(text_of(probe, "ticks", 0)) or 100
    own = integer(text_of(probe, "self", 0))
    # The second clock stands after the table: without it the table may end too soon.
    if uptime is None or own is None or len(probe.records.get("clock", [])) < 2:
        return None
    table = {}
    for row in probe.records.get("proc", []):
        numbers = [integer(row[index]) if len(row) > index else None for index in (0, 1, 3)]
        if len(row) < 8 or None in numbers:
            continue
        pid, parent, started = (int(number or 0) for number in numbers)
        table[pid] = Process(
            pid=pid,
            parent=parent,
            state=row[2],
            age_seconds=round(max(0.0, uptime - started / ticks), 1),
            wchan=_dash(row[4]),
            script=_dash(row[5]),
            call=(_dash(row[6]) or "").replace(".", " ") or None,
            name=" ".join(row[7:]),
        )
    return [process for process in table.values() if own not in lineage(process, table)]


def lineage(process: Process, table: Mapping[int, Process]) -> set[int]:
    """The process and its ancestors."""
    seen: set[int] = set()
    current: Process | None = process
    while current and current.pid not in seen:
        seen.add(current.pid)
        current = table.get(current.parent)
    return seen


def text_of(probe: Probe, keyword: str, index: int) -> str | None:
    row = probe.first(keyword)
    return row[index] if row and len(row) > index else None


def _dash(text: str) -> str | None:
    return None if text in ("", "-") else text


def integer(text: Any) -> int | None:
    """A whole number of at most 18 digits, else None."""
    found = re.fullmatch(r"-?\d{1,18}", str(text).strip()) if text is not None else None
    return int(found[0]) if found else None


def number(text: Any) -> float | None:
    found = re.fullmatch(r"\d{1,15}(\.\d{1,9})?", str(text).strip()) if text is not None else None
    return float(found[0]) if found else None
