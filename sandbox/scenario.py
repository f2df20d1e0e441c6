# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a scenario folder: check it against the schema, fill in defaults, turn relative times into real ones."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from .errors import SandboxError
from .model import (
    REGION,
    TIERS,
    Address,
    Alert,
    DeploymentSpec,
    DnsRecord,
    Eip,
    Exec,
    Expect,
    Fault,
    Loop,
    MapState,
    Network,
    QueuedMessage,
    Scenario,
    ServiceSpec,
    TaskEntry,
    TaskSpec,
    TierSpec,
    User,
)

SCENARIOS = Path(__file__).parent / "scenarios"
SCHEMA = Path(__file__).parent / "scenario.schema.json"
Raw = dict[str, Any]

_FIRST_IP = {"imap": (2, 45), "smtp-in": (1, 23), "smtp-out": (1, 57), "sinkhole": (3, 80)}
_DEFAULT_EIP = "198.51.100.125"
_EMPTY_DISCOVERY_MINUTES = 90


def names() -> list[str]:
    """Names of the scenarios that come with the project."""
    return sorted(path.parent.name for path in SCENARIOS.glob("*/scenario.yml"))


def find(name_or_folder: str) -> Path:
    """Return the folder of a scenario given by name or by path.

    :raises SandboxError: when there is none.
    """
    named = SCENARIOS / name_or_folder
    for folder in (named, Path(name_or_folder)):
        if (folder / "scenario.yml").is_file():
            return folder.resolve()
    known = ", ".join(names())
    raise SandboxError(f"No scenario {name_or_folder!r}: give a folder with a scenario.yml, or one of {known}.")


def load(folder: Path, *, now: datetime, endpoint: str) -> Scenario:
    """Read the scenario in ``folder``, its times counted from ``now`` (aware).

    :raises SandboxError: one sentence that names the file and what is wrong in it.
    """
    raw = _read(folder / "scenario.yml")
    _validate(raw, folder)
    return _Builder(raw, folder, now, endpoint).build()


def _read(path: Path) -> Raw:
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SandboxError(f"{path} can't be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SandboxError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(raw, dict):
        raise SandboxError(f"{path} must hold a mapping.")
    return raw


@functools.cache
def _validator() -> Any:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))


def _validate(raw: Raw, folder: Path) -> None:
    error = jsonschema.exceptions.best_match(_validator().iter_errors(raw))
    if error is not None:
        place = "/".join(str(part) for part in error.absolute_path) or "the top level"
        raise SandboxError(f"{folder / 'scenario.yml'} breaks the schema at {place}: {error.message}.")


