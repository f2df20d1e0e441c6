# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge the evidence of a triage by the table of findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ansible.module_utils
from ansible import constants as C
from ansible.errors import AnsibleFilterError

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

from ansible.module_utils.cabalmail.verdict import TableError, judge  # noqa: E402


def triage_findings(
    triage: Mapping[str, Any], table: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Ranked findings, the verdict and what could not be judged."""
    try:
        return judge(triage, table, options)
    except TableError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Filters over the fact ``triage``."""

    def filters(self) -> dict[str, Any]:
        """Names as used in the roles."""
        return {"triage_findings": triage_findings}
