"""Every call that can fail on its way to the disk fails once: nothing acknowledged is lost by it (P1, P5, P12).

SCANSIDE_FULL=1 has each call of an undisturbed run fail, with EIO and with ENOSPC; otherwise the first and the last of
each kind, and of a kind that several stages share only those of the first of them. strace makes them fail: the disk is
memory where there is a file system of it, so that no other program's syncs are waited for.
"""

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from appliance.wiring.common import EX_FAILED, EX_LATCHED, EX_OK
from tests.sweeping import AFTERWARDS, SENT, Call, Run, Station

FULL = os.environ.get("SCANSIDE_FULL") == "1"
AT_A_TIME = 2
MEMORY = Path("/dev/shm")  # noqa: S108 - only a folder of ours in it
EARLIER = 7  # an image of the run before
ERRORS = ("EIO", "ENOSPC")
ALLOWED = {0x0000, 0xA700, 0x0110, "closed"}
STAGES = ("receiving", "healing", "first-start")

WRITES = {"write", "writev", "pwrite64", "pwritev", "splice", "sync_file_range"}
SYNCS = {"fsync", "fdatasync"}


@dataclass(frozen=True, slots=True)
class Injection:
    call: Call
    error: str

    @property
    def bears_a_promise(self) -> bool:
        """Whether an image that was being received cannot be kept after it: no shortage, but a failure (P1)."""
        name, path = self.call.kind
        if name in SYNCS:
            return path in ("var/journal.sqlite-wal", "var/spool/received", "var/spool/received/F") or ".dcm" in path
        if name not in WRITES or not (path.endswith((".dcm", "-wal"))):
            return False
        return self.error == "EIO" or name == "sync_file_range"


