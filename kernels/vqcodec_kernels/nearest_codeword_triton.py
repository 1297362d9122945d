"""Triton (CUDA) backend of the nearest-codeword search: host side and table of configurations.

A first pass in low precision scores every (row, codeword) pair in registers and keeps, for each row,
the best and the second-best group of codewords; the best group is then scored once more, codeword by
codeword. Where the best codeword leads by more than twice a proven bound of the error it is the
answer; the other rows are listed on the device and searched again, with float64 as the last word.
The notation, the order of the kernels and the scratch layout are in `nearest_codeword_device`.

Invariants: nothing synchronises with the host, so a call can be captured in a CUDA graph; the
configuration depends on D and K, never on N, and no kernel is specialised on N or a stride.
"""

import contextlib
import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from vqcodec_kernels.nearest_codeword_prepare import codebook_kernel, peak_kernel
from vqcodec_kernels.nearest_codeword_rescore import merge_kernel, rescan_kernel, resolve_kernel
from vqcodec_kernels.nearest_codeword_scan import scan_dot_kernel, scan_fma_kernel

# Up to this D the FMA units are at least as fast as tensor cores, whose tiles are 16 deep.
_FMA_DIM = 8
# Up to this padded D the rows of a program stay on chip, and are converted in registers.
_RESIDENT_DIM = 256
_HELD_DIM = 64
_MAX_SPLITS = 64
# Stands for the number of SMs where there is none (Triton's interpreter).
_INTERPRETER_SMS = 4
_RESCAN_ROWS = 32
# Codewords that a program of the second search takes at least where the codebook is split.
_PART_SIZE = 512


class ScanConfig(NamedTuple):
    """Shape of the first pass: BLOCK_K // width codewords make a group, `width` apart."""

    block_n: int
    block_k: int
    width: int
    warps: int
    stages: int
    chunk: int
    dim: int  # D padded: a power of two up to 256, then a multiple of 64


def scan_config(dim: int, size: int) -> ScanConfig:
    """Configuration of the first pass for D = dim and K = size."""
    if dim <= _FMA_DIM:
        padded = triton.next_power_of_2(dim)
        return ScanConfig(512, 16, 1, warps=4, stages=1, chunk=padded, dim=padded)
    if dim > _RESIDENT_DIM:
        padded = triton.cdiv(dim, 64) * 64
        return ScanConfig(128, 128, 16, warps=8, stages=3, chunk=64, dim=padded)
    padded = max(16, triton.next_power_of_2(dim))
    if padded <= 64:
        # Larger groups save instructions in the scan and cost them once for each row.
        width = 32 if size < 8192 else 16
        return ScanConfig(64, 256, width, warps=4, stages=2, chunk=padded, dim=padded)
    return ScanConfig(128, 128, 16, warps=8, stages=2, chunk=padded, dim=padded)


