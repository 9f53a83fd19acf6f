"""P3 on odd objects: whatever a scanner may send is kept and forwarded byte for byte, decodable or not.

Each object goes out as a careful sender would send it: proposed in exactly its own transfer syntax, under the UIDs of
its data set. The few that get anything but Success are named here with what they must get. Engines are on duty, so
that what nobody can decode is looked at, too.
"""

import hashlib
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from appliance.dimse.header import Part10, part10, read_header
from appliance.dimse.requestor import connect
from appliance.dimse.small_pacs import SmallPacs
from appliance.errors import ObjectRefused
from tests.acceptance.rig import SCANNER, Appliance, engines, folder_destination, node, settings, wheel_file
from tests.waiting import eventually

SUCCESS = 0x0000
DOES_NOT_MATCH = 0xA900
NO_CONTEXT = -1  # no presentation context was accepted for it
DRAIN_S = 60.0
SPOKEN_S = 60.0

#: Classes of their own that two makers' objects have, and that a site must list to have them stored.
PRIVATE_SOP_CLASSES = ("1.3.46.670589.5.0.1.1", "2.25.215425430857432966361489015284054781485")

#: What gets another answer than Success. Media Storage Directory is no network object (PS3.4 B.5).
EXCEPTIONS = {"1.2.840.10008.1.3.10": NO_CONTEXT}

#: Files of pydicom's that no sender can send: they name no SOP class or no SOP instance, or are no DICOM.
UNSENDABLE = frozenset({"empty_charset_LEI.dcm", "meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm", "no_meta.dcm"})
NO_DICOM = frozenset({".dump", ".gz", ".icc", ".json", ".md", ".py", ".txt", ""})

#: What the PACS of this test does not take, and how the delivery must end: held, told, and nothing else disturbed.
HELD_AT_PACS = {*PRIVATE_SOP_CLASSES, "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55"}

Identity = tuple[str, str, str, str]  # SOP class, SOP instance, transfer syntax, SHA-256 of the data set


@dataclass(frozen=True, slots=True)
class Site:
    """An appliance with its engines in shadow, a PACS and an archive folder that both get everything."""

    appliance: Appliance
    pacs: Path  #: where the PACS keeps its files
    archive: Path


@pytest.fixture(scope="module")
def site(module_work: Path) -> Iterator[Site]:
    folders = module_work / "pacs", module_work / "archive"
    with SmallPacs(folders[0]) as pacs:
        destinations = node("pacs", pacs.port), folder_destination("archive", folders[1])
        config = settings(*destinations, engines=engines("shadow"), series={"silence_s": {"default": 1, "CT": 1}})
        config["receive"]["private_sop_classes"] = PRIVATE_SOP_CLASSES
        with Appliance(module_work / "appliance", config) as appliance:
            yield Site(appliance, *folders)


def sendable(path: Path) -> Part10:
    """The file as a sender understands it: UIDs of the data set where it has them, else of the File Meta."""
    try:
        stored = part10(path)
    except ValueError:
        stored = _without_file_meta(path)
    header = read_header(path, stored.data_set_offset, stored.transfer_syntax_uid)
    return replace(
        stored,
        sop_class_uid=header.sop_class_uid or stored.sop_class_uid,
        sop_instance_uid=header.sop_instance_uid or stored.sop_instance_uid,
    )


def _without_file_meta(path: Path) -> Part10:
    implicit, little = pydicom.dcmread(path, force=True).original_encoding
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return Part10(
        path=path,
        data_set_offset=0,
        size=path.stat().st_size,
        sop_class_uid="",
        sop_instance_uid="",
        transfer_syntax_uid=syntax,
    )


def identity(item: Part10) -> Identity:
    """What goes out of this file, or went into it."""
    data = item.path.read_bytes()[item.data_set_offset :]
    if item.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        data += b"\0" * (len(data) % 2)  # on its way a stream of odd length is padded (PS3.5 A.5)
    return item.sop_class_uid, item.sop_instance_uid, item.transfer_syntax_uid, hashlib.sha256(data).hexdigest()


def send(appliance: Appliance, item: Part10) -> int:
    """The C-STORE status, or NO_CONTEXT. One association each: one object's fate must not be another's."""
    association = connect(appliance.target(), [(item.sop_class_uid, item.transfer_syntax_uid)])
    try:
        return association.store(item).status
    except ObjectRefused:
        return NO_CONTEXT
    finally:
        association.release()


