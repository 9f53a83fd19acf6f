"""What is special to DICOMweb servers: each HTTP answer, TLS, tokens, and servers that do not keep to anything."""

import json
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.destinations.stow import StowNode
from appliance.destinations.stow_answers import LONGEST_ANSWER, Answer, judged, rest_s, rule_of
from appliance.destinations.stow_wire import WebTarget
from appliance.dimse.header import part10
from appliance.dimse.tls import ClientTls
from appliance.errors import AnswerLate, DeliveryError, DestinationRefused, ObjectRefused, TransientDeliveryError
from appliance.file_head import clean_head, file_head, make_seal, read_file_head
from tests.certificates import Authority, Paper
from tests.journals import CT_IMAGE, EXPLICIT
from tests.scanner import data_set
from tests.web_pacs import Reply, WebPacs, babble, drip, failed, flood, hang, interrupt, leave, stall, stored

PRIVATE = b'{"secret": "of ours"}'


@dataclass(frozen=True, slots=True)
class Item:
    path: Path
    data_set: bytes
    sop_instance_uid: str
    sop_class_uid: str = CT_IMAGE
    transfer_syntax_uid: str = EXPLICIT

    @property
    def size(self) -> int:
        return len(self.data_set)

    @property
    def names(self) -> tuple[str, str]:
        return self.sop_class_uid, self.sop_instance_uid


def made(folder: Path, pixels: bytes = b"pixel" * 200) -> Item:
    """An object as our spool holds it, seal and private information and all."""
    data = data_set(1, pixels)
    uid = "1.2.3.4.1"
    head = file_head(CT_IMAGE, uid, EXPLICIT, "CT01", PRIVATE)
    seal = make_seal(len(data), b"d" * 32)
    path = folder / "stored.dcm"
    path.write_bytes(seal + head[len(seal) :] + data)
    return Item(path, data, uid)


@pytest.fixture
def item(tmp_path: Path) -> Item:
    return made(tmp_path)


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[WebPacs]:
    with WebPacs(tmp_path / "pacs") as made_:
        yield made_


def target(pacs: WebPacs, scheme: str = "http", **changes: object) -> WebTarget:
    values: dict[str, object] = {"url": f"{scheme}://127.0.0.1:{pacs.port}/dicom-web", "timeout_s": 5.0}
    return WebTarget(**values | changes)  # type: ignore[arg-type]


def send(pacs: WebPacs, item: Item, **changes: object) -> str:
    with StowNode(target(pacs, **changes)).open([item]) as session:  # type: ignore[arg-type]
        return session.send(item, item.path)


def test_what_is_ours_in_the_head_is_not_sent_and_the_rest_is(pacs: WebPacs, item: Item) -> None:
    assert send(pacs, item) == ""
    (arrived,) = pacs.files()
    content = arrived.read_bytes()
    assert content[:132] == bytes(128) + b"DICM"
    assert PRIVATE not in content
    assert content.endswith(item.data_set)
    found = part10(arrived)
    assert (found.sop_class_uid, found.sop_instance_uid, found.transfer_syntax_uid) == (*item.names, EXPLICIT)
    assert content[found.data_set_offset :] == item.data_set
    head = read_file_head(arrived)
    assert (head.calling_ae, head.private) == ("CT01", b"")
    subprocess.run(["/usr/bin/dcmdump", "-q", arrived], check=True, capture_output=True, timeout=20)


@pytest.mark.parametrize("cut", [1, 9, 30])
def test_a_head_that_ends_inside_an_element_is_refused(cut: int) -> None:
    head = file_head(CT_IMAGE, "1.2.3", EXPLICIT, "CT01", PRIVATE)
    assert clean_head(head) == file_head(CT_IMAGE, "1.2.3", EXPLICIT, "CT01")
    with pytest.raises(ValueError, match="malformed"):
        clean_head(head[:-cut])


def test_each_piece_waits_for_its_turn_and_none_is_longer(pacs: WebPacs, tmp_path: Path) -> None:
    item, asked = made(tmp_path, bytes(1_000_000)), list[int]()

    def turn(wanted: int) -> int:
        asked.append(wanted)
        return min(wanted, 7_000)

    with StowNode(target(pacs)).open([item]) as session:
        session.send(item, item.path, turn)
        assert session.bytes_s >= 0
        assert session.round_trip_s > 0
    assert len(asked) >= 1_000_000 // 7_000
    assert pacs.files()[0].read_bytes().endswith(item.data_set)


