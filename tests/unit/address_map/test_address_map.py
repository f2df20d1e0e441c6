# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps against the table, and the reason for each failed recipient: wrong, right, and not to be known."""

from __future__ import annotations

import base64
import copy
import json
import re
import tracemalloc
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.cabalmail.address_map import address_map
from ansible.module_utils.cabalmail.address_table import AddressTable
from ansible.module_utils.cabalmail.freshness import Limits
from hypothesis import given, settings
from hypothesis import strategies as st

ANN = "ann@s.harborlight.example"
NEW = "new@s.harborlight.example"
HOURS = 5 * 3600


def rows_of(section: dict[str, Any], task: str) -> dict[str, dict[str, Any]]:
    return {Path(row["map"]).name: row for row in section["tasks"] if row["task"] == task}


def without(maps: dict[str, dict[str, str]], *addresses: str) -> dict[str, dict[str, str]]:
    left = copy.deepcopy(maps)
    for pairs in left.values():
        for address in addresses:
            pairs.pop(f"To:{address}", None)
            pairs.pop(address, None)
    return left


def test_a_healthy_fleet_has_nothing_wrong(world: Any) -> None:
    tasks = [world.task("imap"), world.task("smtp-in"), world.task("smtp-in", age=1000), world.task("smtp-out")]
    world.failures = []
    section = world.section()
    assert (section["status"], section["reasons"], section["stale_tasks"]) == ("complete", [], {})
    assert section["tasks_of_tier"] == {"imap": 1, "smtp-in": 2, "smtp-out": 1}
    for row in section["tasks"]:
        assert (row["missing"] or 0, row["surplus"] or 0, row["wrong_user"] or 0) == (0, 0, 0)
        assert (row["domains_missing"] or 0, row["stale"], row["db_differs_from_text"]) == (0, False, False)
        assert row["why"] == ""
    assert set(rows_of(section, tasks[0])) == {"access", "virtusertable"}


@pytest.mark.parametrize(("age", "stale"), [(1039, False), (1041, True)])
def test_stale_begins_past_interval_poll_and_slack(world: Any, age: float, stale: bool) -> None:
    task = world.task("smtp-in", age=age)
    section = world.section()
    assert rows_of(section, task)["access"]["stale"] is stale
    assert section["stale_tasks"] == ({"smtp-in": [task]} if stale else {})


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_a_wrong_clock_in_the_container_changes_nothing(world: Any, skew: int) -> None:
    world.row(NEW, ago=timedelta(minutes=2))
    task = world.task("smtp-in", without(world.right_maps("smtp-in"), NEW), age=600, skew=skew)
    row = rows_of(world.section(), task)["access"]
    assert (row["stale"], row["missing"], row["lag"]) == (False, 0, 1)


def test_what_a_sibling_lacks_by_design_is_lag_and_an_old_map_s_gap_is_missing(world: Any) -> None:
    world.row(NEW, ago=timedelta(minutes=5))
    lagging = world.task("smtp-in", without(world.right_maps("smtp-in"), NEW), age=800)
    stuck = world.task("smtp-in", without(world.right_maps("smtp-in"), NEW), age=HOURS)
    section = world.section()
    assert [rows_of(section, task)["access"][key] for task in (lagging, stuck) for key in ("missing", "lag")] == [
        0,
        1,
        1,
        0,
    ]
    assert section["stale_tasks"] == {"smtp-in": [stuck]}


def test_surplus_and_another_user(world: Any) -> None:
    maps = world.right_maps("imap")
    maps["/etc/mail/access"]["To:gone@s.harborlight.example"] = "OK"
    maps["/etc/mail/virtusertable"][ANN] = "bob"
    task = world.task("imap", maps)
    rows = rows_of(world.section(), task)
    assert (rows["access"]["surplus"], rows["virtusertable"]["surplus"], rows["virtusertable"]["wrong_user"]) == (
        1,
        0,
        1,
    )


