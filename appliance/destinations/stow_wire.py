"""One HTTP connection to a DICOMweb server: bounded in bytes and time, no redirects, no proxies, no cookies.

httpx keeps the protocol; this module watches the socket under it, so that goodput is measured, what waits in it is
bounded, and a server that answers a byte now and then does not hold us.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from appliance.config.sources import bearer_token
from appliance.destinations.stow_answers import LONGEST_ANSWER, Answer
from appliance.dimse.throughput import Meter
from appliance.dimse.tls import ClientTls, failed_handshake, told_of_ours
from appliance.errors import AnswerLate, CertificateUnusable, DeliveryError, DestinationRefused, TransientDeliveryError

IDLE_S = 0.8  # that a connection is used again after; servers close theirs after a second or more
CHAIN = 8  # errors behind an error that are looked at
Pieces = Callable[[Meter], Iterator[bytes]]
_OPENED = ("connection.connect_tcp.complete", "connection.start_tls.complete")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebTarget:
    """Where, as whom, and how patiently."""

    url: str  #: /studies is added
    timeout_s: float = 30.0  #: to connect, and for bytes to move
    answer_s: float = 0.0  #: to wait for the answer to an object; 0: timeout_s
    bytes_s: float = 0.0  #: what an earlier connection carried; 0: not known
    congestion: str = ""  #: the kernel's congestion control to send with, where it has that; "": the system's own
    security: ClientTls | None = None  #: None with https: whom the system trusts
    token: Path | None = None  #: file of a bearer token


class WebWire:
    """Used by one thread. Raises TransientDeliveryError and DestinationRefused; after either it is of no use."""

    def __init__(self, target: WebTarget) -> None:
        """Connects at the first request."""
        self._target = target
        self._socket: socket.socket | None = None
        self._meter: Meter | None = None
        self._sent_all = False
        self.round_trip_s = 0.0
        self._client = httpx.Client(
            verify=_context(target),
            headers=_headers(target),
            timeout=httpx.Timeout(target.timeout_s, read=self._answer_s),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=IDLE_S),
            follow_redirects=False,
            trust_env=False,
        )

    @property
    def _answer_s(self) -> float:
        return max(self._target.timeout_s, self._target.answer_s)

    @property
    def bytes_s(self) -> float:
        return self._meter.bytes_s if self._meter is not None else self._target.bytes_s

    @property
    def held_back(self) -> bool | None:
        """See Meter."""
        return self._meter.held_back if self._meter is not None else None

    def close(self) -> None:
        self._client.close()

    def query(self, path: str) -> Answer:
        """Also tells the round trip, with what the server adds to it."""
        began = time.monotonic()
        answer = self._ask(self._client.build_request("GET", self._target.url + path))
        self.round_trip_s = time.monotonic() - began
        return answer

    def post(self, path: str, headers: Mapping[str, str], pieces: Pieces) -> Answer:
        """`headers` say how long the body is. `pieces` may raise DeliveryError."""
        request = self._client.build_request(
            "POST", self._target.url + path, headers=headers, content=self._body(pieces)
        )
        return self._ask(request)

    def _body(self, pieces: Pieces) -> Iterable[bytes]:
        """Begun only once there is a connection."""
        assert self._meter is not None  # noqa: S101 - the trace comes before the body
        self._meter.begin()
        for piece in pieces(self._meter):
            yield piece
            self._meter.look()
        self._sent_all = True

    def _ask(self, request: httpx.Request) -> Answer:
        self._sent_all = request.method == "GET"
        cut = threading.Event()
        if self._target.security is not None:
            request.extensions["sni_hostname"] = self._target.security.server_name
        # httpx waits so long for each read: this is for all of them together.
        watch = _Watch(self._cut_off, self._answer_s, cut)
        request.extensions["trace"] = watch.beside(self._watch)
        try:
            response = self._client.send(request, stream=True)
            try:
                return Answer(status=response.status_code, headers=_lower(response.headers), body=_read(response))
            finally:
                response.close()
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._meaning(error, late=cut.is_set()) from error
        finally:
            watch.end()

    def _watch(self, event: str, info: Mapping[str, Any]) -> None:
        """Of what httpcore tells that it does, the sockets; TLS takes the place of the plain socket."""
        if event not in _OPENED:
            return
        found = info["return_value"].get_extra_info("socket")
        if isinstance(found, socket.socket):
            with suppress(OSError):
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._target.congestion:
                    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._target.congestion.encode())
            self._socket, self._meter = found, Meter(found, self.bytes_s)

    def _cut_off(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # under TLS, which another thread is reading

    def _meaning(self, error: Exception, *, late: bool) -> DeliveryError:
        below = _tls_error(error)
        if below is not None and (ours := told_of_ours(below)) is not None:
            return ours
        if below is not None and isinstance(error, httpx.ConnectError):
            return failed_handshake(below)
        if late or isinstance(error, httpx.ReadTimeout):
            return (AnswerLate if self._sent_all else TransientDeliveryError)("no answer in time")
        return TransientDeliveryError(_words(error))


class _Watch:
    """Cuts a connection off whose answer, once all is sent, takes longer than it may."""

    def __init__(self, cut_off: Callable[[], None], seconds: float, cut: threading.Event) -> None:
        def over() -> None:
            cut.set()
            cut_off()

        self._timer = threading.Timer(seconds, over)
        self._timer.daemon = True

    def beside(self, other: Callable[[str, Mapping[str, Any]], None]) -> Callable[[str, Mapping[str, Any]], None]:
        """A trace that tells the other, too."""

        def trace(event: str, info: Mapping[str, Any]) -> None:
            other(event, info)
            if event.endswith("receive_response_headers.started"):
                self._timer.start()

        return trace

    def end(self) -> None:
        self._timer.cancel()


def _context(target: WebTarget) -> ssl.SSLContext | bool:
    """Raises DestinationRefused."""
    if not target.url.startswith("https:"):
        return False  # nothing is to be verified, and no file of authorities to be read
    if target.security is None:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context
    try:
        return target.security.context()
    except CertificateUnusable as error:
        raise DestinationRefused(f"TLS: {error}") from error


def _headers(target: WebTarget) -> dict[str, str]:
    """Raises DestinationRefused."""
    headers = {"Accept": "application/dicom+json", "Accept-Encoding": "identity", "User-Agent": "scanside"}
    if target.token is not None:
        try:
            headers["Authorization"] = f"Bearer {bearer_token(target.token)}"
        except ValueError as error:
            raise DestinationRefused(f"the token: {error}") from error
    return headers


def _lower(headers: httpx.Headers) -> dict[str, str]:
    wanted = ("content-type", "retry-after", "date")
    return {name: headers[name] for name in wanted if name in headers}


def _read(response: httpx.Response) -> bytes | None:
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if len(body) > LONGEST_ANSWER:
            return None
    return bytes(body)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(CHAIN):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    return next((one for one in _chain(error) if isinstance(one, ssl.SSLError)), None)


def _words(error: Exception) -> str:
    """The system's words where there are some, else what httpx calls it: its texts may quote what a server said."""
    system = next((one.strerror for one in _chain(error) if isinstance(one, OSError) and one.strerror), "")
    named: dict[type[Exception], str] = {
        httpx.ConnectTimeout: "no connection in time",
        httpx.WriteTimeout: "the server takes nothing any more",
        httpx.RemoteProtocolError: "the server ended the connection, or speaks no HTTP",
    }
    return named.get(type(error)) or system or f"connection lost ({type(error).__name__})"
