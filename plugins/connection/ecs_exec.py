# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible in a container of a running ECS task, over the client that the module ecs_exec uses."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ansible.module_utils
from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.basic import missing_required_lib
from ansible.module_utils.common.text.converters import to_text
from ansible.plugins.connection import ConnectionBase

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

if TYPE_CHECKING:
    from ansible.module_utils.ecs_exec.aws import Aws
    from ansible.module_utils.ecs_exec.runner import Outcome
    from ansible.module_utils.ecs_exec.targets import Target

DOCUMENTATION = r"""
name: ecs_exec
short_description: Run tasks in containers of ECS tasks
description:
  - Runs commands in a container of a running ECS task through ECS Exec, and copies files in and out through the same
    channel. Needs neither SSH nor the AWS CLI nor the Session Manager plugin.
  - Streams are apart, every byte is as it was, and the exit status is the command's own.
  - M(ansible.builtin.raw) and M(ansible.builtin.script) work wherever the container has C(sh) and coreutils or
    busybox. Modules need Python in the container as they do everywhere; they are piped to it, so that nothing is
    written there and each takes one session.
  - The inventory plugin P(ecs_tasks#inventory) lists running tasks as hosts and sets all of these options.
author: The cabalmail-runbooks authors
version_added: "0.1.0"
requirements:
  - boto3
  - websockets >= 15
  - cryptography
options:
  task:
    description: Id or ARN of the task.
    type: str
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_host
      - name: ansible_ecs_exec_task
  cluster:
    description: Name or ARN of the ECS cluster.
    type: str
    required: true
    vars:
      - name: ansible_ecs_exec_cluster
  container:
    description: Name of the container. Needed only where a task has more than one.
    type: str
    vars:
      - name: ansible_ecs_exec_container
  command_timeout:
    description:
      - Seconds that one command, module or file transfer may take. It is then ended in the container.
    type: float
    default: 600
    vars:
      - name: ansible_ecs_exec_command_timeout
  max_output:
    description: Bytes that one command may write. Files that are fetched are not bounded.
    type: int
    default: 67108864
    vars:
      - name: ansible_ecs_exec_max_output
  region:
    description: The AWS region. The profile's, if this is empty.
    type: str
    env:
      - name: AWS_REGION
    vars:
      - name: ansible_ecs_exec_region
  profile:
    description:
      - A named AWS profile. Without it boto3 looks for credentials where it always does, in the environment first.
    type: str
    vars:
      - name: ansible_ecs_exec_profile
  assume_role_arn:
    description: ARN of a role to act as.
    type: str
    vars:
      - name: ansible_ecs_exec_assume_role_arn
  access_key:
    description: AWS access key id.
    type: str
    vars:
      - name: ansible_ecs_exec_access_key
  secret_key:
    description: AWS secret access key.
    type: str
    vars:
      - name: ansible_ecs_exec_secret_key
  session_token:
    description: AWS session token of temporary credentials.
    type: str
    vars:
      - name: ansible_ecs_exec_session_token
  endpoint_url:
    description: URL of an AWS stand-in, such as this project's sandbox.
    type: str
    vars:
      - name: ansible_ecs_exec_endpoint_url
notes:
  - Commands run as root, or whatever user the container's ECS Exec agent has. C(become) to another user works where the
    container has the program for it.
  - A task that C(timeout) of a playbook or an interrupt ends is ended in the container as well.
  - A container that cannot be reached is C(UNREACHABLE), with the reason that the module M(ecs_exec) would give.
  - For one command in many containers, the module M(ecs_exec) is faster; it takes one process for all of them.
  - Proxies are taken from C(HTTPS_PROXY) and C(NO_PROXY), certificate authorities from C(AWS_CA_BUNDLE),
    C(REQUESTS_CA_BUNDLE) or C(SSL_CERT_FILE).
"""

EXAMPLES = r"""
# Hosts by hand, in an inventory file. With many tasks the inventory plugin does it.
#
# [imap]
# 0123456789abcdef0123456789abcdef
#
# [imap:vars]
# ansible_connection=ecs_exec
# ansible_ecs_exec_cluster=cabal-mail
# ansible_ecs_exec_region=us-east-1
# ansible_python_interpreter=auto_silent

- name: Look at the queue of each container
  hosts: imap
  gather_facts: false
  tasks:
    - name: Ask sendmail
      ansible.builtin.raw: mailq -Ac
      changed_when: false

    - name: Run a local script there
      ansible.builtin.script: files/probe.sh /etc/mail
      changed_when: false
"""

# Shorter than any terminal's line, and cat and wc are in every image that has a shell worth the name.
_PUT = 'umask 077;cat >"$1"&&wc -c <"$1"'