def test_a_domain_that_no_map_knows(world: Any) -> None:
    maps = world.right_maps("smtp-in")
    del maps["/etc/mail/mailertable"]["harborlight.example"]
    rows = rows_of(world.section() if world.task("smtp-in", maps) else {}, f"{0:032x}")
    assert rows["mailertable"]["domains_missing"] == 1


def test_makemap_that_fails_leaves_the_text_fresh_and_the_db_old(world: Any) -> None:
    """DOMAIN: line count and date of the text, which the runbook looks at, are those of a healthy map."""
    world.row(NEW, ago=timedelta(hours=2))
    right = world.right_maps("smtp-in")
    task = world.task("smtp-in", without(right, NEW), age=HOURS, text=right, text_age=60)
    world.failed(NEW, tier="smtp-in", code="5.2.1")
    section = world.section()
    row = rows_of(section, task)["access"]
    assert (row["stale"], row["db_differs_from_text"], row["missing"], row["text_age_seconds"]) == (True, True, 1, 60)
    assert "makemap does not finish" in row["why"]
    assert section["recipients"]["by_state"]["stale_smtp_in"] == 1


def test_keys_lost_to_makemap_differ_from_the_text(world: Any) -> None:
    right = world.right_maps("imap")
    text = copy.deepcopy(right)
    text["/etc/mail/access"]["To:ANN@s.harborlight.example"] = "OK"
    task = world.task("imap", right, text=text)
    assert rows_of(world.section(), task)["access"]["db_differs_from_text"] is True


def test_rows_that_makemap_refuses_are_lost_and_neither_missing_nor_wrong(world: Any) -> None:
    """Of two keys that differ in case makemap keeps the first; a row without a user has no line in virtusertable."""
    world.row("Ann@s.harborlight.example", user="bob")
    world.row("nobody@s.harborlight.example", user="")
    maps = copy.deepcopy(world.right_maps("imap"))
    virtual = maps["/etc/mail/virtusertable"]
    virtual["ann@s.harborlight.example"] = virtual.pop("Ann@s.harborlight.example")
    del virtual["nobody@s.harborlight.example"]
    rows = rows_of(world.section() if world.task("imap", maps) else {}, f"{0:032x}")
    found = {name: [rows[name][key] for key in ("missing", "wrong_user", "lost_to_makemap")] for name in rows}
    assert found["virtusertable"] == [0, 0, 2]
    assert found["access"] == [0, None, 1]
    assert "makemap refuses" in rows["virtusertable"]["why"]


def test_a_table_in_order_loses_nothing_to_makemap(world: Any) -> None:
    world.task("imap")
    assert {row["lost_to_makemap"] for row in world.section()["tasks"] if row["map"] != "/etc/aliases"} == {0}


def test_rows_that_no_map_can_be_made_of(world: Any) -> None:
    world.row("Ann@s.harborlight.example")
    world.row("nobody@s.harborlight.example", user="")
    world.row("two words@s.harborlight.example", username="two words")
    world.task("imap")
    world.failed("nobody@s.harborlight.example", code="5.1.1")
    section = world.section()
    assert section["bad_rows"]["kinds"] == {"duplicate_key": 1, "empty_user": 1, "invalid_username": 1}
    assert section["recipients"]["by_state"]["bad_row"] == 1
    assert "two words" not in json.dumps(section)


def test_the_row_is_compared_as_the_container_writes_it(world: Any) -> None:
    world.row("apex@quietmail.example", "alice/bob")
    task = world.task("imap")
    assert rows_of(world.section(), task)["virtusertable"]["wrong_user"] == 0


# --- the recipients that failed --------------------------------------------------------------------------------------


def test_smtp_in_stale_takes_what_was_revoked(world: Any) -> None:
    maps = world.right_maps("smtp-in")
    maps["/etc/mail/access"][f"To:{NEW}"] = "RELAY"
    stuck = world.task("smtp-in", maps, age=HOURS)
    world.task("smtp-in")
    world.task("imap")
    world.failed(NEW)
    (example,) = world.section()["recipients"]["examples"]
    assert (example["state"], example["tasks"], example["map"]) == ("stale_smtp_in", [stuck], "/etc/mail/access")
    assert NEW not in json.dumps(example)


