# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the module of the same name, and show how the rollout goes while it waits."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible import constants as C
from ansible.plugins.loader import action_loader
from ansible.utils.display import Display

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

from ansible.module_utils.cabalmail.inert import inert  # noqa: E402
from ansible.module_utils.cabalmail.watch import Watch  # noqa: E402


class ActionModule(action_loader.get("own_python", class_only=True)):  # type: ignore[misc]
    """Run ecs_service_redeploy, and say how far it is."""

    def run_module(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Return the module's result."""
        service = inert(str(self._task.args.get("service") or "the service"), 60)

        def in_words(state: Mapping[str, Any]) -> str:
            rollout = f"{state['running']} of {state['desired']} tasks running, {state['pending']} pending"
            return f"{service}: {state['state'].replace('_', ' ')}, {rollout}; {state['left']} s left"

        with tempfile.TemporaryDirectory(dir=C.DEFAULT_LOCAL_TMP) as folder:
            arguments = {"progress_file": os.path.join(folder, "redeploy.progress"), **self._task.args}
            with Watch(Path(arguments["progress_file"]), in_words, Display().display):
                result: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=task_vars)
        return result
