# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Split a command line as github.com/google/shlex does, which is how the agent reads the command of ExecuteCommand.

Not POSIX: inside double quotes a backslash vanishes before any character, and # at the start of a word comments out
the rest of the line. There is no variable, pipe or glob.
"""

from __future__ import annotations

from enum import Enum, auto

_SPACE = " \t\r\n"


class SplitError(ValueError):
    """The line ends inside a quotation or after a backslash; the text is shlex's own."""


class _State(Enum):
    START = auto()
    WORD = auto()
    ESCAPED = auto()
    QUOTED = auto()
    DOUBLE_QUOTED = auto()
    DOUBLE_QUOTED_ESCAPED = auto()
    COMMENT = auto()


_PLAIN = {"\\": _State.ESCAPED, "'": _State.QUOTED, '"': _State.DOUBLE_QUOTED}
# Characters that change the state, by state; every other one belongs to the word (or to the comment).
_CHANGES = {
    _State.START: {**_PLAIN, "#": _State.COMMENT},
    _State.WORD: _PLAIN,
    _State.QUOTED: {"'": _State.WORD},
    _State.DOUBLE_QUOTED: {'"': _State.WORD, "\\": _State.DOUBLE_QUOTED_ESCAPED},
    _State.COMMENT: {"\n": _State.START},
}
_AFTER_CHARACTER = {
    _State.START: _State.WORD,
    _State.ESCAPED: _State.WORD,
    _State.DOUBLE_QUOTED_ESCAPED: _State.DOUBLE_QUOTED,
}
_UNFINISHED = {
    _State.ESCAPED: "EOF found after escape character",
    _State.DOUBLE_QUOTED_ESCAPED: "EOF found after escape character",
    _State.QUOTED: "EOF found when expecting closing quote",
    _State.DOUBLE_QUOTED: "EOF found when expecting closing quote",
}


def split(line: str) -> list[str]:
    """The words of ``line``.

    :raises SplitError: when the last word is not finished.
    """
    words: list[str] = []
    word: list[str] = []
    state = _State.START
    for character in line:
        changed = _CHANGES.get(state, {}).get(character)
        if changed is not None:
            state = changed
        elif state is _State.COMMENT or (state is _State.START and character in _SPACE):
            continue
        elif state is _State.WORD and character in _SPACE:
            words.append("".join(word))
            word.clear()
            state = _State.START
        else:
            word.append(character)
            state = _AFTER_CHARACTER.get(state, state)
    if state in _UNFINISHED:
        raise SplitError(_UNFINISHED[state])
    return [*words, "".join(word)] if state is _State.WORD else words
