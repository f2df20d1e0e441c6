# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ECS Exec agent of a task and the gateway before it: one data channel per session, served over a WebSocket.

Behaviour after aws/amazon-ssm-agent (agent/session) and aws/session-manager-plugin: see frames.py, terminal.py and
shlex_go.py for their parts. How the sandbox's server uses it::

    gateway = Gateway()                              # options from the environment
    gateway.open(session, running_task, encryption)  # at ecs:ExecuteCommand; None: the cluster has no key
    return await gateway.answer(request, session_id) # at GET /v1/data-channel/<session id>, an aiohttp request
    token = gateway.resume(session_id)               # at ssm:ResumeSession; None: the session is over
    await gateway.terminate(session_id)              # at ssm:TerminateSession
    gateway.configure({"delays": "off"})             # at POST /_sandbox/agent, for sessions opened later
    await gateway.close()                            # at the end
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from aiohttp import web

from . import frames, shlex_go
from .encryption import CUSTOMER_MESSAGE, Cipher, DataKeyError, Encryption
from .frames import Frame, FrameError, PayloadType
from .runtime import RunningTask
from .terminal import StartError, Terminal, pass_utf8

DELAYS_VARIABLE = "CABALMAIL_SANDBOX_AGENT_DELAYS"
AGENT_VERSION = "3.3.987.0"
CHUNK = 1024
BUFFERED_MESSAGES = 100_000
TICK_SECONDS = 0.1
TOKEN_SECONDS = 10.0
PAUSE_EVERY_SECONDS = 1.0
CLOSE_SECONDS = 2.0
LONGEST_MESSAGE = 1 << 20
ENDED_SESSIONS_KEPT = 1_000
# First estimates and bounds of the retransmission timer (agent/session/config/config.go).
FIRST_RTT, FIRST_TIMEOUT, GRANULARITY, LONGEST_TIMEOUT = 0.1, 0.2, 0.01, 1.0
IDLE_TEXT = "Your session timed out due to inactivity and has been terminated."
HANDSHAKE_TEXT = (
    "Encountered error while initiating handshake. Handshake timed out. Please ensure that you have the latest version "
    "of the session manager plugin."
)


_log = logging.getLogger(__name__)


class Session(Protocol):
    """What ExecuteCommand answered with, as the gateway needs it."""

    @property
    def session_id(self) -> str: ...

    @property
    def token(self) -> str: ...

    @property
    def command(self) -> str: ...


@dataclass(frozen=True)
class Faults:
    """What goes wrong between gateway and client. Rates are 0 to 1; the same ``seed`` repeats the same faults.

    ``drop_after``: the socket is cut after so many frames to the client, once a session. ``lose``, ``duplicate``,
    ``reorder``, ``corrupt`` (digest no longer fits), ``garbage`` (random bytes before a frame) concern frames to the
    client, ``lose_acks`` acknowledgements to it, ``lose_input`` frames from it. ``silent_after``: after so many
    frames nothing goes out any more and the socket stays open. ``refuse_resume``: ResumeSession finds the
    session over.
    """

    seed: int = 1
    drop_after: int | None = None
    silent_after: int | None = None
    lose: float = 0.0
    lose_acks: float = 0.0
    lose_input: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    garbage: float = 0.0
    refuse_resume: bool = False


