"""Commitment reports by TLS, from a configuration on: whom they go to, what is shown, and what is said when not."""

import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance import config
from appliance.journal import commitments
from appliance.journal.commitments import Asked
from appliance.journal.store import Journal
from appliance.stages.confirm import Confirmer, Desk
from appliance.wiring.common import open_spool
from appliance.wiring.confirm import confirmers
from tests.certificates import Authority, Paper, Papers
from tests.journals import arrival, receive
from tests.modality import Modality, image
from tests.tracing import environment
from tests.waiting import eventually

CONFIG = """\
node: box
state: ./var
engines_dir: ./engines
engines: []
receive:
  port: 0
  tls: {{certificate: {box}, key: {key}, ca: {ca}}}
  peers:
    - ae_title: CT01
      address: 127.0.0.1
      certificate: ct01.trust.example
      commitment: custody
      reports_to: "127.0.0.1:{port}"
      reports_tls: {tls}
"""
#: Where the device hangs up before its reason has come: some do.
LOST = "TLS: the connection was lost right after the handshake: our certificate may be missing or not accepted"
OURS = "{{ca: {ca}, certificate: {box}, key: {key}}}"


class Site:
    """An image that CT01 asked us to answer for, and the configuration."""

    def __init__(self, folder: Path, papers: Papers) -> None:
        self.folder, self.papers = folder, papers
        self.modality = Modality()
        self.lines: list[tuple[str, dict[str, Any]]] = []
        with self.modality.listening():
            pass  # it has a port now
        self.configure()
        (folder / "var").mkdir()
        self.journal = Journal(folder / "var" / "journal.sqlite", "forward")
        held = folder / "var" / "spool" / arrival(1).file
        held.parent.mkdir(parents=True)
        held.touch()
        receive(self.journal, arrival(1))
        open_spool(config.load(folder / "box.yaml"), "received").own(self.journal.identity)
        commitments.ask(
            self.journal,
            Asked(calling_ae="CT01", called_ae="EDGE", transaction_uid="1.2.3", references=(image(1),)),
        )

    def configure(self, tls: str = OURS, **changes: object) -> None:
        facts = {"ca": self.papers.ca, "box": self.papers.box.certificate, "key": self.papers.box.key} | changes
        text = CONFIG.format(port=self.modality.port, tls=tls.format(**facts), **facts)
        (self.folder / "box.yaml").write_text(text)

    @contextmanager
    def reporting(self) -> Iterator[Confirmer]:
        """What `forward` does for it."""
        loaded = config.load(self.folder / "box.yaml")
        desk = Desk(
            journal=self.journal,
            log=lambda event, **detail: self.lines.append((event, detail)),
            changed=lambda: None,
            backoff=lambda _: 0.02,
        )
        (confirmer,) = confirmers(loaded, open_spool(loaded, "received"), desk)
        thread = threading.Thread(target=confirmer.run, daemon=True)
        thread.start()
        try:
            yield confirmer
        finally:
            confirmer.stop()
            thread.join(10.0)
            assert not thread.is_alive()

    def refused(self) -> str:
        """Why it could not be told."""
        with self.reporting() as confirmer:
            eventually(lambda: confirmer.state == "backing off", 10.0, "it was tried")
            reason = confirmer.reason
        assert self.modality.told == []
        return reason

    def told(self) -> bool:
        with self.reporting():
            eventually(lambda: not commitments.waiting(self.journal), 10.0, "it was told")
        return len(self.modality.told) == 1


@pytest.fixture
def site(tmp_path: Path, papers: Papers) -> Iterator[Site]:
    site = Site(tmp_path, papers)
    yield site
    site.journal.close()


