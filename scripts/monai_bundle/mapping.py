"""Which of our ops (appliance/engine_ops.py) say what a bundle's transforms do, and what is put around its network.

What has no op, but is plain arithmetic on the network's input or output, becomes nodes of the ONNX graph: the order of
axes, a scale, repeated channels, softmax or sigmoid, a choice of outputs. The rest cannot be mapped, and all of it is
told at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monai_bundle.bundle import Bundle, CannotImport, Transform

#: They move, name or keep data; the numbers that reach the network stay.
NO_EFFECT = frozenset(
    {"EnsureChannelFirst", "AddChannel", "AsChannelFirst", "EnsureType", "ToTensor", "CastToType", "DataStats"}
)
#: After the network; thresholds and files are ours.
NOT_OURS = frozenset(
    {"Invert", "AsDiscrete", "SaveImage", "EnsureType", "ToTensor", "SaveClassification", "CastToType"}
)
#: Never a finding (P6): that nothing was found is no statement an imported engine may make.
NEGATIVES = frozenset({"background", "normal", "negative", "no finding", "no_finding", "healthy", "none", "other"})
FILMS = frozenset({"XR", "XRAY", "X-RAY", "CR", "DX", "RADIOGRAPH", "CXR"})

GREYS = 255  #: of the films that bundles are trained on

Window = dict[str, Any]


@dataclass(slots=True)
class Front:
    """What stands between our film (1, 1, rows, columns) within [0, 1] and the network."""

    swap_axes: bool = False
    scale: float = 1.0
    offset: float = 0.0
    channels: int = 1


@dataclass(slots=True)
class Back:
    """What stands between the network's output (1, n) and our scores."""

    activation: str = ""  #: "Softmax", "Sigmoid" or ""
    kept: list[int] = field(default_factory=list)  #: channels that are findings, in order


@dataclass(slots=True)
class Mapped:
    preprocess: list[dict[str, Any]] = field(default_factory=list)
    front: Front = field(default_factory=Front)
    back: Back = field(default_factory=Back)
    labels: list[str] = field(default_factory=list)  #: as the bundle calls them
    size: int = 0  #: of the film that the network gets, pixels each way
    remarks: list[str] = field(default_factory=list)  #: true, but not to the last digit
    problems: list[str] = field(default_factory=list)


def find(bundle: Bundle, leave_out: Sequence[str]) -> Mapped:
    """Raises CannotImport with everything that cannot be mapped."""
    mapped = Mapped()
    for part in (_modality, _input, _preprocessing, _inferer, _output, _postprocessing):
        try:
            part(bundle, mapped)
        except CannotImport as error:
            mapped.problems += error.reasons
    _choose(mapped, leave_out)
    if mapped.problems:
        raise CannotImport(*mapped.problems)
    return mapped


def _modality(bundle: Bundle, mapped: Mapped) -> None:
    modality = str(bundle.network("inputs").get("modality", "")).strip()
    if modality.upper() not in FILMS:
        mapped.problems.append(
            f"network_data_format.inputs: modality {modality!r}: only radiographs can be imported. For a volume, ours"
            " is (z, y, x) towards left, posterior, superior, MONAI's (x, y, z) as Orientation says, and no op turns it"
        )


def _input(bundle: Bundle, mapped: Mapped) -> None:
    form = bundle.network("inputs")
    shape = form.get("spatial_shape")
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or len(set(map(str, shape))) != 1
        or not isinstance(shape[0], int)
    ):
        raise CannotImport(
            f"network_data_format.inputs: spatial_shape {shape}: our film is a square of one size, such as [224, 224]"
        )
    if not 32 <= shape[0] <= 2048:
        raise CannotImport(f"network_data_format.inputs: spatial_shape {shape}: letterbox makes 32 to 2048 pixels")
    mapped.size = shape[0]
    if form.get("dtype", "float32") != "float32":
        raise CannotImport(f"network_data_format.inputs: dtype {form['dtype']!r}: only float32 can be mapped")


