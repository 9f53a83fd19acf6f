"""Proof of delivery in the forward process: who asks which destination, and how."""

from collections.abc import Callable

from appliance.config import Config, DimseDestination, Proof
from appliance.destinations.proofs import CommitmentNode, QueryNode
from appliance.journal import proofs
from appliance.journal.store import Journal
from appliance.stages.prove import Asking, Desk, Prover, Querying
from appliance.wiring.common import HOUR_MS, publish_facts
from appliance.wiring.outbound import target


def provers(config: Config, desk: Desk) -> list[Prover]:
    """One for each destination whose C-STORE success is not enough."""
    found: list[Prover] = []
    for options in config.destinations:
        if not isinstance(options, DimseDestination) or options.proof is Proof.STORE:
            continue
        timeout_ms = int(options.proof_timeout_h * HOUR_MS)
        if options.proof is Proof.COMMITMENT:
            found.append(Asking(options.name, CommitmentNode(target(config, options)), timeout_ms, desk))
        else:
            found.append(Querying(options.name, QueryNode(target(config, options)), timeout_ms, desk))
    return found


def need_proof(config: Config, journal: Journal) -> None:
    """The journal learns which those are, before anything is sent. Raises OutOfResources, StoreFailed."""
    proving = {options.name for options in config.destinations if options.proof is not Proof.STORE}
    proofs.need(journal, proving, {options.name for options in config.destinations} - proving)


def publisher(config: Config, running: list[Prover]) -> Callable[[], None]:
    """Tells `status` how the provers that are in this list by then are doing."""
    return lambda: publish_facts(
        config, "proofs", {one.name: {"state": one.state, "reason": one.reason} for one in running}
    )
