# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where following the runbooks by hand misreads a log, and what the engine makes of the same lines.

The numbers are those of the list of such defects that the project keeps; those that need containers or a whole run
stand in tests/playbook, those of the judgement in tests/unit/verdict.
"""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.cabalmail.time import epoch_ms, format_rfc3339
from ansible.module_utils.maillog.aggregate import Event
from maillog_corpus import aggregate, classifier, counts, events, section, truth

NOON = epoch_ms("2026-11-24T12:00:00Z")


def line(second: int, number: int, to: str, rest: str, pid: int = 7) -> Event:
    """A delivery line of smtp-out."""
    when = NOON + second * 1000
    stamp = format_rfc3339(when, milliseconds=True).replace("Z", "000+00:00")
    text = (
        f"{stamp} host sendmail[{pid}]: 6AT1b{number:09d}: to=<{to}>, delay=00:00:00, xdelay=00:00:00, mailer=esmtp,"
        f" pri=30158, {rest}"
    )
    return Event("smtp-out/smtp-out/aa", when, text, when + 500, f"{when:014d}{number:042d}")


REFUSED = "relay=sinkhole.internal. [10.0.3.9], dsn=5.1.1, reply=550 5.1.1 no such user, stat=User unknown"
LATER = "relay=sinkhole.internal. [10.0.3.9], dsn=4.3.2, reply=421 4.3.2 later, stat=Deferred: 421 4.3.2 later"


def read(found: list[Event], tier: str = "smtp-out", **options: Any) -> dict[str, Any]:
    return aggregate(found, tier, **options).result("complete", [])


def test_a_stale_map_and_a_missing_user_are_told_apart_by_the_answer() -> None:
    """Defect 13: a stale map is `553 5.3.0 ... TEMPFAIL`, whatever `stat=` says; 5.1.1 is a missing user."""
    known = [row for row in truth()["smtp-in.relay.maillog"] if row["outcome"] == "bounced"]
    own = section("smtp-in.relay.maillog")["bounces"]["own_host"]
    for code, reason in (("5.3.0", "local_error"), ("5.1.1", "recipient_unknown")):
        wanted = [row for row in known if row["dsn_logged"] == code and row["mx_host"] == "imap.cabal.internal"]
        assert wanted
        assert {row["reason"] for row in wanted} == {reason}
        assert own["codes"][code] == len(wanted)
        assert own["reasons"][reason] >= len(wanted)


def test_bounces_without_dsn_are_counted_for_the_tier_whose_mail_it_was() -> None:
    """Defect 14: imap logs `reject=553 5.3.0` and `<a>... User unknown`; the metric's pattern is in none of them."""
    name = "imap.relay.maillog"
    assert counts()[name]["substring_dsn5_lines"] == 0
    unseen = section(name)["unseen"]
    assert unseen["recipients"] == unseen["kinds"]["reject_553"] + unseen["kinds"]["user_unknown"] == 11
    assert {row["ip"] for row in unseen["by_relay"]} == {"10.0.1.23"}, "all of it was relayed by smtp-in"


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("4.4.5", "congestion"),
        ("4.5.0", "protocol"),
        ("4.5.2", "syntax"),
        ("4.2.2", "mailbox full"),
        ("4.3.1", "mail system full"),
        ("4.3.2", "not accepting"),
        ("4.1.8", "sender"),
        ("4.7.1", "not authorized"),
    ],
)
def test_codes_mean_what_the_registry_says(code: str, word: str) -> None:
    """Defect 27: the runbook takes 4.5.x for congestion, which is 4.4.5, and names no 4.2.2, 4.3.x, 4.1.8 at all."""
    assert word in (classifier().code_text(code) or "").lower()


def test_lines_that_were_shipped_late_count_in_their_own_time() -> None:
    """Defect 33: after an outage of the way out the driver backfills with original times: no burst, and no silence."""
    found = [line(60 * minute, minute, f"a{minute}@x.example", REFUSED) for minute in range(0, 40, 4)]
    late = [one._replace(ingestion=NOON + 3_600_000) for one in found]
    result = read(late)
    assert result["bounces"]["peak"]["lines"] == read(found)["bounces"]["peak"]["lines"] == 8
    assert len(result["timeline"]) == 10
    assert result["coverage"]["max_lag_seconds"] == 3600
    assert result["coverage"]["last_event"] < result["coverage"]["last_ingested"]


def test_the_sinkhole_s_traffic_is_set_apart() -> None:
    """Defect 35: test traffic that bounces and defers on request is no fault, unless somebody real is on the line."""
    test = [line(number, number, f"t{number}@sinkhole.test", REFUSED) for number in range(20)]
    test += [line(100 + number, 100 + number, f"t{number}@sinkhole.test", LATER) for number in range(5)]
    real = line(200, 200, "b@sinkhole.test>,<a@x.example", REFUSED)
    result = read([*test, real])
    assert result["apart"] == {"domain": "sinkhole.test", "metric_lines": 20, "sent": 0, "deferred": 5, "bounced": 20}
    assert (result["bounces"]["lines"], result["bounces"]["recipients"], result["deferrals"]["lines"]) == (1, 2, 0)
    assert read(test, test_domain="")["bounces"]["lines"] == 20
    forged = line(1, 1, "sinkhole.test@x.example", f"{REFUSED} to=<a@sinkhole.test>")
    assert read([forged])["bounces"]["lines"] == 1


def test_the_restarts_of_sendmail_by_design_are_no_bounces_and_few_deferrals() -> None:
    """Defect 35: every 15 minutes sendmail is restarted, and whoever relays to it then is refused for a second."""
    name = "smtp-in.relay.maillog"
    refused = [one for one in events(name) if "Connection refused by imap" in one.message]
    result = read(refused, "smtp-in")
    assert (result["bounces"]["recipients"], result["deferrals"]["own_host"]["lines"]) == (0, len(refused))


def test_a_restarted_tailer_s_ten_lines_count_once() -> None:
    """Defect 37: identical to the microsecond and the process, with new event ids."""
    found = [line(second, second, f"a{second}@x.example", REFUSED) for second in range(30)]
    again = [
        one._replace(timestamp=one.timestamp + 60_000, event_id=f"x{number}") for number, one in enumerate(found[-10:])
    ]
    assert read([*found, *again])["bounces"]["lines"] == 30
