# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The read side of CloudWatch Logs.

Behaviour after https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_FilterLogEvents.html: at most
10,000 events or 1 MB a page, pages that may be empty and still carry a token, streams merged by time, start and end
both inclusive, tokens opaque, bound to their request and dead after 24 hours.

Events lie in one list a group, sorted by (timestamp, event id); an event's JSON is made once, when it is put, so that a
page is a slice joined together.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .errors import ApiError
from .model import ACCOUNT_ID, REGION
from .patterns import InvalidPatternError, compile_pattern

PAGE_EVENTS = 10_000
PAGE_BYTES = 1_048_576
TOKEN_SECONDS = 24 * 3600
_KEY_TOP = (1 << 63, "")
_INDEX_CACHE = 8


class Event(NamedTuple):
    """One event; sorts by time, then id."""

    timestamp: int
    event_id: str
    ingested: int
    stream: str
    message: str
    encoded: bytes


@dataclass
class Stream:
    """A log stream and what DescribeLogStreams tells of it. Times are epoch milliseconds."""

    name: str
    created: int
    first: int | None = None
    last: int | None = None
    ingested: int | None = None
    sequence: int = 0
    digest: str = ""
    encoded_name: str = ""

    def __post_init__(self) -> None:
        self.encoded_name = _quote(self.name)
        self.digest = f"{int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8]) % 10**20:020d}"


@dataclass
class Group:
    """A log group; ``version`` changes with each event put, to drop indexes made before."""

    name: str
    created: int
    retention_days: int = 365
    metric_filters: int = 0
    streams: dict[str, Stream] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    stored_bytes: int = 0
    version: int = 0

    @property
    def arn(self) -> str:
        return f"arn:aws:logs:{REGION}:{ACCOUNT_ID}:log-group:{self.name}"


