"""The parts of the power-cut rig that need no guest: its ledger, its log of writes, its verdict."""

import io
import random
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from power_cuts import RigError
from power_cuts.controls import Alteration
from power_cuts.cuts import Life, Moment
from power_cuts.disk import copy_sparse
from power_cuts.failing import course
from power_cuts.ledger import acknowledged, words
from power_cuts.replay import Recording, stretches
from power_cuts.report import HARMED, PROVED, PROVES_NOTHING, Report
from power_cuts.trial import Tally
from power_cuts.write_log import DISCARD, FLUSH, FUA, MAGIC, MARK, SECTOR, CrashPoint, apply, crash_points, entries

from appliance.wiring.common import EX_LATCHED

A, B = "a" * 64, "b" * 64


# The ledger.


def test_whole_lines_are_promises() -> None:
    assert acknowledged(f"START\r\nACK 1.2 {A}\r\nACK 1.3 {B}\n".encode()) == {"1.2": A, "1.3": B}


@pytest.mark.parametrize(
    "console",
    [
        f"ACK 1.2 {A}",  # the cut came within the line
        f"ACK 1.2 {A[:-1]}\n",
        f"ACK 1.2\nACK {A}\n",
        f"[ 3.1] random: ACK 1.2 {A}\n",
        f"ACK 1.2 {A}Buffer I/O error\n",
        f"ACK 1.x {A}\n",
        f"ACK {'1' * 65} {A}\n",
        "",
    ],
)
def test_anything_else_is_none(console: str) -> None:
    assert acknowledged(console.encode()) == {}


def test_words_come_in_their_order_with_what_was_acknowledged() -> None:
    console = f"kernel: hello\nBEGIN\r\nACK 1.2 {A}\r\nREFUSED 0xa700\r\nHEAL"
    assert list(words(console.encode())) == [("BEGIN", {}), ("ACK", {"1.2": A}), ("REFUSED", {})]


# The course of a failing disk.


