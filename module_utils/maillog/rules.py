# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules and providers with an operator's own in front, checked, and refused in one clear sentence.

The shape is checked against ``data/schema``; what a schema can't say (patterns that compile and stay linear, examples
that a rule decides, no dead rule) is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .reasons import Attempt, Classifier, expand

# A dot or a group repeated without bound: together with another repetition its time grows faster than the text.
_UNBOUNDED = re.compile(r"(?<!\\)(?:\\\\)*[.)](?:[*+]|\{\d*,\})")
_CONDITIONS = ("text", "link", "unless", "stat")


class RuleError(ValueError):
    """A rule or provider that can't be used; the message is one sentence that names it."""


def merge_rules(
    shipped: Mapping[str, Any],
    extra: Sequence[Mapping[str, Any]],
    schema: Mapping[str, Any],
    providers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The shipped rules with an operator's own in front, so that those decide first.

    :param extra: rules as in ``data/reasons.yml``, from the inventory (``cabalmail_reason_rules``).
    :param providers: for examples whose rule asks for a provider.
    :raises RuleError: when one of them is malformed, takes a shipped rule's id, or doesn't decide its own example.
    """
    merged = {**shipped, "rules": _in_front(extra, shipped["rules"])}
    _raise_first(schema_problems(merged, schema))
    own = [rule["id"] for rule in extra]
    _raise_first(_structure_problems(merged, own))
    _raise_first(_example_problems(merged, own, providers, need_sole=False))
    return merged


def merge_providers(
    shipped: Mapping[str, Any], extra: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]
) -> dict[str, Any]:
    """The shipped providers with an operator's own in front: a suffix that both name is the operator's.

    :param extra: entries as in ``data/providers.yml``, from the inventory (``cabalmail_providers``).
    :raises RuleError: when one of them is malformed.
    """
    merged = {**shipped, "providers": _in_front(extra, shipped["providers"])}
    _raise_first(schema_problems(merged, schema))
    return merged


def _in_front(extra: Any, shipped: Sequence[Any]) -> Any:
    """Both lists as one; what is no list is passed on for the schema to refuse."""
    return [*extra, *shipped] if isinstance(extra, list) else extra


def schema_problems(data: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    """Where the data breaks its schema, one sentence each."""
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema).iter_errors(data):
        place = error.absolute_path
        name = _name_of(data, list(place))
        yield f"{name}: {error.message[:200]} (at {'/'.join(map(str, place)) or 'the top'})."


def rule_problems(rules: Mapping[str, Any]) -> list[str]:
    """All that is wrong with a set of rules that its schema allows: the shipped set has to come out empty.

    Each rule needs an example that only it decides: it holds before all others, and without it the answer would differ.
    """
    every = [rule["id"] for rule in rules["rules"]]
    return [*_structure_problems(rules, every)] or [*_example_problems(rules, every, None, need_sole=True)]


def provider_problems(providers: Mapping[str, Any]) -> list[str]:
    """Suffixes and domains that two providers claim: the second claim is dead."""
    seen: dict[tuple[str, str], str] = {}
    problems = []
    for entry in providers["providers"]:
        for kind in ("mx", "domains"):
            for name in entry.get(kind, ()):
                owner = seen.setdefault((kind, name), entry["name"])
                if owner != entry["name"]:
                    problems.append(f"Provider {entry['name']!r}: {name} is already {owner!r}'s ({kind}).")
    return problems


def _structure_problems(rules: Mapping[str, Any], wanted: Iterable[str]) -> Iterator[str]:
    wanted = set(wanted)
    seen: set[str] = set()
    for rule in rules["rules"]:
        if rule["id"] in seen:
            yield f"Rule {rule['id']!r}: another rule has this id."
        seen.add(rule["id"])
        if rule["id"] not in wanted:
            continue
        if rule["reason"] not in rules["reasons"]:
            known = ", ".join(sorted(rules["reasons"]))
            yield f"Rule {rule['id']!r}: {rule['reason']!r} is no reason; use one of {known}."
        for condition in _CONDITIONS:
            for pattern in rule.get(condition, ()):
                yield from _pattern_problems(rule["id"], pattern, rules.get("vocabulary", {}))


def _pattern_problems(rule_id: str, pattern: str, vocabulary: Mapping[str, str]) -> Iterator[str]:
    try:
        expanded = expand(pattern, vocabulary)
        re.compile(expanded)
    except KeyError as error:
        yield f"Rule {rule_id!r}: %{error.args[0]}% in {pattern!r} is not in the vocabulary."
    except re.error as error:
        yield f"Rule {rule_id!r}: {pattern!r} is no regular expression ({error})."
    else:
        if _UNBOUNDED.search(expanded):
            yield f"Rule {rule_id!r}: {pattern!r} repeats a dot or a group without a bound; give one, such as {{0,40}}."


def _example_problems(
    rules: Mapping[str, Any], wanted: Iterable[str], providers: Mapping[str, Any] | None, *, need_sole: bool
) -> Iterator[str]:
    classifier = Classifier(rules, providers or {"providers": []}, {"codes": {}})
    verdicts = {rule["id"]: (rule["reason"], rule.get("fault")) for rule in rules["rules"]}
    wanted = set(wanted)
    for rule in rules["rules"]:
        if rule["id"] not in wanted:
            continue
        sole = False
        for example in rule["examples"]:
            holding = classifier.rules_that_hold(Attempt(**example))
            if not holding or holding[0] != rule["id"]:
                decider = f"rule {holding[0]!r}" if holding else "no rule"
                yield f"Rule {rule['id']!r}: its example {example} is decided by {decider}."
            elif len(holding) == 1 or verdicts[holding[1]] != verdicts[rule["id"]]:
                sole = True
        if need_sole and not sole:
            yield f"Rule {rule['id']!r}: without it its examples would get the same reason; give it one of its own."


def _name_of(data: Mapping[str, Any], path: list[Any]) -> str:
    if len(path) >= 2 and path[0] in ("rules", "providers"):
        entry = data[path[0]][path[1]]
        kind = "Rule" if path[0] == "rules" else "Provider"
        name = entry.get("id", entry.get("name")) if isinstance(entry, Mapping) else None
        return f"{kind} {name!r}" if name else f"{kind} number {path[1] + 1}"
    return "Rules" if "rules" in data else "Providers"


def _raise_first(problems: Iterable[str]) -> None:
    for problem in problems:
        raise RuleError(problem)
