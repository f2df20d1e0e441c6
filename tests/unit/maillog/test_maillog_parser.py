# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E501 - log lines are as long as they are
"""Shapes of lines that the corpus lacks, and text that tries to be a field."""

from __future__ import annotations

import json
import time

import pytest
from ansible.module_utils.cabalmail.time import epoch_ms
from ansible.module_utils.maillog.parser import Parser
from ansible.module_utils.maillog.records import Delivery, Notice, Other, Received, Rejection, split_recipients
from hypothesis import given
from hypothesis import strategies as st

NOW = epoch_ms("2026-11-24T21:53:14Z")
BODY = "6AT1bFH9016237: to=<tara@x.example>, delay=00:00:01, xdelay=00:00:01, mailer=esmtp, pri=30158, relay=mx1.x.example. [192.0.2.153], dsn=5.1.1, reply=550 5.1.1 no such user, stat=User unknown"
PREFIX = "2026-11-24T21:53:14.123456+00:00 host sendmail[16239]: "


def record_of(line: str, event_ms: int = NOW) -> object:
    return Parser().parse(line, event_ms).record


def delivery(body: str) -> Delivery:
    record = record_of(PREFIX + body)
    assert isinstance(record, Delivery), record
    return record


@pytest.mark.parametrize(
    ("prefix", "stamp", "precise", "pid"),
    [
        (PREFIX, "2026-11-24T21:53:14.123Z", True, 16239),
        ("2026-11-24T22:53:14.1+01:00 host sendmail[16239]: ", "2026-11-24T21:53:14.100Z", True, 16239),
        ("2026-11-24T21:53:14Z host sm-mta[16239]: ", "2026-11-24T21:53:14Z", False, 16239),
        ("Nov 24 21:53:14 host sendmail[16239]: ", "2026-11-24T21:53:14Z", False, 16239),
        ("<22>Nov 24 21:53:14 host sendmail[16239]: ", "2026-11-24T21:53:14Z", False, 16239),
        ("<22>1 2026-11-24T21:53:14.123456Z host sendmail 16239 - - ", "2026-11-24T21:53:14.123Z", True, 16239),
        ('<22>1 2026-11-24T21:53:14Z host sendmail 16239 ID47 [x@1 a="b\\]c"] ', "2026-11-24T21:53:14Z", False, 16239),
        # The blank that syslog's text began with, and two elements of structured data.
        ("<22>1 2026-11-24T21:53:14.123456Z host sendmail 16239 - -  ", "2026-11-24T21:53:14.123Z", True, 16239),
        ('<22>1 2026-11-24T21:53:14Z host sendmail 1 - [x@1 a="b"][y@1 c="d"] ', "2026-11-24T21:53:14Z", False, 1),
        ("sendmail[16239]: ", None, False, 16239),
        ("", None, False, None),
    ],
)
def test_prefixes(prefix: str, stamp: str | None, precise: bool, pid: int | None) -> None:
    line = Parser().parse(prefix + BODY, NOW)
    assert isinstance(line.record, Delivery)
    assert line.record.dsn == "5.1.1"
    assert (line.stamp, line.precise, line.pid) == (epoch_ms(stamp) if stamp else None, precise, pid)


@pytest.mark.parametrize("key", ["log", "message", "MESSAGE"])
def test_json_around_a_line(key: str) -> None:
    line = Parser().parse(json.dumps({"stream": "stdout", key: PREFIX + BODY + "\n"}), NOW)
    assert isinstance(line.record, Delivery)
    assert line.record.stat == "User unknown"
    assert line.precise


@pytest.mark.parametrize(
    ("prefix", "event", "stamp"),
    [
        ("Dec 31 23:59:59", "2027-01-01T00:00:03Z", "2026-12-31T23:59:59Z"),
        ("Jan  1 00:00:01", "2026-12-31T23:59:58Z", "2027-01-01T00:00:01Z"),
        ("Feb 29 12:00:00", "2028-02-29T12:00:01Z", "2028-02-29T12:00:00Z"),
    ],
)
def test_a_prefix_without_a_year_takes_the_nearest(prefix: str, event: str, stamp: str) -> None:
    assert Parser().parse(f"{prefix} host sendmail[1]: x", epoch_ms(event)).stamp == epoch_ms(stamp)


