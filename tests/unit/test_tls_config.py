"""The configuration of TLS: what cannot work is told with its line, keys never stand in it, and files are looked at."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance import config
from appliance.certificates import Validity, validity
from appliance.config.examination import examine
from appliance.config.sources import Source
from appliance.errors import ConfigError
from appliance.wiring.receive import _policy
from tests.certificates import Authority, Paper

TLS = """\
receive:
  tls:
    certificate: box.pem
    key: box.key
    ca: ca.pem
"""
PEER = "  peers:\n    - {ae_title: CT01, address: 192.0.2.10, certificate: ct01.trust.example}\n"
PEM = "-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBgkqhkiG9w0\\n-----END PRIVATE KEY-----"


def write(folder: Path, text: str) -> Path:
    file = folder / "box.yaml"
    file.write_text(text)
    return file


def errors_of(folder: Path, text: str) -> list[str]:
    file = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    return [message.removeprefix(f"{file}:") for message in caught.value.messages]


def test_what_is_right(tmp_path: Path) -> None:
    loaded = config.load(write(tmp_path, TLS + PEER)).receive
    assert loaded.tls is not None
    assert loaded.tls.key == Source("box.key", tmp_path / "box.key")
    assert loaded.tls.client_certificates is config.ClientCertificates.REQUIRED
    assert loaded.tls.minimum_version == "TLSv1.2"
    assert _policy(config.load(tmp_path / "box.yaml")).peers[0].certificate == "ct01.trust.example"


def test_a_credential_is_where_systemd_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (TLS + PEER).replace("box.key", "credential:box-key")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    tls = config.load(write(tmp_path, text)).receive.tls
    assert tls is not None
    assert tls.key == Source("credential:box-key", None)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/scanside.service")
    tls = config.load(tmp_path / "box.yaml").receive.tls
    assert tls is not None
    assert tls.key.path == Path("/run/credentials/scanside.service/box-key")


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TLS.replace("    key: box.key\n", "") + PEER, "2: receive.tls.key: missing; needed is: PEM file of its"),
        (TLS.replace("    ca: ca.pem\n", "") + PEER, "2: receive.tls: 'ca' is missing: without it no client"),
        (
            TLS + "  peers:\n    - ae_title: CT01\n      address: 192.0.2.10\n",
            "7: receive.peers[0].ae_title: 'certificate' is missing: client certificates are required",
        ),
        (
            "receive:\n" + PEER,
            "3: receive.peers[0].certificate: nobody looks at it: there is no receive.tls",
        ),
        (
            TLS + "    client_certificates: none\n" + PEER,
            "8: receive.peers[0].certificate: nobody looks at it: receive.tls asks for none",
        ),
        (
            TLS + "    client_certificates: optional\n",
            "6: receive.tls.client_certificates: 'optional' is not one of required, none",
        ),
        (TLS + "    minimum_version: TLSv1.1\n", "6: receive.tls.minimum_version: 'TLSv1.1' is not one of TLSv1.2"),
        (TLS + "    ciphers: ALL\n", "6: receive.tls.ciphers: unknown key 'ciphers'"),
        (TLS + "  unencrypted_port: 104\n", "6: receive.unencrypted_port: needs 'unencrypted_reason' beside it"),
        (
            TLS + "  unencrypted_port: 104\n  unencrypted_reason: '-'\n",
            "7: receive.unencrypted_reason: '-' is no reason: say in words why",
        ),
        (
            TLS + "  unencrypted_reason: DX01 is old\n",
            "6: receive.unencrypted_reason: there is no 'unencrypted_port' it could be about",
        ),
        (
            "receive:\n  unencrypted_port: 104\n  unencrypted_reason: DX01 is old\n",
            "2: receive.unencrypted_port: without 'tls' the port itself is unencrypted",
        ),
        (
            TLS + "  unencrypted_port: 11112\n  unencrypted_reason: DX01 is old\n",
            "6: receive.unencrypted_port: 11112 is the port with TLS",
        ),
        (
            TLS + PEER.replace("ct01.trust.example", "'*.trust.example'"),
            "7: receive.peers[0].certificate: '*.trust.example': no wildcards",
        ),
        (
            TLS.replace("box.key", "'credential:../x'"),
            "4: receive.tls.key: 'credential:../x': the name of a credential",
        ),
        (TLS.replace("box.key", "[a]"), "4: receive.tls.key: must be one path or credential:NAME, not a list"),
    ],
)
def test_what_cannot_work(tmp_path: Path, text: str, expected: str) -> None:
    messages = errors_of(tmp_path, text)
    assert len(messages) == 1, messages
    assert messages[0].startswith(expected)


@pytest.mark.promise("P9")
@pytest.mark.parametrize("typed", [f'"{PEM}"', "|\n      " + PEM.replace("\\n", "\n      "), PEM.split("\\n", 1)[0]])
def test_a_key_in_the_configuration_itself_is_refused_and_not_repeated(tmp_path: Path, typed: str) -> None:
    messages = errors_of(tmp_path, TLS.replace("box.key", typed) + PEER)
    assert len(messages) == 1
    assert messages[0].startswith("4: receive.tls.key: a certificate or key itself: put it into a file of its own")
    assert "MII" not in messages[0]


def test_a_second_port_lets_in_who_has_no_certificate(tmp_path: Path) -> None:
    plain = "  unencrypted_port: 104\n  unencrypted_reason: DX01 is from 2009\n"
    loaded = config.load(write(tmp_path, TLS + plain + PEER + "    - {ae_title: DX01, address: 192.0.2.11}\n"))
    assert loaded.receive.unencrypted_reason == "DX01 is from 2009"


def test_a_destination_is_not_our_own_second_port(tmp_path: Path) -> None:
    plain = "  unencrypted_port: 104\n  unencrypted_reason: DX01 is from 2009\n"
    pacs = "destinations:\n  - {name: p, kind: dimse, host: 127.0.0.1, port: 104, called_ae: PACS, takes: [image]}\n"
    assert "9: destinations[0].host: this is our own listener (port 104)" in errors_of(tmp_path, TLS + plain + pacs)[0]


def test_a_destinations_certificate_and_key_go_together(tmp_path: Path) -> None:
    pacs = "destinations:\n  - name: pacs\n    kind: dimse\n    host: pacs\n    port: 2762\n    called_ae: PACS\n"
    tls = "    takes: [image]\n    tls:\n      ca: ca.pem\n      certificate: box.pem\n"
    assert errors_of(tmp_path, pacs + tls)[0].startswith("10: destinations[0].tls.certificate: needs 'key' beside it")
    assert config.load(write(tmp_path, pacs + tls + "      key: box.key\n")).destinations[0].tls is not None
    folder = "destinations:\n  - {name: f, kind: folder, path: out, takes: [sr], tls: {ca: ca.pem}}\n"
    assert "not used by this kind of destination" in errors_of(tmp_path, folder)[0]


REPORTS = """\
receive:
  peers:
    - ae_title: CT01
      address: 192.0.2.10
      commitment: custody
      reports_to: 192.0.2.10:2762
      reports_tls:
        ca: ca.pem
        certificate: box.pem
        key: box.key
