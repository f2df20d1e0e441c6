#!/usr/bin/python
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: cabalmail_environment_info
short_description: Read the state of a Cabalmail environment on AWS
description:
  - Reads in one call, side by side, all that mail triage asks of AWS besides logs and containers. That is the ECS
    services with their deployments, events and tasks, the reconfigure queues and their subscriptions, the dates of
    parameters and the maintenance flag, the Cloud Map instances, the table of addresses, the outbound addresses and
    NAT, and the DMARC reports of the last days.
  - Each part has its own status. What is denied, throttled, missing or silent makes that part C(unavailable) or
    C(partial) and leaves the others as they are.
  - Nothing is changed. Of Parameter Store only the maintenance flag's value is read; secrets never are.
author: The cabalmail-runbooks authors
version_added: "0.1.0"
options:
  cluster:
    description: Name of the ECS cluster.
    type: str
    required: true
  tiers:
    description: The mail tiers.
    type: list
    elements: dict
    required: true
    suboptions:
      tier:
        description: Name of the tier.
        type: str
        required: true
      service:
        description: Name of its ECS service; by default C(cabal-) and the tier.
        type: str
      queue:
        description: Name of its reconfigure queue; by default C(cabal-reconfig-) and the tier.
        type: str
      container:
        description: Name of the mail container in its task definition; by default the tier.
        type: str
      log_group:
        description: Not read here; accepted so that one list serves every module.
        type: str
  start:
    description:
      - Beginning of the evidence window, RFC 3339. DMARC reports are read from O(dmarc_days) days before it.
      - Now, when left out.
    type: str
  dmarc_days:
    description: How many days before O(start) the DMARC reports are read from; they lag by a day or more.
    type: int
    default: 7
  names:
    description: Names of the deployment's things, where they differ from Cabalmail's own.
    type: dict
    default: {}
    suboptions:
      addresses_table:
        description: DynamoDB table of the mail addresses.
        type: str
        default: cabal-addresses
      dmarc_table:
        description: DynamoDB table of the DMARC reports.
        type: str
        default: cabal-dmarc-reports
      parameter_prefix:
        description: What the names of all parameters begin with.
        type: str
        default: /cabal/
      heartbeat_parameter:
        description: Parameter of the heartbeat's ping address; only its date is read.
        type: str
        default: /cabal/healthcheck_ping_ecs_reconfigure
      maintenance_parameter:
        description: Parameter of imap's maintenance flag.
        type: str
        default: /cabal/maintenance/imap
      image_tag_prefix:
        description: What the parameters of the deployed image tags begin with; the tier follows.
        type: str
        default: /cabal/deployed_image_tag/
      nat_name:
        description: Pattern of the tag C(Name) of NAT instances and gateways.
        type: str
        default: cabal-nat-*
      address_name:
        description: Pattern of the tag C(Name) of the outbound Elastic IP addresses.
        type: str
        default: cabal-nat-eip-*
      namespace:
        description: Cloud Map namespace of the tiers.
        type: str
        default: cabal.internal
      discovery_tiers:
        description: Tiers that are registered in Cloud Map.
        type: list
        elements: str
        default: [imap, smtp-out]
      address_topic:
        description: SNS topic that tells the reconfigure queues of address changes.
        type: str
        default: cabal-address-changed
      user_pool_variable:
        description: Variable of the mail containers that holds the id of the Cognito user pool.
        type: str
        default: COGNITO_POOL_ID
  deadline:
    default: 20
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
  - cabalmail.aws
  - cabalmail.deadline
  - cabalmail.work_dir
attributes:
  check_mode:
    support: full
    description: Only reads, so check mode makes no difference.
"""

EXAMPLES = r"""
- name: Read the environment
  cabalmail_environment_info:
    region: us-east-1
    cluster: cabal-mail
    tiers:
      - tier: imap
      - tier: smtp-in
      - tier: smtp-out
    deadline: 15
  register: read

- name: Show which services have a deployment under way
  ansible.builtin.debug:
    msg: "{{ item.key }}: {{ item.value.deployments | map(attribute='rollout_state') | list }}"
  loop: "{{ read.environment.services | dict2items }}"
  loop_control:
    label: "{{ item.key }}"
"""

RETURN = r"""
status:
  description: C(complete), C(partial) or C(unavailable), over all parts.
  returned: always
  type: str
  sample: complete
reasons:
  description: One sentence for each thing that could not be read. Empty when complete.
  returned: always
  type: list
  elements: str
seconds:
  description: How long the reading took.
  returned: always
  type: float
