#!/usr/bin/python
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: mail_dns_info
short_description: Check what DNS says about sending domains and outbound addresses
description:
  - For each sending domain SPF (evaluated for each outbound address as RFC 7208 says), the DKIM key of a selector,
    the DMARC record (its own or the organisational domain's), MX, MTA-STS and TLS-RPT. For each outbound address the
    PTR record, whether its name leads back, and whether the name in HELO resolves.
  - Which lists of senders (DNSBL) the addresses and mail domains are on. A list that refuses to answer, is dead or
    answers what it does not document says nothing, neither listed nor not listed.
  - What DNS did not say (server failure, refusal, silence, an answer that cannot be read) is C(unavailable), never
    C(missing). Every answer is returned with its question, the resolver and the time.
author: The cabalmail-runbooks authors
version_added: "0.1.0"
options:
  domains:
    description: The sending domains.
    type: list
    elements: str
    default: []
  addresses:
    description: The addresses that mail leaves from, IPv4 or IPv6. Without them SPF cannot be judged.
    type: list
    elements: str
    default: []
  control_domain:
    description: The deployment's control domain, whose records all sending domains refer to.
    type: str
    required: true
  selector:
    description: The DKIM selector.
    type: str
    default: cabal
  helo:
    description: The name that the outbound tier gives in HELO; by default C(smtp-out.) and the control domain.
    type: str
  mail_domains:
    description:
      - The deployment's mail domains (apexes). They and the control domain are looked up in the lists of domains.
      - DMARC reports should go to O(dmarc_inbox) below one of them.
    type: list
    elements: str
    default: []
  dmarc_inbox:
    description: The address that DMARC reports should go to, up to the mail domain.
    type: str
    default: dmarc-reports@mail-admin
  blocklists:
    description: Lists of senders to ask, as in C(data/blocklists.yml).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The list's name.
        type: str
        required: true
      zone:
        description: Its DNS zone.
        type: str
        required: true
      kind:
        description: Whether it lists addresses or domains.
        type: str
        required: true
        choices: [ip, domain]
      families:
        description: The IP versions that it lists.
        type: list
        elements: int
        choices: [4, 6]
        default: [4]
      weight:
        description: How much a listing costs.
        type: str
        required: true
        choices: [high, medium, low]
      meaning:
        description: What it lists.
        type: str
        required: true
      codes:
        description: The answers that are listings, and what each means.
        type: dict
        required: true
      bits:
        description: Whether the last numbers of the codes are bits that add up.
        type: bool
        default: false
      refused:
        description: Its own answers for "you may not ask"; 127.255.255.0/24 means that on every list.
        type: list
        elements: str
        default: []
      test:
        description: The entry that it always has; by default 127.0.0.2, or C(test) for a list of domains.
        type: str
        default: ""
      delist:
        description: The page on which removal is asked for.
        type: str
        required: true
  resolvers:
    description:
      - Resolvers to ask, each an IP address or an IP address and a port.
      - This machine's own, when left out or empty.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds to wait for one answer.
    type: float
    default: 2
  tries:
    description: How often a question is put when nothing comes back, over all resolvers in turn.
    type: int
    default: 2
  deadline:
    default: 10
extends_documentation_fragment:
  - cabalmail.deadline
attributes:
  check_mode:
    support: full
    description: Only reads, so check mode makes no difference.
requirements:
  - dnspython >= 2.6
  - publicsuffixlist
"""

EXAMPLES = r"""
- name: Check two sending domains
  mail_dns_info:
    domains: [news.example.com, shop.example.com]
    addresses: [198.51.100.125]
    control_domain: control.example.net
    resolvers: [192.0.2.53, "192.0.2.54:5353"]
  register: checked

- name: Show the domains whose SPF record does not cover us
  ansible.builtin.debug:
    msg: "{{ checked.mail_dns.domains | selectattr('spf.status', 'equalto', 'fail') | map(attribute='domain') }}"
"""

RETURN = r"""
status:
  description: C(complete), C(partial) or C(unavailable), by what DNS said.
  returned: always
  type: str
  sample: complete
reasons:
  description: One sentence for each kind of failure. Empty when complete.
  returned: always
  type: list
  elements: str
seconds:
  description: How long the checks took.
  returned: always
  type: float
mail_dns:
  description: The findings.
  returned: always
  type: dict
  contains:
    domains:
      description: For each domain C(spf), C(dkim), C(dmarc), C(mx), C(mta_sts) and C(tls_rpt), each with C(status)
        (C(ok), C(missing), C(invalid), C(fail), C(unavailable)), the record, C(problem), C(differs) (from what the
        deployment publishes), C(publish) (that record in full) and C(queries) (the questions that it rests on).
      type: list
      elements: dict
      returned: always
    addresses:
      description: For each outbound address C(ptr), C(fcrdns) (true, false or null for unknown) and C(helo).
      type: list
      elements: dict
      returned: always
    blocklists:
      description: C(lists) with the state of each, and C(results), for each list and each address or domain C(status)
        (C(listed), C(not_listed), C(unavailable)), C(codes), C(meanings), what the list C(says), and C(queries).
      type: dict
      returned: always
    queries:
      description: Each question with its answer, the resolver and the time.
      type: list
      elements: dict
      returned: always
    queries_total:
      description: Number of questions; more than are listed when there were very many.
      type: int
      returned: always
"""

import ipaddress
import time
import traceback
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from ansible.module_utils.mail_dns.blocklist import Blocklist
    from ansible.module_utils.mail_dns.check import Request, run
    from ansible.module_utils.mail_dns.resolve import parse_server, system_servers
except ImportError:
    IMPORT_ERROR = traceback.format_exc()
else:
    IMPORT_ERROR = None

BLOCKLIST_SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "zone": {"type": "str", "required": True},
    "kind": {"type": "str", "required": True, "choices": ["ip", "domain"]},
    "families": {"type": "list", "elements": "int", "choices": [4, 6], "default": [4]},
    "weight": {"type": "str", "required": True, "choices": ["high", "medium", "low"]},
    "meaning": {"type": "str", "required": True},
    "codes": {"type": "dict", "required": True},
    "bits": {"type": "bool", "default": False},
    "refused": {"type": "list", "elements": "str", "default": []},
    "test": {"type": "str", "default": ""},
    "delist": {"type": "str", "required": True},
}
ARGUMENT_SPEC: dict[str, Any] = {
    "domains": {"type": "list", "elements": "str", "default": []},
    "addresses": {"type": "list", "elements": "str", "default": []},
    "control_domain": {"type": "str", "required": True},
    "selector": {"type": "str", "default": "cabal"},
    "helo": {"type": "str"},
    "mail_domains": {"type": "list", "elements": "str", "default": []},
    "dmarc_inbox": {"type": "str", "default": "dmarc-reports@mail-admin"},
    "blocklists": {"type": "list", "elements": "dict", "default": [], "options": BLOCKLIST_SPEC},
    "resolvers": {"type": "list", "elements": "str", "default": []},
    "timeout": {"type": "float", "default": 2},
    "tries": {"type": "int", "default": 2},
    "deadline": {"type": "float", "default": 10},
}


def blocklist_of(row: dict[str, Any]) -> Blocklist:
    """A row of the option blocklists; raises ValueError with one sentence."""
    entry = Blocklist(**{**row, "zone": row["zone"].rstrip(".").lower()})
    for code in [*entry.codes, *entry.refused, *([entry.test_entry] if entry.kind == "ip" else [])]:
        try:
            ipaddress.ip_address(code)
        except ValueError:
            raise ValueError(f"The option blocklists: '{code}' of {entry.name} is no IP address.") from None
    return entry


def request_of(params: dict[str, Any]) -> Request:
    """Turn the module's options into a request; raises ValueError with one sentence."""
    for name in ("timeout", "tries", "deadline"):
        if params[name] <= 0:
            raise ValueError(f"The option {name} must be more than 0, not {params[name]:g}.")
    for address in params["addresses"]:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ValueError(f"The option addresses holds '{address}', which is no IP address.") from None
    return Request(
        domains=params["domains"],
        addresses=params["addresses"],
        control_domain=params["control_domain"],
        selector=params["selector"],
        helo=params["helo"] or "",
        mail_domains=params["mail_domains"],
        dmarc_inbox=params["dmarc_inbox"],
        blocklists=[blocklist_of(row) for row in params["blocklists"]],
        servers=[parse_server(text) for text in params["resolvers"]] or system_servers(),
        timeout=params["timeout"],
        tries=params["tries"],
        deadline=params["deadline"],
    )


def main() -> None:
    """Entry point."""
    began = time.monotonic()
    module = AnsibleModule(ARGUMENT_SPEC, supports_check_mode=True)
    if IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("dnspython"), exception=IMPORT_ERROR)
    try:
        request = request_of(module.params)
    except ValueError as exc:
        module.fail_json(msg=str(exc))
    section = run(request)
    module.exit_json(
        changed=False,
        status=section["status"],
        reasons=section["reasons"],
        seconds=round(time.monotonic() - began, 3),
        mail_dns=section,
    )


if __name__ == "__main__":
    main()
