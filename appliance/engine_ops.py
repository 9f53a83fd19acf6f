"""The vocabulary of a manifest's `preprocess` and `postprocess`: what may be declared, with its parameters.

Only the words live here, as pydantic models told apart by `op`, and what shapes they need; appliance.imaging gives
them their meaning. A package therefore carries no code. An op of `preprocess` works on the image, which becomes the
one model input that no op makes: a volume in HU, or a film within [0, 1] as its sender meant it to be seen (LUTs,
window and MONOCHROME1 are the film reader's business: brighter is always denser).

What needs no word of its own: to clip HU is `window`; to classify, and to say whether a film or series is fit to be
read, are uses of `label_scores`, whose findings stand for no lesion and bear no anatomical site.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Millimetres = Annotated[float, Field(gt=0, le=1000)]
Share = Annotated[float, Field(gt=0, lt=1)]
Labels = Annotated[tuple[Name, ...], Field(min_length=1, max_length=256)]
MaxFindings = Annotated[int, Field(ge=1, le=50)]
#: A part of an image as fractions of its width and height: column min, row min, column max, row max.
Region = tuple[Fraction, Fraction, Fraction, Fraction]
#: Declared outputs by name; -1 is any length.
Shapes = Mapping[str, tuple[int, ...]]

MAX_ELEMENTS = 2**24  #: of what a model gets in one run: 64 MB, all channels of the image; each mask
MAX_IN_PATCHES = 2**25  #: of what it gets patch by patch, all channels of the image
MAX_JOINED = 2**26  #: of all outputs together that are averaged on the grid of the volume: 256 MB
MAX_PATCHES = 10_000


class ManifestPart(BaseModel):
    """Base of everything in a manifest: immutable; unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PreprocessOp(ManifestPart):
    def input_names(self) -> tuple[str, ...]:
        """The inputs of the model that this op makes beside the image."""
        return ()


class PostprocessOp(ManifestPart):
    scopes: ClassVar[tuple[str, ...]] = ("series",)  #: what may be read: "instance" is one film, "series" a volume
    #: How answers to patches become one: "mean" where outputs lie on the grid of the inputs, element by element, and
    #: are averaged; "union" where they are lists of boxes; "" where there is no way.
    joined: ClassVar[Literal["", "mean", "union"]] = ""

    def output_names(self) -> tuple[str, ...]:
        """The outputs of the model that this op reads."""
        return ()

    def score_names(self) -> tuple[str, ...]:
        """Those of them that must lie within 0..1."""
        return ()

    def label_names(self) -> tuple[str, ...]:
        """The labels that this op's findings may bear."""
        return ()

    def misfits(self, shapes: Shapes) -> Iterator[str]:  # noqa: ARG002 - those of the kinds look at them
        """What is wrong with the declared shapes of the outputs that this op reads."""
        yield from ()


def fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether a declared shape may turn out as `wanted`, where None is any length."""
    return len(shape) == len(wanted) and all(
        n in (-1, want) or want is None for n, want in zip(shape, wanted, strict=True)
    )


def _misfit(shapes: Shapes, name: str, words: str, *wanted: tuple[int | None, ...]) -> Iterator[str]:
    if name in shapes and not any(fits(shapes[name], one) for one in wanted):
        yield f"{name} has the shape {list(shapes[name])}; {words}"


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
    """Linear from [low, high] to [0, 1], clipped. Volumes: of HU, which is how HU are clipped. Films: of [0, 1]."""

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


class Normalise(PreprocessOp):
    """(value - mean) / std, one channel of the model for each mean; only `sliding_window` may come after it.

    A model that wants three equal channels gets three equal means. From [0, 1] to [-1, 1]: mean 0.5, std 0.5. A
    negative std turns the grey scale round. Means and stds in HU, of a model whose HU are clipped to [low, high], come
    after `window` as (mean - low) / (high - low) and std / (high - low).
    """

    op: Literal["normalise"]
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=4)]
    std: Annotated[tuple[float, ...], Field(min_length=1, max_length=4)]

    @model_validator(mode="after")
    def _one_std_for_each_mean(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} stds; there is one of each for each channel")
        if min(map(abs, self.std)) < 1e-6:
            raise ValueError("a std is 0")
        return self


PatchLength = Annotated[int, Field(ge=8, le=512)]


class SlidingWindow(PreprocessOp):
    """The model takes a patch of `size` voxels (z, y, x), and is run on as many as cover the volume. The last op.

    Neighbours overlap by at least `overlap` of their size. Where they do, outputs on the grid of the inputs are
    averaged: all alike (`constant`), or weighted by a Gaussian about each patch's centre. Boxes are put together. A
    volume smaller than a patch is filled up at its far ends: the image with its nearest voxel, masks with 0.

    The deadline is of the whole volume. A golden case of such an engine is one patch and what the model answers to it,
    and what `engines verify` measures is the time of one patch.

    A volume has at most MAX_IN_PATCHES elements in all its channels, MAX_JOINED in all outputs on its grid, and
    MAX_PATCHES patches: a larger one is told as not analysed. `engines check` says how large that is.
    """

    op: Literal["sliding_window"]
    size: tuple[PatchLength, PatchLength, PatchLength]
    overlap: Annotated[float, Field(ge=0, le=0.75)] = 0.25
    blend: Literal["gaussian", "constant"] = "gaussian"


class LesionCandidates(PostprocessOp):
    """Peaks of a score volume, measured in the source images and ranked; at most `max_findings`."""

    joined: ClassVar[Literal["", "mean", "union"]] = "mean"

    op: Literal["lesion_candidates"]
    score: Name
    radius: Name  #: volume of the best radius in mm at each voxel
    mask: Name
    label: Name
    solid_hu: float = -400.0
    min_diameter_mm: Millimetres = 4.0
    max_findings: MaxFindings = 10
    #: The model was trained to tell lesions from vessels and the chest wall: nothing is marked down for what it
    #: touches, and a lesion that is not solid is given the model's radius instead of being dropped.
    learnt: bool = False

    def output_names(self) -> tuple[str, ...]:
        return self.score, self.radius

    def score_names(self) -> tuple[str, ...]:
        return (self.score,)

    def label_names(self) -> tuple[str, ...]:
        return (self.label,)

    def misfits(self, shapes: Shapes) -> Iterator[str]:
        for name in (self.score, self.radius):
            yield from _misfit(shapes, name, "wanted is (1, 1, z, y, x)", (1, 1, None, None, None))


class LabelScores(PostprocessOp):
    """A vector of scores, one for each label in order: a classifier of films or volumes, or a judge of their quality.

    A finding is drawn on the label's region of the film, or on the middle slice of the volume, whole.
    """

    scopes: ClassVar[tuple[str, ...]] = ("instance", "series")
    op: Literal["label_scores"]
    scores: Name
    labels: Labels
    regions: dict[Name, Region] = {}  #: of films

    def output_names(self) -> tuple[str, ...]:
        return (self.scores,)

    def score_names(self) -> tuple[str, ...]:
        return (self.scores,)

    def label_names(self) -> tuple[str, ...]:
        return (*self.labels, *self.regions)

    def misfits(self, shapes: Shapes) -> Iterator[str]:
        words = f"wanted is (1, {len(self.labels)}), a score for each label"
        yield from _misfit(shapes, self.scores, words, (1, len(self.labels)))


class HeatMap(PostprocessOp):
    """A map of scores for each label, of any resolution, over the film that the model was given.

    Without `scores` each region of a map at or above its label's threshold is a finding, with the score of its peak.
    With `scores`, a vector as of `label_scores`, these decide and are stated: the finding is drawn about the peak of
    the label's map, as far as the map is above `share` of that peak. Regions outside the film, where `letterbox`
    filled the square, are dropped, others clipped to it.
    """

    scopes: ClassVar[tuple[str, ...]] = ("instance",)
    op: Literal["heat_map"]
    map: Name  #: (1, one for each label in order, rows, columns)
    labels: Labels
    scores: Name | None = None
    share: Share = 0.5
    max_findings: MaxFindings = 10

    def output_names(self) -> tuple[str, ...]:
        return (self.map,) if self.scores is None else (self.map, self.scores)

    def score_names(self) -> tuple[str, ...]:
        return self.output_names()

    def label_names(self) -> tuple[str, ...]:
        return self.labels

    def misfits(self, shapes: Shapes) -> Iterator[str]:
        count = len(self.labels)
        words = f"wanted is (1, {count}, rows, columns), a map for each label"
        yield from _misfit(shapes, self.map, words, (1, count, None, None))
        words = f"wanted is (1, {count}), a score for each label"
        yield from _misfit(shapes, self.scores or "", words, (1, count))


class BoxOutputs(PostprocessOp):
    """Boxes with scores, overlapping ones of a label thinned out (non-maximum suppression), best first.

    `boxes` is (count, lengths) or (1, count, lengths), and so are the others. With `classes` each box has one score
    and the number of its label, counted from `first_class`; without, it has a score for each label, or one where
    there is one label. A count is any number up to 100,000, of which the best 1,000 boxes above their threshold are
    looked at. Boxes are clipped to the image, and dropped where nothing is left of them.
    """

    lengths: ClassVar[int]
    boxes: Name
    scores: Name
    classes: Name | None = None
    labels: Labels
    first_class: Annotated[int, Field(ge=0, le=1)] = 0
    layout: Literal["corners", "centre_size"] = "corners"
    iou: Share = 0.5  #: of two boxes that overlap by more than this share of their union, the better one stays
    max_findings: MaxFindings = 10

    def output_names(self) -> tuple[str, ...]:
        return (self.boxes, self.scores) if self.classes is None else (self.boxes, self.scores, self.classes)

    def score_names(self) -> tuple[str, ...]:
        return (self.scores,)

    def label_names(self) -> tuple[str, ...]:
        return self.labels

    def misfits(self, shapes: Shapes) -> Iterator[str]:
        batch = (1,) if len(shapes.get(self.boxes, ())) == 3 else ()
        words = f"wanted is (count, {self.lengths}) or (1, count, {self.lengths})"
        yield from _misfit(shapes, self.boxes, words, (*batch, None, self.lengths))
        one, each = (*batch, None), (*batch, None, len(self.labels))
        alike = "with the count and the batch axis of the boxes, if they have one"
        if self.classes is not None:
            yield from _misfit(shapes, self.scores, f"wanted is one score for each box, {alike}", one)
            yield from _misfit(shapes, self.classes, f"wanted is one class for each box, {alike}", one)
        else:
            words = f"wanted is a score for each box and label, {alike}"
            yield from _misfit(shapes, self.scores, words, *([one, each] if len(self.labels) == 1 else [each]))


class Boxes(BoxOutputs):
    """Of a film: x min, y min, x max, y max (or x and y of the centre, width, height), edges in the model's pixels.

    The first pixel lies between 0 and 1. Where `fractions` is set, they are shares of the model's width and height.
    """

    scopes: ClassVar[tuple[str, ...]] = ("instance",)
    lengths: ClassVar[int] = 4
    op: Literal["boxes"]
    fractions: bool = False


class Boxes3D(BoxOutputs):
    """Of a volume: least corner, then greatest (or centre, then lengths), edges in voxels of the model's grid.

    A finding has its centre in patient mm and is drawn on the slice next to it. It has no size in mm: a box has sides,
    no axes. Boxes of patches are put together before overlapping ones are thinned out; one that touches its patch's
    edge, and has its centre in the last quarter of the overlap there, is left to the patch that sees what is beyond.
    """

    joined: ClassVar[Literal["", "mean", "union"]] = "union"
    lengths: ClassVar[int] = 6
    op: Literal["boxes_3d"]
    axes: Literal["zyx", "xyz"] = "zyx"  #: order within each corner; z is along the slices' normal


class Segmentation(PostprocessOp):
    """Connected parts of what the model marks, largest first, each with volume, axes in its largest slice and place.

    `probabilities`: an output (1, labels, z, y, x), after a channel of background where `background` is set; marked
    is what is at or above the label's threshold, and a finding has its peak for a score. `classes`: (1, 1, z, y, x)
    of whole numbers, 0 for background, 1 for the first label; it has no score, which `min_score` of a rule takes
    for 1. A measure of each label states all that is marked, in ml.
    """

    joined: ClassVar[Literal["", "mean", "union"]] = "mean"
    op: Literal["segmentation"]
    output: Name
    kind: Literal["probabilities", "classes"]
    labels: Labels
    background: bool = False
    largest_only: bool = False  #: of each label, its largest part
    min_ml: Annotated[float, Field(ge=0, le=10_000)] = 0.0  #: smaller parts are no findings
    max_findings: MaxFindings = 10

    @model_validator(mode="after")
    def _background_has_a_channel(self) -> Self:
        if self.background and self.kind == "classes":
            raise ValueError("background means a channel of probabilities; of classes it is 0 in any case")
        return self

    @property
    def channels(self) -> int:
        return 1 if self.kind == "classes" else len(self.labels) + self.background

    def output_names(self) -> tuple[str, ...]:
        return (self.output,)

    def score_names(self) -> tuple[str, ...]:
        return (self.output,) if self.kind == "probabilities" else ()

    def label_names(self) -> tuple[str, ...]:
        return self.labels

    def misfits(self, shapes: Shapes) -> Iterator[str]:
        words = f"wanted is (1, {self.channels}, z, y, x)"
        yield from _misfit(shapes, self.output, words, (1, self.channels, None, None, None))


Preprocess = Annotated[
    Resample | LungHull | CropToMask | Window | PercentileWindow | Letterbox | Normalise | SlidingWindow,
    Field(discriminator="op"),
]
Postprocess = Annotated[
    LesionCandidates | LabelScores | HeatMap | Boxes | Boxes3D | Segmentation, Field(discriminator="op")
]
