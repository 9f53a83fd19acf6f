"""Of engines: which serve, how, and which were taken back by themselves."""

from appliance.cli.attention.told import Attention
from appliance.cli.situation import Situation
from appliance.config import Config, EngineMode


def serving(config: Config, now: Situation) -> list[Attention]:
    if not now.processes["analyse"] or not any(one.mode is not EngineMode.OFF for one in config.engines):
        return []
    if not now.engines_told:
        return [Attention(what="AI not ready yet: the engines are being loaded and verified")]
    degraded = [
        Attention(what=f"DEGRADED: {key}: {why}", do="It serves all the same, and its results say so.")
        for key, fact in now.engines.items()
        if fact["serves"] and (why := fact.get("degraded", ""))
    ]
    return degraded + [
        Attention(
            what=f"AI OFF for {key}: {fact['reason']}" + (f", since {when}" if (when := fact.get("since", "")) else ""),
            do="Its studies are concluded as 'not analysed'."
            if fact.get("on_duty", True)
            else "NOBODY IS TOLD which studies it does not read: mend the package, then restart the appliance.",
        )
        for key, fact in now.engines.items()
        if not fact["serves"]
    ]


def alarms(now: Situation) -> list[Attention]:
    return [
        Attention(
            what=f"ENGINE TAKEN BACK: {alarm}",
            do=f"`scanside trace {engine_id}` tells its history. Decide: `scanside engines activate` or `rollback`.",
        )
        for engine_id, alarm in now.engine_alarms.items()
    ]
