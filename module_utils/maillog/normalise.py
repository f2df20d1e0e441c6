# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One text for a thousand variants of an SMTP answer: what varies from message to message is masked.

The mask works word by word and remembers the words that need none, so that most of an answer costs a look-up.
Every step takes time linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from ..cabalmail.privacy import replace_disguised

MAX_TEXT = 800
"""Characters of an answer that are looked at (RFC 5321 allows 512 a line; sendmail logs some 200)."""

_KNOWN_WORDS = 20_000
_MAX_WORD = 200

HEAD = re.compile(r"\s*([245]\d\d(?:[- ]#?[245]\.\d{1,3}\.\d{1,3}(?![\w]|\.\d))?)(?:[- ]\s*|\Z)")
"""The codes at the head of an answer: three digits, perhaps an enhanced code."""
# A continuation inside a joined multi-line answer: " / 550-5.7.1 ".
_CONTINUATION = re.compile(r"\s*(?:\s/|[\r\n])\s*[245]\d\d(?:[- ]|$)(?:[245]\.\d{1,3}\.\d{1,3}(?![\d.])\s?)?")
_WHOLE_ADDRESS = re.compile(r"<?[^\s<>()\[\],;:\"'@]{1,128}@[\w.-]{0,252}\w>?([:;,.)]{0,4})\Z")
_WHOLE_IPV4 = re.compile(r"([(\[]?)\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}([)\]:;,.]{0,3})\Z")
# One identifier or number, perhaps of several parts whose last is a number, between punctuation.
_WHOLE_PIECE = re.compile(r"([(\[\"']*)([\w+*-]*\d[\w+*-]*(?:\.[\w+*-]*){0,3}(?<=\d))([)\]\"',;:.]*)\Z", re.A)
# How sendmail logs what is not printable ASCII: octal bytes, or a letter for the commonest control characters.
_ESCAPES = re.compile(r"\\033\[[\d;]{0,8}m|(?:\\[0-3][0-7]{2})+|\\[abfnrtv]|\\(?=\\)")
_PLAIN_WORD = re.compile(r"[^\d@./:<>=]+\Z")
_ENHANCED = re.compile(r"\W*[245]\.\d{1,3}\.\d{1,3}\W*\Z")
# Whether it is worth while to look for an address that has no plain "@".
_MAYBE_DISGUISED = re.compile(
    r"[%=]\d*40|[(\[](?:at|@)|&(?:#|commat)|u0040| at (?=[\w-]+\.|<host>)|\+[\w.-]+=|srs[01]", re.I
)
_ADDRESS = re.compile(r"<?[^\s<>()\[\],;:\"'@]{1,128}@[\w.-]{1,253}>?|<[^\s<>@]{1,64}>(?=:|\.\.\.)")
_URL = re.compile(r"(?:https?:/?/?|www\.)[^\s<>\"\]]+", re.I)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}|#)(?:\.(?:\d{1,3}|#)){3}(?:/\d{1,2})?(?::\d{1,5})?(?![\w.]*\w)")
_IPV6 = re.compile(
    r"(?<![\w:])(?:IPv6:)?(?:[0-9a-f]{0,4}:){2,7}(?:[0-9a-f]{1,4}|(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])", re.I
)
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d(?:T[\d:.]+(?:Z|[+-]\d\d:?\d\d)?)?|(?<!\d)\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?(?![\d:])"
    r"|(?<!\d)\d{1,2}/\d{1,2}/\d{2,4}(?!\d)"
)
# A mixed-case last label is no domain but a term (RESOLVER.ADR.RecipientNotFound).
_HOST = re.compile(
    r"(?<![\w.@/-])(?:[\w-]{1,63}\.){1,10}(?:[a-z][a-z0-9-]{1,62}|[A-Z][A-Z0-9-]{1,62})\.?(?![\w@/-]|\.\w)"
)
# A provider's code (S3140, TSS04, OFR_417, RCP-P2) or a standard's name.
_KEPT_CODE = re.compile(
    r"[A-Z]{1,5}\d{0,3}[-_]?[A-Z]?\d{1,4}\Z"
    r"|(?i:rfc-?\d+|smtputf8|utf-?8|8-?bit(?:mime)?|7-?bit|ipv[46]|base64|tlsv?1(?:\.\d)?)\Z"
)
_LETTERS = re.compile(r"(?<![\w.])[A-Za-z]{12,}(?!\w|\.\w)", re.A)
# A term (RecipientNotFound) has no words of one letter.
_NO_TERM = re.compile(r"[A-Z][a-z][A-Z]|[a-z][A-Z]{2}")
_MEASURE = re.compile(r"\d+(?:[.,]\d+)?(?:s|secs?|seconds|m|mins?|minutes|h|hours|d|days|kb?|mb?|gb?|bytes)?\Z", re.I)
_PIECE = re.compile(r"[A-Za-z0-9_+=*-]*\d[A-Za-z0-9_+=*-]*(?:[.:][A-Za-z0-9_+=*-]*\d[A-Za-z0-9_+=*-]*)*", re.A)
_URL_VALUE = re.compile(r"(?<=[=/:?&#;])[A-Za-z0-9._%+-]*\d[A-Za-z0-9._%+-]*", re.A)


def _unescape(match: re.Match[str]) -> str:
    """Octal bytes back to text (UTF-8, else Latin-1); control characters and a terminal's colours to a space."""
    escaped = match.group()
    if len(escaped) < 4 or "[" in escaped:
        return " " if len(escaped) > 1 else ""
    raw = bytes(int(escaped[start + 1 : start + 4], 8) for start in range(0, len(escaped), 4))
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return "".join(char if char.isprintable() else " " for char in text)


