# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs from Debian's packages, unpacked once and never installed: sendmail's own tools, and proot.

Libraries that the machine lacks are unpacked beside it. Where the package can't be had (no apt, no network, another
distribution) the tasks get along without; the reason is told.
"""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SENDMAIL = "sendmail-bin"
PROOT = "proot"
TIMEOUT_SECONDS = 20
# How long a failed download is not tried again, so that a machine without network starts fast.
RETRY_AFTER_SECONDS = 3600
BINARIES = "usr/libexec/sendmail"
_PROOF = {SENDMAIL: f"{BINARIES}/makemap", PROOT: "usr/bin/proot"}
# Where a run with the default state folder keeps them, and every other run looks first.
PROJECT_CACHE = Path(__file__).parents[2] / ".cache" / "sandbox"
APT = (
    "-qq",
    "-o",
    "Acquire::http::Timeout=5",
    "-o",
    "Acquire::https::Timeout=5",
    "-o",
    "Acquire::Retries=0",
    "-o",
    "APT::Sandbox::User=",
)


@dataclass(frozen=True)
class Unpacked:
    """``folder`` is the root of the unpacked tree; ``library_path`` belongs before the machine's own (may be empty)."""

    folder: Path
    library_path: str


class UnavailableError(Exception):
    """One sentence why a package is not there."""


def ensure(package: str, cache: Path) -> Unpacked:
    """The package's files from the project's cache if they are there, else from ``cache``, fetched on first use.

    Fetching takes some seconds. :raises UnavailableError: when it can't be had; remembered for an hour.
    """
    name = "debian" if package == SENDMAIL else package
    folder = next((path for path in (PROJECT_CACHE / name, cache / name) if (path / _PROOF[package]).exists()), None)
    if folder is None:
        folder = cache / name
        failed = folder.with_suffix(".unavailable")
        if failed.exists() and time.time() - failed.stat().st_mtime < RETRY_AFTER_SECONDS:
            raise UnavailableError(failed.read_text(encoding="utf-8"))
        try:
            _fetch(package, folder)
        except UnavailableError as error:
            failed.parent.mkdir(parents=True, exist_ok=True)
            failed.write_text(str(error), encoding="utf-8")
            raise
        failed.unlink(missing_ok=True)
    libraries = sorted({str(path.parent) for path in folder.glob("**/*.so.*")})
    return Unpacked(folder, ":".join(libraries))


def _fetch(package: str, folder: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UnavailableError("this system has no apt-get and dpkg-deb")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".debian-") as work:
        archives, tree = Path(work, "archives"), Path(work, "tree")
        archives.mkdir()
        tree.mkdir()
        wanted = [package]
        while wanted:
            _download(wanted, archives)
            needed = _libraries_needed_by(archives)
            _unpack(archives, tree)
            wanted = _not_installed(needed)
        if package == SENDMAIL:
            _drop_set_id(tree)
        _publish(tree, folder)


def _publish(tree: Path, folder: Path) -> None:
    """Put the finished tree in its place; another process that was as late to start and quicker is as good."""
    try:
        tree.rename(folder)
    except OSError as error:
        # rename(2): one or the other, by file system, where the target is a folder that holds something.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _run(argv: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{argv[0]} did not end within {TIMEOUT_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no output"])[-1]
        raise UnavailableError(f"{argv[0]} failed: {last}") from None
    return done.stdout


def _download(packages: list[str], archives: Path) -> None:
    try:
        _run(["apt-get", *APT, "download", *packages], archives)
    except UnavailableError:
        # Images ship without package lists: make private ones, since the machine's own are not ours to change.
        lists = archives / "lists"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        private = ["-o", f"Dir::State::lists={lists}", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]
        _run(["apt-get", *APT, *private, "update"], archives)
        _run(["apt-get", *APT, *private, "download", *packages], archives)


def _unpack(archives: Path, tree: Path) -> None:
    for archive in archives.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(archive), str(tree)])
        archive.unlink()


def _drop_set_id(tree: Path) -> None:
    """The loader ignores LD_LIBRARY_PATH for set-group-id programs; these only ever run as their owner."""
    for path in (tree / BINARIES).iterdir():
        if not path.is_symlink():
            path.chmod(0o755)


def _libraries_needed_by(archives: Path) -> list[str]:
    """Library packages in the dependencies of the archives; of alternatives the first."""
    fields = [_run(["dpkg-deb", "-f", str(archive), "Pre-Depends", "Depends"]) for archive in archives.glob("*.deb")]
    names = [re.split(r"[\s|(:]", item.strip())[0] for field in fields for item in re.split(r"[,\n]|Depends:", field)]
    return sorted({name for name in names if name.startswith("lib")})


def _not_installed(packages: list[str]) -> list[str]:
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"]
    installed = {line.split()[0] for line in _run(query).splitlines() if line.endswith(" installed")}
    return [name for name in packages if name not in installed]


if __name__ == "__main__":
    try:
        ensure(SENDMAIL, PROJECT_CACHE)
    except UnavailableError as unavailable:
        print(f"makemap and mailq will be stand-ins: {unavailable}.", file=sys.stderr)
