# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's side of a session that the cluster's KMS key encrypts.

After aws/amazon-ssm-agent: agent/session/crypto/encrypter.go and agent/session/datachannel/datachannel.go.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE = 12
HALF_KEY = 32
CHALLENGE_BYTES = 64
CUSTOMER_MESSAGE = "This session is encrypted using AWS KMS."
Json = dict[str, Any]


class DataKeyError(Exception):
    """The agent can't have the session's key; its words."""


@dataclass(frozen=True)
class Encryption:
    """The cluster's key and the container's name for Systems Manager.

    ``decrypt`` calls kms:Decrypt as the task does: key, ciphertext, context; it blocks and may raise anything.
    """

    key_id: str
    target: str
    decrypt: Callable[[str, bytes, dict[str, str]], bytes]

    def request(self, challenge: str | None) -> Json:
        """The action that asks the client for a data key; agents before 3.3.808.0 send no challenge."""
        parameters: Json = {"KMSKeyId": self.key_id}
        if challenge is not None:
            parameters["Challenge"] = challenge
        return {"ActionType": "KMSEncryption", "ActionParameters": parameters}

    def key(self, answer: Json, session_id: str, challenge: str | None) -> Cipher:
        """The cipher that the client's answer leads to. Blocks.

        :raises DataKeyError: when KMS does not open the key in this session's context.
        """
        context = {"aws:ssm:SessionId": session_id, "aws:ssm:TargetId": self.target}
        try:
            results = {action["ActionType"]: action["ActionResult"] for action in answer["ProcessedClientActions"]}
            result = results["KMSEncryption"]
            if challenge is not None and result.get("ChallengeAcknowledgement"):
                context["aws:ssm:RandomChallenge"] = challenge
            return Cipher(self.decrypt(self.key_id, base64.b64decode(result["KMSCipherTextKey"]), context))
        except Exception as error:  # boto3's exceptions are made at run time, and the answer may be anything
            raise DataKeyError(
                "Encountered error while initiating handshake. Fetching data key failed: Unable to retrieve data key, "
                f"Error when decrypting data key {error}"
            ) from None


class Cipher:
    """Encrypts with the first half of the key, decrypts with the second; nonces are counted up from a random one."""

    def __init__(self, key: bytes) -> None:
        self._outgoing, self._incoming = AESGCM(key[:HALF_KEY]), AESGCM(key[HALF_KEY:])
        self._nonce = secrets.randbits(8 * NONCE)
        self._secret = secrets.token_bytes(CHALLENGE_BYTES)

    def encrypt(self, data: bytes) -> bytes:
        self._nonce = (self._nonce + 1) % (1 << 8 * NONCE)
        nonce = self._nonce.to_bytes(NONCE, "little")
        return nonce + self._outgoing.encrypt(nonce, data, None)

    def decrypt(self, data: bytes) -> bytes | None:
        """The client's message; None when its tag does not fit."""
        try:
            return self._incoming.decrypt(data[:NONCE], data[NONCE:], None)
        except (InvalidTag, ValueError):
            return None

    def challenge(self) -> bytes:
        """The payload that asks the client to prove that it has the key."""
        return json.dumps({"Challenge": base64.b64encode(self.encrypt(self._secret)).decode()}).encode()

    def proves(self, payload: bytes) -> bool:
        """Whether the client's answer to the challenge is right."""
        try:
            answer = self.decrypt(base64.b64decode(json.loads(payload)["Challenge"]))
        except (ValueError, KeyError, TypeError):
            return False
        return answer is not None and secrets.compare_digest(answer, self._secret)
