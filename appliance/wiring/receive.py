"""The receive process: network in, spool, inbox."""

import os
from collections.abc import Sequence

from appliance import routing
from appliance.config import Config
from appliance.config import Peer as PeerOptions
from appliance.dimse.acceptor import Acceptor
from appliance.dimse.admission import Limits, Peer, Policy, nobody
from appliance.dimse.services import Services
from appliance.dimse.sop_classes import (
    MODALITY_PERFORMED_PROCEDURE_STEP,
    STORAGE_COMMITMENT_PUSH,
    VERIFICATION,
    storage_sop_classes,
)
from appliance.journal.inbox import Routes
from appliance.journal.store import Journal
from appliance.life import Life
from appliance.logs import configure
from appliance.model import Arrival, Kind, Owed
from appliance.spool import Spool
from appliance.stages.receive import Inbox, Receiver
from appliance.stages.receive.operations import operations
from appliance.stages.receive.start import discard_unacknowledged, heal
from appliance.wakeup import Bell
from appliance.wiring.common import (
    EX_LATCHED,
    EX_OK,
    Log,
    Worker,
    join,
    latching,
    open_journal,
    open_spool,
    publish_facts,
)
from appliance.wiring.doors import Doors, tls_guard
from appliance.wiring.reporting import Reporters

LOOK_EVERY_S = 1.0
FILES_AHEAD = 64  # each costs an inode until it is needed, and saves a sync of its folder


def run(config: Config, life: Life) -> int:
    log = configure("receive").info
    guard = tls_guard(config)
    spool = open_spool(config, "received", FILES_AHEAD)
    if not spool.latch_is_safe:
        log("latch_only_on_disk", reason="no folder of our own in /dev/shm")
    with latching(spool):
        journal = open_journal(config, "receive", spool.free_reserve)
        join(spool, journal)
        box = _inbox(config, journal, spool, life, log)
        latched = bool(spool.latched())
        if not latched:
            discard_unacknowledged(box, life.beat)
    receiver = Receiver(box, proven=not latched)
    doors = Doors(config, guard, log)
    reporters = Reporters(config)
    telling = _Telling(config, doors, receiver)
    telling.tell()
    acceptor = Acceptor(
        doors.all,
        _policy(config, reporters),
        _limits(config),
        Services(storage=receiver, operations=operations(box, receiver, reporters.reporting())),
        receiver,
    )
    serving = Worker("acceptor", acceptor.serve, life, log, receiver.failed)
    Worker("reporters", lambda: reporters.run(life.stopping), life, log, receiver.failed)
    life.ready()
    if latched and not heal(box, life.stopping, life.beat):
        return EX_OK
    receiver.proven.set()
    closing = Worker("closer", receiver.closer.run, life, log, receiver.failed)
    doors.announce()
    while not life.stopping.wait(LOOK_EVERY_S) and not spool.latched():  # by another process: heal, as after our own
        if serving.alive and closing.alive and not receiver.recorder.stuck:
            life.beat()
        telling.tell()
    acceptor.stop()
    receiver.closer.stop()
    serving.join()
    spool.close()
    if receiver.fatal.is_set() or spool.latched():
        return EX_LATCHED
    return max(worker.status for worker in (serving, closing))


class _Telling:
    """What `status` is told of this process, written anew when it changes."""

    def __init__(self, config: Config, doors: Doors, receiver: Receiver) -> None:
        self._config, self._doors, self._receiver = config, doors, receiver
        self._told: dict[str, object] = {}

    def tell(self) -> None:
        facts = {**self._doors.facts(), "pid": os.getpid(), "rejections": self._receiver.rejections.summary()}
        if facts != self._told:
            self._told = facts
            publish_facts(self._config, "receive", facts)


def _inbox(config: Config, journal: Journal, spool: Spool, life: Life, log: Log) -> Inbox:
    return Inbox(
        journal=journal,
        spool=spool,
        routes=received_routes(config),
        ring=Bell(config.run_dir, "receive").ring,
        silence_ms=lambda modality: int(config.series.silence_for(modality) * 1000),
        max_in_flight=config.receive.associations * 2 + FILES_AHEAD,
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


def _policy(config: Config, reporters: Reporters | None = None) -> Policy:
    served = storage_sop_classes() | set(config.receive.private_sop_classes) | {VERIFICATION}
    if config.receive.mpps:
        served |= {MODALITY_PERFORMED_PROCEDURE_STEP}
    return Policy(
        ae_title=config.ae_title,
        any_called_ae=config.receive.any_called_ae,
        peers=[_peer(options) for options in config.receive.peers],
        accepts=served.__contains__,
        reporters=reporters.admitted if reporters is not None else nobody,
    )


def _peer(options: PeerOptions) -> Peer:
    return Peer(
        ae_title=options.ae_title,
        network=options.address,
        slots=options.slots,
        certificate=options.certificate or "",
        services=frozenset({STORAGE_COMMITMENT_PUSH} if options.commitment else ()),
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
