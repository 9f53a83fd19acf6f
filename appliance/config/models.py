"""The configuration as values: frozen, every unknown key refused, every option described (docs: config/scanside.yaml).

Defaults are safe: loopback only, nobody may send, nothing is published.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from appliance.config import sources, values
from appliance.model import Commitment, Kind, Priority

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=1, le=65_535)]
PduLength = Annotated[int, Field(ge=4_096, le=1_048_576)]
DEFAULT_SILENCE_S: Mapping[str, float] = {"default": 20.0, "CT": 20.0, "CR": 2.0, "DX": 2.0}


class EngineMode(StrEnum):
    SHADOW = "shadow"  #: runs and is recorded; nothing leaves the box
    PUBLISH = "publish"  #: its results are sent
    OFF = "off"  #: does not run


class Proof(StrEnum):
    """What frees a local copy (P4)."""

    STORE = "store"  #: the destination answered C-STORE with success
    COMMITMENT = "commitment"  #: the destination answers for it (storage commitment, PS3.4 annex J)
    FIND = "find"  #: the destination shows it to a query (C-FIND)


class ClientCertificates(StrEnum):
    """Whether a peer must show a certificate of its own."""

    REQUIRED = "required"
    NONE = "none"


class _Options(BaseModel):
    """A group of keys. A known key without a value counts as left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _nothing_means_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}


MinimumVersion = Literal["TLSv1.2", "TLSv1.3"]


class OutboundTls(_Options):
    """TLS of associations that we ask for: towards a destination, or a device that takes reports."""

    ca: sources.FileOrCredential = Field(description="PEM file of who certifies the other side, or credential:NAME")
    certificate: sources.FileOrCredential | None = Field(
        default=None, description="PEM file of the certificate we show it, or credential:NAME"
    )
    key: sources.FileOrCredential | None = Field(
        default=None, description="PEM file of its private key, or credential:NAME"
    )
    server_name: values.Host | None = Field(
        default=None, description="DNS name or IP address in the other side's certificate; null is the one we call"
    )
    minimum_version: MinimumVersion = Field(default="TLSv1.2", description="oldest TLS we speak to it")


class Peer(_Options):
    """A device that may send to us. AE titles are no authentication, so its address must fit too."""

    ae_title: values.PeerTitle = Field(description="AE title the device calls itself")
    address: values.PeerNetwork = Field(description="IP address of the device, or its network in CIDR form")
    slots: int = Field(default=2, ge=0, le=1_024, description="associations kept free for this device")
    certificate: values.CertificateName | None = Field(
        default=None, description="CN or DNS name that the device's client certificate must carry"
    )
    commitment: Commitment | None = Field(
        default=None, description="what our word means when it asks for storage commitment; null refuses it"
    )
    reports_to: values.PlainHostPort | None = Field(
        default=None, description="host and port where the device takes commitment reports, as HOST:PORT"
    )
    reports_tls: OutboundTls | None = Field(default=None, description="group: TLS towards reports_to; null is plain")


class Tls(_Options):
    """TLS of our listener (PS3.15 B.12)."""

    certificate: sources.FileOrCredential = Field(description="PEM file of our certificate, or credential:NAME")
    key: sources.FileOrCredential = Field(description="PEM file of its private key, or credential:NAME")
    ca: sources.FileOrCredential | None = Field(
        default=None, description="PEM file of the authorities that certify peers, or credential:NAME"
    )
    client_certificates: ClientCertificates = Field(
        default=ClientCertificates.REQUIRED, description="required: peers show a certificate of their own; or none"
    )
    minimum_version: MinimumVersion = Field(default="TLSv1.2", description="oldest TLS we speak")


class Receive(_Options):
    """Our listener."""

    bind: values.BindAddress = Field(default="127.0.0.1", description="IP address of this box to listen on")
    port: int = Field(default=11_112, ge=0, le=65_535, description="TCP port to listen on; 0 takes any free one")
    tls: Tls | None = Field(default=None, description="group: TLS on that port; null is plain TCP")
    unencrypted_port: Port | None = Field(default=None, description="with tls: a second port, without it")
    unencrypted_reason: values.Reason | None = Field(default=None, description="why there is one, in words")
    any_called_ae: bool = Field(default=False, description="accept associations that call another AE title than ours")
    peers: tuple[Peer, ...] = Field(default=(), description="list of the devices that may send; nobody else may")
    mpps: bool = Field(default=True, description="take what devices say of their work (MPPS)")
    private_sop_classes: tuple[values.Uid, ...] = Field(default=(), description="list of further SOP classes to store")
    max_pdu: PduLength = Field(default=131_072, description="bytes of the longest PDU we take")
    associations: int = Field(default=64, ge=1, le=1_024, description="associations open at a time, in all")
    associations_per_peer: int = Field(default=16, ge=1, le=1_024, description="associations open at a time, per peer")
    idle_s: Seconds = Field(default=300, description="seconds after which a silent association is ended")
    min_rate: int = Field(default=10_000, ge=1, le=1_000_000_000, description="bytes per second inside a PDU")


