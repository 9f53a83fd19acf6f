"""From slices in any order to one stack along the slice normal, or the words for why they are none.

File order and InstanceNumber mean nothing here: they may run against the patient. Positions are ImagePositionPatient
projected on the normal of ImageOrientationPatient (PS3.3 C.7.6.2.1.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.errors import CannotAnalyse
from appliance.imaging.headers import MAX_NUMBER, ImageHeader, Plane, Vector
from appliance.imaging.reading import IN_PROCESS, ImageReader
from appliance.model import Reason

SAME_POSITION_MM = 0.01
SAME_COSINE = 1e-3
MAX_TILT_DEGREES = 0.5
MAX_SHIFT_MM = 1.0  #: of a slice within its plane, against the line through the first slice along the normal
GAP = 1.5  #: x median spacing: a slice is missing
IRREGULAR = 0.1  #: x median spacing: not one spacing
AXIS_OF = {"axial": 2, "coronal": 1, "sagittal": 0}  #: of the patient axes, the one that the normal follows
MIN_AXIAL_COSINE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One frame of one file, and its place along the normal in mm."""

    header: ImageHeader
    plane: Plane
    along: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Slices in the order of the normal, uniform, of one size and orientation."""

    slices: tuple[Slice, ...]
    spacing: float  #: between slices, mm; the mean: errors of rounded positions do not add up
    normal: Vector

    def to_patient(self, index: Sequence[float]) -> Vector:
        """Patient coordinates (LPS, mm) of (slice, row, column), fractions allowed; centres of pixels are whole."""
        first = self.slices[0].plane
        row_spacing, column_spacing = first.pixel_spacing
        point = (
            np.array(first.position)
            + index[0] * self.spacing * np.array(self.normal)
            + index[1] * row_spacing * np.array(first.column_direction)
            + index[2] * column_spacing * np.array(first.row_direction)
        )
        return float(point[0]), float(point[1]), float(point[2])


def stack(headers: Sequence[ImageHeader], orientation: str | None = None, reader: ImageReader = IN_PROCESS) -> Stack:
    """Order and check; `reader` is asked about slices at one position.

    Raises CannotAnalyse: GEOMETRY (not one stack) or INCOMPLETE (a slice is missing), and what the reader does.
    """
    frames = [(header, plane) for header in headers for plane in header.planes]
    if len(frames) < 2 or any(not header.planes for header in headers):
        raise _not_one_stack("there are no two slices with a position")
    _check_uniform(frames)
    first = frames[0][1]
    normal = _unit(np.cross(first.row_direction, first.column_direction))
    if orientation is not None and abs(normal[AXIS_OF[orientation]]) < MIN_AXIAL_COSINE:
        raise CannotAnalyse(Reason.UNSUITABLE, f"the slices are not {orientation}")
    slices = [
        Slice(header=header, plane=plane, along=float(np.dot(plane.position, normal))) for header, plane in frames
    ]
    slices = _without_duplicates(sorted(slices, key=lambda item: item.along), reader)
    _check_shift(slices, normal)
    return Stack(
        slices=tuple(slices), spacing=_spacing(slices), normal=(float(normal[0]), float(normal[1]), float(normal[2]))
    )


def is_closed(headers: Sequence[ImageHeader], reader: ImageReader) -> bool:
    """Whether these slices form one uniform stack without a gap, as far as they go."""
    try:
        stack(headers, reader=reader)
    except CannotAnalyse:
        return False
    return True


def _not_one_stack(problem: str) -> CannotAnalyse:
    return CannotAnalyse(Reason.GEOMETRY, problem)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    length = float(np.linalg.norm(vector))
    if abs(length - 1) > 0.01:
        raise _not_one_stack("ImageOrientationPatient is not two perpendicular unit vectors")
    return vector / length


def _check_uniform(frames: Sequence[tuple[ImageHeader, Plane]]) -> None:
    _, first = frames[0]
    _check_finite([plane for _, plane in frames])
    if len({header.series_instance_uid for header, _ in frames}) > 1:
        raise _not_one_stack("the slices are of more than one series")
    sizes = {(header.layout.rows, header.layout.columns) for header, _ in frames}
    if len(sizes) > 1:
        raise _not_one_stack(f"slices of different size: {', '.join(f'{r} x {c}' for r, c in sorted(sizes))}")
    directions = np.array([plane.row_direction + plane.column_direction for _, plane in frames])
    if np.abs(directions - directions[0]).max() > SAME_COSINE:
        raise _not_one_stack("the slices have different orientations")
    spacings = np.array([plane.pixel_spacing for _, plane in frames])
    if not np.allclose(spacings, first.pixel_spacing, rtol=1e-3):
        raise _not_one_stack("the slices have different pixel spacings")
    tilt = max((header.tilt for header, _ in frames), key=abs)
    if abs(tilt) > MAX_TILT_DEGREES:
        raise _not_one_stack(f"the gantry was tilted by {tilt:.1f} degrees")


def _check_finite(planes: Sequence[Plane]) -> None:
    """No comparison below is true of NaN, and infinity overflows what is rounded."""
    numbers = np.array(
        [plane.position + plane.row_direction + plane.column_direction + plane.pixel_spacing for plane in planes]
    )
    if not (np.isfinite(numbers) & (np.abs(numbers) <= MAX_NUMBER)).all():
        raise _not_one_stack("positions, directions or spacings are no numbers of a patient")


def _without_duplicates(slices: Sequence[Slice], reader: ImageReader) -> list[Slice]:
    """Slices at one position: the first stays where all hold the same pixels."""
    kept = [slices[0]]
    for item in slices[1:]:
        last = kept[-1]
        if item.along - last.along > SAME_POSITION_MM:
            kept.append(item)
        elif not reader.same_pixels((last.header, last.plane.frame), (item.header, item.plane.frame)):
            raise _not_one_stack(f"two different slices at {item.along:.1f} mm")
    if len(kept) < 2:
        raise _not_one_stack("all slices are at one position")
    return kept


def _check_shift(slices: Sequence[Slice], normal: NDArray[np.float64]) -> None:
    """Each slice must lie straight above the first: a shear is an undeclared gantry tilt."""
    offsets = np.array([item.plane.position for item in slices]) - slices[0].plane.position
    shift = np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1)
    if shift.max() > MAX_SHIFT_MM:
        raise _not_one_stack(f"the slices are shifted against each other by {shift.max():.1f} mm, as by a gantry tilt")


def _spacing(slices: Sequence[Slice]) -> float:
    along = np.array([item.along for item in slices])
    steps = np.diff(along)
    spacing = float(np.median(steps))  # which a gap does not change
    gaps = np.flatnonzero(steps > GAP * spacing)
    if gaps.size:
        missing = round(sum(steps[gap] / spacing - 1 for gap in gaps))
        where = ", ".join(f"between {along[gap]:.1f} and {along[gap + 1]:.1f} mm" for gap in gaps[:3])
        more = f" and {gaps.size - 3} more places" if gaps.size > 3 else ""
        raise CannotAnalyse(Reason.INCOMPLETE, f"about {missing} slices missing {where}{more}")
    worst = int(np.argmax(np.abs(steps - spacing)))
    if abs(steps[worst] - spacing) > IRREGULAR * spacing:
        raise _not_one_stack(
            f"irregular spacing: {steps[worst]:.2f} mm at {along[worst]:.1f} mm where others are {spacing:.2f} mm apart"
        )
    return float(along[-1] - along[0]) / len(steps)
