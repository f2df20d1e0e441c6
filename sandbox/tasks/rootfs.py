# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a task: a private tree that stands over the machine's own programs.

``build`` writes everything that a TaskSpec declares: maps with their ages, users and their homes, the queue, the
pin, the log level. Nothing is written outside the folders given.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .. import dkim
from ..model import Address, Loop, QueuedMessage, TaskSpec, User
from .container import maps
from .debian import BINARIES, Unpacked
from .isolation import SYSTEM_FOLDERS, Isolation

CONTAINER = Path(__file__).parent / "container"
PYTHON_HOME = "/opt/python"
DEBIAN_HOME = "/opt/debian"
IMAP_HOST = maps.IMAP_HOST
_FOREIGN_UID = 65534
_SMTP_OUT_ACCESS = "Connect:127.0.0.1\tRELAY\n"
_FOLDERS = (
    "usr",
    "dev/pts",
    "proc",
    "etc/mail",
    "etc/opendkim/keys",
    "home",
    "root",
    "run",
    "tmp",
    "var/log",
    "var/spool/mqueue",
    "var/spool/mail",
    "var/tmp",
)
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
# Programs of a tier in the order in which supervisord starts them: (name, command, startsecs).
_PROGRAMS = {
    "rsyslog": ("rsyslogd -n", 1),
    "log-tailer": ("tail -F {root}/var/log/maillog", 0),
    "dovecot": ("dovecot -F", 1),
    "opendkim": ("opendkim -f", 1),
    "opendmarc": ("opendmarc -f", 1),
    "hosts-pin": ("/bin/bash {local}/bin/hosts-pin.sh", 0),
    "sendmail": ("sendmail -bD -q15m", 5),
    "reconfigure": ("/bin/bash {local}/bin/reconfigure.sh", 1),
}
_PROGRAMS_OF_TIER = {
    "imap": ("rsyslog", "log-tailer", "dovecot", "sendmail", "reconfigure"),
    "smtp-in": ("rsyslog", "log-tailer", "opendkim", "opendmarc", "hosts-pin", "sendmail", "reconfigure"),
    "smtp-out": ("rsyslog", "log-tailer", "dovecot", "opendkim", "sendmail", "reconfigure"),
}
# Map declarations as the .mc files of the tiers make them: smtp-in has no virtusertable.
_ACCESS = "access hash -T<TMPF> -o /etc/mail/access"
_MAILERTABLE = "mailertable hash -o /etc/mail/mailertable"
_KEYED = {
    "imap": (_ACCESS, "virtuser hash -o /etc/mail/virtusertable"),
    "smtp-in": (_ACCESS, _MAILERTABLE),
    "smtp-out": (_ACCESS, _MAILERTABLE),
}
_DAEMONS = ("rsyslogd", "dovecot", "opendkim", "opendmarc")
_RESUMED_STATES = {Loop.STOPPED: "stopped", Loop.DEAD: "dead", Loop.HUNG: "regenerating"}


@dataclass(frozen=True)
class Host:
    """What this machine offers the tasks. ``local`` is the folder that they see as /usr/local."""

    isolation: Isolation
    local: Path
    tools: Unpacked | None
    python: str | None

    @property
    def task_local(self) -> str:
        """/usr/local as a task names it."""
        return str(self.local) if self.isolation is Isolation.FOLDER else "/usr/local"

    @property
    def shares(self) -> dict[str, str]:
        """Folder of a task -> folder of this machine that it shows, beside the system's own."""
        shown = {"/usr/local": str(self.local)}
        if self.python is not None:
            shown[PYTHON_HOME] = self.python
        if self.tools is not None:
            shown[DEBIAN_HOME] = str(self.tools.folder)
        if Path("/etc/alternatives").is_dir():
            shown["/etc/alternatives"] = "/etc/alternatives"
        return shown


def prepare_host(isolation: Isolation, local: Path, tools: Unpacked | None) -> Host:
    """Write the programs that all tasks share into ``local``."""
    host = Host(isolation, local, tools, None if _system_python_works() else sys.base_prefix)
    shutil.rmtree(local, ignore_errors=True)
    library = local / "lib" / "cabalmail"
    for folder in (local / "bin", local / "sbin", library):
        folder.mkdir(parents=True)
    for source in [*CONTAINER.glob("*.py"), *CONTAINER.glob("*.sh")]:
        _executable(library / source.name, _with_shebang(source, host))
    links = {
        "bin/aws": "aws.py",
        "bin/generate-config.sh": "generate_config.py",
        "bin/reconfigure.sh": "reconfigure.sh",
        "bin/entrypoint.sh": "entrypoint.sh",
        "bin/hosts-pin.sh": "hosts-pin.sh",
        "bin/supervisord": "supervisor.py",
        "bin/date": "date.sh",
        "bin/dig": "dig.sh",
        "sbin/sendmail": "sendmail.sh",
        **{f"sbin/{name}": "daemon.sh" for name in _DAEMONS},
    }
    for link, target in links.items():
        (local / link).symlink_to(f"../lib/cabalmail/{target}")
    if isolation is Isolation.FOLDER:
        (local / "bin" / "pkill").symlink_to("../lib/cabalmail/pkill.sh")
    _python(host)
    _sendmail_tools(host)
    return host