def test_imap_stale_lacks_what_is_new(world: Any) -> None:
    world.row(NEW, ago=timedelta(hours=2))
    world.task("smtp-in")
    stuck = world.task("imap", without(world.right_maps("imap"), NEW), age=HOURS)
    world.failed(NEW)
    (example,) = world.section()["recipients"]["examples"]
    assert (example["state"], example["tasks"]) == ("stale_imap", [stuck])


def test_smtp_in_stale_lacks_what_is_new(world: Any) -> None:
    world.row(NEW, ago=timedelta(hours=2))
    world.task("smtp-in", without(world.right_maps("smtp-in"), NEW), age=HOURS)
    world.task("imap")
    world.failed(NEW, tier="smtp-in", code="5.2.1")
    assert world.state() == "stale_smtp_in"


def test_one_stuck_task_of_three_is_named(world: Any) -> None:
    """DOMAIN: `taskArns[0]` looks at one task of three; whether it is the stuck one is luck."""
    world.row(NEW, ago=timedelta(hours=2))
    world.task("smtp-in")
    world.task("smtp-in")
    stuck = world.task("smtp-in", without(world.right_maps("smtp-in"), NEW), age=HOURS)
    world.task("imap")
    world.failed(NEW, tier="smtp-in", code="5.2.1")
    section = world.section()
    assert section["stale_tasks"] == {"smtp-in": [stuck]}
    assert section["recipients"]["examples"][0]["tasks"] == [stuck]


def test_newer_than_the_map_is_only_lag(world: Any) -> None:
    world.row(NEW, ago=timedelta(minutes=6))
    world.task("smtp-in")
    world.task("imap", without(world.right_maps("imap"), NEW), age=700)
    world.failed(NEW)
    assert world.state() == "lag"


def test_lag_that_is_over_is_still_lag(world: Any) -> None:
    world.row(NEW, ago=timedelta(minutes=20))
    world.task("smtp-in")
    world.task("imap")
    world.failed(NEW, time="2026-11-24T21:45:00Z")
    assert world.state() == "lag"


def test_in_the_maps_now_is_in_order(world: Any) -> None:
    world.task("smtp-in")
    world.task("imap")
    world.failed(ANN)
    assert world.state() == "in_order"


def test_revoked_is_expected(world: Any) -> None:
    world.task("smtp-in")
    world.task("imap")
    world.failed("gone@s.harborlight.example")
    section = world.section()
    assert section["recipients"]["by_state"]["revoked"] == 1
    assert section["recipients"]["not_in_table"] == 1


def test_an_address_nobody_ever_had(world: Any) -> None:
    world.task("smtp-in")
    world.task("imap")
    world.failed("sales@s.harborlight.example", tier="smtp-in", code="5.2.1")
    assert world.state() == "never_existed"


@pytest.mark.parametrize("relay", ["ip-{dashed}.ec2.internal", "smtp-out [{ip}]"])
def test_a_typo_of_our_own_user_never_existed(world: Any, relay: str) -> None:
    out = world.task("smtp-out")
    ip = next(entry["ip"] for entry in world.tasks if entry["task"] == out)
    world.task("smtp-in")
    world.task("imap")
    world.failed("sales@s.harborlight.example", relay=relay.format(ip=ip, dashed=ip.replace(".", "-")))
    assert world.state() == "never_existed"


def test_a_missing_os_user(world: Any) -> None:
    world.row("eve@s.harborlight.example", "eve")
    world.task("smtp-in")
    world.task("imap")
    world.failed("eve@s.harborlight.example", code="5.1.1", seen="user_unknown")
    world.failed("team@s.harborlight.example", code="5.1.1", seen="user_unknown")
    world.failed("bob", code="5.1.1", seen="dsn", relay="")
    section = world.section()["recipients"]
    assert (section["by_state"]["missing_user"], section["by_state"]["in_order"]) == (1, 2)
    assert "eve" in next(row["why"] for row in section["examples"] if row["state"] == "missing_user")


