"""The configuration: what a technician may get wrong is told with its line, and all of it at once."""

import re
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance import config
from appliance.config import values
from appliance.config.models import Config
from appliance.config.outline import outline
from appliance.dimse.association import AssociateRequest, ProposedContext, decode_request, encode_request
from appliance.dimse.sop_classes import IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from appliance.errors import ConfigError
from appliance.model import Commitment, Kind, Priority
from appliance.wiring.receive import _policy

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "config" / "scanside.yaml"
TRUST = ROOT / "config" / "trust-example.yaml"
DIMSE = "destinations:\n  - {name: pacs, kind: dimse, host: 192.0.2.20, port: 104, called_ae: PACS, takes: [image]"


def load_text(folder: Path, text: str | bytes) -> config.Config:
    file = folder / "box.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return config.load(file)


def errors_of(folder: Path, text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(folder, text)
    prefix = f"{folder / 'box.yaml'}:"
    assert all(message.startswith(prefix) for message in caught.value.messages)
    return [message.removeprefix(prefix) for message in caught.value.messages]


def only_error(folder: Path, text: str | bytes) -> str:
    messages = errors_of(folder, text)
    assert len(messages) == 1, messages
    return messages[0]


def destination(**options: str) -> str:
    """A sound DIMSE destination, one option a line, some changed; "-" leaves one out."""
    sound = {"name": "pacs", "kind": "dimse", "host": "192.0.2.20", "port": "104", "called_ae": "PACS"}
    lines = {**sound, "takes": "[image]", **options}
    rows = [f"{key}: {value}" for key, value in lines.items() if value != "-"]
    return "destinations:\n  - " + "\n    ".join(rows) + "\n"


def reports(where: str) -> str:
    return peer("CT01") + f"      reports_to: {where}\n      commitment: custody\n"


def peer(title: str, address: str = "192.0.2.10") -> str:
    return f"receive:\n  peers:\n    - ae_title: {title}\n      address: {address}\n"


ASKS = "      commitment: custody\n      reports_to: ct:104\n"


# --- what is right -------------------------------------------------------------------------------------------------


@pytest.mark.promise("P9")
def test_the_shipped_configuration_boots_as_it_is_and_lets_nobody_in() -> None:
    loaded = config.load(SHIPPED)
    assert loaded.receive.bind == "127.0.0.1"
    assert loaded.receive.peers == ()
    assert loaded.destinations == ()
    assert {engine.id: engine.mode for engine in loaded.engines} == {
        "ct-lesion": config.EngineMode.SHADOW,
        "cxr-acquisition": config.EngineMode.SHADOW,
    }
    assert loaded.engines_dir == ROOT / "engines"


def test_the_shipped_configuration_shows_every_option_with_its_default() -> None:
    loaded, defaults = config.load(SHIPPED), Config.model_validate({}, context={"folder": SHIPPED.parent})
    engines = {"engines": loaded.engines}  # the one thing it says beyond the defaults
    assert loaded == defaults.model_copy(update=engines)
    text = SHIPPED.read_text()
    missing = [place for place in outline(Config) if place and not re.search(rf"\b{place[-1]}\b *:", text)]
    assert missing == []


def test_the_examples_in_the_shipped_configuration_work_without_their_hash(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^#(?=  )", "", SHIPPED.read_text())
    text = re.sub(r"(?m)^(\s*(?:peers|priorities|destinations):) \[\]", r"\1", text)
    text = re.sub(r"(?m)^  (tls|webhook): null", r"  \1:", text)
    text = text.replace("certificate: null", "certificate: ct01.trust.example")
    loaded = load_text(tmp_path, text)
    assert loaded.receive.tls is not None
    assert loaded.engines[0].remote == config.Remote.model_validate({"url": "192.0.2.30:8001", "model": "ct-lesion"})
    assert loaded.alerts.webhook == config.Webhook.model_validate(
        {"url": "https://pager.trust.example/scanside", "secret": "credential:webhook-secret"}
    )
    assert loaded.receive.peers[0].ae_title == "CT01"
    assert loaded.priorities[0].priority is Priority.URGENT
    assert [one.kind for one in loaded.destinations] == ["dimse", "stow", "folder"]
    pacs, archive = loaded.destinations[:2]
    assert isinstance(archive, config.StowDestination)
    assert (archive.url, archive.tls) == ("https://pacs.example/dicom-web", None)
    sound = {"name": "pacs", "kind": "dimse", "host": "192.0.2.20", "port": 104, "called_ae": "PACS"}
    assert pacs == config.DimseDestination.model_validate({**sound, "takes": ["image", "sr", "sc"]})


@pytest.mark.parametrize("url", ["http://pager.example/", "https://me:pw@pager.example/", "pager.example", "https://"])
def test_alerts_go_by_https_and_carry_no_password_in_their_url(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"alerts\.webhook\.url"):
        load_text(tmp_path, f"alerts: {{webhook: {{url: '{url}', secret: ./secret}}}}\n")


def test_the_example_of_a_trust() -> None:
    loaded = config.load(TRUST)
    assert [one.ae_title for one in loaded.receive.peers] == ["CT01", "DX01", "PACS"]
    assert loaded.receive.tls is not None
    named = {one.ae_title: one.certificate for one in loaded.receive.peers}
    assert named == {"CT01": "ct01.trust.example", "DX01": None, "PACS": "pacs.trust.example"}
    documentation = ip_network("192.0.2.0/24")
    assert all(one.address.subnet_of(documentation) for one in loaded.receive.peers)  # type: ignore[arg-type]
    archive, review = loaded.destination("archive"), loaded.destination("review")
    assert archive is not None
    assert set(archive.takes) == set(Kind)
    assert isinstance(review, config.FolderDestination)
    assert [one.name for one in loaded.destinations if one.accept_reference] == ["review"]


def test_an_empty_group_is_all_defaults_and_paths_start_at_the_file(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, "{}\n")
    assert loaded.state_dir == tmp_path / "var"
    assert loaded.journal_path == tmp_path / "var" / "journal.sqlite"
    assert loaded.spool_dir == tmp_path / "var" / "spool"
    assert loaded.run_dir == tmp_path / "var" / "run"
    assert loaded.engines_dir == tmp_path.parent / "engines"


def test_a_key_without_a_value_is_left_out(tmp_path: Path) -> None:
    text = "receive:\n  peers:\ndestinations:\nanalyse: {python: null}\n"
    assert load_text(tmp_path, text) == load_text(tmp_path, "{}")


def test_a_destination_may_say_null_for_what_its_kind_has_not(tmp_path: Path) -> None:
    folder = load_text(tmp_path, destination(kind="folder", host="null", port="", called_ae="~", path="out"))
    assert folder.destinations[0].path == tmp_path / "out"
    assert load_text(tmp_path, destination(path="null")).destinations[0].path is None


@pytest.mark.parametrize(
    ("text", "title"),
    [("0123", "0123"), ("NO", "NO"), ("12E5", "12E5"), ("'CT 01  '", "CT 01"), ("on", "on"), ("1.5", "1.5")],
)
def test_what_is_typed_is_what_is_meant(tmp_path: Path, text: str, title: str) -> None:
    assert load_text(tmp_path, f"ae_title: {text}\n").ae_title == title


def test_off_is_a_mode_and_a_quoted_number_is_a_number(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, 'engines: [{id: a, mode: off}]\nreceive: {port: "104 ", any_called_ae: yes}\n')
    assert loaded.engines[0].mode is config.EngineMode.OFF
    assert loaded.receive.port == 104
    assert loaded.receive.any_called_ae is True


def test_an_alias_may_stand_for_what_was_written_before(tmp_path: Path) -> None:
    text = f"{DIMSE}, when: &only {{modality: [CT]}}}}\n" + "  - " + DIMSE.split("- ")[1].replace("pacs", "two")
    assert [one.when.modality for one in load_text(tmp_path, text + ", when: *only}\n").destinations] == [("CT",)] * 2


def test_silence_given_for_one_modality_leaves_the_others(tmp_path: Path) -> None:
    rules = load_text(tmp_path, "series: {silence_s: {ct: 30}}\n").series
    assert [rules.silence_for(code) for code in ("CT", "dx", "MR", "")] == [30, 2, 20, 20]


def test_it_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.load(SHIPPED).node = "other"


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("title", "address", "admitted"),
    [
        ("CT01", "192.0.2.10", True),
        ("CT01 ", "::ffff:192.0.2.10", True),
        ("CT01", "192.0.2.11", False),
        ("ct01", "192.0.2.10", False),
        ("DX01", "198.51.100.77", True),
        ("DX01", "2001:db8::1", False),
        ("", "192.0.2.10", False),
    ],
)
def test_a_peer_is_known_by_title_and_address(tmp_path: Path, title: str, address: str, admitted: bool) -> None:
    policy = _policy(load_text(tmp_path, peer("CT01") + "    - {ae_title: DX01, address: 198.51.100.0/24}\n"))
    verification = ProposedContext(id=1, abstract_syntax=VERIFICATION, transfer_syntaxes=(IMPLICIT_VR_LITTLE_ENDIAN,))
    request = AssociateRequest(called_ae="SCANSIDE", calling_ae=title, contexts=(verification,))
    rejection = policy.rejection(decode_request(encode_request(request)[6:]), address)
    assert (rejection is None) is admitted


def test_the_interpreter_of_a_virtual_environment_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    loaded = load_text(tmp_path, "analyse: {python: bin/python}\n")
    assert loaded.analyse.python == tmp_path / "bin" / "python"


def test_engines_and_destinations_are_found_by_name() -> None:
    loaded = config.load(TRUST)
    engine = loaded.engine("ct-lesion")
    assert engine is not None
    assert engine.deadline_s == 300
    assert loaded.engine("no-such") is None
    assert loaded.destination("no-such") is None


def test_every_option_is_described() -> None:
    assert [place for place, known in outline(Config).items() if place and not known.description] == []


def test_importing_it_stays_light() -> None:
    code = "import sys, appliance.config; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"numpy", "pydicom", "pynetdicom", "highdicom", "onnxruntime", "asyncio", "sqlite3"}
    assert heavy.isdisjoint(run.stdout.split())


# --- the text itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("receive:\n\tport: 104\n", "2: file: column 1 has a tab: use spaces to indent and to separate"),
        ("receive:\n  port:\t104\n", "2: file: column 8 has a tab: use spaces to indent and to separate"),
        ("node:\u00a0x\n", "1: file: column 6 has a no-break space"),
        ("node: \u201cbox\u201d\n", "1: file: column 7 has a typographic quotation mark: type"),
        ("receive:\n  port:104\n  bind: x\n", "2: file: a space is missing after the colon"),
        ("receive:\n  bind: x\n  port:104\n", "3: file: a space is missing after the colon"),
        ("receive:\n  bind: x\n  nonsense\n", "3: file: a key without a value: write 'key: value'"),
        ("receive:\n  bind: x\n   port: 1\n", "3: file: a ':' that cannot be here: indent like the line above"),
        ("receive:\n    bind: x\n  port: 1\n", "3: file: the indentation does not fit"),
        ("receive:\n  peers: [\nnode: x\n", "2: file: a list opened here with '[' lacks"),
        ("receive: {port: 1\nnode: x\n", "1: file: a group opened here with '{' lacks"),
        ("node: 'box\nae_title: X\n", "1: file: a quotation mark opened here is never closed"),
        ("node: box\nae_title: @X\n", "2: file: a value may not begin with this character"),
        ("ae_title: *\n", "1: file: a value that begins with '*' or '&' must be in quotes"),
        ("ae_title: *CT\n", "1: file: a value that begins with '*' must be in quotes"),
        ('state: "C:\\data"\n', "1: file: a backslash between double quotes: use single quotes"),
        ('state: "\\UFFFFFFFF"\n', "1: file: a backslash between double quotes stands for no character"),
        ("node: a\n---\nnode: b\n", "2: file: a second document starts here"),
        ("node: a\nae_title: \x00\n", "2: file: a control character: is this a text file?"),
        ("", "1: file: the file is empty"),
        ("# nothing\n", "1: file: the file is empty"),
        ("- a\n", "1: file: the file must hold lines 'key: value'"),
        ("node:box\n", "1: file: the file must hold lines 'key: value', with a space after the colon"),
        (b"node: a\nae_title: \xe9\n", "2: file: the byte 0xe9 is not UTF-8: save the file as UTF-8"),
        ("node: a\n".encode("utf-16"), "1: file: is UTF-16: save it as UTF-8"),
        ("node: box\nnode: box\n", "2: node: this key stands twice, first in line 1: remove one"),
        ("node: !!python/name:os.system x\n", "1: node: the tag 'tag:yaml.org,2002:python/name:os.system' is not"),
        ("node: !!int 5\n", "1: node: the tag 'tag:yaml.org,2002:int' is not used here"),
        ("receive:\n  ? [a]\n  : b\n", "2: receive: a key must be a word"),
        ('state: "\\0"\n', "1: state: a line break or a character that cannot be printed"),
        ('state: "\\uD800"\n', "1: state: a line break or a character that cannot be printed"),
        ("node: |\n  a\n  b\n", "1: node: a line break or a character that cannot be printed: write plain text on one"),
        ("node: {{ node }}\n", "1: node: a key must be a word; a value with '{' or '[' in it needs quotes"),
    ],
)
def test_what_is_no_yaml(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert errors_of(tmp_path, text)[0].startswith(expected)


def test_tabs_are_all_shown(tmp_path: Path) -> None:
    messages = errors_of(tmp_path, "receive:\n\tport: 1\n\tbind: x\nnode: a  # a\ttab in a comment is none\n")
    assert [message.split(":")[0] for message in messages] == ["2", "3"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml:1: file: cannot be read: No such file"):
        config.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r":1: file: cannot be read: Is a directory"):
        config.load(tmp_path)


def test_windows_line_ends_and_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    assert load_text(tmp_path, b"\xef\xbb\xbfnode: box\r\nae_title: BOX\r\n").ae_title == "BOX"
    assert only_error(tmp_path, b"\xef\xbb\xbfnode: box\r\nae_titel: BOX\r\n").startswith("2: ae_titel: unknown key")


@pytest.mark.parametrize(
    "bomb",
    [
        "a: &a [x, x, x, x]\n"
        + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)),
        "a: &a [*a, *a]\n",
        "a: &a {b: *a}\n",
        "a: " + "[" * 100_000,
        "a: " + "{b: " * 1_000,
        "a: [" + "x, " * 30_000 + "x]\n",
        "- " * 100_000 + "x",
    ],
    ids=["aliases", "inside itself", "group inside itself", "deep lists", "deep groups", "long", "deep block"],
)
@pytest.mark.promise("P9")
@pytest.mark.timeout(20)
def test_no_file_exhausts_the_reader(tmp_path: Path, bomb: str) -> None:
    assert "too deep or too long" in only_error(tmp_path, bomb)


