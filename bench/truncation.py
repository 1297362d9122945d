"""What a truncated file loses against a file that was made for its size.

    python bench/truncation.py --images DIR [--device cpu|cuda] [--json FILE]

Purpose: every picture is coded at some qualities and truncated at each stage boundary; beside each of
the smaller files stands what the encoder makes directly of the picture in as many bytes. Exit status:
0, 1 if a check fails, 2 for a wrong command line or mode, 3 if the model is missing.

Layout: measuring; tables; main.

What is measured: whole files, PSNR-RGB of 8-bit pictures, float32 synthesis. PSNR at equal bytes is
interpolated over log(bytes) between the two nearest qualities whose files are smaller and larger. A
truncated file that is smaller than every direct one is left out and counted. `compress(stages=K)` must
give the bytes of the truncated file (checked).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

# Run as a script: the root comes last, so that an installed vqcodec is the one that is measured.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.metrics import record, write_json
from bench.rd import find_pictures, load_picture, psnr_of_file
from vqcodec.container import read_container
from vqcodec.truncation import truncate

if TYPE_CHECKING:
    from vqcodec.codec import Codec

QUALITIES = (60, 100)
"""Of the files that are truncated, of three and of four stages with the default model."""
LARGEST_LOSS = 1.0
"""Bar: dB that a truncated file may lie below a direct one, for every picture and boundary."""


class Direct:
    """Files of one picture by quality, made when they are asked for."""

    def __init__(self, codec: Codec, picture: Image.Image) -> None:
        self.codec, self.picture = codec, picture
        self.point = cache(self._point)

    def _point(self, quality: int) -> tuple[int, float]:
        data = self.codec.compress(self.picture, quality=quality)
        return len(data), psnr_of_file(self.picture, self.codec.decompress(data), f"quality {quality}")

    def psnr_at(self, size: int) -> float | None:
        """PSNR of a file of `size` bytes, None below the smallest."""
        low, high = 1, 100
        if size < self.point(low)[0]:
            return None
        if size >= self.point(high)[0]:
            return self.point(high)[1]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.point(middle)[0] <= size else (low, middle)
        (small, worse), (large, better) = self.point(low), self.point(high)
        share = math.log(size / small) / math.log(large / small)
        return worse + share * (better - worse)


def measure(codec: Codec, picture: Image.Image, name: str) -> list[dict[str, Any]]:
    """A row for each quality and boundary inside its file."""
    direct = Direct(codec, picture)
    rows = []
    for quality in QUALITIES:
        whole = codec.compress(picture, quality=quality)
        stages = max(section.stage or 0 for section in read_container(whole)[1]) + 1
        for kept in range(1, stages):
            file = truncate(whole, stages=kept)
            if codec.compress(picture, quality=quality, stages=kept) != file:
                raise RuntimeError(f"{name}: the encoder stops at other bytes at stage {kept}")
            psnr = psnr_of_file(picture, codec.decompress(file), name)
            beside = direct.psnr_at(len(file))
            rows.append(
                {
                    "picture": name,
                    "quality": quality,
                    "stages": stages,
                    "kept": kept,
                    "bytes": len(file),
                    "bpp": 8 * len(file) / (picture.width * picture.height),
                    "psnr": psnr,
                    "direct_psnr": beside,
                    "loss": None if beside is None else beside - psnr,
                }
            )
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the pictures for each quality and number of stages kept."""
    keys = sorted({(row["quality"], row["kept"]) for row in rows})
    table = []
    for quality, kept in keys:
        chosen = [row for row in rows if (row["quality"], row["kept"]) == (quality, kept)]
        losses = [row["loss"] for row in chosen if row["loss"] is not None]
        table.append(
            {
                "quality": quality,
                "kept": kept,
                "files": len(chosen),
                "below_all": len(chosen) - len(losses),
                "bpp": float(np.mean([row["bpp"] for row in chosen])),
                "psnr": float(np.mean([row["psnr"] for row in chosen])),
                "mean_loss": float(np.mean(losses)) if losses else None,
                "largest_loss": max(losses, default=None),
            }
        )
    return table


def show(table: Sequence[dict[str, Any]]) -> None:
    """The table as text."""
    print("quality  kept  files     bpp  PSNR dB  mean loss  largest loss")
    for row in table:
        losses = [
            "-" if row[name] is None else f"{row[name]:.3f}" for name in ("mean_loss", "largest_loss")
        ]
        print(
            f"{row['quality']:7d} {row['kept']:5d} {row['files']:6d} {row['bpp']:7.3f} {row['psnr']:8.2f}"
            f" {losses[0]:>10s} {losses[1]:>13s}"
        )


def main(argv: Sequence[str]) -> int:
    """Run the command line."""
    from vqcodec.codec import load_codec
    from vqcodec.errors import VqcError

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of pictures")
    parser.add_argument("--model", metavar="NAME|PATH", help="default: the packaged one")
    parser.add_argument("--device", default="cpu", metavar="DEVICE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args(argv)
    pictures = find_pictures(args.images) if args.images.is_dir() else []
    if not pictures:
        parser.error(f"there are no pictures in {args.images}")
    try:
        codec = load_codec(args.model, args.device, precise=True)
        rows: list[dict[str, Any]] = []
        for path in pictures:
            rows += measure(codec, load_picture(path), path.name)
    except VqcError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except ValueError as error:  # a device that is not there
        parser.error(str(error))
    table = summarise(rows)
    show(table)
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    largest = max(losses, default=math.inf)
    passed = largest <= LARGEST_LOSS
    print(
        f"{'pass' if passed else 'FAIL'}: {len(losses)} truncated files of {len(pictures)} pictures, "
        f"largest loss {largest:.3f} dB, at most {LARGEST_LOSS:g}"
    )
    if args.json:
        result = record("truncation", argv, args.device)
        result |= {"bar": LARGEST_LOSS, "largest_loss": largest, "passed": passed}
        write_json(args.json, result | {"table": table, "rows": rows})
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
