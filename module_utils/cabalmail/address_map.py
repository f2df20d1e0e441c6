# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The maps of every task against the table cabal-addresses, and what became of each recipient that failed.

What generate-config.sh writes from a row is written again here (``AddressTable``), so that a difference is a fact about
the map and not about this comparison. Clear addresses are read from the run's private files and leave this module
masked. A million rows fit: an address is kept as a 64-bit digest, and one task's maps are held at a time.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import containers
from .freshness import REBUILT, Limits, minutes
from .privacy import Masker
from .reconfigure_loop import LoopLimits, reconfigure_loop
from .time import parse_rfc3339

Facts = Mapping[str, Any]

ACCESS, VIRTUSERTABLE, ALIASES = "/etc/mail/access", "/etc/mail/virtusertable", "/etc/aliases"

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


def digest(address: bytes) -> int:
    """64 bits that stand for an address in memory; keys are compared as makemap folds them."""
    return hash(address.lower())


@dataclass
class AddressTable:
    """The rows of cabal-addresses as the maps should show them."""

    index: dict[int, int] = field(default_factory=dict)
    users: list[bytes] = field(default_factory=list)
    requested: array[float] = field(default_factory=lambda: array("d"))
    suspended: bytearray = field(default_factory=bytearray)
    exact: array[int] = field(default_factory=lambda: array("q"))
    domains: set[bytes] = field(default_factory=set)
    tlds: set[bytes] = field(default_factory=set)
    #: name of a group alias to its users
    aliases: dict[bytes, tuple[str, ...]] = field(default_factory=dict)
    #: digest to what keeps the row out of the maps
    bad: dict[int, str] = field(default_factory=dict)
    bad_examples: list[tuple[str, str]] = field(default_factory=list)
    rows: int = 0

    def add(self, row: Facts, examples: int = 20) -> None:
        """Take in a row of addresses.jsonl."""
        self.rows += 1
        tld = str(row.get("tld") or "").encode()
        subdomain = str(row.get("subdomain") or "").encode()
        username = str(row.get("username") or "")
        domain = subdomain + b"." + tld if subdomain else tld
        if not username or any(character.isspace() for character in username):
            name = str(row.get("address") or username)
            self._problem(name, digest(name.encode()), "invalid_username", examples)
            return
        address = username.encode() + b"@" + domain
        key, exact = digest(address), hash(address)
        self.domains.add(domain.lower())
        self.tlds.add(tld.lower())
        known = self.index.get(key)
        if known is not None and self.exact[known] != exact:
            self._problem(address.decode(), key, "duplicate_key", examples)
        user = str(row.get("user") or "")
        if not user.strip():
            self._problem(address.decode(), key, "empty_user", examples)
        names = user.split("/")
        if subdomain and len(names) > 1:
            user = "_".join(sorted(names))
            self.aliases[user.lower().encode()] = tuple(sorted(names))
        values = (user.encode(), _epoch(row.get("requested")) or 0.0, bool(row.get("suspended")))
        if known is None:
            self.index[key] = len(self.users)
            self.users.append(_shared(values[0]))
            self.requested.append(values[1])
            self.suspended.append(values[2])
            self.exact.append(exact)
        else:
            self.users[known], self.requested[known], self.suspended[known] = values

    def _problem(self, address: str, key: int, problem: str, examples: int) -> None:
        self.bad[key] = problem
        if len(self.bad_examples) < examples:
            self.bad_examples.append((address, problem))

    def people_of(self, position: int) -> Sequence[str]:
        """OS users that a row delivers to; an apex row with a slash delivers to a user of that very name."""
        user = self.users[position]
        return self.aliases.get(user.lower()) or (user.decode("utf-8", "replace"),)


_NAMES: dict[bytes, bytes] = {}


def _shared(name: bytes) -> bytes:
    """One object for a user's name, however many addresses the user has."""
    return _NAMES.setdefault(name, name)


def read_table(path: Path) -> AddressTable | None:
    """The table from addresses.jsonl; None when there is no such file (the scan was denied or did not end)."""
    table = AddressTable()
    _NAMES.clear()
    try:
        for row in _json_lines(path):
            table.add(row)
    except FileNotFoundError:
        return None
    return table


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as stream:
        for line in stream:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


