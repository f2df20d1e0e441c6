# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts what a tier's log says, line by line, exactly, in any order and any number of copies.

Three things are counted apart: lines (what the metric filter counts), messages (queue ids) and recipients (a queue id
with an address). What has to be remembered to do so is kept as digests; everything else grows with the number of
distinct reasons, codes, domains, relays and minutes, not with the log.

A line is the same line when its text is the same down to the fraction of a second and the process id: a log-tailer that
starts again repeats the last lines. Lines without such a prefix are told apart by the event's id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..cabalmail.privacy import Masker
from ..cabalmail.time import format_rfc3339
from .digests import DigestMap, DigestSet, Marked
from .parser import Parser, unwrapped
from .reasons import Attempt, Classifier, Reason
from .records import Delivery, Notice, Other, Received, Record, Rejection, split_recipients
from .taskslog import TaskLog, signature_of

PEAK_MINUTES = 30
DEFERRAL_PEAK_MINUTES = 10
#: The domain of the sinkhole, which stage and dev may have: it bounces and defers on request.
TEST_DOMAIN = "sinkhole.test"
LOCAL = "(local)"
OWN_HOST = "(own host)"
_NEVER = 1 << 62
_DAY_MS = 86_400_000
#: A line's own time further than this from its event's is an old line that was repeated, or of a clock that is wrong.
_FAR_MS = 600_000
_SLACK_MS = 60_000
_EXPIRY_MS = 120_000
_MAX_KEYS = 20_000
_MAX_REPLIES = 5_000
_MAX_FAILED = 10_000
_MAX_SENDERS = 50_000
_TOP = 50
_SOMEONE = "someone@address.invalid"
_USER_UNKNOWN = f"550 5.1.1 <{_SOMEONE}>... User unknown"
_LOCAL_MAILERS = frozenset({"local", "prog", "*file*", "*include*", "lmtp", "cyrus", "procmail"})
_NO_RELAY = (None, None)
# LogLevel from which sendmail writes a line of the kind (tried with 8.17.1).
_LEVELS = {"reject": 4, "received": 5, "notice": 6, "bounced": 7, "sent": 8, "deferred": 9}
#: Kinds of lines that may be a delivery in a shape that the parser does not know.
_NOT_READ = frozenset(("mail", "cut", "stray"))
_MINUTE_FIELDS = ("bounced_lines", "bounced_recipients", "unseen", "sent", "deferred", "rejected")
_BOUNCED, _RECIPIENTS, _UNSEEN, _SENT, _DEFERRED, _REJECTED = range(6)


class Event(NamedTuple):
    """One event of a log group, as FilterLogEvents returns it; times are milliseconds since 1970."""

    stream: str
    timestamp: int
    message: str
    ingestion: int | None = None
    event_id: str = ""


class _Judged(NamedTuple):
    reason: Reason
    text: str


class _Failure:
    """What failed alike, counted in one place: one reason, normal form of the answer, code, relay and provider."""

    __slots__ = (
        "code", "ip", "lines", "own", "provider", "reason", "recipients", "relay", "sample", "tally", "text",
    )  # fmt: skip

    def __init__(
        self, reason: Reason, text: str, code: str, relay: str | None, ip: str | None, own: bool,
        provider: _Provider | None, tally: _ReasonTally,
    ) -> None:  # fmt: skip
        self.reason, self.text, self.code = reason, text, code
        self.relay, self.ip, self.own, self.provider = relay, ip, own, provider
        self.tally = tally
        self.lines = 0
        self.recipients = 0
        # When, stream and text of the earliest line.
        self.sample: tuple[int, str, str] | None = None

    @property
    def where(self) -> str:
        """The provider, our own host or local delivery."""
        return self.provider.name if self.provider else OWN_HOST if self.own else LOCAL


class _Tally:
    """Counts of one key: lines, messages (each once) and recipients."""

    __slots__ = ("lines", "messages", "recipients")

    def __init__(self) -> None:
        self.lines = 0
        self.messages = 0
        self.recipients = 0


class _ReasonTally(_Tally):
    """Counts of one reason; `mark` stands for it in `Marked`."""

    __slots__ = ("domains", "mark")

    def __init__(self, mark: int) -> None:
        super().__init__()
        self.mark = mark
        self.domains: set[str] = set()


class _Held:
    """Recipients and lines of deferrals of one kind, by reason."""

    __slots__ = ("lines", "reasons", "recipient_faults", "recipients")

    def __init__(self) -> None:
        self.lines = 0
        self.recipients = 0
        self.reasons: Counter[str] = Counter()
        self.recipient_faults: Counter[str] = Counter()

    def add(self, reason: Reason, lines: int, recipients: int) -> None:
        """Count lines and the recipients that they name for the first time."""
        self.lines += lines
        self.recipients += recipients
        if recipients:
            self.reasons[reason.id] += recipients
            if reason.fault == "recipient":
                self.recipient_faults[reason.id] += recipients


class _Provider:
    __slots__ = ("attempts", "mark", "messages", "mx", "name", "reasons", "recipient_faults", "recipients", "sent")

    def __init__(self, name: str, mark: int) -> None:
        self.name = name
        self.mark = mark
        self.mx: str | None = None
        self.attempts = 0
        self.sent = 0
        self.recipients = 0
        self.messages = 0
        self.reasons: Counter[str] = Counter()
        # Those of them that are the recipient's own matter: a mailbox may have a rate limit too.
        self.recipient_faults: Counter[str] = Counter()


