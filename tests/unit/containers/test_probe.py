# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe, really run in a container's root file system and process table."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.cabalmail import containers
from ansible.module_utils.cabalmail.privacy import Masker
from ansible.module_utils.cabalmail.probe import parse
from ansible.module_utils.cabalmail.reconfigure_loop import LoopLimits, from_container
from ansible.module_utils.cabalmail.signing import read_key, read_tables
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

MASKER = Masker(b"k" * 32)
LOOP = "/usr-local/reconfigure.sh &"
PROBE = Path(__file__).resolve().parents[3] / "roles/container_evidence/files/probe.sh"
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox sh") if shutil.which(shell.split()[0])]


def facts(raw: bytes, tier: str = "smtp-in", received: float | None = None) -> dict[str, Any]:
    result = {"task": "a" * 32, "outcome": "completed"}
    return containers.container_facts(result, tier, parse(raw), received, MASKER)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_says_the_same(container: Any, shell: str) -> None:
    if "busybox" in shell:
        shutil.copy(shutil.which("busybox") or "", container.root / "tools/busybox")
    container.start(LOOP)
    raw = container.run(shell)
    found = facts(raw, received=time.time())
    assert (found["status"], found["reasons"]) == ("complete", [])
    assert found["log_level"] == 2
    assert found["hosts_pin"] == "10.0.2.45"
    assert found["files"]["/etc/mail/access"]["lines"] == 2
    assert found["files"]["/etc/mail/access.db"]["age_seconds"] == pytest.approx(240, abs=5)
    assert len(found["files"]["/etc/mail/access.db"]["sha256"]) == 64
    assert found["maps"]["/etc/mail/access"] == {
        "entries": 2,
        "source": "makemap",
        "error": None,
        "read_by_sendmail": True,
    }
    assert abs(found["clock_skew_seconds"]) <= 3
    assert found["users"] == ["alice"]
    assert found["homes"]["alice"]["problem"] == "home_missing"
    assert found["stray_mail"] == []
    assert found["loop"]["process"] == "alive"
    assert found["disk"]["/tmp"]["used_percent"] is not None
    assert found["memory"]["total_kib"] > 0


def test_the_loop_is_seen_with_the_call_it_waits_for(container: Any) -> None:
    container.start(LOOP)
    loop = facts(container.run())["loop"]
    assert (loop["process"], loop["count"], loop["stopped"], loop["state"]) == ("alive", 1, False, "S")
    assert "sqs receive-message" in [child["call"] for child in loop["children"]]


def test_a_dead_loop_is_seen_although_a_pattern_would_find_itself(container: Any) -> None:
    """DOMAIN: `sh -c 'pgrep -af reconfigure || ...'` finds its own shell, so the runbook's command says alive."""
    runbook = """sh -c 'pgrep -af reconfigure || echo "no reconfigure process"'\n"""
    said = container.run(script=runbook)
    assert b"\nno reconfigure process" not in b"\n" + said
    assert b"sh -c pgrep -af reconfigure" in said
    assert facts(container.run())["loop"]["process"] == "dead"


@pytest.mark.parametrize(
    "neighbour",
    [
        "sh -c 'sleep 600; : /usr-local/reconfigure.sh' &",
        "tail -f /usr-local/reconfigure.sh >/dev/null &",
        "bash -c 'exec -a /usr-local/not-reconfigure.sh sleep 600' &",
    ],
)
def test_a_process_that_only_names_the_script_is_not_the_loop(container: Any, neighbour: str) -> None:
    container.start(neighbour)
    assert facts(container.run())["loop"]["process"] == "dead"


def test_a_stopped_loop_is_alive_and_stopped(container: Any) -> None:
    container.start(LOOP)
    container.start("sleep 0.2; kill -STOP $!")
    loop = facts(container.run())["loop"]
    assert (loop["process"], loop["state"], loop["stopped"]) == ("alive", "T", True)


def test_nothing_is_written(container: Any) -> None:
    container.start(LOOP)
    container.run()
    before = container.listing()
    container.run()
    assert container.listing() == before


def test_no_secret_and_no_alert_pattern_is_printed(container: Any) -> None:
    container.environment = {
        "MASTER_PASSWORD": "hunter2-secret",
        "HEALTHCHECK_PING_URL": "https://hc.example/0000-secret",
        "AWS_SECRET_ACCESS_KEY": "AKIA-secret",
    }
    container.start(LOOP)
    container.start("bash -c 'exec -a \"curl https://hc.example/0000-secret\" sleep 600' &")
    container.write("/etc/mail/access", "To:dsn=5.1.1@s.harborlight.example\tRELAY\n")
    raw = container.run()
    for word in (b"secret", b"hunter2", b"dsn=5", b"stat=Deferred", b"jane@", b"@s.harborlight"):
        assert word not in raw
    assert b"dsn=5" not in (container.root / "probe.sh").read_bytes()
    assert b"stat=Deferred" not in (container.root / "probe.sh").read_bytes()
    # It is all there nevertheless.
    text = parse(raw).section("text", "/etc/mail/access")
    assert text is not None
    assert b"dsn=5.1.1@" in text.data


