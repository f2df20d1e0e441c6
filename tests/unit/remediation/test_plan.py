# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each gate alone stops a restart, and stops it as well when it can't be evaluated."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ansible.module_utils.cabalmail.remediation import GATES, LIVE_GATES, plan, services, stop

NOW = datetime(2026, 11, 24, 22, 0, tzinfo=UTC)
TASK, IMAP = "b" * 32, "a" * 32
Facts = dict[str, Any]


def complete(**more: Any) -> Facts:
    return {"status": "complete", "reasons": [], **more}


@pytest.fixture
def triage() -> Facts:
    """A proven stuck loop on smtp-in, with nothing in the way of a restart."""
    service = complete(
        service="cabal-smtp-in",
        desired=1,
        running=1,
        maximum_percent=200,
        secrets=[{"name": "PING", "exists": True}],
        deployments=[{"id": "d1", "rollout_state": "COMPLETED", "created_at": "2026-11-20T10:00:00Z"}],
        events=[{"message": "(service cabal-smtp-in) has reached a steady state."}],
        tasks=[{"id": TASK, "last_status": "RUNNING"}],
    )
    remedy = {"kind": "redeploy_service", "service": "cabal-smtp-in", "tasks": [TASK]}
    return {
        "run": {"id": "mine", "region": "us-east-1", "cluster": "cabal-mail", "started": "2026-11-24T21:59:30Z"},
        "tiers": complete(),
        "environment": complete(
            services={"smtp-in": service, "imap": {**service, "service": "cabal-imap", "maximum_percent": 100}},
            parameters=complete(maintenance_imap={"active": False}),
            discovery={"imap": complete(instances=["10.0.2.45"])},
        ),
        "containers": complete(
            tasks=[
                {"tier": "imap", "task": IMAP, "queue": {"messages": 0}, "supervisord_running": True},
                {"tier": "smtp-in", "task": TASK, "supervisord_running": True},
            ]
        ),
        "address_map": complete(bad_rows={"kinds": {"invalid_username": 2}}),
        "reconfigure_loop": complete(tasks=[loop(TASK, "smtp-in", "dead"), loop(IMAP, "imap", "dead")]),
        "local_delivery": complete(stray_mail=[]),
        "findings": [
            {"id": "smtp_in.stale_map", "tier": "smtp-in", "fingerprint": "f1", "confidence": "high", "remedy": remedy}
        ],
    }


def loop(task: str, tier: str, state: str) -> Facts:
    return {"task": task, "tier": tier, "state": state, "process": {"process": "alive" if state == "hung" else "dead"}}


def lease(**more: Any) -> Facts:
    return complete(held=False, record=None, history=[], **more)


def open_way() -> dict[str, Facts]:
    """What service_restart_info says when nothing is in the way."""
    live = {
        "lease": lease(),
        "room": complete(tasks=3, instances=2),
        "caller": complete(arn="me", clock_skew_seconds=1),
    }
    return {name: copy.deepcopy(live) for name in ("cabal-smtp-in", "cabal-imap")}


OPTIONS: Facts = {"requested": True, "allowed_services": ["cabal-smtp-in"]}
IMAP_OPTIONS: Facts = {"allowed_services": ["cabal-imap"], "allow_imap": True}


def test_an_open_way_is_to_be_done(triage: Facts) -> None:
    decided = plan(triage, OPTIONS, NOW, open_way())
    assert (decided["stopped_by"], decided["to_do"], decided["outcome"]) == ([], True, "not_attempted")
    assert shlex.split(decided["plan"]["commands"][0])[-1] == "--force-new-deployment"


def test_unasked_nothing_is_to_be_done_and_nothing_more_is_read(triage: Facts) -> None:
    decided = plan(triage, {**OPTIONS, "requested": False}, NOW)
    assert (decided["stopped_by"], decided["to_do"]) == ([], False)
    assert len(decided["gates"]) == len(GATES)


def imap(triage: Facts) -> None:
    triage["findings"][0].update(tier="imap", id="imap.stale_map")
    triage["findings"][0]["remedy"].update(service="cabal-imap", tasks=[IMAP])


