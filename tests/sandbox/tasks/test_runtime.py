# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks are real: their files, their processes, their loop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.model import PIN_SENTINEL, Address, Loop, MapState, QueuedMessage
from sandbox.tasks.isolation import Isolation

from .conftest import ADDRESSES, NEW, USERS, Cloud

TWIN = replace(ADDRESSES[0], address="Ann@shop.harborlight.example", username="Ann")
Until = Callable[..., None]
BAD = Address("empty@shop.harborlight.example", "", "empty", "harborlight.example", "shop", None)


def loop_pid(cloud: Cloud, spec: Any) -> str:
    return cloud.shell(spec, "pgrep -f '^/bin/bash .*reconfigure.sh$' || true").strip()


def state(cloud: Cloud, spec: Any) -> str:
    return cloud.shell(spec, f"ps -o s= -p {loop_pid(cloud, spec)}").strip()


def db(cloud: Cloud, spec: Any, path: str = "/etc/mail/access") -> str:
    return cloud.shell(spec, f"makemap -u hash {path}")


def test_files_are_what_the_scenario_declares(cloud: Cloud) -> None:
    maps = MapState(300, 7200, db_lacks=("ann@shop.harborlight.example",))
    queued = QueuedMessage(
        "4AOM0abc012345", 600, "news@sender.example", ("x@y.example",), "Deferred: Connection refused"
    )
    imap = cloud.spec("imap", maps=maps, log_level=9, mailq=(queued,))
    smtp_in = cloud.spec("smtp-in", log_level=2, pin=PIN_SENTINEL)
    cloud.start(imap, smtp_in)
    assert "To:ann@shop.harborlight.example\tOK\n" in cloud.shell(imap, "cat /etc/mail/access")
    assert "to:ben@shop.harborlight.example\tOK" in db(cloud, imap)
    assert "ann@" not in db(cloud, imap)
    now = time.time()
    text, made = map(int, cloud.shell(imap, "stat -c %Y /etc/mail/access /etc/mail/access.db").split())
    assert (now - text, now - made) == (pytest.approx(300, abs=10), pytest.approx(7200, abs=10))
    assert cloud.shell(imap, "makemap -u hash /etc/aliases | grep -c alice_bob") == "1\n"
    assert "O LogLevel=2\n" in cloud.shell(smtp_in, "cat /etc/mail/sendmail.cf")
    assert f"{PIN_SENTINEL} imap.cabal.internal # cabal-hosts-pin" in cloud.shell(smtp_in, "cat /etc/hosts")
    assert "Deferred: Connection refused" in cloud.shell(imap, "mailq")
    assert cloud.shell(smtp_in, "mailq").startswith("/var/spool/mqueue is empty")
    assert "To:shop.harborlight.example\tREJECT\n" in cloud.shell(smtp_in, "cat /etc/mail/access")
    assert ".harborlight.example\tsmtp:[imap.cabal.internal]" in cloud.shell(smtp_in, "cat /etc/mail/mailertable")


def test_users_and_their_homes(cloud: Cloud) -> None:
    spec = cloud.spec("imap")
    cloud.start(spec)
    assert cloud.shell(spec, "cut -d: -f1 /etc/passwd").split()[2:] == ["alice", "bob", "carl"]
    modes = cloud.shell(spec, "stat -c '%n %a %u' /home/*/Maildir").splitlines()
    if cloud.runtime.isolation is Isolation.ROOT:
        assert modes == ["/home/alice/Maildir 700 2001", "/home/carl/Maildir 500 65534"]
    else:
        assert [line.split()[1] for line in modes] == ["700", "500"]


def test_a_task_sees_its_own_processes_under_supervisord_only(cloud: Cloud) -> None:
    spec = cloud.spec("smtp-in")
    cloud.start(spec)
    names = cloud.shell(spec, "ps -eo comm=").split()
    assert names[0] == "supervisord"
    assert {"sendmail", "opendkim", "opendmarc", "rsyslogd", "tail"} < set(names)
    assert "pytest" not in " ".join(names)
    assert cloud.shell(spec, "hostname").strip() == spec.host_name
    assert cloud.shell(spec, "touch /usr/x 2>&1; touch /usr/local/x 2>&1").count("Read-only") == 2