"""


def test_reports_may_go_by_tls(tmp_path: Path) -> None:
    (peer,) = config.load(write(tmp_path, REPORTS)).receive.peers
    assert peer.reports_tls == config.OutboundTls(
        ca=Source("ca.pem", tmp_path / "ca.pem"),
        certificate=Source("box.pem", tmp_path / "box.pem"),
        key=Source("box.key", tmp_path / "box.key"),
        server_name=None,
        minimum_version="TLSv1.2",
    )


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            REPORTS.replace("        ca: ca.pem\n", ""),
            "7: receive.peers[0].reports_tls.ca: missing; needed is: PEM file",
        ),
        (REPORTS.replace("        key: box.key\n", ""), "9: receive.peers[0].reports_tls.certificate: needs 'key'"),
        (
            REPORTS.replace("      commitment: custody\n      reports_to: 192.0.2.10:2762\n", ""),
            "5: receive.peers[0].reports_tls: there is no 'reports_to' it could be about",
        ),
        (
            REPORTS + REPORTS.split("peers:\n")[1].replace(".10", ".11", 1).replace("ca.pem", "other.pem"),
            "11: receive.peers[1].ae_title: 'CT01' stands twice, with other commitment, reports_to or reports_tls",
        ),
        (REPORTS + "        minimum_version: TLSv1.0\n", "11: receive.peers[0].reports_tls.minimum_version: 'TLSv1.0'"),
        (
            REPORTS + "        server_name: '*.trust.example'\n",
            "11: receive.peers[0].reports_tls.server_name: '*.trust",
        ),
        (REPORTS.replace("ca.pem", f'"{PEM}"'), "8: receive.peers[0].reports_tls.ca: a certificate or key itself"),
    ],
)
def test_what_cannot_work_of_it(tmp_path: Path, text: str, expected: str) -> None:
    messages = errors_of(tmp_path, text)
    assert len(messages) == 1, messages
    assert messages[0].startswith(expected)


REMOTE = """\
engines:
  - id: ct-lesion
    remote:
      url: triton.trust.example:8001
      model: ct-lesion
      tls:
        ca: ca.pem
        certificate: box.pem
        key: box.key
