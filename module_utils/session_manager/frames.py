# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One frame of the Session Manager data channel, to and from bytes.

A frame is one binary WebSocket message: a header of 120 bytes, all integers big-endian, then the payload. The layout is
the one of ``src/message/clientmessage.go`` in aws/session-manager-plugin and of
``agent/session/contracts/agentmessage.go`` in aws/amazon-ssm-agent.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

INPUT: Final = "input_stream_data"
OUTPUT: Final = "output_stream_data"
ACKNOWLEDGE: Final = "acknowledge"
CHANNEL_CLOSED: Final = "channel_closed"
PAUSE: Final = "pause_publication"
START: Final = "start_publication"

#: The header says where PayloadLength stands, not where the payload starts, which is 4 bytes later.
HEADER_LENGTH: Final = 116
PAYLOAD_OFFSET: Final = 120

FLAGS_DATA: Final = 0
FLAGS_ACKNOWLEDGE: Final = 3

_HEADER: Final = struct.Struct(">I32sIQqQ16s32sII")


class PayloadType(IntEnum):
    """What a stream frame's payload is (``src/message/messageparser.go``)."""

    NONE = 0
    OUTPUT = 1
    ERROR = 2
    SIZE = 3
    PARAMETER = 4
    HANDSHAKE_REQUEST = 5
    HANDSHAKE_RESPONSE = 6
    HANDSHAKE_COMPLETE = 7
    ENCRYPTION_CHALLENGE_REQUEST = 8
    ENCRYPTION_CHALLENGE_RESPONSE = 9
    FLAG = 10
    STDERR = 11
    EXIT_CODE = 12


class FrameError(ValueError):
    """Bytes that are no valid frame; the message says what is wrong with them and never shows the payload."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    ``created`` is in milliseconds since 1970; ``payload_type`` is an int since peers may send types we don't know.
    """

    message_type: str
    sequence: int = 0
    payload: bytes = b""
    payload_type: int = 0
    flags: int = FLAGS_DATA
    created: int = 1
    message_id: uuid.UUID = field(default_factory=uuid.uuid4)

    def encode(self) -> bytes:
        """Return the frame as the bytes of one WebSocket message."""
        raw = self.message_id.bytes
        header = _HEADER.pack(
            HEADER_LENGTH,
            self.message_type.encode("ascii").ljust(32),
            1,
            self.created,
            self.sequence,
            self.flags,
            raw[8:] + raw[:8],  # the protocol swaps the halves of a UUID
            hashlib.sha256(self.payload).digest(),
            self.payload_type,
            len(self.payload),
        )
        return header + self.payload


#: Their payload is ignored by every known client, so nothing in it is worth refusing the frame for.
_UNCHECKED: Final = frozenset({PAUSE, START})


def decode(data: bytes) -> Frame:
    """Parse one WebSocket message; raise FrameError when its length, header, date, or digest is wrong."""
    if len(data) < PAYLOAD_OFFSET:
        raise FrameError(f"a frame of {len(data)} bytes is shorter than its header")
    header_length, kind, _schema, created, sequence, flags, swapped, digest, payload_type, length = _HEADER.unpack_from(
        data
    )
    if header_length != HEADER_LENGTH:
        raise FrameError(f"a frame names a header of {header_length} bytes where {HEADER_LENGTH} is the only known one")
    try:
        message_type = kind.rstrip(b" \0").decode("ascii")
    except UnicodeDecodeError:
        raise FrameError("a frame's message type is not ASCII") from None
    if created == 0:
        raise FrameError("a frame carries no date")
    payload = data[PAYLOAD_OFFSET:]
    if message_type not in _UNCHECKED:
        if length != len(payload):
            raise FrameError(f"a frame carries {len(payload)} bytes of payload where it announces {length}")
        if payload and hashlib.sha256(payload).digest() != digest:
            raise FrameError("a frame's payload does not match its digest")
    message_id = uuid.UUID(bytes=swapped[8:] + swapped[:8])
    return Frame(message_type, sequence, payload, payload_type, flags, created, message_id)
