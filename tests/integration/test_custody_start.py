"""What a start finds after kills and power cuts, and that none of it keeps the appliance from starting."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import OutOfResources, StoreFailed
from appliance.journal import copies
from appliance.journal.copies import Keep, Rules
from appliance.journal.jobs import CURSOR
from appliance.journal.store import Journal
from appliance.spool import FILES_PER_FOLDER, Reserve, Spool
from appliance.stages.receive import Inbox
from appliance.stages.receive.start import discard_unacknowledged
from tests.journals import TO_PACS, arrival, receive
from tests.tracing import python, traced

NO_LIMITS = Reserve(free_bytes=0, free_inodes=0, journal_bytes=0)
KEEP = Keep(commitment=False, keep_ms=0)
RULES = Rules(keeps={"pacs": KEEP}, unowed_keep_ms=0, gone=KEEP)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "j", "receive")
    yield journal
    journal.close()


@pytest.fixture
def box(tmp_path: Path, journal: Journal) -> Inbox:
    return Inbox(
        journal=journal,
        spool=Spool(tmp_path / "spool", "received", NO_LIMITS),
        routes=lambda _: (TO_PACS,),
        ring=lambda *_: None,
        silence_ms=lambda _: 1000,
        max_in_flight=2,
        fatal=lambda: None,
        log=lambda *_, **__: None,
    )


def put_back(box: Inbox, names: list[str]) -> None:
    """As a power cut does with files whose removal had not come to the disk."""
    for name in names:
        box.spool.path(name).parent.mkdir(exist_ok=True)
        box.spool.path(name).write_bytes(b"back")


@pytest.mark.promise("P12")
def test_released_files_that_a_power_cut_brought_back_do_not_keep_it_from_starting(box: Inbox) -> None:
    """Removing is not synced: several chunks of what was let go may stand there again."""
    names = [f"received/000000/{number:09d}.dcm" for number in range(3 * copies.CHUNK)]
    receive(box.journal, *(arrival(n, name.encode(), file=name) for n, name in enumerate(names)))
    with box.journal.write(durable=True) as tx:
        tx.sql("UPDATE delivery SET state='delivered'")
        tx.sql("UPDATE series SET state='closed'")
        tx.sql("INSERT INTO cursor VALUES (?, 1000000)", (CURSOR,))
    after = ""
    for _ in range(4):
        found, after = copies.releasable(box.journal, RULES, after)
        copies.release(box.journal, RULES, found)
    put_back(box, names)
    discard_unacknowledged(box)
    assert box.spool.files() == []


@pytest.mark.promise("P12")
def test_repeats_that_a_power_cut_brought_back_do_not_keep_it_from_starting(box: Inbox) -> None:
    first, *again = [f"received/000000/{number:09d}.dcm" for number in range(150)]
    fates = receive(box.journal, *(arrival(1, b"same", file=name) for name in (first, *again)))
    assert [fate.redundant for fate in fates] == [False] + [True] * 149
    put_back(box, [first, *again])
    discard_unacknowledged(box)
    assert box.spool.files() == [first]


@pytest.mark.promise("P4")
def test_what_history_cannot_explain_is_not_swept(box: Inbox) -> None:
    put_back(box, [f"received/000000/{number:09d}.dcm" for number in range(3 + copies.CHUNK)])
    with pytest.raises(StoreFailed, match="is it the right journal"):
        discard_unacknowledged(box)
    assert len(box.spool.files()) == 3 + copies.CHUNK


def test_empty_folders_do_not_pile_up_and_no_name_is_used_twice(tmp_path: Path, box: Inbox) -> None:
    first = box.spool.begin(b"head")
    first.finish()
    for start in range(1, 4):
        spool = Spool(tmp_path / "spool", "received", NO_LIMITS)
        incoming = spool.begin(b"head")
        assert incoming.name == f"received/{start:06d}/{start * FILES_PER_FOLDER:09d}.dcm"
        incoming.discard()
    discard_unacknowledged(box)
    assert sorted(path.name for path in (tmp_path / "spool/received").iterdir()) == ["000003"]
    assert Spool(tmp_path / "spool", "received", NO_LIMITS).begin(b"head").name > first.name


def test_a_name_that_cannot_even_be_looked_up_is_not_held(box: Inbox) -> None:
    assert not box.spool.has("received/" + "9" * 300)


@pytest.mark.promise("P5")
def test_too_few_descriptors_to_sync_is_a_shortage(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from appliance.errors import OutOfResources, StoreFailed\n"
        "from appliance.spool import Reserve, Spool\n"
        'spool = Spool(Path(sys.argv[1]), "received", Reserve(free_bytes=0, free_inodes=0, journal_bytes=0))\n'
        'try:\n    spool.begin(b"head").discard()\n'
        "except (OutOfResources, StoreFailed) as error:\n    print(type(error).__name__)\n"
    )
    folder = str(tmp_path / "spool/received/000000")
    run = traced(tmp_path, python(script, tmp_path / "spool"), inject="openat:error=EMFILE", path=folder)
    assert run.output.split() == [OutOfResources.__name__]


def test_the_wal_is_not_started_anew_under_a_checkpoint(tmp_path: Path, journal: Journal) -> None:
    """SQLite before 3.51.3 loses commits where it is."""

    def generation() -> bytes:
        return (tmp_path / "j-wal").read_bytes()[16:24]

    other = Journal(tmp_path / "j", "forward")

    def commit() -> None:
        with other.write(durable=False) as tx:
            tx.history("something")

    commit()
    begun = generation()
    with journal._reading():
        assert other.checkpoint()
        commit()
        assert generation() == begun
    assert journal.checkpoint()
    commit()
    assert generation() != begun
    other.close()
