"""The words of the project as values: frozen, keyword-only, named as DICOM names them (PS3.3, PS3.6)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

#: Who we are to other DICOM nodes and in the files we write (PS3.7 D.3.3.2).
IMPLEMENTATION_CLASS_UID = "2.25.302853816487043146853287641352719014021"
IMPLEMENTATION_VERSION = "SCANSIDE_010"


class Origin(StrEnum):
    RECEIVED = "received"  #: came from a peer
    RESULT = "result"  #: built here


class Kind(StrEnum):
    """What a destination may take."""

    IMAGE = "image"  #: anything received, images or not
    SR = "sr"  #: structured report
    SC = "sc"  #: secondary capture picture


class Urgency(IntEnum):
    """Order of sending (P7): lower goes first."""

    URGENT_SR = 0
    URGENT_RESULT = 1
    RESULT = 2
    URGENT_IMAGE = 3
    IMAGE = 4


class Priority(StrEnum):
    """How soon somebody should look; a site's rules map findings to it."""

    ROUTINE = "routine"
    URGENT = "urgent"


class Evidence(StrEnum):
    """What says that a series is complete, strongest first."""

    MPPS = "mpps"  #: the scanner said COMPLETED
    COUNT = "count"  #: as many as a header stated (0020,1209)
    SINGLE_IMAGE = "single_image"  #: one-image CR/DX acquisition
    SILENCE = "silence"  #: nothing came for longer than this AE is wont to pause
    RELEASE = "release"  #: associations released and the geometry is closed: provisional only


class Commitment(StrEnum):
    """What our word means when a peer asks whether we answer for its images (storage commitment)."""

    CUSTODY = "custody"  #: we hold it durably, or have delivered it
    DELIVERED = "delivered"  #: every destination it is owed to has it


class Conclusion(StrEnum):
    FINDING = "finding"
    NO_FINDING = "no_finding"
    NOT_ANALYSED = "not_analysed"


