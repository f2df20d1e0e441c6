# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runbook's shell pipelines, really run by bash over the same log groups, mislead where the triage does not.

The pipelines are those of cabal-infra's docs/operations/runbooks/sendmail-bounced-spike.md, release 1.3.5, word for
word; `aws` is a stand-in that prints what `aws logs tail` prints, read from the same sandbox. What the runbooks do
inside tasks is in test_runbook_in_tasks.py.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import REPO, Run, Sandbox

pytestmark = pytest.mark.playbook

SCENARIOS = REPO / "sandbox" / "scenarios"
CORPUS = REPO / "tests" / "data" / "maillog"
LOOK = "aws logs tail /ecs/cabal-{tier} --since 30m --filter-pattern '\"dsn=5\"' | "
COUNT = LOOK + "wc -l"
CODES = LOOK + r"grep -oE 'dsn=5\.[0-9]+\.[0-9]+ [^,]*' | sort | uniq -c | sort -rn | head"
DOMAINS = LOOK + "grep -oE 'to=<[^@]*@[^>]*>' | awk -F'@' '{{print $2}}' | sort | uniq -c | sort -rn | head"

# `aws logs tail GROUP --since 30m --filter-pattern PATTERN`, as the AWS CLI prints it: time, stream, message.
AWS = """#!{python}
import sys, time
from datetime import UTC, datetime
import boto3
from botocore.exceptions import ClientError
words = sys.argv[1:]
assert words[:2] == ["logs", "tail"] and words[3:6] == ["--since", "30m", "--filter-pattern"] and len(words) == 7, words
logs = boto3.client("logs", region_name="us-east-1", endpoint_url="{url}",
                    aws_access_key_id="AKIASANDBOXSANDBOX00", aws_secret_access_key="sandbox-secret-that-opens-nothing")
pages = logs.get_paginator("filter_log_events").paginate(
    logGroupName=words[2], filterPattern=words[6], startTime=int((time.time() - 1800) * 1000))
try:
    for page in pages:
        for event in page["events"]:
            at = datetime.fromtimestamp(event["timestamp"] / 1000, UTC).isoformat()
            print(at, event["logStreamName"], event["message"])
except ClientError as error:
    sys.exit(f"\\n{{error}}")
"""

ByHand = Callable[[str, str], str]