def _preprocessing(bundle: Bundle, mapped: Mapped) -> None:
    kinds = [step.kind for step in bundle.preprocessing]
    if "LoadImage" not in kinds:
        mapped.remarks.append("no LoadImage: taken as MONAI's reader gives films, columns before rows")
    mapped.front.swap_axes = True
    for step in bundle.preprocessing:
        if step.kind in NO_EFFECT:
            continue
        try:
            _STEPS.get(step.kind, _unknown)(step, mapped)
        except CannotImport as error:
            mapped.problems += error.reasons
    ops = [op["op"] for op in mapped.preprocess]
    if not any(op.endswith("window") for op in ops):
        mapped.problems.append(
            "preprocessing: no ScaleIntensityRange or the like: what range the network wants is unknown"
        )
    if "letterbox" not in ops and mapped.size:
        mapped.preprocess.append({"op": "letterbox", "size": mapped.size})
        mapped.remarks.append(f"no Resize: the film is letterboxed to {mapped.size} pixels, as the metadata says")
    channels = bundle.network("inputs").get("num_channels", 1)
    if channels != mapped.front.channels:
        mapped.problems.append(f"the network wants {channels} channels, the transforms make {mapped.front.channels}")


def _unknown(step: Transform, _: Mapped) -> None:
    raise CannotImport(f"preprocessing: {step.kind}: no op of ours does that")


def _load(step: Transform, mapped: Mapped) -> None:
    """All readers give columns before rows unless told otherwise, which each is told in its own way."""
    reader = str(step.options.get("reader", "")).lower()
    reverse, swap = step.options.get("reverse_indexing"), step.options.get("swap_ij")
    if "pil" in reader:
        mapped.front.swap_axes = reverse is not False
    elif "pydicom" in reader:
        mapped.front.swap_axes = swap is not False
    elif "itk" in reader:
        mapped.front.swap_axes = reverse is not True
    elif reverse is not None or swap is not None:
        raise CannotImport("LoadImage: reverse_indexing and swap_ij mean nothing without the reader's name")


def _range(step: Transform, mapped: Mapped) -> None:
    if step.options.get("clip", False) is not True:
        raise CannotImport("ScaleIntensityRange: clip is not true, and our window clips")
    low, high = step.number("a_min"), step.number("a_max")
    if not 0 <= low < high <= GREYS:
        raise CannotImport(
            f"ScaleIntensityRange: from {low:g} to {high:g}: our film is what is meant to be seen, within [0, 1], which"
            f" stands for 0 to {GREYS} of a bundle"
        )
    unit = GREYS if high > 1 else 1
    _window(mapped, {"op": "window", "low": low / unit, "high": high / unit})
    _affine(step, mapped, "b_min", "b_max")
    mapped.remarks.append(f"window: taken as of a film of values from 0 to {unit}")


def _percentiles(step: Transform, mapped: Mapped) -> None:
    if step.options.get("clip", False) is not True:
        raise CannotImport("ScaleIntensityRangePercentiles: clip is not true, and our window clips")
    _window(mapped, {"op": "percentile_window", "low": step.number("lower"), "high": step.number("upper")})
    _affine(step, mapped, "b_min", "b_max")
    mapped.remarks.append("percentile_window: taken of each fourth pixel")


def _whole(step: Transform, mapped: Mapped) -> None:
    if step.options.get("factor") is not None:
        raise CannotImport("ScaleIntensity: factor cannot be mapped")
    _window(mapped, {"op": "percentile_window", "low": 0.0, "high": 100.0})
    _affine(step, mapped, "minv", "maxv")
    mapped.remarks.append("percentile_window: taken of each fourth pixel")


def _window(mapped: Mapped, op: Window) -> None:
    if mapped.front != Front(swap_axes=mapped.front.swap_axes, channels=mapped.front.channels):
        raise CannotImport(f"{op['op']}: a second scale after the first cannot be mapped")
    mapped.preprocess.append(op)


def _affine(step: Transform, mapped: Mapped, low: str, high: str) -> None:
    """From [0, 1], where our windows end, to the range the bundle wants."""
    least, most = step.number(low, 0.0), step.number(high, 1.0)
    mapped.front.scale, mapped.front.offset = most - least, least


