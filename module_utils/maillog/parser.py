# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of a mail tier's log group to records: sendmail's of releases 8.14 to 8.18, and those of its neighbours.

Fields are read from the left by sendmail's own order (`logdelivery()` in its deliver.c: to, ctladdr, delay, xdelay,
mailer, pri, relay, dsn, reply, stat), each by what it can hold. Text from outside stands in few places, and none of
them can forge a field:

- addresses: a comma and blank can stand in a quoted local part only, and quotes are honoured;
- `relay=`: a host name; the resolver escapes blanks, so it holds no comma and blank;
- `reply=` and what follows: see `_split_reply`;
- `msgid=`: is not read; the relay after it is taken from the end of the line.

Every pattern is anchored and free of nested repetition that could match in two ways, so the time is linear.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from .records import Delivery, Line, Notice, Other, Outcome, Received, Record, Rejection

# A value in which a quoted string may hold ", " and which else ends there.
_VALUE = r'[^",\\]*+(?:(?:"(?:[^"\\]|\\.)*+"|\\.|,(?! ))[^",\\]*+)*+'
_NAME = r"[^,]*+(?:,(?! )[^,]*+)*+"
# Queue ids of all generations have a digit; words of sendmail's other lines ("error: ", "STARTTLS: ") have none.
_QUEUE_ID = r"(?=[A-Za-z]{0,13}\d)[0-9A-Za-z]{5,20}|NOQUEUE"

_ORIGIN = r" \S{1,255} (?P<program>[^\s:\[\]]{1,64})(?:\[(?P<pid>\d{1,10})\])?: "
_ISO = re.compile(
    r"(?:<\d{1,3}>)?(?P<minute>\d{4}-\d\d-\d\d[T ]\d\d:\d\d):(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?"
    r"(?P<zone>Z|[+-]\d\d:?\d\d)" + _ORIGIN,
    re.ASCII,
)
_TRADITIONAL = re.compile(
    r"(?:<\d{1,3}>)?(?P<day>[A-Z][a-z]{2} [ \d]\d) (?P<clock>\d\d:\d\d:\d\d)(?:\.(?P<fraction>\d{1,9}))?" + _ORIGIN,
    re.ASCII,
)
_RFC5424 = re.compile(
    r"<\d{1,3}>1 (?P<minute>\d{4}-\d\d-\d\dT\d\d:\d\d):(?P<second>\d\d)(?:\.(?P<fraction>\d{1,9}))?"
    r"(?P<zone>Z|[+-]\d\d:\d\d) \S{1,255} (?P<program>\S{1,64}) (?P<pid>\S{1,128}) \S{1,32} "
    # rsyslog's own template writes a second blank, since the text that it got began with one.
    r"(?:-|(?:\[(?:[^\]\\]|\\.)*+\])++)(?: {1,2}\ufeff?|\Z)",
    re.ASCII,
)
_BARE = re.compile(
    rf"(?P<program>sendmail|sm-[a-z-]{{1,20}}|opendkim)\[(?P<pid>\d{{1,10}})\]: "
    rf"|(?=(?:{_QUEUE_ID}): (?:to|from|ruleset)=)"
)
# Fields of no interest here: pri=, ntries=, quarantine=, and what sendmail 8.16 and later log when built to log more.
_MORE = r"(?:, (?!relay=|dsn=|reply=|stat=)[a-z_]{1,20}=[^,]*+)*+"
_DELIVERY = re.compile(
    rf"(?P<id>{_QUEUE_ID}): to=(?P<to>{_VALUE})(?:, \[more\])?, (?:ctladdr=(?P<ctladdr>{_VALUE}), )?"
    r"delay=(?P<delay>[\d+:]++)(?:, xdelay=[\d+:]*+)?(?:, mailer=(?P<mailer>[^,]*+))?"
    rf"{_MORE}(?:, relay=(?P<relay>{_NAME}))?{_MORE}"
    rf"(?:, dsn=(?P<dsn>\d\.\d{{1,3}}\.\d{{1,3}})(?![\d.]))?{_MORE}(?P<rest>.*)",
    re.DOTALL,
)
# The same without honouring quotes, for an address that sendmail or a shipper cut inside a quoted string.
_DELIVERY_LOOSE = re.compile(
    _DELIVERY.pattern.replace(_VALUE, r"[^,]*+(?:,(?! (?:delay=|ctladdr=|\[more\]))[^,]*+)*+"), re.DOTALL
)
_RECEIVED = re.compile(
    rf"(?P<id>{_QUEUE_ID}): from=(?P<sender>{_VALUE}), size=(?P<size>\d++), class=-?\d++(?:, pri=-?\d++)?"
    r", nrcpts=(?P<nrcpts>\d++)",
)
_REJECT = re.compile(
    rf"(?:(?P<id>{_QUEUE_ID}): )?ruleset=(?P<ruleset>\w++), arg1=(?P<arg>{_VALUE})(?:, arg2=(?P<arg2>{_VALUE}))?"
    rf"(?:, relay=(?P<relay>{_NAME}))?, reject=(?P<reply>.*)",
    re.DOTALL,
)
_REJECT_LOOSE = re.compile(_REJECT.pattern.replace(_VALUE, "[^,]*+(?:,(?! (?:arg2|relay|reject)=)[^,]*+)*+"), re.DOTALL)
_NOTICE = re.compile(
    rf"(?P<id>{_QUEUE_ID}): (?P<notice>{_QUEUE_ID}): (?P<kind>DSN|sender notify|return to sender|postmaster notify): "
)
_MILTER = re.compile(
    rf"(?P<id>{_QUEUE_ID}): Milter(?: \([^)]*+\))?: "
    rf"(?:(?P<stage>connect|helo|data|eoh|eom|to=|from=)(?::? ?)(?P<arg>{_VALUE}(?:, addr=[^,]*+)?)"
    r"(?:, reject=(?P<reply>.*)|, rejecting commands)|(?P<down>initialization failed, temp failing commands))",
    re.DOTALL,
)
_PLAIN = re.compile(rf"(?P<id>{_QUEUE_ID}): ")
_CLOCK = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
_SUPERVISOR = re.compile(_CLOCK + r",\d{3} (?:CRIT|ERRO|WARN|INFO|DEBG|TRAC|BLAT) (?P<text>.*)", re.DOTALL)
_DOVECOT = re.compile(_CLOCK + r" (?P<text>[a-z0-9-]{2,20}(?:\([^)]*+\))?(?:<[^>]*+>)*+: .*)", re.DOTALL)
_TAGS = {
    "[reconfigure] ": "loop",
    "[generate-config] ": "config",
    "[hosts-pin] ": "hosts_pin",
    "[sync-users] ": "sync_users",
    "[entrypoint] ": "entrypoint",
    "[prepare-sendmail] ": "entrypoint",
    "[clear-maintenance] ": "entrypoint",
}
_STAGES = {"check_relay": "connect", "check_mail": "mail", "check_rcpt": "rcpt", "tls_client": "starttls",
           "check_eom": "eom", "check_data": "data", "check_compat": "rcpt"}  # fmt: skip
