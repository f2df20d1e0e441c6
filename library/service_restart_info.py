#!/usr/bin/python
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: service_restart_info
short_description: Read what a restart of an ECS service has to know beyond the service itself
description:
  - Reads the lease of the service and what its history tells of earlier restarts, how many more of its tasks would
    find room in the cluster, and who the caller is.
  - Each part has its own status. What is denied or silent makes that part C(unavailable) and leaves the others as they
    are.
  - Nothing is changed.
author: The cabalmail-runbooks authors
version_added: "0.1.0"
options:
  cluster:
    description: Name of the ECS cluster.
    type: str
    required: true
  service:
    description: Name of the service.
    type: str
    required: true
  deadline:
    description: Seconds that the reading may take.
    type: float
    default: 20
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
  - cabalmail.aws
attributes:
  check_mode:
    support: full
    description: Only reads, so check mode makes no difference.
notes:
  - Needs C(ssm:GetParameter) and C(ssm:GetParameterHistory) on C(parameter/cabal-runbooks/lease/*),
    C(ecs:ListContainerInstances), C(ecs:DescribeContainerInstances), C(ecs:DescribeServices) and
    C(ecs:DescribeTaskDefinition).
"""

EXAMPLES = r"""
- name: Who restarted it, and is there room
  service_restart_info:
    region: us-east-1
    cluster: cabal-mail
    service: cabal-smtp-in
  register: live
"""

RETURN = r"""
lease:
  description: The lease as C(held) (null when it can't be read), C(record) and C(history), the oldest run first.
  returned: always
  type: dict
room:
  description: How many more tasks would find room, as C(tasks), in C(instances) container instances.
  returned: always
  type: dict
caller:
  description: The caller's C(arn), and C(clock_skew_seconds), how much this machine's clock is ahead of AWS's (null
    when AWS did not say).
  returned: always
  type: dict
"""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from ansible.module_utils.aws_support import aws_module, client, explain
from ansible.module_utils.cabalmail import lease
from ansible.module_utils.cabalmail.environment.parts import Part, Runner
from ansible.module_utils.ecs_service.room import needs, room_for

ARGUMENT_SPEC: dict[str, Any] = {
    "cluster": {"type": "str", "required": True},
    "service": {"type": "str", "required": True},
    "deadline": {"type": "float", "default": 20},
}
#: DescribeContainerInstances takes no more at once.
INSTANCES_PER_CALL = 100


def read_lease(part: Part, ssm: Any, service: str) -> None:
    """The lease, and the newest record of each run that held it."""
    name = lease.name_of(service)
    try:
        value = ssm.get_parameter(Name=name)["Parameter"]["Value"]
        pages = list(ssm.get_paginator("get_parameter_history").paginate(Name=name))
    except ssm.exceptions.ParameterNotFound:
        part.put(held=False, record=None, history=[])
        return
    record = lease.entry(value)
    held = lease.holds(record, datetime.now(UTC))
    texts = [str(row["Value"]) for page in pages for row in page.get("Parameters") or []]
    part.put(held=held, record=record, history=lease.history(texts))


def read_room(part: Part, ecs: Any, cluster: str, service: str) -> None:
    """How many more tasks of the service its cluster could take."""
    found = ecs.describe_services(cluster=cluster, services=[service])["services"]
    definition = ecs.describe_task_definition(taskDefinition=found[0]["taskDefinition"])["taskDefinition"]
    pages = ecs.get_paginator("list_container_instances").paginate(cluster=cluster, status="ACTIVE")
    arns = [arn for page in pages for arn in page.get("containerInstanceArns") or []]
    instances: list[Any] = []
    for at in range(0, len(arns), INSTANCES_PER_CALL):
        chunk = arns[at : at + INSTANCES_PER_CALL]
        described = ecs.describe_container_instances(cluster=cluster, containerInstances=chunk)
        instances += described.get("containerInstances") or []
    part.put(tasks=room_for(needs(definition), instances), instances=len(instances))


def read_caller(part: Part, sts: Any) -> None:
    """Who the caller is; the answer's Date (RFC 9110, section 6.6.1) tells AWS's clock."""
    answer = sts.get_caller_identity()
    part.put(arn=answer["Arn"])
    date = (answer.get("ResponseMetadata") or {}).get("HTTPHeaders", {}).get("date")
    if date:
        part.put(clock_skew_seconds=round((datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()))


def main() -> None:
    """Entry point."""
    module = aws_module(ARGUMENT_SPEC, supports_check_mode=True)
    params = module.params
    parts = {
        "lease": Part("lease", {"held": None, "record": None, "history": []}, explain),
        "room": Part("room in the cluster", {"tasks": None, "instances": None}, explain),
        "caller": Part("caller", {"arn": None, "clock_skew_seconds": None}, explain),
    }
    ssm, ecs, sts = (client(module, service) for service in ("ssm", "ecs", "sts"))
    runner = Runner(params["deadline"])
    runner.start(parts["lease"], lambda: read_lease(parts["lease"], ssm, params["service"]))
    runner.start(parts["room"], lambda: read_room(parts["room"], ecs, params["cluster"], params["service"]))
    runner.start(parts["caller"], lambda: read_caller(parts["caller"], sts))
    runner.wait()
    module.exit_json(changed=False, **{name: part.result() for name, part in parts.items()})


if __name__ == "__main__":
    main()