@pytest.mark.parametrize("queue_id", ["AA12345", "UAA12345", "h1A2B3C4012345", "6AT1bFH9016237", "g8PK2x1A12345678"])
def test_queue_ids_of_every_generation(queue_id: str) -> None:
    assert delivery(BODY.replace("6AT1bFH9016237", queue_id)).queue_id == queue_id


@pytest.mark.parametrize(
    ("relay", "host", "address"),
    [
        ("mx1.x.example. [192.0.2.153]", "mx1.x.example", "192.0.2.153"),
        ("MX1.x.example [IPv6:2001:db8::1]", "mx1.x.example", "IPv6:2001:db8::1"),
        ("[imap.cabal.internal]", "imap.cabal.internal", None),
        ("[192.0.2.1]", None, "192.0.2.1"),
        ("[192.0.2.1] [192.0.2.1]", "[192.0.2.1]", "192.0.2.1"),
        ("x.example", "x.example", None),
        ("a-long-name...mple.com. [192.0.2.1]", "a-long-name...mple.com", "192.0.2.1"),
        ("dsn=5,stat=Sent.x.example. [192.0.2.1]", "dsn=5,stat=sent.x.example", "192.0.2.1"),
    ],
)
def test_relays(relay: str, host: str | None, address: str | None) -> None:
    record = delivery(BODY.replace("mx1.x.example. [192.0.2.153]", relay))
    assert (record.relay, record.relay_ip, record.dsn) == (host, address, "5.1.1")


@pytest.mark.parametrize(
    ("to", "recipients"),
    [
        ("<a@x.example>", ["a@x.example"]),
        ("<a@x.example>,<b@y.example>", ["a@x.example", "b@y.example"]),
        ("bob,alice", ["bob", "alice"]),
        ('<"a, b"@x.example>,<c@y.example>', ['"a, b"@x.example', "c@y.example"]),
        (r'<"a\", delay=00:00:00, b"@x.example>', [r'"a\", delay=00:00:00, b"@x.example']),
        ('"|/usr/bin/prog a, b"', ['"|/usr/bin/prog a, b"']),
        ("/dev/null", ["/dev/null"]),
        ("<a@x.example>,<b@y.example>, [more]", ["a@x.example", "b@y.example"]),
    ],
)
def test_recipient_lists(to: str, recipients: list[str]) -> None:
    assert delivery(BODY.replace("<tara@x.example>", to)).recipients() == recipients


def test_control_address_and_missing_fields() -> None:
    record = delivery(
        "6AT1bFH9016237: to=nobody, ctladdr=<team@x.example> (8/0), delay=1+02:03:04, mailer=local, pri=1, dsn=5.1.1, stat=User unknown"
    )
    assert (record.ctladdr, record.delay, record.relay, record.reply) == (
        "<team@x.example> (8/0)",
        "1+02:03:04",
        None,
        None,
    )


@pytest.mark.parametrize("end", range(len(BODY)))
def test_a_line_cut_anywhere(end: int) -> None:
    """Whatever is left, it is a delivery with what it says, or said to be cut."""
    record = record_of(PREFIX + BODY[:end])
    if isinstance(record, Delivery):
        assert record.queue_id == "6AT1bFH9016237"
        assert record.outcome in ("bounced", "held")
        assert record.dsn in (None, "5.1.1")
    else:
        assert isinstance(record, Other)
    if "to=" in BODY[:end] and not isinstance(record, Delivery):
        assert record.kind == "cut"


def test_a_status_after_a_cut_is_found() -> None:
    """sendmail cuts with dots what doesn't fit its buffer, and writes the status after it."""
    record = delivery(
        "6AT1bFH9016237: to=<a@x.example>, delay=00:00:01, mailer=esmtp, pri=3, relay=mx.x.exa..., stat=User unknown"
    )
    assert (record.outcome, record.stat) == ("bounced", "User unknown")