def unregistered(triage: Facts) -> None:
    """imap runs and Cloud Map does not know it: no loop is stuck."""
    imap(triage)
    triage["findings"][0]["remedy"]["tasks"] = []
    triage["environment"]["discovery"]["imap"]["instances"] = []


def hung(triage: Facts) -> None:
    triage["findings"][0]["remedy"]["kind"] = "restart_loop"
    triage["reconfigure_loop"]["tasks"][0] = loop(TASK, "smtp-in", "hung")


def one_of_two(triage: Facts) -> None:
    triage["findings"][0]["remedy"]["kind"] = "restart_task"
    triage["reconfigure_loop"]["tasks"].append(loop("c" * 32, "smtp-in", "healthy"))
    service(triage).update(desired=2, running=2)


@pytest.mark.parametrize(
    ("change", "options"),
    [(hung, {}), (one_of_two, {}), (imap, IMAP_OPTIONS), (unregistered, IMAP_OPTIONS)],
)
def test_each_kind_of_restart_is_to_be_done(change: Callable[[Facts], Any], options: Facts, triage: Facts) -> None:
    change(triage)
    assert plan(triage, {**OPTIONS, **options}, NOW, open_way())["stopped_by"] == []


def test_ending_imaps_loop_is_no_outage_and_needs_no_switch(triage: Facts) -> None:
    imap(triage)
    triage["findings"][0]["remedy"]["kind"] = "restart_loop"
    triage["reconfigure_loop"]["tasks"][1] = loop(IMAP, "imap", "hung")
    triage["containers"]["tasks"][0]["queue"]["messages"] = 7
    decided = plan(triage, {**OPTIONS, "allowed_services": ["cabal-imap"]}, NOW, open_way())
    assert (decided["stopped_by"], "outage" in decided["plan"]["text"]) == ([], False)


def second_deployment(triage: Facts) -> None:
    row = {"id": "d2", "rollout_state": "COMPLETED", "created_at": "2026-11-24T21:30:00Z"}
    service(triage)["deployments"].append(row)


def service(triage: Facts) -> Facts:
    found: Facts = triage["environment"]["services"]["smtp-in"]
    return found


def wrong_tier(triage: Facts) -> None:
    """A redeploy of smtp-in for imap's map."""
    triage["findings"][0]["tier"] = "imap"


def alone(triage: Facts) -> None:
    one_of_two(triage)
    triage["reconfigure_loop"]["tasks"][-1]["state"] = "failing"


def unseen(triage: Facts) -> None:
    hung(triage)
    triage["reconfigure_loop"]["tasks"][0]["process"] = None


def orphaned(triage: Facts) -> None:
    """The loop hangs, and nobody is there who would start it anew."""
    hung(triage)
    triage["containers"]["tasks"][1]["supervisord_running"] = False


def by_hand(triage: Facts) -> None:
    stopped = {"id": "x", "stop_code": "UserInitiated", "stopped_at": "2026-11-24T21:40:00Z"}
    service(triage)["tasks"].append(stopped)


def no_place(triage: Facts) -> None:
    service(triage)["events"].insert(0, {"message": "(service x) was unable to place a task because ..."})


