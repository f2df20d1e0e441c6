# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give the module of the same name its rules, and show how a long reading goes.

A module is sent with Python files only and can't print while it runs. So the rules, the providers and the texts of
codes are loaded here, with what the inventory adds (``cabalmail_reason_rules``, ``cabalmail_providers``) in front, and
the file in which the module notes its progress is watched from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.plugins.loader import action_loader
from ansible.utils.display import Display

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

from ansible.module_utils.cabalmail.watch import Watch  # noqa: E402
from ansible.module_utils.maillog.rules import RuleError  # noqa: E402
from ansible.module_utils.maillog.shipped import tables  # noqa: E402

OWN_RULES = "cabalmail_reason_rules"
OWN_PROVIDERS = "cabalmail_providers"
PROGRESS_FILE = "maillog.progress"


class ActionModule(action_loader.get("own_python", class_only=True)):  # type: ignore[misc]
    """Run cloudwatch_maillog_info with rules, and say how far it is."""

    def run_module(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Return the module's result; AnsibleActionFail when the inventory's additions are not of the right kind."""
        arguments = dict(self._task.args)
        own_rules, own_providers = (self._addition(task_vars, name) for name in (OWN_RULES, OWN_PROVIDERS))
        try:
            for name, value in tables(own_rules, own_providers).items():
                arguments.setdefault(name, value)
        except RuleError as error:
            raise AnsibleActionFail(str(error)) from None
        work_dir = arguments.get("work_dir")
        with Watch(Path(work_dir) / PROGRESS_FILE if work_dir else None, in_words, Display().display):
            result: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=task_vars)
        # The rules are long, the same for every run, and in the repository.
        invocation = result.get("invocation", {}).get("module_args", {})
        for name in ("reason_rules", "providers", "enhanced_codes"):
            invocation.pop(name, None)
        return result

    def _addition(self, variables: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
        value = self._templar.template(variables.get(name) or [])
        if not isinstance(value, list):
            raise AnsibleActionFail(f"The variable {name} must be a list of entries as in the project's data folder.")
        return value


def in_words(state: Mapping[str, Any]) -> str:
    """How far the reading is."""
    return f"reading the mail logs: {state['events']:,} lines, {state['pages']:,} pages, {state['seconds']} s"