def test_a_row_lost_from_virtusertable_is_a_map_and_not_a_user(world: Any) -> None:
    """DOMAIN: 5.1.1 from imap may be a row lost when makemap failed: access.db is built before virtusertable.db."""
    maps = world.right_maps("imap")
    del maps["/etc/mail/virtusertable"][ANN]
    world.task("imap", maps, text=world.right_maps("imap"))
    world.failed(ANN, code="5.1.1", seen="user_unknown")
    (example,) = world.section()["recipients"]["examples"]
    assert (example["state"], example["map"]) == ("stale_imap", "/etc/mail/virtusertable")


def test_a_suspended_address_is_suspended_by_design(world: Any) -> None:
    world.row("off@s.harborlight.example", suspended=True)
    world.task("smtp-in")
    world.task("imap")
    world.failed("off@s.harborlight.example")
    assert world.state() == "suspended"


def test_who_failed_elsewhere_is_not_about_our_maps(world: Any) -> None:
    world.failed(
        "x@bigmail.example", tier="smtp-out", code="5.1.1", seen="dsn", relay="mx.bigmail.example. [192.0.2.9]"
    )
    world.failed(ANN, tier="smtp-in", code="5.1.2", seen="dsn", relay="[imap.cabal.internal]")
    world.task("imap")
    assert world.section()["recipients"]["checked"] == 0


def test_smtp_in_s_own_word_of_imap_s_refusal_counts_once(world: Any) -> None:
    world.task("smtp-in")
    world.task("imap")
    world.failed("gone@s.harborlight.example")
    world.failed("gone@s.harborlight.example", tier="smtp-in", seen="dsn", relay="imap.cabal.internal. [10.0.2.45]")
    assert world.section()["recipients"]["by_state"]["revoked"] == 1


# --- what cannot be known --------------------------------------------------------------------------------------------


def test_without_the_table_nothing_is_missing_and_the_old_map_is_to_blame(world: Any) -> None:
    world.row(NEW, ago=timedelta(hours=2))
    world.task("smtp-in")
    stuck = world.task("imap", without(world.right_maps("imap"), NEW), age=HOURS)
    world.table = False
    world.failed(NEW)
    section = world.section()
    assert section["status"] == "partial"
    assert "cabal-addresses could not be read" in section["reasons"][0]
    assert all(row["missing"] is None for row in section["tasks"])
    assert section["recipients"]["in_table"] is None
    assert (section["recipients"]["examples"][0]["state"], section["stale_tasks"]) == ("stale_imap", {"imap": [stuck]})


def test_without_the_table_two_fresh_maps_decide_nothing(world: Any) -> None:
    world.row(NEW, ago=timedelta(hours=2))
    world.task("smtp-in")
    world.task("imap", without(world.right_maps("imap"), NEW))
    world.table = False
    world.failed(NEW)
    assert world.state() == "unknown"


def test_a_table_read_in_part_makes_no_address_revoked(world: Any) -> None:
    world.table_status = "partial"
    world.task("smtp-in")
    world.task("imap")
    world.failed("gone@s.harborlight.example")
    assert world.state() == "unknown"


def test_smtp_in_that_cannot_be_reached_leaves_it_unknown_who_took_the_mail(world: Any) -> None:
    world.task("imap")
    world.unreachable("smtp-in")
    world.failed(NEW)
    section = world.section()
    assert section["recipients"]["by_state"]["unknown"] == 1
    assert section["recipients"]["status"] == "partial"
    assert any("not connected" in reason for reason in section["reasons"])


def test_one_task_of_three_that_cannot_be_reached_may_be_the_one(world: Any) -> None:
    world.task("imap")
    world.task("smtp-in")
    world.unreachable("smtp-in")
    world.failed(NEW)
    assert world.state() == "unknown"


