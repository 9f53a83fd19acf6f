"""What `engine.yaml` may say, as frozen models (schema 1), and where a manifest contradicts itself.

Knows the words only: files and hashes are checked by `engine_package`, the ops are in `engine_ops`.
"""

import re
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from appliance.engine_ops import (
    MAX_ELEMENTS,
    CropToMask,
    LabelScores,
    LesionCandidates,
    ManifestPart,
    Normalise,
    Postprocess,
    Preprocess,
    Segmentation,
    SlidingWindow,
    fits,
)

MAX_FILES = 256

KeyPath = tuple[str | int, ...]

# Each component starts with a letter or digit: no absolute path, no "..", nothing hidden.
RelativeFile = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$", max_length=200)
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Uid = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]
CodeString = Annotated[str, Field(pattern=r"^[A-Z0-9 _]{1,16}$")]  # VR CS, PS3.5 6.2
Text = Annotated[str, Field(min_length=1, max_length=4000)]
LongString = Annotated[str, Field(pattern=r"^[^\\\x00-\x1f]{1,64}$")]  # VR LO, PS3.5 6.2
ShortString = Annotated[str, Field(pattern=r"^[^\\\x00-\x1f]{1,16}$")]  # VR SH, PS3.5 6.2
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.:/-]*$", max_length=128)]  # as exporters name tensors
Expression = Annotated[str, Field(min_length=1, max_length=64)]
Tolerance = Annotated[float, Field(ge=0, le=1)]


class EngineStatus(StrEnum):
    REFERENCE = "reference"  #: ours, for demonstration: never states a negative (P6)
    SITE_ACCEPTED = "site_accepted"  #: a site has signed for it


class Scope(StrEnum):
    """What one job of this engine reads."""

    INSTANCE = "instance"
    SERIES = "series"


class CountRange(ManifestPart):
    min: Annotated[int, Field(ge=1)]
    max: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError("min must not be above max")
        return self


class LengthRange(ManifestPart):
    min: Annotated[float, Field(gt=0)]
    max: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError("min must not be above max")
        return self


class AgeRange(ManifestPart):
    min: Annotated[float, Field(ge=0, le=150)] = 0.0
    max: Annotated[float, Field(ge=0, le=150)] = 150.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError("min must not be above max")
        return self


class Accepts(ManifestPart):
    """`modality` and `sop_class` decide whether the engine is responsible at all; outside the rest is unsuitable."""

    modality: Annotated[tuple[CodeString, ...], Field(min_length=1, max_length=32)]
    sop_class: Annotated[tuple[Uid, ...], Field(min_length=1, max_length=64)]
    image_type_excludes: Annotated[tuple[CodeString, ...], Field(max_length=32)] = ()
    body_part: Annotated[tuple[CodeString, ...], Field(max_length=64)] = ()
    view: Annotated[tuple[CodeString, ...], Field(max_length=32)] = ()
    orientation: Literal["axial", "coronal", "sagittal"] | None = None  #: of slices; of a film that states its own
    slices: CountRange | None = None
    spacing_mm: LengthRange | None = None  #: distance between slices
    age_years: AgeRange | None = None  #: of the patient, as the images state it (0010,1010)


class Prefer(ManifestPart):
    """Which of several series of a study gives the one result."""

    kernel: Annotated[tuple[Expression, ...], Field(max_length=16)] = ()  #: regular expressions, best first
    spacing_mm: Annotated[float, Field(gt=0, le=1000)] | None = None

    @field_validator("kernel")
    @classmethod
    def _compiles(cls, expressions: tuple[str, ...]) -> tuple[str, ...]:
        for expression in expressions:
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f"{expression!r} is no regular expression: {error}") from error
        return expressions


class Tensor(ManifestPart):
    """An input or output of the model; -1 is a dimension that may have any length."""

    name: Name
    dtype: Literal["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool"]
    shape: Annotated[tuple[Annotated[int, Field(ge=-1, le=2**31)], ...], Field(max_length=8)]


Shape = Annotated[tuple[Annotated[int, Field(ge=1, le=2**31)], ...], Field(max_length=8)]


class InputTensor(Tensor):
    """An input, and the shapes that a compiled plan must take: all three where `shape` leaves a length open."""

    min: Shape | None = None
    opt: Shape | None = None  #: the one to be quick with
    max: Shape | None = None

    @model_validator(mode="after")
    def _one_profile(self) -> Self:
        given = [shape for shape in (self.min, self.opt, self.max) if shape is not None]
        if given and len(given) < 3:
            raise ValueError("min, opt and max belong together")
        for shape in given:
            if len(shape) != len(self.shape) or any(s not in (-1, n) for s, n in zip(self.shape, shape, strict=True)):
                raise ValueError(f"{list(shape)} does not fit the shape {list(self.shape)}")
        if any(sorted(lengths) != list(lengths) for lengths in zip(*given, strict=True)):
            raise ValueError("each length must grow from min over opt to max")
        return self


