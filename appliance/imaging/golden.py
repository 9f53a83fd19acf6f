"""Golden cases: whether a loaded engine still says what its package says it must (P8).

Two things are compared: the numbers, within tolerances, and what the numbers decide. The decisions are made by the
very code that makes findings of a study, on an image that is made from the case's own inputs: so a difference that is
small as a number and large as a finding is seen, too. Of an engine with a `sliding_window` a case is one patch, which
is taken for a whole volume.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import ExplicitVRLittleEndian

from appliance.engine_manifest import Golden, Manifest, Scope
from appliance.engine_ops import Resample
from appliance.engine_package import EnginePackage
from appliance.errors import CannotAnalyse, RuntimeFailed
from appliance.imaging import analysis, preprocess
from appliance.imaging.analysis import Prepared
from appliance.imaging.boxes import suppressed
from appliance.imaging.film import Film
from appliance.imaging.geometry import Slice, Stack
from appliance.imaging.grid import identity
from appliance.imaging.headers import ImageHeader, PixelLayout, Plane
from appliance.imaging.preprocess import ModelImage
from appliance.imaging.volume import Volume
from appliance.model import Extent, Finding
from appliance.ports import Array, LoadedEngine

DEADLINE_S = 120.0
SAME_PLACE_MM = 5.0  #: between the centres of one finding: a peak may move to the next voxel
SAME_BOX = 0.75  #: of two boxes on a film, their common part over their union: corners differ as numbers may
_DAMAGED = (BadZipFile, EOFError, KeyError, OSError, TypeError, ValueError, zlib.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """|got - want| <= atol + rtol * |want|."""

    atol: float
    rtol: float


def fault(package: EnginePackage, loaded: LoadedEngine, tolerance: Tolerance | None = None) -> str:
    """Run the package's golden cases; "" if all is as it must be, else what is wrong, and in which case.

    `tolerance` takes the place of the cases' own, for a variant of the model. Raises RuntimeFailed.
    """
    for case in package.manifest.golden:
        try:
            wrong = _case_fault(package, case, loaded, tolerance or Tolerance(atol=case.atol, rtol=case.rtol))
        except _DAMAGED as error:
            wrong = f"no inputs and outputs of this engine ({type(error).__name__})"
        if wrong:
            return f"golden case {case.case}: {wrong}"
    return ""


def read_case(package: EnginePackage, case: Golden) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inputs of a case, and the outputs that they must give. Raises what a damaged file gives cause for."""
    outputs = [tensor.name for tensor in package.manifest.outputs]
    with (package.folder / case.case).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        inputs = {key: arrays[key] for key in arrays.files if key not in outputs}
        return inputs, {name: arrays[name] for name in outputs}


def _case_fault(package: EnginePackage, case: Golden, loaded: LoadedEngine, tolerance: Tolerance) -> str:
    inputs, wanted = read_case(package, case)
    got = loaded.infer(inputs, DEADLINE_S)
    for name, want in wanted.items():
        if name not in got or got[name].shape != want.shape:
            return f"output {name} differs from what it must be: another shape"
        if np.isfinite(want).all() and not np.isfinite(got[name]).all():
            return f"output {name} differs from what it must be: it is not finite"
        if not np.allclose(got[name], want, rtol=tolerance.rtol, atol=tolerance.atol):
            return f"output {name} differs from what it must be: by up to {_distance(got[name], want):.3g}"
    decided, must_be = decisions(package, inputs, got), decisions(package, inputs, wanted)
    return "" if _same(decided, must_be) else f"other findings: {_words(decided)} instead of {_words(must_be)}"


def _distance(got: Array, want: Array) -> float:
    return float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0.0))


Decisions = tuple[Finding, ...] | str


