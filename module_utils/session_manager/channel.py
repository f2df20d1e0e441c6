# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of one data channel, without a socket and without a clock of its own.

Bytes go in by ``DataChannel.receive``, events come out; what has to be written is taken by ``DataChannel.outgoing``.
So every rule of the protocol (numbers, acknowledgements, retransmission, order, hand-shake, pauses) can be tested
frame by frame. The rules are those of aws/session-manager-plugin and aws/amazon-ssm-agent, apart from three that
differ on purpose: duplicates are acknowledged again (a lost acknowledgement would make the peer repeat for ever),
every overdue frame is sent again and not just the oldest, and a gap that stays ends the channel with an error.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from . import frames
from .encryption import Cipher, DataKey, EncryptionError, KeyRequest
from .frames import Frame, FrameError, PayloadType

#: Agents compare this with the versions at which features came; it has to look like a plugin's.
CLIENT_VERSION: Final = "1.2.804.0"

CHUNK: Final = 1024  # bytes of input a frame, as the plugin and the agent send
WINDOW: Final = 32  # frames of input under way; an agent whose command does not read stops all acknowledgements
MAX_AHEAD: Final = 10_000  # how far ahead of the expected number a frame may be
MAX_BUFFERED: Final = 8 * 1024 * 1024  # bytes of output held back by a gap
MAX_REFUSED: Final = 100  # frames that are no frames before the peer is given up
GAP_LIMIT: Final = 20.0  # seconds that a missing frame may stay missing
PAUSE_LIMIT: Final = 15.0  # seconds of pause_publication without a sign of life

_MAX_TIMEOUT: Final = 1.0
_MAX_BACKOFF: Final = 5.0
_SHELLS: Final = frozenset({"Standard_Stream", "InteractiveCommands", "NonInteractiveCommands"})


class ChannelError(Exception):
    """The channel cannot go on; the message is one sentence, free of the token and of the URL."""


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of the terminal, or of standard error in sessions that separate it."""

    data: bytes
    is_stderr: bool = False


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """The exit status that a non-interactive session reports by itself."""

    status: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The gateway's channel_closed; an empty message is its normal form, which proves nothing about the command.

    Nothing orders it behind output that is still missing, so frames that come after it are taken as well.
    """

    message: str


@dataclass(frozen=True, slots=True)
class KeyWanted:
    """The cluster encrypts its sessions: the hand-shake goes on when ``DataChannel.provide_key`` brings a data key."""

    request: KeyRequest


Event = Output | ExitStatus | Closed | KeyWanted

#: What is encrypted, towards the client; the rest of the protocol stays plain.
_ENCRYPTED: Final = frozenset({PayloadType.OUTPUT, PayloadType.STDERR, PayloadType.EXIT_CODE})


@dataclass(slots=True)
class _Unacknowledged:
    data: bytes
    sent: float
    due: float
    wait: float
    resent: bool = False


