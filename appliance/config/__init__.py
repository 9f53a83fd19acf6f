"""The configuration: pydantic models read from one YAML file, with every error at once as `file:line: key: reason`."""

from appliance.config.loader import load
from appliance.config.models import (
    Analyse,
    Config,
    Destination,
    DimseDestination,
    Engine,
    EngineMode,
    FolderDestination,
    Peer,
    PriorityRule,
    Proof,
    Receive,
    Reserve,
    SeriesRules,
    When,
)

__all__ = [
    "Analyse",
    "Config",
    "Destination",
    "DimseDestination",
    "Engine",
    "EngineMode",
    "FolderDestination",
    "Peer",
    "PriorityRule",
    "Proof",
    "Receive",
    "Reserve",
    "SeriesRules",
    "When",
    "load",
]
