"""The codec: picture to bytes and back, with one loaded model.

Pixels go through analysis, bottleneck and container to bytes; decoding mirrors it. Everything that
feeds the entropy coder is integers on the CPU, so a file decodes to the same indices everywhere;
pixels may differ by rounding between devices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqcodec.blocks import MARGIN, cut_blocks, pad_latent
from vqcodec.bottleneck import NestedBottleneck, SymbolPlane, VectorBottleneck
from vqcodec.collapse import (
    LatentHealth,
    codebook_health,
    deterministic_health,
    gaussian_health,
)
from vqcodec.container import (
    MODE_NAMES,
    UNIFORM_MODES,
    Header,
    Section,
    TileGrid,
    pack_tiles,
    read_container,
    stage_payloads,
    stage_section,
    tile_grid,
    unpack_tiles,
    write_container,
)
from vqcodec.divergences import standardise_gaussian
from vqcodec.effort import DEFAULT_EFFORT, GREEDY_EFFORT, check_effort
from vqcodec.errors import (
    CorruptError,
    ImageError,
    ModeError,
    ModelFileError,
    TruncatedError,
    UnknownModelError,
)
from vqcodec.image import Picture, as_picture, to_image
from vqcodec.limits import Limits
from vqcodec.model import (
    MODES,
    QUALITIES,
    Model,
    find_model,
    find_model_by_code,
    load_model,
)
from vqcodec.modes import DRAWN_MODES, NORMAL_MODES, POSTERIOR_MODES, UNDRAWN_MODES
from vqcodec.precision import full_precision, has_fast_bfloat16, short_precision
from vqcodec.pyramid import kept_positions
from vqcodec.quantizer import RatePoint, ResidualQuantizer
from vqcodec.rate_control import RateTarget, find_file
from vqcodec.recovery import read_cut, read_damaged
from vqcodec.search import search_symbols
from vqcodec.similarity import psnr_rgb
from vqcodec.transform import STRIDE, pad_pixels
from vqcodec.truncation import check_stages
from vqcodec_kernels import gaussian_sample

_LIMITS = Limits()
# For what was encoded just now: nothing that it says of itself is to be doubted.
_NO_LIMITS = Limits(max_pixels=1 << 62, max_side=1 << 31)
_QUALITY = 50
# Side in latents of the block that is synthesised at once.
_BLOCK = 96
# A picture of one pixel takes at most this much in mode vq.
PIXEL_BYTES = 64


@dataclass(frozen=True)
class EncodeStats:
    """What one encode spent. data: the file; indices: symbols (G, H, W) a stage; estimated_bits: the
    tables' ideal, without the escapes of continuous latents.

    divergence_bits: KL of the encoder's posterior from its prior, for the whole picture, in bits;
    None in modes without a posterior.
    """

    data: bytes
    payload_bytes: int
    estimated_bits: float
    indices: list[NDArray[np.integer]]
    divergence_bits: float | None = None


@dataclass(frozen=True)
class Salvage:
    """The picture of what is whole of a file, and what is lost, one sentence each."""

    image: Image.Image
    losses: tuple[str, ...]


class Codec:
    """One model on one device, ready to compress and decompress. The model's networks move there.

    precise: decode in float32 also where bfloat16 is faster. Latents are always computed in float32;
    what a search asks the synthesis for (`effort`), in bfloat16 where that is fast.
    """

    def __init__(self, model: Model, device: torch.device, *, precise: bool = False) -> None:
        self.model, self.device = model, device
        self.precise = precise or not has_fast_bfloat16(device)
        with torch.inference_mode(False):
            self.analysis = model.analysis.to(device)
            self.synthesis = model.synthesis.to(device)

    def compress(
        self,
        image: Image.Image | NDArray[np.uint8] | Picture,
        *,
        quality: int | None = None,
        target: RateTarget | None = None,
        sample: int | None = None,
        stages: int | None = None,
        effort: int = DEFAULT_EFFORT,
    ) -> bytes:
        """A .vqc file of a picture: PIL image or uint8 array (H, W, 3) or (H, W).

        quality: 1..100, 50 if there is no target. target: a size, rate or PSNR instead, for which the
        picture is encoded about ten times, and for a PSNR decoded on this device as often; RateError if
        the picture cannot have it, ValueError with quality or stages.
        sample: a seed; the latent is then drawn from the posterior instead of being its mean (modes
        vae and hvae; ModeError in others). stages: stop after as many stages, 1..16, which gives the file
        that `vqcodec.truncate` makes of the whole one (ModeError in the uniform modes). effort: 1..9,
        how long to search for a smaller file of a better picture (`vqcodec.search`; there is nothing
        to search for in other modes than vq).
        """
        check_effort(effort)
        if target is None:
            quality = _QUALITY if quality is None else quality
            return self._encode(as_picture(image), quality, sample, stages, effort)[0]
        if quality is not None or stages is not None:
            raise ValueError("a target takes the place of quality and stages")
        return self._encode_to(as_picture(image), target, sample, effort)

    def analyse(
        self,
        image: Image.Image | NDArray[np.uint8] | Picture,
        *,
        quality: int = _QUALITY,
        sample: int | None = None,
        effort: int = DEFAULT_EFFORT,
    ) -> EncodeStats:
        """`compress`, with an account of the bits."""
        picture = as_picture(image)
        data, planes = self._encode(picture, quality, sample, effort=check_effort(effort))
        _, sections = read_container(data)
        coded = set(stage_payloads(sections))
        return EncodeStats(
            data=data,
            payload_bytes=sum(len(section.payload) for section in sections),
            estimated_bits=sum(plane.bits for plane in planes if plane.stage in coded),
            indices=[plane.index for plane in planes],
            divergence_bits=self._divergence_bits(picture),
        )

    @torch.inference_mode()
    def generate(
        self, count: int, *, seed: int, width: int = 256, height: int = 256
    ) -> list[Image.Image]:
        """Pictures drawn from the prior: a Gaussian in the modes vae, hvae and wae, the index prior where
        there are codebooks.

        The same for the same seed, size and count. ModeError in the modes ae, dae and vq, ValueError for
        sizes and counts below 1.
        """
        if min(count, width, height) < 1:
            raise ValueError(f"count and sides must be positive, got {count}, {width} x {height}")
        grid = tile_grid(width, height)
        mode, bottleneck = self.model.config.mode, self.model.bottleneck
        bucket = bottleneck.buckets
        if mode in NORMAL_MODES:
            size = (count, self.model.config.transform.channels, grid.rows, grid.cols)
            latents = list(self._drawn_prior(size, seed) * self.analysis.scale.cpu()[:, None, None])
        elif mode in UNDRAWN_MODES:
            raise ModeError(f"{UNDRAWN_MODES[mode]}; use {', '.join(DRAWN_MODES)}")
        else:
            assert isinstance(bottleneck, NestedBottleneck)
            random = np.random.default_rng(seed)
            latents = [
                bottleneck.from_symbols(bottleneck.draw(grid.rows, grid.cols, random), bucket)
                for _ in range(count)
            ]
        return [
            to_image(self._synthesise(latent, bucket, height, width), grey=False) for latent in latents
        ]

    @torch.inference_mode()
    def interpolate(
        self,
        first: Image.Image | NDArray[np.uint8] | Picture,
        second: Image.Image | NDArray[np.uint8] | Picture,
        *,
        count: int,
    ) -> list[Image.Image]:
        """`count` pictures, at least 2, at equal steps on the line between two latents.

        Each latent on the line is coded and decoded at the best quality, without a search, so the ends
        are what `decompress` gives of a file of that quality and effort 1 (but for a picture of one pixel
        in mode vq, whose files are cut). ImageError for pictures of unequal size.
        """
        if count < 2:
            raise ValueError(f"a line has at least two pictures, got {count}")
        pictures = as_picture(first), as_picture(second)
        (height, width), other = (p.pixels.shape[:2] for p in pictures)
        if (height, width) != other:
            raise ImageError(
                f"the pictures differ in size: {width} x {height} and {other[1]} x {other[0]}"
            )
        start, end = (self._latent(picture) for picture in pictures)
        bottleneck, point = self.model.bottleneck, self.model.config.points[-1]
        line = []
        for place in np.linspace(0, 1, count).tolist():
            with full_precision(self.device):
                planes = bottleneck.to_symbols(torch.lerp(start, end, place), point)
            while len(planes) > 1 and not planes[-1].index.any():
                planes.pop()
            indices = [plane.index for plane in planes]
            latent = bottleneck.from_symbols(indices, point.bucket)
            bucket = bottleneck.shown_bucket(indices, point.bucket)
            pixels = self._synthesise(latent, bucket, height, width)
            line.append(to_image(pixels, grey=all(p.grey for p in pictures)))
        return line

    @torch.inference_mode()
    def inspect_latent(self, images: Sequence[Image.Image | NDArray[np.uint8] | Picture]) -> LatentHealth:
        """Whether the latent collapsed, measured over all positions of some pictures."""
        if not images:
            raise ValueError("there must be at least one picture to measure a latent on")
        pictures = [as_picture(image) for image in images]
        mode = self.model.config.mode
        if mode in POSTERIOR_MODES:
            parts = [self._relative_posterior(picture) for picture in pictures]
            mean, log_variance = (torch.cat([_positions(p[i]) for p in parts]) for i in (0, 1))
            return gaussian_health(mean, log_variance, mode=mode)
        latents = [self._latent(picture) for picture in pictures]
        if MODES[mode] in UNIFORM_MODES:
            vectors = torch.cat([_positions(latent) for latent in latents])
            return deterministic_health(vectors, self.analysis.scale.cpu(), mode=mode)
        assert isinstance(self.model.quantizer, ResidualQuantizer)
        posterior = self.model.posterior
        if posterior is None:
            by_picture = [_nearest_indices(self.model.quantizer, latent) for latent in latents]
            indices = [torch.cat(stage, 1) for stage in zip(*by_picture, strict=True)]
            return codebook_health(indices, self.model.config.quantizer.codewords, mode=mode)
        vectors = torch.cat([_positions(latent) for latent in latents])
        return codebook_health(
            posterior.most_likely(vectors / self.analysis.scale.cpu()),
            self.model.config.quantizer.codewords,
            mode=mode,
            kl=self._categorical_divergence(vectors),
        )

    def decompress(self, data: bytes, *, limits: Limits = _LIMITS) -> Image.Image:
        """The picture of a .vqc file; mode L if it was grey, else RGB.

        VqcError subclasses for files that are not whole, too large or of another model.
        """
        return self._decode(*read_container(data), limits)

    def salvage(self, data: bytes, *, cut_only: bool = False, limits: Limits = _LIMITS) -> Salvage:
        """The picture of what is whole of a file that is not, and what is lost.

        cut_only: content with files that end early, not with damaged ones. If a stage does not decode
        although its checksum is right, whoever wrote it was at fault; the stages before it are decoded.
        VqcError subclasses as for `decompress` if no picture is left.
        """
        found = read_cut(data) if cut_only else read_damaged(data)
        sections, failed = list(found.sections), ""
        while True:
            try:
                image = self._decode(found.header, sections, limits)
            except (CorruptError, TruncatedError) as error:
                stages = [section for section in sections if section.stage is not None]
                if cut_only or found.header.mode in UNIFORM_MODES or len(stages) < 2:
                    if not found.losses:
                        raise
                    raise CorruptError(f"nothing can be saved: {found.losses[0]}; {error}") from error
                failed = f"stage {stages[-1].stage} does not decode: {error}"
                sections.remove(stages[-1])
            else:
                return Salvage(image, (*found.losses, failed) if failed else found.losses)

    def read_indices(self, data: bytes, *, limits: Limits = _LIMITS) -> list[NDArray[np.integer]]:
        """The symbols of a .vqc file, (G, H, W) for each stage up to the last that the file has, at
        least the first: codebook indices uint8, in the uniform modes values int32.

        They are the same on every machine. Errors as for `decompress`.
        """
        return list(self._read_symbols(*read_container(data), limits))

    def _decode(self, header: Header, sections: Sequence[Section], limits: Limits) -> Image.Image:
        indices = self._read_symbols(header, sections, limits)
        latent = self.model.bottleneck.from_symbols(indices, header.rate)
        bucket = self.model.bottleneck.shown_bucket(indices, header.rate)
        pixels = self._synthesise(latent, bucket, header.height, header.width)
        return to_image(pixels, grey=header.grey)

    def _read_symbols(
        self, header: Header, sections: Sequence[Section], limits: Limits
    ) -> Sequence[NDArray[np.integer]]:
        """The symbols of a file, if it is within the limits and this model is the one it needs."""
        limits.check(header)
        if header.code_id != self.model.code_id:
            raise UnknownModelError(
                f"the file needs the model with code id {header.code_id:08x}, "
                f"this one ({self.model.config.name}) has {self.model.code_id:08x}"
            )
        bottleneck = self.model.bottleneck
        if (header.mode in UNIFORM_MODES) != (MODES[self.model.config.mode] in UNIFORM_MODES):
            raise CorruptError(
                f"the file is of mode {MODE_NAMES[header.mode]}, its model of {self.model.config.mode}"
            )
        if header.rate > bottleneck.buckets:
            raise CorruptError(f"rate bucket {header.rate}, but the model has {bottleneck.buckets}")
        grid = tile_grid(header.width, header.height)
        limits.check_memory(self._memory(grid))
        streams = {
            stage: unpack_tiles(payload, grid.count)
            for stage, payload in stage_payloads(sections).items()
        }
        return bottleneck.read(streams, header.rate, grid.rows, grid.cols)

    def _encode(
        self,
        picture: Picture,
        quality: int,
        sample: int | None = None,
        stages: int | None = None,
        effort: int = DEFAULT_EFFORT,
    ) -> tuple[bytes, list[SymbolPlane]]:
        if isinstance(quality, bool) or not isinstance(quality, int):
            raise ValueError(f"quality must be an integer, got {quality!r}")
        if not 1 <= quality <= QUALITIES:
            raise ValueError(f"quality must be 1..{QUALITIES}, got {quality}")
        if stages is not None:
            check_stages(stages)
        mode = self.model.config.mode
        if stages is not None and MODES[mode] in UNIFORM_MODES:
            raise ModeError(f"mode {mode} has no stages to stop after")
        latent = self._chosen_latent(picture, sample)
        point = self.model.config.points[quality - 1]
        return self._encode_latent(latent, picture, point, effort, stages=stages)

    def _encode_to(self, picture: Picture, target: RateTarget, sample: int | None, effort: int) -> bytes:
        """The file that meets a target, all tries made of one latent."""
        latent = self._chosen_latent(picture, sample)

        def measure(file: bytes) -> float:
            image = self.decompress(file, limits=_NO_LIMITS)
            return psnr_rgb(picture.pixels, np.asarray(image.convert("RGB")))

        height, width = picture.pixels.shape[:2]
        return find_file(
            target,
            self.model.config.points,
            pixels=width * height,
            priced=self.model.config.mode == "vq",
            encode=lambda point: self._encode_latent(latent, picture, point, effort)[0],
            measure=measure,
        )

    def _encode_latent(
        self,
        latent: Tensor,
        picture: Picture,
        point: RatePoint,
        effort: int,
        *,
        stages: int | None = None,
    ) -> tuple[bytes, list[SymbolPlane]]:
        """The file of a picture's latent (C, h, w) at a point of the rate axis, and its symbols."""
        mode, bottleneck = self.model.config.mode, self.model.bottleneck
        height, width = picture.pixels.shape[:2]
        pixel = height == width == 1 and mode == "vq"
        with torch.inference_mode(), full_precision(self.device):
            if mode == "vq" and effort > GREEDY_EFFORT:
                assert isinstance(bottleneck, VectorBottleneck)
                seen = self._pixels(picture)[0]
                planes = search_symbols(
                    latent,
                    # The error of a pixel by itself would not be worth the bits: it stands for its block.
                    seen if pixel else seen[:, :height, :width],
                    point,
                    bottleneck,
                    self.synthesis,
                    effort=effort,
                )[:stages]
            else:
                planes = bottleneck.to_symbols(latent, point, stages=stages)
        header = Header(
            mode=MODES[mode],
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
        while pixel and len(data) > PIXEL_BYTES and len(sections) > 1:
            planes = planes[: sections.pop().stage]
            data = write_container(header, sections)
        return data, planes

    def _memory(self, grid: TileGrid) -> int:
        """About how many bytes it takes to decode a picture of this grid: latent and pixels, and what
        is larger of decoding symbols and of synthesising a block. Factors are measured."""
        config = self.model.config
        positions = grid.rows * grid.cols
        block = min(positions, (_BLOCK + 2 * MARGIN) ** 2)
        w16, w8, w4 = config.transform.synthesis_widths
        channels = config.transform.channels
        features = config.quantizer.groups * config.prior.embedding
        symbols = positions * (36 * channels + 12 * features)
        synthesis = block * 4 * (6 * (w16 + 4 * w8 + 16 * w4) + 12 * STRIDE**2)
        return positions * (4 * channels + 6 * STRIDE**2) + max(symbols, synthesis)

    def _pixels(self, picture: Picture) -> Tensor:
        """The padded pixels (1, 3, H, W) of a picture, on the device."""
        pixels = torch.from_numpy(picture.pixels).permute(2, 0, 1)[None].to(self.device).float()
        return pad_pixels(pixels)

    @torch.inference_mode()
    def _chosen_latent(self, picture: Picture, sample: int | None) -> Tensor:
        """What is coded: the latent (C, h, w), or one drawn with the seed `sample`."""
        with full_precision(self.device):
            return self._latent(picture) if sample is None else self._drawn_latent(picture, sample)

    def _latent(self, picture: Picture) -> Tensor:
        """Latent (C, h, w) on the CPU; of a posterior, its mean."""
        with full_precision(self.device):
            return _finite(self.analysis(self._pixels(picture))[0].cpu())

    def _posterior(self, picture: Picture) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (C, h, w) of a Gaussian posterior in units of the scale, on the CPU."""
        with full_precision(self.device):
            mean, log_variance = self.analysis.posterior(self._pixels(picture))
        return _finite(mean[0].cpu()), _finite(log_variance[0].cpu())

    def _drawn_latent(self, picture: Picture, seed: int) -> Tensor:
        """A latent (C, h, w) drawn from the posterior."""
        if self.model.config.mode not in POSTERIOR_MODES:
            raise ModeError(
                f"only {' and '.join(POSTERIOR_MODES)} have a posterior to sample from, this model is of "
                f"mode {self.model.config.mode}"
            )
        drawn = gaussian_sample(*self._posterior(picture), seed=seed, kl=False).z
        return drawn * self.analysis.scale.cpu()[:, None, None]

    def _categorical_divergence(self, vectors: Tensor) -> Tensor:
        """KL in nats (G, P) of mode dvae's posterior of latent vectors (P, C)."""
        posterior = self.model.posterior
        assert posterior is not None
        units = vectors / self.analysis.scale.cpu()
        # In parts: logits are K times as large as the latent.
        with full_precision(self.device):
            parts = [posterior.divergence(posterior.logits(part)) for part in units.split(1024)]
        return _finite(torch.cat(parts, 1))

    def _drawn_prior(self, size: tuple[int, ...], seed: int) -> Tensor:
        """Latents (N, C, h, w) drawn from the Gaussian prior, in units of the scale."""
        zeros = torch.zeros(size, dtype=torch.float32)
        drawn = gaussian_sample(zeros, zeros, seed=seed, kl=False).z
        conditional = self.model.conditional
        if conditional is not None:
            # What was drawn is the noise of the lower level.
            upper, noise = drawn.split([conditional.top, size[1] - conditional.top], 1)
            with full_precision(upper.device):
                mean, log_variance = conditional(upper)
            drawn = torch.cat([upper, mean + (0.5 * log_variance).exp() * noise], 1)
        return drawn

    def _relative_posterior(self, picture: Picture) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (C, h, w) of a Gaussian posterior where its prior is N(0, 1): of two
        levels, the lower less the mean and in units of the deviation that a draw of the upper gives."""
        mean, log_variance = self._posterior(picture)
        conditional = self.model.conditional
        if conditional is None:
            return mean, log_variance
        top = conditional.top
        upper = gaussian_sample(mean[:top], log_variance[:top], seed=0, kl=False).z
        with full_precision(upper.device):
            prior_mean, prior_log_variance = (part[0] for part in conditional(upper[None]))
        lower, spread = standardise_gaussian(
            mean[top:], log_variance[top:], prior_mean, prior_log_variance
        )
        return torch.cat([mean[:top], lower]), torch.cat([log_variance[:top], spread])

    @torch.inference_mode()
    def _divergence_bits(self, picture: Picture) -> float | None:
        """KL of the posterior of a picture from the prior, in bits; None without a posterior."""
        if self.model.config.mode in POSTERIOR_MODES:
            divergence = gaussian_sample(*self._relative_posterior(picture), seed=0).kl
            assert divergence is not None
            # The mean of a level is a network's, and as large as its weights can make it.
            nats = _finite(divergence)
        elif self.model.posterior is not None:
            nats = self._categorical_divergence(_positions(self._latent(picture)))
        else:
            return None
        return float(nats.double().sum()) / math.log(2)

    @torch.inference_mode()
    def _synthesise(self, latent: Tensor, bucket: int, height: int, width: int) -> NDArray[np.uint8]:
        """Pixels uint8 (height, width, 3), block by block: the network's memory is that of a block."""
        pixels = np.empty((height, width, 3), np.uint8)
        rate = torch.tensor([bucket], device=self.device)
        latent = pad_latent(latent)
        precision = full_precision if self.precise else short_precision
        for block in cut_blocks(height, width, _BLOCK):
            part = latent[None, :, *block.latents].to(self.device)
            with precision(self.device):
                picture = self.synthesis(part.contiguous(memory_format=torch.channels_last), rate)[0]
            kept = picture[:, *block.inside].clamp(0, 255).round().to(torch.uint8)
            pixels[block.pixels] = kept.permute(1, 2, 0).cpu().numpy()
        return pixels


def load_codec(
    model: str | Path | None = None,
    device: str | None = None,
    *,
    code_id: int | None = None,
    mode: str | None = None,
    precise: bool = False,
) -> Codec:
    """A codec for a model on a device.

    model: name or path; without it, the installed model with `code_id` if that is given (from a file's
    header, as its `mode` then is), else the packaged one of `mode`, a key of `vqcodec.model.MODES`, else
    the default. device: "cpu", "cuda[:i]"; None or "auto" takes a GPU if there is one. precise: decode in
    float32 also where bfloat16 is faster. Raises UnknownModelError, ModelFileError, ModeError for a named
    model of another mode, ValueError for an absent device.
    """
    target = resolve_device(device)
    return Codec(load_model(_find(model, code_id, mode)), target, precise=precise)


def compress(
    image: Image.Image | NDArray[np.uint8],
    *,
    quality: int | None = None,
    target: RateTarget | None = None,
    model: str | Path | None = None,
    mode: str | None = None,
    device: str | None = None,
    sample: int | None = None,
    stages: int | None = None,
    effort: int = DEFAULT_EFFORT,
) -> bytes:
    """A .vqc file of a picture: PIL image or uint8 array (H, W, 3) or (H, W).

    quality: 1..100, 50 without a target. mode: "vq", the default, or another of docs/modes.md that has
    files. target, sample, stages, effort: see `Codec.compress`.
    """
    codec = _cached_codec(model, device, None, mode)
    return codec.compress(
        image, quality=quality, target=target, sample=sample, stages=stages, effort=effort
    )


def decompress(
    data: bytes,
    *,
    model: str | Path | None = None,
    device: str | None = None,
    limits: Limits = _LIMITS,
    precise: bool = False,
) -> Image.Image:
    """The picture of a .vqc file. Without `model`, the installed model that the file names.

    limits: what is too large to decode. precise: decode in float32 also where bfloat16 is faster, so
    that pixels differ by rounding only from those of other machines. Errors as for `Codec.decompress`.
    """
    header, _ = read_container(data)
    return _codec_of(header, model, device, limits, precise).decompress(data, limits=limits)


def salvage(
    data: bytes,
    *,
    cut_only: bool = False,
    model: str | Path | None = None,
    device: str | None = None,
    limits: Limits = _LIMITS,
    precise: bool = False,
) -> Salvage:
    """The picture of what is whole of a .vqc file that is not, and what is lost.

    cut_only: content with files that end early, not with damaged ones. Other options and errors as for
    `decompress`.
    """
    found = read_cut(data) if cut_only else read_damaged(data)
    codec = _codec_of(found.header, model, device, limits, precise)
    return codec.salvage(data, cut_only=cut_only, limits=limits)


def _codec_of(
    header: Header, model: str | Path | None, device: str | None, limits: Limits, precise: bool
) -> Codec:
    """The codec for a file, unless the file is refused before a model is worth loading."""
    limits.check(header)
    if model is None:
        mode = MODE_NAMES[header.mode]
        return _cached_codec(None, device, header.code_id, mode, precise=precise)
    return _cached_codec(model, device, None, precise=precise)


def _finite(latent: Tensor) -> Tensor:
    """The latent, if the weights are such that it can be coded. ModelFileError otherwise."""
    if not latent.isfinite().all():
        raise ModelFileError("the model gives a latent that is not finite")
    return latent


def _nearest_indices(quantizer: ResidualQuantizer, latent: Tensor) -> list[Tensor]:
    """The nearest codewords of a latent (C, h, w), (G, P) a stage; of a pooled one, one a block."""
    grid = (latent.shape[1], latent.shape[2])
    indices = list(quantizer.nearest_stages(_positions(latent), grid))
    if quantizer.config.pooled:
        indices[0] = indices[0][:, kept_positions(grid).bool()]
    return indices


def _positions(latent: Tensor) -> Tensor:
    """Latent (C, h, w) to vectors (h w, C)."""
    return latent.flatten(1).T


def _find(model: str | Path | None, code_id: int | None, mode: str | None = None) -> Path:
    if model is None and code_id is not None:
        return find_model_by_code(code_id, mode=mode)
    return find_model(None if model is None else str(model), mode=mode)


def _cached_codec(
    model: str | Path | None,
    device: str | None,
    code_id: int | None,
    mode: str | None = None,
    *,
    precise: bool = False,
) -> Codec:
    path = _find(model, code_id, mode).resolve()
    return _load_cached(path, path.stat().st_mtime_ns, device, precise)


@lru_cache(maxsize=2)
def _load_cached(path: Path, modified: int, device: str | None, precise: bool) -> Codec:
    """Keyed by the time of modification too: a model that was trained again is loaded again."""
    return load_codec(path, device, precise=precise)


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
