# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole triage of a small incident, beside the runbook's own commands on the same sandbox; and its page alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from module_utils.cabalmail import history, rendering, report

from .stand import CLUSTER, REPO, TIERS, Stand, program, stand
from .timing import Options, Row, Usage, command, side_by_side, table, timed

SCENARIO = "smtp-in-stale-map"
# The AWS CLI's version 1 has no `logs tail`; filter-log-events asks for the same. The patterns are those that work: the
# runbook's histogram of codes asks for a blank that never follows a code.
_READ = (
    "aws logs filter-log-events --log-group-name /ecs/cabal-{tier} --start-time $((($(date +%s)-1800)*1000))"
    " --filter-pattern '\"dsn=5\"' --query 'events[].[message]' --output text"
)
_COUNT = _READ + " | wc -l"
_CODES = _READ + r" | grep -oE 'dsn=5\.[0-9]+\.[0-9]+' | sort | uniq -c | sort -rn | head"
_DOMAINS = _READ + " | grep -oE 'to=<[^@]*@[^>]*>' | awk -F'@' '{{print $2}}' | sort | uniq -c | sort -rn | head"
_TASK = (
    f"TASK=$(aws ecs list-tasks --cluster {CLUSTER} --service-name cabal-smtp-in --query 'taskArns[0]' --output text)"
)
_EXEC = f'aws ecs execute-command --cluster {CLUSTER} --task "$TASK" --container smtp-in --interactive --command '
_EXECS = [
    _EXEC + '"wc -l /etc/mail/virtusertable"',
    _EXEC + '"date -r /etc/mail/virtusertable"',
    _EXEC + "\"/bin/sh -c 'pgrep -af reconfigure || echo no-reconfigure-process'\"",
]


def by_hand(with_exec: bool) -> str:
    """The runbook's steps 1 to 3 as one script."""
    steps = [step.format(tier=tier) for tier in TIERS for step in (_COUNT, _CODES)]
    steps += [_DOMAINS.format(tier="smtp-out"), _TASK]
    return "\n".join(["set -eu", *steps, *(_EXECS if with_exec else [])])


def measure(options: Options) -> list[Row]:
    """Rows for the agent's delays off and on."""
    with stand(SCENARIO) as own:
        rows = [_row(own, options, delays, bar) for delays, bar in (("off", 3.0), ("on", 4.5))]
        return [*rows, _page_row(own, options)]


def _page_row(own: Stand, options: Options) -> Row:
    """What report.html and the index add to a run, with as many earlier runs as are ever read."""
    run = next((own.folder / "reports").glob("*/latest")).resolve()
    triage = json.loads((run / "triage.json").read_text(encoding="utf-8"))
    outcome = json.loads((run / "outcome.json").read_text(encoding="utf-8"))
    for number in range(history.MOST_RUNS):
        earlier = run.parent / f"20200101T000000Z-{number:04x}"
        earlier.mkdir(exist_ok=True)
        (earlier / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
    templates = REPO / "roles" / "report" / "templates"

    def page() -> None:
        runs, more = history.earlier(run.parent, run.name)
        said = report.outcome(triage, None)
        said["seen_before"], said["notifications"] = history.seen_before(said, runs), []
        rendering.report_page(triage, said, templates)
        rendering.index_page("sandbox", history.index_rows(runs), more, templates)

    used = side_by_side(options.runs, page=lambda: timed(page))["page"]
    what = f"report.html and an index of {history.MOST_RUNS} runs"
    return Row(what, f"{used.wall:.2f} s, CPU {used.cpu:.2f} s", "-", "-", "0.5 s", used.wall <= 0.5)


def _row(own: Stand, options: Options, delays: str, bar: float) -> Row:
    own.agent(delays=delays)
    playbook = str(Path(sys.executable).parent / "ansible-playbook")
    argv = [playbook, "triage.yml", "-e", f"report_dir={own.folder / 'reports'}"]
    plugin = program("session-manager-plugin") is not None
    script = by_hand(plugin)

    def triage() -> Usage:
        return command(argv, own.environment, folder=REPO)

    def shell() -> Usage:
        return command(["bash", "-c", script], own.environment, folder=own.folder, stdin=True)

    if program("aws") is None:
        found, beside, beside_measured = side_by_side(options.runs, triage=triage), "aws is not on PATH", "-"
    else:
        found = side_by_side(options.runs, triage=triage, shell=shell)
        execs = f", {len(_EXECS)} execute-command" if plugin else " (no ECS Exec: no session-manager-plugin on PATH)"
        beside = f"runbook's commands: 7 filter-log-events, list-tasks{execs}"
        beside_measured = f"{found['shell'].wall:.2f} s, CPU {found['shell'].cpu:.2f} s"
    ours = found["triage"]
    return Row(
        f"triage.yml on {SCENARIO}, delays {delays}",
        f"{ours.wall:.2f} s, CPU {ours.cpu:.2f} s",
        beside,
        beside_measured,
        f"{bar} s, and less than by hand",
        ours.wall <= bar and ("shell" not in found or ours.wall < found["shell"].wall),
    )


def main() -> None:
    print(table(measure(Options())))


if __name__ == "__main__":
    main()
