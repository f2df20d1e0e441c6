# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin and the inventory plugin, by real ansible commands against the sandbox's tasks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import BIN, REPO, Sandbox

# Of this process alone: tests of others run beside these.
ENDLESS = f"sleep {100_000 + os.getpid()}"
BYTES = bytes(range(256)) * 800 + b"\xef\xbf\xbd\xf0\x9f"


@dataclass(frozen=True)
class Tasks:
    """An inventory file of the sandbox's tasks, and Ansible's commands on it."""

    sandbox: Sandbox
    folder: Path

    @property
    def inventory(self) -> Path:
        return self.folder / "mail.ecs_tasks.yml"

    def write(self, **options: Any) -> None:
        given = {"plugin": "ecs_tasks", "cluster": "cabal-mail", "region": "us-east-1", **options}
        given.setdefault("endpoint_url", self.sandbox.url)
        self.inventory.write_text(json.dumps(given))

    def __call__(self, program: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / program), "-i", str(self.inventory), *words],
            cwd=REPO,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    def environment(self, **changes: str) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": "AKIAOPERATOR", "AWS_SECRET_ACCESS_KEY": "operators-secret"}
        return {**self.sandbox.environment(), **keys, "ANSIBLE_LOCAL_TEMP": str(self.folder), **changes}

    @staticmethod
    def sandbox_runs(line: str) -> bool:
        """Whether a process of this very command line runs, in whatever container."""
        listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        return line in listing.splitlines()

    def listed(self) -> dict[str, Any]:
        done = self("ansible-inventory", "--list")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout, object_hook=lambda found: found.get("__ansible_unsafe", found))


@pytest.fixture
def tasks(sandbox: Sandbox, tmp_path: Path) -> Iterator[Tasks]:
    """All tasks of the scenario ``quiet``, the agent's waits off."""
    sandbox.load("quiet")
    sandbox.post("agent", {"delays": "off"})
    made = Tasks(sandbox, tmp_path)
    made.write()
    sandbox.reset_calls()
    yield made
    sandbox.post("agent", {})


def test_running_tasks_are_hosts_with_their_facts_in_the_group_of_their_service(tasks: Tasks) -> None:
    found = tasks.listed()
    (host,) = found["cabal_smtp_in"]["hosts"]
    facts = found["_meta"]["hostvars"][host]
    assert host == f"smtp-in-{facts['ecs_task']}"
    assert (facts["ecs_container"], facts["ecs_service"], facts["ecs_cluster"]) == (
        "smtp-in",
        "cabal-smtp-in",
        "cabal-mail",
    )
    assert facts["ecs_ip"].startswith("10.0.1.")
    assert facts["ecs_zone"].startswith("us-east-1")
    assert facts["ecs_problem"] is None
    assert facts["ansible_host"] == facts["ecs_task"]
    assert {"cabal_imap", "cabal_smtp_in", "cabal_smtp_out"} <= found.keys()
    assert "operators-secret" not in json.dumps(found)
    own = [call["operation"] for call in tasks.sandbox.calls() if call["principal"] == "AKIAOPERATOR"]
    assert own == ["ecs.ListTasks", "ecs.DescribeTasks"]


def test_services_families_containers_and_keyed_groups_choose_and_arrange(tasks: Tasks) -> None:
    tasks.write(services=["cabal-imap"], families=["cabal-smtp-out"], keyed_groups=[{"key": "ecs_family"}])
    found = tasks.listed()
    assert {facts["ecs_container"] for facts in found["_meta"]["hostvars"].values()} == {"imap", "smtp-out"}
    assert "_cabal_smtp_out" in found
    tasks.write(containers=["imap"])
    assert {facts["ecs_container"] for facts in tasks.listed()["_meta"]["hostvars"].values()} == {"imap"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cluster": "nowhere"}, "The tasks of nowhere can't be listed"),
        ({"services": ["cabal-nothing"]}, "ServiceNotFoundException"),
        ({"profile": "nobody"}, "The credentials profile 'nobody'"),
    ],
)
def test_an_inventory_that_can_not_be_made_stops_the_run_with_the_reason(
    tasks: Tasks, options: dict[str, Any], words: str
) -> None:
    tasks.write(**options)
    keyless = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""} if "profile" in options else {}
    done = tasks("ansible", "all", "-m", "raw", "-a", "true", **keyless)
    assert done.returncode != 0
    assert words in " ".join(done.stderr.split())


