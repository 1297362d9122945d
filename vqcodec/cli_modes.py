"""The commands that show what a mode has learnt: generate, interpolate and compare.

Purpose: pictures and figures out of the latents of the modes; like the other commands a thin layer
over the Python interface. Options are declared in `vqcodec.cli`.

Layout: one function for each command, which returns the exit code; then what they share.

Invariants: what the options alone decide is checked before a picture is read or a model is loaded,
and whether every output may be written before anything is computed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqcodec.cli_io import (
    PICTURE_SUFFIX,
    STREAM,
    LazyCodec,
    Outputs,
    Stop,
    each_file,
    encode_picture,
    read_picture,
    say,
)
from vqcodec.container import STRIDE, tile_grid
from vqcodec.errors import ImageError, TooLargeError
from vqcodec.limits import DEFAULT_MAX_PIXELS
from vqcodec.modes import DIGITS_MODE, DRAWN_MODES, UNDRAWN_MODES

if TYPE_CHECKING:
    from PIL import Image

    from vqcodec.image import Picture


def generate(args: argparse.Namespace) -> int:
    """Pictures drawn from the prior of a mode, on one sheet or in a file each."""
    if args.mode in UNDRAWN_MODES:
        args.parser.error(f"{UNDRAWN_MODES[args.mode]}; use {', '.join(DRAWN_MODES)}")
    if (args.mode == DIGITS_MODE) != (args.label is not None):
        args.parser.error(f"--mode {DIGITS_MODE} and --label belong together")
    if args.mode == DIGITS_MODE and args.model is not None:
        args.parser.error(f"--model: mode {DIGITS_MODE} has a model of its own")
    if args.mode == DIGITS_MODE and (args.precise or args.device not in ("auto", "cpu")):
        args.parser.error(f"--device, --precise: mode {DIGITS_MODE} draws on the CPU")
    outputs = Outputs(args, [])
    outputs.require_picture_suffix()
    width, height = args.size
    try:
        _check_pixels(args.count, width, height)
    except TooLargeError as error:
        args.parser.error(str(error))
    codec = LazyCodec(args, mode=args.mode)
    stem = f"{args.mode}-{args.seed}" if args.label is None else f"{args.mode}-{args.label}-{args.seed}"

    def draw() -> list[Image.Image]:
        if args.mode == DIGITS_MODE:
            return _draw_digits(args.label, args.count, seed=args.seed, size=args.size)
        return codec.get().generate(args.count, seed=args.seed, width=width, height=height)

    source = f"{args.mode}, seed {args.seed}"
    _make_pictures(args, outputs, [], draw, source=source, sheet=f"generated-{stem}", stem=stem)
    return 0


def _draw_digits(label: int, count: int, *, seed: int, size: tuple[int, int]) -> list[Image.Image]:
    """Digits of 8x8 pixels, each pixel as large as the size makes it."""
    from PIL import Image

    from vqcodec.digits import draw_digits

    drawn = draw_digits(label, count, seed=seed)
    return [Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST) for pixels in drawn]


def interpolate(args: argparse.Namespace) -> int:
    """Pictures on the line between two latents, in a strip or in a file each."""
    inputs = [args.first, args.second]
    outputs = Outputs(args, inputs, joined=True)
    outputs.require_picture_suffix()
    pictures, code = _read_pictures(args, inputs)
    if code:
        return code
    (first_name, first), (second_name, second) = pictures
    (height, width), other = first.pixels.shape[:2], second.pixels.shape[:2]
    if (height, width) != other:
        raise ImageError(
            f"the pictures must have one size, but {first_name} has {width} x {height} "
            f"and {second_name} {other[1]} x {other[0]}"
        )
    _check_pixels(args.count, width, height)
    codec = LazyCodec(args, mode=args.mode)
    stem = f"{Path(args.first).stem}-{Path(args.second).stem}"

    def draw() -> list[Image.Image]:
        return codec.get().interpolate(first, second, count=args.count)

    source = ", ".join(inputs)
    _make_pictures(args, outputs, inputs, draw, source=source, sheet=stem, stem=stem, columns=args.count)
    return 0


def compare(args: argparse.Namespace) -> int:
    """Figures of the modes on the same pictures: a table or JSON, and a report."""
    if args.output == STREAM:
        args.parser.error("the figures go to standard output, the report needs a file name")
    outputs = None if args.output is None else Outputs(args, args.files, joined=True)
    target = None if outputs is None else outputs.target(args.files, ["report.html"])
    pictures, code = _read_pictures(args, args.files)
    if not pictures:
        return code
    from vqcodec.codec import resolve_device
    from vqcodec.comparison import compare_pictures, format_table, to_json

    try:
        device = resolve_device(args.device)
    except ValueError as error:  # a device that this machine does not have
        raise Stop(str(error), 2) from error
    # What was not asked for is left to the comparison's own defaults.
    asked = {"modes": args.modes, "qualities": args.qualities}
    options = {name: value for name, value in asked.items() if value is not None}
    progress = None if args.quiet else say
    started = time.perf_counter()
    # Reports are passed on: folders are nobody else's business.
    named = [(Path(source).name, picture) for source, picture in pictures]
    comparison = compare_pictures(named, **options, device=str(device), progress=progress)
    if args.json:
        import json

        print(json.dumps(to_json(comparison)))
    else:
        print(format_table(comparison))
    if outputs is not None:
        from vqcodec.report import render_report

        report = render_report(comparison).encode()
        outputs.write("the comparison", target, report)
        if not args.quiet:
            seconds = time.perf_counter() - started
            what = ", ".join(args.files) if len(args.files) <= 3 else f"{len(pictures)} pictures"
            say(f"{what} -> {target}  {len(report):,} bytes  {seconds:.2f} s")
    return code


def _make_pictures(
    args: argparse.Namespace,
    outputs: Outputs,
    inputs: Sequence[str],
    draw: Callable[[], list[Image.Image]],
    *,
    source: str,
    sheet: str,
    stem: str,
    columns: int | None = None,
) -> None:
    """Write the `args.count` pictures that `draw` returns, and say so.

    They go on one sheet of `columns` with the default name `sheet`; into a directory, one by one,
    under `stem` and a number. inputs: files that no output may replace. source: what they are of.
    """
    names = [sheet]
    if outputs.directory is not None:
        digits = max(2, len(str(args.count - 1)))
        names = [f"{stem}-{number:0{digits}}" for number in range(args.count)]
    targets = [outputs.target(inputs, [name + PICTURE_SUFFIX]) for name in names]
    started = time.perf_counter()
    pictures = draw()
    width, height = pictures[0].size
    if outputs.directory is None:
        from vqcodec.contact_sheet import contact_sheet

        pictures = [contact_sheet(pictures, columns=columns)]
    for target, picture in zip(targets, pictures, strict=True):
        outputs.write(source, target, encode_picture(picture, target))
    if not args.quiet:
        seconds = time.perf_counter() - started
        where = outputs.directory or targets[0] or STREAM
        noun = "picture" if args.count == 1 else "pictures"
        say(f"{source} -> {where}  {args.count} {noun} of {width} x {height}  {seconds:.2f} s")


def _read_pictures(
    args: argparse.Namespace, files: Sequence[str]
) -> tuple[list[tuple[str, Picture]], int]:
    """Name and picture of every file that can be read, and the exit code for those that cannot."""
    pictures: list[tuple[str, Picture]] = []
    code = each_file(
        files, lambda source: pictures.append((source, read_picture(source, quiet=args.quiet)))
    )
    return pictures, code


def _check_pixels(count: int, width: int, height: int) -> None:
    """TooLargeError if `count` pictures are more than a decoder would take by default."""
    grid = tile_grid(width, height)
    # Memory follows the padded grid, which is 16 times a picture of one row or column.
    if count * grid.rows * grid.cols * STRIDE**2 > DEFAULT_MAX_PIXELS:
        raise TooLargeError(
            f"{count} pictures of {width} x {height} are more than the limit of "
            f"{DEFAULT_MAX_PIXELS:,} pixels"
        )
