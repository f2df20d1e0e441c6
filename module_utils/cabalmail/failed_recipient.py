# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of a recipient of ours that failed: looked up in the table, both tiers' maps and imap's OS users.

Where a map could not be read, the loop's log and the age of the address speak for it; where neither does, the answer
is "unknown".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .address_table import AddressTable, digest, json_lines
from .freshness import Limits, epoch, minutes
from .map_view import ACCESS, VIRTUSERTABLE, MapView, too_new

Facts = Mapping[str, Any]

#: Codes and sightings that say something about an address of ours; any other failure is not about a map.
NOT_IN_MAP = ("5.3.0", "5.2.1", "5.7.1")
NO_SUCH_USER = ("5.1.1",)

STALE = {"imap": "stale_imap", "smtp-in": "stale_smtp_in"}
STATES = (
    "revoked",
    "lag",
    "stale_smtp_in",
    "stale_imap",
    "missing_user",
    "bad_row",
    "suspended",
    "never_existed",
    "in_order",
    "unknown",
)


@dataclass(frozen=True)
class Failure:
    """A recipient of ours that failed, and who refused it.

    ``refusals``: how often. Both sides may log the same refusal, so it is the larger of what each tier logged.
    """

    address: bytes
    mark: int
    refused_by: str
    no_such_user: bool
    code: str
    tier: str
    relay: str
    time: float | None
    refusals: int = 1


@dataclass(frozen=True)
class Judgement:
    """What became of a failed recipient, and the maps that show it."""

    state: str
    why: str
    path: str | None = None
    tasks: tuple[str, ...] = ()


def read_failures(path: Path, own_host: str = "imap.") -> list[Failure] | None:
    """The recipients of ours in failed_recipients.jsonl, each once; None when there is no such file."""
    found: dict[tuple[bytes, str, bool], Failure] = {}
    logged: dict[tuple[bytes, str, bool], Counter[str]] = defaultdict(Counter)
    try:
        for record in json_lines(path):
            failure = _failure(record, own_host)
            if failure:
                key = (failure.address, failure.refused_by, failure.no_such_user)
                found.setdefault(key, failure)
                logged[key][failure.tier] += 1
    except FileNotFoundError:
        return None
    return [replace(failure, refusals=max(logged[key].values())) for key, failure in found.items()]


def _failure(record: Facts, own_host: str) -> Failure | None:
    """A record as a failure, None when it is not about an address of ours: a foreign host refused it, or none did."""
    tier, seen, code = (str(record.get(key) or "") for key in ("tier", "seen", "code"))
    relay = str(record.get("relay") or "").lower()
    if tier == "imap":
        refused_by = "imap"
    elif tier == "smtp-in" and seen == "reject":
        refused_by = tier
    elif relay.lstrip("[").startswith(own_host):
        refused_by = "imap"
    else:
        return None
    no_such_user = code in NO_SUCH_USER or seen == "user_unknown"
    address = str(record.get("address") or "").strip("<>").lower().encode("utf-8", "replace")
    if not address or not (no_such_user or code in NOT_IN_MAP):
        return None
    return Failure(address, digest(address), refused_by, no_such_user, code, tier, relay, epoch(record.get("time")))


@dataclass(frozen=True)
class Unread:
    """What the log says of the loop of a task whose maps could not be read; None: not known.

    ``done``: when its last pass ended, and so when its maps were whole for the last time, in epoch seconds.
    """

    stuck: bool | None
    done: float | None


@dataclass
class Witnesses:
    """All that a failed recipient is looked up in."""

    table: AddressTable | None
    table_whole: bool
    views: Sequence[MapView]
    users: frozenset[str] | None
    limits: Limits
    smtp_out_hosts: frozenset[str] = frozenset()
    #: by tier and task, what the logs say where the maps could not be read
    unread: Mapping[str, Mapping[str, Unread]] = field(default_factory=dict)

    def stuck_unread(self, tier: str) -> tuple[str, ...]:
        """Tasks of the tier whose maps could not be read and whose loops are stuck by their logs."""
        return tuple(task for task, loop in self.unread.get(tier, {}).items() if loop.stuck)

    def blind(self, tier: str) -> bool:
        """Whether some task of the tier could have any map: neither its maps nor its loop are known."""
        rest = self.unread.get(tier, {})
        return any(loop.stuck is None for loop in rest.values()) or not (rest or self.of(tier, ACCESS))

    def of(self, tier: str, path: str) -> list[MapView]:
        """The views of that map in that tier whose content is known."""
        return [view for view in self.views if view.tier == tier and view.path == path and view.known]


