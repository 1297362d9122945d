"""The codec: picture to bytes and back, with one loaded model.

Pixels go through analysis, bottleneck and container to bytes; decoding mirrors it. Everything that
feeds the entropy coder is integers on the CPU, so a file decodes to the same indices everywhere;
pixels may differ by rounding between devices.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vqcodec.bottleneck import SymbolPlane
from vqcodec.container import (
    MODE_VQ,
    Header,
    Section,
    pack_tiles,
    read_container,
    stage_payloads,
    stage_section,
    tile_grid,
    unpack_tiles,
    write_container,
)
from vqcodec.errors import CorruptError, TooLargeError, UnknownModelError
from vqcodec.image import Picture, as_picture, to_image
from vqcodec.model import QUALITIES, Model, find_model, find_model_by_code, load_model
from vqcodec.quantizer import LEVELS
from vqcodec.transform import STRIDE, pad_pixels

DEFAULT_MAX_PIXELS = 100_000_000
# Side in latents of the block that is synthesised at once, and the overlap that keeps its pixels
# out of reach of its artificial borders (the default network sees about 130 pixels far).
_BLOCK = 96
_OVERLAP = 12
# Smaller grids of latents than this a side are continued to the right and below.
_SMALLEST = 8
# A picture of one pixel takes at most this much.
PIXEL_BYTES = 64


@dataclass(frozen=True)
class EncodeStats:
    """What one encode spent. indices: (G, H, W) a stage; estimated_bits: the tables' ideal."""

    bytes: int
    payload_bytes: int
    estimated_bits: float
    indices: list[NDArray[np.uint8]]


