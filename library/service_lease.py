#!/usr/bin/python
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: service_lease
short_description: Hold, note in, and give back the lease of a service
description:
  - A lease lets one run at a time act on a service, wherever it runs. It is the parameter
    C(/cabal-runbooks/lease/<service>) in Parameter Store. Each change of it is a version of the parameter, so that its
    history tells what was done by whom.
  - It is created with C(Overwrite=false), which one caller at most can win. One that has ended is taken over by the
    same means.
author: The cabalmail-runbooks authors
version_added: "0.1.0"
options:
  service:
    description: Name of the service.
    type: str
    required: true
  run:
    description: Id of the run that holds the lease.
    type: str
    required: true
  by:
    description: Who that is, for people. Needed with O(state=held).
    type: str
    default: ""
  state:
    description:
      - C(held) takes the lease, and fails when another run holds it.
      - C(noted) adds O(record) to it, and fails when it has ended. C(released) adds O(record) and gives it back. Both
        fail when it is not this run's.
    type: str
    choices: [held, noted, released]
    default: held
  seconds:
    description: How long it holds when nobody gives it back, as after a crash.
    type: float
    default: 1800
  record:
    description: What was done. It is kept in the parameter, so it must hold no secret and no address.
    type: dict
    default: {}
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
  - cabalmail.aws
attributes:
  check_mode:
    support: full
    description: Writes nothing. With O(state=held) it still fails when another run holds the lease.
notes:
  - Needs C(ssm:GetParameter) and C(ssm:PutParameter) on C(parameter/cabal-runbooks/lease/*).
  - Taking over a lease leaves a small parameter below it, which may be deleted at any later time.
"""

EXAMPLES = r"""
- name: Be the only one
  service_lease:
    region: us-east-1
    service: cabal-smtp-in
    run: 20261124T220000Z-1f3a
    by: jane at her desk

- name: Give it back
  service_lease:
    region: us-east-1
    service: cabal-smtp-in
    run: 20261124T220000Z-1f3a
    state: released
    record:
      outcome: recovered
"""

RETURN = r"""
lease:
  description: What the parameter holds now.
  returned: success
  type: dict
taken:
  description: Whether the lease is another run's. With any other failure it is false.
  returned: failure
  type: bool
"""

from datetime import UTC, datetime
from typing import Any

from ansible.module_utils.aws_support import aws_module, client, explain
from ansible.module_utils.cabalmail import lease

ARGUMENT_SPEC: dict[str, Any] = {
    "service": {"type": "str", "required": True},
    "run": {"type": "str", "required": True},
    "by": {"type": "str", "default": ""},
    "state": {"type": "str", "choices": ["held", "noted", "released"], "default": "held"},
    "seconds": {"type": "float", "default": 1800},
    "record": {"type": "dict", "default": {}},
}


class ParameterStore:
    """Parameter Store through boto3. In check mode it says that a parameter is not there to be written."""

    def __init__(self, ssm: Any, check_mode: bool) -> None:
        self._ssm = ssm
        self._check_mode = check_mode

    def create(self, name: str, value: str) -> bool:
        """PutParameter with Overwrite=false; False when there is one."""
        if self._check_mode:
            return self.read(name) is None
        try:
            self._ssm.put_parameter(Name=name, Value=value, Type="String", Overwrite=False)
        except self._ssm.exceptions.ParameterAlreadyExists:
            # The answer to our own first try may have been lost, and the client's second one found it there.
            found = self.read(name)
            return found is not None and found[0] == value
        return True

    def read(self, name: str) -> tuple[str, int] | None:
        """GetParameter."""
        try:
            found = self._ssm.get_parameter(Name=name)["Parameter"]
        except self._ssm.exceptions.ParameterNotFound:
            return None
        return str(found["Value"]), int(found["Version"])

    def overwrite(self, name: str, value: str) -> None:
        """PutParameter with Overwrite=true."""
        if not self._check_mode:
            self._ssm.put_parameter(Name=name, Value=value, Type="String", Overwrite=True)


def noted(store: ParameterStore, params: dict[str, Any]) -> dict[str, Any]:
    """Add to our own lease, and give it back when asked to; TakenError when it is not ours."""
    name = lease.name_of(params["service"])
    found = store.read(name)
    record = lease.entry(found[0]) if found else None
    if record is None or record["run"] != params["run"]:
        holder = f"run {record['run']}" if record else "nobody"
        raise lease.TakenError(f"{name} is no longer this run's: it is held by {holder}")
    state = "released" if params["state"] == "released" else "held"
    if state == "held" and not lease.holds(record, datetime.now(UTC)):
        # Whoever comes may take it over at any moment.
        raise lease.TakenError(f"{name} of this run ended at {record['expires']}")
    record = {**record, **params["record"], "state": state}
    store.overwrite(name, lease.text_of(record))
    return record


def main() -> None:
    """Entry point."""
    module = aws_module(ARGUMENT_SPEC, supports_check_mode=True)
    params = module.params
    if params["seconds"] <= 0:
        module.fail_json(msg=f"The option seconds must be more than 0, not {params['seconds']:g}.", taken=False)
    store = ParameterStore(client(module, "ssm"), module.check_mode)
    try:
        if params["state"] == "held":
            holder = lease.Holder(params["run"], params["by"], params["seconds"])
            held = lease.take(store, params["service"], holder, datetime.now(UTC))
        else:
            held = noted(store, params)
    except lease.TakenError as exc:
        module.fail_json(msg=f"{exc}.", taken=True)
    except Exception as exc:
        module.fail_json(msg=explain(exc), taken=False)
    module.exit_json(changed=True, lease=held)


if __name__ == "__main__":
    main()
