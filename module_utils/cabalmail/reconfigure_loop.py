# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reconfigure loop of every task: healthy, dead, hung, failing, starved, without ping, or unknown.

Two independent witnesses are heard: the container itself (process, map ages) and the loop's own lines in the log. Each
gives an answer with a reason; where both speak and differ, the section says so. Neither is needed: a loop that is stuck
is found from its log alone, though a loop that is silent may then be dead as well as hung.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .containers import rfc3339
from .freshness import REBUILT, Limits, epoch, minutes

Facts = Mapping[str, Any]

STATES = ("healthy", "dead", "hung", "failing", "starved", "no_ping", "unknown")
#: Stuck in ways that a new task starts afresh from; a loop that fails or starves would do so again.
CURED_BY_RESTART = ("dead", "hung")
MAKEMAP_FAILED = 65
#: `Done.` comes so soon after the map was built that both tell of one pass.
SAME_PASS_SECONDS = 120
#: The line about a pass's ping comes this long after its `Done.` at the latest (curl is given seconds).
PING_LINE_SECONDS = 60
_AWS_ERROR = re.compile(
    r"An error occurred|Throttl|ProvisionedThroughput|RequestLimit|AccessDenied|not authorized|ExpiredToken"
    r"|Unable to locate credentials|Could not connect|endpoint URL|timed? ?out",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class LoopLimits:
    """When a loop counts as stuck.

    ``call_seconds``: an aws call below the loop that lasts longer hangs (a long poll takes 20 s, a scan seconds).
    ``ping_seconds``: without a ping for so long the heartbeat is missed (30 m + 30 m grace).
    ``failures``: so many passes without an end make a failing loop even while its last good one is recent.
    """

    maps: Limits = field(default_factory=Limits)
    call_seconds: float = 120
    ping_seconds: float = 3600
    failures: int = 2
    #: A message waits longer only where nobody polls (a long poll takes 20 s, a pass seconds).
    queue_seconds: float = 120


@dataclass(frozen=True)
class Answer:
    """What one witness says of one loop."""

    state: str
    why: str
    since: str | None = None
    could_be: tuple[str, ...] = ()
    exit_status: int | None = None
    #: started anew by somebody, and not yet due for a pass
    restarted: bool = False


UNHEARD = Answer("unknown", "")


# --- the container ---------------------------------------------------------------------------------------------------


def from_container(entry: Facts, limits: LoopLimits) -> Answer:
    """The answer of a task's container (an entry of ``containers.tasks``)."""
    loop = entry.get("loop") or {}
    ages = map_ages(entry)
    stale_after = limits.maps.stale_after_seconds
    oldest = max(ages["db"], default=None)
    since = _built(entry, oldest)
    if loop.get("process") == "dead" and entry.get("supervisord_running") is False:
        # supervisord replaces the entrypoint, which makes users and maps first, and a container does not outlive it.
        return Answer("unknown", "the task is still starting: supervisord, which starts the loop, does not run yet")
    if loop.get("process") == "dead":
        return Answer("dead", f"no reconfigure process in the task{_ages_in_words(oldest)}", since)
    if loop.get("process") != "alive":
        return Answer("unknown", "the processes of the task could not be read")
    hanging = _hanging(loop, limits)
    if loop.get("stopped"):
        return Answer("hung", f"the process is stopped (state T){_ages_in_words(oldest)}", since)
    if oldest is None:
        return Answer("unknown", "the loop's process is there, and the age of its maps could not be read")
    if oldest <= stale_after:
        if hanging and _call_age(loop) > stale_after:
            return Answer("hung", hanging, since)
        return _fresh(entry, ages, limits, since)
    text = max(ages["text"], default=None)
    if text is not None and text <= stale_after:
        why = f"it writes the text maps and makemap does not finish: text {minutes(text)} old, .db {minutes(oldest)}"
        return Answer("failing", why, since)
    if hanging:
        return Answer("hung", f"{hanging}{_ages_in_words(oldest)}", since)
    age = loop.get("age_seconds")
    if age is not None and age + limits.maps.slack_seconds < oldest and age <= stale_after:
        why = f"it began anew {minutes(age)} ago and has not built the maps for {minutes(oldest)}"
        return Answer("failing", why, since, ("starved", "hung", "unknown"))
    return Answer("hung", f"the process is there{_waits(loop)} and has built nothing for {minutes(oldest)}", since)


def _waits(loop: Facts) -> str:
    """What the process does in words, where it is more than to sleep."""
    at = f" in {loop['wchan']}" if loop.get("wchan") else ""
    if loop.get("state") == "D":
        return f", in uninterruptible sleep{at} (a file system or disk that does not answer),"
    return f", state {loop['state']}{at}," if loop.get("state") not in (None, "S") else ""


def _fresh(entry: Facts, ages: Mapping[str, Sequence[float]], limits: LoopLimits, since: str | None) -> Answer:
    """Maps are as young as they should be; a pass that did not come to its end leaves sendmail as it was."""
    sendmail = entry.get("sendmail_age_seconds")
    newest = min(ages["db"])
    # A pass that has just built a map is still on its way to sendmail.
    slack = limits.maps.slack_seconds
    if sendmail is not None and newest > slack and sendmail > newest + slack:
        why = f"maps were built {minutes(newest)} ago, and sendmail, which each pass ends, is {minutes(sendmail)} old"
        return Answer("failing", why, since)
    return Answer("healthy", f"maps {minutes(max(ages['db']))} old at most", since)


def map_ages(entry: Facts) -> dict[str, list[float]]:
    """Ages in seconds of the maps that the loop rebuilds, .db and text."""
    files = entry.get("files") or {}
    ages: dict[str, list[float]] = {"db": [], "text": []}
    for path in REBUILT.get(str(entry.get("tier")), ()):
        for kind, name in (("db", f"{path}.db"), ("text", path)):
            age = (files.get(name) or {}).get("age_seconds")
            if age is not None:
                ages[kind].append(age)
    return ages


def _hanging(loop: Facts, limits: LoopLimits) -> str:
    """The aws call below the loop that takes too long, in words."""
    for child in loop.get("children") or []:
        if child.get("call") and (child.get("age_seconds") or 0) > limits.call_seconds:
            stopped = ", stopped" if child.get("state") in ("T", "t") else ""
            return f"its call `aws {child['call']}` has not returned for {minutes(child['age_seconds'])}{stopped}"
    return ""


def _call_age(loop: Facts) -> float:
    calls = [child for child in loop.get("children") or [] if child.get("call")]
    return max((child.get("age_seconds") or 0.0 for child in calls), default=0.0)


def _ages_in_words(oldest: float | None) -> str:
    return "" if oldest is None else f"; its maps are {minutes(oldest)} old"


def _built(entry: Facts, oldest: float | None) -> str | None:
    """When the map of that age was built."""
    files = entry.get("files") or {}
    for path in REBUILT.get(str(entry.get("tier")), ()):
        found = files.get(f"{path}.db") or {}
        if oldest is not None and found.get("age_seconds") == oldest:
            return found.get("mtime")
    return None


# --- the log ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogView:
    """What the log can say of one task: its loop's lines, and how far the log may be trusted."""

    loop: Facts | None
    now: float
    watched_from: float
    readable: bool
    flowing: bool
    heartbeat: bool | None


def from_log(view: LogView, limits: LoopLimits) -> Answer:
    """The answer of the loop's own lines."""
    if not view.readable:
        return Answer("unknown", "the log of its tier could not be read")
    loop = view.loop or {}
    done = epoch(loop.get("last_done"))
    exits = _exits_since(loop, done)
    status = next((end.status for end in reversed(exits) if end.status is not None), None)
    watched = view.now - view.watched_from
    quiet = view.now - max(filter(None, (done, view.watched_from)), default=view.watched_from)
    since = loop.get("last_done")
    gave_up = epoch(loop.get("gave_up"))
    if gave_up is not None and gave_up >= (done or 0) and gave_up >= (epoch(loop.get("started")) or 0):
        return Answer("dead", "supervisord gave up on it", loop.get("gave_up"), exit_status=status)
    failed = [row for row in loop.get("errors") or [] if (epoch(row.get("time")) or 0) >= (done or 0)]
    unended = (loop.get("starts") or 0) - (loop.get("dones") or 0)
    stale = quiet > limits.maps.stale_after_seconds
    if stale and status is None and (anew := _started_anew(loop, exits, view.now, limits)):
        return Answer("unknown", anew, since, restarted=True)
    if exits and (stale or unended >= limits.failures):
        return _failing(failed, status, since)
    if stale:
        return _silent(loop, view, quiet, failed)
    if done is None:
        if watched <= limits.maps.stale_after_seconds:
            return Answer("unknown", f"its log was watched for {minutes(max(0, watched))}, less than one interval")
        return Answer("unknown", "no line of it")
    # What is read ends between the last pass and the line about its ping: it says nothing of that ping.
    awaited = view.now - done < PING_LINE_SECONDS
    if view.heartbeat is not False and loop.get("pings_failed") and _ping_missing(loop, done, limits, awaited=awaited):
        return Answer("no_ping", f"it completes its passes and {loop['pings_failed']} pings failed", since)
    judged = (loop.get("dones") or 0) - awaited
    if view.heartbeat and judged > 0 and not loop.get("pings_sent") and not loop.get("pings_failed"):
        return Answer("no_ping", "it completes its passes and sends no ping: it has no usable ping address", since)
    return Answer("healthy", f"last completed pass {minutes(max(0, view.now - done))} ago", since)


def _silent(loop: Facts, view: LogView, quiet: float, failed: Sequence[Facts]) -> Answer:
    """No pass came to its end for too long, and no process ended."""
    since, done = loop.get("last_done"), epoch(loop.get("last_done"))
    unfinished = epoch(loop.get("unfinished_since"))
    if unfinished is not None and (done is None or unfinished > done):
        return Answer("hung", f"a pass that began {minutes(view.now - unfinished)} ago has no end", since)
    if failed:
        return _failing(failed, None, since)
    if not view.flowing:
        return Answer("unknown", f"no line of it for {minutes(quiet)}, and it is not sure that its log flows")
    return Answer("hung", f"no completed pass for {minutes(quiet)} and no word of why", since, ("dead",))


def _started_anew(loop: Facts, exits: Sequence[Exit], now: float, limits: LoopLimits) -> str:
    """In words, that somebody ended the process and the new one is not yet due for a pass; empty when it is not so."""
    began = epoch(loop.get("started"))
    if not exits or began is None or sum(end.count for end in exits) >= limits.failures:
        return ""
    age = now - began
    if age > limits.maps.stale_after_seconds:
        return ""
    return f"it was ended by {exits[-1].signal} and started anew {minutes(age)} ago; its next pass is yet to come"


def _ping_missing(loop: Facts, done: float, limits: LoopLimits, *, awaited: bool) -> bool:
    """Whether the last pass whose ping must be known by now sent none; before an awaited one that is a pass earlier."""
    last = epoch(loop.get("last_ping"))
    earlier = limits.maps.stale_after_seconds if awaited else 0
    return last is None or last < done - PING_LINE_SECONDS - earlier


def _failing(errors: Sequence[Facts], status: int | None, since: str | None) -> Answer:
    """Why passes fail: an AWS error above the exit means that the loop is denied or throttled."""
    said = next((str(row.get("text") or "") for row in reversed(errors)), "")
    if status != MAKEMAP_FAILED and _AWS_ERROR.search(said):
        return Answer("starved", f"its passes end in an AWS error: {said}", since, exit_status=status)
    words = f": {said}" if said else ""
    if status == MAKEMAP_FAILED:
        return Answer("failing", f"its passes end in makemap's failure (exit status 65){words}", since, (), status)
    ended = f"exit status {status}" if status is not None else "an error"
    return Answer("failing", f"its passes end in {ended}{words}", since, exit_status=status)


@dataclass(frozen=True)
class Exit:
    """How the loop's process ended: ``status`` (None: by the signal), how often, and when last."""

    status: int | None
    signal: str
    count: int
    last: float


def _exits_since(loop: Facts, done: float | None) -> list[Exit]:
    """How it ended since its last good pass, the latest last."""
    found = [
        Exit(
            status=int(str(row["status"])) if str(row.get("status")).isdecimal() else None,
            signal=str(row.get("status")),
            count=int(row.get("count") or 0),
            last=epoch(row.get("last")) or 0.0,
        )
        for row in loop.get("exits") or []
    ]
    kept = [end for end in found if end.count and end.last >= (done or 0)]
    return sorted(kept, key=lambda end: end.last)


# --- both ------------------------------------------------------------------------------------------------------------


def combine(container: Answer, log: Answer) -> tuple[Answer, str | None]:
    """One answer from both, and the disagreement where they contradict each other.

    The container is nearer to the truth. The log knows what the container cannot show: why a pass fails, and pings.
    """
    if container.state == "unknown" or (log.restarted and "unknown" in container.could_be):
        return log, None
    if container.state == log.state == "failing":
        # The log knows what each pass ends with, the container what is left of it.
        why = f"{log.why}; {container.why}"
        return replace(container, why=why, exit_status=log.exit_status, could_be=()), None
    if log.state == "unknown" or container.state == log.state:
        return replace(container, exit_status=log.exit_status, since=container.since or log.since), None
    if log.state in container.could_be or (log.state in ("starved", "failing") and container.state == "hung"):
        return replace(log, why=f"{log.why}; {container.why}", since=container.since or log.since, could_be=()), None
    if container.state == "healthy" and log.state in ("no_ping", "failing", "starved"):
        return replace(log, why=f"{log.why}; {container.why}"), None
    if container.state in log.could_be:
        return replace(container, could_be=()), None
    if container.state in ("dead", "hung") and log.state in ("dead", "hung", "failing", "starved"):
        return replace(container, exit_status=log.exit_status), None
    built, done = epoch(container.since), epoch(log.since)
    if log.state in ("healthy", "no_ping") and (built is None or done is None or done <= built + SAME_PASS_SECONDS):
        return container, None  # its last good pass is recent, and the loop stopped after it
    return container, f"the container says {container.state} ({container.why}), its log {log.state} ({log.why})"


def reconfigure_loop(triage: Facts, limits: LoopLimits) -> dict[str, Any]:
    """The section ``reconfigure_loop`` of the fact ``triage``."""
    environment = triage.get("environment") or {}
    tiers = (triage.get("tiers") or {}).get("by_tier") or {}
    parameter = (environment.get("parameters") or {}).get("heartbeat") or {}
    monitored = parameter.get("exists")
    throttled = (environment.get("metrics") or {}).get("throttled_reads")
    entries = {str(entry.get("task")): entry for entry in (triage.get("containers") or {}).get("tasks") or []}
    running = _running(environment, entries, tiers)
    window = _window(triage)
    tasks = []
    for task, (tier, started) in sorted(running.items(), key=lambda item: (item[1][0], item[0])):
        log = tiers.get(tier) or {}
        view = _log_view(task, started, log, tiers, window, monitored)
        tasks.append(_task(task, tier, started, entries.get(task), view, limits, throttled))
    deaf = _deaf_tiers(tasks, tiers, environment, window)
    for row in tasks:
        if row["tier"] in deaf and row["state"] in ("healthy", "no_ping"):
            row.update(state="starved", cure="none", stuck=False, why=deaf[row["tier"]])
    unknown = [row for row in tasks if row["state"] == "unknown"]
    reasons = [f"{row['tier']} task {row['task']}: {row['why'] or 'nothing is known of its loop'}" for row in unknown]
    reasons += [
        f"{row['tier']} task {row['task']}: judged by its log alone" for row in tasks if row["sources"] == ["logs"]
    ]
    reasons += [f"{row['tier']} task {row['task']}: {row['disagreement']}" for row in tasks if row["disagreement"]]
    if not tasks:
        reasons = ["no running task is known"]
    status = "unavailable" if len(unknown) == len(tasks) else "partial" if reasons else "complete"
    return {
        "status": status,
        "reasons": reasons,
        "tasks": tasks,
        "by_state": {state: [row["task"] for row in tasks if row["state"] == state] for state in STATES},
        "queues": _queues(environment, limits),
        "throttled_reads": throttled,
        "sync_users_errors": _sync_users_errors(tiers),
        "heartbeat": _heartbeat(parameter, tasks, tiers, window, limits),
        "interval_seconds": limits.maps.interval_seconds,
        "stale_after_seconds": limits.maps.stale_after_seconds,
    }


def _task(
    task: str,
    tier: str,
    started: float | None,
    entry: Facts | None,
    view: LogView,
    limits: LoopLimits,
    throttled: int | None,
) -> dict[str, Any]:
    read = entry is not None and entry.get("status") in ("complete", "partial")
    container = from_container(entry, limits) if read and entry else UNHEARD
    log = from_log(view, limits)
    answer, disagreement = combine(container, log)
    if throttled and (answer.state == "starved" or "starved" in answer.could_be):
        why = f"{answer.why}; CloudWatch counts {throttled} throttled reads of the table"
        answer = replace(answer, state="starved", why=why, could_be=())
    sources = [name for name, said in (("exec", container), ("logs", log)) if said.state != "unknown"]
    loop = view.loop or {}
    ages = map_ages(entry)["db"] if read and entry else []
    return {
        "tier": tier,
        "task": task,
        "state": answer.state,
        "stuck": None if answer.state == "unknown" else answer.state in ("dead", "hung", "failing", "starved"),
        "could_be": list(answer.could_be),
        "since": answer.since,
        "why": answer.why,
        "sources": sources,
        "disagreement": disagreement,
        "started_at": rfc3339(started) if started else None,
        "last_done": loop.get("last_done"),
        "last_ping": loop.get("last_ping"),
        "longest_pass_seconds": loop.get("max_seconds"),
        "map_age_seconds": max(ages, default=None),
        "process": (entry.get("loop") or {}) if read and entry else None,
        "exit_status": answer.exit_status,
        "cure": "restart_task" if answer.state in CURED_BY_RESTART else "none",
    }


def _running(
    environment: Facts, entries: Mapping[str, Facts], tiers: Mapping[str, Facts]
) -> dict[str, tuple[str, float | None]]:
    """Tier and start of each running task; from the log where ECS told nothing."""
    found: dict[str, tuple[str, float | None]] = {}
    asked = False
    for tier, service in (environment.get("services") or {}).items():
        if service.get("status") in ("complete", "partial"):
            asked = True
            for task in service.get("tasks") or []:
                if task.get("last_status") in (None, "RUNNING") and task.get("started_by") != "deploy-preflight":
                    found[str(task.get("id"))] = (tier, epoch(task.get("started_at")))
    for task, entry in entries.items():
        found.setdefault(task, (str(entry.get("tier")), epoch(entry.get("started_at"))))
    if not asked and not entries:
        for tier, log in tiers.items():
            for task, lines in (log.get("tasks") or {}).items():
                if (lines.get("loop") or {}).get("last_start") or (lines.get("loop") or {}).get("last_done"):
                    found[task] = (tier, None)
    return {task: (tier, started) for task, (tier, started) in found.items() if tier in REBUILT}


def _window(triage: Facts) -> tuple[float | None, float | None]:
    """Start and end of what was read of the logs."""
    for part in ((triage.get("tiers") or {}).get("window"), (triage.get("alert") or {}).get("window")):
        if part:
            return epoch(part.get("start")), epoch(part.get("end"))
    return None, None


def _log_view(
    task: str,
    started: float | None,
    log: Facts,
    tiers: Mapping[str, Facts],
    window: tuple[float | None, float | None],
    monitored: bool | None,
) -> LogView:
    start, end = window
    coverage = log.get("coverage") or {}
    lines = (log.get("tasks") or {}).get(task) or {}
    readable = coverage.get("status") in ("complete", "partial") and start is not None and end is not None
    return LogView(
        loop=lines.get("loop"),
        now=end or 0.0,
        watched_from=max(filter(None, (start, started)), default=0.0),
        readable=readable and coverage.get("log_group_exists") is not False,
        # Any task's line of late proves that the way out to CloudWatch is open: a silent loop is then silent itself.
        flowing=coverage.get("status") == "complete"
        and any(_recent(each.get("coverage") or {}, end) for each in tiers.values()),
        heartbeat=monitored,
    )


def _recent(coverage: Facts, end: float | None) -> bool:
    last = epoch(coverage.get("last_event"))
    return last is not None and end is not None and end - last < 1200


def _deaf_tiers(
    tasks: Sequence[Facts], tiers: Mapping[str, Facts], environment: Facts, window: tuple[float | None, float | None]
) -> dict[str, str]:
    """Tiers whose loops rebuild by their fallback only, although the table changed: nobody hears the queue.

    One queue serves all tasks of a tier, so it takes the silence of all of them.
    """
    start, end = window
    deaf = {
        tier: "its queue is not subscribed to the topic of address changes: it rebuilds by its interval only"
        for tier, queue in (environment.get("queues") or {}).items()
        if queue.get("subscribed") is False
    }
    changed = epoch((environment.get("addresses") or {}).get("newest_request"))
    if start is None or end is None or changed is None or not start <= changed <= end - 120:
        return deaf
    for tier in {row["tier"] for row in tasks}:
        coverage = (tiers.get(tier) or {}).get("coverage") or {}
        lines = (tiers.get(tier) or {}).get("tasks") or {}
        loops = [(lines.get(row["task"]) or {}).get("loop") or {} for row in tasks if row["tier"] == tier]
        # Any task of the tier may have taken the message, one that has gone since as well.
        ears = [each.get("loop") or {} for each in _tasks_of(tiers.get(tier) or {})]
        heard = any(loop.get("messages") or loop.get("periodic_only") for loop in ears)
        later = all((epoch(loop.get("last_done")) or 0) > changed and loop.get("fallbacks") for loop in loops)
        # A task that started after the change was never to hear of it: the one that it replaced did.
        there = all((epoch(row["started_at"]) or end) < changed for row in tasks if row["tier"] == tier)
        if coverage.get("status") == "complete" and loops and later and there and not heard and tier not in deaf:
            deaf[tier] = (
                "it rebuilds by its interval only, although an address was made at "
                f"{rfc3339(changed)}: no task of the tier hears its queue"
            )
    return deaf


def _queues(environment: Facts, limits: LoopLimits) -> dict[str, Any]:
    """Each tier's queue. A message waits for seconds while anybody polls; an empty queue proves nothing."""
    return {tier: _queue(queue, limits) for tier, queue in (environment.get("queues") or {}).items()}


def _queue(queue: Facts, limits: LoopLimits) -> dict[str, Any]:
    visible, in_flight, oldest = queue.get("visible"), queue.get("not_visible"), queue.get("oldest_seconds")
    if visible is None:
        signal = "unknown"
    elif visible and oldest is not None and oldest > limits.queue_seconds:
        signal = "backing_up"
    else:
        signal = "waiting" if visible else "in_flight" if in_flight else "empty"
    return {
        "visible": visible,
        "not_visible": in_flight,
        "oldest_seconds": oldest,
        "subscribed": queue.get("subscribed"),
        "signal": signal,
    }


def _sync_users_errors(tiers: Mapping[str, Facts]) -> list[dict[str, Any]]:
    """Tasks whose start could not read all users of Cognito: their lists of OS users may be short."""
    return [
        {"tier": tier, "task": task, "lines": lines["sync_users_errors"]}
        for tier, log in sorted(tiers.items())
        for task, lines in sorted((log.get("tasks") or {}).items())
        if lines.get("sync_users_errors")
    ]


def _tasks_of(log: Facts) -> list[Facts]:
    return [lines or {} for lines in (log.get("tasks") or {}).values()]


def _heartbeat(
    parameter: Facts,
    rows: Sequence[Facts],
    tiers: Mapping[str, Facts],
    window: tuple[float | None, float | None],
    limits: LoopLimits,
) -> dict[str, Any]:
    """The ping as Healthchecks sees it: one check for all tasks, missed only when all of them are silent.

    What a task sent before another replaced it counts as well. Of a log that was not read whole no silence is known.
    """
    changed = epoch(parameter.get("last_modified"))
    sent = [(task.get("loop") or {}).get("last_ping") for log in tiers.values() for task in _tasks_of(log)]
    pings = [ping for ping in map(epoch, sent) if ping is not None]
    read = {tier for tier, log in tiers.items() if (log.get("coverage") or {}).get("status") == "complete"}
    start, end = window
    missed: bool | None = None
    if pings and end is not None and end - max(pings) <= limits.ping_seconds:
        missed = False
    elif start is not None and end is not None and end - start > limits.ping_seconds:
        missed = True if parameter.get("exists") and rows and read >= {row["tier"] for row in rows} else None
    due = None if end is None else end - limits.maps.stale_after_seconds
    return {
        "exists": parameter.get("exists"),
        "last_modified": parameter.get("last_modified"),
        "last_ping": rfc3339(max(pings)) if pings else None,
        "missed": missed,
        # A task's first pass, and so its first ping, is due an interval after its start.
        "silent_tasks": [
            row["task"]
            for row in rows
            if not row["last_ping"]
            and row["tier"] in read
            and (due is None or (epoch(row["started_at"]) or 0.0) <= due)
        ],
        # A task reads the parameter when it starts, and never again.
        "tasks_with_old_value": [
            {"tier": row["tier"], "task": row["task"]}
            for row in rows
            if changed is not None and row["started_at"] and (epoch(row["started_at"]) or 0) < changed
        ],
    }