@functools.cache
def _sm_count(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


@torch.no_grad()
def search_triton(
    x: Tensor,
    codebook: Tensor,
    bias: Tensor | None,
    table: Tensor | None,
    *,
    exact: bool,
    want_distance: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Index of the codeword with the least |x - c|^2 + bias, for every row of every group.

    x: (G, N, D), codebook: (G, K, D), one dtype of float32, float16, bfloat16, any strides. bias:
    (G, T, K) floating point or None; table: (G, N) integers, the row's t, or None (then T = 1).
    1 <= D <= 1024, 1 <= K <= 2^20; G and N may be 0. The caller checks the arguments.

    Returns index int64 (G, N), distance float32 (G, N) (shape (0,) unless want_distance: the score
    of the chosen codeword, bias included, from float64) and the number of rows that the margin test
    sent to the second search, an int64 scalar on the device (0 unless exact). A NaN score counts as
    +inf; without a score below +inf the index is 0 and the distance +inf; equal codewords go to the
    lowest index; a row whose table number is outside [0, T) has index -1 and distance NaN.

    exact=True: the score of the index exceeds the least one by D 2^-50 relative at most, by the
    bound derived in docs/kernels.md. exact=False leaves out the margin test and float64.
    """
    groups, count, dim = x.shape
    size = codebook.shape[1]
    tables = 1 if bias is None else bias.shape[1]
    place = x.device
    index = torch.empty(groups, count, dtype=torch.int64, device=place)
    distance = torch.empty((groups, count) if want_distance else 0, dtype=torch.float32, device=place)
    if groups == 0 or count == 0:
        return index, distance, torch.zeros((), dtype=torch.int64, device=place)

    config = scan_config(dim, size)
    dot = dim > _FMA_DIM
    has_bias, has_table = bias is not None, table is not None
    # Here and below, a kernel that never touches an argument is given some tensor in its place.
    if bias is None:
        bias = x.new_empty((0, 0, 0), dtype=torch.float32)
    if table is None:
        table = index
    sms = _sm_count(place.index) if place.type == "cuda" else _INTERPRETER_SMS
    tiles_n = triton.cdiv(count, config.block_n)
    tiles_k = triton.cdiv(size, config.block_k)
    padded_k = triton.cdiv(size, max(config.block_k, 128)) * max(config.block_k, 128)
    splits = _splits(triton.cdiv(tiles_k, 2), tiles_n * groups, sms)
    padded_t = triton.next_power_of_2(tables)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=place)

    chunk = min(64, config.dim)
    # The one tensor that must start at zero: (G, 4) bounds of codebook_kernel and (G,) counts.
    zeroed = torch.zeros(groups * 5, dtype=torch.int32, device=place)
    state, counts = zeroed[: groups * 4], zeroed[groups * 4 :]
    mean = empty(groups, config.dim)
    book_shape = (groups, padded_k, config.dim)
    high = empty(*book_shape, dtype=torch.float16) if dot else index
    low = empty(*book_shape, dtype=torch.float16) if dot else index
    rounded = mean if dot else empty(groups, config.dim, padded_k)
    # Tables innermost for the FMA pass, whose rows share a codeword; outermost for the other.
    h = empty(groups, tables, padded_k) if dot else empty(groups, padded_k, padded_t).mT
    held = config.dim <= _HELD_DIM
    half_rows = mean if held else empty(groups * count, config.dim, dtype=torch.float16)
    best = empty(splits, groups, count)
    chosen = empty(splits, groups, count, dtype=torch.int32)
    second = empty(splits, groups, count) if exact else best
    bound = empty(groups, count)
    row_scale = empty(groups, count) if dot else bound
    flagged = empty(groups, count, dtype=torch.int32) if exact else counts

    block_t = min(16, padded_t)
    rows = 64 if chunk > 32 else 128
    blocks = padded_k // rows
    x_strides, codebook_strides, bias_strides = x.stride(), codebook.stride(), bias.stride()
    guard = torch.cuda.device_of(x) if place.type == "cuda" else contextlib.nullcontext()
    with guard:
        peak_kernel[(groups * blocks,)](
            codebook, bias, mean, state, size, tables, blocks, *codebook_strides, *bias_strides,
            D=dim, DP=config.dim, CHUNK=chunk, ROWS=rows, SAMPLE=128,
            HAS_BIAS=has_bias, BLOCK_T=block_t, HALF=x.dtype != torch.float32,
        )  # fmt: skip
        codebook_kernel[(groups * blocks,)](
            codebook, bias, mean, state, high, low, rounded, h, size, padded_k, tables, blocks,
            *codebook_strides, *bias_strides, *h.stride(),
            D=dim, DP=config.dim, CHUNK=chunk, ROWS=rows,
            HAS_BIAS=has_bias, BLOCK_T=block_t, DOT=dot,
        )  # fmt: skip
        grid = (groups * tiles_n * splits,)
        if dot:
            scan_dot_kernel[grid](
                x, mean, state, high, h, table, half_rows, best, second, chosen, bound, row_scale,
                groups, count, padded_k, tables, tiles_n, tiles_k, splits, *x_strides, *table.stride(),
                D=dim, DP=config.dim, CHUNK=config.chunk, PART=min(32, config.dim), HELD=held,
                BLOCK_N=config.block_n, BLOCK_K=config.block_k, WIDTH=config.width, STAGES=config.stages,
                HAS_TABLE=has_table, EXACT=exact, num_warps=config.warps,
            )  # fmt: skip
        else:
            scan_fma_kernel[grid](
                x, mean, state, rounded, h, table, best, second, chosen, bound,
                groups, count, padded_k, tables, tiles_n, tiles_k, splits, *x_strides, *table.stride(),
                D=dim, DP=config.dim, TP=padded_t, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
                HAS_TABLE=has_table, EXACT=exact, num_warps=config.warps,
            )  # fmt: skip
        tau = 2.0**-22 if dot else (dim + 2) * 2.0**-23
        group = config.block_k // config.width if dot else 1
        resolve_rows = 512 // group if dot else 128
        tiles = triton.cdiv(count, resolve_rows)
        resolve_kernel[(groups * tiles,)](
            x, codebook, bias, table, mean, state, high, h, best, second, chosen, bound, row_scale,
            index, distance, counts, flagged, groups, count, padded_k, tables, tiles, splits,
            *x_strides, *codebook_strides, *bias_strides, *table.stride(),
            D=dim, DP=config.dim, CHUNK=min(16, config.dim), ROWS=resolve_rows, GROUP=group,
            WIDTH=config.width, TAU=tau, HAS_BIAS=has_bias, HAS_TABLE=has_table, EXACT=exact,
            DISTANCE=want_distance,
        )  # fmt: skip
        if not exact:
            return index, distance, counts.sum()
        rescan_rows = _RESCAN_ROWS
        tiles = triton.cdiv(count, rescan_rows)
        # Whether the parts are merged depends on K alone, as every choice of a compiled kernel does.
        split = size > _PART_SIZE
        parts = _splits(triton.cdiv(size, _PART_SIZE), groups * tiles, sms)
        programs = min(tiles * parts, triton.cdiv(4 * sms, groups))
        part_shape = (parts, groups, count) if split else (1,)
        part_distance = empty(*part_shape, dtype=torch.float64)
        part_index = empty(*part_shape, dtype=torch.int32)
        rescan_kernel[(groups * programs,)](
            x, codebook, bias, table, mean, state, high, low, h, bound, counts, flagged,
            part_distance, part_index, index, distance,
            groups, count, size, padded_k, tables, programs, parts,
            *x_strides, *codebook_strides, *bias_strides, *table.stride(),
            D=dim, DP=config.dim, CHUNK=chunk, ROWS=rescan_rows, BLOCK_K=128 if dot else 64,
            HAS_BIAS=has_bias, HAS_TABLE=has_table, DISTANCE=want_distance, SCREEN=dot, SPLIT=split,
        )  # fmt: skip
        if split:
            merge_kernel[(groups * programs,)](
                counts, flagged, part_distance, part_index, index, distance,
                groups, count, programs, parts, ROWS=128, DISTANCE=want_distance,
            )  # fmt: skip
        return index, distance, counts.sum()


def _splits(most: int, work: int, sms: int) -> int:
    """Into how many parts to split the codebook: two programs for each SM, but at most `most`."""
    return max(1, min(_MAX_SPLITS, most, 2 * sms // work))
