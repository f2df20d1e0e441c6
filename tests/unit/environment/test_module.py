# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules as Ansible runs them: processes that end in time, whatever AWS or DNS does, and refuse odd options."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[3]
OPTIONS = {
    "region": "us-east-1",
    "access_key": "AKIAEXAMPLE",
    "secret_key": "s3cr3t-value",
    "cluster": "cabal-mail",
    "tiers": [{"tier": "imap"}, {"tier": "smtp-in"}],
}


def run(module: str, options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Run a module by the ansible command; its result and all that was printed."""
    settings = {
        "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
        "ANSIBLE_STDOUT_CALLBACK": "minimal",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
    }
    command = [Path(sys.executable).with_name("ansible"), "localhost", "-i", "localhost,", "-c", "local", "-m", module]
    done = subprocess.run(
        [*command, "-a", json.dumps(options)],
        cwd=REPO,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return json.loads(done.stdout.rpartition(" => ")[2]), done.stdout + done.stderr


def test_a_silent_aws_ends_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        options = {**OPTIONS, "endpoint_url": url, "deadline": 1.0, "work_dir": str(tmp_path)}
        began = time.monotonic()
        result, printed = run("cabalmail_environment_info", options)
    assert result["seconds"] < 3
    assert time.monotonic() - began < 20
    assert result["status"] == "unavailable"
    assert "no complete answer within 1 s" in result["reasons"][0]
    assert "s3cr3t-value" not in printed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"deadline": 0}, "deadline must be more than 0"),
        ({"start": "yesterday"}, "yesterday"),
        ({"access_key": ""}, "access_key is missing"),
    ],
)
def test_bad_options_end_in_a_sentence(changes: dict[str, Any], words: str) -> None:
    result, printed = run("cabalmail_environment_info", {**OPTIONS, **changes})
    assert words in result["msg"]
    assert "Traceback" not in printed


def test_a_closed_dns_port_ends_in_time() -> None:
    options = {"domains": ["a.example"], "control_domain": "c.example", "resolvers": ["127.0.0.1:9"], "deadline": 1.0}
    result, _ = run("mail_dns_info", options)
    assert result["status"] == "unavailable"
    assert result["seconds"] < 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"resolvers": ["dns.example"]}, "dns.example"), ({"addresses": ["1.2.3"]}, "1.2.3"), ({"timeout": 0}, "timeout")],
)
def test_bad_dns_options_end_in_a_sentence(changes: dict[str, Any], words: str) -> None:
    result, printed = run("mail_dns_info", {"control_domain": "c.example", **changes})
    assert words in result["msg"]
    assert "Traceback" not in printed
