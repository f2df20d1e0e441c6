# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator reads when the connection cannot be set up, and what a failed call is called."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from ansible.module_utils import aws_support
from ansible.module_utils.testing import patch_module_args
from botocore import exceptions

KEYS = {"region": "us-east-1", "access_key": "AKIAEXAMPLE", "secret_key": "s3cr3t"}


@pytest.fixture(autouse=True)
def _no_ambient_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Neither this machine's configuration nor a metadata service may lend credentials."""
    for name in (
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_ACCESS_KEY",
        "AWS_SECRET_KEY",
        "AWS_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    # boto3 keeps its default session, with the environment it was made in, for the life of the process.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


def build(**params: Any) -> Any:
    with patch_module_args(params):
        return aws_support.aws_module({}, supports_check_mode=True)


def failure(capsys: pytest.CaptureFixture[str], **params: Any) -> str:
    with pytest.raises(SystemExit):
        build(**params)
    result = json.loads(capsys.readouterr().out)
    assert result["failed"] is True
    assert "exception" not in result
    return str(result["msg"])


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"access_key": "AKIAEXAMPLE", "secret_key": "s3cr3t"}, ["region", "cabalmail_region"]),
        ({"region": "", "access_key": "AKIAEXAMPLE", "secret_key": "s3cr3t"}, ["region", "cabalmail_region"]),
        ({"region": "us-east-1"}, ["credentials", "cabalmail_profile"]),
        ({"region": "us-east-1", "profile": "nobody"}, ["'nobody'", "option profile", "aws configure"]),
        ({"region": "us-east-1", "access_key": "a"}, ["secret_key is missing"]),
        ({"region": "us-east-1", "secret_key": "s3cr3t"}, ["access_key is missing"]),
        ({**KEYS, "profile": "p"}, ["excludes", "'p'"]),
        ({**KEYS, "endpoint_url": "localhost:45990"}, ["endpoint_url", "localhost:45990", "URL"]),
        ({**KEYS, "region": "not a region"}, ["cannot be used", "not a region"]),
    ],
)
def test_one_sentence_names_option_value_and_remedy(
    capsys: pytest.CaptureFixture[str], params: dict[str, Any], words: list[str]
) -> None:
    message = failure(capsys, **params)
    assert all(word in message for word in words), message
    assert "Traceback" not in message
    assert message.endswith(".")
    assert "s3cr3t" not in message


def test_a_profile_supplies_region_and_credentials(tmp_path: Any) -> None:
    (tmp_path / "config").write_text("[profile ops]\nregion = eu-west-1\n")
    (tmp_path / "credentials").write_text("[ops]\naws_access_key_id = A\naws_secret_access_key = B\n")
    made = aws_support.client(build(profile="ops"), "sqs")
    assert made.meta.region_name == "eu-west-1"


def test_clients_are_bounded_and_share_a_session() -> None:
    module = build(**KEYS, endpoint_url="http://127.0.0.1:9")
    made = aws_support.client(module, "ecs", max_attempts=2, max_pool_connections=7)
    config = made.meta.config
    assert (config.connect_timeout, config.read_timeout, config.max_pool_connections) == (3.0, 10.0, 7)
    assert config.retries["total_max_attempts"] == 2
    assert made.meta.endpoint_url == "http://127.0.0.1:9"


def test_options_of_the_user_win() -> None:
    module = build(**KEYS, aws_config={"read_timeout": 42})
    assert aws_support.client(module, "ecs").meta.config.read_timeout == 42


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_endpoint_is_a_timeout(silent_endpoint: str) -> None:
    made = aws_support.client(build(**KEYS, endpoint_url=silent_endpoint), "ecs", read_timeout=0.2, max_attempts=1)
    began = time.monotonic()
    with pytest.raises(exceptions.ReadTimeoutError) as caught:
        made.list_clusters()
    assert time.monotonic() - began < 3
    assert aws_support.classify(caught.value) == "timeout"


def test_a_refused_connection_is_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    made = aws_support.client(build(**KEYS, endpoint_url=url), "ecs", max_attempts=1)
    with pytest.raises(exceptions.EndpointConnectionError) as caught:
        made.list_clusters()
    assert aws_support.classify(caught.value) == "network"
    assert "could not reach AWS" in aws_support.explain(caught.value)


def test_a_role_is_assumed_at_the_first_call(silent_endpoint: str) -> None:
    role = "arn:aws:iam::123456789012:role/triage"
    module = build(**KEYS, endpoint_url="http://127.0.0.1:9", assume_role_arn=role)
    made = aws_support.client(module, "ecs", max_attempts=1)
    with pytest.raises(exceptions.EndpointConnectionError) as caught:
        made.list_clusters()
    # The first thing asked for is the role, and the sandbox's endpoint serves STS as well.
    assert caught.value.kwargs["endpoint_url"].rstrip("/") == "http://127.0.0.1:9"
    assert made._request_signer._credentials.method == "assume-role"


def client_error(code: str, message: str = "m", status: int = 400) -> exceptions.ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return exceptions.ClientError(response, "DescribeServices")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (client_error("AccessDeniedException"), "denied"),
        (client_error("UnauthorizedOperation", status=403), "denied"),
        (client_error("ExpiredTokenException"), "denied"),
        (client_error("SomethingNew", status=403), "denied"),
        (client_error("ThrottlingException"), "throttled"),
        (client_error("ProvisionedThroughputExceededException"), "throttled"),
        (client_error("SomethingNew", status=429), "throttled"),
        (client_error("ResourceNotFoundException"), "missing"),
        (client_error("AWS.SimpleQueueService.NonExistentQueue"), "missing"),
        (client_error("InvalidAllocationID.NotFound"), "missing"),
        (client_error("InternalFailure", status=500), "other"),
        (exceptions.NoCredentialsError(), "denied"),
        (exceptions.ConnectTimeoutError(endpoint_url="http://x"), "timeout"),
        (exceptions.ConnectionClosedError(endpoint_url="http://x"), "network"),
        (ConnectionResetError("reset"), "network"),
        (TimeoutError("late"), "timeout"),
        (KeyError("field"), "other"),
    ],
)
def test_kinds(error: BaseException, kind: str) -> None:
    assert aws_support.classify(error) == kind


def test_the_sentence_names_operation_and_code() -> None:
    assert aws_support.explain(client_error("AccessDeniedException", "User: x is not authorized.")) == (
        "DescribeServices was denied (AccessDeniedException: User: x is not authorized)."
    )


@pytest.mark.parametrize(
    "secret", ["x-amz-security-token:FwoGZXIvYXdzEXAMPLE==", "X-Amz-Security-Token=abc/def+g", "Q" * 120, "aB3/+=" * 60]
)
def test_no_token_is_repeated(secret: str) -> None:
    sentence = aws_support.explain(client_error("SignatureDoesNotMatch", f"The canonical string is\n{secret}\nhost:x"))
    value = secret.partition(":")[2] or secret.partition("=")[2] if "oken" in secret else secret
    assert value not in sentence
    assert "\n" not in sentence


def test_sentences_are_bounded() -> None:
    assert len(aws_support.explain(client_error("Odd", "word " * 10_000))) < 400