def test_a_file_of_more_than_a_mebibyte_is_not_read(tmp_path: Path) -> None:
    assert only_error(tmp_path, "#" * (1 << 20) + "\n").startswith("1: file: longer than 1048576 bytes")


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node: a\nae_titel: B\n", "2: ae_titel: unknown key 'ae_titel'; did you mean 'ae_title'?"),
        ("engine: []\n", "1: engine: unknown key 'engine'; did you mean 'engines'?"),
        ("receive:\n  Port: 104\n", "2: receive.Port: unknown key 'Port'; did you mean 'port'?"),
        ("receive:\nport: 104\n", "2: port: unknown key 'port' here; it belongs under receive or destinations"),
        ("receive:\n  node: a\n", "2: receive.node: unknown key 'node' here; it belongs to the left margin"),
        ("reserve:\n  colour: a\n", "2: reserve.colour: unknown key 'colour'; known here: free_mb, free_inodes"),
        ("reserve:\n  colour:\n", "2: reserve.colour: unknown key 'colour'; known here"),
        ("receive:\n  <<: {port: 1}\n", "2: receive.'<<': unknown key '<<': merging is not used here"),
        ("series:\n  silence_s:\n    defualt: 9\n", "3: series.silence_s.defualt: unknown key 'defualt'; did you mean"),
        ("series:\n  silence_s:\n    C-T: 9\n", "3: series.silence_s.C-T: 'C-T' is no modality"),
        (f"{DIMSE},\n    takse: [sr]}}\n", "3: destinations[0].takse: unknown key 'takse'; did you mean 'takes'?"),
        (f"{DIMSE}, when: {{\n    modalty: [CT]}}}}\n", "3: destinations[0].when.modalty: unknown key 'modalty'; did"),
        ('"a\\nb": 1\n', "1: file: a key must be a word"),
        (
            f"{DIMSE}, keep_h:5}}\n",
            "2: destinations[0].'keep_h:5': unknown key 'keep_h:5': put a space after the colon",
        ),
        ("engines:\n  - mode: shadow\n", "2: engines[0].id: missing; needed is: name of the engine's folder"),
        ("engines:\n  - id:\n    mode: off\n", "2: engines[0].id: missing; needed is: name of the engine's folder"),
    ],
)
def test_keys(tmp_path: Path, text: str, expected: str) -> None:
    assert only_error(tmp_path, text).startswith(expected)


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("receive:\n  port: 104x\n", "2: receive.port: '104x' is no whole number: leave the unit out, write 104"),
        ("receive:\n  port: one\n", "2: receive.port: 'one' is no whole number: write digits only"),
        ("receive:\n  port: 1.5\n", "2: receive.port: '1.5' is no whole number"),
        ("receive:\n  port: [104]\n", "2: receive.port: a list is no whole number"),
        (f"receive:\n  port: {'9' * 5000}\n", "2: receive.port: '9999"),
        ("receive:\n  port: 65536\n", "2: receive.port: '65536' is too large: at most 65535"),
        ("receive:\n  port: -1\n", "2: receive.port: '-1' is too small: at least 0"),
        ("receive:\n  idle_s: 5 min\n", "2: receive.idle_s: '5 min' is no number: leave the unit out, write 5"),
        ("receive:\n  idle_s: 0\n", "2: receive.idle_s: '0' is too small: it must be more than 0"),
        ("receive:\n  idle_s: .nan\n", "2: receive.idle_s: '.nan' is no number"),
        ("receive:\n  idle_s: inf\n", "2: receive.idle_s: 'inf' is no number"),
        ("receive:\n  any_called_ae: maybe\n", "2: receive.any_called_ae: 'maybe': write true or false"),
        (
            reports("192.0.2.10"),
            "5: receive.peers[0].reports_to: '192.0.2.10': write HOST:PORT, such as 192.0.2.10:104",
        ),
        (reports("2001:db8::1:104"), "5: receive.peers[0].reports_to: '2001:db8::1:104': write HOST:PORT"),
        (reports("ct:0"), "5: receive.peers[0].reports_to: 'ct:0': a port is a number from 1 to 65535"),
        (reports("ct:" + "9" * 5000), "5: receive.peers[0].reports_to: 'ct:9"),
        (reports("a b:104"), "5: receive.peers[0].reports_to: 'a b' is no host name"),
        ("receive:\n  bind: localhost\n", "2: receive.bind: 'localhost' is no IP address of this box: 127.0.0.1 for"),
        ("receive: port:104\n", "1: receive: must be a group of keys such as 'bind: ...', not 'port:104'; a space"),
        ("receive:\n  - port: 104\n", "1: receive: must be a group of keys, not a list: remove the '-'"),
        ("receive:\n  private_sop_classes: [1.02.3]\n", "2: receive.private_sop_classes[0]: '1.02.3' is no UID"),
        ("reserve: {free_mb: 2GB}\n", "1: reserve.free_mb: '2GB' is no whole number: leave the unit out, write 2"),
        ("node: ''\n", "1: node: '' is no name: letters, digits"),
        ("node: Ward 7\n", "1: node: 'Ward 7' is no name: letters, digits, '.', '_' and '-', at most 16, no spaces"),
        ("node: {a: b}\n", "1: node: must be one value, not a group of keys"),
        ("node: [a]\n", "1: node: must be one value, not a list"),
        ("state: ''\n", "1: state: the name of a folder is needed, such as ./var"),
        ("analyse: {python: ''}\n", "1: analyse.python: '.': give the whole path"),
        ("state: ~/var\n", "1: state: '~/var': write the whole path"),
        ("state: [a]\n", "1: state: must be one path, not a list"),
        ("analyse: {python: python3}\n", "1: analyse.python: 'python3': give the whole path, such as /usr/bin/python3"),
        ("engines: ct-lesion\n", "1: engines: must be a list: write engines: [ct-lesion]"),
        ("engines:\n  -id: a\n", "1: engines: must be a list: put a space after each '-'"),
        ("engines:\n  - {id: ../etc}\n", "2: engines[0].id: '../etc' is no engine id"),
        ("engines:\n  - {id: a, mode: live}\n", "2: engines[0].mode: 'live' is not one of shadow, publish, off"),
        (
            "engines:\n  - {id: a, mode: Shadow}\n",
            "2: engines[0].mode: 'Shadow' is not one of shadow, publish, off; did",
        ),
        ("engines:\n  -\n", "2: engines[0]: an entry without keys: write 'id: ...', or remove the '-'"),
        ("series:\n  silence_s: {CT: soon}\n", "2: series.silence_s.CT: 'soon' is no number"),
        ("series:\n  silence_s: 20\n", "2: series.silence_s: must be a group of keys such as 'default: ...', not '20'"),
    ],
)
def test_values(tmp_path: Path, text: str, expected: str) -> None:
    assert only_error(tmp_path, text).startswith(expected)


