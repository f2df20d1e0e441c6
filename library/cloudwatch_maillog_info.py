#!/usr/bin/python
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: cloudwatch_maillog_info
short_description: Say what the mail tiers logged, and why mail failed
description:
  - Reads the CloudWatch log groups of mail tiers over a window, once, and counts what sendmail and its neighbours
    logged. That is lines (what a metric filter counts), messages and recipients apart, enhanced status codes,
    reasons, providers, recipient and sender domains, relays, the answers of the far ends, a timeline, refused
    transactions, deferrals, and per task what the reconfigure loop, opendkim, hosts-pin and supervisord said.
  - Says for each tier how much the numbers are worth, with the status of the reading, the delay between an event and
    its ingestion, and the log level as far as the lines give it away. What could not be read is null and never 0.
  - Groups and parts of the window are read side by side within one budget of requests. Answers that AWS throttles
    are asked for again, more slowly.
  - Nothing is changed. Addresses are masked in all that is returned.
author: The cabalmail-runbooks authors
version_added: "0.1.0"
options:
  groups:
    description: The log groups to read.
    type: list
    elements: dict
    required: true
    suboptions:
      tier:
        description: Name of the mail tier, unique in the list.
        type: str
        required: true
      log_group:
        description: Name of its log group.
        type: str
        required: true
  start:
    description: Beginning of the window, RFC 3339.
    type: str
    required: true
  end:
    description: End of the window, RFC 3339.
    type: str
    required: true
  metric_pattern:
    description: What the deployment's metric filter looks for; lines that contain it are counted as it counts.
    type: str
    default: dsn=5
  metric:
    description:
      - Name of the metric in CloudWatch. With it, the lines of the 24 hours before O(start) are counted for comparison,
        from the metric where it exists, else by one Logs Insights query, whose scanned bytes are billed.
    type: str
  metric_namespace:
    description: Namespace of the metric.
    type: str
    default: Cabalmail/Logs
  metric_lines:
    description: The runbook's condition is more than so many lines of the metric.
    type: int
    default: 15
  metric_minutes:
    description: The length of the window in which they are counted, in minutes.
    type: int
    default: 30
  metric_hold_minutes:
    description: How long that has to last before the alert fires, in minutes.
    type: int
    default: 15
  fired_at:
    description: When the alert fired, RFC 3339. Left out, nothing is said of that moment.
    type: str
  own_hosts:
    description: Names of the host to which the tiers relay mail for our own users.
    type: list
    elements: str
    default: [imap.cabal.internal]
  test_domain:
    description:
      - Domain of test traffic, which bounces and defers on request. What is delivered only there is counted apart, and
        neither as the metric's lines nor as bounces or deferrals. Empty for none.
    type: str
    default: sinkhole.test
  reason_rules:
    description:
      - Rules that give a failure its reason, as in C(data/reasons.yml). The action plugin of the same name loads that
        file and puts the rules of the variable C(cabalmail_reason_rules) in front.
    type: dict
    required: true
  providers:
    description:
      - Table of mail providers, as in C(data/providers.yml). The action plugin loads it and puts the entries of the
        variable C(cabalmail_providers) in front.
    type: dict
    required: true
  enhanced_codes:
    description: Texts of the enhanced status codes, as in C(data/enhanced_codes.yml), which the action plugin loads.
    type: dict
    required: true
  engine:
    description:
      - V(filter) reads with FilterLogEvents; V(insights) with CloudWatch Logs Insights, whose scanned bytes are billed.
      - V(auto) takes Insights where FilterLogEvents would need more than half of the time, by the stored bytes of the
        groups (DescribeLogGroups). Both give the same counts.
    type: str
    choices: [filter, insights, auto]
    default: filter
  requests_per_second:
    description:
      - Calls of FilterLogEvents (or of StartQuery and GetQueryResults) a second, over all groups. The quota of an
        account and region is 5 to 25.
    type: float
    default: 5
  max_samples:
    description: Masked log lines kept as samples of each tier.
    type: int
    default: 20
  deadline:
    default: 40
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
  - cabalmail.aws
  - cabalmail.deadline
  - cabalmail.work_dir