def judge(failure: Failure, world: Witnesses) -> Judgement:
    """What became of one failed recipient."""
    if b"@" not in failure.address:
        return _judge_user(failure.address.decode("utf-8", "replace"), world)
    if world.table and failure.mark in world.table.bad:
        problem = world.table.bad[failure.mark].replace("_", " ")
        return Judgement("bad_row", f"its row cannot be built into a map: {problem}")
    position = world.table.index.get(failure.mark) if world.table else None
    if position is not None and world.table:
        return _judge_existing(failure, position, world.table, world)
    if world.table is None or not world.table_whole:
        return _judge_without_table(failure, world)
    return _judge_gone(failure, world)


def _judge_existing(failure: Failure, position: int, table: AddressTable, world: Witnesses) -> Judgement:
    """The table has the address: so some map lacks it, or its user is missing, or it is all right by now."""
    tier, requested = failure.refused_by, table.requested[position]
    found = _lacking_view(failure, position, table, world)
    if found:
        return found
    if failure.no_such_user:
        missing = _missing(table.people_of(position), world)
        return missing or _judge_nobody_behind(failure, requested, world)
    waited = None if failure.time is None or not requested else failure.time - requested
    if not world.of(tier, ACCESS) or world.stuck_unread(tier) or world.blind(tier):
        return _judge_by_time(tier, waited, world)
    if table.suspended[position]:
        return Judgement("suspended", "the address is suspended: its DNS records are gone by design")
    if waited is not None and 0 <= waited <= world.limits.stale_after_seconds:
        return Judgement("lag", f"it failed {minutes(waited)} after the address was made; the maps have it now")
    return Judgement("in_order", "the table and the maps have it now")


def _lacking_view(failure: Failure, position: int, table: AddressTable, world: Witnesses) -> Judgement | None:
    """The map that lacks an address of the table or has another user for it, None where none of those read does."""
    tier = failure.refused_by
    path = VIRTUSERTABLE if failure.no_such_user else ACCESS
    views = world.of(tier, path)
    lacking = [view for view in views if failure.mark not in view.found]
    if lacking:
        # A sibling that lags by design stands beside a stale task and is not named with it.
        requested, limits = table.requested[position], world.limits
        wrong = [view for view in lacking if view.stale or not too_new(requested, view, limits)]
        tasks = tuple(view.task for view in wrong or lacking)
        if not wrong:
            return Judgement("lag", "the address is newer than the map: the next build brings it", path, tasks)
        return Judgement(STALE[tier], f"{tier}'s {Path(path).name} lacks an address that the table has", path, tasks)
    user = table.users[position]
    other = tuple(view.task for view in views if path == VIRTUSERTABLE and view.found[failure.mark] != user)
    if other:
        return Judgement(STALE[tier], f"{tier}'s virtusertable names another user", path, other)
    return None


def _judge_by_time(tier: str, waited: float | None, world: Witnesses) -> Judgement:
    """Maps that could not be read: a healthy one has every row that is older than an interval."""
    if waited is not None and waited > world.limits.stale_after_seconds:
        why = f"{tier} refused it {minutes(waited)} after it was made, when every healthy map has it"
        return Judgement(STALE[tier], why, ACCESS, world.stuck_unread(tier))
    stuck = world.stuck_unread(tier)
    if stuck:
        return Judgement(STALE[tier], f"{tier} refused it, and by its log its loop builds no maps", ACCESS, stuck)
    if waited is not None and waited >= 0:
        return Judgement("lag", f"it failed {minutes(waited)} after the address was made")
    return Judgement("unknown", f"the maps of {tier} could not be read")


def _missing(people: Sequence[str], world: Witnesses) -> Judgement | None:
    """The OS users that imap is known to lack; None where it has all of them or they could not be read."""
    missing = [name for name in people if name not in world.users] if world.users is not None else []
    return Judgement("missing_user", f"imap has no OS user {', '.join(missing)}") if missing else None


