"""The receive process: network in, spool, inbox."""

import os
from collections.abc import Sequence

from appliance import routing
from appliance.config import Config
from appliance.dimse.acceptor import Acceptor, listen
from appliance.dimse.admission import Limits, Peer, Policy
from appliance.dimse.sop_classes import VERIFICATION, storage_sop_classes
from appliance.journal.inbox import Routes
from appliance.journal.store import Journal
from appliance.life import Life
from appliance.logs import configure
from appliance.model import Arrival, Kind, Owed
from appliance.spool import Spool
from appliance.stages.receive import Inbox, Receiver
from appliance.stages.receive.start import discard_unacknowledged, heal
from appliance.wakeup import Bell
from appliance.wiring.common import EX_LATCHED, EX_OK, Log, Worker, join, open_journal, open_spool, publish_facts

LOOK_EVERY_S = 1.0


def run(config: Config, life: Life) -> int:
    log = configure("receive").info
    spool = open_spool(config, "received")
    journal = open_journal(config, "receive", spool.free_reserve)
    join(spool, journal)
    box = _inbox(config, journal, spool, life, log)
    latched = bool(spool.latched())
    if not latched:
        discard_unacknowledged(box, life.beat)
    receiver = Receiver(box, proven=not latched)
    listener = listen(str(config.receive.bind), config.receive.port)
    port = listener.getsockname()[1]
    publish_facts(config, "receive", {"port": port, "pid": os.getpid()})
    recording = Worker("recorder", receiver.recorder.run, life, log, receiver.failed)
    acceptor = Acceptor(listener, _policy(config), _limits(config), receiver, receiver)
    serving = Worker("acceptor", acceptor.serve, life, log, receiver.failed)
    life.ready()
    if latched and not heal(box, life.stopping, life.beat):
        return EX_OK
    receiver.proven.set()
    closing = Worker("closer", receiver.closer.run, life, log, receiver.failed)
    log("receiving", port=port)
    while not life.stopping.wait(LOOK_EVERY_S) and not spool.latched():  # by another process: heal, as after our own
        if serving.alive and closing.alive and recording.alive and not receiver.recorder.stuck:
            life.beat()
    acceptor.stop()
    receiver.closer.stop()
    serving.join()
    receiver.recorder.stop()  # last: running associations may still have something to record
    recording.join()
    if receiver.fatal.is_set() or spool.latched():
        return EX_LATCHED
    return max(worker.status for worker in (serving, closing, recording))


def _inbox(config: Config, journal: Journal, spool: Spool, life: Life, log: Log) -> Inbox:
    return Inbox(
        journal=journal,
        spool=spool,
        routes=received_routes(config),
        ring=Bell(config.run_dir, "receive").ring,
        silence_ms=lambda modality: int(config.series.silence_for(modality) * 1000),
        max_in_flight=config.receive.associations * 2,
        fatal=life.stopping.set,
        log=log,
    )


def received_routes(config: Config) -> Routes:
    """Where the configuration has a received object owed."""

    def routes(arrival: Arrival) -> Sequence[Owed]:
        facts = routing.Routed(
            kind=Kind.IMAGE,
            calling_ae=arrival.calling_ae,
            modality=arrival.header.modality,
            sop_class_uid=arrival.sop_class_uid,
            priority=routing.stated_priority(arrival.header),
        )
        return routing.deliveries_for_received(config, facts)

    return routes


def _policy(config: Config) -> Policy:
    served = storage_sop_classes() | set(config.receive.private_sop_classes) | {VERIFICATION}
    return Policy(
        ae_title=config.ae_title,
        any_called_ae=config.receive.any_called_ae,
        peers=[Peer(ae_title=peer.ae_title, network=peer.address, slots=peer.slots) for peer in config.receive.peers],
        accepts=served.__contains__,
    )


def _limits(config: Config) -> Limits:
    options = config.receive
    return Limits(
        max_pdu=options.max_pdu,
        associations=options.associations,
        associations_per_peer=options.associations_per_peer,
        idle_s=options.idle_s,
        min_rate=options.min_rate,
    )
