"""A sheet of slices: grey values, outlines, letters, titles and scales, drawn pixel by pixel.

Without axes and ticks a sheet of thirty slices takes a tenth of a second.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

WHITE, SOFT = 255, 170
TEXT = 15
"""Height of the letters, pixels."""


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(mpl.get_data_path(), 'fonts/ttf/DejaVuSans.ttf')), size)


def grey(plane: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Grey levels of values, black at the lower limit and below; what is not known is black.

    >>> grey(np.array([[-1.0, 0.0, 1.0, np.nan]]), (0.0, 1.0)).tolist()
    [[0, 0, 255, 0]]
    """
    low, high = limits
    levels = (np.asarray(plane, np.float32) - low) * (255 / (high - low))
    return np.rint(np.clip(np.nan_to_num(levels), 0, 255)).astype(np.uint8)


def enlarge(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (rows, columns) at another size (columns, rows): voxels as they are where each
    takes several pixels, smoothly between them otherwise."""
    whole = min(size[0] / pixels.shape[1], size[1] / pixels.shape[0]) >= 2.5
    kind = Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size, kind))


def outline(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels of the inner border of a mask, shown at another size (columns, rows)."""
    image = Image.fromarray(np.where(plane, 255, 0).astype(np.uint8))
    shown = np.asarray(image.resize(size, Image.Resampling.NEAREST)) > 0
    return shown & ~ndimage.binary_erosion(shown, border_value=1)


class Sheet:
    """A black sheet with slices and words on it."""

    def __init__(self, width: int, height: int, coloured: bool = False):
        self.image = Image.new('RGB' if coloured else 'L', (width, height))
        self._draw = ImageDraw.Draw(self.image)

    def _shade(self, level: int) -> int | tuple[int, int, int]:
        return (level, level, level) if self.image.mode == 'RGB' else level

    def paste(self, pixels: np.ndarray, x: int, y: int) -> None:
        """Put an image with its upper left corner at (x, y)."""
        self.image.paste(Image.fromarray(pixels).convert(self.image.mode), (x, y))

    def text(self, x: float, y: float, words: str, anchor: str = 'mm', level: int = WHITE) -> None:
        """Words at (x, y), a point of the text that Pillow's ``anchor`` names."""
        self._draw.text(
            (x, y), words, self._shade(level), _font(TEXT), anchor, stroke_width=1,
            stroke_fill=self._shade(0),
        )  # fmt: skip

    def title(self, x: float, y: float, words: str, width: int) -> None:
        """Words around x, in smaller letters where they would be wider than ``width``."""
        size = TEXT + 1
        while size > 9 and _font(size).getlength(words) > width:
            size -= 1
        self._draw.text((x, y), words, self._shade(WHITE), _font(size), 'mm')

    def letters(
        self, box: tuple[int, int, int, int], around: str, column: float, row: float
    ) -> None:
        """Directions at the left, right, upper and lower border of a slice (x, y, columns, rows),
        beside the `ticks` at a column and row."""
        x, y, columns, rows = box
        at, down = (
            start + size / 2 + (2 * TEXT if abs(size * (tick - 0.5)) < TEXT else 0)
            for start, size, tick in ((x, columns, column), (y, rows, row))
        )
        places = (
            (x + 3, down, 'lm'),
            (x + columns - 3, down, 'rm'),
            (at, y + 3, 'mt'),
            (at, y + rows - 3, 'mb'),
        )
        for letter, (left, top, anchor) in zip(around, places, strict=True):
            self.text(left, top, letter, anchor)

    def ticks(self, box: tuple[int, int, int, int], column: float, row: float) -> None:
        """Short lines at the border of a slice where two other planes cut it, from 0 to 1."""
        x, y, columns, rows = box
        at, down, size = x + column * columns, y + row * rows, 9
        for start, end in (
            ((at, y), (at, y + size)),
            ((at, y + rows - size), (at, y + rows)),
            ((x, down), (x + size, down)),
            ((x + columns - size, down), (x + columns, down)),
        ):
            self._draw.line([start, end], self._shade(SOFT))

    def scale(self, x: float, y: float, words: tuple[str, str], width: int) -> None:
        """Bar from black to white around (x, y), with the numbers at its ends."""
        bar = np.tile(np.linspace(0, 255, width).astype(np.uint8), (9, 1))
        left = round(x - width / 2)
        self.paste(bar, left, round(y) - 4)
        self._draw.rectangle(
            (left - 1, round(y) - 5, left + width, round(y) + 5), outline=self._shade(SOFT)
        )
        self.text(left - 7, y, words[0], 'rm')
        self.text(left + width + 7, y, words[1], 'lm')
