"""A picture of many small pictures, to see with one's own eyes what a data set holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_FRAME = (168, 126)  # ImageNet's usual 4:3
_GAP = 14
_LINE = 16
_TITLE = 44
_COLUMNS = 8
_PAPER, _MAT, _INK, _PALE, _RED = "#ffffff", "#eef0f2", "#1b1f24", "#6b7480", "#b42318"


@dataclass(frozen=True)
class Picture:
    """An image, uint8 [height, width, 3], with what is written under it; None where it cannot be decoded."""

    pixels: NDArray[np.uint8] | None
    key: str
    caption: str


def draw_sheet(pictures: Sequence[Picture], title: str) -> Image.Image:
    """The pictures row by row, each whole in a frame of its own, under a title."""
    columns = min(_COLUMNS, max(1, math.ceil(math.sqrt(len(pictures)))))
    rows = math.ceil(len(pictures) / columns)
    cell = (_FRAME[0] + _GAP, _FRAME[1] + 2 * _LINE + _GAP + 4)
    # A title needs the width of three frames.
    sheet = Image.new("RGB", (max(columns, 3) * cell[0] + _GAP, _TITLE + rows * cell[1] + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    large, bold, plain = _font("DejaVuSans-Bold", 16), _font("DejaVuSans-Bold", 11), _font("DejaVuSans", 11)
    draw.text((_GAP, _GAP), _fitted(draw, title, large, sheet.width - 2 * _GAP), fill=_INK, font=large)
    for number, picture in enumerate(pictures):
        x = _GAP + number % columns * cell[0]
        y = _TITLE + number // columns * cell[1]
        _draw_frame(sheet, draw, picture.pixels, x, y, plain)
        y += _FRAME[1] + 4
        draw.text((x, y), _fitted(draw, picture.caption, bold, _FRAME[0]), fill=_INK, font=bold)
        draw.text((x, y + _LINE), _fitted(draw, picture.key, plain, _FRAME[0]), fill=_PALE, font=plain)
    return sheet


def _draw_frame(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    pixels: NDArray[np.uint8] | None,
    x: int,
    y: int,
    font: ImageFont.FreeTypeFont,
) -> None:
    width, height = _FRAME
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_MAT)
    if pixels is None:
        draw.text((x + width // 2, y + height // 2), "cannot be decoded", fill=_RED, font=font, anchor="mm")
        return
    image = Image.fromarray(pixels)
    image.thumbnail(_FRAME, Image.Resampling.LANCZOS)
    sheet.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of the fonts that come with matplotlib, so that a sheet looks the same everywhere."""
    import matplotlib  # half a second that no other command need wait for

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")), size)


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, printable and on one line, with its middle left out where it would be wider."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if draw.textlength(text, font=font) <= width:
        return text
    kept = max(2, len(text[:200]))
    while kept > 2 and draw.textlength(_shortened(text, kept), font=font) > width:
        kept -= 1
    return _shortened(text, kept)


def _shortened(text: str, kept: int) -> str:
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