@dataclass
class _Builder:
    """Turns a checked document into a Scenario."""

    raw: Raw
    folder: Path
    now: datetime
    endpoint: str

    def build(self) -> Scenario:
        raw = self.raw
        addresses = self._addresses()
        users = self._users()
        tiers = {tier: self._tier(tier, raw["tiers"][tier], addresses, users) for tier in raw["tiers"]}
        parameters = raw.get("parameters", {})
        heartbeat = parameters.get("heartbeat", {})
        return Scenario(
            name=self.folder.name,
            folder=self.folder,
            title=raw["title"],
            description=raw.get("description", ""),
            declared_now=_instant(raw["now"]),
            now=self.now,
            environment=raw.get("environment", "sandbox"),
            control_domain=self.control_domain,
            alert=self._alert(),
            tiers=tiers,
            addresses=addresses,
            users=users,
            discovery=self._discovery(tiers),
            maintenance_imap=self._maintenance(parameters.get("maintenance_imap")),
            heartbeat_modified=None if heartbeat is None else self._ago(days=heartbeat.get("modified_days_ago", 40)),
            throttled_reads=self.raw.get("throttled_reads", 0),
            network=self._network(),
            dns=self._dns(),
            dmarc_reports=tuple(self._dmarc(n, report) for n, report in enumerate(raw.get("dmarc_reports", []))),
            faults=tuple(_fault(fault) for fault in raw.get("faults", [])),
            empty_pages=raw.get("logs", {}).get("empty_pages", 0),
            exec_encrypted=raw.get("cluster", {}).get("exec_encrypted", False),
            agent=raw.get("agent", {}),
            expect=_expect(raw.get("expect")),
        )

    # -- times and names -----------------------------------------------------------------------------------------

    def _ago(self, **span: float) -> datetime:
        return self.now - timedelta(**span)

    @property
    def control_domain(self) -> str:
        return str(self.raw.get("control_domain", "cabal-control.example"))

    def _error(self, sentence: str) -> SandboxError:
        return SandboxError(f"{self.folder / 'scenario.yml'}: {sentence}")

    # -- parts ---------------------------------------------------------------------------------------------------

    def _alert(self) -> Alert | None:
        alert = self.raw.get("alert")
        if alert is None:
            return None
        return Alert(alert["name"], self._ago(minutes=alert.get("fired_minutes_ago", 5)), alert.get("state", "firing"))

    def _addresses(self) -> tuple[Address, ...]:
        rows: list[Raw] = list(self.raw.get("addresses", []))
        if "addresses_file" in self.raw:
            rows += self._address_lines(self.folder / self.raw["addresses_file"])
        return tuple(self._address(row) for row in rows)

    def _address_lines(self, path: Path) -> list[Raw]:
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise SandboxError(f"{path} can't be read: {error.strerror}.") from None
        rows: list[Raw] = []
        for number, line in enumerate(lines, 1):
            if not line or line.startswith("#"):
                continue
            fields = [*line.split("\t"), "", ""]
            try:
                days = float(fields[2] or 30)
            except ValueError:
                raise SandboxError(f"{path}:{number}: the third field must be a number of days.") from None
            row = {"address": fields[0], "user": fields[1], "requested_days_ago": days}
            rows.append(row | {"suspended": fields[3] == "suspended"})
        return rows

    def _address(self, row: Raw) -> Address:
        local, _at, domain = row["address"].partition("@")
        tld = row.get("tld") or ".".join(domain.split(".")[-2:])
        if domain != tld and not domain.endswith("." + tld):
            raise self._error(f"address {row['address']} is not under its tld {tld}.")
        return Address(
            address=row["address"],
            user=row.get("user", ""),
            username=row.get("username", local),
            tld=tld,
            subdomain=domain.removesuffix("." + tld) if domain != tld else None,
            requested=self._ago(days=row.get("requested_days_ago", 30)),
            suspended=row.get("suspended", False),
        )

    def _users(self) -> tuple[User, ...]:
        return tuple(
            User(
                name=user["name"],
                uid=user.get("uid", 2001 + n),
                maildir=user.get("maildir", "ok"),
                present=user.get("present", True) and user.get("cognito") != "absent",
                cognito=user.get("cognito", "CONFIRMED"),
                stray_bytes=user.get("stray_bytes", 0),
            )
            for n, user in enumerate(self.raw.get("users", []))
        )

    def _tier(self, name: str, raw: Raw, addresses: tuple[Address, ...], users: tuple[User, ...]) -> TierSpec:
        declared = raw.get("tasks", [{}])
        tasks = tuple(self._task(name, n, raw, task, addresses, users) for n, task in enumerate(declared))
        queue = self.raw.get("queues", {}).get(name, {})
        return TierSpec(
            name=name,
            log_level=raw["log_level"],
            log_group_present=raw.get("log_group", "present") == "present",
            loop_history=raw.get("loop_history", True),
            ingestion_lag_seconds=raw.get("ingestion_lag_seconds", 2),
            silent_minutes=raw.get("silent_minutes", 0),
            service=_service(name, raw.get("service", {}), len(tasks)),
            tasks=tasks,
            queue_visible=queue.get("visible", 0),
            queue_not_visible=queue.get("not_visible", 0),
            queue_oldest_seconds=queue["oldest_minutes"] * 60 if "oldest_minutes" in queue else None,
            queue_subscribed=queue.get("subscribed", True),
        )

    def _task(
        self, tier: str, index: int, raw: Raw, task: Raw, addresses: tuple[Address, ...], users: tuple[User, ...]
    ) -> TaskEntry:
        task_id = hashlib.md5(f"{self.folder.name}/{tier}/{index}".encode(), usedforsecurity=False).hexdigest()
        pin, pin_empty = self._pin(tier, task)
        queue_url = f"{self.endpoint}/123456789012/cabal-reconfig-{tier}" if tier in TIERS else None
        spec = TaskSpec(
            task_id=task_id,
            tier=tier,
            index=index,
            ip=task.get("ip", _default_ip(tier, index)),
            ipv6=task.get("ipv6"),
            zone=task.get("zone", f"us-east-1{'abc'[index % 3]}"),
            started_at=self._ago(hours=task.get("started_hours_ago", 26)),
            log_level=raw["log_level"],
            loop=Loop(task.get("loop", "running")),
            maps=self._maps(task),
            exec_state=Exec(task.get("exec", "ok")),
            sendmail_running=task.get("sendmail", "running") == "running",
            pin=pin,
            control_domain=self.control_domain,
            queue_url=queue_url,
            addresses=addresses,
            users=users,
            mailq=tuple(_queued(message) for message in raw.get("mailq", [])),
            loop_error=task.get("loop_error"),
            loop_exit_status=task.get("loop_exit_status", 65),
            hears_queue=raw.get("hears_queue", True),
            pin_empty_seconds=pin_empty,
            clock_skew_seconds=task.get("clock_skew_minutes", 0) * 60,
            full_disk=tuple(task.get("full_disk", [])),
            environment=self._environment(tier, queue_url),
        )
        return TaskEntry(spec, self._log(tier, index, task))

    def _pin(self, tier: str, task: Raw) -> tuple[str | None, float]:
        if tier != "smtp-in":
            return None, 0
        first = (self.raw["tiers"]["imap"].get("tasks") or [{}])[0].get("ip", _default_ip("imap", 0))
        empty = self.raw.get("discovery", {}).get("imap") == []
        return task.get("pin", first), task.get("pin_empty_minutes", _EMPTY_DISCOVERY_MINUTES if empty else 0) * 60

    def _environment(self, tier: str, queue_url: str | None) -> dict[str, str]:
        """The container's variables, as terraform/infra/modules/ecs/task-definitions.tf lists them."""
        values = {
            "TIER": tier,
            "CERT_DOMAIN": self.control_domain,
            "AWS_REGION": REGION,
            "COGNITO_CLIENT_ID": "sandboxclient",
            "COGNITO_POOL_ID": f"{REGION}_sandbox",
            "NETWORK_CIDR": "10.0.0.0/16",
        }
        if queue_url:
            values["SQS_QUEUE_URL"] = queue_url
        if tier != "imap":
            values["IMAP_INTERNAL_HOST"] = "imap.cabal.internal"
        for name in secrets_of(tier):
            values[name] = f"{self.endpoint}/_sandbox/ping" if name == "HEALTHCHECK_PING_URL" else f"secret-{name}"
        if self.raw.get("parameters", {}).get("heartbeat", {}) is None:
            values.pop("HEALTHCHECK_PING_URL", None)
        return values

    def _maps(self, task: Raw) -> MapState:
        maps = task.get("maps", {})
        age = maps.get("age_minutes", 4)
        both_lack, both_extra = maps.get("lacks", []), maps.get("extra", [])
        return MapState(
            text_age_seconds=maps.get("text_age_minutes", age) * 60,
            db_age_seconds=maps.get("db_age_minutes", age) * 60,
            text_lacks=_plain([*both_lack, *maps.get("text_lacks", [])]),
            db_lacks=_plain([*both_lack, *maps.get("db_lacks", [])]),
            text_extra=tuple(self._extra(item) for item in [*both_extra, *maps.get("text_extra", [])]),
            db_extra=tuple(self._extra(item) for item in [*both_extra, *maps.get("db_extra", [])]),
        )

    def _extra(self, item: str | Raw) -> Address:
        row = {"address": item, "user": item.partition("@")[0]} if isinstance(item, str) else item
        return self._address(row)

    def _log(self, tier: str, index: int, task: Raw) -> Path | None:
        path: Path = self.folder / task.get("log", f"{tier}.maillog" if index == 0 else f"{tier}.{index}.maillog")
        if path.is_file():
            return path
        if "log" in task:
            raise self._error(f"the file {task['log']} of {tier}'s task {index} is missing.")
        return None

    def _discovery(self, tiers: dict[str, TierSpec]) -> dict[str, tuple[str, ...]]:
        given = self.raw.get("discovery", {})
        running = {name: [entry.spec.ip for entry in tiers[name].tasks] for name in ("imap", "smtp-out")}
        return {name: tuple(given.get(name, running[name])) for name in running}

    def _maintenance(self, flag: Raw | None) -> str | None:
        if flag is None:
            return None
        if not flag["active"]:
            return '{"active":false}'
        until = int(self.now.timestamp() + flag.get("until_minutes", 15) * 60)
        message = flag.get("message", "Mail is briefly unavailable.")
        value = {"active": True, "until": until, "retry_after": 30, "message": message}
        return json.dumps(value, separators=(",", ":"))

    def _network(self) -> Network:
        raw = self.raw.get("network", {})
        addresses = tuple(
            Eip(item["ip"], item.get("zone", f"us-east-1{'abc'[n % 3]}"), item.get("attached", True))
            for n, item in enumerate(raw.get("addresses", [{"ip": _DEFAULT_EIP}]))
        )
        return Network(addresses, raw.get("nat", "gateway"), raw.get("nat_state", "running"))

    def _dns(self) -> tuple[DnsRecord, ...]:
        raw = self.raw.get("dns", "standard")
        records = [] if raw == "standard" else raw.get("records", [])
        return tuple(
            DnsRecord(
                record["name"].rstrip(".").lower() + ".",
                record["type"],
                None if record.get("value") is None else tuple(record["value"]),
                record.get("fault"),
            )
            for record in records
        )

    def _dmarc(self, number: int, report: Raw) -> dict[str, str]:
        end = int(self._ago(days=report.get("ended_days_ago", 1)).timestamp())
        org = report.get("org_name", "google.com")
        report_id = f"{end}{number:06d}"
        return {
            "pk": f"{report['header_from']}#{end}",
            "sk": f"{report['source_ip']}#{report_id}",
            "org_name": org,
            "report_id": report_id,
            "date_begin": str(end - 86_400),
            "date_end": str(end),
            "source_ip": report["source_ip"],
            "count": str(report.get("count", 1)),
            "disposition": report.get("disposition", "none"),
            "dkim_result": report.get("dkim_result", "pass"),
            "spf_result": report.get("spf_result", "pass"),
            "header_from": report["header_from"],
            "xml_key": f"dmarc/{end}/{org}-{report_id}.xml",
        }


