"""Who may come in by TLS: the real receive process, certificates made here, dcmtk and openssl as peers."""

import itertools
import json
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from appliance.dimse.association import AssociateAccept, Rejection
from appliance.dimse.header import part10 as read_part10
from appliance.dimse.requestor import connect
from appliance.dimse.tls import ClientTls
from appliance.dimse.wire import Target
from tests.certificates import Paper, Papers, TlsClient, client_context
from tests.journals import CT_IMAGE, EXPLICIT
from tests.scanner import Client, data_set, part10, store_message
from tests.tracing import environment
from tests.waiting import eventually

REASON = "DX01 knows no TLS"
RSS_CEILING = 80 << 20


@dataclass
class Box:
    """The receive process of an appliance."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))  #: of images, each sent once

    @property
    def config(self) -> Path:
        return self.folder / "box.yaml"

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "var/run/receive.json").read_text())
        return found

    @property
    def port(self) -> int:
        return int(self.facts["port"])

    @property
    def plain_port(self) -> int:
        return int(self.facts["unencrypted_port"])

    @property
    def log(self) -> list[dict[str, Any]]:
        whole, _, _ = (self.folder / "log").read_text().rpartition("\n")  # the last line may still be under way
        return [json.loads(line) for line in whole.splitlines()]

    def stored(self) -> int:
        with closing(sqlite3.connect(self.folder / "var/journal.sqlite")) as journal:
            return int(journal.execute("SELECT count(*) FROM instance").fetchone()[0])

    def ends(self) -> list[str]:
        return [line["reason"] for line in self.log if line["event"] == "association_ended"]

    def rejections(self) -> list[str]:
        """What the log says of them: one by one up to 20 a minute, which is more than come here before the crowd."""
        return [line["reason"] for line in self.log if line["event"] == "association_rejected"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def box(papers: Papers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("box")
    (folder / "engines").mkdir()
    address = {"address": "127.0.0.1"}
    settings = {
        "state": "./var",
        "engines_dir": "./engines",
        "reserve": {"free_mb": 1, "free_inodes": 0, "journal_mb": 1},
        "receive": {
            "port": 0,
            "tls": {
                "certificate": str(papers.box.certificate),
                "key": str(papers.box.key),
                "ca": str(papers.ca),
            },
            "unencrypted_port": free_port(),
            "unencrypted_reason": REASON,
            "peers": [
                {"ae_title": "CT01", "certificate": "ct01.trust.example", **address},
                {"ae_title": "DX01", **address},
            ],
        },
    }
    (folder / "box.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "appliance.daemon", "receive", "--config", str(folder / "box.yaml")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stderr=log)
    try:
        there = Box(folder, process)
        eventually(lambda: any(line["event"] == "receiving" for line in there.log), 20.0, "it listens")
        yield there
    finally:
        process.terminate()
        assert process.wait(15) == 0
    assert "Traceback" not in (folder / "log").read_text()


def stores(box: Box, papers: Papers, paper: Paper, version: ssl.TLSVersion | None = None) -> str | None:
    """Stores an image, and releases; returns the version of TLS it went by."""
    before = box.stored()
    with TlsClient(box.port, client_context(papers, paper, version)) as client:
        assert isinstance(client.associate(), AssociateAccept)
        assert client.store(next(box.numbers)).status == 0
        client.release()
        assert client.tls.recv(1) == b"", "close_notify"
        assert box.stored() == before + 1
        return client.tls.version()


def storescu(port: int, file: Path, *options: object, calling_ae: str = "CT01") -> int:
    command = ["/usr/bin/storescu", "-aet", calling_ae, "-aec", "SCANSIDE", "-to", "5", "-ta", "5"]
    address = [*options, "127.0.0.1", port, file]
    return subprocess.run([*command, *map(str, address)], check=False, capture_output=True, timeout=30).returncode


def s_client(box: Box, papers: Papers, *options: str) -> bool:
    """Whether openssl agrees on a cipher suite with us, whatever it takes it to."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{box.port}", "-cert", str(papers.ct01.certificate)]
    options = ("-key", str(papers.ct01.key), *options)
    said = subprocess.run([*command, *options], check=False, input=b"", capture_output=True, timeout=20).stdout
    return b"Cipher is ECDHE" in said or b"Cipher is TLS_" in said


# Who comes in


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("version", "name"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (None, "TLSv1.3")]
)
def test_the_right_certificate_comes_in(box: Box, papers: Papers, version: ssl.TLSVersion | None, name: str) -> None:
    assert stores(box, papers, papers.ct01, version) == name
    assert stores(box, papers, papers.by_common_name, version) == name


