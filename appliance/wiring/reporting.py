"""Which destinations may report to us on storage commitment, and from where: what the receive process knows of them."""

import ipaddress
import socket
import threading
from collections.abc import Sequence

from appliance.config import ClientCertificates, Config, DimseDestination, Proof
from appliance.dimse.admission import Network, Reporter
from appliance.dimse.sop_classes import STORAGE_COMMITMENT_PUSH
from appliance.stages.receive.proofs import Node, Reporting

AGAIN_S = 60.0  # a name's address may change
UNKNOWN_AGAIN_S = 5.0
MOST_ADDRESSES = 16  # of one name


class Reporters:
    """Destinations with `proof: commitment`, where they are now. Read by many threads."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._options = [
            one for one in config.destinations if isinstance(one, DimseDestination) and one.proof is Proof.COMMITMENT
        ]
        hosts = {str(one.host) for one in self._options}
        self._networks = {host: _literal(host) for host in hosts}  # replaced whole: readers take no lock
        self._names = sorted(host for host in hosts if not self._networks[host])

    def run(self, stopping: threading.Event) -> None:
        """Look the names up, now and again: a DNS server may be slow, or come up after us."""
        while self._names and not stopping.is_set():
            looked_up = {name: _resolved(name) or self._networks[name] for name in self._names}
            self._networks = {**self._networks, **looked_up}
            stopping.wait(AGAIN_S if all(looked_up.values()) else UNKNOWN_AGAIN_S)

    def admitted(self) -> Sequence[Reporter]:
        """For admission.Policy."""
        return [
            Reporter(
                ae_title=options.called_ae,
                network=network,
                knows_us_as=options.calling_ae or self._config.ae_title,
                services=frozenset({STORAGE_COMMITMENT_PUSH}),
                certificate=self._certificate(options),
            )
            for options, network in self._where()
        ]

    def reporting(self) -> Reporting:
        askers = [
            Node(ae_title=peer.ae_title, network=peer.address)
            for peer in self._config.receive.peers
            if peer.commitment is not None
        ]
        return Reporting(reporters=self._nodes, askers=askers)

    def _nodes(self) -> Sequence[Node]:
        return [
            Node(ae_title=options.called_ae, network=network, destination=options.name)
            for options, network in self._where()
        ]

    def _where(self) -> list[tuple[DimseDestination, Network]]:
        return [(options, network) for options in self._options for network in self._networks[str(options.host)]]

    def _certificate(self, options: DimseDestination) -> str:
        """Who has a certificate to show us as a server shows the same one as a client, where we ask for one."""
        ours = self._config.receive.tls
        if ours is None or ours.client_certificates is not ClientCertificates.REQUIRED or options.tls is None:
            return ""
        return options.tls.server_name or str(options.host)


def _literal(host: str) -> tuple[Network, ...]:
    try:
        return (ipaddress.ip_network(host),)
    except ValueError:
        return ()


def _resolved(name: str) -> tuple[Network, ...]:
    try:
        found = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return ()
    return tuple(ipaddress.ip_network(address) for address in sorted(found)[:MOST_ADDRESSES])
