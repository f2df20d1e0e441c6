# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How old a map may be: what the address maps and the loops that build them are both measured by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .time import parse_rfc3339

#: Maps that the loop rebuilds and sendmail reads, by tier. virtusertable of smtp-in is built and never read.
REBUILT = {
    "imap": ("/etc/mail/access", "/etc/mail/virtusertable"),
    "smtp-in": ("/etc/mail/access", "/etc/mail/mailertable"),
    "smtp-out": ("/etc/mail/mailertable",),
}


@dataclass(frozen=True)
class Limits:
    """When a map is stale.

    ``interval_seconds`` is the loop's own interval, ``poll_seconds`` its long poll, ``slack_seconds`` the scan and
    makemap on top.
    """

    interval_seconds: float = 900
    poll_seconds: float = 20
    slack_seconds: float = 120

    @property
    def stale_after_seconds(self) -> float:
        """A healthy map is never older."""
        return self.interval_seconds + self.poll_seconds + self.slack_seconds


def minutes(seconds: float) -> str:
    """A duration in words short enough for a table."""
    if seconds < 120:
        return f"{round(seconds)} s"
    if seconds < 7200:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3600)} h"


def epoch(text: Any) -> float | None:
    """An RFC 3339 time as epoch seconds; None for what is none."""
    try:
        return parse_rfc3339(str(text)).timestamp() if text else None
    except ValueError:
        return None
