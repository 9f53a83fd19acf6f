"""The PACS of the rehearsal: the small PACS, with a watch."""

from collections.abc import Callable
from pathlib import Path

from appliance.dimse.small_pacs import Answer, SmallPacs
from appliance.journal.clock import boot_time_ms

AE_TITLE = "PACS"


class TimedPacs(SmallPacs):
    """Notes when each object had arrived, on the boot-time clock, and stirs whoever waits for that."""

    def __init__(self, folder: Path, stir: Callable[[], None]) -> None:
        super().__init__(folder, AE_TITLE)
        self._stir = stir
        self.arrived_ms: dict[str, int] = {}  #: SOP Instance UID -> first arrival

    def answer(self, sop_instance_uid: str) -> Answer:
        self.arrived_ms.setdefault(sop_instance_uid, boot_time_ms())
        self._stir()
        return super().answer(sop_instance_uid)
