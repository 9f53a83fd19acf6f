"""The outage planner in `status`: what is owed, by kind, since when, and for how long at the goodput measured."""

import json
import time
from contextlib import closing
from pathlib import Path

import pytest
from benchmarks.big_journal import Sizes, build

from appliance.cli.planner import Backlog, plan
from appliance.cli.situation import look
from appliance.config import Config
from appliance.journal import outbox
from appliance.journal.outbox import Settlement
from appliance.journal.overview import overview
from appliance.model import Owed, Urgency
from appliance.states import Event
from appliance.wakeup import Bell
from tests.journals import arrival, open_journal, receive

PACS = {"name": "pacs", "kind": "dimse", "host": "127.0.0.1", "port": 104, "called_ae": "PACS", "takes": ["image"]}
STATUS_S = 0.3


def planned(folder: Path, bytes_s: int | None) -> dict[str, Backlog]:
    """As `status` of a box tells it, whose lane has measured this; None: the lane does not run."""
    config = Config.model_validate({"state": str(folder), "destinations": [PACS]})
    if bytes_s is None:
        return {one.destination: one for one in plan(config, look(config))}
    bell = Bell(folder / "run", "forward")
    (folder / "run" / "lanes.json").write_text(json.dumps({"pacs": {"state": "sending", "bytes_s": bytes_s}}))
    try:
        return {one.destination: one for one in plan(config, look(config))}
    finally:
        bell.close()


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """Owes the PACS three images of 1,000 bytes and a result of 500, holds one image for it and one for nobody."""
    with closing(open_journal(tmp_path / "journal.sqlite")) as journal:
        receive(journal, arrival(9, b"h" * 700))
        (refused,) = outbox.next_queued(journal, "pacs", 1)
        outbox.settle(
            journal,
            [Settlement(delivery=refused, event=Event.REFUSE, reason="0xA900", started_tick=0, attempts=1)],
        )
        receive(journal, *(arrival(number, b"%d" % number * 1000) for number in range(3)))
        receive(journal, arrival(5, b"r" * 500), owed=(Owed(destination="pacs", urgency=Urgency.RESULT),))
        receive(journal, arrival(6, b"u" * 300), owed=(Owed(destination="", urgency=Urgency.IMAGE, held="unrouted"),))
        with journal.write(durable=True) as tx:
            tx.sql("UPDATE delivery SET created_tick=created_tick-60000 WHERE state='queued' AND size=1000")
    return tmp_path


def test_what_is_owed_by_kind_and_how_long_it_takes(box: Path) -> None:
    pacs = planned(box, 700)["pacs"]
    assert (pacs.objects, pacs.bytes, pacs.results, pacs.results_bytes) == (4, 3500, 1, 500)
    assert (pacs.bytes_s, pacs.drains_s) == (700, 5.0)
    assert pacs.oldest_ms is not None
    assert pacs.oldest_ms >= 60_000
    assert pacs.oldest_result_ms is not None
    assert pacs.oldest_result_ms < 60_000


def test_a_goodput_that_nobody_measured_is_not_made_up(box: Path) -> None:
    for bytes_s in (0, None):
        pacs = planned(box, bytes_s)["pacs"]
        assert (pacs.objects, pacs.bytes_s, pacs.drains_s) == (4, None, None)


def test_what_is_held_is_told_with_its_reason_and_bytes_for_nobody_too(box: Path) -> None:
    found = planned(box, 700)
    assert [(one.reason, one.objects, one.bytes) for one in found["pacs"].held] == [("0xA900", 1, 700)]
    assert [(one.objects, one.bytes) for one in found[""].held] == [(1, 300)]


def test_where_nothing_is_owed_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    open_journal(tmp_path / "journal.sqlite").close()
    pacs = planned(tmp_path, None)["pacs"]
    assert (pacs.objects, pacs.oldest_ms, pacs.drains_s, pacs.held) == (0, None, 0.0, ())


def test_it_is_quick_where_much_is_owed(tmp_path: Path) -> None:
    build(tmp_path / "state", Sizes(instances=20_000, owed=10_000))
    with closing(open_journal(tmp_path / "state" / "journal.sqlite")) as journal:
        begun = time.perf_counter()
        (pacs,) = overview(journal).owed
        assert time.perf_counter() - begun < STATUS_S
        assert (pacs.count, pacs.results) == (10_000, 100)
