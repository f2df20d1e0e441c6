# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may restart a service: a lease in Parameter Store, whose history is the record of what was done.

The one conditional write at hand is PutParameter with Overwrite=false, which exactly one caller can win. So a lease is
created with it. To take over one that has ended, a claim is created in the same way, whose name is made of the lease's
version; who wins that claim, and only they, may overwrite the lease. A claim whose owner died before that ends as a
lease does, and is followed by another, named after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from .time import format_rfc3339, parse_rfc3339

PREFIX = "/cabal-runbooks/lease/"
#: Who claims and dies leaves a claim behind; so many in a row are no accident.
MOST_CLAIMS = 5
#: A claim is meant to be followed by the lease within milliseconds.
CLAIM_SECONDS = 120.0
#: A standard parameter holds 4 KiB.
MOST_BYTES = 4000
FIELDS = ("run", "by", "taken", "expires", "state")


class TakenError(Exception):
    """The lease is somebody else's; the text says whose and until when."""


class Store(Protocol):
    """Parameter Store as a lease needs it."""

    def create(self, name: str, value: str) -> bool:
        """Write a parameter that does not exist; False when it does (PutParameter, Overwrite=false)."""

    def read(self, name: str) -> tuple[str, int] | None:
        """Value and version of a parameter, None when there is none (GetParameter)."""

    def overwrite(self, name: str, value: str) -> None:
        """Write a parameter that exists (PutParameter, Overwrite=true)."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who wants the lease. ``seconds``: how long it holds when nobody gives it back."""

    run: str
    by: str
    seconds: float


def name_of(service: str) -> str:
    """The parameter of a service's lease."""
    return PREFIX + service


def entry(text: str) -> dict[str, Any] | None:
    """A lease's content, None for what is none: nobody knows then who holds it."""
    try:
        found = json.loads(text)
        parse_rfc3339(found["expires"])
        return dict(found) if all(isinstance(found[name], str) for name in FIELDS) else None
    except (ValueError, TypeError, KeyError):
        return None


def text_of(record: Mapping[str, Any]) -> str:
    """A lease's content as the parameter holds it; what does not fit is cut off the longest texts.

    :raises ValueError: when even that is too long.
    """
    most = 1000
    while len(text := json.dumps(_shortened(record, most), separators=(",", ":"))) > MOST_BYTES:
        most //= 2
        if not most:
            raise ValueError("the record of the restart is too long for a parameter")
    return text


def _shortened(value: Any, most: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= most else value[: max(0, most - 3)] + "..."
    if isinstance(value, Mapping):
        return {key: _shortened(part, most) for key, part in value.items()}
    return [_shortened(part, most) for part in value] if isinstance(value, list | tuple) else value


def holds(record: Mapping[str, Any] | None, now: datetime) -> bool:
    """Whether a lease is held. One that can't be read is: nobody knows until when."""
    if record is None:
        return True
    return record["state"] == "held" and parse_rfc3339(record["expires"]) > now


def take(store: Store, service: str, holder: Holder, now: datetime) -> dict[str, Any]:
    """Take the lease of a service.

    :returns: the record now in force.
    :raises TakenError: when another run holds it, or won it just now.
    """
    name, mine = name_of(service), _new(holder, now, holder.seconds)
    if store.create(name, text_of(mine)):
        return mine
    found = store.read(name)
    if found is None:
        raise TakenError(f"{name} came and went while it was taken")
    text, version = found
    _refuse_if_held(name, entry(text), holder, now)
    _claim(store, f"{name}/{version}", holder, now)
    again = store.read(name)
    if again is None or again[1] != version:
        raise TakenError(f"{name} was taken over by another run just now")
    store.overwrite(name, text_of(mine))
    return mine


def _claim(store: Store, name: str, holder: Holder, now: datetime) -> None:
    """Win the right to overwrite one version of a lease."""
    for _attempt in range(MOST_CLAIMS):
        if store.create(name, text_of(_new(holder, now, CLAIM_SECONDS))):
            return
        found = store.read(name)
        other = entry(found[0]) if found else None
        _refuse_if_held(name, other, holder, now)
        # Its owner died between claim and lease. Who comes next all try the same name, so that one of them wins.
        name = f"{name}.{(other or {}).get('run', '')}"
    raise TakenError(f"{name} was claimed again and again by runs that died: delete the parameters below it")


def _refuse_if_held(name: str, record: Mapping[str, Any] | None, holder: Holder, now: datetime) -> None:
    if record is None:
        raise TakenError(f"{name} holds no lease that can be read: delete it when nobody restarts anything")
    if record["run"] == holder.run or holds(record, now):
        raise TakenError(f"{name} is held by run {record['run']} ({record['by']}) until {record['expires']}")


def _new(holder: Holder, now: datetime, seconds: float) -> dict[str, Any]:
    return {
        "run": holder.run,
        "by": holder.by,
        "taken": format_rfc3339(now),
        "expires": format_rfc3339(now + timedelta(seconds=seconds)),
        "state": "held",
    }


def history(texts: Iterable[str]) -> list[dict[str, Any]]:
    """The newest record of each run, the oldest run first, out of a parameter's versions in their order."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        record = entry(text)
        if record is not None:
            found.pop(record["run"], None)
            found[record["run"]] = record
    return list(found.values())