def test_a_turn_that_says_stop_ends_the_session(pacs: WebPacs, item: Item) -> None:
    def turn(_: int) -> int:
        raise TransientDeliveryError("told to stop")

    with StowNode(target(pacs)).open([item]) as session:
        with pytest.raises(TransientDeliveryError, match="told to stop"):
            session.send(item, item.path, turn)
        assert not session.alive
    assert pacs.files() == []


def test_one_connection_serves_many_objects(pacs: WebPacs, item: Item) -> None:
    with StowNode(target(pacs)).open([item]) as session:
        for _ in range(5):
            session.send(item, item.path)
    assert pacs.connections == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (301, DestinationRefused),
        (307, DestinationRefused),
        (400, ObjectRefused),
        (401, DestinationRefused),
        (403, DestinationRefused),
        (404, DestinationRefused),
        (405, DestinationRefused),
        (406, DestinationRefused),
        (407, DestinationRefused),
        (408, TransientDeliveryError),
        (409, ObjectRefused),
        (410, DestinationRefused),
        (411, DestinationRefused),
        (413, ObjectRefused),
        (415, ObjectRefused),
        (422, ObjectRefused),
        (425, TransientDeliveryError),
        (429, TransientDeliveryError),
        (451, ObjectRefused),
        (500, TransientDeliveryError),
        (501, DestinationRefused),
        (502, TransientDeliveryError),
        (503, TransientDeliveryError),
        (504, TransientDeliveryError),
        (505, DestinationRefused),
        (507, TransientDeliveryError),
        (511, DestinationRefused),
    ],
)
def test_what_each_status_means(pacs: WebPacs, item: Item, status: int, error: type[DeliveryError]) -> None:
    words = b"<html>patient DOE^JANE was not found</html>"
    pacs.script.append(Reply(status, words, {"Content-Type": "text/html", "Location": "http://127.0.0.1:1/DOE"}))
    with StowNode(target(pacs)).open([item]) as session:
        with pytest.raises(error, match=f"HTTP {status}: the server ") as caught:
            session.send(item, item.path)
        assert type(caught.value) is error
        assert "DOE" not in str(caught.value)
        assert session.alive
        assert session.send(item, item.path) == ""


def test_every_status_has_a_meaning() -> None:
    assert all(rule_of(status).meaning for status in range(1000) if not 200 <= status <= 299)


@pytest.mark.parametrize(
    ("status", "reason", "error"),
    [
        (409, 0xA700, TransientDeliveryError),
        (409, 0xA900, ObjectRefused),
        (409, 0xC000, ObjectRefused),
        (409, 0xC122, ObjectRefused),
        (400, 0x0122, ObjectRefused),
        (202, 0x0110, TransientDeliveryError),
        (202, 0x0124, DestinationRefused),
        (200, 0xB000, ObjectRefused),
        (200, 0, TransientDeliveryError),
    ],
)
def test_what_a_failure_reason_means(
    pacs: WebPacs, item: Item, status: int, reason: int, error: type[DeliveryError]
) -> None:
    pacs.script.append(Reply(status, failed(item.names, reason)))
    with pytest.raises(error) as caught:
        send(pacs, item)
    assert type(caught.value) is error
    assert f"0x{reason or 0x0110:04X}" in str(caught.value)


@pytest.mark.parametrize(
    ("warning", "text"),
    [
        (0xB000, "0xB000 stored, with data elements coerced"),
        (0xB006, "0xB006 stored, with elements discarded"),
        (0xA700, "0xA700 stored, with a warning"),
    ],
)
def test_a_warning_is_a_delivery(pacs: WebPacs, item: Item, warning: int, text: str) -> None:
    pacs.script.append(Reply(202, stored(item.names, warning)))
    assert send(pacs, item) == text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Welcome to the guest network</html>",
        b"{}",
        b"[]",
        b"null",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"00081199": {"Value": "x"}}',
        b'{"00081199": {"Value": [{"00081155": {"Value": []}}]}}',
        stored((CT_IMAGE, "1.2.3.9")),
    ],
)
def test_success_that_does_not_say_what_is_stored_is_none(pacs: WebPacs, item: Item, body: bytes) -> None:
    pacs.script.append(Reply(200, body))
    with pytest.raises(DestinationRefused, match="does not say that the object is stored"):
        send(pacs, item)


