"""Who is let in, and how many: peers by AE title and address, connections by slots (P9)."""

import ipaddress
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.dimse import association as acse
from appliance.dimse.association import AssociateRequest

STRANGER_SLOTS = 8

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who may send: an AE title at an address or in a network, with slots nobody else can take."""

    ae_title: str
    network: Network
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what peers may take."""

    max_pdu: int
    associations: int
    associations_per_peer: int
    idle_s: float
    min_rate: int  #: bytes per second inside a PDU
    request_s: float = 10.0  #: from connecting to the whole association request
    grace_s: float = 10.0  #: for each PDU, on top of what its size may take
    mid_message_s: float = 60.0  #: of silence between the PDUs of one message
    send_s: float = 30.0  #: for the peer to take a response
    finish_s: float = 5.0  #: for running associations when told to stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who and what is let in."""

    ae_title: str
    any_called_ae: bool
    peers: Sequence[Peer]
    accepts: Callable[[str], bool]  #: whether an abstract syntax is served

    def knows(self, address: str) -> bool:
        ip = _address(address)
        return any(ip in peer.network for peer in self.peers)

    def rejection(self, request: AssociateRequest, address: str) -> tuple[int, int, int, str] | None:
        """(result, source, reason, words) of PS3.8 Table 9-21, or None: welcome."""
        ip = _address(address)
        if not any(peer.ae_title == request.calling_ae and ip in peer.network for peer in self.peers):
            return 1, 1, 3, "calling AE title not recognised"
        if not self.any_called_ae and request.called_ae != self.ae_title:
            return 1, 1, 7, "called AE title not recognised"
        if request.application_context != acse.APPLICATION_CONTEXT:
            return 1, 1, 2, "application context not supported"
        return None


def _address(text: str) -> Address:
    ip = ipaddress.ip_address(text.partition("%")[0])
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


class Slots:
    """Who holds how many connections. A slot reserved for a peer is never given to another."""

    def __init__(self, limits: Limits, policy: Policy) -> None:
        self._limits, self._policy = limits, policy
        self._held: dict[str, int] = {}
        self._strangers = 0
        self._lock = threading.Lock()

    def take(self, address: str) -> str:
        """Take one: "slot", or "overflow" (only to be told so), or "" (no room even for that)."""
        with self._lock:
            if self._policy.knows(address) and self._has_room(address):
                self._held[address] = self._held.get(address, 0) + 1
                return "slot"
            if self._strangers < STRANGER_SLOTS:
                self._strangers += 1
                return "overflow"
            return ""

    def give_back(self, address: str, kind: str) -> None:
        with self._lock:
            if kind == "slot":
                self._held[address] -= 1
                if not self._held[address]:
                    del self._held[address]
            else:
                self._strangers -= 1

    def _has_room(self, address: str) -> bool:
        held = self._held.get(address, 0)
        if held >= self._limits.associations_per_peer:
            return False
        mine = self._of(_address(address))
        kept = sum(max(0, peer.slots - self._used(peer)) for peer in self._policy.peers if peer not in mine)
        own = any(self._used(peer) < peer.slots for peer in mine)
        free = self._limits.associations - sum(self._held.values())
        return free > 0 and (own or free > kept)

    def _of(self, ip: Address) -> list[Peer]:
        return [peer for peer in self._policy.peers if ip in peer.network]

    def _used(self, peer: Peer) -> int:
        return sum(count for address, count in self._held.items() if _address(address) in peer.network)
