"""A study, or all that is owed, on a stick: what is written there is read back by others' programs."""

import errno
import json
import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.fileset import FileSet

from appliance.cli import export, main
from appliance.cli.opening import load_config
from appliance.cli.stick import UNDONE, Stick, stick
from appliance.cli.tables import Output
from appliance.dimse.header import part10
from appliance.errors import ScansideError
from appliance.file_head import file_head, make_seal
from appliance.journal import exports, inbox, outbox
from appliance.journal.exports import Wanted
from appliance.journal.store import Journal
from appliance.latch import Latch
from appliance.model import Owed, Urgency
from appliance.routing import UNROUTED
from appliance.states import DeliveryState, Event
from tests.journals import CT_IMAGE, STUDY, arrival, events, open_journal
from tests.scanner import _element, data_set
from tests.small_disks import ext4

SR = "1.2.840.10008.5.1.4.1.1.88.33"
CONFIG = """\
node: box
state: ./var
engines: []
engines_dir: ./engines
reserve: {free_mb: 1, free_inodes: 0, journal_mb: 1}
destinations:
  - {name: pacs, kind: folder, path: ./out, takes: [image]}
  - {name: review, kind: folder, path: ./seen, takes: [sr, sc], accept_reference: true}
"""
TO_PACS, TO_NOBODY = (
    Owed(destination="pacs", urgency=Urgency.IMAGE),
    Owed(destination="", urgency=Urgency.IMAGE, held=UNROUTED),
)
PRIVATE = b'{"of": "ours"}'