@pytest.mark.parametrize(
    ("done", "state"),
    [(None, "stale_smtp_in"), (timedelta(minutes=40), "stale_smtp_in"), (timedelta(minutes=4), "revoked")],
)
def test_the_log_of_smtp_in_s_loop_stands_in_for_its_maps(world: Any, done: timedelta | None, state: str) -> None:
    world.unreachable("imap")
    world.log("imap", timedelta(minutes=4))
    stuck = world.unreachable("smtp-in")
    world.log("smtp-in", done)
    world.failed(NEW)
    section = world.section()
    (example,) = section["recipients"]["examples"]
    assert (section["status"], example["state"]) == ("partial", state)
    assert section["stale_by_log"] == ({"smtp-in": [stuck]} if state == "stale_smtp_in" else {})
    assert section["stale_tasks"] == {}


def test_who_refuses_an_old_address_has_an_old_map_whether_or_not_it_can_be_read(world: Any) -> None:
    world.unreachable("imap")
    world.unreachable("smtp-in")
    world.failed(ANN)
    assert world.state() == "stale_imap"


@pytest.mark.parametrize(("ago", "state"), [(8, "lag"), (60, "stale_imap")])
def test_without_maps_the_age_of_the_address_decides(world: Any, ago: int, state: str) -> None:
    world.row(NEW, ago=timedelta(minutes=ago))
    world.unreachable("imap")
    world.failed(NEW)
    assert world.state() == state


def test_a_sibling_that_cannot_be_reached_and_whose_loop_is_healthy_changes_nothing(world: Any) -> None:
    world.task("smtp-in")
    world.unreachable("smtp-in")
    world.log("smtp-in", timedelta(minutes=4))
    world.failed(ANN, tier="smtp-in", code="5.2.1")
    assert world.state() == "in_order"


def test_an_address_without_a_date_is_unknown_without_maps(world: Any) -> None:
    world.row(NEW, requested=None)
    world.unreachable("imap")
    world.failed(NEW)
    assert world.state() == "unknown"


def test_users_that_could_not_be_read_are_not_missing(world: Any) -> None:
    world.task("imap", users=None)
    world.failed(ANN, code="5.1.1", seen="user_unknown")
    assert world.state() == "unknown"


@pytest.mark.parametrize(
    ("made", "done", "state"),
    [
        # Passes fail after access.db: imap takes the address, and virtusertable lacks it.
        (timedelta(hours=2), timedelta(hours=6), "stale_imap"),
        # That pass brought the address, so it is the user behind it.
        (timedelta(days=30), timedelta(hours=6), "missing_user"),
        # Made while that pass was scanning: it may have it or not.
        (timedelta(hours=6, minutes=1), timedelta(hours=6), "unknown"),
        # The loop works, and its next pass is to come.
        (timedelta(minutes=6), timedelta(minutes=7), "lag"),
        (timedelta(days=30), timedelta(minutes=7), "unknown"),
        # No pass was seen at all.
        (timedelta(hours=2), None, "unknown"),
    ],
)
def test_nobody_behind_an_address_and_no_container(
    world: Any, made: timedelta, done: timedelta | None, state: str
) -> None:
    world.row(NEW, ago=made)
    world.unreachable("imap")
    world.log("imap", done)
    world.failed(NEW, code="5.1.1", seen="user_unknown")
    assert world.state() == state


@pytest.mark.parametrize(
    ("made", "clash", "done", "state"),
    [
        (timedelta(hours=3), timedelta(hours=4), None, "stale_imap"),
        # Older than that row: the map may have it.
        (timedelta(hours=5), timedelta(hours=4), None, "unknown"),
        (timedelta(hours=3), None, None, "unknown"),
        # A pass came to its end all the same, so that row stops none.
        (timedelta(hours=3), timedelta(hours=4), timedelta(minutes=7), "unknown"),
    ],
)
def test_no_pass_ends_after_a_row_that_makemap_fails_on(
    world: Any, made: timedelta, clash: timedelta | None, done: timedelta | None, state: str
) -> None:
    """The log shows only the window, and the loop may fail since before it."""
    world.row(NEW, ago=made)
    world.row("Ann@s.harborlight.example", ago=clash or timedelta())
    if clash is None:
        world.rows[-1]["requested"] = None
    world.unreachable("imap")
    world.log("imap", done)
    world.failed(NEW, code="5.1.1", seen="user_unknown")
    assert world.state() == state


