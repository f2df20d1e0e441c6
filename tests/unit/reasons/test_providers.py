# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The provider behind a relay: shipped names, shortened names, the Public Suffix List as the fallback."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.maillog.providers import UNKNOWN, ProviderTable, registrable_domain
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("relay", "domain", "name", "registrable"),
    [
        ("gmail-smtp-in.l.google.com.", None, "Google", "google.com"),
        ("ASPMX.L.Google.com", "firm.example", "Google", "google.com"),
        ("firm-example.mail.protection.outlook.com.", None, "Microsoft", "outlook.com"),
        ("firm.h-v1.mx.microsoft", None, "Microsoft", "mx.microsoft"),
        ("ivybank-jasmine-ex...ction.outlook.com.", None, "Microsoft", "outlook.com"),
        ("cluster-of-many-na...r1.pphosted.com", None, "Proofpoint", "pphosted.com"),
        ("somebody-or-other...spamprotection.com.", None, "SiteGround", None),
        ("mta5.am0.yahoodns.net", None, "Yahoo", "yahoodns.net"),
        ("mx01.mail.icloud.com", None, "Apple", "icloud.com"),
        ("mx00.emig.gmx.net", None, "GMX and 1&1", "gmx.net"),
        ("eu-smtp-inbound-1.mimecast.com", None, "Mimecast", "mimecast.com"),
        ("d12345a.ess.barracudanetworks.com", None, "Barracuda", "barracudanetworks.com"),
        ("esa1.hc1-2.iphmx.com", None, "Cisco", "iphmx.com"),
        ("in1-smtp.messagingengine.com", None, "Fastmail", "messagingengine.com"),
        ("mx.zoho.com", None, "Zoho", "zoho.com"),
        ("mx1.comcast.net", None, "Comcast", "comcast.net"),
        ("mx1.mail.ovh.net", None, "OVH", "ovh.net"),
        ("inbound-smtp.us-east-1.amazonaws.com", None, "Amazon", None),
        ("mx.small.co.uk", None, "small.co.uk", "small.co.uk"),
        (None, "gmail.com", "Google", "gmail.com"),
        (None, "mail.firm.co.jp", "firm.co.jp", "firm.co.jp"),
        ("[192.0.2.1]", "yahoo.co.uk", "Yahoo", "yahoo.co.uk"),
        ("notgoogle.com", None, "notgoogle.com", "notgoogle.com"),
        ("google.com.evil.example", None, "evil.example", "evil.example"),
    ],
)
def test_provider(
    providers: dict[str, Any], relay: str | None, domain: str | None, name: str, registrable: str | None
) -> None:
    found = ProviderTable(providers).provider(relay, domain)
    assert found.name == name
    if registrable is not None:
        assert found.registrable == registrable


def test_nothing_known() -> None:
    assert ProviderTable({"providers": []}).provider(None, None) == UNKNOWN
    assert ProviderTable({"providers": []}).provider("localhost", "") == UNKNOWN


def test_an_operators_provider_stands_in_front(providers: dict[str, Any]) -> None:
    own = {"name": "Our partner", "mx": ["google.com", "partner.example"]}
    table = ProviderTable({"providers": [own, *providers["providers"]]})
    assert table.provider("mx.partner.example").name == "Our partner"
    assert table.provider("gmail-smtp-in.l.google.com").name == "Our partner"
    assert table.provider("mx.googlemail.com").name == "Google"


@pytest.mark.parametrize(
    ("host", "domain"),
    [("a.b.co.uk", "b.co.uk"), ("192.0.2.1", None), ("localhost", None), ("[192.0.2.1]", None), ("co.uk", None)],
)
def test_registrable_domain(host: str, domain: str | None) -> None:
    assert registrable_domain(host) == domain


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_name_is_taken(relay: str, domain: str) -> None:
    table = ProviderTable({"providers": [{"name": "X", "mx": ["x.example"]}]})
    assert isinstance(table.provider(relay, domain).name, str)
