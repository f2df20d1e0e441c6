# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page: which alert fired, where, since when, and so which window of time is looked at.

A page is Alertmanager's webhook body, version 4
(https://prometheus.io/docs/alerting/latest/configuration/#webhook_config), or a name given by hand, or nothing at all.
Everything refused is refused with an :class:`AlertError` whose text is one sentence for the operator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from .inert import shown
from .time import format_rfc3339, parse_rfc3339


@dataclass(frozen=True, slots=True)
class Rule:
    """What is known of an alert rule of a Cabalmail deployment."""

    metric: str  # CloudWatch's name of the metric
    pattern: str  # what its filter counts lines of
    lines: int  # the rule fires above this many
    minutes: int  # in a window this long
    hold_minutes: int  # and for this long
    look_back_minutes: int  # before startsAt: the rule's window, its `for`, and the exporter's delay
    runbook: str


BOUNCED, DEFERRED, HEARTBEAT = "SendmailBouncedSpike", "SendmailDeferredSpike", "heartbeat-ecs-reconfigure"
SUPPORTED = {
    BOUNCED: Rule("SendmailBounced", "dsn=5", 15, 30, 15, 48, "sendmail-bounced-spike.md"),
    DEFERRED: Rule("SendmailDeferred", "stat=Deferred", 10, 10, 15, 28, "sendmail-deferred-spike.md"),
    # No rule over lines: Healthchecks misses the ping 30 m + 30 m after the last one, and a pass is due every 16 m.
    # Bounces are read beside it as the first alert counts them, for what a stuck loop does to mail.
    HEARTBEAT: Rule("SendmailBounced", "dsn=5", 15, 30, 15, 90, "heartbeat-ecs-reconfigure.md"),
}
DEFAULT_NAME = BOUNCED

MAX_PAYLOAD_BYTES = 1_000_000
# How far the pager's clock may be ahead of ours.
CLOCK_SKEW = timedelta(minutes=2)
# The deployment keeps its logs for a year at most; Go's zero time (0001-01-01) means "none".
OLDEST = timedelta(days=366)


class AlertError(ValueError):
    """What was given can't be triaged; the text is one sentence that says why and what to do."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert of a payload."""

    name: str
    state: str  # firing | resolved
    starts_at: datetime
    ends_at: datetime | None  # None while it fires
    fingerprint: str
    environment: str | None

    def title(self) -> str:
        """How a sentence names it."""
        where = f" in {self.environment}" if self.environment else ""
        return f"{self.name}{where} since {format_rfc3339(self.starts_at)} (fingerprint {self.fingerprint})"


def parse_payload(text: str) -> list[Alert]:
    """Read Alertmanager's webhook body, version 4.

    Raises:
        AlertError: the text is not such a body.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_PAYLOAD_BYTES:
        raise AlertError(
            f"triage_payload is larger than {MAX_PAYLOAD_BYTES:,} bytes, so it is no Alertmanager payload."
        )
    try:
        body = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise AlertError(
            f"triage_payload is not valid JSON ({error}): give the Alertmanager webhook body, or a file that holds it."
        ) from None
    return read_payload(body)


def read_payload(body: Any) -> list[Alert]:
    """The alerts of a decoded webhook body; raises AlertError where it is malformed."""
    if not isinstance(body, Mapping):
        raise _malformed("it is not a JSON object")
    if str(body.get("source")).startswith("healthchecks/"):
        raise AlertError(
            f"triage_payload is a notice of Healthchecks ({shown(body['source'])}), which carries no time and no"
            f" fingerprint: run with -e triage_alert={HEARTBEAT} instead."
        )
    if body.get("version") != "4":
        raise _malformed(f"its version is {shown(body.get('version'))}, not '4'")
    alerts = body.get("alerts")
    if not isinstance(alerts, Sequence) or isinstance(alerts, str) or not alerts:
        raise _malformed("it has no list 'alerts' with at least one alert")
    return [_alert(entry, f"alerts[{number}]") for number, entry in enumerate(alerts)]


def choose(alerts: Sequence[Alert], wanted: str | None, environment: str, known: Sequence[str]) -> Alert | None:
    """The alert that this environment is to be triaged for.

    Args:
        alerts: all of the payload.
        wanted: name or fingerprint given by the operator, if any.
        environment: of the inventory host.
        known: the environments of all hosts of this run, this one's included.

    Returns:
        The alert (``resolved`` when none of this environment fires any more), or None when the payload speaks of
        another host of this run only.

    Raises:
        AlertError: no alert fits, or several do.
    """
    named = [alert for alert in alerts if wanted in (None, "", alert.name, alert.fingerprint)]
    if not named:
        listed = "; ".join(alert.title() for alert in alerts)
        raise AlertError(f"triage_alert={shown(wanted)} is not in the payload, which holds: {listed}.")
    supported = [alert for alert in named if alert.name in SUPPORTED]
    if not supported:
        check_name(named[0].name)
    here = [alert for alert in supported if _is_here(alert, environment, known)]
    if not here:
        return None
    firing = {(alert.fingerprint, alert.starts_at): alert for alert in here if alert.state == "firing"}
    if len(firing) > 1:
        listed = "; ".join(alert.title() for alert in firing.values())
        raise AlertError(
            f"The payload holds {len(firing)} incidents and a run handles one: choose with"
            f" -e triage_alert=<fingerprint> among {listed}."
        )
    return next(iter(firing.values())) if firing else here[0]


def check_name(name: str) -> str:
    """The name, when a triage for it exists; raises AlertError otherwise."""
    if name in SUPPORTED:
        return name
    raise AlertError(
        f"triage_alert: {shown(name)} is not an alert that is known here; supported: {', '.join(sorted(SUPPORTED))}."
    )


def window(
    now: datetime, start: datetime | None, end: datetime | None, fired_at: datetime | None, look_back_minutes: int
) -> tuple[datetime, datetime]:
    """Start and end of what is looked at.

    With a page: from ``look_back_minutes`` before it fired on to now, since what goes on matters too. Without one:
    the last ``look_back_minutes``. A start or end given by hand wins.

    Raises:
        AlertError: the window is empty, reversed, in the future or older than any log.
    """
    if fired_at is not None and fired_at > now + CLOCK_SKEW:
        raise AlertError(
            f"The alert's startsAt {format_rfc3339(fired_at)} is in the future (it is {format_rfc3339(now)} here):"
            " correct the payload or this machine's clock."
        )
    for name, given in (("triage_start", start), ("triage_end", end)):
        if given is not None and given > now + CLOCK_SKEW:
            raise AlertError(
                f"{name}={format_rfc3339(given)} is in the future (it is {format_rfc3339(now)} here):"
                " give a time that has passed."
            )
    for name, given in (("The alert's startsAt", fired_at), ("triage_start", start), ("triage_end", end)):
        if given is not None and given < now - OLDEST:
            raise AlertError(
                f"{name} {format_rfc3339(given)} is more than {OLDEST.days} days ago, and no log is kept for so long:"
                " give the time of the incident."
            )
    until = min(end or now, now)
    since = start or (min(fired_at, until) if fired_at else until) - timedelta(minutes=look_back_minutes)
    if since >= until:
        raise AlertError(
            f"The window is empty or reversed: triage_start={format_rfc3339(since)} is not before"
            f" triage_end={format_rfc3339(until)}."
        )
    return since, until


def section(
    name: str, source: str, alert: Alert | None, span: tuple[datetime, datetime], environment: str
) -> dict[str, Any]:
    """The section ``alert`` of the fact ``triage``."""
    rule = SUPPORTED[name]
    since, until = span
    return {
        "status": "complete",
        "reasons": [],
        "name": name,
        "source": source,
        "state": alert.state if alert else None,
        "starts_at": format_rfc3339(alert.starts_at) if alert else None,
        "fingerprint": alert.fingerprint if alert else None,
        "environment": environment,
        "window": {
            "start": format_rfc3339(since),
            "end": format_rfc3339(until),
            "fired_at": format_rfc3339(alert.starts_at) if alert else None,
            "minutes": round((until - since).total_seconds() / 60, 1),
        },
        "threshold": {
            "metric": rule.metric,
            "pattern": rule.pattern,
            "lines": rule.lines,
            "minutes": rule.minutes,
            "hold_minutes": rule.hold_minutes,
        },
        "runbook": rule.runbook,
    }


def _is_here(alert: Alert, environment: str, known: Sequence[str]) -> bool:
    """Whether the alert is about this environment; raises AlertError when nobody could tell."""
    if alert.environment is None:
        if len(known) > 1:
            raise AlertError(
                f"The alert {alert.name} carries no label 'environment' and this run has {len(known)} hosts"
                f" ({', '.join(known)}): choose one with --limit."
            )
        return True
    holders = [name for name in known if name == alert.environment]
    if len(holders) == 1:
        return environment == alert.environment
    found = "no host" if not holders else f"{len(holders)} hosts"
    raise AlertError(
        f"The alert's label environment={shown(alert.environment)} fits {found} of this run (cabalmail_environment is"
        f" {', '.join(map(shown, known))}): choose the inventory with -i or the host with --limit."
    )


def _alert(entry: Any, where: str) -> Alert:
    if not isinstance(entry, Mapping):
        raise _malformed(f"{where} is not an object")
    state = entry.get("status")
    if state not in ("firing", "resolved"):
        raise _malformed(f"{where}.status is {shown(state)}, neither 'firing' nor 'resolved'")
    labels = entry.get("labels")
    if not isinstance(labels, Mapping) or not all(isinstance(value, str) for value in labels.values()):
        raise _malformed(f"{where}.labels is not an object of strings")
    name = labels.get("alertname")
    if not name:
        raise _malformed(f"{where}.labels has no alertname")
    fingerprint = entry.get("fingerprint")
    if not isinstance(fingerprint, str) or not fingerprint.isalnum() or len(fingerprint) > 64:
        raise _malformed(f"{where}.fingerprint is {shown(fingerprint)}, not a short word of letters and digits")
    return Alert(
        name=name,
        state=state,
        starts_at=_time(entry, "startsAt", where),
        ends_at=_time(entry, "endsAt", where) if state == "resolved" else None,
        fingerprint=fingerprint,
        environment=labels.get("environment") or None,
    )


def _time(entry: Mapping[str, Any], key: str, where: str) -> datetime:
    try:
        return parse_rfc3339(entry.get(key, ""))
    except ValueError:
        raise _malformed(f"{where}.{key} is {shown(entry.get(key))}, not a time such as 2026-11-24T21:53:14Z") from None


def _malformed(why: str) -> AlertError:
    return AlertError(f"triage_payload is not an Alertmanager webhook payload (version 4): {why}.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that stands twice means different things to different readers."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result