@pytest.mark.parametrize(
    ("body", "kind", "stage", "address"),
    [
        (
            "6AT1bFH9016237: ruleset=check_rcpt, arg1=<a@x.example>, relay=h.example [192.0.2.1], reject=550 5.2.1 <a@x.example>... Mailbox disabled",
            "ruleset",
            "rcpt",
            "a@x.example",
        ),
        (
            "ruleset=check_relay, arg1=[192.0.2.1], arg2=192.0.2.1, relay=[192.0.2.1], reject=421 4.7.0 Too many",
            "ruleset",
            "connect",
            None,
        ),
        (
            "6AT1bFH9016237: Milter: to=<a@x.example>, reject=451 4.3.2 Please try again later",
            "milter",
            "rcpt",
            "a@x.example",
        ),
        ("6AT1bFH9016237: Milter: data, reject=550 5.7.1 no", "milter", "eom", None),
        (
            "6AT1bFH9016237: Milter: connect: host=h.example, addr=192.0.2.1, rejecting commands",
            "milter",
            "connect",
            None,
        ),
        ("6AT1bFH9016237: Milter: initialization failed, temp failing commands", "milter_down", "connect", None),
        ("6AT1bFH9016237: <a@x.example>... User unknown", "user_unknown", "rcpt", "a@x.example"),
        (
            '6AT1bFH9016237: <"x>... User unknown"@x.example>... Relaying denied',
            "refused",
            "rcpt",
            '"x>... User unknown"@x.example',
        ),
        ("6AT1bFH9016237: Too many recipients", "too_many_recipients", "rcpt", None),
    ],
)
def test_refusals(body: str, kind: str, stage: str, address: str | None) -> None:
    record = record_of(PREFIX + body)
    assert isinstance(record, Rejection), record
    assert (record.kind, record.stage, record.address) == (kind, stage, address)


def test_a_tls_rule_of_the_client_side_refuses_nobody() -> None:
    assert not isinstance(
        record_of(PREFIX + "ruleset=tls_server, arg1=NONE, relay=h.example, reject=454 4.7.0 weak"), Rejection
    )


@pytest.mark.parametrize(
    ("text", "kind", "expired"),
    [("DSN: User unknown", "dsn", False), ("return to sender: User unknown", "return", False),
     ("sender notify: Warning: could not send message for past 4 hours", "sender", False),
     ("sender notify: Cannot send message for 4 days", "sender", True),
     ("postmaster notify: Service unavailable", "postmaster", False)],
)  # fmt: skip
def test_notices(text: str, kind: str, expired: bool) -> None:
    record = record_of(f"{PREFIX}6AT1bFH9016237: 6AT1bFH9016239: {text}")
    assert isinstance(record, Notice)
    assert (record.queue_id, record.notice_id, record.kind, record.expired) == (
        "6AT1bFH9016237",
        "6AT1bFH9016239",
        kind,
        expired,
    )


def test_the_relay_after_a_hostile_message_id() -> None:
    record = record_of(
        PREFIX
        + "6AT1bFH9016237: from=<>, size=145, class=0, nrcpts=1, msgid=<x, relay=evil.example [10.9.9.9], stat=Sent>,"
        " proto=ESMTP, daemon=MSA, relay=h.example [192.0.2.7] (may be forged)"
    )
    assert isinstance(record, Received)
    assert (record.sender, record.relay, record.relay_ip) == ("", "h.example", "192.0.2.7")


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("[reconfigure] Done.", "loop"), ("[generate-config] Done.", "config"), ("[hosts-pin] daemon: target=x", "hosts_pin"),
        ("[sync-users] Done.", "sync_users"), ("[entrypoint] Starting", "entrypoint"),
        ("2026-08-22 17:37:22,123 INFO spawned: 'reconfigure' with pid 7", "supervisor"),
        ("2026-11-24 04:29:34 imap-login: Info: Login: user=<b>", "dovecot"),
        ("2026-11-24T21:53:14.1+00:00 h opendkim[7]: 6AT1bFH9016237: DKIM-Signature field added (s=cabal, d=x.example)", "opendkim"),
        ("2026-11-24T21:53:14.1+00:00 h sendmail[7]: starting daemon (8.17.1): SMTP", "daemon"),
        ("An error occurred (ThrottlingException) when calling the Scan operation", "stray"), ("", "stray"), ("{", "stray"),
    ],
)  # fmt: skip
def test_other_programs(line: str, kind: str) -> None:
    record = record_of(line)
    assert isinstance(record, Other)
    assert record.kind == kind


