"""TLS at its edges: time, memory, renewed files, and our own sender against servers that are not what they seem."""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.dimse.acceptor import MADE_ROOM
from appliance.dimse.association import AssociateAccept, Rejection
from appliance.dimse.header import part10 as read_part10
from appliance.dimse.requestor import VERIFICATION_PAIR, connect
from appliance.dimse.tls import MOST_SESSIONS, ClientTls, ServerFiles, TlsGuard
from appliance.dimse.wire import Target
from appliance.errors import DeliveryError, DestinationRefused, TransientDeliveryError
from tests.certificates import Authority, Paper, Papers, TlsClient, client_context
from tests.journals import CT_IMAGE, EXPLICIT, SERIES
from tests.keeping import Memory, Server, descriptors
from tests.scanner import CT01, Client, Witness, data_set, limits, listening, part10
from tests.waiting import eventually

PEER = replace(CT01, certificate="ct01.trust.example")


def files(papers: Papers, **changes: object) -> ServerFiles:
    sound = ServerFiles(certificate=papers.box.certificate, key=papers.box.key, ca=papers.ca)
    return replace(sound, **changes)  # type: ignore[arg-type] # paths and words where they must be


@contextmanager
def secure(guard: TlsGuard, **changes: float) -> Iterator[Server]:
    memory, witness = Memory(), Witness()
    with listening(memory, witness, limits(**changes), peers=(PEER,), guard=guard) as there:
        yield Server(memory, witness, there)


def associates(server: Server, papers: Papers) -> None:
    with TlsClient(server.port, client_context(papers, papers.ct01)) as client:
        assert isinstance(client.associate(), AssociateAccept)
        client.release()


# Time and memory


@pytest.mark.promise("P9")
def test_a_handshake_has_no_more_time_than_a_request(papers: Papers) -> None:
    before = descriptors()
    with secure(TlsGuard(files(papers)), request_s=0.4) as server:
        with ExitStack() as held:
            for words in (b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
                held.enter_context(Client(server.port)).send(words)
            silent = TlsClient(server.port, client_context(papers, papers.ct01))
            with silent:  # its handshake is done, its request never comes
                eventually(lambda: len(server.witness.rejections) == 3, 3.0, "all have been given up")
        assert sorted(reason for _, reason in server.witness.rejections) == [
            "TLS: the handshake took too long",
            "TLS: the handshake took too long",
            "the peer was too slow or silent for too long",
        ]
        associates(server, papers)
    assert descriptors() <= before


@pytest.mark.promise("P9")
def test_who_is_at_rest_makes_room_by_tls_too(papers: Papers) -> None:
    with secure(TlsGuard(files(papers)), associations_per_peer=1, spare_s=0.1) as server:
        with TlsClient(server.port, client_context(papers, papers.ct01)) as old:
            assert isinstance(old.associate(), AssociateAccept)
            eventually(lambda: server.listening.acceptor._slots._at_rest("127.0.0.1", "CT01"))
            associates(server, papers)
            with suppress(OSError):
                assert old.tls.recv(10)[:1] in (b"\x07", b""), "an A-ABORT, where it can still be said"
        eventually(lambda: sorted(reason for reason, *_ in server.witness.ends) == [MADE_ROOM, "released"])


@pytest.mark.promise("P9")
def test_who_says_nothing_after_its_handshake_is_too_slow_as_without_tls(papers: Papers) -> None:
    with (
        secure(TlsGuard(files(papers)), idle_s=0.4) as server,
        TlsClient(server.port, client_context(papers, papers.ct01)) as client,
    ):
        assert isinstance(client.associate(), AssociateAccept)
        assert server.witness.last_end()[0] == "the peer was too slow or silent for too long"


@pytest.mark.promise("P9")
def test_openssl_remembers_a_bounded_number_of_sessions(papers: Papers) -> None:
    guard = TlsGuard(files(papers))
    old = client_context(papers, papers.ct01, ssl.TLSVersion.TLSv1_2)
    with secure(guard, associations_per_peer=4) as server:
        for _ in range(MOST_SESSIONS + 8):
            with TlsClient(server.port, old) as client:
                assert isinstance(client.associate(), AssociateAccept)
                client.release()
    assert 0 < guard._context.session_stats()["number"] <= MOST_SESSIONS


@pytest.mark.promise("P9")
def test_nobody_may_negotiate_anew(papers: Papers) -> None:
    with secure(TlsGuard(files(papers))) as server:
        said = subprocess.run(
            [
                "openssl",
                "s_client",
                "-tls1_2",
                "-connect",
                f"127.0.0.1:{server.port}",
                "-cert",
                str(papers.ct01.certificate),
                "-key",
                str(papers.ct01.key),
            ],
            input=b"R\n",  # s_client's own command
            capture_output=True,
            timeout=20,
            check=False,
        )
    assert b"Cipher is ECDHE" in said.stdout
    assert b"no renegotiation" in said.stderr


# Files


def put(paper: Paper, folder: Path) -> Paper:
    here = Paper(folder / "box.pem", folder / "box.key")
    shutil.copy(paper.certificate, here.certificate)
    shutil.copy(paper.key, here.key)
    return here


def shown_to(server: Server, papers: Papers) -> bytes | None:
    with TlsClient(server.port, client_context(papers, papers.ct01)) as client:
        return client.tls.getpeercert(binary_form=True)


def test_renewed_files_are_used_at_once_and_half_renewed_ones_are_not(papers: Papers, tmp_path: Path) -> None:
    first = put(papers.box, tmp_path)
    authority = Authority(tmp_path, "Renewed CA")
    second = authority.issue("box", "IP:127.0.0.1", file="second")
    trusting = replace(papers, ca=tmp_path / "both.pem")
    trusting.ca.write_text(papers.ca.read_text() + authority.certificate.read_text())
    guard = TlsGuard(files(papers, certificate=first.certificate, key=first.key))
    with secure(guard) as server:
        before = shown_to(server, trusting)
        shutil.copy(second.certificate, first.certificate)  # its key comes a moment later
        assert shown_to(server, trusting) == before
        assert f"{first.key} is not the key of {first.certificate}" in guard.fault
        shutil.copy(second.key, first.key)
        assert shown_to(server, trusting) == ssl.PEM_cert_to_DER_cert(second.certificate.read_text())
        assert guard.fault == ""


@pytest.mark.promise("P9")
def test_only_the_newer_version_where_it_is_asked_for(papers: Papers) -> None:
    with secure(TlsGuard(files(papers, minimum_version="TLSv1.3"))) as server:
        old = client_context(papers, papers.ct01, ssl.TLSVersion.TLSv1_2)
        with pytest.raises(ssl.SSLError):
            TlsClient(server.port, old)
        associates(server, papers)


def test_without_client_certificates_title_and_address_decide(papers: Papers) -> None:
    guard = TlsGuard(files(papers, ca=None))
    memory, witness = Memory(), Witness()
    with listening(memory, witness, guard=guard) as there:
        with TlsClient(there.port, client_context(papers, None)) as client:
            assert isinstance(client.associate("CT01"), AssociateAccept)
        with TlsClient(there.port, client_context(papers, None)) as client:
            assert isinstance(client.associate("CT02"), Rejection)


# Our own sender


def security(papers: Papers, **changes: object) -> ClientTls:
    sound = ClientTls(ca=papers.ca, server_name="127.0.0.1", certificate=papers.ct01.certificate, key=papers.ct01.key)
    return replace(sound, **changes)  # type: ignore[arg-type] # paths and words where they must be


def target(port: int, tls: ClientTls) -> Target:
    return Target(host="127.0.0.1", port=port, calling_ae="CT01", called_ae="SCANSIDE", timeout_s=5.0, security=tls)


def attempt(port: int, tls: ClientTls) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        connect(target(port, tls), [VERIFICATION_PAIR])
    return caught.value


def test_it_sends_large_objects_whole(papers: Papers, tmp_path: Path) -> None:
    pixels = bytes(range(256)) * 20_000
    with secure(TlsGuard(files(papers))) as server:
        with connect(target(server.port, security(papers)), [(CT_IMAGE, EXPLICIT)]) as association:
            for number in (1, 2):
                assert association.store(read_part10(part10(tmp_path, number, pixels))).status == 0
        assert server.memory.kept == {f"{SERIES}.{number}": data_set(number, pixels) for number in (1, 2)}
        assert server.witness.last_end() == ("released", 2, True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"server_name": "pacs.trust.example"}, "certificate refused: Hostname mismatch"),
        ({"ca": "rogue_ca"}, "certificate refused: self-signed certificate in certificate chain"),
        ({"ca": "/no/such/ca.pem"}, "/no/such/ca.pem cannot be read: No such file"),
        ({"key": "rogue.key"}, "is not the key of"),
    ],
)
def test_what_a_person_must_mend_suspends_the_destination(papers: Papers, changes: dict[str, str], words: str) -> None:
    there = {"rogue_ca": papers.rogue_ca, "rogue.key": papers.rogue.key, "/no/such/ca.pem": Path("/no/such/ca.pem")}
    with secure(TlsGuard(files(papers))) as server:
        error = attempt(
            server.port, security(papers, **{key: there.get(value, value) for key, value in changes.items()})
        )
    assert isinstance(error, DestinationRefused)
    assert words in str(error)


