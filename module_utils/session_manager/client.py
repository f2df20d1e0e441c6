# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A data channel over a WebSocket: connecting, keeping alive, and one place where every failure becomes a sentence.

The URL and the token of a session are secrets. They are passed to the library and nowhere else: no error of this
module carries them, and exceptions of the library, which may, are replaced and not chained.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeVar
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    ProxyError,
)

from .channel import ChannelError, Closed, DataChannel, Event, KeyWanted
from .encryption import DataKey, KeyRequest, KeySource, KeyUnavailable

T = TypeVar("T")

OPEN_TIMEOUT: Final = 10.0  # seconds for proxy, TLS and upgrade together
CLOSE_TIMEOUT: Final = 1.0  # seconds for the closing hand-shake; nothing depends on it
MAX_FRAME: Final = 256 * 1024  # bytes; agents send about 1.2 kB
KEY_TIMEOUT: Final = 12.0  # seconds for KMS; the agent gives the hand-shake up after 15
RESUMES: Final = 20  # broken connections that one session is carried on over
RESUME_ATTEMPTS: Final = 3
RESUME_TIMEOUT: Final = 5.0  # seconds for ssm:ResumeSession
LINGER: Final = 1.0  # seconds that output may still come after channel_closed when frames are missing

#: The library logs headers and messages, token included, to whoever listens at the level DEBUG.
_SILENT: Final = logging.Logger("session_manager", logging.CRITICAL + 1)

#: Where AWS tools look for a certificate authority, most specific first.
CA_VARIABLES: Final = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")

#: A query that has one of these is presigned; signing it again would break it (plugin: websocketchannel.go).
_PRESIGNED: Final = frozenset(
    f"X-Amz-{name}"
    for name in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature", "Security-Token")
)

#: Returns the headers that sign a GET of the given https or http URL.
Signer = Callable[[str], Mapping[str, str]]


#: Gets a new URL and token for the session; None: it is over. Blocks, and may raise anything.
ResumeSource = Callable[[], tuple[str, str] | None]


class SessionBroke(Exception):
    """The session ended before its command was known to have ended; one sentence without secrets."""