# -- text that tries to be a field ---------------------------------------------------------------------------------------

BITS = st.sampled_from(
    [", stat=Sent", ", stat=Deferred", ", stat=Deferred: ", ", stat=User unknown", ", dsn=2.0.0", ", reply=250 ok", "450 4.7.1 ",
     "550 5.1.1 ", "to=<x@y.example>", ", delay=00:00:00", ", relay=[10.1.2.3]", ", ctladdr=<r> (0/0)", " (", ")", "\\", '"', "<", ">", "a", " ", ","]
)  # fmt: skip
HOSTILE = st.lists(BITS | st.text(max_size=6), max_size=14).map("".join)
PHRASES = ["User unknown", "Service unavailable", "Data format error", "Host unknown", "Remote protocol error"]


def line_with(reply: str, stat: str, to: str = "<tara@x.example>") -> str:
    return (
        f"{PREFIX}6AT1bFH9016237: to={to}, delay=00:00:01, xdelay=00:00:01, mailer=esmtp, pri=30158,"
        f" relay=mx1.x.example. [192.0.2.153], dsn=5.0.0, reply={reply}, stat={stat}"
    )


@given(HOSTILE, st.sampled_from(PHRASES))
def test_a_permanent_answer_forges_nothing(text: str, phrase: str) -> None:
    record = record_of(line_with(f"550 {text}", phrase))
    assert isinstance(record, Delivery)
    assert (record.reply, record.stat, record.outcome) == (f"550 {text}", phrase, "bounced")
    assert (record.to, record.relay, record.dsn) == ("<tara@x.example>", "mx1.x.example", "5.0.0")


@given(HOSTILE)
def test_a_temporary_answer_forges_nothing(text: str) -> None:
    reply = f"450 {text}"
    record = record_of(line_with(reply, f"Deferred: {reply}"))
    assert isinstance(record, Delivery)
    assert (record.reply, record.stat, record.outcome) == (reply, f"Deferred: {reply}", "deferred")


@given(HOSTILE, st.sampled_from(["", ": Connection reset by x.", ": No such file or directory", ": 450 cut"]))
def test_a_temporary_answer_with_another_status_stays_a_deferral(text: str, rest: str) -> None:
    record = record_of(line_with(f"450 {text}", f"Deferred{rest}"))
    assert isinstance(record, Delivery)
    assert record.outcome == "deferred"


@given(HOSTILE)
def test_the_words_of_an_acceptance_forge_nothing(text: str) -> None:
    body = BODY.partition(", dsn=")[0]
    record = record_of(f"{PREFIX}{body}, dsn=2.0.0, stat=Sent ({text})")
    assert isinstance(record, Delivery)
    assert (record.dsn, record.reply, record.stat, record.outcome) == ("2.0.0", None, f"Sent ({text})", "sent")


@given(HOSTILE.map(lambda text: text.replace("\\", "").replace('"', "")))
def test_a_quoted_recipient_forges_nothing(text: str) -> None:
    address = f'"{text}"@x.example'
    record = record_of(line_with("550 no", "User unknown", f"<{address}>"))
    assert isinstance(record, Delivery)
    assert (record.to, record.reply, record.stat) == (f"<{address}>", "550 no", "User unknown")
    assert len(split_recipients(record.to)) == 1
    refused = record_of(
        f"{PREFIX}6AT1bFH9016237: ruleset=check_rcpt, arg1=<{address}>, relay=h.example [192.0.2.1], reject=550 5.2.1 <{address}>... no"
    )
    assert isinstance(refused, Rejection)
    assert (refused.relay, refused.reply) == ("h.example", f"550 5.2.1 <{address}>... no")


@given(st.text(max_size=300), st.integers(-(2**62), 2**62))
def test_no_line_raises(text: str, event_ms: int) -> None:
    for line in (
        text,
        PREFIX + text,
        f"{PREFIX}6AT1bFH9016237: {text}",
        f"{PREFIX}6AT1bFH9016237: to={text}",
        "{" + text,
    ):
        Parser().parse(line, event_ms)


