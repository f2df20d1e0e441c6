#!/usr/bin/python
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: ecs_exec
short_description: Run a command in ECS containers and get back exactly what it wrote
description:
  - Runs a command or script in containers of running ECS tasks through ECS Exec, many at once, and returns for each
    one its standard output, standard error and exit status.
  - Needs neither the AWS CLI nor the Session Manager plugin. It speaks the Session Manager data channel itself and
    gives what a terminal can't, which is both streams apart, every byte as it was written, and the command's own exit
    status.
  - Tells apart how it ended. C(completed) means that the command ended by itself and its output is whole, whatever its
    status; C(timed_out) that it was ended in the container at O(timeout); C(session_broke) that its end was not seen,
    so that nobody knows how it ended; C(unreachable) that it never started, with the reason.
  - A command starts only when the container has heard from this side over the session. So one whose session could not
    be opened, or whose answer from ECS was lost, has not run unseen, and to run it again is safe.
  - Writes nothing in the container and starts nothing that outlives the call. Output passes as text through the
    container's C(od), C(tr) and C(base64).
author: The cabalmail-runbooks authors
version_added: "0.1.0"
requirements:
  - websockets >= 15
  - cryptography
options:
  cluster:
    description: Name or ARN of the ECS cluster.
    type: str
    required: true
  services:
    description: Run in the tasks of these services. The results stand in this order.
    type: list
    elements: str
  tasks:
    description: Run in these tasks, given by id or ARN. The results stand in this order.
    type: list
    elements: str
  family:
    description: Run in the running tasks of this task definition family.
    type: str
  tasks_wanted:
    description:
      - In how many of these tasks to run. C(all), C(any) for one, or a number.
      - With C(any) or a number a task that can't be reached is replaced by the next one while there is one.
    type: str
    default: all
  container:
    description: Name of the container. Needed only where a task has more than one.
    type: str
  argv:
    description: The command as a list, started without a shell.
    type: list
    elements: str
  command:
    description: The command as a line for the container's C(sh), so variables, pipes and patterns work.
    type: str
  script:
    description:
      - Text of a script, of any length. It runs from a pipe and never becomes a file in the container.
      - C(sh) runs it, or what its first line names, as in C(#!/usr/bin/env python3).
      - A script too long for ECS's command is sent as input, so that it stays out of CloudTrail and process lists.
    type: str
  script_file:
    description: Path of a script on this side, sent as O(script) is.
    type: path
  script_args:
    description: Arguments of O(script) or O(script_file).
    type: list
    elements: str
    default: []
  stdin:
    description:
      - Text that becomes the command's standard input, as it is, without a line feed added. Standard input is empty
        when neither this nor O(stdin_file) is given. The container needs C(stty).
      - Ansible shows it with C(-vvv), so not for secrets.
    type: str
  stdin_file:
    description:
      - File on this side whose bytes become the command's standard input.
      - The way for secrets, which would stand in CloudTrail if they were part of the command. The container needs
        C(stty).
    type: path
  environment:
    description: Variables for the command. They are part of it as far as CloudTrail is concerned, so not for secrets.
    type: dict
    default: {}
  chdir:
    description: Directory in the container to start in.
    type: str
  timeout:
    description:
      - Seconds that the command may run in the container. Then its process group gets SIGTERM and, two seconds later,
        SIGKILL; what it wrote until then is returned. At most 1000000.
      - An idle session is cut by AWS after 20 minutes; the command is ended at O(timeout) all the same.
    type: float
    default: 60
  max_output:
    description:
      - Bytes of output, both streams together, that one task may send. More ends the session as C(session_broke).
      - 8388608 (8 MiB) by default. With O(dest) standard output, which then costs no memory, has no limit by default,
        and standard error has this one.
    type: int
  max_parallel:
    description: How many sessions run at once.
    type: int
    default: 50
  dest:
    description:
      - Existing directory on this side where each task's standard output goes as C(<task id>.out), mode 0600, byte for
        byte. Meant for what is large or private.
      - A file stands there only when it is whole.
    type: path
  read_only:
    description: Says that the command changes nothing. It then runs in check mode too, and C(changed) is false.
    type: bool
    default: false
  diagnose:
    description:
      - Looks at everything that is known to break ECS Exec, in each task, before anything is run, and returns what it
        found as RV(diagnosis). Tasks are tried all the same; where one can't be reached, its problems are added to the
        reason.
      - In check mode without O(read_only) it is all that is done, as amazon-ecs-exec-checker does it.
      - Needs more than running a command does, as C(ecs:DescribeTaskDefinition), C(ecs:DescribeClusters),
        C(ecs:DescribeContainerInstances), C(sts:GetCallerIdentity), C(iam:SimulatePrincipalPolicy), C(kms:DescribeKey),
        C(ec2:DescribeSubnets), C(ec2:DescribeVpcEndpoints), and for tasks on EC2 without a role
        C(ec2:DescribeInstances) and C(iam:GetInstanceProfile). What is not allowed is C(unknown), and the rest goes on.
    type: bool
    default: false
  fail_on_unreachable:
    description: Fail when the command did not end by itself in every task wanted.
    type: bool
    default: false
  deadline:
    description:
      - Seconds that the whole call may take, sessions that wait for their turn included. No limit by default.
    type: float
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
  - cabalmail.aws
attributes:
  check_mode:
    support: partial
    description: Runs commands in containers.
    details: Runs only with O(read_only=true); otherwise says what it would run and where, and what rules tasks out.
notes:
  - Ctrl-C and the C(timeout) of a task end the commands in the containers and the sessions. Where nothing can be done
    any more, as after C(kill -9) or the time limit of C(async), a command runs on until O(timeout).
  - An exit status other than 0 does not fail the task, since one of many containers must not hide the others. Say what
    a failure is with C(failed_when), as the examples do.
  - The caller needs C(ecs:ExecuteCommand), C(ecs:DescribeTasks) and C(ecs:ListTasks). C(ssm:TerminateSession) ends
    sessions at once; without it they are interrupted as by a key at a terminal. C(ecs:DescribeTaskDefinition) makes the
    reasons better. C(ssm:ResumeSession) carries a session on whose connection breaks; without it that is
    C(session_broke).
  - Proxies are taken from C(HTTPS_PROXY) and C(NO_PROXY), certificate authorities from O(aws_ca_bundle),
    C(AWS_CA_BUNDLE), C(REQUESTS_CA_BUNDLE) or C(SSL_CERT_FILE).
  - Where the cluster encrypts its sessions with a KMS key, the caller needs C(kms:GenerateDataKey) for it and the task
    role C(kms:Decrypt).
  - An option marked as secret by Ansible (O(secret_key) for example) is replaced wherever its value appears in a
    result. RV(results[].stdout_b64) and O(dest) don't suffer from that.
"""

EXAMPLES = r"""
- name: Ask every mail container how long its queue is
  ecs_exec:
    cluster: cabal-mail
    services: [cabal-imap, cabal-smtp-in, cabal-smtp-out]
    argv: [mailq, -Ac]
    timeout: 20
    read_only: true
  register: queues
  # An unknown status (null) is not 0 either.
  failed_when: queues.results | rejectattr('rc', 'eq', 0) | list | length > 0

- name: Show them
  ansible.builtin.debug:
    msg: "{{ item.service }} {{ item.task }}: {{ item.stdout }}"
  loop: "{{ queues.results }}"
  loop_control:
    label: "{{ item.task }}"

- name: Run a local script in one task, whichever can be reached
  ecs_exec:
    cluster: cabal-mail
    services: [cabal-imap]
    tasks_wanted: any
    script_file: files/probe.sh
    script_args: [/etc/mail]
    read_only: true

- name: Fetch a large file, byte for byte
  ecs_exec:
    cluster: cabal-mail
    tasks: [0123456789abcdef0123456789abcdef]
    argv: [cat, /var/log/maillog]
    dest: /tmp/logs
    timeout: 300
    read_only: true

- name: Only say what would keep ECS Exec from working, and run nothing
  ecs_exec:
    cluster: cabal-mail
    services: [cabal-imap]
    argv: ["true"]
    diagnose: true
  check_mode: true
  register: exec

- name: Give a command text to read, in the tasks of any service
  ecs_exec:
    cluster: cabal-mail
    family: cabal-smtp-in
    argv: [sendmail, -bt]
    stdin: |
      /map access example.com
    read_only: true

- name: Hand a secret to a command without it standing in any log
  ecs_exec:
    cluster: cabal-mail
    services: [cabal-smtp-out]
    command: install -m 0600 /dev/stdin /etc/opendkim/keys/cabal
    stdin_file: "{{ key_file }}"
    fail_on_unreachable: true
"""

RETURN = r"""
status:
  description: C(complete) when the command ended by itself in all tasks wanted, C(partial) in some, C(unavailable)
    in none. In check mode without O(read_only), whether it would have been started.
  returned: always
  type: str
  sample: complete
reasons:
  description: One sentence for each task where it did not, and for each service without a task. Empty when complete.
  returned: always
  type: list
  elements: str
msg:
  description: What would run, and in how many tasks.
  returned: in check mode without O(read_only)
  type: str
  sample: "Would run mailq -Ac in 2 of 3 tasks."
would_run_in:
  description: The tasks in which the command would run.
  returned: in check mode without O(read_only)
  type: list
  elements: str
diagnosis:
  description: One entry a task, in the order of the tasks.
  returned: with O(diagnose=true)
  type: list
  elements: dict
  contains:
    task:
      description: Id of the task.
      type: str
      returned: always
    container:
      description: Name of the container.
      type: str
      returned: always
    checks:
      description:
        - What each check says, as C(name) (C(task), C(definition), C(init_process), C(container_instance), C(cluster),
          C(caller), C(task_role), C(vpc_endpoints)), C(status) and C(text).
        - The status is C(ok), C(problem), C(warning) for what may be meant so, or C(unknown) for what could not be
          looked at.
      type: list
      elements: dict
      returned: always
results:
  description: One entry a task, in a stable order, tasks that can't be reached included.
  returned: always
  type: list
  elements: dict
  contains:
    task:
      description: Id of the task.
      type: str
      returned: always
      sample: 0123456789abcdef0123456789abcdef
    task_arn:
      description: ARN of the task.
      type: str
      returned: always
    service:
      description: Service that started the task; null when none did.
      type: str
      returned: always
      sample: cabal-imap
    family:
      description: Task definition family.
      type: str
      returned: always
      sample: imap
    container:
      description: Name of the container.
      type: str
      returned: always
      sample: imap
    zone:
      description: Availability zone.
      type: str
      returned: always
      sample: us-east-1a
    ip:
      description: Private IPv4 address.
      type: str
      returned: always
      sample: 10.0.2.45
    started_at:
      description: When the task started, RFC 3339.
      type: str
      returned: always
      sample: '2026-11-24T21:53:14Z'
    task_definition:
      description: ARN of the task definition.
      type: str
      returned: always
    outcome:
      description: C(completed), C(timed_out), C(session_broke) or C(unreachable).
      type: str
      returned: always
      sample: completed
    reason:
      description: Why it is not C(completed), in one sentence; null otherwise.
      type: str
      returned: always
    rc:
      description: The command's exit status, 128 and the signal's number when a signal ended it. Null when not known.
      type: int
      returned: always
      sample: 0
    stdout:
      description: Standard output as UTF-8, other bytes replaced. Null when not known to be whole, and when it is in
        RV(results[].dest).
      type: str
      returned: always
    stdout_b64:
      description: The bytes of standard output in base64. Null where RV(results[].stdout) is.
      type: str
      returned: always
    stderr:
      description: Standard error as UTF-8, other bytes replaced. Null when not known to be whole.
      type: str
      returned: always
    dest:
      description: File that holds standard output; null without O(dest) and when it is not whole.
      type: str
      returned: always
    seconds:
      description: How long this session took.
      type: float
      returned: always
      sample: 1.4
"""

import base64
import shlex
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.aws_support import aws_module, client, explain
from ansible.module_utils.basic import missing_required_lib
from ansible.module_utils.cabalmail.time import format_rfc3339

try:
    from ansible.module_utils.ecs_exec import wrapper
    from ansible.module_utils.ecs_exec.aws import Aws
    from ansible.module_utils.ecs_exec.diagnosis import Check, Diagnosis
    from ansible.module_utils.ecs_exec.runner import Outcome, Plan, call_within, run
    from ansible.module_utils.ecs_exec.targets import Target, TargetError, find
    from ansible.module_utils.ecs_exec.wrapper import Program, WrapperError
except ImportError as exc:
    IMPORT_ERROR, MISSING = traceback.format_exc(), (exc.name or "websockets").partition(".")[0]
else:
    IMPORT_ERROR, MISSING = None, ""

DEFAULT_MAX_OUTPUT = 8 * 1024 * 1024

ARGUMENT_SPEC: dict[str, Any] = {
    "cluster": {"type": "str", "required": True},
    "services": {"type": "list", "elements": "str"},
    "tasks": {"type": "list", "elements": "str"},
    "family": {"type": "str"},
    "tasks_wanted": {"type": "str", "default": "all"},
    "container": {"type": "str"},
    "argv": {"type": "list", "elements": "str"},
    "command": {"type": "str"},
    "script": {"type": "str"},
    "script_file": {"type": "path"},
    "script_args": {"type": "list", "elements": "str", "default": []},
    "stdin": {"type": "str"},
    "stdin_file": {"type": "path"},
    "environment": {"type": "dict", "default": {}},
    "chdir": {"type": "str"},
    "timeout": {"type": "float", "default": 60.0},
    "max_output": {"type": "int"},
    "max_parallel": {"type": "int", "default": 50},
    "dest": {"type": "path"},
    "read_only": {"type": "bool", "default": False},
    "diagnose": {"type": "bool", "default": False},
    "fail_on_unreachable": {"type": "bool", "default": False},
    "deadline": {"type": "float"},
}


class UsageError(ValueError):
    """An option that can't be used; one sentence."""


def read_file(option: str, path: str) -> bytes:
    """Return the bytes of a local file that an option names."""
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise UsageError(f"The file '{path}' (option {option}) can't be read: {exc.strerror}.") from exc


def program_of(params: dict[str, Any]) -> Program:
    """Build what to run from the options."""
    script = params["script"]
    if params["script_file"] is not None:
        try:
            script = read_file("script_file", params["script_file"]).decode()
        except UnicodeDecodeError:
            raise UsageError(f"The script '{params['script_file']}' (option script_file) is not UTF-8 text.") from None
    argv: Sequence[str] = params["argv"] or ()
    if params["command"] is not None:
        argv = ("/bin/sh", "-c", params["command"])
    if params["script_args"] and script is None:
        raise UsageError("The option script_args needs script or script_file.")
    return Program(
        argv=tuple(argv),
        script=script,
        arguments=tuple(params["script_args"]),
        environment={name: str(value) for name, value in params["environment"].items()},
        directory=params["chdir"],
        seconds=params["timeout"],
        has_stdin=params["stdin"] is not None or params["stdin_file"] is not None,
    )


def stdin_of(params: dict[str, Any]) -> bytes:
    """Return what the command reads, from the options."""
    if params["stdin_file"] is not None:
        return read_file("stdin_file", params["stdin_file"])
    return (params["stdin"] or "").encode()


def plan_of(params: dict[str, Any], started: float) -> Plan:
    """Check the options and build the plan; raise UsageError or WrapperError."""
    for name in ("timeout", "max_parallel", "max_output", "deadline"):
        if params[name] is not None and not 0 < params[name] < float("inf"):
            raise UsageError(f"The option {name} has to be a number greater than 0.")
    for name in ("services", "tasks", "family", "argv"):
        if params[name] is not None and not params[name]:
            raise UsageError(f"The option {name} is empty: give it a value or leave it out.")
    dest = Path(params["dest"]) if params["dest"] is not None else None
    if dest is not None and not dest.is_dir():
        raise UsageError(f"'{dest}' (option dest) is no directory: create it first.")
    max_output = params["max_output"]
    if max_output is None and dest is None:
        max_output = DEFAULT_MAX_OUTPUT
    program = program_of(params)
    wrapper.prepare(program)  # what can't be passed on is said before any call
    return Plan(
        program=program,
        stdin=stdin_of(params),
        max_output=max_output,
        max_parallel=params["max_parallel"],
        deadline=started + params["deadline"] if params["deadline"] is not None else None,
        dest=dest,
        ca_bundle=params.get("aws_ca_bundle"),
        reader=1,  # Ansible reads standard output until the task's own time limit, and then leaves the module alone
    )


def wanted_of(text: str) -> int | None:
    """Return how many tasks are wanted; None: all."""
    if text == "all":
        return None
    if text == "any":
        return 1
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UsageError(f"The option tasks_wanted is all, any, or a number from 1 on, not '{text}'.")


def run_in(plan: Plan, targets: Sequence[Target], wanted: int | None, aws: Aws) -> list[Outcome]:
    """Run in all targets, or in the first ones that can be reached until enough have been."""
    if wanted is None:
        return run(plan, targets, aws)
    outcomes: list[Outcome] = []
    rest = sorted(targets, key=lambda target: target.problem is not None)
    while rest and (missing := wanted - sum(outcome.outcome != "unreachable" for outcome in outcomes)) > 0:
        outcomes += run(plan, rest[:missing], aws)
        rest = rest[missing:]
    order = {target: position for position, target in enumerate(targets)}
    return sorted(outcomes, key=lambda outcome: order[outcome.target])


def result_of(outcome: Outcome) -> dict[str, Any]:
    """Put one outcome into the form that RETURN describes."""
    target = outcome.target
    return {
        "task": target.task,
        "task_arn": target.task_arn,
        "service": target.service,
        "family": target.family,
        "container": target.container,
        "zone": target.zone,
        "ip": target.ip,
        "started_at": format_rfc3339(target.started_at) if target.started_at is not None else None,
        "task_definition": target.task_definition,
        "outcome": outcome.outcome,
        "reason": outcome.reason,
        "rc": outcome.rc,
        "stdout": text_of(outcome.stdout),
        "stdout_b64": base64.b64encode(outcome.stdout).decode() if outcome.stdout is not None else None,
        "stderr": text_of(outcome.stderr),
        "dest": str(outcome.dest) if outcome.dest is not None else None,
        "seconds": outcome.seconds,
    }


def text_of(data: bytes | None) -> str | None:
    """Decode output for people; what is no UTF-8 is replaced."""
    return data.decode("utf-8", "replace") if data is not None else None


def reasons_of(outcomes: Sequence[Outcome], services: Sequence[str], targets: Sequence[Target]) -> list[str]:
    """One sentence for each thing that keeps the answer from being complete."""
    present = {target.service for target in targets}
    reasons = [f"Service {name} has no running task." for name in services if name.rpartition("/")[2] not in present]
    for outcome in outcomes:
        if outcome.outcome != "completed":
            name = outcome.target.service or outcome.target.family or "task"
            reasons.append(f"{name} {outcome.target.task}: {outcome.reason}")
    if not targets and not reasons:
        reasons.append("There is no running task to run the command in.")
    return reasons


def status_of(completed: int, reasons: Sequence[str], wanted: int | None) -> str:
    """Sum up: enough tasks completed, some, or none."""
    if not completed:
        return "unavailable"
    enough = completed >= wanted if wanted is not None else not reasons
    return "complete" if enough else "partial"


def aws_of(module: Any, plan: Plan) -> tuple[Any, Aws]:
    """Make the ECS client and what the sessions need of AWS."""
    pool = min(plan.max_parallel, 50)
    ecs = client(module, "ecs", max_attempts=2, max_pool_connections=pool)
    ssm = client(module, "ssm", max_attempts=2, max_pool_connections=pool)
    credentials = module.cabalmail_session.get_credentials()
    return ecs, Aws(
        ecs, ssm, credentials, ecs.meta.region_name, lambda: client(module, "kms", max_pool_connections=pool)
    )


def find_targets(module: Any, ecs: Any, plan: Plan) -> list[Target]:
    """List and describe the tasks meant, within the deadline; end the module in one sentence when that fails."""
    params = module.params

    def look() -> list[Target]:
        return find(
            ecs,
            params["cluster"],
            services=params["services"] or [],
            tasks=params["tasks"] or [],
            family=params["family"],
            container=params["container"],
        )

    try:
        return call_within(look, float("inf") if plan.deadline is None else plan.deadline - time.monotonic())
    except TargetError as exc:
        fail(module, str(exc))
    except TimeoutError:
        fail(module, f"The tasks can't be found: ECS did not answer within {params['deadline']:g} s.")
    except Exception as exc:  # boto3's exceptions are made at run time
        fail(module, f"The tasks can't be found: {explain(exc)}")


def diagnose(module: Any, targets: Sequence[Target], plan: Plan) -> list[list[Check]]:
    """Make all checks for all targets, within the deadline."""
    made: dict[str, Any] = {}

    def clients(service: str) -> Any:
        if service not in made:
            made[service] = client(module, service, max_attempts=2)
        return made[service]

    def look() -> list[list[Check]]:
        diagnosis = Diagnosis(clients)
        return [diagnosis.of(target) for target in targets]

    try:
        return call_within(look, float("inf") if plan.deadline is None else plan.deadline - time.monotonic())
    except TimeoutError:
        late = Check("all", "unknown", f"The checks were not over within {module.params['deadline']:g} s.")
        return [[late] for _ in targets]


def diagnosis_of(targets: Sequence[Target], checks: Sequence[Sequence[Check]]) -> list[dict[str, Any]]:
    """Put checks into the form that RETURN describes."""
    return [
        {
            "task": target.task,
            "container": target.container,
            "checks": [{"name": check.name, "status": check.status, "text": check.text} for check in found],
        }
        for target, found in zip(targets, checks, strict=True)
    ]


def explained(outcome: Outcome, checks: Mapping[Target, Sequence[Check]]) -> Outcome:
    """Add the problems that the diagnosis found to the reason of a task that can't be reached."""
    texts = [check.text for check in checks.get(outcome.target, ()) if check.status == "problem"]
    new = [text for text in texts if text not in (outcome.reason or "")]
    if outcome.outcome != "unreachable" or not new:
        return outcome
    return replace(outcome, reason=f"{outcome.reason} Found: {' '.join(new)}")


def prospect(plan: Plan, targets: Sequence[Target], wanted: int | None, services: Sequence[str]) -> dict[str, Any]:
    """Say what would run and where, for check mode."""
    names = [target.task for target in targets if target.problem is None][:wanted]
    ruled_out = [Outcome(target, "unreachable", reason=target.problem) for target in targets if target.problem]
    reasons = reasons_of(ruled_out, services, targets)
    what = shlex.join(plan.program.argv) if plan.program.script is None else "the script"
    return {
        "changed": bool(names),
        "msg": f"Would run {what} in {len(names)} of {len(targets)} tasks.",
        "status": status_of(len(names), reasons, wanted),
        "reasons": reasons,
        "results": [],
        "would_run_in": names,
    }


def fail(module: Any, sentence: str, **result: Any) -> NoReturn:
    """End the module with one sentence."""
    module.fail_json(msg=sentence, **result)
    raise AssertionError("fail_json ends the process")


def main() -> None:
    """Entry point."""
    started = time.monotonic()
    module = aws_module(
        ARGUMENT_SPEC,
        supports_check_mode=True,
        required_one_of=[("services", "tasks", "family"), ("argv", "command", "script", "script_file")],
        mutually_exclusive=[
            ("services", "tasks", "family"),
            ("argv", "command", "script", "script_file"),
            ("stdin", "stdin_file"),
        ],
    )
    if IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib(MISSING), exception=IMPORT_ERROR)
    params = module.params
    try:
        plan, wanted = plan_of(params, started), wanted_of(params["tasks_wanted"])
    except (UsageError, WrapperError) as exc:
        fail(module, str(exc))
    ecs, aws = aws_of(module, plan)
    services = params["services"] or []
    targets = find_targets(module, ecs, plan)
    checks = diagnose(module, targets, plan) if params["diagnose"] else [[] for _ in targets]
    found = {"diagnosis": diagnosis_of(targets, checks)} if params["diagnose"] else {}
    if module.check_mode and not params["read_only"]:
        module.exit_json(**prospect(plan, targets, wanted, services), **found)
    by_target = dict(zip(targets, checks, strict=True))
    outcomes = [explained(outcome, by_target) for outcome in run_in(plan, targets, wanted, aws)]
    reasons = reasons_of(outcomes, services, targets)
    result = {
        "changed": not params["read_only"] and any(outcome.outcome != "unreachable" for outcome in outcomes),
        "status": status_of(sum(outcome.outcome == "completed" for outcome in outcomes), reasons, wanted),
        "reasons": reasons,
        "results": [result_of(outcome) for outcome in outcomes],
        **found,
    }
    if params["fail_on_unreachable"] and result["status"] != "complete":
        fail(module, f"The command did not run to its end in every task: {' '.join(reasons)}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