@pytest.mark.parametrize(
    ("title", "reason"),
    [
        ("SEVENTEEN_LETTERS", "has 17 characters: an AE title has at most 16"),
        ("'   '", "needs at least one character that is not a space"),
        ("''", "needs at least one character that is not a space"),
        ("CT\\01", "has a backslash"),
        ("CT\u00c4", "no accents"),
        ('"CT\\t"', "a character that cannot be printed"),
        ('"*"', "'*' is no wildcard here: name each device that may send"),
    ],
)
def test_ae_titles(tmp_path: Path, title: str, reason: str) -> None:
    message = only_error(tmp_path, peer(title))
    assert message.startswith("3: receive.peers[0].ae_title: ")
    assert reason in message


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.0.2.300", "is no IP address (192.0.2.10) or network (192.0.2.0/24)"),
        ("ct01.example.org", "a host name will not do"),
        ("192.0.2.10/24", "write 192.0.2.0/24 for the whole network, or 192.0.2.10 for the one device"),
        ("192.0.2.*", "is no IP address (192.0.2.10) or network (192.0.2.0/24)"),
        ("[192.0.2.10]", "a list is no IP address"),
        ("''", "is no IP address"),
    ],
)
def test_addresses(tmp_path: Path, address: str, reason: str) -> None:
    message = only_error(tmp_path, peer("CT01", address))
    assert message.startswith("4: receive.peers[0].address: ")
    assert reason in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kind": "dicom"}, "3: destinations[0].kind: 'dicom' is not one of dimse, stow, folder"),
        ({"kind": "-"}, "2: destinations[0].kind: missing; needed is: dimse, stow or folder"),
        ({"host": "-"}, "2: destinations[0].host: missing; needed is: host name or IP address (kind dimse)"),
        ({"port": "-"}, "2: destinations[0].port: missing; needed is: TCP port"),
        ({"called_ae": "-"}, "2: destinations[0].called_ae: missing; needed is: AE title of the destination"),
        ({"path": "/srv/x"}, "8: destinations[0].path: not used by this kind of destination (folder to write into"),
        ({"port": "0"}, "5: destinations[0].port: '0' is too small: at least 1"),
        ({"host": "192.0.2.20:104"}, "4: destinations[0].host: '192.0.2.20:104': write the number after ':' under the"),
        ({"host": "https://pacs"}, "4: destinations[0].host: 'https://pacs': only the host name"),
        ({"host": "192.0.2.256"}, "4: destinations[0].host: '192.0.2.256' is no IP address"),
        ({"host": "the pacs"}, "4: destinations[0].host: 'the pacs' is no host name"),
        ({"name": "main pacs"}, "2: destinations[0].name: 'main pacs' is no name"),
        ({"takes": "images"}, "7: destinations[0].takes: must be a list: write takes: [image]"),
        ({"takes": "image, SR"}, "7: destinations[0].takes: must be a list: write takes: [image, sr]"),
        (
            {"takes": "[images]"},
            "7: destinations[0].takes[0]: 'images' is not one of image, sr, sc; did you mean 'image'",
        ),
        ({"takes": "{image: true}"}, "7: destinations[0].takes: must be a list: begin each entry with '- '"),
        ({"takes": "\n      -image"}, "7: destinations[0].takes: must be a list: put a space after each '-'"),
        ({"takes": "[]"}, "7: destinations[0].takes: the list is empty: name at least one of image, sr, sc"),
        ({"takes": "-"}, "2: destinations[0].takes: missing; needed is: list of what it gets"),
        ({"proof": "commit"}, "8: destinations[0].proof: 'commit' is not one of store, commitment, find; did you mean"),
        ({"when": "{priority: [stat]}"}, "8: destinations[0].when.priority[0]: 'stat' is not one of routine, urgent"),
        ({"when": "{sop_class: [CT]}"}, "8: destinations[0].when.sop_class[0]: 'CT' is no UID"),
        ({"keep_h": "1d"}, "8: destinations[0].keep_h: '1d' is no number: leave the unit out, write 1"),
    ],
)
def test_destinations(tmp_path: Path, options: dict[str, str], expected: str) -> None:
    assert only_error(tmp_path, destination(**options)).startswith(expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "2: destinations[0].path: missing; needed is: folder to write into (kind folder)"),
        (
            {"path": "out", "proof": "commitment"},
            "6: destinations[0].proof: only kind dimse can be asked to answer for",
        ),
        ({"path": "out", "proof": "find"}, "6: destinations[0].proof: only kind dimse can be asked to answer for"),
        ({"path": "out", "port": "104"}, "4: destinations[0].port: not used by this kind of destination (TCP port"),
        ({"path": "var"}, "where we keep our own files"),
        ({"path": "var/spool/out"}, "where we keep our own files"),
    ],
)
def test_folders(tmp_path: Path, options: dict[str, str], expected: str) -> None:
    dimse = {"host": "-", "port": "-", "called_ae": "-"}
    assert expected in only_error(tmp_path, destination(**{**dimse, "kind": "folder", **options}))


