# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading of resolvers, keys and records."""

from __future__ import annotations

import base64
import contextlib

import pytest
from ansible.module_utils.mail_dns import dkim, dmarc
from ansible.module_utils.mail_dns.resolve import Server, parse_server
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.1", Server("192.0.2.1")),
        ("192.0.2.1:5353", Server("192.0.2.1", 5353)),
        ("2001:db8::1", Server("2001:db8::1")),
        ("[2001:db8::1]:5353", Server("2001:db8::1", 5353)),
    ],
)
def test_resolvers(text: str, server: Server) -> None:
    assert parse_server(text) == server
    assert parse_server(str(server)) == server


@pytest.mark.parametrize("text", ["", "localhost", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "[::1", "1.2.3.4:x"])
def test_no_resolvers(text: str) -> None:
    with pytest.raises(ValueError, match="is no resolver"):
        parse_server(text)


@pytest.mark.parametrize("bits", [1024, 2048, 3072, 4096])
@pytest.mark.parametrize("form", [serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PublicFormat.PKCS1])
def test_key_lengths_agree_with_the_library(bits: int, form: serialization.PublicFormat) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits).public_key()
    raw = key.public_bytes(serialization.Encoding.DER, form)
    assert dkim.rsa_numbers(raw)[0].bit_length() == key.key_size == bits


def test_ed25519() -> None:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    parsed = dkim.parse_key(f"v=DKIM1; k=ed25519; p={base64.b64encode(raw).decode()}")
    assert (parsed.kind, parsed.bits) == ("ed25519", 256)
    with pytest.raises(ValueError, match="Ed25519"):
        dkim.parse_key("k=ed25519; p=AAAA")


@given(st.binary(max_size=200))
def test_no_bytes_make_the_key_reader_fail_otherwise(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert dkim.rsa_numbers(raw)[0] > 0


@given(st.text(max_size=200))
def test_no_text_makes_a_record_reader_fail_otherwise(text: str) -> None:
    for read in (dkim.parse_key, dmarc.parse_policy):
        with contextlib.suppress(ValueError):
            read(text)


def test_a_policy_that_only_reports() -> None:
    policy = dmarc.parse_policy("v=DMARC1; p=oops; rua=mailto:a@x.example,mailto:b@x.example; pct=20")
    assert (policy.policy, policy.percent, len(policy.rua)) == ("none", 20, 2)


@pytest.mark.parametrize(
    ("domain", "organisation"),
    [("a.b.example.co.uk", "example.co.uk"), ("news.harborlight.example", "harborlight.example"), ("co.uk", None)],
)
def test_organisational_domains(domain: str, organisation: str | None) -> None:
    assert dmarc.organisational_domain(domain) == organisation
