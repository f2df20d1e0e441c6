# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text that strangers wrote (SMTP replies, host names, log lines), made harmless for a terminal and for Markdown."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

# Cc: ESC and friends move the cursor; Cf: bidirectional marks and zero widths reorder or hide text; Zl, Zp break lines;
# Cs, Co, Cn: nothing that a terminal shows the same way everywhere.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# An underscore within a word is no markup; GitHub makes mentions of @ and mathematics of $.
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~&#!$@]|(?<![^\W_])_|_(?![^\W_]))")
_BACKTICKS = re.compile(r"`+")


def inert(value: Any, limit: int = 500) -> str:
    """The value as one line of visible text; what would act on a terminal is shown as ``\\x1b`` or ``\\u202e``.

    Longer text than ``limit`` characters is cut and ends in an ellipsis.
    """
    text = " ".join(str(value)[: limit * 4].split())
    text = "".join(
        character.encode("unicode_escape").decode("ascii") if unicodedata.category(character) in _HIDDEN else character
        for character in text
    )
    return text if len(text) <= limit else text[: limit - 1] + "…"


def markdown(value: Any, limit: int = 500) -> str:
    """The value as running text inside Markdown, also in a table cell; shown as it is and never as markup."""
    return _MARKDOWN.sub(r"\\\1", inert(value, limit))


def code(value: Any, limit: int = 500) -> str:
    """The value as a code span, also in a table cell."""
    text = inert(value, limit)
    if not text:
        return ""
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    # GitHub splits a table row at every bare pipe, even inside code.
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|")


def fenced(value: Any, limit: int = 4000) -> str:
    """The lines of the value as a fenced code block."""
    lines = [inert(line, limit) for line in str(value).splitlines()]
    longest = max((len(run) for line in lines for run in _BACKTICKS.findall(line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence, *lines, fence])


def shown(value: Any) -> str:
    """A value inside an error's sentence: quoted, ASCII only, never long."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