class NotReachable(SessionBroke):
    """The session was never ready for a command, so none has run."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine; such connections never go through a proxy."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def signing_url(url: str) -> str | None:
    """Return the form of a stream URL that is signed (http instead of ws), or None when it is presigned already."""
    parts = urlsplit(url)
    if _PRESIGNED & parse_qs(parts.query, keep_blank_values=True).keys():
        return None
    return parts._replace(scheme={"wss": "https", "ws": "http"}.get(parts.scheme, parts.scheme)).geturl()


def tls_context(url: str, environment: Mapping[str, str], ca_bundle: str | None = None) -> ssl.SSLContext | None:
    """Return the TLS settings for a wss URL (None for ws), with the authority that the environment or caller names.

    Raises NotReachable when the named file cannot be used.
    """
    if urlsplit(url).scheme != "wss":
        return None
    bundle = ca_bundle or next((environment[name] for name in CA_VARIABLES if environment.get(name)), None)
    try:
        return ssl.create_default_context(cafile=bundle)
    except (OSError, ssl.SSLError):
        raise NotReachable(f"The certificate authorities in {bundle} cannot be read.") from None


class Session:
    """One open data channel.

    Every wait ends by itself: opening after OPEN_TIMEOUT, receiving when the caller says so or the channel's own
    patience is over. The socket is read as fast as it delivers, so that acknowledgements never wait for the consumer.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        key_source: KeySource | None = None,
        resume_source: ResumeSource | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is connected yet.

        key_source: gets the data key where the cluster encrypts its sessions; None: such a session is refused.
        resume_source: carries the session on when its connection breaks; None: it is broken then.
        """
        self._url = url
        self._resume_source = resume_source
        self._resumes = 0
        self._way: tuple[Signer | None, Mapping[str, str], str | None] = (None, {}, None)
        self._key_source = key_source
        self.channel = DataChannel(token, clock=clock)
        self._clock = clock
        self._socket: ClientConnection | None = None
        self._closed_at: float | None = None

    def __repr__(self) -> str:
        return "Session()"

    async def open(self, *, sign: Signer | None, environment: Mapping[str, str], ca_bundle: str | None = None) -> None:
        """Connect, upgrade with signed headers, and send the opening message; raise NotReachable."""
        self._way = (sign, environment, ca_bundle)
        await self._connect()

    async def _connect(self) -> None:
        sign, environment, ca_bundle = self._way
        host = urlsplit(self._url).hostname or ""
        target = signing_url(self._url)
        headers = dict(sign(target)) if sign is not None and target is not None else {}
        proxy: Literal[True] | None = None if is_loopback(host) else True
        try:
            self._socket = await connect(
                self._url,
                additional_headers=headers,
                compression=None,
                proxy=proxy,
                ssl=tls_context(self._url, environment, ca_bundle),
                open_timeout=OPEN_TIMEOUT,
                close_timeout=CLOSE_TIMEOUT,
                max_size=MAX_FRAME,
                max_queue=256,
                logger=_SILENT,
            )
            await self._socket.send(self.channel.opening())
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI, ConnectionClosed, ValueError, EOFError) as exc:
            raise NotReachable(_opening_failure(exc, host)) from None

    async def receive(self, until: float) -> list[Event]:
        """Write what is due, then wait for one message and return what it brought.

        Returns an empty list when a message brought nothing, or when ``until`` (the clock's time) or a timer of the
        channel has come. Raises SessionBroke.
        """
        try:
            async with asyncio.timeout(max(0.0, until - self._clock())):
                await self._write()
            due = self.channel.next_due()
            wait = min(until, due if due is not None else until, *self._linger())
            async with asyncio.timeout(max(0.0, wait - self._clock())):
                message = await self._connected().recv()
        except TimeoutError:
            return self._after_timeout()
        except ConnectionClosed as exc:
            await self._resume(exc, until)
            return []
        events = self._take(message)
        for event in events:
            if isinstance(event, KeyWanted):
                await self._provide_key(event.request)
        return [event for event in events if not isinstance(event, KeyWanted)]

    def _take(self, message: str | bytes) -> list[Event]:
        if isinstance(message, str):
            return []  # no text message is defined towards clients
        try:
            events = self.channel.receive(message)
        except ChannelError as exc:
            raise SessionBroke(str(exc)) from None
        if any(isinstance(event, Closed) for event in events):
            self._closed_at = self._clock()
        return events

    async def _provide_key(self, request: KeyRequest) -> None:
        """Get the data key and go on; without one no command can have run."""
        if self._key_source is None:
            raise NotReachable(
                "The cluster encrypts its exec sessions with a KMS key, and no data key can be had here."
            )
        await self.flush()  # the acknowledgement, lest the agent asks again meanwhile
        try:
            self.channel.provide_key(await in_thread(_bound(self._key_source, request), KEY_TIMEOUT))
        except KeyUnavailable as exc:
            raise NotReachable(str(exc)) from None
        except TimeoutError:
            raise NotReachable(f"kms:GenerateDataKey did not answer within {KEY_TIMEOUT:.0f} s.") from None
        except ChannelError as exc:
            raise NotReachable(str(exc)) from None

    def _linger(self) -> tuple[float, ...]:
        return () if self._closed_at is None else (self._closed_at + LINGER,)

    def _after_timeout(self) -> list[Event]:
        if self._closed_at is not None and self._clock() >= self._closed_at + LINGER:
            raise SessionBroke("The session was closed before all of its output had come.")
        return []

    async def flush(self) -> None:
        """Write everything that is due; raise SessionBroke."""
        try:
            await self._write()
        except ConnectionClosed as exc:
            raise SessionBroke(_closing_failure(exc)) from None

    async def _write(self) -> None:
        socket = self._connected()
        try:
            for data in self.channel.outgoing():
                await socket.send(data)
        except ChannelError as exc:
            raise SessionBroke(str(exc)) from None

    async def _resume(self, exc: ConnectionClosed, until: float) -> None:
        """Carry the session on over a new connection; raise SessionBroke when that can't be done.

        Output that the agent gives up meanwhile is missing for good: the gap, or the missing end, ends the session.
        """
        broke = SessionBroke(_closing_failure(exc))
        self._resumes += 1
        if self._closed_at is not None or self._resumes > RESUMES or _is_our_refusal(exc):
            raise broke
        for attempt in range(RESUME_ATTEMPTS if self._resume_source is not None else 0):
            if self._clock() >= until:
                break
            if await self._resumed(min(RESUME_TIMEOUT, until - self._clock()), broke):
                return
            await asyncio.sleep(0.2 * 2**attempt)
        raise broke

    async def _resumed(self, seconds: float, broke: SessionBroke) -> bool:
        """Try once to resume; raise ``broke`` when the session is over."""
        if self._resume_source is None:
            return False
        try:
            found = await in_thread(self._resume_source, seconds)
        except Exception:  # whatever AWS or the network says, the next attempt may do
            return False
        if found is None:
            raise broke
        self._url, token = found
        self.channel.resume(token)
        try:
            await self._connect()
        except NotReachable:
            return False
        return True

    def settle(self) -> None:
        """Carry the session on no more: what is of interest has arrived."""
        self._resume_source = None

    async def close(self) -> None:
        """Close the socket, politely but not for long. Never raises."""
        if self._socket is not None:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._socket.close()
            except (TimeoutError, OSError, ConnectionClosed):
                self._socket.transport.abort()

    def _connected(self) -> ClientConnection:
        if self._socket is None:
            raise SessionBroke("The session was never opened.")
        return self._socket


def _bound(source: KeySource, request: KeyRequest) -> Callable[[], DataKey]:
    return lambda: source(request)


async def in_thread(function: Callable[[], T], timeout: float) -> T:
    """Run a blocking call in a daemon thread, so that one that hangs cannot keep the process from ending.

    Raises TimeoutError after ``timeout`` seconds, and what the function raises.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]

    def work() -> None:
        value, error = None, None
        try:
            value = function()
        except BaseException as exc:  # handed to the waiting task, whatever it is
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop may be closed when a late answer comes
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, daemon=True).start()
    return await asyncio.wait_for(future, None if timeout == float("inf") else max(0.0, timeout))


