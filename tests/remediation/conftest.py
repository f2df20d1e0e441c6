# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A sandbox whose services restart in a moment, for the modules that act."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.conftest import REPO, SandboxUnderTest, running, write_scenario

__all__ = ["running", "write_scenario"]

FAST = {"start_seconds": 0.3, "drain_seconds": 0.2}
MODULE = """
import json, sys, runpy
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[2])
from ansible.module_utils import basic
basic._ANSIBLE_ARGS = sys.argv[3].encode()
basic._ANSIBLE_PROFILE = "legacy"
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def fast(tier: dict[str, Any] | None = None, **deployment: Any) -> dict[str, Any]:
    """A tier whose tasks start and stop quickly."""
    return {"log_level": 9, "service": {"deployment": {**FAST, **deployment}}, **(tier or {})}


@pytest.fixture
def cluster(running: SandboxUnderTest, write_scenario: Callable[..., Path]) -> Callable[..., SandboxUnderTest]:
    """Load a small environment, with what the test changes in it."""

    def load(**changes: Any) -> SandboxUnderTest:
        tiers = {tier: fast() for tier in ("imap", "smtp-in", "smtp-out")} | changes.pop("tiers", {})
        running.load(write_scenario(tiers=tiers, **changes))
        running.reset_calls()
        return running

    return load


def run_module(sandbox: SandboxUnderTest, name: str, check: bool = False, **options: Any) -> dict[str, Any]:
    """Run one module as Ansible does, in a process of its own."""
    process = start_module(sandbox, name, check, **options)
    return finish_module(process)


def start_module(sandbox: SandboxUnderTest, name: str, check: bool = False, **options: Any) -> subprocess.Popen[str]:
    """Begin one; several may run side by side."""
    arguments = {
        "region": "us-east-1",
        "endpoint_url": sandbox.url,
        "access_key": "operator",
        "secret_key": "a-secret-that-opens-nothing",
        "_ansible_check_mode": check,
        **options,
    }
    words = [
        str(REPO / "library" / f"{name}.py"),
        str(REPO / "module_utils"),
        json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    return subprocess.Popen(
        [sys.executable, "-c", MODULE, *words],
        env={**environment, "AWS_CONFIG_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish_module(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a module said."""
    out, err = process.communicate(timeout=60)
    assert out.strip(), err
    answer: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return answer


def writes(sandbox: SandboxUnderTest, *names: str) -> list[str]:
    """Which of these calls the operator made, in order."""
    own = [call["operation"] for call in sandbox.calls() if call["principal"] != "task"]
    return [name for name in own if name in names]
