"""Ops of vqcodec: nearest-codeword search, what builds on it, the integer layers of its prior, and
sampling from Gaussians with seeded noise.

Each op has one file with its contract; where there are kernels, C++ or Triton, with its reference
(`*_ref`) and the choice between them. `quantize` and `kmeans` are made of the ops. The package
knows nothing of the codec; it raises ValueError, TypeError and RuntimeError only.
"""

from vqcodec_kernels._extension import native_isa
from vqcodec_kernels.codebook_stats import codebook_stats
from vqcodec_kernels.gaussian_sample import Sample, gaussian_sample, gaussian_sample_ref
from vqcodec_kernels.integer_layers import integer_argmax, integer_linear, integer_window
from vqcodec_kernels.kmeans import KMeans, kmeans
from vqcodec_kernels.nearest_codeword import (
    Nearest,
    SearchStats,
    nearest_codeword,
    nearest_codeword_ref,
)
from vqcodec_kernels.philox import philox_4x32, philox_normal
from vqcodec_kernels.quantization import Quantized, quantize

__all__ = [
    "KMeans",
    "Nearest",
    "Quantized",
    "Sample",
    "SearchStats",
    "codebook_stats",
    "gaussian_sample",
    "gaussian_sample_ref",
    "integer_argmax",
    "integer_linear",
    "integer_window",
    "kmeans",
    "native_isa",
    "nearest_codeword",
    "nearest_codeword_ref",
    "philox_4x32",
    "philox_normal",
    "quantize",
]
