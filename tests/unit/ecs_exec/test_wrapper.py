# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The script in the container: exact bytes and statuses through real shells under a real terminal."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.module_utils.ecs_exec import wrapper
from ansible.module_utils.ecs_exec.wrapper import ArmourError, Program, Reader, WrapperError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.ecs_exec import terminal

INF, NAN = float("inf"), float("nan")

WRITER = """
import sys, random
rng = random.Random(int(sys.argv[1]))
streams = [(sys.stdout.buffer, rng.randbytes(int(sys.argv[2]))), (sys.stderr.buffer, rng.randbytes(int(sys.argv[3])))]
at = [0, 0]
while any(at[i] < len(streams[i][1]) for i in (0, 1)):
    i = rng.randrange(2)
    step = rng.choice([1, 7, 512, 1021, 4096, 70000])
    streams[i][0].write(streams[i][1][at[i]:at[i] + step]); streams[i][0].flush()
    at[i] += step
sys.exit(int(sys.argv[4]))
"""


def minimal(directory: Path, *tools: str) -> dict[str, str]:
    """Return an environment whose PATH holds these tools only."""
    directory.mkdir()
    for tool in tools:
        found = shutil.which(tool)
        assert found, tool
        (directory / tool).symlink_to(os.path.realpath(found))
    return {"PATH": str(directory), "TERM": "xterm-256color"}


def shells() -> list[str]:
    found = [shutil.which(name) for name in ("dash", "bash", "ksh", "mksh")]
    paths = [path for path in found if path]
    if busybox := shutil.which("busybox"):
        paths.append(f"{busybox} sh")
    return paths


@pytest.fixture(params=shells())
def shell(request) -> str:
    return request.param


@given(
    seed=st.integers(0, 2**32),
    sizes=st.tuples(
        st.sampled_from([0, 1, 2, 3, 57, 4095, 70_001, 300_000]), st.sampled_from([0, 1, 16, 4097, 50_000])
    ),
    status=st.integers(0, 255),
    cut=st.sampled_from([1, 3, 64, 1024, 65536]),
    which=st.sampled_from(shells()),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_bytes_sizes_chunks_and_statuses_come_back_identical(seed, sizes, status, cut, which):
    cut = cut if sum(sizes) < 10_000 else max(cut, 1024)
    argv = (sys.executable, "-c", WRITER, str(seed), str(sizes[0]), str(sizes[1]), str(status))
    result = terminal.run(Program(argv=argv), shell=which, cut=cut)
    rng = random.Random(seed)
    assert result.stdout == rng.randbytes(sizes[0])
    assert result.stderr == rng.randbytes(sizes[1])
    assert result.ending == wrapper.Ending(status, False)


def test_every_status_comes_back(shell):
    for status in range(0, 256, 1 if "dash" in shell else 51):
        result = terminal.run(Program(argv=("sh", "-c", f"exit {status}")), shell=shell)
        assert result.ending == wrapper.Ending(status, False)


@pytest.mark.parametrize("number", [1, 2, 3, 6, 9, 11, 13, 15])
def test_a_signal_is_a_status_of_128_and_its_number(shell, number):
    result = terminal.run(Program(argv=("/bin/sh", "-c", f"kill -{number} $$; sleep 5")), shell=shell)
    assert result.ending == wrapper.Ending(128 + number, False)
    assert (result.stdout, result.stderr) == (b"", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no newline at the end",
        b"\r\n\r\r\n\n",
        "Umlaute äöü, \ufffd, 漢字".encode(),
        b"\xe6\xbc",  # the beginning of a character, which the agent would lose
        bytes(range(256)),
        b"\x1b[31mred\x1b[0m\x1b]0;title\x07\x03\x04\x1a",
        b"x" * 200_000,
        b"{" * 500 + b"}" * 500,
    ],
    ids=["empty", "unended", "returns", "utf-8", "cut character", "all bytes", "escapes", "long line", "braces"],
)
def test_what_terminals_spoil_comes_back_identical(shell, data, tmp_path):
    (tmp_path / "data").write_bytes(data)
    result = terminal.run(Program(argv=("cat", str(tmp_path / "data"))), shell=shell)
    assert result.stdout == data


