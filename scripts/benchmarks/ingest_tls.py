"""A certificate for both sides of a TLS connection, made for one run of the benchmark."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import BenchError

NAME = "bench.example"
_LEAF = f"""\
subjectAltName=DNS:{NAME},IP:127.0.0.1
basicConstraints=critical,CA:FALSE
extendedKeyUsage=serverAuth,clientAuth
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """PEM files."""

    certificate: Path
    key: Path
    ca: Path

    @property
    def dcmtk(self) -> tuple[object, ...]:
        """Options of DCMTK's programs: both sides show a certificate and look at the other's."""
        return ("+tls", self.key, self.certificate, "+cf", self.ca)


def make_credentials(folder: Path) -> Credentials:
    """Raises BenchError where OpenSSL's program is missing or fails."""
    if not shutil.which("openssl"):
        raise BenchError("openssl is not installed: on Debian or Ubuntu, apt-get install openssl")
    folder.mkdir()
    ca, ca_key, request = folder / "ca.pem", folder / "ca-key.pem", folder / "request.pem"
    made = Credentials(certificate=folder / "certificate.pem", key=folder / "key.pem", ca=ca)
    extensions = folder / "extensions"
    extensions.write_text(_LEAF)
    _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", ca_key, "-out", ca, "-subj", "/CN=Bench CA")
    _openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", made.key, "-out", request, "-subj", f"/CN={NAME}")
    signed = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-extfile", extensions, "-out", made.certificate)
    _openssl("x509", "-req", "-in", request, "-days", 2, *signed)
    return made


def _openssl(*words: object) -> None:
    command = ["openssl", *(str(word) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command[:2])} failed: {done.stderr.strip()[-300:]}")
