# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what AWS answers to the facts of an environment. Pure: what boto3 returns in, plain facts out."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ..time import format_rfc3339

Aws = Mapping[str, Any]

MAX_EVENTS = 20
#: A flag or deployment message is shown; nobody needs a novel.
MAX_TEXT = 500

SERVICE_BLANK: dict[str, Any] = {
    "service": None,
    "desired": None,
    "running": None,
    "pending": None,
    "deployments": [],
    "events": [],
    "exec_enabled": None,
    "min_healthy_percent": None,
    "maximum_percent": None,
    "task_definition": None,
    "image": None,
    "registered_at": None,
    "secrets": [],
    "tasks": [],
}
NETWORK_BLANK: dict[str, Any] = {
    "addresses": [],
    "nat_instances": [],
    "nat_gateways": [],
    "routes": [],
    "routes_ipv6": [],
    "task_addresses": {},
}
METRICS_BLANK: dict[str, Any] = {"queue_oldest_seconds": {}, "throttled_reads": None}
PARAMETERS_BLANK: dict[str, Any] = {"heartbeat": None, "maintenance_imap": None, "deployed_image_tags": {}}


def when(value: Any) -> str | None:
    """A time as boto3 gives it (aware datetime, or epoch seconds) in RFC 3339, None for none."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        value = datetime.fromtimestamp(float(value), tz=UTC)
    elif value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    return format_rfc3339(value)


def short_id(arn: str | None) -> str | None:
    """The last part of an ARN: a task's id, a task definition's C(family:revision)."""
    return arn.rsplit("/", 1)[-1] if arn else None


def service(described: Aws) -> dict[str, Any]:
    """A service of DescribeServices."""
    configuration = described.get("deploymentConfiguration") or {}
    return {
        "service": described.get("serviceName"),
        "desired": described.get("desiredCount"),
        "running": described.get("runningCount"),
        "pending": described.get("pendingCount"),
        "deployments": [_deployment(row) for row in described.get("deployments") or []],
        "events": [
            {"time": when(row.get("createdAt")), "message": str(row.get("message", ""))[:MAX_TEXT]}
            for row in (described.get("events") or [])[:MAX_EVENTS]
        ],
        "exec_enabled": described.get("enableExecuteCommand"),
        "min_healthy_percent": configuration.get("minimumHealthyPercent"),
        "maximum_percent": configuration.get("maximumPercent"),
        "task_definition": short_id(described.get("taskDefinition")),
    }


def _deployment(row: Aws) -> dict[str, Any]:
    return {
        "id": row.get("id"),
        "status": row.get("status"),
        "rollout_state": row.get("rolloutState"),
        "rollout_reason": row.get("rolloutStateReason"),
        "created_at": when(row.get("createdAt")),
        "updated_at": when(row.get("updatedAt")),
        "task_definition": short_id(row.get("taskDefinition")),
        "desired": row.get("desiredCount"),
        "running": row.get("runningCount"),
        "failed": row.get("failedTasks"),
    }


def task(described: Aws) -> dict[str, Any]:
    """A task of DescribeTasks."""
    return {
        "id": short_id(described.get("taskArn")),
        "arn": described.get("taskArn"),
        "started_at": when(described.get("startedAt")),
        "created_at": when(described.get("createdAt")),
        "started_by": described.get("startedBy"),
        "last_status": described.get("lastStatus"),
        "desired_status": described.get("desiredStatus"),
        "health": described.get("healthStatus"),
        "zone": described.get("availabilityZone"),
        "ip": _task_ip(described),
        "ipv6": _task_ipv6(described),
        "interface": _attached(described, "networkInterfaceId"),
        "task_definition": short_id(described.get("taskDefinitionArn")),
        "stopped_at": when(described.get("stoppedAt")),
        "stop_code": described.get("stopCode"),
        "stop_reason": _stop_reason(described),
    }


def _attached(described: Aws, name: str) -> str | None:
    """A detail of the task's network interface."""
    for attachment in described.get("attachments") or []:
        for detail in attachment.get("details") or []:
            if detail.get("name") == name:
                return str(detail.get("value"))
    return None


