# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encrypted sessions against a gateway that encrypts by itself and can be told to cheat."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest
from ansible.module_utils.ecs_exec import runner
from ansible.module_utils.ecs_exec.runner import Outcome, Plan
from ansible.module_utils.ecs_exec.wrapper import Program
from ansible.module_utils.session_manager import frames
from ansible.module_utils.session_manager.channel import ChannelError, DataChannel, KeyWanted
from ansible.module_utils.session_manager.encryption import Cipher, DataKey, EncryptionError, KeyRequest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.unit.session_manager.gateway import Gateway, Mischief, output, targets

KEY = bytes(range(64))
SHELL = {"ActionType": "SessionType", "ActionParameters": {"SessionType": "InteractiveCommands", "Properties": None}}
KMS: dict[str, Any] = {
    "ActionType": "KMSEncryption",
    "ActionParameters": {"KMSKeyId": "alias/exec", "Challenge": "AAECAwQ="},
}
BYTES = bytes(range(256)) * 20
REQUEST = json.dumps({"RequestedClientActions": [SHELL, KMS]}).encode()


def mischief(**changes: Any) -> Mischief:
    return Mischief(**{"handshake": [SHELL, KMS], "kms": KEY, "resend": 0.3, **changes})


def attempt(bad: Mischief, **bounds: Any) -> tuple[Outcome, Gateway]:
    program = Program(argv=("sh", "-c", "cat; echo complaint >&2; exit 9"), seconds=5, has_stdin=True)
    with Gateway(bad) as gateway:
        (outcome,) = runner.run(Plan(program, BYTES, **bounds), targets(), gateway)
    return outcome, gateway


def test_an_encrypted_session_is_as_exact_as_a_plain_one():
    outcome, gateway = attempt(mischief())
    assert (outcome.outcome, outcome.rc, outcome.stdout, outcome.stderr) == ("completed", 9, BYTES, b"complaint\n")
    assert gateway.requests == [KeyRequest("alias/exec", "AAECAwQ=")]
    (response,) = gateway.responses
    kinds = {action["ActionType"]: action for action in response["ProcessedClientActions"]}
    assert list(kinds) == ["SessionType", "KMSEncryption"]
    assert kinds["KMSEncryption"]["ActionResult"] == {
        "KMSCipherTextKey": base64.b64encode(b"sealed").decode(),
        "KMSCipherTextHash": None,
        "ChallengeAcknowledgement": True,
    }


def test_an_older_agent_sends_no_challenge_for_kms_and_gets_no_word_of_one():
    old = {"ActionType": "KMSEncryption", "ActionParameters": {"KMSKeyId": "k"}}
    outcome, gateway = attempt(mischief(handshake=[SHELL, old]))
    assert outcome.rc == 9
    assert "ChallengeAcknowledgement" not in gateway.responses[0]["ProcessedClientActions"][1]["ActionResult"]


def spoiled(number: int, frame: bytes) -> list[bytes]:
    """Flip a bit of the ciphertext; the digest fits, as an attacker at the gateway would make it."""
    payload = frame[120:]
    return [output(number, payload[:-1] + bytes([payload[-1] ^ 1])) if number == 5 else frame]


CHEATS = {
    "a wrong tag": (mischief(passing=spoiled), "not encrypted with this session's key"),
    "plain output": (
        mischief(passing=lambda number, frame: [output(number, b"forged\n") if number == 4 else frame]),
        "not encrypted with this session's key",
    ),
    "an empty message": (
        mischief(passing=lambda number, frame: [output(number, b"") if number == 4 else frame]),
        "not encrypted with this session's key",
    ),
    "another key's challenge": (
        mischief(challenge=lambda sealed: sealed[:12] + AESGCM(bytes(32)).encrypt(sealed[:12], bytes(64), None)),
        "challenge was not encrypted with this session's key",
    ),
    "a challenge cut short": (mischief(challenge=lambda sealed: sealed[:9]), "challenge was not encrypted"),
    "no challenge": (mischief(challenge=None), "without the encryption challenge"),
    "a key of 63 bytes": (mischief(kms=bytes(63)), "a data key of 63 bytes"),
}


