"""The Triton backend of the nearest-codeword search: exactness, edge cases, machine code.

`triton_checks` says what the three kinds of tests are: interpreted, compiled, on a GPU.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
tl = triton.language

from triton_checks import (  # noqa: E402
    INTERPRETED,
    Launch,
    compiled,
    gpu,
    interpreted,
    machine_code,
    opcode,
    record_launches,
    run_interpreted,
)

from vqcodec_kernels import nearest_codeword_device as device  # noqa: E402
from vqcodec_kernels import nearest_codeword_prepare as prepare  # noqa: E402
from vqcodec_kernels import nearest_codeword_rescore as rescore  # noqa: E402
from vqcodec_kernels import nearest_codeword_scan as scan  # noqa: E402
from vqcodec_kernels.nearest_codeword_triton import scan_config, search_triton  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, inside the interpreter

KERNELS = (
    prepare.peak_kernel,
    prepare.codebook_kernel,
    scan.scan_dot_kernel,
    scan.scan_fma_kernel,
    rescore.resolve_kernel,
    rescore.rescan_kernel,
    rescore.merge_kernel,
)


class Problem(NamedTuple):
    x: Tensor
    codebook: Tensor
    bias: Tensor | None = None
    table: Tensor | None = None


def scores(problem: Problem) -> Tensor:
    """Every score in float64, NaN as +inf: (G, N, K)."""
    x, codebook, bias, table = problem
    out = (x.double()[:, :, None] - codebook.double()[:, None]).square().sum(-1)
    if bias is not None:
        costs = bias.double()
        if table is None:
            out = out + costs[:, :1]
        else:
            group = torch.arange(len(x), device=x.device)[:, None]
            out = out + costs[group, table.long()]
    return torch.where(out.isnan(), torch.inf, out)


def check(problem: Problem, *, lowest: bool = False) -> int:
    """Runs the exact search against brute force; lowest: the index must be the very first minimum.

    Returns the number of rescored rows.
    """
    index, distance, rescored = search_triton(*problem, exact=True, want_distance=True)
    truth = scores(problem)
    assert index.dtype == torch.int64 and distance.dtype == torch.float32
    assert index.shape == distance.shape == problem.x.shape[:2] and rescored.shape == ()
    least = truth.min(-1)
    got = truth.gather(-1, index[..., None])[..., 0]
    bias = 0.0 if problem.bias is None else problem.bias.double().nan_to_num(0, 0, 0).abs().amax()
    slack = (least.values.abs() + bias) * problem.x.shape[-1] * 2.0**-50
    wrong = ~((got <= least.values + slack) | (got == least.values))
    assert not wrong.any(), (wrong.nonzero()[:5], got[wrong][:5], least.values[wrong][:5])
    if lowest:
        assert torch.equal(index, truth.argmin(-1))
    torch.testing.assert_close(distance, got.float(), rtol=1e-6, atol=0.0)
    return int(rescored)


def gaussian(groups: int, count: int, dim: int, size: int, seed: int = 0) -> Problem:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, count, dim, generator=random)
    return Problem(x, torch.randn(groups, size, dim, generator=random))


def with_tables(problem: Problem, tables: int) -> Problem:
    random = torch.Generator().manual_seed(7)
    groups, count, dim = problem.x.shape
    bias = torch.rand(groups, tables, problem.codebook.shape[1], generator=random) * dim
    table = torch.randint(tables, (groups, count), generator=random)
    return problem._replace(bias=bias, table=table)


# --- on Triton's interpreter -------------------------------------------------------------------


@compiled
def test_interpreter() -> None:
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize(
    ("dim", "size", "count"),
    [
        (1, 257, 17), (2, 7, 17), (3, 1000, 17), (4, 256, 130), (5, 1, 17), (8, 255, 17),
        (16, 8, 17), (17, 257, 130), (64, 256, 17), (64, 1000, 1), (100, 9, 17), (257, 2, 17),
        (257, 130, 1),
    ],
)  # fmt: skip
def test_shapes(dim: int, size: int, count: int) -> None:
    check(gaussian(1, count, dim, size), lowest=True)


@interpreted
@pytest.mark.parametrize("dim", [4, 17])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dim: int, dtype: torch.dtype) -> None:
    x, codebook, *_ = gaussian(2, 17, dim, 100)
    x, codebook = (x + 9).to(dtype), (codebook + 9).to(dtype)
    bias = torch.rand(2, 1, 100).to(dtype)
    check(Problem(x, codebook))
    check(Problem(x, codebook, bias))


@interpreted
@pytest.mark.parametrize("dim", [4, 17])
def test_tables(dim: int) -> None:
    problem = with_tables(gaussian(2, 33, dim, 300), 3)
    check(problem, lowest=True)
    check(problem._replace(table=problem.table.to(torch.uint8)), lowest=True)


@interpreted
@pytest.mark.parametrize("dim", [4, 17])
def test_table_out_of_range(dim: int) -> None:
    problem = with_tables(gaussian(1, 20, dim, 40), 3)
    good = search_triton(*problem, exact=True, want_distance=True)
    table = problem.table.clone()
    table[0, 2], table[0, 5], table[0, 7] = 3, -1, 2**40
    bad = [2, 5, 7]
    for exact in (True, False):
        index, distance, _ = search_triton(
            *problem._replace(table=table), exact=exact, want_distance=True
        )
        assert index[0, bad].tolist() == [-1] * 3 and distance[0, bad].isnan().all()
    keep = [n for n in range(20) if n not in bad]
    assert torch.equal(index[0, keep], good[0][0, keep])


@interpreted
@pytest.mark.parametrize("dim", [4, 17])
def test_strides(dim: int) -> None:
    x, codebook, *_ = gaussian(2, 20, dim, 40)
    check(Problem(x.mT.contiguous().mT, codebook.mT.contiguous().mT), lowest=True)
    check(Problem(x.flip(1)[:, ::3], codebook.repeat(1, 1, 2)[:, ::2, ::2]), lowest=True)
    check(Problem(x[:1].expand(3, -1, -1), codebook[:1].expand(3, -1, -1)), lowest=True)
    check(Problem(x[:, :1].expand(-1, 5, -1), codebook[:, :, :1].expand(-1, -1, dim)), lowest=True)
    bias = torch.rand(1, 1, 1).expand(2, 3, 40)
    table = torch.ones(1, 1, dtype=torch.int32).expand(2, 20)
    check(Problem(x, codebook, bias, table), lowest=True)


@interpreted
def test_empty() -> None:
    for groups, count in ((0, 3), (2, 0)):
        problem = Problem(torch.empty(groups, count, 5), torch.empty(groups, 4, 5))
        index, distance, rescored = search_triton(*problem, exact=True, want_distance=True)
        assert index.shape == distance.shape == (groups, count) and int(rescored) == 0


@interpreted
def test_no_distance() -> None:
    problem = gaussian(1, 17, 17, 40)
    index, distance, _ = search_triton(*problem, exact=True, want_distance=False)
    assert torch.equal(index, scores(problem).argmin(-1)) and distance.shape == (0,)


@interpreted
@pytest.mark.parametrize("dim", [4, 24])
@pytest.mark.parametrize("scale", [1e18, 1e-18, 1e-30, 1e-42])
def test_scales(dim: int, scale: float) -> None:
    x, codebook, *_ = gaussian(1, 17, dim, 40)
    check(Problem(x * scale, codebook * scale))
    check(Problem(x, codebook * scale))
    check(Problem(x * scale, codebook))


@interpreted
@pytest.mark.parametrize("dim", [4, 24])
def test_offset_and_clusters(dim: int) -> None:
    x, codebook, *_ = gaussian(1, 33, dim, 300)
    assert check(Problem(x + 20, codebook + 20)) <= 5
    clustered = codebook[:, torch.arange(33)] + 0.3 * x
    assert check(Problem(clustered, codebook)) == 0


@interpreted
@pytest.mark.parametrize("dim", [4, 24])
def test_duplicates_go_to_the_lowest_index(dim: int) -> None:
    x, codebook, *_ = gaussian(1, 17, dim, 40)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    check(Problem(x, codebook.repeat(1, 3, 1)[:, order]), lowest=True)
    check(Problem(x, torch.zeros(1, 70, dim)), lowest=True)
    check(Problem(codebook, codebook.repeat(1, 2, 1)), lowest=True)


@interpreted
@pytest.mark.parametrize("dim", [4, 24])
def test_gaps_of_an_ulp(dim: int) -> None:
    x, codebook, *_ = gaussian(1, 33, dim, 20)
    near = torch.nextafter(codebook, torch.full_like(codebook, torch.inf))
    both = torch.cat([codebook, near], 1)
    check(Problem(x, both))
    check(Problem(x + 20, both + 20))


@interpreted
@pytest.mark.parametrize("dim", [4, 24])
def test_midpoints(dim: int) -> None:
    codebook = gaussian(1, 1, dim, 40).codebook.bfloat16().float()
    check(Problem((codebook[:, :-1] + codebook[:, 1:]) / 2, codebook))


@interpreted
@pytest.mark.parametrize("dim", [4, 24])
def test_outlier_codeword(dim: int) -> None:
    x, codebook, *_ = gaussian(1, 17, dim, 40)
    codebook[0, 11] = 1e6
    check(Problem(x, codebook))
    codebook[0, 11] = 3e38
    check(Problem(x, codebook))
    bias = torch.zeros(1, 1, 40)
    bias[0, 0, 11] = torch.inf
    assert check(Problem(x, codebook, bias)) <= 4  # an excluded outlier costs no precision


@interpreted
@pytest.mark.parametrize("dim", [4, 24])
def test_biases(dim: int) -> None:
    x, codebook, *_ = gaussian(1, 17, dim, 40)
    bias = torch.rand(1, 1, 40) * 3
    bias[0, 0, ::3] = torch.inf
    bias[0, 0, 1::3] = 1e30  # irrelevant codewords with large biases must not spoil the margin
    assert check(Problem(x, codebook, bias), lowest=True) <= 4
    bias[0, 0, 5] = torch.nan
    check(Problem(x, codebook, bias), lowest=True)
    bias[0, 0, 5], bias[0, 0, 7], bias[0, 0, 9] = -1e30, -torch.inf, -torch.inf
    check(Problem(x, codebook, bias), lowest=True)
    check(Problem(x, codebook, torch.full((1, 1, 40), torch.inf)), lowest=True)
    check(Problem(x, codebook, torch.full((1, 1, 40), 3e38)))
    check(Problem(x, codebook, torch.full((1, 1, 40), -3e38) * torch.rand(40)))


@interpreted
@pytest.mark.parametrize("dim", [4, 24])
def test_not_finite(dim: int) -> None:
    x, codebook, *_ = gaussian(1, 9, dim, 40)
    x[0, 1, 0], x[0, 2, dim - 1], x[0, 3, 1] = torch.nan, torch.inf, -torch.inf
    x[0, 4] = 3e38
    codebook[0, 3, 2], codebook[0, 8, 1] = torch.nan, torch.inf
    check(Problem(x, codebook), lowest=True)
    index, distance, _ = search_triton(x, codebook, None, None, exact=False, want_distance=True)
    assert index[0, 1:4].tolist() == [0, 0, 0] and distance[0, 1:4].isposinf().all()
    check(Problem(x, torch.full_like(codebook, torch.nan)), lowest=True)


@interpreted
@pytest.mark.parametrize("dim", [4, 24])
def test_first_pass_alone_is_wrong_where_the_exact_search_is_not(dim: int) -> None:
    x, codebook, *_ = gaussian(1, 100, dim, 20)
    step = 1e-7 if dim == 4 else 1e-5
    both = torch.cat([codebook, codebook + step * torch.randn_like(codebook)], 1)
    problem = Problem(x, both)
    rescored = check(problem)
    index, _, none = search_triton(*problem, exact=False, want_distance=False)
    assert rescored > 0 and int(none) == 0
    assert (index != scores(problem).argmin(-1)).sum() > 3


@interpreted
def test_split_codebooks_agree() -> None:
    """Few rows make the codebook split over programs; many rows of the same problem do not."""
    problem = gaussian(1, 200, 24, 1500)
    codebook = torch.cat([problem.codebook, problem.codebook[:, :300]], 1)
    few = problem.x[:, :3]
    check(Problem(few, codebook), lowest=True)
    check(Problem(few, codebook + 1000))


if INTERPRETED:

    @triton.jit
    def offset_probe_kernel(out, index, stride):
        tl.store(out, device._offset(tl.load(index), stride))


@interpreted
def test_offsets_beyond_31_bits() -> None:
    out, index = torch.zeros(1, dtype=torch.int64), torch.tensor([70_001], dtype=torch.int32)
    offset_probe_kernel[(1,)](out, index, 1 << 20)
    assert out.item() == 70_001 << 20


# --- without a GPU: what the compiler makes of it --------------------------------------------------


class Assembly(NamedTuple):
    registers: int
    spilled: int  # bytes of stack
    hot: list[str]  # the opcodes of the hot loop
    per_pair: float  # instructions of the hot loop for each (row, codeword) pair


def launches(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What the search would launch for the problem; nothing runs."""
    return record_launches(lambda: search_triton(*problem, exact=True, want_distance=True), monkeypatch)