environment:
  description: The parts. Each has C(status) and C(reasons) as well; unknown values are null, never zero.
  returned: always
  type: dict
  contains:
    services:
      description: By tier, the ECS service with deployments, the last 20 events, running and stopped tasks, the
        image, and the secrets its tasks need with whether each exists.
      type: dict
      returned: always
    queues:
      description: By tier, the depths of the reconfigure queue, the age of its oldest message by CloudWatch's metric,
        and whether it is subscribed to the topic of address changes.
      type: dict
      returned: always
    parameters:
      description: Dates of the heartbeat's parameter and the deployed image tags, and the maintenance flag.
      type: dict
      returned: always
    topic:
      description: The queues that are subscribed to the topic of address changes.
      type: dict
      returned: always
    metrics:
      description: The ages of the queues' oldest messages, and the throttled reads of the table of addresses since
        O(start).
      type: dict
      returned: always
    users:
      description: State in Cognito of at most 20 users whose mail imap refused as unknown, by
        C(failed_recipients.jsonl) in O(work_dir).
      type: dict
      returned: always
    changes:
      description: What changed and when, over services, tasks, revisions and parameters, oldest first.
      type: list
      elements: dict
      returned: always
    discovery:
      description: By tier, the addresses that Cloud Map holds.
      type: dict
      returned: always
    addresses:
      description: Summary of the table of addresses; the rows are in C(addresses.jsonl) in O(work_dir), which exists
        only when the whole table was read.
      type: dict
      returned: always
    network:
      description: Outbound addresses, NAT instances and gateways, default routes of private route tables.
      type: dict
      returned: always
    dmarc:
      description: Passed and failed messages by source address, over the period.
      type: dict
      returned: always
"""

import os
import threading
import time
from datetime import UTC, datetime
from typing import Any

from ansible.module_utils.aws_support import aws_module, client, explain
from ansible.module_utils.cabalmail.environment.reader import EnvironmentReader, Names, Request, Tier
from ansible.module_utils.cabalmail.privacy import Masker, load_or_create_key
from ansible.module_utils.cabalmail.time import parse_rfc3339

NAMES_SPEC: dict[str, Any] = {
    "addresses_table": {"type": "str", "default": "cabal-addresses"},
    "dmarc_table": {"type": "str", "default": "cabal-dmarc-reports"},
    "parameter_prefix": {"type": "str", "default": "/cabal/"},
    "heartbeat_parameter": {"type": "str", "default": "/cabal/healthcheck_ping_ecs_reconfigure"},
    "maintenance_parameter": {"type": "str", "default": "/cabal/maintenance/imap"},
    "image_tag_prefix": {"type": "str", "default": "/cabal/deployed_image_tag/"},
    "nat_name": {"type": "str", "default": "cabal-nat-*"},
    "address_name": {"type": "str", "default": "cabal-nat-eip-*"},
    "namespace": {"type": "str", "default": "cabal.internal"},
    "discovery_tiers": {"type": "list", "elements": "str", "default": ["imap", "smtp-out"]},
    "address_topic": {"type": "str", "default": "cabal-address-changed"},
    "user_pool_variable": {"type": "str", "default": "COGNITO_POOL_ID"},
}
TIER_SPEC: dict[str, Any] = {
    "tier": {"type": "str", "required": True},
    "service": {"type": "str"},
    "queue": {"type": "str"},
    "container": {"type": "str"},
    "log_group": {"type": "str"},
}
ARGUMENT_SPEC: dict[str, Any] = {
    "cluster": {"type": "str", "required": True},
    "tiers": {"type": "list", "elements": "dict", "required": True, "options": TIER_SPEC},
    "start": {"type": "str"},
    "dmarc_days": {"type": "int", "default": 7},
    "names": {"type": "dict", "default": {}, "apply_defaults": True, "options": NAMES_SPEC},
    "work_dir": {"type": "path"},
    "deadline": {"type": "float", "default": 20},
}


def request_of(params: dict[str, Any]) -> Request:
    """Turn the module's options into what the reader asks for; raises ValueError with one sentence."""
    if params["deadline"] <= 0:
        raise ValueError(f"The option deadline must be more than 0 seconds, not {params['deadline']:g}.")
    names = {**params["names"], "discovery_tiers": tuple(params["names"]["discovery_tiers"])}
    return Request(
        cluster=params["cluster"],
        tiers=tuple(
            Tier(
                tier=row["tier"],
                service=row["service"] or f"cabal-{row['tier']}",
                queue=row["queue"] or f"cabal-reconfig-{row['tier']}",
                container=row["container"] or row["tier"],
            )
            for row in params["tiers"]
        ),
        start=parse_rfc3339(params["start"]) if params["start"] else datetime.now(UTC),
        deadline=params["deadline"],
        work_dir=params["work_dir"],
        names=Names(**names),
        dmarc_days=params["dmarc_days"],
    )


def main() -> None:
    """Entry point."""
    began = time.monotonic()
    module = aws_module(ARGUMENT_SPEC, supports_check_mode=True)
    try:
        request = request_of(module.params)
        # Without a directory of the run nothing else can be compared with these masks, so any key will do.
        masker = Masker(load_or_create_key(request.work_dir) if request.work_dir else os.urandom(32))
    except (ValueError, OSError) as exc:
        module.fail_json(msg=str(exc))
    clients = ClientCache(module, read_timeout=min(10.0, request.deadline))
    section = EnvironmentReader(request, clients.get, explain, masker.address).read()
    module.exit_json(
        changed=False,
        status=section["status"],
        reasons=section["reasons"],
        seconds=round(time.monotonic() - began, 3),
        environment=section,
    )


class ClientCache:
    """Makes each service's client once; several threads share it."""

    def __init__(self, module: Any, read_timeout: float) -> None:
        self._module = module
        self._read_timeout = read_timeout
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}

    def get(self, service: str) -> Any:
        """Return the client of a service, made at the first call."""
        with self._lock:
            if service not in self._clients:
                self._clients[service] = client(self._module, service, read_timeout=self._read_timeout)
            return self._clients[service]


if __name__ == "__main__":
    main()
