#!/usr/local/bin/python3 -IS
# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The few calls of the AWS CLI that a task makes: sqs receive-message and delete-message, dynamodb scan.

Standard library only: it must start in milliseconds and run on whatever Python the machine has. Output, error text
and exit statuses are those of AWS CLI v2.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys
from typing import Any
from urllib.parse import urlsplit

HANG_ONCE = "/run/aws-hangs-once"
SERVICE_ERROR = 254
CLIENT_ERROR = 255
TARGETS = {
    ("sqs", "receive-message"): ("AmazonSQS.ReceiveMessage", "application/x-amz-json-1.0"),
    ("sqs", "delete-message"): ("AmazonSQS.DeleteMessage", "application/x-amz-json-1.0"),
    ("dynamodb", "scan"): ("DynamoDB_20120810.Scan", "application/x-amz-json-1.0"),
}
# Long polls last 20 s; a server that is silent for longer is gone.
TIMEOUT_SECONDS = 60


class CallError(Exception):
    """The message as the AWS CLI prints it, and its exit status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def call(service: str, command: str, body: dict[str, Any]) -> dict[str, Any]:
    """One signed-looking request; the sandbox, like moto, reads service and region from the credential scope."""
    target, content_type = TARGETS[service, command]
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    region = os.environ.get("AWS_REGION", "us-east-1")
    key = os.environ.get("SANDBOX_TASK_ACCESS_KEY", "task")
    headers = {
        "Authorization": f"AWS4-HMAC-SHA256 Credential={key}/20260101/{region}/{service}/aws4_request, "
        "SignedHeaders=host, Signature=0",
        "Content-Type": content_type,
        "X-Amz-Target": target,
    }
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", "/", json.dumps(body).encode(), headers)
        response = connection.getresponse()
        raw = response.read()
    except OSError:
        raise CallError(f'Could not connect to the endpoint URL: "{endpoint}/"', CLIENT_ERROR) from None
    finally:
        connection.close()
    answer: dict[str, Any] = json.loads(raw) if raw else {}
    if response.status >= 400:
        code = str(answer.get("__type", response.status)).rpartition("#")[2]
        message = answer.get("message") or answer.get("Message") or ""
        operation = target.rpartition(".")[2]
        raise CallError(f"An error occurred ({code}) when calling the {operation} operation: {message}", SERVICE_ERROR)
    return answer


def scan(options: dict[str, str]) -> dict[str, Any]:
    """All pages of a consistent scan as one answer."""
    body: dict[str, Any] = {"TableName": options["--table-name"], "ConsistentRead": "--consistent-read" in options}
    items: list[Any] = []
    while True:
        page = call("dynamodb", "scan", body)
        items += page.get("Items", [])
        if "LastEvaluatedKey" not in page:
            return {"Items": items, "Count": len(items)}
        body["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def receive(options: dict[str, str]) -> dict[str, Any]:
    body = {
        "QueueUrl": options["--queue-url"],
        "WaitTimeSeconds": int(options.get("--wait-time-seconds", "0")),
        "MaxNumberOfMessages": int(options.get("--max-number-of-messages", "1")),
    }
    return call("sqs", "receive-message", body)


def delete(options: dict[str, str]) -> dict[str, Any]:
    body = {"QueueUrl": options["--queue-url"], "ReceiptHandle": options["--receipt-handle"]}
    return call("sqs", "delete-message", body)


COMMANDS = {("sqs", "receive-message"): receive, ("sqs", "delete-message"): delete, ("dynamodb", "scan"): scan}


def options_of(arguments: list[str]) -> dict[str, str]:
    """``--name value`` and ``--flag`` as a dictionary."""
    found: dict[str, str] = {}
    for position, word in enumerate(arguments):
        if word.startswith("--"):
            following = arguments[position + 1 : position + 2]
            found[word] = following[0] if following and not following[0].startswith("--") else ""
    return found


def printed(answer: dict[str, Any], options: dict[str, str]) -> str:
    """The receipt handles as text where the loop asks for them by --query, else JSON."""
    if options.get("--output") == "text":
        return "\t".join(message["ReceiptHandle"] for message in answer.get("Messages", [])) or "None"
    return json.dumps(answer) if answer else ""


def hang_if_told() -> None:
    """The scenario's call that never returns. The order counts for one call only, so that a restarted loop works."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(HANG_ONCE)
        signal.pause()


def main(arguments: list[str]) -> int:
    hang_if_told()
    command = COMMANDS.get((arguments[0], arguments[1])) if len(arguments) > 1 else None
    if command is None:
        print("aws: error: argument operation: Invalid choice", file=sys.stderr)
        return 252
    options = options_of(arguments[2:])
    try:
        text = printed(command(options), options)
    except CallError as error:
        print(f"\n{error}", file=sys.stderr)
        return error.status
    if text:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
