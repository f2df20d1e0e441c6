# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Screen output that leaves room for the summary."""

from __future__ import annotations

from typing import Any

import ansible.module_utils
from ansible import constants as C
from ansible.plugins.callback.default import CallbackModule as Default

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

from ansible.module_utils.cabalmail.inert import inert  # noqa: E402

DOCUMENTATION = """
name: cabalmail
type: stdout
short_description: One line a step, one sentence a failure
version_added: "0.1.0"
author: The cabalmail-runbooks authors
description:
  - Prints the name of a role's first task when the role begins, one sentence for what fails, and the recap.
  - With C(-v) and more it prints what the callback C(default) prints.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - set as stdout in configuration
"""


class CallbackModule(Default):  # type: ignore[misc]
    """Quiet by default, Ansible's own output with -v."""

    CALLBACK_NAME = "cabalmail"

    def __init__(self) -> None:
        super().__init__()
        self._role: str | None = None

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Nothing: the steps say what is going on."""
        if self._display.verbosity:
            super().v2_playbook_on_play_start(play)

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """The first task of each role."""
        if self._display.verbosity:
            super().v2_playbook_on_task_start(task, is_conditional)
            return
        role = task._role.get_name() if task._role else None
        if role and role != self._role:
            self._display.display(f"{role}: {inert(_step(task))}", color=C.COLOR_VERBOSE)
        self._role = role

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Nothing: what is included says what it does."""
        if self._display.verbosity:
            super().v2_playbook_on_include(included_file)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Warnings only."""
        if self._display.verbosity:
            super().v2_runner_on_ok(result)
        else:
            self._handle_warnings(result.result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Nothing."""
        if self._display.verbosity:
            super().v2_runner_item_on_ok(result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        """Nothing."""
        if self._display.verbosity:
            super().v2_runner_item_on_skipped(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Nothing."""
        if self._display.verbosity:
            super().v2_runner_on_skipped(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """The sentence. A step that may fail is in the report with its reason, and the run goes on."""
        if self._display.verbosity:
            super().v2_runner_on_failed(result, ignore_errors)
            return
        self._handle_warnings(result.result)
        said = inert(str(result.result.get("msg", "failed")).removeprefix("Task failed: "), 1000)
        line = f"{self.host_label(result)}: {result.task.get_name(include_role_fqcn=False)}: {said}"
        if ignore_errors or _is_rescued(result.task):
            self._display.display(line, color=C.COLOR_WARN)
        else:
            self._display.display(f"ERROR {line}", color=C.COLOR_ERROR, stderr=True)


def _blocks(task: Any) -> list[Any]:
    """The blocks around a task, the innermost first."""
    blocks, block = [], task._parent
    while block is not None:
        blocks.append(block)
        block = block._parent
    return blocks


def _is_rescued(task: Any) -> bool:
    """Whether the play goes on after this task's failure, since a block around it has a rescue."""
    return any(getattr(block, "rescue", None) for block in _blocks(task))


def _step(task: Any) -> str:
    """The name that the playbook gives to what the task belongs to, else its own."""
    named = [block.name for block in _blocks(task) if getattr(block, "name", None)]
    return str(named[-1] if named else task.name)