def test_a_declared_task_says_nothing_of_its_start(cloud: Cloud) -> None:
    spec = cloud.spec("smtp-in")
    cloud.start(spec)
    time.sleep(1.5)
    assert cloud.lines[spec.task_id] == []
    assert "spawned: 'reconfigure' with pid" in cloud.shell(spec, "cat /var/log/supervisord.log")


def test_a_message_makes_the_loop_regenerate(cloud: Cloud) -> None:
    stale = MapState(
        18_000, 18_000, text_lacks=("ann@shop.harborlight.example",), db_lacks=("ann@shop.harborlight.example",)
    )
    spec = cloud.spec("smtp-in", maps=stale)
    cloud.start(spec)
    assert "ann@" not in db(cloud, spec)
    sendmail = cloud.shell(spec, "pgrep -x sendmail")
    cloud.tell(spec)
    cloud.tell(spec)
    lines = cloud.wait_for(spec, "Drained stale SQS messages.")
    wanted = [
        "[reconfigure] SQS message received, triggering regeneration...",
        "[reconfigure] Regenerating configs from DynamoDB...",
        "[generate-config] Scanning DynamoDB cabal-addresses table...",
        "[generate-config] Generating config files for tier=smtp-in...",
        "  Generated /etc/mail/access",
        "[generate-config] Done.",
        "[reconfigure] Killing sendmail; supervisord will restart it...",
        "[reconfigure] Done.",
        "[reconfigure] Drained stale SQS messages.",
    ]
    assert [line for line in lines if line in wanted] == wanted
    assert "to:ann@shop.harborlight.example\tRELAY" in db(cloud, spec)
    cloud.wait_for(spec, "exited: sendmail (exit status 0; expected)")
    cloud.wait_for(spec, "spawned: 'sendmail' with pid")
    cloud.wait_for(spec, "starting daemon (8.17.1.9): SMTP+queueing@00:15:00")
    assert cloud.shell(spec, "pgrep -x sendmail") != sendmail
    left = cloud.sqs.get_queue_attributes(QueueUrl=spec.queue_url, AttributeNames=["All"])["Attributes"]
    assert (left["ApproximateNumberOfMessages"], left["ApproximateNumberOfMessagesNotVisible"]) == ("0", "0")


def test_a_stopped_loop_is_really_stopped_and_goes_on_when_continued(cloud: Cloud) -> None:
    spec = cloud.spec("smtp-in", loop=Loop.STOPPED)
    cloud.start(spec)
    cloud.tell(spec)
    time.sleep(1.0)
    assert state(cloud, spec) == "T"
    assert cloud.lines[spec.task_id] == []
    cloud.runtime.signal_loop(spec.task_id, signal.SIGCONT)
    cloud.wait_for(spec, "[reconfigure] Done.")


def test_a_running_loop_can_be_stopped(cloud: Cloud, until: Until) -> None:
    spec = cloud.spec("smtp-in")
    cloud.start(spec)
    cloud.runtime.signal_loop(spec.task_id, signal.SIGSTOP)
    until(lambda: state(cloud, spec) == "T")


def test_a_dead_loop_has_no_process_and_supervisord_gave_up_long_ago(cloud: Cloud) -> None:
    spec = cloud.spec("smtp-in", loop=Loop.DEAD, maps=MapState(18_000, 18_000))
    cloud.start(spec)
    assert loop_pid(cloud, spec) == ""
    log = cloud.shell(spec, "cat /var/log/supervisord.log")
    assert log.count("exited: reconfigure (exit status 1; not expected)") == 4
    ended = re.search(
        r"^(\S+ \S+),\d+ INFO gave up: reconfigure entered FATAL state, too many start retries too quickly", log, re.M
    )
    assert ended
    assert time.time() - time.mktime(time.strptime(ended[1], "%Y-%m-%d %H:%M:%S")) + time.timezone == pytest.approx(
        17_940, abs=10
    )


