# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running ECS tasks as hosts, for the connection plugin ecs_exec."""

from __future__ import annotations

from typing import Any

import ansible.module_utils
from ansible import constants as C
from ansible.errors import AnsibleParserError
from ansible.module_utils.basic import missing_required_lib
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

try:
    from ansible.module_utils.aws_support import OptionsError, explain, new_session, plugin_client
    from ansible.module_utils.cabalmail.time import format_rfc3339
    from ansible.module_utils.ecs_exec.targets import Target, find_all
except ImportError as exc:
    MISSING: str | None = (exc.name or "boto3").partition(".")[0]
else:
    MISSING = None

DOCUMENTATION = r"""
name: ecs_tasks
short_description: Running ECS tasks as hosts
description:
  - Lists the containers of running ECS tasks as hosts that the connection plugin P(ecs_exec#connection) reaches.
  - A host is called C(<container>-<task id>) and stands in a group named as its service, with characters that group
    names can't have replaced (C(cabal-imap) becomes C(cabal_imap)).
  - A container in which ECS Exec will not work is listed too; C(ecs_problem) says why, and running something there
    ends with that reason. Nothing is left out in silence.
  - The file's name has to end in C(ecs_tasks.yml) or C(ecs_tasks.yaml).
author: The cabalmail-runbooks authors
version_added: "0.1.0"
requirements:
  - boto3
extends_documentation_fragment:
  - constructed
  - amazon.aws.common.plugins
  - amazon.aws.region.plugins
  - cabalmail.aws
options:
  plugin:
    description: Makes this file one for this plugin.
    type: str
    required: true
    choices: [ecs_tasks]
  cluster:
    description: Name or ARN of the ECS cluster.
    type: str
    required: true
  services:
    description: Only tasks of these services. Together with O(families), tasks of either.
    type: list
    elements: str
    default: []
  families:
    description: Only tasks of these task definition families. All tasks of the cluster when neither is given.
    type: list
    elements: str
    default: []
  containers:
    description: Only containers of these names. All containers by default.
    type: list
    elements: str
    default: []
notes:
  - O(profile), O(region), O(endpoint_url) and O(assume_role_arn) are handed on to the connection as host variables.
    Keys are not, since C(ansible-inventory --list) would show them; the connection finds them where boto3 looks.
  - Each host has C(ecs_task), C(ecs_task_arn), C(ecs_cluster), C(ecs_service), C(ecs_family), C(ecs_container),
    C(ecs_zone), C(ecs_ip), C(ecs_started_at), C(ecs_task_definition) and C(ecs_problem), and what the connection needs.
  - C(ansible_python_interpreter) is C(auto_silent), since the controller's own Python is not in the container.
"""

EXAMPLES = r"""
# mail.ecs_tasks.yml; then: ansible -i mail.ecs_tasks.yml cabal_imap -m raw -a 'mailq -Ac'
plugin: ecs_tasks
cluster: cabal-mail
region: us-east-1
services: [cabal-imap, cabal-smtp-in, cabal-smtp-out]
keyed_groups:
  - key: ecs_zone
    prefix: zone
"""

HANDED_ON = ("region", "profile", "endpoint_url", "assume_role_arn")


class InventoryModule(BaseInventoryPlugin, Constructable):  # type: ignore[misc]
    """Reads a file like the example's; one ListTasks a service or family, one DescribeTasks for a hundred tasks."""

    NAME = "ecs_tasks"

    def verify_file(self, path: str) -> bool:
        """Whether the file is meant for this plugin, by its name."""
        return bool(super().verify_file(path)) and path.endswith(("ecs_tasks.yml", "ecs_tasks.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Put the containers into the inventory; raise AnsibleParserError with one sentence."""
        super().parse(inventory, loader, path, cache)
        if MISSING is not None:
            raise AnsibleParserError(missing_required_lib(MISSING))
        self._read_config_data(path)
        wanted = self.get_option("containers")
        for target in self._targets():
            if not wanted or target.container in wanted:
                self._add(target)

    def _targets(self) -> list[Target]:
        options = self.get_options()
        try:
            ecs = plugin_client(new_session(options), options["endpoint_url"], "ecs")
            return list(find_all(ecs, options["cluster"], services=options["services"], families=options["families"]))
        except OptionsError as exc:
            raise AnsibleParserError(str(exc)) from None
        except Exception as exc:  # boto3's exceptions are made at run time
            raise AnsibleParserError(f"The tasks of {options['cluster']} can't be listed: {explain(exc)}") from None

    def _add(self, target: Target) -> None:
        host = self.inventory.add_host(f"{target.container}-{target.task}")
        variables = self._variables(target)
        for name, value in variables.items():
            self.inventory.set_variable(host, name, value)
        if target.service is not None:
            group = self.inventory.add_group(self._sanitize_group_name(target.service))
            self.inventory.add_host(host, group=group)
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, host, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, host, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, host, strict=strict)

    def _variables(self, target: Target) -> dict[str, Any]:
        handed_on = {f"ansible_ecs_exec_{name}": self.get_option(name) for name in HANDED_ON}
        return {
            "ansible_connection": "ecs_exec",
            "ansible_host": target.task,
            "ansible_python_interpreter": "auto_silent",
            "ansible_ecs_exec_cluster": target.cluster,
            "ansible_ecs_exec_container": target.container,
            **{name: value for name, value in handed_on.items() if value},
            "ecs_task": target.task,
            "ecs_task_arn": target.task_arn,
            "ecs_cluster": target.cluster,
            "ecs_service": target.service,
            "ecs_family": target.family,
            "ecs_container": target.container,
            "ecs_zone": target.zone,
            "ecs_ip": target.ip,
            "ecs_started_at": format_rfc3339(target.started_at) if target.started_at is not None else None,
            "ecs_task_definition": target.task_definition,
            "ecs_problem": target.problem,
        }
