"""A package from outside: what is copied, and what is refused before it does harm."""

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZipFile, ZipInfo

import pytest

from appliance import engine_package
from appliance.engine_store.unpack import unpack
from appliance.errors import OutOfResources, PackageInvalid
from tests.packages import write_package


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def roomy(_: int) -> None:
    """A disk without end."""


def zipped(tmp_path: Path, *entries: tuple[ZipInfo | str, bytes]) -> Path:
    path = tmp_path / "package.zip"
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def packed(folder: Path, archive: Path, top: str = "") -> Path:
    with ZipFile(archive, "w", ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, f"{top}{path.relative_to(folder)}")
    return archive


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("top", ["", "films-1.0.0/"])
def test_a_folder_and_a_zip_of_it_give_the_same(tmp_path: Path, target: Path, top: str) -> None:
    package = write_package(tmp_path / "package")
    heard: list[int] = []
    unpack(packed(package, tmp_path / "a.zip", top), target, heard.append)
    assert content_of(target) == content_of(package)
    assert heard == [sum(len(content) for content in content_of(package).values())]
    (tmp_path / "other").mkdir()
    unpack(package, tmp_path / "other", roomy)
    assert content_of(tmp_path / "other") == content_of(package)
    assert engine_package.load(target).key == "films@1.0.0"


def test_what_is_copied_cannot_be_run_and_hidden_files_stay_behind(tmp_path: Path, target: Path) -> None:
    package = write_package(tmp_path / "package")
    (package / ".git").mkdir()
    (package / ".git" / "config").write_bytes(b"")
    (package / "model.onnx").chmod(0o777)
    unpack(package, target, roomy)
    assert not (target / ".git").exists()
    assert stat.S_IMODE((target / "model.onnx").stat().st_mode) & 0o111 == 0


def of_kind(name: str, kind: int) -> ZipInfo:
    info = ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o644) << 16
    return info


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("../evil", "leads out"),
        ("golden/../../evil", "leads out"),
        ("/etc/evil", "leads out"),
        ("golden\\..\\evil", "leads out"),
        ("C:evil", "no name"),
        ("a b", "no name"),
        ("x" * 300, "no name"),
        (of_kind("link", stat.S_IFLNK), "links and special files"),
        (of_kind("pipe", stat.S_IFIFO), "links and special files"),
        (of_kind("device", stat.S_IFCHR), "links and special files"),
    ],
)
def test_an_entry_that_leads_elsewhere_is_refused(
    tmp_path: Path, target: Path, entry: ZipInfo | str, words: str
) -> None:
    archive = zipped(tmp_path, ("engine.yaml", b""), (entry, b"/etc/passwd"))
    with pytest.raises(PackageInvalid, match=words):
        unpack(archive, target, roomy)
    assert not (tmp_path / "evil").exists()
    assert content_of(target) == {}


