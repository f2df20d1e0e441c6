# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an AWS request asks for, whichever of the protocols it speaks, and how an error is worded in that protocol.

Protocols: JSON with X-Amz-Target, the query form, EC2's variant of it, and smithy-rpc-v2-cbor (path
``/service/<name>/operation/<Operation>``). See https://smithy.io/2.0/aws/protocols/.
"""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from botocore.parsers import RpcV2CBORParser

_CREDENTIAL = re.compile(r"Credential=([^/]+)/[^/]+/([^/]+)/([^/]+)/aws4_request")
_CBOR_PATH = re.compile(r"^/service/[^/]+/operation/([A-Za-z0-9]+)$")
_SERVICES = {
    "AmazonEC2ContainerServiceV20141113": "ecs",
    "Logs_20140328": "logs",
    "AmazonSSM": "ssm",
    "AmazonSQS": "sqs",
    "DynamoDB_20120810": "dynamodb",
    "TrentService": "kms",
    "Route53AutoNaming_v20170314": "servicediscovery",
    "AWSCognitoIdentityProviderService": "cognito-idp",
    "monitoring": "cloudwatch",
}
_SECRET_KEYS = re.compile(r"^(Value|SecretString|TokenValue|Plaintext|CiphertextBlob|Password)$")


@dataclass(frozen=True)
class Call:
    """One API call. ``principal`` is the access key id; ``protocol`` json, query, ec2, cbor or rest."""

    service: str
    operation: str
    parameters: dict[str, Any]
    principal: str
    protocol: str
    content_type: str = "application/x-amz-json-1.1"

    @property
    def name(self) -> str:
        return f"{self.service}.{self.operation}"

    def shown(self) -> dict[str, Any]:
        """The parameters, secrets left out."""
        return {key: "***" if _SECRET_KEYS.match(key) else value for key, value in self.parameters.items()}


def read_call(path: str, headers: Mapping[str, str], body: bytes) -> Call:
    """Identify a request. What can't be read has empty parameters: moto may still know what to do with it."""
    credential = _CREDENTIAL.search(headers.get("Authorization", ""))
    principal, scope = (credential[1], credential[3]) if credential else ("anonymous", "")
    service = _SERVICES.get(scope, scope)
    content_type = headers.get("Content-Type", "")
    target = headers.get("X-Amz-Target", "")
    if target:
        prefix, _dot, operation = target.rpartition(".")
        return Call(_SERVICES.get(prefix, service), operation, _json(body), principal, "json", content_type)
    over_cbor = _CBOR_PATH.match(path)
    if over_cbor:
        return Call(service, over_cbor[1], _cbor(body), principal, "cbor", "application/cbor")
    if content_type.startswith("application/x-www-form-urlencoded"):
        form = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
        operation = form.pop("Action", "")
        form.pop("Version", None)
        return Call(service, operation, form, principal, "ec2" if service == "ec2" else "query", "text/xml")
    return Call(service, "", {}, principal, "rest")


def _json(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body or b"{}")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _cbor(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        parsed = RpcV2CBORParser().parse_data_item(io.BufferedReader(io.BytesIO(body)))
    except Exception:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def error_body(call: Call, code: str, message: str) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of an error answer in the call's protocol."""
    request_id = str(uuid.uuid4())
    headers = {"x-amzn-RequestId": request_id, "Content-Type": call.content_type}
    if call.protocol == "cbor":
        headers["smithy-protocol"] = "rpc-v2-cbor"
        return _cbor_map({"__type": code, "message": message}), headers
    if call.protocol == "ec2":
        text = (
            f"<Response><Errors><Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error></Errors>"
            f"<RequestID>{request_id}</RequestID></Response>"
        )
        return text.encode(), headers
    if call.protocol in ("query", "rest"):
        text = (
            f"<ErrorResponse><Error><Type>Sender</Type><Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
            f"</Error><RequestId>{request_id}</RequestId></ErrorResponse>"
        )
        return text.encode(), headers
    return json.dumps({"__type": code, "message": message}).encode(), headers


def _cbor_map(values: dict[str, str]) -> bytes:
    """A map of texts in CBOR (RFC 8949)."""
    return bytes([0xA0 | len(values)]) + b"".join(_cbor_text(k) + _cbor_text(v) for k, v in values.items())


def _cbor_text(text: str) -> bytes:
    raw = text.encode()
    if len(raw) < 24:
        return bytes([0x60 | len(raw)]) + raw
    return b"\x79" + len(raw).to_bytes(2, "big") + raw
