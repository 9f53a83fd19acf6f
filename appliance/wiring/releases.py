"""Where the engines of a configuration are kept, and how they were proved. Light: commands that only look import it."""

import json
from typing import Any

from appliance.config import Config
from appliance.engine_store import removal
from appliance.engine_store.store import EngineStore, Named


def engine_store(config: Config) -> EngineStore:
    return EngineStore(
        root=config.store_dir,
        shipped=config.engines_dir,
        public_key=config.engines_key.file if config.engines_key else None,
    )


def report_of(store: EngineStore, named: Named) -> dict[str, Any] | None:
    """What `verify` wrote last of a release, or None."""
    try:
        found = json.loads(removal.report_of(store.root / named.engine_id, named.release).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
