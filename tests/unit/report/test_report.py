# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Outcome, summary, Markdown, files and schema."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from ansible.module_utils.cabalmail import report, report_files
from ansible.module_utils.cabalmail.inert import code, fenced, inert, markdown
from hypothesis import given
from hypothesis import strategies as st

from .sample import END, START, finding, tier_log, triage, unavailable

REPO = Path(__file__).resolve().parents[3]
SCHEMA = REPO / "data" / "schema" / "triage-1.json"
TEMPLATE = REPO / "roles" / "report" / "templates" / "triage.md.j2"
HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07`rm -rf`|<script>alert(1)</script>\n# heading\n\u202egnp.exe [x](http://evil) **b** @all"
)


def plugin() -> ModuleType:
    """The action plugin as a module."""
    spec = importlib.util.spec_from_file_location("triage_report", REPO / "plugins" / "action" / "triage_report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


action = plugin()


def texts(fact: dict[str, Any], error: str | None = None) -> list[str]:
    """The terminal summary."""
    return [line.text for line in report.summary(fact, report.outcome(fact, error), "reports/prod/latest/triage.md")]


@pytest.mark.parametrize(
    ("fact", "status"),
    [
        (triage(finding()), "finding"),
        (triage(finding(severity="warning")), "finding"),
        (triage(finding("none.below_threshold", "info")), "ok"),
        (triage(finding("none.ended", "info")), "ok"),
        (triage(finding("none.below_threshold", "info"), tiers=unavailable("denied")), "incomplete"),
        (triage(finding("inconclusive", "warning")), "incomplete"),
        (triage(finding("coverage.unavailable", "warning")), "incomplete"),
        (triage(finding("coverage.blind_tier", "warning"), finding("imap.missing_user", "warning")), "finding"),
        (triage(), "incomplete"),
    ],
)
def test_outcome_tells_a_finding_from_a_broken_run(fact: dict[str, Any], status: str) -> None:
    outcome = report.outcome(fact, None)
    assert outcome["status"] == status
    assert (outcome["error"] is not None) == (status == "error")


def test_a_broken_run_keeps_its_verdict() -> None:
    outcome = report.outcome(triage(finding()), "it broke")
    assert (outcome["status"], outcome["error"], outcome["verdict"]) == ("error", "it broke", "smtp_out.provider_block")


def test_fail_on_counts_what_is_as_severe_or_more() -> None:
    fact = triage(finding(severity="warning"), finding("none.ended", "info"))
    assert report.standing(fact, "critical") == []
    assert report.standing(fact, "warning") == ["smtp_out.provider_block"]
    assert report.standing(fact, "info") == ["smtp_out.provider_block", "none.ended"]


@pytest.mark.parametrize(
    "coverage", [{"blind": True}, {"status": "unavailable", "reasons": ["AccessDeniedException"], "blind": None}]
)
def test_a_tier_that_was_not_seen_has_no_numbers(coverage: dict[str, Any]) -> None:
    log = tier_log("smtp-in", **coverage)
    fact = triage(finding(), tiers={"status": "partial", "reasons": ["smtp-in"], "by_tier": {"smtp-in": log}})
    row = next(line for line in texts(fact) if line.startswith("smtp-in"))
    assert re.findall(r"\d", row) == []
    assert row.count("?") == 7


def test_a_tier_whose_container_says_level_2_has_no_numbers() -> None:
    """Nothing passed, so the log alone shows nothing; 0 would be a false all-clear."""
    fact = triage()
    fact["tiers"]["by_tier"] = {"smtp-out": tier_log("smtp-out", blind=None)}
    fact["containers"] = {"status": "complete", "reasons": [], "tasks": [], "unreachable": []}
    fact["containers"]["tasks"] = [{"tier": "smtp-out", "task": "c" * 32, "log_level": 2}]
    [row] = report.tier_rows(fact)
    assert (row.coverage, row.lines, row.sent) == ("blind", None, None)
    assert any("smtp-out does not log deliveries" in said for said in report.unchecked(fact))
    fact["containers"]["tasks"][0]["log_level"] = 9
    assert report.tier_rows(fact)[0].lines == 0


def test_what_could_not_be_checked_is_said() -> None:
    fact = triage(
        finding(),
        containers=unavailable("ECS Exec is disabled."),
        deliverability=unavailable("skipped"),
        tiers={**triage()["tiers"], "by_tier": {"imap": tier_log("imap", blind=True)}},
    )
    said = report.unchecked(fact)
    assert said == [
        "mail logs: imap does not log deliveries at its LogLevel: its counts are unknown, not zero",
        "inside the containers: ECS Exec is disabled.",
        "deliverability: skipped",
    ]
    lines = texts(fact)
    assert "Not checked: inside the containers: ECS Exec is disabled." in lines
    assert "Skipped: deliverability" in lines


def worst() -> dict[str, Any]:
    """A fact in which everything is long, hostile and missing."""
    rows = [finding(f"smtp_out.x{'y' * number}") for number in range(12)]
    rows[0].update(
        summary=HOSTILE * 20,
        confidence_reason=HOSTILE * 20,
        next_actions=[{"text": HOSTILE * 9, "command": "aws x " + "y" * 300}] * 9,
    )
    logs = {f"tier-{number}-{HOSTILE}": tier_log("x", 10**9) for number in range(4)}
    bad = {"status": "partial", "reasons": [HOSTILE * 5] * 9}
    sections = {name: {**triage()[name], **bad} for name in report.STEPS if name != "tiers"}
    return triage(*rows, tiers={**bad, "by_tier": logs}, **sections)


def test_the_summary_fits_the_screen_whatever_it_says() -> None:
    lines = report.summary(worst(), report.outcome(worst(), "broken " * 99), "r/triage.md")
    assert all(len(line.text) <= report.WIDTH for line in lines if not line.text.startswith("   $ "))
    assert all(line.text.isprintable() for line in lines)
    assert lines[-1].text == "Report: r/triage.md"


@pytest.mark.parametrize("actions", range(1, 8))
@pytest.mark.parametrize("missing", range(8))
def test_an_ordinary_summary_has_at_most_its_height(actions: int, missing: int) -> None:
    step = {
        "text": "Do a thing that takes about one line and a half to tell, because it is so. " * 2,
        "command": "aws x",
    }
    sections = {
        name: {**triage()[name], "status": "partial", "reasons": ["it was denied"]}
        for name in list(report.STEPS)[:missing]
    }
    fact = triage(
        finding(summary="A sentence of some length. " * 6, next_actions=[step] * actions), finding(), **sections
    )
    assert len(texts(fact)) <= report.HEIGHT


def test_the_first_instruction_is_always_whole() -> None:
    command = "aws ecs execute-command " + "x" * 200
    lines = texts(triage(finding(next_actions=[{"text": "Do it.", "command": command}] * 9)))
    assert f"   $ {command}" in lines


def test_the_other_findings_are_said_with_their_tier() -> None:
    rest = [finding("imap.missing_user", tier="imap"), finding("coverage.unavailable", tier=None)]
    assert "Also: imap.missing_user (imap), coverage.unavailable" in texts(triage(finding(), *rest))


def test_each_step_that_was_not_checked_keeps_its_reason() -> None:
    names = ["containers", "deliverability", "address_map", "local_delivery"]
    fact = triage(finding(), **{name: unavailable(f"{name} was denied") for name in names})
    said = [line for line in texts(fact) if line.startswith("Not checked: ")]
    assert said == [
        "Not checked: inside the containers: containers was denied",
        "Not checked: deliverability: deliverability was denied",
        "Not checked: address maps (and 1 more step): address_map was denied",
    ]


def test_how_many_actions_were_cut_is_said() -> None:
    lines = texts(triage(finding(next_actions=[{"text": "Do it.", "command": "aws x"}] * 9)))
    shown = sum(re.match(r"\d\. Do it", line) is not None for line in lines)
    assert 1 < shown < 9
    assert f"   ({9 - shown} more in the report)" in lines
    assert len(lines) <= report.HEIGHT
    assert not any("more in the report" in line for line in texts(triage(finding())))


def test_judgement_that_was_skipped_reads_otherwise_than_one_that_found_nothing() -> None:
    fact = triage()
    assert "NO VERDICT: judgement found nothing" in texts(fact)
    lines = report.summary(fact, report.outcome(fact, None), "r/triage.md", judged=False)
    assert "NO VERDICT: judgement was skipped" in [line.text for line in lines]


def test_hostile_text_is_inert_in_markdown() -> None:
    fact = worst()
    log = tier_log("smtp-out", 40)
    log["bounces"]["replies"] = [{"text": HOSTILE, "reason": "policy", "recipients": 40}]
    log["bounces"]["samples"] = [{"time": None, "task": "x", "line": "```\n" + HOSTILE}]
    fact["tiers"]["by_tier"]["smtp-out"] = log
    text = action.render(fact, report.outcome(fact, None), TEMPLATE)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]", text)
    outside = re.sub(r"(?ms)^ *(`{3,})\n.*?^ *\1$", "", text)
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", outside)
    assert "\n# heading" not in outside
    assert not re.search(r"(?<!\\)<script", outside)
    assert not re.search(r"(?<!\\)\]\(http", outside)


