"""The fine acceptance rules of a manifest: what an engine responsible for a study still cannot take, in words.

A missing tag is accepted: scanners leave BodyPartExamined out more often than they fill it in wrongly.
"""

import math
import re
from collections.abc import Sequence

from appliance.engine_manifest import Accepts, AgeRange, Prefer
from appliance.errors import CannotAnalyse
from appliance.imaging.geometry import Stack
from appliance.imaging.headers import ImageHeader
from appliance.model import Reason

#: Patient Orientation (PS3.3 C.7.6.1.1.1) of a film as it is displayed: to where its rows run, and its columns.
FILM_ORIENTATION = {"coronal": {("L", "F")}, "sagittal": {("A", "F"), ("P", "F")}, "axial": {("L", "P")}}


def suitable(headers: Sequence[ImageHeader], accepts: Accepts) -> list[ImageHeader]:
    """The images an engine reads; localisers and objects of other classes are left out.

    Raises CannotAnalyse(UNSUITABLE) where none is left, or one is of another body part, view or age.
    """
    ours = [h for h in headers if h.modality in accepts.modality and h.sop_class_uid in accepts.sop_class]
    if not ours:
        found = {f"{header.modality or 'unknown modality'} of class {header.sop_class_uid}" for header in headers}
        raise _unsuitable(f"the engine does not read {', '.join(sorted(found)) or 'nothing'}")
    excluded = set(accepts.image_type_excludes)
    kept = [header for header in ours if excluded.isdisjoint(header.image_type)]
    if not kept:
        raise _unsuitable(f"only images of type {', '.join(sorted(excluded))}")
    for header in kept:
        _check_word(header.body_part, accepts.body_part, "body part")
        _check_word(header.view_position, accepts.view, "view")
        _check_age(header.age_years, accepts.age_years)
    return kept


def check_film(header: ImageHeader, accepts: Accepts) -> None:
    """Raises CannotAnalyse(UNSUITABLE) where a film says that it lies otherwise: mirrored, its sides would be wrong."""
    stated = tuple(direction[:1] for direction in header.patient_orientation)
    wanted = FILM_ORIENTATION.get(accepts.orientation or "")
    if wanted and len(stated) == 2 and stated not in wanted:
        raise _unsuitable(f"the film is not {accepts.orientation}, or is turned or mirrored")


def check_stack(stack: Stack, accepts: Accepts) -> None:
    """Raises CannotAnalyse: UNSUITABLE (spacing), INCOMPLETE (too few slices)."""
    count = len(stack.slices)
    if accepts.spacing_mm and not accepts.spacing_mm.min <= stack.spacing <= accepts.spacing_mm.max:
        raise _unsuitable(
            f"slices are {stack.spacing:.2f} mm apart, the engine reads "
            f"{accepts.spacing_mm.min:g} to {accepts.spacing_mm.max:g} mm"
        )
    if accepts.slices and count < accepts.slices.min:
        raise CannotAnalyse(Reason.INCOMPLETE, f"{count} slices, the engine needs {accepts.slices.min}")
    if accepts.slices and count > accepts.slices.max:
        raise _unsuitable(f"{count} slices, the engine reads up to {accepts.slices.max}")


def rank(headers: Sequence[ImageHeader], prefer: Prefer | None) -> tuple[int, float, int, str]:
    """Sort key of one series among those of a study, lowest preferred; decided by the headers alone.

    In order: the first kernel expression that matches, the distance of the slice spacing from the wanted one, more
    slices, the Series Instance UID (so that the choice never depends on the order of arrival).
    """
    expressions = prefer.kernel if prefer else ()
    kernels = headers[0].kernels if headers else ()
    matches = (n for n, text in enumerate(expressions) if any(re.search(text, kernel) for kernel in kernels))
    wanted = prefer.spacing_mm if prefer else None
    spacing = _nominal_spacing(headers)
    distance = 0.0 if wanted is None else abs(spacing - wanted)
    uid = headers[0].series_instance_uid if headers else ""
    return next(matches, len(expressions)), distance, -len(headers), uid


def _nominal_spacing(headers: Sequence[ImageHeader]) -> float:
    """Extent of the positions over their number, which needs no valid stack; SliceThickness where there is but one."""
    positions = sorted({plane.position for header in headers for plane in header.planes}, key=lambda p: (p[2], p))
    if len(positions) < 2:
        return next((header.slice_thickness for header in headers if header.slice_thickness), float("inf"))
    return math.dist(positions[0], positions[-1]) / (len(positions) - 1)


def _check_word(found: str, accepted: Sequence[str], what: str) -> None:
    if found and accepted and found not in accepted:
        raise _unsuitable(f"the {what} is {found}, the engine reads {', '.join(accepted)}")


def _check_age(years: float | None, accepted: AgeRange | None) -> None:
    """The age itself is not said: the words are kept (P10)."""
    if years is not None and accepted and not accepted.min <= years <= accepted.max:
        raise _unsuitable(f"the patient's age is outside the {accepted.min:g} to {accepted.max:g} years of the engine")


def _unsuitable(detail: str) -> CannotAnalyse:
    return CannotAnalyse(Reason.UNSUITABLE, detail)
