# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text maps that generate-config writes, a function of the tier and the rows of the table cabal-addresses.

Runs both inside a task (copied beside generate_config.py; standard library only) and in the sandbox, which puts
tasks into a declared state with it: there is one rendering of the maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

IMAP_HOST = "imap.cabal.internal"
MASTER_ALIASES = "postmaster: root\nmailer-daemon: postmaster\n"

# The .db files in the order in which they are built; a failure leaves the later ones as they were.
DATABASES = {
    "imap": ("/etc/mail/access", "/etc/mail/virtusertable"),
    "smtp-in": ("/etc/mail/access", "/etc/mail/virtusertable", "/etc/mail/mailertable"),
    "smtp-out": ("/etc/mail/mailertable",),
}


@dataclass(frozen=True)
class Row:
    """A row of cabal-addresses as far as the maps are concerned."""

    username: str
    subdomain: str
    tld: str
    user: str

    @property
    def domain(self) -> str:
        return f"{self.subdomain}.{self.tld}" if self.subdomain else self.tld

    @property
    def address(self) -> str:
        return f"{self.username}@{self.domain}"

    @property
    def owner(self) -> str:
        """What virtusertable says: several users sorted and joined. An apex row is written with ``user`` as it is."""
        return "_".join(self.owners) if self.subdomain else self.user

    @property
    def owners(self) -> list[str]:
        return sorted(self.user.split("/"))


def usable(row: Row) -> bool:
    """Rows whose username is empty or has white space are skipped; other odd rows are left for makemap to refuse."""
    return bool(row.username) and not any(character.isspace() for character in row.username)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in sorted(set(lines)))


def _domains(rows: list[Row]) -> list[str]:
    return [*{row.domain for row in rows}, *{row.tld for row in rows}]


def _access(rows: list[Row], known: str, unknown: str) -> str:
    addresses = [f"To:{row.address}\t{known}" for row in rows]
    return _lines([*addresses, *(f"To:{domain}\t{unknown}" for domain in _domains(rows))])


def _virtusertable(rows: list[Row]) -> str:
    return _lines(f"{row.address}\t{row.owner}" for row in rows)


def _aliases(rows: list[Row]) -> str:
    return _lines(f"{row.owner}: {', '.join(row.owners)}" for row in rows if row.subdomain and "/" in row.user)


def _mailertable(rows: list[Row]) -> str:
    tlds = {row.tld for row in rows}
    return _lines(f"{dot}{tld}\tsmtp:[{IMAP_HOST}]" for tld in tlds for dot in ("", "."))


def _key_table(rows: list[Row]) -> str:
    domains = {row.domain for row in rows if row.subdomain}
    return _lines(f"cabal._domainkey.{name} {name}:cabal:/etc/opendkim/keys/cabal" for name in domains)


def _signing_table(rows: list[Row]) -> str:
    domains = {row.domain for row in rows if row.subdomain}
    return _lines(f"*@{name} cabal._domainkey.{name}" for name in domains)


def _imap(rows: list[Row]) -> dict[str, str]:
    domains = _lines(_domains(rows))
    dynamic = _aliases(rows)
    return {
        "/etc/mail/access": _access(rows, "OK", "TEMPFAIL"),
        "/etc/mail/virtusertable": _virtusertable(rows),
        "/etc/mail/local-host-names": domains,
        "/etc/mail/relay-domains": domains,
        "/etc/aliases.dynamic": dynamic,
        "/etc/aliases": MASTER_ALIASES + dynamic,
    }


def _smtp_in(rows: list[Row]) -> dict[str, str]:
    domains = _lines(_domains(rows))
    return {
        "/etc/mail/access": _access(rows, "RELAY", "REJECT"),
        "/etc/mail/virtusertable": _virtusertable(rows),
        "/etc/mail/mailertable": _mailertable(rows),
        "/etc/mail/relay-domains": domains,
        "/etc/mail/masq-domains": domains,
    }


def _smtp_out(rows: list[Row]) -> dict[str, str]:
    return {
        "/etc/mail/mailertable": _mailertable(rows),
        "/etc/mail/masq-domains": _lines(_domains(rows)),
        "/etc/opendkim/KeyTable": _key_table(rows),
        "/etc/opendkim/SigningTable": _signing_table(rows),
        "/etc/opendkim/TrustedHosts": "127.0.0.1\n::1\nlocalhost\n",
    }


_RENDER: dict[str, Callable[[list[Row]], dict[str, str]]] = {"imap": _imap, "smtp-in": _smtp_in, "smtp-out": _smtp_out}


def render(tier: str, rows: Iterable[Row]) -> dict[str, str]:
    """Path of each text file of ``tier`` -> its content. ``rows`` may be odd; unusable ones are left out.

    A tier without maps (the sinkhole) has none.
    """
    return _RENDER[tier]([row for row in rows if usable(row)]) if tier in _RENDER else {}


def first_refusal(tier: str, texts: dict[str, str]) -> tuple[str, str] | None:
    """The first map of a pass that makemap refuses a line of, and what it says; None when it takes all of them."""
    for path in DATABASES.get(tier, ()):
        seen: set[str] = set()
        for number, line in enumerate(texts[path].splitlines(), 1):
            key, _, value = line.partition("\t")
            if not value.strip():
                return path, f"makemap: {path}: line {number}: no RHS for LHS {key}"
            if key.lower() in seen:
                return path, f"makemap: {path}: line {number}: key {key.lower()}: duplicate key"
            seen.add(key.lower())
    return None