attributes:
  check_mode:
    support: full
    description: Only reads, so check mode makes no difference.
"""

EXAMPLES = r"""
- name: Read the mail logs of the last hour
  cloudwatch_maillog_info:
    region: us-east-1
    groups:
      - tier: imap
        log_group: /ecs/cabal-imap
      - tier: smtp-out
        log_group: /ecs/cabal-smtp-out
    start: "2026-11-24T20:53:14Z"
    end: "2026-11-24T21:53:14Z"
    requests_per_second: 10
  register: read

- name: Show why mail from smtp-out bounced
  ansible.builtin.debug:
    var: read.tiers.by_tier['smtp-out'].bounces.reasons
"""

RETURN = r"""
status:
  description: C(complete), C(partial) or C(unavailable), over all tiers.
  returned: always
  type: str
  sample: complete
reasons:
  description: One sentence for each group that could not be read whole. Empty when complete.
  returned: always
  type: list
  elements: str
  sample: []
tiers:
  description: What was read.
  returned: always
  type: dict
  contains:
    status:
      description: As RV(status).
      type: str
      returned: always
    reasons:
      description: As RV(reasons).
      type: list
      elements: str
      returned: always
    window:
      description: C(start) and C(end) of what was read.
      type: dict
      returned: always
    stats:
      description:
        - C(engine) and C(engine_reason) (why it was taken), C(pages) (or queries), C(events), C(bytes),
          C(scanned_bytes) (what Insights bills, else null), C(throttled) (answers that AWS refused for their rate),
          C(seconds).
      type: dict
      returned: always
    peak:
      description:
        - The largest count of the metric's lines in O(metric_minutes) over all tiers together, as the metric has no
          dimension.
      type: dict
      returned: always
    change:
      description:
        - When it began and whether it goes on, from the metric's lines of all tiers together. C(state) (C(none),
          C(steady), C(ongoing) or C(ended)), C(onset) and C(ended) (the minute of the change, null where no minute
          stands out), C(before) and C(since) (C(lines), C(minutes), C(per_minute)).
        - C(condition), whether the runbook's condition holds (C(state) C(holds), C(ended), C(not_met) or C(unknown),
          C(now), C(when_fired), C(from), C(until)), and C(deployed_rule), what the deployment's rule makes of the same
          lines (C(increase_now), C(increase_when_fired), C(over_now), C(over_when_fired)).
        - Null when no log could be read; from a part of the logs it is a lower bound, as RV(status) says.
      type: dict
      returned: always
    day_before:
      description:
        - The metric's lines in the 24 hours before the window; C(status), C(reasons), C(source) (C(metric) or
          C(insights)), C(start), C(end), C(lines), C(busiest) (C(lines), C(minutes), C(start) of the span with the most
          of them), C(scanned_bytes) (what the query bills). What is not known is null; it changes no other status.
        - Null when O(metric) is not given.
      type: dict
      returned: always
    by_tier:
      description: A section for each tier, by its name.
      type: dict
      returned: always
      contains:
        coverage:
          description:
            - What the numbers are worth. C(status), C(reasons), C(log_group_exists), C(events), C(mail_lines),
              C(cut_lines) (delivery lines cut before they say anything),
              C(unread_lines) (lines that the alert counts, in a shape that is not known), C(first_event),
              C(last_event),
              C(last_ingested), C(max_lag_seconds), C(blind) (true when mail passes and its fate is not logged, null
              when nothing shows either), C(log_level) (C(at_least), inferred from the kinds of lines).
          type: dict
          returned: always
        deliveries:
          description:
            - Recipients that were C(sent), C(deferred) (attempts), C(bounced), C(expired), and transactions that the
              tier C(rejected).
          type: dict
          returned: always
        bounces:
          description:
            - C(lines) that hold the metric's pattern, C(bounced_lines), C(messages), C(recipients), the largest count
              of lines in O(metric_minutes) (C(peak)), and the bounces by C(codes), C(reasons), C(providers),
              C(domains), C(sender_domains), C(senders), C(relays), C(replies), with masked C(samples).
          type: dict
          returned: always
        unseen:
          description: Bounces of another tier's mail that this tier caused and no metric sees, C(by_relay).
          type: dict
          returned: always
        rejects:
          description: What the tier refused at its own door, by reason, code and text.
          type: list
          elements: dict
          returned: always
        deferrals:
          description:
            - Temporary failures; C(lines) (attempts), C(messages) and C(recipients) (each once), the largest count of
              lines in 10 minutes (C(peak)), C(codes), C(reasons) (with the number of C(domains)), C(relays),
              C(providers), C(replies), and those at our own imap host (C(own_host)).
          type: dict
          returned: always
        expired:
          description:
            - Messages given up after days in the queue; C(messages), C(recipients), C(causes) (the reason of the last
              attempt as C(cause), null where its line is not in the window).
          type: dict
          returned: always
        apart:
          description:
            - Test traffic (O(test_domain)), in no other count; C(metric_lines), C(sent), C(deferred), C(bounced).
          type: dict
          returned: always
        timeline:
          description: Counts by minute, those of failures also by reason; minutes without any are left out.
          type: list
          elements: dict
          returned: always
        tasks:
          description: By task id, what the loop, opendkim, hosts-pin and supervisord of the task logged.
          type: dict
          returned: always
