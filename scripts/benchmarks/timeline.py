"""Where the time of one study went, read from the journal's history and from the PACS.

Ticks are the journal's: milliseconds. The PACS's acknowledgement is when it had written the last byte of the report's
file, just before it answers; the kernel's stamp of that may be a timer tick old, so one is added.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from appliance.journal import history
from appliance.journal.store import Journal
from appliance.model import HistoryLine
from benchmarks.report import BenchError

TIMER_TICK_MS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Milliseconds of each stage in turn; from `notice` on they add up to evidence-to-PACS."""

    send: float  #: first image recorded -> last image recorded
    wait_for_evidence: float  #: last image recorded -> the evidence holds
    notice: float  #: the evidence holds -> series closed
    assemble: float  #: series closed -> job ready
    start: float  #: job ready -> running
    prepare: float  #: files -> model inputs
    hand_over: float  #: model inputs into the runtime child, outputs back
    run: float  #: inside the runtime's run call
    conclude: float  #: model outputs -> findings
    commit: float  #: the outcome committed
    report: float  #: SR and picture built, stored, owed
    queue_and_send: float  #: owed -> acknowledged by the PACS

    @property
    def ours(self) -> float:
        """From the moment the evidence holds to the PACS's acknowledgement, without the runtime's run call."""
        stages = [getattr(self, field.name) for field in fields(self)]
        return float(sum(stages[2:]) - self.run)


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    timeline: Timeline
    early: bool  #: the outcome came from a provisional run
    straddled: bool  #: that run was not over when the evidence held
    conclusion: str


def follow(journal: Journal, study: str, pacs: Path, silence_ms: float) -> Followed:
    """The timeline of a study whose report the PACS holds. `silence_ms`: what closes a series by silence.

    Raises BenchError where the story lacks a line.
    """
    story = _Story(history.trace(journal, study))
    sr = story.last("result_built", kind="sr")
    closed, ready, concluded = story.last("series_closed"), story.last("job_ready"), story.last("job_concluded")
    running = next((line for line in story.lines("job_running") if line.tick >= ready.tick), None)
    provisional = story.lines("provisional_outcome")
    received = [line.tick for line in story.lines("received")]
    holds = received[-1] + (silence_ms if closed.detail["evidence"] == "silence" else 0)
    spent = concluded.detail["timings_ms"] if running else dict.fromkeys(("prepare", "infer", "run", "conclude"), 0.0)
    busy_from = running.tick if running else ready.tick
    timeline = Timeline(
        send=received[-1] - received[0],
        wait_for_evidence=holds - received[-1],
        notice=closed.tick - holds,
        assemble=ready.tick - closed.tick,
        start=busy_from - ready.tick,
        prepare=spent["prepare"],
        hand_over=spent["infer"] - spent["run"],
        run=spent["run"],
        conclude=spent["conclude"],
        commit=concluded.tick - busy_from - spent["prepare"] - spent["infer"] - spent["conclude"],
        report=sr.tick - concluded.tick,
        queue_and_send=_acknowledged_tick(journal, pacs, sr.sop_instance_uid) - sr.tick,
    )
    return Followed(
        timeline=timeline,
        early=running is None,
        straddled=any(line.tick > holds for line in provisional),
        conclusion=str(concluded.detail["conclusion"]),
    )


class _Story:
    def __init__(self, lines: Sequence[HistoryLine]) -> None:
        self._lines = lines

    def lines(self, event: str, **detail: object) -> list[HistoryLine]:
        return [line for line in self._lines if line.event == event and detail.items() <= line.detail.items()]

    def last(self, event: str, **detail: object) -> HistoryLine:
        found = self.lines(event, **detail)
        if not found:
            events = ", ".join(dict.fromkeys(line.event for line in self._lines))
            raise BenchError(f"the journal has no {event} of the study, only: {events}")
        return found[-1]


def _acknowledged_tick(journal: Journal, pacs: Path, sop_instance_uid: str) -> float:
    """When DCMTK's storescp had written the file, on the journal's clock. It names files MODALITY.UID."""
    found = list(pacs.glob(f"*.{sop_instance_uid}"))
    if not found:
        raise BenchError("the PACS has no file of the report")
    ago_ms = (time.time_ns() - found[0].stat().st_mtime_ns) / 1e6
    return journal.clock.tick() - ago_ms + TIMER_TICK_MS