def _mask_letters(match: re.Match[str]) -> str:
    """Letters whose case changes as no word's or term's does are an identifier that happens to lack a digit."""
    letters = match.group()
    changes = sum(one.isupper() != other.isupper() for one, other in pairwise(letters))
    return "<id>" if changes * 3 >= len(letters) and _NO_TERM.search(letters) else letters


def _mask_piece(match: re.Match[str]) -> str:
    return _mask_text(match.group())


def _mask_text(piece: str) -> str:
    """A run with a digit in it: a code that tells is kept, a number or an identifier is masked."""
    if _ENHANCED.match(piece) or _KEPT_CODE.match(piece):
        return piece
    return "<n>" if _MEASURE.match(piece) else "<id>"


class _Words(dict[str, str]):
    """Word -> masked word. Words that stay as they are (most of any answer) are remembered, up to a bound."""

    def __init__(self, kept_hosts: Iterable[str]) -> None:
        super().__init__()
        self._kept = frozenset(host.lower().strip(".") for host in kept_hosts)

    def __missing__(self, word: str) -> str:
        masked = self._mask(word)
        if masked == word and len(word) < 40:
            if len(self) >= _KNOWN_WORDS:
                self.clear()
            self[word] = masked
        return masked

    def _mask(self, word: str) -> str:
        word = word[:_MAX_WORD]
        if "@" in word:
            whole = _WHOLE_ADDRESS.match(word)
            if whole is not None:
                return "<address>" + whole[1]
        elif whole := _WHOLE_IPV4.match(word):
            return f"{whole[1]}<ip>{whole[2]}"
        if _PLAIN_WORD.match(word):
            return _LETTERS.sub(_mask_letters, word)
        if _ENHANCED.match(word):
            return word
        piece = _WHOLE_PIECE.match(word) if word.count("-") < 2 else None
        if piece is not None:
            last = piece[2].rpartition(".")[2]
            if last == piece[2] or last.isdigit():
                return piece[1] + _mask_text(piece[2]) + piece[3]
        url = _URL.search(word)
        if url is not None:
            return self._mask_rest(word[: url.start()]) + _mask_url(url.group()) + self._mask_rest(word[url.end() :])
        return self._mask_rest(word)

    def _mask_rest(self, word: str) -> str:
        if not word:
            return word
        if "@" in word or "<" in word:
            word = _ADDRESS.sub("<address>", word)
        word = _IPV4.sub("<ip>", word)
        if "::" in word:
            # Before times, which the end of a short address may look like.
            word = _IPV6.sub("<ip>", word)
        if ":" in word:
            word = _TIME.sub("<time>", word)
            word = _IPV6.sub("<ip>", word)
        elif word.count("-") == 2 or word.count("/") == 2:
            word = _TIME.sub("<time>", word)
        if "." in word:
            word = _HOST.sub(self._mask_host, word)
        return _PIECE.sub(_mask_piece, _LETTERS.sub(_mask_letters, word))

    def _mask_host(self, match: re.Match[str]) -> str:
        """A host name, but one that tells (the zone of a blocklist) stays."""
        host = match.group()
        labels = host.lower().rstrip(".").split(".")
        if any(".".join(labels[-size:]) in self._kept for size in (2, 3)):
            return host
        return "<host>"


def _mask_url(url: str) -> str:
    """A link keeps host and path, since they tell; numbers, addresses and identifiers in it don't stay."""
    scheme, _, rest = url.partition("//")
    if not rest:
        scheme, rest = "", url
    host, slash, path = rest.partition("/")
    path = _URL_VALUE.sub(_mask_url_value, slash + path) if path else slash
    return (scheme + "//" if scheme else "") + host + path


def _mask_url_value(match: re.Match[str]) -> str:
    """What stands behind "#" may be a provider's code (#BL000000), which tells."""
    kept = match.string[match.start() - 1] == "#" and _KEPT_CODE.match(match.group())
    return match.group() if kept else "<id>"


class Normaliser:
    """Masks what varies in an SMTP answer.

    :param kept_hosts: domains whose host names tell something (blocklists) and are not masked.
    """

    def __init__(self, kept_hosts: Iterable[str] = ()) -> None:
        self._words = _Words(kept_hosts)
        self._last = ("", "")

    def __call__(self, text: str) -> str:
        """The masked text, codes at its head as they are, in single spaces; of a long text head and end."""
        head = HEAD.match(text)
        return f"{head[1]} {self.words(text[head.end() :])}".rstrip() if head else self.words(text)

    def words(self, text: str) -> str:
        """The masked text of an answer whose codes are off: lines of a multi-line answer are joined."""
        text = text.strip()
        whole, masked = self._last
        if text == whole:  # An answer is masked for its reason and then for the report.
            return masked
        whole = text
        if "\\" in text:
            text = _ESCAPES.sub(_unescape, text)
        if len(text) > MAX_TEXT:
            text = f"{text[: MAX_TEXT * 3 // 4]} ... {text[-MAX_TEXT // 4 :]}"
        if " / " in text or "\n" in text:
            text = _CONTINUATION.sub(" ", text)
        if _MAYBE_DISGUISED.search(text):
            text = replace_disguised(text, lambda _local, _at, _domain: "<address>")
        masked = " ".join(map(self._words.__getitem__, text.split()))
        self._last = (whole, masked)
        return masked


_default = Normaliser()


def normalise_reply(text: str) -> str:
    """Mask addresses, hosts, IPs, times, numbers and identifiers: ``550 5.1.1 <address>: User unknown <id>``."""
    return _default(text)
