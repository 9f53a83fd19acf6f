"""The configuration as values: frozen, every unknown key refused, every option described (docs: config/scanside.yaml).

Defaults are safe: loopback only, nobody may send, nothing is published.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from appliance.config import sources, values
from appliance.config.destinations import Destination, DimseDestination, FolderDestination, StowDestination
from appliance.config.groups import MinimumVersion, Options, OutboundTls, PduLength, Port, Seconds
from appliance.config.remote import Remote
from appliance.model import Commitment, Priority

DEFAULT_SILENCE_S: Mapping[str, float] = {"default": 20.0, "CT": 20.0, "CR": 2.0, "DX": 2.0}


class EngineMode(StrEnum):
    SHADOW = "shadow"  #: runs and is recorded; nothing leaves the box
    PUBLISH = "publish"  #: its results are sent
    OFF = "off"  #: does not run


class ClientCertificates(StrEnum):
    """Whether a peer must show a certificate of its own."""

    REQUIRED = "required"
    NONE = "none"


class Peer(Options):
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


class Tls(Options):
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


class Receive(Options):
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


class Reserve(Options):
    """What stays free; below it we answer 0xA700 (P5)."""

    free_mb: int = Field(default=2_048, ge=1, le=100_000_000, description="megabytes of disk kept free")
    free_inodes: int = Field(default=10_000, ge=0, le=1_000_000_000, description="inodes kept free; 0 does not look")
    journal_mb: int = Field(default=64, ge=1, le=1_048_576, description="megabytes kept for the journal's last words")
    outage_h: float = Field(default=24, ge=0, le=8_760, description="hours without a PACS that the disk should do for")


def _with_defaults(given: Mapping[str, float]) -> Mapping[str, float]:
    return {**DEFAULT_SILENCE_S, **given}


class SeriesRules(Options):
    """When a series counts as complete."""

    silence_s: Annotated[
        Mapping[values.ModalityOrDefault, Annotated[float, Field(gt=0, le=3_600)]], AfterValidator(_with_defaults)
    ] = Field(default=DEFAULT_SILENCE_S, description="group of seconds of silence per modality that close a series")

    def silence_for(self, modality: str) -> float:
        """Seconds of silence that close a series of this modality."""
        return self.silence_s.get(modality.upper(), self.silence_s["default"])


class Engine(Options):
    """An engine of this box: a folder of this name under engines_dir."""

    id: values.EngineId = Field(description="name of the engine's folder")
    mode: EngineMode = Field(default=EngineMode.SHADOW, description="shadow, publish or off")
    deadline_s: Seconds = Field(default=300, description="seconds until a study without an answer is 'not analysed'")
    precision: Literal["fp32", "fp16"] = Field(
        default="fp32", description="of its plan, once it is compiled: fp32 is the model itself; or its variant fp16"
    )
    remote: Remote | None = Field(default=None, description="group: a server that runs it while it can; null is none")


class Analyse(Options):
    """The child process that runs engines."""

    python: values.Program | None = Field(default=None, description="interpreter of the runtime child; null is ours")
    threads: int = Field(default=1, ge=1, le=256, description="processor threads an engine may use")
    memory_mb: int = Field(default=4_096, ge=64, le=1_048_576, description="megabytes of memory an engine may use")
    gpu_memory_mb: int | None = Field(
        default=None,
        ge=16,
        le=1_048_576,
        description="megabytes of the GPU's memory that a plan may need; null is what is free",
    )
    read_memory_mb: int = Field(
        default=4_096, ge=1_024, le=1_048_576, description="megabytes of memory that reading images may use"
    )
    failures: int = Field(
        default=5,
        ge=0,
        le=1_000,
        description="studies in a row that an engine may fail on, then it is rolled back; 0: any",
    )
    self_test_h: float = Field(
        default=24, ge=0, le=8_760, description="hours between self-tests of an engine that serves; 0: none"
    )


class PriorityRule(Options):
    """The site's word on which finding is urgent. Nothing can make a study less urgent."""

    engine: values.EngineId = Field(description="id of the engine that says it")
    label: str = Field(min_length=1, max_length=64, description="label of the finding, as in the engine's manifest")
    min_score: float = Field(default=0.0, ge=0, le=1, description="score from which the rule holds, 0 to 1")
    priority: Literal[Priority.URGENT] = Field(default=Priority.URGENT, description="priority the finding gives")


class Webhook(Options):
    """Somebody's HTTP server that is told."""

    url: values.AlertUrl = Field(description="where alerts are posted, https://HOST/PATH")
    secret: sources.FileOrCredential = Field(
        description="file of the secret that signs alerts (HMAC-SHA256), or credential:NAME"
    )
    ca: sources.FileOrCredential | None = Field(
        default=None, description="PEM file of who certifies it, or credential:NAME; null is the system's"
    )
    every_s: Annotated[float, Field(ge=1, le=86_400)] = Field(
        default=60, description="seconds in which at most one alert is sent; what happens meanwhile is gathered"
    )


class Alerts(Options):
    """Who is told of what needs somebody."""

    webhook: Webhook | None = Field(default=None, description="group: an HTTP server that is told; null is nobody")


class Config(Options):
    """The whole configuration. Read it with `load`, which also checks what concerns more than one option."""

    node: values.NodeName = Field(default="scanside", description="name of this box in results and history")
    ae_title: values.AeTitle = Field(default="SCANSIDE", description="our own AE title")
    state: values.Folder = Field(default=Path("var"), description="folder for images, journal and run files")
    receive: Receive = Field(default=Receive(), description="group: who may send, and how")
    reserve: Reserve = Field(default=Reserve(), description="group: what stays free")
    series: SeriesRules = Field(default=SeriesRules(), description="group: when a series is complete")
    engines_dir: values.Folder = Field(default=Path("../engines"), description="folder of the engine packages")
    engines_key: sources.FileOrCredential | None = Field(
        default=None, description="PEM file of the public key that engines must be signed with, or credential:NAME"
    )
    engines: tuple[Engine, ...] = Field(default=(), description="list of the engines of this box")
    analyse: Analyse = Field(default=Analyse(), description="group: the child process that runs engines")
    priorities: tuple[PriorityRule, ...] = Field(default=(), description="list of findings that are urgent here")
    destinations: tuple[Destination, ...] = Field(default=(), description="list of where things are sent")
    alerts: Alerts = Field(default=Alerts(), description="group: who is told of what needs somebody")

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

    @property
    def store_dir(self) -> Path:
        """Of the engines that were imported."""
        return self.state / "engines"

    def engine(self, engine_id: str) -> Engine | None:
        return next((engine for engine in self.engines if engine.id == engine_id), None)

    def destination(self, name: str) -> DimseDestination | StowDestination | FolderDestination | None:
        return next((destination for destination in self.destinations if destination.name == name), None)
