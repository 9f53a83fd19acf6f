"""The vocabulary of a manifest's `preprocess` and `postprocess`: what may be declared, with its parameters.

Only the words live here, as pydantic models told apart by `op`; appliance.imaging.preprocess and
appliance.imaging.findings give them their meaning. A package therefore carries no code. An op of `preprocess` works
on the image (a volume in HU or a film), which becomes the one model input that no op makes.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Millimetres = Annotated[float, Field(gt=0, le=1000)]
#: A part of an image as fractions of its width and height: column min, row min, column max, row max.
Region = tuple[Fraction, Fraction, Fraction, Fraction]


class ManifestPart(BaseModel):
    """Base of everything in a manifest: immutable; unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PreprocessOp(ManifestPart):
    def input_names(self) -> tuple[str, ...]:
        """The inputs of the model that this op makes beside the image."""
        return ()


class PostprocessOp(ManifestPart):
    def output_names(self) -> tuple[str, ...]:
        """The outputs of the model that this op reads."""
        return ()

    def label_names(self) -> tuple[str, ...]:
        """The labels that this op's findings may bear."""
        return ()


class Resample(PreprocessOp):
    """Volume onto an isotropic grid: block means in the plane, then linear interpolation."""

    op: Literal["resample"]
    spacing_mm: Annotated[float, Field(ge=0.5, le=10)]


class LungHull(PreprocessOp):
    """1 inside each lung, its concavities closed so that lesions on the pleura stay in; else 0. Volumes in HU only."""

    op: Literal["lung_hull"]
    output: Name
    close_mm: Millimetres = 12.0
    min_ml: Annotated[float, Field(gt=0)] = 100.0  #: an air space smaller than this is no lung

    def input_names(self) -> tuple[str, ...]:
        return (self.output,)


class CropToMask(PreprocessOp):
    """All arrays cut to the mask's bounding box and a margin, each size a multiple of `multiple_of` voxels."""

    op: Literal["crop_to_mask"]
    mask: Name
    margin_mm: Millimetres = 12.0
    multiple_of: Annotated[int, Field(ge=1, le=64)] = 1


class Window(PreprocessOp):
    """Linear from [low, high] to [0, 1], clipped (volume in HU, film in modality values)."""

    op: Literal["window"]
    low: float
    high: float


class PercentileWindow(PreprocessOp):
    """From the image's own percentiles [low, high] to [0, 1], clipped. Films only."""

    op: Literal["percentile_window"]
    low: Annotated[float, Field(ge=0, lt=50)] = 1.0
    high: Annotated[float, Field(gt=50, le=100)] = 99.0


class Letterbox(PreprocessOp):
    """Film scaled to fit a square of `size` pixels, centred; the rest is filled with the nearest edge pixel."""

    op: Literal["letterbox"]
    size: Annotated[int, Field(ge=32, le=2048)]


class LesionCandidates(PostprocessOp):
    """Peaks of a score volume, measured in the source images and ranked; at most `max_findings`."""

    op: Literal["lesion_candidates"]
    score: Name
    radius: Name  #: volume of the best radius in mm at each voxel
    mask: Name
    label: Name
    solid_hu: float = -400.0
    min_diameter_mm: Millimetres = 4.0
    max_findings: Annotated[int, Field(ge=1, le=50)] = 10
    #: The model was trained to tell lesions from vessels and the chest wall: nothing is marked down for what it
    #: touches, and a lesion that is not solid is given the model's radius instead of being dropped.
    learnt: bool = False

    def output_names(self) -> tuple[str, ...]:
        return self.score, self.radius

    def label_names(self) -> tuple[str, ...]:
        return (self.label,)


class LabelScores(PostprocessOp):
    """A vector of scores, one for each label in order; a finding is drawn on the label's region."""

    op: Literal["label_scores"]
    scores: Name
    labels: Annotated[tuple[Name, ...], Field(min_length=1, max_length=256)]
    regions: dict[Name, Region] = {}

    def output_names(self) -> tuple[str, ...]:
        return (self.scores,)

    def label_names(self) -> tuple[str, ...]:
        return (*self.labels, *self.regions)


Preprocess = Annotated[
    Resample | LungHull | CropToMask | Window | PercentileWindow | Letterbox, Field(discriminator="op")
]
Postprocess = Annotated[LesionCandidates | LabelScores, Field(discriminator="op")]