# Rules about the other side's TLS while this tier is the client: the delivery's own line says what became of it.
_CLIENT_RULES = frozenset({"tls_server", "tls_rcpt", "try_tls"})
_MILTER_STAGES = {"to=": "rcpt", "from=": "mail", "data": "eom", "eoh": "eom", "helo": "ehlo"}
_MILTER_CONNECT = "connection or greeting refused by a milter"
_NOTICES = {"DSN": "dsn", "sender notify": "sender", "return to sender": "return", "postmaster notify": "postmaster"}
_DOVECOT_PROGRAMS = ("dovecot", "imap", "imap-login", "managesieve", "auth", "submission-login", "master")
_RELAYS: dict[str, tuple[str | None, str | None]] = {}
_NO_RELAY = (None, None)
_FIELD = ", stat="
_DEFERRED = ", stat=Deferred"
_TWIN = ", stat=Deferred: "
# What sendmail says of a delivery that it will try again; the last two are exit statuses of a mailer (EX_OSERR,
# EX_IOERR) that it treats as EX_TEMPFAIL.
_WAITING = ("Deferred", "queued", "Operating system error", "I/O error")


# What a named tuple's own constructor does, without its call: these are made once a line.
_new = tuple.__new__


class Parser:
    """Parses the lines of one log group. It has no memory between lines but for caches of times; it never raises."""

    def __init__(self) -> None:
        self._minutes: dict[tuple[str, str], int | None] = {}
        self._days: dict[tuple[str, int], int | None] = {}

    def parse(self, message: str, event_ms: int) -> Line:
        """One log event.

        Args:
            message: the line, in any of the known forms, of any content.
            event_ms: the event's own time in milliseconds since 1970: gives a year to prefixes that have none.
        """
        match = _ISO.match(message)
        if match is None:
            return self._traditional(message, event_ms)
        minute, second, fraction, zone, program, pid = match.groups()
        stamp = self._minutes.get((minute, zone), -1)
        if stamp == -1:
            stamp = self._minute(minute, zone)
        if stamp is not None:
            stamp += _millis(second, fraction)
        record = _sendmail(message, match.end()) if program == "sendmail" else _mail(program, message, match.end())
        return _new(Line, (stamp, fraction is not None, int(pid) if pid else None, record))

    def _traditional(self, message: str, event_ms: int) -> Line:
        match = _TRADITIONAL.match(message)
        if match is None:
            return self._untimed(message, event_ms)
        day, clock, fraction, program, pid = match.groups()
        stamp = self._yearless(day, clock, event_ms)
        record = _mail(program, message, match.end())
        return Line(stamp, fraction is not None, int(pid) if pid else None, record)

    def _untimed(self, message: str, event_ms: int) -> Line:
        if message[:1] == "[":
            for tag, kind in _TAGS.items():
                if message.startswith(tag):
                    return Line(None, False, None, Other(kind, message[len(tag) :]))
        return self._unusual(message, event_ms)

    def _minute(self, minute: str, zone: str) -> int | None:
        """Milliseconds of a whole minute with its offset from UTC; None when there is no such time."""
        if len(self._minutes) > 50_000:
            self._minutes.clear()
        value: int | None = None
        try:
            offset = timedelta() if zone == "Z" else timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
            moment = datetime.strptime(minute.replace(" ", "T"), "%Y-%m-%dT%H:%M").replace(tzinfo=UTC)
            moment += offset if zone[0] == "-" else -offset
            value = int(moment.timestamp()) * 1000
        except (ValueError, OverflowError):
            value = None
        self._minutes[minute, zone] = value
        return value

    def _yearless(self, day: str, clock: str, event_ms: int) -> int | None:
        """The traditional prefix (`Nov 24 15:30:28`): the year that brings it nearest to the event's time."""
        year = datetime.fromtimestamp(event_ms / 1000, UTC).year if 0 <= event_ms < 250_000_000_000_000 else 1970
        key = (day, year)
        base = self._days.get(key, -1)
        if base == -1:
            if len(self._days) > 5_000:
                self._days.clear()
            base = self._days[key] = _day(day, year, event_ms)
        hours, minutes, seconds = clock.split(":")
        return None if base is None else base + ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1000

    def _unusual(self, message: str, event_ms: int) -> Line:
        """Lines without the two usual prefixes: RFC 5424, wrapped in JSON, supervisord, dovecot, none."""
        if message[:1] == "{":
            inner = unwrapped(message)
            if inner[:1] != "{":
                return self.parse(inner, event_ms)
        if message[:1] == "<":
            match = _RFC5424.match(message)
            if match is not None:
                minute, second, fraction, zone, program, pid = match.groups()
                base = self._minute(minute, zone)
                stamp = None if base is None else base + int(second) * 1000 + int((fraction or "").ljust(3, "0")[:3])
                number = int(pid) if pid.isdecimal() and len(pid) < 11 else None
                return Line(stamp, fraction is not None, number, _mail(program, message, match.end()))
        for pattern, kind in ((_SUPERVISOR, "supervisor"), (_DOVECOT, "dovecot")):
            match = pattern.match(message)
            if match is not None:
                return Line(None, False, None, Other(kind, match["text"]))
        match = _BARE.match(message)
        if match is not None:
            number = int(match["pid"]) if match["pid"] else None
            return Line(None, False, number, _mail(match["program"] or "sendmail", message, match.end()))
        return Line(None, False, None, Other("stray", message))


