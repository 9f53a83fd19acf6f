"""The ledger: what the sender was told, from a console that may end within a line and carry other words too."""

import re
from collections.abc import Iterator

_ACK = re.compile(rb"^ACK ([0-9.]{1,64}) ([0-9a-f]{64})\r*\n", re.MULTILINE)
_WORD = re.compile(rb"^([A-Z]+)(?: [^\n]*)?\r*\n", re.MULTILINE)

Ledger = dict[str, str]  # SOP Instance UID -> SHA-256 of the data set, in hexadecimal


def acknowledged(console: bytes) -> Ledger:
    """All whole ACK lines. A line that the cut or a kernel message broke is no promise that anybody heard."""
    return {uid.decode(): digest.decode() for uid, digest in _ACK.findall(console)}


def words(console: bytes) -> Iterator[tuple[str, Ledger]]:
    """Each line that begins with a capital word, in order: the word, and for ACK what was acknowledged."""
    for line in _WORD.finditer(console):
        yield line[1].decode(), acknowledged(line[0])
