"""What hostile peers do to a receiver, each attack until it is told to stop, again and again.

Those without a login come from the scanner's own address, the worst place. Those that need an association are those of
a configured device that has gone bad, at an address of its own. Every attack counts what it did: one that got nothing
done has proved nothing.
"""

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from appliance.dimse import command, pdu
from appliance.dimse.association import AssociateRequest, ProposedContext, encode_request
from appliance.dimse.pdu import PduType
from appliance.dimse.sop_classes import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    VERIFICATION,
)
from benchmarks import hostile_objects

SCANNER_ADDRESS, DEVICE_ADDRESS = "127.0.0.1", "127.0.0.2"
DEVICE = "DEVICE"  #: the AE title of the device that has gone bad
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
RLE = "1.2.840.10008.1.2.5"
DATA, ECHO, DEFLATED, COMPRESSED = 1, 3, 5, 7  # presentation contexts of the device
MANY, FLOOD = 24, 150  # connections: more than pynetdicom has slots; more than anybody may have
SHORT_S, PAUSE_S = 2.0, 0.01
POURED = 64 << 20  # bytes of an endless data set before another begins
PIECE = 16_000  # of a data set, within what every receiver takes


@dataclass(slots=True)
class Front:
    """Where to, until when, and what was done."""

    port: int
    called_ae: str
    stop: threading.Event = field(default_factory=threading.Event)
    done: int = 0  #: connections, PDUs or objects, as the attack has it
    chance: random.Random = field(default_factory=lambda: random.Random(11))  # noqa: S311 - the same each time

    def connect(self, address: str = SCANNER_ADDRESS) -> socket.socket:
        """Raises OSError."""
        connection = socket.create_connection(("127.0.0.1", self.port), SHORT_S, (address, 0))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.done += 1
        return connection

    def request(self) -> bytes:
        syntaxes = {DATA: EXPLICIT_VR_LITTLE_ENDIAN, DEFLATED: DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, COMPRESSED: RLE}
        contexts = [
            ProposedContext(id=number, abstract_syntax=CT_IMAGE, transfer_syntaxes=(syntax,))
            for number, syntax in syntaxes.items()
        ]
        contexts.append(
            ProposedContext(id=ECHO, abstract_syntax=VERIFICATION, transfer_syntaxes=(EXPLICIT_VR_LITTLE_ENDIAN,))
        )
        called = AssociateRequest(called_ae=self.called_ae, calling_ae=DEVICE, contexts=tuple(contexts))
        return encode_request(called)

    def associate(self) -> socket.socket:
        """An accepted association of the device that has gone bad. Raises OSError where there is none."""
        with ExitStack() as undo:
            connection = undo.enter_context(self.connect(DEVICE_ADDRESS))
            connection.sendall(self.request())
            answer = read_exactly(connection, 6)
            read_exactly(connection, int.from_bytes(answer[2:], "big"))
            if answer[0] != PduType.ASSOCIATE_AC:
                raise ConnectionError("not accepted")
            undo.pop_all()
        return connection

    def wait(self, seconds: float) -> None:
        self.stop.wait(seconds)

    @property
    def goes_on(self) -> bool:
        return not self.stop.is_set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    name: str
    run: Callable[[Front], None]


def read_exactly(connection: socket.socket, size: int) -> bytes:
    read = b""
    while len(read) < size:
        piece = connection.recv(size - len(read))
        if not piece:
            raise ConnectionError("closed")
        read += piece
    return read


def _held(words: bytes, count: int = MANY) -> Callable[[Front], None]:
    """So many connections that say this and then nothing; whichever is closed is opened anew."""

    def run(front: Front) -> None:
        with ExitStack() as stack:
            held: list[socket.socket] = []
            while front.goes_on:
                held = [one for one in held if not _is_closed(one)]
                with suppress(OSError):
                    while len(held) < count and front.goes_on:
                        connection = stack.enter_context(front.connect())
                        connection.sendall(words)
                        held.append(connection)
                front.wait(10 * PAUSE_S)

    return run


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        return not connection.recv(1 << 16)
    except BlockingIOError:
        return False
    except OSError:
        connection.close()
        return True


def _again(once: Callable[[Front], None], pause_s: float = PAUSE_S) -> Callable[[Front], None]:
    """As often as it goes; being refused, cut off or reset is what an attacker expects."""

    def run(front: Front) -> None:
        while front.goes_on:
            with suppress(OSError):
                once(front)
            front.wait(pause_s)

    return run