def decisions(package: EnginePackage, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Decisions:
    """The findings that these outputs give, or in words why they give none: nonsense, or an input that is none."""
    try:
        return analysis.conclude(package, _prepared(package.manifest, inputs), outputs).findings
    except (CannotAnalyse, RuntimeFailed) as error:
        return str(error)


def _same(one: Decisions, other: Decisions) -> bool:
    """Alike finding by finding, whatever their order: two of nearly one score may change places."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    left = list(other)
    for finding in one:
        match = next((candidate for candidate in left if _alike(finding, candidate)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _alike(one: Finding, other: Finding) -> bool:
    if (one.label, one.laterality) != (other.label, other.laterality):
        return False
    if one.centre_mm is None or other.centre_mm is None:
        if one.box == other.box:  # whatever their area
            return True
        boxes = np.array([one.box, other.box]).reshape(2, 2, 2)
        return len(suppressed(boxes, np.zeros(2, np.float32), SAME_BOX)) == 1
    return bool(np.linalg.norm(np.subtract(one.centre_mm, other.centre_mm)) <= SAME_PLACE_MM)


def _words(decided: Decisions) -> str:
    if isinstance(decided, str):
        return decided
    return ", ".join(f"{one.label} {one.laterality}".strip() for one in decided) or "none"


# An image for a case, as if its inputs had been made from it.


def _prepared(manifest: Manifest, inputs: Mapping[str, Array]) -> Prepared:
    """The model's own grid is the source's. Raises ValueError, IndexError (a KeyError's kin) for inputs of no image."""
    made = {name for op in manifest.preprocess for name in op.input_names()}
    (image_name,) = (tensor.name for tensor in manifest.inputs if tensor.name not in made)
    masks = {name: _bare(inputs[name]).astype(np.float32) for name in made}
    image = preprocess.film_of(manifest.preprocess, inputs[image_name])
    if manifest.scope is Scope.INSTANCE:
        film = Film(header=_header(image.shape, 0, 1.0), image=np.asarray(image, np.float32))
        source: Volume | Film = film
        spacing: tuple[float, ...] = (1.0, 1.0)
    else:
        spacing = (_spacing_mm(manifest),) * 3
        source = _volume(_in_hu(manifest, image), spacing[0])
    return Prepared(
        inputs=dict(inputs),
        extent=Extent(series_instance_uid="golden", instances=1),
        headers=(),
        source=source,
        image=ModelImage(image=image, masks=masks, grid=identity(spacing)),
    )


def _bare(array: Array) -> Array:
    """Without batch and channel."""
    if array.ndim < 4 or array.shape[:2] != (1, 1):
        raise ValueError("no image of one channel")
    return array.reshape(array.shape[2:])


def _spacing_mm(manifest: Manifest) -> float:
    steps = [op.spacing_mm for op in manifest.preprocess if isinstance(op, Resample)]
    return steps[-1] if steps else 1.0


def _in_hu(manifest: Manifest, image: Array) -> NDArray[np.int16]:
    values = image.astype(np.float64)
    if window := preprocess.hu_window(manifest.preprocess):
        low, high = window
        values = low + values * (high - low)
    return np.clip(np.rint(np.nan_to_num(values)), -32768, 32767).astype(np.int16)


def _volume(hu: NDArray[np.int16], spacing_mm: float) -> Volume:
    slices = []
    for number in range(hu.shape[0]):
        header = _header(hu.shape[1:], number, spacing_mm)
        slices.append(Slice(header=header, plane=header.planes[0], along=number * spacing_mm))
    return Volume(hu=hu, stack=Stack(slices=tuple(slices), spacing=spacing_mm, normal=(0.0, 0.0, 1.0)))


def _header(shape: Sequence[int], number: int, spacing_mm: float) -> ImageHeader:
    rows, columns = shape
    layout = PixelLayout(
        transfer_syntax_uid=ExplicitVRLittleEndian,
        rows=rows,
        columns=columns,
        frames=1,
        samples_per_pixel=1,
        photometric="MONOCHROME2",
        bits_allocated=16,
        bits_stored=16,
        high_bit=15,
        signed=True,
        padding=None,
        offset=0,
        length=0,
    )
    plane = Plane(
        frame=0,
        position=(0.0, 0.0, number * spacing_mm),
        row_direction=(1.0, 0.0, 0.0),
        column_direction=(0.0, 1.0, 0.0),
        pixel_spacing=(spacing_mm, spacing_mm),
        slope=1.0,
        intercept=0.0,
    )
    return ImageHeader(
        path=Path(),
        sop_class_uid="",
        sop_instance_uid=f"golden.{number + 1}",
        series_instance_uid="golden",
        modality="",
        image_type=(),
        body_part="",
        view_position="",
        kernels=(),
        tilt=0.0,
        slice_thickness=spacing_mm,
        pixel_spacing=(spacing_mm, spacing_mm),
        slope=1.0,
        intercept=0.0,
        layout=layout,
        planes=(plane,),
    )
