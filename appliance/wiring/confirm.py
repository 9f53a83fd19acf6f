"""Who answers requests for storage commitment: one confirmer for each AE title that may ask."""

from collections.abc import Callable

from appliance.config import Config, Proof
from appliance.destinations.reports import ReportNode
from appliance.dimse.wire import Target
from appliance.journal.custody import Terms
from appliance.spool import Spool
from appliance.stages.confirm import Confirmer, Desk
from appliance.wiring.common import publish_facts
from appliance.wiring.outbound import security


def confirmers(config: Config, spool: Spool, desk: Desk) -> list[Confirmer]:
    """The config has one AE title mean one thing, at however many addresses it is."""
    committing = frozenset(one.name for one in config.destinations if one.proof is not Proof.STORE)
    found: dict[str, Confirmer] = {}
    for peer in config.receive.peers:
        if peer.commitment is None or peer.reports_to is None:
            continue
        where = Target(
            host=peer.reports_to.host,
            port=peer.reports_to.port,
            calling_ae=config.ae_title,
            called_ae=peer.ae_title,
            security=security(peer.reports_tls, peer.certificate or peer.reports_to.host),
        )
        terms = Terms(meaning=peer.commitment, holds=spool.has, committing=committing)
        found[peer.ae_title] = Confirmer(peer.ae_title, ReportNode(where), terms, desk)
    return list(found.values())


def publisher(config: Config, running: list[Confirmer]) -> Callable[[], None]:
    """Tells `status` how the confirmers that are in this list by then are doing."""
    return lambda: publish_facts(
        config, "reports", {one.calling_ae: {"state": one.state, "reason": one.reason} for one in running}
    )
