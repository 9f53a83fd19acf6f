"""Where the engines of a configuration are kept. Light: commands that only look import it."""

from appliance.config import Config
from appliance.engine_store.store import EngineStore


def engine_store(config: Config) -> EngineStore:
    return EngineStore(
        root=config.store_dir,
        shipped=config.engines_dir,
        public_key=config.engines_key.file if config.engines_key else None,
    )