CLOSED: list[tuple[str, Callable[[Facts], Any], Facts]] = [
    ("low_confidence", lambda t: t["findings"][0].update(confidence="medium"), {}),
    *(
        ("evidence_incomplete", lambda t, name=name: t[name].update(status="partial"), {})  # type: ignore[misc]
        for name in ("tiers", "environment", "containers", "address_map", "reconfigure_loop", "local_delivery")
    ),
    ("evidence_stale", lambda t: t["run"].update(started="2026-11-24T21:50:00Z"), {}),
    ("evidence_stale", lambda t: t["run"].update(started="2026-11-24T22:09:00Z"), {}),
    ("evidence_stale", lambda t: t["run"].update(started=None), {}),
    ("evidence_stale", lambda t: None, {"seen_at": "2026-11-24T21:54:00Z"}),
    ("service_not_allowed", lambda t: None, {"allowed_services": []}),
    ("service_not_allowed", imap, {"allowed_services": ["cabal-imap"]}),
    ("deployment_in_progress", lambda t: service(t)["deployments"][0].update(rollout_state="IN_PROGRESS"), {}),
    ("deployment_in_progress", lambda t: service(t)["deployments"][0].update(rollout_state=None), {}),
    ("quiesced", lambda t: service(t).update(desired=0, running=0), {}),
    ("too_few_healthy", lambda t: service(t).update(desired=2), {}),
    ("too_few_healthy", lambda t: service(t).update(running=None), {}),
    ("too_few_healthy", alone, {}),
    ("recently_remediated", lambda t: service(t)["deployments"][0].update(created_at="2026-11-24T21:30:00Z"), {}),
    ("recently_remediated", second_deployment, {}),
    ("recently_remediated", by_hand, {}),
    ("secret_missing", lambda t: service(t)["secrets"][0].update(exists=False), {}),
    ("secret_missing", lambda t: service(t)["secrets"][0].update(exists=None), {}),
    ("secret_missing", lambda t: service(t).update(status="partial", secrets=[]), {}),
    ("maintenance_active", lambda t: t["environment"]["parameters"]["maintenance_imap"].update(active=True), {}),
    ("maintenance_active", lambda t: t["environment"]["parameters"].update(status="unavailable"), {}),
    ("row_breaks_makemap", lambda t: t["address_map"]["bad_rows"]["kinds"].update(empty_user=1), {}),
    ("row_breaks_makemap", lambda t: t["address_map"]["bad_rows"]["kinds"].update(duplicate_key=1), {}),
    ("row_breaks_makemap", lambda t: t["address_map"].update(bad_rows=None), {}),
    ("would_not_cure", wrong_tier, {}),
    ("would_not_cure", lambda t: t["reconfigure_loop"]["tasks"][0].update(state="failing"), {}),
    ("would_not_cure", lambda t: t["reconfigure_loop"]["tasks"][0].update(state="healthy"), {}),
    ("would_not_cure", lambda t: t["reconfigure_loop"]["tasks"].pop(0), {}),
    ("would_not_cure", unseen, {}),
    ("would_not_cure", orphaned, {}),
    ("would_not_cure", lambda t: t["findings"][0]["remedy"].update(kind="restart_loop"), {}),
    ("no_capacity", no_place, {}),
]


@pytest.mark.parametrize(("name", "change", "options"), CLOSED)
def test_each_gate_alone_stops_it(name: str, change: Callable[[Facts], Any], options: Facts, triage: Facts) -> None:
    change(triage)
    decided = plan(triage, {**OPTIONS, **options}, NOW, open_way())
    assert (decided["stopped_by"], decided["to_do"]) == ([name], False)
    assert all(gate["value"] for gate in decided["gates"])


def acted(kind: str, at: str, outcome: str | None) -> Facts:
    return {"run": "theirs", "by": "them", "acted": at, "kind": kind, "outcome": outcome, "approved": "saved"}


HELD = {"run": "theirs", "by": "jane", "expires": "2026-11-24T22:20:00Z"}
LIVE: list[tuple[str, bool | None, Callable[[Facts], Any]]] = [
    ("duplicate_in_progress", False, lambda live: live["lease"].update(held=True, record=HELD)),
    ("duplicate_in_progress", None, lambda live: live["lease"].update(held=True, record=None)),
    (
        "recently_remediated",
        False,
        lambda live: live["lease"]["history"].append(acted("redeploy_service", "2026-11-24T21:10:00Z", "recovered")),
    ),
    (
        "consecutive_failures",
        False,
        lambda live: live["lease"]["history"].extend(
            [
                acted("redeploy_service", "2026-11-24T15:10:00Z", "recovered"),
                acted("restart_loop", "2026-11-24T19:10:00Z", "not_recovered"),
                acted("restart_task", "2026-11-24T20:10:00Z", None),
            ]
        ),
    ),
    ("clock_skew", False, lambda live: live["caller"].update(clock_skew_seconds=-300)),
    ("clock_skew", None, lambda live: live["caller"].update(clock_skew_seconds=None)),
    ("no_capacity", False, lambda live: live["room"].update(tasks=0)),
    ("no_capacity", None, lambda live: live["room"].update(tasks=None, reasons=["DescribeContainerInstances denied"])),
]