@pytest.mark.parametrize("name", CHEATS)
def test_who_cheats_gets_one_error_and_no_output(name, monkeypatch):
    monkeypatch.setattr(runner, "START_ALLOWANCE", 0.5)
    bad, words = CHEATS[name]
    outcome, gateway = attempt(bad)
    assert outcome.outcome in ("session_broke", "unreachable"), outcome.reason
    assert words in (outcome.reason or "")
    assert (outcome.rc, outcome.stdout, outcome.stderr) == (None, None, None)
    assert gateway.terminated


def test_a_key_that_kms_refuses_means_that_nothing_ran():
    outcome, _ = attempt(mischief(kms=None))
    assert outcome.outcome == "unreachable"
    assert "GenerateDataKey was denied" in (outcome.reason or "")


@pytest.fixture
def keyed() -> DataChannel:
    """A channel whose agent asked for encryption and got its key, but has not yet challenged."""
    channel = DataChannel("token")
    (wanted,) = channel.receive(output(0, REQUEST, 5))
    assert isinstance(wanted, KeyWanted)
    channel.provide_key(DataKey(KEY, b"sealed"))
    return channel


def agents(data: bytes) -> bytes:
    nonce = os.urandom(12)
    return nonce + AESGCM(KEY[:32]).encrypt(nonce, data, None)


def test_what_is_not_the_agents_is_not_acknowledged_whether_in_order_or_early(keyed):
    for number in (1, 3):
        keyed.outgoing()
        with pytest.raises(ChannelError, match="not encrypted"):
            keyed.receive(output(number, b"x" * 40))
        assert [frames.decode(data).message_type for data in keyed.outgoing()] == []


def test_a_second_handshake_is_refused(keyed):
    with pytest.raises(ChannelError, match="second hand-shake"):
        keyed.receive(output(1, REQUEST, 5))


@pytest.mark.parametrize("number", [0, 2], ids=["in order", "early"])
def test_plain_output_before_the_request_for_encryption_ends_the_session(number):
    channel = DataChannel("token")
    channel.receive(output(number, b"forged"))
    with pytest.raises(ChannelError, match="before it asked for encryption"):
        channel.receive(output(1 if number == 0 else 0, REQUEST, 5))


def test_plain_output_before_the_key_is_there_is_refused():
    channel = DataChannel("token")
    channel.receive(output(0, REQUEST, 5))
    channel.outgoing()
    assert channel.receive(output(2, b"forged")) == []
    assert channel.outgoing() == []


def test_early_frames_are_kept_decrypted_and_come_in_order(keyed):
    challenge = json.dumps({"Challenge": base64.b64encode(agents(bytes(64))).decode()}).encode()
    assert keyed.receive(output(4, agents(b"second"))) == []
    assert keyed.receive(output(3, agents(b"first "))) == []
    assert keyed.receive(output(1, challenge, 8)) == []
    text = b"".join(event.data for event in keyed.receive(output(2, b"{}", 7)))
    assert text == b"first second"


def test_a_resent_frame_is_the_same_ciphertext_and_no_nonce_comes_twice(keyed):
    challenge = json.dumps({"Challenge": base64.b64encode(agents(bytes(64))).decode()}).encode()
    keyed.receive(output(1, challenge, 8))
    keyed.receive(output(2, b"{}", 7))
    keyed.outgoing()
    keyed.send(b"same" * 256 * 2)
    keyed.resize(80, 24)
    first = [frames.decode(data) for data in keyed.outgoing()]
    assert [frame.payload_type for frame in first] == [1, 1, 3]
    assert first[2].payload.startswith(b"{")
    assert first[0].payload != first[1].payload
    assert len({frame.payload[:12] for frame in first}) == 3
    opened = AESGCM(KEY[32:]).decrypt(first[0].payload[:12], first[0].payload[12:], None)
    assert opened == b"same" * 256
    keyed._clock = lambda: 1e12
    again = {frame.sequence: frame.payload for frame in map(frames.decode, keyed.outgoing())}
    assert again[first[0].sequence] == first[0].payload


def test_neither_key_nor_plaintext_is_in_a_representation():
    assert "0102" not in repr(DataKey(KEY, b"sealed"))
    assert repr(DataKey(KEY, b"sealed")) == "DataKey()"
    with pytest.raises(EncryptionError, match="63 bytes"):
        Cipher(bytes(63))
