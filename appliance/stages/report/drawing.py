"""The pixels of the picture: a bar that says what it is, the key image, and the words of the result below.

The words stand beside the image, not on it: nothing of the anatomy is hidden. Pillow's own scalable font is drawn,
so that no font of the machine matters and the same facts give the same pixels.
"""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from appliance.model import Conclusion
from appliance.stages.report import wording
from appliance.stages.report.context import SERIES_PREFIX, ReportContext

LONGEST_SIDE = 1024  #: of the key image in the picture
NARROWEST = 768  #: the text is legible from this width on
MOST_FINDINGS = 8  #: listed; the structured report has them all

_BAR = (150, 30, 30)
_PANEL = (16, 20, 26)
_BLACK = (0, 0, 0)
_WHITE = (255, 255, 255)
_GREY = (190, 196, 204)
_AMBER = (255, 196, 84)

_Colour = tuple[int, int, int]
_Line = tuple[str, _Colour]


def draw(context: ReportContext, local: datetime, rgb: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """The whole picture, shape (rows, columns, 3); `local` is the conclusion's time in the zone to show it in."""
    key_image = None if rgb is None else _fitted(rgb)
    width = max(NARROWEST, key_image.width) if key_image else LONGEST_SIDE
    lines = _lines(context, local)
    body, title = ImageFont.load_default(width / 46), ImageFont.load_default(width / 28)
    step, bar = width // 32, width // 16
    height = bar + (key_image.height if key_image else 0) + step * (len(lines) + 1)

    canvas = Image.new("RGB", (width, height), _PANEL)
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, 0, width, bar - 1), fill=_BAR)
    pen.text((width / 2, bar / 2), SERIES_PREFIX, fill=_WHITE, font=title, anchor="mm")
    top = bar
    if key_image:
        pen.rectangle((0, top, width, top + key_image.height - 1), fill=_BLACK)
        canvas.paste(key_image, ((width - key_image.width) // 2, top))
        top += key_image.height
    for number, (words, colour) in enumerate(lines):
        at = (step // 2, top + step * (number + 1))
        pen.text(at, shortened(words, body, width - step), fill=colour, font=body, anchor="lm")
    return np.asarray(canvas)


def shortened(words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """`words` on one line of at most `width` pixels, cut with an ellipsis where they are longer."""
    line = " ".join(words.split())
    if font.getlength(line) <= width:
        return line
    shortest, longest = 0, len(line)
    while shortest < longest:  # the longest start that fits
        middle = (shortest + longest + 1) // 2
        if font.getlength(line[:middle].rstrip() + "...") <= width:
            shortest = middle
        else:
            longest = middle - 1
    return line[:shortest].rstrip() + "..."


def _lines(context: ReportContext, local: datetime) -> Sequence[_Line]:
    outcome = context.outcome
    stands_out = outcome.conclusion is not Conclusion.NO_FINDING
    lines: list[_Line] = [
        (wording.engine(context), _GREY),
        (wording.headline(context), _AMBER if stands_out else _WHITE),
    ]
    if outcome.detail:
        lines.append((outcome.detail, _WHITE))
    listed = outcome.findings[:MOST_FINDINGS]
    lines += [(wording.finding_line(context, n, finding), _WHITE) for n, finding in enumerate(listed, start=1)]
    if more := len(outcome.findings) - len(listed):
        lines.append((f"and {more} more in the structured report", _WHITE))
    lines.append((wording.extent(outcome), _GREY))
    lines.append((wording.concluded(local), _GREY))
    return lines + [(words, _AMBER) for words in wording.warnings(context)]


def _fitted(rgb: NDArray[np.uint8]) -> Image.Image:
    """The key image no longer than LONGEST_SIDE, and enlarged towards NARROWEST where that leaves it so."""
    rows, columns = rgb.shape[:2]
    factor = min(LONGEST_SIDE / max(rows, columns), max(1.0, NARROWEST / columns))
    image = Image.fromarray(np.ascontiguousarray(rgb))
    if factor == 1.0:
        return image
    size = (max(1, round(columns * factor)), max(1, round(rows * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)
