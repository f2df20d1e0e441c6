# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway and agent in one that can be told to misbehave, for tests of the client only.

Commands really run, under a real terminal. ``Mischief`` decides what happens to each frame on its way to the client.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import pty
import shlex
import signal
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.ecs_exec.aws import Started
from ansible.module_utils.ecs_exec.targets import Target
from ansible.module_utils.session_manager.encryption import DataKey, KeyRequest, KeyUnavailable
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

HEADER = struct.Struct(">I32sIQqQ16s32sII")


def build(kind: str, number: int, payload: bytes, payload_type: int = 1, flags: int = 0, **changes: Any) -> bytes:
    """Build a frame, written apart from the client's own code; ``changes`` spoil single fields."""
    identifier = uuid.uuid4().bytes
    return (
        HEADER.pack(
            changes.get("header_length", 116),
            kind.encode().ljust(32),
            1,
            changes.get("created", int(time.time() * 1000)),
            number,
            flags,
            identifier[8:] + identifier[:8],
            changes.get("digest", hashlib.sha256(payload).digest()),
            payload_type,
            changes.get("length", len(payload)),
        )
        + payload
    )


def output(number: int, payload: bytes, payload_type: int = 1, **changes: Any) -> bytes:
    """Build a frame of output."""
    return build("output_stream_data", number, payload, payload_type, 1 if number == 0 else 0, **changes)


def closing(words: str = "") -> bytes:
    """Build a channel_closed."""
    return build("channel_closed", 0, json.dumps({"SessionId": "s", "Output": words}).encode(), 0)


Send = Callable[[bytes], Any]


@dataclass
class Mischief:
    """What goes wrong; by default nothing.

    passing: called with number and frame of each output frame sent for the first time; returns what is really sent.
    acknowledge: whether input is acknowledged, by its number and how often it has come.
    challenge: what becomes of the encryption challenge before it is sent. answers: what the client made of it, opened.
    """

    passing: Callable[[int, bytes], list[bytes]] = lambda number, frame: [frame]
    acknowledge: Callable[[int, int], bool] = lambda number, times: True
    before: list[bytes] = field(default_factory=list)
    handshake: list[dict[str, Any]] | None = None
    kms: bytes | None = None  # the data key of 64 bytes; the session is encrypted with it
    challenge: Callable[[bytes], bytes] | None = lambda sealed: sealed  # None: none is sent
    answers: list[bytes] = field(default_factory=list)
    cut_after: int | None = None  # output frames after which the socket is cut
    refuse_upgrade: int | None = None
    cut_at_open: bool = False
    silent: bool = False
    deaf: bool = False  # silent, and nothing is read any more
    close_words: str | None = ""
    close_early: bool = False
    never_close: bool = False
    resend: float = 0.1


