# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads all that triage asks of AWS besides logs and containers, each part in its own thread.

Only calls that read are made, and of Parameter Store only the maintenance flag's value is read, never a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from . import shape
from .addresses import ADDRESSES_BLANK, AddressWriter
from .dmarc import DMARC_BLANK, DmarcSummary, mark_ours
from .parts import Part, Runner, combine

#: DescribeTasks takes no more at once.
TASKS_PER_CALL = 100


@dataclass(frozen=True)
class Names:
    """What the deployment calls its things."""

    addresses_table: str = "cabal-addresses"
    dmarc_table: str = "cabal-dmarc-reports"
    parameter_prefix: str = "/cabal/"
    heartbeat_parameter: str = "/cabal/healthcheck_ping_ecs_reconfigure"
    maintenance_parameter: str = "/cabal/maintenance/imap"
    image_tag_prefix: str = "/cabal/deployed_image_tag/"
    nat_name: str = "cabal-nat-*"
    address_name: str = "cabal-nat-eip-*"
    namespace: str = "cabal.internal"
    discovery_tiers: tuple[str, ...] = ("imap", "smtp-out")


@dataclass(frozen=True)
class Tier:
    """A mail tier and the names of its service, queue and container."""

    tier: str
    service: str
    queue: str
    container: str


@dataclass(frozen=True)
class Request:
    """What to read. C(start) begins the window; C(deadline) is in seconds; C(work_dir) None writes no file."""

    cluster: str
    tiers: tuple[Tier, ...]
    start: datetime
    deadline: float
    work_dir: str | None = None
    names: Names = field(default_factory=Names)
    dmarc_days: int = 7


