# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The channel's rules, frame by frame, on a clock that the test moves."""

from __future__ import annotations

import json
import random

import pytest
from ansible.module_utils.session_manager import channel as module
from ansible.module_utils.session_manager import frames
from ansible.module_utils.session_manager.channel import (
    ChannelError,
    Closed,
    DataChannel,
    ExitStatus,
    Output,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.session_manager.gateway import build, closing, output


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def channel(clock: Clock) -> DataChannel:
    return DataChannel("secret-token", clock=clock)


def sent(channel: DataChannel) -> list[frames.Frame]:
    return [frames.decode(data) for data in channel.outgoing()]


def acknowledged(channel: DataChannel) -> list[int]:
    return [
        json.loads(frame.payload)["AcknowledgedMessageSequenceNumber"]
        for frame in sent(channel)
        if frame.message_type == frames.ACKNOWLEDGE
    ]


def acknowledgement(number: int, kind: str = frames.INPUT) -> bytes:
    content = {"AcknowledgedMessageType": kind, "AcknowledgedMessageSequenceNumber": number}
    return build(frames.ACKNOWLEDGE, 0, json.dumps(content).encode(), 0, 3)


def handshake(*actions: dict) -> bytes:
    return json.dumps({"AgentVersion": "3", "RequestedClientActions": list(actions)}).encode()


SHELL = {
    "ActionType": "SessionType",
    "ActionParameters": {"SessionType": "InteractiveCommands", "Properties": None},
}


def test_opening_carries_token_and_fresh_identifiers(channel):
    first, second = json.loads(channel.opening()), json.loads(channel.opening())
    assert first["TokenValue"] == "secret-token"
    assert first["MessageSchemaVersion"] == "1.0"
    assert first["RequestId"] != second["RequestId"]
    assert first["ClientVersion"].startswith("1.2.")


def test_output_is_delivered_in_order_and_acknowledged_one_by_one(channel):
    assert channel.receive(output(0, b"a")) == [Output(b"a")]
    assert channel.receive(output(1, b"b")) == [Output(b"b")]
    assert acknowledged(channel) == [0, 1]


def test_acknowledgement_names_the_frame_it_answers(channel):
    data = output(0, b"a")
    channel.receive(data)
    (answer,) = sent(channel)
    assert (answer.sequence, answer.flags, answer.payload_type) == (0, 3, 0)
    assert json.loads(answer.payload) == {
        "AcknowledgedMessageType": "output_stream_data",
        "AcknowledgedMessageId": str(frames.decode(data).message_id),
        "AcknowledgedMessageSequenceNumber": 0,
        "IsSequentialMessage": True,
    }


def test_a_duplicate_is_acknowledged_again_and_delivered_once(channel):
    channel.receive(output(0, b"a"))
    assert channel.receive(output(0, b"a")) == []
    assert acknowledged(channel) == [0, 0]


def test_what_comes_early_waits_and_is_acknowledged(channel):
    assert channel.receive(output(2, b"c")) == []
    assert channel.receive(output(1, b"b")) == []
    assert channel.receive(output(0, b"a")) == [Output(b"a"), Output(b"b"), Output(b"c")]
    assert acknowledged(channel) == [2, 1, 0]


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_any_order_with_any_repetition_gives_the_same_output(pieces: list[bytes], rng: random.Random):
    channel = DataChannel("t", clock=Clock())
    arrivals = [*range(len(pieces)), *rng.choices(range(len(pieces)), k=len(pieces))]
    rng.shuffle(arrivals)
    events = [event for number in arrivals for event in channel.receive(output(number, pieces[number]))]
    assert b"".join(event.data for event in events) == b"".join(pieces)
    assert sorted(acknowledged(channel)) == sorted(arrivals)


def test_the_gap_that_stays_is_an_error(channel, clock):
    channel.receive(output(1, b"b"))
    assert channel.next_due() == clock.now + module.GAP_LIMIT
    clock.now += module.GAP_LIMIT
    with pytest.raises(ChannelError, match="frame 0 has been missing"):
        channel.outgoing()


def test_what_is_held_back_is_bounded_and_not_acknowledged_beyond(channel):
    piece = bytes(200_000)
    for number in range(1, 60):
        channel.receive(output(number, piece))
    assert len(acknowledged(channel)) == module.MAX_BUFFERED // len(piece)


@pytest.mark.parametrize("number", [-1, module.MAX_AHEAD + 1])
def test_a_wild_number_is_refused(channel, number):
    assert channel.receive(output(number, b"a")) == []
    assert acknowledged(channel) == []


def test_a_damaged_frame_is_not_acknowledged_and_its_repetition_counts(channel):
    assert channel.receive(output(0, b"a", digest=bytes(32))) == []
    assert acknowledged(channel) == []
    assert channel.receive(output(0, b"a")) == [Output(b"a")]


def test_too_many_damaged_frames_end_the_channel(channel):
    for _ in range(module.MAX_REFUSED - 1):
        channel.receive(b"rubbish")
    with pytest.raises(ChannelError, match="malformed"):
        channel.receive(b"rubbish")


@pytest.mark.parametrize("payload", [b"", b"[]", b"nonsense", b'{"AcknowledgedMessageSequenceNumber":"x"}'])
def test_a_senseless_acknowledgement_is_refused_by_itself(channel, payload):
    assert channel.receive(build(frames.ACKNOWLEDGE, 0, payload, 0, 3)) == []


def test_unknown_types_are_passed_over_and_acknowledged(channel):
    assert channel.receive(output(0, b"x", 99)) == []
    assert channel.receive(build("something_new", 0, b"x")) == []
    assert channel.receive(output(1, b"a")) == [Output(b"a")]
    assert acknowledged(channel) == [0, 1]


def test_separate_stderr_and_exit_status_are_events(channel):
    assert channel.receive(output(0, b"e", 11)) == [Output(b"e", is_stderr=True)]
    assert channel.receive(output(1, b"EXIT_CODE: 42", 12)) == [ExitStatus(42)]
    with pytest.raises(ChannelError, match="no number"):
        channel.receive(output(2, b"EXIT_CODE: x", 12))


def test_channel_closed_gives_its_words_and_later_output_still_counts(channel):
    assert channel.receive(closing("Gone \n away")) == [Closed("Gone away")]
    assert channel.receive(output(0, b"a")) == [Output(b"a")]
    assert channel.receive(build(frames.CHANNEL_CLOSED, 0, b"no json", 0)) == [Closed("")]


def test_input_is_cut_numbered_and_windowed(channel):
    channel.send(bytes(module.CHUNK * (module.WINDOW + 3) - 1))
    batch = sent(channel)
    assert [frame.sequence for frame in batch] == list(range(module.WINDOW))
    assert {(frame.flags, frame.payload_type) for frame in batch} == {(0, 1)}
    channel.receive(acknowledgement(0))
    assert [frame.sequence for frame in sent(channel)] == [module.WINDOW]


def test_room_shrinks_as_input_queues_up(channel):
    before = channel.input_room
    channel.send(bytes(10 * module.CHUNK))
    assert channel.input_room == before - 10 * module.CHUNK
    channel.send(bytes(before))
    assert channel.input_room == 0


def test_size_is_sent_as_its_own_type(channel):
    channel.resize(300, 100)
    (frame,) = sent(channel)
    assert (frame.payload_type, json.loads(frame.payload)) == (3, {"cols": 300, "rows": 100})


def test_unacknowledged_input_is_repeated_unchanged_with_growing_pauses(channel, clock):
    channel.send(b"hello")
    (first,) = channel.outgoing()
    pauses = []
    for _ in range(6):
        due = channel.next_due()
        pauses.append(due - clock.now)
        clock.now = due - 0.001
        assert channel.outgoing() == []
        clock.now = due
        assert channel.outgoing() == [first]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(0.2)
    channel.receive(acknowledgement(0))
    assert channel.next_due() is None
    clock.now += 100
    assert channel.outgoing() == []


def test_every_overdue_frame_is_repeated_and_not_just_the_oldest(channel, clock):
    channel.send(bytes(module.CHUNK * 5))
    channel.outgoing()
    channel.receive(acknowledgement(2))
    clock.now += 1
    assert [frame.sequence for frame in sent(channel)] == [0, 1, 3, 4]


def test_an_acknowledgement_of_something_else_changes_nothing(channel, clock):
    channel.send(b"x")
    channel.outgoing()
    channel.receive(acknowledgement(0, frames.OUTPUT))
    channel.receive(acknowledgement(7))
    clock.now += 1
    assert len(channel.outgoing()) == 1


def test_a_pause_holds_input_back_until_start(channel, clock):
    channel.receive(build(frames.PAUSE, 0, b"", 0))
    channel.send(b"x")
    assert channel.outgoing() == []
    clock.now += 5
    channel.receive(build(frames.START, 0, b"", 0))
    assert len(channel.outgoing()) == 1


def test_a_pause_without_any_sign_of_life_is_an_error(channel, clock):
    for _ in range(4):
        channel.receive(build(frames.PAUSE, 0, b"", 0))
        assert channel.next_due() is not None
        clock.now += module.PAUSE_LIMIT / 4
    with pytest.raises(ChannelError, match="stopped answering"):
        channel.outgoing()


def test_output_ends_a_pause(channel, clock):
    channel.receive(build(frames.PAUSE, 0, b"", 0))
    clock.now += module.PAUSE_LIMIT
    channel.receive(output(0, b"a"))
    assert acknowledged(channel) == [0]


def test_handshake_is_answered_and_input_waits_for_its_end(channel):
    channel.send(b"x")
    assert channel.receive(output(0, handshake(SHELL), 5)) == []
    acknowledge, answer = sent(channel)
    assert acknowledge.message_type == frames.ACKNOWLEDGE
    assert (answer.sequence, answer.payload_type) == (0, 6)
    content = json.loads(answer.payload)
    assert [(a["ActionType"], a["ActionStatus"]) for a in content["ProcessedClientActions"]] == [("SessionType", 1)]
    assert channel.outgoing() == []
    complete = b'{"HandshakeTimeToComplete":1,"CustomerMessage":"For people"}'
    assert channel.receive(output(1, complete, 7)) == []
    frame = sent(channel)[-1]
    assert (frame.sequence, frame.payload) == (1, b"x")


@pytest.mark.parametrize(
    ("payload", "error", "words"),
    [
        (
            handshake(SHELL, {"ActionType": "KMSEncryption", "ActionParameters": {}}),
            ChannelError,
            "without naming the key",
        ),
        (handshake({"ActionType": "Dance"}), ChannelError, "the action Dance"),
        (handshake({"ActionType": "SessionType", "ActionParameters": {"SessionType": "Port"}}), ChannelError, "Port"),
        (b"nonsense", ChannelError, "malformed"),
        (b'{"RequestedClientActions": 3}', ChannelError, "malformed"),
        (b'{"RequestedClientActions": [3]}', ChannelError, "malformed"),
    ],
)
def test_a_handshake_that_cannot_succeed_is_one_error(channel, payload, error, words):
    with pytest.raises(error, match=words):
        channel.receive(output(0, payload, 5))


def test_an_encryption_challenge_without_encryption_is_an_error(channel):
    with pytest.raises(ChannelError, match="not encrypted"):
        channel.receive(output(0, b"{}", 8))
