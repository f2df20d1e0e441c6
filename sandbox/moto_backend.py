# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""moto's server as a WSGI application inside our process: it answers whatever the sandbox does not answer itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.awsrequest import AWSResponse
from botocore.loaders import JSONFileLoader
from werkzeug.test import EnvironBuilder, run_wsgi_app

from .model import REGION

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class Moto:
    """Blocking; call it from worker threads. Importing moto takes a third of a second: that is left to ``open``."""

    def __init__(self) -> None:
        self._app: Any = None

    def open(self) -> None:
        """Load moto, once."""
        if self._app is not None:
            return
        _parse_models_once()
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._app = DomainDispatcherApplication(create_backend_app)

    def reset(self) -> None:
        """Forget every resource."""
        self.call("POST", "/moto-api/reset", {"Host": "127.0.0.1"}, b"")

    def call(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Answer one request: status, headers, body. ``target`` is path and query as the client sent them."""
        path, _mark, query = target.partition("?")
        builder = EnvironBuilder(
            path=path,
            query_string=query,
            method=method,
            headers=[(name, text) for name, text in headers.items() if name.lower() not in ("host", "content-length")],
            data=body,
            base_url=f"http://{headers.get('Host', '127.0.0.1')}",
        )
        try:
            chunks, status, answer_headers = run_wsgi_app(self._app, builder.get_environ(), buffered=True)
            kept = {name: text for name, text in answer_headers if name.lower() not in _HOP_BY_HOP}
            return int(status.split()[0]), kept, b"".join(chunks)
        finally:
            builder.close()

    def session(self) -> boto3.Session:
        """A boto3 session whose requests are answered here, without the network and unseen by the call log."""
        session = boto3.Session(
            aws_access_key_id="seed",
            aws_secret_access_key="seed",  # noqa: S106 - moto takes any
            region_name=REGION,
        )
        session.events.register("before-send", self._before_send)
        return session

    def _before_send(self, request: Any, **_context: Any) -> AWSResponse:
        url = urlsplit(request.url)
        target = url.path + (f"?{url.query}" if url.query else "")
        headers = {name: _text(value) for name, value in request.headers.items()}
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else bytes(body)
        status, answer_headers, content = self.call(request.method, target, headers | {"Host": url.netloc}, body)
        return AWSResponse(request.url, status, answer_headers, _Raw(content))


class _Raw:
    """A body in memory, as botocore reads one from the network."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self, **_options: Any) -> list[bytes]:
        return [self._content]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _parse_models_once() -> None:
    """moto opens a botocore session a service and region, each of which parses the same large models again.

    Sharing the parsed files halves the time that the sandbox takes to start.
    """
    original = JSONFileLoader.load_file
    parsed: dict[str, Any] = {}

    def load_file(self: JSONFileLoader, file_path: str) -> Any:
        if file_path not in parsed:
            parsed[file_path] = original(self, file_path)
        return parsed[file_path]

    JSONFileLoader.load_file = load_file