@pytest.mark.parametrize("own", ["none", "rogue", "expired"])
def test_a_destination_that_refuses_our_certificate_is_suspended(papers: Papers, own: str) -> None:
    paper = None if own == "none" else getattr(papers, own)
    changes = {"certificate": paper and paper.certificate, "key": paper and paper.key}
    with secure(TlsGuard(files(papers))) as server:
        error = attempt(server.port, security(papers, **changes))
    assert isinstance(error, DestinationRefused)
    assert str(error).startswith("TLS: the peer ")


def test_a_destination_without_tls_is_suspended_and_one_that_is_silent_is_tried_again(papers: Papers) -> None:
    with listening(Memory(), Witness()) as plain:
        assert isinstance(attempt(plain.port, security(papers)), DestinationRefused)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        waits = replace(target(silent.getsockname()[1], security(papers)), timeout_s=0.3)
        with pytest.raises(TransientDeliveryError, match="TLS: the handshake took too long"):
            connect(waits, [VERIFICATION_PAIR])
    assert isinstance(attempt(silent_port(), security(papers)), TransientDeliveryError)


def silent_port() -> int:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return int(gone.getsockname()[1])


def test_dcmtk_takes_what_it_sends(papers: Papers, tmp_path: Path) -> None:
    port = silent_port()
    server = ["/usr/bin/storescp", "+tls", papers.box.key, papers.box.certificate, "+cf", papers.ca, "-rc"]
    (tmp_path / "out").mkdir()
    command = [str(word) for word in [*server, "-od", tmp_path / "out", "+uf", port]]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: answers(port), 10.0, "storescp listens")
        with connect(target(port, security(papers)), [(CT_IMAGE, EXPLICIT)]) as association:
            assert association.store(read_part10(part10(tmp_path, 1))).status == 0
        with pytest.raises(DeliveryError):
            connect(target(port, security(papers, certificate=None, key=None)), [VERIFICATION_PAIR])
    finally:
        process.terminate()
        process.wait(10)
    assert len(list((tmp_path / "out").iterdir())) == 1


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