class TierAggregator:
    """Everything that is known of one tier from its log group.

    Args:
        tier: the tier's name. Rejections of the tier `imap` are bounces of the tiers that relay to it.
        log_group: its log group.
        classifier: gives reasons, providers and normal forms of replies.
        masker: masks addresses.
        start_ms, end_ms: the window, milliseconds since 1970; lines whose own time is before it are old ones repeated.
        metric_pattern: what the deployment's metric filter looks for; a substring of the line.
        metric_minutes: the length of the alert rule's window, in minutes.
        own_hosts: names of the host that the smtp tiers relay to.
        test_domain: where test traffic goes; what is for it alone is counted apart, and nowhere else. Empty: none.
        max_samples: sample lines kept, one a reason and code.
    """

    def __init__(
        self,
        tier: str,
        log_group: str,
        classifier: Classifier,
        masker: Masker,
        start_ms: int,
        end_ms: int,
        *,
        metric_pattern: str = "dsn=5",
        metric_minutes: int = PEAK_MINUTES,
        own_hosts: Iterable[str] = ("imap.cabal.internal",),
        test_domain: str = TEST_DOMAIN,
        max_samples: int = 20,
        receives_from_tiers: bool | None = None,
    ) -> None:
        self.tier = tier
        self.log_group = log_group
        self.failed: list[dict[str, Any]] = []
        self._classifier = classifier
        self._masker = masker
        self._start, self._end = start_ms, end_ms
        self._pattern, self._metric_minutes = metric_pattern, metric_minutes
        self._own = frozenset(host.lower().strip("[].") for host in own_hosts)
        self._max_samples = max_samples
        self._test_domain = test_domain
        self._apart: Counter[str] = Counter()
        self._inner = tier == "imap" if receives_from_tiers is None else receives_from_tiers
        self._parser = Parser()
        self._same = DigestSet()
        self._tasks: dict[str, TaskLog] = {}
        self._streams: dict[str, TaskLog] = {}
        # By what decides, as it is logged: the reason and the normal words; the failures of that kind.
        self._judged: dict[tuple[str | None, ...], _Judged] = {}
        self._failure_of: dict[tuple[str | None, ...], _Failure] = {}
        self._kinds: Counter[str] = Counter()
        self._events = 0
        self._mail_lines = 0
        self._first = _NEVER
        self._last = 0
        self._ingested = 0
        self._lag = -_NEVER
        self._minutes: dict[int, list[int]] = {}
        # Recipients by minute and reason.
        self._bounced_for: Counter[tuple[int, str]] = Counter()
        self._deferred_for: Counter[tuple[int, str]] = Counter()
        self.metric_seconds: Counter[int] = Counter()
        self._metric_lines = 0
        self._deliveries: Counter[str] = Counter()
        # Bounces.
        self._bounced_lines = 0
        self._pairs = DigestSet()
        self._messages = Marked()
        self._failures: dict[tuple[str | None, ...], _Failure] = {}
        self._noticed: dict[int, tuple[int, str]] = {}
        self._span: list[int] = []
        self._codes: dict[str, _Tally] = {}
        self._reasons: dict[tuple[str, str], _ReasonTally] = {}
        self._tells: dict[tuple[str, str], bool] = {}
        self._domains: Counter[str] = Counter()
        self._domain_attempts: dict[str, int] = {}
        self._relays: Counter[tuple[str | None, str | None]] = Counter()
        self._providers: dict[str, _Provider] = {}
        self._provider_of: dict[str, _Provider] = {}
        self._replies: Counter[tuple[str, str, str, str]] = Counter()
        self._own_relays: Counter[str] = Counter()
        self._own_reasons: Counter[str] = Counter()
        self._own_codes: Counter[str] = Counter()
        self._samples: dict[tuple[str, str], tuple[int, str, str]] = {}
        # Who sent it and which relay brought it: joined by queue id, whichever line comes first.
        self._origin = DigestMap()
        self._senders: dict[str, int] = {}
        self._sender_keys: list[tuple[str, str]] = []
        self._relay_ids: dict[tuple[str | None, str | None], int] = {}
        self._sender_recipients: Counter[tuple[int | None, str]] = Counter()
        # Signatures that name another domain than the sender's, and those whose sender no line has named yet.
        self._foreign_signatures: Counter[tuple[str, str]] = Counter()
        self._signed: dict[int, str] = {}
        # Bounces that the metric does not see.
        self._unseen: Counter[str] = Counter()
        self._unseen_pairs = DigestSet()
        self._unseen_messages = Marked()
        self._unseen_reasons: dict[tuple[str, str], _ReasonTally] = {}
        self._unseen_relays: dict[tuple[str | None, str | None], _Tally] = {}
        self._unseen_awaited: dict[int, _Tally] = {}
        # Refusals, deferrals, messages given up.
        self._rejects: Counter[tuple[str, str, str]] = Counter()
        self._refused = DigestSet()
        self._unread = 0
        self._deferrals: dict[tuple[str | None, ...], _Failure] = {}
        self._deferral_seconds: Counter[int] = Counter()
        self._deferred_messages = Marked()
        self._deferral_pairs = Marked()
        self._deferral_codes: Counter[str] = Counter()
        self._deferral_reasons: dict[tuple[str, str], _ReasonTally] = {}
        self._deferral_relays: Counter[tuple[str | None, str | None]] = Counter()
        self._deferral_providers: dict[str, _Held] = {}
        self._deferral_own = _Held()
        self._deferral_replies: Counter[tuple[str, str, str, str]] = Counter()
        self._late: dict[int, dict[int, tuple[int, str, str]]] = {}
        self._expired: dict[int, int] = {}

    # -- input ---------------------------------------------------------------------------------------------------------

    def feed(self, events: Iterable[tuple[str, int, str, int | None, str]]) -> None:  # noqa: C901 - see below
        """Take events (`Event`, or tuples like it), in any order. Never raises on any content."""
        # One loop with local names: it runs once a line, and each call costs as much as a field of the line.
        parse, pattern, streams, is_new = self._parser.parse, self._pattern, self._streams, self._same.add
        test_domain = self._test_domain
        earliest, events_before = self._start - _SLACK_MS, self._events
        count = mail_lines = 0
        first, last, ingested, lag = _NEVER, 0, 0, -_NEVER
        for stream, timestamp, message, ingestion, event_id in events:
            if type(message) is not str or type(timestamp) is not int:
                continue
            if message[:1] == "{":
                # The router's own time beside the line differs when the line is repeated.
                message = unwrapped(message)
            stamp, precise, pid, record = parse(message, timestamp)
            kind = type(record)
            # The text tells a line with a fraction of a second and a process. So it does a delivery with a second only:
            # no process delivers one message twice to the same people in one. Others are told apart by the event's id.
            if (precise and pid is not None) or (kind is Delivery and stamp is not None):
                if not is_new(hash(message)):
                    continue
            elif event_id and not is_new(hash(event_id)):
                continue
            count += 1
            first = timestamp if timestamp < first else first
            last = timestamp if timestamp > last else last
            if ingestion is not None:
                ingested = ingestion if ingestion > ingested else ingested
                lag = ingestion - timestamp if ingestion - timestamp > lag else lag
            task = streams.get(stream) or self._new_stream(stream)
            task.events += 1
            if timestamp < task.first:
                task.first = timestamp
            if timestamp > task.last:
                task.last = timestamp
            when = stamp
            if (
                when is None
                or not -_DAY_MS < when - timestamp < _DAY_MS
                or (not -_FAR_MS < when - timestamp < _FAR_MS and task.clock_is_off(when - timestamp, timestamp))
            ):
                when = timestamp
            elif when < earliest:
                # An old line that was repeated within the window.
                continue
            if pid is not None:
                mail_lines += 1
                task.mail_lines += 1
            if (
                kind is Delivery and test_domain and test_domain in message and self._set_apart(record, message)  # type: ignore[arg-type]
            ):
                continue
            if pattern in message:
                self._metric_lines += 1
                self.metric_seconds[when // 1000] += 1
                if kind is Other and record.kind in _NOT_READ:  # type: ignore[union-attr]
                    self._unread += 1
            if kind is Delivery:
                self._delivery(record, when, stream, message)  # type: ignore[arg-type]
            elif kind is Received:
                self._received(record)  # type: ignore[arg-type]
            else:
                self._other(record, when, task, stream, event_id, message)
        self._events = events_before + count
        self._mail_lines += mail_lines
        if count:
            self._first, self._last = min(self._first, first), max(self._last, last)
            self._ingested, self._lag = max(self._ingested, ingested), max(self._lag, lag)

    def _set_apart(self, record: Delivery, message: str) -> bool:
        """Count a delivery of test traffic apart; false where somebody real is among the recipients."""
        recipients = record.recipients()
        if not recipients or any(_domain(address) != self._test_domain for address in recipients):
            return False
        self._apart[record.outcome] += len(recipients)
        self._apart["metric_lines"] += self._pattern in message
        return True

    def _new_stream(self, stream: str) -> TaskLog:
        task_id = stream.rpartition("/")[2]
        task = self._tasks.setdefault(task_id, TaskLog())
        self._streams[stream] = task
        return task

    def _minute(self, when: int) -> list[int]:
        minute = when // 60_000
        found = self._minutes.get(minute)
        if found is None:
            found = self._minutes[minute] = [0] * len(_MINUTE_FIELDS)
        return found

    # -- records -------------------------------------------------------------------------------------------------------

    def _delivery(self, record: Delivery, when: int, stream: str, message: str) -> None:
        outcome = record.outcome
        if outcome == "bounced":
            self._bounce(record, when, stream, message)
            return
        if outcome == "rejected":
            # Refused by us at the end of the data; the line that says why is counted as the refusal.
            return
        to = record.to
        if outcome == "deferred":
            recipients = split_recipients(to)
            count = len(recipients)
            self._minute(when)[_DEFERRED] += count
            self._deferral(record, recipients, when)
        else:
            recipients = [to] if "," not in to else split_recipients(to)
            count = len(recipients)
            provider = self._provider(record)
            if provider is not None:
                provider.attempts += count
            if outcome == "sent":
                self._minute(when)[_SENT] += count
                if provider is not None:
                    provider.sent += count
        self._kinds[outcome] += 1
        self._deliveries[outcome] += count
        if outcome == "held" and not record.stat:
            # Cut before anything that tells what became of it.
            self._kinds["cut"] += 1
        self._domain_attempts_of(recipients)

    def _provider(self, record: Delivery) -> _Provider | None:
        """The provider that was spoken to; None for our own hosts and local delivery."""
        relay = record.relay
        if record.mailer in _LOCAL_MAILERS or relay in self._own:
            return None
        key = relay or _domain(record.to.rstrip(">"))
        found = self._provider_of.get(key)
        if found is None:
            provider = self._classifier.providers.provider(relay, None if relay else key)
            found = self._providers.get(provider.name)
            if found is None:
                found = self._providers[provider.name] = _Provider(provider.name, len(self._providers) + 1)
            # The least of the names, so that the order of the lines does not show.
            if provider.registrable and (found.mx is None or provider.registrable < found.mx):
                found.mx = provider.registrable
            if len(self._provider_of) >= _MAX_KEYS:
                self._provider_of.clear()
            self._provider_of[key] = found
        return found

    def _domain_attempts_of(self, recipients: list[str]) -> None:
        """Attempts by domain, as it is written; the sum over spellings is made at the end."""
        attempts = self._domain_attempts
        for address in recipients:
            domain = address[address.rfind("@") + 1 :]
            if domain in attempts:
                attempts[domain] += 1
            elif len(attempts) < _MAX_KEYS:
                attempts[domain] = 1

    def _failure(
        self, record: Delivery, recipients: list[str], known: dict[tuple[str | None, ...], _Failure],
        reasons: dict[tuple[str, str], _ReasonTally],
    ) -> _Failure:  # fmt: skip
        """Where a failed delivery is counted, found by what its reason, words and provider depend on."""
        reply, stat, relay = record.reply, record.stat, record.relay
        if recipients:
            # Most answers repeat the address; without it, the same answer is the same text.
            address = recipients[0]
            if len(address) > 3:
                reply = reply.replace(address, _SOMEONE) if reply else reply
                stat = stat.replace(address, _SOMEONE)
        domain = None if relay else _domain(record.to.rstrip(">"))
        raw = (reply, stat, record.dsn, relay, record.relay_ip, record.mailer, domain, record.outcome)
        found = self._failure_of.get(raw)
        if found is None:
            reason, text = self._judge(record, reply, stat, recipients)
            if not reason.tells:
                self._tells[reason.id, reason.fault] = False
            provider = self._provider(record)
            code = record.dsn or ((record.reply or "")[:3] if record.outcome == "bounced" else "") or "none"
            key = (reason.id, reason.fault, text, code, relay, record.relay_ip, provider.name if provider else None)
            if len(known) >= _MAX_KEYS or len(self._failure_of) >= _MAX_KEYS:
                self._sum_up()
            found = known.get(key)
            if found is None:
                tally = self._tally(reasons, reason)
                found = known[key] = _Failure(
                    reason, text, code, relay, record.relay_ip, relay in self._own, provider, tally
                )
            self._failure_of[raw] = found
        return found

    def _judge(self, record: Delivery, reply: str | None, stat: str, recipients: list[str]) -> _Judged:
        """The reason of a failed delivery and the normal form of the words, cached by what they depend on."""
        key = (reply, stat, record.dsn, record.relay, record.mailer)
        found = self._judged.get(key)
        if found is None:
            attempt = Attempt(
                code=reply[:3] if reply and reply[:3].isdecimal() else None,
                enhanced=record.dsn,
                reply=reply,
                stat=stat,
                stage_hint=_stage(record),
                relay=record.relay,
                relay_ip=record.relay_ip,
                mailer=record.mailer,
                tier=self.tier,
            )
            found = self._remember(key, attempt, reply or stat, recipients)
        return found

    def _remember(
        self, key: tuple[str | None, ...], attempt: Attempt, words: str, recipients: Iterable[str] = ()
    ) -> _Judged:
        judged = _Judged(self._classifier.classify(attempt), self._normal(words, recipients))
        if len(self._judged) >= _MAX_KEYS:
            self._judged.clear()
        self._judged[key] = judged
        return judged

    def _normal(self, words: str, recipients: Iterable[str]) -> str:
        """Words of an answer with what varies masked; its three digits stay."""
        for address in recipients:
            local = address.rpartition("@")[0]
            if len(local) > 3 and local in words:
                # Some answers name the mailbox without its domain.
                words = re.sub(rf"(?<![\w.]){re.escape(local)}(?![\w@])", _SOMEONE, words)
        digits = words[:3] if words[:3].isdecimal() else ""
        normal = self._classifier.normalise(words[3:].lstrip("- ") if digits else words)
        return self._masker.text(f"{digits} {normal}".strip())

    def _bounce(self, record: Delivery, when: int, stream: str, message: str) -> None:
        recipients = split_recipients(record.to)
        queue_id, is_new = record.queue_id, self._pairs.add
        fresh = [address for address in recipients if is_new(hash((queue_id, address.lower())))]
        count = len(fresh)
        failure = self._failure(record, recipients, self._failures, self._reasons)
        failure.lines += 1
        failure.recipients += count
        if record.dsn is not None and record.dsn[0] == "5":
            self._bounced_lines += 1
        provider = failure.provider if count else None
        for_reason, for_provider = self._messages.add(
            hash(queue_id), failure.tally.mark, provider.mark if provider else 0, count
        )
        if for_reason:
            failure.tally.messages += 1
        if provider and for_provider:
            provider.messages += 1
        self._mark(when)
        minute = self._minutes.get(when // 60_000) or self._minute(when)
        minute[_BOUNCED] += 1
        minute[_RECIPIENTS] += count
        if not count:
            return
        self._bounced_for[when // 60_000, failure.reason.id] += count
        if not failure.own:
            bounced = self._streams[stream].bounced
            bounced[failure.reason.id] = bounced.get(failure.reason.id, 0) + count
        self._domain_attempts_of(fresh)
        domains = self._domains
        for address in fresh:
            domains[address[address.rfind("@") + 1 :] if "@" in address else LOCAL] += 1
        sample = failure.sample
        if sample is None or when < sample[0] or (when == sample[0] and message < sample[2]):
            failure.sample = (when, stream, message)
        if len(self.failed) < _MAX_FAILED:
            self._fail(fresh, record, failure, when)

    def _sum_up(self) -> None:
        """Add what was counted by failure to the counts by reason, code, relay, provider and reply."""
        for failure in self._failures.values():
            self._sum_up_bounces(failure)
        for failure in self._deferrals.values():
            self._sum_up_deferrals(failure)
        self._failures.clear()
        self._deferrals.clear()
        self._failure_of.clear()

    def _sum_up_bounces(self, failure: _Failure) -> None:
        reason, lines, count, provider = failure.reason, failure.lines, failure.recipients, failure.provider
        self._kinds["bounced"] += lines
        self._deliveries["bounced"] += count
        failure.tally.lines += lines
        failure.tally.recipients += count
        code = self._codes.setdefault(failure.code, _Tally())
        code.lines += lines
        code.recipients += count
        if not count:
            return
        self._relays[failure.relay, failure.ip] += count
        if provider is not None:
            provider.attempts += count
            provider.recipients += count
            provider.reasons[reason.id] += count
            if reason.fault == "recipient":
                provider.recipient_faults[reason.id] += count
        if failure.own:
            self._own_relays[failure.relay or ""] += count
            self._own_reasons[reason.id] += count
            self._own_codes[failure.code] += count
        self._count_reply(self._replies, failure.text, reason, failure.where, failure.code, count)
        if failure.sample is not None:
            self._sample(reason, failure.code, *failure.sample)

    def _sum_up_deferrals(self, failure: _Failure) -> None:
        reason, lines, count, provider = failure.reason, failure.lines, failure.recipients, failure.provider
        failure.tally.lines += lines
        failure.tally.recipients += count
        self._deferral_codes[failure.code] += lines
        self._deferral_relays[failure.relay, failure.ip] += lines
        if provider is not None:
            self._deferral_providers.setdefault(provider.name, _Held()).add(reason, lines, count)
        elif failure.own:
            self._deferral_own.add(reason, lines, count)
        self._count_reply(self._deferral_replies, failure.text, reason, failure.where, failure.code, count)

    def _tally(self, table: dict[tuple[str, str], _ReasonTally], reason: Reason) -> _ReasonTally:
        """The counts of a reason in a table; their marks are numbered from 1."""
        key = (reason.id, reason.fault)
        if not reason.tells:
            self._tells[key] = False
        found = table.get(key)
        if found is None:
            found = table[key] = _ReasonTally(len(table) + 1)
        return found

    @staticmethod
    def _count_reply(
        replies: Counter[tuple[str, str, str, str]], text: str, reason: Reason, provider: str, code: str, count: int
    ) -> None:
        key = (text, reason.id, provider, code)
        if key not in replies and len(replies) >= _MAX_REPLIES:
            key = ("(more distinct replies than are kept)", reason.id, "", "")
        replies[key] += count

    def _sample(self, reason: Reason, code: str, when: int, stream: str, message: str) -> None:
        """The earliest line of each reason and code."""
        key = (reason.id, code)
        held = self._samples.get(key)
        if held is None or (when, message) < (held[0], held[2]):
            self._samples[key] = (when, stream.rpartition("/")[2], message)

    def _fail(self, addresses: list[str], record: Delivery, failure: _Failure, when: int) -> None:
        for address in addresses[: _MAX_FAILED - len(self.failed)]:
            self.failed.append(
                {
                    "address": address,
                    "tier": self.tier,
                    "queue_id": record.queue_id,
                    "reason": failure.reason.id,
                    "code": failure.code,
                    "reply": record.reply or record.stat,
                    "time": format_rfc3339(when, milliseconds=True),
                    "relay": record.relay,
                    "sender_domain": None,
                    "seen": "dsn",
                }
            )

    def _mark(self, when: int) -> None:
        if not self._span:
            self._span = [when, when]
        elif when < self._span[0]:
            self._span[0] = when
        elif when > self._span[1]:
            self._span[1] = when

    def _deferral(self, record: Delivery, recipients: list[str], when: int) -> None:
        failure = self._failure(record, recipients, self._deferrals, self._deferral_reasons)
        tally, provider = failure.tally, failure.provider
        queue_id = record.queue_id
        message = hash(queue_id)
        self._deferral_seconds[when // 1000] += 1
        self._deferred_for[when // 60_000, failure.reason.id] += len(recipients)
        failure.lines += 1
        if self._deferred_messages.add(message, tally.mark)[0]:
            tally.messages += 1
        for address in recipients:
            # A recipient counts once for each reason.
            if self._deferral_pairs.add(hash((queue_id, address.lower())), tally.mark)[0]:
                failure.recipients += 1
            if provider is not None and len(tally.domains) < _MAX_KEYS:
                tally.domains.add(_domain(address))
        if provider is not None:
            provider.attempts += len(recipients)
        if "+" in record.delay:
            # A day and more in the queue: the recipients that are given up, should it come to that, and why.
            late = self._late.setdefault(message, {})
            last = (when, failure.reason.id, failure.reason.fault)
            for address in recipients:
                digest = hash(address.lower())
                late[digest] = max(last, late.get(digest, last))

    def _received(self, record: Received) -> None:
        self._kinds["received"] += 1
        digest = hash(record.queue_id)
        sender = self._sender_id(record.sender)
        relay = self._relay_id((record.relay, record.relay_ip))
        if not self._origin.put(digest, sender << 16 | relay):
            return
        if digest in self._signed:
            self._compare_signature(sender, self._signed.pop(digest))
        if digest in self._unseen_awaited:
            self._unseen_from((record.relay, record.relay_ip), self._unseen_awaited.pop(digest))

    def _sender_id(self, sender: str) -> int:
        found = self._senders.get(sender)
        if found is None:
            domain = _domain(sender) if sender else "<>"
            if len(self._senders) >= _MAX_SENDERS:
                sender = f"(other senders of {domain})"
                found = self._senders.get(sender)
                if found is not None:
                    return found
                if len(self._senders) >= 2 * _MAX_SENDERS:
                    sender, domain = "(other senders)", "(other domains)"
                    found = self._senders.get(sender)
                    if found is not None:
                        return found
            found = self._senders[sender] = len(self._sender_keys)
            self._sender_keys.append((sender, domain))
        return found

    def _relay_id(self, relay: tuple[str | None, str | None]) -> int:
        """A small number for a relay; 0 stands for all beyond 65,000 of them."""
        found = self._relay_ids.get(relay)
        if found is None:
            if len(self._relay_ids) >= 65_000:
                return 0
            found = self._relay_ids[relay] = len(self._relay_ids) + 1
        return found

    def _signature(self, text: str) -> None:
        """A line of opendkim: does the domain that it signed for belong to the message's sender?"""
        signed = signature_of(text)
        if signed is None:
            return
        digest = hash(signed[0])
        origin = self._origin.get(digest)
        if origin is not None:
            self._compare_signature(origin >> 16, signed[1])
        elif len(self._signed) < _MAX_KEYS:
            self._signed[digest] = signed[1]

    def _compare_signature(self, sender: int, domain: str) -> None:
        sender_domain = self._sender_keys[sender][1]
        if sender_domain != domain and "." in sender_domain and len(self._foreign_signatures) < _MAX_KEYS:
            self._foreign_signatures[sender_domain, domain] += 1

    def _other(self, record: Record, when: int, task: TaskLog, stream: str, event_id: str, message: str) -> None:
        if isinstance(record, Other):
            if record.kind == "cut":
                self._kinds["cut"] += 1
            else:
                task.add(record, when, event_id)
                if record.kind == "opendkim":
                    self._signature(record.text)
        elif isinstance(record, Notice):
            self._notice(record, when)
        elif isinstance(record, Rejection):
            self._rejection(record, when, stream, message)

    def _notice(self, record: Notice, when: int) -> None:
        self._kinds["notice"] += 1
        digest = hash(record.queue_id)
        if record.expired:
            self._expired[digest] = max(when, self._expired.get(digest, 0))
        elif record.kind in ("dsn", "return") and not record.text.startswith(("Return receipt", "Relayed", "Warning")):
            # Usually a `to=` line said it before. At LogLevel 6, for a user that moved, for too many hops only this.
            if digest in self._messages:
                return
            held = self._noticed.get(digest)
            if held is None or (when, record.text) < held:
                self._noticed[digest] = (when, record.text)

    def _rejection(self, record: Rejection, when: int, stream: str, message: str) -> None:
        self._kinds["reject"] += 1
        digest = hash(record.queue_id)
        if record.kind == "too_many_recipients" and not self._refused.add(digest):
            return
        # Of an unknown user sendmail logs the words alone; the answer it gives is always the same.
        words = _USER_UNKNOWN if record.kind == "user_unknown" else record.reply
        code = words[:3] if words[:3].isdecimal() else None
        enhanced = words[4:].partition(" ")[0] if code else ""
        enhanced = enhanced if enhanced.count(".") == 2 else ""
        if record.address and len(record.address) > 3:
            words = words.replace(record.address, _SOMEONE)
        key = ("reject", words, record.kind, record.stage)
        judged = self._judged.get(key)
        if judged is None:
            attempt = Attempt(
                code=code, enhanced=enhanced or None, reply=words if code else None, stat="" if code else words,
                stage_hint="local" if record.kind in ("milter_down", "syserr") else record.stage, tier=self.tier,
            )  # fmt: skip
            judged = self._remember(key, attempt, words)
        self._deliveries["rejected"] += 1
        self._minute(when)[_REJECTED] += 1
        reject = (judged.reason.id, enhanced or code or "none", judged.text)
        if reject not in self._rejects and len(self._rejects) >= _MAX_REPLIES:
            reject = (judged.reason.id, enhanced or code or "none", "(more distinct texts than are kept)")
        self._rejects[reject] += 1
        if self._inner and record.stage == "rcpt" and (code is None or code[0] == "5") and record.queue_id:
            self._bounce_unseen(record, judged.reason, enhanced or code or "none", when, stream, message)

    def _bounce_unseen(
        self, record: Rejection, reason: Reason, code: str, when: int, stream: str, message: str
    ) -> None:
        """A refusal of what another tier of ours relayed: a bounce there, whose line may not exist."""
        kind = record.kind
        if kind == "ruleset" and record.reply.startswith("553 5.3.0"):
            kind = "reject_553"
        elif kind != "user_unknown":
            kind = "other_reject"
        digest = hash(record.queue_id)
        address = record.address or ""
        fresh = int(self._unseen_pairs.add(hash((record.queue_id, address.lower()))))
        self._unseen[kind] += 1
        self._minute(when)[_UNSEEN] += fresh
        tally = self._tally(self._unseen_reasons, reason)
        tally.lines += 1
        tally.recipients += fresh
        if self._unseen_messages.add(digest, tally.mark)[0]:
            tally.messages += 1
        self._sample(reason, code, when, stream, message)
        if fresh and len(self.failed) < _MAX_FAILED:
            self.failed.append(
                {
                    "address": address, "tier": self.tier, "queue_id": record.queue_id, "reason": reason.id,
                    "code": code, "reply": record.reply, "time": format_rfc3339(when, milliseconds=True),
                    "relay": record.relay, "sender_domain": None,
                    "seen": "user_unknown" if kind == "user_unknown" else "reject",
                }
            )  # fmt: skip
        one = _Tally()
        one.lines, one.recipients = 1, fresh
        if record.relay or record.relay_ip:
            self._unseen_from((record.relay, record.relay_ip), one)
            return
        origin = self._origin.get(digest)
        if origin is not None:
            self._unseen_from(self._relay_of(origin & 0xFFFF), one)
            return
        held = self._unseen_awaited.setdefault(digest, _Tally())
        held.lines += one.lines
        held.recipients += one.recipients

    def _unseen_from(self, relay: tuple[str | None, str | None], more: _Tally) -> None:
        held = self._unseen_relays.setdefault(relay, _Tally())
        held.lines += more.lines
        held.recipients += more.recipients

    def _relay_of(self, number: int) -> tuple[str | None, str | None]:
        for relay, known in self._relay_ids.items():
            if known == number:
                return relay
        return _NO_RELAY

    # -- result --------------------------------------------------------------------------------------------------------

    def result(self, status: str, reasons: list[str]) -> dict[str, Any]:
        """The tier's section of the facts.

        Args:
            status: `complete` or `partial`: whether the whole window was read.
            reasons: why not, one sentence each.
        """
        self._sum_up()
        self._settle_notices()
        expired = self._settle_expired()
        self._find_senders()
        self._name_senders()
        return {
            "tier": self.tier,
            "log_group": self.log_group,
            "coverage": self._coverage(status, reasons),
            "deliveries": {
                "sent": self._deliveries["sent"],
                "deferred": self._deliveries["deferred"],
                "bounced": self._deliveries["bounced"],
                "rejected": self._deliveries["rejected"],
                "expired": expired["recipients"],
            },
            "bounces": self._bounces(),
            "unseen": self._unseen_section(),
            "rejects": [
                {"reason": reason, "code": code, "text": text, "lines": lines}
                for (reason, code, text), lines in _top(self._rejects)
            ],
            "deferrals": self._deferrals_section(),
            "expired": expired,
            "apart": {
                "domain": self._test_domain or None,
                **{name: self._apart[name] for name in ("metric_lines", "sent", "deferred", "bounced")},
            },
            "timeline": self._timeline(),
            "foreign_signatures": [
                {"sender_domain": sender, "signed_by": domain, "messages": count}
                for (sender, domain), count in _top(self._foreign_signatures)
            ],
            "tasks": {task: log.facts(self._masker) for task, log in sorted(self._tasks.items())},
        }

    def _timeline(self) -> list[dict[str, Any]]:
        bounced, deferred = _by_minute(self._bounced_for), _by_minute(self._deferred_for)
        return [
            {
                "minute": format_rfc3339(minute * 60_000),
                **dict(zip(_MINUTE_FIELDS, counts, strict=True)),
                "reasons": bounced.get(minute, {}),
                "deferral_reasons": deferred.get(minute, {}),
            }
            for minute, counts in sorted(self._minutes.items())
        ]

    def _settle_notices(self) -> None:
        """Messages of which only the notification tells that they bounced: one recipient each is sure."""
        for digest, (when, text) in sorted(self._noticed.items(), key=lambda item: item[1]):
            if digest in self._messages or digest in self._expired:
                continue
            key: tuple[str | None, ...] = ("notice", text)
            judged = self._judged.get(key) or self._remember(key, Attempt(stat=text, tier=self.tier), text)
            self._deliveries["bounced"] += 1
            self._minute(when)[_RECIPIENTS] += 1
            self._bounced_for[when // 60_000, judged.reason.id] += 1
            self._mark(when)
            tally = self._tally(self._reasons, judged.reason)
            tally.recipients += 1
            self._messages.add(digest, tally.mark, amount=1)
            tally.messages += 1
            self._domains[LOCAL if self._inner else "(not logged)"] += 1
            self._count_reply(self._replies, judged.text, judged.reason, LOCAL, "none", 1)
        self._noticed.clear()

    def _settle_expired(self) -> dict[str, Any]:
        """Recipients given up: those whose last deferral was just before; one where no line names them.

        `cause` is the reason of the last attempt; null where its line is not in the window.
        """
        causes: Counter[tuple[str | None, str | None]] = Counter()
        for digest, when in self._expired.items():
            late = self._late.get(digest, {})
            last = [held for held in late.values() if when - _EXPIRY_MS <= held[0] <= when + 1000]
            causes.update((reason, fault) for _, reason, fault in last)
            if not last:
                causes[None, None] += 1
        return {
            "messages": len(self._expired),
            "recipients": sum(causes.values()),
            "causes": [
                {"cause": reason, "fault": fault, "recipients": count} for (reason, fault), count in _top(causes)
            ],
        }

    def _deferrals_section(self) -> dict[str, Any]:
        return {
            "lines": sum(self._deferral_codes.values()),
            "messages": len(self._deferred_messages),
            "recipients": len(self._deferral_pairs),
            "peak": peak_of(self._deferral_seconds, DEFERRAL_PEAK_MINUTES),
            "codes": [
                {"code": code, "lines": lines, "text": self._classifier.code_text(code) if code != "none" else None}
                for code, lines in _top(self._deferral_codes)
            ],
            "reasons": [
                {**row, "domains": len(self._deferral_reasons[row["reason"], row["fault"]].domains)}
                for row in self._reason_rows(self._deferral_reasons)
            ],
            "relays": [
                {"relay": relay, "ip": address, "lines": lines}
                for (relay, address), lines in _top(self._deferral_relays)
            ],
            "providers": [
                {
                    "provider": name,
                    "lines": held.lines,
                    "recipients": held.recipients,
                    "reasons": dict(_top(held.reasons)),
                    "recipient_faults": dict(_top(held.recipient_faults)),
                }
                for name, held in sorted(
                    self._deferral_providers.items(), key=lambda item: (-item[1].recipients, -item[1].lines, item[0])
                )[:_TOP]
            ],
            "replies": [
                {"text": text, "reason": reason, "provider": provider, "recipients": count, "code": code}
                for (text, reason, provider, code), count in _top(self._deferral_replies)
            ],
            "own_host": {
                "lines": self._deferral_own.lines,
                "recipients": self._deferral_own.recipients,
                "reasons": dict(_top(self._deferral_own.reasons)),
            },
        }

    def _find_senders(self) -> None:
        """Join the messages that bounced with their `from=` lines."""
        self._sender_recipients.clear()
        reasons = [reason for reason, _ in self._reasons]
        for message, mark, recipients in self._messages.amounts():
            origin = self._origin.get(message)
            self._sender_recipients[None if origin is None else origin >> 16, reasons[mark - 1]] += recipients

    def _name_senders(self) -> None:
        for row in self.failed:
            if row["sender_domain"] is None:
                origin = self._origin.get(hash(row["queue_id"]))
                if origin is not None:
                    row["sender_domain"] = self._sender_keys[origin >> 16][1]
                    if row["relay"] is None and row["seen"] == "user_unknown":
                        row["relay"] = self._relay_of(origin & 0xFFFF)[0]
        self.failed.sort(key=lambda row: (row["time"], row["queue_id"], row["address"]))

    def _coverage(self, status: str, reasons: list[str]) -> dict[str, Any]:
        level = max((needed for kind, needed in _LEVELS.items() if self._kinds[kind]), default=None)
        if self._unread:
            status = "partial"
            reasons = [
                *reasons,
                f"{self._unread} of {self._metric_lines} lines that the alert counts could not be read.",
            ]
        return {
            "status": status,
            "reasons": reasons,
            "log_group_exists": True,
            "events": self._events,
            "mail_lines": self._mail_lines,
            "cut_lines": self._kinds["cut"],
            "unread_lines": self._unread,
            "first_event": _time(self._first if self._events else None),
            "last_event": _time(self._last if self._events else None),
            "last_ingested": _time(self._ingested or None),
            "max_lag_seconds": round(max(self._lag, 0) / 1000, 3) if self._ingested else None,
            "blind": self._blind(level),
            "log_level": {"value": None, "source": "inferred" if level else None, "at_least": level},
        }

    def _blind(self, level: int | None) -> bool | None:
        """False: a bounce would be seen. True: there is traffic and no line of its fate. None: nothing shows either."""
        if level is not None and level >= _LEVELS["bounced"]:
            return False
        signed = any(task.signed_messages for task in self._tasks.values())
        if self._kinds["received"] or self._kinds["notice"] or signed:
            return True
        return None

    def _bounces(self) -> dict[str, Any]:
        recipients = self._deliveries["bounced"]
        attempts = sum(provider.attempts for provider in self._providers.values())
        by_domain = _merged_spellings(self._domain_attempts)
        return {
            "lines": self._metric_lines,
            "bounced_lines": self._bounced_lines,
            "messages": len(self._messages),
            "recipients": recipients,
            "peak": peak_of(self.metric_seconds, self._metric_minutes),
            "first": _time(self._span[0] if self._span else None),
            "last": _time(self._span[1] if self._span else None),
            "ongoing_lines_last_10m": sum(
                count for second, count in self.metric_seconds.items() if second * 1000 >= self._end - 600_000
            ),
            "codes": [
                {
                    "code": code,
                    "lines": tally.lines,
                    "recipients": tally.recipients,
                    "text": self._classifier.code_text(code) if code.count(".") == 2 else None,
                }
                for code, tally in sorted(self._codes.items(), key=lambda item: (-item[1].recipients, item[0]))[:_TOP]
            ],
            "reasons": self._reason_rows(self._reasons),
            "providers": [
                {
                    "provider": provider.name,
                    "mx": provider.mx,
                    "recipients": provider.recipients,
                    "messages": provider.messages,
                    "attempts": provider.attempts,
                    "sent": provider.sent,
                    "share_of_bounces": round(provider.recipients / recipients, 4) if recipients else None,
                    "share_of_attempts": round(provider.attempts / attempts, 4) if attempts else None,
                    "reasons": dict(_top(provider.reasons)),
                    "recipient_faults": dict(_top(provider.recipient_faults)),
                }
                for provider in sorted(self._providers.values(), key=_provider_order)[:_TOP]
            ],
            "domains": [
                {"domain": domain, "recipients": count, "attempts": by_domain.get(domain)}
                for domain, count in _top(_merged_spellings(self._domains))
            ],
            "sender_domains": self._sender_domains(),
            "senders": self._sender_rows(),
            "relays": [
                {"relay": relay, "ip": address, "recipients": count} for (relay, address), count in _top(self._relays)
            ],
            "replies": [
                {"text": text, "reason": reason, "provider": provider, "recipients": count, "code": code}
                for (text, reason, provider, code), count in _top(self._replies)
            ],
            "samples": self._sample_rows(),
            "own_host": {
                "recipients": sum(self._own_relays.values()),
                "relay": next((relay for relay, _ in _top(self._own_relays)), None),
                "reasons": dict(_top(self._own_reasons)),
                "codes": dict(_top(self._own_codes)),
            },
        }

    def _reason_rows(self, table: dict[tuple[str, str], _ReasonTally]) -> list[dict[str, Any]]:
        rows = [
            {
                "reason": key[0],
                "fault": key[1],
                "recipients": tally.recipients,
                "messages": tally.messages,
                "lines": tally.lines,
                "tells": self._tells.get(key, True),
            }
            for key, tally in table.items()
        ]
        return sorted(rows, key=lambda row: (-int(str(row["recipients"])), str(row["reason"]), str(row["fault"])))

    def _sender_rows(self) -> list[dict[str, Any]]:
        senders: Counter[str] = Counter()
        reasons: dict[str, Counter[str]] = {}
        for (number, reason), count in self._sender_recipients.items():
            if number is None:
                continue
            name = self._sender_keys[number][0]
            senders[name] += count
            reasons.setdefault(name, Counter())[reason] += count
        return [
            {"sender": self._masked_sender(name), "recipients": count, "reasons": dict(_top(reasons[name]))}
            for name, count in _top(senders)
        ]

    def _sender_domains(self) -> list[dict[str, Any]]:
        domains: Counter[str] = Counter()
        reasons: dict[str, Counter[str]] = {}
        for (number, reason), count in self._sender_recipients.items():
            name = "(not logged)" if number is None else self._sender_keys[number][1]
            domains[name] += count
            reasons.setdefault(name, Counter())[reason] += count
        return [
            {"domain": name, "recipients": count, "reasons": dict(_top(reasons[name]))} for name, count in _top(domains)
        ]

    def _masked_sender(self, sender: str) -> str:
        if not sender:
            return "<>"
        return sender if sender.startswith("(") else self._masker.address(sender)

    def _sample_rows(self) -> list[dict[str, str]]:
        held = sorted(self._samples.values())[: self._max_samples]
        rows = []
        for when, task, message in held:
            record = self._parser.parse(message, when).record
            known = record.recipients() if isinstance(record, Delivery) else []
            rows.append({"time": format_rfc3339(when), "task": task, "line": self._masker.text(message, known)})
        return rows

    def _unseen_section(self) -> dict[str, Any]:
        relays = dict(self._unseen_relays)
        if self._unseen_awaited:
            unknown = _Tally()
            for tally in self._unseen_awaited.values():
                unknown.lines += tally.lines
                unknown.recipients += tally.recipients
            relays[_NO_RELAY] = unknown
        rows = [
            {"relay": relay, "ip": address, "lines": tally.lines, "recipients": tally.recipients}
            for (relay, address), tally in relays.items()
        ]
        return {
            "lines": sum(self._unseen.values()),
            "messages": len(self._unseen_messages),
            "recipients": len(self._unseen_pairs),
            "by_relay": sorted(rows, key=lambda row: (-int(str(row["recipients"])), str(row["relay"]), str(row["ip"]))),
            "reasons": self._reason_rows(self._unseen_reasons),
            "kinds": {kind: self._unseen[kind] for kind in ("reject_553", "user_unknown", "other_reject")},
        }


def _by_minute(counts: Mapping[tuple[int, str], int]) -> dict[int, dict[str, int]]:
    """The counts by reason of each minute."""
    found: dict[int, dict[str, int]] = {}
    for (minute, reason), count in sorted(counts.items()):
        found.setdefault(minute, {})[reason] = count
    return found


def unavailable_tier(
    tier: str, log_group: str, reasons: list[str], *, exists: bool | None, metric_minutes: int = PEAK_MINUTES
) -> dict[str, Any]:
    """The section of a tier whose log group could not be read: every number is unknown."""
    return {
        "tier": tier,
        "log_group": log_group,
        "coverage": {
            "status": "unavailable", "reasons": reasons, "log_group_exists": exists, "events": None,
            "mail_lines": None, "cut_lines": None, "unread_lines": None, "first_event": None, "last_event": None,
            "last_ingested": None, "max_lag_seconds": None, "blind": None,
            "log_level": {"value": None, "source": None, "at_least": None},
        },
        "deliveries": dict.fromkeys(("sent", "deferred", "bounced", "rejected", "expired")),
        "bounces": {
            "lines": None, "bounced_lines": None, "messages": None, "recipients": None,
            "peak": {"lines": None, "start": None, "end": None, "minutes": metric_minutes},
            "first": None, "last": None, "ongoing_lines_last_10m": None, "codes": [], "reasons": [], "providers": [],
            "domains": [], "sender_domains": [], "senders": [], "relays": [], "replies": [], "samples": [],
            "own_host": {"recipients": None, "relay": None, "reasons": {}, "codes": {}},
        },
        "unseen": {
            "lines": None, "messages": None, "recipients": None, "by_relay": [], "reasons": [],
            "kinds": dict.fromkeys(("reject_553", "user_unknown", "other_reject")),
        },
        "rejects": [],
        "deferrals": {
            "lines": None, "messages": None, "recipients": None,
            "peak": {"lines": None, "start": None, "end": None, "minutes": DEFERRAL_PEAK_MINUTES},
            "codes": [], "reasons": [], "relays": [], "providers": [], "replies": [],
            "own_host": {"lines": None, "recipients": None, "reasons": {}},
        },
        "expired": {"messages": None, "recipients": None, "causes": []},
        "apart": {"domain": None, **dict.fromkeys(("metric_lines", "sent", "deferred", "bounced"))},
        "timeline": [],
        "foreign_signatures": None,
        "tasks": {},
    }  # fmt: skip


def _domain(address: str) -> str:
    """The domain of an address in lower case; `(local)` for a bare user, a file or a program."""
    return address.rpartition("@")[2].rstrip(".").lower() if "@" in address else LOCAL


def _merged_spellings(counts: Mapping[str, int]) -> Counter[str]:
    """Counts by domain in lower case, of counts by domain as logged."""
    merged: Counter[str] = Counter()
    for spelled, count in counts.items():
        merged[_domain(f"@{spelled.rstrip('>')}")] += count
    return merged


def _stage(record: Delivery) -> str | None:
    """Where an attempt failed, as far as its fields tell."""
    stat = record.stat
    if record.reply is not None:
        return None
    if record.mailer in _LOCAL_MAILERS:
        return "local"
    if stat == "queued" or stat.startswith(("Host unknown", "Deferred: Name server")):
        return "dns"
    if stat.startswith(("Deferred: Connection", "Deferred: No route", "Deferred: Network")) or stat.endswith(
        ("No route to host", "Network is unreachable", "Operation timed out")
    ):
        return "connect"
    return None


def _top(counts: Counter[Any]) -> list[tuple[Any, int]]:
    """The largest counts first, equals in the order of their keys: the order of the input does not show."""
    return sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))[:_TOP]


def peak_of(seconds: Mapping[int, int], minutes: int = PEAK_MINUTES) -> dict[str, Any]:
    """The largest count of lines in any window of so many minutes, to the second; the earliest of equals.

    Args:
        seconds: lines by second since 1970; those of several tiers may be added up.
        minutes: how long the window is.
    """
    best, best_start = 0, None
    ordered = sorted(seconds)
    inside, tail = 0, 0
    for second in ordered:
        inside += seconds[second]
        while ordered[tail] <= second - minutes * 60:
            inside -= seconds[ordered[tail]]
            tail += 1
        if inside > best:
            best, best_start = inside, ordered[tail]
    start = None if best_start is None else best_start * 1000
    return {
        "lines": best,
        "start": _time(start),
        "end": _time(None if start is None else start + minutes * 60_000),
        "minutes": minutes,
    }


def _provider_order(provider: _Provider) -> tuple[int, int, str]:
    return -provider.recipients, -provider.attempts, provider.name


def _time(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else format_rfc3339(milliseconds)