def _millis(second: str, fraction: str | None) -> int:
    return int(second + (fraction or "").ljust(3, "0")[:3])


def _day(day: str, year: int, event_ms: int) -> int | None:
    candidates = []
    for candidate in (year - 1, year, year + 1):
        try:
            moment = datetime.strptime(f"{candidate} {day}", "%Y %b %d").replace(tzinfo=UTC)
        except ValueError:
            continue
        candidates.append(int(moment.timestamp()) * 1000)
    return min(candidates, key=lambda value: abs(value + 43_200_000 - event_ms), default=None)


def unwrapped(message: str) -> str:
    """The line inside a JSON object, as log routers write it (Docker's and Fluent Bit's `log`, others' `message`).

    What is no such object is returned as it is.
    """
    try:
        wrapped = json.loads(message)
    except (ValueError, RecursionError):
        return message
    for name in ("log", "message", "msg", "MESSAGE"):
        inner = wrapped.get(name)
        if isinstance(inner, str):
            return inner.rstrip("\r\n")
    return message


def _mail(program: str, message: str, start: int) -> Record:
    """The record of a line of the mail facility whose prefix ends at `start`."""
    if program == "sendmail" or program.startswith("sm-"):
        return _sendmail(message, start)
    text = message[start:]
    if program == "opendkim":
        return Other("opendkim", text)
    if program in _DOVECOT_PROGRAMS:
        return Other("dovecot", text)
    return Other("mail", text)


