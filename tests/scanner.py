"""Scanners for tests: data sets made by hand, a client that can say anything, and an acceptor to say it to."""

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Self

from appliance.dimse import command as dimse
from appliance.dimse.acceptor import Acceptor, Observer
from appliance.dimse.admission import Limits, Peer, Policy, Reporter
from appliance.dimse.association import (
    AssociateAccept,
    AssociateRequest,
    ProposedContext,
    Rejection,
    decode_accept,
    decode_reject,
    encode_request,
)
from appliance.dimse.command import Command
from appliance.dimse.doors import Door, Guard, listen
from appliance.dimse.pdu import Control, Fragment, PduReader, PduType, encode_p_data, encode_release_rq
from appliance.dimse.services import Caller, Services, StorageHandler
from appliance.dimse.sop_classes import VERIFICATION, storage_sop_classes
from appliance.file_head import file_head
from tests.journals import CT_IMAGE, EXPLICIT, SERIES, STUDY
from tests.waiting import eventually

LIMITS = Limits(
    max_pdu=16384,
    associations=12,
    associations_per_peer=10,
    idle_s=20.0,
    min_rate=10_000,
    finish_s=0.3,
)
CT01 = Peer(ae_title="CT01", network=ip_network("127.0.0.1/32"), slots=2)


def data_set(number: int, pixels: bytes = b"pixel" * 200, *, series: str = SERIES, sop_class: str = CT_IMAGE) -> bytes:
    """The data set of CT image `number` of a series, Explicit VR Little Endian."""
    elements: list[tuple[int, int, bytes, bytes]] = [
        (0x0008, 0x0016, b"UI", sop_class.encode()),
        (0x0008, 0x0018, b"UI", f"{series}.{number}".encode()),
        (0x0008, 0x0060, b"CS", b"CT"),
        (0x0010, 0x0020, b"LO", b"PID1"),
        (0x0020, 0x000D, b"UI", STUDY.encode()),
        (0x0020, 0x000E, b"UI", series.encode()),
        (0x7FE0, 0x0010, b"OW", pixels),
    ]
    return b"".join(_element(*element) for element in elements)


def _element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    value += (b"\0" if vr in (b"UI", b"OW") else b" ") * (len(value) % 2)
    if vr == b"OW":
        return struct.pack("<HH2sHI", group, element, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, element, vr, len(value)) + value


def part10(folder: Path, number: int, pixels: bytes = b"pixel" * 200, *, series: str = SERIES) -> Path:
    """A file for other people's senders."""
    file = folder / f"{number:05d}.dcm"
    head = file_head(CT_IMAGE, f"{series}.{number}", EXPLICIT, "CT01")
    file.write_bytes(head + data_set(number, pixels, series=series))
    return file


