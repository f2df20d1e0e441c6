# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge the evidence by the table of findings.

The table (``data/findings.yml``) holds conditions and words, this file holds how they are read:
a condition over something unknown is neither true nor false, and a finding that it belongs to is
not raised but listed as not judged. Runs in the controller only (it needs Jinja).
"""

from __future__ import annotations

import functools
import hashlib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jinja2 import StrictUndefined, Template, UndefinedError
from jinja2.sandbox import SandboxedEnvironment

from .signals import build_signals

SEVERITIES = ("critical", "warning", "info")
CONFIDENCES = ("high", "medium", "low")
REMEDIES = ("restart_loop", "restart_task", "redeploy_service")


class UnknownValueError(Exception):
    """A condition depends on something that could not be known."""


class TableError(ValueError):
    """A row of the table is wrong; the text names the row and the part."""


class Unknown:
    """What is not known: it can be named and asked about, but nothing can be concluded from it."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def _refuse(self, *_args: object) -> NoReturn:
        raise UnknownValueError

    __bool__ = __len__ = __iter__ = __contains__ = __int__ = __float__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse

    def __eq__(self, other: object) -> NoReturn:
        raise UnknownValueError

    def __ne__(self, other: object) -> NoReturn:
        raise UnknownValueError

    def __getattr__(self, name: str) -> Unknown:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, _key: object) -> Unknown:
        return self

    def __str__(self) -> str:
        return "unknown"


class UnknownText(Unknown):
    """The same inside a text, where it reads as "unknown" and stops nothing."""

    __slots__ = ()

    def __bool__(self) -> bool:  # type: ignore[override]
        return False

    def __len__(self) -> int:  # type: ignore[override]
        return 0

    def __iter__(self) -> Any:  # type: ignore[override]
        return iter(())


class View:
    """Read-only access to nested measures by dotted name, with None shown as unknown."""

    __slots__ = ("_data", "_unknown")

    def __init__(self, data: Mapping[str, Any], unknown: Unknown) -> None:
        self._data = data
        self._unknown = unknown

    def __getattr__(self, name: str) -> Any:
        try:
            return wrap(self._data[name], self._unknown)
        except KeyError:
            raise AttributeError(name) from None

    __getitem__ = __getattr__

    def __contains__(self, name: object) -> bool:
        return name in self._data

    def __iter__(self) -> Any:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)


def wrap(value: Any, unknown: Unknown) -> Any:
    """Show a value of the measures to a condition or a text."""
    if value is None:
        return unknown
    if isinstance(value, Mapping):
        return View(value, unknown)
    if isinstance(value, (list, tuple)):
        return [wrap(item, unknown) for item in value]
    return value


def _pairs(view: Any) -> list[tuple[str, Any]]:
    return [(name, view[name]) for name in view]


def _environment() -> SandboxedEnvironment:
    # Texts are for terminals and Markdown, whose writers escape; HTML rules have no place here.
    environment = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["q"] = lambda text: shlex.quote(str(text))
    environment.filters["pairs"] = _pairs
    environment.filters["percent"] = lambda share: "unknown" if isinstance(share, Unknown) else f"{share * 100:.0f} %"
    environment.tests["known"] = lambda value: not isinstance(value, Unknown)
    return environment


ENVIRONMENT = _environment()


@dataclass(slots=True)
class Judgement:
    """What the table says of one set of evidence."""

    findings: list[dict[str, Any]] = field(default_factory=list)
    not_judged: list[dict[str, str]] = field(default_factory=list)
    explained: int = 0