def _sendmail(message: str, start: int) -> Record:
    """What sendmail says: what stands after the queue id decides which pattern is tried."""
    at = message.find(": ", start, start + 24) + 2
    reader = _READERS.get(message[at : at + 3]) if at > 1 else None
    if reader is not None:
        record = reader(message, start)
        if record is not None:
            return record
    if message.startswith("ruleset=", start):
        return _ruleset(message, start) or Other("mail", message[start:])
    head = _PLAIN.match(message, start)
    if head is None:
        return Other("daemon" if message.startswith("starting daemon (", start) else "mail", message[start:])
    return _notice(message, start) or _own_words(head["id"], message, head.end()) or Other("mail", message[start:])


def _delivery(message: str, start: int) -> Record:
    match = _DELIVERY.match(message, start) or _DELIVERY_LOOSE.match(message, start)
    if match is None:
        return Other("cut", message[start:])
    queue_id, to, ctladdr, delay, mailer, relay, dsn, rest = match.groups()
    if rest.startswith(_FIELD):
        reply, stat = None, rest[7:]
    else:
        reply, stat = _split_reply(rest)
    host, address = (_RELAYS.get(relay) or _relay(relay)) if relay else _NO_RELAY
    outcome: Outcome
    if stat.startswith("Sent"):
        outcome = "sent"
    elif dsn is None and mailer is None and stat:
        outcome = "rejected"
    else:
        outcome = _outcome(dsn, reply, stat)
    return _new(Delivery, (queue_id, to, ctladdr, delay, mailer, host, address, dsn, reply, stat, outcome))


def _split_reply(rest: str) -> tuple[str | None, str]:
    """`reply=` and `stat=` of what stands after `dsn=`, where that does not begin with `stat=`.

    Both may hold the far end's words, and those may hold `, stat=`.
    What sendmail does with an answer follows from the answer's first digit, which stands at the start of `reply=`:

    - 5: `stat=` is one of sendmail's own phrases and holds no foreign text: the last `, stat=` is the field;
    - 4: `stat=` is `Deferred`, mostly followed by the same answer again. When the two are the same text, the middle
      of the line is the only place where the field can start. Else it is the first place where the answer begins
      again, else the last `, stat=Deferred`. Wherever it is, the outcome is the same;
    - 2, 3: `stat=Sent (...)`: the first place, by the same reasoning.
    """
    if not rest.startswith(", reply="):
        # Too long for sendmail's buffer: what came before was cut with "...", the status stands whole at the end.
        cut = rest.rfind(_FIELD)
        return None, rest[cut + len(_FIELD) :] if cut >= 0 else ""
    body = rest[len(", reply=") :]
    first = body[:1]
    if first == "4":
        at = _temporary(body)
    elif first in ("2", "3"):
        at = body.find(", stat=Sent")
    else:
        at = -1
    if at < 0:
        at = body.rfind(_FIELD)
    if at < 0:
        return body, ""
    return body[:at], body[at + len(_FIELD) :]


def _temporary(body: str) -> int:
    """Where `, stat=` starts after a temporary answer; -1 when it is not there."""
    twin = len(body) - len(_TWIN)
    if twin >= 0 and twin % 2 == 0:
        half = twin // 2
        if body.startswith(_TWIN, half) and body[:half] == body[half + len(_TWIN) :]:
            return half
    again = body.find(_TWIN + body[:12])
    return again if again >= 0 else body.rfind(_DEFERRED)


