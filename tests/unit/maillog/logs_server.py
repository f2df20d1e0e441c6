# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""FilterLogEvents on loopback, as awkward as the real one: small pages, empty ones, repeats, throttling, denials."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ansible.module_utils.maillog.aggregate import Event

Answer = tuple[int, dict[str, Any]]


class LogsServer:
    """Serves groups of events. `trouble(request, number)` may answer a call in the server's stead."""

    def __init__(self, groups: dict[str, list[Event]], page: int = 50) -> None:
        self.groups = {
            name: sorted(found, key=lambda one: (one.timestamp, one.event_id)) for name, found in groups.items()
        }
        self.page = page
        self.repeat = 0
        self.empty_every = 0
        self.calls: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.trouble: Callable[[dict[str, Any], int], Answer | None] = lambda request, number: None
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # One packet an answer: two wait for each other's acknowledgement.
            wbufsize = 1 << 16

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.calls.append(request)
                    outer.times.append(time.monotonic())
                    number = len(outer.calls)
                status, body = outer.trouble(request, number) or outer.filter(request, number)
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LogsServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def filter(self, request: dict[str, Any], number: int) -> Answer:
        name = request["logGroupName"]
        if name not in self.groups:
            return error("ResourceNotFoundException", "The specified log group does not exist.")
        found = [one for one in self.groups[name] if request["startTime"] <= one.timestamp <= request["endTime"]]
        at = int(request.get("nextToken", "at 0").split()[1])
        if self.empty_every and number % self.empty_every == 0:
            return 200, {"events": [], "searchedLogStreams": [], "nextToken": f"at {at} {number}"}
        begin = max(0, at - self.repeat)
        body: dict[str, Any] = {
            "events": [shape(one) for one in found[begin : at + self.page]],
            "searchedLogStreams": [],
        }
        if at + self.page < len(found):
            body["nextToken"] = f"at {at + self.page}"
        return 200, body


def shape(one: Event) -> dict[str, Any]:
    return {
        "logStreamName": one.stream, "timestamp": one.timestamp, "message": one.message,
        "ingestionTime": one.ingestion, "eventId": one.event_id,
    }  # fmt: skip


def error(code: str, message: str, status: int = 400) -> Answer:
    return status, {"__type": code, "message": message}
