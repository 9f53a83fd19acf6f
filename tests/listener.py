"""Somebody's HTTP server for tests, that checks signatures as a stranger would who has read our documentation."""

import hashlib
import hmac
import json
import ssl
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

SECRET = b"0123456789abcdef-of-the-test"


class Listener:
    """Answers by a script (statuses, or seconds to be silent, or a trickle), with 204 when it is through."""

    def __init__(self, *answers: float | str, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.answers = deque(answers)
        self.messages: list[dict[str, Any]] = []  #: of those answered with success
        self.bodies: list[bytes] = []  #: of all
        self.bad_signatures = 0
        self.ending = threading.Event()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                listener.take(self)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # a caller that gave up
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()

    def url(self, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}/alerts?box=1"

    def take(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        self.bodies.append(body)
        if not signed(request.headers["X-Scanside-Signature"], body):
            self.bad_signatures += 1
        answer = self.answers.popleft() if self.answers else 204
        if isinstance(answer, str):
            while not self.ending.wait(0.05):
                request.wfile.write(b"x")
                request.wfile.flush()
            return
        if isinstance(answer, float):
            self.ending.wait(answer)
            return
        if answer < 300:
            self.messages.append(json.loads(body))
        request.send_response(answer)
        request.end_headers()


def signed(header: str, body: bytes) -> bool:
    parts = dict(part.split("=", 1) for part in header.split(","))
    mine = hmac.new(SECRET, parts["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(mine, parts["v1"])