# --- one map of one task ---------------------------------------------------------------------------------------------


@dataclass
class MapView:
    """What one map of one task says, as far as the questions of this triage go."""

    tier: str
    task: str
    path: str
    stale: bool | None
    built: float | None
    known: bool = False
    entries: int | None = None
    missing: int | None = None
    lag: int | None = None
    surplus: int | None = None
    wrong_user: int | None = None
    domains_missing: int | None = None
    differs: bool | None = None
    source: str | None = None
    #: value by digest, of the recipients that failed only
    found: dict[int, bytes] = field(default_factory=dict)


def compare_map(
    view: MapView, content: containers.Content, table: AddressTable | None, wanted: frozenset[int], limits: Limits
) -> int:
    """Fill in the view from a map's content; returns a checksum of all pairs that their order does not change."""
    index = table.index if table else {}
    users = table.users if table else []
    seen = bytearray(len(users))
    named: set[bytes] = set()
    entries = surplus = wrong = checksum = 0
    check_user = view.path == VIRTUSERTABLE
    for key, value in content.pairs():
        key = key.lower()
        entries += 1
        checksum += hash((key, value))
        address = key[3:] if key[:3] == b"to:" else key
        if b"@" not in address or address[:1] == b"@":
            named.add(address)
            continue
        mark = hash(address)
        if mark in wanted:
            view.found[mark] = value
        position = index.get(mark)
        if position is None:
            surplus += 1
        else:
            seen[position] = 1
            wrong += check_user and value != users[position]
    view.known, view.entries = True, entries
    if table:
        _count_missing(view, table, seen, named, limits)
        view.surplus = surplus if view.path in (ACCESS, VIRTUSERTABLE) else None
        view.wrong_user = wrong if check_user else None
    return checksum


def _count_missing(view: MapView, table: AddressTable, seen: bytearray, named: set[bytes], limits: Limits) -> None:
    if view.path in (ACCESS, VIRTUSERTABLE):
        lag = total = 0
        for position in (place for place, present in enumerate(seen) if not present):
            total += 1
            lag += too_new(table.requested[position], view, limits)
        if view.stale:
            lag = 0  # a loop that had kept its interval would have built the map since
        view.missing, view.lag = total - lag, lag
    if view.path == ACCESS:
        view.domains_missing = len((table.domains | table.tlds) - named)
    elif view.path.endswith("mailertable"):
        view.domains_missing = len((table.tlds | {b"." + tld for tld in table.tlds}) - named)
    elif view.path == ALIASES:
        view.missing, view.lag = len(table.aliases.keys() - named), 0


def too_new(requested: float, view: MapView, limits: Limits) -> bool:
    """Whether the row came after the scan that this map was built from."""
    return bool(requested) and view.built is not None and requested > view.built - limits.slack_seconds


def checksum_of(content: containers.Content, path: str) -> int:
    """The same checksum over a map's text."""
    if path == ALIASES:
        raise ValueError("aliases are not written as a map is")
    return sum(hash((key.lower(), value)) for key, value in content.pairs())


def read_task(
    entry: Facts, raw: bytes, table: AddressTable | None, wanted: frozenset[int], limits: Limits
) -> list[MapView]:
    """The views of all maps of one task."""
    probe = containers.parse(raw)
    views = []
    tier = str(entry.get("tier"))
    for path in (*REBUILT.get(tier, ()), *((ALIASES,) if tier == "imap" else ())):
        files = entry.get("files") or {}
        age = (files.get(f"{path}.db") or {}).get("age_seconds")
        built = _epoch((files.get(f"{path}.db") or {}).get("mtime"))
        stale = None if age is None or path == ALIASES else age > limits.stale_after_seconds
        view = MapView(tier, str(entry.get("task")), path, stale, built)
        dump, text = probe.section("db", f"{path}.db"), probe.section("text", path)
        best = dump if dump and dump.good else text if text and text.good and path != ALIASES else None
        if best is not None:
            checksum = compare_map(view, best, table, wanted, limits)
            view.source = "makemap" if best is dump else "text"
            if best is dump and text and text.good and path != ALIASES:
                view.differs = checksum != checksum_of(text, path)
        views.append(view)
    return views


