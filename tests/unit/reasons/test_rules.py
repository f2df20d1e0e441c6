# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shipped data is sound, and what an operator adds takes effect or is refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.maillog.reasons import Attempt, Classifier
from ansible.module_utils.maillog.rules import (
    RuleError,
    merge_providers,
    merge_rules,
    provider_problems,
    rule_problems,
    schema_problems,
)

OWN = {
    "id": "partner-closed",
    "reason": "recipient_restricted",
    "text": ["the partner is on holiday"],
    "examples": [{"reply": "550 5.7.1 the partner is on holiday"}],
}


def test_shipped_rules_are_sound(rules: dict[str, Any], rule_schema: dict[str, Any]) -> None:
    assert list(schema_problems(rules, rule_schema)) == []
    assert rule_problems(rules) == []


def test_shipped_providers_are_sound(providers: dict[str, Any], provider_schema: dict[str, Any]) -> None:
    assert list(schema_problems(providers, provider_schema)) == []
    assert provider_problems(providers) == []


def test_every_registered_code_has_its_shape(codes: dict[str, Any]) -> None:
    assert len(codes["codes"]) > 70
    assert {code.rpartition(".")[0] for code in codes["codes"]} <= set(codes["subjects"])


def test_a_dead_rule_is_found(rules: dict[str, Any]) -> None:
    shadowed = {**OWN, "id": "shadowed", "text": ["user unknown"], "examples": [{"reply": "550 user unknown"}]}
    rules["rules"].append(shadowed)
    assert rule_problems(rules)[0] == (
        "Rule 'shadowed': its example {'reply': '550 user unknown'} is decided by rule 'no-such-recipient'."
    )


def test_a_rule_that_changes_nothing_is_found(rules: dict[str, Any]) -> None:
    idle = {**OWN, "reason": "recipient_unknown", "text": ["user unknown"], "examples": [{"reply": "550 user unknown"}]}
    rules["rules"].insert(0, idle)
    assert rule_problems(rules)[0] == (
        "Rule 'partner-closed': without it its examples would get the same reason; give it one of its own."
    )


@pytest.mark.parametrize("position", range(0, 200, 23))
def test_a_rule_taken_away_is_missed(rules: dict[str, Any], position: int) -> None:
    """Each shipped rule decides something: its own examples get another reason without it."""
    removed = rules["rules"].pop(position % len(rules["rules"]))
    classifier = Classifier(rules, {"providers": []}, {"codes": {}})
    without = [classifier.classify(Attempt(**example)) for example in removed["examples"]]
    fault = removed.get("fault", rules["reasons"][removed["reason"]])
    assert any((reason.id, reason.fault) != (removed["reason"], fault) for reason in without)


def test_two_providers_with_one_suffix_are_found(providers: dict[str, Any]) -> None:
    providers["providers"].append({"name": "Thief", "mx": ["google.com"]})
    assert provider_problems(providers) == ["Provider 'Thief': google.com is already 'Google''s (mx)."]


def test_an_operators_rule_decides_first(
    rules: dict[str, Any], rule_schema: dict[str, Any], providers: dict[str, Any]
) -> None:
    attempt = Attempt(reply="550 5.7.1 Sorry, the partner is on holiday", stat="User unknown")
    shipped = Classifier(rules, providers, {"codes": {}})
    merged = Classifier(merge_rules(rules, [OWN], rule_schema), providers, {"codes": {}})
    assert shipped.classify(attempt).id == "policy"
    assert merged.classify(attempt)[:3] == ("recipient_restricted", "recipient", "partner-closed")


def test_an_operators_rule_may_ask_for_a_provider(
    rules: dict[str, Any], rule_schema: dict[str, Any], providers: dict[str, Any]
) -> None:
    own = {**OWN, "provider": ["Google"], "fault": "us", "text": ["go away"],
           "examples": [{"reply": "550 go away", "relay": "mx.google.com"}]}  # fmt: skip
    classifier = Classifier(merge_rules(rules, [own], rule_schema, providers), providers, {"codes": {}})
    assert classifier.classify(Attempt(reply="550 go away", relay="mx.google.com.")).rule == "partner-closed"
    assert classifier.classify(Attempt(reply="550 go away", relay="mx.example.org.")).rule == "refused"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reason": "nonsense"}, "'nonsense' is no reason; use one of "),
        ({"text": ["(unclosed"]}, "is no regular expression"),
        ({"text": ["%nobody%"]}, "%nobody% in '%nobody%' is not in the vocabulary"),
        ({"text": ["a.*b"]}, "repeats a dot or a group without a bound"),
        ({"text": ["(?:a|b)+c"]}, "repeats a dot or a group without a bound"),
        ({"id": "refused"}, "another rule has this id"),
        ({"examples": [{"reply": "550 something else"}]}, "is decided by no rule"),
        ({"examples": []}, "should be non-empty"),
        ({"pattern": "x"}, "Additional properties are not allowed"),
        ({"fault": "them"}, "'them' is not one of"),
        ({"code": ["99"]}, "'99' does not match"),
    ],
)
def test_a_bad_rule_is_refused_in_one_sentence(
    rules: dict[str, Any], rule_schema: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    with pytest.raises(RuleError) as refused:
        merge_rules(rules, [{**OWN, **change}], rule_schema)
    message = str(refused.value)
    assert words in message
    assert message.startswith(f"Rule {change.get('id', 'partner-closed')!r}")
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize("extra", [{"id": "x"}, "x", None, 7, ["x"]])
def test_what_is_no_list_of_rules_is_refused(rules: dict[str, Any], rule_schema: dict[str, Any], extra: Any) -> None:
    with pytest.raises(RuleError):
        merge_rules(rules, extra, rule_schema)


@pytest.mark.parametrize(
    "extra",
    [[{"name": "X"}], [{"mx": ["x.example"]}], [{"name": "X", "mx": ["*.x"]}], [{"name": "X", "mx": []}], "x", {}],
)
def test_a_bad_provider_is_refused(providers: dict[str, Any], provider_schema: dict[str, Any], extra: Any) -> None:
    with pytest.raises(RuleError, match="Provider"):
        merge_providers(providers, extra, provider_schema)


def test_a_good_provider_is_taken(providers: dict[str, Any], provider_schema: dict[str, Any]) -> None:
    merged = merge_providers(providers, [{"name": "Partner", "mx": ["partner.example"]}], provider_schema)
    assert merged["providers"][0]["name"] == "Partner"
