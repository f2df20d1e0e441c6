# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who runs the mailbox: the provider behind a relay or a recipient's domain.

A custom domain hides its provider, the name of its mail exchanger shows it. Names that the table doesn't know are
reduced to their registrable domain by the Public Suffix List.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from publicsuffixlist import PublicSuffixList

_HOST_NAME = re.compile(r"[\w-]+(?:\.[\w-]+)+\Z")
_SHORTENED = "..."
_CACHE = 20_000


class Provider(NamedTuple):
    """``name`` as people call it, else the registrable domain; ``registrable`` domain or ``None``."""

    name: str
    registrable: str | None


UNKNOWN = Provider("unknown", None)


@lru_cache(maxsize=1)
def _suffix_list() -> PublicSuffixList:
    return PublicSuffixList()


def load_suffixes() -> None:
    """Read the Public Suffix List now: processes that are forked afterwards share it."""
    _suffix_list()


def registrable_domain(host: str) -> str | None:
    """The domain that was registered, by the Public Suffix List; ``None`` for an address literal or a bare name."""
    host = host.strip("[].").lower()
    if not _HOST_NAME.match(host) or host.rpartition(".")[2].isdigit():
        return None
    found = _suffix_list().privatesuffix(host)
    return str(found) if found else None


def _suffixes(host: str) -> Iterator[str]:
    """``a.b.c`` gives ``a.b.c``, ``b.c``, ``c``."""
    while host:
        yield host
        host = host.partition(".")[2]


class ProviderTable:
    """The shipped table of providers (``data/providers.yml``), with an operator's additions in front.

    :param providers: ``{"providers": [{"name", "mx": [suffix], "domains": [domain]}]}``; the first to name one has it.
    """

    def __init__(self, providers: Mapping[str, Any]) -> None:
        self._mx: dict[str, str] = {}
        self._domains: dict[str, str] = {}
        for entry in providers.get("providers", ()):
            for suffix in entry.get("mx", ()):
                self._mx.setdefault(suffix.lower().strip("."), entry["name"])
            for domain in entry.get("domains", ()):
                self._domains.setdefault(domain.lower().strip("."), entry["name"])
        self._cache: dict[tuple[str | None, str | None], Provider] = {}

    def provider(self, relay_host: str | None, recipient_domain: str | None = None) -> Provider:
        """The provider of a relay, or where there was none (or only an address), of the recipient's domain.

        :param relay_host: as in ``relay=``: with or without the dot at the end, perhaps shortened in the middle.
        """
        key = (relay_host, recipient_domain)
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= _CACHE:
                self._cache.clear()
            found = self._cache[key] = self._by_relay(relay_host) or self._by_domain(recipient_domain) or UNKNOWN
        return found

    def _by_relay(self, relay_host: str | None) -> Provider | None:
        host = (relay_host or "").strip("[]. ").lower()
        if not host:
            return None
        if _SHORTENED in host:
            return self._by_shortened(host.rpartition(_SHORTENED)[2])
        registrable = registrable_domain(host)
        if registrable is None:
            return None
        return Provider(self._lookup(host) or registrable, registrable)

    def _lookup(self, host: str) -> str | None:
        return next((self._mx[suffix] for suffix in _suffixes(host) if suffix in self._mx), None)

    def _by_shortened(self, tail: str) -> Provider | None:
        """``ction.outlook.com``: sendmail cut the name in the middle, so the first label is a piece of one."""
        whole_labels = tail.partition(".")[2]
        registrable = registrable_domain(whole_labels)
        name = self._lookup(whole_labels)
        if name is None and tail.count("."):
            name = next((self._mx[suffix] for suffix in self._mx if suffix.endswith(tail)), None)
        if name is None and registrable is None:
            return None
        return Provider(name or str(registrable), registrable)

    def _by_domain(self, recipient_domain: str | None) -> Provider | None:
        domain = (recipient_domain or "").strip(".>< ").lower()
        if not domain:
            return None
        name = next((self._domains[suffix] for suffix in _suffixes(domain) if suffix in self._domains), None)
        registrable = registrable_domain(domain)
        return Provider(name or registrable or domain, registrable)
