# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's side of the data channel, driven by frames that are put together here byte by byte from the protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import shutil
import struct
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sandbox.model import TaskSpec
from sandbox.tasks import agent as agents
from sandbox.tasks import shlex_go
from sandbox.tasks.agent import Gateway, Options
from sandbox.tasks.encryption import Encryption
from sandbox.tasks.terminal import pass_utf8

from .conftest import Cloud

FAST = Options().with_delays(False)
OUTPUT, SIZE, REQUEST, RESPONSE, COMPLETE, CHALLENGE, PROOF = 1, 3, 5, 6, 7, 8, 9
# The worked example of the protocol: output_stream_data 5, payload "hi\r\n".
EXAMPLE = bytes.fromhex(
    "000000746f75747075745f73747265616d5f6461746120202020202020202020202020200000000100"
    "00018bcfe5687b000000000000000500000000000000008899aabbccddeeff001122334455667744723dd4d0e0d46a3c7fa8aca254"
    "b61c27b6b578" + "9f96177e82c80700409f1535000000010000000468690d0a"
)


@dataclass
class Heard:
    """A frame from the agent, taken apart."""

    kind: str
    sequence: int
    flags: int
    message_id: uuid.UUID
    payload_type: int
    payload: bytes
    digest_fits: bool

    @property
    def json(self) -> Any:
        return json.loads(self.payload)


def read(data: bytes) -> Heard:
    length, name, _schema, created, sequence, flags = struct.unpack(">I32sIQqQ", data[:64])
    swapped = data[64:80]
    digest, payload_type, size = struct.unpack(">32sII", data[80:120])
    payload = data[120:]
    assert (length, size) == (116, len(payload)) or name.startswith(b"output")
    assert created > 1_700_000_000_000
    message_id = uuid.UUID(bytes=swapped[8:] + swapped[:8])
    fits = digest == hashlib.sha256(payload).digest()
    return Heard(name.decode().rstrip(" "), sequence, flags, message_id, payload_type, payload, fits)


def frame(kind: str, sequence: int, payload: bytes, payload_type: int = 0, flags: int = 0) -> bytes:
    identity = uuid.uuid4().bytes
    head = struct.pack(">I32sIQqQ", 116, kind.encode().ljust(32), 1, int(time.time() * 1000), sequence, flags)
    tail = struct.pack(">32sII", hashlib.sha256(payload).digest(), payload_type, len(payload))
    return head + identity[8:] + identity[:8] + tail + payload


@dataclass
class Talk:
    """One connection, and all that was heard on it."""

    socket: aiohttp.ClientWebSocketResponse
    acknowledge: bool = True
    heard: list[Heard] = field(default_factory=list)
    sent: int = 0

    async def hello(self, token: str) -> None:
        opening = {"MessageSchemaVersion": "1.0", "RequestId": str(uuid.uuid4()), "TokenValue": token}
        await self.socket.send_str(json.dumps(opening | {"ClientId": "me", "ClientVersion": "1.2.764.0"}))

    async def say(self, payload: bytes, kind: int = OUTPUT, number: int | None = None) -> None:
        if number is None:
            number, self.sent = self.sent, self.sent + 1
        await self.socket.send_bytes(frame("input_stream_data", number, payload, kind))

    async def ack(self, heard: Heard) -> None:
        payload = {
            "AcknowledgedMessageType": heard.kind,
            "AcknowledgedMessageId": str(heard.message_id),
            "AcknowledgedMessageSequenceNumber": heard.sequence,
            "IsSequentialMessage": True,
        }
        await self.socket.send_bytes(frame("acknowledge", 0, json.dumps(payload).encode(), flags=3))

    async def hear(self, seconds: float = 10.0) -> Heard | None:
        """The next frame, acknowledged; None at the end of the connection."""
        message = await self.socket.receive(timeout=seconds)
        if message.type is not aiohttp.WSMsgType.BINARY:
            return None
        heard = read(message.data)
        self.heard.append(heard)
        if heard.kind == "output_stream_data" and self.acknowledge:
            await self.ack(heard)
        return heard

    async def until(self, wanted: Callable[[Heard], bool], seconds: float = 10.0) -> Heard:
        async with asyncio.timeout(seconds):
            while (heard := await self.hear()) is not None:
                if wanted(heard):
                    return heard
        raise AssertionError("the connection ended before")

    async def end(self, seconds: float = 15.0) -> str:
        """Everything printed, once the connection is over."""
        async with asyncio.timeout(seconds):
            while await self.hear(seconds) is not None:
                pass
        return self.printed

    @property
    def printed(self) -> str:
        found = {
            h.sequence: h.payload for h in self.heard if h.kind == "output_stream_data" and h.payload_type == OUTPUT
        }
        return b"".join(found[number] for number in sorted(found)).decode(errors="replace")

    @property
    def closing(self) -> Any:
        return next((h.json for h in self.heard if h.kind == "channel_closed"), None)

    def acked(self) -> list[int]:
        return [h.json["AcknowledgedMessageSequenceNumber"] for h in self.heard if h.kind == "acknowledge"]


