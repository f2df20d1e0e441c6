# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a message failed: the reason and the fault of one delivery attempt, by ordered rules that are data.

The first rule whose conditions all hold decides. The shipped rules (``data/reasons.yml``) stand in the order of what
is worth more: what the answer's text states, then its enhanced code, then its three digits, then sendmail's ``stat=``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from .normalise import Normaliser
from .providers import ProviderTable

OTHER = "other"
_CACHE = 20_000
_LONGEST_BARE_STAT = 20

_HEAD = re.compile(r"\s*(?P<code>[2345]\d\d)?(?:[- ]|\Z)?\s*(?:#?(?P<enhanced>[245]\.\d{1,3}\.\d{1,3})(?![\w]|\.\d))?")
_INNER_ENHANCED = re.compile(r"(?<![\w.])#?([245]\.\d{1,3}\.\d{1,3})(?![\w]|\.\d)")
_DEFERRED = re.compile(r"Deferred: ")
_BARE_STAT = re.compile(r"(?:Deferred|queued|Service unavailable|User unknown)?\Z")
_NAME = re.compile(r"%(\w+)%")
_LINK = re.compile(r"(?:https?:/?/?|www\.)\S+")


class Attempt(NamedTuple):
    """What the log says of one failed delivery attempt (or refused SMTP transaction) to one recipient."""

    code: str | None = None
    """Three digits, where the parser knows them apart from ``reply``."""
    enhanced: str | None = None
    """``dsn=`` as logged. sendmail makes one up where the answer has none."""
    reply: str | None = None
    """``reply=`` or ``reject=`` as logged, with its codes."""
    stat: str = ""
    stage_hint: str | None = None
    """``connect``, ``ehlo``, ``starttls``, ``mail``, ``rcpt``, ``data``, ``eom``, ``dns``, ``local``, ``queue``."""
    relay: str | None = None
    relay_ip: str | None = None
    mailer: str | None = None
    tier: str | None = None


class Reason(NamedTuple):
    """``id`` and ``fault`` of a failure, the ``rule`` that decided, and whether what was logged ``tells`` it."""

    id: str
    fault: str
    rule: str
    tells: bool


class _Evidence(NamedTuple):
    """An attempt as the rules look at it. Equal evidence has an equal reason: this is the key of the cache."""

    text: str
    code: str
    enhanced: str
    stat: str
    stage: str | None
    relay: str
    provider: str | None
    mailer: str | None
    tier: str | None
    reply: bool
    goes_on: bool


class _Pattern(NamedTuple):
    literal: str
    search: Any

    @classmethod
    def of(cls, source: str, vocabulary: Mapping[str, str]) -> _Pattern:
        source = expand(source, vocabulary)
        return cls(required_literal(source), re.compile(source).search)

    def matches(self, text: str) -> bool:
        return self.literal in text and self.search(text) is not None


def expand(source: str, vocabulary: Mapping[str, str]) -> str:
    """A pattern with each ``%name%`` replaced. Raises ``KeyError`` for a name that the vocabulary lacks."""
    return _NAME.sub(lambda name: vocabulary[name[1]], source)


def required_literal(pattern: str) -> str:
    """The longest run of plain characters that every match of ``pattern`` holds; ``""`` where none is sure.

    A substring test costs a fraction of a regular expression, and nearly always says no.
    """
    depth, best, run = 0, "", ""
    position = 0
    while position < len(pattern):
        char = pattern[position]
        following = pattern[position + 1 : position + 2]
        plain = char.isalnum() or char in " _-<>@/:;,'#=&%!~\""
        if char == "\\":
            plain, position = False, position + 1
            following = pattern[position + 1 : position + 2]
        elif char == "[":
            position = _end_of_class(pattern, position)
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            return ""
        elif char == "{":
            position = max(pattern.find("}", position), position)
        if plain and depth == 0 and following not in ("?", "*", "{"):
            run += char
        else:
            best, run = max(best, run, key=len), ""
        position += 1
    return max(best, run, key=len)


