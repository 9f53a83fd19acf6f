"""The spool: the order in which bytes become durable, and what a disk that is full or failing does to it."""

import errno
import os
import re
import textwrap
from itertools import pairwise
from pathlib import Path

import pydicom
import pytest

from appliance.digest import digest_of
from appliance.errors import OutOfResources, StoreFailed
from appliance.file_head import Seal, file_head, make_seal, read_file_head, read_seal
from appliance.spool import FILES_PER_FOLDER, Incoming, Reserve, Spool
from tests.journals import CT_IMAGE, EXPLICIT, SERIES
from tests.scanner import data_set
from tests.tracing import on_small_disk, python, traced

NO_LIMITS = Reserve(free_bytes=0, free_inodes=0, journal_bytes=1 << 20)
HEAD = file_head(CT_IMAGE, f"{SERIES}.1", EXPLICIT, "CT01")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", "received", NO_LIMITS)


def store(spool: Spool, data: bytes = b"data") -> Incoming:
    incoming = spool.begin(HEAD)
    incoming.write([memoryview(data)])
    incoming.finish()
    return incoming


def script(folder: Path, text: str) -> Path:
    """A script with a spool under its first argument, its failure told in one word."""
    head = """
        import os, sys
        from pathlib import Path
        from appliance.errors import OutOfResources, StoreFailed
        from appliance.spool import Reserve, Spool
        spool = Spool(Path(sys.argv[1]), "received", Reserve(free_bytes=0, free_inodes=0, journal_bytes=0))
        def say(words):
            os.write(1, words.encode() + b"\\n")
        def attempt(step, *arguments):
            try:
                step(*arguments)
            except (OutOfResources, StoreFailed) as error:
                say(type(error).__name__)
                return False
            return True
    """
    file = folder / "script.py"
    file.write_text(textwrap.dedent(head) + textwrap.dedent(text))
    return file


# What a file is


def test_a_file_is_what_was_received_under_a_head_of_ours(spool: Spool) -> None:
    content = data_set(1)
    incoming = spool.begin(HEAD)
    for at in range(0, len(content), 100):
        incoming.write([memoryview(content)[at : at + 60], memoryview(b""), memoryview(content)[at + 60 : at + 100]])
    assert read_seal(spool.path(incoming.name)) is None
    incoming.seal(make_seal(incoming.size, incoming.digest))
    incoming.finish()

    assert incoming.size == len(content)
    stored = spool.path(incoming.name).read_bytes()
    assert stored[incoming.data_set_offset :] == content
    assert read_seal(spool.path(incoming.name)) == Seal(size=len(content), digest=digest_of(content))
    assert stored[48:128] == bytes(80)
    dataset = pydicom.dcmread(spool.path(incoming.name))
    assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID == f"{SERIES}.1"
    assert dataset.file_meta.SourceApplicationEntityTitle == "CT01"
    assert read_file_head(spool.path(incoming.name)).calling_ae == "CT01"


@pytest.mark.promise("P9")
def test_names_are_counters_and_hold_nothing_of_a_peer(spool: Spool) -> None:
    head = file_head("1.2.3", "../../etc/cron.d/x".replace("/", "."), EXPLICIT, "../../x")
    names = [spool.begin(head).name for _ in range(3)]
    assert all(re.fullmatch(r"received/[0-9]{6}/[0-9]{9}\.dcm", name) for name in names)
    assert names == sorted(set(names))


@pytest.mark.promise("P1")
def test_a_name_is_never_used_twice_even_if_all_files_are_gone(tmp_path: Path, spool: Spool) -> None:
    used = {store(spool).name for _ in range(3)}
    for name in used:
        spool.remove(name)
    for _ in range(3):
        name = store(Spool(tmp_path / "spool", "received", NO_LIMITS)).name
        assert name not in used
        used.add(name)
        spool.remove(name)


def test_foreign_things_in_the_folders_disturb_nothing(tmp_path: Path, spool: Spool) -> None:
    name = store(spool).name
    (tmp_path / "spool/received/lost+found").mkdir()
    (tmp_path / "spool/received/notes.txt").touch()
    (spool.path(name).parent / "copy of scan.dcm").touch()
    (spool.path(name).parent / ".nfs0001").touch()
    again = Spool(tmp_path / "spool", "received", NO_LIMITS)
    assert store(again).name > name


def test_a_full_folder_is_followed_by_the_next(spool: Spool) -> None:
    spool._next = FILES_PER_FOLDER - 1
    first, second = store(spool).name, store(spool).name
    assert (first, second) == ("received/000000/000000999.dcm", "received/000001/000001000.dcm")
    assert spool.files() == [first, second]


