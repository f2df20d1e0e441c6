# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence about containers, maps, loops and local delivery, out of what the run has read already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible import constants as C
from ansible.errors import AnsibleFilterError

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

from ansible.module_utils.cabalmail import address_map, containers, local_delivery, reconfigure_loop  # noqa: E402
from ansible.module_utils.cabalmail.freshness import Limits  # noqa: E402
from ansible.module_utils.cabalmail.privacy import Masker, load_or_create_key  # noqa: E402
from ansible.module_utils.maillog.reasons import Attempt, Classifier, Reason  # noqa: E402
from ansible.module_utils.maillog.rules import RuleError  # noqa: E402
from ansible.module_utils.maillog.shipped import tables  # noqa: E402


def _masker(work_dir: str) -> Masker:
    return Masker(load_or_create_key(work_dir))


class QueueJudge:
    """The reason of what waits, by the rules of the mail logs; they are loaded when a queue has something to judge."""

    def __init__(self, own_rules: list[Any], own_providers: list[Any], own_hosts: list[str]) -> None:
        self._own = (own_rules, own_providers, own_hosts)
        self._classifier: Classifier | None = None

    def __call__(self, attempt: Attempt) -> Reason:
        """The reason; AnsibleFilterError where the inventory's additions can't be used."""
        if self._classifier is None:
            rules, providers, hosts = self._own
            try:
                found = tables(rules, providers)
            except RuleError as error:
                raise AnsibleFilterError(str(error)) from None
            self._classifier = Classifier(
                found["reason_rules"], found["providers"], found["enhanced_codes"], own_hosts=hosts
            )
        return self._classifier.classify(attempt)


def container_evidence(
    probed: Mapping[str, Any],
    work_dir: str,
    tiers: Mapping[str, str],
    environment: Mapping[str, Any] | None = None,
    own_rules: Iterable[Any] = (),
    own_providers: Iterable[Any] = (),
    own_hosts: Iterable[str] = (),
) -> dict[str, Any]:
    """The section ``containers``.

    Args:
        probed: the registered result of ecs_exec.
        work_dir: the run's private directory.
        tiers: tier by ECS service.
        environment: the section ``environment``, whose running tasks should all have answered.
        own_rules: the inventory's ``cabalmail_reason_rules``, for the reasons in the queues.
        own_providers: its ``cabalmail_providers``.
        own_hosts: names of our own hosts in those reasons.
    """
    if probed.get("skipped"):
        return {"status": "unavailable", "reasons": ["skipped"], "tasks": [], "unreachable": []}
    services = (environment or {}).get("services") or {}
    running = {
        tier: [task for task in services[tier].get("tasks") or [] if task.get("last_status") == "RUNNING"]
        for tier in tiers.values()
        if tier in services
    }
    judge = QueueJudge(list(own_rules), list(own_providers), list(own_hosts))
    section = containers.containers_section(probed.get("results") or [], tiers, _masker(work_dir), running, judge)
    if probed.get("failed"):
        said = " ".join(str(probed.get("msg") or "the sessions failed and did not say why").split())
        section["reasons"] = [said, *section["reasons"]] if section["tasks"] else [said]
        if section["status"] == "complete":
            section["status"] = "partial"
    return section


def _limits(options: Mapping[str, Any]) -> Limits:
    return Limits(
        interval_seconds=float(options["interval"]),
        poll_seconds=float(options["poll"]),
        slack_seconds=float(options["slack"]),
    )


def address_map_evidence(
    triage: Mapping[str, Any], work_dir: str, interval: float, poll: float, slack: float, examples: int
) -> dict[str, Any]:
    """The section ``address_map``; see the role's defaults for the thresholds."""
    limits = _limits({"interval": interval, "poll": poll, "slack": slack})
    return address_map.address_map(triage, Path(work_dir), _masker(work_dir), limits, int(examples))


def reconfigure_loop_evidence(
    triage: Mapping[str, Any], interval: float, poll: float, slack: float, call: float, ping: float, failures: int
) -> dict[str, Any]:
    """The section ``reconfigure_loop``; see the role's defaults for the thresholds."""
    limits = reconfigure_loop.LoopLimits(
        maps=_limits({"interval": interval, "poll": poll, "slack": slack}),
        call_seconds=float(call),
        ping_seconds=float(ping),
        failures=int(failures),
    )
    return reconfigure_loop.reconfigure_loop(triage, limits)


def local_delivery_evidence(
    triage: Mapping[str, Any], work_dir: str, disk_percent: int, inodes_percent: int
) -> dict[str, Any]:
    """The section ``local_delivery``; see the role's defaults for the thresholds."""
    limits = local_delivery.DiskLimits(int(disk_percent), int(inodes_percent))
    return local_delivery.local_delivery(triage, Path(work_dir), limits)


class FilterModule:
    """Filters over the fact ``triage``."""

    def filters(self) -> dict[str, Any]:
        """Names as used in the roles."""
        return {
            "container_evidence": container_evidence,
            "address_map_evidence": address_map_evidence,
            "reconfigure_loop_evidence": reconfigure_loop_evidence,
            "local_delivery_evidence": local_delivery_evidence,
        }
