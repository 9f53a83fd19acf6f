"""Where things are sent, as values: the kinds of destinations, and what each of them needs."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from appliance.config import sources, values
from appliance.config.groups import Options, OutboundTls, PduLength, Port, Seconds
from appliance.model import Kind, Priority


class Proof(StrEnum):
    """What frees a local copy (P4)."""

    STORE = "store"  #: the destination answered C-STORE with success
    COMMITMENT = "commitment"  #: the destination answers for it (storage commitment, PS3.4 annex J)
    FIND = "find"  #: the destination shows it to a query (C-FIND)


class When(Options):
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


class _DestinationOptions(Options):
    """What every kind of destination has."""

    name: values.DestinationName = Field(description="name of the destination in status and history")
    takes: Annotated[tuple[Kind, ...], AfterValidator(_not_empty)] = Field(description="list of what it gets")
    when: When = Field(default=When(), description="group of conditions")
    accept_reference: bool = Field(default=False, description="results of reference engines may go there")
    keep_h: float = Field(default=24, ge=0, le=8_760, description="hours a local copy is kept after its proof")


class Pace(Options):
    """How much the line to a destination may carry at some hours."""

    hours: values.Hours = Field(description="hours of the local day, such as 08:00-18:00")
    kbit_s: int = Field(ge=16, le=10_000_000, description="kilobits per second that it may carry then")


KINDS = "dimse, stow or folder"
ONLY_DIMSE, ONLY_STOW, NOT_FOLDER = "only for kind dimse", "only for kind stow", "not for kind folder"


class _NodeOptions(_DestinationOptions):
    """What every destination over a network has."""

    timeout_s: Seconds = Field(default=30, description="seconds to wait for an answer")
    tls: OutboundTls | None = Field(
        default=None, description="group: TLS towards it; null is plain TCP, or whom the system trusts with https"
    )
    associations: int = Field(
        default=4, ge=1, le=16, description="associations for images at one time, where so many carry more than fewer"
    )
    congestion: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,15}$")] = Field(
        default="auto", description="TCP congestion control: auto is bbr where the kernel has it; or its name"
    )
    pace: tuple[Pace, ...] = Field(default=(), description="list of hours in which the line may carry only so much")
    images: values.Hours | None = Field(
        default=None, description="hours of the local day in which images are begun; results always go; null is always"
    )
    path: None = Field(default=None, description="folder to write into (kind folder)")


class DimseDestination(_NodeOptions):
    """A PACS or other DICOM node."""

    kind: Literal["dimse"] = Field(description=KINDS)
    host: values.Host = Field(description="host name or IP address (kind dimse)")
    port: Port = Field(description="TCP port, 104 or 11112 as a rule (kind dimse)")
    called_ae: values.AeTitle = Field(description="AE title of the destination (kind dimse)")
    calling_ae: values.AeTitle | None = Field(default=None, description="AE title we call with; null is ae_title")
    proof: Proof = Field(default=Proof.STORE, description="what frees a local copy")
    proof_timeout_h: float = Field(
        default=24, gt=0, le=8_760, description="hours to wait for that proof before it is asked for, or sent, again"
    )
    max_pdu: PduLength = Field(default=131_072, description="bytes of the longest PDU we take")
    compress: Literal["lossless"] | None = Field(
        default=None, description="lossless: compress images where that is quicker and it takes them; null: never"
    )
    reencode: bool = Field(
        default=True, description="what it does not take as it is stored goes uncompressed, if nothing is lost by it"
    )
    decode_lossy: bool = Field(default=False, description="what was compressed with loss may go uncompressed, too")
    url: None = Field(default=None, description="https address, studies are posted to URL/studies (kind stow)")
    token: None = Field(default=None, description=ONLY_STOW)


class _OtherThanDimse(_DestinationOptions):
    """What only a DIMSE node has."""

    proof: Literal[Proof.STORE] = Field(default=Proof.STORE, description="what frees a local copy")
    proof_timeout_h: None = Field(default=None, description=ONLY_DIMSE)
    host: None = Field(default=None, description=ONLY_DIMSE)
    port: None = Field(default=None, description=ONLY_DIMSE)
    called_ae: None = Field(default=None, description=ONLY_DIMSE)
    calling_ae: None = Field(default=None, description=ONLY_DIMSE)
    max_pdu: None = Field(default=None, description=ONLY_DIMSE)
    compress: None = Field(default=None, description=ONLY_DIMSE)
    reencode: None = Field(default=None, description=ONLY_DIMSE)
    decode_lossy: None = Field(default=None, description=ONLY_DIMSE)


class StowDestination(_NodeOptions, _OtherThanDimse):
    """A DICOMweb server that takes instances (STOW-RS, PS3.18 10.5)."""

    kind: Literal["stow"] = Field(description=KINDS)
    url: values.WebUrl = Field(description="https address, studies are posted to URL/studies (kind stow)")
    token: sources.FileOrCredential | None = Field(
        default=None, description="file of a bearer token, or credential:NAME (kind stow)"
    )


class FolderDestination(_OtherThanDimse):
    """A folder of this box or of a mounted share."""

    kind: Literal["folder"] = Field(description=KINDS)
    path: values.Folder = Field(description="folder to write into (kind folder)")
    url: None = Field(default=None, description=ONLY_STOW)
    token: None = Field(default=None, description=ONLY_STOW)
    timeout_s: None = Field(default=None, description=NOT_FOLDER)
    tls: None = Field(default=None, description=NOT_FOLDER)
    associations: None = Field(default=None, description=NOT_FOLDER)
    congestion: None = Field(default=None, description=NOT_FOLDER)
    pace: None = Field(default=None, description=NOT_FOLDER)
    images: None = Field(default=None, description=NOT_FOLDER)


def _likely_kind(data: Any) -> str:
    """Which model to read a destination with, also where `kind` is missing or mistyped: all errors show at once."""
    if isinstance(data, FolderDestination | StowDestination):
        return f"<{data.kind}>"
    if not isinstance(data, dict):
        return "<dimse>"
    kind = data.get("kind")
    guess = "dimse"
    if data.get("host") is None:
        guess = "folder" if data.get("path") is not None else "stow" if data.get("url") is not None else guess
    return f"<{kind if kind in ('dimse', 'stow', 'folder') else guess}>"


Destination = Annotated[
    Annotated[DimseDestination, Tag("<dimse>")]
    | Annotated[StowDestination, Tag("<stow>")]
    | Annotated[FolderDestination, Tag("<folder>")],
    Discriminator(_likely_kind),
]
