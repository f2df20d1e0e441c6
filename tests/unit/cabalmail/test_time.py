# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from ansible.module_utils.cabalmail.time import epoch_ms, format_rfc3339, from_epoch_ms, parse_rfc3339
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-24T21:53:14Z", "2026-11-24T21:53:14Z"),
        ("2026-11-24t21:53:14z", "2026-11-24T21:53:14Z"),
        ("2026-11-24T22:53:14.123456789+01:00", "2026-11-24T21:53:14Z"),
        ("2026-11-24T16:23:14-05:30", "2026-11-24T21:53:14Z"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59Z"),
    ],
)
def test_reads_what_the_standard_allows(text: str, expected: str) -> None:
    assert format_rfc3339(parse_rfc3339(text)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "now", "2026-11-24", "2026-11-24T21:53:14", "2026-11-24 21:53:14Z", "2026-13-24T21:53:14Z",
     "2026-11-24T25:53:14Z", "2026-11-24T21:53:14+99:00", "2026-11-24T21:53:14Zx", "0001-01-01T00:00:00+23:00"],
)  # fmt: skip
def test_refuses_anything_else_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        parse_rfc3339(text)


def test_refuses_a_datetime_without_a_zone() -> None:
    for call in (epoch_ms, format_rfc3339):
        with pytest.raises(ValueError, match="time zone"):
            call(datetime(2026, 11, 24))


@given(st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29), timezones=st.timezones()))
def test_round_trips(moment: datetime) -> None:
    moment = moment.astimezone(UTC)
    moment -= timedelta(microseconds=moment.microsecond % 1000)
    assert parse_rfc3339(format_rfc3339(moment, milliseconds=True)) == moment
    assert from_epoch_ms(epoch_ms(moment)) == moment
