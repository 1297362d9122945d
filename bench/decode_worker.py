"""One process of bench/decode_speed.py: codes a picture, then decodes the file whenever it is told to.

    python bench/decode_worker.py PICTURE.npy THREADS QUALITY,...

Purpose: run by any interpreter that has some release of vqcodec. Protocol, a line of JSON each: on
standard output first what it is and its files, then for each quality read from standard input the seconds
of one call of `decompress`. AssertionError for a picture that is not the same every time.
"""

import inspect
import json
import sys
import time
from typing import Any

import numpy as np
import torch

import vqcodec


def main() -> None:
    """Reads its qualities until standard input ends."""
    picture, threads, qualities = sys.argv[1:]
    torch.set_num_threads(int(threads))
    pixels = np.load(picture, allow_pickle=False)
    options: dict[str, Any] = {"device": "cpu"}
    # Releases before 0.2.0 had no search.
    if "effort" in inspect.signature(vqcodec.compress).parameters:
        options["effort"] = 1
    files, decoded, sizes, errors = {}, {}, {}, {}
    for quality in map(int, qualities.split(",")):
        files[quality] = vqcodec.compress(pixels, quality=quality, **options)
        decoded[quality] = np.asarray(vqcodec.decompress(files[quality], device="cpu"))
        sizes[quality] = len(files[quality])
        errors[quality] = float(np.square(decoded[quality].astype(float) - pixels).mean())
    head = {"version": vqcodec.__version__, "torch": torch.__version__, "bytes": sizes, "mse": errors}
    print(json.dumps(head), flush=True)
    for line in sys.stdin:
        quality = int(line)
        started = time.perf_counter()
        again = vqcodec.decompress(files[quality], device="cpu")
        seconds = time.perf_counter() - started
        assert np.array_equal(np.asarray(again), decoded[quality]), "another picture of the same file"
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
