# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules that talk to AWS share: set-up that fails in one sentence, clients, and errors put into words.

The credential, region, endpoint and certificate options are those of amazon.aws
(C(amazon.aws.common.modules), C(amazon.aws.region.modules)); C(assume_role_arn) is added here, since an
environment is often reached through a role and one STS call inside the module is cheaper than a module of its own.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

from ansible_collections.amazon.aws.plugins.module_utils.botocore import get_aws_connection_info
from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule

try:
    import boto3
    from botocore import exceptions as boto_errors
    from botocore.config import Config
    from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
    from botocore.utils import validate_region_name
except ImportError:  # AnsibleAWSModule says which library is missing when it is built
    pass

ErrorKind = Literal["denied", "throttled", "missing", "timeout", "network", "other"]

COMMON_ARGUMENTS: dict[str, Any] = {"assume_role_arn": {"type": "str"}}

# AWS services name the same failure differently; each set is matched against the error code of the reply.
_DENIED = {
    "AccessDenied",
    "AccessDeniedException",
    "AuthFailure",
    "AuthorizationError",
    "ExpiredToken",
    "ExpiredTokenException",
    "Forbidden",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "NotAuthorized",
    "OptInRequired",
    "SignatureDoesNotMatch",
    "UnauthorizedOperation",
    "UnrecognizedClientException",
}
_THROTTLED = {
    "LimitExceededException",
    "OverLimit",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "Throttled",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
}
_MISSING = {
    "AWS.SimpleQueueService.NonExistentQueue",
    "ClusterNotFoundException",
    "NamespaceNotFound",
    "ParameterNotFound",
    "QueueDoesNotExist",
    "ResourceNotFoundException",
    "ServiceNotFound",
    "ServiceNotFoundException",
    "TaskDefinitionNotFoundException",
}
_WORDS: dict[ErrorKind, str] = {
    "denied": "was denied",
    "throttled": "was throttled by AWS",
    "missing": "found nothing of that name",
    "timeout": "timed out",
    "network": "could not reach AWS",
    "other": "failed",
}
# Session tokens and encoded authorization messages are long runs of base64; AWS repeats them in some messages.
_SECRETS = re.compile(r"(?i)(x-amz-security-token\s*[:=]\s*)\S+|[A-Za-z0-9+/=_-]{100,}")
_MAX_MESSAGE = 300
_session_lock = threading.Lock()


class OptionsError(ValueError):
    """Connection options that cannot be used; the message is one sentence for the operator."""


def aws_module(argument_spec: Mapping[str, Any], **kwargs: Any) -> AnsibleAWSModule:
    """Build the module and make sure, before any call to AWS, that it knows where to go and as whom.

    argument_spec: the module's own options; amazon.aws's connection options and C(assume_role_arn) are added.
    kwargs: as for AnsibleAWSModule (supports_check_mode, required_if, ...).
    Ends the module with one sentence when region, credentials or profile are missing or contradict each other.
    """
    module = AnsibleAWSModule(argument_spec={**COMMON_ARGUMENTS, **argument_spec}, **kwargs)
    try:
        module.cabalmail_session = new_session(module.params)
    except OptionsError as exc:
        _fail(module, str(exc))
    return module


def new_session(given: Mapping[str, Any]) -> boto3.session.Session:
    """Make a boto3 session of connection options named as amazon.aws names them; nothing is called.

    Raises OptionsError when region, credentials or profile are missing or contradict each other.
    """
    _check_options(given)
    try:
        return _new_session(given)
    except OptionsError:
        raise
    except boto_errors.ProfileNotFound:
        raise OptionsError(
            f"The credentials profile '{given.get('profile')}' (option profile) is not in the AWS configuration"
            " files of this machine: create it with `aws configure --profile` or correct cabalmail_profile."
        ) from None
    except (boto_errors.BotoCoreError, ValueError) as exc:
        raise OptionsError(f"The AWS connection options cannot be used: {_clean(str(exc))}.") from None


def plugin_client(session: boto3.session.Session, endpoint_url: str | None, service: str) -> Any:
    """Return a boto3 client for a plugin, which has no module; its calls are bounded in time as a module's are."""
    config = _config(connect_timeout=3.0, read_timeout=10.0, max_attempts=3, max_pool_connections=10)
    with _session_lock:
        return session.client(service, endpoint_url=endpoint_url or None, config=config)


def client(
    module: AnsibleAWSModule,
    service: str,
    *,
    connect_timeout: float = 3.0,
    read_timeout: float = 10.0,
    max_attempts: int = 3,
    max_pool_connections: int = 10,
) -> Any:
    """Return a boto3 client whose calls are bounded in time. Safe to call from several threads.

    connect_timeout, read_timeout: seconds for one attempt. max_attempts: attempts in all, the first included.
    max_pool_connections: HTTP connections kept; at least the number of threads that share the client.
    """
    region, endpoint, options = get_aws_connection_info(module)
    config = _config(connect_timeout, read_timeout, max_attempts, max_pool_connections)
    if options.get("aws_config") is not None:
        config = config.merge(options["aws_config"])
    # Making clients of one session is not thread-safe; one session for all saves loading the models again.
    with _session_lock:
        return module.cabalmail_session.client(
            service, region_name=region, endpoint_url=endpoint or None, verify=options["verify"], config=config
        )