def secrets_of(tier: str) -> dict[str, str]:
    """Variables that a tier's task definition takes from SSM, with the parameter of each."""
    secrets = {
        "TLS_CA_BUNDLE": "/cabal/control_domain_chain_cert",
        "TLS_CERT": "/cabal/control_domain_ssl_cert",
        "TLS_KEY": "/cabal/control_domain_ssl_key",
        "HEALTHCHECK_PING_URL": "/cabal/healthcheck_ping_ecs_reconfigure",
    }
    if tier == "imap":
        secrets |= {"MASTER_PASSWORD": "/cabal/master_password"}
    if tier == "smtp-out":
        secrets |= {"DKIM_PRIVATE_KEY": "/cabal/dkim_private_key"}
    return secrets


def _instant(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _default_ip(tier: str, index: int) -> str:
    third, fourth = _FIRST_IP[tier]
    return f"10.0.{third}.{fourth + index}"


def _plain(items: list[str | Raw]) -> tuple[str, ...]:
    return tuple(item if isinstance(item, str) else item["address"] for item in items)


def _service(tier: str, raw: Raw, tasks: int) -> ServiceSpec:
    imap = tier == "imap"
    deployment = raw.get("deployment", {})
    return ServiceSpec(
        desired=raw.get("desired", tasks),
        minimum_healthy_percent=0 if imap else 100,
        maximum_percent=100 if imap else 200,
        circuit_breaker=imap,
        deployment=DeploymentSpec(
            outcome=deployment.get("outcome", "completed"),
            start_seconds=deployment.get("start_seconds", 1.5),
            drain_seconds=deployment.get("drain_seconds", 1.0),
            in_progress_minutes=deployment.get("in_progress_minutes"),
            loop=Loop(deployment.get("loop", "running")),
        ),
        image_tag=raw.get("image_tag", "sha-1f3a9c07"),
        registered_days_ago=raw.get("registered_days_ago", 21),
        missing_secrets=tuple(raw.get("missing_secrets", [])),
    )


def _queued(raw: Raw) -> QueuedMessage:
    return QueuedMessage(
        queue_id=raw["queue_id"],
        age_seconds=raw.get("age_minutes", 30) * 60,
        sender=raw.get("sender", "news@sender.example"),
        recipients=tuple(raw["recipients"]),
        reason=raw["reason"],
        size=raw.get("size", 1024),
    )


def _fault(raw: Raw) -> Fault:
    return Fault(
        operation=raw["operation"],
        where=raw.get("where", {}),
        error=raw.get("error"),
        status=raw.get("status", 400),
        message=raw.get("message", ""),
        rate=raw.get("rate", 1),
        latency_seconds=raw.get("latency_ms", 0) / 1000,
        hang=raw.get("hang", False),
        drop=raw.get("drop", False),
        garbage=raw.get("garbage", False),
        after=raw.get("after", False),
        who=raw.get("who", "operator"),
        times=raw.get("times"),
    )


def _expect(raw: Raw | None) -> Expect | None:
    if raw is None:
        return None
    findings, absent = tuple(raw.get("findings", [])), tuple(raw.get("absent", []))
    return Expect(raw["verdict"], findings, absent, raw.get("confidence"), raw.get("remedy"))