class Reserve(_Options):
    """What stays free; below it we answer 0xA700 (P5)."""

    free_mb: int = Field(default=2_048, ge=1, le=100_000_000, description="megabytes of disk kept free")
    free_inodes: int = Field(default=10_000, ge=0, le=1_000_000_000, description="inodes kept free; 0 does not look")
    journal_mb: int = Field(default=64, ge=1, le=1_048_576, description="megabytes kept for the journal's last words")
    outage_h: float = Field(default=24, ge=0, le=8_760, description="hours without a PACS that the disk should do for")


def _with_defaults(given: Mapping[str, float]) -> Mapping[str, float]:
    return {**DEFAULT_SILENCE_S, **given}


class SeriesRules(_Options):
    """When a series counts as complete."""

    silence_s: Annotated[
        Mapping[values.ModalityOrDefault, Annotated[float, Field(gt=0, le=3_600)]], AfterValidator(_with_defaults)
    ] = Field(default=DEFAULT_SILENCE_S, description="group of seconds of silence per modality that close a series")

    def silence_for(self, modality: str) -> float:
        """Seconds of silence that close a series of this modality."""
        return self.silence_s.get(modality.upper(), self.silence_s["default"])


class Engine(_Options):
    """An engine of this box: a folder of this name under engines_dir."""

    id: values.EngineId = Field(description="name of the engine's folder")
    mode: EngineMode = Field(default=EngineMode.SHADOW, description="shadow, publish or off")
    deadline_s: Seconds = Field(default=300, description="seconds until a study without an answer is 'not analysed'")


class Analyse(_Options):
    """The child process that runs engines."""

    python: values.Program | None = Field(default=None, description="interpreter of the runtime child; null is ours")
    threads: int = Field(default=1, ge=1, le=256, description="processor threads an engine may use")
    memory_mb: int = Field(default=4_096, ge=64, le=1_048_576, description="megabytes of memory an engine may use")
    read_memory_mb: int = Field(
        default=4_096, ge=1_024, le=1_048_576, description="megabytes of memory that reading images may use"
    )


class PriorityRule(_Options):
    """The site's word on which finding is urgent. Nothing can make a study less urgent."""

    engine: values.EngineId = Field(description="id of the engine that says it")
    label: str = Field(min_length=1, max_length=64, description="label of the finding, as in the engine's manifest")
    min_score: float = Field(default=0.0, ge=0, le=1, description="score from which the rule holds, 0 to 1")
    priority: Literal[Priority.URGENT] = Field(default=Priority.URGENT, description="priority the finding gives")


class When(_Options):
    """Conditions of a destination: all lists must hold; an empty list always holds."""

    calling_ae: tuple[values.AeTitle, ...] = Field(default=(), description="list of AE titles that sent the images")
    modality: tuple[values.Modality, ...] = Field(default=(), description="list of modality codes")
    sop_class: tuple[values.Uid, ...] = Field(default=(), description="list of SOP class UIDs")
    engine: tuple[values.EngineId, ...] = Field(default=(), description="list of engine ids (for results only)")
    priority: tuple[Priority, ...] = Field(default=(), description="list of priorities")


