# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container to look into: its own root file system and process table, with the machine's programs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
START = "/start.sh"
PROBE = REPO / "roles/container_evidence/files/probe.sh"

# Answers `makemap -u hash FILE` for a .db that is its own dump: the probe is what is tested here, not Berkeley DB.
MAKEMAP = '#!/bin/sh\n[ "$1 $2" = "-u hash" ] || exit 64\nexec cat "$3"\n'
MAILQ = """#!/bin/sh
cat <<'END'
\t\t/var/spool/mqueue (2 requests)
-----Q-ID----- --Size-- -----Q-Time----- ------------Sender/Recipient-----------
5BOLfA1B012345*    1024 Tue Nov 24 21:00 <jane@quietmail.example>
                 (Deferred: Connection refused by imap.cabal.internal.)
\t\t\t\t\t <bob@s.harborlight.example>
5BOLfA1B012346     2048 Tue Nov 24 20:00 <jane@quietmail.example>
                 (host map: lookup (x.example): deferred, dsn=5.1.1, stat=Deferred)
\t\t\t\t\t <ann@x.example>
\t\tTotal requests: 2
END
"""
LOOP = """#!/bin/bash
while :; do MSG=$(aws sqs receive-message --queue-url secret --wait-time-seconds 20 || true); done
"""
MOUNTS = """
set -e
root=$1; shift
for name in usr bin sbin lib lib32 lib64; do
  [ -e "/$name" ] || continue
  if [ -L "/$name" ]; then ln -sfn "$(readlink "/$name")" "$root/$name"
  else mkdir -p "$root/$name"; mount --rbind "/$name" "$root/$name"; fi
done
mkdir -p "$root/proc" "$root/dev"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
exec chroot "$root" "$@"
"""


@dataclass
class Container:
    """A root file system below ``root``; ``run`` starts programs in it and the probe after them."""

    root: Path
    programs: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def write(self, path: str, text: str | bytes, age: float = 0, mode: int = 0o644) -> Path:
        """Put a file into the container, so many seconds old."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        file.chmod(mode)
        moment = time.time() - age
        os.utime(file, (moment, moment))
        return file

    def tool(self, name: str, text: str) -> None:
        """A program in /tools, which comes first in PATH."""
        self.write(f"/tools/{name}", text, mode=0o755)

    def start(self, command: str) -> None:
        """A shell line to run in the container before the probe (in the background where it ends in &)."""
        self.programs.append(command)

    def run(self, shell: str = "sh", script: str | None = None, seconds: float = 0.3) -> bytes:
        """What the probe (or another script) prints in the container, under that shell."""
        self.write("/probe.sh", script if script is not None else PROBE.read_text())
        lines = [*self.programs, f"sleep {seconds}" if self.programs else ":", f"exec 3>&-; {shell} /probe.sh"]
        self.write(START, "\n".join(lines) + "\n")
        environment = {"PATH": "/tools:/usr/sbin:/usr/bin:/sbin:/bin", **self.environment}
        done = subprocess.run(
            [
                "unshare",
                *ROOTLESS,
                "-mpf",
                "--kill-child",
                "sh",
                "-c",
                MOUNTS,
                "mounts",
                str(self.root),
                "/bin/bash",
                START,
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return done.stdout

    def listing(self) -> dict[str, tuple[int, int, str]]:
        """Mode, mtime and digest of everything in the container's own tree."""
        found = {}
        for folder in ("etc", "home", "var", "run", "tmp"):
            for path in sorted((self.root / folder).rglob("*")):
                state = path.lstat()
                content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
                found[str(path)] = (state.st_mode, state.st_mtime_ns, content)
        return found


ROOTLESS = [] if os.geteuid() == 0 else ["-r"]


def _namespaces() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", *ROOTLESS, "-mpf", "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def container(tmp_path: Path) -> Container:
    """An smtp-in container that is in order, as far as files go."""
    if not _namespaces():
        pytest.skip("this machine allows no mount and process namespaces")
    made = Container(tmp_path / "root")
    made.write(
        "/etc/mail/sendmail.cf",
        "# level\nO LogLevel=2\nO AliasFile=/etc/aliases\nKaccess hash -T<TMPF> -o /etc/mail/access\n"
        "Kmailertable hash -o /etc/mail/mailertable\n",
    )
    text = "To:Ann@s.harborlight.example\tRELAY\nTo:s.harborlight.example\tREJECT\n"
    made.write("/etc/mail/access", text, age=240)
    made.write("/etc/mail/access.db", text.lower().replace("relay", "RELAY").replace("reject", "REJECT"), age=240)
    made.write("/etc/mail/mailertable", "harborlight.example\tsmtp:[imap.cabal.internal]\n", age=240)
    made.write("/etc/mail/mailertable.db", "harborlight.example\tsmtp:[imap.cabal.internal]\n", age=18000)
    made.write("/etc/hosts", "127.0.0.1 localhost\n10.0.2.45 imap.cabal.internal # cabal-hosts-pin\n")
    made.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nalice:x:2001:2001::/home/alice:/bin/sh\n")
    for folder in ("home", "tmp", "var/spool/mail", "var/spool/mqueue", "run"):
        (made.root / folder).mkdir(parents=True, exist_ok=True)
    made.tool("makemap", MAKEMAP)
    made.tool("mailq", MAILQ)
    # The loop as it stands in the images: a bash script that waits for an aws call.
    made.write("/usr-local/reconfigure.sh", LOOP, mode=0o755)
    made.tool("aws", "#!/bin/bash\nsleep 600\n")
    return made