class DataChannel:
    """Both directions of one session. All times are seconds of ``clock``, which is monotonic.

    token: the session's TokenValue; kept only for the opening message.
    """

    def __init__(self, token: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._client_id = str(uuid.uuid4())
        self._clock = clock
        self._outbox: deque[bytes] = deque()
        self._input: deque[tuple[int, bytes]] = deque()
        self._unacknowledged: dict[int, _Unacknowledged] = {}
        self._next_input = 0
        self._expected = 0
        self._early: dict[int, Frame] = {}
        self._early_bytes = 0
        self._gap_since: float | None = None
        self._paused_since: float | None = None
        self._handshaking = False
        self._key_request: KeyRequest | None = None
        self._processed: list[dict[str, Any]] = []
        self._cipher: Cipher | None = None
        self._challenged = False
        self._heard = False
        self._refused = 0
        self._rtt, self._variation, self._timeout = 0.1, 0.0, 0.2

    def opening(self) -> str:
        """Return the text message that has to precede everything else."""
        return json.dumps(
            {
                "MessageSchemaVersion": "1.0",
                "RequestId": str(uuid.uuid4()),
                "ClientId": self._client_id,
                "TokenValue": self._token,
                "ClientVersion": CLIENT_VERSION,
            }
        )

    def resume(self, token: str) -> None:
        """Go on over a new connection, opened with ``token``: numbers, keys and what is not acknowledged stay."""
        self._token = token
        self._paused_since = None
        self._outbox.clear()
        now = self._clock()
        for entry in self._unacknowledged.values():
            entry.due = now
            entry.resent = True

    @property
    def input_room(self) -> int:
        """How many bytes of input the caller may queue now without filling memory."""
        return max(0, 2 * WINDOW - len(self._input)) * CHUNK

    def send(self, data: bytes) -> None:
        """Queue input for the terminal."""
        for start in range(0, len(data), CHUNK):
            self._input.append((PayloadType.OUTPUT, data[start : start + CHUNK]))

    def resize(self, columns: int, rows: int) -> None:
        """Queue the size of the terminal, in characters."""
        self._input.append((PayloadType.SIZE, json.dumps({"cols": columns, "rows": rows}).encode()))

    def outgoing(self) -> list[bytes]:
        """Return the messages to write now: acknowledgements, new input that the window allows, what is overdue.

        Raises ChannelError when the peer has been paused, or has owed a frame, for too long.
        """
        now = self._clock()
        self._check_patience(now)
        if self._paused_since is None:
            self._fill_window(now)
            self._resend_overdue(now)
        due = list(self._outbox)
        self._outbox.clear()
        return due

    def next_due(self) -> float | None:
        """Return when ``outgoing`` has to be called at the latest even if nothing arrives; None: never."""
        times = [entry.due for entry in self._unacknowledged.values()] if self._paused_since is None else []
        if self._gap_since is not None:
            times.append(self._gap_since + GAP_LIMIT)
        if self._paused_since is not None:
            times.append(self._paused_since + PAUSE_LIMIT)
        return min(times, default=None)

    def receive(self, message: bytes) -> list[Event]:
        """Take one WebSocket message; return what it brought, in order.

        A frame that is no frame is refused by itself; MAX_REFUSED of them raise ChannelError, as does a hand-shake
        that cannot succeed.
        """
        try:
            return self._dispatch(frames.decode(message))
        except FrameError as exc:
            self._refused += 1
            if self._refused >= MAX_REFUSED:
                raise ChannelError(f"The other side sent {self._refused} malformed frames; the last: {exc}.") from None
            return []

    def _dispatch(self, frame: Frame) -> list[Event]:
        if frame.message_type == frames.OUTPUT:
            self._paused_since = None
            return self._stream(frame)
        if frame.message_type == frames.ACKNOWLEDGE:
            self._paused_since = None
            self._acknowledged(frame)
        elif frame.message_type == frames.PAUSE:
            self._paused_since = self._paused_since or self._clock()
        elif frame.message_type == frames.START:
            self._paused_since = None
        elif frame.message_type == frames.CHANNEL_CLOSED:
            return [Closed(_closing_words(frame.payload))]
        return []

    def _stream(self, frame: Frame) -> list[Event]:
        if frame.sequence < 0 or frame.sequence - self._expected > MAX_AHEAD:
            raise FrameError(f"a frame's number is {frame.sequence} where {self._expected} is expected")
        if frame.sequence < self._expected or frame.sequence in self._early:
            self._acknowledge(frame)
            return []
        frame = self._opened(frame)
        if frame.sequence > self._expected:
            self._keep_early(frame)
            return []
        events: list[Event] = []
        self._acknowledge(frame)
        self._process(frame, events)
        while (following := self._early.pop(self._expected, None)) is not None:
            self._early_bytes -= len(following.payload)
            self._process(following, events)
        self._gap_since = self._clock() if self._early else None
        return events

    def _opened(self, frame: Frame) -> Frame:
        """Decrypt before anything else happens: a frame that is not the agent's is neither acknowledged nor kept."""
        if self._key_request is None or frame.payload_type not in _ENCRYPTED:
            return frame
        if self._cipher is None:
            raise FrameError("output came before the session's encryption was agreed upon")
        try:
            return replace(frame, payload=self._cipher.decrypt(frame.payload))
        except EncryptionError as exc:
            raise ChannelError(str(exc)) from None

    def _keep_early(self, frame: Frame) -> None:
        if self._early_bytes + len(frame.payload) > MAX_BUFFERED:
            return  # not acknowledged, so it comes again
        self._early[frame.sequence] = frame
        self._early_bytes += len(frame.payload)
        self._gap_since = self._gap_since if self._gap_since is not None else self._clock()
        self._acknowledge(frame)

    def _process(self, frame: Frame, events: list[Event]) -> None:
        self._expected = frame.sequence + 1
        kind = frame.payload_type
        self._heard = self._heard or kind in _ENCRYPTED
        if kind == PayloadType.OUTPUT:
            events.append(Output(frame.payload))
        elif kind == PayloadType.STDERR:
            events.append(Output(frame.payload, is_stderr=True))
        elif kind == PayloadType.EXIT_CODE:
            events.append(ExitStatus(_exit_code(frame.payload)))
        elif kind == PayloadType.HANDSHAKE_REQUEST:
            events += self._answer_handshake(frame.payload)
        elif kind == PayloadType.HANDSHAKE_COMPLETE:
            self._complete_handshake()
        elif kind == PayloadType.ENCRYPTION_CHALLENGE_REQUEST:
            self._answer_challenge(frame.payload)

    def _answer_handshake(self, payload: bytes) -> list[Event]:
        """Answer the agent's request. Input waits for its HandshakeComplete, since it would throw it away before."""
        if self._key_request is not None:
            raise ChannelError("The agent asks for a second hand-shake in an encrypted session.")
        self._handshaking = True
        self._processed = []
        for action in _requested_actions(payload):
            kind = action.get("ActionType")
            parameters = action.get("ActionParameters") or {}
            if kind == "KMSEncryption":
                self._key_request = _key_request(parameters)
                continue
            session_type = parameters.get("SessionType")
            if kind != "SessionType" or session_type not in _SHELLS:
                what = f"a session of type {session_type}" if kind == "SessionType" else f"the action {kind}"
                raise ChannelError(f"The agent asks for {what}, which this client does not know.")
            self._processed.append(_action(kind, None))
        if self._key_request is None:
            self._send_handshake()
            return []
        if self._heard or any(early.payload_type in _ENCRYPTED for early in self._early.values()):
            raise ChannelError("The agent sent output before it asked for encryption.")
        return [KeyWanted(self._key_request)]

    def provide_key(self, key: DataKey) -> None:
        """Go on with the hand-shake after KeyWanted; raise ChannelError when the key can't be one."""
        if self._key_request is None or self._cipher is not None:
            raise ChannelError("No data key is wanted.")
        try:
            self._cipher = Cipher(key.plaintext)
        except EncryptionError as exc:
            raise ChannelError(str(exc)) from None
        result: dict[str, Any] = {
            "KMSCipherTextKey": base64.b64encode(key.ciphertext).decode(),
            "KMSCipherTextHash": None,
        }
        if self._key_request.challenge is not None:
            result["ChallengeAcknowledgement"] = True
        self._processed.append(_action("KMSEncryption", result))
        self._send_handshake()

    def _send_handshake(self) -> None:
        answer = {"ClientVersion": CLIENT_VERSION, "ProcessedClientActions": self._processed, "Errors": []}
        self._transmit(PayloadType.HANDSHAKE_RESPONSE, json.dumps(answer).encode(), self._clock())

    def _answer_challenge(self, payload: bytes) -> None:
        """Prove to hold the key: what the agent encrypted goes back, encrypted in the other direction."""
        if self._cipher is None:
            raise ChannelError("The agent sent an encryption challenge in a session that is not encrypted.")
        try:
            challenge = base64.b64decode(_json_object(payload, "the challenge")["Challenge"], validate=True)
        except (FrameError, KeyError, TypeError, ValueError):
            raise ChannelError("The agent's encryption challenge is malformed.") from None
        try:
            answer = self._cipher.encrypt(self._cipher.decrypt(challenge))
        except EncryptionError:
            raise ChannelError("The agent's encryption challenge was not encrypted with this session's key.") from None
        content = {"Challenge": base64.b64encode(answer).decode()}
        self._challenged = True
        self._transmit(PayloadType.ENCRYPTION_CHALLENGE_RESPONSE, json.dumps(content).encode(), self._clock())

    def _complete_handshake(self) -> None:
        """Let input pass. An agent that never proved to hold the key is not the one that KMS would let have it."""
        if self._key_request is not None and not self._challenged:
            raise ChannelError("The agent ended the hand-shake without the encryption challenge that belongs to it.")
        self._handshaking = False

    def _transmit(self, payload_type: int, payload: bytes, now: float) -> None:
        if self._cipher is not None and payload_type == PayloadType.OUTPUT:
            payload = self._cipher.encrypt(payload)
        frame = Frame(
            frames.INPUT, self._next_input, payload, payload_type, frames.FLAGS_DATA, created=int(time.time() * 1000)
        )
        data = frame.encode()
        self._unacknowledged[self._next_input] = _Unacknowledged(data, now, now + self._timeout, self._timeout)
        self._next_input += 1
        self._outbox.append(data)

    def _fill_window(self, now: float) -> None:
        while self._input and not self._handshaking and len(self._unacknowledged) < WINDOW:
            payload_type, payload = self._input.popleft()
            self._transmit(payload_type, payload, now)

    def _resend_overdue(self, now: float) -> None:
        for entry in self._unacknowledged.values():
            if entry.due <= now:
                entry.resent = True
                entry.wait = min(entry.wait * 2, _MAX_BACKOFF)
                entry.due = now + entry.wait
                self._outbox.append(entry.data)

    def _acknowledge(self, frame: Frame) -> None:
        payload = (
            f'{{"AcknowledgedMessageType":"{frame.message_type}","AcknowledgedMessageId":"{frame.message_id}",'
            f'"AcknowledgedMessageSequenceNumber":{frame.sequence},"IsSequentialMessage":true}}'
        )
        created = int(time.time() * 1000)
        answer = Frame(frames.ACKNOWLEDGE, 0, payload.encode(), 0, frames.FLAGS_ACKNOWLEDGE, created=created)
        self._outbox.append(answer.encode())

    def _acknowledged(self, frame: Frame) -> None:
        content = _json_object(frame.payload, "an acknowledgement")
        number = content.get("AcknowledgedMessageSequenceNumber")
        if not isinstance(number, int):
            raise FrameError("an acknowledgement names no number")
        if content.get("AcknowledgedMessageType") not in (None, frames.INPUT):
            return
        entry = self._unacknowledged.pop(number, None)
        if entry is not None and not entry.resent:
            self._measure(self._clock() - entry.sent)

    def _measure(self, sample: float) -> None:
        """The plugin's estimate of the round trip; a frame sent twice is no sample (Karn's rule)."""
        self._variation = 0.75 * self._variation + 0.25 * abs(self._rtt - sample)
        self._rtt = 0.875 * self._rtt + 0.125 * sample
        self._timeout = min(_MAX_TIMEOUT, self._rtt + max(0.01, 4 * self._variation))

    def _check_patience(self, now: float) -> None:
        if self._paused_since is not None and now - self._paused_since >= PAUSE_LIMIT:
            raise ChannelError(
                f"The task stopped answering: the gateway paused the session {PAUSE_LIMIT:.0f} s ago and nothing has"
                " come since."
            )
        if self._gap_since is not None and now - self._gap_since >= GAP_LIMIT:
            raise ChannelError(
                f"A part of the output never came: frame {self._expected} has been missing for {GAP_LIMIT:.0f} s"
                f" while {len(self._early)} later ones arrived."
            )


def _action(kind: str, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """One processed action, done."""
    return {"ActionType": kind, "ActionStatus": 1, "ActionResult": result, "Error": ""}


def _key_request(parameters: Mapping[str, Any]) -> KeyRequest:
    key_id, challenge = parameters.get("KMSKeyId"), parameters.get("Challenge")
    if not isinstance(key_id, str) or not key_id or not isinstance(challenge, str | None):
        raise ChannelError("The agent asks for encryption (KMS) without naming the key.")
    return KeyRequest(key_id, challenge or None)


def _json_object(payload: bytes, what: str) -> dict[str, Any]:
    """Parse a payload that has to be a JSON object; raise FrameError otherwise."""
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        raise FrameError(f"{what} is not JSON") from None
    if not isinstance(content, dict):
        raise FrameError(f"{what} is no JSON object")
    return content


def _requested_actions(payload: bytes) -> list[dict[str, Any]]:
    try:
        actions = _json_object(payload, "the request").get("RequestedClientActions")
    except FrameError:
        actions = None
    valid = isinstance(actions, list) and all(
        isinstance(action, dict) and isinstance(action.get("ActionParameters") or {}, dict) for action in actions
    )
    if not valid:
        raise ChannelError("The agent's hand-shake request is malformed.")
    return actions  # type: ignore[return-value]


def _closing_words(payload: bytes) -> str:
    """Return the sentence of channel_closed, one line, bounded; empty when it has none or cannot be read."""
    with contextlib.suppress(FrameError):
        words = _json_object(payload, "channel_closed").get("Output")
        if isinstance(words, str):
            return " ".join(words.split())[:500]
    return ""


def _exit_code(payload: bytes) -> int:
    try:
        return int(payload.decode("ascii").rpartition(":")[2])
    except ValueError:
        raise ChannelError("The agent reported an exit status that is no number.") from None