def _judge_nobody_behind(failure: Failure, requested: float, world: Witnesses) -> Judgement:
    """imap took the address and found no user behind it, although none is known to be missing."""
    if not world.of("imap", VIRTUSERTABLE):
        found = _judge_by_last_pass(failure, requested, world)
        if found:
            return found
        if world.users is not None:
            return Judgement("unknown", "imap's virtusertable could not be read")
    return _judge_users_there(world)


def _judge_by_last_pass(failure: Failure, requested: float, world: Witnesses) -> Judgement | None:
    """virtusertable could not be read: it is as the last whole pass left it, since one that fails leaves it alone."""
    passes = [loop.done for loop in world.unread.get("imap", {}).values() if loop.done is not None]
    stuck = world.stuck_unread("imap")
    if stuck and not passes and world.table and world.table.clash and requested > world.table.clash:
        why = "the address is newer than a row that makemap fails on, and no pass of imap's loop was seen to end"
        return Judgement("stale_imap", why, VIRTUSERTABLE, stuck)
    if not requested or not passes:
        return None
    done = max(passes)
    if requested > done:
        why = "the address is newer than the last pass of imap's loop that came to its end"
        return Judgement("stale_imap" if stuck else "lag", why, VIRTUSERTABLE, stuck)
    had_it = requested < done - world.limits.slack_seconds and failure.time is not None and failure.time > done
    if stuck and had_it and world.users is None:
        return Judgement("missing_user", "imap's map had the address when its last pass ended, so its user is missing")
    return None


def _judge_users_there(world: Witnesses) -> Judgement:
    if world.users is None:
        return Judgement("unknown", "the OS users of imap could not be read")
    return Judgement("in_order", "the address and its user are there now")


def _judge_user(name: str, world: Witnesses) -> Judgement:
    """A bare local user, as imap logs after it expanded an alias."""
    return _missing([name], world) or _judge_users_there(world)


def _judge_gone(failure: Failure, world: Witnesses) -> Judgement:
    """The table does not have the address: the refusal is right, and the question is who accepted it before."""
    smtp_in = world.of("smtp-in", ACCESS)
    having = [view for view in smtp_in if failure.mark in view.found]
    stale = tuple(view.task for view in having if view.stale)
    if failure.refused_by == "imap":
        if stale:
            why = "smtp-in still takes an address that the table no longer has"
            return Judgement("stale_smtp_in", why, ACCESS, stale)
        if having:
            return Judgement("revoked", "removed from the table since smtp-in's last build")
        from_outside = not any(host in failure.relay for host in world.smtp_out_hosts)
        stuck = world.stuck_unread("smtp-in")
        if stuck and from_outside:
            why = (
                "smtp-in took mail for an address that the table does not have, and by its log its loop builds no maps"
            )
            return Judgement("stale_smtp_in", why, ACCESS, stuck)
        if world.blind("smtp-in") and from_outside:
            return Judgement("unknown", "it is not in the table, and smtp-in's maps could not be read")
        if from_outside:
            return Judgement("revoked", "smtp-in took mail for it before, and neither table nor maps have it now")
    if any(failure.mark in view.found for view in world.views):
        return Judgement("revoked", "a map still has it, the table does not")
    return Judgement("never_existed", "neither the table nor any map has it")


def _judge_without_table(failure: Failure, world: Witnesses) -> Judgement:
    """Only the two maps against each other: the one that is old is wrong, if just one is."""
    here, there = ("imap", "smtp-in") if failure.refused_by == "imap" else ("smtp-in", "imap")
    lacking = [view for view in world.of(here, ACCESS) if failure.mark not in view.found]
    having = [view for view in world.of(there, ACCESS) if failure.mark in view.found]
    if lacking and having:
        old_here, old_there = any(view.stale for view in lacking), any(view.stale for view in having)
        if old_here != old_there:
            tier, views = (here, lacking) if old_here else (there, having)
            tasks = tuple(view.task for view in views if view.stale)
            return Judgement(STALE[tier], f"the maps of {here} and {there} differ, and {tier}'s is old", ACCESS, tasks)
    return Judgement("unknown", "the table could not be read")
