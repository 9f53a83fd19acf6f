"""The configuration: pydantic models read from one YAML file, with every error at once as `file:line: key: reason`."""

from appliance.config.loader import load
from appliance.config.models import (
    Analyse,
    ClientCertificates,
    Config,
    Destination,
    DimseDestination,
    Engine,
    EngineMode,
    FolderDestination,
    OutboundTls,
    Peer,
    PriorityRule,
    Proof,
    Receive,
    Reserve,
    SeriesRules,
    Tls,
    When,
)

__all__ = [
    "Analyse",
    "ClientCertificates",
    "Config",
    "Destination",
    "DimseDestination",
    "Engine",
    "EngineMode",
    "FolderDestination",
    "OutboundTls",
    "Peer",
    "PriorityRule",
    "Proof",
    "Receive",
    "Reserve",
    "SeriesRules",
    "Tls",
    "When",
    "load",
]