def test_the_queue_is_summed_up_masked(container: Any) -> None:
    queue = facts(container.run())["queue"]
    assert queue is not None
    assert (queue["messages"], queue["complete"]) == (2, True)
    assert queue["oldest"].endswith("T20:00:00Z")
    assert queue["reasons"][0]["count"] == 1
    assert "jane@" not in str(queue)


@pytest.mark.parametrize(
    ("missing", "lost"),
    [
        ("makemap", "maps"),
        ("mailq", "queue"),
        ("gzip", None),
        ("timeout", None),
        ("sha256sum", None),
        ("getconf", None),
    ],
)
def test_a_missing_tool_costs_its_own_facts_only(container: Any, missing: str, lost: str | None) -> None:
    kept = [
        "bash",
        "sh",
        "cat",
        "stat",
        "wc",
        "tr",
        "df",
        "date",
        "base64",
        "gzip",
        "timeout",
        "sha256sum",
        "getconf",
        "sleep",
    ]
    for name in kept:
        if name != missing:
            (container.root / "tools" / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    if missing in ("makemap", "mailq"):
        (container.root / "tools" / missing).unlink()
    container.start("export PATH=/tools")
    found = facts(container.run(seconds=0))
    assert found["log_level"] == 2
    assert found["users"] == ["alice"]
    if lost == "maps":
        assert found["status"] == "partial"
        assert found["maps"]["/etc/mail/access"]["source"] == "text"
        assert "makemap" in found["reasons"][0]
    elif lost == "queue":
        assert found["queue"] is None
    else:
        assert found["status"] == "complete"
        assert found["maps"]["/etc/mail/access"]["entries"] == 2


@pytest.mark.skipif(not shutil.which("busybox"), reason="no busybox here")
def test_busybox_alone_is_enough(container: Any) -> None:
    busybox = container.root / "tools/busybox"
    shutil.copy(shutil.which("busybox") or "", busybox)
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in applets:
        if not (busybox.parent / name).exists():
            (busybox.parent / name).symlink_to("busybox")
    container.start("export PATH=/tools")
    found = facts(container.run(seconds=0))
    assert (found["status"], found["reasons"]) == ("complete", [])
    assert found["maps"]["/etc/mail/access"]["source"] == "makemap"
    assert found["files"]["/etc/mail/access.db"]["age_seconds"] == pytest.approx(240, abs=5)
    assert found["loop"]["process"] == "dead"
    assert found["disk"]["/tmp"]["used_percent"] is not None


def test_maildirs_and_stray_mail(container: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving files to other users takes root")
    people = {"alice": 2001, "bob": 2002, "carol": 2003, "dave": 2004}
    container.write(
        "/etc/passwd", "".join(f"{name}:x:{uid}:{uid}::/home/{name}:/bin/sh\n" for name, uid in people.items())
    )
    for name in ("alice", "bob", "carol"):
        home = container.root / "home" / name
        home.mkdir()
        os.chown(home, people[name], people[name])
    for name, mode, owner in (("alice", 0o700, 2001), ("bob", 0o700, 0)):
        maildir = container.root / "home" / name / "Maildir"
        maildir.mkdir()
        maildir.chmod(mode)
        os.chown(maildir, owner, owner)
    container.write("/var/spool/mail/bob", "From x\n\nstray\n")
    container.write("/var/spool/mail/alice", "")
    found = facts(container.run(), tier="imap")
    assert {name: home["problem"] for name, home in found["homes"].items()} == {
        "alice": None,
        "bob": "maildir_not_writable",
        "carol": "maildir_missing",
        "dave": "home_missing",
    }
    assert [(row["user"], row["bytes"]) for row in found["stray_mail"]] == [("bob", 14)]


@pytest.mark.parametrize(
    ("dig", "answer"),
    [
        ("echo 10.0.2.45", ["10.0.2.45"]),
        (":", []),
        ("echo ';; communications error'; exit 9", None),
        (None, None),
    ],
)
def test_imap_in_dns_past_the_pin(container: Any, dig: str | None, answer: list[str] | None) -> None:
    """Defect 34: the pin hides an empty Cloud Map; getent would answer from it."""
    if dig is None and shutil.which("dig"):
        pytest.skip("dig is here")
    if dig is not None:
        container.tool("dig", f"#!/bin/sh\n{dig}\n")
    found = facts(container.run())
    assert (found["hosts_pin"], found["imap_in_dns"]) == ("10.0.2.45", answer)


def test_a_clock_that_is_an_hour_off_changes_no_age(container: Any) -> None:
    container.write("/etc/mail/access.db", "to:a@b.example\tRELAY\n", age=240 - 3600)
    container.tool("date", '#!/bin/sh\necho $(($(/bin/date "$@") + 3600))\n')
    found = facts(container.run())
    assert found["files"]["/etc/mail/access.db"]["age_seconds"] == pytest.approx(240, abs=5)


def test_date_of_a_file_is_local_text_in_the_runbook_and_an_instant_here(container: Any) -> None:
    """DOMAIN: `date -r` prints local text, which two clocks an hour apart read as fresh or as stale."""
    container.write("/etc/mail/access.db", "to:a@b.example\tRELAY\n", age=18000)
    container.environment = {"TZ": "XXX-5"}
    runbook = container.run(script="date -r /etc/mail/access.db '+%Y-%m-%d %H:%M'\n").decode().strip()
    naive = time.mktime(time.strptime(runbook, "%Y-%m-%d %H:%M"))
    # Read where the operator sits (UTC), the map that is five hours old looks brand new.
    assert abs(time.time() - naive + time.timezone) < 900
    age = facts(container.run())["files"]["/etc/mail/access.db"]["age_seconds"]
    assert age == pytest.approx(18000, abs=5)


def test_the_runbook_looks_at_a_file_that_smtp_in_s_sendmail_never_reads(container: Any) -> None:
    """Defect 11: line count and date of virtusertable are those of a healthy map; access.db is what decides."""
    container.write("/etc/mail/virtusertable", "ann@s.harborlight.example\talice\n", age=60)
    container.write("/etc/mail/virtusertable.db", "ann@s.harborlight.example\talice\n", age=60)
    container.write("/etc/mail/access", "To:old@s.harborlight.example\tRELAY\n", age=18000)
    container.write("/etc/mail/access.db", "to:old@s.harborlight.example\tRELAY\n", age=18000)
    container.start(LOOP)
    runbook = "wc -l /etc/mail/virtusertable && date -r /etc/mail/virtusertable +%s\n"
    lines, dated = container.run(script=runbook).decode().split("\n")[:2]
    assert lines.split()[0] == "1"
    assert time.time() - float(dated) < 120
    found = facts(container.run())
    assert found["maps"]["/etc/mail/virtusertable"]["read_by_sendmail"] is False
    assert found["maps"]["/etc/mail/access"]["read_by_sendmail"] is True
    assert from_container(found, LoopLimits()).state in ("hung", "failing")


def test_the_text_is_fresh_while_makemap_fails_each_time(container: Any) -> None:
    """Defect 12: the text is written before makemap runs, so its date says nothing of what sendmail reads."""
    for name in ("access", "mailertable", "virtusertable"):
        container.write(f"/etc/mail/{name}", "To:ann@s.harborlight.example\tRELAY\n", age=60)
        container.write(f"/etc/mail/{name}.db", "to:ann@s.harborlight.example\tRELAY\n", age=18000)
    container.start(LOOP)
    dated = container.run(script="date -r /etc/mail/virtusertable +%s\n").decode()
    assert time.time() - float(dated) < 120
    answer = from_container(facts(container.run()), LoopLimits())
    assert answer.state == "failing"
    assert "makemap does not finish" in answer.why


def test_the_script_is_clean() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck here")
    subprocess.run(["shellcheck", str(PROBE)], check=True)


@pytest.mark.parametrize("form", ["TraditionalOpenSSL", "PKCS8"])
def test_of_the_signing_key_only_the_public_numbers_are_told(container: Any, form: str) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, getattr(serialization.PrivateFormat, form), serialization.NoEncryption()
    )
    container.write("/etc/opendkim/keys/cabal", pem, mode=0o600)
    probe = parse(container.run())
    numbers = key.private_numbers()
    assert read_key(probe) == (numbers.public_numbers.n, numbers.public_numbers.e)
    said = b"".join(part.read().data for part in probe.sections.values())
    assert f"{numbers.p:x}".encode() not in said
    assert pem.splitlines()[1] not in said


def test_a_signing_key_that_is_none_is_unknown(container: Any) -> None:
    container.write("/etc/opendkim/keys/cabal", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    assert read_key(parse(container.run())) is None


def test_the_signing_tables_are_read(container: Any) -> None:
    container.write("/etc/opendkim/KeyTable", "cabal._domainkey.s.example s.example:cabal:/etc/opendkim/keys/cabal\n")
    container.write("/etc/opendkim/SigningTable", "*@s.example cabal._domainkey.s.example\n")
    tables = read_tables(parse(container.run()))
    assert tables is not None
    assert tables.signed == {"s.example": "cabal._domainkey.s.example"}
    assert tables.keys == {"cabal._domainkey.s.example": "s.example"}