def _end_of_class(pattern: str, start: int) -> int:
    """Index of the ``]`` that closes the character class opened at ``start``."""
    position = start + 1 + pattern.startswith("^", start + 1)
    position += pattern.startswith("]", position)
    while position < len(pattern) and pattern[position] != "]":
        position += 2 if pattern[position] == "\\" else 1
    return position


class _Rule:
    """One rule, compiled. Conditions that a rule doesn't name hold always."""

    def __init__(self, data: Mapping[str, Any], fault: str, vocabulary: Mapping[str, str]) -> None:
        self.id: str = data["id"]
        self.reason = Reason(data["reason"], data.get("fault", fault), data["id"], data.get("tells", True))
        self.text = [_Pattern.of(source, vocabulary) for source in data.get("text", ())]
        self.link = [_Pattern.of(source, vocabulary) for source in data.get("link", ())]
        self.unless = [_Pattern.of(source, vocabulary) for source in data.get("unless", ())]
        self.stat = [_Pattern.of(source, vocabulary) for source in data.get("stat", ())]
        self.code = tuple(data.get("code", ()))
        self.enhanced = frozenset(data.get("enhanced", ()))
        self.choices = [
            (field, frozenset(data[field]))
            for field in ("stage", "relay", "provider", "mailer", "tier")
            if field in data
        ]
        self.reply: bool | None = data.get("reply")

    def holds(self, evidence: _Evidence, words: str, links: str) -> bool:
        """Whether every condition of the rule holds."""
        if self.reply is not None and self.reply != evidence.reply:
            return False
        if self.code and not evidence.code.startswith(self.code):
            return False
        if self.enhanced and not self._enhanced_holds(evidence.enhanced):
            return False
        if any(getattr(evidence, field) not in allowed for field, allowed in self.choices):
            return False
        if (self.text or self.link) and not (_any(self.text, words) or _any(self.link, links)):
            return False
        return (not self.stat or _any(self.stat, evidence.stat)) and not _any(self.unless, words)

    def _enhanced_holds(self, enhanced: str) -> bool:
        """``5.1.1`` as it is, ``x.1.1`` for every class, ``5.7.x`` for every detail."""
        if not enhanced:
            return False
        kind, subject, detail = enhanced.split(".")
        forms = (enhanced, f"x.{subject}.{detail}", f"{kind}.{subject}.x", f"x.{subject}.x")
        return not self.enhanced.isdisjoint(forms)


def _any(patterns: Iterable[_Pattern], text: str) -> bool:
    return any(pattern.matches(text) for pattern in patterns)


