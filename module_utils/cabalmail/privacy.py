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
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import unquote

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
# An "@" as links (%40, once or twice encoded), quoted-printable, HTML and JSON write it, or put into words.
# What stands before it is looked for backwards in so many characters, which keeps the search linear.
_DOMAIN = r"(?:[A-Za-z0-9_-]{1,63}\.){1,10}[A-Za-z][A-Za-z0-9-]{1,62}"
_OTHER_AT = re.compile(
    rf"(?P<at>%(?:25)?40|=40|\\u0040|&(?:#64|#x40|commat);|\s?[(\[](?:at|@)[)\]]\s?)(?P<domain>{_DOMAIN})"
    rf"|(?P<word> at )(?P<where><host>|{_DOMAIN})",
    re.IGNORECASE,
)
_LONGEST_BEFORE = 320
_BEFORE = re.compile(r"(?P<key>(?<=[?&;])[A-Za-z_]{1,20}=)?(?P<local>[A-Za-z0-9!#$%'*+/=^_`{|}~.-]+)\Z")
_IN_LINK = re.compile(r".*[/?&;](?=.)", re.DOTALL)
_WORD_BEFORE = re.compile(r"(?<![^\s<(\"':])[\w.+*~-]+\Z")
# Words of running text before "at <host>": what is listed at a blocklist or found at a site is nobody's mailbox.
_NO_MAILBOX = re.compile(
    r"(?:again|available|(?:black|block)list(?:ed|s)?|block(?:ed)?|check|closed|connection|contact|deferred|delist(?:ing)?"
    r"|denied|details|error|exists?|form|found|help|here|host(?:ed)?|info|information|is|it|known|later|list(?:ed|ing)?"
    r"|look(?:up)?|mail|e-?mail|message|mailbox|more|online|page|policy|rbl|read|refused|registered|rejected|remov(?:e|ed|al)"
    r"|see|server|site|support|terminated|there|this|try|unknown|us|users?|address|account|recipients?|verify|visit"
    r"|web(?:form|site)|you)\Z",
    re.IGNORECASE,
)
# A sender's envelope rewritten by a forwarder or a list, standing without an "@": bounces+john=example.com, SRS0=...
_REWRITTEN = re.compile(
    rf"(?<=\+)(?P<local>[A-Za-z0-9._-]{{1,64}})=(?P<domain>(?>{_DOMAIN}))(?![\w.*~-]*@)"
    r"|(?<![\w@])(?P<srs>SRS[01][=+-](?!\*)[^\s<>@,;\"'()&]{1,300}+)(?!@)",
    re.IGNORECASE,
)
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
        masked = replace_disguised(text, self._disguised)
        masked = _ADDRESS.sub(self._match, masked)
        masked = _BARE.sub(lambda m: f"<{self.address(m['bare'])}{m['end']}", masked)
        masked = _BARE_FIELD.sub(lambda m: m["field"] + self.address(m["bare"]), masked)
        for address in known:
            local = address.strip("<>").rpartition("@")[0]
            if len(local) > 2 and local.lower() in masked.lower():
                word = re.compile(rf"(?<![\w*~]){re.escape(local)}(?![\w*~])", re.IGNORECASE)
                # A mask holds no backslash, so it is safe as a replacement template.
                masked = word.sub(self.address(address).rpartition("@")[0], masked)
        return masked

    def _disguised(self, local: str, at: str, domain: str) -> str:
        plain = unquote(unquote(local))
        return self.address(f"{plain}@{domain}").rpartition("@")[0] + at + domain

    def _match(self, match: re.Match[str]) -> str:
        local, domain = match["local"], match["domain"]
        # 'jane@example.com' in quotes, as opendkim writes it: the quote is not part of the address.
        lead = local[: len(local) - len(local.lstrip("'"))]
        if lead == local:
            lead = ""
        name = domain.rstrip(".")
        return lead + self.address(f"{local[len(lead) :]}@{name}") + domain[len(name) :]


def replace_disguised(text: str, replace: Callable[[str, str, str], str]) -> str:
    """The text with every address in it replaced that has no plain "@": encoded, spelled out, or rewritten.

    Args:
        text: any text; the time taken is linear in its length.
        replace: gets local part, what stands for the "@", and domain, as written; the last two are empty where a
            rewritten sender is replaced as a whole.
    """
    text = _REWRITTEN.sub(
        lambda found: replace(found["srs"], "", "") if found["srs"] else replace(found["local"], "=", found["domain"]),
        text,
    )
    parts: list[str] = []
    done = 0
    for found in _OTHER_AT.finditer(text):
        before = text[max(done, found.start() - _LONGEST_BEFORE) : found.start()]
        local = _word_before(before) if found["word"] else _local_before(before)
        if not local:
            continue
        parts += [text[done : found.start() - len(local)]]
        parts += [replace(local, found["at"] or found["word"], found["domain"] or found["where"])]
        done = found.end()
    return "".join([*parts, text[done:]]) if parts else text


def _local_before(before: str) -> str:
    """The local part that a text ends in; of a link, the last value."""
    link = max(before.rfind("://"), before.lower().rfind("www."))
    if link >= 0 and not re.search(r"\s", before[link:]):
        before = _IN_LINK.sub("&", before)
    found = _BEFORE.search(before)
    return found["local"] if found else ""


def _word_before(before: str) -> str:
    """The mailbox that ``jane at x.example`` names; a common word is none."""
    found = _WORD_BEFORE.search(before)
    return "" if found is None or _NO_MAILBOX.match(found[0]) else found[0]


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