def test_areas_are_apart_and_each_sees_its_own_files(tmp_path: Path, spool: Spool) -> None:
    results = Spool(tmp_path / "spool", "results", NO_LIMITS)
    name = store(results).name
    assert (spool.files(), results.files()) == ([], [name])
    assert spool.path(name) == results.path(name)
    assert spool.has(name)
    spool.remove(name)
    spool.remove(name)
    assert not spool.has(name)


def test_discard_leaves_nothing(spool: Spool) -> None:
    incoming = spool.begin(HEAD)
    incoming.write([memoryview(b"half")])
    incoming.discard()
    incoming.discard()
    assert spool.files() == []


# The order of things


@pytest.mark.promise("P1")
def test_directory_entry_then_bytes_are_synced_before_anybody_is_told(tmp_path: Path) -> None:
    file = script(
        tmp_path,
        """
        for number in range(2):
            incoming = spool.begin(b"head")
            incoming.write([memoryview(b"data")])
            incoming.finish()
            say("stored")
        """,
    )
    run = traced(tmp_path, python(file, tmp_path / "spool"), calls="openat,mkdir,writev,fdatasync,fsync,write")
    steps = [step for call in run.calls if (step := _step(call))]
    assert steps == [
        "mkdir spool",
        "sync folder",
        "mkdir received",
        "sync spool",
        "mkdir 000000",
        "sync received",  # a new folder is durable before a file in it is
        *(["create", "sync 000000", "write", "write", "sync file", "told"] * 2),
    ]
    # Nothing else is made, nothing renamed: the name is final, and on disk, before the first byte.
    created = [call for call in run.calls if "O_CREAT" in call and "/spool/" in call]
    assert all("O_WRONLY|O_CREAT|O_EXCL" in call for call in created)
    assert len(created) == 2


def _step(call: str) -> str:
    """A call on the spool in a word or two; "" for any other."""
    if call.startswith("mkdir") and "/spool" in call:
        return "mkdir " + call.split('"')[1].rsplit("/", 1)[-1]
    if call.startswith("openat") and "O_CREAT" in call and "/spool/" in call:
        return "create"
    if call.startswith("writev"):
        return "write"
    if call.startswith("write(1<"):
        return "told"
    if call.startswith(("fsync", "fdatasync")):
        path = call.partition("<")[2].partition(">")[0]
        name = "file" if path.endswith(".dcm") else path.rsplit("/", 1)[-1]
        return f"sync {name if name in ('file', 'spool', 'received', '000000') else 'folder'}"
    return ""


@pytest.mark.promise("P1")
@pytest.mark.parametrize(("call", "number"), [("fdatasync", 1), ("fsync", 4)], ids=["bytes", "directory entry"])
def test_a_failed_sync_is_no_shortage(tmp_path: Path, call: str, number: int) -> None:
    file = script(
        tmp_path,
        """
        def store():
            incoming = spool.begin(b"head")
            incoming.write([memoryview(b"data")])
            incoming.finish()
        if attempt(store):
            say("stored")
        """,
    )
    run = traced(tmp_path, python(file, tmp_path / "spool"), calls=call, inject=f"{call}:error=EIO:when={number}")
    assert run.output.split() == ["StoreFailed"]


@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    ("error", "told"), [("EIO", "StoreFailed"), ("ENOSPC", "OutOfResources"), ("EDQUOT", "OutOfResources")]
)
@pytest.mark.parametrize(("number", "at"), [(1, "begin"), (2, "write")])
def test_a_failed_write_leaves_no_file_and_no_descriptor(
    tmp_path: Path, error: str, told: str, number: int, at: str
) -> None:
    file = script(
        tmp_path,
        """
        def step():
            incoming = spool.begin(b"head")
            say("begun")
            try:
                incoming.write([memoryview(b"data")])
            finally:
                incoming.discard()
        attempt(step)
        say(f"{spool.files()} {len([fd for fd in os.listdir('/proc/self/fd') if int(fd) > 2]) - 1}")
        """,
    )
    run = traced(
        tmp_path, python(file, tmp_path / "spool"), calls="writev", inject=f"writev:error={error}:when={number}"
    )
    assert run.output.splitlines() == (["begun"] if at == "write" else []) + [told, "[] 0"]


@pytest.mark.promise("P1")
def test_a_new_folder_that_could_not_be_synced_is_no_shortage_and_is_synced_before_it_is_used(tmp_path: Path) -> None:
    file = script(
        tmp_path,
        """
        for number in range(2):
            if attempt(spool.begin, b"head"):
                say("begun")
        """,
    )
    run = traced(tmp_path, python(file, tmp_path / "spool"), calls="fsync", inject="fsync:error=ENOSPC:when=3")
    assert run.output.split() == ["StoreFailed", "begun"]
    made = ["sync folder", "sync spool", "sync received", "sync received"]
    assert [_step(call) for call in run.calls] == [*made, "sync 000000"]


