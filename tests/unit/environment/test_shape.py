# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shaping and counting, without AWS."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.cabalmail.environment import shape
from ansible.module_utils.cabalmail.environment.addresses import AddressWriter, odd, plain_row
from ansible.module_utils.cabalmail.environment.dmarc import DmarcSummary, mark_ours
from ansible.module_utils.cabalmail.environment.parts import Part, combine


def test_empty_answers_have_unknown_numbers() -> None:
    assert shape.service({})["running"] is None
    assert shape.queue({})["visible"] is None
    assert shape.task({})["started_at"] is None
    assert shape.task_definition({}, "imap") == {"image": None, "registered_at": None, "secrets": []}


def test_the_mail_container_is_chosen_by_name() -> None:
    described = {"containerDefinitions": [{"name": "sidecar", "image": "s"}, {"name": "imap", "image": "i"}]}
    assert shape.task_definition(described, "imap")["image"] == "i"


def test_remains_of_a_replaced_nat_are_dropped() -> None:
    rows = [
        {"id": "1", "name": "cabal-nat-0", "state": "terminated"},
        {"id": "2", "name": "cabal-nat-0", "state": "running"},
        {"id": "3", "name": "cabal-nat-1", "state": "terminated"},
    ]
    assert [row["id"] for row in shape.without_remains(rows)] == ["2", "3"]


def test_routes_keep_black_holes_and_drop_public_tables() -> None:
    tables = [
        {
            "RouteTableId": "rtb-1",
            "Routes": [{"DestinationCidrBlock": "0.0.0.0/0", "GatewayId": "igw-1", "State": "active"}],
        },
        {
            "RouteTableId": "rtb-2",
            "Routes": [
                {"DestinationCidrBlock": "10.0.0.0/8", "GatewayId": "local", "State": "active"},
                {"DestinationCidrBlock": "0.0.0.0/0", "NetworkInterfaceId": "eni-1", "State": "blackhole"},
            ],
        },
    ]
    assert shape.routes(tables) == [{"table": "rtb-2", "name": None, "target": "eni-1", "state": "blackhole"}]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"username": ""}, "skipped"),
        ({"username": "a b"}, "skipped"),
        ({"username": None}, "skipped"),
        ({"user": ""}, "no RHS"),
        ({"user": None}, "no RHS"),
        ({"tld": None}, "no domain"),
        ({"subdomain": None, "user": "alice/bob"}, "no alias"),
        ({"user": "alice/bob"}, None),
    ],
)
def test_odd_rows(changes: dict[str, Any], problem: str | None) -> None:
    row = {
        "address": "a@s.example.com",
        "username": "a",
        "user": "alice",
        "subdomain": "s",
        "tld": "example.com",
        **changes,
    }
    found = odd(row, seen=False)
    assert (found is None) if problem is None else (problem in (found or ""))


def items(*addresses: str) -> list[dict[str, Any]]:
    return [
        {
            "address": {"S": a},
            "username": {"S": a.split("@")[0]},
            "subdomain": {"S": "s"},
            "tld": {"S": "example.com"},
            "user": {"S": "alice"},
        }
        for a in addresses
    ]


def test_addresses_that_differ_in_case_only(tmp_path: Path) -> None:
    with AddressWriter(str(tmp_path), lambda address: "masked") as writer:
        writer.add(items("jane@s.example.com", "Jane@s.example.com", "jo@s.example.com"))
        summary = writer.finish()
    assert summary["odd_rows"] == [{"address": "masked", "problem": summary["odd_rows"][0]["problem"]}]
    assert "duplicate key" in summary["odd_rows"][0]["problem"]


def test_a_table_that_was_not_read_to_its_end_leaves_no_file(tmp_path: Path) -> None:
    def broken_off() -> None:
        with AddressWriter(str(tmp_path), str) as writer:
            writer.add(items("jane@s.example.com"))
            raise ConnectionError

    with pytest.raises(ConnectionError):
        broken_off()
    assert list(tmp_path.iterdir()) == []


def test_many_odd_rows_are_counted_and_capped() -> None:
    with AddressWriter(None, str) as writer:
        writer.add({"address": {"S": f"a{n}@x"}} for n in range(500))
        summary = writer.finish()
    assert (len(summary["odd_rows"]), summary["odd_rows_total"]) == (50, 500)


def test_rows_survive_hostile_values(tmp_path: Path) -> None:
    hostile = ["\ud800@s.example.com", "a\nb@s.example.com", "\x00@x", ""]
    with AddressWriter(str(tmp_path), lambda address: "masked") as writer:
        writer.add({"address": {"S": text}, "user": {"NULL": True}, "RequestTime": {"S": "soon"}} for text in hostile)
        writer.finish()
    lines = (tmp_path / "addresses.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(hostile)
    assert json.loads(lines[1])["address"] == "a\nb@s.example.com"
    assert plain_row({"RequestTime": {"S": "soon"}})["requested"] is None


def test_reports_with_broken_fields_are_left_out() -> None:
    summary = DmarcSummary(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 30, tzinfo=UTC))
    inside = str(int(datetime(2026, 11, 10, tzinfo=UTC).timestamp()))
    good = {
        "date_end": {"S": inside},
        "source_ip": {"S": "192.0.2.1"},
        "count": {"S": "many"},
        "dkim_result": {"S": "pass"},
    }
    summary.add([{}, {"date_end": {"S": "yesterday"}}, {"date_end": {"NULL": True}}, good])
    facts = summary.summary()
    assert (facts["rows"], facts["sources"][0]["pass"]) == (1, 1)
    assert facts["newest_report"] == "2026-11-10T00:00:00Z"


def test_no_reports_have_no_newest_one() -> None:
    now = datetime.now(UTC)
    assert DmarcSummary(now, now).summary()["newest_report"] is None


@pytest.mark.parametrize(("ours", "expected"), [(None, None), ({"192.0.2.1"}, True), ({"192.0.2.2"}, False)])
def test_ours_is_three_valued(ours: set[str] | None, expected: bool | None) -> None:
    assert mark_ours([{"ip": "192.0.2.1"}], ours)[0]["ours"] is expected


def test_status_of_a_whole() -> None:
    def state(status: str) -> dict[str, Any]:
        return {"status": status, "reasons": [] if status == "complete" else ["why"]}

    assert combine([state("complete"), state("complete")]) == ("complete", [])
    assert combine([state("complete"), state("unavailable")]) == ("partial", ["why"])
    assert combine([state("unavailable"), state("unavailable")]) == ("unavailable", ["why"])
    assert combine([state("partial")])[0] == "partial"


def test_a_part_that_nobody_read_is_not_complete() -> None:
    result = Part("Cloud Map", {"instances": None}, str).result()
    assert result["status"] == "unavailable"
    assert result["reasons"]