class Codec:
    """One model on one device, ready to compress and decompress. The model's networks move there."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model, self.device = model, device
        self.analysis = model.analysis.to(device)
        self.synthesis = model.synthesis.to(device)

    def compress(self, image: Image.Image | NDArray[np.uint8] | Picture, *, quality: int = 50) -> bytes:
        """A .vqc file of a picture: PIL image or uint8 array (H, W, 3) or (H, W)."""
        return self._encode(as_picture(image), quality)[0]

    def analyse(
        self, image: Image.Image | NDArray[np.uint8] | Picture, *, quality: int = 50
    ) -> EncodeStats:
        """`compress`, with an account of the bits instead of the file."""
        data, planes = self._encode(as_picture(image), quality)
        _, sections = read_container(data)
        coded = {s for s in stage_payloads(sections)}
        return EncodeStats(
            bytes=len(data),
            payload_bytes=sum(len(section.payload) for section in sections),
            estimated_bits=sum(plane.bits for plane in planes if plane.stage in coded),
            indices=[plane.index for plane in planes],
        )

    def decompress(self, data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
        """The picture of a .vqc file; mode L if it was grey, else RGB."""
        header, sections = _read_limited(data, max_pixels)
        if header.code_id != self.model.code_id:
            raise UnknownModelError(
                f"the file needs the model with code id {header.code_id:08x}, "
                f"this one ({self.model.config.name}) has {self.model.code_id:08x}"
            )
        stages = self.model.config.quantizer.stages
        if header.rate > stages * LEVELS:
            raise CorruptError(f"rate bucket {header.rate}, but the model has {stages * LEVELS}")
        grid = tile_grid(header.width, header.height)
        streams = {
            stage: unpack_tiles(payload, grid.count)
            for stage, payload in stage_payloads(sections).items()
        }
        bottleneck = self.model.bottleneck
        indices = bottleneck.read(streams, header.rate, grid.rows, grid.cols)
        latent = bottleneck.from_symbols(indices)
        # A file cut to fewer stages is shown as what it is: complete up to its last stage.
        bucket = min(header.rate, len(indices) * LEVELS)
        pixels = self._synthesise(latent, bucket, header.height, header.width)
        return to_image(pixels, grey=header.grey)

    def _encode(self, picture: Picture, quality: int) -> tuple[bytes, list[SymbolPlane]]:
        if isinstance(quality, bool) or not isinstance(quality, int):
            raise ValueError(f"quality must be an integer, got {quality!r}")
        if not 1 <= quality <= QUALITIES:
            raise ValueError(f"quality must be 1..{QUALITIES}, got {quality}")
        height, width = picture.pixels.shape[:2]
        pixels = torch.from_numpy(picture.pixels).permute(2, 0, 1)[None].to(self.device).float()
        with torch.inference_mode():
            latent = self.analysis(pad_pixels(pixels))[0].cpu()
        point = self.model.config.points[quality - 1]
        bottleneck = self.model.bottleneck
        with torch.inference_mode():
            planes = bottleneck.to_symbols(latent, point)
        header = Header(
            mode=MODE_VQ,
            grey=picture.grey,
            rate=point.bucket,
            width=width,
            height=height,
            code_id=self.model.code_id,
        )
        streams = bottleneck.write(planes)
        sections = [stage_section(stage, pack_tiles(s)) for stage, s in sorted(streams.items())]
        data = write_container(header, sections)
        # A single pixel in a saturated colour would take a few bytes more, for a refinement that
        # hardly shows: its last stages go.
        while height == width == 1 and len(data) > PIXEL_BYTES:
            planes = planes[: sections.pop().stage]
            data = write_container(header, sections)
        return data, planes

    @torch.inference_mode()
    def _synthesise(self, latent: Tensor, bucket: int, height: int, width: int) -> NDArray[np.uint8]:
        """Pixels uint8 (height, width, 3), block by block: the network's memory is that of a block."""
        pixels = np.empty((height, width, 3), np.uint8)
        rate = torch.tensor([bucket], device=self.device)
        # The network knows borders, but has not learnt from pictures that are hardly more than that.
        short = [max(0, _SMALLEST - side) for side in latent.shape[1:]]
        latent = F.pad(latent[None], (0, short[1], 0, short[0]), mode="replicate")[0]
        rows, columns = -(-height // STRIDE), -(-width // STRIDE)
        for top in range(0, rows, _BLOCK):
            for left in range(0, columns, _BLOCK):
                y0, x0 = max(0, top - _OVERLAP), max(0, left - _OVERLAP)
                y1, x1 = top + _BLOCK + _OVERLAP, left + _BLOCK + _OVERLAP
                part = latent[None, :, y0:y1, x0:x1].to(self.device)
                part = part.contiguous(memory_format=torch.channels_last)
                picture = self.synthesis(part, rate)[0].clamp(0, 255).round().to(torch.uint8)
                target = pixels[
                    top * STRIDE : (top + _BLOCK) * STRIDE, left * STRIDE : (left + _BLOCK) * STRIDE
                ]
                picture = picture[:, (top - y0) * STRIDE :, (left - x0) * STRIDE :]
                picture = picture[:, : target.shape[0], : target.shape[1]]
                target[:] = picture.permute(1, 2, 0).cpu().numpy()
        return pixels


def load_codec(
    model: str | Path | None = None, device: str | None = None, *, code_id: int | None = None
) -> Codec:
    """A codec for a model on a device.

    model: name or path; without it, the installed model with `code_id` (from a file's header) if
    that is given, else the packaged default. device: "cpu", "cuda[:i]"; None or "auto" takes a GPU
    if there is one. Raises UnknownModelError, ModelFileError, ValueError for an absent device.
    """
    target = resolve_device(device)
    return Codec(load_model(_find(model, code_id)), target)


def compress(
    image: Image.Image | NDArray[np.uint8],
    *,
    quality: int = 50,
    model: str | Path | None = None,
    device: str | None = None,
) -> bytes:
    """A .vqc file of a picture: PIL image or uint8 array (H, W, 3) or (H, W); quality 1..100."""
    codec = _cached_codec(model, device, None)
    return codec.compress(image, quality=quality)


def decompress(
    data: bytes,
    *,
    model: str | Path | None = None,
    device: str | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Image.Image:
    """The picture of a .vqc file. Without `model`, the installed model that the file names."""
    header, _ = _read_limited(data, max_pixels)
    codec = _cached_codec(model, device, header.code_id if model is None else None)
    return codec.decompress(data, max_pixels=max_pixels)


def _read_limited(data: bytes, max_pixels: int) -> tuple[Header, list[Section]]:
    """The container of a file, refused where the picture is larger than the limit."""
    header, sections = read_container(data)
    grid = tile_grid(header.width, header.height)
    # Memory follows the padded grid, which is 16 times a picture of one row or column.
    padded = grid.rows * grid.cols * STRIDE**2
    if header.width * header.height > max_pixels or padded > 2 * max_pixels + (1 << 16):
        raise TooLargeError(
            f"{header.width} x {header.height} pixels, more than the limit of {max_pixels}"
        )
    return header, sections


def _find(model: str | Path | None, code_id: int | None) -> Path:
    if model is None and code_id is not None:
        return find_model_by_code(code_id)
    return find_model(None if model is None else str(model))


def _cached_codec(model: str | Path | None, device: str | None, code_id: int | None) -> Codec:
    path = _find(model, code_id).resolve()
    return _load_cached(path, path.stat().st_mtime_ns, device)


@lru_cache(maxsize=2)
def _load_cached(path: Path, modified: int, device: str | None) -> Codec:
    """Keyed by the time of modification too: a model that was trained again is loaded again."""
    return load_codec(path, device)


def resolve_device(name: str | None) -> torch.device:
    """The device of a name, None or "auto" a GPU if there is one. ValueError if it is not there."""
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}: expected cpu, cuda or cuda:i") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r}: expected cpu, cuda or cuda:i")
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(f"device {name!r} is not there")
    return device
