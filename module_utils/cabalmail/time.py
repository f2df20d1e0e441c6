# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one form of time that facts, options and reports carry: RFC 3339 in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

# RFC 3339, section 5.6; the offset is not optional there, and a time without one would be read as local time.
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d\d):(\d\d))\Z",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_rfc3339(text: str) -> datetime:
    """An RFC 3339 time (`2026-11-24T21:53:14Z`) as an aware datetime in UTC.

    A leap second (`:60`) is read as the second before it; digits beyond microseconds are cut off.

    Raises:
        ValueError: one sentence that names the text and what is wrong with it.
    """
    match = _RFC3339.match(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not an RFC 3339 time such as 2026-11-24T21:53:14Z")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    micro = int((match[7] or "").ljust(6, "0")[:6])
    offset = timedelta()
    if match[9]:
        offset = timedelta(hours=int(match[10]), minutes=int(match[11]))
        if offset >= timedelta(hours=24):
            raise ValueError(f"{text!r} is not a time: its offset from UTC is a day or more")
        if match[9] == "-":
            offset = -offset
    try:
        local = datetime(year, month, day, hour, minute, min(second, 59) if second == 60 else second, micro)
        return (local - offset).replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is not a time: {error}") from None


def epoch_ms(when: datetime | str) -> int:
    """Milliseconds since 1970-01-01T00:00:00Z, exactly, of an aware datetime or an RFC 3339 text.

    Raises:
        ValueError: the text is no RFC 3339 time, or the datetime has no time zone.
    """
    moment = parse_rfc3339(when) if isinstance(when, str) else when
    if moment.tzinfo is None:
        raise ValueError("a datetime without a time zone names no instant")
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def from_epoch_ms(milliseconds: int | float) -> datetime:
    """The aware UTC datetime of a number of milliseconds since 1970."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


def format_rfc3339(when: datetime | int | float, *, milliseconds: bool = False) -> str:
    """`2026-11-24T21:53:14Z` of an aware datetime, or of epoch milliseconds; with `milliseconds`, `...:14.123Z`.

    Raises:
        ValueError: the datetime has no time zone.
    """
    moment = when if isinstance(when, datetime) else from_epoch_ms(when)
    if moment.tzinfo is None:
        raise ValueError("a datetime without a time zone names no instant")
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds" if milliseconds else "seconds")
    return text.removesuffix("+00:00") + "Z"