def judge(triage: Mapping[str, Any], table: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> dict[str, Any]:
    """Turn evidence into ranked findings.

    :param triage: the fact ``triage`` with its evidence sections.
    :param table: the rows of ``data/findings.yml`` (checked by :func:`check_table`).
    :param options: thresholds of the role ``verdict``.
    :returns: ``findings`` (ranked), ``verdict`` (the first of them) and ``not_judged`` (id and why).
    :raises TableError: if a row can't be read.
    """
    check_table(table)
    signals = build_signals(triage, options)
    judgement = Judgement()
    for row in (row for row in table if not row.get("after")):
        _apply(row, signals, triage, judgement)
    for row in (row for row in table if row.get("after")):
        signals["found"] = _found(judgement, signals)
        _apply(row, signals, triage, judgement)
    order = {row["id"]: position for position, row in enumerate(table)}
    about_loops = bool(signals["alert"]["heartbeat"])
    judgement.findings.sort(key=lambda finding: (_aside(finding) if about_loops else 0, *_rank(finding, order)))
    return {
        "findings": judgement.findings,
        "verdict": judgement.findings[0] if judgement.findings else None,
        "not_judged": judgement.not_judged,
    }


def check_table(table: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a table whose rows lack a part or use an unknown word.

    :raises TableError: naming the row, the part and what is allowed.
    """
    seen: set[str] = set()
    needed = ("id", "severity", "fault", "summary", "expected", "found", "runbook_step", "next_actions", "confidence")
    for row in table:
        identity = str(row.get("id"))
        lacking = [name for name in needed if not row.get(name)]
        if lacking:
            raise TableError(f"findings table: row {identity} lacks {', '.join(lacking)}; every finding needs them.")
        if identity in seen:
            raise TableError(f"findings table: the id {identity} stands twice; ids are unique.")
        seen.add(identity)
        if row["severity"] not in SEVERITIES:
            raise TableError(f"findings table: severity {row['severity']} of {identity} is none of {SEVERITIES}.")
        milder = row.get("milder") or {}
        if milder and milder.get("severity") not in SEVERITIES:
            raise TableError(f"findings table: the milder severity of {identity} is none of {SEVERITIES}.")
        for step in row["confidence"]:
            if step.get("level") not in CONFIDENCES or not step.get("because"):
                raise TableError(
                    f"findings table: a confidence of {identity} needs because and a level of {CONFIDENCES}."
                )
        kind = (row.get("remedy") or {}).get("kind")
        if kind and "{" not in kind and kind not in REMEDIES:
            raise TableError(f"findings table: remedy {kind} of {identity} is none of {REMEDIES}.")


#: Findings that the heartbeat's runbook is about.
ABOUT_LOOPS = (
    *("reconfigure.", "heartbeat.", "network.", "none.loops", "inconclusive"),
    *("smtp_in.stale_map", "imap.stale_map", "address_map."),
)


def _about_loops(finding: Mapping[str, Any]) -> bool:
    """Whether a page about the loops is about it; a lag by design is a note."""
    return str(finding["id"]).startswith(ABOUT_LOOPS) and finding["id"] != "reconfigure.lag"


def _aside(finding: Mapping[str, Any]) -> int:
    """1 for what stands behind the answer to a page about the loops; a critical finding never does."""
    return 0 if _about_loops(finding) or finding["severity"] == "critical" else 1


def _rank(finding: Mapping[str, Any], order: Mapping[str, int]) -> tuple[int, int, int, int]:
    return (
        SEVERITIES.index(finding["severity"]),
        -finding["recipients"],
        CONFIDENCES.index(finding["confidence"]),
        order[finding["id"]],
    )


def _found(judgement: Judgement, signals: Mapping[str, Any]) -> dict[str, Any]:
    """Measures about the findings so far, for the rows that come after the others."""
    total = signals["spike"]["total"]
    explained = judgement.explained
    # A deep queue is an effect and explains nothing.
    about_evidence = ("coverage.", "alert.", "queue.", "none.")
    faults = [finding for finding in judgement.findings if not finding["id"].startswith(about_evidence)]
    return {
        "ids": [finding["id"] for finding in judgement.findings],
        "faults": sum(1 for finding in faults if finding["severity"] != "info"),
        # A note beside the incident explains nothing of it.
        "causes": sum(1 for finding in faults if finding["severity"] != "info" or finding["recipients"]),
        "loops": sum(1 for finding in faults if finding["severity"] != "info" and _about_loops(finding)),
        "explained": explained,
        "unexplained": None if total is None else max(0, total - explained),
        "not_judged": [entry["id"] for entry in judgement.not_judged],
    }


def _apply(row: Mapping[str, Any], signals: Mapping[str, Any], triage: Mapping[str, Any], judgement: Judgement) -> None:
    """Raise the findings of one row."""
    try:
        items = _items(row, signals)
    except UnknownValueError:
        judgement.not_judged.append({"id": row["id"], "why": _why_unknown(row, triage)})
        return
    for item in items:
        scope = {**signals, "item": item}
        held = _holds(row, scope)
        if held is None:
            judgement.not_judged.append({"id": row["id"], "why": _why_unknown(row, triage)})
        elif held:
            judgement.findings.append(_finding(row, scope, triage))
            judgement.explained += _impact(row, scope, _counts(scope))


def _items(row: Mapping[str, Any], signals: Mapping[str, Any]) -> list[Any]:
    source = row.get("for_each")
    if not source:
        return [{}]
    value: Any = signals
    for part in source.split("."):
        value = value[part]
        if value is None:
            raise UnknownValueError
    return list(value)


def _why_unknown(row: Mapping[str, Any], triage: Mapping[str, Any]) -> str:
    lacking = [reason for pointer in row.get("needs") or [] for reason in _shortfall(pointer, triage)]
    return lacking[0] if lacking else "the evidence for it could not be had"


def _holds(row: Mapping[str, Any], scope: Mapping[str, Any]) -> bool | None:
    """Three-valued: true, false, or None where the answer hangs on something unknown."""
    every = [_truth(text, scope, row) for text in row.get("all") or []]
    some = [_truth(text, scope, row) for text in row.get("any") or []]
    parts = [_all(every), _any(some) if some else True]
    return _all(parts)


def _all(values: Iterable[bool | None]) -> bool | None:
    known = list(values)
    if False in known:
        return False
    return None if None in known else True


def _any(values: Iterable[bool | None]) -> bool | None:
    known = list(values)
    if True in known:
        return True
    return None if None in known else False


def _truth(text: str, scope: Mapping[str, Any], row: Mapping[str, Any]) -> bool | None:
    unknown = Unknown()
    try:
        value = _compiled(text)(**{name: wrap(value, unknown) for name, value in scope.items()})
        return bool(value)
    except UnknownValueError:
        return None
    except (UndefinedError, AttributeError, TypeError) as error:
        raise TableError(f"findings table: the condition «{text}» of {row['id']} can't be read: {error}.") from error


_COMPILED: dict[str, Callable[..., Any]] = {}


def _compiled(text: str) -> Callable[..., Any]:
    if text not in _COMPILED:
        _COMPILED[text] = ENVIRONMENT.compile_expression(text, undefined_to_none=False)
    return _COMPILED[text]


@functools.cache
def _template(text: str) -> Template:
    return ENVIRONMENT.from_string(text)


def _text(template: Any, scope: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    unknown = UnknownText()
    try:
        rendered = _template(str(template)).render(**{name: wrap(value, unknown) for name, value in scope.items()})
    except (UndefinedError, UnknownValueError, AttributeError, TypeError) as error:
        raise TableError(f"findings table: the text «{template}» of {row['id']} can't be written: {error}.") from error
    return " ".join(rendered.split())


def _finding(row: Mapping[str, Any], scope: Mapping[str, Any], triage: Mapping[str, Any]) -> dict[str, Any]:
    def text(template: Any) -> str:
        return _text(template, scope, row)

    tier = text(row["tier"]) if row.get("tier") else None
    key = text(row.get("key", ""))
    level, because = _confidence(row, scope, triage)
    environment = scope["names"]["environment"]
    return {
        "id": row["id"],
        "fingerprint": hashlib.sha256("\0".join([str(environment), row["id"], tier or "", key]).encode()).hexdigest(),
        "tier": tier,
        "key": key,
        "severity": _severity(row, scope),
        "confidence": level,
        "confidence_reason": because,
        "fault": row["fault"],
        "recipients": _recipients(row, scope),
        "summary": text(row["summary"]),
        "expected": text(row["expected"]),
        "found": text(row["found"]),
        "evidence": [pointer for pointer in map(text, row.get("evidence") or []) if _exists(pointer, triage)],
        "reproduce": [command for command in map(text, row.get("reproduce") or []) if command],
        "runbook_step": text(row["runbook_step"]),
        "next_actions": [
            {"text": text(action["text"]), "command": text(action["command"]) if action.get("command") else None}
            for action in row["next_actions"]
            if _holds({"id": row["id"], "all": action.get("all"), "any": action.get("any")}, scope)
        ],
        "remedy": _remedy(row, scope),
    }


def _counts(scope: Mapping[str, Any]) -> str:
    """The column of the table that counts what the alert at hand counts."""
    return "deferred" if scope["alert"]["deferred"] else "recipients"


def _recipients(row: Mapping[str, Any], scope: Mapping[str, Any]) -> int:
    """What a finding counts: as the alert does, or, where that says nothing of it, the other way."""
    column = _counts(scope)
    other = "recipients" if column == "deferred" else "deferred"
    return _impact(row, scope, column if row.get(column) else other)


def _severity(row: Mapping[str, Any], scope: Mapping[str, Any]) -> str:
    """The row's severity, or the milder one where its conditions hold."""
    milder = row.get("milder")
    if milder and _holds({"id": row["id"], "all": milder.get("all"), "any": milder.get("any")}, scope):
        return str(milder["severity"])
    return str(row["severity"])


def _impact(row: Mapping[str, Any], scope: Mapping[str, Any], column: str) -> int:
    if not row.get(column):
        return 0
    try:
        return int(_compiled(row[column])(**{name: wrap(value, Unknown()) for name, value in scope.items()}))
    except UnknownValueError:
        return 0


def _confidence(row: Mapping[str, Any], scope: Mapping[str, Any], triage: Mapping[str, Any]) -> tuple[str, str]:
    """The first level whose conditions hold, capped where needed evidence is not complete."""
    level, because = "low", "nothing confirms it beyond the log lines"
    for step in row["confidence"]:
        if _holds({"id": row["id"], "all": step.get("all"), "any": step.get("any")}, scope):
            level, because = step["level"], _text(step["because"], scope, row)
            break
    needed = [_text(pointer, scope, row) for pointer in row.get("needs") or []]
    lacking = [reason for pointer in needed for reason in _shortfall(pointer, triage)]
    if level == "high" and lacking:
        return "medium", f"{because}; but {lacking[0]}"
    return level, because


def _shortfall(pointer: str, triage: Mapping[str, Any]) -> list[str]:
    """Why the evidence at a pointer is not complete; nothing when it is."""
    part = resolve(pointer, triage)
    if not isinstance(part, Mapping):
        return [f"there is no evidence at {pointer}"]
    if part.get("status") == "complete":
        return []
    reasons = [str(reason).rstrip(".") for reason in part.get("reasons") or []]
    return reasons[:1] or [f"{pointer} is {part.get('status', 'unavailable')}"]


def resolve(pointer: str, document: Any) -> Any:
    """The value at a JSON Pointer (RFC 6901), None where there is none."""
    value = document
    for raw in pointer.split("/")[1:]:
        part = raw.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _exists(pointer: str, triage: Mapping[str, Any]) -> bool:
    return resolve(pointer, triage) is not None


def _remedy(row: Mapping[str, Any], scope: Mapping[str, Any]) -> dict[str, Any] | None:
    remedy = row.get("remedy")
    if not remedy or _holds({"id": row["id"], "all": remedy.get("all")}, scope) is not True:
        return None
    tasks: list[str] = []
    if remedy.get("tasks"):
        shown = {name: wrap(value, UnknownText()) for name, value in scope.items()}
        tasks = list(_compiled(remedy["tasks"])(**shown))
    return {"kind": _text(remedy["kind"], scope, row), "service": _text(remedy["service"], scope, row), "tasks": tasks}
