# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that a person, a pipeline or AWX gives a run: read strictly, refused in one sentence.

Extra variables given as ``-e name=value`` are strings, those from a file or JSON have types: both are accepted.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from .inert import shown
from .time import parse_rfc3339

TRUE = frozenset({"true", "yes", "on", "1", "y", "t"})
FALSE = frozenset({"false", "no", "off", "0", "n", "f"})
SEVERITIES = ("critical", "warning", "info")
# Below the first no step has the time to end: eight seconds are the report's and Ansible's own.
MIN_DEADLINE, MAX_DEADLINE = 20.0, 3600.0
MAX_MINUTES = 7 * 24 * 60.0
CONFIDENCES = ("high", "medium", "low")


class OptionError(ValueError):
    """An option can't be used; the text is one sentence that names option, value and remedy."""


def to_bool(name: str, value: Any) -> bool:
    """A truth value, from a bool or the words that Ansible takes for one."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in TRUE or word in FALSE:
        return word in TRUE
    raise _refused(name, value, "give true or false")


def to_time(name: str, value: Any) -> datetime | None:
    """An instant, from RFC 3339 text or the datetime that YAML makes of it; None when nothing was given."""
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise _refused(name, value.isoformat(), "give a time with its zone, such as 2026-11-24T21:53:14Z")
        return value
    try:
        return parse_rfc3339(value if isinstance(value, str) else str(value))
    except ValueError:
        raise _refused(name, value, "give an RFC 3339 time, such as 2026-11-24T21:53:14Z") from None


def to_seconds(name: str, value: Any) -> float:
    """A deadline in seconds within what makes sense for a run."""
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not MIN_DEADLINE <= seconds <= MAX_DEADLINE:
        raise _refused(name, value, f"give a number of seconds from {MIN_DEADLINE:.0f} to {MAX_DEADLINE:.0f}")
    return seconds


def to_minutes(name: str, value: Any) -> float:
    """A span in minutes, 0 or more."""
    try:
        minutes = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        minutes = math.nan
    if not 0 <= minutes <= MAX_MINUTES:
        raise _refused(name, value, f"give a number of minutes from 0 to {MAX_MINUTES:.0f}")
    return minutes


def to_choice(name: str, value: Any, choices: Sequence[str]) -> str | None:
    """One of the choices, or None when nothing was given."""
    if value is None or value == "":
        return None
    if value in choices:
        return str(value)
    raise _refused(name, value, f"give one of {', '.join(choices)}")


def to_text(name: str, value: Any) -> str:
    """A text without control characters, empty when nothing was given."""
    if value is None:
        return ""
    if not isinstance(value, str) or not (value.isprintable() or value == ""):
        raise _refused(name, value, "give plain text")
    return value


def is_http_url(value: Any) -> bool:
    """Whether the value is an http or https URL with a host."""
    if not isinstance(value, str) or not value.isprintable() or " " in value:
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def to_url(name: str, value: Any) -> str:
    """An http or https URL without a slash at its end, empty when nothing was given."""
    if value in (None, ""):
        return ""
    if not is_http_url(value):
        raise _refused(name, value, "give an URL such as https://reports.example.com/triage")
    return str(value).rstrip("/")


def to_tiers(name: str, value: Any, known: Sequence[str]) -> list[str]:
    """Tier names from a list or a comma-separated text; all known ones when nothing was given."""
    if value is None or value in ("", []):
        return list(known)
    wanted = value.split(",") if isinstance(value, str) else value
    if not isinstance(wanted, Sequence):
        raise _refused(name, value, f"give one or several of {', '.join(known)}, separated by commas")
    tiers = list(dict.fromkeys(str(tier).strip() for tier in wanted))
    for tier in tiers:
        if tier not in known:
            raise OptionError(f"{name}={shown(tier)}: there is no such tier here; the tiers are {', '.join(known)}.")
    return tiers


OPTIONS: dict[str, tuple[Any, Callable[[str, Any], Any]]] = {
    "triage_alert": ("", to_text),
    "triage_start": (None, to_time),
    "triage_end": (None, to_time),
    "triage_exec": (True, to_bool),
    "triage_remediate": (False, to_bool),
    "triage_remediate_min_confidence": ("high", lambda name, value: to_choice(name, value, CONFIDENCES) or "high"),
    "triage_remediate_cooldown": (60, to_minutes),
    "triage_remediate_imap_outage": (False, to_bool),
    "triage_remediate_lose_mail": (False, to_bool),
    "triage_fail_on": (None, lambda name, value: to_choice(name, value, SEVERITIES)),
    "triage_deadline": (90, to_seconds),
    "report_dir": ("", to_text),
    "report_show_addresses": (False, to_bool),
    "report_url": ("", to_url),
}
# Read by others: the tiers need the environment's list, the payload is parsed by `alert`, the rest is our own output.
OTHER_NAMES = ("triage_tiers", "triage_remediate_tiers", "triage_payload", "triage_work_dir", "triage_artifact")


def read_options(variables: Mapping[str, Any], tiers: Sequence[str]) -> dict[str, Any]:
    """All options of a run, checked, by their public names.

    Args:
        variables: the host's variables; those of other names are not looked at.
        tiers: what tiers the environment has.

    Raises:
        OptionError: an option has a value that can't be used, or a name that is none.
    """
    for name in variables:
        if name.startswith("triage_") and name not in OPTIONS and name not in OTHER_NAMES:
            close = difflib.get_close_matches(name, [*OPTIONS, *OTHER_NAMES[:3]], n=1)
            hint = f"did you mean {close[0]}?" if close else f"the options are {', '.join(sorted(OPTIONS))}."
            raise OptionError(f"{name} is not an option of this playbook: {hint}")
    options = {name: read(name, variables.get(name, default)) for name, (default, read) in OPTIONS.items()}
    options["triage_tiers"] = to_tiers("triage_tiers", variables.get("triage_tiers"), tiers)
    # Without a word of the operator only the tier whose restart nobody notices.
    asked = variables.get("triage_remediate_tiers") or [tier for tier in tiers if tier == "smtp-in"]
    options["triage_remediate_tiers"] = to_tiers("triage_remediate_tiers", asked, tiers) if asked else []
    return options


def _refused(name: str, value: Any, remedy: str) -> OptionError:
    return OptionError(f"{name}={shown(value)} can't be used: {remedy}.")