def test_raw_script_and_command_run_ad_hoc(tasks: Tasks, tmp_path: Path) -> None:
    """Three modules, three ways: a line for the shell, a file that is copied, Python that is piped in."""
    line = "echo out; echo $((6*7)) >&2; ls -A ~/.ansible/tmp; exit 3"
    script = tmp_path / "probe.sh"
    script.write_text('#!/bin/sh\necho "in $TIER with $1"\n')
    ran = tasks("ansible", "cabal_imap", "-m", "script", "-a", f"{script} argument")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "in imap with argument" in ran.stdout
    command = tasks("ansible", "cabal_imap", "-m", "command", "-a", "printenv TIER")
    assert command.returncode == 0, command.stdout + command.stderr
    assert "rc=0" in command.stdout
    assert "imap" in command.stdout.splitlines()[-1]
    raw = tasks("ansible", "cabal_imap", "-m", "raw", "-a", line)
    assert raw.returncode == 2
    # Standard output, nothing left of the script or the module in it, and standard error.
    _, _, shown = raw.stdout.partition("rc=3 >>\n")
    assert shown.splitlines()[:2] == ["out", "42"]


def test_a_module_of_ours_runs_by_the_playbooks_python_here_and_by_the_containers_own_there(tasks: Tasks) -> None:
    """Where it lies on this machine, whatever interpreter is set; packed as any module over a connection."""
    question = ("-m", "mail_dns_info", "-a", "control_domain=mail.example resolvers=127.0.0.1:9 deadline=1")
    here = tasks("ansible", "localhost", "-c", "local", *question, "-e", "ansible_python_interpreter=/no/python")
    assert here.returncode == 0, here.stdout + here.stderr
    assert "status: complete" in here.stdout
    there = tasks("ansible", "cabal_imap", *question)
    # Whether the container has dnspython is its own business; that its Python was looked for is the proof.
    assert "discovered_interpreter_python" in there.stdout, there.stdout + there.stderr


PLAYBOOK = """
- hosts: {group}
  gather_facts: false
  tasks:
    - ansible.builtin.copy: {{src: {source}, dest: /tmp/bytes-of-a-test, mode: "0600"}}
      diff: false
    - ansible.builtin.fetch: {{src: /tmp/bytes-of-a-test, dest: {fetched}, flat: true}}
    - ansible.builtin.command: rm -v /tmp/bytes-of-a-test
      register: removed
    - ansible.builtin.raw: cat /nonexistent
      register: missing
      failed_when: missing.rc != 1
"""


def test_a_playbook_copies_bytes_there_and_back(tasks: Tasks, tmp_path: Path) -> None:
    source, fetched, play = tmp_path / "source", tmp_path / "fetched", tmp_path / "play.yml"
    source.write_bytes(BYTES)
    play.write_text(PLAYBOOK.format(group="cabal_smtp_out", source=source, fetched=fetched))
    done = tasks("ansible-playbook", "-v", str(play))
    assert done.returncode == 0, done.stdout + done.stderr
    assert fetched.read_bytes() == BYTES
    assert "removed '/tmp/bytes-of-a-test'" in done.stdout
    assert "/nonexistent" in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".ecs_exec-")] == []


def test_a_container_out_of_reach_is_unreachable_with_its_reason(
    tasks: Tasks, scenario_with: Callable[[str], Path]
) -> None:
    tasks.sandbox.load(scenario_with("disabled"))
    (host,) = tasks.listed()["cabal_imap"]["hosts"]
    done = tasks("ansible", host, "-m", "raw", "-a", "true")
    assert done.returncode == 4
    assert "UNREACHABLE" in done.stdout
    assert "was not enabled when this task was started" in " ".join(done.stdout.split())


def test_a_limit_that_is_none_is_refused_by_its_name_before_any_call(tasks: Tasks) -> None:
    (host,) = tasks.listed()["cabal_imap"]["hosts"]
    tasks.sandbox.reset_calls()
    done = tasks("ansible", host, "-m", "raw", "-a", "true", "-e", "ansible_ecs_exec_command_timeout=nan")
    assert done.returncode != 0
    assert "The option command_timeout of the connection has to be a number" in " ".join(done.stdout.split())
    assert [call["operation"] for call in tasks.sandbox.calls()] == ["ecs.ListTasks", "ecs.DescribeTasks"]


