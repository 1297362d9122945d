"""Tests of vqcodec.contact_sheet: which pixel of which picture lands where."""

import numpy as np
import pytest
from PIL import Image

from vqcodec.contact_sheet import contact_sheet


def numbered(count: int, size: tuple[int, int] = (3, 2), mode: str = "RGB") -> list[Image.Image]:
    """Pictures of one shade each: 10, 20, 30, ..."""
    shades = (10 * (n + 1) for n in range(count))
    return [Image.new(mode, size, shade if mode == "L" else (shade,) * 3) for shade in shades]


@pytest.mark.parametrize(
    ("count", "columns", "grid"),
    [
        (1, None, (1, 1)), (2, None, (2, 1)), (3, None, (2, 2)), (4, None, (2, 2)),
        (5, None, (3, 2)), (9, None, (3, 3)), (10, None, (4, 3)), (16, None, (4, 4)),
        (17, None, (5, 4)), (5, 5, (5, 1)), (5, 9, (5, 1)), (5, 1, (1, 5)), (5, 2, (2, 3)),
    ],
)  # fmt: skip
def test_every_pixel(count: int, columns: int | None, grid: tuple[int, int]) -> None:
    sheet = np.asarray(contact_sheet(numbered(count), columns=columns))
    across, down = grid
    expected = np.full((down * 6 - 4, across * 7 - 4, 3), 255)
    for n in range(count):
        row, column = divmod(n, across)
        expected[row * 6 : row * 6 + 2, column * 7 : column * 7 + 3] = 10 * (n + 1)
    np.testing.assert_array_equal(sheet, expected)


def test_pixels_are_kept_as_they_are() -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    one = Image.fromarray(pixels)
    np.testing.assert_array_equal(np.asarray(contact_sheet([one])), pixels)
    sheet = np.asarray(contact_sheet([one, one], columns=2))
    np.testing.assert_array_equal(sheet[:, 11:], pixels)


def test_grey_only_where_all_are() -> None:
    grey, colour = numbered(2, mode="L"), numbered(2)
    assert contact_sheet(grey).mode == "L"
    assert contact_sheet(colour).mode == "RGB"
    mixed = contact_sheet([grey[0], colour[1]])
    assert mixed.mode == "RGB"
    assert (mixed.getpixel((0, 0)), mixed.getpixel((7, 0))) == ((10, 10, 10), (20, 20, 20))


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([*numbered(2), *numbered(1, (2, 3))])
    for columns in (0, -1):
        with pytest.raises(ValueError, match="at least one column"):
            contact_sheet(numbered(2), columns=columns)
