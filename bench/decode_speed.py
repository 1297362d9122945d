"""Whether decoding became slower: this release and another one, in turns.

    python bench/decode_speed.py --against PYTHON [--threads N] [--rounds N] [--bar RATIO] [--json FILE]

Purpose: PYTHON is the interpreter of an environment with another release of vqcodec, each with its own
default model. Exit status: 0, 1 if a bar is not met, 2 for a wrong command line or a process that fails.

What is measured: a process of each release (`decode_worker.py`) codes the synthetic picture of
`codec_speed.py`, then both decode their own files by turns, one at a time, model loaded. The figure is
the ratio of the median rates; the files differ in size and error as the models do, so both are shown. Run
it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Run as a script: the root comes last, so that an installed vqcodec is the one that is measured.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.codec_speed import HEIGHT, QUALITIES, WIDTH, synthetic_picture
from bench.metrics import record, write_json

WORKER = Path(__file__).with_name("decode_worker.py")


class Release:
    """A process that decodes. RuntimeError if it ends before it is told to."""

    def __init__(self, python: str, picture: Path, threads: int) -> None:
        self.python = python
        qualities = ",".join(map(str, QUALITIES))
        # In a folder without a package, so that the environment's own is imported.
        self.process = subprocess.Popen(
            [python, str(WORKER), str(picture), str(threads), qualities],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=picture.parent,
        )
        self.head: dict[str, Any] = self._read()

    def decode(self, quality: int) -> float:
        """Seconds of one call."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{quality}\n")
        self.process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of {self.python} ended with {self.process.wait()}")
        return json.loads(line)


def measure(
    pythons: Sequence[str], *, threads: int, rounds: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the releases are, and a row for each quality: MP/s of each, ratio of the first's."""
    picture = synthetic_picture(WIDTH, HEIGHT)
    pixels = picture.shape[0] * picture.shape[1] / 1e6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.npy"
        np.save(path, picture)
        releases: list[Release] = []
        try:
            for python in pythons:
                releases.append(Release(python, path, threads))
            rows = []
            for quality in QUALITIES:
                seconds: list[list[float]] = [[] for _ in releases]
                for _ in range(rounds):
                    for release, taken in zip(releases, seconds, strict=True):
                        taken.append(release.decode(quality))
                rates = [round(pixels / statistics.median(taken), 3) for taken in seconds]
                rows.append(
                    {
                        "quality": quality,
                        "mp_s": rates,
                        "ratio": round(rates[0] / rates[1], 3),
                        "bpp": [round(_of(r, "bytes", quality) * 8e-6 / pixels, 4) for r in releases],
                        "mse": [round(_of(r, "mse", quality), 2) for r in releases],
                    }
                )
        finally:
            for release in releases:
                release.close()
    return [{k: release.head[k] for k in ("version", "torch")} for release in releases], rows


def _of(release: Release, name: str, quality: int) -> float:
    return float(release.head[name][str(quality)])


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="decode_speed.py", description="Speed of decoding against another release."
    )
    parser.add_argument(
        "--against", required=True, metavar="PYTHON", help="interpreter that has the other release"
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of torch (default 2)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns (default 7)")
    parser.add_argument(
        "--bar", type=float, default=1.0, metavar="RATIO", help="least ratio of the rates (default 1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run with the arguments after the script's name; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.threads < 1 or args.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    try:
        releases, rows = measure([sys.executable, args.against], threads=args.threads, rounds=args.rounds)
    except (OSError, RuntimeError) as error:
        parser.error(str(error))
    names = [release["version"] for release in releases]
    print(f"vqcodec {names[0]} against {names[1]}, {args.threads} threads, {args.rounds} turns")
    for row in rows:
        print(
            f"quality {row['quality']:>3}  {row['mp_s'][0]:.2f} against {row['mp_s'][1]:.2f} MP/s, "
            f"{row['bpp'][0]:.3f} against {row['bpp'][1]:.3f} bpp"
        )
    met = all(row["ratio"] >= args.bar for row in rows)
    ratios = ", ".join(f"{row['ratio']:.2f}" for row in rows)
    print(f"{'PASS' if met else 'FAIL'}  at least {args.bar:g} times the rate: {ratios}")
    if args.json:
        body = {"releases": releases, "rows": rows, "bar": args.bar, "passed": met}
        write_json(args.json, {**record("decode_speed", argv, "cpu"), **body})
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