def _normalise(step: Transform, mapped: Mapped) -> None:
    if step.options.get("nonzero") or step.options.get("channel_wise"):
        raise CannotImport("NormalizeIntensity: nonzero and channel_wise cannot be mapped")
    away, divisor = set(step.sizes("subtrahend")), set(step.sizes("divisor"))
    if len(away) != 1 or len(divisor) != 1 or 0.0 in divisor:
        raise CannotImport(
            "NormalizeIntensity: one subtrahend and one divisor can be mapped, the same for all channels"
        )
    by = divisor.pop()
    mapped.front.scale, mapped.front.offset = mapped.front.scale / by, (mapped.front.offset - away.pop()) / by


def _resize(step: Transform, mapped: Mapped) -> None:
    sizes = set(step.sizes("spatial_size"))
    if sizes != {float(mapped.size)}:
        raise CannotImport(f"Resize: spatial_size {sorted(sizes)} is not the network's {mapped.size}")
    mapped.preprocess.append({"op": "letterbox", "size": mapped.size})
    mapped.remarks.append("letterbox: keeps the film's proportions and fills the rest, where Resize stretches it")


def _repeat(step: Transform, mapped: Mapped) -> None:
    mapped.front.channels = round(step.number("repeats"))
    if not 1 <= mapped.front.channels <= 16:
        raise CannotImport(f"RepeatChannel: {mapped.front.channels} repeats")


def _inferer(bundle: Bundle, mapped: Mapped) -> None:
    if bundle.inferer not in ("", "SimpleInferer"):
        mapped.problems.append(f"inferer: {bundle.inferer}: no op of ours does that; one run sees the whole film")


def _output(bundle: Bundle, mapped: Mapped) -> None:
    form = bundle.network("outputs")
    names = form.get("channel_def")
    kind = str(form.get("format", ""))
    if kind in ("segmentation", "hounsfield", "magnitude", "points") or form.get("spatial_shape"):
        raise CannotImport(
            f"network_data_format.outputs: format {kind!r}: label_scores reads a vector of scores, no map"
        )
    if not isinstance(names, dict) or not names or any(not key.isdigit() for key in names):
        raise CannotImport('network_data_format.outputs: channel_def must name each channel, such as {"0": "effusion"}')
    mapped.labels = [str(names[key]).strip() for key in sorted(names, key=int)]
    if sorted(map(int, names)) != list(range(len(names))) or form.get("num_channels", len(names)) != len(names):
        raise CannotImport(
            f"network_data_format.outputs: channel_def names {sorted(names, key=int)}, not every channel once"
        )


def _postprocessing(bundle: Bundle, mapped: Mapped) -> None:
    for step in bundle.postprocessing:
        if step.kind == "Activations":
            chosen = [name for name in ("softmax", "sigmoid") if step.options.get(name) is True]
            if len(chosen) != 1 or step.options.get("other") is not None:
                mapped.problems.append("postprocessing: Activations: one of softmax and sigmoid can be mapped")
            else:
                mapped.back.activation = chosen[0].capitalize()
        elif step.kind not in NOT_OURS:
            mapped.problems.append(f"postprocessing: {step.kind}: no op of ours does that")
    if not mapped.back.activation and bundle.network("outputs").get("value_range") != [0, 1]:
        mapped.problems.append(
            "postprocessing: no Activations, and network_data_format.outputs.value_range is not [0, 1]: no scores?"
        )


def _choose(mapped: Mapped, leave_out: Sequence[str]) -> None:
    """The channels that are findings."""
    unknown = sorted(set(leave_out) - set(mapped.labels))
    mapped.problems += [f"--leave-out {name}: there is no such channel: {', '.join(mapped.labels)}" for name in unknown]
    left_out = {name for name in mapped.labels if name in leave_out or name.lower() in NEGATIVES}
    mapped.back.kept = [index for index, name in enumerate(mapped.labels) if name not in left_out]
    mapped.remarks += [f"{name} is left out: that nothing was found is never stated" for name in sorted(left_out)]
    mapped.labels = [mapped.labels[index] for index in mapped.back.kept]
    if left_out and not mapped.labels:
        mapped.problems.append("no channel is left that could be a finding")


_STEPS: Mapping[str, Callable[[Transform, Mapped], None]] = {
    "LoadImage": _load,
    "ScaleIntensityRange": _range,
    "ScaleIntensityRangePercentiles": _percentiles,
    "ScaleIntensity": _whole,
    "NormalizeIntensity": _normalise,
    "Resize": _resize,
    "RepeatChannel": _repeat,
}
