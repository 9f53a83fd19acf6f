"""Key pictures: the images that findings are on, as a human sees them, with numbered boxes. Never diagnostic."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from appliance.errors import CannotAnalyse
from appliance.imaging.analysis import Prepared
from appliance.imaging.headers import ImageHeader, Plane, parsing
from appliance.imaging.reading import ImageReader
from appliance.model import Finding, Reason

Picture = NDArray[np.uint8]
Box = tuple[float, float, float, float]

MAX_SLICES = 3
MAX_FILM_PIXELS = 1024
LUNG_WINDOW = (-1350.0, 150.0)
COLOUR = (255, 210, 0)
FONT_PIXELS = 16
FILE_META_BYTES = 2048  #: more than preamble and File Meta Information take (PS3.10 7.1)


def key_picture(
    images: Prepared | Sequence[Path],
    findings: Sequence[Finding],
    reader: ImageReader,
    window: tuple[float, float] = LUNG_WINDOW,
) -> Picture:
    """RGB (rows, columns, 3): up to three key slices side by side, or the film at 1024 pixels or less.

    Slices are shown from black to white within `window`, in HU; a film as its sender meant it. Findings are numbered
    in their order from 1. Raises CannotAnalyse where an image is missing or unreadable, and RuntimeFailed.
    """
    numbered = list(enumerate(findings, 1))
    uids = list(dict.fromkeys(finding.sop_instance_uid for finding in findings))[:MAX_SLICES]
    headers = images.headers if isinstance(images, Prepared) else _headers_of(images, uids, reader)
    by_uid = {header.sop_instance_uid: header for header in headers}
    if not uids or any(uid not in by_uid for uid in uids):
        raise CannotAnalyse(Reason.UNDECODABLE, "the image of a finding is not there")
    on_each = {uid: [item for item in numbered if item[1].sop_instance_uid == uid] for uid in uids}
    panels = [_panel(by_uid[uid], on_each[uid], reader, window) for uid in uids]
    height = max(panel.shape[0] for panel in panels)
    return np.hstack([np.pad(panel, ((0, height - panel.shape[0]), (0, 0), (0, 0))) for panel in panels])


def draw_box(picture: Image.Image, box: Box, label: str) -> None:
    """Draw a box (column min, row min, column max, row max; pixels of the picture) with its label above or below."""
    left, top, right, bottom = (round(edge) for edge in box)
    draw = ImageDraw.Draw(picture)
    width = max(1, round(max(picture.size) / 400))
    draw.rectangle((left - width, top - width, right + width - 1, bottom + width - 1), outline=COLOUR, width=width)
    above = top - FONT_PIXELS - 2 * width
    draw.text((left, above if above >= 0 else bottom + 2 * width), label, COLOUR, ImageFont.load_default(FONT_PIXELS))


def _headers_of(paths: Sequence[Path], uids: Sequence[str], reader: ImageReader) -> list[ImageHeader]:
    """Headers among which those of `uids` are, if they are there at all.

    The SOP Instance UID stands in the File Meta Information, so most files need not be parsed.
    """
    named = [path for path in paths if _begins_with_one_of(path, uids)]
    headers = [reader.header(path) for path in named]
    found = {header.sop_instance_uid for header in headers}
    return headers if found.issuperset(uids) else [reader.header(path) for path in paths]


def _begins_with_one_of(path: Path, uids: Sequence[str]) -> bool:
    with parsing("file"), path.open("rb") as file:
        beginning = file.read(FILE_META_BYTES)
    return any(uid.encode() in beginning for uid in uids)


def _panel(
    header: ImageHeader, findings: Sequence[tuple[int, Finding]], reader: ImageReader, window: tuple[float, float]
) -> Picture:
    grey = _slice(header, findings[0][1], reader, window) if header.planes else reader.film(header).image
    picture = Image.fromarray(np.rint(grey * 255).astype(np.uint8))
    scale = min(1.0, MAX_FILM_PIXELS / max(picture.size))
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BOX)
    picture = picture.convert("RGB")
    for number, finding in findings:
        left, top, right, bottom = (edge * scale for edge in finding.box)
        draw_box(picture, (left, top, right, bottom), str(number))
    return np.asarray(picture, np.uint8)


def _slice(
    header: ImageHeader, finding: Finding, reader: ImageReader, window: tuple[float, float]
) -> NDArray[np.float32]:
    """The slice within the window, 0..1."""
    hu = reader.slice_hu(header, _nearest(header.planes, finding))
    low, high = window
    return np.asarray(np.clip((hu - np.float32(low)) / np.float32(max(high - low, 1.0)), 0, 1), np.float32)


def _nearest(planes: Sequence[Plane], finding: Finding) -> Plane:
    """Of several frames in one file the one whose plane is nearest to the finding."""
    if finding.centre_mm is None or len(planes) == 1:
        return planes[0]
    centre = np.array(finding.centre_mm)

    def distance(plane: Plane) -> float:
        normal = np.cross(plane.row_direction, plane.column_direction)
        return abs(float(normal @ (centre - np.array(plane.position))))

    return min(planes, key=distance)
