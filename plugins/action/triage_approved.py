# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what a person approved: a saved triage.json, or the artifact of the triage job before this one.

Reads the host's variables ``remediate_triage`` (path), ``triage_artifact`` (a map from host to triage, as AWX hands it
on) and ``remediate_max_age`` (minutes); has no options itself. Returns the fact ``remediation_saved``. Fails with one
sentence when there is nothing that may be acted on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

from ansible.module_utils.cabalmail.inert import shown  # noqa: E402
from ansible.module_utils.cabalmail.options import OptionError, to_minutes, to_text  # noqa: E402
from ansible.module_utils.cabalmail.saved_triage import approve  # noqa: E402

MAX_AGE_MINUTES = 60
NAMES = ("remediate_triage", "remediate_max_age")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Read the approved triage of this host."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the fact; AnsibleActionFail says why there is none."""
        outcome: dict[str, Any] = super().run(tmp, task_vars)
        raw = task_vars or {}
        given = self._templar.template({name: raw[name] for name in NAMES if name in raw})
        environment = str(self._templar.template(raw.get("cabalmail_environment")))
        try:
            most = to_minutes("remediate_max_age", given.get("remediate_max_age", MAX_AGE_MINUTES))
            path = to_text("remediate_triage", given.get("remediate_triage"))
            # The artifact holds log lines that strangers wrote: it is never rendered as a template.
            document = read(path) if path else of_host(raw.get("triage_artifact"), str(raw["inventory_hostname"]))
            saved = approve(document, environment, datetime.now(UTC), most)
        except OptionError as error:
            raise AnsibleActionFail(str(error)) from None
        outcome.update(changed=False, ansible_facts={"remediation_saved": saved})
        return outcome


def read(path: str) -> Any:
    """The document in a file."""
    try:
        return json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or "it is not JSON"
        raise OptionError(f"remediate_triage={shown(path)} can't be read ({said}): give a triage.json.") from None


def of_host(artifact: Any, host: str) -> Any:
    """The document of this host in an artifact."""
    if not isinstance(artifact, Mapping) or host not in artifact:
        raise OptionError(
            f"There is no saved triage of the host {host}: give remediate_triage=<path of a triage.json>, or run this"
            " after a triage in the same workflow."
        )
    return artifact[host]
