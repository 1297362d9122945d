"""Tests of vqcodec.image: modes, orientation, what is refused, and what is said about it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from vqcodec.errors import ImageError, TooLargeError
from vqcodec.image import Picture, as_picture, load_picture, to_image

COLOURS = np.random.default_rng(7).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREYS = COLOURS[:, :, 0].copy()


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The bytes of `image` as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes]) -> bytes:
    """A PNG file from raw rows, for what Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def check(picture: Picture, pixels: np.ndarray, *, grey: bool) -> None:
    """The picture holds exactly these pixels, and keeps what its class promises."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.grey is grey
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.flags.c_contiguous
    assert picture.pixels.flags.writeable
    assert picture.pixels.flags.owndata


def test_rgb_and_grey_are_taken_as_they_are() -> None:
    for image, grey in ((Image.fromarray(COLOURS), False), (Image.fromarray(GREYS), True)):
        for picture in (as_picture(image), load_picture(saved(image))):
            check(picture, np.asarray(image), grey=grey)
            assert picture.notes == ()


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF", "QOI"])
def test_lossless_formats(format: str) -> None:
    check(load_picture(saved(Image.fromarray(COLOURS), format)), COLOURS, grey=False)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_lossy_formats_open(format: str) -> None:
    picture = load_picture(saved(Image.new("RGB", (9, 6), (40, 80, 120)), format))
    assert picture.pixels.shape == (6, 9, 3)
    assert not picture.grey
    assert np.abs(picture.pixels.astype(int) - [40, 80, 120]).max() <= 8


def test_grey_jpeg_stays_grey() -> None:
    picture = load_picture(saved(Image.new("L", (9, 6), 90), "JPEG"))
    assert picture.grey
    assert (picture.pixels == 90).all()


def test_sources_path_file_and_bytes(tmp_path) -> None:
    data = saved(Image.fromarray(COLOURS))
    path = tmp_path / "picture without suffix"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data)):
        check(load_picture(source), COLOURS, grey=False)
    with open(path, "rb") as file:
        check(load_picture(file), COLOURS, grey=False)


def test_missing_path_is_an_os_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        load_picture(tmp_path / "none.png")


@pytest.mark.parametrize("array", [COLOURS, GREYS, COLOURS[::2, ::-1], np.asfortranarray(COLOURS)])
def test_arrays_are_copied(array: np.ndarray) -> None:
    picture = as_picture(array)
    check(picture, array, grey=array.ndim == 2)
    assert not np.shares_memory(picture.pixels, array)


def test_a_picture_is_returned_as_it_is() -> None:
    picture = as_picture(GREYS)
    assert as_picture(picture) is picture


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.zeros((4, 5, 4), np.uint8), ValueError, r"\(4, 5, 4\)"),
        (np.zeros((4, 5, 1), np.uint8), ValueError, r"\(4, 5, 1\)"),
        (np.zeros((3,), np.uint8), ValueError, r"\(3,\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), ValueError, r"\(1, 4, 5, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"\(0, 5, 3\)"),
        (np.zeros((4, 0), np.uint8), ValueError, r"\(4, 0\)"),
        (np.zeros((4, 5, 3), np.float32), TypeError, "float32"),
        (np.zeros((4, 5, 3), np.uint16), TypeError, "uint16"),
        ([[1, 2], [3, 4]], TypeError, "list"),
        ("picture.png", TypeError, "str"),
    ],
    ids=str,
)
def test_other_objects_are_refused(value: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        as_picture(value)  # type: ignore[arg-type]


# --- conversions ---------------------------------------------------------------------------


def test_one_bit_becomes_grey() -> None:
    bits = (GREYS > 127).astype(np.uint8) * 255
    picture = load_picture(saved(Image.fromarray(bits).convert("1")))
    check(picture, bits, grey=True)
    assert "1-bit" in picture.notes[0]


def test_low_bit_depth_grey_is_scaled_to_white() -> None:
    picture = load_picture(png(2, 1, 4, 0, [bytes([0x0F])]))
    check(picture, np.array([[0, 255]], np.uint8), grey=True)


def test_palette_becomes_rgb() -> None:
    image = Image.fromarray(GREYS % 4).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    picture = load_picture(saved(image))
    table = np.arange(10, 130, 10, dtype=np.uint8).reshape(4, 3)
    check(picture, table[GREYS % 4], grey=False)
    assert picture.notes == ("palette colours were converted to RGB",)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colour_spaces_become_rgb(mode: str) -> None:
    image = Image.new(mode, (4, 3), (10, 140, 120, 30)[: len(Image.new(mode, (1, 1)).getbands())])
    picture = load_picture(saved(image, "TIFF"))
    check(picture, np.asarray(image.convert("RGB")), grey=False)
    assert len(picture.notes) == 1
    assert "converted to RGB" in picture.notes[0]


def test_hsv_image_becomes_rgb() -> None:
    image = Image.new("HSV", (4, 3), (10, 140, 120))
    check(as_picture(image), np.asarray(image.convert("RGB")), grey=False)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_rounded(format: str) -> None:
    values = np.array([[0, 128, 129, 257, 385, 386, 32767, 65406, 65407, 65535]], np.uint16)
    picture = load_picture(saved(Image.fromarray(values), format))
    check(picture, np.rint(values / 257).astype(np.uint8), grey=True)
    assert picture.notes == ("grey values 0..65535 were scaled to 8 bits",)


def test_sixteen_bit_grey_of_the_other_byte_order() -> None:
    values = np.array([[0, 257, 65535]], np.uint16)
    for order in ("<u2", ">u2"):
        image = Image.fromarray(values.astype(order))
        check(as_picture(image), np.array([[0, 1, 255]], np.uint8), grey=True)


def test_wide_integers_within_sixteen_bits_are_scaled() -> None:
    picture = as_picture(Image.fromarray(np.array([[0, 257, 65535]], np.int32)))
    check(picture, np.array([[0, 1, 255]], np.uint8), grey=True)


@pytest.mark.parametrize("value", [-1, 65536])
def test_wide_integers_beyond_sixteen_bits_are_refused(value: int) -> None:
    with pytest.raises(ImageError, match=str(value)):
        as_picture(Image.fromarray(np.array([[0, value]], np.int32)))


def test_floating_point_is_refused() -> None:
    with pytest.raises(ImageError, match="mode F"):
        load_picture(saved(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))


def test_sixteen_bit_colour_is_said() -> None:
    row = struct.pack(">6H", 1000, 2000, 65535, 40000, 30000, 0)
    picture = load_picture(png(2, 1, 16, 2, [row]))
    check(picture, np.array([[[3, 7, 255], [156, 117, 0]]], np.uint8), grey=False)
    assert len(picture.notes) == 1
    assert "16-bit" in picture.notes[0]


def test_sixteen_bit_ppm_is_said() -> None:
    body = np.array([0, 257, 65535], ">u2").tobytes()
    picture = load_picture(b"P6 1 1 65535\n" + body)
    check(picture, np.array([[[0, 1, 255]]], np.uint8), grey=False)
    assert "16-bit" in picture.notes[0]


def test_colour_profile_is_said_unless_srgb() -> None:
    image = Image.fromarray(COLOURS)
    assert "profile" in load_picture(saved(image, icc_profile=b"\0" * 128 + b"P3")).notes[0]
    assert load_picture(saved(image, icc_profile=b"\0" * 128 + b"sRGB IEC")).notes == ()


# --- orientation ---------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_to_the_pixels(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(Image.fromarray(COLOURS), format, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert expected.shape == ((5, 7, 3) if orientation < 5 else (7, 5, 3))
    check(load_picture(data), expected, grey=False)
    check(as_picture(Image.open(io.BytesIO(data))), expected, grey=False)


def test_orientation_of_sixteen_bit_grey() -> None:
    values = (np.arange(6, dtype=np.uint16) * 257).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = load_picture(saved(Image.fromarray(values), exif=exif))
    check(picture, np.array([[3, 0], [4, 1], [5, 2]], np.uint8), grey=True)


def test_orientation_already_applied_is_not_applied_twice() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(saved(Image.fromarray(COLOURS), exif=exif)))
    upright = ImageOps.exif_transpose(image)
    check(as_picture(upright), np.rot90(COLOURS, -1), grey=False)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_unknown_orientation_is_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    check(load_picture(saved(Image.fromarray(COLOURS), exif=exif)), COLOURS, grey=False)


def test_damaged_exif_does_not_lose_the_picture() -> None:
    data = saved(Image.fromarray(COLOURS), exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    check(load_picture(data), COLOURS, grey=False)
    data = saved(Image.fromarray(COLOURS), exif=b"Exif\0\0not a header")
    picture = load_picture(data)
    check(picture, COLOURS, grey=False)
    assert "EXIF" in picture.notes[0]


# --- what is refused -----------------------------------------------------------------------


def with_transparency(mode: str) -> bytes:
    """A PNG of a single colour that is marked as transparent by a tRNS chunk."""
    colour = (1, 2, 3) if mode == "RGB" else 1
    return saved(Image.new(mode, (4, 3), colour), transparency=colour)


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.new("RGBA", (4, 3), (1, 2, 3, 255))),
        saved(Image.new("RGBA", (4, 3), (1, 2, 3, 9)), "WEBP"),
        saved(Image.new("LA", (4, 3), (1, 255))),
        saved(Image.new("PA", (4, 3)), "TIFF"),
        with_transparency("L"),
        with_transparency("RGB"),
        with_transparency("P"),
        with_transparency("1"),
        saved(Image.new("P", (4, 3), 1), "GIF", transparency=1),
        png(1, 1, 16, 4, [struct.pack(">2H", 1000, 65535)]),
        png(1, 1, 16, 6, [struct.pack(">4H", 1, 2, 3, 65535)]),
    ],
    ids=["RGBA", "RGBA-webp", "LA", "PA", "L-trns", "RGB-trns", "P-trns", "1-trns", "P-gif"]
    + ["LA16", "RGBA16"],
)
def test_transparency_is_refused_with_advice(data: bytes) -> None:
    with pytest.raises(ImageError, match="transparency.*flatten"):
        load_picture(data)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa"])
def test_transparency_in_memory_is_refused(mode: str) -> None:
    with pytest.raises(ImageError, match=f"mode {mode}"):
        as_picture(Image.new(mode, (4, 3)))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_several_frames_are_refused(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (0, 100, 200)]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="3 frames"):
        load_picture(data)


def test_photograph_with_a_second_picture_behind_it_is_taken() -> None:
    images = [Image.new("RGB", (16, 8), (90, 90, 90)), Image.new("RGB", (4, 4))]
    picture = load_picture(saved(images[0], "MPO", save_all=True, append_images=images[1:]))
    assert picture.pixels.shape == (8, 16, 3)
    assert picture.notes == ("only the first of the 2 pictures in the file is kept",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89",
        b"hello, this is text\n" * 9,
        bytes(1000),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"P6 0 0 255\n",
        png(0, 3, 8, 2, [b""] * 3),
    ],
    ids=["empty", "byte", "text", "zeros", "eps", "empty-ppm", "empty-png"],
)
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(ImageError, match="not a picture|no pixels|cannot be decoded"):
        load_picture(data)


def test_empty_image_is_refused() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        as_picture(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000"])
def test_truncated_files_are_refused(format: str) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), format)
    for length in (20, len(data) // 2, len(data) * 4 // 5):
        with pytest.raises(ImageError):
            load_picture(data[:length])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "QOI"])
def test_damage_gives_a_picture_or_our_error(format: str) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), format)
    rng = np.random.default_rng(5)
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 200), 3):
            damaged[position] = rng.integers(0, 256)
        try:
            load_picture(damaged)
        except (ImageError, TooLargeError):
            pass


def test_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(TooLargeError, match="too large"):
        load_picture(png(60000, 60000, 8, 2, [b""]))


def test_large_pictures_below_the_limit_do_not_warn(monkeypatch, recwarn) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    load_picture(saved(Image.fromarray(COLOURS)))
    assert not recwarn.list


def test_text_that_expands_too_far_is_refused() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    with pytest.raises(ImageError):
        load_picture(saved(Image.fromarray(COLOURS), pnginfo=info))


# --- back to Pillow ------------------------------------------------------------------------


def test_to_image_of_colour() -> None:
    image = to_image(COLOURS, grey=False)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), COLOURS)


def test_to_image_of_grey_is_the_rounded_mean() -> None:
    pixels = np.array([[[10, 10, 10], [10, 10, 11], [10, 11, 11], [0, 0, 0], [255, 255, 255]]])
    image = to_image(pixels.astype(np.uint8), grey=True)
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), [[10, 10, 11, 0, 255]])
    image = to_image(COLOURS, grey=True)
    np.testing.assert_array_equal(np.asarray(image), np.rint(COLOURS.mean(axis=2)))


def test_grey_goes_and_comes_back() -> None:
    picture = as_picture(GREYS)
    np.testing.assert_array_equal(np.asarray(to_image(picture.pixels, grey=picture.grey)), GREYS)


def test_to_image_takes_views() -> None:
    np.testing.assert_array_equal(np.asarray(to_image(COLOURS[::-1], grey=False)), COLOURS[::-1])


@pytest.mark.parametrize(
    ("pixels", "error"),
    [
        (np.zeros((4, 5, 3), np.float32), TypeError),
        (np.zeros((4, 5), np.uint8), ValueError),
        (np.zeros((4, 5, 4), np.uint8), ValueError),
        (np.zeros((0, 5, 3), np.uint8), ValueError),
    ],
    ids=["dtype", "2d", "4-channels", "empty"],
)
def test_to_image_refuses_other_arrays(pixels: np.ndarray, error: type) -> None:
    with pytest.raises(error):
        to_image(pixels, grey=False)