def test_markdown_of_a_run_that_saw_nothing() -> None:
    sections = {name: unavailable("skipped") for name in report.STEPS}
    fact = triage(**sections)
    text = action.render(fact, report.outcome(fact, "the table is wrong"), TEMPLATE)
    assert "# No verdict in prod" in text
    assert "the table is wrong" in text
    assert "No tier's log was read." in text


@given(st.text())
def test_inert_text_is_one_printable_line(text: str) -> None:
    for made in (inert(text), markdown(text), code(text)):
        assert made == "" or made.isprintable()
    assert all(line.isprintable() for line in fenced(text).splitlines())


@given(st.text(alphabet="`|ab \n"))
def test_a_code_span_can_not_be_left(text: str) -> None:
    made = code(text)
    if made:
        fence = re.match(r"`+", made).group()
        inside = made[len(fence) : -len(fence)]
        assert fence not in re.findall(r"`+", inside)
        assert not re.search(r"(?<!\\)\|", made)


def test_the_sample_fits_the_schema() -> None:
    assert action.schema_faults(triage(finding()), SCHEMA) == []
    assert action.schema_faults(triage(), SCHEMA) == []
    empty = {name: unavailable("skipped") for name in report.STEPS}
    assert action.schema_faults(triage(**empty), SCHEMA) == []