UNITS = ["a", ",", ", ", '"', "\\", "<", ">", "[", "{", "(", "=", ", stat=", ", stat=Deferred: 450 ", ", reply=450 ", ", to=", "to=<a>,",
         ", relay=", ", delay=0", ">... ", "Milter: ", '{"log":', "0", "[]", ", reject="]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("start", ["", PREFIX, PREFIX + "6AT1bFH9016237: to=", PREFIX + "6AT1bFH9016237: from=", PREFIX + BODY + " ",
                                   PREFIX + "6AT1bFH9016237: ruleset=check_rcpt, arg1=", PREFIX + "6AT1bFH9016237: <",
                                   PREFIX + BODY.replace("550 5.1.1", "450 4.1.1"), PREFIX + "6AT1bFH9016237: Milter: to="])  # fmt: skip
def test_time_is_linear(start: str, unit: str) -> None:
    """A line of the largest size that CloudWatch takes, of the least favourable kind, in a fraction of a second."""
    line = start + unit * (256_000 // len(unit))
    began = time.monotonic()
    Parser().parse(line, NOW)
    assert time.monotonic() - began < 2


MORE = "mailer=esmtp, tls_verify=OK, auth=NONE, pri=30158"


@pytest.mark.parametrize(
    ("fields", "relay", "address"),
    [
        (f"{MORE}, relay=mx.b.example. [192.0.2.1]", "mx.b.example", "192.0.2.1"),
        ("mailer=esmtp, pri=1, x_new=a, relay=mx.b.example. [192.0.2.1], tls_rpt=b", "mx.b.example", "192.0.2.1"),
        ("mailer=relay, pri=1, relay=mx.b.example.:587 [192.0.2.1]", "mx.b.example", "192.0.2.1"),
        ("mailer=relay, pri=1, relay=[127.0.0.1]:2525 [127.0.0.1]", "[127.0.0.1]", "127.0.0.1"),
        ("mailer=relay, pri=1, relay=[IPv6:2001:db8::1] [IPv6:2001:db8::1]", "[ipv6:2001:db8::1]", "IPv6:2001:db8::1"),
    ],
)
def test_fields_that_a_build_adds_and_ports_of_a_relay(fields: str, relay: str, address: str) -> None:
    line = (
        f"6AOCAJIg909452: to=<a@b.example>, delay=00:00:00, {fields}, dsn=5.1.1, reply=550 5.1.1 no, stat=User unknown"
    )
    record = Parser().parse(f"2026-11-24T21:24:33.014523+00:00 h sendmail[1326]: {line}", 1_795_557_600_000).record
    assert isinstance(record, Delivery)
    assert (record.relay, record.relay_ip) == (relay, address)
    assert (record.dsn, record.reply, record.stat) == ("5.1.1", "550 5.1.1 no", "User unknown")


TEMPORARY = "dsn=4.2.0, reply=450 4.2.0 come back, stat=Deferred: 450 4.2.0 come back"
SENT = "dsn=2.0.0, reply=250 2.0.0 taken, stat=Sent (taken)"


@pytest.mark.parametrize(("fields", "outcome"), [(TEMPORARY, "deferred"), (SENT, "sent")])
def test_a_line_cut_within_its_status_accuses_nobody(fields: str, outcome: str) -> None:
    body = BODY[: BODY.index("dsn=")] + fields
    for end in range(body.index("dsn="), len(body) + 1):
        assert delivery(body[:end]).outcome in (outcome, "held"), body[:end]
    for end in range(body.index("stat="), len(body) + 1):
        assert delivery(body[:end]).outcome == outcome, body[:end]


@pytest.mark.parametrize(
    ("dsn", "stat", "outcome"),
    [
        ("4.0.0", "Operating system error", "deferred"),
        ("4.0.0", "I/O error: Input/output error", "deferred"),
        ("5.3.0", "Internal error", "bounced"),
        ("5.0.0", "Can't create output", "bounced"),
    ],
)
def test_exit_statuses_that_sendmail_tries_again(dsn: str, stat: str, outcome: str) -> None:
    body = f'6AT1bFH9016237: to="|/usr/bin/sort", delay=00:00:01, mailer=prog, pri=1, dsn={dsn}, stat={stat}'
    assert delivery(body).outcome == outcome
