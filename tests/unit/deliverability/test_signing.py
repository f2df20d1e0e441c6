# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""opendkim's tables and key against the table of addresses: in order, bad, and unknown."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.cabalmail.probe import parse
from ansible.module_utils.cabalmail.signing import expected_domains, read_key, read_tables, signing_tables
from ansible.module_utils.mail_dns import dkim
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

TASK = "c" * 32
NEWS, SHOP = "news.harborlight.example", "shop.harborlight.example"
ROWS = [
    {"username": "a", "subdomain": "news", "tld": "harborlight.example", "requested": "2026-11-01T00:00:00Z"},
    {"username": "b", "subdomain": "shop", "tld": "harborlight.example", "requested": "2026-11-02T00:00:00Z"},
    {"username": "c", "subdomain": None, "tld": "harborlight.example", "requested": "2026-11-02T00:00:00Z"},
    {"username": "", "subdomain": "odd", "tld": "harborlight.example", "requested": "2026-11-02T00:00:00Z"},
]
BUILT = "2026-11-24T21:00:00Z"
ENTRY = {"task": TASK, "zone": "us-east-1a", "files": {"/etc/opendkim/SigningTable": {"mtime": BUILT}}}


def section(kind: str, path: str, text: str) -> str:
    packed = base64.b64encode(f"{text}\n\t#status 0\n".encode()).decode()
    return f"begin {kind} none {path}\n{packed}\nend {kind}\n"


def probed(signs: dict[str, str], key: str = "") -> bytes:
    keys = "".join(f"cabal._domainkey.{name} {domain}:cabal:/k\n" for name, domain in signs.items())
    lines = "".join(f"*@{name} cabal._domainkey.{name}\n" for name in signs)
    parts = section("table", "/etc/opendkim/KeyTable", keys) + section("table", "/etc/opendkim/SigningTable", lines)
    parts += section("key", "/etc/opendkim/keys/cabal", key) if key else ""
    return f"cabalmail-probe 1\n{parts}cabalmail-probe end\n".encode()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "addresses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def tables(work: Path, raw: bytes | None) -> dict[str, Any]:
    if raw is not None:
        (work / f"{TASK}.out").write_bytes(raw)
    return signing_tables([ENTRY], work, expected_domains(work))


def test_what_generate_config_writes_is_in_order(work: Path) -> None:
    found = tables(work, probed({NEWS: NEWS, SHOP: SHOP}))
    assert (found["status"], found["missing"], found["foreign"]) == ("complete", [], [])
    assert (found["tasks"][0]["domains"], found["tasks"][0]["surplus_total"]) == (2, 0)


def test_a_domain_of_the_table_that_is_not_signed_for(work: Path) -> None:
    found = tables(work, probed({NEWS: NEWS, "old.harborlight.example": "old.harborlight.example"}))
    assert (found["missing"], found["tasks"][0]["surplus_total"]) == ([SHOP], 1)


def test_an_address_newer_than_the_table_waits_for_the_next_build(work: Path) -> None:
    newer = {"username": "d", "subdomain": "new", "tld": "harborlight.example", "requested": "2026-11-24T21:05:00Z"}
    with (work / "addresses.jsonl").open("a") as stream:
        stream.write(json.dumps(newer) + "\n")
    assert tables(work, probed({NEWS: NEWS, SHOP: SHOP}))["missing"] == []


def test_a_key_of_another_domain(work: Path) -> None:
    found = tables(work, probed({NEWS: "control.example", SHOP: SHOP}))
    assert found["foreign"] == [{"sender_domain": NEWS, "signed_by": "control.example", "messages": None}]


def test_no_task_was_reached(work: Path) -> None:
    found = tables(work, None)
    assert (found["status"], found["missing"], found["key_sha256"]) == ("unavailable", None, None)


def test_without_the_table_nothing_is_missing_and_nothing_is_in_order(work: Path) -> None:
    (work / "addresses.jsonl").unlink()
    found = tables(work, probed({NEWS: NEWS}))
    assert (found["status"], found["missing"]) == ("partial", None)


def test_tables_that_were_cut_are_unknown(work: Path) -> None:
    raw = probed({NEWS: NEWS})
    assert tables(work, raw[: raw.index(b"end table") - 3])["status"] == "unavailable"


def test_the_key_is_known_by_its_public_numbers(work: Path) -> None:
    numbers = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key().public_numbers()
    found = tables(work, probed({NEWS: NEWS}, key=f"{numbers.n:0512x} 010001"))
    published = dkim.parse_key(found["key_record"])
    assert (published.bits, published.digest) == (2048, found["key_sha256"])


def test_tasks_with_different_keys_have_none_in_common(work: Path) -> None:
    (work / f"{TASK}.out").write_bytes(probed({NEWS: NEWS}, key="00c5 03"))
    (work / "other.out").write_bytes(probed({NEWS: NEWS}, key="00c7 03"))
    found = signing_tables([ENTRY, {**ENTRY, "task": "other"}], work, expected_domains(work))
    assert found["key_sha256"] is None


@given(st.binary(max_size=300))
def test_no_output_raises(raw: bytes) -> None:
    probe = parse(b"cabalmail-probe 1\nbegin key none /etc/opendkim/keys/cabal\n" + raw)
    read_key(probe)
    read_tables(probe)
