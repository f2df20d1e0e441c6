# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible.module_utils.cabalmail.privacy import Masker, load_or_create_key
from hypothesis import given
from hypothesis import strategies as st

MASKER = Masker(b"k" * 32)


def test_shape_of_a_mask() -> None:
    masked = MASKER.address("Jane.Doe@Example.com")
    assert re.fullmatch(r"J\*\*\*~[0-9a-f]{6}@Example\.com", masked)
    assert re.fullmatch(r"j\*\*\*~[0-9a-f]{6}", MASKER.address("jane"))
    assert MASKER.address("<>") == ""
    assert MASKER.address(masked) == masked


def test_case_does_not_matter_and_the_key_does() -> None:
    assert MASKER.address("jane@x.example")[1:] == MASKER.address("JANE@x.example")[1:]
    assert MASKER.address("jane@x.example") != Masker(b"other" * 8).address("jane@x.example")


@pytest.mark.parametrize(
    "text",
    [
        "to=<jane@x.example>,<jane@y.example>, delay=00:00:00",
        "550 5.1.1 <jane@x.example>... User unknown",
        "<jane>... User unknown",
        "to=jane, ctladdr=<a@x.example> (2001/2001)",
        '{"address": "jane@x.example", "user": 1}',
        "no signing table match for 'jane@x.example'",
        'from=<"jane, b"@x.example>',
        "450 4.7.1 <jane@[192.0.2.1]>: greylisted",
        "550 5.1.1 <jane... cut",
        "stat=Deferred: 450 <jane",
        "mailto:jane@x.example.",
        r"\u003cjane@x.example\u003e",
        "550 5.7.1 SPF fail: Please see http://www.openspf.net/Why?s=mfrom&id=jane%40x.example&ip=192.0.2.1&r=mx",
        "see https://x.example/?user=jane10%40example.com",
        "see www.x.example/unsubscribe/jane%2540x.example/now",
        "550 id=jane=40x.example refused",
        "550 5.1.1 jane at mx.x.example unknown",
        "550 5.1.1 jane at <host> unknown",
        "jane (at) x.example, jane[at]x.example",
        "jane&#64;x.example",
        r'{"a": "jane\u0040x.example"}',
        "from=<bounces+jane=x.example@list.example>",
        "VERP bounces+jane=x.example is no address of ours",
        "https://l.example/u/bounces+jane=x.example%40list.example",
        "SRS0=hash=TT=x.example=jane@fwd.example, SRS0=hash=TT=x.example=jane",
    ],
)
def test_no_local_part_survives_in_text(text: str) -> None:
    masked = MASKER.text(text)
    assert "jane" not in masked
    assert MASKER.text(masked) == masked


def test_text_keeps_what_is_not_an_address() -> None:
    line = "relay=mx.example.com. [192.0.2.1], dsn=5.1.1, reply=550 5.1.1 no such user, stat=User unknown"
    assert MASKER.text(line) == line
    assert MASKER.text("mail jane@x.example.").endswith("@x.example.")


def test_an_encoded_address_has_the_mask_of_the_plain_one() -> None:
    mask = MASKER.address("jane.doe@x.example").split("@")[0]
    link = "http://www.openspf.net/Why?s=mfrom&id={}%40x.example&ip=192.0.2.1"
    assert MASKER.text(link.format("jane.doe")) == link.format(mask)
    assert MASKER.text("jane.doe=40x.example") == f"{mask}=40x.example"
    assert MASKER.text("jane%2Edoe%40x.example") == f"{mask}%40x.example"


@pytest.mark.parametrize(
    "text",
    [
        "listed at zen.spamhaus.org, see details at www.x.example",
        "size=40, delay=40.5, pri=40123, http://x.example/40/40.html",
        "try again later at mx.x.example",
    ],
)
def test_what_only_looks_like_an_encoded_address_stays(text: str) -> None:
    assert MASKER.text(text) == text


def test_a_known_address_is_masked_without_its_domain() -> None:
    masked = MASKER.text("550 jane.doe: no mailbox JANE.DOE here", known=["jane.doe@x.example"])
    assert "jane" not in masked.lower()
    tag = MASKER.address("jane.doe@x.example").split("@")[0]
    assert masked.count(tag) == 2


@given(st.from_regex(r"[a-z][a-z0-9._%+=&'-]{3,20}", fullmatch=True), st.text(max_size=40), st.text(max_size=40))
def test_an_address_is_masked_wherever_it_stands(local: str, before: str, after: str) -> None:
    assert f"{local}@" not in MASKER.text(f"{before} <{local}@d.example> {after}")


@pytest.mark.parametrize("hostile", ["a" * 300_000, '"' * 300_000, "<" * 300_000, "a@" * 150_000, '"\\' * 150_000,
                                     "to=" * 100_000, "to=a" + "." * 300_000, "<a." * 100_000, "%40" * 100_000,
                                     "a%40b.cc" * 40_000, "a at b.cc " * 30_000, "+a=b.cc" * 40_000,
                                     "+a=" + "b.cc" * 60_000 + "@",
                                     "SRS0=" * 60_000, "a." * 150_000 + "%40b.cc",
                                     "?a=" * 90_000 + "%40b.cc"])  # fmt: skip
def test_linear_on_hostile_text(hostile: str) -> None:
    started = time.monotonic()
    MASKER.text(hostile)
    assert time.monotonic() - started < 5


def test_key_is_made_once_and_private(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(lambda _: load_or_create_key(tmp_path), range(64)))
    assert len(keys) == 1
    assert stat.S_IMODE((tmp_path / "mask.key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["mask.key"]


def test_a_broken_key_is_said(tmp_path: Path) -> None:
    (tmp_path / "mask.key").write_bytes(b"short")
    with pytest.raises(ValueError, match="not a mask key"):
        load_or_create_key(tmp_path)