def _not_empty(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    if not kinds:
        raise ValueError(f"the list is empty: name at least one of {', '.join(Kind)}")
    return kinds


class _DestinationOptions(_Options):
    """What every kind of destination has."""

    name: values.DestinationName = Field(description="name of the destination in status and history")
    takes: Annotated[tuple[Kind, ...], AfterValidator(_not_empty)] = Field(description="list of what it gets")
    when: When = Field(default=When(), description="group of conditions")
    accept_reference: bool = Field(default=False, description="results of reference engines may go there")
    keep_h: float = Field(default=24, ge=0, le=8_760, description="hours a local copy is kept after its proof")


class Pace(_Options):
    """How much the line to a destination may carry at some hours."""

    hours: values.Hours = Field(description="hours of the local day, such as 08:00-18:00")
    kbit_s: int = Field(ge=16, le=10_000_000, description="kilobits per second that it may carry then")


class DimseDestination(_DestinationOptions):
    """A PACS or other DICOM node."""

    kind: Literal["dimse"] = Field(description="dimse or folder")
    host: values.Host = Field(description="host name or IP address (kind dimse)")
    port: Port = Field(description="TCP port, 104 or 11112 as a rule (kind dimse)")
    called_ae: values.AeTitle = Field(description="AE title of the destination (kind dimse)")
    calling_ae: values.AeTitle | None = Field(default=None, description="AE title we call with; null is ae_title")
    proof: Proof = Field(default=Proof.STORE, description="what frees a local copy")
    proof_timeout_h: float = Field(
        default=24, gt=0, le=8_760, description="hours to wait for that proof before it is asked for, or sent, again"
    )
    timeout_s: Seconds = Field(default=30, description="seconds to wait for an answer")
    max_pdu: PduLength = Field(default=131_072, description="bytes of the longest PDU we take")
    tls: OutboundTls | None = Field(default=None, description="group: TLS towards it; null is plain TCP")
    associations: int = Field(
        default=4, ge=1, le=16, description="associations for images at one time, where so many carry more than fewer"
    )
    congestion: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,15}$")] = Field(
        default="auto", description="TCP congestion control: auto is bbr where the kernel has it; or its name"
    )
    pace: tuple[Pace, ...] = Field(default=(), description="list of hours in which the line may carry only so much")
    images: values.Hours | None = Field(
        default=None, description="hours of the local day in which images go; results always go; null is always"
    )
    path: None = Field(default=None, description="folder to write into (kind folder)")


class FolderDestination(_DestinationOptions):
    """A folder of this box or of a mounted share."""

    kind: Literal["folder"] = Field(description="dimse or folder")
    path: values.Folder = Field(description="folder to write into (kind folder)")
    proof: Literal[Proof.STORE] = Field(default=Proof.STORE, description="what frees a local copy")
    proof_timeout_h: None = Field(default=None, description="only for kind dimse")
    host: None = Field(default=None, description="only for kind dimse")
    port: None = Field(default=None, description="only for kind dimse")
    called_ae: None = Field(default=None, description="only for kind dimse")
    calling_ae: None = Field(default=None, description="only for kind dimse")
    timeout_s: None = Field(default=None, description="only for kind dimse")
    tls: None = Field(default=None, description="only for kind dimse")
    max_pdu: None = Field(default=None, description="only for kind dimse")
    associations: None = Field(default=None, description="only for kind dimse")
    congestion: None = Field(default=None, description="only for kind dimse")
    pace: None = Field(default=None, description="only for kind dimse")
    images: None = Field(default=None, description="only for kind dimse")


def _likely_kind(data: Any) -> str:
    """Which model to read a destination with, also where `kind` is missing or mistyped: all errors show at once."""
    if isinstance(data, FolderDestination):
        return "<folder>"
    if not isinstance(data, dict):
        return "<dimse>"
    kind = data.get("kind")
    guess = "folder" if data.get("path") is not None and data.get("host") is None else "dimse"
    return f"<{kind if kind in ('dimse', 'folder') else guess}>"


Destination = Annotated[
    Annotated[DimseDestination, Tag("<dimse>")] | Annotated[FolderDestination, Tag("<folder>")],
    Discriminator(_likely_kind),
]


class Config(_Options):
    """The whole configuration. Read it with `load`, which also checks what concerns more than one option."""

    node: values.NodeName = Field(default="scanside", description="name of this box in results and history")
    ae_title: values.AeTitle = Field(default="SCANSIDE", description="our own AE title")
    state: values.Folder = Field(default=Path("var"), description="folder for images, journal and run files")
    receive: Receive = Field(default=Receive(), description="group: who may send, and how")
    reserve: Reserve = Field(default=Reserve(), description="group: what stays free")
    series: SeriesRules = Field(default=SeriesRules(), description="group: when a series is complete")
    engines_dir: values.Folder = Field(default=Path("../engines"), description="folder of the engine packages")
    engines: tuple[Engine, ...] = Field(default=(), description="list of the engines of this box")
    analyse: Analyse = Field(default=Analyse(), description="group: the child process that runs engines")
    priorities: tuple[PriorityRule, ...] = Field(default=(), description="list of findings that are urgent here")
    destinations: tuple[Destination, ...] = Field(default=(), description="list of where things are sent")

    @property
    def state_dir(self) -> Path:
        return self.state

    @property
    def journal_path(self) -> Path:
        return self.state / "journal.sqlite"

    @property
    def spool_dir(self) -> Path:
        return self.state / "spool"

    @property
    def run_dir(self) -> Path:
        return self.state / "run"

    def engine(self, engine_id: str) -> Engine | None:
        return next((engine for engine in self.engines if engine.id == engine_id), None)

    def destination(self, name: str) -> DimseDestination | FolderDestination | None:
        return next((destination for destination in self.destinations if destination.name == name), None)
