"""Certificates for tests: authorities and devices, made with the openssl command when they are needed."""

import ssl
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.scanner import Client

_NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


@dataclass(frozen=True, slots=True)
class Paper:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Somebody who certifies."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / name
        self._folder.mkdir(parents=True)
        self.certificate, self._key = self._folder / "ca.pem", self._folder / "ca.key"
        made: list[str | Path] = ["-keyout", self._key, "-out", self.certificate, "-subj", f"/CN={name}"]
        _openssl("req", "-x509", *_NEW_KEY, "-days", "90", *made)

    def issue(
        self, common_name: str, *names: str, days: int = 90, usage: str = "serverAuth,clientAuth", file: str = ""
    ) -> Paper:
        """`names` as in a subjectAltName: DNS:box.example, IP:127.0.0.1. -1 days: it expired yesterday."""
        certificate, key, request, extensions = (
            self._folder / f"{file or common_name}.{kind}" for kind in ("pem", "key", "csr", "ext")
        )
        alternative = f"subjectAltName={','.join(names)}\n" if names else ""
        extensions.write_text(f"{alternative}extendedKeyUsage={usage}\n")
        _openssl("req", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={common_name}")
        signed: list[str | Path] = [
            "-CA",
            self.certificate,
            "-CAkey",
            self._key,
            "-CAcreateserial",
            "-extfile",
            extensions,
        ]
        _openssl("x509", "-req", "-in", request, *signed, "-days", str(days), "-out", certificate)
        return Paper(certificate, key)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


@dataclass(frozen=True, slots=True)
class Papers:
    """Everybody's certificates, in a trust with one scanner, CT01."""

    ca: Path
    box: Paper
    ct01: Paper  #: named by its DNS name
    by_common_name: Paper
    other: Paper
    expired: Paper
    for_servers: Paper
    rogue: Paper
    rogue_ca: Path


def make_papers(folder: Path) -> Papers:
    trust, rogue, name = Authority(folder, "Trust CA"), Authority(folder, "Rogue CA"), "ct01.trust.example"
    return Papers(
        ca=trust.certificate,
        box=trust.issue("box", "DNS:box.trust.example", "IP:127.0.0.1"),
        ct01=trust.issue("Scanner 7", f"DNS:{name}", file="ct01"),
        by_common_name=trust.issue("CT01.Trust.Example"),
        other=trust.issue("ct02.trust.example"),
        expired=trust.issue(name, days=-1, file="expired"),
        for_servers=trust.issue(name, usage="serverAuth", file="servers"),
        rogue=rogue.issue(name),
        rogue_ca=rogue.certificate,
    )


def client_context(papers: Papers, paper: Paper | None, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A scanner's side of TLS; a version is the only one it speaks."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(papers.ca)
    if paper is not None:
        made.load_cert_chain(paper.certificate, paper.key)
    if version is not None:
        made.minimum_version = made.maximum_version = version
    return made


class TlsClient(Client):
    """A scanner that speaks TLS, and hears whether the other side parts in order."""

    def __init__(self, port: int, security: ssl.SSLContext) -> None:
        super().__init__(port)
        with ExitStack() as undo:
            undo.push(self.socket)
            self.tls = security.wrap_socket(self.socket, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
            undo.pop_all()
        self.socket = self.tls