STOW = {"kind": "stow", "host": "-", "port": "-", "called_ae": "-", "url": "https://pacs.example/dicom-web"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"url": "-"}, "destinations[0].url: missing; needed is: https address"),
        ({"url": "pacs.example/dicom-web"}, "url: 'pacs.example/dicom-web': write https://HOST[:PORT]/PATH"),
        ({"url": "ftp://pacs.example"}, "write https://HOST[:PORT]/PATH"),
        ({"url": "https://me:pw@pacs.example"}, "with no user or password in it"),
        ({"url": "https://pacs.example:x/"}, "write https://HOST[:PORT]/PATH"),
        ({"url": "'https://pacs.example/rs?a=b'"}, "with nothing after the path"),
        ({"url": "'https://pacs.example/rs one'"}, "with nothing after the path"),
        ({"url": "https://pacs..example/rs"}, "is no host name"),
        ({"url": "https://pacs.example/rs/studies/"}, "leave /studies out, it is added"),
        ({"proof": "commitment"}, "only kind dimse can be asked to answer for what it keeps"),
        ({"port": "104"}, "port: not used by this kind of destination (TCP port"),
        ({"max_pdu": "16384"}, "max_pdu: not used by this kind of destination"),
        ({"path": "out"}, "path: not used by this kind of destination"),
        ({"url": "http://pacs.example/", "tls": "{ca: ca.pem}"}, "tls: is for https: the address under 'url'"),
        ({"url": "http://pacs.example/", "token": "t"}, "token: anybody on the way could read it: use https in 'url'"),
        ({"token": "'credential:a b'"}, "token: 'credential:a b': the name of a credential"),
        ({"tls": "{ca: ca.pem, key: box.key}"}, "tls.key: needs 'certificate' beside it"),
        ({"host": "192.0.2.1"}, "host: not used by this kind of destination"),
    ],
)
def test_web_servers(tmp_path: Path, options: dict[str, str], expected: str) -> None:
    assert expected in only_error(tmp_path, destination(**{**STOW, **options}))