class Connection(ConnectionBase):  # type: ignore[misc]
    """One container. A session lasts as long as one command, so there is nothing to keep open between them."""

    transport = "ecs_exec"
    has_pipelining = True
    # A module written to a file, run and removed would cost five sessions.
    always_pipeline_modules = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._target: Target | None = None
        self._aws: Aws | None = None

    def _connect(self) -> Connection:
        """Find the container; what rules it out is said here, before anything is tried."""
        if self._connected:
            return self
        # Ansible imports every connection plugin whenever it starts: boto3 is for the runs that connect.
        try:
            from ansible.module_utils.aws_support import OptionsError, explain, new_session, plugin_client
            from ansible.module_utils.ecs_exec import runner  # noqa: F401 - _run needs it, and it needs websockets
            from ansible.module_utils.ecs_exec.aws import Aws
            from ansible.module_utils.ecs_exec.targets import TargetError, find
        except ImportError as exc:
            raise AnsibleError(missing_required_lib((exc.name or "boto3").partition(".")[0])) from None
        options = self.get_options()
        for name in ("command_timeout", "max_output"):
            if not 0 < options[name] < float("inf"):
                raise AnsibleError(f"The option {name} of the connection has to be a number greater than 0.")
        try:
            session = new_session(options)
            ecs = plugin_client(session, options["endpoint_url"], "ecs")
            (target,) = find(ecs, options["cluster"], tasks=[options["task"]], container=options["container"])
        except (OptionsError, TargetError) as exc:
            raise AnsibleConnectionFailure(str(exc)) from None
        except Exception as exc:  # boto3's exceptions are made at run time
            raise AnsibleConnectionFailure(f"The task can't be found: {explain(exc)}") from None
        ssm = plugin_client(session, options["endpoint_url"], "ssm")
        self._target = target
        self._aws = Aws(
            ecs,
            ssm,
            session.get_credentials(),
            ecs.meta.region_name,
            lambda: plugin_client(session, options["endpoint_url"], "kms"),
        )
        self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run a command line in the container's sh; return its status, standard output and standard error."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        outcome = self._run("sh", "-c", to_text(cmd), stdin=in_data, max_output=self.get_option("max_output"))
        return _status(outcome), outcome.stdout or b"", outcome.stderr or b""

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a file into the container, byte for byte; it is readable for its owner only."""
        super().put_file(in_path, out_path)
        try:
            data = Path(in_path).read_bytes()
        except FileNotFoundError:
            raise AnsibleFileNotFound(f"There is no file '{in_path}' to copy.") from None
        outcome = self._run("sh", "-c", _PUT, "sh", out_path, stdin=data)
        written = to_text(outcome.stdout).strip()
        if _status(outcome) or written != str(len(data)):
            words = to_text(outcome.stderr).strip() or f"{written} of {len(data)} bytes arrived"
            raise AnsibleError(f"'{out_path}' could not be written in the container: {words}")

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file out of the container, byte for byte; it appears under its name when it is whole."""
        super().fetch_file(in_path, out_path)
        place = os.path.dirname(os.path.abspath(out_path))
        with tempfile.TemporaryDirectory(prefix=".ecs_exec-", dir=place) as folder:
            outcome = self._run("cat", "--", in_path, max_output=None, dest=Path(folder))
            if _status(outcome) or outcome.dest is None:
                words = to_text(outcome.stderr).strip()
                raise AnsibleError(f"'{in_path}' could not be read in the container: {words}")
            outcome.dest.replace(out_path)

    def close(self) -> None:
        """Forget the container."""
        self._target = self._aws = None
        self._connected = False

    def reset(self) -> None:
        """Look at the task again: it may have been replaced."""
        self.close()

    def _run(
        self, *argv: str, stdin: bytes | None = None, max_output: int | None = None, dest: Path | None = None
    ) -> Outcome:
        """Run one program to its end; raise what Ansible calls UNREACHABLE when that end is not known."""
        self._connect()
        if self._target is None or self._aws is None:
            raise AnsibleConnectionFailure("The connection to the container is closed.")
        from ansible.module_utils.ecs_exec.runner import Plan, run
        from ansible.module_utils.ecs_exec.wrapper import Program, WrapperError

        self._display.vvv(f"ECS EXEC {shlex.join(argv)}", host=self._target.task)
        program = Program(argv=argv, seconds=self.get_option("command_timeout"), has_stdin=bool(stdin))
        try:
            (outcome,) = run(Plan(program, stdin or b"", max_output, dest=dest), [self._target], self._aws)
        except WrapperError as exc:
            raise AnsibleError(str(exc)) from None
        if outcome.outcome in ("unreachable", "session_broke"):
            raise AnsibleConnectionFailure(outcome.reason)
        if outcome.outcome == "timed_out":
            raise AnsibleError(outcome.reason)
        return outcome


def _status(outcome: Outcome) -> int:
    """The exit status; a command that ended has one."""
    if outcome.rc is None:
        raise AnsibleConnectionFailure("The container did not say how the command ended.")
    return int(outcome.rc)