@dataclass(frozen=True)
class Options:
    """The agent's behaviour. The defaults are the real agent's; times are seconds.

    ``pause_when_away``: the gateway pauses the agent while no client is connected (not known of the real one, so off).
    ``handshake``: ask for a handshake, as the agent does under KMS. ``challenge``: bind the data key to a random value,
    as agents from 3.3.808.0 on do.
    """

    first_read_delay: float = 1.0
    read_pause: float = 0.001
    close_grace: float = 2.0
    failure_delay: float = 2.0
    handshake: bool = False
    challenge: bool = True
    handshake_timeout: float = 15.0
    idle_timeout: float = 1200.0
    session_limit: int = 2
    pause_when_away: bool = False
    faults: Faults = field(default_factory=Faults)

    @classmethod
    def from_environment(cls) -> Options:
        """``CABALMAIL_SANDBOX_AGENT_DELAYS=off`` takes the agent's waits away."""
        return cls().with_delays(os.environ.get(DELAYS_VARIABLE, "on") != "off")

    def with_delays(self, on: bool) -> Options:
        standard = Options()
        if on:
            return replace(
                self,
                first_read_delay=standard.first_read_delay,
                read_pause=standard.read_pause,
                failure_delay=standard.failure_delay,
            )
        return replace(self, first_read_delay=0.0, read_pause=0.0, failure_delay=0.0)

    def changed(self, wanted: dict[str, Any]) -> Options:
        """These options with those of ``wanted``: any field, ``delays`` (on, off), ``faults`` (a mapping).

        :raises ValueError: one sentence that names what is unknown or of the wrong type.
        """
        values = dict(wanted)
        options = self
        if "delays" in values:
            options = options.with_delays(values.pop("delays") not in ("off", False))
        faults = values.pop("faults", None)
        if faults is not None:
            options = replace(options, faults=Faults(**_typed(Faults, faults)))
        return replace(options, **_typed(Options, values))


