# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""DMARC records (RFC 7489 and its successor): policy, alignment, where reports go.

The successor finds the organisational domain by asking one name after another upwards. For a name that is one label
below its registered domain, as all of ours are, that comes to the same record as the Public Suffix List does.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from .tags import parse_tags

POLICIES = ("none", "quarantine", "reject")


@dataclass(frozen=True)
class Policy:
    """A domain's policy. C(testing): receivers are asked not to apply it yet.

    C(nonexistent_policy): for subdomains that DNS does not know at all (np, of the successor).
    """

    policy: str
    subdomain_policy: str
    nonexistent_policy: str
    dkim_alignment: str
    spf_alignment: str
    percent: int
    testing: bool
    rua: tuple[str, ...]


def records_of(texts: tuple[str, ...]) -> list[str]:
    """The DMARC records among a name's TXT records."""
    return [text for text in texts if re.match(r"\s*v\s*=\s*DMARC1\s*(;|$)", text)]


def parse_policy(text: str) -> Policy:
    """Parse a record; ValueError says why a receiver would not use it."""
    tags = {name.lower(): value for name, value in parse_tags(text).items()}
    rua = tuple(part.strip() for part in tags.get("rua", "").split(",") if part.strip())
    policy = tags.get("p", "").lower()
    if policy not in POLICIES:
        # RFC 7489, 6.6.3: without a valid p a record with rua counts as p=none, any other is ignored.
        if not any(part.lower().startswith("mailto:") for part in rua):
            raise ValueError(f"p={policy[:20] or '(nothing)'} is no policy")
        policy = "none"
    subdomain = tags.get("sp", policy).lower()
    subdomain = subdomain if subdomain in POLICIES else policy
    nonexistent = tags.get("np", subdomain).lower()
    percent = tags.get("pct", "100")
    return Policy(
        policy=policy,
        subdomain_policy=subdomain,
        nonexistent_policy=nonexistent if nonexistent in POLICIES else subdomain,
        dkim_alignment="strict" if tags.get("adkim", "r").lower() == "s" else "relaxed",
        spf_alignment="strict" if tags.get("aspf", "r").lower() == "s" else "relaxed",
        percent=int(percent) if re.fullmatch(r"\d{1,2}|100", percent, re.ASCII) else 100,
        # The successor's way to ask for a milder policy, in place of pct.
        testing=tags.get("t", "n").lower() == "y",
        rua=rua,
    )


def aligned(domain: str, other: str, mode: str) -> bool:
    """Whether an authenticated domain speaks for a sender's: the same, or (relaxed) of the same registered domain."""
    if domain == other:
        return True
    return mode == "relaxed" and organisational_domain(domain) == (organisational_domain(other) or other)


def organisational_domain(domain: str) -> str | None:
    """The domain that was registered, None for a public suffix itself."""
    found = _public_suffixes().privatesuffix(domain)
    return str(found) if found else None


@functools.cache
def _public_suffixes() -> Any:
    # Only here: the list takes a while to read, and most domains have a record of their own.
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList()
