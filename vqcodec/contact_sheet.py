"""Several pictures of one size on one: a sheet in reading order, or a strip in one row."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

GAP = 4
"""Pixels between neighbouring pictures; there is no border around them."""

_PAPER = 255


def contact_sheet(pictures: Sequence[Image.Image], *, columns: int | None = None) -> Image.Image:
    """`pictures`, mode L or RGB and of one size, in rows of `columns`, on white.

    Without `columns` the sheet has as many columns as rows, or one more. The sheet is grey, mode L,
    where all pictures are, else RGB. Raises ValueError without pictures, for unequal sizes and for
    a number of columns below 1.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    if columns is None:
        columns = math.isqrt(len(pictures) - 1) + 1
    if columns < 1:
        raise ValueError(f"a contact sheet needs at least one column, got {columns}")
    width, height = pictures[0].size
    if any(picture.size != (width, height) for picture in pictures):
        raise ValueError("the pictures of a contact sheet must have one size")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    size = columns * (width + GAP) - GAP, rows * (height + GAP) - GAP
    if all(picture.mode == "L" for picture in pictures):
        sheet = Image.new("L", size, _PAPER)
    else:
        sheet = Image.new("RGB", size, (_PAPER,) * 3)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(picture, (column * (width + GAP), row * (height + GAP)))
    return sheet