class Code(ManifestPart):
    """A coded concept (PS3.3 8.8)."""

    value: ShortString
    scheme: ShortString
    meaning: LongString


class Label(ManifestPart):
    text: LongString
    code: Code
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5  #: a score below it is no finding


class Golden(ManifestPart):
    """A case with its known answer: |got - want| <= atol + rtol * |want|."""

    case: RelativeFile
    atol: Tolerance
    rtol: Tolerance


class Tolerances(ManifestPart):
    """Of golden cases that state none; what the numbers decide must be the same in any case."""

    atol: Tolerance
    rtol: Tolerance


class Precision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"  #: with Q/DQ nodes


class Variant(ManifestPart):
    """The same model in another precision, inputs and outputs as they are; how far it may be from the golden cases."""

    file: RelativeFile
    atol: Tolerance
    rtol: Tolerance


Inputs = Annotated[tuple[InputTensor, ...], Field(min_length=1, max_length=32)]
Tensors = Annotated[tuple[Tensor, ...], Field(min_length=1, max_length=32)]
Files = Annotated[dict[RelativeFile, Sha256], Field(min_length=1, max_length=MAX_FILES)]


class Manifest(ManifestPart):
    """What `engine.yaml` says, schema 1."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
    version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+([+-][0-9A-Za-z.-]+)?$", max_length=32)]
    status: EngineStatus
    title: LongString
    intended_use: Text
    licence: Text
    author: Text
    training_data: Text
    scope: Scope
    one_per: Literal["study"] | None = None
    prefer: Prefer | None = None
    accepts: Accepts
    inputs: Inputs
    preprocess: Annotated[tuple[Preprocess, ...], Field(max_length=32)]
    outputs: Tensors
    postprocess: Postprocess
    labels: Annotated[dict[Name, Label], Field(min_length=1, max_length=256)]
    tolerances: Tolerances | None = None
    golden: Annotated[tuple[Golden, ...], Field(min_length=1, max_length=64)]
    model: RelativeFile
    variants: Annotated[dict[Precision, Variant], Field(max_length=len(Precision), default_factory=dict)]
    files: Files

    @model_validator(mode="before")
    @classmethod
    def _give_golden_cases_their_tolerances(cls, data: Any) -> Any:
        """Those that state none of their own."""
        if not isinstance(data, dict):
            return data
        common, cases = data.get("tolerances"), data.get("golden")
        if not isinstance(common, dict) or not isinstance(cases, list):
            return data
        known = {key: common[key] for key in ("atol", "rtol") if key in common}
        return data | {"golden": [known | case if isinstance(case, dict) else case for case in cases]}


def contradictions(manifest: Manifest) -> Iterator[tuple[KeyPath, str]]:
    """Where parts that are each well formed do not fit together: the key path, and what is wrong there."""
    if manifest.one_per is not None and manifest.scope is not Scope.SERIES:
        yield ("one_per",), "only an engine of scope series can have one result per study"
    if manifest.prefer is not None and manifest.one_per is None:
        yield ("prefer",), "means nothing without one_per"
    last = manifest.postprocess
    if manifest.scope not in last.scopes:
        yield ("scope",), f"the op {last.op} reads one {' or one '.join(last.scopes)}"
    if isinstance(last, LabelScores) and last.regions and manifest.scope is Scope.SERIES:
        yield ("postprocess", "regions"), "are of films, and the scope is series"
    yield from _unmade_inputs(manifest)
    yield from _unmade_masks(manifest)
    yield from _unknown_names(manifest)
    yield from _misplaced_ops(manifest)
    shapes = {tensor.name: tensor.shape for tensor in manifest.outputs}
    yield from ((("postprocess",), words) for words in last.misfits(shapes))
    for number, op in enumerate(manifest.preprocess):
        if isinstance(op, SlidingWindow):
            yield from _unfit_for_patches(manifest, op, number)
    named: list[tuple[KeyPath, str]] = [(("model",), manifest.model)]
    named += [(("golden", index, "case"), golden.case) for index, golden in enumerate(manifest.golden)]
    named += [(("variants", name, "file"), variant.file) for name, variant in manifest.variants.items()]
    yield from ((path, f"{name} is not listed in files") for path, name in named if name not in manifest.files)


def _unmade_inputs(manifest: Manifest) -> Iterator[tuple[KeyPath, str]]:
    """Every input of the model but one, the image itself, is made by exactly one op."""
    declared = {tensor.name for tensor in manifest.inputs}
    made = Counter(name for op in manifest.preprocess for name in op.input_names())
    for index, op in enumerate(manifest.preprocess):
        for name in op.input_names():
            if name not in declared:
                yield ("preprocess", index), f"makes {name}, which is not an input of the model"
            elif made[name] > 1:
                yield ("preprocess", index), f"{name} is made twice"
    if len(declared - made.keys()) != 1:
        left = ", ".join(sorted(declared - made.keys())) or "none"
        yield ("inputs",), f"exactly one input must be the image, the others made by an op; left over: {left}"


def _unmade_masks(manifest: Manifest) -> Iterator[tuple[KeyPath, str]]:
    """A mask is used after it was made."""
    made: set[str] = set()
    for index, op in enumerate(manifest.preprocess):
        if isinstance(op, CropToMask) and op.mask not in made:
            yield ("preprocess", index, "mask"), f"no op before it makes {op.mask}"
        made.update(op.input_names())
    last = manifest.postprocess
    if isinstance(last, LesionCandidates) and last.mask not in made:
        yield ("postprocess", "mask"), f"no op makes {last.mask}"


def _unknown_names(manifest: Manifest) -> Iterator[tuple[KeyPath, str]]:
    for key, tensors in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        for name, times in Counter(tensor.name for tensor in tensors).items():
            if times > 1:
                yield (key,), f"{name} is there {times} times"
    op = manifest.postprocess
    for name in sorted(set(op.output_names()) - {tensor.name for tensor in manifest.outputs}):
        yield ("postprocess",), f"reads {name}, which is not an output of the model"
    for name in sorted(set(op.label_names()) - manifest.labels.keys()):
        yield ("postprocess",), f"uses the label {name}, which is not in labels"


def _misplaced_ops(manifest: Manifest) -> Iterator[tuple[KeyPath, str]]:
    """`normalise` makes the model's channels, `sliding_window` cuts what all others made; there is one of each."""
    closing = [op for op in manifest.preprocess if isinstance(op, Normalise | SlidingWindow)]
    kinds = [type(op) for op in closing]
    if kinds not in ([], [Normalise], [SlidingWindow], [Normalise, SlidingWindow]):
        yield ("preprocess",), "normalise may be there once, and sliding_window once after it"
    elif closing != list(manifest.preprocess[len(manifest.preprocess) - len(closing) :]):
        yield ("preprocess",), f"{closing[0].op} has no other op after it but sliding_window"
    made = {name for op in manifest.preprocess for name in op.input_names()}
    axes = ("rows", "columns") if manifest.scope is Scope.INSTANCE else ("z", "y", "x")
    of_image = max((len(op.mean) for op in manifest.preprocess if isinstance(op, Normalise)), default=1)
    for index, tensor in enumerate(manifest.inputs):
        channels = 1 if tensor.name in made else of_image
        if not fits(tensor.shape, (1, channels, *(None for _ in axes))):
            words = f"{tensor.name} has the shape {list(tensor.shape)}; it gets (1, {channels}, {', '.join(axes)})"
            yield ("inputs", index, "shape"), f"{words}: one image, and a channel for each mean of normalise"


