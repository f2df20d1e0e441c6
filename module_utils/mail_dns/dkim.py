# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""DKIM keys as published (RFC 6376, 3.6.1; RFC 8301 on lengths; RFC 8463 on Ed25519)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from .tags import parse_tags

#: RFC 8301, 3.2: verifiers must not take shorter ones for valid.
MIN_RSA_BITS = 1024
_RSA = bytes.fromhex("06092a864886f70d010101")


@dataclass(frozen=True)
class Key:
    """A published key. C(bits) None for a revoked one; C(digest): SHA-256 of the key's bytes, to compare keys."""

    kind: str
    bits: int | None
    revoked: bool
    testing: bool
    digest: str | None


def looks_like_key(text: str) -> bool:
    """Whether a TXT record is meant as a DKIM key."""
    return bool(re.match(r"\s*(v\s*=\s*DKIM1|([a-z]\s*=[^;]*;\s*)*p\s*=)", text, re.IGNORECASE))


def parse_key(text: str) -> Key:
    """Parse a key record; ValueError says what a verifier would refuse in it."""
    tags = parse_tags(text)
    if "v" in tags and (tags["v"] != "DKIM1" or next(iter(tags)) != "v"):
        raise ValueError("v= is not DKIM1, or not its first tag")
    if "p" not in tags:
        raise ValueError("it holds no key (p=)")
    if "h" in tags and "sha256" not in _words(tags["h"]):
        raise ValueError("h= does not allow sha256")
    if "s" in tags and not {"*", "email"} & set(_words(tags["s"])):
        raise ValueError("s= does not allow email")
    kind = tags.get("k", "rsa").lower()
    testing = "y" in _words(tags.get("t", ""))
    encoded = re.sub(r"\s+", "", tags["p"])
    if not encoded:
        return Key(kind, None, True, testing, None)
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("p= is not base64") from None
    if kind == "rsa":
        numbers = rsa_numbers(raw)
        return Key(kind, numbers[0].bit_length(), False, testing, rsa_digest(*numbers))
    return Key(kind, _other_bits(kind, raw), False, testing, hashlib.sha256(raw).hexdigest())


def _words(text: str) -> list[str]:
    return [word.strip().lower() for word in text.split(":")]


def _other_bits(kind: str, raw: bytes) -> int:
    if kind != "ed25519":
        raise ValueError(f"k={kind[:20]} is no key type that receivers know")
    if len(raw) != 32:
        raise ValueError("p= is no Ed25519 key of 32 bytes")
    return 256


def rsa_digest(modulus: int, exponent: int) -> str:
    """SHA-256 of an RSA key's numbers: the same for each of the forms in which a key is written."""
    return hashlib.sha256(f"{modulus:x}:{exponent:x}".encode()).hexdigest()


def rsa_record(modulus: int, exponent: int) -> str:
    """The record that publishes an RSA key, as the deployment's Terraform writes it."""
    numbers = _der(0x30, _der_number(modulus) + _der_number(exponent))
    algorithm = _der(0x30, _RSA + b"\x05\x00")
    info = _der(0x30, algorithm + _der(0x03, b"\x00" + numbers))
    return f"v=DKIM1; k=rsa; p={base64.b64encode(info).decode('ascii')}"


def _der_number(number: int) -> bytes:
    return _der(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def rsa_numbers(raw: bytes) -> tuple[int, int]:
    """Modulus and exponent of a SubjectPublicKeyInfo or bare RSAPublicKey (DER); ValueError when it is neither."""
    body = _element(raw, 0x30)[0]
    if body[:1] == b"\x30":
        algorithm, rest = _element(body, 0x30)
        if not algorithm.startswith(_RSA):
            raise ValueError("p= is no RSA key")
        bits = _element(rest, 0x03)[0]
        body = _element(bits[1:], 0x30)[0]
    modulus, rest = _element(body, 0x02)
    numbers = int.from_bytes(modulus, "big"), int.from_bytes(_element(rest, 0x02)[0], "big")
    if not all(numbers):
        raise ValueError("p= is no RSA key")
    return numbers


def _element(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """Content of the DER element that C(data) begins with, and what follows it; ValueError on another tag or length."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError("p= is no RSA key")
    length, start = data[1], 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or len(data) < 2 + count:
            raise ValueError("p= is no RSA key")
        length, start = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if len(data) < start + length:
        raise ValueError("p= is cut off")
    return data[start : start + length], data[start + length :]