def kept(folder: Path) -> set[Identity]:
    return {identity(part10(path)) for path in folder.iterdir()}


def check(site: Site, paths: Iterable[Path]) -> int:
    """Send all, compare everything; returns how many different objects were taken."""
    appliance = site.appliance
    items = [sendable(path) for path in paths]
    answers = {item.path: send(appliance, item) for item in items}
    assert answers == {item.path: EXCEPTIONS.get(item.sop_class_uid, SUCCESS) for item in items}
    sent = {identity(item) for item in items if answers[item.path] == SUCCESS}
    eventually(lambda: not appliance.owed(), DRAIN_S, "everything is delivered or held")
    assert sent <= kept(site.archive), "a data set changed on its way to the folder"
    held = {one for one in sent if HELD_AT_PACS & {one[0], one[2]}}
    assert sent - kept(site.pacs) == held, "a data set changed on its way to the PACS"
    reasons = appliance.pairs(
        "SELECT i.sop_instance_uid, d.reason FROM delivery d JOIN instance i ON i.id=d.instance"
        " WHERE d.state='held' AND d.destination='pacs'"
    )
    assert {one[1] for one in held} <= reasons.keys()
    assert all("not accepted" in reason or "not taken as stored" in reason for reason in reasons.values())
    return len(sent)


def assert_undisturbed(appliance: Appliance) -> None:
    """Every engine has spoken on every object it is responsible for (P6), and no process died of any."""
    eventually(
        lambda: not appliance.number("SELECT count(*) FROM job WHERE state NOT IN ('reported', 'superseded')"),
        SPOKEN_S,
        "every job is concluded and reported",
    )
    assert not appliance.number("SELECT count(*) FROM job WHERE state='reported' AND outcome IS NULL")
    assert not [line for line in appliance.log_lines() if line["event"] in ("ended", "worker_failed", "silent")]
    assert appliance.answers()


@pytest.mark.promise("P3")
@pytest.mark.timeout(180)
def test_all_of_pydicoms_own_files_pass_unchanged(site: Site, figure: Callable[[str], None]) -> None:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_dicom(path)]
    count = check(site, paths)
    figure(
        f"conformance: {len(paths)} of pydicom's files sent, {count} different ones forwarded unchanged, by two ways"
    )
    assert count > 140
    assert_undisturbed(site.appliance)


def _is_dicom(path: Path) -> bool:
    return path.name not in UNSENDABLE and (path.suffix not in NO_DICOM or _has_prefix(path))


def _has_prefix(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


@pytest.mark.promise("P3")
def test_the_real_conformance_set_passes_unchanged(site: Site, real_data: Path) -> None:
    paths = sorted((real_data / "conformance").glob("*.dcm"))
    assert check(site, paths) == len(paths) == 29
    assert_undisturbed(site.appliance)


@pytest.mark.promise("P3")
@pytest.mark.parametrize(("name", "why"), [("badVR.dcm", "another SOP instance"), ("rtplan.dcm", "another SOP class")])
def test_an_object_that_is_not_what_the_command_says_is_refused(site: Site, name: str, why: str) -> None:
    """A careless sender takes the UIDs of the File Meta: stored under those, it could never be delivered."""
    item = part10(wheel_file(name))
    assert send(site.appliance, item) == DOES_NOT_MATCH, why
    assert_undisturbed(site.appliance)


@pytest.mark.promise("P3")
def test_dcmtk_sends_the_compressed_ones_unchanged(
    site: Site, real_data: Path, storescu: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Through somebody else's sender. It writes header lengths anew on its way out, so the pixels are compared."""
    options = {"1.2.840.10008.1.2.4.70": "-xs", "1.2.840.10008.1.2.4.80": "-xt", "1.2.840.10008.1.2.4.90": "-xv"}
    for path in sorted((real_data / "conformance").glob("cs_CTImage*.dcm")):
        item = part10(path)
        if option := options.get(item.transfer_syntax_uid):
            sent = storescu("-R", option, "-aet", SCANNER, "-aec", "SCANSIDE", "127.0.0.1", site.appliance.port, path)
            assert sent.returncode == 0, sent.stderr
            eventually(lambda: not site.appliance.owed(), DRAIN_S, "it is delivered")
            original = pydicom.dcmread(path)
            heads = [part10(copy) for copy in site.archive.iterdir()]
            same = [head.path for head in heads if identity(head)[:3] == identity(item)[:3]]
            assert original.PixelData in [pydicom.dcmread(copy).PixelData for copy in same]
