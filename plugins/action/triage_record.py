# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put one or several sections into the host fact ``triage``: the only writer of that fact.

Options:
    section (str): name of a section, ``tiers`` or ``/tiers``.
    value (any): what the section is to hold.
    result (dict): in place of ``value``, a registered module result. The section of that name is taken from it; a
        result without one (the module failed, ran out of time, was skipped) becomes ``unavailable`` with its sentence.
    sections (dict): several sections at once, name to value.

The section ``run`` begins a triage: what an earlier run left in the fact (a fact cache keeps it) is dropped, every
other section starts as ``unavailable`` (skipped, when the run's tags leave its step out), and the run's private
directory is made (fact ``triage_work_dir``, mode 0700, below Ansible's own temporary directory, which Ansible removes
at its end).

Returns ``ansible_facts`` with the merged ``triage``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Section by the tag of the step that records it; the schema data/schema/triage-1.json names the same.
STEPS = {
    "alert": "alert",
    "tiers": "tier_bounces",
    "environment": "environment",
    "containers": "container_evidence",
    "deliverability": "deliverability",
    "address_map": "address_map",
    "reconfigure_loop": "reconfigure_loop",
    "local_delivery": "local_delivery",
    "remediation": "remediation",
}
# How Ansible, the modules and the probe say that their time was over.
LATE = re.compile(
    r"time was (?:up|over)|out of time|Timed out after \d|(?:no complete answer|not \w+) within [\d.]+ s\b"
)
SECTIONS = frozenset({"run", "findings", "verdict", "not_judged", *STEPS})


class ActionModule(ActionBase):  # type: ignore[misc]
    """Merge sections into the fact ``triage``."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Merge and return the fact; AnsibleActionFail on wrong use."""
        outcome: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        sections = _sections(self._task.args)
        facts: dict[str, Any] = {}
        if "run" in sections:
            triage = _new_triage(task_vars.get("ansible_run_tags", ["all"]), task_vars.get("ansible_skip_tags", []))
            facts["triage_work_dir"] = make_work_dir(str(task_vars.get("inventory_hostname", "localhost")))
        else:
            # Not task_vars["triage"]: an extra variable of that name would beat the fact for ever.
            triage = dict(task_vars.get("ansible_facts", {}).get("triage") or {})
            if "run" not in triage:
                raise AnsibleActionFail("triage_record: the section 'run' must be recorded first")
        deadline = (triage.get("run") or {}).get("deadline_seconds")
        facts["triage"] = {**triage, **{name: explain_late(part, deadline) for name, part in sections.items()}}
        outcome.update(changed=False, ansible_facts=facts)
        return outcome


def unavailable(reason: str) -> dict[str, Any]:
    """A section whose check could not be made, and why."""
    return {"status": "unavailable", "reasons": [reason]}


def from_result(name: str, result: dict[str, Any]) -> Any:
    """The section ``name`` of a module's result, else ``unavailable`` with what the module said."""
    if isinstance(result.get(name), dict | list) and not result.get("failed"):
        return result[name]
    if result.get("skipped"):
        return unavailable("skipped")
    said = " ".join(str(result.get("msg") or "the step failed and did not say why").split())
    return unavailable(said.removeprefix("Task failed: "))


def explain_late(section: Any, deadline: float | None) -> Any:
    """The section; a reason that says that time was over also says which deadline that was."""
    if deadline is None or not isinstance(section, dict) or not section.get("reasons"):
        return section
    why = f"(triage_deadline={deadline:g} was too short for it, or nothing answered)"
    reasons = [
        f"{str(reason).rstrip('.')} {why}." if LATE.search(str(reason)) and why not in str(reason) else reason
        for reason in section["reasons"]
    ]
    return {**section, "reasons": reasons}


def make_work_dir(host: str) -> str:
    """Make the run's private directory (0700) for ``host`` and return its path."""
    path = os.path.join(C.DEFAULT_LOCAL_TMP, re.sub(r"[^A-Za-z0-9._-]", "_", host).lstrip(".") or "_")
    os.makedirs(path, mode=0o700, exist_ok=True)
    os.chmod(path, 0o700)
    return path


def _new_triage(tags: Sequence[str], skipped: Sequence[str]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        **{name: unavailable(_why_empty(step, tags, skipped)) for name, step in STEPS.items()},
        "findings": [],
        "verdict": None,
        "not_judged": [],
    }


def _why_empty(step: str, tags: Sequence[str], skipped: Sequence[str]) -> str:
    left_out = step in skipped or not {"all", "tagged", step} & set(tags)
    return "skipped" if left_out else "the step broke off before it could say anything"


def _sections(args: dict[str, Any]) -> dict[str, Any]:
    """The sections that the task's options ask for; AnsibleActionFail when they are not understood."""
    unknown = sorted(set(args) - {"section", "value", "result", "sections"})
    if unknown:
        raise AnsibleActionFail(
            f"triage_record: unknown option {unknown[0]!r}; it knows section, value, result, sections"
        )
    given = [name for name in ("value", "result", "sections") if name in args]
    if len(given) != 1 or ("section" in args) == ("sections" in args):
        raise AnsibleActionFail("triage_record: give section with value or result, or give sections alone")
    if "sections" in args:
        sections = {_name(name): value for name, value in args["sections"].items()}
    else:
        name = _name(args["section"])
        sections = {name: args["value"] if "value" in args else from_result(name, args["result"])}
    return sections


def _name(section: Any) -> str:
    name = str(section).removeprefix("/")
    if name not in SECTIONS:
        raise AnsibleActionFail(f"triage_record: no section {name!r}; the sections are {', '.join(sorted(SECTIONS))}")
    return name
