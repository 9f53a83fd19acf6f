"""A DICOMweb server for tests: takes STOW-RS by the book, or does what a script says. Loopback only."""

import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from appliance.dimse.header import part10

LONGEST = 1 << 26
JSON = "application/dicom+json"


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered to a POST, after the body was read."""

    status: int = 200
    body: bytes | None = None  #: None: as the standard has it
    headers: dict[str, str] = field(default_factory=dict)


Deed = Callable[["Handler"], None]


class WebPacs:
    """`script` is used up from the front, one a POST: a Reply, or a deed that does as it likes with the request."""

    def __init__(self, folder: Path, security: ssl.SSLContext | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.script: list[Reply | Deed] = []
        self.queries: list[Reply] = []  #: to GET, used up likewise
        self.seen: list[dict[str, str]] = []  #: headers of POSTs, names in lower case
        self.connections = 0
        self.released = threading.Event()  #: deeds wait for it
        outer = self

        class Bound(Handler):
            pacs = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # peers leave
        self.port: int = self._server.server_address[1]
        if security is not None:
            self._server.socket = security.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.dcm"))


class Handler(BaseHTTPRequestHandler):
    pacs: WebPacs
    protocol_version = "HTTP/1.1"
    timeout = 20

    def setup(self) -> None:
        super().setup()
        self.pacs.connections += 1
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_: object) -> None:
        """Tests read no log."""

    def do_GET(self) -> None:
        assert self.path.startswith("/dicom-web/studies?"), self.path
        self.answer(self.pacs.queries.pop(0) if self.pacs.queries else Reply(200, b"[]"))

    def do_POST(self) -> None:
        assert self.path == "/dicom-web/studies", self.path
        self.pacs.seen.append({name.lower(): value for name, value in self.headers.items()})
        deed = self.pacs.script.pop(0) if self.pacs.script else Reply()
        if not isinstance(deed, Reply):
            deed(self)
            self.close_connection = True
            return
        uid = self.store(self.body(), keep=deed.status == 200)
        self.answer(Reply(deed.status, stored(uid), deed.headers) if deed.body is None else deed)

    def body(self) -> bytes:
        return self.rfile.read(min(int(self.headers["Content-Length"]), LONGEST))

    def store(self, body: bytes, *, keep: bool) -> tuple[str, str]:
        kind = self.headers["Content-Type"]
        assert kind.startswith('multipart/related; type="application/dicom"; boundary=')
        boundary = kind.rpartition("=")[2].encode()
        head, tail = b"--" + boundary + b"\r\nContent-Type: application/dicom\r\n\r\n", b"\r\n--" + boundary + b"--\r\n"
        assert body.startswith(head)
        assert body.endswith(tail)
        file = self.pacs.folder / f"{len(self.pacs.files())}.{'dcm' if keep else 'refused'}"
        file.write_bytes(body[len(head) : -len(tail)])
        found = part10(file)
        return found.sop_class_uid, found.sop_instance_uid

    def answer(self, reply: Reply) -> None:
        body = reply.body or b""
        headers = {"Content-Type": JSON, "Content-Length": str(len(body))} | reply.headers
        self.send_response(reply.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def stored(uid: tuple[str, str], warning: int = 0) -> bytes:
    """The Store Instances Response Module of one stored instance."""
    item = _reference(uid)
    if warning:
        item["00081196"] = {"vr": "US", "Value": [warning]}
    return json.dumps({"00081199": {"vr": "SQ", "Value": [item]}}).encode()


def failed(uid: tuple[str, str], reason: int) -> bytes:
    item = _reference(uid) | {"00081197": {"vr": "US", "Value": [reason]}}
    return json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()


def _reference(uid: tuple[str, str]) -> dict[str, Any]:
    return {"00081150": {"vr": "UI", "Value": [uid[0]]}, "00081155": {"vr": "UI", "Value": [uid[1]]}}


def hang(handler: Handler) -> None:
    """Reads all of it and never answers."""
    handler.body()
    handler.pacs.released.wait(20)


def stall(handler: Handler) -> None:
    """Reads nothing of the body."""
    handler.pacs.released.wait(20)


def drip(handler: Handler) -> None:
    """Answers a byte now and then, for ever."""
    handler.body()
    with suppress(OSError):
        while not handler.pacs.released.wait(0.05):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: a"[:1])


def leave(handler: Handler) -> None:
    """Closes in the middle of the body."""
    handler.rfile.read(1000)


def interrupt(handler: Handler) -> None:
    """Says before the body is there that it is too large, as proxies do, and closes."""
    handler.answer(Reply(413, b"", {"Connection": "close"}))


def babble(handler: Handler) -> None:
    handler.body()
    handler.wfile.write(b"220 mail.example ESMTP\r\n")


def flood(handler: Handler) -> None:
    """An answer that is longer than anybody reads."""
    handler.body()
    handler.wfile.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nContent-Length: 1000000000\r\n\r\n"
    )
    with suppress(OSError):
        for _ in range(200):
            handler.wfile.write(b"[" * 65536)