def _task_ip(described: Aws) -> str | None:
    return _attached(described, "privateIPv4Address") or _interface(described, "privateIpv4Address")


def _task_ipv6(described: Aws) -> str | None:
    """The task's address in a dual-stack VPC: no NAT stands before it, so it is the one that others see."""
    return _interface(described, "ipv6Address")


def _interface(described: Aws, name: str) -> str | None:
    for container in described.get("containers") or []:
        for interface in container.get("networkInterfaces") or []:
            if interface.get(name):
                return str(interface[name])
    return None


def _stop_reason(described: Aws) -> str | None:
    """The task's own words, and those of each container that ended with an error."""
    words = [described.get("stoppedReason")]
    for container in described.get("containers") or []:
        if container.get("exitCode") not in (None, 0) or container.get("reason"):
            code = container.get("exitCode")
            text = container.get("reason") or ""
            words.append(f"{container.get('name')}: " + ", ".join(filter(None, [f"exit {code}" if code else "", text])))
    return "; ".join(str(word) for word in words if word)[:MAX_TEXT] or None


def tasks(described: Iterable[Aws]) -> list[dict[str, Any]]:
    """Tasks of DescribeTasks, oldest first."""
    return sorted((task(row) for row in described), key=lambda row: (row["started_at"] or "", row["id"] or ""))


def variable(described: Aws, container: str, name: str) -> str | None:
    """The value of a plain environment variable of a task definition's mail container; secrets are never in there."""
    definitions = described.get("containerDefinitions") or []
    chosen = next((row for row in definitions if row.get("name") == container), definitions[0] if definitions else {})
    return next((str(row["value"]) for row in chosen.get("environment") or [] if row.get("name") == name), None)


def task_definition(described: Aws, container: str) -> dict[str, Any]:
    """Image, registration time and secrets (names only, never values) of a task definition's mail container."""
    definitions = described.get("containerDefinitions") or []
    chosen = next((row for row in definitions if row.get("name") == container), definitions[0] if definitions else {})
    return {
        "image": chosen.get("image"),
        "registered_at": when(described.get("registeredAt")),
        "secrets": [secret(row) for definition in definitions for row in definition.get("secrets") or []],
    }


def secret(row: Aws) -> dict[str, Any]:
    """A secret that a task needs to start: C(parameter) is its parameter's name where Parameter Store holds it."""
    origin = str(row.get("valueFrom", ""))
    if ":secretsmanager:" in origin:
        return {"name": row.get("name"), "source": "secretsmanager", "parameter": None, "exists": None}
    if ":parameter/" in origin:
        origin = "/" + origin.split(":parameter/", 1)[1]
    return {"name": row.get("name"), "source": "ssm", "parameter": origin, "exists": None}


def with_existence(secrets: Iterable[Mapping[str, Any]], known: Mapping[str, Any] | None, prefix: str) -> list[Any]:
    """Say of each secret whether its parameter exists.

    known: all parameters under C(prefix) by name, None when they could not be listed. What the list does not cover
    (other prefixes, Secrets Manager, a listing that failed) stays None: unknown.
    """
    rows = []
    for row in secrets:
        name = row["parameter"]
        covered = known is not None and name is not None and name.startswith(prefix)
        rows.append({**row, "exists": (name in known) if covered and known is not None else None})
    return rows


def parameter(name: str, known: Mapping[str, Aws]) -> dict[str, Any]:
    """What DescribeParameters says of one parameter; its value is never read."""
    row = known.get(name)
    return {
        "name": name,
        "exists": row is not None,
        "last_modified": when(row.get("LastModifiedDate")) if row else None,
        "type": row.get("Type") if row else None,
    }


def maintenance_flag(value: str | None) -> dict[str, Any]:
    """The maintenance flag (JSON with active, until in epoch seconds, message); None when it was never set.

    Raises ValueError when the value is not the flag's JSON.
    """
    if value is None:
        return {"exists": False, "active": False, "until": None, "message": None}
    flag = json.loads(value)
    if not isinstance(flag, dict):
        raise ValueError("the maintenance flag is not a JSON object")
    until = flag.get("until")
    return {
        "exists": True,
        "active": flag.get("active") is True,
        "until": when(until) if isinstance(until, (int, float)) else None,
        "message": str(flag["message"])[:MAX_TEXT] if flag.get("message") else None,
    }