def _unfit_for_patches(manifest: Manifest, op: SlidingWindow, number: int) -> Iterator[tuple[KeyPath, str]]:
    """Where inputs or outputs are no patches, or answers to patches that cannot be joined."""
    last = manifest.postprocess
    if manifest.scope is not Scope.SERIES:
        yield ("preprocess", number), "sliding_window works on a volume, and the scope is instance"
    count = max((len(one.mean) for one in manifest.preprocess if isinstance(one, Normalise)), default=1)
    if prod(op.size) * count > MAX_ELEMENTS:
        words = f"a patch of {list(op.size)} and {count} channels is too large; the most is {MAX_ELEMENTS} elements"
        yield ("preprocess", number, "size"), words
    if not last.joined or (isinstance(last, Segmentation) and last.kind == "classes"):
        yield ("postprocess",), f"{last.op} cannot be put together from answers to patches"
    for key, tensors, names in (
        ("inputs", manifest.inputs, {tensor.name for tensor in manifest.inputs}),
        ("outputs", manifest.outputs, set(last.output_names()) if last.joined == "mean" else set()),
    ):
        for index, tensor in enumerate(tensors):
            if tensor.name in names and (tensor.shape[2:] != op.size or min(tensor.shape[:2]) < 1):
                words = f"{tensor.name} has the shape {list(tensor.shape)}, no patch of {list(op.size)}"
                yield (key, index, "shape"), words
