#!/usr/bin/python
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ecs_service_redeploy
short_description: Restart what an ECS service runs, and follow it to its end
description:
  - Forces a new deployment of one ECS service, or stops single tasks of it so that ECS replaces them, and waits until
    the service is in a steady state again, a limited time.
  - Follows the rollout state, the circuit breaker and its rollback. When it does not end well, it says why, out of
    the reasons of stopped tasks and the service's events. It undoes nothing, so the service stays as ECS left it.
  - A deployment that is in progress is never followed by a second one, and a service whose deployment is younger than
    O(if_older_than) is left alone.
  - ECS's call UpdateService is sent once. When its answer is lost, the service is asked whether the deployment is
    there.
  - While it waits it shows how far it is.
author: The cabalmail-runbooks authors
version_added: "0.1.0"
options:
  cluster:
    description: Name or ARN of the ECS cluster.
    type: str
    required: true
  service:
    description: Name of the service.
    type: str
    required: true
  strategy:
    description: C(service) forces a new deployment of the whole service, C(task) stops the tasks named in O(tasks).
    type: str
    choices: [service, task]
    default: service
  tasks:
    description:
      - Ids or ARNs of the tasks to replace with O(strategy=task). Those that do not run in this service any more are
        passed over.
    type: list
    elements: str
    default: []
  reason:
    description: What the stopped tasks show as their reason.
    type: str
    default: Replaced by ecs_service_redeploy
  if_older_than:
    description:
      - With O(strategy=service), deploy only when the service's present deployment began before this moment (RFC
        3339). That makes a repeated run harmless.
      - When left out each run deploys, unless a deployment is in progress.
    type: str
  refuse_if_deploying:
    description: Fail when a deployment is in progress, in place of waiting for its end.
    type: bool
    default: false
  wait:
    description: Wait for the end.
    type: bool
    default: true
  timeout:
    description: Seconds to wait for the end.
    type: float
    default: 900
  poll:
    description: Most seconds between two looks; the first ones follow faster.
    type: float
    default: 5
  most_failed_starts:
    description:
      - Without a circuit breaker ECS starts tasks that end at once for ever. After so many of them this is a failure,
        and is no longer waited for.
    type: int
    default: 3
  progress_file:
    description: File in which the module notes how far it is, for the action plugin of the same name.
    type: path
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
  - cabalmail.aws
attributes:
  check_mode:
    support: full
    description: Only looks, and says what would be restarted.
  diff_mode:
    support: full
    description: Shows deployments and tasks before and after.
notes:
  - Needs C(ecs:DescribeServices), C(ecs:ListTasks), C(ecs:DescribeTasks), and C(ecs:UpdateService) or C(ecs:StopTask).
  - A steady state means no more than that ECS's health checks pass.
"""

EXAMPLES = r"""
- name: Roll a service whose deployment is older than what was seen of it
  ecs_service_redeploy:
    region: us-east-1
    cluster: cabal-mail
    service: cabal-smtp-in
    if_older_than: "2026-11-24T21:53:14Z"
    timeout: 600

- name: Replace one task of three
  ecs_service_redeploy:
    region: us-east-1
    cluster: cabal-mail
    service: cabal-smtp-in
    strategy: task
    tasks: [0123456789abcdef0123456789abcdef]
    reason: its reconfigure loop is stuck
"""

RETURN = r"""
outcome:
  description:
    - C(steady); C(nothing_to_do) when it was restarted already; C(requested) or C(in_progress) with O(wait=false);
      C(would_act) in check mode.
    - When the module fails C(failed), C(rolled_back) by the circuit breaker, C(timed_out), C(superseded) by another
      deployment, C(unknown) when it could not be seen, or C(refused) when nothing was done.
  returned: always
  type: str
  sample: steady
msg:
  description: One sentence that says how it ended and why.
  returned: always
  type: str
refused_by:
  description: C(deployment_in_progress) or C(quiesced) where that is why nothing was done; null otherwise.
  returned: when it was refused
  type: str
deployment:
  description: Id of the deployment that was begun or followed; null for single tasks.
  returned: when ECS could be asked
  type: str
  sample: ecs-svc/1234567890123456789
asked_at:
  description: When it was asked for, RFC 3339; null when nothing was.
  returned: when ECS could be asked
  type: str
stopped_tasks:
  description: Ids of the tasks that were stopped with O(strategy=task).
  returned: when ECS could be asked
  type: list
  elements: str