@pytest.mark.promise("P9")
def test_dcmtk_comes_in_with_its_certificate_only(box: Box, papers: Papers, tmp_path: Path) -> None:
    file, ca, before = part10(tmp_path, next(box.numbers), bytes(1_000_000)), ("+cf", papers.ca), box.stored()
    ours, told = ("+tls", papers.ct01.key, papers.ct01.certificate), len(box.rejections())
    assert storescu(box.port, file, *ours, *ca, "-rc") == 0
    assert box.stored() == before + 1
    assert storescu(box.port, file, "+tla", *ca) != 0
    assert storescu(box.port, file, "+tls", papers.rogue.key, papers.rogue.certificate, *ca) != 0
    assert storescu(box.port, file) != 0
    eventually(lambda: len(box.rejections()) == told + 3, what="it is told")
    assert box.stored() == before + 1


@pytest.mark.promise("P9")
def test_our_own_sender_comes_in(box: Box, papers: Papers, tmp_path: Path) -> None:
    security = ClientTls(
        ca=papers.ca, server_name="box.trust.example", certificate=papers.ct01.certificate, key=papers.ct01.key
    )
    target = Target(host="127.0.0.1", port=box.port, calling_ae="CT01", called_ae="SCANSIDE", security=security)
    before = box.stored()
    with connect(target, [(CT_IMAGE, EXPLICIT)]) as association:
        for _ in range(2):
            number = next(box.numbers)
            item = read_part10(part10(tmp_path, number, bytes(number) * 1_500_000))
            assert association.store(item).status == 0
    assert box.stored() == before + 2


# Who does not


@pytest.mark.promise("P9")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("who", "reason"),
    [
        (None, "TLS: no client certificate"),
        ("rogue", "TLS: certificate refused: unable to get local issuer certificate"),
        ("expired", "TLS: certificate refused: certificate has expired"),
        ("for_servers", "TLS: certificate refused: unsuitable certificate purpose"),
    ],
)
def test_a_wrong_certificate_stays_out(
    box: Box, papers: Papers, who: str | None, reason: str, version: ssl.TLSVersion
) -> None:
    before, told = box.stored(), len(box.rejections())
    security = client_context(papers, getattr(papers, who) if who else None, version)
    with suppress(OSError, EOFError), TlsClient(box.port, security) as client:  # with 1.3 it shows at the first read
        assert not isinstance(client.associate(), AssociateAccept)
    eventually(lambda: len(box.rejections()) > told, what="it is told")
    assert box.rejections()[told:] == [reason]
    assert box.stored() == before
    stores(box, papers, papers.ct01, version)


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("who", "calling_ae", "reason"),
    [
        (
            "other",
            "CT01",
            "calling AE title not recognised: the certificate is another one's (it names ct02.trust.example)",
        ),
        ("ct01", "CT02", "calling AE title not recognised"),
        (
            "ct01",
            "DX01",
            "calling AE title not recognised: no certificate is configured for it, so it may not come over TLS",
        ),
    ],
)
def test_a_certificate_is_good_for_its_own_title_only(
    box: Box, papers: Papers, who: str, calling_ae: str, reason: str
) -> None:
    before, told = box.stored(), len(box.rejections())
    with TlsClient(box.port, client_context(papers, getattr(papers, who))) as client:
        answer = client.associate(calling_ae)
        assert isinstance(answer, Rejection)
        assert (answer.result, answer.source, answer.reason) == (1, 1, 3)
        assert client.tls.recv(1) == b"", "close_notify"
    eventually(lambda: len(box.rejections()) > told, what="it is told")
    assert box.rejections()[told:] == [reason]
    assert box.stored() == before


@pytest.mark.promise("P9")
def test_a_wrong_number_is_told_so(box: Box, papers: Papers) -> None:
    told = len(box.rejections())
    with TlsClient(box.port, client_context(papers, papers.ct01)) as client:
        answer = client.associate(called_ae="PACS")
        assert isinstance(answer, Rejection)
        assert (answer.result, answer.source, answer.reason) == (1, 1, 7)
    eventually(lambda: box.rejections()[told:] == ["called AE title not recognised"], what="it is told")


@pytest.mark.promise("P9")
def test_plain_text_on_the_port_for_tls(box: Box) -> None:
    before, told = box.stored(), len(box.rejections())
    with suppress(OSError, EOFError, AssertionError), Client(box.port) as client:
        assert not isinstance(client.associate(), AssociateAccept | Rejection)
    with suppress(OSError), Client(box.port) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: box\r\n\r\n")
        assert client.is_closed()
    plain = "TLS: plain text on the TLS port"
    eventually(lambda: [one[: len(plain)] for one in box.rejections()[told:]] == [plain] * 2, what="it is told")
    assert box.stored() == before