def map_row(view: MapView, entry: Facts, limits: Limits) -> dict[str, Any]:
    """A view as an entry of ``address_map.tasks``."""
    files = entry.get("files") or {}
    db, text = files.get(f"{view.path}.db") or {}, files.get(view.path) or {}
    sendmail_age = entry.get("sendmail_age_seconds")
    row = {
        "tier": view.tier,
        "task": view.task,
        "map": view.path,
        "source": view.source,
        "entries": view.entries,
        "missing": view.missing,
        "lag": view.lag,
        "surplus": view.surplus,
        "wrong_user": view.wrong_user,
        "domains_missing": view.domains_missing,
        "db_differs_from_text": view.differs,
        "db_mtime": db.get("mtime"),
        "text_mtime": text.get("mtime"),
        "age_seconds": db.get("age_seconds"),
        "text_age_seconds": text.get("age_seconds"),
        "stale": view.stale,
        # sendmail reads its domain lists only when it starts; the loop ends it after each build.
        "sendmail_older_than_map": None
        if sendmail_age is None or db.get("age_seconds") is None
        else sendmail_age > db["age_seconds"] + limits.slack_seconds,
    }
    return {**row, "why": _why(row, limits)}


def _why(row: Facts, limits: Limits) -> str:
    if row["age_seconds"] is None:
        return "its .db was not seen"
    age, text_age = row["age_seconds"], row["text_age_seconds"]
    if row["stale"]:
        if text_age is not None and text_age <= limits.stale_after_seconds:
            return (
                f"the text is {minutes(text_age)} old and its .db {minutes(age)}: "
                "generate-config runs and makemap does not finish"
            )
        return f"the .db is {minutes(age)} old, a healthy one at most {minutes(limits.stale_after_seconds)}"
    if row["missing"] or row["wrong_user"]:
        return f"built {minutes(age)} ago and yet not what the table says"
    if row["sendmail_older_than_map"]:
        return "sendmail was not restarted after this map was built"
    if row["lag"]:
        return f"{row['lag']} newer than this map: by design they wait for the next build"
    return ""


# --- the recipients that failed --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A recipient of ours that failed, and who refused it."""

    address: bytes
    mark: int
    refused_by: str
    no_such_user: bool
    code: str
    tier: str
    relay: str
    time: float | None


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
    try:
        for record in _json_lines(path):
            failure = _failure(record, own_host)
            if failure:
                found.setdefault((failure.address, failure.refused_by, failure.no_such_user), failure)
    except FileNotFoundError:
        return None
    return list(found.values())


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
    return Failure(address, digest(address), refused_by, no_such_user, code, tier, relay, _epoch(record.get("time")))


@dataclass
class Witnesses:
    """All that a failed recipient is looked up in."""

    table: AddressTable | None
    table_whole: bool
    views: Sequence[MapView]
    users: frozenset[str] | None
    limits: Limits
    smtp_out_hosts: frozenset[str] = frozenset()
    #: by tier, what the logs say of the loops of tasks whose maps could not be read: task to stuck (None: not known)
    unread: Mapping[str, Mapping[str, bool | None]] = field(default_factory=dict)

    def stuck_unread(self, tier: str) -> tuple[str, ...]:
        """Tasks of the tier whose maps could not be read and whose loops are stuck by their logs."""
        return tuple(task for task, stuck in self.unread.get(tier, {}).items() if stuck)

    def blind(self, tier: str) -> bool:
        """Whether some task of the tier could have any map: neither its maps nor its loop are known."""
        rest = self.unread.get(tier, {})
        return any(stuck is None for stuck in rest.values()) or not (rest or self.of(tier, ACCESS))

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
        return _judge_users(table.people_of(position), world)
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
        tasks = tuple(view.task for view in lacking)
        fresh = not any(view.stale for view in lacking)
        if fresh and all(too_new(table.requested[position], view, world.limits) for view in lacking):
            return Judgement("lag", "the address is newer than the map: the next build brings it", path, tasks)
        return Judgement(STALE[tier], f"{tier}'s {Path(path).name} lacks an address that the table has", path, tasks)
    user = table.users[position]
    wrong = tuple(view.task for view in views if path == VIRTUSERTABLE and view.found[failure.mark] != user)
    if wrong:
        return Judgement(STALE[tier], f"{tier}'s virtusertable names another user", path, wrong)
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