def test_a_hung_loop_waits_for_an_aws_call_and_a_restart_cures_it(cloud: Cloud) -> None:
    spec = cloud.spec("smtp-in", loop=Loop.HUNG, maps=MapState(18_000, 18_000))
    cloud.start(spec)
    cloud.tell(spec)
    time.sleep(1.5)
    assert "dynamodb scan" in cloud.shell(spec, "ps -eo args= | grep '[a]ws dynamodb'")
    assert cloud.lines[spec.task_id] == []
    cloud.shell(spec, "pkill -f reconfigure.sh; pkill -x aws")
    cloud.wait_for(spec, "exited: reconfigure (terminated by SIGTERM; not expected)")
    cloud.wait_for(spec, "[reconfigure] Starting config watch loop (tier: smtp-in)")
    cloud.wait_for(spec, "[reconfigure] Done.")


@pytest.mark.parametrize(
    ("row", "complaint", "stale"),
    [
        # makemap writes the good lines of the file it fails on; the script dies before the files after it.
        (BAD, "no RHS for LHS empty@shop.harborlight.example", "/etc/aliases.db"),
        (TWIN, "key to:ann@shop.harborlight.example: duplicate key", "/etc/mail/virtusertable.db"),
    ],
    ids=["empty user", "differs in case only"],
)
def test_makemap_fails_on_a_bad_row_so_the_text_is_fresh_and_the_db_old(
    cloud: Cloud, row: Address, complaint: str, stale: str
) -> None:
    spec = cloud.spec("imap", loop=Loop.FAILING, maps=MapState(300, 40_000))
    cloud.put(row)
    try:
        cloud.start(spec)
        cloud.tell(spec)
        cloud.wait_for(spec, "exited: reconfigure (exit status 65; not expected)")
    finally:
        cloud.remove(row)
    assert complaint in "\n".join(cloud.lines[spec.task_id])
    assert "[reconfigure] Done." not in cloud.lines[spec.task_id]
    cloud.wait_for(spec, "[reconfigure] Starting config watch loop (tier: imap)")
    text, made = map(int, cloud.shell(spec, f"stat -c %Y {stale.removesuffix('.db')} {stale}").split())
    assert time.time() - text < 20
    assert time.time() - made > 39_000
    assert row.address in cloud.shell(spec, "cat /etc/mail/virtusertable")
    assert row.address not in db(cloud, spec, "/etc/mail/virtusertable")


def test_a_new_task_builds_fresh_maps_and_users_from_the_live_table(cloud: Cloud) -> None:
    cloud.put(NEW)
    spec = cloud.spec("imap", fresh=True, users=(replace(USERS[3], present=False),))
    cloud.start(spec)
    cloud.wait_for(spec, "[reconfigure] SQS mode: polling")
    cloud.remove(NEW)
    lines = cloud.lines[spec.task_id]
    assert lines[0] == "[entrypoint] Starting imap tier configuration..."
    assert any(re.match(r"\S+ \S+ INFO spawned: 'reconfigure' with pid \d+$", line) for line in lines)
    assert "to:new@shop.harborlight.example\tOK" in db(cloud, spec)
    assert "dora" in cloud.shell(spec, "cat /etc/passwd")
    cloud.wait_for(
        spec, "success: reconfigure entered RUNNING state, process has stayed up for > than 1 seconds (startsecs)"
    )


def test_a_new_task_does_not_start_with_a_row_that_makemap_refuses(cloud: Cloud) -> None:
    cloud.put(BAD)
    spec = cloud.spec("imap", fresh=True)
    try:
        error = cloud.runtime.start([spec])[spec.task_id]
    finally:
        cloud.remove(BAD)
    assert str(error) == "the task ended with status 65 before its services were started"
    task = cloud.runtime.task(spec.task_id)
    assert task is not None
    assert not task.running


def test_supervisord_gives_up_after_four_quick_deaths(cloud: Cloud) -> None:
    spec = cloud.spec("smtp-out")
    cloud.start(spec)
    cloud.shell(spec, "rm /run/idle; pkill -x opendkim; pkill -9 -x rsyslogd")
    cloud.wait_for(spec, "exited: rsyslog (terminated by SIGKILL; not expected)")
    lines = cloud.wait_for(spec, "gave up: opendkim entered FATAL state, too many start retries too quickly", 20)
    assert sum("spawned: 'opendkim'" in line for line in lines) == 4


