"""One process of bench/determinism.py: encodes or decodes in one setting, and exits.

    python bench/determinism_worker.py JOB.json

Purpose: most settings can be made only once a process and before torch is imported. This script
needs no more than vqcodec, so that any interpreter that has it can run it.

Layout: the arithmetic of a setting; encode; decode; main. A job is a JSON object; its keys are the
arguments of `encode` or `decode`, `task` which of the two, and `setting` (see `Setting` in
bench/determinism.py). The last line of standard output is the result, a JSON object.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

# Run as a script: the checkout comes last, so that an installed vqcodec is the one that is measured.
sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "kernels"))

from vqcodec.similarity import psnr_rgb

if TYPE_CHECKING:
    from vqcodec.codec import Codec

LOSSLESS = 999.0
"""PSNR in dB of a picture that came back as it was: JSON has no infinity."""


@contextlib.contextmanager
def arithmetic(options: Sequence[str], *, threads: int | None, device: str) -> Iterator[None]:
    """What a process may have set when it calls the codec; part of it stays set.

    options: "onednn-off", "matmul-medium", "conv-bf16", "autocast".
    """
    import torch

    backends: Any = torch.backends
    if threads is not None:
        torch.set_num_threads(threads)
    with contextlib.ExitStack() as stack:
        for option in options:
            if option == "onednn-off":
                stack.enter_context(backends.mkldnn.flags(enabled=False))
            elif option == "matmul-medium":
                torch.set_float32_matmul_precision("medium")
            elif option == "conv-bf16":
                backends.mkldnn.conv.fp32_precision = "bf16"
            elif option == "autocast":
                stack.enter_context(torch.autocast(device.partition(":")[0], dtype=torch.bfloat16))
            else:
                raise ValueError(f"there is no option {option!r}")
        yield


def encode(
    codec: Codec, *, pictures: Sequence[str], items: Sequence[tuple[int, int]], folder: str
) -> dict[str, Any]:
    """Write item number n to n.vqc in `folder`.

    pictures: files of uint8 arrays (H, W, 3); items: number of the picture, quality.
    """
    for number, (picture, quality) in enumerate(items):
        data = codec.compress(np.load(pictures[picture]), quality=quality)
        Path(folder, f"{number}.vqc").write_bytes(data)
    return {}


def decode(
    codec: Codec,
    *,
    files: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    shown: Sequence[tuple[int, str]],
    references: str,
    write: bool,
) -> dict[str, Any]:
    """Symbols of `files`, and pixels of some of them.

    pairs: numbers of two files of one picture whose symbols are compared; shown: number of a file and
    the array of its original; references: a folder of decoded arrays, one a file, which `write` fills.

    Result: `digests`, the SHA-256 of the symbols of each file; `pairs`, [symbols that differ, symbols]
    each; `psnr` in dB of what is shown; `levels`, of all shown samples that have a reference: how many
    there are, differ from it, differ by more than a level, and the largest difference.
    """
    paths = [Path(file) for file in files]
    symbols = {}
    digests = []
    needed = {number for pair in pairs for number in pair}
    for number, path in enumerate(paths):
        found = codec.read_indices(path.read_bytes())
        digests.append(digest(found))
        if number in needed:
            symbols[number] = found
    psnr = []
    levels = {"samples": 0, "changed": 0, "over_one": 0, "largest": 0}
    for number, original in shown:
        pixels = np.asarray(codec.decompress(paths[number].read_bytes()))
        psnr.append(min(psnr_rgb(np.load(original), pixels), LOSSLESS))
        reference = Path(references, f"{number}.npy")
        if write:
            np.save(reference, pixels)
        elif reference.exists():
            difference = np.abs(pixels.astype(np.int16) - np.load(reference))
            levels["samples"] += difference.size
            levels["changed"] += int((difference > 0).sum())
            levels["over_one"] += int((difference > 1).sum())
            levels["largest"] = max(levels["largest"], int(difference.max()))
    return {
        "digests": digests,
        "pairs": [differing(symbols[a], symbols[b]) for a, b in pairs],
        "psnr": psnr,
        "levels": levels,
    }


def digest(symbols: Sequence[NDArray[np.integer]]) -> str:
    """SHA-256 of the symbols of a file: types, shapes and values of all stages."""
    found = hashlib.sha256()
    for stage in symbols:
        found.update(f"{stage.dtype.str} {stage.shape} ".encode())
        found.update(np.ascontiguousarray(stage).tobytes())
    return found.hexdigest()


def differing(a: Sequence[NDArray[np.integer]], b: Sequence[NDArray[np.integer]]) -> tuple[int, int]:
    """How many symbols of two files of one picture differ, and of how many.

    A stage that only one of them has is compared with zeros: that is what its absence means.
    """
    count = total = 0
    for stage in range(max(len(a), len(b))):
        one = a[stage] if stage < len(a) else np.zeros_like(b[stage])
        other = b[stage] if stage < len(b) else np.zeros_like(a[stage])
        count += int((one != other).sum())
        total += one.size
    return count, total


def environment(device: str) -> dict[str, Any]:
    """What this process computes with."""
    import torch

    from vqcodec_kernels import native_isa

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "native_kernels": native_isa(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }


def main(argv: Sequence[str]) -> int:
    """Do the job in the file that `argv` names."""
    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    setting, task, model = (job.pop(name) for name in ("setting", "task", "model"))

    from vqcodec.codec import load_codec

    codec = load_codec(model, setting["device"], precise=setting["precise"])
    with arithmetic(setting["options"], threads=setting["threads"], device=setting["device"]):
        result = encode(codec, **job) if task == "encode" else decode(codec, **job)
        result["environment"] = environment(setting["device"])
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
