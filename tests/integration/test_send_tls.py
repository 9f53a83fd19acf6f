"""`scanside send` by TLS, to our own acceptor and to dcmtk's: with the right papers, and with each wrong one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.dimse.requestor import VERIFICATION_PAIR, connect
from appliance.dimse.tls import ClientTls, ServerFiles, TlsGuard
from appliance.dimse.wire import Target
from tests.certificates import Paper, Papers
from tests.journals import SERIES
from tests.keeping import Memory
from tests.missing import missing
from tests.scanner import CT01, Witness, data_set, listening, part10
from tests.tracing import environment
from tests.waiting import eventually

PEER = replace(CT01, certificate="ct01.trust.example")


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@dataclass(frozen=True, slots=True)
class Box:
    """A box that wants TLS and the scanner's certificate, and a scan to send to it."""

    port: int
    memory: Memory
    folder: Path

    def send(self, *options: object, calling: str = "CT01") -> Said:
        where = ["--to", f"127.0.0.1:{self.port}", "--calling", calling]
        command = [sys.executable, "-m", "appliance", "send", str(self.folder), *where, *map(str, options)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=30, check=False)
        assert "Traceback" not in done.stderr
        return Said(done.returncode, done.stdout, done.stderr)


@contextmanager
def serving(folder: Path, guard: TlsGuard | None) -> Iterator[Box]:
    scan = folder / "scan"
    scan.mkdir()
    for number in (1, 2):
        part10(scan, number)
    memory = Memory()
    with listening(memory, Witness(), peers=(PEER if guard else CT01,), guard=guard) as there:
        yield Box(there.port, memory, scan)


@pytest.fixture
def box(tmp_path: Path, papers: Papers) -> Iterator[Box]:
    files = ServerFiles(certificate=papers.box.certificate, key=papers.box.key, ca=papers.ca)
    with serving(tmp_path, TlsGuard(files)) as box:
        yield box


def ours(paper: Paper) -> tuple[object, ...]:
    return "--tls-certificate", paper.certificate, "--tls-key", paper.key


@pytest.mark.promise("P9")
def test_with_the_right_papers_all_arrives(box: Box, papers: Papers) -> None:
    told = box.send("--tls-ca", papers.ca, *ours(papers.ct01), "--associations", 2, "--json")
    assert told.code == 0, told.err
    assert (told.document["tls"], told.document["sent"], told.document["failed"]) == (True, 2, 0)
    assert box.memory.kept == {f"{SERIES}.{number}": data_set(number) for number in (1, 2)}
    named = box.send("--tls-ca", papers.ca, *ours(papers.ct01), "--tls-name", "box.trust.example")
    assert named.out.startswith("2 of 2 objects stored")


@pytest.mark.promise("P9")
def test_whatever_is_wrong_has_its_name_and_nothing_arrives(box: Box, papers: Papers) -> None:
    ca = ("--tls-ca", papers.ca)
    for options, reason, hint in [
        (("--tls-ca", papers.rogue_ca), "TLS: certificate refused: self-signed certificate in", "--tls-ca must hold"),
        ((*ca, "--tls-name", "pacs.example"), "is not valid for 'pacs.example'", "give that name with --tls-name"),
        (ca, "TLS: the peer requires a certificate of ours", "with --tls-certificate and --tls-key"),
        ((*ca, *ours(papers.rogue)), "TLS: the peer does not trust our certificate", "It wants another one"),
        ((*ca, *ours(papers.expired)), "TLS: the peer says that our certificate has expired", "It wants another one"),
        ((*ca, *ours(papers.other)), "calling AE title not recognised", "must be a name in the certificate given"),
        ((), "connection lost before any answer", "If that port speaks TLS, use --tls-ca"),
    ]:
        told = box.send(*options)
        assert told.code == 1
        assert reason in " ".join(told.out.split()), (reason, told.out)
        assert hint in told.err, (hint, told.err)
    assert box.memory.kept == {}


@pytest.mark.promise("P9")
def test_where_tls_was_asked_for_nothing_goes_without(tmp_path: Path, papers: Papers) -> None:
    with serving(tmp_path, None) as box:
        told = box.send("--tls-ca", papers.ca)
        assert (told.code, box.memory.kept) == (1, {})
        assert "That port speaks no TLS" in told.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tls-key", "ct01.key"), "--tls-certificate and --tls-key: go together"),
        (("--tls-name", "box"), "--tls-ca: is needed for TLS"),
        (("--tls-certificate", "ct01.pem", "--tls-key", "ct01.key"), "--tls-ca: is needed for TLS"),
        (("--tls-ca", "ca.pem", "--tls-name", "a b"), "--tls-name: 'a b' is no host name"),
        (("--tls-ca", "nowhere.pem"), "--tls-ca: nowhere.pem cannot be read: No such file"),
        (("--tls-ca", "ca.pem", "--tls-certificate", "ca.pem", "--tls-key", "ca.pem"), "--tls-key: ca.pem holds no"),
    ],
)
def test_a_command_line_that_cannot_work_is_told_before_anything_is_sent(
    box: Box, papers: Papers, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(papers.ca.parent)
    told = box.send(*options)
    assert told.code == 2
    assert words in " ".join(told.err.split())


def test_dcmtk_takes_it(tmp_path: Path, papers: Papers) -> None:
    program = Path("/usr/bin/storescp")
    if not program.exists():
        missing("DCMTK's storescp is not installed")
    port_file = tmp_path / "out"
    port_file.mkdir()
    with serving(tmp_path, None) as box:
        pass  # its port is free now
    command = [program, "+tls", papers.box.key, papers.box.certificate, "+cf", papers.ca, "-rc", "-od", port_file]
    process = subprocess.Popen([*map(str, command), str(box.port)], stderr=subprocess.DEVNULL, env=environment())
    try:
        eventually(lambda: box.send("--tls-ca", papers.ca, *ours(papers.ct01)).code == 0, 20.0, "dcmtk takes it")
    finally:
        process.terminate()
        process.wait(10)
    assert len(list(port_file.iterdir())) == 2


def test_an_association_that_rests_is_there_until_the_peer_ends_it(papers: Papers) -> None:
    files = ServerFiles(certificate=papers.box.certificate, key=papers.box.key, ca=papers.ca)
    security = ClientTls(
        ca=papers.ca, server_name="127.0.0.1", certificate=papers.ct01.certificate, key=papers.ct01.key
    )
    with listening(Memory(), Witness(), peers=(PEER,), guard=TlsGuard(files)) as there:
        target = Target(host="127.0.0.1", port=there.port, calling_ae="CT01", called_ae="SCANSIDE", security=security)
        with connect(target, [VERIFICATION_PAIR]) as association:
            assert association.is_there()
            assert association.echo().status == 0
            assert association.is_there()
            there.acceptor.stop()
            eventually(lambda: not association.is_there(), 10.0, "its end is seen")