def test_input_comes_back_identical(shell):
    data = random.Random(1).randbytes(100_000)
    result = terminal.run(Program(argv=("cat",), has_stdin=True), shell=shell, stdin=data)
    assert result.stdout == data


def test_input_that_is_not_read_holds_nothing_up(shell):
    result = terminal.run(Program(argv=("true",), has_stdin=True), shell=shell, stdin=bytes(300_000))
    assert result.ending == wrapper.Ending(0, False)


def test_no_input_is_the_end_of_input(shell):
    assert terminal.run(Program(argv=("cat",)), shell=shell).ending == wrapper.Ending(0, False)


def test_a_long_script_with_input_arguments_variables_and_directory(shell, tmp_path):
    script = "#" + "x" * 20_000 + '\nprintf "%s|" "$@" "$VALUE" "$PWD"; cat; exit 17\n'
    program = Program(
        script=script,
        arguments=("it's", 'a "b"', "$c", ""),
        environment={"VALUE": "'v' \"w\" $x `y` \\"},
        directory=str(tmp_path),
        has_stdin=True,
    )
    result = terminal.run(program, shell=shell, stdin=b"input")
    assert result.stdout == f'it\'s|a "b"|$c||\'v\' "w" $x `y` \\|{tmp_path}|input'.encode()
    assert result.ending == wrapper.Ending(17, False)


@pytest.mark.parametrize("padding", [0, 9000])
def test_a_script_runs_under_the_interpreter_it_names(padding):
    script = f"#!{sys.executable}\n" + "#" * padding + "\nimport sys\nprint(sys.argv[1:])\nsys.exit(5)\n"
    result = terminal.run(Program(script=script, arguments=("a b",)))
    assert (result.stdout, result.ending) == (b"['a b']\n", wrapper.Ending(5, False))


@pytest.mark.parametrize(
    "names", [string.ascii_letters, ["PATH"], ["IFS", "HOME", "PWD"]], ids=["letters", "PATH", "others"]
)
def test_variables_are_the_commands_alone_whatever_their_names(shell, names):
    """None of them is a variable of the script around the command, and the script changes none of the container's."""
    given = {name: f"/value/of '{name}'" for name in names}
    if "PWD" in given:
        given["PWD"] = os.getcwd()  # which every shell corrects
    program = Program(argv=(shutil.which("env") or "",), environment=given, seconds=5)
    result = terminal.run(program, shell=shell)
    assert result.ending == wrapper.Ending(0, False), result.stderr
    assert {f"{name}={value}" for name, value in given.items()} <= set(result.stdout.decode().splitlines())
    inherited = {name: f"of the container, {name}" for name in string.ascii_letters}
    result = terminal.run(Program(argv=("env",)), shell=shell, environment={"PATH": os.environ["PATH"], **inherited})
    assert {f"{name}={value}" for name, value in inherited.items()} <= set(result.stdout.decode().splitlines())


def test_a_script_of_sh_runs_whatever_the_path():
    result = terminal.run(Program(script="echo yes\n", environment={"PATH": "/nowhere"}))
    assert (result.stdout, result.ending) == (b"yes\n", wrapper.Ending(0, False))


@pytest.mark.parametrize("answer", [None, wrapper.INTERRUPT], ids=["left alone", "interrupted"])
def test_what_nobody_reads_never_starts(shell, tmp_path, answer):
    """A session whose answer from ECS was lost, or that can't be reached, has run nothing when its terminal goes."""
    call = wrapper.prepare(Program(argv=("touch", str(tmp_path / "ran"))))
    pid, master = terminal.spawn(call.command.replace("/bin/sh -c", f"{shell} -c", 1), dict(os.environ))
    reader = Reader(call.nonce)
    while reader.wants != "go":
        reader.feed(os.read(master, 1024))
    terminal.time.sleep(0.2)
    if answer is not None:
        os.write(master, answer)
        os.waitpid(pid, 0)
        os.close(master)
    else:
        os.close(master)
        os.waitpid(pid, 0)
    assert not reader.started
    assert not (tmp_path / "ran").exists()


