# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print what a run found, then fail the run when it broke or when a finding stands that it was told to fail on.

Options:
    triage (dict): the fact.
    outcome (dict): content of outcome.json.
    path (path): the run's folder.
    work_dir (path): the run's private directory, when failed recipients are to be named in clear; else empty. They are
        printed and not returned: results are kept by runners.
    fail_on (str): critical, warning, info or empty.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

from ansible.module_utils.cabalmail import report_files  # noqa: E402
from ansible.module_utils.cabalmail.inert import inert  # noqa: E402
from ansible.module_utils.cabalmail.report import standing, summary  # noqa: E402

COLOURS = {"critical": C.COLOR_ERROR, "warning": C.COLOR_WARN, "info": C.COLOR_OK, "dim": C.COLOR_VERBOSE, "": None}


class ActionModule(ActionBase):  # type: ignore[misc]
    """Print the summary."""

    _supports_check_mode = True
    _requires_connection = False
    _VALID_ARGS = frozenset({"triage", "outcome", "path", "fail_on", "work_dir"})

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print; AnsibleActionFail when the run is to end with another status than 0."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        triage, outcome = args["triage"], args["outcome"]
        judged = {"verdict", "always"}.isdisjoint((task_vars or {}).get("ansible_skip_tags") or [])
        lines = summary(triage, outcome, str(Path(shorter(args["path"])) / "triage.md"), judged)
        for address in report_files.clear_addresses(args.get("work_dir")) or []:
            self._display.display(f"Failed recipient: {inert(address, 320)}")
        if record := triage["remediation"].get("audit"):
            # One line for whoever collects the output of jobs.
            self._display.display(inert(json.dumps(record), 8000), color=COLOURS["dim"])
        for line in lines:
            self._display.display(line.text, color=COLOURS[line.kind])
        if outcome["status"] == "error":
            raise AnsibleActionFail(f"The triage is broken: {outcome['error']}.")
        if args.get("fail_on") and (found := standing(triage, args["fail_on"])):
            raise AnsibleActionFail(f"triage_fail_on={args['fail_on']}: {', '.join(dict.fromkeys(found))}.")
        result.update(changed=False, summary=[line.text for line in lines])
        return result


def shorter(path: str) -> str:
    """The path from where the command was typed, when it lies below."""
    inside = os.path.relpath(path)
    return path if inside.startswith("..") else inside
