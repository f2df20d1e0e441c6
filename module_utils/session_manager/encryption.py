# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encryption of a session with a data key of AWS KMS, as aws/session-manager-plugin does it (src/encryption).

AES-256-GCM without associated data; a message is its nonce of 12 bytes, then the ciphertext with its tag of 16.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 64
_NONCE: Final = 12


class EncryptionError(ValueError):
    """A message that was not made with this session's key, or a key that is none; one sentence."""


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """What the agent asks for: a data key under ``key_id``, bound to ``challenge`` too when it sent one."""

    key_id: str
    challenge: str | None = None

    def context(self, session_id: str, target: str) -> dict[str, str]:
        """Return the encryption context that binds a data key to one session in one container."""
        bound = {"aws:ssm:SessionId": session_id, "aws:ssm:TargetId": target}
        return bound if self.challenge is None else {**bound, "aws:ssm:RandomChallenge": self.challenge}


@dataclass(frozen=True, slots=True)
class DataKey:
    """KMS's answer to GenerateDataKey: the key itself and its form that only KMS can open."""

    plaintext: bytes = field(repr=False)
    ciphertext: bytes = field(repr=False)


#: Gets a data key from KMS. Blocks; raises KeyUnavailable.
KeySource = Callable[[KeyRequest], DataKey]


class KeyUnavailable(Exception):
    """KMS gave no data key; one sentence."""


class Cipher:
    """Both directions: the first half of the key is the agent's to encrypt with, the second the client's."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise EncryptionError(f"KMS gave a data key of {len(key)} bytes where {KEY_BYTES} were asked for.")
        self._incoming = AESGCM(key[: KEY_BYTES // 2])
        self._outgoing = AESGCM(key[KEY_BYTES // 2 :])

    def encrypt(self, data: bytes) -> bytes:
        """Encrypt one message under a nonce of its own; what is sent again must be these bytes, not a new call."""
        nonce = os.urandom(_NONCE)
        return nonce + self._outgoing.encrypt(nonce, data, None)

    def decrypt(self, data: bytes) -> bytes:
        """Decrypt one message of the agent; raise EncryptionError when its tag does not fit."""
        try:
            return self._incoming.decrypt(data[:_NONCE], data[_NONCE:], None)
        except (InvalidTag, ValueError):
            raise EncryptionError("A part of the output was not encrypted with this session's key.") from None