BREAKS = {
    "version": (("schema_version",), 2),
    "no alert": (("alert",), None),
    "unknown status": (("tiers", "status"), "fine"),
    "complete with reasons": (("tiers", "reasons"), ["why"]),
    "unavailable without a reason": (("containers",), {"status": "unavailable", "reasons": []}),
    "partial without a reason": (("containers", "status"), "partial"),
    "section without its members": (("address_map",), {"status": "complete", "reasons": []}),
    "time without zone": (("run", "started"), "2026-11-24T22:00:00"),
    "negative count": (("tiers", "by_tier", "imap", "bounces", "lines"), -1),
    "count as text": (("tiers", "by_tier", "imap", "bounces", "lines"), "3"),
    "no next action": (("findings", 0, "next_actions"), []),
    "severity": (("verdict", "severity"), "bad"),
    "fingerprint": (("verdict", "fingerprint"), "x"),
    "evidence that is no pointer": (("verdict", "evidence"), ["tiers"]),
    "remedy": (("verdict", "remedy"), {"kind": "reboot", "service": "x", "tasks": []}),
    "more in a finding": (("verdict", "extra"), 1),
    "more at the top": (("extra",), 1),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_breaks_the_schema_is_named(name: str) -> None:
    path, value = BREAKS[name]
    fact = copy.deepcopy(triage(finding()))
    place: Any = fact
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    faults = action.schema_faults(fact, SCHEMA)
    assert faults
    assert all(fault.startswith("/") and fault.isprintable() for fault in faults)


def test_files_and_latest(tmp_path: Path) -> None:
    first, second = (report_files.place(tmp_path, "prod", name) for name in ("1", "2"))
    report_files.write(first, {"triage.md": "one"}, {"index.html": "of one"})
    report_files.write(second, {"triage.md": "two"}, {"index.html": "of both"})
    assert (first / "triage.md").read_text() == "one"
    assert (tmp_path / "prod" / "latest").resolve() == second
    assert sorted(entry.name for entry in (tmp_path / "prod").iterdir()) == ["1", "2", "index.html", "latest"]
    assert (tmp_path / "prod" / "index.html").read_text() == "of both"


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "", ".", "a/b", "\0"])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    place = report_files.place(folder, name, name)
    report_files.write(place, {"x": ""}, {})
    assert folder in place.resolve().parents


