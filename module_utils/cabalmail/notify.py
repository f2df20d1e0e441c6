# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom to tell of a triage, whether there is something new to tell, and in what words. Nothing is sent here.

A secret (a token, a shared secret, an Apprise URL, which holds its credentials) comes from the environment
(``env:NAME``), from a file (``file:PATH``), or from the inventory's vault; on the command line every user of the
machine could read it, so there it is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .inert import code, inert, markdown, shown
from .options import OptionError, is_http_url

Facts = Mapping[str, Any]

NAME = "report_notify"
APPRISE, ALERT_SINK, GITHUB_ISSUE = "apprise", "alert_sink", "github_issue"
# What else an entry of each kind may say; the first is needed.
MEMBERS: dict[str, tuple[str, ...]] = {APPRISE: (), ALERT_SINK: ("secret",), GITHUB_ISSUE: ("token", "api")}
GITHUB_API = "https://api.github.com"
SECRETS = (APPRISE, "secret", "token")
_REFERENCE = re.compile(r"(?P<where>env|file):(?P<name>.+)\Z", re.DOTALL)
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9._-]{1,100}\Z")
# What chats take for a mention, a link or markup stands as its look-alike of double width.
_LOOKALIKES = str.maketrans("@<>`*|#[]~", "＠＜＞｀＊｜＃［］～")  # noqa: RUF001
_LINK = re.compile(r"\bhttp(?=s?://)", re.IGNORECASE)
OK = "ok"


@dataclass(frozen=True, slots=True)
class Sink:
    """One that is to be told.

    Args:
        kind: apprise, alert_sink or github_issue.
        target: Apprise's URL, the sink's URL, or the repository (owner/name).
        secret: what it asks for; empty for Apprise, whose URL holds it.
        api: base address of GitHub's REST interface.
    """

    kind: str
    target: str
    secret: str = ""
    api: str = GITHUB_API

    def __repr__(self) -> str:
        """Without secrets: a representation ends up in messages of errors."""
        return f"Sink({self.kind})"


def read_sinks(value: Any, environment: Mapping[str, str], on_command_line: bool = False) -> list[Sink]:
    """Those to tell, from the option ``report_notify``.

    Args:
        value: nothing, a text with Apprise URLs or references, or a list of such texts and of mappings with one of the
            members ``apprise``, ``alert_sink`` and ``github_issue``.
        environment: environment variables, for ``env:NAME``.
        on_command_line: whether the value stood in the arguments of a process.

    Raises:
        OptionError: an entry can't be used; its secrets are not in the sentence.
    """
    if value in (None, "", []):
        return []
    entries = value.split() if isinstance(value, str) else value
    if not isinstance(entries, list):
        raise OptionError(f"{NAME} can't be used: give a list, or Apprise URLs separated by blanks.")
    sinks = []
    for number, entry in enumerate(entries, 1):
        read = _Entry(number, environment, on_command_line)
        sinks += read.sinks({APPRISE: entry} if isinstance(entry, str) else entry)
    return sinks


class _Entry:
    """Reads one entry of the option."""

    def __init__(self, number: int, environment: Mapping[str, str], on_command_line: bool) -> None:
        self._where = f"{NAME}, entry {number}"
        self._environment = environment
        self._on_command_line = on_command_line

    def sinks(self, entry: Any) -> list[Sink]:
        """The sinks that the entry names: a reference of Apprise may hold several URLs."""
        kinds = [kind for kind in MEMBERS if isinstance(entry, dict) and entry.get(kind)]
        if len(kinds) != 1:
            raise self._refused(f"give one of {', '.join(MEMBERS)}")
        kind = kinds[0]
        unknown = set(entry) - {kind, *MEMBERS[kind]}
        if unknown:
            raise self._refused(f"{shown(min(map(str, unknown)))} is no member of {kind}")
        if kind == APPRISE:
            urls = self._value(APPRISE, entry[APPRISE]).split()
            return [Sink(APPRISE, url) for url in urls]
        if kind == ALERT_SINK:
            url = self._url(self._value(ALERT_SINK, entry[ALERT_SINK]))
            return [Sink(ALERT_SINK, url, self._value("secret", entry.get("secret")))]
        repository = self._value(GITHUB_ISSUE, entry[GITHUB_ISSUE])
        if not _REPOSITORY.match(repository):
            raise self._refused(f"{shown(repository)} is no repository: give owner/name")
        api = self._url(str(entry.get("api") or GITHUB_API)).rstrip("/")
        return [Sink(GITHUB_ISSUE, repository, self._value("token", entry.get("token")), api)]

    def _value(self, name: str, given: Any) -> str:
        """What is given or referred to, which is never shown; OptionError where there is none."""
        if not isinstance(given, str) or not given.strip():
            raise self._refused(f"{name} is missing")
        reference = _REFERENCE.match(given)
        if reference is None and self._on_command_line and name in SECRETS:
            raise self._refused(
                f"{name} stands on the command line, where others can read it: give env:NAME or file:PATH"
            )
        if reference is None:
            return given.strip()
        value = self._referred(reference["where"], reference["name"]).strip()
        if not value:
            raise self._refused(f"{shown(given)} is empty or not there")
        return value

    def _referred(self, where: str, name: str) -> str:
        if where == "env":
            return self._environment.get(name, "")
        try:
            return Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise self._refused(f"the file {shown(name)} can't be read ({type(error).__name__})") from None

    def _url(self, url: str) -> str:
        if not is_http_url(url):
            raise self._refused("it needs an http or https URL")
        return url

    def _refused(self, why: str) -> OptionError:
        return OptionError(f"{self._where} can't be used: {why}.")