def _opening_failure(exc: Exception, host: str) -> str:
    """Say why the WebSocket did not open; the texts of exceptions are left out since they may hold the URL."""
    if isinstance(exc, InvalidStatus):
        status = exc.response.status_code
        meaning = {
            400: ": the session is gone",
            403: ": the signature was refused or the token has expired (a wrong clock does this too)",
        }.get(status, "")
        return f"{host} refused the data channel with HTTP status {status}{meaning}."
    if isinstance(exc, (InvalidProxy, ProxyError)):
        return f"The proxy that the environment names (HTTPS_PROXY) does not lead to {host}."
    if isinstance(exc, TimeoutError):
        return f"No data channel to {host} within {OPEN_TIMEOUT:.0f} s: is there a route or endpoint for ssmmessages?"
    if isinstance(exc, ssl.SSLError):
        return f"{host} has a certificate that is not trusted here (AWS_CA_BUNDLE names other authorities)."
    if isinstance(exc, OSError):
        return f"{host} cannot be reached for the data channel ({exc.strerror or type(exc).__name__})."
    return f"{host} did not open a data channel ({type(exc).__name__})."


def _is_our_refusal(exc: ConnectionClosed) -> bool:
    """Whether it was this side that ended the connection, for a message that can't be a frame."""
    return exc.sent is not None and exc.sent.code == 1009 and not exc.rcvd_then_sent


def _closing_failure(exc: ConnectionClosed) -> str:
    if _is_our_refusal(exc):
        return f"The other side sent a message of more than {MAX_FRAME // 1024} KiB, which no frame is."
    if exc.sent is not None and exc.sent.code == 1011:
        return "The connection went silent: the other side no longer answers pings."
    if exc.rcvd is not None:
        return f"The connection was closed by the other side (WebSocket code {exc.rcvd.code}) before the command's end."
    return "The connection broke before the command's end."
