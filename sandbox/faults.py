# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults laid over the API: by operation, by parameters, by whose call it is, for a share of the calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .model import ACCOUNT_ID, Fault
from .wire import Call

TASK_PRINCIPAL = "task"


@dataclass
class _Armed:
    fault: Fault
    seen: int = 0
    hits: int = 0


class Faults:
    """Decides which fault, if any, a call meets. The first declared one that matches is taken."""

    def __init__(self, faults: tuple[Fault, ...] = ()) -> None:
        self._armed = [_Armed(fault) for fault in faults]

    def pick(self, call: Call) -> Fault | None:
        """Return the fault for this call, counting it: a rate of 0.5 hits every second call, in any run."""
        for armed in self._armed:
            fault = armed.fault
            if not _matches(fault, call) or (fault.times is not None and armed.hits >= fault.times):
                continue
            armed.seen += 1
            if math.floor(armed.seen * fault.rate) > math.floor((armed.seen - 1) * fault.rate):
                armed.hits += 1
                return fault
            return None
        return None


def _matches(fault: Fault, call: Call) -> bool:
    who = "task" if call.principal == TASK_PRINCIPAL else "operator"
    if fault.who not in ("any", who):
        return False
    if fault.operation not in ("*", f"{call.service}.*", call.name):
        return False
    return all(_has(call.parameters.get(key), value) for key, value in fault.where.items())


def _has(actual: Any, wanted: Any) -> bool:
    return actual == wanted or (isinstance(actual, list) and wanted in actual)


def message(fault: Fault, call: Call) -> str:
    """The declared message, or AWS's usual one for the error."""
    if fault.message:
        return fault.message
    code = fault.error or ""
    if "AccessDenied" in code or "Unauthorized" in code:
        action = call.name.replace("cloudwatch.", "cloudwatch:", 1).replace(".", ":", 1)
        return (
            f"User: arn:aws:iam::{ACCOUNT_ID}:user/{call.principal} is not authorized to perform: {action} because no "
            f"identity-based policy allows the {action} action"
        )
    if "Throttl" in code or "LimitExceeded" in code:
        return "Rate exceeded"
    return "The request could not be processed."
