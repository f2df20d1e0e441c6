# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The seven answers about a loop, from the container, from the log, from both, and from neither."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ansible.module_utils.cabalmail.privacy import Masker
from ansible.module_utils.cabalmail.reconfigure_loop import LoopLimits, reconfigure_loop
from ansible.module_utils.maillog.records import Other
from ansible.module_utils.maillog.taskslog import TaskLog

NOW = datetime(2026, 11, 24, 22, 0, tzinfo=UTC)
TASK = "a" * 32
HOURS = 5 * 3600
FRESH = 300


def ago(seconds: float | None) -> str | None:
    return None if seconds is None else (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def container(
    db: float | None = FRESH,
    text: float | None = None,
    sendmail: float | None = 200,
    tier: str = "smtp-in",
    **loop: Any,
) -> dict[str, Any]:
    """An entry of containers.tasks."""
    text = db if text is None else text
    files = {}
    for path in ("/etc/mail/access", "/etc/mail/mailertable", "/etc/mail/virtusertable"):
        if db is not None:
            files[f"{path}.db"] = {"age_seconds": db, "mtime": ago(db)}
            files[path] = {"age_seconds": text, "mtime": ago(text)}
    process = {"process": "alive", "state": "S", "stopped": False, "age_seconds": 90000.0, "children": [], **loop}
    return {
        "tier": tier,
        "task": TASK,
        "status": "complete",
        "started_at": ago(90000),
        "files": files,
        "loop": process,
        "sendmail_age_seconds": sendmail,
    }


def lines(done: float | None = FRESH, **more: Any) -> dict[str, Any]:
    """The loop's lines in the log, an entry of by_tier.<tier>.tasks."""
    loop = {
        "starts": 3,
        "dones": 3 if done is not None else 0,
        "messages": 1,
        "fallbacks": 3,
        "periodic_only": False,
        "pings_sent": 3,
        "pings_failed": 0,
        "last_start": ago(done),
        "last_done": ago(done),
        "last_ping": ago(done),
        "exits": [],
        "errors": [],
        "gave_up": None,
        "unfinished_since": None,
        **more,
    }
    return {"loop": loop}


def facts(
    entry: dict[str, Any] | None = None,
    log: dict[str, Any] | None = None,
    *,
    coverage: str = "complete",
    heartbeat: dict[str, Any] | None = None,
    queue: dict[str, Any] | None = None,
    newest: float | None = None,
    window: float = 2880,
    started: float = 90000,
    last_event: float = 60,
) -> dict[str, Any]:
    tasks = {TASK: log} if log else {}
    return {
        "alert": {"window": {"start": ago(window), "end": ago(0)}},
        "tiers": {
            "by_tier": {
                "smtp-in": {
                    "coverage": {"status": coverage, "log_group_exists": True, "last_event": ago(last_event)},
                    "tasks": tasks,
                }
            }
        },
        "containers": {"tasks": [entry] if entry else []},
        "environment": {
            "services": {
                "smtp-in": {
                    "status": "complete",
                    "tasks": [{"id": TASK, "last_status": "RUNNING", "started_at": ago(started)}],
                }
            },
            "queues": {"smtp-in": queue or {"visible": 0, "not_visible": 0}},
            "parameters": {"heartbeat": heartbeat if heartbeat is not None else {"exists": False}},
            "addresses": {"newest_request": ago(newest)},
        },
    }


def answer(*args: Any, **more: Any) -> dict[str, Any]:
    section = reconfigure_loop(facts(*args, **more), LoopLimits())
    json.dumps(section)
    (row,) = section["tasks"]
    assert section["by_state"][row["state"]] == [TASK]
    return row


@pytest.mark.parametrize(
    ("entry", "state", "cure"),
    [
        (container(), "healthy", "none"),
        (container(db=1000), "healthy", "none"),
        (container(process="dead"), "dead", "restart_task"),
        (container(db=HOURS, process="dead"), "dead", "restart_task"),
        (container(stopped=True, state="T"), "hung", "restart_task"),
        (container(db=HOURS, stopped=True, state="T"), "hung", "restart_task"),
        (container(db=HOURS), "hung", "restart_task"),
        (container(db=HOURS, state="D"), "hung", "restart_task"),
        (container(db=HOURS, text=60), "failing", "none"),
        (container(db=HOURS, age_seconds=300.0), "failing", "none"),
        (container(db=FRESH, sendmail=HOURS), "failing", "none"),
        (container(process="unknown"), "unknown", "none"),
        (container(db=None), "unknown", "none"),
    ],
)
def test_what_the_container_alone_says(entry: dict[str, Any], state: str, cure: str) -> None:
    row = answer(entry, coverage="unavailable")
    assert (row["state"], row["cure"]) == (state, cure)
    assert row["sources"] == ([] if state == "unknown" else ["exec"])
    assert row["why"]


def test_a_call_that_hangs_is_named() -> None:
    child = {"name": "aws", "call": "dynamodb scan", "state": "S", "age_seconds": 17000.0}
    row = answer(container(db=HOURS, children=[child]), coverage="unavailable")
    assert row["state"] == "hung"
    assert "aws dynamodb scan" in row["why"]


def test_a_long_poll_is_no_hanging_call() -> None:
    child = {"name": "aws", "call": "sqs receive-message", "state": "S", "age_seconds": 19.0}
    assert answer(container(children=[child]), coverage="unavailable")["state"] == "healthy"


AWS = "An error occurred (ProvisionedThroughputExceededException) when calling the Scan operation"


@pytest.mark.parametrize(
    ("log", "state", "could_be"),
    [
        (lines(), "healthy", []),
        (lines(done=1000), "healthy", []),
        (lines(done=2000), "hung", ["dead"]),
        (lines(done=None), "hung", ["dead"]),
        (lines(done=2000, gave_up=ago(1500)), "dead", []),
        (lines(done=2500, unfinished_since=ago(1600)), "hung", []),
        (lines(done=2000, exits=[{"status": "65", "count": 2, "last": ago(100)}]), "failing", []),
        (lines(starts=6, exits=[{"status": "65", "count": 3, "last": ago(100)}]), "failing", []),
        (
            lines(
                done=2000,
                exits=[{"status": "255", "count": 2, "last": ago(100)}],
                errors=[{"time": ago(110), "text": AWS}],
            ),
            "starved",
            [],
        ),
        (lines(done=2000, errors=[{"time": ago(110), "text": AWS}]), "starved", []),
        # An exit before the last completed pass is over and done with.
        (lines(exits=[{"status": "65", "count": 2, "last": ago(2000)}]), "healthy", []),
    ],
)
def test_what_the_log_alone_says(log: dict[str, Any], state: str, could_be: list[str]) -> None:
    row = answer(None, log)
    assert (row["state"], row["could_be"], row["sources"]) == (state, could_be, ["logs"])


def test_65_is_makemap_and_a_restart_cures_nothing() -> None:
    row = answer(None, lines(done=2000, exits=[{"status": "65", "count": 2, "last": ago(100)}]))
    assert (row["exit_status"], row["cure"]) == (65, "none")
    assert "makemap" in row["why"]


@pytest.mark.parametrize(
    "more",
    [
        {"coverage": "unavailable"},
        {"coverage": "partial"},
        {"last_event": 3000},
        {"window": 900},
        {"started": 300},
    ],
)
def test_silence_proves_nothing_where_the_log_may_not_flow_or_was_watched_too_short(more: dict[str, Any]) -> None:
    row = answer(None, None, **more)
    assert (row["state"], row["stuck"], row["cure"]) == ("unknown", None, "none")


def test_pings() -> None:
    exists = {"exists": True, "last_modified": ago(100000)}
    failed = lines(pings_sent=0, pings_failed=3, last_ping=None)
    none = lines(pings_sent=0, pings_failed=0, last_ping=None)
    assert answer(container(), failed, heartbeat=exists)["state"] == "no_ping"
    assert answer(container(), failed, heartbeat={})["state"] == "no_ping"
    assert answer(container(), none, heartbeat=exists)["state"] == "no_ping"
    # Without monitoring there is no ping, and that is no fault.
    assert answer(container(), none, heartbeat={"exists": False})["state"] == "healthy"
    assert answer(container(), none, heartbeat={})["state"] == "healthy"


@pytest.mark.parametrize(
    ("entry", "log", "state"),
    [
        (container(db=HOURS, process="dead"), lines(done=None), "dead"),
        (container(db=HOURS, stopped=True), lines(done=None), "hung"),
        (container(db=HOURS, age_seconds=60.0), lines(done=None, unfinished_since=ago(2000)), "hung"),
        (container(db=HOURS, age_seconds=60.0), lines(done=None, errors=[{"time": ago(9), "text": AWS}]), "starved"),
        (
            container(db=HOURS, text=60),
            lines(done=None, exits=[{"status": "65", "count": 3, "last": ago(9)}]),
            "failing",
        ),
        # Stopped since its last good pass: no contradiction.
        (container(db=FRESH, stopped=True), lines(done=FRESH), "hung"),
        (container(db=FRESH, process="dead"), lines(done=FRESH), "dead"),
    ],
)
def test_both_agree(entry: dict[str, Any], log: dict[str, Any], state: str) -> None:
    row = answer(entry, log)
    assert (row["state"], row["disagreement"], row["sources"]) == (state, None, ["exec", "logs"])


def test_a_disagreement_is_said_and_the_container_believed() -> None:
    section = reconfigure_loop(facts(container(db=HOURS), lines(done=200)), LoopLimits())
    (row,) = section["tasks"]
    assert row["state"] == "hung"
    assert "its log healthy" in row["disagreement"]
    assert section["status"] == "partial"
    assert any("its log healthy" in reason for reason in section["reasons"])


def test_lines_that_were_lost_do_not_make_a_loop_stuck() -> None:
    row = answer(container(db=FRESH), lines(done=None))
    assert row["state"] == "healthy"
    assert "healthy" in row["disagreement"]


def test_a_sibling_that_got_no_message_lags_by_design_and_is_not_stuck() -> None:
    """Defect 18: one queue a tier, so of three tasks one hears of a change and the others wait for their interval."""
    assert answer(container(db=1030), lines(done=1030, messages=0))["state"] == "healthy"
    assert answer(container(db=1060), lines(done=1060, messages=0))["state"] == "hung"


def test_an_empty_queue_is_no_proof_of_a_working_loop() -> None:
    """Defect 19: the message is deleted before the work; what counts is `Done.` of each task."""
    empty = {"visible": 0, "not_visible": 0}
    row = answer(container(db=HOURS), lines(done=None, messages=1), queue=empty)
    assert (row["state"], row["stuck"]) == ("hung", True)


def test_a_loop_that_fails_for_hours_never_comes_to_fatal() -> None:
    """Defect 21: each pass lives for longer than a second, so supervisord counts no failed start."""
    exits = [{"status": "65", "count": 12, "last": ago(100)}]
    log = lines(done=None, starts=12, exits=exits, gave_up=None)
    row = answer(None, log)
    assert (row["state"], row["exit_status"]) == ("failing", 65)


def test_supervisord_s_own_words_for_giving_up() -> None:
    """Defect 22: it says `gave up: ... entered FATAL state`, and says so in the log group too."""
    line = Other("supervisor", "gave up: reconfigure entered FATAL state, too many start retries too quickly")
    log = TaskLog()
    log.add(line, int((NOW - timedelta(seconds=1500)).timestamp() * 1000), "1")
    row = answer(None, log.facts(Masker(b"k" * 32)))
    assert (row["state"], row["since"]) == ("dead", ago(1500))


def test_the_heartbeat_is_missed_only_when_every_task_is_silent() -> None:
    """Defect 23: the runbook takes the page for "at least one loop stopped"; one dead loop never pages."""

    def heartbeat(*pings: float | None) -> dict[str, Any]:
        triage = facts(None, None, heartbeat={"exists": True, "last_modified": ago(900000)}, window=5400)
        tasks = {f"{number:032x}": lines(last_ping=ago(ping)) for number, ping in enumerate(pings)}
        triage["tiers"]["by_tier"]["smtp-in"]["tasks"] = tasks
        triage["environment"]["services"]["smtp-in"]["tasks"] = [
            {"id": task, "last_status": "RUNNING", "started_at": ago(90000)} for task in tasks
        ]
        found: dict[str, Any] = reconfigure_loop(triage, LoopLimits())["heartbeat"]
        return found

    one_dead = heartbeat(300, 400, None)
    assert (one_dead["missed"], one_dead["silent_tasks"]) == (False, [f"{2:032x}"])
    assert heartbeat(3700, 4000, None)["missed"] is True
    # Without monitoring nobody pings, and nothing is missed.
    assert heartbeat(None, None)["missed"] is True
    triage = facts(None, lines(last_ping=None), heartbeat={"exists": False}, window=5400)
    assert reconfigure_loop(triage, LoopLimits())["heartbeat"]["missed"] is None


def test_a_queue_that_nobody_hears_starves_the_tier() -> None:
    """Defect 20: a denied or unreachable queue is silent; only fallback lines show although an address was made."""
    deaf = lines(messages=0)
    assert answer(container(), deaf, newest=1500)["state"] == "starved"
    # No address was made meanwhile, or somebody heard of it, or the log has gaps: nothing to say.
    assert answer(container(), deaf, newest=None)["state"] == "healthy"
    assert answer(container(), deaf, newest=100000)["state"] == "healthy"
    assert answer(container(), lines(), newest=1500)["state"] == "healthy"
    assert answer(container(), deaf, newest=1500, coverage="partial")["state"] == "healthy"


def test_a_task_that_started_after_the_change_was_never_to_hear_of_it() -> None:
    assert answer(container(), lines(messages=0), newest=1500, started=1600)["state"] == "starved"
    assert answer(container(), lines(messages=0), newest=1500, started=1400)["state"] == "healthy"


def test_queues_and_heartbeat() -> None:
    triage = facts(
        container(),
        lines(done=4000, last_ping=ago(4000)),
        heartbeat={"exists": True, "last_modified": ago(600)},
        queue={"visible": 4, "not_visible": 0},
        window=7200,
    )
    section = reconfigure_loop(triage, LoopLimits())
    assert section["queues"]["smtp-in"]["signal"] == "waiting"
    assert section["heartbeat"]["tasks_with_old_value"] == [{"tier": "smtp-in", "task": TASK}]
    assert section["heartbeat"]["missed"] is True


@pytest.mark.parametrize(
    ("visible", "oldest", "signal"),
    [(4, 600, "backing_up"), (4, 20, "waiting"), (4, None, "waiting"), (0, 600, "empty"), (None, 600, "unknown")],
)
def test_a_message_that_waits_for_minutes_has_no_reader(visible: int | None, oldest: int | None, signal: str) -> None:
    queue = {"visible": visible, "not_visible": 0, "oldest_seconds": oldest}
    section = reconfigure_loop(facts(container(), lines(), queue=queue), LoopLimits())
    assert section["queues"]["smtp-in"]["signal"] == signal


@pytest.mark.parametrize(("subscribed", "state"), [(False, "starved"), (True, "healthy"), (None, "healthy")])
def test_a_queue_without_a_subscription_starves_the_tier(subscribed: bool | None, state: str) -> None:
    row = answer(container(), lines(), queue={"visible": 0, "not_visible": 0, "subscribed": subscribed})
    assert row["state"] == state
    assert ("not subscribed" in row["why"]) is (state == "starved")


@pytest.mark.parametrize(("throttled", "state"), [(40, "starved"), (0, "failing"), (None, "failing")])
def test_throttled_reads_tell_starved_from_failing_where_no_line_does(throttled: int | None, state: str) -> None:
    triage = facts(container(db=HOURS, age_seconds=300.0), coverage="unavailable")
    triage["environment"]["metrics"] = {"throttled_reads": throttled}
    (row,) = reconfigure_loop(triage, LoopLimits())["tasks"]
    assert row["state"] == state
    assert ("40 throttled reads" in row["why"]) is (state == "starved")


def test_a_loop_that_somebody_started_anew_is_not_accused() -> None:
    """A new loop waits a whole interval before its first pass; until then nobody can tell whether it works."""
    killed = lines(done=None, started=ago(300), exits=[{"status": "SIGKILL", "count": 1, "last": ago(301)}])
    row = answer(container(db=HOURS, age_seconds=299.0), killed)
    assert (row["state"], row["stuck"]) == ("unknown", None)
    assert "started anew 5 min ago" in row["why"]
    # An interval later it has had its chance; killed again and again it is failing.
    late = lines(done=None, started=ago(1200), exits=[{"status": "SIGKILL", "count": 1, "last": ago(1201)}])
    assert answer(container(db=HOURS, age_seconds=1200.0), late)["state"] in ("hung", "failing")
    often = lines(done=None, started=ago(300), exits=[{"status": "SIGKILL", "count": 3, "last": ago(301)}])
    assert answer(container(db=HOURS, age_seconds=299.0), often)["state"] == "failing"


def test_a_full_disk_is_told_in_the_shell_s_own_words() -> None:
    full = "generate-config.sh: line 88: /etc/mail/access.tmp: No space left on device"
    row = answer(
        None,
        lines(
            done=2000,
            exits=[{"status": "1", "count": 2, "last": ago(100)}],
            errors=[{"time": ago(110), "text": full}],
        ),
    )
    assert (row["state"], row["exit_status"]) == ("failing", 1)
    assert "No space left on device" in row["why"]


def test_uninterruptible_sleep_is_named_with_what_it_waits_for() -> None:
    row = answer(container(db=HOURS, state="D", wchan="nfs_wait_bit_killable"), coverage="unavailable")
    assert row["state"] == "hung"
    assert "uninterruptible sleep in nfs_wait_bit_killable" in row["why"]


def test_errors_of_cognito_at_a_task_s_start_are_named() -> None:
    """Defect 25: metrics know of sign-in throttles only; sync-users says at the start of a task what it met."""
    log = TaskLog()
    said = "[sync-users] ERROR: An error occurred (TooManyRequestsException) when calling the ListUsers operation"
    log.add(Other("sync_users", said), 1, "1")
    log.add(Other("sync_users", "[sync-users] Done."), 2, "2")
    triage = facts(container(), log.facts(Masker(b"k" * 32)))
    section = reconfigure_loop(triage, LoopLimits())
    assert section["sync_users_errors"] == [{"tier": "smtp-in", "task": TASK, "lines": 1}]


def test_a_queue_that_could_not_be_read_is_unknown_and_not_empty() -> None:
    section = reconfigure_loop(facts(container(), queue={"visible": None, "not_visible": None}), LoopLimits())
    assert section["queues"]["smtp-in"]["signal"] == "unknown"


def test_tasks_are_known_from_the_log_when_ecs_told_nothing() -> None:
    triage = facts(None, lines(done=2000))
    triage["environment"]["services"] = {}
    (row,) = reconfigure_loop(triage, LoopLimits())["tasks"]
    assert (row["task"], row["state"]) == (TASK, "hung")


def test_preflight_tasks_and_stopped_tasks_have_no_loop() -> None:
    triage = facts(container(), lines())
    triage["environment"]["services"]["smtp-in"]["tasks"] += [
        {"id": "b" * 32, "last_status": "STOPPED"},
        {"id": "c" * 32, "last_status": "RUNNING", "started_by": "deploy-preflight"},
    ]
    assert [row["task"] for row in reconfigure_loop(triage, LoopLimits())["tasks"]] == [TASK]


def test_nothing_known_is_unavailable() -> None:
    section = reconfigure_loop({}, LoopLimits())
    assert (section["status"], section["tasks"], section["reasons"]) == (
        "unavailable",
        [],
        ["no running task is known"],
    )


def test_a_task_that_is_still_starting_has_no_dead_loop() -> None:
    """The entrypoint makes users and maps before supervisord takes its place; until then no loop is due."""
    entry = {**container(process="dead"), "supervisord_running": False}
    row = answer(entry, started=60)
    assert (row["state"], row["stuck"], row["cure"]) == ("unknown", None, "none")
    assert answer({**entry, "supervisord_running": True}, started=60)["state"] == "dead"
    # One that starts for an hour hangs at something: its silent log says so.
    assert answer(entry, started=4000)["state"] == "hung"


def test_a_pass_whose_ping_is_yet_to_come_lacks_none() -> None:
    """The window may end between `Done.` and the line about the ping."""
    exists = {"exists": True, "last_modified": ago(100000)}
    first = {"starts": 1, "dones": 1, "pings_sent": 0, "last_ping": None}
    assert answer(container(), lines(done=2, **first), heartbeat=exists)["state"] == "healthy"
    assert answer(container(), lines(done=70, **first), heartbeat=exists)["state"] == "no_ping"
    once = {"pings_sent": 2, "pings_failed": 1}
    assert answer(container(), lines(done=2, last_ping=ago(902), **once), heartbeat=exists)["state"] == "healthy"
    assert answer(container(), lines(done=2, last_ping=ago(2700), **once), heartbeat=exists)["state"] == "no_ping"


def test_pings_of_tasks_that_were_replaced_count_and_young_ones_owe_none() -> None:
    exists = {"exists": True, "last_modified": ago(900000)}
    triage = facts(None, lines(done=None, last_ping=None), heartbeat=exists, window=5400, started=300)
    found = reconfigure_loop(triage, LoopLimits())["heartbeat"]
    assert (found["missed"], found["silent_tasks"]) == (True, [])
    triage["tiers"]["by_tier"]["smtp-in"]["tasks"]["b" * 32] = lines(last_ping=ago(700))
    found = reconfigure_loop(triage, LoopLimits())["heartbeat"]
    assert (found["missed"], found["last_ping"]) == (False, ago(700))


@pytest.mark.parametrize("coverage", ["unavailable", "partial"])
def test_a_log_that_was_not_read_whole_makes_nobody_silent(coverage: str) -> None:
    exists = {"exists": True, "last_modified": ago(900000)}
    triage = facts(container(), None, heartbeat=exists, window=5400, coverage=coverage)
    found = reconfigure_loop(triage, LoopLimits())["heartbeat"]
    assert (found["missed"], found["silent_tasks"]) == (None, [])
    triage["tiers"]["by_tier"]["smtp-in"]["coverage"]["status"] = "complete"
    found = reconfigure_loop(triage, LoopLimits())["heartbeat"]
    assert (found["missed"], found["silent_tasks"]) == (True, [TASK])


def test_a_message_taken_by_a_task_that_has_gone_was_heard() -> None:
    triage = facts(container(), lines(messages=0), newest=1500)
    triage["tiers"]["by_tier"]["smtp-in"]["tasks"]["b" * 32] = lines(messages=1)
    (row,) = reconfigure_loop(triage, LoopLimits())["tasks"]
    assert row["state"] == "healthy"


@pytest.mark.parametrize(("built", "state"), [(1, "healthy"), (119, "healthy"), (121, "failing")])
def test_a_pass_between_makemap_and_sendmail_is_not_failing(built: float, state: str) -> None:
    assert answer(container(db=built, sendmail=890), coverage="unavailable")["state"] == state