"""


def test_a_server_for_an_engine_may_be_asked_by_tls(tmp_path: Path) -> None:
    (engine,) = config.load(write(tmp_path, REMOTE)).engines
    assert engine.remote is not None
    assert str(engine.remote.url) == "triton.trust.example:8001"
    assert engine.remote.tls == config.RemoteTls(
        ca=Source("ca.pem", tmp_path / "ca.pem"),
        certificate=Source("box.pem", tmp_path / "box.pem"),
        key=Source("box.key", tmp_path / "box.key"),
        server_name=None,
    )


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (REMOTE.replace("        ca: ca.pem\n", ""), "6: engines[0].remote.tls.ca: missing; needed is: PEM file"),
        (REMOTE.replace("        key: box.key\n", ""), "8: engines[0].remote.tls.certificate: needs 'key' beside it"),
        (REMOTE + "        minimum_version: TLSv1.3\n", "10: engines[0].remote.tls.minimum_version: unknown key"),
        (REMOTE.replace(":8001", ""), "4: engines[0].remote.url: 'triton.trust.example': write HOST:PORT"),
        (REMOTE.replace("model: ct-lesion", "model: ../ct"), "5: engines[0].remote.model: "),
        (REMOTE + "      share: 1.5\n", "10: engines[0].remote.share: '1.5' is too large: at most 0.9"),
    ],
)
def test_what_cannot_work_of_such_a_server(tmp_path: Path, text: str, expected: str) -> None:
    messages = errors_of(tmp_path, text)
    assert len(messages) == 1, messages
    assert messages[0].startswith(expected)


# Into the files


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "Test CA")


@pytest.fixture(scope="module")
def papers(authority: Authority) -> dict[str, Paper]:
    return {
        "box": authority.issue("box"),
        "another": authority.issue("another"),
        "over": authority.issue("over", days=-1),
    }


@pytest.fixture
def site(tmp_path: Path, authority: Authority, papers: dict[str, Paper]) -> Path:
    """A folder with a sound configuration and its files."""
    shutil.copy(papers["box"].certificate, tmp_path / "box.pem")
    shutil.copy(papers["box"].key, tmp_path / "box.key")
    shutil.copy(authority.certificate, tmp_path / "ca.pem")
    write(tmp_path, TLS + PEER)
    return tmp_path


def complaints(site: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        examine(site / "box.yaml")
    return [message.removeprefix(f"{site / 'box.yaml'}:").replace(f"{site}/", "") for message in caught.value.messages]


def remarks(site: Path, now: datetime | None = None) -> list[str]:
    found = examine(site / "box.yaml", now).remarks
    return [message.removeprefix(f"{site / 'box.yaml'}:").replace(f"{site}/", "") for message in found]


def test_sound_files_are_sound(site: Path) -> None:
    assert remarks(site) == []


def test_a_key_that_is_not_the_certificates(site: Path, papers: dict[str, Paper]) -> None:
    shutil.copy(papers["another"].key, site / "box.key")
    assert complaints(site) == ["4: receive.tls.key: box.key is not the key of box.pem"]


def test_files_that_are_not_there_or_are_something_else(site: Path) -> None:
    (site / "box.pem").unlink()
    assert complaints(site) == ["3: receive.tls.certificate: box.pem cannot be read: No such file or directory"]
    (site / "box.pem").write_bytes(b"\x30\x82")
    assert complaints(site)[0].startswith("3: receive.tls.certificate: box.pem holds no certificate in PEM form")


def test_a_key_file_that_is_none_or_wants_a_passphrase(site: Path) -> None:
    key = site / "box.key"
    key.write_text("-----BEGIN CERTIFICATE-----\n")
    assert complaints(site)[0].startswith("4: receive.tls.key: box.key holds no private key in PEM form")
    key.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    assert complaints(site)[0].startswith("4: receive.tls.key: box.key wants a passphrase")


@pytest.mark.promise("P9")
def test_a_key_for_all_to_read_is_refused(site: Path) -> None:
    (site / "box.key").chmod(0o644)
    assert complaints(site) == ["4: receive.tls.key: box.key may be read by everybody on this box: chmod o-rwx box.key"]
    (site / "box.key").chmod(0o640)
    assert remarks(site) == []


def test_an_authority_file_without_a_certificate(site: Path) -> None:
    (site / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert complaints(site)[0].startswith("5: receive.tls.ca: ca.pem: ")


def test_an_expired_certificate_is_a_remark(site: Path, papers: dict[str, Paper]) -> None:
    shutil.copy(papers["over"].certificate, site / "box.pem")
    shutil.copy(papers["over"].key, site / "box.key")
    (told,) = remarks(site)
    assert told.startswith("3: receive.tls.certificate: box.pem expired ")


def test_a_credential_that_is_not_here_is_a_remark_and_the_rest_is_looked_at(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    write(site, (TLS + PEER).replace("box.key", "credential:box-key"))
    (told,) = remarks(site)
    assert told.startswith("4: receive.tls.key: credential:box-key was not looked at: systemd gives it to the service")
    (site / "box.pem").unlink()
    assert "3: receive.tls.certificate: box.pem cannot be read" in complaints(site)[0]


def test_a_destinations_files_are_looked_at_too(site: Path) -> None:
    pacs = "destinations:\n  - {name: p, kind: dimse, host: pacs, port: 2762, called_ae: PACS, takes: [image],\n"
    write(site, pacs + "     tls: {ca: nowhere.pem}}\n")
    assert complaints(site) == ["3: destinations[0].tls.ca: nowhere.pem cannot be read: No such file or directory"]


def test_a_token_is_looked_at_and_never_repeated(site: Path) -> None:
    web = "destinations:\n  - {name: w, kind: stow, url: 'https://pacs.example/rs', takes: [image], token: %s}\n"
    write(site, web % "token")
    assert complaints(site) == ["2: destinations[0].token: token cannot be read: No such file or directory"]
    (site / "token").write_text("secret and more")
    (site / "token").chmod(0o640)
    assert complaints(site) == [
        "2: destinations[0].token: token holds no bearer token: one word of letters, digits and -._~+/"
    ]
    (site / "token").write_text("secret\n")
    assert remarks(site) == []
    (site / "token").chmod(0o644)
    assert "may be read by everybody" in complaints(site)[0]
    write(site, web % "credential:stow-token")
    assert "was not looked at" in remarks(site)[0]


def test_the_files_of_reports_are_looked_at_too(site: Path) -> None:
    write(site, REPORTS)
    assert remarks(site) == []
    (site / "ca.pem").unlink()
    assert complaints(site) == ["8: receive.peers[0].reports_tls.ca: ca.pem cannot be read: No such file or directory"]


def test_the_files_of_an_engines_server_are_looked_at_too(site: Path) -> None:
    write(site, REMOTE.replace("ca.pem", "nowhere.pem"))
    expected = "7: engines[0].remote.tls.ca: nowhere.pem cannot be read: No such file or directory"
    assert complaints(site) == [expected]


def test_when_a_certificate_holds(papers: dict[str, Paper]) -> None:
    found = validity(papers["over"].certificate)
    assert found.begins.tzinfo is UTC
    assert found.ends - found.begins == timedelta(days=-1)
    assert timedelta(days=89) < validity(papers["box"].certificate).ends - datetime.now(UTC) <= timedelta(days=90)


@pytest.mark.parametrize(
    ("day", "words"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), "holds only from 2026-01-01 00:00 UTC on: is the clock right?"),
        (datetime(2026, 6, 1, tzinfo=UTC), ""),
        (datetime(2026, 12, 22, tzinfo=UTC), "expires in 10 days, 2027-01-01 00:00 UTC: renew it"),
        (datetime(2027, 1, 2, tzinfo=UTC), "expired 2027-01-01 00:00 UTC: peers refuse it"),
    ],
)
def test_what_is_said_of_a_certificates_time(day: datetime, words: str) -> None:
    span = Validity(begins=datetime(2026, 1, 1, tzinfo=UTC), ends=datetime(2027, 1, 1, tzinfo=UTC))
    assert span.complaint(day) == words