@dataclass
class Named:
    session_id: str
    token: str
    command: str


class Bench:
    """A gateway on a port of its own."""

    def __init__(self, cloud: Cloud, options: Options) -> None:
        self.cloud = cloud
        self.gateway = Gateway(options)
        self.port = 0
        self._http: aiohttp.ClientSession | None = None

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Bench]:
        async def channel(request: web.Request) -> web.StreamResponse:
            return await self.gateway.answer(request, request.match_info["session"])

        app = web.Application()
        app.router.add_get("/{session}", channel)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        async with aiohttp.ClientSession() as self._http:
            yield self
        await self.gateway.close()
        await runner.cleanup()

    def open(self, spec: TaskSpec, command: str, encryption: Encryption | None = None) -> Named:
        task = self.cloud.runtime.task(spec.task_id)
        assert task is not None
        named = Named(f"ecs-execute-command-{uuid.uuid4().hex}", uuid.uuid4().hex, command)
        self.gateway.open(named, task, encryption)
        return named

    async def connect(self, named: Named, *, token: str | None = None, acknowledge: bool = True) -> Talk:
        assert self._http is not None
        talk = Talk(await self._http.ws_connect(f"ws://127.0.0.1:{self.port}/{named.session_id}"), acknowledge)
        await talk.hello(token or named.token)
        return talk

    async def run(self, spec: TaskSpec, command: str) -> Talk:
        talk = await self.connect(self.open(spec, command))
        await talk.end()
        return talk


@pytest.fixture(scope="module")
def spec(cloud: Cloud) -> TaskSpec:
    made = cloud.spec("imap", environment={"MASTER_PASSWORD": "secret"})
    cloud.start(made)
    return made


Play = Callable[..., None]


@pytest.fixture
def play(cloud: Cloud) -> Play:
    """Run a coroutine function against a gateway with the given options."""

    def runner(part: Callable[[Bench], Awaitable[None]], options: Options = FAST) -> None:
        async def main() -> None:
            async with Bench(cloud, options).serving() as bench:
                await part(bench)

        asyncio.run(main())

    return runner


def test_the_worked_example_is_read_and_written_alike() -> None:
    heard = agents.frames.decode(EXAMPLE)
    assert (heard.message_type, heard.sequence, heard.payload_type, heard.payload) == (
        "output_stream_data",
        5,
        1,
        b"hi\r\n",
    )
    assert heard.message_id == uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
    again = heard.encode()
    assert again[:40] + again[48:] == EXAMPLE[:40] + EXAMPLE[48:]


