# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers on loopback that take notifications and keep what they got: HTTP, a small GitHub, SMTP."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Web:
    """Answers every request with ``status``, after ``never`` was set at the latest; keeps requests."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.requests: list[dict[str, Any]] = []
        self.slow = False
        self.enough = threading.Event()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        return self.status, {}


class GitHub(Web):
    """The few calls of GitHub's REST interface for issues that are made, as its documentation describes them."""

    def __init__(self) -> None:
        super().__init__()
        self.issues: list[dict[str, Any]] = []
        self.comments: list[tuple[int, str]] = []

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        place, _, query = path.partition("?")
        if method == "GET" and place.endswith("/issues"):
            assert "state=open" in query
            return 200, [issue for issue in self.issues if issue["state"] == "open"]
        if method == "POST" and place.endswith("/issues"):
            self.issues.append({"number": len(self.issues) + 1, "state": "open", **body})
            return 201, self.issues[-1]
        number = int(place.split("/issues/")[1].split("/")[0])
        if method == "POST":
            self.comments.append((number, body["body"]))
            return 201, {}
        assert method == "PATCH"
        self.issues[number - 1].update(body)
        return 200, self.issues[number - 1]


@contextmanager
def http(web: Web) -> Iterator[str]:
    """Serve, and give the address."""

    class Handler(BaseHTTPRequestHandler):
        def _take(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if web.slow:
                web.enough.wait(20)
            try:
                parsed = json.loads(body) if body else None
            except ValueError:
                parsed = body.decode("utf-8", "replace")
            headers = {name.lower(): value for name, value in self.headers.items()}
            web.requests.append({"method": self.command, "path": self.path, "headers": headers, "body": parsed})
            status, said = web.answer(self.command, self.path, parsed)
            data = b"" if status == 204 else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = _take

        def log_message(self, *_words: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        web.enough.set()
        server.shutdown()
        server.server_close()


@contextmanager
def smtp(mails: list[str]) -> Iterator[int]:
    """Take mail as RFC 5321 says, and give the port."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self._say("220 sink.test ESMTP")
            while line := self.rfile.readline().decode("utf-8", "replace").strip():
                word = line[:4].upper()
                if word == "DATA":
                    self._say("354 go on")
                    lines = []
                    while (text := self.rfile.readline()) != b".\r\n":
                        lines.append(text.decode("utf-8", "replace"))
                    mails.append("".join(lines))
                self._say("221 bye" if word == "QUIT" else "250 ok")
                if word == "QUIT":
                    return

        def _say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