def _config(connect_timeout: float, read_timeout: float, max_attempts: int, max_pool_connections: int) -> Config:
    return Config(
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        retries={"total_max_attempts": max_attempts, "mode": "standard"},
        max_pool_connections=max_pool_connections,
        user_agent_extra="cabalmail-runbooks",
    )


def classify(exc: BaseException) -> ErrorKind:
    """Say which kind of failure an exception of boto3 (or of the network below it) is."""
    if isinstance(exc, boto_errors.ClientError):
        return _classify_code(exc)
    if isinstance(exc, (boto_errors.ConnectTimeoutError, boto_errors.ReadTimeoutError, TimeoutError)):
        return "timeout"
    if isinstance(exc, (boto_errors.NoCredentialsError, boto_errors.CredentialRetrievalError)):
        return "denied"
    if isinstance(exc, (boto_errors.HTTPClientError, boto_errors.ConnectionError, OSError)):
        return "network"
    return "other"


def explain(exc: BaseException) -> str:
    """Put an exception into one sentence that names AWS's code and the operation, and never holds a token."""
    kind = classify(exc)
    if isinstance(exc, boto_errors.ClientError):
        error = exc.response.get("Error", {})
        detail = ": ".join(
            part for part in (str(error.get("Code", "")), _clean(str(error.get("Message") or ""))) if part
        )
        return f"{exc.operation_name} {_WORDS[kind]} ({detail or 'no reason given'})."
    return f"The call {_WORDS[kind]} ({type(exc).__name__}: {_clean(str(exc))})."


def _classify_code(exc: boto_errors.ClientError) -> ErrorKind:
    error = exc.response.get("Error", {})
    code = str(error.get("Code", ""))
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _DENIED:
        return "denied"
    if code in _THROTTLED or status == 429:
        return "throttled"
    if code in _MISSING or code.endswith((".NotFound", "NotFoundException", "NonExistentQueue")):
        return "missing"
    return "denied" if status in (401, 403) else "other"


def _clean(text: str) -> str:
    """One line, no secrets, bounded; without the full stop that the sentence around it adds."""
    line = " ".join(_SECRETS.sub(lambda found: f"{found.group(1) or ''}[left out]", text).split())
    return (line if len(line) <= _MAX_MESSAGE else line[: _MAX_MESSAGE - 1] + "…").rstrip(".")


def _fail(module: AnsibleAWSModule, sentence: str) -> NoReturn:
    module.fail_json(msg=sentence)
    raise AssertionError("fail_json ends the process")


def _check_options(given: Mapping[str, Any]) -> None:
    """Refuse, before botocore meets them, options that are incomplete or exclude each other."""
    access, secret, token = (bool(given.get(name)) for name in ("access_key", "secret_key", "session_token"))
    profile = given.get("profile")
    if profile and (access or secret or token):
        raise OptionsError(
            f"The option profile ('{profile}') excludes access_key, secret_key and session_token: give the one or the"
            " other (they are also taken from AWS_PROFILE, AWS_ACCESS_KEY_ID and so on)."
        )
    if access != secret:
        raise OptionsError(
            f"The option {'access_key' if access else 'secret_key'} is given but"
            f" {'secret_key' if access else 'access_key'} is missing: give both, or a profile."
        )
    endpoint = given.get("endpoint_url")
    if endpoint and not re.match(r"https?://[^/\s]+", endpoint):
        raise OptionsError(
            f"The option endpoint_url ('{endpoint}') is no http or https URL: correct cabalmail_endpoint_url, or leave"
            " it empty to use AWS itself."
        )


def _new_session(given: Mapping[str, Any]) -> boto3.session.Session:
    session = boto3.session.Session(
        profile_name=given.get("profile") or None,
        region_name=given.get("region") or None,
        aws_access_key_id=given.get("access_key") or None,
        aws_secret_access_key=given.get("secret_key") or None,
        aws_session_token=given.get("session_token") or None,
    )
    if not session.region_name:
        raise OptionsError(
            "No AWS region is known (option region is empty): set cabalmail_region in the inventory, or AWS_REGION,"
            " or a region in the profile."
        )
    validate_region_name(session.region_name)
    credentials = session.get_credentials()
    if credentials is None:
        raise OptionsError(
            "No AWS credentials were found (options access_key and profile are empty, and neither the environment nor"
            " the AWS configuration files nor the machine's role has any): set cabalmail_profile in the inventory, or"
            " AWS_PROFILE, or log in."
        )
    if given.get("assume_role_arn"):
        return _session_of_role(session, credentials, given)
    return session


def _session_of_role(session: boto3.session.Session, source: Any, given: Mapping[str, Any]) -> boto3.session.Session:
    """Return a session that acts as C(assume_role_arn); STS is asked at the first call and again before it expires."""
    core = session._session

    def sts(service: str, **options: Any) -> Any:
        return core.create_client(
            service,
            region_name=session.region_name,
            endpoint_url=given.get("endpoint_url") or None,
            config=Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 2}),
            **options,
        )

    fetcher = AssumeRoleCredentialFetcher(
        client_creator=sts,
        source_credentials=source,
        role_arn=given["assume_role_arn"],
        extra_args={"RoleSessionName": "cabalmail-runbooks"},
    )
    core._credentials = DeferredRefreshableCredentials(method="assume-role", refresh_using=fetcher.fetch_credentials)
    return session
