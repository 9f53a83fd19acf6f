"""What the analyse process calls: files in, model inputs out; model outputs in, a conclusion out.

prepared = prepare(package, paths, workdir, reader)             CannotAnalyse: "not analysed: reason"
answer = ask(package, prepared, engine, deadline_s)             in one run, or patch by patch
reading = conclude(package, prepared, answer.outputs)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance.engine_manifest import Manifest, Scope
from appliance.engine_ops import Boxes, Boxes3D, HeatMap, LabelScores, LesionCandidates, Segmentation, fits
from appliance.engine_package import EnginePackage
from appliance.errors import CannotAnalyse
from appliance.imaging import acceptance, boxes, findings, geometry, heat_map, patches, preprocess, segmentation, volume
from appliance.imaging.film import Film
from appliance.imaging.geometry import Stack
from appliance.imaging.headers import ImageHeader
from appliance.imaging.outputs import Outputs, Said
from appliance.imaging.patches import Answer, RanOn
from appliance.imaging.preprocess import ModelImage
from appliance.imaging.reading import ImageReader, ReaderLost
from appliance.imaging.volume import Volume
from appliance.model import Conclusion, Extent, Finding, Reason
from appliance.ports import LoadedEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Inputs for the model, and what `conclude` needs to place its answer in the source images.

    Where the engine has a `sliding_window` they are of the whole volume, and `ask` cuts them.
    A volume stays mapped from `workdir`: remove that folder only after `conclude`.
    """

    inputs: dict[str, NDArray[np.generic]]
    extent: Extent
    headers: tuple[ImageHeader, ...]
    source: Volume | Film
    image: ModelImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the engine says of one subject. `measures` are its named numbers, findings are best first."""

    conclusion: Conclusion
    findings: tuple[Finding, ...]
    measures: dict[str, float]
    unlisted: int = 0  #: so many more at least are above their threshold


@contextmanager
def _reckoning() -> Iterator[None]:
    """Headers are bounded one value at a time; what several make together may be no number all the same.

    The cause is dropped: it may quote a value of the file (P10).
    """
    try:
        yield
    except (ArithmeticError, ValueError) as error:
        detail = f"the headers state what cannot be reckoned with ({type(error).__name__})"
        raise CannotAnalyse(Reason.UNDECODABLE, detail) from None


@_reckoning()
def prepare(
    package: EnginePackage,
    paths: Sequence[Path],
    workdir: Path,
    reader: ImageReader,
    check_room: Callable[[int], None] = volume.unlimited,
) -> Prepared:
    """Read the files (one series, or one film), check them against the manifest, make the model's inputs.

    Raises CannotAnalyse, RuntimeFailed. Of a series it writes `workdir`/volume.int16, as long as `check_room` does not
    raise when it hears of its bytes.
    """
    manifest = package.manifest
    headers = acceptance.suitable([reader.header(path) for path in paths], manifest.accepts)
    if manifest.scope is Scope.INSTANCE:
        return _prepare_film(manifest, headers, reader)
    stack = geometry.stack(headers, manifest.accepts.orientation, reader)
    acceptance.check_stack(stack, manifest.accepts)
    source = volume.build(stack, workdir, check_room, reader)
    image = preprocess.run(manifest.preprocess, source.hu, source.voxel_mm)
    return Prepared(
        inputs=_inputs(manifest, image),
        extent=_extent(stack, len(paths)),
        headers=tuple(headers),
        source=source,
        image=image,
    )


def ask(
    package: EnginePackage,
    prepared: Prepared,
    loaded: LoadedEngine,
    deadline_s: float,
    cancelled: Callable[[], bool] = lambda: False,
) -> Answer:
    """Run the model. Raises RuntimeFailed as `infer` does, and CannotAnalyse(UNSUITABLE) for too many patches."""
    op = patches.sliding_window(package.manifest)
    if op is None:
        outputs = loaded.infer(prepared.inputs, deadline_s, cancelled)
        ran_on = RanOn.of(loaded)
        return Answer(outputs=outputs, run_ms=loaded.last_run_ms, ran_on=ran_on, degraded=loaded.degraded)
    masks = frozenset(prepared.image.masks)
    question = patches.Question(inputs=prepared.inputs, masks=masks, deadline_s=deadline_s, cancelled=cancelled)
    return patches.ask(op, package.manifest, loaded, question)


@_reckoning()
def conclude(package: EnginePackage, prepared: Prepared, outputs: Outputs) -> Reading:
    """What the model's outputs mean. Raises RuntimeFailed(ENGINE_FAILED) where they are nonsense, and CannotAnalyse."""
    said = _read(package.manifest, prepared, outputs)
    conclusion = Conclusion.FINDING if said.findings else Conclusion.NO_FINDING
    return Reading(conclusion=conclusion, findings=said.findings, measures=said.measures, unlisted=said.unlisted)