@pytest.mark.promise("P9")
def test_the_plain_port_is_for_those_without_a_certificate(box: Box) -> None:
    with Client(box.plain_port) as client:
        answer = client.associate("CT01")
        assert isinstance(answer, Rejection)
        assert (answer.result, answer.source, answer.reason) == (1, 1, 3)
    before = box.stored()
    with Client(box.plain_port) as client:
        assert isinstance(client.associate("DX01"), AssociateAccept)
        assert client.store(next(box.numbers)).status == 0
        client.release()
    assert box.stored() == before + 1
    assert "calling AE title not recognised: it may come over TLS only" in box.rejections()
    opened = [line for line in box.log if line["event"] == "unencrypted_port"]
    assert [(line["port"], line["reason"]) for line in opened] == [(box.plain_port, REASON)]


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("options", "agreed"),
    [
        (("-tls1", "-cipher", "DEFAULT@SECLEVEL=0"), False),
        (("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"), False),
        (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA384:ECDHE-ECDSA-AES128-SHA"), False),
        (("-tls1_2", "-cipher", "DHE"), False),
        (("-tls1_2",), True),
        (("-tls1_3",), True),
    ],
)
def test_old_versions_and_weak_suites_are_not_spoken(
    box: Box, papers: Papers, options: Sequence[str], agreed: bool
) -> None:
    assert s_client(box, papers, *options) is agreed


# What nobody can do to others


@contextmanager
def crowd(port: int, first_words: Sequence[bytes]) -> Iterator[None]:
    """Connections from the scanner's own address that say this, and then wait."""
    with ExitStack() as held:
        for words in first_words:
            one = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            with suppress(OSError):
                one.sendall(words)
        yield


@pytest.mark.promise("P9")
def test_silence_rubbish_and_halves_of_a_handshake_keep_nobody_out(box: Box, papers: Papers) -> None:
    half_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    with crowd(box.port, [b"", half_hello, b"\xff" * 4096, b"\x16\x03\x03\xff\xff"] * 20):
        for _ in range(5):
            stores(box, papers, papers.ct01)
    assert psutil.Process(box.process.pid).memory_info().rss < RSS_CEILING


@pytest.mark.promise("P1")
def test_a_connection_cut_in_a_message_ends_like_any_other(box: Box, papers: Papers) -> None:
    before = box.stored()
    with TlsClient(box.port, client_context(papers, papers.ct01)) as client:
        assert isinstance(client.associate(), AssociateAccept)
        client.send(store_message(9_999, data_set(9_999, bytes(100_000)))[:50_000])
        socket.socket.shutdown(client.socket, socket.SHUT_RDWR)  # no close_notify
    eventually(lambda: "connection closed by the peer" in box.ends(), what="it has ended")
    assert box.stored() == before


def test_many_at_once(box: Box, papers: Papers) -> None:
    statuses: dict[int, int | None] = {}

    def scan() -> None:
        with TlsClient(box.port, client_context(papers, papers.ct01)) as client:
            assert isinstance(client.associate(), AssociateAccept)
            for number in itertools.islice(box.numbers, 5):
                statuses[number] = client.store(number, data_set(number, bytes(300_000))).status
            client.release()

    threads = [threading.Thread(target=scan) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert list(statuses.values()) == [0] * 20


# What is told


def test_status_tells_how_it_listens_and_who_was_turned_away(box: Box) -> None:
    command = [sys.executable, "-m", "appliance", "status", "--config", str(box.config)]
    found = subprocess.run([*command, "--json"], check=False, capture_output=True, timeout=30, env=environment()).stdout
    receive = json.loads(found)["receive"]
    assert receive["tls"]["client_certificates"] == "required"
    assert (receive["unencrypted_port"], receive["unencrypted_reason"]) == (box.plain_port, REASON)
    words = subprocess.run(command, check=False, capture_output=True, timeout=30, env=environment(), text=True).stdout
    assert f"NOT ENCRYPTED: also on 127.0.0.1 port {box.plain_port}: {REASON}" in words
    with Client(box.plain_port) as client:
        assert isinstance(client.associate("NOBODY"), Rejection)
    reason = "calling AE title not recognised"
    eventually(lambda: box.facts["rejections"].get(reason, {}).get("calling_ae") == "NOBODY", what="it is counted")
    count = box.facts["rejections"][reason]
    assert count["count"] >= 1
    assert count["address"] == "127.0.0.1"
    words = subprocess.run(command, check=False, capture_output=True, timeout=30, env=environment(), text=True).stdout
    assert any(line.startswith(reason) and "NOBODY 127.0.0.1" in line for line in words.splitlines())
