"""What `scanside recover` is made of: both areas of the spool, a new journal, and the routes of the configuration."""

import os
import pwd
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance import routing
from appliance.config import Config
from appliance.errors import ScansideError
from appliance.journal import lookup
from appliance.journal.store import Journal
from appliance.model import Kind, Owed, Priority
from appliance.stages.recover import Recovered, Recovery, RestoredRoutes, recover, set_aside
from appliance.wiring.common import open_journal, open_spool
from appliance.wiring.receive import received_routes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    recovered: Recovered
    set_aside: tuple[Path, ...]  #: files of the journal that was there before


def rebuild(config: Config, progress: Callable[[int, int], None]) -> Rebuilt:
    """Set a journal that is there aside, and make a new one from the spool. Nothing else of the appliance may run.

    `progress` hears (files done, files in all). Raises ScansideError for another user than the appliance's, who
    would make a journal that it cannot write; StoreFailed, OutOfResources.

    Where the store is latched the disk is proved first, or nothing is changed. Of each file it is the disk that is
    asked, not what memory has of it: an earlier run may have lifted a latch, and been broken off.
    """
    owner = config.spool_dir.stat().st_uid
    if owner != os.geteuid():
        raise ScansideError(f"the spool belongs to user {_name(owner)}: be that user, with sudo -u {_name(owner)}, say")
    received = open_spool(config, "received")
    if received.latched():
        received.prove(received.latched_at())
    moved = set_aside(config.journal_path)
    journal = open_journal(config, "recover", received.free_reserve)
    try:
        recovered = recover(
            Recovery(
                journal=journal,
                received=received,
                results=open_spool(config, "results"),
                routes=received_routes(config),
                result_routes=_restored_routes(config, journal),
                progress=progress,
            )
        )
    finally:
        journal.close()
    return Rebuilt(recovered=recovered, set_aside=tuple(moved))


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"#{user}"


def _restored_routes(config: Config, journal: Journal) -> RestoredRoutes:
    """Where a found result is owed: as when it was built, by the sender and modality of the images it is about."""

    def routes(story: dict[str, Any]) -> Sequence[Owed]:
        source = lookup.source_of(journal, story["study_instance_uid"], story["series_instance_uid"])
        return routing.deliveries_for_result(
            config,
            routing.Routed(
                kind=Kind(story["kind"]),
                calling_ae=source.calling_ae if source else "",
                modality=source.modality if source else "",
                sop_class_uid=source.sop_class_uid if source else "",
                engine=story["engine"],
                engine_status=story["status"],
                priority=Priority(story["priority"]),
            ),
        )

    return routes
