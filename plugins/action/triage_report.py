# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write triage.json, report.html, triage.md and outcome.json of a run and the index of the host's runs, and hand the
same dictionary on as an artifact.

Where a restart was asked for, audit.jsonl is written as well: one line for a log collector.

Options:
    triage (dict): the fact.
    folder (path): where reports lie.
    schema (path): JSON Schema of the fact. What does not validate is written all the same, marked invalid.
    template (path): Jinja template of triage.md.
    error (str): why there is no verdict, if there is none.
    work_dir (path): the run's private directory, when triage.md is to name failed recipients in clear; else empty.
    notifications (list): what became of each notification, as ``triage_notify`` says it.

Returns ``outcome`` (content of outcome.json) and ``path`` (the run's folder).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jsonschema import Draft202012Validator

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

from ansible.module_utils.cabalmail import history, inert, rendering, report, report_files  # noqa: E402

MOST_FAULTS = 5


class ActionModule(ActionBase):  # type: ignore[misc]
    """Write the report."""

    _supports_check_mode = True
    _requires_connection = False
    _VALID_ARGS = frozenset({"triage", "folder", "schema", "template", "error", "work_dir", "notifications"})

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the files; AnsibleActionFail when they can't be written."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        triage = plain(args["triage"])
        faults = schema_faults(triage, Path(args["schema"]))
        error = _error(str(args.get("error") or ""), faults)
        host, run = triage["run"]["host"], triage["run"]["id"]
        place = report_files.place(Path(args["folder"]), host, run)
        runs, more = history.earlier(place.parent, place.name)
        outcome = report.outcome(triage, error)
        outcome["seen_before"] = history.seen_before(outcome, runs)
        outcome["notifications"] = plain(args.get("notifications") or [])
        document = {**triage, "valid": not faults, "invalid_because": faults}
        templates = Path(args["template"]).parent
        files = {
            "triage.json": _json(document),
            "triage.md": render(
                triage, outcome, Path(args["template"]), report_files.clear_addresses(args.get("work_dir"))
            ),
            "report.html": rendering.report_page(triage, outcome, templates),
            "outcome.json": _json(outcome),
        }
        record = triage["remediation"].get("audit")
        if record:
            files["audit.jsonl"] = json.dumps(record, ensure_ascii=False) + "\n"
        listed = [{**outcome, "run": place.name, "page": True}, *runs]
        index = rendering.index_page(host, history.index_rows(listed), more, templates)
        try:
            report_files.write(place, files, {"index.html": index})
        except OSError as trouble:
            raise AnsibleActionFail(f"The report can't be written to {args['folder']}: {trouble.strerror}.") from None
        result.update(
            # A report is no change of the environment, and check mode is to show one.
            changed=False,
            outcome=outcome,
            path=str(place),
            # As set_stats does it: one key, a map by host, so that hosts add to it and no bare variable is overwritten.
            ansible_stats={"data": {"triage_artifact": {host: document}}, "per_host": False, "aggregate": True},
        )
        return result


def plain(value: Any) -> Any:
    """The value without Ansible's own types, which neither JSON nor a schema know."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, str) else value


def schema_faults(document: Any, schema: Path) -> list[str]:
    """What of the document breaks the schema, as ``/pointer: what is wrong``; empty when valid."""
    validator = Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
    errors = sorted(validator.iter_errors(document), key=lambda fault: list(map(str, fault.absolute_path)))
    return [
        f"/{'/'.join(map(str, fault.absolute_path))}: {inert.inert(fault.message, 200)}"
        for fault in errors[:MOST_FAULTS]
    ]


def render(triage: dict[str, Any], outcome: dict[str, Any], template: Path, clear: Sequence[str] | None = None) -> str:
    """The Markdown report. Its template escapes by hand, with ``md``, ``code`` and ``fenced``: Markdown is not HTML."""
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(md=inert.markdown, code=inert.code, fenced=inert.fenced)
    view = {
        "triage": triage,
        "outcome": outcome,
        "tier_columns": report.tier_columns(triage),
        "course": report.course_lines(triage),
        "counted": "deferrals" if report.about_deferrals(triage) else "bounces",
        "tier_rows": [row.cells() for row in report.tier_rows(triage)],
        "codes": report.top_codes(triage, 10),
        "clear": clear,
        "mail_domains": report.domain_rows(triage),
        "outbound": report.outbound_rows(triage),
        "listed_domains": report.listed_domain_lines(triage),
        "dmarc_line": report.dmarc_line(triage),
        "changed": report.change_rows(triage),
        "loops": report.loop_rows(triage),
        "about_loops": report.about_loops(triage),
        "before_after": report.before_after(triage),
    }
    return environment.get_template(template.name).render(view)


def _error(said: str, faults: list[str]) -> str | None:
    if said:
        return said
    return f"the report does not fit its schema ({faults[0]})" if faults else None


def _json(document: Any) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
