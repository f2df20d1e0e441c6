# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of the table of DMARC reports as reporters write them, which is not always well."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ansible.module_utils.cabalmail.environment.dmarc import DMARC_BLANK, DmarcSummary, with_ours
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 8, 22, 18, 0, tzinfo=UTC)
DAY = timedelta(days=1)
ENDED = str(int((NOW - timedelta(hours=6)).timestamp()))


def reported(*rows: dict[str, str], ours: set[str] | None = None) -> dict[str, Any]:
    summary = DmarcSummary(NOW - 7 * DAY, NOW, NOW - 14 * DAY)
    blank = {
        "org_name": "Reporter",
        "date_end": ENDED,
        "source_ip": "198.51.100.125",
        "count": "3",
        "dkim_result": "fail",
        "spf_result": "fail",
        "header_from": "news.example.com",
    }
    summary.add([{name: {"S": text} for name, text in {**blank, **row}.items()} for row in rows])
    return with_ours({**DMARC_BLANK, **summary.summary()}, ours)


@pytest.mark.parametrize(
    "written", ["2001:db8::7", "2001:DB8::7", "2001:0db8:0000:0000:0000:0000:0000:0007", " 2001:db8:0::7 "]
)
def test_our_address_is_ours_however_a_reporter_writes_it(written: str) -> None:
    found = reported({"source_ip": written}, ours={"2001:db8::7"})
    assert found["ours"] == {"messages": 3, "pass": 0, "fail": 3}
    assert found["strangers"]["messages"] == 0


@pytest.mark.parametrize("ended", ["1787400000000", "9" * 400, "99999999999", str(int((NOW + DAY).timestamp()))])
def test_a_report_on_time_to_come_is_no_newest_report(ended: str) -> None:
    found = reported({"date_end": ended}, {}, ours={"198.51.100.125"})
    assert (found["rows"], found["newest_report"]) == (1, "2026-08-22T12:00:00Z")


@pytest.mark.parametrize(("count", "messages"), [("0", 0), ("", 1), ("x", 1), ("9" * 400, 1)])
def test_how_many_messages_a_row_stands_for(count: str, messages: int) -> None:
    assert reported({"count": count}, ours={"198.51.100.125"})["ours"]["messages"] == messages


@given(st.dictionaries(st.sampled_from(["date_end", "count", "source_ip", "header_from", "dkim_result"]), st.text()))
def test_no_row_raises(row: dict[str, str]) -> None:
    assert reported(row, ours=None)["ours"] is None
