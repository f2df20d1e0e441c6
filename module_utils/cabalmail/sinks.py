# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send a message to a sink: by Apprise, to Cabalmail's ``alert_sink``, or as a GitHub issue.

What goes wrong is said without the words of the far end or of a library, in which addresses and tokens stand.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from threading import Thread
from typing import Any

import requests

from .notify import ALERT_SINK, APPRISE, GITHUB_ISSUE, Message, Sink

CONNECT_SECONDS = 3.0
LABEL = "cabalmail-triage"
SOURCE = "cabalmail-runbooks"
_CODE = re.compile(r"error=(\d{3})\b")
_SEVERITIES = {"critical": "failure", "warning": "warning", "info": "success"}


class SinkError(Exception):
    """A sink did not take the message; the text says why and holds nothing secret."""


def send_all(jobs: list[tuple[Sink, Message]], seconds: float) -> list[str]:
    """Send to all sinks at the same time; what became of each: empty when sent, else why not.

    Args:
        jobs: sinks and what each is told.
        seconds: after so long a sink is given up, whatever it does.
    """
    said = [f"no answer within {seconds:g} s"] * len(jobs)

    def work(number: int, sink: Sink, message: Message) -> None:
        try:
            SENDERS[sink.kind](sink, message, seconds)
            said[number] = ""
        except SinkError as error:
            said[number] = str(error)
        except Exception as error:
            # Whatever a library may raise: one sink fails, and the triage goes on.
            said[number] = type(error).__name__

    # Daemons: a sink that never answers can't hold up the end of the process.
    threads = [Thread(target=work, args=(number, *job), daemon=True) for number, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return list(said)


def service_of(sink: Sink) -> str:
    """What a person calls the sink; OptionError's matter is whether Apprise knows the URL: empty when not."""
    if sink.kind != APPRISE:
        return {ALERT_SINK: "alert_sink", GITHUB_ISSUE: "GitHub issue"}[sink.kind]
    plugin = _plugin(sink.target)
    return str(plugin.service_name) if plugin else ""


def _plugin(url: str) -> Any:
    # Only here, since importing it takes longer than rendering a report.
    from apprise import Apprise

    return Apprise.instantiate(url, suppress_exceptions=True)


def _by_apprise(sink: Sink, message: Message, seconds: float) -> None:
    from apprise import Apprise, NotifyFormat

    plugin = _plugin(sink.target)
    if plugin is None:
        raise SinkError("Apprise does not know such an URL")
    plugin.socket_connect_timeout, plugin.socket_read_timeout = CONNECT_SECONDS, seconds
    notifier = Apprise()
    notifier.add(plugin)
    heard = _Codes()
    logger = logging.getLogger("apprise")
    logger.addHandler(heard)
    try:
        done = notifier.notify(
            title=message.title,
            body=message.body,
            notify_type=_SEVERITIES[message.severity],
            body_format=NotifyFormat.TEXT,
        )
    finally:
        logger.removeHandler(heard)
    if not done:
        raise SinkError(f"refused with status {heard.code}" if heard.code else "not reachable, or refused")


class _Codes(logging.Handler):
    """Keeps of Apprise's log, which may hold what is secret, the status code alone."""

    def __init__(self) -> None:
        super().__init__()
        self.code = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Remember a code."""
        found = _CODE.search(record.getMessage())
        self.code = found[1] if found else self.code


def _to_alert_sink(sink: Sink, message: Message, seconds: float) -> None:
    """POST as Healthchecks does; ``info`` would be dropped, so a recovery goes as a warning."""
    words = f"Recovered: {message.title}" if message.recovered else message.title
    body = {
        "severity": "warning" if message.severity == "info" else message.severity,
        "summary": f"{words}\n{message.body}",
        "source": f"{SOURCE}/{message.environment}",
        **({"runbook_url": message.link} if message.link.startswith("https://") else {}),
    }
    answer = _ask("POST", sink.target, seconds, {"X-Alert-Secret": sink.secret}, body)
    if answer.status_code == 207:
        raise SinkError("one of its transports failed")
    if answer.status_code not in (200, 204):
        raise SinkError(f"refused with status {answer.status_code}")


def _as_github_issue(sink: Sink, message: Message, seconds: float) -> None:
    """One open issue an environment: opened, updated with a comment, closed on recovery."""
    headers = {
        "Authorization": f"Bearer {sink.secret}",
        "Accept": "application/vnd.github+json",
        "X-GitHub-Api-Version": "2022-11-28",
    }

    def call(method: str, path: str, body: Any = None) -> Any:
        answer = _ask(method, f"{sink.api}/repos/{sink.target}/issues{path}", seconds, headers, body)
        if not answer.ok:
            raise SinkError(f"refused with status {answer.status_code}")
        return answer.json()

    marker = f"<!-- {LABEL}: {message.environment.replace('--', '- -')} -->"
    body = f"{message.body}\n\n{marker}"
    listed = call("GET", f"?state=open&labels={LABEL}&per_page=100")
    known = next((row["number"] for row in listed if marker in (row.get("body") or "")), None)
    if known is None:
        if not message.recovered:
            call("POST", "", {"title": message.title, "body": body, "labels": [LABEL]})
        return
    call("POST", f"/{known}/comments", {"body": message.body})
    change = {"state": "closed", "state_reason": "completed"} if message.recovered else {"title": message.title}
    call("PATCH", f"/{known}", {**change, "body": body})


def _ask(method: str, url: str, seconds: float, headers: dict[str, str], body: Any) -> requests.Response:
    try:
        return requests.request(
            method, url, json=body, headers=headers, timeout=(CONNECT_SECONDS, seconds), allow_redirects=False
        )
    except requests.Timeout:
        raise SinkError(f"no answer within {seconds:g} s") from None
    except requests.RequestException as error:
        raise SinkError(f"not reachable ({type(error).__name__})") from None


SENDERS: dict[str, Callable[[Sink, Message, float], None]] = {
    APPRISE: _by_apprise,
    ALERT_SINK: _to_alert_sink,
    GITHUB_ISSUE: _as_github_issue,
}
