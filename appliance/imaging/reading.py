"""Who opens image files: the seam between what is reckoned from images and what parses and decodes them.

`ImageReader` is what this package and the stages ask. The appliance's is runtimes.reader.ReaderSession, which has a
process of its own do it; `InProcess` does the same work in the process that calls: inside that child, and for files
of one's own making.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from appliance.disk import SHORTAGE
from appliance.errors import CannotAnalyse, RuntimeFailed
from appliance.imaging import pixels
from appliance.imaging.film import Film, read_film
from appliance.imaging.headers import ImageHeader, Plane, parsing, read_elements, read_header
from appliance.imaging.hounsfield import exact_hu, whole_hu
from appliance.model import Reason

MAX_VALUE = 1 << 16  #: bytes of one element that `elements` gives; longer ones count as absent

Frame = tuple[ImageHeader, int]


class ReaderLost(CannotAnalyse):
    """Whoever read died of it, or did not come to an end. Another file of the same sender may do the same."""


class ImageReader(Protocol):
    """Reads files that strangers sent. Everything raises CannotAnalyse (ReaderLost among them) and RuntimeFailed.

    UNDECODABLE: the file cannot be read. RuntimeFailed: there is nobody to read it just now.
    """

    @property
    def lost(self) -> bool:
        """Whether it raised ReaderLost: then it is better not asked about more of the same files."""
        ...

    def header(self, path: Path) -> ImageHeader: ...

    def elements(self, path: Path, tags: Sequence[int]) -> Dataset:
        """Those of these elements that stand in the data set and hold bytes, as they were read (RawDataElement)."""
        ...

    def same_pixels(self, a: Frame, b: Frame) -> bool:
        """Whether two frames hold the same stored values."""
        ...

    def slice_hu(self, header: ImageHeader, plane: Plane) -> NDArray[np.float32]:
        """(rows, columns), not rounded, padding as air."""
        ...

    def write_hu(self, header: ImageHeader, plane: Plane, fd: int, offset: int) -> None:
        """Write int16 (rows, columns) into a file that has room for them. Raises CannotAnalyse(NO_ROOM), too."""
        ...

    def film(self, header: ImageHeader) -> Film:
        """Raises CannotAnalyse(UNSUITABLE), too."""
        ...


class InProcess:
    """An ImageReader without a wall around it: a file may cost the process that calls its life."""

    @property
    def lost(self) -> bool:
        return False

    def header(self, path: Path) -> ImageHeader:
        return read_header(path)

    def elements(self, path: Path, tags: Sequence[int]) -> Dataset:
        with parsing("header"), path.open("rb") as file:
            dataset, _ = read_elements(file, inflate=True)
            found = {Tag(tag): dataset.get_item(Tag(tag)) for tag in tags if tag in dataset}
            return Dataset({tag: one for tag, one in found.items() if _is_plain(one)})

    def same_pixels(self, a: Frame, b: Frame) -> bool:
        return pixels.same_pixels(a, b)

    def slice_hu(self, header: ImageHeader, plane: Plane) -> NDArray[np.float32]:
        return exact_hu(*pixels.read_frame(header, plane.frame), plane)

    def write_hu(self, header: ImageHeader, plane: Plane, fd: int, offset: int) -> None:
        hu = whole_hu(*pixels.read_frame(header, plane.frame), plane)
        try:
            write_array(fd, hu, offset)
        except OSError as error:
            raise unwritable(error) from error

    def film(self, header: ImageHeader) -> Film:
        return read_film(header)


#: For files of one's own making.
IN_PROCESS = InProcess()


def write_array(fd: int, array: NDArray[np.generic], offset: int = 0) -> None:
    """Raises OSError."""
    octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    done = 0
    while done < octets.size:
        done += os.pwrite(fd, octets[done:].data, offset + done)


def unwritable(error: OSError) -> CannotAnalyse | RuntimeFailed:
    """What it means that the volume cannot be written."""
    words = f"the volume cannot be written: {error.strerror}"
    if error.errno in SHORTAGE:
        return CannotAnalyse(Reason.NO_ROOM, words)
    return RuntimeFailed(Reason.ENGINE_FAILED, words)


def _is_plain(element: object) -> bool:
    if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes | None):
        return False
    return len(element.value or b"") <= MAX_VALUE
