# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence on whether the world accepts our mail, out of what the run has read already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible import constants as C

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

from ansible.module_utils.cabalmail.deliverability import (  # noqa: E402
    TIER,
    deliverability,
    mail_domains,
    outbound_addresses,
    sending_domains,
    states_of_domains,
)
from ansible.module_utils.cabalmail.signing import expected_domains, signing_tables  # noqa: E402


def deliverability_evidence(
    triage: Mapping[str, Any], checked: Mapping[str, Any], work_dir: str, control_domain: str, small_sample: int
) -> dict[str, Any]:
    """The section ``deliverability``.

    Args:
        checked: the registered result of mail_dns_info.
        work_dir: the run's private directory, where the table of addresses lies.
        control_domain: the deployment's control domain.
        small_sample: fewer failed recipients than this say little about shares.
    """
    dns = checked.get("mail_dns")
    if not isinstance(dns, Mapping):
        said = " ".join(str(checked.get("msg") or "the check did not run and did not say why").split())
        dns = {"status": "unavailable", "reasons": [f"DNS: {said}"]}
    domains = {str(row["domain"]) for row in dns.get("domains") or []}
    states = states_of_domains(Path(work_dir), domains)
    tasks = [row for row in (triage.get("containers") or {}).get("tasks") or [] if row.get("tier") == TIER]
    tables = signing_tables(tasks, Path(work_dir), expected_domains(Path(work_dir)))
    return deliverability(triage, dns, states, control_domain, int(small_sample), tables)


class FilterModule:
    """Filters over the fact ``triage``."""

    def filters(self) -> dict[str, Any]:
        """Names as used in the role."""
        return {
            "deliverability_domains": sending_domains,
            "deliverability_mail_domains": mail_domains,
            "deliverability_addresses": outbound_addresses,
            "deliverability_evidence": deliverability_evidence,
        }