def test_a_tier_without_maps_runs_as_well(cloud: Cloud) -> None:
    declared, fresh = cloud.spec("sinkhole", queue_url=None), cloud.spec("sinkhole", queue_url=None, fresh=True)
    cloud.start(declared, fresh)
    assert cloud.shell(declared, "ls /etc/mail").split() == ["sendmail.cf"]


def test_without_an_address_a_new_task_pins_the_sentinel(cloud: Cloud) -> None:
    spec = cloud.spec("smtp-in", pin=None, fresh=True)
    cloud.start(spec)
    cloud.wait_for(spec, "[hosts-pin] resolve failed with no prior pin; wrote sentinel 192.0.2.1")
    assert "192.0.2.1 imap.cabal.internal # cabal-hosts-pin\n" in cloud.shell(spec, "cat /etc/hosts")


def test_the_pin_follows_discovery(cloud: Cloud, until: Until) -> None:
    spec = cloud.spec("smtp-in", pin=PIN_SENTINEL)
    cloud.start(spec)
    cloud.runtime.set_imap_address("10.0.2.99")
    cloud.shell(spec, "pkill -f hosts-pin.sh")
    cloud.wait_for(spec, "[hosts-pin] imap.cabal.internal -> 10.0.2.99")
    assert "10.0.2.99 imap.cabal.internal # cabal-hosts-pin\n" in cloud.shell(spec, "cat /etc/hosts")
    cloud.runtime.set_imap_address(None)


def test_a_stop_gives_the_programs_time_and_leaves_nothing(cloud: Cloud) -> None:
    spec = cloud.spec("smtp-out")
    cloud.start(spec)
    task = cloud.runtime.task(spec.task_id)
    assert task is not None
    cloud.shell(spec, "sleep 0.5")
    cloud.runtime.stop(spec.task_id)
    lines = cloud.lines[spec.task_id]
    assert any(line.endswith("WARN received SIGTERM indicating exit request") for line in lines)
    assert any(line.endswith("stopped: sendmail (exit status 0)") for line in lines)
    assert not task.root.exists()
    assert not task.alive()
    assert spec.task_id not in cloud.exits


def test_a_task_that_ends_by_itself_is_reported(cloud: Cloud, until: Until) -> None:
    spec = cloud.spec("smtp-out")
    cloud.start(spec)
    task = cloud.runtime.task(spec.task_id)
    assert task is not None
    os.kill(task.first_process, signal.SIGKILL)
    until(lambda: spec.task_id in cloud.exits)


def test_tasks_end_with_the_sandbox_even_when_it_is_killed(tmp_path: Path, endpoint: str, until: Until) -> None:
    code = (
        "import sys, time; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "from pathlib import Path\n"
        "from conftest import Cloud\n"
        "cloud = Cloud(sys.argv[3], Path(sys.argv[4])); spec = cloud.spec(); cloud.start(spec)\n"
        "print(cloud.runtime.task(spec.task_id).first_process, flush=True); time.sleep(60)\n"
    )
    here = Path(__file__).parent
    argv = [sys.executable, "-c", code, str(here.parents[2]), str(here), endpoint, str(tmp_path / "state")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = int(process.stdout.readline())
        assert Path(f"/proc/{first}").exists()
        process.kill()
    until(lambda: not Path(f"/proc/{first}").exists())
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_five_tasks_start_in_well_under_two_seconds_and_leave_no_trace(cloud: Cloud, until: Until) -> None:
    specs = [cloud.spec(tier) for tier in ("imap", "smtp-in", "smtp-in", "smtp-out", "smtp-out")]
    begun = time.monotonic()
    cloud.start(*specs)
    print(f"five tasks started in {time.monotonic() - begun:.2f} s")
    roots = [task.root for spec in specs if (task := cloud.runtime.task(spec.task_id))]
    pids = [task.first_process for spec in specs if (task := cloud.runtime.task(spec.task_id))]
    for spec in specs:
        cloud.runtime.stop(spec.task_id, grace=0)
    assert not any(root.exists() for root in roots)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    mounts = Path("/proc/self/mountinfo").read_text()
    assert not any(str(root) in mounts for root in roots)
