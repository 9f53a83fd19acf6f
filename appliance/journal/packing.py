"""Long lists of UIDs as one value of a row: a thousand of them take a few kB, and one statement, not a thousand."""

import json
import zlib
from collections.abc import Sequence
from typing import Any


def packed(values: Sequence[Any]) -> bytes:
    return zlib.compress(json.dumps(values, separators=(",", ":")).encode(), 1)


def unpacked(blob: bytes) -> list[Any]:
    values: list[Any] = json.loads(zlib.decompress(blob))
    return values