def test_a_user_who_is_there_does_not_vouch_for_a_map_that_was_not_read(world: Any) -> None:
    world.task("imap", maps={})
    world.failed(ANN, code="5.1.1", seen="user_unknown")
    assert world.state() == "unknown"


def test_no_container_at_all_is_unavailable(world: Any) -> None:
    world.unreachable("imap")
    section = world.section()
    assert section["status"] == "unavailable"
    assert section["recipients"]["status"] == "unavailable"
    assert section["recipients"]["by_state"] is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["address", "user", "username", "tld", "requested"]), st.text())))
def test_odd_rows_never_raise(rows: list[dict[str, str]]) -> None:
    table = AddressTable()
    for row in rows:
        table.add(row)
    assert table.rows == len(rows)


def test_memory_grows_by_little_more_than_a_digest_an_address(world: Any) -> None:
    """A million addresses have to fit: texts of one map at a time, of the table no more than digests and numbers."""
    count = 20_000
    for number in range(count):
        world.row(f"somebody.{number}@s{number % 50}.harborlight.example")
    for tier in ("imap", "smtp-in", "smtp-in"):
        world.task(tier)
    triage = world.triage()
    world.section()
    tracemalloc.start()
    found = address_map(triage, world.folder, world.masker, Limits())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {row["missing"] for row in found["tasks"] if row["map"].endswith("access")} == {0}
    assert peak / count < 1000


def test_a_sibling_that_lags_is_not_named_with_the_stale_one(world: Any) -> None:
    world.row(NEW, ago=timedelta(minutes=6))
    without_new = without(world.right_maps("smtp-in"), NEW)
    world.task("smtp-in", without_new, age=700)
    stuck = world.task("smtp-in", without_new, age=HOURS)
    world.task("imap")
    world.failed(NEW, tier="smtp-in", code="5.2.1")
    (example,) = world.section()["recipients"]["examples"]
    assert (example["state"], example["tasks"]) == ("stale_smtp_in", [stuck])


def _without_dumps(world: Any) -> None:
    """makemap is not there: every dump ends with 127."""
    for name in (entry["task"] for entry in world.tasks):
        path = world.folder / f"{name}.out"
        failed = base64.b64encode(b"\n\t#status 127\n").decode()
        path.write_text(re.sub(r"(begin db .*\n)[^\n]*(\nend db)", rf"\g<1>{failed}\g<2>", path.read_text()))


@pytest.mark.parametrize(("text_age", "state"), [(60, "unknown"), (700, "in_order")])
def test_a_text_that_is_newer_than_the_db_does_not_stand_for_it(world: Any, text_age: float, state: str) -> None:
    """Where makemap fails, sendmail goes on with the old .db: the text clears nobody."""
    world.row(NEW, ago=timedelta(hours=2))
    world.task("smtp-in")
    world.task("imap", age=700, text_age=text_age)
    _without_dumps(world)
    world.failed(NEW, time=None)
    assert world.state() == state


def test_white_space_around_a_user_is_no_other_user(world: Any) -> None:
    world.row("eve@s.harborlight.example", "alice ")
    imap = world.task("imap")
    world.task("smtp-in")
    section = world.section()
    row = next(row for row in section["tasks"] if row["task"] == imap and row["map"].endswith("virtusertable"))
    assert (row["wrong_user"], row["missing"]) == (0, 0)


@pytest.mark.parametrize(("status", "surplus"), [("partial", None), ("complete", 1)])
def test_what_a_part_of_the_table_lacks_is_not_surplus(world: Any, status: str, surplus: int | None) -> None:
    """A throttled scan ends early: what it did not come to is no revoked address."""
    for tier in ("smtp-in", "imap"):
        world.task(tier, age=HOURS)
    world.rows.pop()
    world.table_status = status
    rows = [row for row in world.section()["tasks"] if row["map"] == "/etc/mail/access"]
    assert [row["surplus"] for row in rows] == [surplus, surplus]