def _typed(kind: type[Any], values: Any) -> dict[str, Any]:
    """``values`` checked against the fields of the dataclass ``kind``."""
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__.lower()} must be a mapping.")
    known = {item.name: item.default for item in fields(kind)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{name} is no option of the agent: known are {', '.join(known)}.")
        if not isinstance(value, int | float) and not (value is None and known[name] is None):
            raise ValueError(f"{name} must be a number or a truth value.")
    return values


class _Line:
    """The way to one connected client, with the faults on it."""

    def __init__(
        self, socket: web.WebSocketResponse, cut: Callable[[], None], faults: Faults, sent_before: int
    ) -> None:
        self.socket = socket
        self._cut = cut
        self.sent = sent_before
        self._faults = faults
        self._random = random.Random(faults.seed + sent_before)  # noqa: S311 - repeatable faults, no secret
        self._held: bytes | None = None

    def _happens(self, rate: float) -> bool:
        return rate > 0 and self._random.random() < rate

    async def send(self, data: bytes, *, acknowledgement: bool = False) -> None:
        """Send a frame, or do to it what the faults ask for. A closed socket is no error: frames are repeated."""
        faults = self._faults
        self.sent += 1
        if faults.silent_after is not None and self.sent > faults.silent_after:
            return
        if self._happens(faults.lose_acks if acknowledgement else faults.lose):
            return
        if self._happens(faults.corrupt) and len(data) > frames.PAYLOAD_OFFSET:
            data = data[:-1] + bytes([data[-1] ^ 0x20])
        if self._held is None and self._happens(faults.reorder):
            self._held = data
            return
        if self._happens(faults.garbage):
            await self._put(self._random.randbytes(self._random.randrange(1, 400)))
        await self._put(data)
        if self._happens(faults.duplicate):
            await self._put(data)
        held, self._held = self._held, None
        if held is not None:
            await self._put(held)
        if faults.drop_after is not None and self.sent == faults.drop_after:
            self._cut()

    async def _put(self, data: bytes) -> None:
        if not self.socket.closed:
            with contextlib.suppress(ConnectionError):
                await self.socket.send_bytes(data)

    def loses_input(self) -> bool:
        return self._happens(self._faults.lose_input)


@dataclass
class _Sent:
    """A stream message that waits for its acknowledgement."""

    data: bytes
    at: float


class _Timer:
    """The agent's estimate of when an acknowledgement is overdue."""

    def __init__(self) -> None:
        self.rtt, self.variation, self.timeout = FIRST_RTT, 0.0, FIRST_TIMEOUT

    def sample(self, measured: float) -> None:
        self.variation = 0.75 * self.variation + 0.25 * abs(self.rtt - measured)
        self.rtt = 0.875 * self.rtt + 0.125 * measured
        self.timeout = min(LONGEST_TIMEOUT, self.rtt + max(GRANULARITY, 4 * self.variation))


class Channel:
    """One session: the agent's state that outlives a connection, and the command's terminal."""

    def __init__(
        self,
        session: Session,
        task: RunningTask,
        options: Options,
        slots: asyncio.Semaphore,
        encryption: Encryption | None,
    ) -> None:
        self.session = session
        self.task = task
        self.options = options
        self.token = session.token
        self.ended = asyncio.Event()
        self._slots = slots
        self._line: _Line | None = None
        self._client_id = ""
        self._terminal: Terminal | None = None
        self._unacknowledged: OrderedDict[int, _Sent] = OrderedDict()
        self._acknowledged = asyncio.Event()
        self._next_out = 0
        self._expected = 0
        self._early: dict[int, Frame] = {}
        self._timer = _Timer()
        self._handshake: asyncio.Future[dict[str, Any]] | None = None
        self._handshaking = options.handshake or encryption is not None
        self._encryption = encryption
        self._cipher: Cipher | None = None
        self._proven = asyncio.Event()
        self._orphaned = False
        self._here = asyncio.Event()
        self._last_traffic = time.monotonic()
        self._work: asyncio.Task[None] | None = None
        self._sent_frames = 0

    # -- the gateway's side ----------------------------------------------------------------------------------------

    async def serve(self, socket: web.WebSocketResponse, cut: Callable[[], None]) -> None:
        """One connection of the client, from its token to its end. ``cut`` drops the connection without a close."""
        if not await self._admits(socket):
            await socket.close()
            return
        await self._replace_line(socket, cut)
        if self._work is None:
            self._work = asyncio.create_task(self._live())
        while not self.ended.is_set():
            data = (await socket.receive()).data
            if isinstance(data, bytes):
                await self._take(data)
            elif not isinstance(data, str):
                break
        if self._line is not None and self._line.socket is socket:
            self._sent_frames = self._line.sent
            self._line = None
            self._here.clear()
        await socket.close()

    async def _admits(self, socket: web.WebSocketResponse) -> bool:
        """The first message must be a text with the token; nothing tells the client what was wrong."""
        with contextlib.suppress(TimeoutError, ValueError, TypeError, AttributeError):
            async with asyncio.timeout(TOKEN_SECONDS):
                opening = json.loads((await socket.receive()).data)
            self._client_id = str(opening.get("ClientId", ""))
            return not self.ended.is_set() and secrets.compare_digest(str(opening["TokenValue"]), self.token)
        return False

    async def _replace_line(self, socket: web.WebSocketResponse, cut: Callable[[], None]) -> None:
        if self._line is not None:
            await self._line.socket.close()
        faults = self.options.faults
        if self._sent_frames:
            # A session is cut once; after it has resumed it is left alone.
            faults = replace(faults, drop_after=None)
        self._line = _Line(socket, cut, faults, self._sent_frames)
        self._here.set()
        self._last_traffic = time.monotonic()

    def new_token(self) -> str | None:
        """A token to resume with; None when the session is over."""
        if self.ended.is_set() or self.options.faults.refuse_resume:
            return None
        self.token = secrets.token_urlsafe(96)
        return self.token

    async def terminate(self) -> None:
        """ssm:TerminateSession: the command's own process is killed, its terminal closed, the client told."""
        if self._terminal is not None and not self._orphaned:
            self._terminal.kill()
        await self._finish("")

    # -- frames from the client --------------------------------------------------------------------------------------

    async def _take(self, data: bytes) -> None:
        line = self._line
        if line is None or self._orphaned or line.loses_input():
            return
        self._last_traffic = time.monotonic()
        try:
            frame = frames.decode(data)
        except FrameError:
            return
        if frame.message_type == frames.ACKNOWLEDGE:
            self._settle(frame)
        elif frame.message_type == frames.INPUT:
            await self._take_input(frame)

    def _settle(self, frame: Frame) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            sent = self._unacknowledged.pop(json.loads(frame.payload)["AcknowledgedMessageSequenceNumber"])
            self._timer.sample(time.monotonic() - sent.at)
        if not self._unacknowledged:
            self._acknowledged.set()

    async def _take_input(self, frame: Frame) -> None:
        if frame.sequence < self._expected:
            await self._acknowledge(frame)
        elif frame.sequence > self._expected:
            if len(self._early) < BUFFERED_MESSAGES:
                self._early[frame.sequence] = frame
                await self._acknowledge(frame)
        elif await self._process(frame):
            await self._acknowledge(frame)
            self._expected += 1
            while (later := self._early.pop(self._expected, None)) is not None:
                await self._process(later)
                self._expected += 1

    async def _process(self, frame: Frame) -> bool:
        """Act on a message in order; False when it can't be taken yet, so that it comes again."""
        kind = frame.payload_type
        if kind == PayloadType.HANDSHAKE_RESPONSE and self._handshake is not None and not self._handshake.done():
            with contextlib.suppress(ValueError):
                self._handshake.set_result(json.loads(frame.payload))
            return True
        if kind == PayloadType.ENCRYPTION_CHALLENGE_RESPONSE and self._cipher is not None:
            if self._cipher.proves(frame.payload):
                self._proven.set()
            return True
        if self._handshaking:
            # Input before the handshake is complete is acknowledged and thrown away.
            return True
        if self._terminal is None:
            return False
        if kind == PayloadType.OUTPUT:
            payload = frame.payload if self._cipher is None else self._cipher.decrypt(frame.payload)
            if payload is None:
                return False
            await self._terminal.write(payload)
        elif kind == PayloadType.SIZE:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                size = json.loads(frame.payload)
                self._terminal.resize(int(size["cols"]), int(size["rows"]))
        return True

    async def _acknowledge(self, frame: Frame) -> None:
        if self._line is not None:
            await self._line.send(frames.acknowledgement(frame).encode(), acknowledgement=True)

    # -- frames to the client ----------------------------------------------------------------------------------------

    async def _send(self, payload: bytes, kind: PayloadType) -> None:
        number = self._next_out
        self._next_out += 1
        if self._cipher is not None and kind == PayloadType.OUTPUT:
            payload = self._cipher.encrypt(payload)
        data = Frame(frames.OUTPUT, number, payload, kind, flags=frames.SYN if number == 0 else 0).encode()
        if len(self._unacknowledged) < BUFFERED_MESSAGES:
            self._unacknowledged[number] = _Sent(data, time.monotonic())
            self._acknowledged.clear()
        self._last_traffic = time.monotonic()
        if self._line is not None:
            await self._line.send(data)

    async def _resend_oldest(self) -> None:
        """The scheduler looks at the oldest message only."""
        if self._line is None or not self._unacknowledged:
            return
        oldest = next(iter(self._unacknowledged.values()))
        if time.monotonic() - oldest.at > self._timer.timeout:
            oldest.at = time.monotonic()
            await self._line.send(oldest.data)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """Run the command beside the timers; whatever ends first ends the session."""
        async with self._slots:
            command = asyncio.create_task(self._run())
            timers = asyncio.create_task(self._tick())
            try:
                await asyncio.wait([command, timers], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for job in (command, timers):
                    job.cancel()
                await asyncio.gather(command, timers, return_exceptions=True)
        output = _result(command if command.done() and not command.cancelled() else timers)
        if output is None:
            await self._stay_paused()
            await self._finish("")
        else:
            await self._finish(output)

    async def _tick(self) -> str | None:
        """Resend what is overdue; return the text of a session that ends by time, None when its task is gone."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if not self.task.alive():
                return None
            if time.monotonic() - self._last_traffic > self.options.idle_timeout:
                return IDLE_TEXT
            await self._resend_oldest()

    async def _run(self) -> str | None:
        """The command from start to end. Returns the text for channel_closed; None: the task was stopped under it."""
        try:
            if self._handshaking:
                await self._shake_hands()
            self._terminal = Terminal(self.task, _argv(self.session.command))
        except StartError as error:
            await asyncio.sleep(self.options.failure_delay)
            return str(error)
        await asyncio.sleep(self.options.first_read_delay)
        await self._pump(self._terminal)
        if not self.task.alive():
            return None
        await self._wait_for_acknowledgements()
        return ""

    async def _pump(self, terminal: Terminal) -> None:
        """Terminal to client. What is held back at the end is lost, as with the agent."""
        held = b""
        while data := await terminal.read(CHUNK - len(held)):
            passed, held = pass_utf8(held + data)
            if passed:
                await self._send(passed, PayloadType.OUTPUT)
            await asyncio.sleep(self.options.read_pause)
            if self.options.pause_when_away:
                await self._here.wait()

    async def _wait_for_acknowledgements(self) -> None:
        """The grace twice: before and after the agent says that it ends. What is unacknowledged then is gone."""
        for _ in range(2):
            if self._unacknowledged:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.options.close_grace):
                        await self._acknowledged.wait()

    async def _shake_hands(self) -> None:
        """Agree on the session type, and on the key where the cluster has one.

        :raises StartError: when the client does not answer in time or refuses, or KMS does not open the key.
        """
        begun = time.monotonic_ns()
        actions: list[dict[str, Any]] = [
            {
                "ActionType": "SessionType",
                "ActionParameters": {"SessionType": "InteractiveCommands", "Properties": None},
            }
        ]
        challenge = base64.b64encode(secrets.token_bytes(16)).decode() if self.options.challenge else None
        if self._encryption is not None:
            actions.append(self._encryption.request(challenge))
        request = {"AgentVersion": AGENT_VERSION, "RequestedClientActions": actions}
        self._handshake = asyncio.get_running_loop().create_future()
        await self._send(json.dumps(request).encode(), PayloadType.HANDSHAKE_REQUEST)
        try:
            async with asyncio.timeout(self.options.handshake_timeout):
                answer = await self._handshake
        except TimeoutError:
            raise StartError(HANDSHAKE_TEXT) from None
        problems = _refusals(answer)
        if problems:
            raise StartError(f"Encountered error while initiating handshake. {problems}")
        if self._encryption is not None:
            await self._agree_on_key(self._encryption, answer, challenge)
        words = CUSTOMER_MESSAGE if self._cipher is not None else ""
        complete = {"HandshakeTimeToComplete": time.monotonic_ns() - begun, "CustomerMessage": words}
        await self._send(json.dumps(complete).encode(), PayloadType.HANDSHAKE_COMPLETE)
        self._handshaking = False

    async def _agree_on_key(self, encryption: Encryption, answer: dict[str, Any], challenge: str | None) -> None:
        """Open the data key and let the client prove that it has it. A wrong answer is waited out, as by the agent."""
        try:
            self._cipher = await asyncio.to_thread(encryption.key, answer, self.session.session_id, challenge)
        except DataKeyError as error:
            raise StartError(str(error)) from None
        await self._send(self._cipher.challenge(), PayloadType.ENCRYPTION_CHALLENGE_REQUEST)
        try:
            async with asyncio.timeout(self.options.handshake_timeout):
                await self._proven.wait()
        except TimeoutError:
            raise StartError(HANDSHAKE_TEXT) from None

    async def _stay_paused(self) -> None:
        """The task is gone and its agent with it: nothing is acknowledged any more, the gateway only asks to pause."""
        self._orphaned = True
        deadline = time.monotonic() + self.options.idle_timeout
        while time.monotonic() < deadline and not self.ended.is_set():
            if self._line is not None:
                await self._line.send(Frame(frames.PAUSE, 0, b"").encode())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE_EVERY_SECONDS):
                    await self.ended.wait()

    async def _finish(self, output: str) -> None:
        """Tell the client and let everything go; later calls do nothing."""
        if self.ended.is_set():
            return
        self.ended.set()
        if self._work is not None and self._work is not asyncio.current_task():
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        if self._terminal is not None:
            self._terminal.close()
        if self._line is not None:
            await self._line.send(frames.channel_closed(self.session.session_id, self._client_id, output).encode())
            await self._line.socket.close()

    @property
    def lingering(self) -> bool:
        """Whether the command's own process has still to be waited for after the end."""
        return self._terminal is not None and not self._terminal.finished


def _result(job: asyncio.Task[str | None]) -> str | None:
    """What a finished job says; a failure of our own ends the session with its text."""
    error = job.exception()
    if error is None:
        return job.result()
    _log.error("A session failed", exc_info=error)
    return f"Unable to start command: {error}"


def _argv(command: str) -> list[str]:
    """The command line's words.

    :raises StartError: when it can't be split, or holds none.
    """
    try:
        words = shlex_go.split(command)
    except shlex_go.SplitError as error:
        raise StartError(f"Unable to start command: Failed to parse commands input: {error}") from None
    if not words:
        raise StartError("Unable to start command: Failed to start pty: exec: no command")
    return words


def _refusals(answer: dict[str, Any]) -> str:
    """What the client's handshake answer says against the session; empty when it accepts."""
    actions = answer.get("ProcessedClientActions") or []
    refused = [str(action.get("Error") or "failed") for action in actions if action.get("ActionStatus") != 1]
    errors = [str(error) for error in answer.get("Errors") or []]
    if not actions:
        errors.append("No action was processed")
    return "; ".join([*refused, *errors])


def _nothing() -> None:
    """Cuts a connection that is gone already."""


class Gateway:
    """All sessions. Lives on the event loop."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options.from_environment()
        self._channels: OrderedDict[str, Channel] = OrderedDict()
        self._slots: dict[str, asyncio.Semaphore] = {}

    def configure(self, wanted: dict[str, Any]) -> None:
        """Change options for sessions opened from now on; an empty mapping brings back those of the environment.

        :raises ValueError: one sentence about what can't be set.
        """
        self.options = self.options.changed(wanted) if wanted else Options.from_environment()

    def open(self, session: Session, task: RunningTask, encryption: Encryption | None = None) -> None:
        """Make a session known. Its command starts when a client brings the token."""
        self._forget_old()
        limit = self._slots.setdefault(task.spec.task_id, asyncio.Semaphore(self.options.session_limit))
        self._channels[session.session_id] = Channel(session, task, self.options, limit, encryption)

    def _forget_old(self) -> None:
        """Waits for commands that have ended, and bounds the memory of sessions that are over."""
        ended = [name for name, channel in self._channels.items() if channel.ended.is_set() and not channel.lingering]
        for name in ended[: max(0, len(self._channels) - ENDED_SESSIONS_KEPT)]:
            del self._channels[name]

    async def answer(self, request: web.Request, session_id: str) -> web.StreamResponse:
        """Serve a WebSocket upgrade to the data channel of a session; returns when the connection is over."""
        channel = self._channels.get(session_id)
        if channel is None or channel.ended.is_set():
            return web.Response(status=400, text="no such session")
        socket = web.WebSocketResponse(timeout=CLOSE_SECONDS, max_msg_size=LONGEST_MESSAGE, compress=False)
        await socket.prepare(request)
        transport = request.transport
        await channel.serve(socket, transport.abort if transport is not None else _nothing)
        return socket

    def resume(self, session_id: str) -> str | None:
        """A new token for the session, in place of the old one; None when it is over or unknown."""
        channel = self._channels.get(session_id)
        return channel.new_token() if channel is not None else None

    async def terminate(self, session_id: str) -> bool:
        """End a session; harmless when it is over. False when it was never known."""
        channel = self._channels.get(session_id)
        if channel is not None:
            await channel.terminate()
        return channel is not None

    async def close(self) -> None:
        """End all sessions."""
        await asyncio.gather(*(channel.terminate() for channel in self._channels.values()))
        self._channels.clear()
