# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one command in one task with the client of ecs_exec and nothing else: cluster, task, then the command."""

from __future__ import annotations

import sys

import boto3

from module_utils.ecs_exec.aws import Aws
from module_utils.ecs_exec.runner import Plan, run
from module_utils.ecs_exec.targets import find
from module_utils.ecs_exec.wrapper import Program


def main() -> None:
    cluster, task, *argv = sys.argv[1:]
    session = boto3.Session()
    ecs, ssm = session.client("ecs"), session.client("ssm")
    aws = Aws(ecs, ssm, session.get_credentials(), session.region_name)
    outcome = run(Plan(Program(argv=tuple(argv))), find(ecs, cluster, tasks=[task]), aws)[0]
    if outcome.outcome != "completed" or outcome.rc is None:
        sys.exit(outcome.reason)
    sys.stdout.buffer.write(outcome.stdout or b"")
    sys.exit(outcome.rc)


if __name__ == "__main__":
    main()