def test_success_in_another_language_is_none(item: Item) -> None:
    answer = Answer(status=200, headers={"content-type": "text/html"}, body=stored(item.names))
    with pytest.raises(DestinationRefused):
        judged(answer, item.sop_instance_uid)


def test_an_answer_without_an_end_is_not_read_to_it(pacs: WebPacs, item: Item) -> None:
    pacs.script.append(flood)
    with pytest.raises(DestinationRefused, match="does not say"):
        send(pacs, item)
    assert LONGEST_ANSWER < 65536 * 200


def test_a_server_that_asks_us_to_wait_is_left_alone(pacs: WebPacs, item: Item) -> None:
    pacs.script.append(Reply(503, b"", {"Retry-After": "120"}))
    node = StowNode(target(pacs))
    with node.open([item]) as session:
        for _ in range(2):
            with pytest.raises(TransientDeliveryError):
                session.send(item, item.path)
    for ask in (lambda: node.open([item]), node.probe):
        with pytest.raises(TransientDeliveryError, match=r"asked us to wait, 1[12][0-9] s more"):
            ask()
    assert len(pacs.seen) == 1


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (503, {"retry-after": "7"}, 7.0),
        (429, {"retry-after": "99999999"}, 3600.0),
        (503, {"retry-after": "-1"}, 0.0),
        (503, {"retry-after": "soon"}, 0.0),
        (503, {"retry-after": "\u0663"}, 0.0),
        (503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "Wed, 21 Oct 2015 07:27:00 GMT"}, 60.0),
        (503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        (503, {"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        (200, {"retry-after": "7"}, 0.0),
        (503, {}, 0.0),
    ],
)
def test_how_long_it_may_have_us_wait(status: int, headers: dict[str, str], expected: float) -> None:
    assert rest_s(Answer(status=status, headers=headers, body=b"")) == expected


@pytest.mark.parametrize(("status", "error"), [(401, DestinationRefused), (503, TransientDeliveryError), (404, None)])
def test_what_a_probe_hears(pacs: WebPacs, status: int, error: type[DeliveryError] | None) -> None:
    pacs.queries.append(Reply(status, b""))
    node = StowNode(target(pacs))
    if error is None:
        node.probe()
    else:
        with pytest.raises(error):
            node.probe()


def test_a_server_that_never_answers_is_late_and_given_longer(pacs: WebPacs, item: Item) -> None:
    pacs.script += [hang, Reply()]
    node = StowNode(target(pacs, timeout_s=0.4))
    with node.open([item]) as session:
        with pytest.raises(AnswerLate):
            session.send(item, item.path)
        assert not session.alive
        with pytest.raises(TransientDeliveryError):
            session.send(item, item.path)
    assert node.known.answer_s == pytest.approx(0.8)
    with node.open([item]) as again:
        assert again.send(item, item.path) == ""


def test_a_server_that_answers_a_byte_now_and_then_does_not_hold_us(pacs: WebPacs, item: Item) -> None:
    pacs.script.append(drip)
    with pytest.raises(AnswerLate):
        send(pacs, item, timeout_s=0.5)


@pytest.mark.parametrize("deed", [stall, leave, babble])
def test_what_a_broken_server_does_is_transient(pacs: WebPacs, tmp_path: Path, deed: object) -> None:
    item = made(tmp_path, bytes(20_000_000))
    pacs.script.append(deed)  # type: ignore[arg-type]
    with StowNode(target(pacs, timeout_s=0.5)).open([item]) as session:
        with pytest.raises(TransientDeliveryError):
            session.send(item, item.path)
        assert not session.alive


def test_a_refusal_in_the_middle_of_the_body_is_heard(pacs: WebPacs, tmp_path: Path) -> None:
    item = made(tmp_path, bytes(20_000_000))
    pacs.script.append(interrupt)
    with StowNode(target(pacs)).open([item]) as session, pytest.raises(ObjectRefused, match="HTTP 413"):
        session.send(item, item.path)


def test_a_server_that_is_down_is_transient(tmp_path: Path, item: Item) -> None:
    with WebPacs(tmp_path / "gone") as gone:
        node = StowNode(target(gone))
    with pytest.raises(TransientDeliveryError, match="Connection refused"):
        node.open([item])
    with pytest.raises(TransientDeliveryError):
        node.probe()


def test_a_token_is_shown_and_its_file_looked_at_anew(pacs: WebPacs, item: Item, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("abc.DEF-123\n")
    token.chmod(0o600)
    send(pacs, item, token=token)
    assert pacs.seen[-1]["authorization"] == "Bearer abc.DEF-123"
    for text, mode in (("two words", 0o600), ("", 0o600), ("abc\r\nX: y", 0o600), ("abc", 0o644)):
        token.write_text(text)
        token.chmod(mode)
        with pytest.raises(DestinationRefused, match="the token: ") as caught:
            send(pacs, item, token=token)
        assert "words" not in str(caught.value)
    token.unlink()
    with pytest.raises(DestinationRefused, match="cannot be read"):
        send(pacs, item, token=token)
    assert len(pacs.seen) == 1


@dataclass(frozen=True, slots=True)
class Certified:
    ca: Path
    server: Paper
    client: Paper
    rogue_ca: Path


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    folder = tmp_path_factory.mktemp("papers")
    trust, rogue = Authority(folder, "Trust CA"), Authority(folder, "Rogue CA")
    return Certified(
        ca=trust.certificate,
        server=trust.issue("pacs", "DNS:pacs.trust.example", "IP:127.0.0.1"),
        client=trust.issue("box"),
        rogue_ca=rogue.certificate,
    )


def tls_pacs(folder: Path, papers: Certified, *, ask: bool) -> WebPacs:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(papers.server.certificate, papers.server.key)
    if ask:
        context.load_verify_locations(papers.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return WebPacs(folder / "tls", context)


def test_tls_with_certificates_on_both_sides(papers: Certified, item: Item, tmp_path: Path) -> None:
    ours = papers.client
    with tls_pacs(tmp_path, papers, ask=True) as pacs:
        for name in ("127.0.0.1", "pacs.trust.example"):
            security = ClientTls(ca=papers.ca, server_name=name, certificate=ours.certificate, key=ours.key)
            assert send(pacs, item, scheme="https", security=security) == ""
        assert pacs.files()[0].read_bytes().endswith(item.data_set)
        with pytest.raises(DestinationRefused, match=r"TLS: .*certificate"):
            send(pacs, item, scheme="https", security=ClientTls(ca=papers.ca, server_name="127.0.0.1"))


def test_an_answer_byte_by_byte_over_tls_does_not_hold_us_either(papers: Certified, item: Item, tmp_path: Path) -> None:
    with tls_pacs(tmp_path, papers, ask=False) as pacs:
        pacs.script.append(drip)
        with pytest.raises(AnswerLate):
            send(pacs, item, scheme="https", timeout_s=0.5, security=ClientTls(ca=papers.ca, server_name="127.0.0.1"))


@pytest.mark.parametrize("wrong", ["authority", "name", "system"])
def test_a_server_with_the_wrong_certificate_gets_nothing(
    papers: Certified, item: Item, tmp_path: Path, wrong: str
) -> None:
    security = {
        "authority": ClientTls(ca=papers.rogue_ca, server_name="127.0.0.1"),
        "name": ClientTls(ca=papers.ca, server_name="other.trust.example"),
        "system": None,
    }[wrong]
    with tls_pacs(tmp_path, papers, ask=False) as pacs:
        with pytest.raises(DestinationRefused, match="TLS: certificate refused"):
            send(pacs, item, scheme="https", security=security)
        assert pacs.seen == []


def test_tls_to_a_plain_port_is_refused_by_name(pacs: WebPacs, papers: Certified, item: Item) -> None:
    with pytest.raises(DestinationRefused, match="TLS: plain text on the TLS port, or no TLS"):
        send(pacs, item, scheme="https", security=ClientTls(ca=papers.ca, server_name="127.0.0.1"))


def test_a_certificate_that_is_not_there_is_refused_by_name(pacs: WebPacs, item: Item, tmp_path: Path) -> None:
    with pytest.raises(DestinationRefused, match="cannot be read"):
        send(pacs, item, scheme="https", security=ClientTls(ca=tmp_path / "none.pem", server_name="x"))


def test_the_answers_of_the_test_server_are_dicom_json(item: Item) -> None:
    assert json.loads(stored(item.names))["00081199"]["vr"] == "SQ"
