# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E501 - one call a line reads better here
"""The module and its action plugin, through the real ansible-playbook."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from logs_server import LogsServer, error
from maillog_corpus import REPO, events, section, window_of

TIERS = {
    "imap": "imap.relay.maillog",
    "smtp-in": "smtp-in.relay.maillog",
    "smtp-out": "smtp-out.spike-one-provider.maillog",
}


def play(folder: Path, url: str, *cases: tuple[dict[str, Any], dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Run the module once a case (variables, options) over the server's groups; return results and what was printed."""
    work = folder / "work"
    work.mkdir(mode=0o700, exist_ok=True)
    arguments = {
        "region": "us-east-1", "access_key": "AKIAIOSFODNN7EXAMPLE", "secret_key": "wJalrXUtnFEMI/K7MDENG", "endpoint_url": url,
        "groups": [{"tier": tier, "log_group": f"/ecs/cabal-{tier}"} for tier in TIERS],
        "start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z", "work_dir": str(work), "requests_per_second": 100,
        "deadline": 20,
    }  # fmt: skip
    tasks: list[dict[str, Any]] = []
    for number, (variables, options) in enumerate(cases or [({}, {})]):
        module = {"cloudwatch_maillog_info": {**arguments, **options}, "vars": variables}
        content = f"{{{{ read_{number} | to_json }}}}"
        tasks.append({**module, "register": f"read_{number}", "ignore_errors": True})
        tasks.append({"copy": {"dest": str(folder / f"{number}.json"), "content": content, "mode": "0600"}})
    book = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}]
    (folder / "play.yml").write_text(json.dumps(book))
    environment = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"), "ANSIBLE_LOCAL_TEMP": str(folder / "tmp")}
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", str(folder / "play.yml")],
        env=environment, capture_output=True, text=True, check=False, cwd=REPO, timeout=180,
    )  # fmt: skip
    results = [json.loads((folder / f"{number}.json").read_text()) for number in range(len(cases) or 1)]
    return results, done.stdout + done.stderr


@pytest.fixture(scope="module")
def server() -> Any:
    with LogsServer({f"/ecs/cabal-{tier}": events(name) for tier, name in TIERS.items()}) as running:
        yield running


@pytest.fixture(scope="module")
def plain(server: LogsServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """One plain reading: the result, what was printed, the folder."""
    folder = tmp_path_factory.mktemp("plain")
    (result,), printed = play(folder, server.url)
    assert not result.get("failed"), printed
    return result, printed, folder


def test_the_module_gives_what_the_engine_counts(plain: tuple[dict[str, Any], str, Path]) -> None:
    result, _, _ = plain
    assert (result["status"], result["reasons"], result["changed"]) == ("complete", [], False)
    assert set(result["tiers"]["by_tier"]) == set(TIERS)
    for tier, name in TIERS.items():
        expected, found = section(name), result["tiers"]["by_tier"][tier]
        assert found["deliveries"] == expected["deliveries"]
        assert found["timeline"] == expected["timeline"]
        for part in ("lines", "messages", "recipients", "peak", "codes", "reasons", "providers", "domains", "replies"):
            assert found["bounces"][part] == expected["bounces"][part], (tier, part)
        assert found["unseen"]["kinds"] == expected["unseen"]["kinds"]
    stats = result["tiers"]["stats"]
    assert stats["pages"] >= len(TIERS)
    assert stats["throttled"] == 0


def test_clear_addresses_lie_in_the_private_file_only(plain: tuple[dict[str, Any], str, Path]) -> None:
    result, printed, folder = plain
    path = folder / "work" / "failed_recipients.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {row["seen"] for row in rows} == {"dsn", "reject", "user_unknown"}
    ghost = next(row for row in rows if row["address"] == "ghost@news.harborlight.example" and row["tier"] == "imap")
    assert (ghost["sender_domain"], ghost["relay"], ghost["code"]) == (
        "sender.example",
        "smtp-in.cabal.internal",
        "5.1.1",
    )
    text = json.dumps(result) + printed
    assert not [row["address"] for row in rows if row["address"] in text]


def test_one_group_denied_is_said_and_the_others_are_read(tmp_path: Path) -> None:
    with LogsServer({f"/ecs/cabal-{tier}": events(name) for tier, name in TIERS.items()}) as server:
        server.trouble = lambda request, number: (
            error("AccessDeniedException", "not authorized") if request["logGroupName"].endswith("imap") else None
        )
        (result,), printed = play(tmp_path, server.url)
    assert not result.get("failed"), printed
    by_tier = result["tiers"]["by_tier"]
    assert result["status"] == result["tiers"]["status"] == "partial"
    assert by_tier["imap"]["coverage"]["status"] == "unavailable"
    assert by_tier["imap"]["bounces"]["lines"] is None
    assert "/ecs/cabal-imap may not be read" in result["reasons"][0]
    assert by_tier["smtp-out"]["coverage"]["status"] == "complete"


def test_a_rule_and_a_provider_of_the_inventory_take_effect(tmp_path: Path, server: LogsServer) -> None:
    example = {"reply": "550 5.7.1 on list S3140", "enhanced": "5.7.1"}
    variables = {
        "cabalmail_reason_rules": [{"id": "own-words", "reason": "policy", "text": ["s3140"], "examples": [example]}],
        "cabalmail_providers": [{"name": "Our own Outlook", "mx": ["outlook.com"]}],
    }
    (result,), printed = play(tmp_path, server.url, (variables, {}))
    assert not result.get("failed"), printed
    bounces = result["tiers"]["by_tier"]["smtp-out"]["bounces"]
    assert bounces["providers"][0]["provider"] == "Our own Outlook"
    assert bounces["reasons"][0]["reason"] == "policy"
    assert section(TIERS["smtp-out"])["bounces"]["reasons"][0]["reason"] == "blocklist"


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"start": "2026-12-02T00:00:00Z"}, "before it starts"),
    ({}, {"end": "tomorrow"}, "is not an RFC 3339 time"),
    ({}, {"requests_per_second": 0}, "must be above 0"),
    ({}, {"groups": []}, "at least one"),
    ({"cabalmail_reason_rules": [{"id": "x", "reason": "nonsense", "text": ["a"], "examples": [{"reply": "a"}]}]}, {}, "is no reason"),
    ({"cabalmail_providers": "google"}, {}, "must be a list"),
]  # fmt: skip


def test_what_is_wrong_is_said_before_any_call(tmp_path: Path) -> None:
    with LogsServer({}) as server:
        results, printed = play(tmp_path, server.url, *((variables, options) for variables, options, _ in WRONG))
        assert server.calls == []
    for result, (_, _, words) in zip(results, WRONG, strict=True):
        assert result.get("failed"), printed
        assert words in result["msg"]


def test_window_of_the_corpus_is_inside_the_plays() -> None:
    for name in TIERS.values():
        start, end = window_of(events(name))
        assert 1793491200000 <= start <= end < 1796083200000
