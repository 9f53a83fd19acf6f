"""What may be sent in another transfer syntax, and when that pays. See `reencoding`."""

import math
from dataclasses import dataclass

from appliance.dimse.sop_classes import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from appliance.errors import ObjectRefused
from appliance.ports import Recoded

PLAIN = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)  #: what everybody takes, in our order
_JPEG = "1.2.840.10008.1.2.4."
#: Stored syntaxes that lose nothing when they are decoded.
LOSSLESS = frozenset(
    (
        *PLAIN,
        DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
        EXPLICIT_VR_BIG_ENDIAN,
        "1.2.840.10008.1.2.5",  # RLE
        *(f"{_JPEG}{number}" for number in (57, 70, 80, 90, 201, 202)),
    )
)
#: Those that lost something before, or may have.
LOSSY = frozenset(f"{_JPEG}{number}" for number in (50, 51, 81, 91, 203))
_ROOT = "1.2.840.10008.5.1.4.1.1."
FIRST_REST, LONGEST_REST = 2, 512  # objects
MOST_FAILURES = 2  # of a series, until it goes as stored
_NO_IMAGES = tuple(f"{_ROOT}{arc}" for arc in ("8", "9.", "11.", "66", "67", "88.", "104.", "481."))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the config allows a destination."""

    compress: tuple[str, ...] = ()  #: lossless transfer syntaxes to compress to; (): none
    decode: bool = True  #: what was compressed without loss, where it is not taken so
    decode_lossy: bool = False  #: and what was compressed with loss

    def may_compress(self, sop_class_uid: str, syntax: str) -> bool:
        return syntax in PLAIN and not sop_class_uid.startswith(_NO_IMAGES)

    def may_decode(self, syntax: str) -> bool:
        return self.decode and (syntax in LOSSLESS or (self.decode_lossy and syntax in LOSSY))

    def refuse(self, syntax: str) -> None:
        """Raises ObjectRefused where the config could allow to decode it, and does not."""
        if syntax in LOSSY and not self.decode_lossy:
            raise ObjectRefused("not taken as stored, lossy: 'decode_lossy: true' would have it tried decoded")
        if syntax in LOSSLESS and not self.decode:
            raise ObjectRefused("not taken as stored: 'reencode: true' would have it tried decoded, without loss")


@dataclass(slots=True)
class Speed:
    """What a codec took lately, of any series. As with Choice: where it is passed over for that, it is asked again at
    doubling distances, lest a stall is taken for it.
    """

    s_per_byte: float
    rest: int = FIRST_REST  #: objects for which it is passed over
    rested: int = 0

    def may_be_below(self, s_per_byte: float) -> bool:
        return self.s_per_byte < s_per_byte or self.rested >= self.rest

    def told(self, s_per_byte: float) -> None:
        self.rest = min(2 * self.rest, LONGEST_REST) if self.rested else FIRST_REST
        self.s_per_byte, self.rested = s_per_byte, 0


@dataclass(slots=True)
class Choice:
    """What is best for a series. `syntax` "": as stored.

    What took long by the clock and not by the processor was a stall of the machine, or others keep it busy. So what
    does not pay for that alone is tried again, at doubling distances, and is judged by that.
    """

    syntax: str = ""
    kept: float = 1.0  #: bytes after over bytes before
    s_per_byte: float = 0.0
    cpu_s_per_byte: float = 0.0
    failures: int = 0
    rest: int = FIRST_REST  #: objects that go as stored until it is tried again
    rested: int = 0

    @classmethod
    def of(cls, syntax: str, size: int, made: Recoded) -> "Choice":
        return cls(syntax, made.size / size, made.seconds / size, made.cpu_s / size)

    def learn(self, size: int, made: Recoded) -> None:
        now = Choice.of(self.syntax, size, made)
        self.kept = (self.kept + now.kept) / 2
        self.cpu_s_per_byte = (self.cpu_s_per_byte + now.cpu_s_per_byte) / 2
        self.s_per_byte = now.s_per_byte if self.rested else (self.s_per_byte + now.s_per_byte) / 2
        self.rested = 0

    def pays(self, bytes_s: float) -> bool:
        return self._saves(bytes_s) > self.s_per_byte

    def will_be_due(self, bytes_s: float) -> bool:
        """Whether the next object is to be compressed: it pays, or has rested long enough to be tried again."""
        return self.pays(bytes_s) or (self._might_pay(bytes_s) and self.rested >= self.rest)

    def is_due(self, bytes_s: float) -> bool:
        """The same of an object that goes now; counts those that rest."""
        due = self.will_be_due(bytes_s)
        if self.pays(bytes_s):
            self.rest, self.rested = FIRST_REST, 0
        elif due:
            self.rest = min(2 * self.rest, LONGEST_REST)
        elif self._might_pay(bytes_s):
            self.rested += 1
        return due

    def failed(self, *, counts: bool) -> None:
        """It was not compressed, and rests. `counts`: the series goes as stored after some of these."""
        self.failures += counts
        self.s_per_byte, self.rested = math.inf, 0
        if self.failures >= MOST_FAILURES:
            self.syntax = ""

    def _might_pay(self, bytes_s: float) -> bool:
        return self._saves(bytes_s) > self.cpu_s_per_byte

    def _saves(self, bytes_s: float) -> float:
        """Seconds of the line, for each byte."""
        return (1 - self.kept) / bytes_s