@dataclass(frozen=True, slots=True)
class State:
    """What a sink was told last, or would be told now: only a change of it is news.

    Args:
        page: fingerprint and begin of the page; empty without one.
        verdict: fingerprint of the verdict, empty where there is none.
        name: its id.
        severity: its severity.
        status: outcome.json's status.
        remediation: how a remediation ended.
    """

    page: str
    verdict: str
    name: str
    severity: str
    status: str
    remediation: str


def state_of(triage: Facts, outcome: Facts) -> State:
    """The state of a run."""
    alert, verdict = triage.get("alert") or {}, triage.get("verdict") or {}
    page = " ".join(str(alert.get(key)) for key in ("fingerprint", "starts_at") if alert.get(key))
    return State(
        page=page,
        verdict=str(verdict.get("fingerprint") or ""),
        name=str(verdict.get("id") or "no verdict"),
        severity=str(verdict.get("severity") or "critical"),
        status=str(outcome["status"]),
        remediation=str((triage.get("remediation") or {}).get("outcome") or "not_attempted"),
    )


def news(last: State | None, now: State) -> str:
    """What is new for one who was last told ``last``; empty when nothing is.

    The same incident is told once, and again when verdict, severity or outcome changed.
    """
    if last is None or last.status == OK:
        return "" if now.status == OK else "New"
    if now.status == OK:
        return f"Recovered from {last.name}"
    changes = [
        f"{what}: {getattr(last, member)} before"
        for member, what in (
            ("name", "verdict"),
            ("severity", "severity"),
            ("status", "outcome"),
            ("remediation", "remediation"),
        )
        if getattr(last, member) != getattr(now, member)
    ]
    if not changes and last.verdict != now.verdict:
        changes = ["the same verdict about something else"]
    if not changes and last.page and now.page and last.page != now.page:
        return "Paged again"
    return f"Changed ({', '.join(changes).replace('_', ' ')})" if changes else ""


@dataclass(frozen=True, slots=True)
class Message:
    """What is told: short, masked, and inert in a chat.

    Args:
        title: severity, environment and verdict.
        lines: what is new, summary, confidence, first action, link.
        severity: critical, warning or info.
        recovered: whether the incident is over.
        environment: whose it is.
        link: where the report is.
    """

    title: str
    lines: Sequence[str]
    severity: str
    recovered: bool
    environment: str
    link: str

    @property
    def body(self) -> str:
        """The lines as text."""
        return "\n".join(self.lines)


def message(triage: Facts, outcome: Facts, new: str, link: str, kind: str) -> Message:
    """The words for a sink of this kind.

    Args:
        triage: the fact.
        outcome: what ``report.outcome`` said.
        new: what is new.
        link: where the report is: an URL, or a path.
        kind: GitHub's issues are Markdown; all others may end in any chat.
    """
    in_markdown = kind == GITHUB_ISSUE
    safe: Callable[[Any, int], str] = markdown if in_markdown else chat
    environment = safe(triage["run"]["environment"], 40)
    verdict = triage.get("verdict")
    recovered = outcome["status"] == OK
    severity = "info" if recovered else verdict["severity"] if verdict else "critical"
    name = verdict["id"] if verdict else "no verdict"
    head = "RECOVERED" if recovered else severity.upper()
    lines = [safe(new, 300)]
    if outcome["error"]:
        lines.append(f"This run is broken: {safe(outcome['error'], 300)}")
    if verdict:
        lines.append(safe(verdict["summary"], 400))
        lines.append(f"Confidence {verdict['confidence']}: {safe(verdict['confidence_reason'], 300)}")
        lines.append(f"Do first: {safe(verdict['next_actions'][0]['text'], 300)}")
    if outcome["unchecked"]:
        lines.append(f"Not checked: {len(outcome['unchecked'])}, see the report")
    lines.append(f"Report: {code(link) if in_markdown and '://' not in link else link}")
    return Message(f"{head} {environment}: {name}", lines, severity, recovered, environment, link)


def chat(value: Any, limit: int) -> str:
    """Text of strangers for a chat: one line, without what is a mention, a link or markup anywhere."""
    return _LINK.sub(lambda found: f"{found[0][0]}xx{found[0][3:]}", inert(value, limit)).translate(_LOOKALIKES)


def named(services: Sequence[str]) -> list[str]:
    """A name for each sink that holds nothing of its address: its service, numbered where there are several."""
    return [
        service if (number := services[: place + 1].count(service)) == 1 else f"{service} {number}"
        for place, service in enumerate(services)
    ]


def read_states(path: Path) -> dict[str, State]:
    """What each sink was told last, by its name; a file that can't be read is none, so that all are told once more."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): State(**{key: str(value) for key, value in state.items()}) for name, state in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_states(path: Path, states: Mapping[str, State]) -> None:
    """Keep what each sink was told. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps({name: asdict(state) for name, state in states.items()}, indent=1), encoding="utf-8")
    draft.replace(path)
