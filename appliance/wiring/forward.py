"""The forward process: a lane per destination, and the upkeep of spool and journal."""

from collections.abc import Mapping

from appliance.config import Config, Proof
from appliance.errors import OutOfResources
from appliance.journal import copies, outbox
from appliance.journal.copies import Keep, Rules
from appliance.journal.store import Journal
from appliance.life import Life
from appliance.logs import configure
from appliance.spool import Spool
from appliance.stages.confirm import Confirmer
from appliance.stages.confirm import Desk as ConfirmDesk
from appliance.stages.forward import Lane, Outbox
from appliance.stages.prove import Desk as ProofDesk
from appliance.stages.prove import Prover
from appliance.stages.retain import Retainer, Upkeep
from appliance.wakeup import SLOW_POLL_S, Bell
from appliance.wiring.alert import alerters, latch_told
from appliance.wiring.common import (
    EX_LATCHED,
    EX_OK,
    HOUR_MS,
    Log,
    Worker,
    join,
    latching,
    open_journal,
    open_spool,
    wait_until_proved,
)
from appliance.wiring.confirm import confirmers, publisher
from appliance.wiring.lanes import lanes as make_lanes
from appliance.wiring.lanes import lanes_publisher
from appliance.wiring.prove import need_proof, provers
from appliance.wiring.prove import publisher as proof_publisher

GONE_KEEP_H = 24  # keep_h as it is where nobody sets it
UNOWED_KEEP_H = 24  # what is owed to nobody (a result in shadow, say) is kept so long for a look


def run(config: Config, life: Life) -> int:
    log = configure("forward").info
    spool = open_spool(config, "received")
    with latch_told(config, spool, log):
        proved = wait_until_proved(spool, life, log)
    if not proved:
        return EX_OK
    with latching(spool):
        journal = open_journal(config, "forward", spool.free_reserve)
        join(spool, journal)
        _prove(journal, log)
        _need_proof(config, journal, log)
    bell = Bell(config.run_dir, "forward")
    if held := outbox.hold_destinations_gone(journal, [options.name for options in config.destinations]):
        log("destinations_gone", held=held)
    lanes: list[Lane] = []
    changed = lanes_publisher(config, lanes)
    answering: list[Confirmer] = []
    proving: list[Prover] = []

    def settled() -> None:
        waiting: list[Confirmer | Prover] = [*answering, *proving]
        for one in waiting:
            one.wake()

    box = Outbox(journal=journal, path=spool.path, log=log, changed=changed, settled=settled, failed=spool.latch)
    lanes += make_lanes(config, box, spool.check_scratch)
    told = publisher(config, answering)
    answering += confirmers(config, spool, ConfirmDesk(journal=journal, log=log, changed=told))
    asked = proof_publisher(config, proving)
    proving += provers(
        config,
        ProofDesk(journal=journal, log=log, changed=asked, settled=settled, queued=lambda: bell.ring("forward")),
    )
    senders: list[Lane | Confirmer | Prover] = [*lanes, *answering, *proving]
    retainer = _retainer(config, journal, spool, log)
    workers = [Worker(f"lane-{lane.name}", lane.run, life, log, spool.latch) for lane in lanes]
    workers += [Worker(f"confirm-{one.calling_ae}", one.run, life, log, spool.latch) for one in answering]
    workers += [Worker(f"prove-{one.name}", one.run, life, log, spool.latch) for one in proving]
    workers.append(Worker("retain", lambda: retainer.run(life.stopping), life, log, spool.latch))
    workers += [Worker("alert", one.run, life, log, spool.latch) for one in alerters(config, journal, lanes, life, log)]
    changed()
    told()
    asked()
    life.on_stop = lambda: bell.ring("forward")
    life.ready()
    log("forwarding", destinations=len(lanes))
    while not life.stopping.is_set() and not spool.latched():
        bell.wait(SLOW_POLL_S)
        for sender in senders:
            sender.wake()
        changed()
        if all(worker.alive for worker in workers):
            life.beat()
    for sender in senders:
        sender.stop()
    life.stopping.set()
    for worker in workers:
        worker.join()
    return EX_LATCHED if spool.latched() else max((worker.status for worker in workers), default=EX_OK)


def _prove(journal: Journal, log: Log) -> None:
    """Raises StoreFailed where nothing can be noted: what is sent then would be sent again by each start."""
    try:
        copies.note_tick(journal, durable=True)
    except OutOfResources as error:  # a full journal passes, and what is sent meanwhile is remembered
        log("journal_full", reason=str(error))


def _need_proof(config: Config, journal: Journal, log: Log) -> None:
    try:
        need_proof(config, journal)
    except OutOfResources as error:  # provers try it again, and look after what is delivered meanwhile
        log("journal_full", reason=str(error))


def _retainer(config: Config, journal: Journal, spool: Spool, log: Log) -> Retainer:
    configured = {
        options.name: Keep(commitment=options.proof is not Proof.STORE, keep_ms=int(options.keep_h * HOUR_MS))
        for options in config.destinations
    }
    return Retainer(
        Upkeep(
            journal=journal,
            rules=Rules(
                keeps=_keeps(journal, configured, log),
                unowed_keep_ms=UNOWED_KEEP_H * HOUR_MS,
                gone=Keep(commitment=False, keep_ms=GONE_KEEP_H * HOUR_MS),
            ),
            remove=spool.remove,
            shortage=spool.shortage,
            keep_reserve=spool.keep_reserve,
            log=log,
        )
    )


def _keeps(journal: Journal, configured: Mapping[str, Keep], log: Log) -> Mapping[str, Keep]:
    """Of the destinations there are and were: what was delivered to one that is gone is as delivered as before."""
    try:
        copies.remember(journal, configured)
    except OutOfResources as error:
        log("journal_full", reason=str(error))
    return {**copies.remembered(journal), **configured}