@pytest.mark.promise("P1")
def test_files_made_ahead_share_the_sync_of_their_folder(tmp_path: Path) -> None:
    file = script(
        tmp_path,
        """
        spool = Spool(spool.root, "ahead", Reserve(free_bytes=0, free_inodes=0, journal_bytes=0), ahead=3)
        for number in range(4):
            incoming = spool.begin(b"head")
            incoming.finish()
        """,
    )
    run = traced(tmp_path, python(file, tmp_path / "spool"), calls="openat,writev,fdatasync,fsync")
    steps = [step for call in run.calls if (step := _step(call))]
    made = ["create"] * 3 + ["sync 000000"]
    assert steps[-14:] == [*made, *["write", "sync file"] * 3, *made, "write", "sync file"][-14:]


def test_files_made_ahead_and_not_needed_go_with_their_maker(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "received", NO_LIMITS, ahead=4)
    name = store(spool).name
    assert len(spool.files()) == 4
    spool.close()
    assert spool.files() == [name]


def test_what_could_be_made_ahead_is_used_when_the_next_cannot_be_made(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "received", NO_LIMITS, ahead=4)
    in_the_way = spool.path("received/000000/000000002.dcm")
    in_the_way.parent.mkdir()
    in_the_way.touch()
    numbers = [int(Path(store(spool).name).stem) for _ in range(4)]
    assert numbers == [0, 1, 3, 4]


@pytest.mark.promise("P5")
def test_a_full_disk_is_a_shortage_that_passes(tmp_path: Path) -> None:
    file = script(
        tmp_path,
        """
        def fill():
            incoming = spool.begin(b"head")
            try:
                while True:
                    incoming.write([memoryview(bytes(100_000))])
            except OutOfResources:
                incoming.discard()
                raise
        attempt(fill)
        incoming = spool.begin(b"head")
        incoming.write([memoryview(b"data")])
        incoming.finish()
        say(" ".join(spool.files()))
        """,
    )
    output = on_small_disk(tmp_path / "room", 1024, python(file, tmp_path / "room"))
    assert output.split() == ["OutOfResources", "received/000000/000000001.dcm"]


# Room


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Reserve(free_bytes=1 << 60, free_inodes=0, journal_bytes=0), "MB free"),
        (Reserve(free_bytes=0, free_inodes=1 << 60, journal_bytes=0), "inodes free"),
    ],
)
def test_below_the_reserve_nothing_is_taken(tmp_path: Path, limits: Reserve, words: str) -> None:
    spool = Spool(tmp_path / "spool", "received", limits)
    with pytest.raises(OutOfResources, match=words):
        spool.check_room()
    Spool(tmp_path / "spool", "received", NO_LIMITS).check_room()


@pytest.mark.promise("P1")
def test_when_the_disk_cannot_even_be_asked_the_store_has_failed(tmp_path: Path, spool: Spool) -> None:
    (tmp_path / "spool").rename(tmp_path / "gone")
    with pytest.raises(StoreFailed, match="how much room"):
        spool.check_room()


@pytest.mark.promise("P5")
def test_the_journals_reserve_is_kept_freed_and_kept_again(tmp_path: Path, spool: Spool) -> None:
    reserve = tmp_path / "spool" / "reserve"
    assert not spool.free_reserve()
    spool.keep_reserve()
    assert reserve.stat().st_size == NO_LIMITS.journal_bytes
    assert reserve.stat().st_blocks * 512 >= NO_LIMITS.journal_bytes  # not a hole
    assert spool.free_reserve()
    assert not reserve.exists()

    reserve.touch()  # killed between making the file and filling it
    spool.keep_reserve()
    assert reserve.stat().st_blocks * 512 >= NO_LIMITS.journal_bytes


@pytest.mark.promise("P5")
def test_the_reserve_is_not_taken_back_while_room_is_short(tmp_path: Path) -> None:
    short = Spool(tmp_path / "spool", "received", Reserve(free_bytes=1 << 60, free_inodes=0, journal_bytes=4096))
    short.keep_reserve()
    assert not (tmp_path / "spool" / "reserve").exists()


# The latch


@pytest.mark.promise("P1")
def test_a_latch_is_seen_by_every_process_until_the_disk_is_proved(tmp_path: Path, spool: Spool) -> None:
    other = Spool(tmp_path / "spool", "results", NO_LIMITS)
    assert other.latched() == ""
    spool.latch("cannot sync")
    assert other.latched() == "cannot sync"
    with pytest.raises(OutOfResources, match="waits for a restart: cannot sync"):
        other.check_room()
    spool.prove(spool.latched_at())
    assert other.latched() == ""
    other.check_room()
    assert sorted(path.name for path in (tmp_path / "spool").iterdir()) == ["received", "results"]