def test_a_web_server_with_all_its_options(tmp_path: Path) -> None:
    options = {"token": "t", "timeout_s": "60", "associations": "2", "images": "'19:00-07:00'", "tls": "{ca: c.pem}"}
    found = load_text(tmp_path, destination(**{**STOW, **options, "url": "https://[2001:db8::1]:8443/rs/"}))
    (one,) = found.destinations
    assert isinstance(one, config.StowDestination)
    assert (one.url, one.proof, one.associations) == ("https://[2001:db8::1]:8443/rs", config.Proof.STORE, 2)
    assert one.token is not None
    assert one.token.file == tmp_path / "t"
    load_text(tmp_path, destination(**{**STOW, "url": "http://127.0.0.1:8042/dicom-web", "token": "t"}))


# --- across options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            destination() + f"  -{DIMSE.split('-')[1]}}}\n",
            "8: destinations[1].name: 'pacs' stands twice, first in line 2",
        ),
        ("engines:\n  - id: a\n  - id: a\n", "3: engines[1].id: 'a' stands twice, first in line 2"),
        (peer("CT01") + peer("CT01")[18:], "5: receive.peers[1].ae_title: 'CT01' at '192.0.2.10' stands twice, first"),
        (peer("CT01") + "      slots: 17\n", "5: receive.peers[0].slots: 17 are more than the 16 of 'associations_per"),
        (peer("CT01") + "  associations_per_peer: 65\n", "5: receive.associations_per_peer: 65 for one peer are more"),
        (
            peer("CT01") + "      slots: 9\n" + peer("DX01")[18:] + "      slots: 8\n  associations: 16\n",
            "9: receive.associations: the slots of all peers are 17 together, more than 16",
        ),
        (
            "engines: [{id: ct-lesion}]\npriorities:\n  - {engine: ct-leson, label: a}\n",
            "3: priorities[0].engine: no engine 'ct-leson' under 'engines'; did you mean 'ct-lesion'?",
        ),
        (destination(when="{engine: [x]}"), "8: destinations[0].when.engine[0]: no engine 'x' under 'engines'"),
        (
            peer("CT01") + destination(when="{calling_ae: [CT1]}"),
            "12: destinations[0].when.calling_ae[0]: no peer 'CT1' under 'receive.peers'; did you mean 'CT01'?",
        ),
        (destination(host="127.0.0.1", port="11112"), "4: destinations[0].host: this is our own listener (port 11112)"),
        (peer("CT01") + "      commitment: custody\n", "5: receive.peers[0].commitment: needs 'reports_to' beside it"),
        (
            peer("CT01") + "      reports_to: ct:104\n",
            "5: receive.peers[0].reports_to: nothing is reported without 'commitment' (custody or delivered)",
        ),
        (
            peer("CT01") + "      commitment: delivered\n      reports_to: ct:104\n",
            "5: receive.peers[0].commitment: 'destinations' is empty: nothing could ever count as delivered",
        ),
        (
            peer("CT01") + ASKS + peer("CT01", "192.0.2.11")[18:],
            "7: receive.peers[1].ae_title: 'CT01' stands twice, with other commitment, reports_to or reports_tls",
        ),
        (
            peer("CT01") + ASKS.replace("ct:104", "127.0.0.1:11112"),
            "6: receive.peers[0].reports_to: this is our own listener (port 11112): the device's own is needed",
        ),
        (peer("CT01") + ASKS.replace("custody", "custdy"), "5: receive.peers[0].commitment: 'custdy' is not one of"),
    ],
)
def test_across_options(tmp_path: Path, text: str, expected: str) -> None:
    assert only_error(tmp_path, text).startswith(expected)


