"""Pictures as people have them <-> the pixels that the codec takes.

Purpose: everything that depends on Pillow modes, file formats and orientation happens here, so
that the rest of the package sees one thing only: uint8 RGB pixels and whether they were grey.

Layout: `Picture`; in: `load_picture` (files), `as_picture` (objects in memory); out: `to_image`;
then one function for each conversion.

Invariants
- Pixels are uint8 (H, W, 3), C-contiguous, writable, owned by the Picture, H and W at least 1. A
  grey picture has three equal channels.
- Pixels stand upright: a stored EXIF orientation has been applied to them.
- Nothing is dropped in silence. What cannot be kept is refused (alpha, further frames); what is
  converted is said in `Picture.notes`, one sentence each, for a person. Pillow itself reduces
  colour AVIF and JPEG 2000 of more than 8 bits without a trace; that alone goes unnoticed here.
- Opening a file decodes it inside this process and starts no other program: the formats are
  listed below, and those which Pillow hands to an outside interpreter are not among them.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vqcodec.errors import ImageError, TooLargeError, VqcError

READ_FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "TIFF",
    "GIF",
    "BMP",
    "PPM",
    "AVIF",
    "JPEG2000",
    "QOI",
)
"""Pillow's names of the formats that `load_picture` opens; all of them begin with a signature."""

PictureSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

# What brings stored pixels upright, by EXIF orientation (1 is upright already).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_CONVERTED_TO_RGB = {
    "P": "palette",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "LAB": "CIELAB",
    "HSV": "HSV",
}


@dataclass(frozen=True)
class Picture:
    """An upright picture ready for the codec.

    pixels: uint8 (H, W, 3), contiguous; three equal channels where `grey` is true.
    grey: the picture had one channel and is to come back with one.
    notes: what was converted or left out on the way, one sentence each.
    """

    pixels: np.ndarray
    grey: bool
    notes: tuple[str, ...] = ()


def load_picture(source: PictureSource) -> Picture:
    """Read a picture from a path, the bytes of a file, or a binary file that is open.

    Raises ImageError for what is not a picture, is damaged, animated, has transparency or a
    number format that does not map to 8 bits; TooLargeError for more pixels than Pillow's limit
    on decompression allows; OSError if a path cannot be opened.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read(io.BytesIO(source))
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            return _read(file)
    return _read(source)


def as_picture(image: Image.Image | np.ndarray | Picture) -> Picture:
    """Take a picture from memory: a Pillow image or a uint8 array (H, W, 3) or (H, W).

    An array (H, W) is a grey picture. The result never shares memory with `image`, except that a
    Picture is returned as it is. Raises TypeError for another type or dtype, ValueError for an
    array of another shape, and for a Pillow image the errors of `load_picture`.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, Image.Image):
        with _decoding():
            return _from_image(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"a picture must be a Pillow image or a NumPy array, got {type(image).__name__}")
    if image.dtype != np.uint8:
        raise TypeError(f"a picture array must be uint8, got {image.dtype}")
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise ValueError(f"a picture array must be (H, W, 3) or (H, W), got shape {image.shape}")
    if 0 in image.shape:
        raise ValueError(f"a picture array must have pixels, got shape {image.shape}")
    return _from_array(image, ())


