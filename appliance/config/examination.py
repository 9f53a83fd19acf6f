"""A closer look at a configuration than running needs: into the files it names.

Apart from `load`, since not everybody who reads the configuration may read keys, and OpenSSL is large.
"""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance import certificates
from appliance.config.destinations import StowDestination
from appliance.config.groups import OutboundTls
from appliance.config.loader import messages, read, validated
from appliance.config.models import Config, Tls
from appliance.config.remote import RemoteTls
from appliance.config.sources import Source, bearer_token
from appliance.config.yaml_lines import KeyPath, Problem
from appliance.errors import CertificateUnusable, ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A correct configuration, and what should be known of it all the same, as `file:line: key: text`."""

    config: Config
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    path: KeyPath
    text: str
    is_error: bool


def examine(path: Path, now: datetime | None = None) -> Examined:
    """As `load`, and looks into certificates and keys; `now` is the wall clock's if None. Raises ConfigError."""
    document = read(path)
    problems, config = validated(document, path.absolute().parent)
    if problems or config is None:
        raise ConfigError(messages(path, problems))
    found = [*_tls(config, now or datetime.now(UTC)), *_tokens(config)]
    told = {
        is_error: [
            Problem(line=document.line_of(one.path), path=one.path, text=one.text)
            for one in found
            if one.is_error is is_error
        ]
        for is_error in (True, False)
    }
    if told[True]:
        raise ConfigError(messages(path, told[True]))
    return Examined(config=config, remarks=tuple(messages(path, told[False])))


def _tls(config: Config, now: datetime) -> Iterator[_Found]:
    if config.receive.tls is not None:
        yield from _files(("receive", "tls"), config.receive.tls, now)
    for number, peer in enumerate(config.receive.peers):
        if peer.reports_tls is not None:
            yield from _files(("receive", "peers", number, "reports_tls"), peer.reports_tls, now)
    for number, destination in enumerate(config.destinations):
        if destination.tls is not None:
            yield from _files(("destinations", number, "tls"), destination.tls, now)
    for number, engine in enumerate(config.engines):
        if engine.remote is not None and engine.remote.tls is not None:
            yield from _files(("engines", number, "remote", "tls"), engine.remote.tls, now)


def _tokens(config: Config) -> Iterator[_Found]:
    for number, destination in enumerate(config.destinations):
        if not isinstance(destination, StowDestination) or destination.token is None:
            continue
        place = ("destinations", number, "token")
        if destination.token.path is None:
            yield _Found(path=place, text=_unseen(destination.token), is_error=False)
            continue
        try:
            bearer_token(destination.token.path)
        except ValueError as error:
            yield _Found(path=place, text=str(error), is_error=True)


def _files(place: KeyPath, tls: Tls | OutboundTls | RemoteTls, now: datetime) -> Iterator[_Found]:
    sources = {"certificate": tls.certificate, "key": tls.key, "ca": tls.ca}
    files = {part: source.path for part, source in sources.items() if source is not None and source.path is not None}
    for part, source in sources.items():
        if source is not None and source.path is None:
            yield _Found(path=(*place, part), text=_unseen(source), is_error=False)
    try:
        _use(files)
    except CertificateUnusable as error:
        yield _Found(path=(*place, error.part), text=str(error), is_error=True)
        return
    if "certificate" in files and (complaint := certificates.validity(files["certificate"]).complaint(now)):
        yield _Found(path=(*place, "certificate"), text=f"{files['certificate']} {complaint}", is_error=False)


def _unseen(source: Source) -> str:
    return f"{source.written} was not looked at: systemd gives it to the service only ($CREDENTIALS_DIRECTORY)"


def _use(files: dict[str, Path]) -> None:
    """Raises CertificateUnusable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if "certificate" in files and "key" in files:
        certificates.use(context, files["certificate"], files["key"])
    elif "certificate" in files:
        certificates.check_certificate(files["certificate"])
    elif "key" in files:
        certificates.check_key(files["key"])
    if "ca" in files:
        certificates.trust(context, files["ca"])
