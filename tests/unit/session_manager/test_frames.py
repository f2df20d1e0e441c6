# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames to bytes and back, and what is refused."""

from __future__ import annotations

import uuid

import pytest
from ansible.module_utils.session_manager import frames
from ansible.module_utils.session_manager.frames import Frame, FrameError, PayloadType
from hypothesis import given
from hypothesis import strategies as st

# Encoded by one implementation, decoded by a second one and by the official plugin's own parser.
WORKED = bytes.fromhex("""
    00 00 00 74 6f 75 74 70 75 74 5f 73 74 72 65 61 6d 5f 64 61 74 61 20 20 20 20 20 20 20 20 20 20
    20 20 20 20 00 00 00 01 00 00 01 8b cf e5 68 7b 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00 00
    88 99 aa bb cc dd ee ff 00 11 22 33 44 55 66 77 44 72 3d d4 d0 e0 d4 6a 3c 7f a8 ac a2 54 b6 1c
    27 b6 b5 78 9f 96 17 7e 82 c8 07 00 40 9f 15 35 00 00 00 01 00 00 00 04 68 69 0d 0a
""")
IDENTIFIER = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")


def test_worked_example_is_encoded_to_the_byte():
    frame = Frame(frames.OUTPUT, 5, b"hi\r\n", PayloadType.OUTPUT, 0, 1700000000123, IDENTIFIER)
    assert frame.encode() == WORKED


def test_worked_example_is_decoded():
    frame = frames.decode(WORKED)
    assert (frame.message_type, frame.sequence, frame.payload, frame.payload_type) == (frames.OUTPUT, 5, b"hi\r\n", 1)
    assert frame.message_id == IDENTIFIER
    assert frame.created == 1700000000123


@given(st.binary(max_size=3000), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1), st.uuids())
def test_what_is_encoded_is_decoded(payload: bytes, sequence: int, payload_type: int, identifier: uuid.UUID):
    frame = Frame(frames.INPUT, sequence, payload, payload_type, 3, 1, identifier)
    assert frames.decode(frame.encode()) == frame


@given(st.binary(max_size=400))
def test_random_bytes_are_refused_and_never_crash(data: bytes):
    with pytest.raises(FrameError):
        frames.decode(data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[:119], "shorter than its header"),
        (lambda data: b"\xff" * 4 + data[4:], "header of 4294967295 bytes"),
        (lambda data: data[:4] + b"\xff" * 32 + data[36:], "not ASCII"),
        (lambda data: data[:40] + bytes(8) + data[48:], "no date"),
        (lambda data: data[:-1], "3 bytes of payload where it announces 4"),
        (lambda data: data + b"x", "5 bytes of payload where it announces 4"),
        (lambda data: data[:-1] + b"x", "digest"),
        (lambda data: data[:80] + bytes(32) + data[112:], "digest"),
    ],
)
def test_each_damage_is_named(spoil, words):
    with pytest.raises(FrameError, match=words):
        frames.decode(spoil(WORKED))


def test_nuls_pad_a_type_as_well_as_spaces():
    assert frames.decode(WORKED[:22] + bytes(14) + WORKED[36:]).message_type == frames.OUTPUT


def test_pause_is_taken_whatever_it_carries():
    frame = Frame(frames.PAUSE, 0, b"{}", 0, 3, 1).encode()
    assert frames.decode(frame + b"more").message_type == frames.PAUSE
