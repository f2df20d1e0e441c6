# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill moto with what Terraform and the tasks would have made: queues, parameters, tables, addresses, NAT, Cloud Map.

Names are those of release 1.3.5. All of it goes through the public API, but for the date of a parameter, which no API
can set back.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from botocore.config import Config

from .logs import LogStore
from .model import (
    ACCOUNT_ID,
    ADDRESS_TABLE,
    ADDRESS_TOPIC,
    DMARC_TABLE,
    EXEC_KEY,
    NAMESPACE,
    REGION,
    TIERS,
    Address,
    Eip,
    Scenario,
)
from .moto_backend import Moto
from .scenario import secrets_of

HEARTBEAT = "/cabal/healthcheck_ping_ecs_reconfigure"
MAINTENANCE = "/cabal/maintenance/imap"
METRIC_NAMESPACE = "Cabalmail/Logs"
METRICS = {"SendmailBounced": "dsn=5", "SendmailDeferred": "stat=Deferred"}
METRIC_HOURS = 28
FIXTURE_INVISIBLE_SECONDS = 43_200


class Seeder:
    """Seeds one scenario into moto; also keeps Cloud Map in step with tasks that come and go later. Blocking."""

    def __init__(self, scenario: Scenario, moto: Moto, endpoint: str, logs: LogStore) -> None:
        self.scenario = scenario
        self._logs = logs
        self._moto = moto
        self._endpoint = endpoint
        self._session: Any = None
        self._discovery_services: dict[str, str] = {}

    def _client(self, service: str) -> Any:
        config = Config(retries={"max_attempts": 1}, parameter_validation=False)
        return self._session.client(service, endpoint_url=self._endpoint, config=config)

    def run(self) -> None:
        """Seed everything."""
        self._moto.open()
        self._session = self._moto.session()
        for step in (
            self._parameters,
            self._network,
            self._queues,
            self._tables,
            self._discovery,
            self._metric_filters,
            self._metrics,
            self._metric_data,
            self._exec_key,
        ):
            step()

    # -- messages ------------------------------------------------------------------------------------------------

    def _queues(self) -> None:
        sqs, sns = self._client("sqs"), self._client("sns")
        topic = sns.create_topic(Name=ADDRESS_TOPIC)["TopicArn"]
        for tier in TIERS:
            name = f"cabal-reconfig-{tier}"
            attributes = {"VisibilityTimeout": "60", "MessageRetentionPeriod": "3600"}
            url = sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
            arn = f"arn:aws:sqs:{REGION}:{ACCOUNT_ID}:{name}"
            spec = self.scenario.tiers.get(tier)
            if spec is None or spec.queue_subscribed:
                sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "true"})
            if spec is not None:
                self._messages(sqs, url, spec.queue_visible, spec.queue_not_visible)

    @staticmethod
    def _messages(sqs: Any, url: str, visible: int, not_visible: int) -> None:
        for _ in range(visible + not_visible):
            sqs.send_message(QueueUrl=url, MessageBody='{"event":"address_changed"}')
        while not_visible > 0:
            wanted = min(10, not_visible)
            sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=wanted, VisibilityTimeout=FIXTURE_INVISIBLE_SECONDS)
            not_visible -= wanted

    # -- parameters ----------------------------------------------------------------------------------------------

    def _parameters(self) -> None:
        ssm = self._client("ssm")
        scenario = self.scenario
        missing = {name for tier in scenario.tiers.values() for name in tier.service.missing_secrets}
        secret = {"/cabal/alert_sink_secret"} | {name for tier in TIERS for name in secrets_of(tier).values()}
        if scenario.heartbeat_modified is None:
            missing.add(HEARTBEAT)
        for name in sorted(secret - missing):
            value = f"{self._endpoint}/_sandbox/ping" if name == HEARTBEAT else "made-up"
            ssm.put_parameter(Name=name, Value=value, Type="SecureString")
        if scenario.maintenance_imap is not None:
            ssm.put_parameter(Name=MAINTENANCE, Value=scenario.maintenance_imap, Type="String")
        for tier in scenario.tiers.values():
            name = f"/cabal/deployed_image_tag/{tier.name}"
            ssm.put_parameter(Name=name, Value=tier.service.image_tag, Type="String")
        if scenario.heartbeat_modified is not None and HEARTBEAT not in missing:
            _set_modified(HEARTBEAT, scenario.heartbeat_modified)

    # -- tables --------------------------------------------------------------------------------------------------

    def _tables(self) -> None:
        dynamodb = self._client("dynamodb")
        _table(dynamodb, ADDRESS_TABLE, ["address"])
        _table(dynamodb, DMARC_TABLE, ["pk", "sk"])
        _write(dynamodb, ADDRESS_TABLE, [_address_item(row) for row in self.scenario.addresses])
        reports = [{key: {"S": value} for key, value in row.items()} for row in self.scenario.dmarc_reports]
        _write(dynamodb, DMARC_TABLE, reports)

    # -- network -------------------------------------------------------------------------------------------------

    def _network(self) -> None:
        ec2 = self._client("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        for number, eip in enumerate(self.scenario.network.addresses):
            self._zone(ec2, vpc, number, eip)

    def _zone(self, ec2: Any, vpc: str, number: int, eip: Eip) -> None:
        """One zone's way out: an Elastic IP, the NAT that holds it, and the private route through it."""
        network = self.scenario.network
        tags = _tags("elastic-ip", f"cabal-nat-eip-{number}")
        allocation = ec2.allocate_address(Domain="vpc", Address=eip.ip, TagSpecifications=tags)["AllocationId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{100 + number}.0/24", AvailabilityZone=eip.zone)
        subnet_id = subnet["Subnet"]["SubnetId"]
        table = ec2.create_route_table(VpcId=vpc, TagSpecifications=_tags("route-table", f"cabal-private-{number}"))[
            "RouteTable"
        ]["RouteTableId"]
        route: dict[str, str] = {"RouteTableId": table, "DestinationCidrBlock": "0.0.0.0/0"}
        if any(task.ipv6 for task in self.scenario.tasks):
            gateway = ec2.create_egress_only_internet_gateway(VpcId=vpc)["EgressOnlyInternetGateway"]
            ec2.create_route(
                RouteTableId=table,
                DestinationIpv6CidrBlock="::/0",
                EgressOnlyInternetGatewayId=gateway["EgressOnlyInternetGatewayId"],
            )
        name = f"cabal-nat-{number}"
        if network.nat == "gateway":
            request: dict[str, Any] = {"SubnetId": subnet_id, "TagSpecifications": _tags("natgateway", name)}
            if eip.attached:
                request["AllocationId"] = allocation
            else:
                request["ConnectivityType"] = "private"
            gateway = ec2.create_nat_gateway(**request)["NatGateway"]["NatGatewayId"]
            ec2.create_route(**route, NatGatewayId=gateway)
            if network.nat_state == "stopped":
                ec2.delete_nat_gateway(NatGatewayId=gateway)
            return
        instance = ec2.run_instances(
            ImageId="ami-12c6146b",
            MinCount=1,
            MaxCount=1,
            SubnetId=subnet_id,
            InstanceType="t4g.nano",
            TagSpecifications=_tags("instance", name),
        )["Instances"][0]["InstanceId"]
        if eip.attached:
            ec2.associate_address(AllocationId=allocation, InstanceId=instance)
        ec2.create_route(**route, InstanceId=instance)
        if network.nat_state == "stopped":
            ec2.stop_instances(InstanceIds=[instance])

    # -- Cloud Map -----------------------------------------------------------------------------------------------

    def _discovery(self) -> None:
        client = self._client("servicediscovery")
        client.create_private_dns_namespace(Name=NAMESPACE, Vpc="vpc-0d44dd44")
        namespace = client.list_namespaces()["Namespaces"][0]["Id"]
        for name, addresses in self.scenario.discovery.items():
            dns = {"DnsRecords": [{"Type": "A", "TTL": 10}], "RoutingPolicy": "MULTIVALUE"}
            created = client.create_service(Name=name, NamespaceId=namespace, DnsConfig=dns)
            self._discovery_services[name] = created["Service"]["Id"]
            for address in addresses:
                self._register(client, name, address)

    def _register(self, client: Any, name: str, address: str) -> None:
        client.register_instance(
            ServiceId=self._discovery_services[name],
            InstanceId=address.replace(".", "-"),
            Attributes={"AWS_INSTANCE_IPV4": address, "ECS_CLUSTER_NAME": "cabal-mail"},
        )

    def set_registered(self, name: str, address: str, present: bool) -> None:
        """Register or deregister a task, as ECS does when it starts or stops."""
        client = self._client("servicediscovery")
        if present:
            self._register(client, name, address)
            return
        service, instance = self._discovery_services[name], address.replace(".", "-")
        listed = client.list_instances(ServiceId=service)["Instances"]
        if any(entry["Id"] == instance for entry in listed):
            client.deregister_instance(ServiceId=service, InstanceId=instance)

    # -- the cluster's key ---------------------------------------------------------------------------------------

    def _exec_key(self) -> None:
        if self.scenario.exec_encrypted:
            kms = self._client("kms")
            key = kms.create_key(Description="ECS Exec sessions")["KeyMetadata"]["KeyId"]
            kms.create_alias(AliasName=EXEC_KEY, TargetKeyId=key)

    # -- metric filters ------------------------------------------------------------------------------------------

    def _metric_filters(self) -> None:
        """The two filters of the monitoring module, on every tier's group. They exist only with monitoring on."""
        if self.scenario.heartbeat_modified is None:
            return
        logs = self._client("logs")
        for tier in self.scenario.tiers.values():
            for metric, pattern in METRICS.items():
                logs.put_metric_filter(
                    logGroupName=tier.log_group,
                    filterName=f"cabal-{tier.name}-{metric}",
                    filterPattern=f'"{pattern}"',
                    metricTransformations=[
                        {
                            "metricName": metric,
                            "metricNamespace": METRIC_NAMESPACE,
                            "metricValue": "1",
                            "defaultValue": 0,
                        }
                    ],
                )

    # -- metrics that AWS's own services publish --------------------------------------------------------------------

    def _metrics(self) -> None:
        """The last ten minutes, a value a minute; a queue without messages and a table without throttling have none."""
        for tier in self.scenario.tiers.values():
            if tier.queue_oldest_seconds is not None:
                name = f"cabal-reconfig-{tier.name}"
                ages = [tier.queue_oldest_seconds - 60 * minute for minute in range(1, 11)]
                self._publish("AWS/SQS", "ApproximateAgeOfOldestMessage", "QueueName", name, ages)
        if self.scenario.throttled_reads:
            share, rest = divmod(self.scenario.throttled_reads, 10)
            counts = [share + (minute < rest) for minute in range(10)]
            self._publish("AWS/DynamoDB", "ReadThrottleEvents", "TableName", ADDRESS_TABLE, counts)

    def _publish(self, namespace: str, metric: str, dimension: str, of: str, values: Sequence[float]) -> None:
        """One value a minute, the newest first; what would be no more than nothing is left out."""
        data = [
            {
                "MetricName": metric,
                "Dimensions": [{"Name": dimension, "Value": of}],
                "Timestamp": self.scenario.now - timedelta(minutes=minute),
                "Value": value,
            }
            for minute, value in enumerate(values, 1)
            if value > 0
        ]
        self._client("cloudwatch").put_metric_data(Namespace=namespace, MetricData=data)

    def _metric_data(self) -> None:
        """What those filters made of the lines since yesterday: a count, or their default of 0, a minute with events.

        Minutes are put together by fives, which is what the modules ask for.
        """
        if self.scenario.heartbeat_modified is None:
            return
        client = self._client("cloudwatch")
        until = int(self.scenario.now.timestamp() * 1000)
        since = until - METRIC_HOURS * 3_600_000
        for metric, pattern in METRICS.items():
            sums: Counter[int] = Counter()
            for group in self._logs.groups.values():
                for event in group.events[bisect_left(group.events, (since, "")) :]:
                    if event.timestamp <= until:
                        sums[event.timestamp // 300_000 * 300] += pattern in event.message
            data = [
                {"MetricName": metric, "Timestamp": at, "Value": float(count), "Unit": "None"}
                for at, count in sums.items()
            ]
            for start in range(0, len(data), 500):
                client.put_metric_data(Namespace=METRIC_NAMESPACE, MetricData=data[start : start + 500])


def _tags(resource: str, name: str) -> list[dict[str, Any]]:
    return [{"ResourceType": resource, "Tags": [{"Key": "Name", "Value": name}]}]


def _table(dynamodb: Any, name: str, keys: list[str]) -> None:
    dynamodb.create_table(
        TableName=name,
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in keys],
        KeySchema=[{"AttributeName": key, "KeyType": kind} for key, kind in zip(keys, ("HASH", "RANGE"), strict=False)],
        BillingMode="PAY_PER_REQUEST",
    )


def _write(dynamodb: Any, table: str, items: list[dict[str, Any]]) -> None:
    for start in range(0, len(items), 25):
        batch = [{"PutRequest": {"Item": item}} for item in items[start : start + 25]]
        dynamodb.batch_write_item(RequestItems={table: batch})


def _address_item(row: Address) -> dict[str, Any]:
    texts = {"address": row.address, "username": row.username, "tld": row.tld, "user": row.user, "comment": row.comment}
    item: dict[str, Any] = {key: {"S": value} for key, value in texts.items()}
    if row.subdomain is not None:
        item["subdomain"] = {"S": row.subdomain}
    if row.requested is not None:
        item["RequestTime"] = {"S": row.requested.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
    if row.suspended:
        item["suspended"] = {"BOOL": True}
    return item


def _set_modified(name: str, moment: datetime) -> None:
    """Set back the date of a parameter, in moto's own store."""
    from moto.ssm.models import ssm_backends

    for version in ssm_backends[ACCOUNT_ID][REGION]._parameters[name]:
        version.last_modified_date = moment
