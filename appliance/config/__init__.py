"""The configuration: pydantic models read from one YAML file, with every error at once as `file:line: key: reason`."""

from appliance.config.destinations import (
    Destination,
    DimseDestination,
    FolderDestination,
    Proof,
    StowDestination,
    When,
)
from appliance.config.groups import OutboundTls
from appliance.config.loader import load
from appliance.config.models import (
    Analyse,
    ClientCertificates,
    Config,
    Engine,
    EngineMode,
    Peer,
    PriorityRule,
    Receive,
    Reserve,
    SeriesRules,
    Tls,
    Webhook,
)
from appliance.config.remote import Remote, RemoteTls

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
    "Remote",
    "RemoteTls",
    "Reserve",
    "SeriesRules",
    "StowDestination",
    "Tls",
    "Webhook",
    "When",
    "load",
]
