# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runbooks' own commands, really run in the same tasks, mislead where the triage does not.

The commands are those of cabal-infra's docs/operations/runbooks/{sendmail-bounced-spike,heartbeat-ecs-reconfigure}.md,
release 1.3.5, word for word.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
SCENARIOS = REPO / "sandbox/scenarios"
MAP_IS_FRESH = "wc -l /etc/mail/virtusertable && date -r /etc/mail/virtusertable"
LOOP_IS_ALIVE = "/bin/sh -c 'pgrep -af reconfigure || echo no-reconfigure-process'"

pytestmark = pytest.mark.playbook


def client(sandbox: Any, service: str) -> Any:
    return boto3.client(
        service,
        region_name="us-east-1",
        endpoint_url=sandbox.url,
        aws_access_key_id="AKIASANDBOXSANDBOX00",
        aws_secret_access_key="sandbox-secret-that-opens-nothing",
    )


def first_task(sandbox: Any, service: str) -> str:
    """`aws ecs list-tasks ... --query 'taskArns[0]'`, which both runbooks take."""
    arns = client(sandbox, "ecs").list_tasks(cluster="cabal-mail", serviceName=service)["taskArns"]
    return str(arns[0]).rpartition("/")[2]


def in_task(sandbox: Any, task: str, command: str) -> str:
    """What a command prints in a task, through ECS Exec."""
    options = {
        "cluster": "cabal-mail",
        "tasks": [task],
        "command": command,
        "read_only": True,
        "region": "us-east-1",
        "endpoint_url": sandbox.url,
        "access_key": "AKIASANDBOXSANDBOX00",
        "secret_key": "sandbox-secret-that-opens-nothing",
    }
    done = subprocess.run(
        ["ansible", "sandbox", "-m", "ecs_exec", "-a", json.dumps(options)],
        cwd=REPO,
        env={**sandbox.environment(), "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_STDOUT_CALLBACK": "json"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)["plays"][0]["tasks"][0]["hosts"]["sandbox"]
    (result,) = answer["results"]
    assert result["outcome"] == "completed", result
    return str(result["stdout"])


def scenario(folder: Path, base: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A scenario of ours, changed and put into a folder of its own."""
    source = SCENARIOS / base
    declared = yaml.safe_load((source / "scenario.yml").read_text())
    change(declared)
    made = folder / "scenario"
    made.mkdir()
    for file in source.glob("*.maillog"):
        (made / file.name).symlink_to(file)
    (made / "scenario.yml").write_text(yaml.safe_dump(declared))
    return made


def loops(run: Any) -> dict[str, str]:
    return {row["task"]: row["state"] for row in run.triage["reconfigure_loop"]["tasks"]}


def test_the_first_task_of_three_is_healthy_and_the_stuck_one_is_named(
    sandbox: Any, triage: Callable[..., Any], tmp_path: Path
) -> None:
    """Defect 5: `taskArns[0]` is one of up to three tasks."""
    for place in range(3):

        def put_stuck_task_there(declared: dict[str, Any], place: int = place) -> None:
            tasks = declared["tiers"]["smtp-in"]["tasks"]
            tasks.insert(place, tasks.pop(0))

        (tmp_path / str(place)).mkdir()
        sandbox.load(scenario(tmp_path / str(place), "one-stuck-task-of-three", put_stuck_task_there))
        looked_at = first_task(sandbox, "cabal-smtp-in")
        age = time.time() - float(in_task(sandbox, looked_at, "date -r /etc/mail/virtusertable +%s"))
        if age < 1040:
            break
    assert age < 1040
    run = triage(None)
    stuck = [task for task, state in loops(run).items() if state == "dead"]
    assert "no-reconfigure-process" not in in_task(sandbox, looked_at, LOOP_IS_ALIVE).splitlines()
    assert len(stuck) == 1
    assert run.triage["address_map"]["stale_tasks"] == {"smtp-in": stuck}
    assert "smtp_in.stale_map" in run.findings


def test_the_runbook_s_search_for_a_dead_loop_finds_itself(sandbox: Any, triage: Callable[..., Any]) -> None:
    """Defect 6: the shell that runs `pgrep -af reconfigure` has "reconfigure" on its own command line."""
    run = triage("one-stuck-task-of-three")
    dead = [task for task, state in loops(run).items() if state == "dead"]
    assert len(dead) == 1
    said = in_task(sandbox, dead[0], LOOP_IS_ALIVE)
    assert "no-reconfigure-process" not in said.splitlines()
    assert "reconfigure" in said


def test_a_date_is_text_in_the_container_s_zone_and_here_an_age(sandbox: Any, triage: Callable[..., Any]) -> None:
    """Defect 8: `date -r` prints local text without the container's own clock beside it."""
    run = triage("smtp-in-stale-map")
    (stuck,) = run.triage["address_map"]["stale_tasks"]["smtp-in"]
    true_age = time.time() - float(in_task(sandbox, stuck, "date -r /etc/mail/access.db +%s"))
    text = in_task(sandbox, stuck, f"export TZ=XXX-5; {MAP_IS_FRESH}").splitlines()[-1]
    # Whoever reads the text without its zone takes the map for five hours younger.
    read = time.mktime(time.strptime(" ".join(text.split()[:4] + text.split()[-1:]), "%a %b %d %H:%M:%S %Y"))
    assert true_age - (time.time() - read) == pytest.approx(5 * 3600 - time.timezone, abs=120)
    (row,) = [
        row for row in run.triage["address_map"]["tasks"] if row["task"] == stuck and row["map"].endswith("/access")
    ]
    assert row["age_seconds"] == pytest.approx(true_age, abs=60)


def test_a_forced_redeploy_of_imap_throws_its_queue_away_and_the_triage_reads_it_first(
    sandbox: Any, triage: Callable[..., Any], tmp_path: Path
) -> None:
    """Defect 10: imap's queue is the container's own layer."""

    def queue_mail(declared: dict[str, Any]) -> None:
        declared["tiers"]["imap"]["mailq"] = [
            {
                "queue_id": "5BOLfA1B012345",
                "age_minutes": 90,
                "sender": "amelia@shop.harborlight.example",
                "recipients": ["someone@bigmail.example"],
                "reason": "Deferred: Connection timed out with mx.bigmail.example.",
            }
        ]

    run = triage(scenario(tmp_path, "imap-stale-map", queue_mail))
    assert run.triage["local_delivery"]["imap_queue"]["messages"] == 1
    before = first_task(sandbox, "cabal-imap")
    # The runbook's escalation, which it gives without a word on what the task still holds.
    ecs = client(sandbox, "ecs")
    ecs.update_service(cluster="cabal-mail", service="cabal-imap", forceNewDeployment=True)
    until = time.monotonic() + 30
    seen_down = False
    while time.monotonic() < until:
        service = ecs.describe_services(cluster="cabal-mail", services=["cabal-imap"])["services"][0]
        seen_down = seen_down or service["runningCount"] == 0
        if service["runningCount"] == 1 and first_task(sandbox, "cabal-imap") != before:
            break
        time.sleep(0.2)
    assert seen_down
    assert "someone@bigmail.example" not in in_task(sandbox, first_task(sandbox, "cabal-imap"), "mailq")
