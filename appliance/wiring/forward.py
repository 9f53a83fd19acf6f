"""The forward process: a lane per destination, and the upkeep of spool and journal."""

from collections.abc import Mapping

from appliance.config import Config, DimseDestination, FolderDestination, Proof
from appliance.config import Destination as DestinationOptions
from appliance.destinations.dimse import DimseNode
from appliance.destinations.folder import Folder
from appliance.dimse.wire import Security, Target
from appliance.errors import OutOfResources
from appliance.journal import copies, outbox
from appliance.journal.copies import Keep, Rules
from appliance.journal.store import Journal
from appliance.life import Life
from appliance.logs import configure
from appliance.ports import Destination
from appliance.spool import Spool
from appliance.stages.confirm import Confirmer
from appliance.stages.confirm import Desk as ConfirmDesk
from appliance.stages.forward import Lane, Outbox
from appliance.stages.retain import Retainer, Upkeep
from appliance.wakeup import SLOW_POLL_S, Bell
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
    publish_facts,
    wait_until_proved,
)
from appliance.wiring.confirm import confirmers, publisher

GONE_KEEP_H = 24  # keep_h as it is where nobody sets it
UNOWED_KEEP_H = 24  # what is owed to nobody (a result in shadow, say) is kept so long for a look


def run(config: Config, life: Life) -> int:
    log = configure("forward").info
    spool = open_spool(config, "received")
    if not wait_until_proved(spool, life, log):
        return EX_OK
    with latching(spool):
        journal = open_journal(config, "forward", spool.free_reserve)
        join(spool, journal)
        _prove(journal, log)
    bell = Bell(config.run_dir, "forward")
    if held := outbox.hold_destinations_gone(journal, [options.name for options in config.destinations]):
        log("destinations_gone", held=held)
    lanes: list[Lane] = []

    def changed() -> None:
        publish_facts(config, "lanes", {lane.name: {"state": lane.state, "reason": lane.reason} for lane in lanes})

    answering: list[Confirmer] = []

    def settled() -> None:
        for one in answering:
            one.wake()

    box = Outbox(journal=journal, path=spool.path, log=log, changed=changed, settled=settled)
    lanes += [Lane(options.name, adapter(config, options), box) for options in config.destinations]
    told = publisher(config, answering)
    answering += confirmers(config, spool, ConfirmDesk(journal=journal, log=log, changed=told))
    senders: list[Lane | Confirmer] = [*lanes, *answering]
    retainer = _retainer(config, journal, spool, log)
    workers = [Worker(f"lane-{lane.name}", lane.run, life, log, spool.latch) for lane in lanes]
    workers += [Worker(f"confirm-{one.calling_ae}", one.run, life, log, spool.latch) for one in answering]
    workers.append(Worker("retain", lambda: retainer.run(life.stopping), life, log, spool.latch))
    changed()
    told()
    life.on_stop = lambda: bell.ring("forward")
    life.ready()
    log("forwarding", destinations=len(lanes))
    while not life.stopping.is_set() and not spool.latched():
        bell.wait(SLOW_POLL_S)
        for sender in senders:
            sender.wake()
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
            security=_security(options),
        )
    )


def _security(options: DimseDestination) -> Security | None:
    if options.tls is None:
        return None
    from appliance.dimse.tls import ClientTls  # noqa: PLC0415 - OpenSSL takes 6 MB, and most sites have no TLS

    tls = options.tls
    return ClientTls(
        ca=tls.ca.file,
        server_name=tls.server_name or str(options.host),
        certificate=tls.certificate.file if tls.certificate is not None else None,
        key=tls.key.file if tls.key is not None else None,
    )


def _retainer(config: Config, journal: Journal, spool: Spool, log: Log) -> Retainer:
    configured = {
        options.name: Keep(commitment=options.proof is Proof.COMMITMENT, keep_ms=int(options.keep_h * HOUR_MS))
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