def queue(attributes: Mapping[str, str]) -> dict[str, Any]:
    """Depths of a queue; AWS calls them approximate."""
    fields = {
        "visible": "ApproximateNumberOfMessages",
        "not_visible": "ApproximateNumberOfMessagesNotVisible",
        "delayed": "ApproximateNumberOfMessagesDelayed",
    }
    return {name: int(attributes[key]) if key in attributes else None for name, key in fields.items()}


def metric_queries(queues: Mapping[str, str], table: str) -> list[dict[str, Any]]:
    """Queries of GetMetricData: the age of each queue's oldest message, and throttled reads of the table.

    queues: queue name by tier. Ids are ``q0`` and on, in that order, and ``throttled``.
    """

    def query(identity: str, namespace: str, metric: str, dimension: str, value: str, statistic: str) -> dict[str, Any]:
        named = {"Namespace": namespace, "MetricName": metric, "Dimensions": [{"Name": dimension, "Value": value}]}
        return {"Id": identity, "MetricStat": {"Metric": named, "Period": 60, "Stat": statistic}}

    ages = [
        query(f"q{number}", "AWS/SQS", "ApproximateAgeOfOldestMessage", "QueueName", name, "Maximum")
        for number, name in enumerate(queues.values())
    ]
    return [*ages, query("throttled", "AWS/DynamoDB", "ReadThrottleEvents", "TableName", table, "Sum")]


def metrics(results: Iterable[Aws], queues: Iterable[str]) -> dict[str, Any]:
    """Facts out of GetMetricData's results (newest values first). An idle queue publishes nothing: unknown.

    DynamoDB publishes throttled reads only when there were some, so an answer without a value is 0.
    """
    values = {str(row.get("Id")): list(row.get("Values") or []) for row in results}
    ages = {tier: values.get(f"q{number}") for number, tier in enumerate(queues)}
    throttled = values.get("throttled")
    return {
        "queue_oldest_seconds": {tier: round(found[0]) if found else None for tier, found in ages.items()},
        "throttled_reads": None if throttled is None else round(sum(throttled)),
    }


def user(name: str, described: Aws | None) -> dict[str, Any]:
    """A user of AdminGetUser; None for one that does not exist. Of its attributes only whether it has a UID."""
    attributes = {row.get("Name"): row.get("Value") for row in (described or {}).get("UserAttributes") or []}
    return {
        "user": name,
        "status": str(described.get("UserStatus")) if described else "absent",
        "enabled": described.get("Enabled") if described else None,
        "osid": bool(attributes.get("custom:osid")) if described else None,
    }


def instances_of(listed: Iterable[Aws]) -> list[str]:
    """Addresses that a Cloud Map service holds, sorted."""
    found = set()
    for row in listed:
        attributes = row.get("Attributes") or {}
        address = attributes.get("AWS_INSTANCE_IPV4") or attributes.get("AWS_INSTANCE_IPV6") or row.get("Id")
        if address:
            found.add(str(address))
    return sorted(found)


def tag(row: Aws, key: str, tags: str = "Tags") -> str | None:
    """The value of a tag."""
    return next((str(entry["Value"]) for entry in row.get(tags) or [] if entry.get("Key") == key), None)


def elastic_ip(row: Aws) -> dict[str, Any]:
    """An address of DescribeAddresses; its zone is known only through what it is attached to."""
    return {
        "ip": row.get("PublicIp"),
        "zone": None,
        "name": tag(row, "Name"),
        "allocation_id": row.get("AllocationId"),
        "attached": bool(row.get("AssociationId") or row.get("InstanceId") or row.get("NetworkInterfaceId")),
    }


def nat_instance(row: Aws) -> dict[str, Any]:
    """A NAT instance of DescribeInstances."""
    return {
        "id": row.get("InstanceId"),
        "name": tag(row, "Name"),
        "state": (row.get("State") or {}).get("Name"),
        "ip": row.get("PublicIpAddress"),
        "zone": (row.get("Placement") or {}).get("AvailabilityZone"),
    }