def test_an_interrupt_from_the_terminal_ends_the_command(shell):
    """What is left to a caller who may not end sessions."""
    call = wrapper.prepare(Program(argv=("sh", "-c", "trap '' INT TERM; sleep 625 & sleep 626; sleep 625"), seconds=60))
    pid, master = terminal.spawn(call.command.replace("/bin/sh -c", f"{shell} -c", 1), dict(os.environ))
    begin(call, master)
    terminal.time.sleep(0.2)
    assert running("625", "626")
    os.write(master, wrapper.INTERRUPT)
    os.waitpid(pid, 0)
    os.close(master)
    for _ in range(40):
        if not running("625", "626"):
            break
        terminal.time.sleep(0.05)
    assert not running("625", "626")


def test_a_missing_program_and_a_missing_directory_are_the_commands_own_failures(shell):
    result = terminal.run(Program(argv=("no-such-program",)), shell=shell)
    assert result.ending == wrapper.Ending(127, False)
    assert b"no-such-program" in result.stderr
    result = terminal.run(Program(argv=("true",), directory="/no/such/directory"), shell=shell)
    assert result.ending is not None
    assert result.ending.status not in (0, None)
    assert b"/no/such/directory" in result.stderr


def test_the_time_limit_ends_children_that_ignore_the_polite_signal(shell):
    command = "trap '' TERM; echo before; echo words >&2; sleep 621 & sleep 622"
    result = terminal.run(Program(argv=("sh", "-c", command), seconds=1), shell=shell)
    assert result.ending == wrapper.Ending(137, True)
    assert (result.stdout, result.stderr) == (b"before\n", b"words\n")
    assert not running("621", "622")


def test_a_hung_up_terminal_ends_the_command(shell):
    call = wrapper.prepare(Program(argv=("sh", "-c", "sleep 623 & sleep 624"), seconds=60))
    pid, master = terminal.spawn(call.command.replace("/bin/sh -c", f"{shell} -c", 1), dict(os.environ))
    begin(call, master)
    terminal.time.sleep(0.2)
    assert running("623", "624")
    os.close(master)
    os.waitpid(pid, 0)
    for _ in range(40):
        if not running("623", "624"):
            break
        terminal.time.sleep(0.05)
    assert not running("623", "624")


def begin(call: wrapper.Call, master: int) -> Reader:
    """Read until the command starts, answering what has to be answered."""
    reader = Reader(call.nonce)
    while not reader.started:
        reader.feed(os.read(master, 1024))
        if reader.wants:
            os.write(master, b"".join(wrapper.armour(call.script, reader.armour)))
            reader.wants = None
    return reader


def running(*seconds: str) -> bool:
    """Whether a ``sleep`` with one of these very arguments runs."""
    listing = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
    return any(line.split()[1:] == ["sleep", number] for line in listing.splitlines() for number in seconds)


@pytest.mark.parametrize(
    ("tools", "encoding", "group"),
    [
        ("base64 tee wc setsid", b"base64", "setsid"),
        ("base64 setsid", b"base64", "setsid"),
        ("timeout true", b"hex", "timeout"),
        ("", b"hex", "none"),
    ],
)
def test_fallbacks_are_as_exact(tmp_path, tools, encoding, group):
    environment = minimal(tmp_path / "bin", "sh", "od", "tr", "sleep", "head", "stty", "cat", *tools.split())
    data = bytes(range(256)) * 40
    script = "#" + "x" * 5000 + "\ncat; echo e >&2; exit 3\n"
    result = terminal.run(
        Program(script=script, has_stdin=True), stdin=data, environment=environment, shell=f"{tmp_path}/bin/sh"
    )
    assert (result.stdout, result.stderr) == (data, b"e\n")
    assert (result.ending, result.group) == (wrapper.Ending(3, False), group)
    assert b"begin " + encoding in result.raw