new_tasks:
  description: Ids of the tasks that run now and did not before.
  returned: when ECS could be asked
  type: list
  elements: str
before:
  description: Counts, deployments and running tasks before.
  returned: when ECS could be asked
  type: dict
after:
  description: The same afterwards; null when it could not be seen.
  returned: when ECS could be asked
  type: dict
events:
  description: The service's own words since it was asked, the oldest first.
  returned: when ECS could be asked
  type: list
  elements: str
stopped:
  description: Tasks that ended without being meant to, with C(task), C(reason) and C(exit_code).
  returned: when ECS could be asked
  type: list
  elements: dict
seconds:
  description: How long it took.
  returned: always
  type: float
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.aws_support import aws_module, classify, client, explain
from ansible.module_utils.cabalmail.time import parse_rfc3339
from ansible.module_utils.ecs_service.redeploy import Clients, Redeploy, RefusedError, Wanted, sentence

ARGUMENT_SPEC: dict[str, Any] = {
    "cluster": {"type": "str", "required": True},
    "service": {"type": "str", "required": True},
    "strategy": {"type": "str", "choices": ["service", "task"], "default": "service"},
    "tasks": {"type": "list", "elements": "str", "default": []},
    "reason": {"type": "str", "default": "Replaced by ecs_service_redeploy"},
    "if_older_than": {"type": "str"},
    "refuse_if_deploying": {"type": "bool", "default": False},
    "wait": {"type": "bool", "default": True},
    "timeout": {"type": "float", "default": 900},
    "poll": {"type": "float", "default": 5},
    "most_failed_starts": {"type": "int", "default": 3},
    "progress_file": {"type": "path"},
}
GOOD = ("steady", "nothing_to_do", "would_act", "requested", "in_progress")


def wanted_of(params: dict[str, Any]) -> Wanted:
    """What the options ask for; ValueError with one sentence when they can't be meant so."""
    for name in ("timeout", "poll", "most_failed_starts"):
        if params[name] <= 0:
            raise ValueError(f"The option {name} must be more than 0, not {params[name]:g}.")
    if (params["strategy"] == "task") != bool(params["tasks"]):
        raise ValueError("The option tasks names the tasks to replace with strategy=task, and only then.")
    return Wanted(
        cluster=params["cluster"],
        service=params["service"],
        strategy=params["strategy"],
        tasks=tuple(str(task).rsplit("/", 1)[-1] for task in params["tasks"]),
        reason=params["reason"],
        if_older_than=parse_rfc3339(params["if_older_than"]) if params["if_older_than"] else None,
        refuse_if_deploying=params["refuse_if_deploying"],
        wait=params["wait"],
        timeout=params["timeout"],
        poll=params["poll"],
        most_failed_starts=params["most_failed_starts"],
    )


def noter(path: str | None) -> Any:
    """A function that puts a state into the progress file, whole at any time."""

    def note(state: dict[str, Any]) -> None:
        if path is None:
            return
        draft = Path(f"{path}.part")
        with contextlib.suppress(OSError):  # progress is for the eye only
            draft.write_text(json.dumps(state), encoding="utf-8")
            os.replace(draft, path)

    return note


def main() -> None:
    """Entry point."""
    began = time.monotonic()
    module = aws_module(ARGUMENT_SPEC, supports_check_mode=True)
    try:
        wanted = wanted_of(module.params)
    except ValueError as exc:
        module.fail_json(msg=str(exc), outcome="refused", seconds=0.0)
    clients = Clients(client(module, "ecs"), client(module, "ecs", max_attempts=1), classify, explain)
    redeploy = Redeploy(wanted, clients, noter(module.params["progress_file"]))
    try:
        result = redeploy.run(module.check_mode)
    except Exception as exc:
        refused = isinstance(exc, RefusedError)
        begun = redeploy.begun and not refused
        module.fail_json(
            msg=str(exc) if refused else explain(exc),
            changed=begun,
            outcome="unknown" if begun else "refused",
            refused_by=getattr(exc, "gate", None),
            seconds=round(time.monotonic() - began, 3),
        )
    result["msg"] = sentence(wanted, result)
    result["seconds"] = round(time.monotonic() - began, 3)
    result["diff"] = {"before": result["before"], "after": result["after"] or result["before"]}
    if result["outcome"] in GOOD:
        module.exit_json(**result)
    module.fail_json(**result)


if __name__ == "__main__":
    main()