@dataclass(frozen=True, slots=True)
class Result:
    injection: Injection
    summary: str
    faults: list[str]


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    with TemporaryDirectory(prefix="scanside-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def stations(disk: Path) -> Mapping[str, Station]:
    """What each stage starts from: a journal and a spool, the same with a failure behind it, and nothing."""
    folder = disk / "stations"
    empty = Station.new(folder / "empty")
    used = empty.copy(folder / "used")
    assert used.sound([EARLIER]).acknowledged == {EARLIER}
    failed = used.copy(folder / "failed")
    run = failed.disturbed([1], Call("fsync", "var/spool/received/000001", 1, 1), "EIO")
    assert (run.told, run.exit_code, run.latched) == ([(1, 0xA700)], EX_LATCHED, True)
    (failed.state / "spool" / "received" / "000000" / "000000777.dcm").write_bytes(b"never acknowledged")
    return dict(zip(STAGES, (used, failed, empty), strict=True))


def undisturbed(station: Station, folder: Path) -> list[Call]:
    """The calls of a run in which none fails."""
    sound = station.copy(folder)
    run = sound.disturbed(SENT, heals=True)
    assert run.acknowledged == set(SENT), sound.log()
    assert sound.faults(run.acknowledged) == []
    return run.calls


def by_kind(calls: Sequence[Call]) -> dict[tuple[str, str], list[Call]]:
    kinds = defaultdict(set)
    for call in calls:
        kinds[call.kind].add(call)
    return {kind: sorted(found) for kind, found in sorted(kinds.items())}


def chosen(calls: Sequence[Call], before: set[tuple[str, str]]) -> list[Injection]:
    """All, or of each kind that is not in `before` the first and the last call, each with one of the errors."""
    if FULL:
        return [Injection(call, error) for call in sorted(set(calls)) for error in ERRORS]
    found = []
    for kind, same in by_kind(calls).items():
        if kind in before:
            continue
        pairs = [(same[0], "EIO"), (same[-1], "ENOSPC"), (same[-1], "EIO"), (same[0], "ENOSPC")]
        # What bears a promise fails in all four ways.
        wanted = 4 if Injection(same[0], "EIO").bears_a_promise else 2
        found += [Injection(*pair) for pair in dict.fromkeys(pairs[:wanted])]
    return found


def judge(station: Station, injection: Injection, stage: str) -> Result:
    """Let it happen, then look at what is left."""
    run = station.disturbed(SENT, injection.call, injection.error)
    after = station.sound([*sorted(set(SENT) - run.acknowledged), AFTERWARDS])
    faults = station.faults(run.acknowledged | after.acknowledged)
    if not {status for _, status in run.told} <= ALLOWED:
        faults.append(f"the scanner was told {run.told}")
    if after.exit_code != EX_OK:
        faults.append(f"the sound run ended with {after.exit_code}")
    if run.exit_code not in (EX_OK, EX_FAILED, EX_LATCHED) or (run.latched and run.exit_code == EX_OK):
        faults.append(f"ended with {run.exit_code}, latched: {run.latched}")
    if stage == "receiving" and injection.bears_a_promise:
        faults += unkept(run)
    return Result(injection, run.summary, faults)


def unkept(run: Run) -> Iterator[str]:
    """What a run whose store failed has done, and must not."""
    statuses = [status for _, status in run.told]
    failed_at = next((place for place, status in enumerate(statuses) if status != 0), len(statuses))
    if any(status == 0 for status in statuses[failed_at:]):
        yield f"an image was acknowledged after a failure: {statuses}"
    if (run.latched, run.exit_code) != (True, EX_LATCHED):
        yield f"latched: {run.latched}, ended with {run.exit_code}"


def table(results: Sequence[Result], calls: Sequence[Call]) -> str:
    """Calls of an undisturbed run, injections and outcomes, by the name of the call."""
    lines = [f"{'call':<16}{'calls':>6}{'injected':>9}  outcomes"]
    made = Counter(call.name for call in set(calls))
    for name, number in sorted(made.items()):
        found = Counter(result.summary for result in results if result.injection.call.name == name)
        if found:
            outcomes = ", ".join(f"{times} {what}" for what, times in found.most_common())
            lines.append(f"{name:<16}{number:>6}{found.total():>9}  {outcomes}")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def swept() -> set[tuple[str, str]]:
    """The kinds of call that earlier stages have had fail."""
    return set()


@pytest.mark.timeout(14_400 if FULL else 600)
@pytest.mark.promise("P1")
@pytest.mark.promise("P5")
@pytest.mark.promise("P12")
@pytest.mark.parametrize("stage", STAGES)
def test_whatever_fails_nothing_acknowledged_is_lost(
    stage: str, stations: Mapping[str, Station], swept: set[tuple[str, str]], disk: Path
) -> None:
    station = stations[stage]
    calls = undisturbed(station, disk / stage / "sound")
    injections = chosen(calls, swept)
    swept |= set(by_kind(calls))
    folders = (disk / stage / str(number) for number in count())

    def one(injection: Injection) -> Result:
        copy = station.copy(next(folders))
        try:
            return judge(copy, injection, stage)
        except AssertionError as error:
            return Result(injection, "was not judged", [f"{error} {copy.log()}"])
        finally:
            shutil.rmtree(copy.folder)

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        results = list(pool.map(one, injections))
    print(f"\n{stage}: {len(set(calls))} calls, {len(results)} injections\n{table(results, calls)}")  # noqa: T201
    assert results
    faults = {f"{result.injection.error} at {result.injection.call}": result.faults for result in results}
    assert {what: found for what, found in faults.items() if found} == {}


def test_the_sweep_reaches_what_an_acknowledgement_rests_on(stations: Mapping[str, Station], disk: Path) -> None:
    kinds = by_kind(undisturbed(stations["receiving"], disk / "sound"))
    file, wal = "var/spool/received/F/N.dcm", "var/journal.sqlite-wal"
    needed: list[tuple[Callable[[str], bool], str, int]] = [
        (WRITES.__contains__, file, len(SENT)),
        ({"sync_file_range"}.__contains__, file, 2),
        (SYNCS.__contains__, file, len(SENT)),
        (SYNCS.__contains__, "var/spool/received/F", 1),
        (SYNCS.__contains__, "var/spool/received", 1),
        (WRITES.__contains__, wal, len(SENT)),
        (SYNCS.__contains__, wal, len(SENT)),
        ({"unlink", "unlinkat"}.__contains__, file, 1),
        ({"rename", "renameat", "renameat2"}.__contains__, "var/run/.receive.P.NF", 1),
    ]
    for is_meant, path, least in needed:
        found = sum(len(calls) for (name, of), calls in kinds.items() if is_meant(name) and of == path)
        assert found >= least, (path, found)
