"""Who is let in, and how many: peers by AE title, address and certificate, connections by slots (P9)."""

import ipaddress
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from appliance.dimse import association as acse
from appliance.dimse.association import AssociateRequest, Role

STRANGER_SLOTS = 8
REPORTER_SLOTS = 4  # of an address whence only reports may come
WAITING_SLOTS = 32  # connections of known addresses without a request yet
MOST_NAMES, LONGEST_NAME = 3, 64  # of a certificate, in words of ours

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who may send: an AE title at an address or in a network, with slots nobody else can take."""

    ae_title: str
    network: Network
    slots: int
    certificate: str = ""  #: a name its client certificate must carry; "": none is looked at
    services: frozenset[str] = frozenset()  #: abstract syntaxes served to this peer, not to all


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What a connection itself proves of the peer."""

    encrypted: bool = False
    mutual: bool = False  #: a certificate of the peer's was asked for
    names: frozenset[str] = frozenset()  #: of its verified client certificate: CN and DNS names, in lower case


PLAIN = Channel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Who may call to report on what we asked of it, and for nothing else: one of our destinations.

    It comes as SCP of these abstract syntaxes, which PS3.7 D.3.3.4 has role selection for.
    """

    ae_title: str
    network: Network
    knows_us_as: str  #: the AE title we called it with
    services: frozenset[str]
    certificate: str = ""  #: as of a Peer


Known = Peer | Reporter


def nobody() -> Sequence[Reporter]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what peers may take."""

    max_pdu: int
    associations: int
    associations_per_peer: int
    idle_s: float
    min_rate: int  #: bytes per second inside a PDU
    request_s: float = 10.0  #: from connecting to the whole association request, TLS handshake included
    spare_s: float = 30.0  #: of rest, after which an association makes room for another one of its peer
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
    accepts: Callable[[str], bool]  #: whether an abstract syntax is served to all peers
    reporters: Callable[[], Sequence[Reporter]] = nobody  #: as of now: their addresses may change

    def knows(self, address: str) -> bool:
        ip = _address(address)
        known: list[Known] = [*self.peers, *self.reporters()]
        return any(ip in one.network for one in known)

    def rejection(
        self, request: AssociateRequest, address: str, channel: Channel = PLAIN
    ) -> tuple[int, int, int, str] | None:
        """(result, source, reason, words) of PS3.8 Table 9-21, or None: welcome.

        Details of the words stand in brackets. A peer is not told which of its papers did not fit.
        """
        ip = _address(address)
        known: list[Known] = [*self._named(request, ip), *self._reporting(request, ip)]
        if not known:
            return 1, 1, 3, "calling AE title not recognised"
        proved = [one for one in known if _proved(one, channel)]
        if not proved:
            return 1, 1, 3, f"calling AE title not recognised: {_why_not(known, channel)}"
        titles = {one.knows_us_as if isinstance(one, Reporter) else self.ae_title for one in proved}
        if not self.any_called_ae and request.called_ae not in titles:
            return 1, 1, 7, "called AE title not recognised"
        if request.application_context != acse.APPLICATION_CONTEXT:
            return 1, 1, 2, "application context not supported"
        return None

    def accepts_from(self, request: AssociateRequest, address: str, channel: Channel = PLAIN) -> Callable[[str], bool]:
        """Whether an abstract syntax is served to whoever sends this request: what all get, and what is its own.

        To one who may only report nothing is served but that; nor to one who would be a peer, and does not prove it.
        """
        ip = _address(address)
        named = [one for one in self._named(request, ip) if _proved(one, channel)]
        reporting = [one for one in self._reporting(request, ip) if _proved(one, channel)]
        known: list[Known] = [*named, *reporting]
        own = frozenset[str]().union(*(one.services for one in known))
        only_that = bool(reporting) and not named
        return lambda abstract_syntax: abstract_syntax in own or (not only_that and self.accepts(abstract_syntax))

    def roles(self, request: AssociateRequest, address: str) -> tuple[Role, ...]:
        """What is answered to the roles proposed: who reports to us may be SCP (PS3.7 D.3.3.4). Else the default."""
        served = {uid for one in self._reporting(request, _address(address)) for uid in one.services}
        return tuple(
            Role(sop_class_uid=role.sop_class_uid, scu=role.scu, scp=True)
            for role in request.roles
            if role.scp and role.sop_class_uid in served
        )

    def _named(self, request: AssociateRequest, ip: Address) -> list[Peer]:
        return [peer for peer in self.peers if peer.ae_title == request.calling_ae and ip in peer.network]

    def _reporting(self, request: AssociateRequest, ip: Address) -> list[Reporter]:
        """The destinations that this request may be from, if it is about what they may report at all."""
        proposed = {context.abstract_syntax for context in request.contexts}
        return [
            one
            for one in self.reporters()
            if one.ae_title == request.calling_ae and ip in one.network and proposed & one.services
        ]


def _proved(peer: Known, channel: Channel) -> bool:
    """Whether the connection proves that it is this peer: who has a certificate to show never comes without it."""
    if peer.certificate:
        return peer.certificate.lower() in channel.names
    return not channel.mutual


