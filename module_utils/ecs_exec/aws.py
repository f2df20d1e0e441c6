# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The calls to AWS that an exec session needs, and their failures put into words."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..session_manager.encryption import KEY_BYTES, DataKey, KeyRequest, KeyUnavailable
from .targets import Target, definition_problems, refresh

#: Codes that pass by themselves.
THROTTLED: Final = frozenset(
    {"ThrottlingException", "Throttling", "ThrottledException", "TooManyRequestsException", "RequestLimitExceeded"}
)
#: What the agent or the gateway says at a session's end, and what it means.
_CLOSINGS: Final = (
    (
        "Plugin with name InteractiveCommands not found",
        "the agent has nowhere to write: a full /tmp, a file system that is full or in part read-only, or an old agent",
    ),
    (
        "Fetching data key failed",
        "the task role may not call kms:Decrypt with the cluster's key, or the key's policy forbids it",
    ),
    ("Handshake timed out", "this side did not answer in time: a slow network, or KMS that does not answer"),
    (
        "Setting up data channel",
        "the task role's credentials have expired or lack ssmmessages:OpenDataChannel, or ssmmessages is out of reach",
    ),
    ("due to inactivity", "AWS ends a session that has been idle for 20 minutes"),
    (
        "encryption is not set up",
        "the cluster's logging configuration asks for an encrypted log group or bucket, and the one it names is not",
    ),
)
SERVER: Final = frozenset({"ServerException", "InternalServerError", "ServiceUnavailable", "InternalFailure"})


@dataclass(frozen=True, slots=True)
class Started:
    """A session that ECS has made. The URL and the token are secrets and left out of its representation."""

    session_id: str
    url: str = field(repr=False)
    token: str = field(repr=False)


class Aws:
    """ECS and Systems Manager as this package uses them; safe for many threads.

    ecs, ssm: boto3 clients. credentials: botocore credentials that sign the data channel; None: it is not signed.
    kms: makes a boto3 client of KMS; it is asked for one when a session is encrypted.
    """

    def __init__(self, ecs: Any, ssm: Any, credentials: Any, region: str, kms: Callable[[], Any] | None = None) -> None:
        self._make_kms = kms
        self._kms: Any = None
        self._lock = threading.Lock()
        self._ecs = ecs
        self._ssm = ssm
        self._credentials = credentials
        self._region = region

    def execute(self, target: Target, command: str) -> Started:
        """Call ecs:ExecuteCommand; boto3's exceptions pass through."""
        answer = self._ecs.execute_command(
            cluster=target.cluster, task=target.task, container=target.container, command=command, interactive=True
        )
        session = answer["session"]
        return Started(session["sessionId"], session["streamUrl"], session["tokenValue"])

    def terminate(self, session_id: str) -> None:
        """Call ssm:TerminateSession; boto3's exceptions pass through."""
        self._ssm.terminate_session(SessionId=session_id)

    def resume(self, session_id: str) -> tuple[str, str] | None:
        """Call ssm:ResumeSession; return a new URL and token, or None when the session is over.

        boto3's other exceptions pass through.
        """
        try:
            answer = self._ssm.resume_session(SessionId=session_id)
        except Exception as exc:  # boto3's exceptions are made at run time; the answer's code decides
            if error_of(exc)[0] == "DoesNotExistException":
                return None
            raise
        url, token = answer.get("StreamUrl"), answer.get("TokenValue")
        return (url, token) if url and token else None

    def data_key(self, target: Target, session_id: str, request: KeyRequest) -> DataKey:
        """Call kms:GenerateDataKey for one session; raise KeyUnavailable."""
        refused = f"The cluster encrypts its exec sessions with the KMS key {request.key_id}, and kms:GenerateDataKey"
        if self._make_kms is None:
            raise KeyUnavailable(f"{refused} can't be called: there is no client for KMS.")
        context = request.context(session_id, target.session_target)
        try:
            with self._lock:
                self._kms = self._kms or self._make_kms()
            answer = self._kms.generate_data_key(
                KeyId=request.key_id, NumberOfBytes=KEY_BYTES, EncryptionContext=context
            )
        except Exception as exc:  # boto3's exceptions are made at run time; the answer's code decides
            code, message = error_of(exc)
            denied = " was denied: the caller's policy or the key's has to allow it" if _denies(code) else " failed"
            detail = ": ".join(part for part in (code, message) if part)
            raise KeyUnavailable(f"{refused}{denied} ({detail}).") from None
        return DataKey(answer["Plaintext"], answer["CiphertextBlob"])

    def sign(self, url: str) -> Mapping[str, str]:
        """Return SigV4 headers for a GET of the URL with an empty body, as plugins from 1.2.764 on send them."""
        if self._credentials is None:
            return {}
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest

        request = AWSRequest(method="GET", url=url)
        SigV4Auth(self._credentials.get_frozen_credentials(), "ssmmessages", self._region).add_auth(request)
        return dict(request.headers.items())

    def diagnose(self, target: Target, code: str, message: str) -> str:
        """Say in one sentence why ExecuteCommand failed, after looking at what can break it."""
        if code == "TargetNotConnectedException":
            return self._not_connected(target)
        if code == "InvalidParameterException" and (problem := self._again(target).problem):
            return problem
        if code == "InvalidParameterException" and "execute command" in message.lower():
            return "ECS says that ECS Exec is not enabled in this task or its agent is not running."
        if code == "ClusterNotFoundException":
            return f"There is no cluster '{target.cluster}' in {self._region}."
        if code == "AccessDeniedException":
            return (
                "ecs:ExecuteCommand was denied: the caller's policy has to allow it for this cluster, task and"
                f" container ({message})."
            )
        if code in THROTTLED:
            return "ecs:ExecuteCommand was throttled by AWS again and again."
        return f"ecs:ExecuteCommand failed ({': '.join(part for part in (code, message) if part)})."

    def _not_connected(self, target: Target) -> str:
        again = self._again(target)
        if again.problem:
            return again.problem
        causes = self._definition_problems(target) or [
            "the task role lacks the ssmmessages actions (CreateControlChannel, CreateDataChannel, OpenControlChannel,"
            " OpenDataChannel), or there is no route from the task to ssmmessages (NAT or VPC endpoint)"
        ]
        return (
            "The ECS Exec agent in the container is not connected to Systems Manager (TargetNotConnectedException): "
            + "; ".join(causes)
            + "."
        )

    def _again(self, target: Target) -> Target:
        try:
            return refresh(self._ecs, target)
        except Exception:  # a second failure must not hide the first
            return target

    def _definition_problems(self, target: Target) -> list[str]:
        try:
            answer = self._ecs.describe_task_definition(taskDefinition=target.task_definition)
            return definition_problems(answer["taskDefinition"], target.container, target.role)
        except Exception:  # the caller may lack the permission; the general causes are named then
            return []


def explain_closing(words: str) -> str:
    """Return the agent's or gateway's words with what they mean, as far as that is known."""
    meaning = next((meaning for sign, meaning in _CLOSINGS if sign in words), None)
    text = words.rstrip(".")
    return f"{text} (that is, {meaning})." if meaning else f"{text}."


def _denies(code: str) -> bool:
    return code.startswith("AccessDenied")


def error_of(exc: BaseException) -> tuple[str, str]:
    """Return code and message of a botocore ClientError; the exception's name and no text for any other."""
    response = getattr(exc, "response", None)
    if isinstance(response, Mapping) and isinstance(response.get("Error"), Mapping):
        error = response["Error"]
        return str(error.get("Code", "")), " ".join(str(error.get("Message", "")).split())[:300].rstrip(".")
    return type(exc).__name__, ""
