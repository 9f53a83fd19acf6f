"""TLS for DICOM, both sides (PS3.15 B.12, BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile).

TLS 1.2 and 1.3. For 1.2 only suites with ECDHE and an authenticated cipher (AES-GCM, ChaCha20-Poly1305); finite-field
DHE, CBC, SHA-1 and RSA key exchange are not offered; keys of at least 112 bits of security (RSA 2048, P-256). No
compression, no renegotiation, no session tickets: each association shows its certificate. What B.13 (the modified
profile) permits besides, DHE of 2048 bits, is left out, as RFC 9325 4.1 advises.

Names are compared whole and without regard to case: a wildcard in a peer's certificate is not one device.
"""

import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance import certificates
from appliance.dimse.admission import Channel
from appliance.errors import CertificateUnusable, DestinationRefused, TransientDeliveryError

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:@SECLEVEL=2"
RECORD = 1 << 14  # bytes that a TLS record holds at most (RFC 8446 5.1)
MOST_SESSIONS = 64  # that OpenSSL may remember of TLS 1.2 peers: each keeps a certificate, for two hours
LINGER_S = 1.0
LINGER_BYTES = 1 << 16

_CUT = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
#: OpenSSL's reason, and what it means on our side; the rest is told in OpenSSL's own words.
_MEANINGS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no client certificate",
    "UNSUPPORTED_PROTOCOL": "the peer's TLS version is too old",
    "VERSION_TOO_LOW": "the peer's TLS version is too old",
    "TLSV1_ALERT_PROTOCOL_VERSION": "no TLS version in common",
    "NO_SHARED_CIPHER": "no cipher suite in common",
    "HTTP_REQUEST": "plain text on the TLS port",
    "HTTPS_PROXY_REQUEST": "plain text on the TLS port",
    "WRONG_VERSION_NUMBER": "plain text on the TLS port, or no TLS",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer does not accept our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer does not accept our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer requires a certificate of ours",
}


