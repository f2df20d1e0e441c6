# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the probe's output, also where it is cut, garbled or hostile."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.cabalmail import containers
from ansible.module_utils.cabalmail.privacy import Masker
from ansible.module_utils.cabalmail.probe import parse
from hypothesis import given, settings
from hypothesis import strategies as st

MASKER = Masker(b"k" * 32)
NOW = 1_795_557_600


def packed(kind: str, path: str, data: bytes, status: int = 0, pack: str = "gzip") -> list[str]:
    body = data + f"\n\t#status {status}\n".encode()
    text = base64.encodebytes(gzip.compress(body) if pack == "gzip" else body).decode()
    return [f"begin {kind} {pack} {path}", *text.splitlines(), f"end {kind}"]


def output(*extra: str, maps: bool = True, end: bool = True) -> bytes:
    lines = [
        "cabalmail-probe 1",
        f"clock {NOW}",
        "cf /etc/mail/sendmail.cf",
        "loglevel 9",
        "cfmap access hash /etc/mail/access",
        f"file {NOW - 240} 2048 /etc/mail/access",
        f"file {NOW - 230} 4096 /etc/mail/access.db",
        "lines 3 /etc/mail/access",
        "uptime 5000.00",
        "ticks 100",
        "self 90",
        "proc 1 0 S 0 - supervisord - supervisord",
        "proc 20 1 S 100000 do_wait reconfigure.sh - reconfigure.sh",
        "proc 21 20 S 480000 - reconfigure.sh - reconfigure.sh",
        "proc 22 21 S 480000 - aws sqs.receive-message aws",
        "proc 30 1 S 490000 - - - sendmail",
        "proc 90 1 S 499900 - probe.sh - sh",
        "proc 91 90 R 499990 - reconfigure.sh - bash",
        "pin 10.0.2.45",
        "mount rw overlay /",
        "mount rw nfs4 /home",
        "disk 41 100000 /tmp /",
        "inodes 7 /tmp",
        "user 2001 2001 alice /home/alice",
        "users end",
        "home 2001 2001 41ed /home/alice",
        "home 2001 2001 41c0 /home/alice/Maildir",
        "homes end",
        "stray end",
        f"clock {NOW}",
        *extra,
    ]
    if maps:
        lines += packed("db", "/etc/mail/access.db", b"to:a@x.example\tOK\nto:x.example\tTEMPFAIL\n")
        lines += packed("text", "/etc/mail/access", b"To:a@x.example\tOK\nTo:x.example\tTEMPFAIL\n")
    lines.append(f"clock {NOW}")
    if end:
        lines.append("cabalmail-probe end")
    return ("\n".join(lines) + "\n").encode()


def facts(raw: bytes, tier: str = "imap", received: float | None = NOW, **result: Any) -> dict[str, Any]:
    entry = {"task": "a" * 32, "outcome": "completed", **result}
    return containers.container_facts(entry, tier, parse(raw), received, MASKER)


def test_all_that_a_probe_says() -> None:
    found = facts(output())
    assert (found["status"], found["reasons"], found["clock_skew_seconds"]) == ("complete", [], 0)
    assert found["maps"]["/etc/mail/access"]["entries"] == 2
    assert found["loop"]["age_seconds"] == 4000
    assert [child["call"] for child in found["loop"]["children"]] == [None, "sqs receive-message"]
    assert found["sendmail_running"] is True
    assert found["sendmail_age_seconds"] == 100
    assert found["homes"]["alice"]["writable"] is True
    assert found["mounts"] == {"/": "overlay", "/home": "nfs4"}
    assert found["imap_in_dns"] is None
    assert found["disk"]["/tmp"] == {"used_percent": 41, "available_kib": 100000, "inodes_used_percent": 7}


def test_the_probe_s_own_tree_is_left_out() -> None:
    without = output().replace(b"proc 20 1", b"junk 20 1").replace(b"proc 21", b"junk 21")
    assert facts(without)["loop"]["process"] == "dead"


def test_a_zombie_is_no_loop() -> None:
    raw = output().replace(b"proc 20 1 S", b"proc 20 1 Z").replace(b"proc 21 20 S", b"proc 21 20 Z")
    assert facts(raw)["loop"]["process"] == "dead"


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_skew_corrects_times_and_leaves_ages_alone(skew: int) -> None:
    found = facts(output(), received=NOW - skew)
    assert found["clock_skew_seconds"] == skew
    assert found["files"]["/etc/mail/access.db"]["age_seconds"] == 230
    assert found["files"]["/etc/mail/access.db"]["mtime"] == containers.rfc3339(NOW - skew - 230)


def test_cut_before_the_process_table_ends_is_unknown_and_never_dead() -> None:
    cut = output().split(b"proc 20")[0]
    found = facts(cut)
    assert found["status"] == "partial"
    assert found["loop"]["process"] == "unknown"
    assert (found["sendmail_running"], found["users"], found["stray_mail"]) == (None, None, None)


def test_cut_inside_a_map_is_said() -> None:
    raw = output(*packed("db", "/etc/mail/virtusertable.db", b"a@x.example\talice\n" * 5000), end=False, maps=False)
    found = facts(raw[: len(raw) - 60], outcome="timed_out")
    assert found["status"] == "partial"
    assert "ran out of time" in found["reasons"][0]
    assert "cut short" in found["reasons"][1]
    assert found["maps"]["/etc/mail/virtusertable"]["entries"] is None