def test_folder_given_by_hand(tmp_path: Path) -> None:
    assert report_files.choose_folder(str(tmp_path / "a" / "b"), {}) == tmp_path / "a" / "b"
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        report_files.choose_folder(str(tmp_path / "file" / "x"), {})


def test_folder_falls_back_to_the_runner_and_then_to_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report_files.choose_folder("", {}) == tmp_path / "reports"
    os.rmdir(tmp_path / "reports")
    (tmp_path / "reports").touch()  # root may write to a read-only folder, but not into a file
    runner = {"AWX_ISOLATED_DATA_DIR": str(tmp_path / "artifacts")}
    assert report_files.choose_folder("", runner) == tmp_path / "artifacts" / "reports"
    temporary = report_files.choose_folder("", {})
    assert temporary.name.startswith("cabalmail-reports-")
    temporary.rmdir()


def test_plain_takes_ansibles_types_off() -> None:
    class Tagged(str):
        """What Ansible's own strings look like to JSON."""

    made = action.plain({Tagged("a"): (Tagged("b"), 1, None)})
    assert json.dumps(made) == '{"a": ["b", 1, null]}'
    assert type(made["a"][0]) is str


def change(**members: Any) -> dict[str, Any]:
    """What is known of the course of a spike."""
    return {
        "state": "ongoing",
        "onset": "2026-11-24T21:37:00Z",
        "ended": None,
        "before": {"lines": 3, "minutes": 25.0, "per_minute": 0.12},
        "since": {"lines": 48, "minutes": 23.0, "per_minute": 2.09},
        "condition": {
            "lines": 15,
            "minutes": 30,
            "hold_minutes": 15,
            "state": "holds",
            "now": True,
            "when_fired": None,
            "from": "2026-11-24T21:59:00Z",
            "until": None,
        },
        "deployed_rule": {"increase_now": 4, "increase_when_fired": None, "over_now": False, "over_when_fired": None},
        **members,
    }


def with_course(**members: Any) -> dict[str, Any]:
    fact = triage(finding())
    fact["tiers"]["change"] = change(**members)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(fact)
    return fact


def test_the_summary_tells_since_when_and_whether_it_goes_on() -> None:
    said = report.course(with_course())
    assert said == "Since 21:37 UTC, going on: 2.09 lines/min, 0.12 before; the runbook's condition holds"
    assert said[:70] in " ".join(texts(with_course()))
    ended = with_course(state="ended", ended="2026-11-24T21:41:00Z")
    assert report.course(ended).startswith("From 21:37 to 21:41 UTC: ")
    assert report.course(with_course(state="none", onset=None, before=None, since=None)) == ""


@pytest.mark.parametrize(
    ("peak", "source", "said"),
    [
        (21, "payload", "21 in 30 m are over the runbook's 15, but for less than 15 m (the page's own rule"),
        (21, "none", "21 in 30 m are over the runbook's 15, but for less than 15 m"),
        (9, "payload", "at most 9 in 30 m, the runbook's condition is over 15 (the page's own rule"),
    ],
)
def test_a_spike_without_onset_never_reads_as_a_false_alarm(peak: int, source: str, said: str) -> None:
    fact = with_course(state="steady", onset=None, before=None, since=None)
    fact["tiers"]["change"]["condition"].update(state="not_met", now=False)
    fact["tiers"]["peak"] = {"lines": peak}
    fact["alert"]["source"] = source
    end = " counts otherwise)" if source == "payload" else ""
    assert report.course(fact) == f"No sharp onset: it came evenly over the window; {said}{end}"


def test_the_day_before_stands_beside_or_is_said_to_be_unknown() -> None:
    fact = with_course()
    day = {
        "status": "complete", "reasons": [], "source": "metric", "start": START, "end": END, "lines": 4,
        "busiest": {"lines": 3, "minutes": 30, "start": START}, "scanned_bytes": None,
    }  # fmt: skip
    fact["tiers"]["day_before"] = day
    assert report.course(fact).endswith("; the 24 h before: 4 lines, at most 3 in 30 m")
    assert any("4 lines by CloudWatch's metric; the busiest 30 minutes" in line for line in report.course_lines(fact))
    day.update(source="insights", scanned_bytes=2_500_000)
    assert any("a Logs Insights query (2.5 MB scanned)" in line for line in report.course_lines(fact))
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(fact)
    day.update(status="unavailable", reasons=["Access was denied."], source=None, lines=None, busiest=None)
    assert report.course(fact).endswith("; the 24 h before are not known")
    assert "The 24 hours before are not known. Access was denied." in report.course_lines(fact)


