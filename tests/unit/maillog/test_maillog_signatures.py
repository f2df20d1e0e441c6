# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""By queue id: whose mail failed and why, and for whom opendkim signed it, in whatever order the lines come."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from test_maillog_aggregate import bounce, event, read, stamp

SENDER = "jane@news.harborlight.example"
QUEUE_ID = f"6AT1b{1:09d}"


def received(second: float = 0) -> str:
    return (
        f"{stamp(second)} host sendmail[7]: {QUEUE_ID}: from=<{SENDER}>, size=159, class=0, nrcpts=1,"
        " msgid=<1@x>, proto=ESMTP, daemon=MSA, relay=localhost [127.0.0.1]"
    )


def signed(domain: str, second: float = 1) -> str:
    return f"{stamp(second)} host opendkim[9]: {QUEUE_ID}: DKIM-Signature field added (s=cabal, d={domain})"


def section(*lines: str) -> dict[str, Any]:
    return read([event(line, number, number) for number, line in enumerate(lines)])


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_signature_for_another_domain_is_told_with_the_senders(order: tuple[int, ...]) -> None:
    lines = (received(), signed("control.example"), bounce(2, 1))
    found = section(*(lines[number] for number in order))
    assert found["foreign_signatures"] == [
        {"sender_domain": "news.harborlight.example", "signed_by": "control.example", "messages": 1}
    ]


def test_a_signature_for_the_senders_own_domain_is_in_order() -> None:
    assert section(received(), signed("news.harborlight.example"))["foreign_signatures"] == []


def test_a_signature_whose_sender_is_not_logged_accuses_nobody() -> None:
    assert section(signed("control.example"))["foreign_signatures"] == []


@pytest.mark.parametrize("order", list(permutations(range(2))))
def test_who_wrote_to_whom_in_vain_and_why(order: tuple[int, ...]) -> None:
    lines = (received(), bounce(2, 1, to="<a@x.example>,<b@x.example>"))
    bounces = section(*(lines[number] for number in order))["bounces"]
    (sender,) = bounces["senders"]
    assert (sender["recipients"], sender["reasons"]) == (2, {"recipient_unknown": 2})
    assert "jane" not in sender["sender"]
    assert bounces["sender_domains"] == [
        {"domain": "news.harborlight.example", "recipients": 2, "reasons": {"recipient_unknown": 2}}
    ]


def test_a_sender_that_is_not_logged_is_no_domain() -> None:
    assert section(bounce(2, 1))["bounces"]["sender_domains"] == [
        {"domain": "(not logged)", "recipients": 1, "reasons": {"recipient_unknown": 1}}
    ]
