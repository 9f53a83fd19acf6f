"""The outage drill: the PACS is cut away in mid-transfer, then the appliance loses its power, then both come back."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from appliance.journal.overview import overview
from appliance.journal.store import Journal
from appliance.rehearsal.stage import Stage, owed
from appliance.scanner import Sent

MID_TRANSFER_S = 60.0
SLOW_PACS_S = 0.02  # before each answer: so that there is a middle to cut in


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """What the drill saw."""

    at_pacs_when_cut: int  #: objects that the PACS had answered for
    owed_when_scanned: int  #: deliveries in the queue after the scanner's last acknowledged image
    owed_after_kill: int  #: the same, after all processes were killed and started anew


def drill(stage: Stage, journal: Journal) -> tuple[Outage, list[Sent]]:
    """Play it until the PACS is back; what is owed then is delivered in `stage.settle`. Raises RehearsalFailed."""
    at_pacs, sent = _scan_and_cut(stage)
    before = owed(overview(journal), "queued")
    stage.tell(f"the scanner has finished all the same; the queue holds {before} deliveries")
    stage.box.kill()
    stage.tell("all processes of the appliance killed (SIGKILL)")
    stage.box.start()
    after = owed(overview(journal), "queued")
    stage.tell(f"the appliance is back, and still owes {after}")
    stage.pacs.delay_s = 0.0
    stage.pacs.start()
    stage.tell(f"the PACS is back on port {stage.pacs.port}")
    return Outage(at_pacs_when_cut=at_pacs, owed_when_scanned=before, owed_after_kill=after), sent


def _scan_and_cut(stage: Stage) -> tuple[int, list[Sent]]:
    stage.pacs.delay_s = SLOW_PACS_S
    a_third = len(stage.material.digests) // 3
    with ThreadPoolExecutor(1, "scanner") as scanner:
        scanning = scanner.submit(stage.scan)
        stage.box.patience.wait(
            lambda: len(stage.pacs.received()) >= a_third or _broke_off(scanning),
            "the PACS gets images",
            MID_TRANSFER_S,
        )
        stage.pacs.cut()
        stage.pacs.stop()
        at_pacs = len(stage.pacs.received())
        stage.tell(f"the PACS is gone in mid-transfer, after {at_pacs} of {len(stage.material.digests)} images")
        return at_pacs, scanning.result()


def _broke_off(scanning: Future[list[Sent]]) -> bool:
    return scanning.done() and not all(sent.stored for sent in scanning.result())