@pytest.mark.parametrize(
    ("tools", "has_stdin", "missing"),
    [("od tr sleep", False, ["head"]), ("head", False, ["od", "tr", "sleep"]), ("od tr sleep head", True, ["stty"])],
)
def test_what_is_missing_is_named(tmp_path, tools, has_stdin, missing):
    environment = minimal(tmp_path / "bin", "sh", *tools.split())
    program = Program(argv=("true",), has_stdin=has_stdin)
    result = terminal.run(program, environment=environment, shell=f"{tmp_path}/bin/sh")
    assert [name for name in result.missing if not name.startswith("od(")] == missing
    assert result.ending is None


def test_a_script_is_taken_without_stty(tmp_path):
    environment = minimal(tmp_path / "bin", "sh", "od", "tr", "sleep", "head", "base64")
    script = "#" + "x" * 9000 + "\necho yes\n"
    result = terminal.run(Program(script=script), environment=environment, shell=f"{tmp_path}/bin/sh")
    assert (result.stdout, result.ending) == (b"yes\n", wrapper.Ending(0, False))


def test_nothing_is_written(tmp_path, monkeypatch):
    """No file appears or changes where the script and its shell could write."""
    before = sorted(tmp_path.rglob("*"))
    environment = dict(os.environ, TMPDIR=str(tmp_path), HOME=str(tmp_path))
    program = Program(script="#" + "x" * 9000 + "\ncat\n", directory=str(tmp_path), has_stdin=True)
    result = terminal.run(program, stdin=bytes(50_000), environment=environment)
    assert result.stdout == bytes(50_000)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_no_file_is_opened_for_writing(tmp_path):
    call = wrapper.prepare(Program(script="echo out; echo err >&2"))
    trace = tmp_path / "trace"
    terminal_call = f"strace -f -e trace=open,openat,creat -o {trace} {call.command}"
    pid, master = terminal.spawn(terminal_call, dict(os.environ))
    reader = begin(call, master)
    while reader.ending is None:
        reader.feed(os.read(master, 1024))
    os.close(master)
    os.waitpid(pid, 0)
    opened = [line for line in trace.read_text().splitlines() if "O_WRONLY" in line or "O_RDWR" in line]
    assert [line for line in opened if "/dev/" not in line and "ENOENT" not in line] == []


def test_short_programs_fit_into_the_command_and_long_ones_leave_it():
    short = wrapper.prepare(Program(argv=("mailq",)))
    assert len(short.command) < 2000
    assert short.script == b""
    long = wrapper.prepare(Program(script="echo secret\n" * 1000))
    assert len(long.command) < 1500
    assert "secret" not in long.command
    assert b"secret" in long.script


def test_the_command_is_single_quoted_only_and_never_holds_the_nonce():
    call = wrapper.prepare(Program(argv=("echo", "it's", '"', "#x", "\\")))
    assert shlex.split(call.command)[:2] == ["/bin/sh", "-c"]
    assert call.nonce.decode() not in call.command
    assert wrapper.prepare(Program(argv=("true",))).nonce != wrapper.prepare(Program(argv=("true",))).nonce


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (Program(), "either a command or a script"),
        (Program(argv=("a",), script="b"), "either a command or a script"),
        (Program(argv=("a\0b",)), "NUL"),
        (Program(script="a\0b"), "NUL"),
        (Program(argv=("a",), environment={"A": "\0"}), "NUL"),
        (Program(argv=("a",), environment={"a-b": "c"}), "'a-b' is no name"),
        *((Program(argv=("a",), seconds=number), "greater than 0 and at most") for number in (-1, 0, 2e6, INF, NAN)),
    ],
)
def test_what_cannot_be_passed_on_is_refused(program, words):
    with pytest.raises(WrapperError, match=words):
        wrapper.prepare(program)


