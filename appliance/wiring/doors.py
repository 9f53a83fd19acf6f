"""The ports of the receive process: with TLS or without, as configured, and what is told of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from appliance.config import ClientCertificates, Config
from appliance.dimse.doors import Door, listen
from appliance.wiring.common import Log

if TYPE_CHECKING:
    from appliance.dimse.tls import TlsGuard


class Doors:
    """All ports of this box, listening."""

    def __init__(self, config: Config, guard: "TlsGuard | None", log: Log) -> None:
        """Raises OSError where a port cannot be had."""
        self._options, self._guard, self._log = config.receive, guard, log
        bind = str(self._options.bind)
        self.all = [Door(listener=listen(bind, self._options.port), guard=guard)]
        if self._options.unencrypted_port is not None:
            self.all.append(Door(listener=listen(bind, self._options.unencrypted_port)))
        self._ports: list[int] = [door.listener.getsockname()[1] for door in self.all]
        self._fault = ""

    def announce(self) -> None:
        tls = self._options.tls
        self._log("receiving", port=self._ports[0], tls=tls.minimum_version if tls is not None else None)
        if self._options.unencrypted_port is not None:
            self._log("unencrypted_port", port=self._ports[1], reason=self._options.unencrypted_reason)

    def facts(self) -> Mapping[str, Any]:
        """For `status`: port; tls {minimum_version, client_certificates, ends, fault} or None; the plain port."""
        return {
            "port": self._ports[0],
            "tls": self._tls(),
            "unencrypted_port": self._options.unencrypted_port,
            "unencrypted_reason": self._options.unencrypted_reason,
        }

    def _tls(self) -> Mapping[str, Any] | None:
        if self._guard is None or self._options.tls is None:
            return None
        if self._guard.fault != self._fault:
            self._fault = self._guard.fault
            self._log("certificate_renewed" if not self._fault else "certificate_not_renewed", reason=self._fault)
        validity = self._guard.validity
        return {
            "minimum_version": self._options.tls.minimum_version,
            "client_certificates": self._options.tls.client_certificates,
            "begins": validity.begins.isoformat(),
            "ends": validity.ends.isoformat(),
            "fault": self._fault,
        }


def tls_guard(config: Config) -> "TlsGuard | None":
    """What guards our port; None: nothing does. Raises CertificateUnusable."""
    options = config.receive.tls
    if options is None:
        return None
    from appliance.dimse.tls import ServerFiles, TlsGuard  # noqa: PLC0415 - OpenSSL takes 6 MB, wanted or not

    required = options.client_certificates is ClientCertificates.REQUIRED
    return TlsGuard(
        ServerFiles(
            certificate=options.certificate.file,
            key=options.key.file,
            ca=options.ca.file if required and options.ca is not None else None,
            minimum_version=options.minimum_version,
        )
    )