class EnvironmentReader:
    """Starts the reads, waits until the deadline at most, and joins what the parts say about each other.

    client: gives the boto3 client of a service; called from several threads. explain: puts an exception into words.
    mask: masks an address.
    """

    def __init__(
        self,
        request: Request,
        client: Callable[[str], Any],
        explain: Callable[[BaseException], str],
        mask: Callable[[str], str],
    ) -> None:
        self._request = request
        self._client = client
        self._mask = mask
        self._runner = Runner(request.deadline)
        self._known_parameters: dict[str, Any] | None = None

        def part(name: str, blank: Mapping[str, Any]) -> Part:
            return Part(name, blank, explain)

        tiers = request.tiers
        self._services = {row.tier: part(f"service {row.service}", shape.SERVICE_BLANK) for row in tiers}
        self._queues = {row.tier: part(f"queue {row.queue}", {"name": row.queue, **shape.queue({})}) for row in tiers}
        self._discovery = {
            row.tier: part(f"Cloud Map service {row.tier}", {"instances": None})
            for row in tiers
            if row.tier in request.names.discovery_tiers
        }
        self._parameters = part("parameters", shape.PARAMETERS_BLANK)
        self._addresses = part(f"table {request.names.addresses_table}", ADDRESSES_BLANK)
        self._network = part("network", shape.NETWORK_BLANK)
        self._dmarc = part(f"table {request.names.dmarc_table}", DMARC_BLANK)

    def read(self) -> dict[str, Any]:
        """Read everything and return the section; never takes longer than the deadline."""
        start = self._runner.start
        for row in self._request.tiers:
            start(self._services[row.tier], lambda row=row: self._read_service(row))  # type: ignore[misc]
            start(self._queues[row.tier], lambda row=row: self._read_queue(row))  # type: ignore[misc]
        start(self._addresses, self._read_addresses)
        start(self._dmarc, self._read_dmarc)
        start(self._parameters, self._read_parameters)
        start(self._parameters, self._read_maintenance_flag)
        start(self._network, self._read_elastic_ips)
        start(self._network, self._read_nat_instances)
        start(self._network, self._read_nat_gateways)
        start(self._network, self._read_routes)
        self._runner.wait()
        return self._section()

    # -- ECS and Cloud Map

    def _read_service(self, tier: Tier) -> None:
        part = self._services[tier.tier]
        ecs = self._client("ecs")
        answer = ecs.describe_services(cluster=self._request.cluster, services=[tier.service])
        found = answer.get("services") or []
        if not found or found[0].get("status") == "INACTIVE":
            part.fail(f"it does not exist in cluster {self._request.cluster}.")
            return
        part.put(**shape.service(found[0]))
        self._start_discovery(tier, found[0])
        with part.attempt():
            described = ecs.describe_task_definition(taskDefinition=found[0]["taskDefinition"])
            part.put(**shape.task_definition(described["taskDefinition"], tier.container))
        with part.attempt():
            part.put(tasks=shape.tasks(self._tasks(ecs, tier.service)))

    def _tasks(self, ecs: Any, service: str) -> Iterator[Mapping[str, Any]]:
        """Running tasks and those that stopped within the last hour (ECS forgets older ones)."""
        arns: dict[str, None] = {}
        for status in ("RUNNING", "STOPPED"):
            pages = ecs.get_paginator("list_tasks").paginate(
                cluster=self._request.cluster, serviceName=service, desiredStatus=status
            )
            arns.update(dict.fromkeys(arn for page in pages for arn in page.get("taskArns") or []))
        for chunk in _chunks(list(arns), TASKS_PER_CALL):
            yield from ecs.describe_tasks(cluster=self._request.cluster, tasks=chunk).get("tasks") or []

    def _start_discovery(self, tier: Tier, service: Mapping[str, Any]) -> None:
        """Read Cloud Map's instances, by the registry that the ECS service names, which needs no further rights."""
        part = self._discovery.get(tier.tier)
        if part is None:
            return
        registries = service.get("serviceRegistries") or [{}]
        registry = str(registries[0].get("registryArn") or "").rpartition("/")[2]

        def read() -> None:
            client = self._client("servicediscovery")
            identity = registry or self._registered_service(client, tier.tier)
            if not identity:
                part.fail(f"namespace {self._request.names.namespace} has no service {tier.tier}.")
                return
            pages = client.get_paginator("list_instances").paginate(ServiceId=identity)
            part.put(instances=shape.instances_of(row for page in pages for row in page.get("Instances") or []))

        self._runner.start(part, read)

    def _registered_service(self, client: Any, name: str) -> str | None:
        """The id of a Cloud Map service by its name, where the ECS service does not name its registry."""
        wanted = self._request.names.namespace
        namespaces = client.get_paginator("list_namespaces").paginate()
        found = (row["Id"] for page in namespaces for row in page["Namespaces"] if row["Name"] == wanted)
        for namespace in found:
            only = [{"Name": "NAMESPACE_ID", "Values": [namespace], "Condition": "EQ"}]
            pages = client.get_paginator("list_services").paginate(Filters=only)
            for row in (row for page in pages for row in page["Services"]):
                if row["Name"] == name:
                    return str(row["Id"])
        return None

    # -- SQS, SSM

    def _read_queue(self, tier: Tier) -> None:
        sqs = self._client("sqs")
        url = sqs.get_queue_url(QueueName=tier.queue)["QueueUrl"]
        names = [
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateNumberOfMessagesDelayed",
        ]
        answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)
        self._queues[tier.tier].put(**shape.queue(answer.get("Attributes") or {}))

    def _read_parameters(self) -> None:
        names = self._request.names
        only = [{"Key": "Name", "Option": "BeginsWith", "Values": [names.parameter_prefix]}]
        pages = self._client("ssm").get_paginator("describe_parameters").paginate(ParameterFilters=only)
        known = {str(row["Name"]): row for page in pages for row in page.get("Parameters") or []}
        self._parameters.put(
            heartbeat=shape.parameter(names.heartbeat_parameter, known),
            deployed_image_tags={
                row.tier: shape.parameter(names.image_tag_prefix + row.tier, known) for row in self._request.tiers
            },
        )
        self._known_parameters = known

    def _read_maintenance_flag(self) -> None:
        ssm = self._client("ssm")
        try:
            value = ssm.get_parameter(Name=self._request.names.maintenance_parameter)["Parameter"]["Value"]
        except ssm.exceptions.ParameterNotFound:
            value = None
        try:
            flag = shape.maintenance_flag(value)
        except ValueError:
            self._parameters.fail(f"{self._request.names.maintenance_parameter} holds no valid flag.")
            return
        self._parameters.put(maintenance_imap=flag)

    # -- DynamoDB

    def _read_addresses(self) -> None:
        pages = (
            self._client("dynamodb")
            .get_paginator("scan")
            .paginate(
                TableName=self._request.names.addresses_table,
                ConsistentRead=True,
                ProjectionExpression="address, #user, username, subdomain, tld, RequestTime, suspended",
                ExpressionAttributeNames={"#user": "user"},
            )
        )
        with AddressWriter(self._request.work_dir, self._mask) as writer:
            for page in pages:
                writer.add(page.get("Items") or [])
                self._addresses.put(**writer.summary())
            writer.finish()

    def _read_dmarc(self) -> None:
        start = self._request.start - timedelta(days=self._request.dmarc_days)
        summary = DmarcSummary(start, datetime.now(UTC))
        pages = (
            self._client("dynamodb")
            .get_paginator("scan")
            .paginate(
                TableName=self._request.names.dmarc_table,
                FilterExpression="date_end >= :start",
                ExpressionAttributeValues={":start": {"S": str(int(start.timestamp()))}},
                ProjectionExpression="org_name, date_end, source_ip, #count, dkim_result, spf_result, header_from",
                ExpressionAttributeNames={"#count": "count"},
            )
        )
        for page in pages:
            summary.add(page.get("Items") or [])
            self._dmarc.put(**summary.summary())

    # -- EC2

    def _read_elastic_ips(self) -> None:
        answer = self._client("ec2").describe_addresses(Filters=_named(self._request.names.address_name))
        self._network.put(addresses=[shape.elastic_ip(row) for row in answer.get("Addresses") or []])

    def _read_nat_instances(self) -> None:
        pages = (
            self._client("ec2")
            .get_paginator("describe_instances")
            .paginate(Filters=_named(self._request.names.nat_name))
        )
        rows = (
            row
            for page in pages
            for reservation in page.get("Reservations") or []
            for row in reservation.get("Instances") or []
        )
        self._network.put(nat_instances=shape.without_remains(shape.nat_instance(row) for row in rows))

    def _read_nat_gateways(self) -> None:
        ec2 = self._client("ec2")
        pages = ec2.get_paginator("describe_nat_gateways").paginate(Filters=_named(self._request.names.nat_name))
        rows = [row for page in pages for row in page.get("NatGateways") or []]
        gateways = [shape.nat_gateway(row, {}) for row in rows]
        self._network.put(nat_gateways=shape.without_remains(gateways))
        subnets = sorted({str(row["SubnetId"]) for row in rows if row.get("SubnetId")})
        if not subnets:
            return
        try:
            found = ec2.describe_subnets(SubnetIds=subnets).get("Subnets") or []
        except Exception:
            return  # a gateway's zone stays unknown (null), which is all that this call would have told
        zones = {str(row["SubnetId"]): str(row["AvailabilityZone"]) for row in found}
        self._network.put(nat_gateways=shape.without_remains(shape.nat_gateway(row, zones) for row in rows))

    def _read_routes(self) -> None:
        pages = (
            self._client("ec2")
            .get_paginator("describe_route_tables")
            .paginate(Filters=[{"Name": "route.destination-cidr-block", "Values": ["0.0.0.0/0"]}])
        )
        tables = [table for page in pages for table in page.get("RouteTables") or []]
        self._network.put(routes=shape.routes(tables))

    # -- joining

    def _section(self) -> dict[str, Any]:
        services = {tier: self._service_facts(part) for tier, part in self._services.items()}
        queues = {tier: part.result() for tier, part in self._queues.items()}
        discovery = {tier: part.result() for tier, part in self._discovery.items()}
        network = self._network_facts()
        dmarc = self._dmarc.result()
        ours = {row["ip"] for row in network["addresses"]} or None
        dmarc["sources"] = mark_ours(dmarc["sources"], ours)
        single = {
            "parameters": self._parameters.result(),
            "addresses": self._addresses.result(),
            "network": network,
            "dmarc": dmarc,
        }
        status, reasons = combine([*services.values(), *queues.values(), *discovery.values(), *single.values()])
        return {
            "status": status,
            "reasons": reasons,
            "services": services,
            "queues": queues,
            "discovery": discovery,
            **single,
        }

    def _service_facts(self, part: Part) -> dict[str, Any]:
        facts = part.result()
        prefix = self._request.names.parameter_prefix
        facts["secrets"] = shape.with_existence(facts["secrets"], self._known_parameters, prefix)
        return facts

    def _network_facts(self) -> dict[str, Any]:
        facts = self._network.result()
        ways = [*facts["nat_instances"], *facts["nat_gateways"]]
        facts["addresses"] = shape.with_zones(facts["addresses"], ways)
        return facts


def _named(pattern: str) -> list[dict[str, Any]]:
    return [{"Name": "tag:Name", "Values": [pattern]}]


def _chunks(rows: list[str], size: int) -> Iterable[list[str]]:
    return (rows[at : at + size] for at in range(0, len(rows), size))
