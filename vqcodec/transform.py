"""Analysis (pixels -> latent) and synthesis (latent -> pixels) at 1/16 resolution.

Both are a linear main path plus a nonlinear branch. The linear paths start as the principal
components of 16x16 training patches (a linear autoencoder is PCA: P. Baldi, K. Hornik, "Neural
networks and principal component analysis", 1989), the branches start at zero, so an untrained
transform is already a good one. The latent keeps the pixels' units: one unit of squared latent
error is one grey level of squared error, summed over the 768 samples of a patch.

Layout: pixels float (N, 3, H, W) in 0..255, H and W multiples of 16; latent (N, C, H/16, W/16).
The branches run in the dtype of autocast, the linear paths always in float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 16
PIXEL_MEAN = 127.5
LOG_VARIANCE_MIN, LOG_VARIANCE_MAX = -14.0, 2.0
"""Where the log-variance of a posterior is clamped: beyond, exp and its gradient are of no use."""


@dataclass(frozen=True)
class TransformConfig:
    """Widths are the channels at 1/16, 1/8 and 1/4 resolution, depths the residual blocks there.

    A zero depth everywhere leaves the linear path alone. `rates` is the number of rate buckets
    the synthesis is told about (0: none). posterior: the analysis gives a log-variance beside
    every latent value (modes vae and hvae); top: channels of the upper of two levels (mode hvae).
    """

    channels: int = 288
    analysis_widths: tuple[int, int, int] = (128, 96, 48)
    analysis_depths: tuple[int, int, int] = (0, 0, 0)
    synthesis_widths: tuple[int, int, int] = (160, 128, 64)
    synthesis_depths: tuple[int, int, int] = (2, 2, 2)
    rates: int = 32
    posterior: bool = False
    top: int = 0


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a skip; with `rates`, a gain and an offset a channel by bucket."""

    def __init__(self, channels: int, rates: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Embedding(rates + 1, 2 * channels) if rates else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)

    def forward(self, x: Tensor, rate: Tensor | None = None) -> Tensor:
        y = self.second(F.leaky_relu(self.first(x), 0.1))
        if self.modulation is not None and rate is not None:
            gain, offset = self.modulation(rate)[:, :, None, None].to(y.dtype).chunk(2, 1)
            y = y * (1 + gain) + offset
        return x + y


class Analysis(nn.Module):
    """Pixels to latent: a 16x16 patch transform plus a convolutional branch on the pixels."""

    scale: Tensor

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.linear = nn.Conv2d(3, config.channels, STRIDE, stride=STRIDE, bias=False)
        self.branch: nn.ModuleList | None = None
        self.spread: nn.Conv2d | None = None
        if any(config.analysis_depths):
            w16, w8, w4 = config.analysis_widths
            d16, d8, d4 = config.analysis_depths
            last = _zeros(nn.Conv2d(w16, config.channels, 1))
            if config.posterior:
                self.spread = _zeros(nn.Conv2d(w16, config.channels, 1))
            self.branch = nn.ModuleList(
                [
                    nn.Conv2d(48, w4, 3, padding=1),
                    *(ResidualBlock(w4) for _ in range(d4)),
                    nn.Conv2d(w4, w8, 2, stride=2),
                    *(ResidualBlock(w8) for _ in range(d8)),
                    nn.Conv2d(w8, w16, 2, stride=2),
                    *(ResidualBlock(w16) for _ in range(d16)),
                    last,
                ]
            )
        # Standard deviation of each latent channel: brings the branch's output to its scale.
        self.register_buffer("scale", torch.ones(config.channels))
        self.log_variance = nn.Parameter(torch.zeros(config.channels)) if config.posterior else None

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, H, W) -> latent (N, C, H/16, W/16)."""
        return self._encode(pixels)[0]

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), both (N, C, H/16, W/16), in units of `scale`: there the
        prior is N(0, 1). Only where the configuration says `posterior`."""
        if self.log_variance is None:
            raise ValueError("this analysis has no posterior")
        latent, hidden = self._encode(pixels)
        log_variance = self.log_variance[:, None, None].expand(latent.shape)
        if self.spread is not None:
            log_variance = log_variance + self.spread(hidden).float()
        mean = latent / self.scale[:, None, None]
        return mean, log_variance.clamp(LOG_VARIANCE_MIN, LOG_VARIANCE_MAX)

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The latent, and what the branch's last layer saw."""
        centred = pixels - PIXEL_MEAN
        with torch.autocast(pixels.device.type, enabled=False):
            latent = self.linear(centred.float())
        if self.branch is None:
            return latent, None
        h = F.pixel_unshuffle(centred / 64, 4)
        *layers, last = self.branch
        for layer in layers:
            h = layer(h)
        return latent + last(h).float() * self.scale[:, None, None], h


