# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a step may take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import ansible.module_utils
from ansible import constants as C

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

from ansible.module_utils.cabalmail.time import parse_rfc3339  # noqa: E402

# Judging, writing and printing the report takes about a second, Ansible's own start another; on a busy machine more.
RESERVED_SECONDS = 8.0
LEAST_SECONDS = 1.0
# A step keeps its deadline by itself and then has evidence to show; only one that does not is ended from outside.
GRACE_SECONDS = 5.0


def seconds_left(run: Mapping[str, Any], share: float) -> float:
    """Seconds that a step may take now.

    Args:
        run: the section ``run`` of the fact ``triage`` (``started``, ``deadline_seconds``).
        share: of what is left of the deadline, 0 to 1: a step that is quick leaves more to those after it.
    """
    used = (datetime.now(UTC) - parse_rfc3339(run["started"])).total_seconds()
    left = float(run["deadline_seconds"]) - used - RESERVED_SECONDS
    return round(max(LEAST_SECONDS, left * share), 1)


def hard_stop(run: Mapping[str, Any], seconds: float) -> int:
    """Whole seconds after which a step that was given ``seconds`` is ended, so that the run keeps its deadline."""
    return math.ceil(min(float(seconds) + GRACE_SECONDS, seconds_left(run, 1.0)))


class FilterModule:
    """Filters over the section ``run``."""

    def filters(self) -> dict[str, Any]:
        """Names as used in the playbooks."""
        return {"seconds_left": seconds_left, "hard_stop": hard_stop}
