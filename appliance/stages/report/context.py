"""What a result is built from, and what a built result is."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydicom.sr.coding import Code

from appliance import __version__
from appliance.model import Kind, Outcome
from appliance.stages.report.codes import ABNORMAL_STRUCTURE, LUNG

SERIES_PREFIX = "AI - NOT FOR PRIMARY DIAGNOSIS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One label of the engine's manifest."""

    text: str
    code: Code
    threshold: float  #: score from which a finding is stated


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContext:
    """Committed facts of one concluded job: besides the source headers all that a result depends on.

    Raises ValueError where `concluded_at` has no zone.
    """

    node: str  #: name of this box
    outcome: Outcome
    title: str  #: of the engine, from its manifest
    labels: Mapping[str, Label]  #: by label id; a label that is not here is still reported, under its id
    study_instance_uid: str
    subject: str = ""  #: UID of what was to be read; a deadline may conclude it before any input is known
    engine_key: str  #: id@version
    input_digest: str  #: hex
    revision: int
    concluded_at: datetime  #: aware
    predecessor: str = ""  #: SOP Instance UID of the SR that this one replaces
    predecessor_series: str = ""  #: its Series Instance UID; "" = as we would have named it
    corrects_identity: bool = False  #: an earlier one was published for another patient identity
    box_utc_offset: timedelta = timedelta(0)  #: used where no source header states (0008,0201)
    implausible_clock: bool = False
    finding_site: Code | None = LUNG  #: None: findings are about the film, not about anatomy
    software_version: str = __version__

    def __post_init__(self) -> None:
        if self.concluded_at.tzinfo is None:
            raise ValueError("concluded_at has no time zone")

    @property
    def threshold_text(self) -> str:
        """Such as "lesion >= 0.5", or "none stated"."""
        return "; ".join(f"{key} >= {label.threshold:g}" for key, label in self.labels.items()) or "none stated"

    @property
    def series_description(self) -> str:
        """LO: at most 64 characters (PS3.5 Table 6.2-1)."""
        return f"{SERIES_PREFIX} - {self.title}"[:64].rstrip()

    def label(self, key: str) -> Label:
        """The label of a finding; one that the manifest does not have must not lose the finding."""
        return self.labels.get(key) or Label(text=key, code=ABNORMAL_STRUCTURE, threshold=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A result object, complete in memory, stored nowhere yet."""

    kind: Kind
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    file_bytes: bytes  #: PS3.10 file: preamble, DICM, File Meta Information, data set
    data_set_offset: int  #: where the data set begins in `file_bytes`