class Client:
    """One connection to an acceptor, byte by byte if need be."""

    def __init__(self, port: int, timeout_s: float = 5.0, host: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((host, port), timeout=timeout_s)
        self.reader = PduReader(1 << 17)
        self._events: Iterator[Control | Fragment] = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def associate(
        self, calling_ae: str = "CT01", called_ae: str = "SCANSIDE", sop_classes: Sequence[str] = (CT_IMAGE,)
    ) -> AssociateAccept | Rejection:
        contexts = tuple(
            ProposedContext(id=2 * n + 1, abstract_syntax=uid, transfer_syntaxes=(EXPLICIT,))
            for n, uid in enumerate([*sop_classes, VERIFICATION])
        )
        self.send(encode_request(AssociateRequest(called_ae=called_ae, calling_ae=calling_ae, contexts=contexts)))
        answer = self.event()
        assert isinstance(answer, Control)
        if answer.type is PduType.ASSOCIATE_AC:
            return decode_accept(answer.body)
        assert answer.type is PduType.ASSOCIATE_RJ
        return decode_reject(answer.body)

    def event(self) -> Control | Fragment:
        """The next PDU, or piece of one. Raises EOFError when the other side has closed."""
        while (event := next(self._events, None)) is None:
            count = self.socket.recv_into(self.reader.space())
            if not count:
                raise EOFError
            self._events = self.reader.received(count)
        return event

    def response(self) -> Command:
        collected = b""
        while True:
            event = self.event()
            assert isinstance(event, Fragment), event
            collected += event.view
            if event.is_last and event.whole:
                return dimse.decode(collected)

    def store(
        self, number: int, data: bytes | None = None, *, context_id: int = 1, sop_class: str = CT_IMAGE
    ) -> Command:
        self.send(store_message(number, data, context_id=context_id, sop_class=sop_class))
        return self.response()

    def release(self) -> None:
        self.send(encode_release_rq())
        answer = self.event()
        assert isinstance(answer, Control)
        assert answer.type is PduType.RELEASE_RP

    def is_closed(self) -> bool:
        """Whether the other side ends the connection, after whatever it may still say."""
        try:
            while self.socket.recv(4096):
                pass
        except ConnectionResetError:
            return True
        return True


def store_message(
    number: int, data: bytes | None = None, *, context_id: int = 1, sop_class: str = CT_IMAGE, piece: int = 10_000
) -> bytes:
    """A C-STORE request with its data set, ready for the wire."""
    request = dimse.store_request(number, sop_class, f"{SERIES}.{number}")
    content = data_set(number) if data is None else data
    pieces = [content[at : at + piece] for at in range(0, len(content), piece)] or [b""]
    return dimse.encode(request, context_id) + b"".join(
        encode_p_data(context_id, part, is_command=False, is_last=n == len(pieces)) for n, part in enumerate(pieces, 1)
    )


@dataclass
class Witness:
    """An observer that remembers."""

    associations: list[Caller] = field(default_factory=list)
    ends: list[tuple[str, int, bool]] = field(default_factory=list)  #: reason, stored, in order
    rejections: list[tuple[str, str]] = field(default_factory=list)  #: calling AE, reason

    def opened(self, caller: Caller) -> None:
        self.associations.append(caller)

    def ended(self, caller: Caller, *, stored: int, in_order: bool, reason: str) -> None:
        assert caller in self.associations
        self.ends.append((reason, stored, in_order))

    def rejected(self, calling_ae: str, address: str, reason: str) -> None:
        assert address == "127.0.0.1"
        self.rejections.append((calling_ae, reason))

    def last_end(self) -> tuple[str, int, bool]:
        eventually(lambda: 0 < len(self.ends) == len(self.associations), what="all associations have ended")
        return self.ends[-1]


@dataclass(frozen=True, slots=True)
class Listening:
    port: int
    acceptor: Acceptor
    thread: threading.Thread


@contextmanager
def listening(
    handler: StorageHandler | Services,
    observer: Observer,
    limits: Limits = LIMITS,
    peers: Sequence[Peer | Reporter] = (CT01,),
    guard: Guard | None = None,
) -> Iterator[Listening]:
    """An acceptor on a free port of this machine, served by a thread, ended on leaving."""
    listener = listen("127.0.0.1", 0)
    services = handler if isinstance(handler, Services) else Services(storage=handler)
    served = storage_sop_classes() | {VERIFICATION}
    policy = Policy(
        ae_title="SCANSIDE",
        any_called_ae=False,
        peers=[one for one in peers if isinstance(one, Peer)],
        accepts=served.__contains__,
        reporters=lambda: [one for one in peers if isinstance(one, Reporter)],
    )
    acceptor = Acceptor([Door(listener=listener, guard=guard)], policy, limits, services, observer)
    thread = threading.Thread(target=acceptor.serve, name="acceptor", daemon=True)
    thread.start()
    try:
        yield Listening(listener.getsockname()[1], acceptor, thread)
    finally:
        acceptor.stop()
        thread.join(5.0)
        assert not thread.is_alive()


def limits(**changes: float) -> Limits:
    return replace(LIMITS, **changes)  # type: ignore[arg-type] # whole numbers where they must be
