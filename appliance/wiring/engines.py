"""What `status` is told of the engines: which serve, and since when and why another is off."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.ports import LoadedEngine
from appliance.stages.desk import EngineOnDuty
from appliance.wiring.common import Log


@dataclass(slots=True, kw_only=True)
class EngineFacts:
    """`loaded` and `unfit` are looked at anew each time: an engine is loaded, or was found to be unfit (why)."""

    engines: Sequence[EngineOnDuty]
    loaded: Mapping[str, LoadedEngine]
    unfit: Mapping[str, str]
    publish: Callable[[dict[str, object]], None]
    utc: Callable[[], str]
    log: Log
    _told: dict[str, dict[str, Any]] | None = field(default=None, init=False)

    def tell(self, failing: Mapping[str, str], abandoned: Sequence[int]) -> None:
        """Publish and log what is other than it was. `failing`: why engines give no answers though they serve;
        `abandoned`: children that were killed and are still there.
        """
        before = self._told or {}
        facts = self._facts(failing, abandoned)
        for key, fact in facts.items():
            was_off = before.get(key, {}).get("since", "")
            fact["since"] = "" if fact["serves"] else was_off or self.utc()
        if facts == self._told:
            return
        for key, fact in facts.items():
            if fact != before.get(key):
                self.log("engine", engine=key, serves=fact["serves"], reason=fact["reason"])
        self._told = facts
        self.publish(dict(facts))

    def _facts(self, failing: Mapping[str, str], abandoned: Sequence[int]) -> dict[str, dict[str, Any]]:
        """Without a readable manifest nobody knows which studies are an engine's: not on duty."""
        stuck = f"process {abandoned[0]} was killed and does not end, so no other may start" if abandoned else ""
        unknown = {
            key: {"serves": False, "on_duty": False, "publish": False, "reason": why} for key, why in self.unfit.items()
        }
        on_duty = {}
        for engine in self.engines:
            why_not = self.unfit.get(engine.key, "") or stuck or failing.get(engine.key, "")
            serves = engine.key in self.loaded and not why_not
            on_duty[engine.key] = {
                "serves": serves,
                "on_duty": True,
                "publish": engine.publish,
                "reason": why_not or ("" if serves else "not loaded"),
                **self._on(self.loaded[engine.key] if serves else None),
            }
        return {**unknown, **on_duty}

    def _on(self, loaded: LoadedEngine | None) -> dict[str, str]:
        """What runs it, where it serves."""
        return {
            "runtime": f"{loaded.runtime} {loaded.runtime_version}".rstrip() if loaded else "",
            "device": loaded.device if loaded else "",
            "plan_sha256": loaded.plan_sha256 if loaded else "",
            "degraded": loaded.degraded if loaded else "",
        }
