# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Masking of addresses: whoever reads a report can tell two people apart, and cannot tell who they are."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

KEY_FILE = "mask.key"
KEY_BYTES = 32

# An atom of a local part as logs show it: anything but what ends an address in running text. RFC 5321 allows less,
# but what a hostile sender writes has to be masked too. The look-behind lets a match start only where a run starts,
# which keeps the search linear on text without any "@"; a quoted local part is 64 octets long at most, so that 320
# characters hold any, escapes included.
_ATOM = r"[^\s<>@,;:\"()\[\]\\]"
_ADDRESS = re.compile(
    rf"(?P<local>\"(?:[^\"\\\n]|\\.){{0,320}}+\"|(?<!{_ATOM}){_ATOM}++)@(?P<domain>\[[^\]\s<>]*\]|[\w.-]+)"
)
# `<bob>... User unknown`, `to=<bob>`, and an address that a log cut before its "@" (`<bob.sm...`, or the end of line);
# but not what stands for a variable part in a normalised answer.
_BARE = re.compile(r"<(?!(?:address|host|ip|time|url|id|n)>)(?P<bare>[^<>@\s]+?)(?P<end>>|\.\.\.|\Z)")
_BARE_FIELD = re.compile(r"(?P<field>\b(?:to|ctladdr|user|arg1)=)(?P<bare>[A-Za-z0-9][\w.+-]*)(?=[,\s]|\Z)")
_MASKED = re.compile(r".?\*\*\*~[0-9a-f]{6}\Z")


class Masker:
    """Masks addresses with a keyed hash: the same address gives the same mask within one run, and only there.

    Args:
        key: secret bytes; see `load_or_create_key`.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ValueError("the mask key is too short: 16 bytes are the least")
        self._key = key

    def _tag(self, address: str) -> str:
        return hmac.new(self._key, address.lower().encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:6]

    def address(self, address: str) -> str:
        """`jane@example.com` as `j***~5f3a9c@example.com`; a local part alone as `j***~5f3a9c`; empty stays empty."""
        plain = address.strip().removeprefix("<").removesuffix(">")
        if not plain:
            return ""
        local, at, domain = plain.rpartition("@")
        if not at:
            local, domain = domain, ""
        if _MASKED.match(local):
            return plain
        return f"{_first(local)}***~{self._tag(plain)}{at}{domain}"

    def text(self, text: str, known: Iterable[str] = ()) -> str:
        """Free text (a log line, a reply, JSON) with every address in it masked.

        Args:
            text: any text.
            known: addresses the text may be about, whose local parts are masked as well where they stand as a word
                without their domain (`550 jane: no such user`).
        """
        masked = _ADDRESS.sub(self._match, text)
        masked = _BARE.sub(lambda m: f"<{self.address(m['bare'])}{m['end']}", masked)
        masked = _BARE_FIELD.sub(lambda m: m["field"] + self.address(m["bare"]), masked)
        for address in known:
            local = address.strip("<>").rpartition("@")[0]
            if len(local) > 2 and local.lower() in masked.lower():
                word = re.compile(rf"(?<![\w*~]){re.escape(local)}(?![\w*~])", re.IGNORECASE)
                # A mask holds no backslash, so it is safe as a replacement template.
                masked = word.sub(self.address(address).rpartition("@")[0], masked)
        return masked

    def _match(self, match: re.Match[str]) -> str:
        local, domain = match["local"], match["domain"]
        # 'jane@example.com' in quotes, as opendkim writes it: the quote is not part of the address.
        lead = local[: len(local) - len(local.lstrip("'"))]
        if lead == local:
            lead = ""
        name = domain.rstrip(".")
        return lead + self.address(f"{local[len(lead) :]}@{name}") + domain[len(name) :]


def _first(local: str) -> str:
    """The first character that says nothing by being shown: a letter or digit, else none."""
    head = local.lstrip('"')[:1]
    return head if head.isalnum() else ""


def load_or_create_key(work_dir: str | os.PathLike[str]) -> bytes:
    """The run's mask key, `<work_dir>/mask.key` (mode 0600), created by whoever comes first.

    The key appears under its name only when it is whole, so two modules that start together agree on one.

    Raises:
        OSError: the directory cannot be written or the file not read.
        ValueError: the file is there and is not a key.
    """
    path = Path(work_dir) / KEY_FILE
    if not path.exists():
        draft = path.with_name(f".{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(secrets.token_bytes(KEY_BYTES))
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise ValueError(f"{path} is not a mask key of {KEY_BYTES} bytes")
    return key
