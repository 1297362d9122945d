"""Ops of vqcodec: nearest-codeword search and the exact integer layers of its prior.

Each op has one file with its contract, its reference (`*_ref`) and the dispatch to the native
C++ kernel where that is built. The package knows nothing of the codec; it raises
ValueError, TypeError and RuntimeError only.
"""

from vqcodec_kernels._extension import native_isa
from vqcodec_kernels.codebook_stats import codebook_stats
from vqcodec_kernels.integer_layers import integer_argmax, integer_linear, integer_window
from vqcodec_kernels.nearest_codeword import Nearest, nearest_codeword, nearest_codeword_ref

__all__ = [
    "Nearest",
    "codebook_stats",
    "integer_argmax",
    "integer_linear",
    "integer_window",
    "native_isa",
    "nearest_codeword",
    "nearest_codeword_ref",
]
