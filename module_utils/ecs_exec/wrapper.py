# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The POSIX sh script that runs a command in a container, and the reader of what it prints.

ECS Exec gives a terminal and nothing else: one stream, no exit status, line feeds changed, bytes that are no UTF-8
lost. So the script puts both streams of the command into ASCII and says how it ended:

- Standard output becomes base64 (or ``od``'s hexadecimal digits where there is no base64), standard error the
  hexadecimal dump of ``od`` written with *other characters*. Both go to the terminal at the same time through two
  pipes. As their alphabets have no character in common, every interleaving, even inside a line, can be taken apart.
- ``{nonce word ...}`` marks the steps. Braces are in neither alphabet, the nonce is new for each call and put together
  in the container, so that an echo of the script cannot be taken for its output.
- The last mark carries the command's status, the encoders' statuses and the number of bytes, so that a result without
  it is known to be incomplete.
- The command waits for the answer to a mark ("send"), so that one whose session nobody reads never starts.
- A time limit ends the command's whole process group, also when the terminal goes away or is interrupted.

The script writes no file, starts nothing that outlives it, and needs sh, ``head``, ``od``, ``tr``, ``sleep``; it uses
``base64``, ``setsid`` or GNU ``timeout``, ``tee`` and ``wc`` where they exist. It is quoted with single quotes only,
since the agent's parser is not quite a shell's.
"""

from __future__ import annotations

import binascii
import math
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

#: ECS documents no length for a command; what is longer goes as input.
MAX_COMMAND: Final = 4000
#: What to send as soon as the last mark has arrived.
CONFIRMATION: Final = b"\n"
#: What ends command and session as TerminateSession would, but needs no permission.
INTERRUPT: Final = b"\x03\n"
#: Seconds between the polite and the final signal at the time limit.
GRACE: Final = 2

_LINE: Final = 1000  # characters of armoured input a line: a terminal that still edits lines takes no more than 4095
_HEX: Final = b"0123456789abcdef \n"
_PUNCTUATION: Final = b"!#%&()*,.:;<>@_~|^"
_NO_PUNCTUATION: Final = bytes(byte for byte in range(256) if byte not in _PUNCTUATION)
_FROM_PUNCTUATION: Final = bytes.maketrans(_PUNCTUATION, _HEX)
_OFFSET: Final = 7  # digits of an offset that od writes at least
_MARK_LIMIT: Final = 512  # characters of a mark, or of a line of a dump
#: Seconds; the sleep of some containers takes no more than 32 bits of them.
MAX_SECONDS: Final = 1_000_000

_ENVIRONMENT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHELL_LINE: Final = re.compile(r"#!\s*(\S+)(?:\s+(.*?))?\s*")

# The two halves of the nonce meet only in the container. s says a mark, h asks whether a tool is there, q stops the
# echo (the terminal still edits lines: bash's read would take more than a line from a raw one), c waits for one last
# line, 25 s at most where there is stty, d undoes the armour. Every variable's name begins with _, so that none of the
# container's own is changed on its way to the command.
_HEAD: Final = r"""exec 6<&0 4>&1 2>/dev/null
_N=%(first)s;_N=${_N}%(second)s
s(){ printf "\n{%%s %%s}\n" $_N "$*";}
h(){ command -v $1 >/dev/null;}
q(){ h stty&&stty -echo<&6;}
c(){ h stty&&stty -icanon -echo min 0 time 250<&6;read -r _y<&6;}
_a=octal;h base64&&_a=base64
d(){ if [ $_a = base64 ];then base64 -d;else while IFS= read -r _y;do printf "$_y";done;fi;}
h head||{ s missing head;exit;}
"""

_READ: Final = r"""q
s send script $_a
_v=$(read -r _l<&6;head -c $_l<&6|d)
eval "$_v"
"""

# A session that nobody here knows of, or that can't be reached, starts nothing.
_GO: Final = r"""s send go $_a
c||exit
"""

# fd 3: standard error to its encoder; 4: the terminal; 5: statuses; 6: input; 7: to the watchdog; 8: to the counter;
# 9: the script.
# D learns the group's number before the command starts, and a command that can't tell it does not start. SIGHUP,
# SIGINT, or the end of the others without a word that the command has ended, makes D end it; no moment is too early.
# The last read waits for CONFIRMATION: the agent throws away what has not been acknowledged 2 s after the terminal's
# end, so on a slow line the end of a long output would be lost if the terminal ended here.
# Variables and directory are the command's alone, and set after its group's leader has been found.
_BODY: Final = r"""_m=
_H=
for _t in od tr sleep;do h $_t||_m="$_m $_t";done
%(needs)s[ "$(od -Ad -v -tx1</dev/null)" ]||_m="$_m od(with-A-and-t)"
[ "$_m" ]&&{ s missing$_m;exit;}
if base64 -w 0</dev/null;then _w=base64;b(){ base64 -w 0;}
elif h base64;then _w=base64;b(){ base64;}
else _w=hex;b(){ od -Ad -v -tx1;};fi
O(){ b>&4;echo o$?>&5;}
if [ $_w = base64 ]&&h tee&&h wc&&[ -e /dev/fd/0 ];then K(){ { tee /dev/fd/8|O;} 8>&1|wc -c>&5;};else K(){ O;};fi
E(){ od -Ad -v -tx1|tr "0-9a-f \n" "%(punctuation)s">&4;echo e$?>&5;}
if h setsid;then _G=setsid _g=- _P=\$\$
elif timeout --foreground 0 true;then _G="timeout 0" _g=- _P=\$PPID
else _G= _g= _P=\$\$;fi
_Z=%(prepare)s
X(){
(exec 2>&3 3>&- 4>&- 5>&- 6<&-
exec $_G sh -c "echo $_P>&7||exit;exec 7>&-;${_Z}exec \"\$@\"" sh %(argv)s)
echo r$?>&5
echo>&7
}
D(){
trap _H=1 HUP INT
read -r _p||read -r _p||return
trap "kill -9 $_g$_p" HUP INT
[ "$_H" ]&&kill -9 $_g$_p
{
trap "kill \$!;exit" TERM
sleep %(seconds)d 4>&- 5>&- 6<&- &
wait $!
trap "" TERM
echo t>&5
kill -15 $_g$_p
_i=0
while [ $_i -lt %(tenths)d ]&&kill -0 $_g$_p;do _i=$((_i+1));sleep .1||{ _i=$((_i+9));sleep 1;};done 4>&- 5>&-
kill -9 $_g$_p
} </dev/null >/dev/null &
_k=$!
read -r _y||kill -9 $_g$_p
read -r _y
kill $_k
wait $_k
}
%(stdin)ss begin $_w ${_G:-none}
_r=$(exec 5>&1;{ { { %(feed)s|K;} 3>&1|E;} 7>&1|D;})
s end $_r
c
"""


class WrapperError(ValueError):
    """What the caller asks for cannot be put into a script; one sentence."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: ``argv``, or ``script`` with ``arguments``.

    A script's first line may name its interpreter (``#!/usr/bin/env python3``); otherwise sh runs it.
    ``seconds`` is the time limit in the container. ``has_stdin``: standard input follows; it is empty otherwise.
    """

    argv: tuple[str, ...] = ()
    script: str | None = None
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str | None = None
    seconds: float = 60.0
    has_stdin: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A program made ready for one session.

    ``command`` goes into ExecuteCommand. ``nonce`` marks its output. ``script`` is sent when the container asks for it;
    empty when all of it fitted into the command.
    """

    command: str
    nonce: bytes
    script: bytes = b""


def prepare(program: Program, nonce: str | None = None) -> Call:
    """Build the call for a program; raise WrapperError when something in it cannot be passed on."""
    nonce = nonce or secrets.token_hex(10)
    half = len(nonce) // 2
    head = _HEAD % {"first": nonce[:half], "second": nonce[half:]}
    body = _body(program)
    whole = "/bin/sh -c " + shlex.quote(head + ("" if program.has_stdin else _GO) + body)
    if len(whole.encode()) <= MAX_COMMAND:
        return Call(whole, nonce.encode())
    return Call("/bin/sh -c " + shlex.quote(head + _READ), nonce.encode(), body.encode())


def _body(program: Program) -> str:
    if bool(program.argv) == (program.script is not None):
        raise WrapperError("Give either a command or a script.")
    if not 0 < program.seconds <= MAX_SECONDS:
        raise WrapperError(
            f"The time limit of a command has to be greater than 0 and at most {MAX_SECONDS} seconds,"
            f" not {program.seconds:g}."
        )
    texts = [*program.argv, program.script or "", *program.arguments, program.directory or ""]
    if any("\0" in text for text in [*texts, *program.environment.values()]):
        raise WrapperError("A command, script, argument, or variable for a container cannot hold a NUL character.")
    feed, needs = "X", ""
    argv: Sequence[str] = program.argv
    if program.has_stdin:
        feed = "{ head -c $_l<&6|d|X;}"
        needs = 'h stty||_m="$_m stty"\n'
    else:
        feed = "X</dev/null"
    if program.script is not None:
        feed = f"printf %s {shlex.quote(program.script)}|{{ {feed};}} 9<&0"
        needs += '[ -e /dev/fd/0 ]||_m="$_m /dev/fd"\n'
        argv = [*_interpreter(program.script), "/dev/fd/9", *program.arguments]
    return _BODY % {
        "needs": needs,
        "punctuation": _PUNCTUATION.decode(),
        "prepare": shlex.quote(_preparation(program)),
        "argv": shlex.join(argv),
        "seconds": max(1, math.ceil(program.seconds)),
        "tenths": GRACE * 10,
        "stdin": "q\ns send stdin $_a\nread -r _l<&6\n" if program.has_stdin else "",
        "feed": feed,
    }


def _preparation(program: Program) -> str:
    lines = []
    for name, value in program.environment.items():
        if not _ENVIRONMENT_NAME.fullmatch(name):
            raise WrapperError(f"'{name}' is no name for an environment variable.")
        lines.append(f"export {name}={shlex.quote(value)}\n")
    if program.directory is not None:
        lines.append(f"cd -- {shlex.quote(program.directory)}||exit\n")
    return "".join(lines)


def _interpreter(script: str) -> list[str]:
    found = _SHELL_LINE.fullmatch(script.partition("\n")[0])
    if found is None:
        return ["/bin/sh"]
    # The kernel passes everything behind the interpreter as one argument.
    return [part for part in found.groups() if part]


def armour(data: bytes, kind: str) -> Iterator[bytes]:
    """Yield input for the container: the length in decimal on a line, then the data in printable ASCII.

    kind: "base64", or "octal" for containers without base64, whose printf turns it back.
    """
    width = _LINE // 4 * (3 if kind == "base64" else 1)
    lines = math.ceil(len(data) / width)
    characters = 4 * math.ceil(len(data) / 3) if kind == "base64" else 4 * len(data)
    yield b"%d\n" % (characters + lines)
    for start in range(0, len(data), width):
        chunk = data[start : start + width]
        if kind == "base64":
            yield binascii.b2a_base64(chunk)
        else:
            yield b"".join(b"\\%03o" % byte for byte in chunk) + b"\n"


class ArmourError(ValueError):
    """The output contradicts itself: it cannot be what the command wrote. One sentence."""


class _Base64:
    """Decode base64 that comes in pieces."""

    def __init__(self) -> None:
        self._rest = b""
        self._ended = False
        self.count = 0

    def feed(self, text: bytes) -> bytes:
        text = self._rest + text
        usable = len(text) // 4 * 4
        self._rest = text[usable:]
        if not usable:
            return b""
        if self._ended:
            raise ArmourError("The container's base64 goes on behind its end.")
        try:
            data = binascii.a2b_base64(text[:usable], strict_mode=True)
        except binascii.Error:
            raise ArmourError("The container's base64 of standard output is damaged.") from None
        self._ended = text[usable - 1 : usable] == b"="
        self.count += len(data)
        return data

    def finish(self, announced: int | None) -> None:
        if self._rest or announced not in (None, self.count):
            raise ArmourError(
                f"Standard output is incomplete: {self.count} bytes arrived"
                + (f" of {announced}." if announced is not None else " and a part of a group.")
            )


class _Dump:
    """Decode ``od -Ad -v -tx1`` that comes in pieces; every line carries its own offset."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""
        self._total: int | None = None
        self.count = 0

    def feed(self, text: bytes) -> bytes:
        lines = (self._rest + text).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _MARK_LIMIT:
            raise ArmourError(f"The container's dump of {self._name} is damaged.")
        return b"".join(self._line(line) for line in lines if line)

    def _line(self, line: bytes) -> bytes:
        offset, _, digits = line.partition(b" ")
        try:
            position, data = int(offset), bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            raise ArmourError(f"The container's dump of {self._name} is damaged.") from None
        if len(offset) < _OFFSET or position != self.count or self._total is not None:
            raise ArmourError(f"The container's dump of {self._name} has a gap at byte {self.count}.")
        self.count += len(data)
        if not data:
            self._total = position
        return data

    def finish(self) -> None:
        if self._rest or self._total != self.count:
            raise ArmourError(f"{self._name.capitalize()} is incomplete: its dump stops at byte {self.count}.")


@dataclass(frozen=True, slots=True)
class Ending:
    """What the last mark says. ``status`` is None when the command never started or did not end."""

    status: int | None
    timed_out: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Decoded output that just arrived."""

    stdout: bytes = b""
    stderr: bytes = b""


class Reader:
    """Read what the script prints, piece by piece.

    Set in the course of it: ``wants`` ("script", "stdin", or "go" as soon as the container asks for it; the caller
    clears it, and nothing runs before it has been answered), ``armour`` (how it wants it), ``missing`` (tools without
    which it gave up), ``group`` (what keeps the processes together, "none" when only the command itself can be ended),
    ``started``, ``ending``.
    """

    def __init__(self, nonce: bytes) -> None:
        self._open = b"{" + nonce + b" "
        self._buffer = b""
        self._in_body = False
        self._stdout: _Base64 | _Dump = _Base64()
        self._stderr = _Dump("standard error")
        self.wants: str | None = None
        self.armour = "base64"
        self.missing: list[str] = []
        self.group = ""
        self.started = False
        self.ending: Ending | None = None

    def feed(self, data: bytes) -> Piece:
        """Take terminal output; return what it decodes to. Raises ArmourError when it cannot be the script's."""
        if self._in_body and b"{" not in data and not self._buffer:
            return self._decode(data)
        self._buffer += data
        stdout, stderr = b"", b""
        while self.ending is None:
            text, mark = self._next_mark()
            if self._in_body and text:
                piece = self._decode(text)
                stdout += piece.stdout
                stderr += piece.stderr
            if mark is None:
                break
            self._note(mark)
        return Piece(stdout, stderr)

    def _next_mark(self) -> tuple[bytes, list[str] | None]:
        """Cut the buffer at the next mark: the text before it and its words, or all text that can't be one's start."""
        start = self._buffer.find(self._open)
        if start >= 0:
            end = self._buffer.find(b"}", start)
            if end >= 0:
                text, inside = self._buffer[:start], self._buffer[start + len(self._open) : end]
                self._buffer = self._buffer[end + 1 :]
                return text, inside.decode("ascii", "replace").split()
            if len(self._buffer) - start > _MARK_LIMIT:
                raise ArmourError("The container's output holds a mark that does not end.")
        else:
            start = self._buffer.rfind(b"{")
            if start < 0 or len(self._buffer) - start >= len(self._open):
                start = len(self._buffer)
        text, self._buffer = self._buffer[:start], self._buffer[start:]
        return text, None

    def _note(self, words: list[str]) -> None:
        match words:
            case ["send", what, kind]:
                self.wants, self.armour = what, kind
            case ["missing", *tools]:
                self.missing = tools
            case ["begin", encoding, *group]:
                self._in_body = self.started = True
                self.group = group[0] if group else ""
                if encoding == "hex":
                    self._stdout = _Dump("standard output")
            case ["end", *fields]:
                self._in_body = False
                self._finish(fields)
            case _:
                raise ArmourError("The container's output holds a mark that means nothing.")

    def _decode(self, data: bytes) -> Piece:
        shared = b"\r" if isinstance(self._stdout, _Dump) else b"\r\n"
        stdout = data.translate(None, shared + _PUNCTUATION)
        if len(stdout) == len(data):
            return Piece(self._stdout.feed(stdout))
        stderr = data.translate(None, _NO_PUNCTUATION).translate(_FROM_PUNCTUATION)
        return Piece(self._stdout.feed(stdout), self._stderr.feed(stderr))

    def _finish(self, fields: list[str]) -> None:
        statuses = {text[0]: text[1:] for text in fields if text[0].isalpha()}
        counts = [int(text) for text in fields if text.isdecimal()]
        if statuses.get("o") != "0" or statuses.get("e") != "0":
            raise ArmourError("A program that passes the command's output on was ended in the container.")
        if isinstance(self._stdout, _Base64):
            self._stdout.finish(counts[0] if counts else None)
        else:
            self._stdout.finish()
        self._stderr.finish()
        status = statuses.get("r", "")
        self.ending = Ending(int(status) if status.isdecimal() else None, "t" in statuses)