class HandshakeFailed(ConnectionError):
    """No TLS with this peer; to an association that is one more way to lose its connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFiles:
    """What a TLS port shows, and whom it believes."""

    certificate: Path
    key: Path
    ca: Path | None = None  #: authorities of client certificates; None: none is asked for
    minimum_version: str = "TLSv1.2"

    def stamps(self) -> tuple[object, ...]:
        """Changes when a file does."""
        found = [file.stat() for file in (self.certificate, self.key, self.ca) if file is not None]
        return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)


def server_context(files: ServerFiles) -> ssl.SSLContext:
    """Raises CertificateUnusable."""
    context = _hardened(ssl.PROTOCOL_TLS_SERVER, files.minimum_version)
    context.num_tickets = 0
    certificates.use(context, files.certificate, files.key)
    if files.ca is not None:
        certificates.trust(context, files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _hardened(protocol: int, minimum_version: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = _VERSIONS[minimum_version]
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    return context


class TlsGuard:
    """A doors.Guard: TLS, and whom the client certificate names.

    Renewed files are used from the next connection on; renewed files that are no use leave the old ones in use.
    """

    def __init__(self, files: ServerFiles) -> None:
        """Raises CertificateUnusable."""
        self._files = files
        self._lock = threading.Lock()
        self._context, self.validity = server_context(files), certificates.validity(files.certificate)
        self._stamps = files.stamps()
        self.fault = ""  #: why renewed files are not in use

    def take_over(self, connection: socket.socket) -> socket.socket:
        try:
            return self._current().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError) as error:  # it is gone already
            connection.close()
            raise HandshakeFailed(_reason(error)) from error

    def handshake(self, connection: socket.socket, timeout_s: float) -> Channel:
        """Raises HandshakeFailed with the reason; the peer got its alert then."""
        assert isinstance(connection, ssl.SSLSocket)  # noqa: S101 - it comes from `take_over`
        until = time.monotonic() + timeout_s
        try:
            connection.settimeout(max(0.001, timeout_s))
            connection.do_handshake()
            return Channel(
                encrypted=True, mutual=self._files.ca is not None, names=names(connection.getpeercert() or {})
            )
        except (OSError, ValueError) as error:
            _linger(connection, until)
            raise HandshakeFailed(_reason(error)) from error

    def more(self, connection: socket.socket, space: memoryview, count: int) -> int:
        """A read gives one record at most: without this, a large object would go to its file in 16 kB pieces."""
        end = count
        if count >= RECORD:
            with suppress(OSError):  # what is wrong shows again at the next read
                connection.settimeout(0)
                while end < len(space) and (got := connection.recv_into(space[end:])):
                    end += got
        return end - count

    def farewell(self, connection: socket.socket) -> None:
        part(connection)

    def _current(self) -> ssl.SSLContext:
        with self._lock:
            with suppress(OSError):
                stamps = self._files.stamps()
                if stamps != self._stamps or self._context.session_stats()["number"] >= MOST_SESSIONS:
                    self._renew(stamps)
            return self._context

    def _renew(self, stamps: tuple[object, ...]) -> None:
        try:
            self._context, self.validity = server_context(self._files), certificates.validity(self._files.certificate)
            self.fault = ""
        except CertificateUnusable as error:
            self.fault = str(error)
        self._stamps = stamps


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """How to speak TLS to one node, and who it must be. Its files are read anew for each connection."""

    ca: Path
    server_name: str  #: in its certificate: DNS name or IP address
    certificate: Path | None = None  #: ours, with its key
    key: Path | None = None
    minimum_version: str = "TLSv1.2"

    def secure(self, connection: socket.socket) -> ssl.SSLSocket:
        """The handshake, under the connection's time-out.

        Raises DestinationRefused where a certificate or the protocol does not fit, TransientDeliveryError for a lost
        connection; the connection is closed then.
        """
        try:
            return self.context().wrap_socket(connection, server_hostname=self.server_name)
        except CertificateUnusable as error:
            connection.close()
            raise DestinationRefused(f"TLS: {error}") from error
        except (OSError, ValueError) as error:
            connection.close()
            raise failed_handshake(error) from error

    def context(self) -> ssl.SSLContext:
        """Raises CertificateUnusable."""
        context = _hardened(ssl.PROTOCOL_TLS_CLIENT, self.minimum_version)
        certificates.trust(context, self.ca)
        if self.certificate is not None and self.key is not None:
            certificates.use(context, self.certificate, self.key)
        return context

    def refusal(self, error: OSError) -> DestinationRefused | None:
        """With TLS 1.3 a refused certificate of ours shows at the first read after the handshake only."""
        return told_of_ours(error)

    def part(self, connection: socket.socket) -> None:
        part(connection)


def failed_handshake(error: Exception) -> DestinationRefused | TransientDeliveryError:
    """What it means for a delivery: a lost connection passes, a certificate or protocol that does not fit stays."""
    lost = not isinstance(error, ssl.SSLError | ValueError) or isinstance(error, _CUT)
    return (TransientDeliveryError if lost else DestinationRefused)(_reason(error))


def told_of_ours(error: BaseException) -> DestinationRefused | None:
    """Whether the other side said that it refuses our certificate, or wants one."""
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    told = "ALERT" in reason and any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED"))
    return DestinationRefused(_reason(error)) if told and isinstance(error, ssl.SSLError) else None


def names(certificate: Mapping[str, Any]) -> frozenset[str]:
    """CN and DNS names of a verified certificate, as `SSLSocket.getpeercert` gives it, in lower case."""
    subject = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    alternative = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return frozenset(name.lower() for name in (*subject, *alternative) if name.isprintable())


def part(connection: socket.socket) -> None:
    """Send close_notify if it can leave at once; the peer's is not waited for. Never raises."""
    if isinstance(connection, ssl.SSLSocket):
        with suppress(OSError, ValueError):
            connection.settimeout(0)
            connection.unwrap()


def _linger(connection: socket.socket, until: float) -> None:
    """Close after a failed handshake, but let the peer read why: unread bytes would turn our alert into a reset."""
    until = min(until, time.monotonic() + LINGER_S)
    read = 0
    with connection, suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while read < LINGER_BYTES and (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            if not (data := connection.recv(4096)):
                return
            read += len(data)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: certificate refused: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "TLS: the handshake took too long"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {_MEANINGS.get(error.reason) or certificates.words(error)}"
    return "TLS: the connection was lost in the handshake"