def told(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode()


def test_a_disk_that_fails_and_heals() -> None:
    console = told(
        f"ACK 1.1 {A}", "REFUSED 0xa700", "FAULT", f"ENDED {EX_LATCHED}", "AGAIN 0", "HEALED", f"ACK 1.2 {B}"
    )
    seen = course(console)
    assert (seen.false_acks, seen.acked_after, seen.refused, seen.ended_latched) == (0, 1, 1, True)
    assert seen.acked == {"1.1": A, "1.2": B}


def test_an_ack_of_a_failing_disk_is_false() -> None:
    seen = course(told("FAULT", "REFUSED 0xa700", f"ACK 1.1 {A}", "ENDED 0", f"ACK 1.2 {A}", "HEALED"))
    assert (seen.false_acks, seen.acked_after, seen.ended_latched) == (2, 0, False)


# The log of writes.


def log_of(*recorded: tuple[int, int, bytes], sector_size: int = SECTOR) -> io.BytesIO:
    """A log of (sector, flags, data or the text of a mark)."""
    out = struct.pack("<QQQI", MAGIC, 1, len(recorded), sector_size).ljust(sector_size, b"\0")
    for sector, flags, data in recorded:
        text = data if flags & MARK else b""
        size = 0 if flags & (MARK | DISCARD) else len(data)
        head = struct.pack("<QQQQ", sector, size // SECTOR, flags, len(text)) + text
        out += head.ljust(sector_size, b"\0")
        out += data.ljust(-(-len(data) // sector_size) * sector_size, b"\0") if size else b""
    return io.BytesIO(out)


def block(letter: str, sectors: int = 1) -> bytes:
    return letter.encode() * (SECTOR * sectors)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_entries_of_a_log(sector_size: int) -> None:
    first_half = ((8, 0, block("a", 8)), (0, MARK, b"start"), (16, FLUSH | FUA, block("b", 8)))
    log = log_of(*first_half, (0, FLUSH, b""), (3, DISCARD, b""), sector_size=sector_size)
    first, mark, both, flush, discard = entries(log)
    assert first.write
    assert (first.write.offset, first.write.size, first.write.fua) == (8 * SECTOR, 8 * SECTOR, False)
    log.seek(first.write.at)
    assert log.read(first.write.size) == block("a", 8)
    assert (mark.mark, mark.write) == ("start", None)
    assert both.flush
    assert both.write
    assert both.write.fua
    log.seek(both.write.at)
    assert log.read(both.write.size) == block("b", 8)
    assert (flush.flush, flush.write) == (True, None)
    assert (discard.flush, discard.write) == (False, None)


@pytest.mark.parametrize("spoilt", [b"", b"\0" * 4096, log_of((0, 0, block("a"))).getvalue()[:520]])
def test_what_is_no_log_or_cut_short_is_told(spoilt: bytes) -> None:
    with pytest.raises(RigError):
        list(entries(io.BytesIO(spoilt)))


def points_of(log: io.BytesIO, seed: str = "") -> list[CrashPoint]:
    return list(crash_points(log, seed))


def test_crash_points_begin_at_the_start_mark_and_know_what_was_acknowledged() -> None:
    log = log_of(
        (0, 0, block("a")), (0, MARK, b"start"), (1, 0, block("b")), (0, FLUSH, b""), (0, MARK, b"ack:1.2.3"),
        (2, FUA, block("c")),
    )  # fmt: skip
    found = points_of(log)
    assert [point.number for point in found] == [0, 1, 2, 3, 4]
    assert [point.acked for point in found] == [(), (), (), ("1.2.3",), ("1.2.3",)]
    assert [len(point.settled) for point in found] == [0, 0, 2, 0, 0]  # what came before a flush stays
    assert [[write.offset // SECTOR for write in point.in_flight] for point in found] == [[0], [0, 1], [], [], [2]]


def test_reordered_points_miss_some_of_what_is_in_flight_never_what_is_forced_or_settled() -> None:
    many = [(number, FUA if number % 5 == 0 else 0, block("x")) for number in range(60)]
    log = log_of((0, MARK, b"start"), *many, (0, FLUSH, b""))
    in_order, reordered = points_of(log), points_of(log, "seed")
    last = [write.offset // SECTOR for write in reordered[-2].in_flight]
    assert {number for number in range(60) if number % 5 == 0} <= set(last)
    assert 12 < len(last) < 60
    assert last == sorted(last)
    assert reordered[-1].settled == in_order[-1].settled
    assert points_of(log, "seed") == reordered
    assert points_of(log, "other") != reordered


def test_writes_land_where_they_belong(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 * SECTOR))
    log = log_of((0, MARK, b"start"), (2, 0, block("a")), (1, 0, block("b")), (2, 0, block("c")))
    apply(points_of(log)[-1].in_flight, log, image)
    assert image.read_bytes() == bytes(SECTOR) + block("b") + block("c") + bytes(SECTOR)


def test_a_write_that_the_log_does_not_hold_whole_is_told(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(SECTOR))
    log = io.BytesIO(log_of((0, MARK, b"start"), (0, 0, block("a"))).getvalue()[:-1])
    with pytest.raises(RigError, match="within the write"):
        apply(points_of(log)[-1].in_flight, log, tmp_path / "disk.img")


def test_any_prefix_of_a_random_log_is_read_alike() -> None:
    rng = random.Random(1)
    recorded = [(rng.randrange(64), rng.choice((0, FLUSH, FUA, FLUSH | FUA)), block("z")) for _ in range(40)]
    whole = [entry.write for entry in entries(log_of(*recorded))]
    for length in range(len(recorded)):
        assert [entry.write for entry in entries(log_of(*recorded[:length]))] == whole[:length]


@pytest.mark.parametrize(("points", "wanted"), [(614, 60), (614, 700), (1000, 1000), (3, 60)])
def test_a_replay_in_pieces_misses_no_crash_point_and_takes_none_twice(points: int, wanted: int) -> None:
    recorded = Recording(base=Path("b"), log=Path("l"), ledger={}, points=points, alteration=Alteration.NONE)
    pieces = list(stretches(recorded, wanted, "", 40))
    taken = [number for piece in pieces for number in range(piece.start, points, piece.step)]
    assert len(taken) == len(set(taken)) >= min(points, wanted)
    assert len({later - earlier for earlier, later in pairwise(sorted(taken))}) == 1


def test_a_sparse_copy_is_a_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        for at in (1 << 16, 1 << 20, 3 << 20):
            file.seek(at)
            file.write(block("s", 9))
        file.truncate(5 << 20)
    target.write_bytes(b"what was there before" * 1000)
    copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 1 << 20


# The moment of the cut.


def test_a_control_is_cut_within_its_time_after_the_first_ack() -> None:
    life = Life(seed="s", alteration=Alteration.NO_FSYNC, sending_s=(1.0, 2.0))
    for number in range(50):
        moment = Moment(random.Random(number), life)
        assert not moment(b"BEGIN\n", 5.0)
        assert not moment(b"BEGIN\nACK 1.2", 6.0)
        assert not moment(b"BEGIN\nACK 1.2", 6.99)
        assert moment(b"BEGIN\nACK 1.2", 8.0)


def test_some_cuts_of_the_product_come_while_it_starts() -> None:
    early = 0
    for number in range(200):
        moment = Moment(random.Random(number), Life(seed="s"))
        moment(b"BEGIN\n", 5.0)
        early += moment(b"BEGIN\n", 6.0)
    assert 5 < early < 50


# The verdict.


def test_tallies_add_up() -> None:
    total = Tally(trials=1, acked=5, lost=2, trials_with_loss=1, most_lost=2) + Tally(trials=1, torn=1, most_lost=1)
    assert (total.trials, total.acked, total.lost, total.torn, total.most_lost) == (2, 5, 2, 1, 2)
    assert total.harm == 3


GOOD = Tally(trials=10, acked=100)
LOSING = Tally(trials=1, acked=9, lost=3, trials_with_loss=1, most_lost=3)


def report(product: Tally, control: Tally) -> Report:
    found = Report()
    found.product("product", product)
    found.control("control", control)
    return found


@pytest.mark.parametrize(
    ("product", "control", "code"),
    [
        (GOOD, LOSING, PROVED),
        (LOSING, LOSING, HARMED),
        (Tally(trials=1, acked=9, torn=1), LOSING, HARMED),
        (Tally(trials=1, acked=9, starts_failed=1), LOSING, HARMED),
        (Tally(trials=10), LOSING, PROVES_NOTHING),  # nothing was acknowledged
        (GOOD, GOOD, PROVES_NOTHING),  # a control lost nothing
        (LOSING, GOOD, HARMED),  # harm is harm, even to a blind eye
    ],
)
def test_exit_codes(product: Tally, control: Tally, code: int) -> None:
    assert report(product, control).exit_code == code


def test_too_few_crash_points_prove_nothing() -> None:
    found = Report()
    found.replayed("crash points", Tally(trials=699), recorded=40, wanted=700)
    assert found.exit_code == PROVES_NOTHING
