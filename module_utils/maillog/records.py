# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a line of a mail tier's log says, whatever program wrote it.

Records are named tuples and not dataclasses: they are made once a line, and a frozen dataclass costs several times as
much to make.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias

Outcome = Literal["sent", "deferred", "bounced", "rejected", "held"]

# One address of a `to=` list: commas inside a quoted local part do not separate.
_RECIPIENT = re.compile(r'(?:"(?:[^"\\]|\\.)*+"|\\.|[^",\\])++')


def split_recipients(to: str) -> list[str]:
    """The addresses of a `to=` list without angle brackets; commas in quoted local parts do not separate."""
    if '"' not in to and "\\" not in to:
        if "," not in to:
            return [to.strip("<>")] if to else []
        return [address.strip("<>") for address in to.split(",") if address]
    return [address.strip("<>") for address in _RECIPIENT.findall(to)]


class Delivery(NamedTuple):
    """One attempt to deliver a message to one or several recipients (sendmail's `to=` line).

    `relay` has neither brackets' address nor a dot at the end; `relay_ip` is the address in brackets. `delay` is as
    logged (`1+04:13:17`). A field that the line lacks is None; `stat` is "" on a line that was cut before it.
    """

    queue_id: str
    to: str
    ctladdr: str | None
    delay: str
    mailer: str | None
    relay: str | None
    relay_ip: str | None
    dsn: str | None
    reply: str | None
    stat: str
    outcome: Outcome

    def recipients(self) -> list[str]:
        """The addresses of the `to=` list without angle brackets; local users, files and programs as they stand."""
        return split_recipients(self.to)


class Received(NamedTuple):
    """A message that was taken in, or whose transaction ended (`from=` line). `sender` is "" for the null sender."""

    queue_id: str
    sender: str
    size: int
    recipients: int
    relay: str | None
    relay_ip: str | None


class Rejection(NamedTuple):
    """An SMTP transaction that this tier refused.

    `stage` is where (`connect`, `ehlo`, `mail`, `rcpt`, `eom`, `starttls`), `kind` how it is logged: `ruleset`,
    `milter`, `milter_down`, `user_unknown`, `refused` (`<a>... text`), `too_many_recipients`, `too_big`, `syserr`.
    `reply` is the answer with its codes where they are logged, else the text alone. `relay` is None where the line has
    none; the `from=` line of the same queue id has it.
    """

    queue_id: str | None
    kind: str
    stage: str
    address: str | None
    relay: str | None
    relay_ip: str | None
    reply: str


class Notice(NamedTuple):
    """A notification that sendmail made (`kind` `dsn`, `sender`, `return`, `postmaster`); `expired`: it gave up."""

    queue_id: str
    notice_id: str
    kind: str
    text: str
    expired: bool


class Other(NamedTuple):
    """A line of another kind: `loop`, `config`, `hosts_pin`, `sync_users`, `entrypoint`, `supervisor`, `opendkim`,
    `dovecot`, `daemon` (sendmail started), `mail` (anything else in the mail facility), `cut` (a delivery line that was
    cut before it says anything), `stray` (no known shape)."""

    kind: str
    text: str


Record: TypeAlias = Delivery | Received | Rejection | Notice | Other


class Line(NamedTuple):
    """One parsed line.

    `stamp` is the prefix's time, in milliseconds since 1970 (None where the line has none); `precise`: the prefix has
    fractions of a second, so that an identical line is the same line again. `pid` is None for lines without one.
    """

    stamp: int | None
    precise: bool
    pid: int | None
    record: Record