@pytest.mark.promise("P1")
@pytest.mark.parametrize("number", [1, 2], ids=["the probe", "its directory"])
def test_a_proof_that_fails_anywhere_leaves_the_latch(tmp_path: Path, spool: Spool, number: int) -> None:
    spool.latch("cannot sync")
    file = script(tmp_path, "attempt(spool.prove, spool.latched_at())")
    run = traced(tmp_path, python(file, tmp_path / "spool"), calls="fsync", inject=f"fsync:error=EIO:when={number}")
    assert run.output.split() == ["StoreFailed"]
    assert spool.latched() == "cannot sync"


@pytest.mark.promise("P1")
def test_a_proof_does_not_lift_a_latch_that_was_set_meanwhile(tmp_path: Path, spool: Spool) -> None:
    other = Spool(tmp_path / "spool", "results", NO_LIMITS)
    spool.latch("cannot sync")
    os.utime(spool.root / "latched", ns=(1, 1))
    begun = spool.latched_at()
    other.latch("cannot sync either")
    with pytest.raises(StoreFailed, match="meanwhile a write failed again: cannot sync either"):
        spool.prove(begun)
    assert spool.latched() == "cannot sync either"
    spool.prove(spool.latched_at())
    assert spool.latched() == ""


@pytest.mark.promise("P1")
def test_a_proof_makes_do_with_a_latch_that_a_person_has_removed(tmp_path: Path, spool: Spool) -> None:
    spool.latch("cannot sync")
    begun = spool.latched_at()
    (tmp_path / "spool" / "latched").unlink()
    spool.prove(begun)
    spool.prove(spool.latched_at())
    assert sorted(path.name for path in (tmp_path / "spool").iterdir()) == ["received"]


@pytest.mark.promise("P2")
def test_scratch_leaves_half_of_what_is_free_to_images(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    above = 1 << 30
    reserve = Reserve(free_bytes=free.f_bavail * free.f_frsize - above, free_inodes=0, journal_bytes=0)
    spool = Spool(tmp_path / "spool", "results", reserve)
    spool.check_scratch(above // 4)
    with pytest.raises(OutOfResources, match="768 MB are wanted"):
        spool.check_scratch(above * 3 // 4)
    full = Spool(tmp_path / "spool", "results", Reserve(free_bytes=0, free_inodes=1 << 60, journal_bytes=0))
    with pytest.raises(OutOfResources, match="inodes"):
        full.check_scratch(0)


def test_an_empty_latch_still_holds(tmp_path: Path, spool: Spool) -> None:
    (tmp_path / "spool" / "latched").touch()  # the disk was full when it was set
    assert spool.latched() == "unknown"


# Whose files these are


def test_a_spool_knows_whose_it_is(tmp_path: Path, spool: Spool) -> None:
    assert (spool.owner(), spool.is_empty()) == ("", True)
    spool.own("journal one")
    store(spool)
    other = Spool(tmp_path / "spool", "results", NO_LIMITS)
    assert (other.owner(), other.is_empty()) == ("journal one", False)
    other.own("journal two")
    assert spool.owner() == "journal two"


def test_what_is_put_aside_is_kept_under_a_name_of_its_own(tmp_path: Path, spool: Spool) -> None:
    names = [store(spool).name, store(spool).name]
    for name in names:
        spool.quarantine(name)
    assert spool.files() == []
    aside = sorted(path.name for path in (tmp_path / "spool" / "quarantine").iterdir())
    assert aside == [name.replace("/", "-") for name in names]
    assert all(before != after for before, after in pairwise(aside))


def test_a_name_that_is_taken_is_never_written_over(spool: Spool) -> None:
    name = store(spool, b"first").name
    spool._next -= 1
    with pytest.raises(StoreFailed, match=os.strerror(errno.EEXIST)):
        spool.begin(HEAD)
    assert spool.path(name).read_bytes().endswith(b"first")


@pytest.mark.promise("P1")
def test_who_dies_while_the_latch_is_lifted_has_proved_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "received", NO_LIMITS)
    spool.latch("a sync failed")
    (spool.root / "latched").rename(spool.root / "lifted")  # as far as it came
    again = Spool(tmp_path / "spool", "received", NO_LIMITS)
    assert again.latched() == "a sync failed"
    again.prove(again.latched_at())
    assert not Spool(tmp_path / "spool", "received", NO_LIMITS).latched()