@pytest.mark.parametrize(("name", "passed", "change"), LIVE)
def test_each_gate_over_live_state_alone_stops_it(
    name: str, passed: bool | None, change: Callable[[Facts], Any], triage: Facts
) -> None:
    live = open_way()
    change(live["cabal-smtp-in"])
    decided = plan(triage, OPTIONS, NOW, live)
    assert (decided["stopped_by"], decided["to_do"]) == ([name], False)
    assert [gate["passed"] for gate in decided["gates"] if gate["name"] == name][-1] is passed


def test_without_live_state_nothing_is_done(triage: Facts) -> None:
    stopped = ["recently_remediated", "duplicate_in_progress", "clock_skew", "consecutive_failures", "no_capacity"]
    assert sorted(plan(triage, OPTIONS, NOW)["stopped_by"]) == sorted(stopped)


def test_another_remedy_than_the_one_tried_may_follow_it(triage: Facts) -> None:
    live = open_way()
    live["cabal-smtp-in"]["lease"]["history"] = [acted("restart_loop", "2026-11-24T21:30:00Z", "not_recovered")]
    assert plan(triage, OPTIONS, NOW, live)["stopped_by"] == []


def test_what_was_announced_and_then_refused_was_no_restart(triage: Facts) -> None:
    live = open_way()
    history = [acted("redeploy_service", f"2026-11-24T21:{minute}:00Z", "not_attempted") for minute in (30, 40, 50)]
    live["cabal-smtp-in"]["lease"]["history"] = history
    assert plan(triage, OPTIONS, NOW, live)["stopped_by"] == []


def test_without_any_deployment_nothing_is_known(triage: Facts) -> None:
    service(triage)["deployments"] = []
    stopped = plan(triage, OPTIONS, NOW, open_way())["stopped_by"]
    assert stopped == ["deployment_in_progress", "recently_remediated"]


def test_every_gate_has_a_test_in_which_it_alone_stops_a_restart(triage: Facts) -> None:
    """A gate that is added without a case above fails here; the others have tests of their own in this file."""
    elsewhere = {"queue_would_be_lost", "remedy_changed", "already_remediated"}
    gates = plan(triage, OPTIONS, NOW, open_way(), approval(triage))["gates"]
    tried = {row[0] for row in CLOSED} | {row[0] for row in LIVE} | elsewhere
    assert tried == {gate["name"] for gate in gates}
    assert len(gates) == len(GATES) + len(LIVE_GATES) + 2


def test_our_own_lease_does_not_stop_us(triage: Facts) -> None:
    live = open_way()
    live["cabal-smtp-in"]["lease"].update(held=True, record={**HELD, "run": "mine"})
    assert plan(triage, OPTIONS, NOW, live)["stopped_by"] == []


@pytest.mark.parametrize(("until", "words"), [(-1, "its deployment failed"), (1, "a roll of imap is planned")])
def test_the_maintenance_flag_is_explained(until: int, words: str, triage: Facts) -> None:
    end = (NOW + timedelta(minutes=until)).strftime("%Y-%m-%dT%H:%M:%SZ")
    triage["environment"]["parameters"]["maintenance_imap"].update(active=True, until=end)
    decided = plan(triage, OPTIONS, NOW, open_way())
    assert words in next(gate["value"] for gate in decided["gates"] if gate["name"] == "maintenance_active")


@pytest.mark.parametrize(("depth", "stray"), [(3, []), (None, []), (0, [{"user": "jane"}]), (0, None)])
def test_imaps_mail_is_not_thrown_away(depth: int | None, stray: list[Any] | None, triage: Facts) -> None:
    imap(triage)
    triage["containers"]["tasks"][0]["queue"]["messages"] = depth
    triage["local_delivery"]["stray_mail"] = stray
    options = {**OPTIONS, **IMAP_OPTIONS}
    assert plan(triage, options, NOW, open_way())["stopped_by"] == ["queue_would_be_lost"]
    known = depth is not None and stray is not None
    stopped = plan(triage, {**options, "lose_mail": True}, NOW, open_way())["stopped_by"]
    assert stopped == ([] if known else ["queue_would_be_lost"])