def server(papers: Papers, paper: Paper, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """The modality's side: it wants our certificate, too. A version is the only one it speaks."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(paper.certificate, paper.key)
    made.load_verify_locations(papers.ca)
    made.verify_mode = ssl.CERT_REQUIRED
    if version is not None:
        made.minimum_version = made.maximum_version = version
    return made


@pytest.mark.promise("P9")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("who", ["ct01", "by_common_name"])
def test_a_report_goes_by_tls_to_whoever_has_the_devices_certificate(
    site: Site, papers: Papers, version: ssl.TLSVersion, who: str
) -> None:
    """Its name is that of the device's own certificate, where the configuration has none of its own for this."""
    with site.modality.listening(server(papers, getattr(papers, who), version)):
        assert site.told()
    told = site.modality.told[0]
    assert (told.event_type, told.transaction_uid, told.committed) == (1, "1.2.3", [image(1)])


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("other", "TLS: certificate refused: Hostname mismatch, certificate is not valid for 'ct01.trust.example'"),
        ("rogue", "TLS: certificate refused: unable to get local issuer certificate"),
        ("expired", "TLS: certificate refused: certificate has expired"),
        ("box", "TLS: certificate refused: Hostname mismatch, certificate is not valid for 'ct01.trust.example'"),
    ],
)
def test_nobody_else_is_told(site: Site, papers: Papers, who: str, reason: str) -> None:
    with site.modality.listening(server(papers, getattr(papers, who))):
        assert site.refused().startswith(reason)
    with site.modality.listening(server(papers, papers.ct01)):
        assert site.told(), "as soon as it is mended"


@pytest.mark.promise("P9")
def test_a_device_without_tls_is_told_nothing(site: Site) -> None:
    with site.modality.listening():
        assert site.refused().startswith("TLS: ")
    assert "commitment_reported" not in [event for event, _ in site.lines]


def test_what_it_misses_of_us_is_said(site: Site, papers: Papers) -> None:
    site.configure("{{ca: {ca}}}")
    with site.modality.listening(server(papers, papers.ct01)):
        assert site.refused() in ("TLS: the peer requires a certificate of ours", LOST)
        site.configure(OURS, box=papers.rogue.certificate, key=papers.rogue.key)
        assert site.refused() in ("TLS: the peer does not trust our certificate", LOST)


def test_a_name_and_a_version_of_its_own(site: Site, papers: Papers) -> None:
    named = "{{ca: {ca}, certificate: {box}, key: {key}, server_name: 127.0.0.1, minimum_version: TLSv1.3}}"
    site.configure(named)
    with site.modality.listening(server(papers, papers.ct01)):
        assert "certificate is not valid for '127.0.0.1'" in site.refused()
    with site.modality.listening(server(papers, papers.box, ssl.TLSVersion.TLSv1_2)):
        assert site.refused() == "TLS: no TLS version in common"
    with site.modality.listening(server(papers, papers.box)):
        assert site.told()


def test_renewed_files_are_used_without_a_restart(site: Site, papers: Papers, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(Authority(tmp_path, "Old CA").certificate.read_text())
    site.configure(OURS, ca=ca)
    with site.modality.listening(server(papers, papers.ct01)), site.reporting() as confirmer:
        eventually(lambda: "self-signed" in confirmer.reason or "issuer" in confirmer.reason, 10.0, "it was tried")
        ca.write_text(papers.ca.read_text())
        assert site.modality.report().committed == [image(1)]


@pytest.mark.promise("P9")
def test_the_forward_process_reports_by_tls_and_status_says_what_is_in_the_way(site: Site, papers: Papers) -> None:
    site.journal.close()  # the process has it now
    (site.folder / "var" / "run").mkdir()
    command = [sys.executable, "-m", "appliance.daemon", "forward", "--config", str(site.folder / "box.yaml")]
    with (site.folder / "log").open("wb") as log, subprocess.Popen(command, env=environment(), stderr=log) as process:
        try:
            with site.modality.listening(server(papers, papers.other)):
                told = eventually(
                    lambda: said if "Hostname mismatch" in (said := status(site)) else "", 20.0, "it is told"
                )
                assert "CT01 does not take our storage commitment report: TLS: certificate refused" in told
                assert "Check 'reports_tls', and the certificates on both sides" in told
            with site.modality.listening(server(papers, papers.ct01)):
                eventually(lambda: site.modality.told, 30.0, "it is told after all")
        finally:
            process.terminate()
            assert process.wait(15) == 0
    site.journal = Journal(site.folder / "var" / "journal.sqlite", "test")
    said = (site.folder / "log").read_text()
    assert "Traceback" not in said


def status(site: Site) -> str:
    command = [sys.executable, "-m", "appliance", "status", "--config", str(site.folder / "box.yaml")]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=30, check=False).stdout