class Reason(StrEnum):
    """Why something was not analysed; each maps to a DCM code in the report (PS3.16 CID 9303, 7035...)."""

    DEADLINE = "deadline"
    INCOMPLETE = "incomplete"  #: slices missing, gaps, too few
    GEOMETRY = "geometry"  #: orientation, spacing, not one stack
    UNSUITABLE = "unsuitable"  #: kernel, body part, view, age: outside the manifest
    UNDECODABLE = "undecodable"  #: pixels or header cannot be read
    QUALITY = "quality"  #: the image itself is not usable
    MIXED_IDENTITY = "mixed_identity"  #: more than one patient in a study
    ENGINE_FAILED = "engine_failed"  #: crashed, out of memory, or nonsense output
    NO_ENGINE = "no_engine"  #: package invalid or no runtime
    NO_ROOM = "no_room"  #: the disk's room is kept for images


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the small header reader found. Empty string: absent or unreadable."""

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    modality: str = ""
    patient: bytes = b""  #: SHA-256 of PatientID and its issuer: tells patients apart, names none
    stated_count: int = 0  #: (0020,1209) NumberOfSeriesRelatedInstances; 0 = not stated
    requested_priority: str = ""  #: (0040,1003) RequestedProcedurePriority


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One instance that is durable in the spool and not yet in the journal."""

    sop_class_uid: str  #: of the C-STORE command
    sop_instance_uid: str
    transfer_syntax_uid: str
    digest: bytes  #: of the data set as received (appliance/digest.py)
    size: int  #: bytes of the data set
    file: str  #: name in the spool, relative
    calling_ae: str
    called_ae: str
    peer: str  #: address
    association: int  #: number of the association in this process
    header: Header


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A row of the journal's instance table: a fact."""

    id: int
    origin: Origin
    kind: Kind
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    digest: bytes
    size: int
    file: str
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    patient: bytes
    calling_ae: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A row of the journal's series table. Times are appliance ticks in ms (see journal.clock)."""

    id: int
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    calling_ae: str
    state: str  #: a states.SeriesState value
    revision: int
    arrivals: int  #: instances of this series so far, repeats not counted
    stated_count: int
    first_tick: int
    last_tick: int
    released: bool  #: the peer has no association open any more since the last arrival
    interrupted: bool  #: the association of the last arrival was aborted or lost
    evidence: str  #: an Evidence value, "" while open


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineIdentity:
    """Which engine spoke, on what: written in every result (P8)."""

    id: str
    version: str
    status: str  #: "reference" or "site_accepted"
    package_sha256: str
    model_sha256: str  #: of the file that ran, or that the plan was compiled from: the model's, or a variant's
    runtime: str = ""  #: "onnx"
    runtime_version: str = ""
    device: str = ""  #: "CPU (AMD EPYC)"
    degraded: str = ""  #: why it did not run where it should have, in words; "" if it did
    plan_sha256: str = ""  #: of the plan that ran; "": the model itself did


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing an engine says. Geometry is in source pixels and in patient millimetres (LPS, PS3.3 C.7.6.2)."""

    label: str  #: key of the manifest's labels
    score: float  #: 0..1
    sop_instance_uid: str  #: the image it is drawn on
    box: tuple[float, float, float, float]  #: column min, row min, column max, row max; source pixels
    laterality: str = ""  #: "R", "L" or ""
    centre_mm: tuple[float, float, float] | None = None
    long_axis_mm: float | None = None
    short_axis_mm: float | None = None
    volume_mm3: float | None = None
    has_score: bool = True  #: False: the model states none, `score` is 1, and no result speaks of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What part of the input was read: stated with each result (P6)."""

    series_instance_uid: str
    instances: int
    first_mm: float | None = None  #: position of the first and last slice along the slice normal
    last_mm: float | None = None
    text: str = ""  #: "99 slices, 294 mm, spacing 3.0 mm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job concluded. Committed once; results are built from it and from nothing else."""

    conclusion: Conclusion
    reason: Reason | None = None
    detail: str = ""
    findings: tuple[Finding, ...] = ()
    unlisted: int = 0  #: so many more at least are above their threshold, beyond what the engine may list
    measures: dict[str, float] = field(default_factory=dict)  #: named numbers of the engine, e.g. "inverted": 0.02
    extent: Extent | None = None
    engine: EngineIdentity
    evidence: str = ""
    late: bool = False
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row of the journal's job table: one engine's duty to one instance, series or study."""

    id: int
    engine: str  #: id@version of the package
    scope: str  #: "instance", "series" or "study"
    study_instance_uid: str
    series_instance_uid: str  #: "" for scope study
    sop_instance_uid: str  #: "" but for scope instance
    subject: str  #: the UID that the duty is to
    revision: int
    state: str  #: a states.JobState value
    input_digest: str  #: hex; "" while waiting
    last_instance_id: int  #: inputs are the newest versions with an id up to this
    attempts: int
    deadline_tick: int
    evidence: str
    predecessor: str  #: SOP Instance UID of the SR this one replaces, or ""
    provisional_digest: str  #: input digest of an early run whose outcome is kept, or ""
    outcome: Outcome | None
    concluded_at: str  #: UTC, ISO 8601, "" before
    implausible_clock: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A built result object, durable in the spool, not yet in the journal."""

    kind: Kind
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    digest: bytes
    size: int
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """One delivery to be created with an instance."""

    destination: str
    urgency: Urgency
    held: str = ""  #: a reason: born held (unrouted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A row of the journal's delivery table with what is needed to send it."""

    id: int
    instance_id: int
    destination: str
    urgency: Urgency
    state: str  #: a states.DeliveryState value
    created_tick: int
    attempts: int
    reason: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    file: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What went over the line for an object."""

    transfer_syntax_uid: str
    size: int  #: bytes of the data set


Reference = tuple[str, str]  #: (SOP class UID, SOP Instance UID)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentReport:
    """What is told to a peer that asked for storage commitment (PS3.4 J.3.3)."""

    transaction_uid: str
    from_ae: str  #: our AE title, as the peer knows us
    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, int], ...]  #: with the Failure Reason (0008,1197)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentAnswer:
    """What a destination tells us that we asked for storage commitment (PS3.4 J.3.3)."""

    transaction_uid: str
    committed: frozenset[str]  #: SOP Instance UIDs
    failed: Mapping[str, int]  #: SOP Instance UID -> Failure Reason (0008,1197)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformedSeries:
    """A series that a performed procedure step says it made."""

    series_instance_uid: str
    sop_instance_uids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLine:
    """One line of what happened (P11). No patient data in `detail`."""

    at: str  #: UTC, ISO 8601
    tick: int
    process: str
    event: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    detail: dict[str, Any]
