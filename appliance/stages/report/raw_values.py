"""Read single header values without trusting them: nothing here raises or warns over what a file holds.

pydicom converts a value when it is first accessed, and raises or warns where the value is not what its VR promises.
These functions take the bytes as read and convert what is legal; the rest reads as absent.
"""

import math
from collections.abc import Sequence

from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

_CONTROL = dict.fromkeys([*range(0x20), 0x7F])
_DELIMITERS = {ord(character) for character in "\\^=\r\n\t\f"}  # each returns to the first set (PS3.5 6.1.2.5.3)
_LATIN_1 = "ISO_IR 100"


def text(dataset: Dataset, keyword: str, encodings: Sequence[str] = ("iso8859",)) -> str:
    """A string value, multiple values joined by a backslash; "" if absent or of another kind."""
    value = _value(dataset, keyword)
    if isinstance(value, bytes):
        value = decode_bytes(value, encodings, _DELIMITERS)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        value = "\\".join(str(part) for part in value)
    return "" if value is None else str(value).translate(_CONTROL).strip()


def encodings_of(dataset: Dataset) -> list[str]:
    """Python's names for (0008,0005) SpecificCharacterSet; what is no DICOM term reads as ISO 8859-1.

    pydicom also takes Python's own codec names, and some of those codecs raise on any input.
    """
    names = [name.strip() for name in text(dataset, "SpecificCharacterSet").split("\\")]
    known = [name if name in python_encoding or name.startswith("ISO") else _LATIN_1 for name in names]
    return convert_encodings(known)


def numbers(dataset: Dataset, keyword: str, count: int) -> list[float]:
    """`count` finite numbers of a DS or IS element; empty if there are fewer, more, or other things."""
    try:
        values = [float(part) for part in text(dataset, keyword).split("\\")]
    except ValueError:
        return []
    return values if len(values) == count and all(math.isfinite(value) for value in values) else []


def unsigned_short(dataset: Dataset, keyword: str) -> int:
    """A US value; 0 if absent or of another kind."""
    element = dataset.get_item(Tag(keyword))
    if isinstance(element, RawDataElement) and element.value is not None and len(element.value) == 2:
        return int.from_bytes(element.value, "little" if element.is_little_endian else "big")
    value = _value(dataset, keyword)
    return value if isinstance(value, int) and 0 < value < 65536 else 0


def _value(dataset: Dataset, keyword: str) -> object:
    element = dataset.get_item(Tag(keyword))
    return None if element is None else element.value
