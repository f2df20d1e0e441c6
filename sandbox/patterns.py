# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter patterns of CloudWatch Logs for unstructured events.

After https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/FilterAndPatternSyntax.html: terms are case-sensitive,
all plain terms must occur, none of the ``-terms`` may, and of ``?terms`` one must. A term with anything but letters,
digits and underscores stands in double quotes. Regular expressions, JSON and space-delimited patterns are valid at AWS
but not served here, so they are refused rather than answered wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_TERM = re.compile(r'\s*(?P<sign>[?-]?)(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>\w+))(?=\s|$)', re.ASCII)


class InvalidPatternError(ValueError):
    """The pattern is malformed, or of a kind that the sandbox does not serve."""


def compile_pattern(pattern: str) -> Callable[[str], bool] | None:
    """Return a predicate over messages, or None when every event matches.

    :raises InvalidPatternError: for anything that can't be answered exactly.
    """
    required, excluded, any_of = _terms(pattern)
    if any_of and (required or excluded):
        raise InvalidPatternError("Invalid filter pattern: ?terms can't be combined with other terms")
    if any_of:
        return lambda message: any(term in message for term in any_of)
    if len(required) == 1 and not excluded:
        term = required[0]
        return lambda message: term in message
    if required or excluded:
        return lambda message: all(t in message for t in required) and not any(t in message for t in excluded)
    return None


def _terms(pattern: str) -> tuple[list[str], list[str], list[str]]:
    if len(pattern) > 1024:
        raise InvalidPatternError("Invalid filter pattern: longer than 1024 characters")
    kinds: dict[str, list[str]] = {"": [], "-": [], "?": []}
    position = 0
    text = pattern.rstrip()
    while position < len(text):
        match = _TERM.match(text, position)
        if match is None:
            raise InvalidPatternError(f"Invalid filter pattern at character {position + 1}")
        quoted = match["quoted"]
        term = match["bare"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        if term:
            kinds[match["sign"]].append(term)
        position = match.end()
    return kinds[""], kinds["-"], kinds["?"]