def _judge_users(people: Sequence[str], world: Witnesses) -> Judgement:
    if world.users is None:
        return Judgement("unknown", "the OS users of imap could not be read")
    missing = [name for name in people if name not in world.users]
    if missing:
        return Judgement("missing_user", f"imap has no OS user {', '.join(missing)}")
    return Judgement("in_order", "the address and its user are there now")


def _judge_user(name: str, world: Witnesses) -> Judgement:
    """A bare local user, as imap logs after it expanded an alias."""
    return _judge_users([name], world)


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


# --- the section -----------------------------------------------------------------------------------------------------


def address_map(triage: Facts, work_dir: Path, masker: Masker, limits: Limits, examples: int = 20) -> dict[str, Any]:
    """The section ``address_map``.

    Args:
        triage: the fact ``triage``.
        work_dir: the run's private directory with addresses.jsonl, failed_recipients.jsonl and <task>.out.
        masker: masks what is returned.
        limits: when a map is stale.
        examples: most examples a state.
    """
    listed = (triage.get("environment") or {}).get("addresses") or {}
    table = read_table(work_dir / "addresses.jsonl")
    failures = read_failures(work_dir / "failed_recipients.jsonl")
    wanted = frozenset(failure.mark for failure in failures or [])
    entries = list((triage.get("containers") or {}).get("tasks") or [])
    views: list[MapView] = []
    rows: list[dict[str, Any]] = []
    for entry in entries:
        raw = _raw(work_dir, str(entry.get("task")))
        if entry.get("status") in ("complete", "partial") and raw is not None:
            found = read_task(entry, raw, table, wanted, limits)
            views += found
            rows += [map_row(view, entry, limits) for view in found if view.path != ALIASES or view.known]
    unread = _unread(triage, views, limits)
    world = Witnesses(
        table=table,
        table_whole=table is not None and listed.get("status", "complete") == "complete",
        views=views,
        users=_users(entries),
        limits=limits,
        smtp_out_hosts=_hosts(entries, "smtp-out"),
        unread=unread,
    )
    stale: dict[str, list[str]] = defaultdict(list)
    for view in views:
        if view.stale and view.task not in stale[view.tier]:
            stale[view.tier].append(view.task)
    return {
        **_status(triage, table, world, entries, views, asked=bool(failures)),
        "rows": table.rows if table else None,
        "limits": {"stale_after_seconds": limits.stale_after_seconds, "interval_seconds": limits.interval_seconds},
        "tasks": rows,
        "recipients": _recipients(failures, world, masker, examples),
        "bad_rows": _bad_rows(table, masker),
        "stale_tasks": {tier: sorted(tasks) for tier, tasks in stale.items() if tasks},
        # Not looked at: their loops are stuck by their logs, so their maps are old.
        "stale_by_log": {tier: tasks for tier in unread if (tasks := sorted(world.stuck_unread(tier)))},
        "tasks_of_tier": dict(Counter(str(entry.get("tier")) for entry in entries)),
    }


def _status(
    triage: Facts,
    table: AddressTable | None,
    world: Witnesses,
    entries: Sequence[Facts],
    views: Sequence[MapView],
    *,
    asked: bool,
) -> dict[str, Any]:
    """Whether all maps could be compared; without any the table alone still speaks of recipients, where some failed."""
    reasons = []
    if table is None:
        said = ((triage.get("environment") or {}).get("addresses") or {}).get("reasons") or []
        reasons.append(f"the table cabal-addresses could not be read{': ' + said[0] if said else ''}")
    elif not world.table_whole:
        reasons.append("the table cabal-addresses was read in part: what is not in it proves nothing")
    read = {view.task for view in views if view.known}
    if not entries:
        reasons.append(_first((triage.get("containers") or {}).get("reasons")) or "no container was looked into")
    for entry in entries:
        if str(entry.get("task")) not in read and entry.get("tier") in REBUILT:
            why = _first(entry.get("reasons")) or "none was found"
            reasons.append(f"the maps of {entry.get('tier')} task {entry.get('task')} could not be read: {why}")
    reasons += [
        f"{view.path} of {view.tier} task {view.task} could not be read"
        for view in views
        if not view.known and view.path != ALIASES and view.task in read
    ]
    if not read and (table is None or not asked):
        return {"status": "unavailable", "reasons": reasons}
    return {"status": "partial" if reasons else "complete", "reasons": reasons}