@pytest.mark.parametrize("instances", [["10.0.2.45"], None])
def test_a_registered_imap_is_not_redeployed_for_cloud_map(instances: list[str] | None, triage: Facts) -> None:
    unregistered(triage)
    triage["environment"]["discovery"]["imap"]["instances"] = instances
    assert plan(triage, {**OPTIONS, **IMAP_OPTIONS}, NOW, open_way())["stopped_by"] == ["would_not_cure"]


def approval(triage: Facts, **more: Any) -> Facts:
    finding = triage["findings"][0]
    return {"run": "saved", "fingerprint": finding["fingerprint"], "remedy": copy.deepcopy(finding["remedy"]), **more}


def test_what_was_approved_is_done_once(triage: Facts) -> None:
    live, approved = open_way(), approval(triage)
    assert plan(triage, OPTIONS, NOW, live, approved)["stopped_by"] == []
    live["cabal-smtp-in"]["lease"]["history"] = [acted("restart_task", "2026-11-24T11:30:00Z", "recovered")]
    assert plan(triage, OPTIONS, NOW, live, approved)["stopped_by"] == ["already_remediated"]
    del live["cabal-smtp-in"]["lease"]
    assert "already_remediated" in plan(triage, OPTIONS, NOW, live, approved)["stopped_by"]


def test_nothing_but_what_was_approved_is_done(triage: Facts) -> None:
    gone = plan(triage, OPTIONS, NOW, open_way(), approval(triage, fingerprint="other"))
    assert (gone["stopped_by"], gone["plan"], gone["to_do"]) == (["finding_gone"], None, False)
    approved = approval(triage)
    approved["remedy"]["tasks"] = ["d" * 32]
    assert plan(triage, OPTIONS, NOW, open_way(), approved)["stopped_by"] == ["remedy_changed"]


def test_the_first_finding_that_nothing_stops_is_taken(triage: Facts) -> None:
    first = copy.deepcopy(triage["findings"][0])
    first.update(id="imap.stale_map", tier="imap", remedy={**first["remedy"], "service": "cabal-imap", "tasks": [IMAP]})
    triage["findings"].insert(0, first)
    assert plan(triage, OPTIONS, NOW, open_way())["finding"] == "smtp_in.stale_map"
    assert services(triage) == ["cabal-imap", "cabal-smtp-in"]
    none = plan(triage, {**OPTIONS, "allowed_services": []}, NOW, open_way())
    assert (none["finding"], none["stopped_by"]) == ("imap.stale_map", ["service_not_allowed"])


def test_an_unread_service_closes_every_gate_that_needs_it(triage: Facts) -> None:
    triage["environment"]["services"]["smtp-in"]["status"] = "unavailable"
    stopped = plan(triage, OPTIONS, NOW, open_way())["stopped_by"]
    assert stopped == [
        "deployment_in_progress",
        "quiesced",
        "too_few_healthy",
        "recently_remediated",
        "secret_missing",
        "no_capacity",
    ]


def test_no_evidence_at_all_closes_all_but_the_harmless_gates(triage: Facts) -> None:
    bare = {"run": {}, "findings": triage["findings"]}
    gates = plan(bare, {"requested": True}, NOW)["gates"]
    assert [gate["name"] for gate in gates if gate["passed"]] == ["low_confidence", "queue_would_be_lost"]


def test_a_gate_found_closed_while_acting_stops_it(triage: Facts) -> None:
    decided = stop(plan(triage, OPTIONS, NOW, open_way()), "duplicate_in_progress", None, "denied")
    assert (decided["to_do"], decided["stopped_by"]) == (False, ["duplicate_in_progress"])


def test_without_a_remedy_nothing_is_planned(triage: Facts) -> None:
    triage["findings"][0]["remedy"] = None
    assert plan(triage, OPTIONS, NOW, open_way())["stopped_by"] == ["no_remedy"]


def test_task_names_are_quoted(triage: Facts) -> None:
    triage["findings"][0]["remedy"].update(kind="restart_task", tasks=["x; rm -rf /"])
    command = plan(triage, OPTIONS, NOW)["plan"]["commands"][0]
    assert "x; rm -rf /" in shlex.split(command)
