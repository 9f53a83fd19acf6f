"""The digest of a data set, by which the same object is known again and a file that was torn or altered is told.

BLAKE3, 32 bytes, over the data set as it travelled, File Meta excluded. It is taken of every byte that comes in; where
the processor has no instructions for SHA-256, as many a workstation has not, that would cost more than all else of
receiving (1.9 ms against 0.12 ms for a CT image, measured on such a one).
"""

import hashlib
from typing import BinaryIO

from blake3 import blake3

DataSetDigest = blake3

_CHUNK = 1 << 20


def digest_of(data: bytes | memoryview) -> bytes:
    return blake3(data).digest()


def digest_of_rest(file: BinaryIO) -> bytes:
    """Of what stands in an open file from its position on. Raises OSError."""
    digest = blake3()
    while piece := file.read(_CHUNK):
        digest.update(piece)
    return digest.digest()


def former_digest_of_rest(file: BinaryIO) -> bytes:
    """SHA-256, as the first versions took it: for files of theirs. Raises OSError."""
    digest = hashlib.sha256()
    while piece := file.read(_CHUNK):
        digest.update(piece)
    return digest.digest()
