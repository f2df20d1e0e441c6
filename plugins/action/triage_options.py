# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check every option of a run and the way to AWS, before any call is made.

Reads the host's variables ``triage_*`` and ``report_*`` and the environment's ``cabalmail_*``; has no options itself.
Returns ``options`` (checked, by their public names), ``run`` (the section of the fact ``triage``).
Fails with one sentence that names the option, its value and what to do.
"""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from typing import Any

import ansible.module_utils
from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

ansible.module_utils.__path__ = list(dict.fromkeys([*ansible.module_utils.__path__, *C.DEFAULT_MODULE_UTILS_PATH]))

from ansible.module_utils.cabalmail.inert import shown  # noqa: E402
from ansible.module_utils.cabalmail.notify import NAME as NOTIFY  # noqa: E402
from ansible.module_utils.cabalmail.notify import read_sinks  # noqa: E402
from ansible.module_utils.cabalmail.options import OptionError, is_http_url, read_options  # noqa: E402
from ansible.module_utils.cabalmail.report_files import choose_folder  # noqa: E402
from ansible.module_utils.cabalmail.time import format_rfc3339  # noqa: E402
from ansible.module_utils.cabalmail.version import VERSION  # noqa: E402

REPORT = ("report_dir", "report_show_addresses", "report_url", NOTIFY)
# What an inventory may add, and the file whose form it has.
ADDITIONS = {
    "cabalmail_findings": "data/findings.yml",
    "cabalmail_reason_rules": "data/reasons.yml",
    "cabalmail_providers": "data/providers.yml",
}


class ActionModule(ActionBase):  # type: ignore[misc]
    """Check the options of a run."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return checked options and the section ``run``; AnsibleActionFail says what is wrong."""
        outcome: dict[str, Any] = super().run(tmp, task_vars)
        raw = task_vars or {}
        # The payload is what a stranger may have written: it is never rendered as a template (see triage_page).
        public = {name: raw[name] for name in raw if name.startswith(("triage_", "cabalmail_")) or name in REPORT}
        public.pop("triage_payload", None)
        variables = self._templar.template(public)
        host = str(raw.get("inventory_hostname"))
        try:
            check_environment(host, variables)
            options = read_options(variables, variables["cabalmail_tiers"])
            check_endpoint(host, variables.get("cabalmail_endpoint_url"))
            check_additions(host, variables)
            check_notify(variables.get(NOTIFY))
            region = check_aws(host, variables)
            options["report_dir"] = check_report_dir(options["report_dir"])
        except OptionError as error:
            raise AnsibleActionFail(str(error)) from None
        started = datetime.now(UTC)
        outcome.update(
            changed=False,
            options={
                name: format_rfc3339(value) if isinstance(value, datetime) else value for name, value in options.items()
            },
            run={
                "id": f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}",
                "host": host,
                "environment": variables["cabalmail_environment"],
                "started": format_rfc3339(started, milliseconds=True),
                "region": region,
                "cluster": variables["cabalmail_cluster"],
                "check_mode": bool(self._task.check_mode),
                "deadline_seconds": options["triage_deadline"],
                "project_version": VERSION,
            },
        )
        return outcome


def check_environment(host: str, variables: dict[str, Any]) -> None:
    """OptionError when the inventory does not describe an environment."""
    for name in ("cabalmail_environment", "cabalmail_cluster", "cabalmail_control_domain"):
        value = variables.get(name)
        if not isinstance(value, str) or not value:
            raise OptionError(
                f"{name} of the host {host} is {shown(value)}: set it in the inventory (see inventory/example)."
            )
    tiers = variables.get("cabalmail_tiers")
    if not isinstance(tiers, list) or not tiers or not all(isinstance(tier, str) and tier for tier in tiers):
        raise OptionError(
            f"cabalmail_tiers of the host {host} is {shown(tiers)}: list the mail tiers, such as"
            " [imap, smtp-in, smtp-out]."
        )


def check_endpoint(host: str, value: Any) -> None:
    """OptionError when there is an address for AWS's services that can't be one."""
    if value in (None, ""):
        return
    if not is_http_url(value):
        raise OptionError(
            f"cabalmail_endpoint_url={shown(value)} of the host {host} can't be used: give an URL such as"
            " http://127.0.0.1:45990, or nothing for AWS itself."
        )


def check_additions(host: str, variables: dict[str, Any]) -> None:
    """OptionError when what the inventory adds to a table is not a list of entries; their content is checked later."""
    for name, where in ADDITIONS.items():
        entries = variables.get(name)
        if entries in (None, ""):
            continue
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise OptionError(
                f"{name}={shown(entries)} of the host {host} can't be used: give a list of entries such as those of"
                f" {where}."
            )


def check_notify(value: Any) -> None:
    """OptionError when those to notify can't be used. What they are is not returned: secrets stand in it."""
    sinks = read_sinks(value, os.environ, _on_command_line(NOTIFY))
    if not sinks:
        return
    # Only here: what sends takes a third of a second to import.
    from ansible.module_utils.cabalmail.sinks import service_of

    for number, sink in enumerate(sinks, 1):
        if not service_of(sink):
            raise OptionError(f"{NOTIFY} can't be used: its URL number {number} is none that Apprise knows.")


def _on_command_line(name: str) -> bool:
    """Whether an extra variable stands in the arguments of the process, and not in a file that they name."""
    given = (context.CLIARGS or {}).get("extra_vars") or ()
    return any(name in str(entry) and not str(entry).startswith("@") for entry in given)


def check_report_dir(given: str) -> str:
    """The folder for reports, which exists and can be written; OptionError otherwise."""
    try:
        return str(choose_folder(given, os.environ))
    except OSError as error:
        raise OptionError(
            f"report_dir={shown(given)} can't be used ({error.strerror}): give a folder that can be written."
        ) from None


def check_aws(host: str, variables: dict[str, Any]) -> str:
    """The region, once it is sure that there are credentials; nothing is called but what finds credentials."""
    region = variables.get("cabalmail_region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    keys = bool(variables.get("cabalmail_access_key") and variables.get("cabalmail_secret_key"))
    if not (region and keys):
        region = _ask_botocore(host, variables.get("cabalmail_profile") or None, region, keys)
    return str(region)


def _ask_botocore(host: str, profile: str | None, region: str | None, keys: bool) -> str:
    # Only here, since it takes a tenth of a second that a run with all it needs should not pay.
    from botocore.exceptions import BotoCoreError, ProfileNotFound
    from botocore.session import Session

    session = Session(profile=profile)
    try:
        region = region or session.get_config_variable("region")
        found = keys or session.get_credentials() is not None
    except ProfileNotFound:
        raise OptionError(
            f"cabalmail_profile={shown(profile)} of the host {host} is not in the AWS configuration files of this"
            " machine: create it with `aws configure --profile` or correct the inventory."
        ) from None
    except BotoCoreError as error:
        raise OptionError(f"The AWS configuration of this machine can't be read ({error}): correct it.") from None
    if not region:
        raise OptionError(
            f"No AWS region is known for the host {host}: set cabalmail_region in the inventory, AWS_REGION in the"
            " environment, or a region in the profile."
        )
    if not found:
        raise OptionError(
            f"No AWS credentials were found for the host {host}: set cabalmail_profile in the inventory or AWS_PROFILE"
            " in the environment, or log in (aws sso login)."
        )
    return str(region)