class LogStore:
    """All log groups. Not thread-safe: call it from the event loop only."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}
        self.empty_pages = 0
        self._secret = secrets.token_bytes(32)
        self._indexes: OrderedDict[tuple[Any, ...], tuple[int, list[int]]] = OrderedDict()

    # -- writing -------------------------------------------------------------------------------------------------

    def create_group(self, name: str, created: int, metric_filters: int = 0) -> Group:
        """Make a group; an existing one stays as it is."""
        return self.groups.setdefault(name, Group(name, created, metric_filters=metric_filters))

    def put(self, group_name: str, stream_name: str, events: Iterable[tuple[int, int, str]]) -> None:
        """Add ``(timestamp, ingestion time, message)`` events, in the stream's order, to an existing group."""
        group = self.groups.get(group_name)
        if group is None:
            return
        stream = group.streams.get(stream_name)
        fresh: list[Event] = []
        for timestamp, ingested, message in events:
            if stream is None:
                stream = group.streams[stream_name] = Stream(stream_name, timestamp)
            fresh.append(self._event(stream, timestamp, ingested, message))
            group.stored_bytes += len(message) + 26
        if not fresh:
            return
        if len(fresh) < 64:
            for event in fresh:
                insort(group.events, event)
        else:
            group.events.extend(fresh)
            group.events.sort()
        group.version += 1

    @staticmethod
    def _event(stream: Stream, timestamp: int, ingested: int, message: str) -> Event:
        stream.sequence += 1
        stream.first = timestamp if stream.first is None else min(stream.first, timestamp)
        stream.last = timestamp if stream.last is None else max(stream.last, timestamp)
        stream.ingested = ingested if stream.ingested is None else max(stream.ingested, ingested)
        event_id = f"3{timestamp:013d}{stream.digest}{stream.sequence:022d}"
        encoded = (
            f'{{"logStreamName":{stream.encoded_name},"timestamp":{timestamp},"message":{_quote(message)},'
            f'"ingestionTime":{ingested},"eventId":"{event_id}"}}'
        ).encode()
        return Event(timestamp, event_id, ingested, stream.name, message, encoded)

    # -- FilterLogEvents -----------------------------------------------------------------------------------------

    def filter_log_events(self, request: dict[str, Any]) -> bytes:
        """Answer FilterLogEvents.

        :returns: the JSON body.
        :raises ApiError: as AWS answers.
        """
        group = self._group(request)
        streams = self._stream_names(group, request)
        limit = int_member(request, "limit", 1, PAGE_EVENTS, PAGE_EVENTS)
        start = int_member(request, "startTime", 0, None, 0)
        now = int(time.time() * 1000)
        end = min(int_member(request, "endTime", 0, None, now), now)
        digest = _request_digest(request, group.name)
        position, empty_left = self._position(request.get("nextToken"), digest)
        if empty_left:
            return _page([], self._token(digest, position, empty_left - 1))

        index = self._index(group, request.get("filterPattern") or "", streams)
        events = group.events
        low, high = max(position, (start, "")), (end, "~")
        if index is None:
            first, last = bisect_left(events, low), bisect_right(events, high)
            chosen: Iterable[Event] = events[first : min(last, first + limit)]
        else:
            first = bisect_left(index, low, key=lambda i: events[i][:2])
            last = bisect_right(index, high, key=lambda i: events[i][:2])
            chosen = [events[i] for i in index[first : min(last, first + limit)]]
        page: list[Event] = []
        size = 0
        for event in chosen:
            size += len(event.encoded) + 1
            if size > PAGE_BYTES and page:
                break
            page.append(event)
        token = None
        if first + len(page) < last:
            token = self._token(digest, (page[-1].timestamp, page[-1].event_id + "!"), 0)
        return _page([event.encoded for event in page], token)

    def _index(self, group: Group, pattern: str, streams: frozenset[str] | None) -> list[int] | None:
        """Positions of the matching events, or None when all match. Made once for a pattern and kept."""
        try:
            matches = compile_pattern(pattern)
        except InvalidPatternError as error:
            raise ApiError("InvalidParameterException", str(error)) from None
        if matches is None and streams is None:
            return None
        key = (group.name, pattern, streams)
        cached = self._indexes.get(key)
        if cached is not None and cached[0] == group.version:
            self._indexes.move_to_end(key)
            return cached[1]
        index = [
            i
            for i, event in enumerate(group.events)
            if (streams is None or event.stream in streams) and (matches is None or matches(event.message))
        ]
        self._indexes[key] = (group.version, index)
        while len(self._indexes) > _INDEX_CACHE:
            self._indexes.popitem(last=False)
        return index

    def _group(self, request: dict[str, Any]) -> Group:
        name, identifier = request.get("logGroupName"), request.get("logGroupIdentifier")
        if (name is None) == (identifier is None):
            raise ApiError("InvalidParameterException", "Specify either logGroupName or logGroupIdentifier")
        if name is None and identifier is not None:
            name = identifier.removesuffix(":*").rsplit(":log-group:", 1)[-1]
        group = self.groups.get(str(name))
        if group is None:
            raise ApiError("ResourceNotFoundException", "The specified log group does not exist.")
        return group

    @staticmethod
    def _stream_names(group: Group, request: dict[str, Any]) -> frozenset[str] | None:
        names, prefix = request.get("logStreamNames"), request.get("logStreamNamePrefix")
        if names is not None and prefix is not None:
            raise ApiError("InvalidParameterException", "Specify either logStreamNames or logStreamNamePrefix")
        if names is not None:
            if not 1 <= len(names) <= 100:
                raise ApiError("InvalidParameterException", "logStreamNames must have 1 to 100 members")
            missing = [name for name in names if name not in group.streams]
            if missing:
                raise ApiError("ResourceNotFoundException", "The specified log stream does not exist.")
            return frozenset(names)
        if prefix is not None:
            return frozenset(name for name in group.streams if name.startswith(prefix))
        return None

    # -- tokens --------------------------------------------------------------------------------------------------

    def _token(self, digest: str, position: tuple[int, str], empty_left: int) -> str:
        body = json.dumps([digest, *position, empty_left, int(time.time())]).encode()
        mac = hmac.new(self._secret, body, hashlib.sha256).digest()[:12]
        scrambled = bytes(b ^ m for b, m in zip(body, _stream_bytes(mac, len(body)), strict=True))
        return base64.urlsafe_b64encode(mac + scrambled).decode().rstrip("=")

    def _position(self, token: str | None, digest: str) -> tuple[tuple[int, str], int]:
        """Where a page begins, and how many empty pages still stand before it."""
        if token is None:
            return (0, ""), self.empty_pages
        invalid = ApiError("InvalidParameterException", "The specified nextToken is invalid.")
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            mac, scrambled = raw[:12], raw[12:]
            body = bytes(b ^ m for b, m in zip(scrambled, _stream_bytes(mac, len(scrambled)), strict=True))
            if not hmac.compare_digest(mac, hmac.new(self._secret, body, hashlib.sha256).digest()[:12]):
                raise invalid
            was_for, timestamp, event_id, empty_left, issued = json.loads(body)
        except (ValueError, TypeError):
            raise invalid from None
        if was_for != digest or issued + TOKEN_SECONDS < time.time():
            raise invalid
        return (timestamp, event_id), empty_left

    # -- Describe ------------------------------------------------------------------------------------------------

    def describe_log_groups(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer DescribeLogGroups (prefix or pattern, pages of at most 50)."""
        prefix, pattern = request.get("logGroupNamePrefix"), request.get("logGroupNamePattern")
        if prefix is not None and pattern is not None:
            raise ApiError("InvalidParameterException", "Specify either logGroupNamePrefix or logGroupNamePattern")
        names = sorted(
            name
            for name in self.groups
            if (prefix is None or name.startswith(prefix)) and (pattern is None or pattern.lower() in name.lower())
        )
        chosen, token = self._slice(names, request)
        answer: dict[str, Any] = {"logGroups": [_group_facts(self.groups[name]) for name in chosen]}
        return answer | ({"nextToken": token} if token else {})

    def describe_log_streams(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer DescribeLogStreams (by name or by last event, pages of at most 50)."""
        group = self._group(request)
        prefix, order = request.get("logStreamNamePrefix"), request.get("orderBy", "LogStreamName")
        if order not in ("LogStreamName", "LastEventTime"):
            raise ApiError("InvalidParameterException", "orderBy must be LogStreamName or LastEventTime")
        if order == "LastEventTime" and prefix is not None:
            raise ApiError("InvalidParameterException", "Cannot order by LastEventTime with a logStreamNamePrefix.")
        streams = [stream for stream in group.streams.values() if prefix is None or stream.name.startswith(prefix)]
        by_time = order == "LastEventTime"
        streams.sort(key=lambda s: ((by_time and s.last) or 0, s.name), reverse=bool(request.get("descending")))
        names, token = self._slice([stream.name for stream in streams], request)
        answer: dict[str, Any] = {"logStreams": [_stream_facts(group, group.streams[name]) for name in names]}
        return answer | ({"nextToken": token} if token else {})

    def _slice(self, names: list[str], request: dict[str, Any]) -> tuple[list[str], str | None]:
        limit = int_member(request, "limit", 1, 50, 50)
        digest = _request_digest(request, "")
        (offset, _name), _empty = self._position(request.get("nextToken"), digest)
        chosen = names[offset : offset + limit]
        token = self._token(digest, (offset + limit, ""), 0) if offset + limit < len(names) else None
        return chosen, token


_quote = json.JSONEncoder(ensure_ascii=False).encode


def _page(encoded: list[bytes], token: str | None) -> bytes:
    tail = f',"nextToken":{json.dumps(token)}}}'.encode() if token else b"}"
    return b'{"events":[' + b",".join(encoded) + b'],"searchedLogStreams":[]' + tail


def _stream_bytes(seed: bytes, length: int) -> bytes:
    return hashlib.shake_128(seed).digest(length)


def _request_digest(request: dict[str, Any], group: str) -> str:
    """Digest of a request without its token: a token serves the request that it came from, and no other."""
    rest = {key: value for key, value in request.items() if key not in ("nextToken", "limit")}
    return hashlib.sha256(json.dumps([group, rest], sort_keys=True).encode()).hexdigest()[:16]


def int_member(request: dict[str, Any], name: str, low: int, high: int | None, default: int) -> int:
    value = request.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        span = f"between {low} and {high}" if high is not None else f"{low} or more"
        raise ApiError("InvalidParameterException", f"Value at '{name}' must be an integer, {span}")
    return value


def _group_facts(group: Group) -> dict[str, Any]:
    return {
        "logGroupName": group.name,
        "creationTime": group.created,
        "retentionInDays": group.retention_days,
        "metricFilterCount": group.metric_filters,
        "arn": group.arn + ":*",
        "logGroupArn": group.arn,
        "storedBytes": group.stored_bytes,
        "logGroupClass": "STANDARD",
    }


def _stream_facts(group: Group, stream: Stream) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "logStreamName": stream.name,
        "creationTime": stream.created,
        "arn": f"{group.arn}:log-stream:{stream.name}",
        "storedBytes": 0,
    }
    if stream.first is not None:
        facts |= {
            "firstEventTimestamp": stream.first,
            "lastEventTimestamp": stream.last,
            "lastIngestionTime": stream.ingested,
        }
    return facts
