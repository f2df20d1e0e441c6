# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""report.html: what it says, that it is self-contained and small, and how a browser shows it."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.cabalmail import chart, history, page, rendering, report
from hypothesis import given
from hypothesis import strategies as st

from tests.browser import NONE_HERE, Chromium

from .sample import END, START, complete, finding, tier_log, triage, unavailable

REPO = Path(__file__).resolve().parents[3]
TEMPLATES = REPO / "roles" / "report" / "templates"
HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>"
    '"><style>*{display:none}</style>\n# heading\n\u202egnp.exe\u2067 [x](http://evil.example) **b** @all {{ 7 * 7 }} '
)


class Elements(HTMLParser):
    """Names and attributes of a page's elements."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs


def outcome(fact: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {**report.outcome(fact, None), "seen_before": [], "notifications": [], **members}


def html(fact: dict[str, Any], **members: Any) -> str:
    return rendering.report_page(fact, outcome(fact, **members), TEMPLATES)


def elements(text: str) -> Elements:
    found = Elements()
    found.feed(text)
    return found


def busy(text: str = "blocklist") -> dict[str, Any]:
    """A fact in which every section of the page has something to show, with ``text`` wherever a stranger may write."""
    fact = triage(finding(summary=text, found=text, confidence_reason=text), finding("reconfigure.dead", "warning"))
    log = fact["tiers"]["by_tier"]["smtp-out"]
    log["timeline"] = [
        {
            "minute": f"2026-11-24T21:{minute}:00Z",
            "bounced_lines": 3,
            "bounced_recipients": 3,
            "reasons": {"blocklist": 2, "rate_limited": 1},
            "unseen": 1,
            "sent": 1,
            "deferred": 0,
            "rejected": 0,
        }
        for minute in range(20, 50)
    ]
    log["bounces"]["reasons"] = [
        {"reason": "blocklist", "fault": "us", "recipients": 60, "messages": 60, "lines": 60, "tells": True}
    ]
    log["bounces"]["replies"] = [
        {"text": text, "reason": "blocklist", "provider": text, "recipients": 60, "code": "5.7.1"}
    ]
    log["bounces"]["samples"] = [{"time": START, "task": "t" * 32, "line": text}]
    log["bounces"]["providers"] = [
        {
            "provider": text,
            "recipients": 60,
            "messages": 60,
            "attempts": 80,
            "sent": 20,
            "share_of_bounces": 0.75,
            "share_of_attempts": None,
        }
    ]
    fact["environment"]["changes"] = [
        {"time": "2026-11-24T21:15:00Z", "tier": "smtp-in", "kind": "deployment", "what": text},
        {"time": "2026-11-24T20:00:00Z", "tier": None, "kind": "parameter", "what": "ping address"},
    ]
    fact["environment"]["dmarc"] = complete(
        sources=[
            {
                "ip": "192.0.2.1",
                "ours": False,
                "messages": 9,
                "fail": 8,
                "domains": [{"domain": text, "fail": 8, "pass": 1}],
            }
        ]
    )
    fact["containers"]["tasks"] = [
        complete(tier="smtp-in", task="0f" * 16, outcome="completed", started_at=START, sendmail_running=False),
        {"tier": "imap", "task": "1f" * 16, "outcome": "unreachable", **unavailable(text)},
    ]
    fact["reconfigure_loop"] = complete(
        tasks=[
            {
                "tier": "smtp-in",
                "task": "0f" * 16,
                "state": "dead",
                "why": text,
                "map_age_seconds": 600,
                "last_done": START,
            }
        ],
        by_state={},
    )
    fact["deliverability"] |= {
        "domains": [{"domain": text, "spf": {"status": "broken", "problem": text}, "dkim": None, "dmarc": None}],
        "addresses": [{"ip": "198.51.100.125", "status": "ok", "ptr": [text]}],
        "blocklists": complete(
            lists=[{"zone": "bl.example", "name": "The List"}],
            results=[
                {
                    "target": "198.51.100.125",
                    "kind": "ip",
                    "list": "The List",
                    "zone": "bl.example",
                    "status": "listed",
                    "says": text,
                }
            ],
        ),
    }
    fact["remediation"] = complete(
        requested=True,
        outcome="recovered",
        finding="reconfigure.dead",
        plan={"text": text, "kind": "restart_task"},
        gates=[
            {"name": "quiesced", "passed": True, "value": text},
            {"name": "low_confidence", "passed": None, "value": "?"},
        ],
        stopped_by=[],
        before={"at": START, "tasks": [{"task": "0f", "loop": "dead"}]},
        after={"at": END, "tasks": [{"task": "1f", "loop": "healthy"}]},
    )
    return fact


def test_the_first_words_are_verdict_confidence_action_and_what_was_not_checked() -> None:
    fact = triage(finding(next_actions=[{"text": "Ask them.", "command": "aws  sts get-caller-identity"}]))
    fact["containers"] = unavailable("denied")
    text = re.sub(r"<[^>]+>", " ", html(fact).partition("<main>")[2])
    wanted = [
        "CRITICAL",
        "smtp_out.provider_block",
        "One provider refuses",
        "Confidence high",
        "Ask them.",
        "denied",
        "When",
    ]
    places = [text.index(word) for word in wanted]
    assert places == sorted(places)


def test_every_section_is_there_and_each_figure_names_its_evidence() -> None:
    text = html(busy())
    for heading in (
        "What to do now",
        "When",
        "Where",
        "Why",
        "Task by task",
        "DNS, blocklists and DMARC",
        "Remediation",
    ):
        assert f"<h2>{heading}</h2>" in text
    for pointer in (
        "/tiers/by_tier",
        "/tiers/change",
        "/environment/changes",
        "/reconfigure_loop/tasks",
        "/remediation",
    ):
        assert f'href="triage.json#{pointer}"' in text
    assert "The List" in text
    assert "1 blocklists were asked 1 questions: 1 listed." in text
    assert re.search(r"<th scope=\"row\">tasks 1, loop</th><td[^>]*>dead</td><td[^>]*>healthy</td>", text)


def test_what_is_absent_is_left_out_and_not_shown_as_fine() -> None:
    fact = triage(
        finding("coverage.unavailable", "warning"), tiers=unavailable("denied"), containers=unavailable("off")
    )
    text = html(fact)
    assert "log was read." in text
    assert "<svg" not in text
    assert "Task by task" not in text
    assert "mail logs: denied" in text


def test_a_run_without_a_verdict_has_a_page() -> None:
    fact = triage()
    text = rendering.report_page(fact, {**outcome(fact), "error": "the table is broken"}, TEMPLATES)
    assert "NO VERDICT" in text
    assert "the table is broken" in text


def test_hostile_text_is_inert_and_the_page_stays_small() -> None:
    text = html(busy(HOSTILE * 40))
    found = elements(text)
    assert {"script", "img", "iframe", "object", "form"}.isdisjoint(found.names)
    assert found.names.count("style") == 1
    loaded = [
        value for name, value in found.attributes if name in ("src", "srcset", "action", "style") or name[:2] == "on"
    ]
    assert loaded == []
    links = [str(value) for name, value in found.attributes if name == "href"]
    assert all(link.startswith(("triage.", "../index.html", "#")) for link in links)
    assert not set("\x1b\x07\u202e\u2067") & set(text)
    assert "{{ 7 * 7 }}" in text
    assert len(text.encode()) < 300_000


def test_the_page_is_small_whatever_a_run_saw() -> None:
    fact = busy("x" * 10_000)
    for name, part in (("containers", "tasks"), ("reconfigure_loop", "tasks")):
        fact[name][part] *= 300
    fact["environment"]["changes"] *= 100
    fact["findings"] *= 50
    fact["deliverability"]["domains"] *= 500
    fact["tiers"]["by_tier"]["smtp-out"]["bounces"]["providers"] *= 100
    assert len(html(fact).encode()) < 300_000


@pytest.mark.parametrize("fact", [triage(), triage(finding()), busy(), busy(HOSTILE * 40), busy("x" * 10_000)])
def test_a_browser_shows_the_page(fact: dict[str, Any], chromium: Chromium | None, tmp_path: Path) -> None:
    if chromium is None:
        pytest.skip(NONE_HERE)
    path = tmp_path / "report.html"
    path.write_text(html(fact), encoding="utf-8")
    assert chromium.faults(path) == []


def test_the_browser_keeps_its_event_loop_to_itself(chromium: Chromium | None) -> None:
    if chromium is None:
        pytest.skip(NONE_HERE)
    asyncio.run(asyncio.sleep(0))


def test_a_page_that_is_wrong_is_found_out(chromium: Chromium | None, tmp_path: Path) -> None:
    if chromium is None:
        pytest.skip(NONE_HERE)
    path = tmp_path / "report.html"
    path.write_text(
        "<!DOCTYPE html><title>x</title><p style='width:3000px;color:#ccc;background:#fff'>pale</p>"
        "<img src='http://127.0.0.1:9/x'><script>console.error('oh')</script>",
        encoding="utf-8",
    )
    said = "\n".join(chromium.faults(path))
    for part in (
        "request: http://127.0.0.1:9/x",
        "console: oh",
        "overflows",
        "axe color-contrast",
        "axe html-has-lang",
    ):
        assert part in said


# -- the timeline ------------------------------------------------------------------------------------------------------


def moment(minute: int) -> datetime:
    return datetime(2026, 11, 24, 21, 0, tzinfo=UTC) + timedelta(minutes=minute)


@given(st.dictionaries(st.integers(0, 90), st.integers(0, 50), max_size=40), st.integers(1, 60))
def test_the_sliding_count_is_what_counting_by_hand_gives(lines: dict[int, int], minutes: int) -> None:
    counted = {moment(minute): count for minute, count in lines.items()}
    for when, count in chart.sliding(counted, moment(0), moment(90), minutes):
        by_hand = sum(
            number for minute, number in lines.items() if when - timedelta(minutes=minutes) <= moment(minute) < when
        )
        assert count == by_hand


def test_the_timeline_stacks_reasons_and_keeps_the_total() -> None:
    series = chart.series(busy(), [], False)
    assert series is not None
    assert dict(series.reasons) == {"blocklist": 60, "rate_limited": 30, chart.UNSEEN: 30}
    panel = chart.layout(series, 900).panels[0]
    assert panel.ceiling == 4
    first = [bar for bar in panel.bars if bar.x == panel.bars[0].x]
    assert sum(bar.height for bar in first) == pytest.approx(panel.height)
    assert len({bar.colour for bar in first}) == 3


def test_more_reasons_than_colours_are_one() -> None:
    fact = busy()
    row = fact["tiers"]["by_tier"]["smtp-out"]["timeline"][0]
    row["reasons"] = {f"reason{number}": 10 for number in range(20)}
    row["bounced_recipients"] = 200
    series = chart.series(fact, [], False)
    assert series is not None
    assert len(series.reasons) == chart.MOST_REASONS + 1
    assert sum(count for _reason, count in series.reasons) == 200 + 87 + 30
    assert series.colour("reason19") == chart.MOST_REASONS


@pytest.mark.parametrize("fact", [triage(tiers=unavailable("denied")), triage(alert=unavailable("broken"))])
def test_without_a_log_or_a_window_there_is_no_timeline(fact: dict[str, Any]) -> None:
    assert chart.series(fact, [], False) is None


@pytest.mark.parametrize("width", [page.NARROW, page.WIDE])
def test_every_mark_of_the_timeline_lies_within_the_picture(width: int) -> None:
    fact = busy()
    fact["alert"]["window"]["fired_at"] = END
    fact["tiers"]["change"] = {
        "onset": "2026-11-24T21:20:00Z",
        "ended": None,
        "deployed_rule": {"increase_now": 400.5, "increase_when_fired": 0},
    }
    series = chart.series(fact, [{"time": START}, {"time": "2026-11-24T21:12:30Z"}, {"time": END}], False)
    assert series is not None
    found = chart.layout(series, width)
    assert [mark.label for mark in found.events] == ["1-2", "3"]
    assert [mark.label for mark in found.moments] == ["onset", "page"]
    across = [mark.x for mark in (*found.ticks, *found.events, *found.moments)]
    across += [bar.x for panel in found.panels for bar in panel.bars]
    assert all(0 <= x <= width for x in across)
    down = [bar.y for panel in found.panels for bar in panel.bars] + [
        dot.y for panel in found.panels for dot in panel.dots
    ]
    assert all(0 <= y <= found.height for y in down)
    assert len(found.panels[-1].dots) == 2


@pytest.mark.parametrize("hours", [1.5, 24, 24 * 14])
def test_the_curve_of_a_long_window_is_not_cut(hours: float) -> None:
    """A page about the heartbeat looks back for 90 minutes: its curve is longer than any text of the page may be."""
    fact = busy()
    fact["alert"]["window"] |= {"start": (datetime.fromisoformat(END) - timedelta(hours=hours)).isoformat()}
    curves = [value for name, value in elements(html(fact)).attributes if name == "points"]
    assert curves
    for curve in curves:
        points = (curve or "").split(" ")
        assert len(points) > 80
        assert all(re.fullmatch(r"[0-9.]+,[0-9.]+", point) for point in points)


def test_a_window_of_days_has_no_more_bars_than_dots() -> None:
    fact = busy()
    fact["alert"]["window"] |= {"start": "2026-11-20T21:12:00Z", "minutes": 5808.0}
    series = chart.series(fact, [], False)
    assert series is not None
    panel = chart.layout(series, 900).panels[0]
    assert len({bar.x for bar in panel.bars}) <= chart.MOST_BARS
    assert 2 <= len(chart.layout(series, 340).ticks) <= 6


# -- over time ---------------------------------------------------------------------------------------------------------


def run(identity: str, *findings: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"page": True, **outcome(triage(*findings)), **members, "run": identity}


def test_a_finding_seen_before_says_since_when_what_was_done_and_whether_it_helped() -> None:
    block, other = finding(), finding("reconfigure.dead", "warning", fingerprint="cd" * 32)
    runs = [
        run("20261123T100000Z-aa", other),
        run("20261122T100000Z-aa", block, remediation={"outcome": "not_recovered"}),
        run("20261121T100000Z-aa", block),
    ]
    seen = history.seen_before(outcome(triage(block)), runs)
    assert [(row["id"], row["runs"], row["since"], row["last"]) for row in seen] == [
        ("smtp_out.provider_block", 2, "2026-11-21 10:00", "20261122T100000Z-aa")
    ]
    assert "ended as: not recovered" in seen[0]["done"]
    assert "absent in the 1 runs since" in seen[0]["done"]
    text = html(triage(block), seen_before=seen)
    assert '<a href="../20261121T100000Z-aa/report.html">' in text


def test_what_is_new_and_what_is_fine_was_not_seen_before() -> None:
    fine = finding("none.below_threshold", "info")
    assert history.seen_before(outcome(triage(fine)), [run("20261121T100000Z-aa", fine)]) == []
    assert (
        history.seen_before(outcome(triage(finding(fingerprint="ef" * 32))), [run("20261121T100000Z-aa", finding())])
        == []
    )


def test_the_index_lists_runs_and_what_came_back() -> None:
    runs = [run("20261122T100000Z-aa", finding()), run("20261121T100000Z-aa", finding())]
    rows = history.index_rows(runs)
    assert [(row.begun, row.since, row.times) for row in rows] == [
        ("2026-11-22 10:00", "2026-11-21 10:00", 1),
        ("2026-11-21 10:00", "", 0),
    ]
    text = rendering.index_page("prod", rows, 7, TEMPLATES)
    assert '<a href="20261122T100000Z-aa/report.html">2026-11-22 10:00</a>' in text
    assert "7 older ones are not listed" in text


def test_a_browser_shows_the_index(chromium: Chromium | None, tmp_path: Path) -> None:
    if chromium is None:
        pytest.skip(NONE_HERE)
    runs = [run(f"202611{day}T100000Z-aa", finding()) for day in range(25, 10, -1)]
    path = tmp_path / "index.html"
    path.write_text(rendering.index_page(HOSTILE, history.index_rows(runs), 0, TEMPLATES), encoding="utf-8")
    assert chromium.faults(path) == []


def test_runs_that_can_not_be_read_are_passed_over(tmp_path: Path) -> None:
    contents = {"20261121T100000Z-aa": "{", "20261122T100000Z-aa": "[]", "20261123T100000Z-aa": '{"findings": []}'}
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "outcome.json").write_text(content, encoding="utf-8")
    (tmp_path / "20261124T100000Z-aa").mkdir()
    (tmp_path / "latest").symlink_to("20261123T100000Z-aa")
    found, more = history.earlier(tmp_path)
    assert [row["run"] for row in found] == ["20261123T100000Z-aa"]
    assert more == 0
    assert history.earlier(tmp_path / "none") == ([], 0)


def test_the_columns_of_an_unknown_tier_are_unknown() -> None:
    fact = triage(finding())
    fact["tiers"]["by_tier"]["imap"] = tier_log("imap", status="unavailable", reasons=["denied"])
    row = next(row for row in page.tier_table(fact).rows if row[0] == "imap")
    assert row[1:8] == ["?"] * 7