def to_image(pixels: np.ndarray, *, grey: bool) -> Image.Image:
    """Pillow image of decoded `pixels`, uint8 (H, W, 3): mode RGB, or L where `grey`.

    A grey picture went into the codec as three equal channels, so it comes out as their mean,
    rounded to nearest. Raises TypeError for another dtype and ValueError for another shape.
    """
    if pixels.dtype != np.uint8:
        raise TypeError(f"pixels must be uint8, got {pixels.dtype}")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"pixels must be (H, W, 3), got shape {pixels.shape}")
    if grey:
        total = pixels.sum(axis=2, dtype=np.uint16)
        pixels = ((total + 1) // 3).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _read(file: BinaryIO) -> Picture:
    with _decoding(), Image.open(file, formats=READ_FORMATS) as image:
        return _from_image(image)


@contextmanager
def _decoding() -> Iterator[None]:
    """Turn whatever Pillow raises over a picture into our errors, and keep it from warning.

    Decoders meet damaged files with very different exceptions, hence the broad net.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except VqcError:
            raise
        except Image.DecompressionBombError as error:
            raise TooLargeError(f"the picture is too large: {error}") from error
        except MemoryError as error:
            raise TooLargeError("not enough memory for the picture") from error
        except UnidentifiedImageError as error:
            names = ", ".join(READ_FORMATS)
            raise ImageError(f"not a picture that can be read ({names})") from error
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ImageError(f"the picture cannot be decoded: {reason}") from error


def _from_image(image: Image.Image) -> Picture:
    """The Picture of a Pillow image, which is decoded here if it was not before."""
    notes = []
    if 0 in image.size:
        raise ImageError(f"the picture has no pixels ({image.width} x {image.height})")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format == "MPO":
        # A photograph with a preview, a depth or a gain map behind it, not a sequence.
        notes.append(f"only the first of the {frames} pictures in the file is kept")
    elif frames > 1:
        raise ImageError(
            f"the file holds {frames} frames or pages; take one of them out and compress that"
        )
    deep = _has_sixteen_bit_colour(image)
    white = _white_level(image)
    image.load()
    if image.has_transparency_data:
        raise ImageError(
            f"the picture has transparency (mode {image.mode}), which is not supported yet; "
            "flatten it onto a background first"
        )
    if deep:
        notes.append("16-bit channels were reduced to 8 bits by Pillow")
    upright = _upright(image, notes)
    pixels = _eight_bit(upright, white, notes)
    profile = image.info.get("icc_profile")
    if profile and not _is_srgb(profile):
        notes.append("the colour profile is not kept, the pixel values are")
    return _from_array(pixels, tuple(notes))


def _from_array(array: np.ndarray, notes: tuple[str, ...]) -> Picture:
    """Picture of a uint8 array (H, W, 3) or (H, W), always a copy."""
    grey = array.ndim == 2
    if grey:
        array = np.broadcast_to(array[:, :, None], (*array.shape, 3))
    return Picture(np.array(array, order="C"), grey, notes)


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    """`image` with its EXIF orientation applied; adds a note where the EXIF data is unreadable."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Metadata, not the picture: damaged EXIF data is no reason to refuse good pixels.
        notes.append("the EXIF data cannot be read, so the orientation was left as it is")
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _eight_bit(image: Image.Image, white: int, notes: list[str]) -> np.ndarray:
    """The uint8 array, (H, W) or (H, W, 3), of an image in any mode without alpha."""
    mode = image.mode
    if mode in ("L", "RGB"):
        return np.asarray(image)
    if mode == "1":
        notes.append("a 1-bit picture was converted to 8-bit grey")
        return np.asarray(image.convert("L"))
    if mode == "RGBX":
        return np.asarray(image.convert("RGB"))
    if mode in _CONVERTED_TO_RGB:
        notes.append(f"{_CONVERTED_TO_RGB[mode]} colours were converted to RGB")
        return np.asarray(image.convert("RGB"))
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > white:
            raise ImageError(
                f"grey values from {low} to {high} have no known white; "
                "scale them to 0..65535 or to 8 bits first"
            )
        notes.append(f"grey values 0..{white} were scaled to 8 bits")
        # For 65535 this is the value divided by 257, rounded to nearest.
        return ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    raise ImageError(f"pictures of mode {mode} are not supported; convert it to 8 bits first")


def _raw_modes(image: Image.Image) -> list[tuple[str, tuple[object, ...]]]:
    """Decoder and arguments of each stored tile; empty once an image has been decoded."""
    return [
        (tile[0], tile[3] if isinstance(tile[3], tuple) else (tile[3],))
        for tile in getattr(image, "tile", ())
    ]


def _has_sixteen_bit_colour(image: Image.Image) -> bool:
    """Whether the file stores 16 bits where Pillow delivers 8, which no mode tells."""
    for decoder, args in _raw_modes(image):
        if str(args[0]).startswith(("RGB;16", "RGBX;16", "CMYK;16")):
            return True
        if decoder == "ppm" and image.mode == "RGB":
            return any(isinstance(value, int) and value > 255 for value in args)
    return False


def _white_level(image: Image.Image) -> int:
    """The value of white in a picture of more than 8 bits a channel."""
    return 4095 if any(args[0] == "I;12" for _, args in _raw_modes(image)) else 65535


def _is_srgb(profile: bytes) -> bool:
    """Whether an ICC profile calls itself sRGB, which is what pixels without one are taken for."""
    return any("sRGB".encode(encoding) in profile for encoding in ("ascii", "utf-16-be"))