def _why_not(named: Sequence[Known], channel: Channel) -> str:
    if not channel.encrypted:
        return "it may come over TLS only"
    if not any(peer.certificate for peer in named):
        return "no certificate is configured for it, so it may not come over TLS"
    theirs = ", ".join(sorted(name[:LONGEST_NAME] for name in channel.names)[:MOST_NAMES]) or "nobody"
    return f"the certificate is another one's (it names {theirs})"


def _address(text: str) -> Address:
    ip = ipaddress.ip_address(text.partition("%")[0])
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


class Hold(Enum):
    """What a connection holds."""

    NOTHING = auto()  #: no room even to be told so
    STRANGER = auto()  #: of an address that nobody is configured for: only to be told so
    WAITING = auto()  #: of an address we know; who it is has not been said yet
    SLOT = auto()  #: an association


class Slots:
    """Who holds how many connections. A slot reserved for a peer is never given to another.

    A slot is taken by an association request that was found good, not by a connection: whoever connects and says
    nothing, be it from a scanner's own address, only waits. Where too many wait, the oldest one of the address that
    has most must go: an honest peer says who it is within a round trip.

    Where a peer's slots are all taken, by associations of before its power went, say, a new one takes over the slot of
    that one of its own that has been at rest for longest: no message is under way, for `Limits.spare_s` at least.
    """

    def __init__(self, limits: Limits, policy: Policy) -> None:
        self._limits, self._policy = limits, policy
        self._holds: dict[int, tuple[Hold, str]] = {}  # number of the connection, oldest first -> what, address
        self._held: Counter[str] = Counter()  # address -> slots
        self._titles: dict[int, str] = {}  # number of the association -> who called
        self._resting: dict[int, float] = {}  # number -> since when (time.monotonic), longest first
        self._lock = threading.Lock()

    def arrive(self, number: int, address: str) -> tuple[Hold, int | None]:
        """What a new connection holds, and the number of another that must go for it."""
        with self._lock:
            hold = Hold.WAITING if self._policy.knows(address) else Hold.STRANGER
            others = [one for one, (kind, _) in self._holds.items() if kind is hold]
            if hold is Hold.STRANGER and len(others) >= STRANGER_SLOTS:
                return Hold.NOTHING, None
            goes = self._longest_waiting(others) if len(others) >= WAITING_SLOTS else None
            if goes is not None:
                del self._holds[goes]
            self._holds[number] = hold, address
            return hold, goes

    def settle(self, number: int, title: str = "") -> bool:
        """A good request came over this connection, of this AE title: whether there is a slot for it."""
        with self._lock:
            hold, address = self._holds.get(number, (Hold.NOTHING, ""))
            if hold is not Hold.WAITING or not self._has_room(address):
                return False
            self._take(number, address, title)
            return True

    def take_over(self, number: int, title: str) -> int | None:
        """As `settle`, where there is no slot: the number of the association whose slot it has now; None: of nobody."""
        with self._lock:
            hold, address = self._holds.get(number, (Hold.NOTHING, ""))
            goes = self._at_rest(address, title) if hold is Hold.WAITING else None
            if goes is None:
                return None
            self._held[address] -= 1
            is_enough = self._has_room(address)
            self._held[address] += 1
            if not is_enough:
                return None
            self._let_go(goes)
            self._take(number, address, title)
            return goes

    def rest(self, number: int) -> None:
        """Nothing is under way over this association."""
        with self._lock:
            if number in self._titles:
                self._resting[number] = time.monotonic()

    def stir(self, number: int) -> bool:
        """Something came over it. False: another one has its slot by now."""
        with self._lock:
            self._resting.pop(number, None)
            return number in self._titles

    def give_back(self, number: int) -> None:
        with self._lock:
            self._let_go(number)

    def _take(self, number: int, address: str, title: str) -> None:
        self._holds[number], self._titles[number] = (Hold.SLOT, address), title
        self._held[address] += 1

    def _let_go(self, number: int) -> None:
        hold, address = self._holds.pop(number, (Hold.NOTHING, ""))
        self._resting.pop(number, None)
        self._titles.pop(number, None)
        if hold is Hold.SLOT:
            self._held[address] -= 1
            if not self._held[address]:
                del self._held[address]

    def _at_rest(self, address: str, title: str) -> int | None:
        """The association of this peer that has been at rest for longest, if that is long enough."""
        before = time.monotonic() - self._limits.spare_s
        mine = (n for n in self._resting if self._titles[n] == title and self._holds[n][1] == address)
        goes = next(mine, None)
        return goes if goes is not None and self._resting[goes] <= before else None

    def _longest_waiting(self, waiting: Sequence[int]) -> int:
        of_address = Counter(self._holds[one][1] for one in waiting)
        return max(waiting, key=lambda one: of_address[self._holds[one][1]])  # the first, that is, oldest of these

    def _has_room(self, address: str) -> bool:
        mine = self._of(_address(address))
        if self._held[address] >= (self._limits.associations_per_peer if mine else REPORTER_SLOTS):
            return False
        kept = sum(max(0, peer.slots - self._used(peer)) for peer in self._policy.peers if peer not in mine)
        own = any(self._used(peer) < peer.slots for peer in mine)
        free = self._limits.associations - self._held.total()
        return free > 0 and (own or free > kept)

    def _of(self, ip: Address) -> list[Peer]:
        return [peer for peer in self._policy.peers if ip in peer.network]

    def _used(self, peer: Peer) -> int:
        return sum(count for address, count in self._held.items() if _address(address) in peer.network)
