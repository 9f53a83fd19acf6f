"""What the appliance costs while nothing happens: a share of a core, and memory, of all its processes together."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.acceptance.rig import Appliance, Original, Scanner, engines, folder_destination, settings
from tests.waiting import eventually

MB = 1 << 20
WATCHED_S = 10.0
MOST_OF_A_CORE = 0.01
MOST_MEMORY = 600 * MB
MOST_MEMORY_OF_RECEIVE = 80 * MB
VERIFIED_S = 90.0
SETTLED_S = 60.0


def name_of(process: psutil.Process) -> str:
    words = process.cmdline()
    if any(word.endswith("child.py") for word in words):
        return "runtime child"
    if any(word.endswith("reader_program.py") for word in words):
        return "reader child"
    return next((name for name in ("receive", "analyse", "forward") if name in words), "supervisor")


def cpu_s(processes: list[psutil.Process]) -> float:
    """Time on a CPU, all threads. Not from /proc/PID/stat: that counts whole ticks, and short wake-ups not at all."""
    tasks = [task for process in processes for task in Path(f"/proc/{process.pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def pss(process: psutil.Process) -> int:
    """Proportional set size, bytes: what is shared counts once, divided among those that share it (proc(5))."""
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except PermissionError:  # it lets nobody but root look into it (P10)
        return int(process.memory_info().rss)
    found = re.search(r"^Pss: +([0-9]+) kB$", rollup, re.MULTILINE)
    assert found, rollup
    return int(found[1]) * 1024


def settled(appliance: Appliance) -> bool:
    return (
        bool(appliance.number("SELECT count(*) FROM job WHERE state='reported'"))
        and not appliance.number("SELECT count(*) FROM job WHERE state NOT IN ('reported', 'superseded')")
        and not appliance.number("SELECT count(*) FROM series WHERE state='open'")
        and not appliance.owed()
    )


@pytest.mark.timeout(240)
def test_an_idle_appliance_costs_next_to_nothing(work: Path, lung_ct: Original, figure: Callable[[str], None]) -> None:
    """After a real study has been read: what a process has taken for that, it keeps."""
    config = settings(
        folder_destination("archive", work / "archive", accept_reference=True),
        engines=engines("publish"),
        series={"silence_s": {"CT": 1}},
    )
    with Appliance(work / "appliance", config) as appliance:
        eventually(appliance.engines_serve, VERIFIED_S, "the engines are verified")
        Scanner(appliance).send(lung_ct.copy(work / "scans", "idle").paths)
        eventually(lambda: settled(appliance), SETTLED_S, "the study is read and delivered")
        family = appliance.family()
        before = cpu_s(family)
        time.sleep(WATCHED_S)
        share = (cpu_s(family) - before) / WATCHED_S
        assert {process.pid for process in appliance.family()} == {process.pid for process in family}
        memory = {process: (pss(process), process.memory_info().rss) for process in family}
        each = ", ".join(f"{name_of(one)} {p // MB} ({rss // MB})" for one, (p, rss) in memory.items())
        all_pss, all_rss = (sum(values) for values in zip(*memory.values(), strict=True))
        receive_rss = next(rss for one, (_, rss) in memory.items() if name_of(one) == "receive")
    figure(f"idle: {share:.3%} of a core over {WATCHED_S:g} s, all processes (goal: under {MOST_OF_A_CORE:.0%})")
    figure(f"idle: PSS {all_pss // MB} MB, RSS {all_rss // MB} MB, all processes (goal: PSS under {MOST_MEMORY // MB})")
    figure(f"idle: receive RSS {receive_rss // MB} MB (goal: under {MOST_MEMORY_OF_RECEIVE // MB}); MB of each: {each}")
    assert share < MOST_OF_A_CORE
    assert all_pss < MOST_MEMORY
    assert receive_rss < MOST_MEMORY_OF_RECEIVE
