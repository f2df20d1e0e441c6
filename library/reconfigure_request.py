#!/usr/bin/python
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: reconfigure_request
short_description: Ask a mail tier's reconfigure loop to rebuild its maps now
description:
  - Sends one message to the tier's queue, as a change of an address does. The loop that gets it rebuilds its maps and
    restarts its sendmail, which takes a second or two; without it that happens every 900 seconds.
  - All tasks of a tier share the queue, and one of them gets the message.
author: The cabalmail-runbooks authors
version_added: "0.1.0"
options:
  queue:
    description: Name of the queue, such as C(cabal-reconfig-smtp-in).
    type: str
    required: true
  run:
    description: Id of the run that asks; it stands in the message.
    type: str
    required: true
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
  - cabalmail.aws
attributes:
  check_mode:
    support: full
    description: Sends nothing.
notes:
  - Needs C(sqs:GetQueueUrl) and C(sqs:SendMessage).
"""

EXAMPLES = r"""
- name: Rebuild the maps now
  reconfigure_request:
    region: us-east-1
    queue: cabal-reconfig-smtp-in
    run: 20261124T220000Z-1f3a
"""

RETURN = r"""
message_id:
  description: What SQS calls the message; null in check mode.
  returned: success
  type: str
"""

import json
from typing import Any

from ansible.module_utils.aws_support import aws_module, client, explain

ARGUMENT_SPEC: dict[str, Any] = {
    "queue": {"type": "str", "required": True},
    "run": {"type": "str", "required": True},
}


def main() -> None:
    """Entry point."""
    module = aws_module(ARGUMENT_SPEC, supports_check_mode=True)
    sqs = client(module, "sqs")
    body = json.dumps({"source": "cabalmail-runbooks", "run": module.params["run"]})
    try:
        url = sqs.get_queue_url(QueueName=module.params["queue"])["QueueUrl"]
        sent = {} if module.check_mode else sqs.send_message(QueueUrl=url, MessageBody=body)
    except Exception as exc:
        module.fail_json(msg=explain(exc))
    module.exit_json(changed=True, message_id=sent.get("MessageId"))


if __name__ == "__main__":
    main()