def test_an_encrypted_cluster_is_reached_by_connection_and_module(
    tasks: Tasks, scenario_with: Callable[..., Path]
) -> None:
    tasks.sandbox.load(scenario_with("ok", cluster={"exec_encrypted": True}, agent={"delays": "off"}))
    options = {"cluster": "cabal-mail", "region": "us-east-1", "endpoint_url": tasks.sandbox.url}
    module = json.dumps({**options, "services": ["cabal-imap"], "argv": ["echo", "sealed"]})
    for words in (("cabal_imap", "-m", "raw", "-a", "echo sealed"), ("localhost", "-m", "ecs_exec", "-a", module)):
        done = tasks("ansible", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "sealed" in done.stdout
    calls = [call["operation"] for call in tasks.sandbox.calls()]
    assert (calls.count("kms.GenerateDataKey"), calls.count("kms.Decrypt")) == (2, 2)


@pytest.fixture
def scenario_with(tmp_path: Path) -> Callable[..., Path]:
    """A scenario in which ECS Exec into imap is as named, and what else is changed."""

    def write(how: str, **changes: Any) -> Path:
        folder = tmp_path / "made"
        folder.mkdir()
        tiers = {tier: {"log_level": 9} for tier in ("imap", "smtp-in", "smtp-out")}
        tiers["imap"]["tasks"] = [{"started_hours_ago": 5, "exec": how}]
        scenario = {"schema": 1, "title": "Made by a test.", "now": "2026-11-29T01:00:00Z", "tiers": tiers, **changes}
        (folder / "scenario.yml").write_text(json.dumps(scenario))
        return folder

    return write


@pytest.fixture
def endless(tasks: Tasks, tmp_path: Path) -> Callable[..., list[str]]:
    """Write a playbook whose task, by the connection or by the module, runs for hours; return the words that run it."""

    def write(how: str, **keywords: Any) -> list[str]:
        connection = {"cluster": "cabal-mail", "region": "us-east-1", "endpoint_url": tasks.sandbox.url}
        task = {
            "connection": {"ansible.builtin.raw": ENDLESS},
            "module": {"ecs_exec": {**connection, "services": ["cabal-imap"], "argv": ENDLESS.split()}},
        }[how]
        play = {"hosts": "cabal_imap" if how == "connection" else "localhost", "gather_facts": False}
        path = tmp_path / "endless.yml"
        path.write_text(json.dumps([{**play, "tasks": [{**task, **keywords}]}]))
        return ["ansible-playbook", str(path)]

    return write


def assert_ended(tasks: Tasks) -> None:
    """The command is gone from the container and its session was ended, by whoever outlived the controller."""
    wait_until(lambda: "ssm.TerminateSession" in [call["operation"] for call in tasks.sandbox.calls()])
    wait_until(lambda: not tasks.sandbox_runs(ENDLESS))


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("how", ["connection", "module"])
def test_the_time_limit_of_a_task_ends_the_command_and_the_session(
    tasks: Tasks, endless: Callable[..., list[str]], how: str
) -> None:
    done = tasks(*endless(how, timeout=8))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "ecs.ExecuteCommand" in [call["operation"] for call in tasks.sandbox.calls()]
    assert_ended(tasks)


@pytest.mark.parametrize("how", ["connection", "module"])
def test_an_interrupt_ends_the_command_and_the_session(
    tasks: Tasks, endless: Callable[..., list[str]], how: str
) -> None:
    program, *words = endless(how)
    with subprocess.Popen(
        [str(BIN / program), "-i", str(tasks.inventory), *words],
        cwd=REPO,
        env=tasks.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        wait_until(lambda: tasks.sandbox_runs(ENDLESS))
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C at a terminal does
        assert process.wait(20) != 0
    assert_ended(tasks)


def test_neither_token_nor_url_is_shown_whatever_the_verbosity(tasks: Tasks) -> None:
    done = tasks("ansible", "cabal_imap", "-vvvvv", "-m", "raw", "-a", "ps axww -o args; env")
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout + done.stderr
    assert "ECS EXEC" in text
    for secret in ("data-channel", "publish_subscribe", "TokenValue", "operators-secret"):
        assert secret not in text
