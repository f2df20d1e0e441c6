# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client and the runner against a gateway that misbehaves: exact output or one clear error, and never a hang."""

from __future__ import annotations

import logging
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.ecs_exec import runner
from ansible.module_utils.ecs_exec.runner import Outcome, Plan
from ansible.module_utils.ecs_exec.wrapper import Program
from ansible.module_utils.session_manager import channel as channel_module
from ansible.module_utils.session_manager import client
from ansible.module_utils.session_manager.client import MAX_FRAME

from tests.unit.session_manager.gateway import Gateway, Mischief, build, closing, output, targets

TEXT = b"".join(b"line %d of the output\r\n\0\xff\xfe" % number for number in range(900))
PROGRAM = Program(
    argv=(
        "python3",
        "-c",
        "import sys\n"
        "for n in range(900): sys.stdout.buffer.write(b'line %d of the output\\r\\n\\0\\xff\\xfe' % n)\n"
        "sys.stderr.write('complaint\\n' * 50)\nsys.exit(42)",
    ),
    seconds=10,
)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    """Bounds that are the same in kind and shorter, so that the tests are."""
    monkeypatch.setattr(channel_module, "GAP_LIMIT", 2.0)
    monkeypatch.setattr(channel_module, "PAUSE_LIMIT", 1.5)
    monkeypatch.setattr(runner, "START_ALLOWANCE", 1.0)
    monkeypatch.setattr(runner, "END_ALLOWANCE", 1.0)


def attempt(mischief: Mischief, program: Program = PROGRAM, **bounds) -> tuple[Outcome, Gateway]:
    """Run the program once; check that whatever is known about secrets stays so."""
    started = time.monotonic()
    with Gateway(mischief) as gateway:
        (outcome,) = runner.run(Plan(program, **bounds), targets(), gateway)
    assert time.monotonic() - started < program.seconds + 10
    assert "token-of" not in repr(outcome)
    assert "/data-channel/" not in repr(outcome)
    return outcome, gateway


def exact(outcome: Outcome) -> bool:
    return (outcome.outcome, outcome.rc, outcome.stdout, outcome.stderr, outcome.reason) == (
        "completed",
        42,
        TEXT,
        b"complaint\n" * 50,
        None,
    )


def shuffled(seed: int, width: int):
    """Hold frames back and let them out in a random order."""
    rng, held = random.Random(seed), []

    def passing(number: int, frame: bytes) -> list[bytes]:
        held.append(frame)
        if len(held) < width:
            return []
        rng.shuffle(held)
        out, held[:] = list(held), []
        return out

    return passing


def some(seed: int, share: float, change):
    """Change a random share of the first 120 frames. More could be more than the client bears (see below)."""
    rng = random.Random(seed)
    return lambda number, frame: change(number, frame) if number < 120 and rng.random() < share else [frame]


def flipped(frame: bytes) -> bytes:
    return frame[:-1] + bytes([frame[-1] ^ 1])