def test_the_report_tells_the_condition_apart_from_what_the_deployed_rule_sees() -> None:
    text = action.render(with_course(), {"error": None, "unchecked": []}, TEMPLATE)
    assert (
        "It began at 2026-11-24T21:37:00Z and is still going on: 48 lines in 23 minutes (2.09 a minute); 0.12" in text
    )
    assert "(more than 15 lines in 30 minutes, 15 minutes long), counted in lines, holds now" in text
    assert "makes of the same lines 4 now, and at release 1.3.5" in text
    unknown = with_course(condition={**change()["condition"], "state": "unknown", "now": None})
    assert "can't be told: the window begins too late" in action.render(
        unknown, {"error": None, "unchecked": []}, TEMPLATE
    )


def test_the_other_alert_has_its_own_columns_codes_and_reasons() -> None:
    fact = triage(finding("deferred.greylisting", "warning"))
    fact["alert"].update(
        name="SendmailDeferredSpike",
        threshold={"pattern": "stat=Deferred", "lines": 10, "minutes": 10, "hold_minutes": 15},
    )
    part = fact["tiers"]["by_tier"]["smtp-out"]["deferrals"]
    row = {"reason": "greylisted", "fault": "remote", "recipients": 9, "messages": 9, "lines": 12, "tells": True}
    part.update(
        lines=12,
        recipients=9,
        messages=9,
        codes=[{"code": "4.7.1", "lines": 12, "text": "refused for now"}],
        reasons=[{**row, "domains": 8}],
        replies=[{"text": "450 greylisted", "reason": "greylisted", "recipients": 9}],
    )
    fact["tiers"]["by_tier"]["smtp-out"]["expired"] = {
        "messages": 2,
        "recipients": 2,
        "causes": [{"cause": "mailbox_full", "fault": "recipient", "recipients": 2}],
    }
    lines = texts(fact)
    assert "Codes: 4.7.1 x12 refused for now" in lines
    assert any(line.startswith("tier") and "peak/10m" in line and line.endswith("bounced  log") for line in lines)
    text = action.render(fact, report.outcome(fact, None), TEMPLATE)
    assert "| greylisted | remote | 9 | 8 |" in text
    assert "- 9 x `450 greylisted`" in text
    assert re.search(r"given up after days in the queue: 2, last attempt: mailbox\\?_full", text)


def test_the_report_shows_what_the_world_sees_of_our_domains_and_addresses() -> None:
    ok = {"status": "ok", "problem": None}
    missing = {"status": "missing", "problem": "no TXT record | " + HOSTILE}
    fact = triage(finding())
    fact["deliverability"].update(
        domains=[{"domain": "cabal.example", "spf": ok, "dkim": missing, "dmarc": None}],
        addresses=[{"ip": "198.51.100.125", "status": "ok", "ptr": ["smtp.cabal.example"], "problem": None}],
        dmarc={
            "status": "complete",
            "reasons": [],
            "rows": 3,
            "period": {"start": "2026-11-17T22:00:00Z", "end": "2026-11-24T22:00:00Z"},
            "ours": {"messages": 40, "pass": 30, "fail": 10},
            "strangers": {"messages": 5, "pass": 0, "fail": 5},
            "fail_share": 0.25,
            "before": {"fail_share": 0.05},
            "age_hours": 31,
        },
        blocklists={
            "results": [
                {"target": "198.51.100.125", "kind": "ip", "list": "Some", "status": "listed"},
                {"target": "198.51.100.125", "kind": "ip", "list": "Other", "status": "not_listed"},
                {"target": "198.51.100.125", "kind": "ip", "list": "Silent", "status": "unavailable"},
                {"target": "cabal.example", "kind": "domain", "list": "Domains", "status": "listed"},
            ]
        },
    )
    text = action.render(fact, report.outcome(fact, None), TEMPLATE)
    row = next(line for line in text.splitlines() if line.startswith("| cabal.example"))
    assert row.startswith("| cabal.example | ok | missing: no TXT record \\| ")
    assert row.endswith(" | ? |")
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert "\x1b" not in row
    assert "<script" not in row.replace("\\<script", "")
    assert "| 198.51.100.125 | ? | ok: smtp.cabal.example | Some (of 2 that answered) |" in text
    assert "- cabal.example is on Domains (of 1 that answered)." in text
    assert "25 % of ours failed, 5 % in the period before; the newest is 31 hours old." in text
    assert (
        "DMARC reports of 2026-11-17 to 2026-11-24: from our addresses 40 messages, 10 of them failed; from others 5"
        in text
    )