def closed_geometry(paths: Sequence[Path], reader: ImageReader) -> bool:
    """Whether the slices that are there form one uniform stack without gaps: enough for a provisional run.

    Raises RuntimeFailed.
    """
    try:
        with _reckoning():
            return geometry.is_closed([reader.header(path) for path in paths], reader)
    except CannotAnalyse:
        return False


@_reckoning()
def preference(
    package: EnginePackage, paths: Sequence[Path], reader: ImageReader
) -> tuple[bool, tuple[int, float, int, str]]:
    """Sort key of a series among those of a study (one_per: study), lower = preferred.

    What the engine cannot take comes last: a localiser, say, or a series with an unreadable file. Raises RuntimeFailed,
    ReaderLost(DEADLINE) where it was not read to its end, which says nothing of it, and CannotAnalyse(UNDECODABLE).
    """
    manifest = package.manifest
    headers: list[ImageHeader] = []
    try:
        _read_headers(paths, reader, headers)
        kept = acceptance.suitable(headers, manifest.accepts)
        acceptance.check_stack(geometry.stack(kept, manifest.accepts.orientation, reader), manifest.accepts)
    except CannotAnalyse as error:
        if isinstance(error, ReaderLost) and error.reason == Reason.DEADLINE:
            raise
        return True, acceptance.rank(headers, manifest.prefer)
    return len(headers) < len(paths), acceptance.rank(kept, manifest.prefer)


def _read_headers(paths: Sequence[Path], reader: ImageReader, headers: list[ImageHeader]) -> None:
    """Those that can be read, until one costs the reader its life: raises ReaderLost."""
    for path in paths:
        try:
            headers.append(reader.header(path))
        except ReaderLost:
            raise
        except CannotAnalyse:
            continue


def _prepare_film(manifest: Manifest, headers: Sequence[ImageHeader], reader: ImageReader) -> Prepared:
    if len(headers) != 1:
        raise CannotAnalyse(Reason.UNSUITABLE, f"{len(headers)} images, the engine reads one film")
    acceptance.check_film(headers[0], manifest.accepts)
    film = reader.film(headers[0])
    spacing = headers[0].pixel_spacing or (float("nan"), float("nan"))
    image = preprocess.run(manifest.preprocess, film.image, spacing)
    rows, columns = film.image.shape
    extent = Extent(
        series_instance_uid=headers[0].series_instance_uid, instances=1, text=f"1 image, {columns} x {rows} pixels"
    )
    return Prepared(inputs=_inputs(manifest, image), extent=extent, headers=tuple(headers), source=film, image=image)


def _inputs(manifest: Manifest, image: ModelImage) -> dict[str, NDArray[np.generic]]:
    """Named as the manifest says; the image is the one input that no op makes. Batch and channel axes lead."""
    inputs = {}
    patched = patches.sliding_window(manifest) is not None
    for tensor in manifest.inputs:
        mask = image.masks.get(tensor.name)
        array = preprocess.channels(manifest.preprocess, image.image) if mask is None else mask[None, None]
        array = np.ascontiguousarray(array, tensor.dtype)
        wanted = (*tensor.shape[:2], *array.shape[2:]) if patched else tensor.shape
        if not fits(wanted, array.shape):
            raise CannotAnalyse(Reason.NO_ENGINE, f"{tensor.name}: {array.shape} does not fit {tensor.shape}")
        inputs[tensor.name] = array
    return inputs


def _read(manifest: Manifest, prepared: Prepared, outputs: Outputs) -> Said:
    op, source, labels, image = manifest.postprocess, prepared.source, manifest.labels, prepared.image
    match op, source:
        case LabelScores(), _:
            return findings.label_scores(op, labels, source, outputs)
        case HeatMap(), Film():
            return heat_map.heat_map(op, labels, source, image, outputs)
        case Boxes(), Film():
            return boxes.boxes(op, labels, source, image, outputs)
        case LesionCandidates(), Volume():
            return findings.lesion_candidates(op, labels, source, image, outputs)
        case Boxes3D(), Volume():
            return boxes.boxes_3d(op, labels, source, image, outputs)
        case Segmentation(), Volume():
            return segmentation.segmentation(op, labels, source, image, outputs)
    raise CannotAnalyse(Reason.NO_ENGINE, f"the op {op.op} does not work on this kind of image")


def _extent(stack: Stack, files: int) -> Extent:
    first, last = stack.slices[0], stack.slices[-1]
    count = len(stack.slices)
    left_out = f", {files - count} of {files} images left out" if files > count else ""
    return Extent(
        series_instance_uid=first.header.series_instance_uid,
        instances=count,
        first_mm=round(first.along, 2),
        last_mm=round(last.along, 2),
        text=f"{count} slices, {last.along - first.along:.0f} mm, spacing {stack.spacing:.1f} mm{left_out}",
    )
