# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A thousand variants of one answer become one text, and what tells stays."""

from __future__ import annotations

import random

import pytest
from ansible.module_utils.maillog.normalise import MAX_TEXT, Normaliser, normalise_reply
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("550 5.1.1 <a.b@c.example>: User unknown", "550 5.1.1 <address>: User unknown"),
        ("550 5.1.1 <a@c.example>... User unknown", "550 5.1.1 <address>... User unknown"),
        ("550-5.7.1 [192.0.2.1    19] found a1-2002si123wrq.1 - gsmtp", "550-5.7.1 [<ip> <n>] found <id> - gsmtp"),
        ("554 Client host [2001:db8::1] blocked", "554 Client host [<ip>] blocked"),
        ("421 try again at 2026-11-24T21:53:14Z or 21:53", "421 try again at <time> or <time>"),
        ("550 mta1.example.org says no", "550 <host> says no"),
        ("554 blocked using zen.spamhaus.org;", "554 blocked using zen.spamhaus.org;"),
        ("550 https://www.spamhaus.org/query/bl?ip=192.0.2.1", "550 https://www.spamhaus.org/query/bl?ip=<id>"),
        ("550 part of their network is on our list (S3140)", "550 part of their network is on our list (S3140)"),
        ("552 5.3.4 size 31457280 exceeds 26214400", "552 5.3.4 size <n> exceeds <n>"),
        ("550 RESOLVER.ADR.RecipientNotFound; no", "550 RESOLVER.ADR.RecipientNotFound; no"),
        ("550-5.1.1 does not / 550-5.1.1 exist / 550 5.1.1 here", "550-5.1.1 does not exist here"),
        ("550 5.7.1.100 blocked", "550 <ip> blocked"),
        ("queued as 6AT4T9gA017548", "queued as <id>"),
        (r"550 Der Empf\303\244nger ist unbekannt", "550 Der Empfänger ist unbekannt"),
        (r"550 Empf\344nger \033[31munbekannt\tsorry", "550 Empfänger unbekannt sorry"),
        ("550 see http://openspf.net/Why?id=jane%40x.example", "550 see http://openspf.net/Why?id=<address>"),
        ("550 5.1.1 id=jane=40x.example", "550 5.1.1 <address>"),
        ("550 5.1.1 jane at mx.x.example unknown", "550 5.1.1 <address> unknown"),
        ("550 bounces+jane=x.example refused", "550 bounces+<address> refused"),
        ("550 SRS0=h=T=x.example=jane refused", "550 <address> refused"),
        ("550 listed at zen.spamhaus.org;", "550 listed at zen.spamhaus.org;"),
        ("550", "550"),
        ("", ""),
    ],
)
def test_what_is_masked(text: str, normal: str) -> None:
    assert Normaliser(["spamhaus.org"])(text) == normal


def test_a_thousand_variants_are_one() -> None:
    rng = random.Random(1)

    def variant() -> str:
        digits = rng.randrange(10**9)
        return (
            f"550-5.7.1 [198.51.100.{digits % 256} {digits % 99}] <u{digits}@h{digits % 97}.example.org> refused by"
            f" mx{digits % 13}.example.net at {digits % 14 + 10}:{digits % 50 + 10}:11, id 0{digits:x}-{digits}q"
        )

    assert len({normalise_reply(variant()) for _ in range(1000)}) == 1


@given(st.text(max_size=2000))
@settings(deadline=None, max_examples=300)
def test_any_text_stays_bounded(text: str) -> None:
    assert len(normalise_reply(text)) <= 4 * MAX_TEXT


@given(st.from_regex(r"[a-z]{1,10}@[a-z]{1,10}\.(example|org)", fullmatch=True))
def test_no_address_is_left(address: str) -> None:
    for text in (address, f"<{address}>", f"({address})", f"550 5.1.1 {address}: no", f"to={address},", f'"{address}"'):
        assert address not in normalise_reply(text)


@pytest.mark.parametrize("identifier", ["AsDjktcPtLscNHus", "GrYDSvvFkJpeqtdd", "aKxQmPzRtWbNcVhL", "BLysXqbyXoFclDhp"])
def test_an_identifier_that_lacks_digits_is_masked(identifier: str) -> None:
    for text in ("550 refused, ref {}", "451 Greylisted ({})", "554 no [{}]:"):
        assert normalise_reply(text.format(identifier)) == text.format("<id>")


@pytest.mark.parametrize(
    "term",
    [
        "RecipientNotFound", "SenderNotAuthenticatedForGroup", "TenantAttribution", "MailFromDomain", "QuotaExceeded",
        "SMTPSEND.SuspiciousRemoteServerError", "InvalidRecipientAddress", "DKIMSignatureMissing", "UNAUTHENTICATED",
    ],
)  # fmt: skip
def test_a_term_is_no_identifier(term: str) -> None:
    assert normalise_reply(f"550 5.7.1 {term}; no") == f"550 5.7.1 {term}; no"


@pytest.mark.parametrize("address", ["2001:db8::1", "2001:db8::47:58f", "2001:db8::12:34", "[2001:db8::1:2:3]"])
def test_an_ipv6_address_that_looks_like_a_time_at_its_end(address: str) -> None:
    masked = "[<ip>]" if address.startswith("[") else "<ip>"
    assert normalise_reply(f"550 {address} refused at 12:30:11") == f"550 {masked} refused at <time>"
