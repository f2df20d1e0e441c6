# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""report.html and the index of runs, each one self-contained file that asks for nothing and runs nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from . import history, page
from .inert import inert

Facts = Mapping[str, Any]

STYLE = "page.css"
LONGEST = 800


def report_page(triage: Facts, outcome: Facts, folder: Path) -> str:
    """report.html of a run.

    Args:
        triage: the fact.
        outcome: content of outcome.json, with what is known of earlier runs and of notifications.
        folder: where the templates lie.
    """
    environment = html_environment(folder)
    seen = outcome.get("seen_before") or []
    notes = [note["said"] for note in outcome.get("notifications") or []]
    return environment.get_template("report.html.j2").render(
        triage=triage, outcome=outcome, seen=seen, notifications=notes, **page.view(triage)
    )


def index_page(host: str, runs: Sequence[history.Row], more: int, folder: Path) -> str:
    """index.html of a host's runs; ``more`` is how many are not listed."""
    return html_environment(folder).get_template("index.html.j2").render(host=host, runs=runs, more=more)


def html_environment(folder: Path) -> Environment:
    """Templates in which every value is one line of visible text, escaped for HTML, unless a filter says otherwise."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    style = (folder / STYLE).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # Nothing but this very style is to be let through by the page's own policy.
    environment.globals.update(style=Markup(style), style_hash=f"sha256-{digest}")  # noqa: S704
    environment.filters.update(block=_block, cut=inert)
    return environment


def _shown(value: Any) -> Any:
    return value if isinstance(value, Markup | int | float) else inert(value, LONGEST)


def _block(text: Any) -> Markup:
    """Lines as they are, their indents kept, for a ``pre``."""
    return Markup("\n").join(_lines(str(text).splitlines()))


def _lines(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        yield " " * (len(line) - len(line.lstrip(" "))) + inert(line, 4000)
