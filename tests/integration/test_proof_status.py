"""What `status` tells of proof that is missing."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.attention import attentions
from appliance.cli.situation import look
from appliance.cli.unproven import unproven_words
from appliance.config import Config
from appliance.journal import outbox, proofs
from appliance.journal.outbox import Settlement
from appliance.states import Event
from appliance.wakeup import Bell
from tests.journals import arrival, open_journal, receive

HOUR_MS = 3_600_000
PACS = {"kind": "dimse", "host": "127.0.0.1", "port": 104, "called_ae": "PACS", "takes": ["image"]}


@dataclass
class Box:
    folder: Path

    def config(self, *names: str) -> Config:
        destinations = [{**PACS, "name": name, "proof": "commitment", "proof_timeout_h": 2} for name in names]
        return Config.model_validate({"state": str(self.folder), "destinations": destinations})

    def deliver(self, count: int, *, ask: bool = False) -> None:
        journal = open_journal(self.folder / "journal.sqlite", "forward")
        proofs.need(journal, ["pacs"], [])
        receive(journal, *(arrival(number) for number in range(count)))
        owed = outbox.next_queued(journal, "pacs", 100)
        outbox.settle(
            journal, [Settlement(delivery=one, event=Event.DELIVER, started_tick=0, attempts=1) for one in owed]
        )
        if ask:
            proofs.begin(journal, "pacs", "1.2", proofs.due(journal, "pacs", count - 1))
        with journal.write(durable=True) as tx:
            tx.sql("UPDATE delivery SET settled_tick=?", (tx.tick - 3 * HOUR_MS,))
        journal.close()

    def told(self, config: Config, **facts: dict[str, Any]) -> list[str]:
        (self.folder / "run").mkdir(exist_ok=True)
        for name, content in facts.items():
            (self.folder / "run" / f"{name}.json").write_text(json.dumps(content))
        return [one.what for one in attentions(config, look(config))]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    bells = [Bell(tmp_path / "run", name) for name in ("receive", "analyse", "forward")]
    yield Box(tmp_path)
    for bell in bells:
        bell.close()


def fact(state: str, reason: str = "") -> dict[str, Any]:
    return {"pacs": {"state": state, "reason": reason}}


@pytest.mark.promise("P4")
def test_who_does_not_prove_what_it_gets_is_named(box: Box) -> None:
    config = box.config("pacs")
    refused = fact("refused", "it does not take storage commitment from us")
    assert box.told(config, proofs=refused, lanes=fact("idle")) == [
        "pacs does not prove what it gets, so none of it is freed: it does not take storage commitment from us"
    ]
    late = fact("backing off", "cannot connect")
    assert box.told(config, proofs=late, lanes=fact("sending")) == [
        "pacs could not be asked whether it answers for what it got: cannot connect"
    ]
    assert box.told(config, proofs=late, lanes=late) == ["pacs backing off: cannot connect"]  # once is enough
    assert box.told(config, proofs=fact("idle"), lanes=fact("idle")) == []


def test_what_waits_for_longer_than_the_time_out_needs_somebody(box: Box) -> None:
    box.deliver(3, ask=True)
    (what,) = box.told(box.config("pacs"))
    assert what.startswith(
        "pacs has 3 objects that it does not answer for yet, 2 of them asked for: the oldest for 3.0 h"
    )
    (gone,) = (what for what in box.told(box.config("other")) if "no longer" in what)
    assert gone.startswith("3 deliveries to pacs, which is no longer in the config, wait for its proof")


def test_waiting_is_told_in_words() -> None:
    one = proofs.Unproven(destination="pacs", count=1, asked=0, oldest_tick=0)
    assert unproven_words(one, HOUR_MS) == "pacs has 1 object that it does not answer for yet: the oldest for 1.0 h"
