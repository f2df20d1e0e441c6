# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run's private directory and facts, made from what a table and the maps of each task hold."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.cabalmail import containers
from ansible.module_utils.cabalmail.address_map import address_map
from ansible.module_utils.cabalmail.freshness import Limits
from ansible.module_utils.cabalmail.privacy import Masker
from ansible.module_utils.cabalmail.probe import parse

NOW = datetime(2026, 11, 24, 22, 0, tzinfo=UTC)
OLD = timedelta(days=30)


def stamp(ago: timedelta) -> str:
    return (NOW - ago).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class World:
    """Rows, tasks and failures; ``section`` is what the filter makes of them."""

    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] | None = None
    table: bool = True
    table_status: str = "complete"
    logs: dict[str, Any] = field(default_factory=dict)
    masker: Masker = field(default_factory=lambda: Masker(b"k" * 32))

    def row(self, address: str, user: str = "alice", ago: timedelta = OLD, **more: Any) -> None:
        """A row of cabal-addresses; the domain's first label is the subdomain, where there are three."""
        username, _, domain = address.partition("@")
        subdomain, _, tld = domain.partition(".") if domain.count(".") > 1 else (None, "", domain)
        self.rows.append(
            {
                "address": address,
                "user": user,
                "username": username,
                "subdomain": subdomain,
                "tld": tld,
                "suspended": False,
                "requested": stamp(ago),
                **more,
            }
        )

    def failed(self, address: str, tier: str = "imap", code: str = "5.3.0", **more: Any) -> None:
        """A failed recipient, as imap refused it for a mail from smtp-in unless said otherwise."""
        self.failures = self.failures or []
        self.failures.append(
            {
                "address": address,
                "tier": tier,
                "code": code,
                "seen": "reject",
                "relay": "ip-10-0-1-23 [10.0.1.23]",
                "time": stamp(timedelta(minutes=5)),
                **more,
            }
        )

    def task(
        self,
        tier: str,
        maps: dict[str, dict[str, str]] | None = None,
        age: float = 240,
        text_age: float | None = None,
        text: dict[str, dict[str, str]] | None = None,
        users: tuple[str, ...] | None = ("alice", "bob"),
        skew: int = 0,
    ) -> str:
        """A task whose maps hold that; by default they hold what the table says. None of it when maps is {}."""
        name = f"{len(self.tasks):032x}"
        maps = self.right_maps(tier) if maps is None else maps
        lines = self._probe(tier, maps, text or maps, age, age if text_age is None else text_age, users, skew)
        (self.folder / f"{name}.out").write_bytes("\n".join(lines).encode() + b"\n")
        result = {"task": name, "outcome": "completed", "ip": f"10.0.1.{23 + len(self.tasks)}"}
        probe = parse((self.folder / f"{name}.out").read_bytes())
        self.tasks.append(containers.container_facts(result, tier, probe, NOW.timestamp(), self.masker))
        return name

    def unreachable(self, tier: str) -> str:
        name = f"{len(self.tasks):032x}"
        result = {"task": name, "outcome": "unreachable", "reason": "The agent is not connected."}
        self.tasks.append(containers.container_facts(result, tier, None, None, self.masker))
        return name

    def right_maps(self, tier: str) -> dict[str, dict[str, str]]:
        """What generate-config.sh writes for the rows."""
        word, rest = ("OK", "TEMPFAIL") if tier == "imap" else ("RELAY", "REJECT")
        access: dict[str, str] = {}
        users: dict[str, str] = {}
        mailers: dict[str, str] = {}
        for row in self.rows:
            domain = f"{row['subdomain']}.{row['tld']}" if row["subdomain"] else row["tld"]
            access[f"To:{row['username']}@{domain}"] = word
            access[f"To:{domain}"] = access[f"To:{row['tld']}"] = rest
            names = row["user"].split("/")
            users[f"{row['username']}@{domain}"] = "_".join(sorted(names)) if row["subdomain"] else row["user"]
            mailers[row["tld"]] = mailers["." + row["tld"]] = "smtp:[imap.cabal.internal]"
        return {
            "imap": {"/etc/mail/access": access, "/etc/mail/virtusertable": users},
            "smtp-in": {"/etc/mail/access": access, "/etc/mail/mailertable": mailers},
            "smtp-out": {"/etc/mail/mailertable": mailers},
        }[tier]

    def _probe(
        self,
        tier: str,
        maps: dict[str, dict[str, str]],
        text: dict[str, dict[str, str]],
        age: float,
        text_age: float,
        users: tuple[str, ...] | None,
        skew: int,
    ) -> list[str]:
        clock = int(NOW.timestamp()) + skew
        lines = ["cabalmail-probe 1", f"clock {clock}"]
        for path in maps:
            lines += [f"file {int(clock - text_age)} 1 {path}", f"file {int(clock - age)} 1 {path}.db"]
        if users is not None:
            lines += [f"user {2001 + number} 2001 {name} /home/{name}" for number, name in enumerate(users)]
            lines += ["users end", "homes end", "stray end"]
        lines.append(f"clock {clock}")
        for path, pairs in maps.items():
            folded = {key.lower(): value for key, value in pairs.items()}
            lines += self._packed("db", path + ".db", folded)
            lines += self._packed("text", path, text.get(path, pairs))
        return [*lines, f"clock {clock}", "cabalmail-probe end"]

    @staticmethod
    def _packed(kind: str, path: str, pairs: dict[str, str]) -> list[str]:
        body = "".join(f"{key}\t{value}\n" for key, value in pairs.items()) + "\n\t#status 0\n"
        return [f"begin {kind} none {path}", base64.b64encode(body.encode()).decode(), f"end {kind}"]

    def log(self, tier: str, done: timedelta | None) -> None:
        """The log of a tier whose newest task completed its last pass so long ago (None: in no time watched)."""
        loop = {"starts": 2, "dones": 2, "last_done": stamp(done)} if done is not None else {}
        self.logs[tier] = {
            "coverage": {"status": "complete", "log_group_exists": True, "last_event": stamp(timedelta(minutes=1))},
            "tasks": {self.tasks[-1]["task"]: {"loop": loop}},
        }

    def triage(self) -> dict[str, Any]:
        return {
            "alert": {"window": {"start": stamp(timedelta(minutes=48)), "end": stamp(timedelta())}},
            "tiers": {"by_tier": self.logs},
            "environment": {"addresses": {"status": self.table_status, "reasons": []}},
            "containers": {"status": "complete", "reasons": [], "tasks": self.tasks},
        }

    def section(self) -> dict[str, Any]:
        """The section address_map."""
        self._write("addresses.jsonl", self.rows if self.table else None)
        self._write("failed_recipients.jsonl", self.failures)
        section = address_map(self.triage(), self.folder, self.masker, Limits())
        json.dumps(section)
        return section

    def state(self) -> str:
        """The state of the only failed recipient."""
        (example,) = self.section()["recipients"]["examples"]
        return str(example["state"])

    def _write(self, name: str, rows: list[dict[str, Any]] | None) -> None:
        path = self.folder / name
        if rows is None:
            path.unlink(missing_ok=True)
            return
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two old addresses and nothing else."""
    made = World(tmp_path)
    made.row("ann@s.harborlight.example")
    made.row("team@s.harborlight.example", "bob/alice")
    return made
