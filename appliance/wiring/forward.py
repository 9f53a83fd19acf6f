"""The forward process: a lane per destination, and the upkeep of spool and journal."""

from appliance.config import Config, FolderDestination, Proof
from appliance.config import Destination as DestinationOptions
from appliance.destinations.dimse import DimseNode
from appliance.destinations.folder import Folder
from appliance.dimse.requestor import Target
from appliance.errors import OutOfResources
from appliance.journal import copies, outbox
from appliance.journal.copies import Keep, Rules
from appliance.journal.store import Journal
from appliance.life import Life
from appliance.logs import configure
from appliance.ports import Destination
from appliance.spool import Spool
from appliance.stages.forward import Lane, Outbox
from appliance.stages.retain import Retainer, Upkeep
from appliance.wakeup import SLOW_POLL_S, Bell
from appliance.wiring.common import EX_OK, HOUR_MS, Log, Worker, join, open_journal, open_spool, publish_facts

UNOWED_KEEP_H = 24  # what is owed to nobody (a result in shadow, say) is kept so long for a look


def run(config: Config, life: Life) -> int:
    log = configure("forward").info
    spool = open_spool(config, "received")
    journal = open_journal(config, "forward", spool.free_reserve)
    join(spool, journal)
    _prove(journal, log)
    bell = Bell(config.run_dir, "forward")
    if held := outbox.hold_destinations_gone(journal, [options.name for options in config.destinations]):
        log("destinations_gone", held=held)
    lanes: list[Lane] = []

    def changed() -> None:
        publish_facts(config, "lanes", {lane.name: {"state": lane.state, "reason": lane.reason} for lane in lanes})

    box = Outbox(journal=journal, path=spool.path, log=log, changed=changed)
    lanes += [Lane(options.name, adapter(config, options), box) for options in config.destinations]
    retainer = _retainer(config, journal, spool, log)
    workers = [Worker(f"lane-{lane.name}", lane.run, life, log, spool.latch) for lane in lanes]
    workers.append(Worker("retain", lambda: retainer.run(life.stopping), life, log, spool.latch))
    changed()
    life.on_stop = lambda: bell.ring("forward")
    life.ready()
    log("forwarding", destinations=len(lanes))
    while not life.stopping.is_set():
        bell.wait(SLOW_POLL_S)
        for lane in lanes:
            lane.wake()
        if all(worker.alive for worker in workers):
            life.beat()
    for lane in lanes:
        lane.stop()
    for worker in workers:
        worker.join()
    return max((worker.status for worker in workers), default=EX_OK)


def _prove(journal: Journal, log: Log) -> None:
    """Raises StoreFailed where nothing can be noted: what is sent then would be sent again by each start."""
    try:
        copies.note_tick(journal, durable=True)
    except OutOfResources as error:  # a full journal passes, and what is sent meanwhile is remembered
        log("journal_full", reason=str(error))


def adapter(config: Config, options: DestinationOptions) -> Destination:
    """What can send to a configured destination."""
    if isinstance(options, FolderDestination):
        return Folder(options.path)
    return DimseNode(
        Target(
            host=str(options.host),
            port=options.port,
            calling_ae=options.calling_ae or config.ae_title,
            called_ae=options.called_ae,
            timeout_s=options.timeout_s,
            max_pdu=options.max_pdu,
        )
    )


def _retainer(config: Config, journal: Journal, spool: Spool, log: Log) -> Retainer:
    return Retainer(
        Upkeep(
            journal=journal,
            rules=Rules(
                keeps={
                    options.name: Keep(
                        commitment=options.proof is Proof.COMMITMENT, keep_ms=int(options.keep_h * HOUR_MS)
                    )
                    for options in config.destinations
                },
                unowed_keep_ms=UNOWED_KEEP_H * HOUR_MS,
            ),
            remove=spool.remove,
            keep_reserve=spool.keep_reserve,
            log=log,
        )
    )