@pytest.mark.parametrize(
    ("status", "said"), [(127, "not in the container"), (124, "out of time"), (65, "could not read its .db")]
)
def test_a_map_that_makemap_cannot_dump(status: int, said: str) -> None:
    raw = output(
        *packed("db", "/etc/mail/access.db", b"makemap: error\n", status),
        *packed("text", "/etc/mail/access", b"To:a@x.example\tOK\n"),
        maps=False,
    )
    found = facts(raw)
    assert found["maps"]["/etc/mail/access"]["source"] == "text"
    assert said in found["maps"]["/etc/mail/access"]["error"]
    assert found["status"] == "partial"


@pytest.mark.parametrize(
    ("home", "maildir", "problem"),
    [
        ("home 2001 2001 41ed", "home 2001 2001 41c0", None),
        ("home 2001 2001 41ed", "home 0 0 41c0", "maildir_not_writable"),
        ("home 2001 2001 41ed", "home 2001 2001 4140", "maildir_not_writable"),
        ("home 2001 2001 41ed", "home 0 2001 41f8", None),
        ("home 2001 2001 41ed", "home 2001 2001 81a4", "maildir_not_a_directory"),
        ("home 0 0 41c0", "home 2001 2001 41c0", "home_not_searchable"),
        ("home 2001 2001 41ed", "gone 0 0 0", "maildir_missing"),
        ("gone 0 0 0", "gone 0 0 0", "home_missing"),
    ],
)
def test_who_can_write_a_maildir(home: str, maildir: str, problem: str | None) -> None:
    raw = output().replace(b"home 2001 2001 41ed", home.encode()).replace(b"home 2001 2001 41c0", maildir.encode())
    assert facts(raw)["homes"]["alice"]["problem"] == problem


def test_a_read_only_home() -> None:
    assert facts(output("mount ro nfs4 /home"))["homes"]["alice"]["problem"] == "read_only"


@pytest.mark.parametrize(
    ("text", "messages", "oldest", "reasons"),
    [
        (b"/var/spool/mqueue is empty\n\t\tTotal requests: 0\n", 0, None, 0),
        (
            b"5BOLfA1B012345*    10 Tue Nov 24 21:00 <a@x.example>\n\t\t (Deferred: refused)\n",
            1,
            "2026-11-24T21:00:00Z",
            1,
        ),
        (b"5BOLfA1B012345 (no control file) Thu Dec 31 21:00\n\t\tTotal requests: 3\n", 3, "2025-12-31T21:00:00Z", 0),
        (b"5BOLfA1B012345  10 Foo Bar 99 21:00 <a@x.example>\n", 1, None, 0),
    ],
)
def test_the_queue(text: bytes, messages: int | None, oldest: str | None, reasons: int) -> None:
    queue = facts(output(*packed("mailq", "-", text)))["queue"]
    assert (queue["messages"], queue["oldest"], len(queue["reasons"])) == (messages, oldest, reasons)


def test_a_mailq_that_failed_says_nothing_rather_than_empty() -> None:
    assert facts(output(*packed("mailq", "-", b"", 75)))["queue"] is None


@pytest.mark.parametrize("raw", [b"", b"bash: no such file\n", b"cabalmail-probe 2\nclock 1\ncabalmail-probe end\n"])
def test_what_is_no_probe_output_is_unavailable_with_a_reason(raw: bytes) -> None:
    found = facts(raw)
    assert found["status"] == "unavailable"
    assert len(found["reasons"]) == 1
    assert found["loop"]["process"] == "unknown"
    assert found["queue"] is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.integers(min_value=0, max_value=6000))
def test_garbage_never_raises_and_stays_json(noise: bytes, place: int) -> None:
    raw = output()
    for text in (noise, b"cabalmail-probe 1\n" + noise, raw[:place] + noise + raw[place:], raw[:place]):
        json.dumps(facts(text, reason=noise.decode("latin-1")))


_WORD = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=12)
_RECORD = st.builds(
    lambda keyword, words: f"{keyword} {' '.join(words)}",
    st.sampled_from(
        ["clock", "file", "proc", "home", "user", "users", "disk", "stray", "mount", "uptime", "self", "pin"]
    ),
    st.lists(st.one_of(_WORD, st.integers().map(str), st.sampled_from(["end", "-", "S"])), max_size=9),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_RECORD, max_size=12))
def test_records_with_odd_fields_never_raise(records: list[str]) -> None:
    raw = "\n".join(["cabalmail-probe 1", *records, "cabalmail-probe end"]).encode()
    json.dumps(facts(raw))


def test_the_section_names_every_task_that_did_not_answer(tmp_path: Path) -> None:
    kept = tmp_path / "a.out"
    kept.write_bytes(output())
    results = [
        {"task": "a", "service": "cabal-imap", "outcome": "completed", "dest": str(kept), "ip": "10.0.2.45"},
        {"task": "b", "service": "cabal-smtp-in", "outcome": "unreachable", "reason": "The agent is not connected"},
    ]
    running = {"smtp-in": [{"id": "b"}, {"id": "c", "ip": "10.0.1.24"}]}
    section = containers.containers_section(
        results, {"cabal-imap": "imap", "cabal-smtp-in": "smtp-in"}, MASKER, running
    )
    assert section["status"] == "partial"
    assert [(row["task"], row["status"]) for row in section["tasks"]] == [
        ("a", "complete"),
        ("b", "unavailable"),
        ("c", "unavailable"),
    ]
    assert [row["task"] for row in section["unreachable"]] == ["b", "c"]


def test_no_task_at_all_is_unavailable() -> None:
    assert containers.containers_section([], {}, MASKER)["status"] == "unavailable"