class Classifier:
    """Gives each failed attempt its reason.

    :param rules: ``data/reasons.yml``, with an operator's rules in front (:func:`.rules.merge_rules`).
    :param providers: ``data/providers.yml``, validated.
    :param codes: ``data/enhanced_codes.yml``.
    :param own_hosts: names of our own relays; a rule may ask for ``relay: [own]``.
    """

    def __init__(
        self,
        rules: Mapping[str, Any],
        providers: Mapping[str, Any] | ProviderTable,
        codes: Mapping[str, Any],
        own_hosts: Iterable[str] = ("imap.cabal.internal",),
    ) -> None:
        self.faults: dict[str, str] = dict(rules["reasons"])
        words = rules.get("vocabulary", {})
        self._rules = [_Rule(rule, self.faults[rule["reason"]], words) for rule in rules["rules"]]
        self.providers = providers if isinstance(providers, ProviderTable) else ProviderTable(providers)
        self._codes: Mapping[str, str] = codes["codes"]
        self._subjects: Mapping[str, str] = codes.get("subjects", {})
        self._own = frozenset(host.lower().rstrip(".") for host in own_hosts)
        self.normalise = Normaliser(rules.get("telling_hosts", ()))
        self._asked = {field for rule in self._rules for field, _ in rule.choices}
        self._relays = lru_cache(_CACHE)(self._relay)
        self._other = Reason(OTHER, self.faults[OTHER], "none", False)
        self._by_attempt: dict[tuple[str | None, ...], Reason] = {}
        self._by_evidence: dict[_Evidence, Reason] = {}

    def classify(self, attempt: Attempt) -> Reason:
        """The reason of one attempt; ``other`` where no rule holds. Never raises, takes time linear in the text."""
        key = (
            attempt.reply, attempt.stat, attempt.enhanced, attempt.code,
            attempt.relay, attempt.stage_hint, attempt.mailer, attempt.tier,
        )  # fmt: skip
        found = self._by_attempt.get(key)
        if found is None:
            evidence = self._evidence(attempt)
            found = self._by_evidence.get(evidence)
            if found is None:
                found = _remember(self._by_evidence, evidence, self._decide(evidence))
            _remember(self._by_attempt, key, found)
        return found

    def code_text(self, enhanced: str) -> str | None:
        """What the IANA registry says an enhanced code means; for one that it lacks, the text of the code's subject."""
        shape = f"x{enhanced[1:]}"
        return self._codes.get(shape) or self._subjects.get(shape.rpartition(".")[0])

    def rules_that_hold(self, attempt: Attempt) -> list[str]:
        """The ids of all rules that hold, the deciding one first: for validation and to explain a decision."""
        evidence = self._evidence(attempt)
        words, links = _split_links(evidence.text)
        return [rule.id for rule in self._rules if rule.holds(evidence, words, links)]

    def _decide(self, evidence: _Evidence) -> Reason:
        words, links = _split_links(evidence.text)
        for rule in self._rules:
            if rule.holds(evidence, words, links):
                # Only the first line of an answer is logged: where more follow, a code alone doesn't tell.
                return rule.reason._replace(tells=False) if evidence.goes_on and not rule.text else rule.reason
        return self._other

    def _evidence(self, attempt: Attempt) -> _Evidence:
        reply, stat = attempt.reply, attempt.stat
        code, enhanced, body = _codes_of(reply or _answer_in(stat))
        if not code:
            # An answer with its three digits shows its own enhanced code as well; dsn= beside it may be made up.
            code, enhanced = attempt.code or "", enhanced or attempt.enhanced or ""
        where, provider = self._relays(attempt.relay)
        return _Evidence(
            self.normalise.words(body).lower(),
            code,
            enhanced if enhanced.count(".") == 2 else "",
            # Beside an answer, stat= is a word of sendmail's or the answer again.
            (stat if len(stat) < _LONGEST_BARE_STAT else "" if reply else self.normalise.words(stat)).lower(),
            attempt.stage_hint if "stage" in self._asked else None,
            where,
            provider if "provider" in self._asked else None,
            attempt.mailer if "mailer" in self._asked else None,
            attempt.tier if "tier" in self._asked else None,
            bool(reply),
            reply is not None and reply[3:4] == "-",
        )

    def _relay(self, relay: str | None) -> tuple[str, str]:
        """Whether a relay is our own, and its provider."""
        host = (relay or "").strip("[]. ").lower()
        if not host:
            return "none", ""
        return ("own" if host in self._own else "remote"), self.providers.provider(host).name


def _remember(cache: dict[Any, Reason], key: Any, reason: Reason) -> Reason:
    if len(cache) >= _CACHE:
        cache.clear()
    cache[key] = reason
    return reason


def _answer_in(stat: str) -> str:
    """What ``stat=`` tells where there is no ``reply=`` (sendmail before 8.16 logs none); ``""`` for a bare word."""
    text = _DEFERRED.sub("", stat, count=1)
    return "" if _BARE_STAT.match(text) else text


def _codes_of(text: str) -> tuple[str, str, str]:
    """Three-digit code, enhanced code and body of an answer; ``""`` for what it lacks."""
    head = _HEAD.match(text)
    if head is None:
        return "", "", text
    enhanced = head["enhanced"] or ""
    if not enhanced:
        inner = _INNER_ENHANCED.search(text, head.end())
        enhanced = inner[1] if inner else ""
    return head["code"] or "", enhanced, text[head.end() :].strip()


def _split_links(text: str) -> tuple[str, str]:
    """The words of an answer without its links, and the links alone."""
    return _LINK.sub("<url>", text), " ".join(_LINK.findall(text))