def test_where_reports_go(tmp_path: Path) -> None:
    for written, read in [
        ("ct:104", ("ct", 104)),
        ("192.0.2.10:11112", ("192.0.2.10", 11112)),
        ("'[2001:db8::10]:104'", ("2001:db8::10", 104)),
    ]:
        loaded = load_text(tmp_path, reports(written))
        (asking,) = loaded.receive.peers
        assert asking.commitment is Commitment.CUSTODY
        assert asking.reports_to == values.HostPort(*read)
        assert Config.model_validate(loaded) == loaded


def test_nothing_makes_a_study_less_urgent(tmp_path: Path) -> None:
    text = "engines: [{id: a}]\npriorities: [{engine: a, label: b, priority: routine}]\n"
    assert "'routine' is not urgent, the only choice" in only_error(tmp_path, text)


def test_every_error_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    text = """\
nod: box
ae_title: FAR_TOO_LONG_A_TITLE
receive:
  port: 104104
  peers:
    - {ae_title: CT01, address: 192.0.2.10/24}
    - {ae_title: DX01}
  port: 11112
engines:
  - {id: ct-lesion, mode: on}
  - {id: ct-lesion}
destinations:
  - name: pacs
    kind: dimze
    host: pacs
    port: x
    called_ae: PACS
    takes: [image, pictures]
    when: {engine: [ct-leson]}
  - name: pacs
    kind: folder
    takes: [sr]
"""
    messages = errors_of(tmp_path, text)
    assert [":".join(message.split(":")[:2]) for message in messages] == [
        "1: nod",
        "2: ae_title",
        "4: receive.port",
        "6: receive.peers[0].address",
        "7: receive.peers[1].address",
        "8: receive.port",
        "10: engines[0].mode",
        "11: engines[1].id",
        "14: destinations[0].kind",
        "16: destinations[0].port",
        "18: destinations[0].takes[1]",
        "19: destinations[0].when.engine[0]",
        "20: destinations[1].name",
        "20: destinations[1].path",
    ]


