# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find out what page a run is about and which window of time that means.

Options:
    payload_variable (str): name of the variable that holds Alertmanager's payload, as JSON text, as a mapping, or as
        the path of a file. The name and not the value: a value would be rendered as a template on its way here, and
        annotations of alerts may carry anything.
    name (str): alert name or fingerprint given by hand.
    start, end (str): RFC 3339 times given by hand.
    environment (str): what the label ``environment`` has to be.

Returns ``alert`` (section of the fact ``triage``) and ``stop``: true when nothing is to be done, with ``why``.
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

from ansible.module_utils.cabalmail import alert as page  # noqa: E402
from ansible.module_utils.cabalmail.inert import inert, shown  # noqa: E402
from ansible.module_utils.cabalmail.time import format_rfc3339, parse_rfc3339  # noqa: E402


class ActionModule(ActionBase):  # type: ignore[misc]
    """Read the page."""

    _supports_check_mode = True
    _requires_connection = False
    _VALID_ARGS = frozenset({"payload_variable", "name", "start", "end", "environment"})

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the section ``alert``; AnsibleActionFail says what is wrong with the page."""
        outcome: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        try:
            alerts = self._alerts(str(args.get("payload_variable") or ""), task_vars or {})
            outcome.update(changed=False, **read_page(alerts, args, _environments(task_vars or {})))
        except page.AlertError as error:
            raise AnsibleActionFail(str(error)) from None
        if outcome["stop"]:
            self._display.display(f"{(task_vars or {}).get('inventory_hostname')}: {inert(outcome['why'])}")
        return outcome

    def _alerts(self, variable: str, task_vars: dict[str, Any]) -> list[page.Alert] | None:
        """The alerts of the payload, None when there is none."""
        given = task_vars.get(variable)
        if isinstance(given, str) and not _is_json(given):
            given = self._templar.template(given)
        if given is None or given == "":
            return None
        if isinstance(given, Mapping):
            return page.parse_payload(json.dumps(given))
        if not isinstance(given, str):
            raise page.AlertError(f"triage_payload={shown(given)} can't be used: give a file, or the JSON text itself.")
        return page.parse_payload(given if _is_json(given) else _read(given))


def read_page(alerts: list[page.Alert] | None, args: Mapping[str, Any], known: list[str]) -> dict[str, Any]:
    """What the action returns; raises AlertError."""
    environment, wanted = str(args["environment"]), args.get("name") or None
    chosen = page.choose(alerts, wanted, environment, known) if alerts is not None else None
    if alerts is not None and chosen is None:
        return {"stop": True, "why": f"the page is not about the environment {environment}, so nothing was done."}
    if chosen and chosen.state == "resolved":
        ended = format_rfc3339(chosen.ends_at) if chosen.ends_at else "now"
        why = f"the page {chosen.title()} is resolved since {ended}: there is nothing to triage, so nothing was done."
        return {"stop": True, "why": why}
    name = chosen.name if chosen else page.check_name(wanted or page.DEFAULT_NAME)
    source = "payload" if chosen else "extra_vars" if wanted else "none"
    start, end = (parse_rfc3339(args[key]) if args.get(key) else None for key in ("start", "end"))
    fired_at = chosen.starts_at if chosen else None
    rule = page.SUPPORTED[name]
    span = page.window(datetime.now(UTC), start, end, fired_at, rule.look_back_minutes)
    return {"stop": False, "why": "", "alert": page.section(name, source, chosen, span, environment)}


def _environments(task_vars: dict[str, Any]) -> list[str]:
    """``cabalmail_environment`` of every host of the play."""
    hostvars = task_vars.get("hostvars", {})
    hosts = task_vars.get("ansible_play_hosts_all") or [task_vars.get("inventory_hostname")]
    return [str(hostvars[host].get("cabalmail_environment", host)) for host in hosts if host in hostvars]


def _is_json(text: str) -> bool:
    """Whether the text is meant as JSON: ``{{`` begins a template and never a JSON object."""
    start = text.lstrip()[:2]
    return start.startswith(("{", "[")) and start != "{{"


def _read(path: str) -> str:
    file = Path(path).expanduser()
    try:
        with file.open("rb") as stream:
            content = stream.read(page.MAX_PAYLOAD_BYTES + 1)
        return content.decode("utf-8")
    except OSError as error:
        raise page.AlertError(f"triage_payload: the file {shown(path)} can't be read ({error.strerror}).") from None
    except ValueError:
        raise page.AlertError(f"triage_payload: the file {shown(path)} is not UTF-8 text.") from None
