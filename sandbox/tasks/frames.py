# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames of the Session Manager data channel, as the agent's side reads and writes them.

Layout after aws/amazon-ssm-agent, agent/session/contracts/agentmessage.go: big-endian, HeaderLength 116, the payload
at 120. Written apart from the client in module_utils, so that a misreading on one side can't hide on the other.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
import uuid
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

_HEADER = struct.Struct(">I32sIQqQ16s32sI")
_LENGTH = struct.Struct(">I")
HEADER_LENGTH = _HEADER.size
PAYLOAD_OFFSET = HEADER_LENGTH + _LENGTH.size
SYN = 1
FIN = 2

INPUT = "input_stream_data"
OUTPUT = "output_stream_data"
ACKNOWLEDGE = "acknowledge"
CHANNEL_CLOSED = "channel_closed"
PAUSE = "pause_publication"
START = "start_publication"


class PayloadType(IntEnum):
    """What a stream message carries."""

    NONE = 0
    OUTPUT = 1
    SIZE = 3
    HANDSHAKE_REQUEST = 5
    HANDSHAKE_RESPONSE = 6
    HANDSHAKE_COMPLETE = 7
    ENCRYPTION_CHALLENGE_REQUEST = 8
    ENCRYPTION_CHALLENGE_RESPONSE = 9
    FLAG = 10


class FrameError(ValueError):
    """The agent refuses this frame."""


@dataclass(frozen=True)
class Frame:
    """One WebSocket message. ``payload_type`` stays a number: clients may send types unknown here."""

    message_type: str
    sequence: int
    payload: bytes
    payload_type: int = PayloadType.NONE
    flags: int = 0
    message_id: uuid.UUID | None = None

    def encode(self) -> bytes:
        """The frame's bytes, with a fresh message id if it has none, created now."""
        identity = (self.message_id or uuid.uuid4()).bytes
        header = _HEADER.pack(
            HEADER_LENGTH,
            self.message_type.encode().ljust(32),
            1,
            time.time_ns() // 1_000_000,
            self.sequence,
            self.flags,
            identity[8:] + identity[:8],
            hashlib.sha256(self.payload).digest(),
            self.payload_type,
        )
        return header + _LENGTH.pack(len(self.payload)) + self.payload


def decode(data: bytes) -> Frame:
    """Read a client's frame. Like the agent: header length, type and date are checked, the digest is not.

    :raises FrameError: when the agent would refuse it.
    """
    if len(data) < PAYLOAD_OFFSET:
        raise FrameError("shorter than a header")
    length, name, _schema, created, sequence, flags, identity, _digest, payload_type = _HEADER.unpack_from(data)
    message_type = name.decode("ascii", "replace").strip(" \0")
    if length != HEADER_LENGTH or not message_type or not created:
        raise FrameError("header length, message type or date is wrong")
    message_id = uuid.UUID(bytes=identity[8:] + identity[:8])
    return Frame(message_type, sequence, data[PAYLOAD_OFFSET:], payload_type, flags, message_id)


def acknowledgement(received: Frame) -> Frame:
    """The acknowledgement of a stream message."""
    payload = {
        "AcknowledgedMessageType": received.message_type,
        "AcknowledgedMessageId": str(received.message_id),
        "AcknowledgedMessageSequenceNumber": received.sequence,
        "IsSequentialMessage": True,
    }
    return Frame(ACKNOWLEDGE, 0, json.dumps(payload).encode(), flags=SYN | FIN)


def channel_closed(session_id: str, client_id: str, output: str) -> Frame:
    """The gateway's last frame. ``output`` is empty after a normal end, else a sentence."""
    message_id = uuid.uuid4()
    payload: dict[str, Any] = {
        "MessageId": str(message_id),
        "CreatedDate": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
        "DestinationId": client_id,
        "SessionId": session_id,
        "MessageType": CHANNEL_CLOSED,
        "SchemaVersion": 1,
        "Output": output,
    }
    return Frame(CHANNEL_CLOSED, 0, json.dumps(payload).encode(), message_id=message_id)