class Synthesis(nn.Module):
    """Latent to pixels: the linear path's picture plus a correction that sees latent and picture."""

    scale: Tensor

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.linear = nn.ConvTranspose2d(config.channels, 3, STRIDE, stride=STRIDE, bias=False)
        self.register_buffer("scale", torch.ones(config.channels))
        self.nonlinear = any(config.synthesis_depths)
        if not self.nonlinear:
            return
        w16, w8, w4 = config.synthesis_widths
        d16, d8, d4 = config.synthesis_depths
        rates = config.rates
        self.enter16 = nn.Conv2d(config.channels, w16, 1)
        self.blocks16 = nn.ModuleList(ResidualBlock(w16, rates) for _ in range(d16))
        self.up8 = nn.Conv2d(w16, 4 * w8, 1)
        self.enter8 = nn.Conv2d(192, w8, 1)
        self.blocks8 = nn.ModuleList(ResidualBlock(w8, rates) for _ in range(d8))
        self.up4 = nn.Conv2d(w8, 4 * w4, 1)
        self.enter4 = nn.Conv2d(48, w4, 3, padding=1)
        self.blocks4 = nn.ModuleList(ResidualBlock(w4, rates) for _ in range(d4))
        self.leave = _zeros(nn.Conv2d(w4, 48, 3, padding=1))

    def forward(self, latent: Tensor, rate: Tensor) -> Tensor:
        """latent (N, C, h, w), rate (N,) int64 bucket -> pixels (N, 3, 16h, 16w), not clamped."""
        picture = self.linear_picture(latent)
        if not self.nonlinear:
            return picture + PIXEL_MEAN
        scaled = picture / 64
        h = self.enter16(latent / self.scale[:, None, None])
        for block in self.blocks16:
            h = block(h, rate)
        h = F.pixel_shuffle(self.up8(h), 2) + self.enter8(F.pixel_unshuffle(scaled, 8))
        for block in self.blocks8:
            h = block(h, rate)
        h = F.pixel_shuffle(self.up4(h), 2) + self.enter4(F.pixel_unshuffle(scaled, 4))
        for block in self.blocks4:
            h = block(h, rate)
        return picture + PIXEL_MEAN + F.pixel_shuffle(self.leave(h).float(), 4) * 4

    def linear_picture(self, latent: Tensor) -> Tensor:
        """The linear path alone: latent (N, C, h, w) -> float32 (N, 3, 16h, 16w) around zero. One matrix
        product, several times as fast as the transposed convolution that it is."""
        count, channels, height, width = latent.shape
        with torch.autocast(latent.device.type, enabled=False):
            flat = latent.float().permute(0, 2, 3, 1).reshape(-1, channels)
            patches = flat @ self.linear.weight.reshape(channels, -1)
        patches = patches.reshape(count, height, width, 3, STRIDE, STRIDE)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, STRIDE * height, STRIDE * width)


def _zeros(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with all weights zero, so that its branch begins with no effect."""
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def pad_pixels(pixels: Tensor) -> Tensor:
    """Repeats the last row and column up to multiples of 16."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
