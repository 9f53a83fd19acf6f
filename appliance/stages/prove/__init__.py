"""Prove: what was delivered is asked for until the destination answers for it; only then is a local copy free (P4)."""

from appliance.stages.prove.asking import Asking
from appliance.stages.prove.prover import Desk, Prover
from appliance.stages.prove.querying import Querying

__all__ = ["Asking", "Desk", "Prover", "Querying"]
