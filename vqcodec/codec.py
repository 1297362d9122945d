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

from vqcodec.bottleneck import SymbolPlane
from vqcodec.container import (
    MODE_VQ,
    Header,
    pack_tiles,
    read_container,
    read_header,
    stage_payloads,
    stage_section,
    tile_grid,
    unpack_tiles,
    write_container,
)
from vqcodec.errors import CorruptError, TooLargeError, UnknownModelError
from vqcodec.image import Picture, as_picture, to_image
from vqcodec.model import QUALITIES, Model, find_model, find_model_by_code, load_model
from vqcodec.quantizer import LEVELS, bucket_at
from vqcodec.transform import STRIDE, pad_pixels

DEFAULT_MAX_PIXELS = 100_000_000
# Rows of latents synthesised at once, and the overlap on both sides that keeps every output pixel
# out of reach of a strip's artificial border (the network sees about 130 pixels far).
_STRIP = 96
_OVERLAP = 12


@dataclass(frozen=True)
class EncodeStats:
    """What one encode spent. indices: (G, H, W) a stage; estimated_bits: the tables' ideal."""

    bytes: int
    payload_bytes: int
    estimated_bits: float
    indices: list[NDArray[np.uint8]]


class Codec:
    """One model on one device, ready to compress and decompress."""

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
        header = read_header(data)
        if header.width * header.height > max_pixels:
            raise TooLargeError(
                f"{header.width} x {header.height} pixels, more than the limit of {max_pixels}"
            )
        header, sections = read_container(data)
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
        position = self.model.position(quality)
        bottleneck = self.model.bottleneck
        with torch.inference_mode():
            planes = bottleneck.to_symbols(latent, position)
        header = Header(
            mode=MODE_VQ,
            grey=picture.grey,
            rate=bucket_at(self.model.config.quantizer, position),
            width=width,
            height=height,
            code_id=self.model.code_id,
        )
        streams = bottleneck.write(planes)
        sections = [stage_section(stage, pack_tiles(s)) for stage, s in sorted(streams.items())]
        return write_container(header, sections), planes

    @torch.inference_mode()
    def _synthesise(self, latent: Tensor, bucket: int, height: int, width: int) -> NDArray[np.uint8]:
        """Pixels uint8 (height, width, 3), in strips, so that memory follows the width only."""
        rows = latent.shape[1]
        pixels = np.empty((height, width, 3), np.uint8)
        rate = torch.tensor([bucket], device=self.device)
        for top in range(0, rows, _STRIP):
            first, last = max(0, top - _OVERLAP), min(rows, top + _STRIP + _OVERLAP)
            strip = latent[None, :, first:last].to(self.device)
            strip = strip.contiguous(memory_format=torch.channels_last)
            picture = self.synthesis(strip, rate)[0].clamp(0, 255).round().to(torch.uint8)
            begin, end = top * STRIDE, min(height, (top + _STRIP) * STRIDE)
            cut = picture[:, begin - first * STRIDE : end - first * STRIDE, :width]
            pixels[begin:end] = cut.permute(1, 2, 0).cpu().numpy()
        return pixels


def load_codec(
    model: str | Path | None = None, device: str | None = None, *, code_id: int | None = None
) -> Codec:
    """A codec for a model on a device.

    model: name or path; without it, the installed model with `code_id` (from a file's header) if
    that is given, else the packaged default. device: "cpu", "cuda[:i]"; None or "auto" takes a GPU
    if there is one. Raises UnknownModelError, ModelFileError, ValueError for an absent device.
    """
    target = _device(device)
    if model is None and code_id is not None:
        path = find_model_by_code(code_id)
    else:
        path = find_model(None if model is None else str(model))
    return Codec(load_model(path), target)


def compress(
    image: Image.Image | NDArray[np.uint8],
    *,
    quality: int = 50,
    model: str | Path | None = None,
    device: str | None = None,
) -> bytes:
    """A .vqc file of a picture: PIL image or uint8 array (H, W, 3) or (H, W); quality 1..100."""
    codec = _cached_codec(None if model is None else str(model), device, None)
    return codec.compress(image, quality=quality)


def decompress(
    data: bytes,
    *,
    model: str | Path | None = None,
    device: str | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Image.Image:
    """The picture of a .vqc file. Without `model`, the installed model that the file names."""
    code_id = read_header(data).code_id if model is None else None
    codec = _cached_codec(None if model is None else str(model), device, code_id)
    return codec.decompress(data, max_pixels=max_pixels)


@lru_cache(maxsize=2)
def _cached_codec(model: str | None, device: str | None, code_id: int | None) -> Codec:
    return load_codec(model, device, code_id=code_id)


def _device(name: str | None) -> torch.device:
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
