# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads all that triage asks of AWS besides logs and containers, each part in its own thread.

Only calls that read are made, and of Parameter Store only the maintenance flag's value is read, never a secret.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..failed_recipient import read_failures
from . import shape
from .addresses import ADDRESSES_BLANK, AddressWriter
from .changes import changes
from .dmarc import DMARC_BLANK, DmarcSummary, with_ours
from .parts import Part, Runner, combine

#: DescribeTasks takes no more at once.
TASKS_PER_CALL = 100
#: Users of failed recipients that Cognito is asked about.
MOST_USERS = 20


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
    address_topic: str = "cabal-address-changed"
    user_pool_variable: str = "COGNITO_POOL_ID"


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
        self._routed_instances: list[dict[str, Any]] = []
        self._task_addresses: dict[str, str] = {}
        self._task_addresses_lock = threading.Lock()

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
        self._topic = part(f"topic {request.names.address_topic}", {"queues": None})
        self._metrics = part("metrics", shape.METRICS_BLANK)
        self._users = part("users", {"users": None})
        self._once = threading.Lock()
        self._asked: set[str] = set()
        self._pool: str | None = None
        self._user_names: list[str] | None = None

    def read(self) -> dict[str, Any]:
        """Read everything and return the section; never takes longer than the deadline."""
        start = self._runner.start
        for row in self._request.tiers:
            start(self._services[row.tier], lambda row=row: self._read_service(row))  # type: ignore[misc]
            start(self._queues[row.tier], lambda row=row: self._read_queue(row))  # type: ignore[misc]
        start(self._addresses, self._read_addresses)
        start(self._dmarc, self._read_dmarc)
        start(self._metrics, self._read_metrics)
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
            variable = self._request.names.user_pool_variable
            self._pool = shape.variable(described["taskDefinition"], tier.container, variable) or self._pool
            self._read_users_when_known()
        with part.attempt():
            tasks = shape.tasks(self._tasks(ecs, tier.service))
            part.put(tasks=tasks)
            self._start_public_addresses(found[0], tasks)

    def _start_public_addresses(self, service: Mapping[str, Any], tasks: list[dict[str, Any]]) -> None:
        """Where tasks get public addresses of their own, no NAT's is theirs: ask for them."""
        network = (service.get("networkConfiguration") or {}).get("awsvpcConfiguration") or {}
        interfaces = [task["interface"] for task in tasks if task["interface"] and task["last_status"] == "RUNNING"]
        if network.get("assignPublicIp") != "ENABLED" or not interfaces:
            return

        def read() -> None:
            rows = self._client("ec2").describe_network_interfaces(NetworkInterfaceIds=interfaces)["NetworkInterfaces"]
            found = {row["NetworkInterfaceId"]: (row.get("Association") or {}).get("PublicIp") for row in rows}
            with self._task_addresses_lock:
                self._task_addresses |= {name: ip for name, ip in found.items() if ip}
                self._network.put(task_addresses=dict(self._task_addresses))

        self._runner.start(self._network, read)

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
            "QueueArn",
        ]
        attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names).get("Attributes") or {}
        self._queues[tier.tier].put(**shape.queue(attributes))
        if attributes.get("QueueArn") and self._first_to("read subscriptions"):
            # A topic is read by its ARN only, and stands where the queues stand.
            partition, _, region, account = attributes["QueueArn"].split(":")[1:5]
            topic = f"arn:{partition}:sns:{region}:{account}:{self._request.names.address_topic}"
            self._runner.start(self._topic, lambda: self._read_subscriptions(topic))

    def _read_subscriptions(self, topic: str) -> None:
        """Names of the queues that hear of address changes."""
        pages = self._client("sns").get_paginator("list_subscriptions_by_topic").paginate(TopicArn=topic)
        rows = [row for page in pages for row in page.get("Subscriptions") or []]
        living = [row for row in rows if row.get("Protocol") == "sqs" and row.get("SubscriptionArn") != "Deleted"]
        self._topic.put(queues=sorted({str(row["Endpoint"]).rpartition(":")[2] for row in living}))

    def _read_metrics(self) -> None:
        queues = {row.tier: row.queue for row in self._request.tiers}
        answer = self._client("cloudwatch").get_metric_data(
            MetricDataQueries=shape.metric_queries(queues, self._request.names.addresses_table),
            StartTime=self._request.start,
            EndTime=datetime.now(UTC),
            ScanBy="TimestampDescending",
        )
        self._metrics.put(**shape.metrics(answer.get("MetricDataResults") or [], queues))

    def _first_to(self, what: str) -> bool:
        """Whether nobody asked to do this before."""
        with self._once:
            first = what not in self._asked
            self._asked.add(what)
        return first

    # -- Cognito

    def _read_users_when_known(self) -> None:
        """Ask about the users whose mail imap refused, once those and the user pool are known."""
        names, pool = self._user_names, self._pool
        if names is None or (names and pool is None) or not self._first_to("read users"):
            return

        def read() -> None:
            rows: list[dict[str, Any]] = []
            for name in names:
                client = self._client("cognito-idp")
                try:
                    found = client.admin_get_user(UserPoolId=pool, Username=name)
                except client.exceptions.UserNotFoundException:
                    found = None
                rows.append(shape.user(name, found))
            self._users.put(users=rows)

        self._runner.start(self._users, read)

    def _refused_as_unknown(self) -> set[str]:
        """Addresses and bare users that imap refused as unknown, from the list that the mail logs left."""
        folder = self._request.work_dir
        failures = read_failures(Path(folder) / "failed_recipients.jsonl") if folder else None
        return {
            failure.address.decode("utf-8", "replace")
            for failure in failures or []
            if failure.no_such_user and failure.refused_by == "imap"
        }

    def _read_parameters(self) -> None:
        names = self._request.names
        only = [{"Key": "Name", "Option": "BeginsWith", "Values": [names.parameter_prefix]}]
        # A page holds 10 unless asked for more, 50 at most.
        most = {"PageSize": 50}
        paginator = self._client("ssm").get_paginator("describe_parameters")
        pages = paginator.paginate(ParameterFilters=only, PaginationConfig=most)
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
        refused = self._refused_as_unknown()
        names = {address for address in refused if "@" not in address}
        with AddressWriter(self._request.work_dir, self._mask) as writer:
            for page in pages:
                items = page.get("Items") or []
                writer.add(items)
                self._addresses.put(**writer.summary())
                names.update(_users_of(items, refused) if refused else ())
            writer.finish()
        self._user_names = sorted(names)[:MOST_USERS]
        self._read_users_when_known()

    def _read_dmarc(self) -> None:
        length = timedelta(days=self._request.dmarc_days)
        start = self._request.start - length
        # As long a time before it is read as well: whether our mail fails more than it did.
        before = start - length
        summary = DmarcSummary(start, datetime.now(UTC), before)
        pages = (
            self._client("dynamodb")
            .get_paginator("scan")
            .paginate(
                TableName=self._request.names.dmarc_table,
                FilterExpression="date_end >= :start",
                ExpressionAttributeValues={":start": {"S": str(int(before.timestamp()))}},
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
        # All of them: one that carries another name is known by the route that leads to it.
        pages = ec2.get_paginator("describe_nat_gateways").paginate()
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
        routes = shape.routes(tables)
        self._network.put(routes=routes, routes_ipv6=shape.routes(tables, "::/0", "DestinationIpv6CidrBlock"))
        self._read_routed_instances([str(row["target"]) for row in routes if str(row["target"]).startswith("i-")])

    def _read_routed_instances(self, ids: list[str]) -> None:
        """NAT instances by the routes that lead to them, whatever they are called."""
        if ids:
            pages = self._client("ec2").get_paginator("describe_instances").paginate(InstanceIds=sorted(set(ids)))
            rows = [
                row
                for page in pages
                for reservation in page.get("Reservations") or []
                for row in reservation.get("Instances") or []
            ]
            self._routed_instances = [shape.nat_instance(row) for row in rows]

    # -- joining

    def _section(self) -> dict[str, Any]:
        services = {tier: self._service_facts(part) for tier, part in self._services.items()}
        queues = {tier: part.result() for tier, part in self._queues.items()}
        discovery = {tier: part.result() for tier, part in self._discovery.items()}
        network = self._network_facts()
        topic, metrics = self._topic.result(), self._metrics.result()
        for row in self._request.tiers:
            heard = topic["queues"]
            queues[row.tier]["subscribed"] = None if heard is None else row.queue in heard
            queues[row.tier]["oldest_seconds"] = metrics["queue_oldest_seconds"].get(row.tier)
        dmarc = with_ours(self._dmarc.result(), {row["ip"] for row in network["outbound"]} or None)
        single = {
            "parameters": self._parameter_facts(),
            "topic": topic,
            "metrics": metrics,
            "users": self._users.result(),
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
            "changes": changes(services, single["parameters"]),
            **single,
        }

    def _parameter_facts(self) -> dict[str, Any]:
        facts = self._parameters.result()
        flag = facts["maintenance_imap"]
        if flag:
            known = (self._known_parameters or {}).get(self._request.names.maintenance_parameter) or {}
            flag["last_modified"] = shape.when(known.get("LastModifiedDate"))
        return facts

    def _service_facts(self, part: Part) -> dict[str, Any]:
        facts = part.result()
        prefix = self._request.names.parameter_prefix
        facts["secrets"] = shape.with_existence(facts["secrets"], self._known_parameters, prefix)
        return facts

    def _network_facts(self) -> dict[str, Any]:
        facts = self._network.result()
        named = {row["id"] for row in facts["nat_instances"]}
        facts["nat_instances"] += [row for row in self._routed_instances if row["id"] not in named]
        facts["nat_gateways"] = shape.used_ways(facts["nat_gateways"], self._request.names.nat_name, facts["routes"])
        ways = [*facts["nat_instances"], *facts["nat_gateways"]]
        facts["addresses"] = shape.with_zones(facts["addresses"], ways)
        tasks = [row for part in self._services.values() for row in part.result()["tasks"]]
        facts["outbound"] = shape.outbound(facts, [row for row in tasks if row["last_status"] == "RUNNING"])
        return facts


def _users_of(items: Iterable[Mapping[str, Any]], addresses: set[str]) -> Iterator[str]:
    """The users of those items whose address is one of ``addresses``."""
    for item in items:
        if str((item.get("address") or {}).get("S", "")).lower() in addresses:
            yield from filter(None, str((item.get("user") or {}).get("S", "")).split("/"))


def _named(pattern: str) -> list[dict[str, Any]]:
    return [{"Name": "tag:Name", "Values": [pattern]}]


def _chunks(rows: list[str], size: int) -> Iterable[list[str]]:
    return (rows[at : at + size] for at in range(0, len(rows), size))
