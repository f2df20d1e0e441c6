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
from ansible.module_utils.cabalmail.environment.dmarc import DmarcSummary, with_ours
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
    summary = reports()
    inside = str(int(datetime(2026, 11, 10, tzinfo=UTC).timestamp()))
    good = {
        "date_end": {"S": inside},
        "source_ip": {"S": "192.0.2.1"},
        "count": {"S": "many"},
        "dkim_result": {"S": "pass"},
    }
    summary.add([{}, {"date_end": {"S": "yesterday"}}, {"date_end": {"NULL": True}}, good])
    facts = with_ours(summary.summary(), {"192.0.2.1"})
    assert (facts["rows"], facts["sources"][0]["pass"]) == (1, 1)
    assert facts["newest_report"] == "2026-11-10T00:00:00Z"


def test_no_reports_have_no_newest_one() -> None:
    facts = with_ours(reports().summary(), {"192.0.2.1"})
    assert (facts["rows"], facts["newest_report"], facts["ours"]["messages"]) == (0, None, 0)


def reports() -> DmarcSummary:
    start, end, before = (datetime(2026, month, day, tzinfo=UTC) for month, day in ((11, 1), (11, 30), (10, 2)))
    return DmarcSummary(start, end, before)


def report(ip: str, domain: str, reporter: str, count: int, result: str, day: datetime | None = None) -> dict[str, Any]:
    ended = day or datetime(2026, 11, 10, tzinfo=UTC)
    row = {"date_end": str(int(ended.timestamp())), "source_ip": ip, "header_from": domain, "org_name": reporter}
    row |= {"count": str(count), "dkim_result": result, "spf_result": "fail"}
    return {name: {"S": value} for name, value in row.items()}


def some_reports() -> DmarcSummary:
    summary = reports()
    october = datetime(2026, 10, 20, tzinfo=UTC)
    summary.add(
        [
            report("192.0.2.1", "a.example", "google.com", 8, "fail"),
            report("192.0.2.1", "b.example", "google.com", 2, "pass"),
            report("192.0.2.1", "a.example", "yahoo.com", 3, "pass"),
            report("203.0.113.9", "a.example", "yahoo.com", 7, "fail"),
            report("192.0.2.1", "a.example", "yahoo.com", 10, "pass", october),
            report("192.0.2.1", "a.example", "yahoo.com", 99, "fail", datetime(2026, 9, 1, tzinfo=UTC)),
        ]
    )
    return summary


def test_reports_by_source_reporter_and_domain_and_the_period_before() -> None:
    facts = with_ours(some_reports().summary(), {"192.0.2.1"})
    assert facts["rows"] == 4
    assert facts["ours"] == {"messages": 13, "pass": 5, "fail": 8}
    assert facts["strangers"] == {"messages": 7, "pass": 0, "fail": 7}
    assert [(row["reporter"], row["ours"]["fail"], row["strangers"]["fail"]) for row in facts["reporters"]] == [
        ("google.com", 8, 0),
        ("yahoo.com", 0, 7),
    ]
    assert [(row["domain"], row["ours"]["fail"]) for row in facts["domains"]] == [("a.example", 8), ("b.example", 0)]
    assert [(row["ip"], row["ours"], row["fail"], row["reporters"]) for row in facts["sources"]] == [
        ("192.0.2.1", True, 8, 2),
        ("203.0.113.9", False, 7, 1),
    ]
    assert facts["before"]["ours"] == {"messages": 10, "pass": 10, "fail": 0}
    assert not [name for name in facts if name.startswith("cells")]


def test_without_our_addresses_nobody_is_called_ours_or_a_stranger() -> None:
    facts = with_ours(some_reports().summary(), None)
    assert (facts["ours"], facts["strangers"], facts["before"]["ours"]) == (None, None, None)
    assert {row["ours"] for row in facts["sources"]} == {None}
    assert facts["reporters"][0]["messages"] == 10


GATEWAY = {
    "id": "nat-1",
    "name": "cabal-nat-0",
    "state": "available",
    "ip": "192.0.2.1",
    "ips": ["192.0.2.1", "192.0.2.2"],
    "zone": "b",
}
TASK = {"id": "t", "zone": "c", "interface": "eni-1", "ipv6": "2001:db8::7"}
NETWORK: dict[str, Any] = {
    "addresses": [{"ip": "192.0.2.1", "zone": None, "name": "cabal-nat-eip-0"}],
    "nat_instances": [{"id": "i-1", "name": "x", "state": "running", "ip": "192.0.2.3", "zone": "a"}],
    "nat_gateways": [GATEWAY],
    "routes_ipv6": [],
    "task_addresses": {},
}


def test_every_address_that_mail_leaves_from() -> None:
    rows = {row["ip"]: (row["zone"], row["via"]) for row in shape.outbound(NETWORK, [TASK])}
    assert rows == {
        "192.0.2.1": ("b", "cabal-nat-eip-0"),
        "192.0.2.2": ("b", "nat-1"),
        "192.0.2.3": ("a", "i-1"),
    }


def test_a_task_with_a_public_address_or_with_ipv6_and_a_route() -> None:
    network = {**NETWORK, "task_addresses": {"eni-1": "192.0.2.9"}, "routes_ipv6": [{"target": "eigw-1"}]}
    rows = {row["ip"]: row["via"] for row in shape.outbound(network, [TASK])}
    assert (rows["192.0.2.9"], rows["2001:db8::7"]) == ("t", "t")


def test_a_removed_way_has_no_address() -> None:
    network = {**NETWORK, "addresses": [], "nat_instances": [], "nat_gateways": [{**GATEWAY, "state": "deleted"}]}
    assert shape.outbound(network, []) == []


def test_a_gateway_is_ours_by_its_name_or_by_a_route() -> None:
    rows = [GATEWAY, {**GATEWAY, "id": "nat-2", "name": "other"}, {**GATEWAY, "id": "nat-3", "name": None}]
    used = shape.used_ways(rows, "cabal-nat-*", [{"target": "nat-3"}])
    assert [row["id"] for row in used] == ["nat-1", "nat-3"]


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