def _crowd(once: Callable[[Front], None], count: int) -> Callable[[Front], None]:
    """So many at a time."""

    def run(front: Front) -> None:
        threads = [threading.Thread(target=_again(once), args=(front,), daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def _claim_two_gigabytes(front: Front) -> None:
    with front.connect() as connection:
        connection.sendall(struct.pack(">BxI", 1, 0x7FFFFFFF))
        for _ in range(200):
            connection.sendall(bytes(1 << 20))
            if not front.goes_on:
                return


def _byte_by_byte(front: Front) -> None:
    with front.connect() as connection:
        connection.sendall(struct.pack(">BxI", 1, 200))
        while front.goes_on:
            connection.sendall(b"A")
            front.wait(1.0)


def _come_and_go(front: Front) -> None:
    with front.connect() as connection:
        if front.done % 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close resets


def _mutated(front: Front) -> None:
    request = bytearray(front.request())
    for _ in range(front.chance.randrange(1, 8)):
        at = front.chance.randrange(len(request))
        action = front.chance.randrange(4)
        if action == 0:
            request[at] = front.chance.randrange(256)
        elif action == 1:
            del request[at : at + front.chance.randrange(1, 40)]
        elif action == 2:
            request[at:at] = front.chance.randbytes(front.chance.randrange(1, 40))
        else:
            request[at : at + 2] = front.chance.choice([b"\xff\xff", b"\0\0", b"\x80\0", b"\x7f\xff"])
    with front.connect(DEVICE_ADDRESS) as connection:
        connection.sendall(request)
        connection.settimeout(20 * PAUSE_S)
        connection.recv(1 << 16)


def _opening(words: bytes) -> Callable[[Front], None]:
    def once(front: Front) -> None:
        with front.connect() as connection:
            connection.sendall(words)
            connection.settimeout(20 * PAUSE_S)
            connection.recv(1 << 16)

    return _again(once)


def _store(number: int, context_id: int = DATA) -> bytes:
    return command.encode(command.store_request(1, CT_IMAGE, f"1.2.3.{number + 1}"), context_id)


def _abort_half_way(front: Front) -> None:
    with front.associate() as connection:
        piece = pdu.encode_p_data(DATA, bytes(PIECE), is_command=False, is_last=False)
        connection.sendall(_store(front.done) + piece * 60 + pdu.encode_abort(0, 0))


def _endless_command(front: Front) -> None:
    with front.associate() as connection:
        piece = pdu.encode_p_data(DATA, bytes(PIECE), is_command=True, is_last=False)
        while front.goes_on:
            connection.sendall(piece)


def _endless_data(front: Front) -> None:
    with front.associate() as connection:
        piece = pdu.encode_p_data(DATA, bytes(PIECE), is_command=False, is_last=False)
        connection.sendall(_store(front.done))
        for _ in range(POURED // PIECE):
            connection.sendall(piece)
            if not front.goes_on:
                return


def _trickled_data(front: Front) -> None:
    with front.associate() as connection:
        connection.sendall(_store(front.done))
        while front.goes_on:
            connection.sendall(pdu.encode_p_data(DATA, b"x", is_command=False, is_last=False))
            front.wait(0.5)


def _crumbs(front: Front) -> None:
    """A data set in PDVs of a byte each."""
    crumbs = struct.pack(">IBBc", 3, DATA, 0, b"x") * (PIECE // 7)
    with front.associate() as connection:
        connection.sendall(_store(front.done))
        for _ in range(200):
            connection.sendall(pdu.encode_control(PduType.P_DATA, crumbs))
            if not front.goes_on:
                return


def _unread_answers(front: Front) -> None:
    with front.associate() as connection:
        echoes = command.encode(command.echo_request(1), ECHO) * 500
        while front.goes_on:
            connection.sendall(echoes)


def _lying_pdv(front: Front) -> None:
    with front.associate() as connection:
        connection.sendall(_store(front.done))
        connection.sendall(struct.pack(">BxIIBB", 4, 100, 0x7FFFFFFF, DATA, 0) + bytes(94))
        connection.settimeout(20 * PAUSE_S)
        connection.recv(1 << 16)


def _objects(contents: Sequence[tuple[int, bytes]]) -> Callable[[Front], None]:
    """(context, data set) of objects that are stored in turn, whatever the answer."""

    def once(front: Front) -> None:
        with front.associate() as connection:
            connection.settimeout(SHORT_S * 5)
            for context_id, content in contents:
                connection.sendall(_store(time.monotonic_ns(), context_id))
                for at in range(0, len(content), PIECE):
                    last = at + PIECE >= len(content)
                    piece = content[at : at + PIECE]
                    connection.sendall(pdu.encode_p_data(context_id, piece, is_command=False, is_last=last))
                answer = read_exactly(connection, 6)
                read_exactly(connection, int.from_bytes(answer[2:], "big"))
                front.done += 1

    return _again(once, 5 * PAUSE_S)


def attacks() -> tuple[Attack, ...]:
    """All of them, by what they need: nothing, then an association."""
    objects = hostile_objects.data_sets()
    rest = [(COMPRESSED if name.startswith("rle") else DATA, objects[name]) for name in objects if name != "deflate"]
    named: dict[str, Callable[[Front], None]] = {
        "silent connections": _held(b""),
        "3 bytes of a header": _held(b"\x01\0\0"),
        "a header and 1 byte": _held(struct.pack(">BxI", 1, 200) + b"A"),
        "flood of connections": _held(b"", FLOOD),
        "2 GiB claimed": _again(_claim_two_gigabytes),
        "a byte a second": _crowd(_byte_by_byte, MANY),
        "reconnect storm": _again(_come_and_go, PAUSE_S / 5),
        "mutated requests": _crowd(_mutated, 8),
        "data before association": _opening(command.encode(command.echo_request(1), ECHO)),
        "HTTP": _opening(b"GET / HTTP/1.1\r\nHost: scanside\r\n\r\n"),
        "TLS": _opening(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600)),
        "abort in mid data set": _again(_abort_half_way),
        "endless command": _again(_endless_command),
        "endless data sets": _again(_endless_data),
        "trickled data sets": _crowd(_trickled_data, 8),
        "crumbs": _again(_crumbs),
        "answers not read": _again(_unread_answers),
        "PDV length lie": _again(_lying_pdv),
        "deflate bombs": _objects([(DEFLATED, objects["deflate"])]),
        "hostile objects": _objects(rest),
    }
    return tuple(Attack(name=name, run=run) for name, run in named.items())