@dataclass(frozen=True, slots=True)
class Site:
    """A state folder as a stopped appliance leaves it, and its command line."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    @property
    def stick(self) -> Path:
        return self.folder / "stick"

    def journal(self) -> Journal:
        return open_journal(self.folder / "var" / "journal.sqlite")

    def hold(
        self, number: int, data: bytes, header: dict[str, Any] | None = None, owed: Owed = TO_PACS, **changes: Any
    ) -> Path:
        """An object in spool and journal, its file with seal and private information as receive writes it."""
        came = arrival(number, data, header, **{"file": f"received/000000/{number:09d}.dcm"} | changes)
        file = self.folder / "var" / "spool" / came.file
        file.parent.mkdir(parents=True, exist_ok=True)
        head = file_head(came.sop_class_uid, came.sop_instance_uid, came.transfer_syntax_uid, "CT01", PRIVATE)
        seal = make_seal(len(data), came.digest)
        file.write_bytes(seal + head[len(seal) :] + data)
        journal = self.journal()
        inbox.record(journal, [came], lambda _: [owed])
        journal.close()
        return file

    def images(self, *numbers: int) -> None:
        for number in numbers:
            self.hold(number, data_set(number))

    def export(self, *arguments: object, to: Path | None = None) -> tuple[int, str, str]:
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(
                [
                    "export",
                    "--config",
                    str(self.folder / "box.yaml"),
                    "--to",
                    str(to or self.stick),
                    *map(str, arguments),
                ]
            )
        said = self.capture.readouterr()
        assert "Traceback" not in said.err
        return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def site(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Site:
    (tmp_path / "box.yaml").write_text(CONFIG)
    (tmp_path / "var").mkdir()
    return Site(tmp_path, capfd)


def data_sets(folder: Path) -> list[bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "DICOMDIR"]
    return sorted(path.read_bytes()[part10(path).data_set_offset :] for path in files)


def listed(folder: Path) -> set[str]:
    """SOP Instance UIDs as pydicom finds them by the directory, each in a file that is there."""
    found = FileSet(folder / "DICOMDIR")
    try:
        for one in found:
            assert dcmread(one.path, stop_before_pixels=True).SOPInstanceUID == one.SOPInstanceUID
        return {str(one.SOPInstanceUID) for one in found}
    finally:
        found._stage["t"].cleanup()


def elements(*more: tuple[int, bytes, bytes], series: str = "1.2.3.4", uid: str = "1.2.3.4.1") -> bytes:
    """An explicit little endian data set of these values and the usual identifiers, in order."""
    usual = [
        (0x00080016, b"UI", CT_IMAGE.encode()),
        (0x00080018, b"UI", uid.encode()),
        (0x0020000D, b"UI", STUDY.encode()),
        (0x0020000E, b"UI", series.encode()),
    ]
    together = {tag: (vr, value) for tag, vr, value in (*usual, *more)}
    return b"".join(_element(tag >> 16, tag & 0xFFFF, *together[tag]) for tag in sorted(together))


def test_all_that_is_owed_goes_byte_for_byte_and_stays_owed(site: Site) -> None:
    site.images(1, 2, 3)
    code, out, err = site.export("--owed", "--by", "R. Okafor", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["objects"], told["studies"], told["failed"], told["noted"]) == (3, [STUDY], [], True)
    assert data_sets(site.stick) == sorted(data_set(number) for number in (1, 2, 3))
    assert listed(site.stick) == {f"1.2.3.4.{number}" for number in (1, 2, 3)}
    names = {str(path.relative_to(site.stick)) for path in site.stick.rglob("*") if path.is_file()}
    assert names == {"DICOMDIR", *(f"DICOM/ST000001/SE000001/IM00000{n}" for n in (1, 2, 3))}
    assert PRIVATE not in b"".join(path.read_bytes() for path in site.stick.rglob("IM*"))
    assert all(path.read_bytes().startswith(bytes(128) + b"DICM") for path in site.stick.rglob("IM*"))
    journal = site.journal()
    assert len(outbox.list_deliveries(journal, DeliveryState.QUEUED, 10)) == 3
    row = journal.one("SELECT study_instance_uid, detail FROM history WHERE event='exported'")
    assert row is not None
    detail = {"by": "R. Okafor", "to": str(site.stick), "objects": 3, "bytes": told["bytes"]}
    assert (row["study_instance_uid"], json.loads(row["detail"])) == (STUDY, detail)
    journal.close()


def test_the_directory_is_what_dcmtk_and_pydicom_read(site: Site) -> None:
    values = (
        (0x00080005, b"CS", b"ISO_IR 192"),
        (0x00080020, b"DA", b"20240229"),
        (0x00080030, b"TM", b"101112.5"),
        (0x00080050, b"SH", b"A1"),
        (0x00080060, b"CS", b"CT"),
        (0x00081030, b"LO", "Sch\u00e4del".encode()),
        (0x00100010, b"PN", "M\u00fcller^Jane".encode()),
        (0x00100020, b"LO", b"PID1"),
        (0x00200010, b"SH", b"S1"),
        (0x00200011, b"IS", b"7"),
    )
    for number in (1, 2):
        data = elements(*values, (0x00200013, b"IS", b"%d" % number), uid=f"1.2.3.4.{number}")
        site.hold(number, data)
    other = {"series_instance_uid": "1.2.3.5", "sop_instance_uid": "1.2.3.5.1"}
    site.hold(3, elements(*values, series="1.2.3.5", uid="1.2.3.5.1"), other, sop_instance_uid="1.2.3.5.1")
    code, out, _ = site.export("--study", STUDY, "--json")
    assert code == 0
    assert json.loads(out)["made_up"] == 1  # one has no Instance Number
    found = dcmread(site.stick / "DICOMDIR")
    kinds = [one.DirectoryRecordType for one in found.DirectoryRecordSequence]
    assert kinds == ["PATIENT", "STUDY", "SERIES", "IMAGE", "IMAGE", "SERIES", "IMAGE"]
    patient, study = found.DirectoryRecordSequence[:2]
    assert (str(patient.PatientName), patient.PatientID) == ("M\u00fcller^Jane", "PID1")
    assert (study.StudyDate, study.StudyTime, study.StudyDescription) == ("20240229", "101112.5", "Sch\u00e4del")
    assert (study.StudyID, study.AccessionNumber, study.StudyInstanceUID) == ("S1", "A1", STUDY)
    assert listed(site.stick) == {"1.2.3.4.1", "1.2.3.4.2", "1.2.3.5.1"}
    dump = subprocess.run(
        ["/usr/bin/dcmdump", "-q", site.stick / "DICOMDIR"], check=True, capture_output=True, timeout=20
    )
    assert dump.stdout.count(b"DirectoryRecordType") == 7


def sr(code: bytes = b"126000") -> bytes:
    item = _element(0x0008, 0x0100, b"SH", code) + _element(0x0008, 0x0102, b"SH", b"DCM")
    item += _element(0x0008, 0x0104, b"LO", b"Imaging Measurement Report")
    sequence = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + item + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    sequence += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    head = elements((0x00080016, b"UI", SR.encode()), (0x00200013, b"IS", b"1"), uid="1.2.3.9")
    concept = struct.pack("<HH2sHI", 0x0040, 0xA043, b"SQ", 0, 0xFFFFFFFF) + sequence
    return head + concept + _element(0x0040, 0xA491, b"CS", b"COMPLETE") + _element(0x0040, 0xA493, b"CS", b"VERIFIED")


def test_a_report_has_a_record_of_its_own_kind(site: Site) -> None:
    site.hold(9, sr(), {"sop_instance_uid": "1.2.3.9"}, sop_class_uid=SR, sop_instance_uid="1.2.3.9")
    assert site.export("--owed")[0] == 0
    record = dcmread(site.stick / "DICOMDIR").DirectoryRecordSequence[-1]
    assert (record.DirectoryRecordType, record.CompletionFlag, record.VerificationFlag) == (
        "SR DOCUMENT",
        "COMPLETE",
        "VERIFIED",
    )
    assert record.ConceptNameCodeSequence[0].CodeValue == "126000"
    assert listed(site.stick) == {"1.2.3.9"}


def test_hostile_values_stay_out_of_the_directory_and_their_objects_go_all_the_same(site: Site) -> None:
    data = elements(
        (0x00080020, b"DA", b"yesterday"),
        (0x00100010, b"PN", b"A" * 4000),
        (0x00100020, b"LO", b"\x1b\x00\x07"),
        (0x00200011, b"IS", b"9" * 40),
    )
    site.hold(1, data)
    site.hold(2, b"\xff" * 1000)
    code, out, _ = site.export("--owed", "--json")
    assert code == 0
    assert json.loads(out)["made_up"] == 2
    assert data_sets(site.stick) == sorted([data, b"\xff" * 1000])
    records = dcmread(site.stick / "DICOMDIR").DirectoryRecordSequence
    assert {one.PatientID for one in records if one.DirectoryRecordType == "PATIENT"} == {"UNKNOWN"}
    assert {one.StudyDate for one in records if one.DirectoryRecordType == "STUDY"} == {"19000101"}


def test_what_the_directory_cannot_name_lies_beside_it_and_is_told(site: Site) -> None:
    site.images(1)
    site.hold(2, b"newer bytes!", file="received/000000/000000002.dcm", sop_instance_uid="1.2.3.4.1")
    site.hold(3, b"no study here", {"study_instance_uid": "", "series_instance_uid": ""}, owed=TO_NOBODY)
    code, out, _ = site.export("--owed")
    assert code == 0
    assert "2 objects in EXTRA" in out
    assert len(list((site.stick / "EXTRA").iterdir())) == 2
    assert len(data_sets(site.stick)) == 3
    journal = site.journal()
    assert events(journal).count("exported") == 2
    journal.close()


def test_only_what_is_for_one_destination(site: Site) -> None:
    site.images(1)
    site.hold(2, data_set(2), owed=TO_NOBODY)
    assert json.loads(site.export("--owed", "--destination", "pacs", "--json")[1])["objects"] == 1
    code, _, err = site.export("--owed", "--destination", "pax", to=site.folder / "b")
    assert (code, "no destination pax; there is pacs, review" in " ".join(err.split())) == (2, True)


def test_what_was_delivered_is_not_owed_and_still_of_its_study(site: Site) -> None:
    site.images(1, 2)
    journal = site.journal()
    first = outbox.next_queued(journal, "pacs", 1)[0]
    outbox.settle(journal, [outbox.Settlement(delivery=first, event=Event.DELIVER, started_tick=0, attempts=1)])
    journal.close()
    assert json.loads(site.export("--owed", "--json")[1])["objects"] == 1
    assert json.loads(site.export("--study", STUDY, "--json", to=site.folder / "b")[1])["objects"] == 2


def test_a_damaged_or_missing_copy_is_named_and_the_others_go(site: Site) -> None:
    site.images(1)
    rotten = site.hold(2, data_set(2))
    rotten.write_bytes(rotten.read_bytes()[:-1] + b"!")
    site.hold(3, data_set(3)).unlink()
    site.hold(4, data_set(4)).write_bytes(b"torn")
    code, out, err = site.export("--owed")
    assert code == 1
    assert "1 object of 1 study" in out
    assert "NOT written: 1.2.3.4.2: the stored file has changed since it was received" in err
    assert "NOT written: 1.2.3.4.3: its local copy is gone" in err
    assert "NOT written: 1.2.3.4.4: " in err
    assert data_sets(site.stick) == [data_set(1)]
    assert listed(site.stick) == {"1.2.3.4.1"}


def test_a_folder_with_something_in_it_is_refused_and_left_alone(site: Site) -> None:
    site.images(1)
    site.stick.mkdir()
    (site.stick / "holiday.jpg").write_bytes(b"x")
    code, _, err = site.export("--owed")
    assert code == 1
    assert "is not empty ('holiday.jpg')" in err
    assert [path.name for path in site.stick.iterdir()] == ["holiday.jpg"]
    assert site.export("--owed", to=site.folder / "box.yaml")[0] == 1
    assert "own files" in site.export("--owed", to=site.folder / "var" / "x")[2]


def test_an_empty_stick_has_what_file_systems_put_there(site: Site) -> None:
    site.images(1)
    (site.stick / "lost+found").mkdir(parents=True)
    assert site.export("--owed")[0] == 0


def test_after_a_kill_the_folder_says_that_it_is_not_whole(site: Site) -> None:
    site.images(1, 2)
    site.stick.mkdir()
    Stick(site.stick).begin()  # and no more
    code, _, err = site.export("--owed")
    assert code == 1
    assert "was not finished" in err
    (site.stick / UNDONE).unlink()
    assert site.export("--owed")[0] == 0


def test_what_breaks_off_empties_the_folder_again(site: Site) -> None:
    with pytest.raises(ScansideError, match="No space left"), stick(site.stick, 0, 0):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not site.stick.exists()
    site.stick.mkdir()
    with pytest.raises(KeyboardInterrupt), stick(site.stick, 0, 0):
        raise KeyboardInterrupt
    assert list(site.stick.iterdir()) == []


def test_a_stick_that_is_too_small_is_refused_before_anything_is_written(site: Site) -> None:
    for number in (1, 2, 3):
        site.hold(number, data_set(number, bytes(3_000_000)))
    small = site.folder / "small"
    with ext4(small, 8):
        code, _, err = site.export("--owed", to=small)
        assert code == 1
        assert "MB are needed: nothing was written" in err
        assert {path.name for path in small.iterdir()} <= {"lost+found"}


def test_a_stick_that_fills_up_meanwhile_is_emptied(site: Site) -> None:
    for number in (1, 2):
        site.hold(number, data_set(number, bytes(2_000_000)))
    small = site.folder / "small"
    journal = site.journal()
    two = [(one, site.folder / "var" / "spool" / one.file) for one, _ in exports.instances(journal, [1, 2], Wanted())]
    journal.close()

    def write() -> None:
        with stick(small, 0, 0) as writer:
            writer.add(*two[0], listed=True)
            room = os.statvfs(small)
            (small / "DICOM" / "FILL").write_bytes(bytes(room.f_bavail * room.f_frsize - 1_000_000))
            writer.add(*two[1], listed=True)

    with ext4(small, 8):
        with pytest.raises(ScansideError, match="No space left"):
            write()
        assert {path.name for path in small.iterdir()} <= {"lost+found"}


def test_with_a_failed_disk_the_stick_is_written_and_the_history_is_not(site: Site) -> None:
    site.images(1)
    Latch(site.folder / "var" / "spool").set("test")
    code, out, err = site.export("--owed", "--json")
    assert (code, json.loads(out)["noted"]) == (0, False)
    assert "the history does not say so" in err
    assert listed(site.stick) == {"1.2.3.4.1"}


def test_nothing_to_export(site: Site) -> None:
    site.journal().close()
    assert site.export("--owed")[::2] == (1, "scanside: nothing is owed\n")
    assert "nothing of study 1.2.9 is here" in site.export("--study", "1.2.9")[2]
    assert site.export("--study", "x")[0] == 2
    assert site.export()[0] == 2
    assert site.export("--owed", "--study", "1.2")[0] == 2
    assert not site.stick.exists()


def test_what_is_delivered_and_let_go_meanwhile_is_no_failure(site: Site) -> None:
    site.images(1, 2)
    journal = site.journal()
    load = export._look(journal, Wanted())
    first = outbox.next_queued(journal, "pacs", 1)[0]
    outbox.settle(journal, [outbox.Settlement(delivery=first, event=Event.DELIVER, started_tick=0, attempts=1)])
    (site.folder / "var" / "spool" / first.file).unlink()
    source = export._Source(load_config(site.folder / "box.yaml"), journal, True)
    with stick(site.stick, 0, 0) as writer:
        export._write(source, load, writer, Output())
    assert (load.delivered, load.failed, sum(load.written.values())) == (1, {}, 1)
    journal.close()
