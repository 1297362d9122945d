"""Memory that one nearest-codeword search needs beyond its output: a process of its own.

    python -m bench.search_memory SHAPE OPTIONS        both JSON; prints the bytes

Purpose: `memory_beyond_output` is what bench_nearest_codeword.py reports. A fresh process, because
in an old one the allocator has free pages at hand that a search can fill without growing.

What is measured: growth of the high-water mark of resident memory (VmHWM, set back just before)
over one call, less the indices. Not getrusage: its ru_maxrss starts from the parent's. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from bench.search_baselines import Shape, make_problem
from vqcodec_kernels import nearest_codeword
from vqcodec_kernels.nearest_codeword import Backend

RESET_PEAK = Path("/proc/self/clear_refs")


def memory_beyond_output(shape: Shape, *, backend: Backend, threads: int) -> int | None:
    """Bytes of an exact search on the CPU, in a new process; None where the system does not tell."""
    if not RESET_PEAK.exists():
        return None
    # Freed blocks go back to the system at once: a fixed threshold also keeps glibc from raising it.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *filter(None, sys.path)])
    options = {"backend": backend, "threads": threads}
    child = subprocess.run(
        [sys.executable, "-m", "bench.search_memory", json.dumps(asdict(shape)), json.dumps(options)],
        env=os.environ | allocator | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(child.stdout)


def cuda_memory_beyond_output(shape: Shape, *, backend: Backend) -> int:
    """Bytes of an exact search on the GPU, from torch's own count of allocations."""
    problem = make_problem(shape, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    index = nearest_codeword(problem.x, problem.codebook, backend=backend)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - index.nbytes


def _peak() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM")


def main() -> None:
    shape = Shape(**json.loads(sys.argv[1]))
    options = json.loads(sys.argv[2])
    torch.set_num_threads(options["threads"])
    problem = make_problem(shape)
    # Few rows of few codewords: it starts threads and loads code, but sizes no buffer.
    few = slice(0, 16)
    nearest_codeword(
        problem.x[:, few],
        problem.codebook[:, few],
        None if problem.bias is None else problem.bias[..., few],
        bias_table=None if problem.table is None else problem.table[:, few],
        backend=options["backend"],
    )
    RESET_PEAK.write_text("5", encoding="ascii")
    before = _peak()
    index = nearest_codeword(
        problem.x,
        problem.codebook,
        problem.bias,
        bias_table=problem.table,
        backend=options["backend"],
    )
    print(max(0, _peak() - before - index.nbytes))


if __name__ == "__main__":
    main()
