"""What of a situation needs somebody, in words; each module tells of one part of it."""

from datetime import UTC, datetime

from appliance.cli.attention import box, engines, sending, studies
from appliance.cli.attention.told import Attention
from appliance.cli.situation import Situation
from appliance.config import Config

__all__ = ["Attention", "attentions"]


def attentions(config: Config, now: Situation) -> list[Attention]:
    """What is not as it should be, worst first."""
    return [
        *box.store(now),
        *box.outage(config, now),
        *studies.identities(now),
        *box.processes(now),
        *engines.serving(config, now),
        *engines.alarms(now),
        *box.certificate(now, datetime.now(UTC)),
        *sending.lanes(config, now),
        *sending.held_back(now),
        *sending.unproven(config, now),
        *sending.reports(config, now),
        *studies.awaited(now),
        *box.oddities(now),
    ]