@pytest.mark.parametrize("kind", ["base64", "octal"])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 249, 250, 251, 749, 750, 751, 5000])
def test_armour_announces_its_length_and_keeps_lines_short(kind, size):
    first, *lines = b"".join(wrapper.armour(bytes(size), kind)).splitlines(keepends=True)
    assert int(first) == sum(len(line) for line in lines)
    assert all(len(line) <= 1001 for line in lines)


# The reader alone, with streams that no honest container would send.


def read(data: bytes, cut: int = 1) -> tuple[bytes, bytes, Reader]:
    reader = Reader(b"nn")
    pieces = [reader.feed(data[start : start + cut]) for start in range(0, len(data), cut)]
    return b"".join(piece.stdout for piece in pieces), b"".join(piece.stderr for piece in pieces), reader


def stderr_of(data: bytes) -> bytes:
    """What ``od -Ad -v -tx1 | tr`` makes of bytes."""
    lines = [b"%07d %s\n" % (at, data[at : at + 16].hex(" ").encode()) for at in range(0, len(data), 16)]
    table = bytes.maketrans(b"0123456789abcdef \n", b"!#%&()*,.:;<>@_~|^")
    return b"".join([*lines, b"%07d\n" % len(data)]).translate(table)


@pytest.mark.parametrize("cut", [1, 2, 5, 1000])
def test_marks_are_found_however_the_stream_is_cut(cut):
    data = b"junk{x {nn send script base64}echo\r\n{nn begin base64 setsid}\r\nSGVs" + stderr_of(b"bad") + b"bG8="
    stdout, stderr, reader = read(data + b"\r\n{nn end r7 o0 5 e0}rest", cut)
    assert (stdout, stderr) == (b"Hello", b"bad")
    assert (reader.wants, reader.ending, reader.group) == ("script", wrapper.Ending(7, False), "setsid")


@given(st.binary(max_size=200), st.binary(max_size=200), st.randoms(use_true_random=False))
def test_the_streams_come_apart_whatever_the_interleaving(out, err, rng):
    import base64

    first, second = base64.b64encode(out), stderr_of(err)
    mixed = bytearray()
    while first or second:
        if first and (not second or rng.random() < 0.5):
            mixed += first[:1]
            first = first[1:]
        else:
            mixed += second[:1]
            second = second[1:]
    end = b"{nn end r0 o0 %d e0}" % len(out)
    stdout, stderr, reader = read(b"{nn begin base64 setsid}" + bytes(mixed) + end, rng.randrange(1, 50))
    assert (stdout, stderr, reader.ending) == (out, err, wrapper.Ending(0, False))


@pytest.mark.parametrize(
    "body",
    [
        b"SGVsbG8={nn end r0 o0 4 e0}",  # fewer bytes than came
        b"SGVsbG8={nn end r0 o0 6 e0}",  # more
        b"SGVsbG8{nn end r0 o0 5 e0}",  # a group cut off
        b"SGVsbG8=SGVs{nn end r0 o0 e0}",  # going on behind its end
        b"SGV-bG8={nn end r0 o0 e0}",  # no base64
        b"SGVsbG8={nn end r0 o137 5 e0}",  # the encoder was ended
        b"SGVsbG8={nn end r0 o0 5 e1}",
        b"SGVsbG8={nn end r0 o0 5}",
        b"SGVsbG8={nn begin?}",
        b"!" * 600,  # a line that does not end
        b"{nn " + b"x" * 600,
    ],
)
def test_a_stream_that_contradicts_itself_is_an_error(body):
    with pytest.raises(ArmourError):
        read(b"{nn begin base64 setsid}" + stderr_of(b"") + body, 7)


@pytest.mark.parametrize("spoil", [lambda text: text[1:], lambda text: text[:-9], lambda text: text[:20] + text[23:]])
def test_a_gap_in_standard_error_is_an_error(spoil):
    with pytest.raises(ArmourError):
        read(b"{nn begin base64 setsid}" + spoil(stderr_of(bytes(40))) + b"{nn end r0 o0 0 e0}", 7)