@pytest.mark.parametrize(
    ("dmarc", "line"),
    [
        ({"status": "unavailable", "reasons": ["DMARC reports: denied."]}, "DMARC reports: denied."),
        ({"status": "complete", "rows": 0, "period": None}, "DMARC reports: none."),
        ({"status": "partial", "rows": 2, "ours": None}, "own and foreign mail cannot be told apart."),
    ],
)
def test_dmarc_reports_that_say_nothing(dmarc: dict[str, Any], line: str) -> None:
    fact = triage(finding())
    fact["deliverability"]["dmarc"] = dmarc
    assert report.dmarc_line(fact).endswith(line)
    assert "## Deliverability" not in action.render(triage(finding()), {"error": None, "unchecked": []}, TEMPLATE)


def test_clear_addresses_are_those_of_the_private_file_and_few(tmp_path: Path) -> None:
    assert report_files.clear_addresses("") is None
    assert report_files.clear_addresses(str(tmp_path)) == []
    rows = [{"address": f"jane{number // 2}@x.example"} for number in range(100)]
    (tmp_path / "failed_recipients.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clear = report_files.clear_addresses(str(tmp_path))
    assert clear == [f"jane{number}@x.example" for number in range(20)]
    fact = triage(finding())
    text = action.render(fact, report.outcome(fact, None), TEMPLATE, [*clear, "`x`\x1b[2J@x.example"])
    assert "- `jane0@x.example`" in text
    assert "\x1b" not in text
    assert "in clear" not in action.render(fact, report.outcome(fact, None), TEMPLATE)


CHANGES = [
    {"time": "2026-11-20T00:00:00Z", "tier": "imap", "kind": "revision", "what": "long before"},
    {"time": "2026-11-24T20:50:00Z", "tier": "smtp-in", "kind": "deployment", "what": "deployment of x:7 began | `x`"},
    {"time": "2026-11-24T21:40:00Z", "tier": None, "kind": "parameter", "what": "after it"},
]


@pytest.mark.parametrize(
    ("onset", "mark", "distance"),
    [("2026-11-24T21:30:00Z", "onset of the spike", "40 min before"), (None, "window begins", "10 min before")],
)
def test_what_changed_stands_around_the_onset(onset: str | None, mark: str, distance: str) -> None:
    fact = triage(finding())
    fact["environment"] = {**fact["environment"], "changes": CHANGES}
    fact["alert"]["window"]["start"] = "2026-11-24T21:00:00Z"
    fact["tiers"]["change"] = {**(fact["tiers"].get("change") or {}), "onset": onset}
    rows = report.change_rows(fact)
    assert [row[3] for row in rows] == ["deployment of x:7 began | `x`", mark, "after it"]
    assert (rows[0][1], rows[1][1]) == (distance, "-")


def test_without_changes_or_a_window_nothing_is_said_of_them() -> None:
    fact = triage(finding())
    fact["environment"] = unavailable("denied")
    assert report.change_rows(fact) == []
    fact["environment"] = {"changes": CHANGES}
    fact["alert"]["window"] = None
    fact["tiers"]["change"] = None
    assert report.change_rows(fact) == []


def test_the_loops_of_all_tasks() -> None:
    fact = triage(finding())
    row = {"tier": "imap", "task": "a" * 32, "state": "hung", "last_done": None, "why": "stopped"}
    fact["reconfigure_loop"] = {
        "tasks": [row, {**row, "last_done": "2026-11-24T21:40:00Z", "longest_pass_seconds": 3.0}]
    }
    assert [cells[3:5] for cells in report.loop_rows(fact)] == [["none seen", "?"], ["2026-11-24T21:40:00Z", "3 s"]]
    fact["reconfigure_loop"] = unavailable("skipped")
    assert report.loop_rows(fact) == []


def test_a_page_about_the_loops_tells_no_rate_of_lines() -> None:
    fact = triage(finding("reconfigure.dead"))
    fact["alert"]["name"] = "heartbeat-ecs-reconfigure"
    assert report.course(fact) == ""
    assert report.course_lines(fact) == []