def test_two_files_of_one_name_are_refused(tmp_path: Path, target: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        archive = zipped(tmp_path, ("engine.yaml", b"a"), ("engine.yaml", b"b"))
    with pytest.raises(PackageInvalid, match="two files of one name"):
        unpack(archive, target, roomy)
    with pytest.raises(PackageInvalid, match="two files of one name"):
        unpack(zipped(tmp_path, ("engine.yaml", b"a"), ("Engine.yaml", b"b")), target, roomy)


def test_too_many_entries_are_not_even_listed(tmp_path: Path, target: Path) -> None:
    archive = zipped(tmp_path, *((f"f{number}", b"") for number in range(600)))
    with pytest.raises(PackageInvalid, match="more than 256 files"):
        unpack(archive, target, roomy)


def claiming(tmp_path: Path, size: int) -> Path:
    """8 MB of zeros in a small zip, whose list says another size (APPNOTE 4.3.12)."""
    archive = zipped(tmp_path, ("engine.yaml", bytes(8 << 20)))
    raw = bytearray(archive.read_bytes())
    at = raw.index(b"PK\x01\x02") + 24
    raw[at : at + 4] = struct.pack("<I", size)
    archive.write_bytes(raw)
    assert len(raw) < 20_000
    return archive


def test_a_bomb_that_says_what_it_is_finds_no_room(tmp_path: Path, target: Path) -> None:
    with pytest.raises(OutOfResources):
        unpack(claiming(tmp_path, 2**32 - 2), target, room_for(1 << 30))
    assert content_of(target) == {}


def test_a_bomb_that_lies_writes_no_more_than_it_says(tmp_path: Path, target: Path) -> None:
    with pytest.raises(PackageInvalid):
        unpack(claiming(tmp_path, 10), target, roomy)
    assert sum(len(content) for content in content_of(target).values()) <= 10


def room_for(most: int) -> Callable[[int], None]:
    def check(size: int) -> None:
        if size > most:
            raise OutOfResources("no room")

    return check


def test_more_than_a_package_may_have_is_refused(tmp_path: Path, target: Path) -> None:
    package = write_package(tmp_path / "package")
    with (package / "model.onnx").open("ab") as file:
        file.truncate(engine_package.MAX_PACKAGE_BYTES + 1)  # sparse
    with pytest.raises(PackageInvalid, match="bytes together"):
        unpack(package, target, roomy)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06", b"PK\x03\x04" + bytes(100), os.urandom(4096)])
def test_what_is_no_zip_is_refused_in_words(tmp_path: Path, target: Path, content: bytes) -> None:
    (tmp_path / "package.zip").write_bytes(content)
    with pytest.raises(PackageInvalid):
        unpack(tmp_path / "package.zip", target, roomy)


@pytest.mark.parametrize("at", [10, 40, 60, 200, -10, -30, -60, -100])
def test_a_damaged_zip_is_refused_in_words_or_gives_what_was_packed(tmp_path: Path, target: Path, at: int) -> None:
    package = write_package(tmp_path / "package")
    archive = packed(package, tmp_path / "a.zip")
    raw = bytearray(archive.read_bytes())
    raw[at : at + 8] = b"\xff" * 8
    archive.write_bytes(raw)
    try:
        unpack(archive, target, roomy)
    except PackageInvalid:
        return
    assert content_of(target) == content_of(package)


def test_zip64_encrypted_and_unusual_zips_are_refused(tmp_path: Path, target: Path) -> None:
    path = tmp_path / "a.zip"
    with ZipFile(path, "w", ZIP_BZIP2) as archive:
        archive.writestr("engine.yaml", b"x" * 100)
    with pytest.raises(PackageInvalid, match="only deflate"):
        unpack(path, target, roomy)
    raw = bytearray(zipped(tmp_path, ("engine.yaml", b"x")).read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(PackageInvalid, match="encrypted"):
        unpack(path, target, roomy)
    end = raw.index(b"PK\x05\x06")
    path.write_bytes(raw[:end] + b"PK\x06\x07" + bytes(16) + raw[end:])
    with pytest.raises(PackageInvalid, match="ZIP64"):
        unpack(path, target, roomy)


def test_links_and_pipes_in_a_folder_are_refused_without_waiting_for_them(tmp_path: Path, target: Path) -> None:
    package = write_package(tmp_path / "package")
    (package / "link").symlink_to("/etc/passwd")
    os.mkfifo(package / "pipe")
    with pytest.raises(PackageInvalid) as caught:
        unpack(package, target, roomy)
    assert sorted(str(caught.value).splitlines()) == ["link: links are refused", "pipe: not a plain file"]
    (tmp_path / "to").symlink_to(tmp_path / "package.zip")
    with pytest.raises(PackageInvalid, match="links are refused"):
        unpack(tmp_path / "to", target, roomy)
    with pytest.raises(PackageInvalid, match="No such file"):
        unpack(tmp_path / "nowhere", target, roomy)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, target: Path) -> None:
    package = write_package(tmp_path / "package")

    def grow(_: int) -> None:
        with (package / "CARD.md").open("ab") as file:
            file.write(b"more")

    with pytest.raises(PackageInvalid, match=r"CARD\.md: longer than it says"):
        unpack(package, target, grow)
