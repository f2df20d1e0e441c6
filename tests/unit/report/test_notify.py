# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is told what and when: real servers on loopback take each kind of notification."""

from __future__ import annotations

import email
import email.policy
import importlib.util
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.cabalmail import notify, report
from ansible.module_utils.cabalmail.notify import Sink, State, chat, news, read_sinks
from ansible.module_utils.cabalmail.options import OptionError
from hypothesis import given
from hypothesis import strategies as st

from .sample import finding, triage
from .sink_servers import GitHub, Web, http, smtp

REPO = Path(__file__).resolve().parents[3]
SECRET = "s3cret-of-the-sink"
LINK = "https://reports.example/prod/1/report.html"
HOSTILE = (
    "\x1b[2J<script>x</script> @everyone <!channel> [x](http://evil.example) `rm` **b** \u202egnp.exe " + "y" * 10_000
)


def plugin() -> ModuleType:
    spec = importlib.util.spec_from_file_location("triage_notify", REPO / "plugins" / "action" / "triage_notify.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


action = plugin()


def tell(
    sinks: list[Sink], fact: dict[str, Any], folder: Path, seconds: float = 10, **more: Any
) -> list[dict[str, str]]:
    store = folder / "prod" / "notifications.json"
    told: list[dict[str, str]] = action.tell(sinks, fact, report.outcome(fact, None), store, LINK, seconds, **more)
    assert SECRET not in str(told) + (store.read_text(encoding="utf-8") if store.exists() else "")
    return told


def outcomes(told: list[dict[str, str]]) -> list[str]:
    return [row["outcome"] for row in told]


FINE = triage(finding("none.below_threshold", "info"))


# -- real servers ------------------------------------------------------------------------------------------------------


def test_alert_sink_gets_what_it_takes(tmp_path: Path) -> None:
    web = Web(204)
    with http(web) as url:
        told = tell([Sink("alert_sink", url, SECRET)], triage(finding()), tmp_path)
    assert [(row["sink"], row["outcome"]) for row in told] == [("alert_sink", "sent")]
    (request,) = web.requests
    assert (request["method"], request["headers"]["x-alert-secret"]) == ("POST", SECRET)
    body = request["body"]
    assert (body["severity"], body["source"], body["runbook_url"]) == ("critical", "cabalmail-runbooks/prod", LINK)
    for words in ("CRITICAL prod: smtp_out.provider_block", "Confidence high", "Do first: Ask the provider why.", LINK):
        assert words in body["summary"]


def test_a_recovery_is_no_info_since_alert_sink_drops_that(tmp_path: Path) -> None:
    web = Web(204)
    with http(web) as url:
        sinks = [Sink("alert_sink", url, SECRET)]
        tell(sinks, triage(finding()), tmp_path)
        tell(sinks, FINE, tmp_path)
    assert [request["body"]["severity"] for request in web.requests] == ["critical", "warning"]
    assert web.requests[1]["body"]["summary"].startswith("Recovered: ")


def test_ntfy_by_apprise(tmp_path: Path) -> None:
    web = Web()
    with http(web) as url:
        told = tell([Sink("apprise", url.replace("http", "ntfy", 1) + "/cabal")], triage(finding()), tmp_path)
    assert [(row["sink"], row["outcome"]) for row in told] == [("ntfy", "sent")]
    body = web.requests[0]["body"]
    assert (body["topic"], body["title"]) == ("cabal", "CRITICAL prod: smtp_out.provider_block")
    assert LINK in body["message"]


def test_mail_by_apprise(tmp_path: Path) -> None:
    mails: list[str] = []
    with smtp(mails) as port:
        url = f"mailto://127.0.0.1:{port}?smtp=127.0.0.1&mode=insecure&from=triage@example.org&to=oncall@example.org"
        told = tell([Sink("apprise", url)], triage(finding(summary="One & only <b>")), tmp_path)
    assert outcomes(told) == ["sent"]
    mail = email.message_from_string(mails[0], policy=email.policy.default)
    assert mail["Subject"] == "CRITICAL prod: smtp_out.provider_block"
    part = mail.get_body(("html", "plain"))
    assert part is not None
    assert "<b>" not in part.get_content()
    assert LINK in part.get_content()


def test_one_github_issue_an_incident_updated_and_closed(tmp_path: Path) -> None:
    hub = GitHub()
    with http(hub) as url:
        sinks = [Sink("github_issue", "acme/mail", SECRET, url)]
        runs = [
            triage(finding()),
            triage(finding()),
            triage(finding("smtp_out.reputation", fingerprint="cd" * 32)),
            FINE,
            FINE,
        ]
        told = [outcomes(tell(sinks, fact, tmp_path)) for fact in runs]
    assert told == [["sent"], ["nothing_new"], ["sent"], ["sent"], ["nothing_new"]]
    assert all(request["headers"]["authorization"] == f"Bearer {SECRET}" for request in hub.requests)
    assert all(request["path"].startswith("/repos/acme/mail/issues") for request in hub.requests)
    (issue,) = hub.issues
    assert (issue["state"], issue["state_reason"], issue["labels"]) == ("closed", "completed", ["cabalmail-triage"])
    assert issue["title"] == "CRITICAL prod: smtp_out.reputation"
    assert "verdict: smtp" in hub.comments[0][1]
    assert "Recovered from smtp" in hub.comments[1][1]


def test_an_issue_that_another_machine_opened_is_found(tmp_path: Path) -> None:
    hub = GitHub()
    with http(hub) as url:
        for machine in ("one", "two"):
            tell([Sink("github_issue", "acme/mail", SECRET, url)], triage(finding()), tmp_path / machine)
    assert len(hub.issues) == 1


@pytest.mark.parametrize("kind", ["alert_sink", "github_issue", "apprise"])
@pytest.mark.parametrize("trouble", ["dead", "slow", "refusing"])
def test_a_sink_that_fails_is_one_line_and_is_tried_again(kind: str, trouble: str, tmp_path: Path) -> None:
    web = Web(403)
    with http(web) as url:
        web.slow = trouble == "slow"
        if trouble == "dead":
            with socket.socket() as closed:
                closed.bind(("127.0.0.1", 0))
                url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        targets = {
            "alert_sink": Sink(kind, f"{url}/{SECRET}", SECRET),
            "github_issue": Sink(kind, "acme/mail", SECRET, url),
            "apprise": Sink(kind, f"{url.replace('http', 'json', 1)}/{SECRET}"),
        }
        (row,) = tell([targets[kind]], triage(finding()), tmp_path, seconds=0.5 if trouble == "slow" else 10)
    assert row["outcome"] == "failed"
    wanted = {"dead": "not reachable", "slow": "no answer within", "refusing": "403"}[trouble]
    assert wanted in row["said"]
    assert notify.read_states(tmp_path / "prod" / "notifications.json") == {}


def test_one_sink_that_fails_keeps_nothing_from_the_others(tmp_path: Path) -> None:
    good, bad = Web(204), Web(500)
    with http(good) as here, http(bad) as there:
        sinks = [Sink("alert_sink", there, SECRET), Sink("alert_sink", here, SECRET)]
        assert outcomes(tell(sinks, triage(finding()), tmp_path)) == ["failed", "sent"]
        bad.status = 204
        assert outcomes(tell(sinks, triage(finding()), tmp_path)) == ["sent", "nothing_new"]


def test_a_transport_that_alert_sink_lost_is_said(tmp_path: Path) -> None:
    with http(Web(207)) as url:
        (row,) = tell([Sink("alert_sink", url, SECRET)], triage(finding()), tmp_path)
    assert "one of its transports failed" in row["said"]


def test_hostile_text_is_inert_in_each_kind(tmp_path: Path) -> None:
    fact = triage(
        finding(summary=HOSTILE, confidence_reason=HOSTILE, next_actions=[{"text": HOSTILE, "command": None}])
    )
    web, hub = Web(204), GitHub()
    with http(web) as url, http(hub) as api:
        tell([Sink("alert_sink", url, SECRET), Sink("github_issue", "acme/mail", SECRET, api)], fact, tmp_path)
    said = web.requests[0]["body"]["summary"]
    issue = hub.issues[0]["body"].partition("<!-- cabalmail-triage")[0]
    for text in (said, issue):
        assert not set("\x1b\u202e") & set(text)
        assert len(text) < 4000
    for active in ("<script", "@everyone", "<!channel", "](http", "http://evil", "`", "**"):
        assert active not in said
    assert "\\<script\\>" in issue
    assert "\\@everyone" in issue


def test_check_mode_tells_nobody(tmp_path: Path) -> None:
    web = Web(204)
    with http(web) as url:
        told = tell([Sink("alert_sink", url, SECRET)], triage(finding()), tmp_path, only_show=True)
    assert outcomes(told) == ["check_mode"]
    assert web.requests == []


# -- what is news ------------------------------------------------------------------------------------------------------

STATE = State("f 1", "ab", "smtp_in.stale_map", "critical", "finding", "not_attempted")


def changed(**members: str) -> State:
    return State(**{**{name: getattr(STATE, name) for name in State.__slots__}, **members})


@pytest.mark.parametrize(
    ("last", "now", "words"),
    [
        (None, STATE, "New"),
        (None, changed(status="ok"), ""),
        (STATE, STATE, ""),
        (changed(status="ok"), STATE, "New"),
        (changed(status="ok"), changed(status="ok"), ""),
        (STATE, changed(status="ok"), "Recovered from smtp_in.stale_map"),
        (STATE, changed(severity="warning"), "Changed (severity: critical before)"),
        (STATE, changed(name="imap.stale_map", verdict="cd"), "Changed (verdict: smtp in.stale map before)"),
        (STATE, changed(verdict="cd"), "Changed (the same verdict about something else)"),
        (STATE, changed(remediation="recovered"), "Changed (remediation: not attempted before)"),
        (STATE, changed(status="incomplete"), "Changed (outcome: finding before)"),
        (STATE, changed(page="f 2"), "Paged again"),
        (STATE, changed(page=""), ""),
    ],
)
def test_only_a_change_is_news(last: State | None, now: State, words: str) -> None:
    assert news(last, now) == words


def test_a_store_that_is_broken_is_none(tmp_path: Path) -> None:
    for content in ("{", "[]", '{"a": 1}', '{"a": {"page": "x"}}'):
        (tmp_path / "n.json").write_text(content, encoding="utf-8")
        assert notify.read_states(tmp_path / "n.json") == {}


@given(st.text())
def test_no_text_is_active_in_a_chat(text: str) -> None:
    said = chat(text, 100)
    assert len(said) <= 100 + 1
    assert not set("@<>`*\x1b\u202e") & set(said)
    assert "http://" not in said.lower()


# -- the option --------------------------------------------------------------------------------------------------------


def test_secrets_come_from_environment_file_and_vault(tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("ntfy://127.0.0.1/a\njson://127.0.0.1/b\n", encoding="utf-8")
    sinks = read_sinks(
        [
            f"file:{tmp_path / 'urls'}",
            {"alert_sink": "https://sink.example", "secret": "env:SINK"},
            {"github_issue": "acme/mail", "token": "from the vault"},
        ],
        {"SINK": SECRET},
    )
    assert [(sink.kind, sink.secret) for sink in sinks] == [
        ("apprise", ""),
        ("apprise", ""),
        ("alert_sink", SECRET),
        ("github_issue", "from the vault"),
    ]
    assert SECRET not in repr(sinks)
    assert [sink.target for sink in read_sinks("env:URLS", {"URLS": "ntfy://a/b ntfy://c/d"}, True)] == [
        "ntfy://a/b",
        "ntfy://c/d",
    ]
    assert read_sinks(None, {}) == read_sinks("", {}) == read_sinks([], {}) == []


@pytest.mark.parametrize(
    ("value", "on_command_line", "words"),
    [
        (7, False, "give a list"),
        ([{}], False, "entry 1 can't be used: give one of apprise, alert_sink, github_issue"),
        ([{"alert_sink": "https://a.example", "github_issue": "a/b"}], False, "give one of"),
        ([{"alert_sink": "https://a.example"}], False, "secret is missing"),
        ([{"alert_sink": "ftp://a.example", "secret": SECRET}], False, "needs an http or https URL"),
        ([{"alert_sink": "https://a.example", "secret": "env:NONE"}], False, "'env:NONE' is empty or not there"),
        ([{"alert_sink": "https://a.example", "secret": "file:/nonexistent"}], False, "can't be read"),
        ([{"github_issue": "nobody", "token": SECRET}], False, "give owner/name"),
        ([{"github_issue": "a/b", "tokken": SECRET}], False, "'tokken' is no member of github_issue"),
        (f"ntfy://{SECRET}@a.example/b", True, "command line"),
        ([{"github_issue": "a/b", "token": SECRET}], True, "command line"),
    ],
)
def test_what_can_not_be_used_is_refused_without_showing_secrets(value: Any, on_command_line: bool, words: str) -> None:
    with pytest.raises(OptionError) as refused:
        read_sinks(value, {}, on_command_line)
    assert words in str(refused.value)
    assert SECRET not in str(refused.value)
