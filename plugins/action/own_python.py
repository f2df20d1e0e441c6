# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module where it lies, with the Python of the playbook.

Ansible packs a module and all that it imports into an archive, and the module's Python compiles it anew each time: over
half a second of CPU a module, which is for machines that have neither. The triage's modules run on the machine of the
playbook, where both lie compiled. So a few lines take the archive's place; Ansible starts them and reads their result
as those of any module. Over another connection, or as another user, the module is packed as ever.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ansible import constants as C
from ansible.module_utils.common.json import Direction, get_module_encoder
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import module_loader

# The form of arguments and results that AnsibleModule speaks unless a module asks for another.
PROFILE = "legacy"

# repr() of strings, bytes and lists of strings is Python source: nothing else is put in.
START = """#!{python}
import os, sys
os.environ.update({environment!r})
sys.path[:0] = {path!r}
import ansible.module_utils
ansible.module_utils.__path__ += {module_utils!r}
from ansible.module_utils._internal._ansiballz import _loader
_loader.run_module(json_params={arguments!r}, profile={profile!r}, module_fqn={name!r}, modlib_path="", extensions={{}})
"""


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs the module of the task's own name."""

    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        outcome: dict[str, Any] = super().run(tmp, task_vars)
        outcome.update(self.run_module(task_vars or {}))
        return outcome

    def run_module(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Start the module with the task's arguments; an action with arguments of its own has its own way."""
        result: dict[str, Any] = self._execute_module(
            module_args=dict(self._task.args), task_vars=task_vars, wrap_async=self._task.async_val
        )
        return result

    def _configure_module(
        self, module_name: str, module_args: dict[str, Any], task_vars: dict[str, Any]
    ) -> tuple[Any, str]:
        """What is started in the module's place, and the module's path (ActionBase._configure_module)."""
        path = module_loader.find_plugin(module_name, mod_type=".py")
        if path is None or self._connection.transport != "local" or self._connection.become:
            configured: tuple[Any, str] = super()._configure_module(module_name, module_args, task_vars)
            return configured
        environment: dict[str, str] = {}
        self._compute_environment_string(environment)
        encoder = get_module_encoder(PROFILE, Direction.CONTROLLER_TO_MODULE)
        start = START.format(
            python=sys.executable,
            environment=environment,
            path=[str(Path(path).parent), *C.COLLECTIONS_PATHS],
            module_utils=list(C.DEFAULT_MODULE_UTILS_PATH),
            arguments=json.dumps({"ANSIBLE_MODULE_ARGS": module_args}, cls=encoder).encode(),
            profile=PROFILE,
            name=Path(path).stem,
        )
        module = SimpleNamespace(
            b_module_data=start.encode(),
            module_style="new",
            shebang=f"#!{sys.executable}",
            serialization_profile=PROFILE,
        )
        return module, path