class Gateway:
    """A server in its own thread; ``with Gateway(mischief) as gateway``. Acts as the runner's AWS as well."""

    def __init__(self, mischief: Mischief | None = None, shell: str | None = None) -> None:
        self.mischief = mischief or Mischief()
        self.shell = shell
        self.opening: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.terminated: list[str] = []
        self.requests: list[KeyRequest] = []
        self.resumed: list[str] = []
        self.responses: list[dict[str, Any]] = []
        self.open_sessions = 0
        self.peak = 0
        self._sockets: set[ServerConnection] = set()
        self.commands: dict[str, str] = {}
        self.masters: dict[str, int] = {}
        self.children: dict[str, int] = {}
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop: asyncio.Event | None = None
        self.port = 0

    def left_open(self, seconds: float = 5) -> int:
        """Sessions that are still open after some time to settle: the handlers run in a thread of their own."""
        end = time.monotonic() + seconds
        while self.open_sessions and time.monotonic() < end:
            time.sleep(0.01)
        return self.open_sessions

    def __enter__(self) -> Gateway:
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        for pid in self.children.values():
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()

        def screen(connection: ServerConnection, request: Any) -> Any:
            if self.mischief.refuse_upgrade is not None:
                return connection.respond(self.mischief.refuse_upgrade, "no\n")
            if self.mischief.cut_at_open:
                # Before the answer: whether one that was written is still sent would be left to chance.
                connection.transport.abort()
            return None

        async with serve(
            self._session, "127.0.0.1", 0, process_request=screen, compression=None, max_size=None, close_timeout=0.2
        ) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()

    # What the runner calls.

    def execute(self, target: Target, command: str) -> Started:
        identifier = f"ecs-execute-command-{uuid.uuid4().hex}"
        self.commands[identifier] = command
        url = f"ws://127.0.0.1:{self.port}/v1/data-channel/{identifier}?role=publish_subscribe"
        return Started(identifier, url, f"token-of-{identifier}")

    def terminate(self, session_id: str) -> None:
        self.terminated.append(session_id)
        self.terminate_child(session_id)

    def terminate_child(self, session_id: str) -> None:
        with contextlib.suppress(KeyError, ProcessLookupError):
            os.kill(self.children[session_id], signal.SIGKILL)

    def sign(self, url: str) -> dict[str, str]:
        return {"Authorization": f"signed {url}"}

    def resume(self, session_id: str) -> tuple[str, str] | None:
        self.resumed.append(session_id)
        return None

    def data_key(self, target: Target, session_id: str, request: KeyRequest) -> DataKey:
        self.requests.append(request)
        if self.mischief.kms is None:
            raise KeyUnavailable("kms:GenerateDataKey was denied.")
        return DataKey(self.mischief.kms, b"sealed")

    def diagnose(self, target: Target, code: str, message: str) -> str:
        return f"{code}: {message}"

    # The session.

    async def _session(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        identifier = socket.request.path.rpartition("/")[2].partition("?")[0]
        self.headers.append(dict(socket.request.headers.raw_items()))
        self.open_sessions += 1
        self._sockets.add(socket)
        # A session that the client has closed is over for it, though its handler here may not have noticed yet.
        self.peak = max(self.peak, sum(one.state is State.OPEN for one in self._sockets))
        try:
            self.opening.append(json.loads(await socket.recv()))
            await _Agent(self, socket, identifier).run()
        except ConnectionClosed:
            pass
        finally:
            self.open_sessions -= 1
            self._sockets.discard(socket)


class _Agent:
    def __init__(self, gateway: Gateway, socket: ServerConnection, identifier: str) -> None:
        self.gateway = gateway
        self.mischief = gateway.mischief
        self.socket = socket
        self.identifier = identifier
        self.number = 0
        self.unacknowledged: dict[int, bytes] = {}
        self.input_expected = 0
        self.input_early: dict[int, tuple[int, bytes]] = {}
        self.seen: dict[int, int] = {}
        self.handshaken = asyncio.Event()
        self.proven = asyncio.Event()
        self.master = -1

    async def run(self) -> None:
        if self.mischief.deaf:
            self.socket.transport.pause_reading()  # type: ignore[attr-defined]
        for frame in self.mischief.before:
            await self.socket.send(frame)
        if self.mischief.silent or self.mischief.deaf:
            await self.socket.wait_closed()
            return
        reader = asyncio.create_task(self.read())
        resender = asyncio.create_task(self.resend())
        try:
            if self.mischief.handshake is not None:
                await self.shake()
            work = asyncio.ensure_future(self.work())
            gone = asyncio.ensure_future(self.socket.wait_closed())
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            # The client has this long to end a session that it has left.
            await asyncio.wait([work], timeout=1)
            if not work.done():
                self.gateway.terminate_child(self.identifier)
            await work
        finally:
            reader.cancel()
            resender.cancel()
            if self.master >= 0:
                os.close(self.master)

    async def work(self) -> None:
        await self.command()
        await self.settle()

    async def shake(self) -> None:
        request = {"AgentVersion": "3.3.0.0", "RequestedClientActions": self.mischief.handshake}
        await self.send(json.dumps(request).encode(), 5)
        waits = [asyncio.ensure_future(self.handshaken.wait()), asyncio.ensure_future(self.socket.wait_closed())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        waits[0].cancel()
        if self.mischief.kms is not None and self.mischief.challenge is not None:
            secret = os.urandom(64)
            sealed = self.mischief.challenge(self.seal(secret))
            await self.send(json.dumps({"Challenge": base64.b64encode(sealed).decode()}).encode(), 8)
            waits = [asyncio.ensure_future(self.proven.wait()), asyncio.ensure_future(self.socket.wait_closed())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            waits[0].cancel()
            assert self.socket.close_code is not None or self.mischief.answers[-1] == secret
        await self.send(b'{"HandshakeTimeToComplete":1,"CustomerMessage":"This session is encrypted {"}', 7)

    def seal(self, data: bytes) -> bytes:
        assert self.mischief.kms is not None
        nonce = os.urandom(12)
        return nonce + AESGCM(self.mischief.kms[:32]).encrypt(nonce, data, None)

    def unseal(self, data: bytes) -> bytes:
        assert self.mischief.kms is not None
        return AESGCM(self.mischief.kms[32:]).decrypt(data[:12], data[12:], None)

    async def command(self) -> None:
        argv = shlex.split(self.gateway.commands[self.identifier])
        if self.gateway.shell is not None:
            argv[:1] = shlex.split(self.gateway.shell)
        pid, self.master = pty.fork()
        if pid == 0:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, the agent does not
            try:
                os.execvp(argv[0], argv)
            finally:
                os._exit(127)
        self.gateway.children[self.identifier] = pid
        loop = asyncio.get_running_loop()
        while data := await loop.run_in_executor(None, self.read_terminal):
            await self.send(data, 1)
        await loop.run_in_executor(None, os.waitpid, pid, 0)
        del self.gateway.children[self.identifier]

    def read_terminal(self) -> bytes:
        try:
            return os.read(self.master, 1024)
        except OSError:
            return b""

    async def send(self, payload: bytes, payload_type: int) -> None:
        number, self.number = self.number, self.number + 1
        if self.mischief.kms is not None and payload_type == 1:
            payload = self.seal(payload)
        frame = output(number, payload, payload_type)
        self.unacknowledged[number] = frame
        if self.mischief.cut_after is not None and number >= self.mischief.cut_after:
            self.socket.transport.abort()
            raise ConnectionClosed(None, None)
        if self.mischief.close_early and number == 1:
            await self.socket.send(closing(self.mischief.close_words or ""))
        for data in self.mischief.passing(number, frame):
            await self.socket.send(data)

    async def resend(self) -> None:
        while True:
            await asyncio.sleep(self.mischief.resend)
            for number in sorted(self.unacknowledged)[:50]:
                with contextlib.suppress(KeyError):
                    await self.socket.send(self.unacknowledged[number])

    async def settle(self) -> None:
        for _ in range(200):
            if not self.unacknowledged:
                break
            await asyncio.sleep(0.01)
        if self.mischief.never_close:
            await self.socket.wait_closed()
        elif self.mischief.close_words is not None and not self.mischief.close_early:
            await self.socket.send(closing(self.mischief.close_words))

    async def read(self) -> None:
        async for message in self.socket:
            assert isinstance(message, bytes)
            fields = HEADER.unpack_from(message)
            kind, number, payload_type, payload = fields[1].rstrip(), fields[4], fields[8], message[120:]
            assert fields[7] == hashlib.sha256(payload).digest()
            if kind == b"acknowledge":
                self.unacknowledged.pop(json.loads(payload)["AcknowledgedMessageSequenceNumber"], None)
            elif kind == b"input_stream_data":
                self.seen[number] = self.seen.get(number, 0) + 1
                if self.mischief.acknowledge(number, self.seen[number]):
                    await self.acknowledge(number)
                    await self.take(number, payload_type, payload)

    async def acknowledge(self, number: int) -> None:
        content = {
            "AcknowledgedMessageType": "input_stream_data",
            "AcknowledgedMessageId": str(uuid.uuid4()),
            "AcknowledgedMessageSequenceNumber": number,
            "IsSequentialMessage": True,
        }
        await self.socket.send(build("acknowledge", 0, json.dumps(content).encode(), 0, 3))

    async def take(self, number: int, payload_type: int, payload: bytes) -> None:
        if number < self.input_expected:
            return
        self.input_early[number] = (payload_type, payload)
        while self.input_expected in self.input_early:
            kind, data = self.input_early.pop(self.input_expected)
            self.input_expected += 1
            if kind == 6:
                self.gateway.responses.append(json.loads(data))
                statuses = [action["ActionStatus"] for action in json.loads(data)["ProcessedClientActions"]]
                if all(status == 1 for status in statuses):
                    self.handshaken.set()
            elif kind == 9:
                self.mischief.answers.append(self.unseal(base64.b64decode(json.loads(data)["Challenge"])))
                self.proven.set()
            elif kind == 1 and self.master >= 0:
                data = self.unseal(data) if self.mischief.kms is not None else data
                with contextlib.suppress(OSError):
                    await asyncio.get_running_loop().run_in_executor(None, self.write_terminal, data)

    def write_terminal(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.master, data) :]


def targets(count: int = 1) -> list[Target]:
    """Return targets that the gateway serves."""
    return [Target(f"arn:aws:ecs:us-east-1:123456789012:task/c/{n:032x}", "c", "main") for n in range(count)]


@contextlib.contextmanager
def gateway(mischief: Mischief | None = None, shell: str | None = None) -> Iterator[Gateway]:
    """Run a gateway for the length of a with statement."""
    with Gateway(mischief, shell) as running:
        yield running