def disassemble(kernel: Any, folder: Path, unit: str, pairs: int, warps: int) -> Assembly:
    """Figures of the largest loop that holds an instruction of the `unit` (a regular expression)."""
    registers, stack, code = machine_code(kernel, folder)
    loops = []
    for address, text in code:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address:
            body = [line for place, line in code if int(jump[1], 16) <= place <= address]
            opcodes = [opcode(line).split(".")[0] for line in body]
            if any(re.fullmatch(unit, name) for name in opcodes):
                loops.append(opcodes)
    assert loops, "no hot loop found"
    hot = max(loops, key=len)
    return Assembly(registers, stack, hot, len(hot) * warps * 32 / pairs)


# Beside each limit what Triton 3.7.1 gives; 3.6 and 3.9 are within 0.5 of it.
@compiled
@pytest.mark.parametrize(
    ("dim", "size", "tables", "limit"),
    [
        (16, 1024, 1, 4.0),  # 3.2
        (64, 1024, 1, 4.5),  # 3.5
        (64, 16384, 1, 4.0),  # 3.2
        (128, 1024, 1, 5.0),  # 4.3
        (256, 1024, 1, 6.5),  # 5.1
        (4, 512, 1, 7.5),  # 6.2
        (4, 512, 16, 8.0),  # 6.8
        (8, 512, 1, 12.0),  # 10.1
    ],
)
def test_instruction_budget(
    dim: int, size: int, tables: int, limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = gaussian(1, 1000, dim, size)
    problem = with_tables(problem, tables) if tables > 1 else problem
    scans = (scan.scan_dot_kernel, scan.scan_fma_kernel)
    (launch,) = [found for found in launches(problem, monkeypatch) if found.kernel in scans]
    config = scan_config(dim, size)
    assembly = disassemble(
        launch.compile(),
        tmp_path,
        "HGMMA|HMMA" if launch.kernel is scan.scan_dot_kernel else "FFMA",
        config.block_n * config.block_k,
        config.warps,
    )
    print(
        f"D={dim} K={size} T={tables}: {assembly.per_pair:.2f} per pair, {assembly.registers} registers"
    )
    assert assembly.per_pair <= limit, Counter(assembly.hot).most_common(12)
    assert assembly.spilled == 0 and assembly.registers <= 255
    assert not {"STL", "LDL"} & set(assembly.hot)


@compiled
@pytest.mark.parametrize(
    ("dim", "size", "tables", "dtype"),
    [(4, 600, 3, torch.float32), (64, 600, 0, torch.bfloat16), (300, 100, 2, torch.float16)],
)
def test_every_kernel_compiles(
    dim: int, size: int, tables: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = gaussian(1, 17, dim, size)
    problem = with_tables(problem, tables) if tables else problem
    problem = problem._replace(x=problem.x.to(dtype), codebook=problem.codebook.to(dtype))
    found = launches(problem, monkeypatch)
    assert len(found) == (6 if size > 512 else 5)
    for launch in found:
        assert launch.compile().asm["cubin"]


@compiled
def test_nothing_is_specialised_on_rows_or_strides() -> None:
    """One compiled kernel serves every N: only our own scratch and the padded K are specialised."""
    ours = {
        "mean", "state", "high", "low", "rounded", "h", "half_rows", "KP", "limit", "counts", "flagged",
        "part_distance", "part_index",
    }  # fmt: skip
    for kernel in KERNELS:
        names = {p.name for p in kernel.params if not (p.is_constexpr or p.do_not_specialize)}
        names = {name for name in names if not name.endswith(("_out", "_in"))}
        assert names <= ours, (kernel.__name__, names - ours)


# --- on a GPU ------------------------------------------------------------------------------------


def on_gpu(problem: Problem) -> Problem:
    return Problem(*(None if tensor is None else tensor.cuda() for tensor in problem))


GPU_CASES: dict[str, Callable[[], Problem]] = {
    "D4": lambda: gaussian(3, 4097, 4, 512),
    "D4 tables": lambda: with_tables(gaussian(3, 4097, 4, 512), 5),
    "D8": lambda: gaussian(1, 4097, 8, 1000),
    "D16": lambda: gaussian(1, 4097, 16, 1000),
    "D64": lambda: gaussian(2, 4097, 64, 1024),
    "D64 tables": lambda: with_tables(gaussian(2, 1025, 64, 1000), 3),
    "D64 few rows": lambda: gaussian(1, 3, 64, 20000),
    "D100": lambda: gaussian(1, 2000, 100, 777),
    "D256": lambda: gaussian(1, 2000, 256, 1000),
    "D700": lambda: gaussian(1, 1000, 700, 1000),
}


@gpu
@pytest.mark.parametrize("case", GPU_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_exact(case: str, dtype: torch.dtype) -> None:
    x, codebook, bias, table = on_gpu(GPU_CASES[case]())
    x, codebook = x.to(dtype), codebook.to(dtype)
    for n in range(0, x.shape[1], 512):  # brute force takes N K D doubles
        part = None if table is None else table[:, n : n + 512]
        check(Problem(x[:, n : n + 512], codebook, bias, part))
    codebook = codebook.clone()
    codebook[:, 1::2] = codebook[:, ::2][:, : codebook.shape[1] // 2]
    check(Problem(x[:, :512], codebook), lowest=True)
    check(Problem(x[:, :512] * 1e3 + 2e3, codebook * 1e3 + 2e3))


@gpu
def test_gpu_full_size_agrees_with_parts() -> None:
    x, codebook, *_ = on_gpu(gaussian(1, 100_000, 64, 8192))
    index, _, rescored = search_triton(x, codebook, None, None, exact=True, want_distance=False)
    assert 0 < int(rescored) < 20_000
    for n in (0, 50_000, 99_700):
        rows = x[:, n : n + 300]
        assert torch.equal(
            index[:, n : n + 300], torch.cdist(rows.double(), codebook.double()).argmin(-1)
        )


@gpu
def test_gpu_not_finite_and_bad_tables() -> None:
    for dim in (4, 64):
        x, codebook, bias, table = on_gpu(with_tables(gaussian(1, 50, dim, 300), 3))
        x[0, 1, 0], x[0, 2, 1], x[0, 3] = torch.nan, torch.inf, 3e38
        codebook[0, 5, 0], codebook[0, 6, 0] = torch.nan, -torch.inf
        bias[0, :, ::3], bias[0, 1, 7] = torch.inf, -torch.inf
        check(Problem(x, codebook, bias, table), lowest=True)
        table[0, 9] = 3
        index, distance, _ = search_triton(x, codebook, bias, table, exact=True, want_distance=True)
        assert index[0, 9] == -1 and distance[0, 9].isnan()


@gpu
@pytest.mark.parametrize("dim", [4, 64, 300])
def test_gpu_graph_capture(dim: int) -> None:
    first, second = on_gpu(gaussian(1, 500, dim, 1000, 1)), on_gpu(gaussian(1, 500, dim, 1000, 2))
    x, codebook = first.x.clone(), first.codebook.clone()
    search_triton(x, codebook, None, None, exact=True, want_distance=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        index, distance, _ = search_triton(x, codebook, None, None, exact=True, want_distance=True)
    for problem in (first, second):
        x.copy_(problem.x)
        codebook.copy_(problem.codebook)
        graph.replay()
        expected = search_triton(*problem, exact=True, want_distance=True)
        assert torch.equal(index, expected[0]) and torch.equal(distance, expected[1])


@gpu
@pytest.mark.parametrize("dim", [4, 64])
def test_gpu_one_compiled_kernel_for_every_row_count(dim: int) -> None:
    def compiled_kernels() -> int:
        return sum(len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in KERNELS)

    codebook = torch.randn(1, 600, dim, device="cuda")
    before = None
    for count in (1, 16, 17, 4096):
        x = torch.randn(1, count, dim, device="cuda")
        search_triton(x, codebook, None, None, exact=True, want_distance=False)
        before = compiled_kernels() if before is None else before
        assert compiled_kernels() == before
