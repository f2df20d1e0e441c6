# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person approved: the one restart that a saved triage planned, taken from it strictly.

The document comes from a file or from another job. Of it nothing is used but names of fixed form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from .inert import shown
from .options import OptionError
from .time import parse_rfc3339
from .verdict import REMEDIES

FORMS = {
    "run": re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]+"),
    "fingerprint": re.compile(r"[0-9a-f]{64}"),
    "kind": re.compile("|".join(REMEDIES)),
    "service": re.compile(r"[A-Za-z0-9_-]{1,255}"),
    "task": re.compile(r"[0-9a-f]{32}"),
    "alert": re.compile(r"[A-Za-z0-9_]{0,100}"),
}
#: Clocks of two machines may differ by so much.
CLOCK_SLACK = timedelta(minutes=1)


def approve(document: Any, environment: str, now: datetime, max_age_minutes: float) -> dict[str, Any]:
    """The restart that a saved triage planned.

    :param document: content of triage.json.
    :param environment: name of the environment at hand.
    :returns: ``run``, ``fingerprint`` and ``remedy``; ``alert`` (a name or empty) and ``start`` of its window.
    :raises OptionError: one sentence that says why it can't be acted on.
    """
    try:
        run, part, alert = (_mapping(document, name) for name in ("run", "remediation", "alert"))
        started = parse_rfc3339(str(run["started"]))
        found = {"run": _formed("run", run["id"])}
    except (KeyError, ValueError) as error:
        raise OptionError(f"The saved triage can't be read ({error}): give the triage.json of a run.") from None
    _check_origin(run, found["run"], environment, now - started, max_age_minutes)
    plan = part.get("plan")
    if not isinstance(plan, Mapping):
        raise OptionError(f"The triage {found['run']} planned no restart: there is nothing to approve.")
    try:
        return {
            **found,
            "fingerprint": _formed("fingerprint", part["fingerprint"]),
            "remedy": {
                "kind": _formed("kind", plan["kind"]),
                "service": _formed("service", plan["service"]),
                "tasks": [_formed("task", task) for task in plan["tasks"]],
            },
            "alert": "" if alert.get("source") == "none" else _formed("alert", alert.get("name") or ""),
            "start": parse_rfc3339(str(_mapping(alert, "window")["start"])).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    except (KeyError, ValueError, TypeError) as error:
        raise OptionError(f"The plan of the triage {found['run']} can't be read ({error}): run it again.") from None


def _check_origin(run: Mapping[str, Any], name: str, environment: str, age: timedelta, most: float) -> None:
    if run.get("environment") != environment:
        raise OptionError(
            f"The triage {name} is of the environment {shown(run.get('environment'))}, not of {environment}: give one"
            " of this environment, or --limit the run to the other."
        )
    if not -CLOCK_SLACK <= age <= timedelta(minutes=most):
        minutes = round(age.total_seconds() / 60)
        raise OptionError(
            f"The triage {name} is {minutes} minutes old and remediate_max_age={most:g}: run the triage again."
        )


def _mapping(document: Any, name: str) -> Mapping[str, Any]:
    value = document.get(name) if isinstance(document, Mapping) else None
    if not isinstance(value, Mapping):
        raise ValueError(f"it has no {name}")
    return value


def _formed(name: str, value: Any) -> str:
    if not FORMS[name].fullmatch(str(value)):
        raise ValueError(f"{name} is {shown(value)}")
    return str(value)