def _unread(triage: Facts, views: Sequence[MapView], limits: Limits) -> dict[str, dict[str, bool | None]]:
    """By tier, the running tasks whose maps could not be read, and whether their loops are stuck by their logs."""
    read = {view.task for view in views if view.known}
    unread: dict[str, dict[str, bool | None]] = {}
    for row in reconfigure_loop(triage, LoopLimits(maps=limits))["tasks"]:
        if row["task"] not in read:
            unread.setdefault(row["tier"], {})[row["task"]] = row["stuck"]
    return unread


def _recipients(failures: Sequence[Failure] | None, world: Witnesses, masker: Masker, most: int) -> dict[str, Any]:
    if failures is None:
        return {
            "status": "unavailable",
            "reasons": ["no list of failed recipients was written"],
            **dict.fromkeys(("checked", "by_state", "in_table", "not_in_table")),
            "examples": [],
        }
    counts, shown, examples = Counter[str](), Counter[str](), []
    table = world.table
    for failure in failures:
        judgement = judge(failure, world)
        counts[judgement.state] += 1
        if shown[judgement.state] < most:
            shown[judgement.state] += 1
            examples.append(_example(failure, judgement, world, masker))
    present = sum(1 for failure in failures if table and failure.mark in table.index)
    unknown = counts["unknown"]
    reasons = [f"of {len(failures)} failed recipients {unknown} could not be explained"] if unknown else []
    return {
        "status": "partial" if unknown else "complete",
        "reasons": reasons,
        "checked": len(failures),
        "in_table": present if table else None,
        "not_in_table": len(failures) - present if table else None,
        "by_state": {state: counts[state] for state in STATES},
        "examples": examples,
    }


def _example(failure: Failure, judgement: Judgement, world: Witnesses, masker: Masker) -> dict[str, Any]:
    position = world.table.index.get(failure.mark) if world.table else None
    requested = world.table.requested[position] if world.table and position is not None else 0.0
    return {
        "address": masker.address(failure.address.decode("utf-8", "replace")),
        "state": judgement.state,
        "tier": failure.refused_by,
        "code": failure.code,
        "map": judgement.path,
        "tasks": list(judgement.tasks),
        "requested": containers.rfc3339(requested) if requested else None,
        "why": judgement.why,
    }


def _bad_rows(table: AddressTable | None, masker: Masker) -> dict[str, Any] | None:
    """Rows that a map can't be made of: one is enough to make makemap fail, unless it is skipped."""
    if table is None:
        return None
    return {
        "count": len(table.bad),
        "kinds": dict(Counter(table.bad.values())),
        "examples": [{"address": masker.address(name), "problem": problem} for name, problem in table.bad_examples],
    }


def _users(entries: Iterable[Facts]) -> frozenset[str] | None:
    """OS users that every running imap task has; None when none could be read."""
    lists = [entry["users"] for entry in entries if entry.get("tier") == "imap" and entry.get("users") is not None]
    return frozenset.intersection(*map(frozenset, lists)) if lists else None


def _hosts(entries: Iterable[Facts], tier: str) -> frozenset[str]:
    """Addresses of a tier's tasks as `relay=` shows them: the bare one, and that in an awsvpc host name."""
    addresses = [str(entry["ip"]) for entry in entries if entry.get("tier") == tier and entry.get("ip")]
    return frozenset(form for ip in addresses for form in (f"[{ip}]", f"ip-{ip.replace('.', '-')}."))


def _raw(work_dir: Path, task: str) -> bytes | None:
    if not task.isalnum():
        return None
    try:
        return (work_dir / f"{task}.out").read_bytes()
    except OSError:
        return None


def _epoch(text: Any) -> float | None:
    if not text:
        return None
    try:
        return parse_rfc3339(str(text)).timestamp()
    except ValueError:
        return None


def _first(items: Any) -> str | None:
    return str(items[0]) if items else None
