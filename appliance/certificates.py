"""Certificates and keys as files: whether they can be used together, who may read them, and until when they hold.

PEM files only (RFC 7468). Words that come out of here never quote a key.
"""

import os
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import CertificateUnusable

MAX_BYTES = 1 << 20
SOON_DAYS = 30

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_OTHERS = 0o007
_UTC_TIME, _GENERALISED_TIME = 0x17, 0x18  # ASN.1 tags
_VERSION = 0xA0


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """When a certificate holds (RFC 5280 4.1.2.5)."""

    begins: datetime
    ends: datetime

    def complaint(self, now: datetime) -> str:
        """What is wrong with it at this time, or will be soon; "": nothing."""
        if now < self.begins:
            return f"holds only from {self.begins:%Y-%m-%d %H:%M} UTC on: is the clock right?"
        if now > self.ends:
            return f"expired {self.ends:%Y-%m-%d %H:%M} UTC: peers refuse it"
        days = (self.ends - now).days
        return f"expires in {days} days, {self.ends:%Y-%m-%d %H:%M} UTC: renew it" if days < SOON_DAYS else ""


def use(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Have the context show this certificate. Raises CertificateUnusable, which names the part."""
    check_certificate(certificate)
    check_key(key)
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateUnusable("key", f"{key} is not the key of {certificate}") from None
        raise CertificateUnusable("certificate", f"{certificate} with {key}: {words(error)}") from None
    except OSError as error:
        raise CertificateUnusable("certificate", f"{certificate} with {key}: {error.strerror}") from None


def trust(context: ssl.SSLContext, ca: Path) -> None:
    """Have the context believe whom these authorities certify. Raises CertificateUnusable."""
    check_certificate(ca, "ca")
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise CertificateUnusable("ca", f"{ca}: {words(error)}") from None


def check_certificate(file: Path, part: str = "certificate") -> None:
    """Raises CertificateUnusable where this is no file of certificates."""
    if not _CERTIFICATE.search(_text(file, part)):
        raise CertificateUnusable(part, f"{file} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")


def check_key(file: Path) -> None:
    """Raises CertificateUnusable where this is no private key, wants a passphrase, or is there for all to read."""
    text = _text(file, "key")
    if "PRIVATE KEY-----" not in text:
        raise CertificateUnusable("key", f"{file} holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)")
    if "ENCRYPTED" in text:
        raise CertificateUnusable(
            "key", f"{file} wants a passphrase, which nobody is there to type: openssl pkey -in OLD -out NEW"
        )
    if file.stat().st_mode & _OTHERS:
        raise CertificateUnusable("key", f"{file} may be read by everybody on this box: chmod o-rwx {file}")


def validity(file: Path) -> Validity:
    """When the first certificate in the file holds. Raises CertificateUnusable."""
    found = _CERTIFICATE.search(_text(file, "certificate"))
    try:
        return _validity(ssl.PEM_cert_to_DER_cert(found.group())) if found else _malformed(file)
    except (ValueError, IndexError):
        return _malformed(file)


def words(error: ssl.SSLError) -> str:
    """OpenSSL's reason as words; its own texts carry source file and line."""
    return (error.reason or "not usable").lower().replace("_", " ")


def _malformed(file: Path) -> Validity:
    raise CertificateUnusable("certificate", f"{file} holds no readable certificate")


def _text(file: Path, part: str) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise CertificateUnusable(part, f"{file} cannot be read: {os.strerror(error.errno or 0)}") from None
    if len(content) > MAX_BYTES:
        raise CertificateUnusable(part, f"{file} is longer than {MAX_BYTES} bytes")
    return content.decode("ascii", "replace")


def _validity(der: bytes) -> Validity:
    """Certificate, TBSCertificate, then past version, serial number, signature and issuer (RFC 5280 4.1)."""
    _, at, _ = _element(der, 0)
    _, at, _ = _element(der, at)
    tag, _, end = _element(der, at)
    for _ in range(3 if tag == _VERSION else 2):
        _, _, end = _element(der, end)
    _, at, _ = _element(der, end)
    tag, start, end = _element(der, at)
    begins = _time(tag, der[start:end])
    tag, start, end = _element(der, end)
    return Validity(begins=begins, ends=_time(tag, der[start:end]))


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """(tag, start of the content, end of it) of the DER element that begins at `at`."""
    tag, size, start = der[at], der[at + 1], at + 2
    if size & 0x80:
        more = size & 0x7F
        size, start = int.from_bytes(der[start : start + more], "big"), start + more
    if start + size > len(der):
        raise ValueError("cut short")
    return tag, start, start + size


def _time(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: RFC 5280 4.1.2.5.1
        text = ("19" if text >= "50" else "20") + text
    elif tag != _GENERALISED_TIME:
        raise ValueError("not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