"""

import contextlib
import json
import os
import secrets
import time
import traceback
from collections import Counter
from typing import Any, NoReturn

from ansible.module_utils.aws_support import aws_module, client
from ansible.module_utils.basic import missing_required_lib
from ansible.module_utils.cabalmail.privacy import Masker, load_or_create_key
from ansible.module_utils.cabalmail.time import epoch_ms, format_rfc3339
from ansible.module_utils.cloudwatch_day_before import Asked, DayBefore
from ansible.module_utils.cloudwatch_insights import Choice, InsightsReader, choose
from ansible.module_utils.cloudwatch_logs import RawPagesFactory, Reader

try:
    from ansible.module_utils.maillog.aggregate import TierAggregator, peak_of, unavailable_tier
    from ansible.module_utils.maillog.change import Rule, change
    from ansible.module_utils.maillog.crew import Crew, Tally
    from ansible.module_utils.maillog.reasons import Classifier
except ImportError:
    IMPORT_ERROR = traceback.format_exc()
else:
    IMPORT_ERROR = None

FAILED_FILE = "failed_recipients.jsonl"
PROGRESS_FILE = "maillog.progress"
MAX_FAILED = 10_000
# Enough for the quota of most regions when an answer takes a second; each holds a page or two in memory.
THREADS = 6
# Left of the deadline for the sums and for handing the result over.
CLOSING_SECONDS = 1.0

ARGUMENTS: dict[str, Any] = {
    "groups": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {"tier": {"type": "str", "required": True}, "log_group": {"type": "str", "required": True}},
    },
    "start": {"type": "str", "required": True},
    "end": {"type": "str", "required": True},
    "metric_pattern": {"type": "str", "default": "dsn=5"},
    "metric": {"type": "str"},
    "metric_namespace": {"type": "str", "default": "Cabalmail/Logs"},
    "metric_lines": {"type": "int", "default": 15},
    "metric_minutes": {"type": "int", "default": 30},
    "metric_hold_minutes": {"type": "int", "default": 15},
    "fired_at": {"type": "str"},
    "own_hosts": {"type": "list", "elements": "str", "default": ["imap.cabal.internal"]},
    "test_domain": {"type": "str", "default": "sinkhole.test"},
    "reason_rules": {"type": "dict", "required": True},
    "providers": {"type": "dict", "required": True},
    "enhanced_codes": {"type": "dict", "required": True},
    "engine": {"type": "str", "choices": ["filter", "insights", "auto"], "default": "filter"},
    "requests_per_second": {"type": "float", "default": 5},
    "max_samples": {"type": "int", "default": 20},
    "work_dir": {"type": "path"},
    "deadline": {"type": "float", "default": 40},
}


class Progress:
    """Writes how far the reading is, for whoever watches the work directory, about once a second."""

    def __init__(self, work_dir: str | None, started: float) -> None:
        self._path = os.path.join(work_dir, PROGRESS_FILE) if work_dir else None
        self._started = started
        self._written = started

    def show(self, pages: int, events: int) -> None:
        now = time.monotonic()
        if self._path is None or now - self._written < 1:
            return
        self._written = now
        with contextlib.suppress(OSError):
            write_private(
                self._path, json.dumps({"pages": pages, "events": events, "seconds": round(now - self._started)})
            )


def write_private(path: str, text: str) -> None:
    """Write a file of mode 0600 under its name at once, never through a link that somebody left there."""
    draft = f"{path}.{os.getpid()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as stream:
        stream.write(text)
    os.replace(draft, path)


def window(module: Any) -> tuple[int, int]:
    """The window in milliseconds; ends the module with a sentence when it is none."""
    try:
        start, end = epoch_ms(module.params["start"]), epoch_ms(module.params["end"])
    except ValueError as error:
        module.fail_json(msg=f"The window can't be read: {error}.")
        raise AssertionError("fail_json ends the process") from error
    if start >= end:
        module.fail_json(msg=f"The window ends ({module.params['end']}) before it starts ({module.params['start']}).")
    return start, end


def fired_at(module: Any) -> int | None:
    """When the alert fired in milliseconds; None without a page."""
    given = module.params["fired_at"]
    if not given:
        return None
    try:
        return epoch_ms(given)
    except ValueError as error:
        module.fail_json(msg=f"The option fired_at can't be read: {error}.")
        raise AssertionError("fail_json ends the process") from error


def check(module: Any) -> None:
    """What the argument specification can't say."""
    tiers = [group["tier"] for group in module.params["groups"]]
    if not tiers or len(set(tiers)) != len(tiers):
        module.fail_json(msg="The option groups must name each tier once, and at least one.")
    for name in ("metric_lines", "metric_minutes", "metric_hold_minutes"):
        if module.params[name] < (0 if name == "metric_lines" else 1):
            module.fail_json(msg=f"The option {name} must be {0 if name == 'metric_lines' else 1} or more.")
    if module.params["requests_per_second"] <= 0:
        module.fail_json(msg="The option requests_per_second must be above 0.")
    if module.params["deadline"] <= 0:
        module.fail_json(msg="The option deadline must be above 0 seconds.")


