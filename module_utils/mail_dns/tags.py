# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of C(tag=value) pairs that DKIM and DMARC records are (RFC 6376, 3.2)."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def parse_tags(text: str) -> dict[str, str]:
    """Return the tags in order; ValueError says what is wrong. Names keep their case, values lose outer white space."""
    tags: dict[str, str] = {}
    for part in text.split(";"):
        if not part.strip():
            continue
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or not _NAME.fullmatch(name):
            raise ValueError(f"'{part.strip()[:60]}' is no tag=value")
        if name in tags:
            raise ValueError(f"the tag {name} stands twice")
        tags[name] = value.strip()
    if not tags:
        raise ValueError("it holds no tag")
    return tags