def _system_python_works() -> bool:
    """Whether the machine has a Python under /usr, which tasks see, that is complete enough."""
    needs = "import configparser, http.client, sys; sys.exit(sys.version_info < (3, 9))"
    test = ["/usr/bin/python3", "-IS", "-c", needs]
    try:
        return subprocess.run(test, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _executable(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def _with_shebang(source: Path, host: Host) -> str:
    text = source.read_text(encoding="utf-8")
    return text.replace("#!/usr/local/", f"#!{host.task_local}/", 1) if text.startswith("#!/usr/local/") else text


def _python(host: Host) -> None:
    """/usr/local/bin/python3: the system's, or the one that runs the sandbox, seen by tasks under /opt/python."""
    link = host.local / "bin" / "python3"
    if host.python is None:
        link.symlink_to("/usr/bin/python3")
        return
    home = host.python if host.isolation is Isolation.FOLDER else PYTHON_HOME
    binary = f"{home}/bin/python{sysconfig.get_python_version()}"
    _executable(link, f'#!/bin/sh\nLD_LIBRARY_PATH={home}/lib exec {binary} "$@"\n')


def _sendmail_tools(host: Host) -> None:
    for name in ("makemap", "mailq", "newaliases"):
        target = host.local / "bin" / name
        if host.tools is None or (name == "mailq" and host.isolation is not Isolation.ROOT):
            # sendmail drops privileges before it shows the queue, and waits a minute where the host name has no domain:
            # it needs a task of its own.
            target.symlink_to("../lib/cabalmail/sendmail_tools.py")
        elif name == "newaliases":
            _executable(target, "#!/bin/sh\nsed 's/:[[:space:]]*/\\t/' /etc/aliases | makemap -N hash /etc/aliases\n")
        else:
            libraries = host.tools.library_path.replace(str(host.tools.folder), DEBIAN_HOME)
            program = f"{DEBIAN_HOME}/{BINARIES}/{name}"
            _executable(target, f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {program} "$@"\n')


class MapMaker:
    """Runs makemap from outside of a task, once for each distinct text."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._made: dict[tuple[str, str], bytes] = {}

    def make(self, root: Path, path: str, text: str) -> None:
        """Write ``<root><path>.db`` from ``text``. What makemap says of odd rows is ignored."""
        key = (Path(path).name, text)
        database = Path(f"{root}{path}.db")
        if key not in self._made:
            argv, environment = self._command(root, path)
            done = subprocess.run(argv, input=text.encode(), capture_output=True, env=environment)
            if not database.exists():
                raise RuntimeError(f"makemap wrote no {database}: {done.stderr.decode(errors='replace').strip()}")
            self._made[key] = database.read_bytes()
        database.write_bytes(self._made[key])
        database.chmod(0o640)

    def _command(self, root: Path, path: str) -> tuple[list[str], dict[str, str]]:
        tools = self._host.tools
        if tools is None:
            program = self._host.local / "bin" / "makemap"
            return [sys.executable, str(program), "hash", f"{root}{path}"], dict(os.environ)
        # -s: the state folder may lie under a world-writable /tmp; -N: alias files count the NUL as a part of the key.
        aliases = ["-N"] if path == "/etc/aliases" else []
        argv = [
            str(tools.folder / BINARIES / "makemap"),
            "-s",
            "-C",
            f"{root}/etc/mail/sendmail.cf",
            *aliases,
            "hash",
            f"{root}{path}",
        ]
        return argv, os.environ | {"LD_LIBRARY_PATH": tools.library_path}


def build(spec: TaskSpec, root: Path, host: Host, map_maker: MapMaker, imap_address: str | None) -> None:
    """Write the whole tree of a task into the new folder ``root``."""
    _skeleton(root, host)
    _write(root, "/etc/hostname", spec.host_name + "\n")
    _write(root, "/etc/hosts", _hosts(spec))
    _write(root, "/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    _write(root, "/etc/mail/sendmail.cf", _sendmail_cf(spec, root, host))
    _write(root, "/etc/aliases", maps.MASTER_ALIASES)
    _write(root, "/etc/supervisord.conf", _supervisord_conf(spec, root, host))
    _write(root, "/run/imap-address", f"{imap_address or ''}\n")
    _write(root, "/run/clock-skew", f"{spec.clock_skew_seconds:.0f}\n")
    _write(root, "/run/full-disk", "".join(f"{folder}\n" for folder in spec.full_disk))
    _write(root, "/var/log/maillog", "")
    os.mkfifo(root / "run" / "idle")
    if spec.tier == "smtp-out":
        _write(root, "/etc/opendkim/keys/cabal", dkim.private_half())
        _write(root, "/etc/mail/access", _SMTP_OUT_ACCESS)
        map_maker.make(root, "/etc/mail/access", _SMTP_OUT_ACCESS)
    _users(spec, root, host)
    for message in spec.mailq:
        _queue_file(root, message)
    if not spec.fresh:
        _declared_maps(spec, root, map_maker)
        _write(root, "/run/sendmail-ready", "")
        if spec.loop is Loop.HUNG:
            _write(root, "/run/aws-hangs-once", "")


def _write(root: Path, path: str, text: str) -> None:
    Path(f"{root}{path}").write_text(text, encoding="utf-8")


def _skeleton(root: Path, host: Host) -> None:
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "var/spool/mqueue").chmod(0o700)
    (root / "root").chmod(0o700)
    for name in _DEVICES:
        (root / "dev" / name).touch()
    for name, target in _DEVICE_LINKS.items():
        (root / "dev" / name).symlink_to(target)
    for name in SYSTEM_FOLDERS:
        own = Path("/", name)
        if own.is_symlink():
            (root / name).symlink_to(os.readlink(own))
        elif own.is_dir():
            (root / name).mkdir()
    if Path("/etc/alternatives").is_dir():
        (root / "etc/alternatives").mkdir()
    if Path("/etc/ld.so.cache").exists():
        shutil.copy("/etc/ld.so.cache", root / "etc/ld.so.cache")
    if host.python is not None:
        Path(f"{root}{PYTHON_HOME}").mkdir(parents=True)
    if host.tools is not None:
        Path(f"{root}{DEBIAN_HOME}").mkdir(parents=True)


def _hosts(spec: TaskSpec) -> str:
    lines = ["127.0.0.1 localhost", f"{spec.ip} {spec.host_name}.ec2.internal {spec.host_name}"]
    if spec.pin is not None:
        lines.append(f"{spec.pin} {IMAP_HOST} # cabal-hosts-pin")
    return "".join(f"{line}\n" for line in lines)


def _sendmail_cf(spec: TaskSpec, root: Path, host: Host) -> str:
    """As little as makemap, mailq and newaliases need, with the options that matter to triage."""
    prefix = str(root) if host.isolation is Isolation.FOLDER else ""
    tables = "".join(f"K{line}\n" for line in _KEYED.get(spec.tier, ())).replace("/etc/", f"{prefix}/etc/")
    return f"""V10/Berkeley
Dw{spec.host_name}
Dj{spec.host_name}.ec2.internal
O LogLevel={spec.log_level}
O QueueDirectory={prefix}/var/spool/mqueue
O AliasFile={prefix}/etc/aliases
O DefaultUser=0:0
O Timeout.queuewarn=4h
FR-o {prefix}/etc/mail/relay-domains
{tables}Mlocal, P=/bin/false, F=lsDFMAw5:/|@q, A=false
Mprog, P=/bin/sh, F=lsD, A=sh -c $u
Sparse
"""


def _supervisord_conf(spec: TaskSpec, root: Path, host: Host) -> str:
    prefix = str(root) if host.isolation is Isolation.FOLDER else ""
    lines = ["[supervisord]", "nodaemon=true"]
    age = (datetime.now(UTC) - spec.started_at).total_seconds()
    if not spec.fresh:
        lines.append(f"resume={age:.0f}")
    for name in _PROGRAMS_OF_TIER.get(spec.tier, ()):
        command, startsecs = _PROGRAMS[name]
        command = command.format(root=prefix, local=host.task_local)
        lines += ["", f"[program:{name}]", f"command={command}", f"startsecs={startsecs}", "autorestart=true"]
        if name == "sendmail" and not spec.sendmail_running:
            lines.append("autostart=false")
        if name == "reconfigure" and not spec.fresh and spec.loop in _RESUMED_STATES:
            lines += [f"state={_RESUMED_STATES[spec.loop]}", f"died={max(0.0, spec.maps.db_age_seconds - 60):.0f}"]
    return "".join(f"{line}\n" for line in lines)


# -- users -------------------------------------------------------------------------------------------------------


def users_of(spec: TaskSpec) -> list[User]:
    """The OS users of the task. A task that starts now has every confirmed user, as sync-users.sh makes them."""
    if spec.tier not in ("imap", "smtp-out"):
        return []
    confirmed = [user for user in spec.users if user.cognito == "CONFIRMED"]
    return confirmed if spec.fresh else [user for user in spec.users if user.present]


def _users(spec: TaskSpec, root: Path, host: Host) -> None:
    own_ids = host.isolation is Isolation.ROOT
    passwd = ["root:x:0:0:root:/root:/bin/bash", "mail:x:8:12:mail:/var/spool/mail:/sbin/nologin"]
    group = ["root:x:0:", "mail:x:12:"]
    for user in users_of(spec):
        uid = user.uid if own_ids else 0
        passwd.append(f"{user.name}:x:{uid}:{uid}::/home/{user.name}:/bin/bash")
        group.append(f"{user.name}:x:{uid}:")
        if spec.tier == "imap":
            _home(root, user, uid, own_ids)
    _write(root, "/etc/passwd", "".join(f"{line}\n" for line in passwd))
    _write(root, "/etc/group", "".join(f"{line}\n" for line in group))


def _home(root: Path, user: User, uid: int, own_ids: bool) -> None:
    home = root / "home" / user.name
    maildir = home / "Maildir"
    made = [home]
    home.mkdir(mode=0o700)
    if user.maildir != "missing":
        made += [maildir, *(maildir / name for name in ("cur", "new", "tmp"))]
        for folder in made[1:]:
            folder.mkdir(mode=0o700)
    if own_ids:
        for folder in made:
            os.chown(folder, uid, uid)
    if user.maildir == "unwritable":
        if own_ids:
            os.chown(maildir, _FOREIGN_UID, _FOREIGN_UID)
        maildir.chmod(0o500)
    if user.stray_bytes:
        stray = root / "var/spool/mail" / user.name
        with stray.open("wb") as file:
            file.truncate(user.stray_bytes)
        if own_ids:
            os.chown(stray, uid, 12)


# -- queue and maps ----------------------------------------------------------------------------------------------


def _queue_file(root: Path, message: QueuedMessage) -> None:
    """A queued message as sendmail 8.17 keeps it: control file (format 8) and data file."""
    queued = int(time.time() - message.age_seconds)
    recipients = "".join(f"rRFC822; {address}\nRPFD:{address}\n" for address in message.recipients)
    control = (
        f"V8\nT{queued}\nK{queued}\nN2\nP120000\nI0/0/0\nM{message.reason}\nFs\n$_localhost [127.0.0.1]\n"
        f"S{message.sender}\n{recipients}H??From: {message.sender}\n.\n"
    )
    queue = root / "var/spool/mqueue"
    for name, content in ((f"qf{message.queue_id}", control.encode()), (f"df{message.queue_id}", bytes(message.size))):
        path = queue / name
        path.write_bytes(content)
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)


def rows_of(
    addresses: Iterable[Address], lacks: tuple[str, ...] = (), extra: tuple[Address, ...] = ()
) -> list[maps.Row]:
    """Rows of the table but for ``lacks``, and ``extra`` ones."""
    kept = [address for address in addresses if address.address not in lacks]
    return [maps.Row(row.username, row.subdomain or "", row.tld, row.user) for row in [*kept, *extra]]


def _declared_maps(spec: TaskSpec, root: Path, map_maker: MapMaker) -> None:
    state = spec.maps
    texts = maps.render(spec.tier, rows_of(spec.addresses, state.text_lacks, state.text_extra))
    made = maps.render(spec.tier, rows_of(spec.addresses, state.db_lacks, state.db_extra))
    now = time.time() + spec.clock_skew_seconds
    for path, content in texts.items():
        _write(root, path, content)
        _age(root, path, now - state.text_age_seconds)
    databases = [*maps.DATABASES.get(spec.tier, ()), *(("/etc/aliases",) if spec.tier == "imap" else ())]
    refused = maps.first_refusal(spec.tier, texts) if spec.loop is Loop.FAILING else None
    # A pass that makemap ends has still built the maps up to the one that it refused; those after it stay old.
    built = databases[: databases.index(refused[0]) + 1] if refused else []
    for path in databases:
        lines, age = (texts, state.text_age_seconds) if path in built else (made, state.db_age_seconds)
        text = lines[path]
        map_maker.make(root, path, text.replace(":", "\t") if path == "/etc/aliases" else text)
        _age(root, f"{path}.db", now - age)


def _age(root: Path, path: str, moment: float) -> None:
    os.utime(f"{root}{path}", (moment, moment))
