# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The deployment's own DNS, as its Terraform publishes it, and a run of all checks against it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.mail_dns.check import Request, run
from ansible.module_utils.mail_dns.resolve import parse_server

sys.path.insert(0, str(Path(__file__).parent))

from mail_dns_server import CONTROL, IP, DnsServer, Zone, serving, standard


@pytest.fixture
def zone() -> Zone:
    """The deployment's records; tests change them before they check."""
    return standard()


Check = Callable[..., dict[str, Any]]


@pytest.fixture
def check(zone: Zone) -> Check:
    """Run all checks for one domain against a server with C(zone)."""

    def checked(domain: str = "news.harborlight.example", server: DnsServer | None = None, **options: Any) -> Any:
        with serving(server or DnsServer(zone)) as address:
            request = {
                "domains": [domain],
                "addresses": [IP],
                "control_domain": CONTROL,
                "timeout": 0.5,
                "deadline": 5.0,
                "servers": [parse_server(address)],
                **options,
            }
            return run(Request(**request))

    return checked
