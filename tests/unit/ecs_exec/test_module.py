# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as Ansible runs it, against an ECS endpoint of a few lines and the test gateway."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from tests.unit.session_manager.gateway import Gateway

REPO = Path(__file__).resolve().parents[3]
PREFIX = "arn:aws:ecs:us-east-1:123456789012:"
TASKS = {"imap": ["a" * 32, "b" * 32], "empty": [], "off": ["c" * 32]}


def described(identifier: str) -> dict[str, Any]:
    service = next(name for name, tasks in TASKS.items() if identifier in tasks)
    return {
        "taskArn": f"{PREFIX}task/cabal-mail/{identifier}",
        "taskDefinitionArn": f"{PREFIX}task-definition/imap:7",
        "group": f"service:{service}",
        "availabilityZone": "us-east-1a",
        "startedAt": 1764021194.0,
        "lastStatus": "RUNNING",
        "desiredStatus": "RUNNING",
        "enableExecuteCommand": service != "off",
        "containers": [
            {
                "name": "imap",
                "managedAgents": [{"name": "ExecuteCommandAgent", "lastStatus": "RUNNING"}],
                "networkInterfaces": [{"privateIpv4Address": "10.0.2.45"}],
            }
        ],
    }


class Endpoint(Gateway):
    """ECS and Systems Manager over HTTP, sessions by the gateway."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.secrets: list[str] = []

    def answer(self, operation: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Answer a call; None: the caller may not make it."""
        self.calls.append(operation)
        if operation == "ListTasks":
            tasks = TASKS[body.get("serviceName", "imap")]
            return {"taskArns": [f"{PREFIX}task/cabal-mail/{identifier}" for identifier in tasks]}
        if operation == "DescribeTasks":
            return {"tasks": [described(name.rpartition("/")[2]) for name in body["tasks"]], "failures": []}
        if operation == "TerminateSession":
            self.terminate(body["SessionId"])
            return {"SessionId": body["SessionId"]}
        if operation == "DescribeTaskDefinition":
            container = {"name": "imap", "readonlyRootFilesystem": True}
            return {"taskDefinition": {"taskRoleArn": "arn:aws:iam::1:role/r", "containerDefinitions": [container]}}
        if operation != "ExecuteCommand":
            return None
        started = self.execute(None, body["command"])  # type: ignore[arg-type]
        self.secrets += [started.url, started.token, started.url.rpartition("?")[0]]
        session = {"sessionId": started.session_id, "streamUrl": started.url, "tokenValue": started.token}
        return {"session": session, "interactive": True}


