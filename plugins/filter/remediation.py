# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restart would be, what stands against it, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible import constants as C

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

from ansible.module_utils.cabalmail import audit, recovery, remediation  # noqa: E402
from ansible.module_utils.cabalmail.address_table import read_table  # noqa: E402
from ansible.module_utils.cabalmail.failed_recipient import read_failures  # noqa: E402
from ansible.module_utils.cabalmail.time import format_rfc3339, parse_rfc3339  # noqa: E402

FAILED = "failed_recipients.jsonl"
Facts = Mapping[str, Any]


def remediation_plan(triage: Facts, options: Facts, read: Facts, approved: Facts | None = None) -> dict[str, Any]:
    """What would be restarted, and the gates that it has to pass, as of now.

    Args:
        triage: the fact.
        options: the role's settings.
        read: the registered results of service_restart_info, one a service.
        approved: the finding that may be acted on, when it is not any.
    """
    live = {
        str(row["item"]): row
        for row in read.get("results") or []
        if not row.get("failed") and not row.get("skipped") and "item" in row
    }
    return remediation.plan(triage, options, datetime.now(UTC), live, approved or None)


def remediation_proof(
    triage: Facts,
    before: Facts,
    plan: Facts,
    action: Facts,
    last: Facts,
    work_dir: str,
    after_dir: str,
    watch_seconds: float,
) -> dict[str, Any]:
    """What is true after a restart.

    Args:
        triage: the fact, with evidence read after the restart.
        before: the side before.
        plan: the plan.
        action: what was done (``asked_at``).
        last: the proof of the look before, empty at the first.
        work_dir: private directory of the evidence before.
        after_dir: that of the evidence after.
        watch_seconds: for how long no bounce may come once all else is in order.
    """
    at = datetime.now(UTC)
    good_since = last.get("good_since")
    again = _bounced_again(triage, Path(work_dir), Path(after_dir), good_since)
    after = recovery.side(triage, str(plan["tier"]), format_rfc3339(at))
    watched = _seconds(good_since, at)
    checks = recovery.prove(before, after, plan, str(action["asked_at"]), again, (watched, float(watch_seconds)))
    good = recovery.ready(checks)
    return {
        "at": format_rfc3339(at),
        "looks": int(last.get("looks") or 0) + 1,
        "after": after,
        "checks": checks,
        "good_since": (good_since or format_rfc3339(at)) if good else None,
        "watched_seconds": watched if good else 0.0,
        "seconds": _seconds(action["asked_at"], at),
    }


def _seconds(since: str | None, at: datetime) -> float:
    return (at - parse_rfc3339(since)).total_seconds() if since else 0.0


def _bounced_again(triage: Facts, before: Path, after: Path, good_since: str | None) -> int | None:
    if (triage.get("tiers") or {}).get("status") != "complete":
        return None
    table = read_table(after / "addresses.jsonl")
    if table is None:
        return None
    since = parse_rfc3339(good_since) if good_since else datetime.now(UTC)
    return recovery.bounced_again(read_failures(before / FAILED), read_failures(after / FAILED), since, table.index)


def remediation_done(result: Facts, asked_at: str) -> dict[str, Any]:
    """What ecs_service_redeploy said. A module that ended without a word of the outcome may have acted."""
    if result.get("outcome"):
        return dict(result)
    said = " ".join(str(result.get("msg") or "it ended without a word").split())[:300]
    return {"outcome": "unknown", "changed": True, "asked_at": asked_at, "msg": f"How it went is not known: {said}"}


def remediation_ended_loops(results: Sequence[Facts], asked_at: str) -> dict[str, Any]:
    """One action out of the sessions in which loops were ended (see files/end_loop.sh for their status)."""
    rows = [row for result in results for row in result.get("results") or [result]]
    ended = [row for row in rows if row.get("rc") == 0]
    gone = [row for row in rows if row.get("rc") == audit.LOOP_GONE]
    said = [
        str(row.get("reason") or row.get("stderr") or row.get("msg") or "").strip() for row in rows if row.get("rc")
    ]
    said += [str(row.get("reason") or row.get("msg")) for row in rows if row.get("rc") is None]
    # Status 1: it was ended, and no new one came. A session without an end, or a module that died, may have ended it.
    unknown = any(row.get("rc") == 1 or row.get("outcome") not in ("completed", "unreachable") for row in rows)
    if len(gone) == len(rows):
        outcome = "nothing_to_do"
    elif len(ended) == len(rows):
        outcome = "steady"
    else:
        outcome = "unknown" if ended or unknown else "refused"
    return {
        "outcome": outcome,
        "changed": bool(ended) or unknown,
        "asked_at": asked_at,
        "msg": f"{len(ended)} of {len(rows)} loops were ended{'; ' + said[0] if said else ''}.",
    }


def remediation_result(decided: Facts, action: Facts, proof: Facts, before: Facts, said: str = "") -> dict[str, Any]:
    """The section ``remediation`` at the end: the plan with what was done and what came of it."""
    return audit.result(decided, action, proof, before, said)


def remediation_audit(triage: Facts, who: Facts) -> dict[str, Any]:
    """The section ``remediation`` with its audit record."""
    return {**triage["remediation"], "audit": audit.record(triage, who, format_rfc3339(datetime.now(UTC)))}


class FilterModule:
    """Filters over the fact ``triage``."""

    def filters(self) -> dict[str, Any]:
        """Names as used in the role."""
        return {
            "remediation_plan": remediation_plan,
            "remediation_services": remediation.services,
            "remediation_stop": remediation.stop,
            "remediation_side": recovery.side,
            "remediation_proof": remediation_proof,
            "remediation_done": remediation_done,
            "remediation_ended_loops": remediation_ended_loops,
            "remediation_result": remediation_result,
            "remediation_audit": remediation_audit,
        }
