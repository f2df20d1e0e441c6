# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""moto's server as a WSGI application inside our process: it answers whatever the sandbox does not answer itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from werkzeug.test import EnvironBuilder, run_wsgi_app

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class Moto:
    """Blocking; call it from worker threads. Importing moto takes a third of a second: that is left to ``open``."""

    def __init__(self) -> None:
        self._app: Any = None

    def open(self) -> None:
        from moto.backends import get_service_from_url  # noqa: F401 - loads what the dispatcher looks up by name
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
            headers=[
                (name, value) for name, value in headers.items() if name.lower() not in ("host", "content-length")
            ],
            input_stream=None,
            data=body,
            base_url=f"http://{headers.get('Host', '127.0.0.1')}",
        )
        try:
            chunks, status, answer_headers = run_wsgi_app(self._app, builder.get_environ(), buffered=True)
            kept = {name: value for name, value in answer_headers if name.lower() not in _HOP_BY_HOP}
            return int(status.split()[0]), kept, b"".join(chunks)
        finally:
            builder.close()