def test_a_command_runs_in_the_task_and_ends_with_an_empty_channel_closed(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        talk = await bench.run(
            spec, "/bin/sh -c 'echo out; echo err >&2; hostname; echo $MASTER_PASSWORD $TERM; exit 3'"
        )
        assert talk.printed == f"out\r\nerr\r\n{spec.host_name}\r\nsecret xterm-256color\r\n"
        assert talk.closing["Output"] == ""
        assert talk.closing["MessageType"] == "channel_closed"
        assert next(h.flags for h in talk.heard if h.kind == "output_stream_data") == 1
        assert all(h.digest_fits for h in talk.heard)

    play(part)


def test_the_command_leads_a_session_on_a_terminal_of_size_zero_until_told(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        talk = await bench.connect(
            bench.open(spec, "sh -c 'tty; stty size; read go; stty size; ps -o sid= -p $$; echo pid $$'")
        )
        await talk.until(lambda h: b"0 0" in h.payload)
        await talk.say(b'{"cols": 300, "rows": 100}', SIZE)
        await talk.say(b"\n")
        lines = (await talk.end()).split("\r\n")
        assert lines[0].startswith("/dev/pts/")
        assert "100 300" in lines
        session, pid = lines[-3].strip(), lines[-2].removeprefix("pid ")
        assert session == pid
        assert set(talk.acked()) == {0, 1}

    play(part)


def test_no_shell_reads_the_command(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        talk = await bench.run(spec, r"""echo $HOME | cat 'a  b' "c\d" e\ f # gone""")
        assert talk.printed == "$HOME | cat a  b cd e f\r\n"

    play(part)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (
            "nosuch -x",
            'Unable to start command: Failed to start pty: exec: "nosuch": executable file not found in $PATH',
        ),
        (
            "/bin/nosuch",
            "Unable to start command: Failed to start pty: fork/exec /bin/nosuch: no such file or directory",
        ),
        ("echo 'x", "Unable to start command: Failed to parse commands input: EOF found when expecting closing quote"),
    ],
)
def test_what_can_not_start_is_told_in_channel_closed(play: Play, spec: TaskSpec, command: str, text: str) -> None:
    async def part(bench: Bench) -> None:
        assert (await bench.run(spec, command)).closing["Output"] == text

    play(part)


def test_the_agents_own_delays_are_the_default(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        begun = time.monotonic()
        talk = await bench.connect(bench.open(spec, "echo x"))
        await talk.until(lambda h: h.kind == "output_stream_data")
        assert time.monotonic() - begun > 1.0

    play(part, Options())


def test_frames_carry_at_most_1024_bytes_and_all_of_them(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        talk = await bench.run(spec, "sh -c 'stty raw; seq 1 20000'")
        assert talk.printed == "".join(f"{n}\n" for n in range(1, 20_001))
        assert max(len(h.payload) for h in talk.heard if h.kind == "output_stream_data") <= 1024

    play(part)


def test_a_wrong_token_closes_the_socket_and_starts_nothing(play: Play, spec: TaskSpec, cloud: Cloud) -> None:
    async def part(bench: Bench) -> None:
        named = bench.open(spec, "touch /tmp/started")
        talk = await bench.connect(named, token="wrong")
        assert await talk.hear() is None
        assert cloud.shell(spec, "ls /tmp/started 2>&1").endswith("No such file or directory\n")
        assert (await (await bench.connect(named)).end()) == ""

    play(part)


def test_an_unknown_session_is_refused_at_the_upgrade(play: Play) -> None:
    async def part(bench: Bench) -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await bench.connect(Named("nobody", "x", "x"))
        assert refused.value.status == 400

    play(part)


def test_input_is_taken_in_order_acknowledged_once_each_and_again_when_repeated(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        talk = await bench.connect(bench.open(spec, "sh -c 'stty -echo; echo go; read line; echo got $line'"))
        await talk.until(lambda h: b"go" in h.payload)
        await talk.say(b"c\n", number=2)
        await talk.say(b"b", number=1)
        await talk.say(b"a", number=0)
        await talk.say(b"a", number=0)
        assert (await talk.end()).endswith("got abc\r\n")
        assert sorted(talk.acked()) == [0, 0, 1, 2]

    play(part)


def test_junk_frames_are_ignored(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        talk = await bench.connect(bench.open(spec, "sh -c 'stty -echo; echo go; read line; echo got $line'"))
        await talk.until(lambda h: b"go" in h.payload)
        good = frame("input_stream_data", 0, b"x\n", OUTPUT)
        for bad in (b"", b"x" * 119, struct.pack(">I", 117) + good[4:], good[:40] + bytes(8) + good[48:]):
            await talk.socket.send_bytes(bad)
        await talk.socket.send_bytes(frame("acknowledge", 0, b"not json"))
        await talk.socket.send_bytes(good)
        assert (await talk.end()).endswith("got x\r\n")

    play(part)


def test_what_is_not_acknowledged_is_sent_again_oldest_first(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        talk = await bench.connect(
            bench.open(spec, "sh -c 'echo one; sleep 0.3; echo two; sleep 20'"), acknowledge=False
        )
        await talk.until(lambda h: b"two" in h.payload)
        with contextlib.suppress(TimeoutError, AssertionError):
            await talk.until(lambda h: False, 1.5)
        numbers = [h.sequence for h in talk.heard if h.kind == "output_stream_data"]
        assert numbers.count(0) >= 3
        assert numbers.count(1) == 1
        ids = {h.message_id for h in talk.heard if h.sequence == 0}
        assert len(ids) == 1

    play(part)


def test_what_is_unacknowledged_at_the_end_is_gone_after_the_grace(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        talk = await bench.connect(bench.open(spec, "echo x"), acknowledge=False)
        begun = time.monotonic()
        await talk.end()
        assert 0.3 < time.monotonic() - begun < 3
        assert talk.closing["Output"] == ""

    play(part, Options(first_read_delay=0, close_grace=0.2))


def test_a_background_child_holds_the_session_open(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        begun = time.monotonic()
        talk = await bench.run(spec, "sh -c 'trap \"\" HUP; (sleep 1; echo late) & echo early'")
        assert time.monotonic() - begun > 0.9
        assert talk.printed == "early\r\nlate\r\n"

    play(part)


def test_terminate_kills_the_direct_child_and_hangs_up_the_rest(play: Play, spec: TaskSpec, cloud: Cloud) -> None:
    async def part(bench: Bench) -> None:
        named = bench.open(spec, "sh -c 'trap \"\" HUP; setsid sleep 731 & sleep 732 & sleep 733'")
        talk = await bench.connect(named)
        await asyncio.sleep(0.5)
        assert await bench.gateway.terminate(named.session_id)
        await talk.end()
        assert talk.closing["Output"] == ""
        assert await bench.gateway.terminate(named.session_id)
        await asyncio.sleep(0.2)
        left = await asyncio.to_thread(cloud.shell, spec, "pgrep -af '^sleep 73'; pkill -f '^sleep 73'")
        assert "sleep 731" in left

    play(part)


def test_ctrl_c_interrupts(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        talk = await bench.connect(
            bench.open(spec, "sh -c 'trap \"echo stopped; exit\" INT; echo go; while :; do sleep 0.2; done'")
        )
        await talk.until(lambda h: b"go" in h.payload)
        await talk.say(b"\x03")
        assert "stopped" in await talk.end()

    play(part)


def test_two_sessions_a_container_the_third_waits(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        first, second = (bench.open(spec, "sh -c 'echo here; read x'") for _ in range(2))
        one, two = await bench.connect(first), await bench.connect(second)
        for talk in (one, two):
            await talk.until(lambda h: b"here" in h.payload)
        third = await bench.connect(bench.open(spec, "echo third"))
        with pytest.raises(TimeoutError):
            await third.hear(0.5)
        await one.say(b"\n")
        third = await bench.connect(bench.open(spec, "echo fourth")) if third.socket.closed else third
        assert (await third.end()) == "third\r\n"

    play(part)


def test_handshake_when_asked_for(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        talk = await bench.connect(bench.open(spec, "sh -c 'read line; echo got $line'"))
        request = await talk.until(lambda h: h.payload_type == REQUEST)
        assert request.json["RequestedClientActions"][0]["ActionParameters"]["SessionType"] == "InteractiveCommands"
        await talk.say(b"early\n")
        actions = [{"ActionType": "SessionType", "ActionStatus": 1, "ActionResult": "", "Error": ""}]
        answer = {"ClientVersion": "1.2.764.0", "ProcessedClientActions": actions, "Errors": None}
        await talk.say(json.dumps(answer).encode(), RESPONSE)
        done = await talk.until(lambda h: h.payload_type == COMPLETE)
        assert done.json["HandshakeTimeToComplete"] > 0
        while True:
            await talk.say(b"late\n", number=talk.sent)
            with contextlib.suppress(TimeoutError):
                await talk.until(
                    lambda h: h.kind == "acknowledge" and h.json["AcknowledgedMessageSequenceNumber"] == 2, 1
                )
                break
        assert (await talk.end()).endswith("got late\r\n")

    play(part, Options(handshake=True).with_delays(False))


@pytest.mark.parametrize(("status", "text"), [(None, "Handshake timed out"), (3, "not ours"), (0, "failed")])
def test_a_handshake_that_is_not_answered_or_refused_ends_the_session(
    play: Play, spec: TaskSpec, status: int | None, text: str
) -> None:
    async def part(bench: Bench) -> None:
        talk = await bench.connect(bench.open(spec, "echo never"))
        await talk.until(lambda h: h.payload_type == REQUEST)
        if status is not None:
            action = {"ActionType": "SessionType", "ActionStatus": status, "Error": "not ours" if status == 3 else ""}
            await talk.say(json.dumps({"ProcessedClientActions": [action]}).encode(), RESPONSE)
        assert (await talk.end()) == ""
        assert talk.closing["Output"].startswith("Encountered error while initiating handshake. ")
        assert text in talk.closing["Output"]

    play(part, Options(handshake=True, handshake_timeout=0.3).with_delays(False))


AGENTS, CLIENTS = AESGCM(bytes(range(32))), AESGCM(bytes(range(32, 64)))


def opened(data: bytes) -> bytes:
    return AGENTS.decrypt(data[:12], data[12:], None)


def sealed(data: bytes) -> bytes:
    nonce = os.urandom(12)
    return nonce + CLIENTS.encrypt(nonce, data, None)


class Kms:
    """Opens one ciphertext, in one context, as often as asked; what it was asked is kept."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes, dict[str, str]]] = []

    def decrypt(self, key_id: str, data: bytes, context: dict[str, str]) -> bytes:
        self.asked.append((key_id, data, context))
        if data != b"wrapped":
            raise ValueError("InvalidCiphertextException")
        return bytes(range(64))


async def key_agreed(talk: Talk, wrapped: bytes = b"wrapped", **result: Any) -> dict[str, Any]:
    """Answer the request for a key; return the action that asked for it."""
    request = await talk.until(lambda h: h.payload_type == REQUEST)
    session, kms = request.json["RequestedClientActions"]
    assert (session["ActionType"], kms["ActionType"]) == ("SessionType", "KMSEncryption")
    key = {"KMSCipherTextKey": base64.b64encode(wrapped).decode(), "KMSCipherTextHash": None, **result}
    actions = [
        {"ActionType": "SessionType", "ActionStatus": 1, "ActionResult": None, "Error": ""},
        {"ActionType": "KMSEncryption", "ActionStatus": 1, "ActionResult": key, "Error": ""},
    ]
    await talk.say(json.dumps({"ClientVersion": "1.2.835.0", "ProcessedClientActions": actions}).encode(), RESPONSE)
    return dict(kms["ActionParameters"])


async def proven(talk: Talk) -> None:
    """Answer the encryption challenge and hear the end of the hand-shake."""
    challenge = base64.b64decode((await talk.until(lambda h: h.payload_type == CHALLENGE)).json["Challenge"])
    assert len(challenge) == 92
    proof = base64.b64encode(sealed(opened(challenge))).decode()
    await talk.say(json.dumps({"Challenge": proof}).encode(), PROOF)
    done = await talk.until(lambda h: h.payload_type == COMPLETE)
    assert done.json["CustomerMessage"] == "This session is encrypted using AWS KMS."
    # Input that comes before the terminal is there would have to be sent again.
    await talk.until(lambda h: h.payload_type == OUTPUT)


@pytest.mark.parametrize("acknowledged", [True, False], ids=["client knows the challenge", "older client"])
def test_a_session_encrypted_with_the_clusters_key(play: Play, spec: TaskSpec, acknowledged: bool) -> None:
    kms = Kms()

    async def part(bench: Bench) -> None:
        named = bench.open(
            spec, "sh -c 'echo ready; read line; echo got $line'", Encryption("key", "ecs:c_t_r", kms.decrypt)
        )
        talk = await bench.connect(named)
        wanted = await key_agreed(talk, **({"ChallengeAcknowledgement": True} if acknowledged else {}))
        assert wanted["KMSKeyId"] == "key"
        assert len(base64.b64decode(wanted["Challenge"])) == 16
        await proven(talk)
        await talk.say(b'{"cols": 80, "rows": 24}', SIZE)
        await talk.say(sealed(b"sealed\n"))
        await talk.end()
        parts = {h.sequence: h.payload for h in talk.heard if h.payload_type == OUTPUT}
        assert b"".join(opened(parts[number]) for number in sorted(parts)).endswith(b"got sealed\r\n")
        assert len({part[:12] for part in parts.values()}) == len(parts)
        context = {"aws:ssm:SessionId": named.session_id, "aws:ssm:TargetId": "ecs:c_t_r"}
        if acknowledged:
            context["aws:ssm:RandomChallenge"] = wanted["Challenge"]
        assert kms.asked == [("key", b"wrapped", context)]

    play(part)


def test_input_under_another_key_is_neither_acknowledged_nor_typed(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        named = bench.open(spec, "sh -c 'echo ready; read line; echo got $line'", Encryption("key", "t", Kms().decrypt))
        talk = await bench.connect(named)
        await key_agreed(talk)
        await proven(talk)
        number = talk.sent
        for forged in (b"plain\n", sealed(b"x\n")[:-1] + b"!", bytes(40)):
            await talk.say(forged, number=number)
        await talk.say(sealed(b"true\n"), number=number)
        with pytest.raises(InvalidTag):
            opened(sealed(b"the two directions have keys of their own"))
        await talk.end()
        assert talk.acked().count(number) == 1
        text = b"".join(opened(h.payload) for h in talk.heard if h.payload_type == OUTPUT)
        assert b"got true" in text
        assert b"plain" not in text

    play(part)


@pytest.mark.parametrize(
    ("wrapped", "proof", "text"),
    [(b"another's", None, "Fetching data key failed"), (b"wrapped", sealed(bytes(64)), "Handshake timed out")],
    ids=["a key that KMS does not open", "a wrong answer to the challenge"],
)
def test_no_command_runs_without_an_agreed_key(
    play: Play, spec: TaskSpec, wrapped: bytes, proof: bytes | None, text: str
) -> None:
    async def part(bench: Bench) -> None:
        talk = await bench.connect(bench.open(spec, "echo never", Encryption("key", "t", Kms().decrypt)))
        await key_agreed(talk, wrapped)
        if proof is not None:
            await talk.until(lambda h: h.payload_type == CHALLENGE)
            await talk.say(json.dumps({"Challenge": base64.b64encode(proof).decode()}).encode(), PROOF)
        assert (await talk.end()) == ""
        assert text in talk.closing["Output"]

    play(part, Options(handshake_timeout=0.5).with_delays(False))


def test_an_idle_session_ends_with_the_documented_sentence(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        talk = await bench.run(spec, "sleep 60")
        assert talk.closing["Output"] == agents.IDLE_TEXT

    play(part, Options(idle_timeout=0.5).with_delays(False))


def test_a_stopped_task_is_silence_and_pause_publication(play: Play, cloud: Cloud) -> None:
    async def part(bench: Bench) -> None:
        mine = cloud.spec("smtp-out")
        await asyncio.to_thread(cloud.start, mine)
        named = bench.open(mine, "sh -c 'echo here; sleep 60'")
        talk = await bench.connect(named)
        await talk.until(lambda h: b"here" in h.payload)
        await asyncio.to_thread(cloud.runtime.stop, mine.task_id, grace=0)
        await talk.until(lambda h: h.kind == "pause_publication")
        await talk.say(b"x")
        await talk.until(lambda h: h.kind == "pause_publication")
        assert talk.acked() == []
        assert talk.closing is None
        await bench.gateway.terminate(named.session_id)
        await talk.end()

    play(part)


def test_a_dropped_socket_resumes_with_a_new_token_and_loses_nothing(play: Play, spec: TaskSpec) -> None:
    async def part(bench: Bench) -> None:
        bench.gateway.configure({"delays": "off", "faults": {"drop_after": 5}})
        named = bench.open(spec, "sh -c 'stty raw -echo; seq 1 3000; read x'")
        talk = await bench.connect(named)
        assert not (await talk.end()).endswith("3000\n")
        assert talk.closing is None
        token = bench.gateway.resume(named.session_id)
        assert token
        assert token != named.token
        again = await bench.connect(named, token=token)
        again.heard = talk.heard
        async with asyncio.timeout(30):
            while not again.printed.endswith("\n3000\n"):
                await again.hear()
        await again.say(b"\n")
        assert (await again.end()) == "".join(f"{n}\n" for n in range(1, 3001))
        assert bench.gateway.resume(named.session_id) is None

    play(part)


@pytest.mark.parametrize("fault", ["lose", "duplicate", "reorder", "corrupt", "garbage", "lose_acks", "lose_input"])
def test_faults_on_the_way_do_happen_and_heal(play: Play, spec: TaskSpec, fault: str) -> None:
    async def part(bench: Bench) -> None:
        bench.gateway.configure({"delays": "off", "faults": {fault: 0.2, "seed": 7}})
        talk = await bench.connect(bench.open(spec, "sh -c 'stty raw; seq 1 3000; sleep 1'"))
        strange = 0
        async with asyncio.timeout(30):
            while (message := await talk.socket.receive()).type is aiohttp.WSMsgType.BINARY:
                if len(message.data) < 120 or message.data[:4] != b"\x00\x00\x00\x74":
                    strange += 1
                    continue
                heard = read(message.data)
                if not heard.digest_fits:
                    strange += 1
                    continue
                talk.heard.append(heard)
                if heard.kind == "output_stream_data":
                    await talk.ack(heard)
        assert talk.printed == "".join(f"{n}\n" for n in range(1, 3001))
        numbers = [h.sequence for h in talk.heard if h.kind == "output_stream_data"]
        if fault in ("corrupt", "garbage"):
            assert strange
        if fault in ("duplicate",):
            assert len(numbers) > len(set(numbers))
        if fault in ("lose", "reorder"):
            assert numbers != sorted(numbers)

    play(part)


def test_unknown_options_are_refused_in_one_sentence() -> None:
    gateway = Gateway(FAST)
    for wanted in ({"delay": 1}, {"faults": {"nonsense": 1}}, {"faults": 3}, {"close_grace": "2"}):
        with pytest.raises(ValueError, match=r"\.$"):
            gateway.configure(wanted)
    assert gateway.options == FAST


def test_delays_are_switched_off_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Options.from_environment().first_read_delay == 1.0
    monkeypatch.setenv(agents.DELAYS_VARIABLE, "off")
    assert Options.from_environment() == FAST


@pytest.mark.parametrize(
    ("data", "passed", "held"),
    [
        (b"plain", b"plain", b""),
        ("ü".encode(), "ü".encode(), b""),
        (b"abc\xc3", b"abc", b"\xc3"),
        (b"a\xf0\x9f\x92", b"a", b"\xf0\x9f\x92"),
        (b"\xffabcd", b"\xffabcd", b""),
        (b"ab\xff", b"ab", b"\xff"),
        ("�abcd".encode(), b"\xefabcd", b""),
        ("ab�".encode(), b"ab", "�".encode()),
        ("x💬".encode(), "x💬".encode(), b""),
    ],
)
def test_bytes_pass_as_the_agent_lets_them(data: bytes, passed: bytes, held: bytes) -> None:
    assert pass_utf8(data) == (passed, held)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  a  b\tc ", ["a", "b", "c"]),
        ("'a b' \"c d\"", ["a b", "c d"]),
        (r"'a\b' \a", [r"a\b", "a"]),
        (r'"\$\n"', ["$n"]),
        ("a#b # c", ["a#b"]),
        ("# c\nd", ["d"]),
        ("''", [""]),
        ("a''\"\"b", ["ab"]),
        ("'it'\"'\"'s'", ["it's"]),
    ],
)
def test_words_are_split_as_by_google_shlex(line: str, words: list[str]) -> None:
    assert shlex_go.split(line) == words


def test_an_unfinished_line_is_an_error() -> None:
    for line in ("'a", '"a', "a\\", '"a\\'):
        with pytest.raises(shlex_go.SplitError):
            shlex_go.split(line)


@pytest.mark.skipif(shutil.which("session-manager-plugin") is None, reason="the official plugin is not on PATH")
@pytest.mark.parametrize(
    "options", [Options(), Options(handshake=True), FAST], ids=["as the agent", "handshake", "fast"]
)
def test_the_official_plugin_works_unchanged(play: Play, spec: TaskSpec, options: Options) -> None:
    async def part(bench: Bench) -> None:
        named = bench.open(spec, "sh -c 'stty raw; hostname; seq 1 3000'")
        url = f"ws://127.0.0.1:{bench.port}/{named.session_id}"
        session = {"sessionId": named.session_id, "streamUrl": url, "tokenValue": named.token}
        words = [json.dumps(session), "us-east-1", "StartSession", "", '{"Target": "ecs:c_t_r"}', "http://127.0.0.1:1"]
        plugin = await asyncio.create_subprocess_exec(
            "session-manager-plugin", *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert plugin.stdout is not None
        async with asyncio.timeout(30):
            printed = (await plugin.stdout.read()).decode()
            await plugin.wait()
        assert f"{spec.host_name}\n" in printed
        assert "".join(f"{n}\n" for n in range(1, 3001)) in printed

    play(part, options)