def _outcome(dsn: str | None, reply: str | None, stat: str) -> Outcome:
    if stat.startswith(_WAITING):
        return "deferred"
    if stat.startswith("quarantine"):
        return "held"
    if not "Sent".startswith(stat) and not any(word.startswith(stat) for word in _WAITING):
        return "bounced"
    # The line was cut before or within its status: the answer's class decides, else that of the enhanced code.
    return {"2": "sent", "4": "deferred", "5": "bounced"}.get((reply or dsn or "")[:1], "held")  # type: ignore[return-value]


def _relay(relay: str) -> tuple[str | None, str | None]:
    """Host name (lower case, no dot at the end) and address of a `relay=` value, remembered."""
    if len(_RELAYS) >= 10_000:
        _RELAYS.clear()
    found = _RELAYS[relay] = _split_relay(relay)
    return found


def _split_relay(relay: str) -> tuple[str | None, str | None]:
    host, space, rest = relay.partition(" [")
    name, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and (name.endswith("]") or ":" not in name):
        host = name
    if space:
        return host.rstrip(".").lower() or None, rest.partition("]")[0] or None
    if host.startswith("[") and host.endswith("]"):
        inner = host[1:-1]
        return (None, inner) if inner.replace(".", "").isdecimal() or ":" in inner else (inner.lower(), None)
    return host.rstrip(".").lower() or None, None


def _received(message: str, start: int) -> Record | None:
    match = _RECEIVED.match(message, start)
    if match is None:
        return None
    queue_id, sender, size, nrcpts = match.groups()
    at = message.rfind(", relay=", match.end())
    relay, address = _NO_RELAY
    if at >= 0:
        relay, address = _RELAYS.get(message[at + 8 :]) or _relay(message[at + 8 :])
    return _new(Received, (queue_id, sender.strip("<>"), int(size[:15]), int(nrcpts[:9]), relay, address))


def _ruleset(message: str, start: int) -> Record | None:
    match = _REJECT.match(message, start) or _REJECT_LOOSE.match(message, start)
    if match is None:
        return None
    queue_id, ruleset, arg, _, relay, reply = match.groups()
    if ruleset in _CLIENT_RULES:
        return None
    host, address = _relay(relay) if relay else (None, None)
    stage = _STAGES.get(ruleset, "rcpt")
    who = arg.strip("<>") if stage in ("mail", "rcpt") else None
    return Rejection(queue_id, "ruleset", stage, who, host, address, reply)


def _milter(message: str, start: int) -> Record | None:
    match = _MILTER.match(message, start)
    if match is None:
        return None
    queue_id, stage, arg, reply, down = match.groups()
    if down:
        return Rejection(queue_id, "milter_down", "connect", None, None, None, down)
    where = _MILTER_STAGES.get(stage, stage)
    address = arg.strip("<>") if where in ("rcpt", "mail") else None
    return Rejection(queue_id, "milter", where, address, None, None, reply or _MILTER_CONNECT)


def _refused(message: str, start: int) -> Record | None:
    """`<address>... User unknown`: the text is sendmail's own, so the last `>... ` is the one that ends the address."""
    at = message.rfind(">... ", start)
    head = _PLAIN.match(message, start)
    if at < 0 or head is None:
        return None
    text = message[at + 5 :]
    kind = "user_unknown" if text == "User unknown" else "refused"
    return Rejection(head["id"], kind, "rcpt", message[head.end() + 1 : at], None, None, text)


_READERS: dict[str, Callable[[str, int], Record | None]] = {
    "to=": _delivery,
    "fro": _received,
    "rul": _ruleset,
    "Mil": _milter,
}


def _notice(message: str, start: int) -> Notice | None:
    match = _NOTICE.match(message, start)
    if match is None:
        return None
    text = message[match.end() :]
    kind = _NOTICES[match["kind"]]
    expired = kind != "postmaster" and text.startswith("Cannot send message")
    return Notice(match["id"], match["notice"], kind, text, expired)


def _own_words(queue_id: str, message: str, at: int) -> Record | None:
    """Refusals that sendmail words without a `reject=`."""
    if message.startswith("<", at):
        return _refused(message, at - len(queue_id) - 2)
    if message.startswith("Too many recipients", at):
        return Rejection(queue_id, "too_many_recipients", "rcpt", None, None, None, "Too many recipients")
    if message.startswith("message size (", at):
        return Rejection(queue_id, "too_big", "eom", None, None, None, message[at:])
    if message.startswith("SYSERR", at) and ": buildaddr: " in message[at:]:
        return Rejection(queue_id, "syserr", "rcpt", None, None, None, message[at:])
    return None
