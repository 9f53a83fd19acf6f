"""A webhook: JSON posted to somebody's HTTP server, signed so that they know that it is from us and not from last year.

The header `X-Scanside-Signature: t=SECONDS,v1=HEX` holds the time of sending (Unix seconds) and the HMAC-SHA256, with
the shared secret as its key, of the bytes `SECONDS` + `.` + body. Who receives it computes the same over the body as it
came, compares in constant time, and refuses times that are minutes away.
"""

import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from appliance import certificates
from appliance.errors import CertificateUnusable, TransientDeliveryError

SIGNATURE = "X-Scanside-Signature"
SHORTEST_SECRET = 16  # bytes
LONGEST_SECRET = 1 << 16
WAIT_S = 10.0  # for one answer of the network
LONGEST_S = 30.0  # for all of it: a server that sends a byte now and then does not hold us


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Used by one thread. The secret is read each time: a renewed one needs no restart."""

    url: str
    secret: Path
    ca: Path | None = None
    wait_s: float = WAIT_S
    longest_s: float = LONGEST_S

    def post(self, message: Mapping[str, Any]) -> None:
        """Raises TransientDeliveryError, whose words quote nothing that the server said."""
        body = json.dumps(message, separators=(",", ":")).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "scanside",
            SIGNATURE: signature(self._key(), int(time.time()), body),
        }
        parts = urlsplit(self.url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = self._connection()
        ended = threading.Timer(self.longest_s, _cut, (connection,))
        try:
            ended.start()
            connection.connect()
            connection.request("POST", path, body, headers)
            status = connection.getresponse().status
        except (OSError, HTTPException) as error:
            raise TransientDeliveryError(f"the webhook was not told: {_words(error)}") from error
        finally:
            ended.cancel()
            connection.close()
        if not 200 <= status < 300:
            raise TransientDeliveryError(f"the webhook answered {status}", status)

    def _connection(self) -> HTTPConnection:
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if parts.scheme == "http":
            return HTTPConnection(host, parts.port, timeout=self.wait_s)
        context = ssl.create_default_context()
        if self.ca is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            try:
                certificates.trust(context, self.ca)
            except CertificateUnusable as error:
                raise TransientDeliveryError(f"the webhook was not told: {error}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return HTTPSConnection(host, parts.port, timeout=self.wait_s, context=context)

    def _key(self) -> bytes:
        try:
            with self.secret.open("rb") as file:
                key = file.read(LONGEST_SECRET).strip()
        except OSError as error:
            raise TransientDeliveryError(f"the webhook's secret {self.secret}: {error.strerror}") from error
        if len(key) < SHORTEST_SECRET:
            raise TransientDeliveryError(f"the webhook's secret {self.secret} is shorter than {SHORTEST_SECRET} bytes")
        return key


def signature(key: bytes, seconds: int, body: bytes) -> str:
    """The value of the header."""
    return f"t={seconds},v1={hmac.new(key, b'%d.' % seconds + body, hashlib.sha256).hexdigest()}"


def _cut(connection: HTTPConnection) -> None:
    with suppress(OSError, AttributeError):  # it may be closed by now
        connection.sock.shutdown(2)


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    return getattr(error, "strerror", None) or type(error).__name__