@pytest.fixture
def endpoint() -> Iterator[tuple[Endpoint, str]]:
    """Run the endpoint; yield it and its URL."""
    with Endpoint() as running:

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
                body = self.rfile.read(int(self.headers["Content-Length"]))
                content = running.answer(operation, json.loads(body) if operation else {})
                denial = {"__type": "AccessDeniedException", "message": "no"}
                answer = json.dumps(denial if content is None else content).encode()
                self.send_response(400 if content is None else 200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield running, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()


def arguments(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Complete the options with a connection."""
    connection = {
        "endpoint_url": url,
        "region": "us-east-1",
        "access_key": "AKIAQQQQQQQQQQQQQQQQ",
        "secret_key": "zzqzzqzzqzzqzzqzzqzzqzzqzzq",
    }
    return {**connection, "cluster": "cabal-mail", **options}


@pytest.fixture
def module(capsys):
    """Run the module in this process; return its result."""
    specification = importlib.util.spec_from_file_location("ecs_exec_module", REPO / "library" / "ecs_exec.py")
    assert specification is not None
    assert specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)

    def run(url: str, *, check: bool = False, **options: Any) -> dict[str, Any]:
        given = {**arguments(url, options), "_ansible_check_mode": check, "_ansible_remote_tmp": "/tmp"}
        with patch_module_args(given), pytest.raises(SystemExit):
            loaded.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def ad_hoc(url: str, *flags: str, **options: Any) -> tuple[dict[str, Any], str]:
    """Run the module as Ansible runs it; return its result and everything that was printed."""
    environment = dict(
        os.environ,
        ANSIBLE_CONFIG=str(REPO / "ansible.cfg"),
        ANSIBLE_LOAD_CALLBACK_PLUGINS="1",
        ANSIBLE_STDOUT_CALLBACK="ansible.builtin.oneline",
        ANSIBLE_KEEP_REMOTE_FILES="0",
    )
    interpreter = json.dumps({"ansible_python_interpreter": sys.executable})
    command = [
        str(Path(sys.executable).with_name("ansible")),
        *("localhost", "-i", "localhost,", "-c", "local", "-e", interpreter, "-m", "ecs_exec"),
        *("-a", json.dumps(arguments(url, options)), *flags),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=REPO)
    lines = [line for line in done.stdout.splitlines() if " => {" in line and line.startswith("localhost")]
    assert lines, done.stdout + done.stderr
    return json.loads(lines[-1].partition(" => ")[2]), done.stdout + done.stderr


def test_one_result_a_task_with_all_that_is_documented(module, endpoint):
    running, url = endpoint
    result = module(
        url,
        services=["imap"],
        command="printf 'a\\377'; echo err >&2; exit 3",
        read_only=True,
    )
    assert (result["changed"], result["status"], result["reasons"]) == (False, "complete", [])
    assert [entry["task"] for entry in result["results"]] == TASKS["imap"]
    first = result["results"][0]
    seconds = first.pop("seconds")
    assert 0 < seconds < 10
    assert first == {
        "task": "a" * 32,
        "task_arn": f"{PREFIX}task/cabal-mail/{'a' * 32}",
        "service": "imap",
        "family": "imap",
        "container": "imap",
        "zone": "us-east-1a",
        "ip": "10.0.2.45",
        "started_at": "2025-11-24T21:53:14Z",
        "task_definition": f"{PREFIX}task-definition/imap:7",
        "outcome": "completed",
        "reason": None,
        "rc": 3,
        "stdout": "a\ufffd",
        "stdout_b64": base64.b64encode(b"a\xff").decode(),
        "stderr": "err\n",
        "dest": None,
    }
    assert running.calls.count("ListTasks") == running.calls.count("DescribeTasks") == 1


def test_tasks_out_of_reach_and_services_without_tasks_are_said_and_not_fatal(module, endpoint):
    _, url = endpoint
    result = module(url, services=["off", "imap", "empty"], argv=["true"])
    assert (result["changed"], result["status"]) == (True, "partial")
    assert [entry["outcome"] for entry in result["results"]] == ["unreachable", "completed", "completed"]
    assert result["reasons"][0] == "Service empty has no running task."
    assert "was not enabled" in result["reasons"][1]
    result = module(url, services=["off", "imap"], argv=["true"], fail_on_unreachable=True)
    assert result["failed"]
    assert "was not enabled" in result["msg"]
    assert len(result["results"]) == 3


def test_as_many_tasks_as_wanted(module, endpoint):
    _, url = endpoint
    result = module(url, services=["off", "imap"], argv=["true"], tasks_wanted="any")
    assert [(entry["task"][0], entry["outcome"]) for entry in result["results"]] == [("a", "completed")]
    assert result["status"] == "complete"


def test_check_mode_runs_only_what_is_read_only(module, endpoint):
    running, url = endpoint
    result = module(url, check=True, services=["imap", "off"], argv=["true"])
    assert (result["changed"], result["results"]) == (True, [])
    assert result["would_run_in"] == TASKS["imap"]
    assert result["msg"] == "Would run true in 2 of 3 tasks."
    assert result["status"] == "partial"
    assert "was not enabled" in result["reasons"][0]
    assert "ExecuteCommand" not in running.calls
    result = module(url, check=True, services=["imap"], argv=["true"], read_only=True)
    assert (result["changed"], len(result["results"])) == (False, 2)


def test_a_diagnosis_runs_nothing_in_check_mode_and_says_what_it_could_not_see(module, endpoint):
    running, url = endpoint
    result = module(url, check=True, services=["imap", "off"], argv=["true"], diagnose=True)
    assert "ExecuteCommand" not in running.calls
    first, second, off = result["diagnosis"]
    assert (first["task"], first["container"]) == ("a" * 32, "imap")
    assert first["checks"] == second["checks"]
    statuses = {check["name"]: check["status"] for check in first["checks"]}
    assert statuses == {
        "task": "ok",
        "definition": "problem",
        "init_process": "warning",
        "cluster": "unknown",
        "caller": "unknown",
        "task_role": "unknown",
        "vpc_endpoints": "unknown",
    }
    assert [check["name"] for check in off["checks"]] == ["task"]
    assert "was not enabled" in off["checks"][0]["text"]
    assert running.calls.count("DescribeTaskDefinition") == 1


def test_problems_that_a_diagnosis_found_are_added_to_the_reason_of_a_task_out_of_reach(module, endpoint):
    running, url = endpoint
    running.mischief.refuse_upgrade = 403
    result = module(url, tasks=["a" * 32], argv=["true"], diagnose=True)
    (entry,) = result["results"]
    assert entry["outcome"] == "unreachable"
    assert "HTTP status 403" in entry["reason"]
    assert "Found: The container's root file system is read-only" in entry["reason"]
    assert "diagnosis" not in module(url, tasks=["a" * 32], argv=["true"])


def test_files_go_in_and_come_out(module, endpoint, tmp_path):
    _, url = endpoint
    data = bytes(range(256)) * 500
    (tmp_path / "input").write_bytes(data)
    (tmp_path / "script").write_text("#" + "x" * 5000 + "\ncat; echo $1 $NAME; pwd >&2\n")
    (tmp_path / "out").mkdir()
    result = module(
        url,
        tasks=["b" * 32],
        script_file=str(tmp_path / "script"),
        script_args=["one"],
        environment={"NAME": 7},
        chdir="/tmp",
        stdin_file=str(tmp_path / "input"),
        dest=str(tmp_path / "out"),
    )
    (entry,) = result["results"]
    assert (entry["stdout"], entry["stdout_b64"], entry["stderr"]) == (None, None, "/tmp\n")
    assert entry["dest"] == str(tmp_path / "out" / ("b" * 32 + ".out"))
    assert Path(entry["dest"]).read_bytes() == data + b"one 7\n"


def test_text_goes_in_as_it_is(module, endpoint):
    _, url = endpoint
    result = module(url, tasks=["b" * 32], argv=["od", "-An", "-tx1"], stdin="é\n.")
    assert result["results"][0]["stdout"] == " c3 a9 0a 2e\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "one of the following is required: argv, command, script, script_file"),
        ({"argv": ["a"], "command": "b"}, "mutually exclusive"),
        ({"argv": ["a"], "script_args": ["b"]}, "script_args needs script"),
        ({"argv": ["a"], "timeout": 0}, "The option timeout has to be a number greater than 0."),
        ({"argv": ["a"], "timeout": "nan"}, "The option timeout has to be a number greater than 0."),
        ({"argv": ["a"], "timeout": "inf"}, "The option timeout has to be a number greater than 0."),
        ({"argv": ["a"], "timeout": 1e12}, "at most 1000000 seconds"),
        ({"argv": ["a"], "deadline": "nan"}, "The option deadline has to be a number greater than 0."),
        ({"argv": ["a"], "max_parallel": 0}, "The option max_parallel has to be a number greater than 0."),
        ({"argv": ["a"], "max_output": -1}, "The option max_output has to be a number greater than 0."),
        ({"argv": []}, "The option argv is empty"),
        ({"argv": ["a"], "services": []}, "The option services is empty"),
        ({"argv": ["a"], "stdin": "b", "stdin_file": "/dev/null"}, "mutually exclusive"),
        ({"argv": ["a"], "tasks_wanted": "some"}, "all, any, or a number"),
        ({"argv": ["a"], "dest": "/no/such"}, "is no directory"),
        ({"argv": ["a"], "stdin_file": "/no/such"}, "'/no/such' (option stdin_file) can't be read"),
        ({"script_file": "/bin/true"}, "is not UTF-8 text"),
        ({"argv": ["a"], "environment": {"a b": 1}}, "'a b' is no name"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_call(module, endpoint, options, words):
    running, url = endpoint
    result = module(url, **{"services": ["imap"], **options})
    assert result["failed"]
    assert words in result["msg"]
    assert running.calls == []


def test_a_silent_endpoint_ends_at_the_deadline(module):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        result = module(f"http://127.0.0.1:{silent.getsockname()[1]}", services=["imap"], argv=["true"], deadline=1.5)
        assert time.monotonic() - started < 4
    assert result["failed"]
    assert "ECS did not answer within 1.5 s" in result["msg"]


def test_token_and_url_appear_nowhere(endpoint, tmp_path):
    """Not in the result, not in -vvvv output or the log, not in any process's arguments or environment."""
    running, url = endpoint
    found: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for path in [*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")]:
                try:
                    text = path.read_bytes().decode(errors="replace")
                except OSError:
                    continue
                found.update(secret for secret in list(running.secrets) if secret in text)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    log = tmp_path / "ansible.log"
    os.environ["ANSIBLE_LOG_PATH"] = str(log)
    try:
        result, printed = ad_hoc(url, "-vvvv", services=["imap", "off"], command="sleep 1; cat /proc/self/environ")
    finally:
        del os.environ["ANSIBLE_LOG_PATH"]
        stop.set()
        watcher.join()
    assert result["status"] == "partial"
    assert len(running.secrets) == 6
    for secret in running.secrets:
        assert secret not in printed
        assert secret not in json.dumps(result)
        assert secret not in log.read_text()
        for entry in result["results"]:
            assert secret not in base64.b64decode(entry["stdout_b64"] or "").decode(errors="replace")
    assert found == set()
    assert running.left_open() == 0


def test_failures_do_not_show_token_or_url_either(endpoint):
    running, url = endpoint
    for spoil in ({"refuse_upgrade": 403}, {"refuse_upgrade": None, "cut_after": 0}):
        for name, value in spoil.items():
            setattr(running.mischief, name, value)
        result, printed = ad_hoc(url, "-vvvv", services=["imap"], argv=["true"])
        assert result["status"] == "unavailable"
        assert not [secret for secret in running.secrets if secret in printed]