def nat_gateway(row: Aws, zones: Mapping[str, str]) -> dict[str, Any]:
    """A NAT gateway of DescribeNatGateways. C(zones): zone by subnet id, as far as known."""
    addresses = [str(entry["PublicIp"]) for entry in row.get("NatGatewayAddresses") or [] if entry.get("PublicIp")]
    return {
        "id": row.get("NatGatewayId"),
        "name": tag(row, "Name"),
        "state": row.get("State"),
        "ip": addresses[0] if addresses else None,
        "ips": addresses,
        "zone": zones.get(str(row.get("SubnetId"))),
    }


def without_remains(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop what AWS still lists for an hour after its removal, where something of the same name has taken its place."""
    found = sorted(rows, key=lambda row: (row["name"] or "", row["id"] or ""))
    gone = ("terminated", "deleted")
    living = {row["name"] for row in found if row["state"] not in gone}
    return [row for row in found if row["state"] not in gone or row["name"] not in living]


_TARGETS = (
    "NatGatewayId",
    "InstanceId",
    "NetworkInterfaceId",
    "TransitGatewayId",
    "EgressOnlyInternetGatewayId",
    "GatewayId",
)


def routes(
    tables: Iterable[Aws], destination: str = "0.0.0.0/0", key: str = "DestinationCidrBlock"
) -> list[dict[str, Any]]:
    """Default routes of private route tables: those that lead anywhere but to an internet gateway."""
    rows = []
    for table in tables:
        for route in table.get("Routes") or []:
            target = next((str(route[name]) for name in _TARGETS if route.get(name)), None)
            if route.get(key) == destination and not str(target).startswith("igw-"):
                rows.append(
                    {
                        "table": table.get("RouteTableId"),
                        "name": tag(table, "Name"),
                        "target": target,
                        "state": route.get("State"),
                    }
                )
    return sorted(rows, key=lambda row: (row["name"] or "", row["table"] or ""))


def used_ways(gateways: Iterable[dict[str, Any]], name: str, routes: Iterable[Aws]) -> list[dict[str, Any]]:
    """The NAT gateways that are ours: by their name, or because a private route leads to them."""
    targets = {row["target"] for row in routes}
    return [row for row in gateways if row["id"] in targets or fnmatch.fnmatchcase(row["name"] or "", name)]


def outbound(network: Aws, tasks: Iterable[Aws]) -> list[dict[str, Any]]:
    """Every address that mail leaves from, with its zone and what it belongs to.

    An Elastic IP address by its name, a NAT's own by its name or its route, a task's public one, and a task's IPv6
    address where a route leads out. C(network): the section so far. C(tasks): running tasks of tiers that send.
    """
    rows: dict[str, dict[str, Any]] = {}

    def add(ip: str | None, zone: str | None, via: str | None) -> None:
        if ip:
            row = rows.setdefault(ip, {"ip": ip, "zone": zone, "via": via})
            row["zone"] = row["zone"] or zone

    for address in network["addresses"]:
        add(address["ip"], address["zone"], address["name"])
    for way in [*network["nat_instances"], *network["nat_gateways"]]:
        if way["state"] not in ("terminated", "deleted", "failed"):
            for ip in way.get("ips") or [way["ip"]]:
                add(ip, way["zone"], way["id"])
    for task in tasks:
        add(network["task_addresses"].get(task["interface"]), task["zone"], task["id"])
        if network["routes_ipv6"]:
            add(task["ipv6"], task["zone"], task["id"])
    return list(rows.values())


def with_zones(addresses: Iterable[dict[str, Any]], ways: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give each outbound address the zone of the NAT instance or gateway that stands behind it."""
    zones = {ip: way.get("zone") for way in ways for ip in way.get("ips") or [way["ip"]] if ip}
    rows = [{**row, "zone": zones.get(row["ip"])} for row in addresses]
    return sorted(rows, key=lambda row: (row["name"] or "", row["ip"] or ""))