HARMLESS = {
    "nothing": Mischief(),
    "reordered": Mischief(passing=shuffled(1, 7)),
    "each twice": Mischief(passing=lambda number, frame: [frame, frame]),
    "dropped": Mischief(passing=some(2, 0.3, lambda number, frame: [])),
    "all dropped once": Mischief(passing=lambda number, frame: []),
    "wrong digest": Mischief(passing=some(3, 0.3, lambda number, frame: [flipped(frame)])),
    "truncated": Mischief(passing=some(4, 0.3, lambda number, frame: [frame[: 60 + number]])),
    "longer than announced": Mischief(passing=some(5, 0.3, lambda number, frame: [frame + b"more"])),
    # No more than the client bears: a terminal that is read slowly gives many small frames.
    "rubbish between": Mischief(passing=lambda number, frame: [b"", b"\xff" * 130, frame] if number < 40 else [frame]),
    "other number": Mischief(passing=some(6, 0.3, lambda number, frame: [output(10**12, b"evil"), frame])),
    "unknown types between": Mischief(passing=lambda number, frame: [build("news", number, b"x"), frame]),
    "pause and start": Mischief(
        passing=lambda number, frame: [build("pause_publication", 0, b"", 0), build("start_publication", 0, b""), frame]
    ),
    "shakes hands": Mischief(
        handshake=[{"ActionType": "SessionType", "ActionParameters": {"SessionType": "InteractiveCommands"}}]
    ),
    "closed before the last frames": Mischief(
        close_early=True, passing=lambda number, frame: [] if number == 3 else [frame], resend=0.05
    ),
    "never closes": Mischief(never_close=True),
    "closes without a word": Mischief(close_words=None),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_output_is_exact_in_spite_of(name):
    outcome, gateway = attempt(HARMLESS[name])
    assert exact(outcome), outcome.reason
    # Ended from here exactly when the gateway did not close it.
    assert len(gateway.terminated) == (name in {"never closes", "closes without a word"})


@pytest.mark.parametrize("seed", range(4))
def test_output_is_exact_in_spite_of_everything_at_once(seed):
    rng = random.Random(seed)
    hold = shuffled(seed, 5)

    def passing(number: int, frame: bytes) -> list[bytes]:
        frames = [frame for frame in hold(number, frame) if rng.random() < 0.8]
        return [flipped(frame) if number < 120 and rng.random() < 0.3 else frame for frame in frames]

    outcome, _ = attempt(Mischief(passing=passing, acknowledge=lambda number, times: times > 1))
    assert exact(outcome), outcome.reason


def test_input_arrives_exactly_though_it_has_to_be_repeated():
    data = random.Random(7).randbytes(70_000)
    program = Program(script="#" + "x" * 5000 + "\ncat; exit 9\n", has_stdin=True, seconds=10)
    mischief = Mischief(acknowledge=lambda number, times: times > number % 3)
    outcome, _ = attempt(mischief, program, stdin=data)
    assert (outcome.outcome, outcome.rc, outcome.stdout) == ("completed", 9, data), outcome.reason


FATAL = {
    "cut at once": (Mischief(cut_at_open=True), "unreachable", "127.0.0.1"),
    "upgrade refused": (Mischief(refuse_upgrade=403), "unreachable", "HTTP status 403: the signature was refused"),
    "upgrade too late": (Mischief(refuse_upgrade=400), "unreachable", "HTTP status 400: the session is gone"),
    "cut before the first frame": (Mischief(cut_after=0), "unreachable", "The command was not started."),
    "cut at the command's start": (Mischief(cut_after=1), "session_broke", "before the command's end"),
    "cut in the middle": (Mischief(cut_after=9), "session_broke", "before the command's end"),
    "a frame that never comes": (
        Mischief(passing=lambda number, frame: [] if number == 5 else [frame], resend=99),
        "session_broke",
        "frame 5 has been missing",
    ),
    "a digest that stays wrong": (
        Mischief(passing=lambda number, frame: [flipped(frame)] if number == 5 else [frame], resend=99),
        "session_broke",
        "frame 5 has been missing",
    ),
    "only rubbish": (Mischief(before=[b"rubbish"] * 200, silent=True), "unreachable", "malformed"),
    "rubbish in the middle": (
        Mischief(passing=lambda number, frame: [b"rubbish"] * 200 if number == 5 else [frame]),
        "session_broke",
        "malformed",
    ),
    "too large a frame": (
        Mischief(before=[output(0, bytes(MAX_FRAME + 1))], silent=True),
        "unreachable",
        "more than 256 KiB",
    ),
    "silence": (Mischief(silent=True), "unreachable", "did not answer in time"),
    "silence once the command may run": (
        Mischief(passing=lambda number, frame: [frame] if number == 0 else [], resend=99, never_close=True),
        "session_broke",
        "whether it will is unknown",
    ),
    "who sends and never reads": (
        Mischief(before=[output(0, bytes(1024))] * 40_000, deaf=True),
        "unreachable",
        "did not answer in time",
    ),
    "a stopped task": (
        Mischief(before=[build("pause_publication", 0, b"", 0)], silent=True),
        "unreachable",
        "stopped answering",
    ),
    "encryption without a key": (
        Mischief(handshake=[{"ActionType": "KMSEncryption"}]),
        "unreachable",
        "without naming the key",
    ),
    "no shell": (
        Mischief(
            before=[closing('Unable to start command: Failed to start pty: exec: "/bin/sh": not found')], silent=True
        ),
        "unreachable",
        "cannot start /bin/sh",
    ),
    "closed with words": (
        Mischief(before=[closing("Setting up data channel with id 1 failed")], silent=True),
        "unreachable",
        "Setting up data channel",
    ),
    "closed without words": (
        Mischief(before=[closing()], silent=True),
        "unreachable",
        "before the command's end was",
    ),
    "forged output": (
        Mischief(passing=lambda number, frame: [output(number, b"QUJD" * 200)] if number == 4 else [frame]),
        "session_broke",
        "",
    ),
}


@pytest.mark.parametrize("name", FATAL)
def test_one_clear_error_for(name):
    mischief, word, reason = FATAL[name]
    outcome, _ = attempt(mischief, Program(argv=PROGRAM.argv, seconds=2))
    assert outcome.outcome == word, outcome.reason
    assert reason in (outcome.reason or "")
    assert (outcome.rc, outcome.stdout, outcome.stderr, outcome.dest) == (None, None, None, None)


class Resuming(Gateway):
    """A gateway that cuts the connection and then does as ``answer`` when it is asked to carry the session on."""

    def __init__(self, answer: Callable[[Gateway], tuple[str, str] | None]) -> None:
        super().__init__(Mischief(cut_after=3))
        self.answer = answer

    def resume(self, session_id: str) -> tuple[str, str] | None:
        self.resumed.append(session_id)
        return self.answer(self)


def fail(gateway: Gateway) -> None:
    raise OSError("no network")


def hang(gateway: Gateway) -> None:
    time.sleep(30)


def cut_again(gateway: Gateway) -> tuple[str, str]:
    gateway.mischief.cut_at_open = True
    return f"ws://127.0.0.1:{gateway.port}/v1/data-channel/x", "another token"


@pytest.mark.parametrize(
    ("answer", "most"),
    [
        (lambda gateway: None, 1),
        (fail, client.RESUME_ATTEMPTS),
        (hang, client.RESUME_ATTEMPTS),
        (lambda gateway: ("ws://127.0.0.1:1/x", "t"), client.RESUME_ATTEMPTS),
        (cut_again, client.RESUMES * client.RESUME_ATTEMPTS),
    ],
    ids=["over", "no network", "hangs", "refused", "cut each time"],
)
def test_a_session_that_can_not_be_carried_on_is_broken(monkeypatch, answer, most):
    monkeypatch.setattr(client, "RESUME_TIMEOUT", 0.2)
    started = time.monotonic()
    with Resuming(answer) as gateway:
        (outcome,) = runner.run(Plan(Program(argv=PROGRAM.argv, seconds=5)), targets(), gateway)
    assert time.monotonic() - started < 12
    assert (outcome.outcome, outcome.rc, outcome.stdout) == ("session_broke", None, None)
    assert "before the command's end" in (outcome.reason or "")
    assert 1 <= len(gateway.resumed) <= most
    assert "token" not in (outcome.reason or "")
    assert gateway.terminated


def test_a_time_limit_ends_the_whole_group_and_returns_what_was_written():
    program = Program(argv=("sh", "-c", "echo before; sleep 611 & trap '' TERM; sleep 612"), seconds=1)
    outcome, _ = attempt(Mischief(), program)
    assert (outcome.outcome, outcome.rc, outcome.stdout) == ("timed_out", 137, b"before\n")
    assert "still running after 1 s" in (outcome.reason or "")
    assert not running("611")
    assert not running("612")


def test_a_process_left_behind_is_named():
    outcome, _ = attempt(Mischief(), Program(argv=("sh", "-c", "sleep 613 & echo done; exit 3"), seconds=1))
    assert (outcome.outcome, outcome.rc, outcome.stdout) == ("timed_out", 3, b"done\n")
    assert "left behind" in (outcome.reason or "")


def test_a_session_that_breaks_ends_the_command_in_the_container():
    program = Program(argv=("sh", "-c", "head -c 90000 /dev/zero; sleep 614"), seconds=30)
    mischief = Mischief(cut_after=9)
    with Gateway(mischief) as gateway:
        (outcome,) = runner.run(Plan(program), targets(), gateway)
        assert outcome.outcome == "session_broke"
        assert gateway.terminated
        deadline = time.monotonic() + 3
        while running("614") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not running("614")


def test_a_session_that_breaks_before_the_command_may_start_has_run_nothing(tmp_path):
    outcome, gateway = attempt(Mischief(cut_after=0), Program(argv=("touch", str(tmp_path / "ran")), seconds=5))
    assert outcome.outcome == "unreachable"
    assert len(gateway.terminated) == 1
    assert list(tmp_path.iterdir()) == []


class Forbidding(Gateway):
    """A gateway whose caller may not end sessions, and which does not end them by itself."""

    def terminate(self, session_id: str) -> None:
        self.terminated.append(session_id)
        raise PermissionError

    def terminate_child(self, session_id: str) -> None:
        pass


def test_a_caller_who_may_not_end_sessions_ends_the_command_by_the_terminal():
    program = Program(argv=("sh", "-c", "trap '' INT; head -c 90000 /dev/zero; sleep 615"), seconds=30)
    with Forbidding() as gateway:
        (outcome,) = runner.run(Plan(program, max_output=1000), targets(), gateway)
        assert outcome.outcome == "session_broke"
        assert len(gateway.terminated) == 1
        deadline = time.monotonic() + 3
        while (running("615") or gateway.children) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not running("615")
        assert gateway.children == {}  # the session's own process


def running(seconds: str) -> bool:
    """Whether a ``sleep`` with this very argument runs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == b"sleep\0" + seconds.encode() + b"\0":
                return True
        except OSError:
            continue
    return False


def test_output_beyond_the_bound_ends_the_session():
    program = Program(argv=("head", "-c", "3000000", "/dev/zero"), seconds=10)
    outcome, gateway = attempt(Mischief(), program, max_output=100_000)
    assert (outcome.outcome, outcome.stdout) == ("session_broke", None)
    assert "max_output (100000 bytes)" in (outcome.reason or "")
    assert gateway.terminated


def test_large_output_goes_to_a_private_file(tmp_path):
    program = Program(argv=("head", "-c", "3000000", "/dev/zero"), seconds=20)
    outcome, _ = attempt(Mischief(), program, max_output=None, dest=tmp_path)
    assert (outcome.outcome, outcome.stdout) == ("completed", None)
    assert outcome.dest == tmp_path / f"{outcome.target.task}.out"
    assert outcome.dest.read_bytes() == bytes(3_000_000)
    assert outcome.dest.stat().st_mode & 0o777 == 0o600


def test_standard_error_is_bounded_where_output_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "MAX_STDERR", 10_000)
    program = Program(argv=("sh", "-c", "head -c 300000 /dev/zero; head -c 90000 /dev/zero >&2"), seconds=20)
    outcome, _ = attempt(Mischief(), program, max_output=None, dest=tmp_path)
    assert (outcome.outcome, outcome.stderr, list(tmp_path.iterdir())) == ("session_broke", None, [])
    assert "more than 10000 bytes to standard error" in (outcome.reason or "")


def test_a_file_that_can_not_be_made_is_said_and_nothing_runs(tmp_path):
    first, second = targets(2)
    (tmp_path / f"{first.task}.out.part").mkdir()
    with Gateway() as gateway:
        outcomes = runner.run(Plan(PROGRAM, dest=tmp_path), [first, second], gateway)
        assert len(gateway.commands) == 1
    assert [outcome.outcome for outcome in outcomes] == ["unreachable", "completed"]
    assert f"'{tmp_path / first.task}.out' can't be written here" in (outcomes[0].reason or "")


def test_a_disk_that_fills_up_is_said_and_leaves_no_file(tmp_path):
    """A limit to the size of files stands for the full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        program = Program(argv=("head", "-c", "3000000", "/dev/zero"), seconds=20)
        outcome, _ = attempt(Mischief(), program, max_output=None, dest=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (outcome.outcome, outcome.dest, list(tmp_path.iterdir())) == ("session_broke", None, [])
    assert "File too large" in (outcome.reason or "")


def test_a_file_that_is_not_whole_is_not_left(tmp_path):
    program = Program(argv=("head", "-c", "300000", "/dev/zero"), seconds=5)
    outcome, _ = attempt(Mischief(cut_after=50), program, dest=tmp_path)
    assert outcome.outcome == "session_broke"
    assert list(tmp_path.iterdir()) == []


def test_many_at_once_stay_in_order_and_within_the_bound():
    program = Program(argv=("sh", "-c", "echo $$; sleep 0.1"), seconds=10)
    with Gateway() as gateway:
        outcomes = runner.run(Plan(program, max_parallel=4), targets(12), gateway)
        assert gateway.peak <= 4
        assert gateway.left_open() == 0
    assert [outcome.target.task for outcome in outcomes] == [target.task for target in targets(12)]
    assert {outcome.outcome for outcome in outcomes} == {"completed"}


def test_the_deadline_holds_for_all_and_says_who_had_no_turn():
    program = Program(argv=("sleep", "2"), seconds=30)
    started = time.monotonic()
    with Gateway() as gateway:
        outcomes = runner.run(Plan(program, max_parallel=1, deadline=started + 3.5), targets(3), gateway)
    assert time.monotonic() - started < 6
    assert outcomes[0].outcome == "completed"
    assert "before this one's turn" in (outcomes[2].reason or "")


def test_the_upgrade_is_signed_and_presigned_ones_are_not():
    _, gateway = attempt(Mischief())
    assert gateway.headers[0]["Authorization"].startswith("signed http://127.0.0.1:")


def test_nothing_of_the_session_is_logged_at_any_level(caplog):
    caplog.set_level(logging.DEBUG)
    _, gateway = attempt(Mischief())
    (opening,) = gateway.opening
    own = [record for record in caplog.records if not record.name.startswith("websockets.server")]
    for secret in (opening["TokenValue"], "data-channel", "signed http"):
        assert secret not in "".join(record.getMessage() for record in own)