@pytest.fixture
def by_hand(sandbox: Sandbox, tmp_path: Path) -> ByHand:
    """Run one of the runbook's pipelines for a tier, with bash; its standard output."""
    folder = tmp_path / "bin"
    folder.mkdir()
    aws = folder / "aws"
    aws.write_text(AWS.format(python=sys.executable, url=sandbox.url))
    aws.chmod(0o755)
    environment = sandbox.environment()

    def run(pipeline: str, tier: str) -> str:
        return subprocess.run(
            ["bash", "-c", pipeline.format(tier=tier)],
            env={**environment, "PATH": f"{folder}:{environment['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()

    return run


def histogram(text: str) -> dict[str, int]:
    """`uniq -c` read back."""
    return {line.split(maxsplit=1)[1]: int(line.split()[0]) for line in text.splitlines()}


def bounces(run: Run, tier: str) -> dict[str, Any]:
    return dict(run.triage["tiers"]["by_tier"][tier]["bounces"])


def changed(folder: Path, base: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A scenario of ours, changed, in a folder of its own."""
    made = folder / "scenario"
    shutil.copytree(SCENARIOS / base, made)
    declared = yaml.safe_load((made / "scenario.yml").read_text())
    change(declared)
    (made / "scenario.yml").write_text(yaml.safe_dump(declared))
    return made


def with_corpus(folder: Path, base: str, tier: str, name: str, lines: slice = slice(None)) -> Path:
    """A scenario of which a tier logs (a part of) a file of the corpus, up to a minute after the last line."""
    made = changed(folder, base, lambda _declared: None)
    kept = (CORPUS / name).read_text().splitlines(keepends=True)[lines]
    (made / f"{tier}.maillog").write_text("".join(kept))
    times = [time for time in map(time_of, kept) if time is not None]
    declared = yaml.safe_load((made / "scenario.yml").read_text())
    declared["now"] = f"{max(times) + timedelta(minutes=1):%Y-%m-%dT%H:%M:%SZ}"
    (made / "scenario.yml").write_text(yaml.safe_dump(declared))
    return made


def time_of(line: str) -> datetime | None:
    """Time at the head of a line in either of rsyslog's forms, without its zone, which is UTC."""
    if match := re.match(r"\w{3} [ \d]\d [\d:]{8}", line):
        return datetime.strptime(f"2026 {match[0]}", "%Y %b %d %H:%M:%S")
    match = re.match(r"\d{4}-\d\d-\d\dT[\d:]{8}", line)
    return datetime.fromisoformat(match[0]) if match else None


def truth(name: str) -> list[dict[str, Any]]:
    """What really happened: one object a recipient and attempt."""
    rows = [json.loads(line) for line in (CORPUS / "truth.jsonl").read_text().splitlines()]
    return [row for row in rows if row["file"] == name]


def test_the_histogram_of_codes_is_empty(triage: Callable[..., Run], by_hand: ByHand) -> None:
    """Defect 1: a comma follows the code, never a blank."""
    run = triage("smtp-out-provider-block", "--tags", "tier_bounces")
    assert int(by_hand(COUNT, "smtp-out")) > 15
    assert by_hand(CODES, "smtp-out") == ""
    log = (SCENARIOS / "smtp-out-provider-block" / "smtp-out.maillog").read_text().splitlines()
    lines = [line for line in log if line > "2026-11-24T21:"]  # a few are of the day before
    codes = Counter(re.search(r", dsn=(5\.\d+\.\d+), ", line)[1] for line in lines if ", dsn=5." in line)
    assert {row["code"]: row["lines"] for row in bounces(run, "smtp-out")["codes"]} == codes


def test_lines_are_neither_messages_nor_recipients(triage: Callable[..., Run], by_hand: ByHand, tmp_path: Path) -> None:
    """Defects 2 and 3: one line carries up to a hundred recipients; only the first is seen, with a bracket on."""
    name, first = "smtp-out.many-recipients.maillog", 22
    folder = with_corpus(tmp_path, "smtp-out-provider-block", "smtp-out", name, slice(first, None))
    run = triage(folder, "--tags", "tier_bounces")
    bounced = [row for row in truth(name) if row["outcome"] == "bounced" and row["line"] > first]
    found = bounces(run, "smtp-out")

    assert int(by_hand(COUNT, "smtp-out")) == found["lines"] == len({row["line"] for row in bounced})
    assert found["messages"] == len({row["queue_id"] for row in bounced}) < found["lines"]
    assert found["recipients"] == len(bounced) > found["lines"]

    domains = histogram(by_hand(DOMAINS, "smtp-out"))
    assert all(">" in domain for domain in domains)
    assert sum(domains.values()) < len(bounced)
    assert {row["domain"]: row["recipients"] for row in found["domains"]} == Counter(
        row["recipient_domain"] for row in bounced
    )


def test_local_users_are_not_recipients_to_the_runbook(
    triage: Callable[..., Run], by_hand: ByHand, tmp_path: Path
) -> None:
    """Defect 3: after alias expansion `to=` is a bare user, a program or a file, without brackets and domain."""
    name = "imap.delivery.maillog"
    run = triage(with_corpus(tmp_path, "imap-maildir-unwritable", "imap", name), "--tags", "tier_bounces")
    found = bounces(run, "imap")
    assert int(by_hand(COUNT, "imap")) == found["lines"] == 11
    assert found["recipients"] == len([row for row in truth(name) if row["outcome"] == "bounced"])
    assert sum(histogram(by_hand(DOMAINS, "imap")).values()) == 6


def test_many_domains_are_one_provider(triage: Callable[..., Run], by_hand: ByHand) -> None:
    """Defect 4: "many providers", the runbook would say, since it never looks at the exchanger."""
    run = triage("smtp-out-provider-block")
    domains = histogram(by_hand(DOMAINS, "smtp-out"))
    assert len(domains) >= 3
    assert max(domains.values()) < sum(domains.values()) / 2
    top = bounces(run, "smtp-out")["providers"][0]
    assert top["provider"] == "Microsoft"
    assert top["share_of_bounces"] > 0.9
    assert run.verdict == "smtp_out.provider_block"


def test_the_last_half_hour_is_not_the_half_hour_of_the_page(
    triage: Callable[..., Run], by_hand: ByHand, tmp_path: Path
) -> None:
    """Defect 7: the page woke somebody two hours later."""

    def look_late(declared: dict[str, Any]) -> None:
        now = datetime.fromisoformat(declared["now"]) + timedelta(hours=2)
        declared["now"] = f"{now:%Y-%m-%dT%H:%M:%SZ}"
        declared["alert"]["fired_minutes_ago"] = 120

    run = triage(changed(tmp_path, "smtp-out-provider-block", look_late))
    assert [by_hand(COUNT, tier) for tier in ("imap", "smtp-in", "smtp-out")] == ["0", "0", "0"]
    window = run.triage["alert"]["window"]
    fired = datetime.fromisoformat(window["fired_at"])
    assert fired - datetime.fromisoformat(window["start"]) == timedelta(minutes=48)
    assert bounces(run, "smtp-out")["peak"]["lines"] > 15
    assert "smtp_out.provider_block" in run.findings


def test_no_line_is_not_health_at_level_2(triage: Callable[..., Run], by_hand: ByHand) -> None:
    """Defect 9: the release logs no bounce at all on the smtp tiers, and the runbook counts none."""
    run = triage("smtp-out-provider-block-loglevel-2")
    assert by_hand(COUNT, "smtp-out") == "0"
    assert run.triage["tiers"]["by_tier"]["smtp-out"]["coverage"]["blind"] is not False
    assert "LogLevel 2" in run.triage["verdict"]["found"]
    assert run.verdict == "coverage.blind_tier"
    assert not {"none.below_threshold", "none.ended"} & set(run.findings)


@pytest.mark.parametrize("group", ["denied", "missing"])
def test_no_line_is_not_health_where_the_log_cannot_be_read(
    group: str, triage: Callable[..., Run], by_hand: ByHand, tmp_path: Path
) -> None:
    """Defect 9: `wc -l` counts 0 lines of an error, too."""

    def hide(declared: dict[str, Any]) -> None:
        if group == "missing":
            declared["tiers"]["imap"]["log_group"] = "missing"
        else:
            where = {"logGroupName": "/ecs/cabal-imap"}
            fault = {"operation": "logs.FilterLogEvents", "where": where, "error": "AccessDeniedException"}
            declared["faults"] = [fault]

    run = triage(changed(tmp_path, "quiet", hide))
    assert by_hand(COUNT, "imap") == "0"
    imap = run.triage["tiers"]["by_tier"]["imap"]
    assert imap["coverage"]["status"] == "unavailable"
    assert imap["bounces"] is None or imap["bounces"]["lines"] is None
    assert run.triage["tiers"]["status"] == "partial"
    assert "coverage.unavailable" in run.findings
    assert (run.triage["verdict"]["id"], run.triage["verdict"]["confidence"]) != ("none.below_threshold", "high")
