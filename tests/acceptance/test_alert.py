"""The webhook in the whole appliance: told of what is held and of a lane that is suspended, once, over a restart."""

from pathlib import Path
from typing import Any

import pytest

from appliance.dimse.small_pacs import ScriptedPacs
from appliance.rehearsal.line import Fault, Line
from tests.acceptance.rig import Appliance, Scanner, node, settings, small_series
from tests.listener import SECRET, Listener
from tests.waiting import eventually


@pytest.mark.promise("P10")
def test_what_needs_somebody_is_told_once(work: Path) -> None:
    (work / "secret").write_bytes(SECRET)
    pacs = ScriptedPacs(work / "pacs", [0xA900])
    with pacs, Line(pacs.port) as line, Listener(500) as listener:
        webhook: dict[str, Any] = {"url": listener.url(), "secret": str(work / "secret"), "every_s": 1}
        config = settings(node("pacs", line.port), alerts={"webhook": webhook})
        with Appliance(work / "appliance", config) as appliance:
            Scanner(appliance).insist(small_series(work / "one", 3), 20)
            eventually(lambda: listener.messages, 20, "it is told")
            (held,) = listener.messages[0]["held"]
            assert (held["destination"], held["reason"], held["count"]) == ("pacs", "status 0xA900", 1)
            line.fault = Fault(unknown=True)
            eventually(lambda: not appliance.owed(), 20)
            pacs.cut()
            Scanner(appliance).insist(small_series(work / "two", 2), 20)
            eventually(lambda: listener.messages[-1]["suspended"], 20, "the lane is suspended, and that is told")
            appliance.stop()
            told = len(listener.messages)
            line.fault = Fault()
            appliance.start()
            eventually(lambda: listener.messages[-1]["resumed"] == ["pacs"], 20, "it goes on, and that is told")
            assert len(listener.messages) == told + 1
        assert listener.bad_signatures == 0