def write_failed(work_dir: str, rows: list[dict[str, Any]]) -> None:
    """Addresses in clear go to this file only."""
    lines = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows[:MAX_FAILED])
    write_private(os.path.join(work_dir, FAILED_FILE), lines)


def read_tiers(module: Any, started: float) -> dict[str, Any]:
    """The section `tiers`."""
    options = module.params
    start, end = window(module)
    check(module)
    fired = fired_at(module)
    work_dir = options["work_dir"]
    masker = Masker(load_or_create_key(work_dir) if work_dir else secrets.token_bytes(32))
    try:
        classifier = Classifier(
            options["reason_rules"], options["providers"], options["enhanced_codes"], own_hosts=options["own_hosts"]
        )
    except (KeyError, TypeError, ValueError) as error:
        module.fail_json(msg=f"The options reason_rules, providers and enhanced_codes don't fit together: {error!r}.")
    aggregators = {
        group["tier"]: TierAggregator(
            group["tier"], group["log_group"], classifier, masker, start, end,
            metric_pattern=options["metric_pattern"], metric_minutes=options["metric_minutes"],
            own_hosts=options["own_hosts"], max_samples=options["max_samples"],
            test_domain=options["test_domain"],
        )
        for group in options["groups"]
    }  # fmt: skip
    # The processes are forked here, while this one has a single thread.
    crew = Crew(aggregators)
    crew.start()
    module.cabalmail_session._session.register_component("response_parser_factory", RawPagesFactory())
    until = started + options["deadline"] - min(CLOSING_SECONDS, options["deadline"] / 4)
    budget = max(1.0, until - time.monotonic())
    logs = client(
        module, "logs", connect_timeout=min(3.0, budget), read_timeout=min(10.0, budget), max_attempts=1,
        max_pool_connections=THREADS,
    )  # fmt: skip
    groups = [(group["tier"], group["log_group"]) for group in options["groups"]]
    before = day_before(module, [group for _, group in groups], start, until)
    choice = Choice(options["engine"], "asked for")
    if choice.engine == "auto":
        choice = choose(logs, [group for _, group in groups], start, end, options["requests_per_second"], budget)
    engine = InsightsReader if choice.engine == "insights" else Reader
    reader = engine(logs, until, options["requests_per_second"], THREADS)
    progress = Progress(work_dir, started)
    pages = events = 0
    for page in reader.read(groups, start, end):
        crew.feed(page.tier, page.body)
        pages += 1
        events += page.size()
        progress.show(pages, events)
    rule = Rule(options["metric_lines"], options["metric_minutes"], options["metric_hold_minutes"])
    by_tier, reasons = {}, []
    seconds: Counter[int] = Counter()
    why = {tier: reader.why(tier, group) for tier, group in groups}
    read = {tier: outcome.status for tier, outcome in reader.outcomes.items() if outcome.status != "unavailable"}
    tallies = crew.finish({tier: (status, why[tier]) for tier, status in read.items()})
    for tier, group in groups:
        tally = tallies.get(tier)
        if isinstance(tally, Tally):
            by_tier[tier] = tally.section
            seconds.update(tally.metric_seconds)
        else:
            why[tier] = [*why[tier], *([str(tally)] if tally else [])]
            by_tier[tier] = unavailable_tier(
                tier, group, why[tier], exists=reader.outcomes[tier].exists, metric_minutes=options["metric_minutes"]
            )
        reasons += by_tier[tier]["coverage"]["reasons"]
    if work_dir:
        write_failed(work_dir, [row for tally in tallies.values() if isinstance(tally, Tally) for row in tally.failed])
    return {
        "status": overall([section["coverage"]["status"] for section in by_tier.values()]),
        "reasons": reasons,
        "window": {"start": format_rfc3339(start), "end": format_rfc3339(end)},
        "stats": {
            "engine": choice.engine,
            "engine_reason": choice.why,
            "pages": pages,
            "events": events,
            "bytes": reader.bytes,
            "scanned_bytes": reader.scanned if isinstance(reader, InsightsReader) else None,
            "throttled": reader.bucket.throttled,
            "seconds": round(time.monotonic() - started, 3),
        },
        # The alert's metric has no dimension: it counts the lines of all tiers together.
        "peak": peak_of(seconds, options["metric_minutes"]),
        "day_before": before.result() if before else None,
        "change": change(seconds, start, end, rule, fired) if read else None,
        "by_tier": by_tier,
    }


def day_before(module: Any, groups: list[str], end: int, until: float) -> DayBefore | None:
    """Begin to count the metric's lines of the 24 hours before the window; None where that is not asked for."""
    options = module.params
    if not options["metric"]:
        return None
    asked = Asked(
        options["metric_namespace"], options["metric"], options["metric_pattern"], groups, end,
        options["metric_minutes"],
    )  # fmt: skip
    thread = DayBefore(asked, client(module, "cloudwatch"), lambda: client(module, "logs"), until)
    thread.start()
    return thread


def overall(statuses: list[str]) -> str:
    """One status of several."""
    if all(status == "complete" for status in statuses):
        return "complete"
    return "unavailable" if all(status == "unavailable" for status in statuses) else "partial"


def main() -> NoReturn:
    started = time.monotonic()
    module = aws_module(ARGUMENTS, supports_check_mode=True)
    if IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("publicsuffixlist"), exception=IMPORT_ERROR)
    tiers = read_tiers(module, started)
    module.exit_json(changed=False, status=tiers["status"], reasons=tiers["reasons"], tiers=tiers)
    raise AssertionError("exit_json ends the process")


if __name__ == "__main__":
    main()