def test_very_many_errors_are_counted(tmp_path: Path) -> None:
    messages = errors_of(tmp_path, "".join(f"key{number}: x\n" for number in range(150)))
    assert len(messages) == 101
    assert messages[-1].endswith("and 50 more")


# --- whatever is typed ----------------------------------------------------------------------------------------------

WORDS = [place[-1] for place in outline(Config) if place] + [word for k in outline(Config).values() for word in k.words]
SCALARS = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.binary(max_size=8),
)
JUNK: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=8)), inner, max_size=5),
    ),
    max_leaves=20,
)
LINE = re.compile(r"[^\n\r]+:[0-9]+: [^\n\r]+: [^\n\r]+")


def either_loads_or_tells(folder: Path, text: str | bytes) -> None:
    try:
        load_text(folder, text)
    except ConfigError as error:
        assert error.messages  # noqa: PT017 - no error at all is right as well
        assert [message for message in error.messages if not message.isprintable() or not LINE.fullmatch(message)] == []  # noqa: PT017


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_load_or_are_told(tmp_path: Path, junk: str | bytes) -> None:
    either_loads_or_tells(tmp_path, junk)


@given(JUNK)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_structure_loads_or_is_told(tmp_path: Path, junk: Any) -> None:
    either_loads_or_tells(tmp_path, yaml.dump(junk, allow_unicode=True))


@given(st.integers(min_value=0), st.integers(0, 12), st.text(alphabet=" \t\n:-[]{}&*!|>'\"%@`#,?x0", max_size=6))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_slip_of_the_keyboard_loads_or_is_told(tmp_path: Path, at: int, gone: int, typed: str) -> None:
    text = TRUST.read_text()
    at %= len(text)
    either_loads_or_tells(tmp_path, text[:at] + typed + text[at + gone :])
