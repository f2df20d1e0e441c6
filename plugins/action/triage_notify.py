# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell those whom the variable ``report_notify`` names of an incident: once, and again when something changed.

Reads ``report_notify`` from the host's variables and not from its own options, so that no secret stands in a task's
arguments. A sink that fails is said in the result and never fails the run.

Options:
    triage (dict): the fact.
    folder (path): where reports lie.
    error (str): why there is no verdict, if there is none.
    base_url (str): where that folder can be read by others; empty: the message names the path.
    seconds (float): after so long a sink is given up.

Returns ``notifications``: for each sink its name, ``outcome`` (sent, failed, nothing_new, check_mode) and ``said``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ansible.module_utils
from ansible import constants as C
from ansible.plugins.action import ActionBase

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

from ansible.module_utils.cabalmail import notify, report, report_files  # noqa: E402

STATES = "notifications.json"


class ActionModule(ActionBase):  # type: ignore[misc]
    """Tell what is new."""

    _supports_check_mode = True
    _requires_connection = False
    _VALID_ARGS = frozenset({"triage", "folder", "error", "base_url", "seconds"})

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what became of each notification; never fails for a sink."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        triage = args["triage"]
        sinks = notify.read_sinks(self._templar.template((task_vars or {}).get(notify.NAME)), os.environ)
        outcome = report.outcome(triage, str(args.get("error") or "") or None)
        place = report_files.place(Path(args["folder"]), triage["run"]["host"], triage["run"]["id"])
        link = _link(place, str(args.get("base_url") or ""))
        told = tell(sinks, triage, outcome, place.parent / STATES, link, float(args["seconds"]), self._task.check_mode)
        result.update(changed=False, notifications=told)
        return result


def tell(
    sinks: list[notify.Sink],
    triage: dict[str, Any],
    outcome: dict[str, Any],
    store: Path,
    link: str,
    seconds: float,
    only_show: bool = False,
) -> list[dict[str, str]]:
    """Send what is new to each sink, and remember it of those that took it.

    Args:
        sinks: whom to tell.
        triage: the fact.
        outcome: what ``report.outcome`` said.
        store: file with what each was told last.
        link: where the report is.
        seconds: after so long a sink is given up.
        only_show: send nothing, as check mode does.
    """
    # Only here: a run that tells nobody is not to pay for the import.
    from ansible.module_utils.cabalmail import sinks as senders

    names = notify.named([senders.service_of(sink) or sink.kind for sink in sinks])
    states, now = notify.read_states(store), notify.state_of(triage, outcome)
    news = {name: notify.news(states.get(name), now) for name in names}
    due = {name: sink for name, sink in zip(names, sinks, strict=True) if news[name] and not only_show}
    jobs = [(sink, notify.message(triage, outcome, news[name], link, sink.kind)) for name, sink in due.items()]
    troubles = dict(zip(due, senders.send_all(jobs, seconds), strict=True))
    taken = {name: now for name in names if troubles.get(name) == "" or (not news[name] and name in states)}
    if taken and not only_show:
        try:
            notify.write_states(store, {**states, **taken})
        except OSError as error:
            troubles.update(dict.fromkeys(taken, f"it was told, but {store.name} can't be written: {error.strerror}"))
    return [_row(name, news[name], troubles.get(name)) for name in names]


def _row(name: str, new: str, trouble: str | None) -> dict[str, str]:
    if not new:
        return {"sink": name, "outcome": "nothing_new", "said": f"{name}: nothing new to tell."}
    if trouble is None:
        return {"sink": name, "outcome": "check_mode", "said": f"{name}: not told, since this is check mode."}
    if trouble:
        return {"sink": name, "outcome": "failed", "said": f"{name}: NOT told ({trouble})."}
    return {"sink": name, "outcome": "sent", "said": f"{name}: told ({new})."}


def _link(place: Path, base_url: str) -> str:
    page = place / "report.html"
    if not base_url:
        return str(page)
    return "/".join([base_url, *(quote(part) for part in page.parts[-3:])])
