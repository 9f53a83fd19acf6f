"""What the scanner's stand-in finds to send, and what it must not do with an archive."""

import io
import tarfile
from pathlib import Path

import pytest

from appliance import scanner
from appliance.file_head import file_head
from appliance.scanner import MEDIA_STORAGE_DIRECTORY, NothingToSend
from tests.scanner import part10


def names(path: Path, workdir: Path) -> list[str]:
    return [item.name for item in scanner.find(path, workdir).items]


def test_a_folder_is_searched_to_the_bottom_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    part10(tmp_path / "b", 2)
    part10(tmp_path, 1)
    assert names(tmp_path, tmp_path) == ["00001.dcm", "b/00002.dcm"]


def test_what_is_no_dicom_is_named_and_left_out(tmp_path: Path) -> None:
    part10(tmp_path, 1)
    (tmp_path / "notes.txt").write_text("not DICOM")
    index = file_head(MEDIA_STORAGE_DIRECTORY, "1.2.3", "1.2.840.10008.1.2.1", "CT01")
    (tmp_path / "DICOMDIR").write_bytes(index + b"\x08\0\x18\0UI\x06\x001.2.3\0")
    found = scanner.find(tmp_path, tmp_path)
    assert [item.name for item in found.items] == ["00001.dcm"]
    assert {one.name for one in found.skipped} == {"notes.txt", "DICOMDIR"}


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    part10(tmp_path / "in", 1)
    (tmp_path / "in" / "link.dcm").symlink_to(part10(tmp_path, 2))
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    assert names(tmp_path / "in", tmp_path) == ["00001.dcm"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_an_archive_is_sent_whatever_its_compression(tmp_path: Path, mode: str) -> None:
    archive, workdir = tmp_path / "study", tmp_path / "work"
    workdir.mkdir()
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        tar.add(part10(tmp_path, 1), "study/1.dcm")
    (item,) = scanner.find(archive, workdir).items
    assert item.name == "study/1.dcm"
    assert item.stored.path.read_bytes() == (tmp_path / "00001.dcm").read_bytes()


@pytest.mark.promise("P9")
def test_an_archive_writes_nothing_outside_the_work_folder(tmp_path: Path) -> None:
    archive, workdir = tmp_path / "evil.tar", tmp_path / "deep" / "work"
    workdir.mkdir(parents=True)
    content = part10(tmp_path, 1).read_bytes()
    with tarfile.open(archive, "w") as tar:
        for name in ("../escaped.dcm", str(tmp_path / "absolute.dcm"), "ok.dcm"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.dcm")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = set(tmp_path.rglob("*"))
    assert len(scanner.find(archive, workdir).items) == 3
    new = set(tmp_path.rglob("*")) - before
    assert {path.parent for path in new} == {workdir}
    assert not any(path.is_symlink() for path in new)


@pytest.mark.promise("P9")
def test_an_archive_larger_than_the_disk_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.tar"
    member = tarfile.TarInfo("huge.dcm")
    member.size = 1 << 50
    archive.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(NothingToSend, match="larger than the room"):
        scanner.find(archive, tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"plain text", "not a DICOM"), (b"", "not a DICOM")],
)
def test_nothing_to_send_is_told_with_the_path(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "thing"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NothingToSend, match=f"thing.*{reason}"):
        scanner.find(path, tmp_path)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(NothingToSend, match="it is empty"):
        scanner.find(tmp_path, tmp_path)
