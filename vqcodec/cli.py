"""The `vqcodec` command: a thin layer over the Python interface.

Purpose: files and streams in, files and streams out, one line for each; what is decided in the
command line is only where results go, what is printed and what the exit code is.

Layout: `main`; the parser and the types of its options; one function for each command that is about
files and models. Those about modes stand in `vqcodec.cli_modes`, what all share in `vqcodec.cli_io`.

Invariants
- Standard output carries results that were asked for (data with `-`, `info`, `compare`,
  `--version`), and nothing else; everything said to a person goes to standard error. `--quiet`
  silences results and notes there, never errors.
- Nothing that exists is replaced without `-f`, and never an input by its own output, nor one
  output of a run by another of the same run.
- One file that fails does not stop the others. No traceback is shown, except in Python's
  development mode (`python -X dev -m vqcodec`).
- Exit codes: those of `_EPILOG`; of several failures the highest.
- Starting is quick: NumPy, Pillow and torch are imported by the commands that need them, and
  `info`, `verify`, `truncate`, `--help` and `--version` need none of them.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vqcodec.cli_io import (
    PICTURE_FORMATS,
    PICTURE_SUFFIX,
    STREAM,
    LazyCodec,
    Outputs,
    Stop,
    complain,
    discard_stdout,
    each_file,
    encode_picture,
    explain,
    read,
    read_picture,
    say,
)
from vqcodec.cli_modes import compare, generate, interpolate
from vqcodec.container import (
    MAX_STAGES,
    MODE_NAMES,
    UNIFORM_MODES,
    Header,
    read_container,
    stage_payloads,
    tile_grid,
    unpack_tiles,
)
from vqcodec.effort import DEFAULT_EFFORT, EFFORTS
from vqcodec.inspection import FileInfo, info
from vqcodec.limits import Limits
from vqcodec.modes import DIGITS_MODE, DRAWN_MODES, NO_FILES, POSTERIOR_MODES
from vqcodec.rate_control import RateTarget
from vqcodec.recovery import read_cut, read_damaged
from vqcodec.truncation import truncate

INFO_SCHEMA = 1
"""Version of the objects that `info --json` prints; it rises when a key changes its meaning."""

_SUFFIX = ".vqc"
_VERSIONED = ("torch", "triton", "numpy", "constriction", "safetensors", "pillow")

_MODES = tuple(MODE_NAMES.values())
_UNIFORM = tuple(MODE_NAMES[mode] for mode in UNIFORM_MODES)
_MAX_COUNT = 1000

_FORMATS = f"the suffix selects a lossless format: {', '.join(PICTURE_FORMATS)}"
_DESCRIPTION = "Compress pictures to .vqc files with learned transforms, and back."
_EPILOG = """\
'vqcodec COMMAND -h' describes a command. FILE or OUT may be '-' for standard
input or output; after '--' nothing is taken for an option.

exit codes:
  0    everything was done
  1    some file failed (the others were done), or was damaged and --salvage made
       what it could of it
  2    wrong usage
  3    a model is missing or unusable
  130  interrupted
"""


def _limit_spinning() -> None:
    """Lets torch's threads wait for each other without keeping a core, unless the user has chosen.

    GNU OpenMP spins for a millisecond or so before it sleeps. Where another process has one of the cores,
    a thread spins on the core that the one it waits for needs, in every small operation: twenty times as
    slow. Read when torch is loaded; this many turns cost nothing that can be measured on an idle machine.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = "10000"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return the exit code.

    As argparse does, wrong usage and `--help` leave by SystemExit (code 2 and 0) instead.
    """
    # A file name that the terminal cannot show must not keep the rest from being printed.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    _limit_spinning()
    try:
        try:
            return _run(argv)
        finally:
            # Here and not at the interpreter's end, where a closed pipe could not be caught.
            if sys.stdout is not None:  # as it is where the process was started without one
                sys.stdout.flush()
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        discard_stdout()
        return 1
    except Stop as stop:
        complain(str(stop))
        return stop.exit_code
    except Exception as error:
        if isinstance(error, OSError):  # perhaps of the flush
            discard_stdout()
        message, code = explain(error)
        complain(message)
        return code


def _run(argv: Sequence[str] | None) -> int:
    parser = _build_parser()
    args = parser.parse_args(argv)
    if args.version:
        _print_version(verbose=args.verbose)
        return 0
    if args.command is None:
        parser.error("a command is needed (see --help)")
    code: int = args.run(args)
    return code


# --- the parser ----------------------------------------------------------------------------


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vqcodec",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="with --version: the parts it runs on too"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, details: str = ""
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {details}".rstrip(),
            allow_abbrev=False,
        )
        sub.set_defaults(run=run, parser=sub)
        return sub

    sub = command(
        "compress",
        _compress,
        "compress pictures to .vqc files",
        "photo.png becomes photo.vqc beside it.",
    )
    _add_files(sub, "picture to compress")
    _add_output(sub, "output file, or an existing directory (default: FILE with suffix .vqc)")
    # No default here: argparse would take a quality that equals it for one that was not given.
    rate = sub.add_mutually_exclusive_group()
    rate.add_argument(
        "-q",
        "--quality",
        type=_quality,
        metavar="1..100",
        help="from 1 (smallest file) to 100 (best picture), default 50",
    )
    rate.add_argument(
        "--bpp",
        type=_positive,
        metavar="X",
        help="as near to X bits a pixel, of the whole file, as can be",
    )
    rate.add_argument(
        "--max-bytes", type=_at_least_one, metavar="N", help="the best file of at most N bytes"
    )
    rate.add_argument(
        "--psnr",
        type=_positive,
        metavar="DB",
        help="the smallest file that gives at least DB of PSNR-RGB",
    )
    _add_mode(sub, "kind of latent (default: that of the model)")
    sub.add_argument(
        "--sample",
        type=_seed,
        metavar="SEED",
        help="with --mode vae or hvae: draw the latent from the posterior instead of taking its mean",
    )
    _add_stages(sub, "stop after N stages: the file that 'truncate --stages N' makes of the whole one")
    sub.add_argument(
        "--effort",
        type=int,
        choices=EFFORTS,
        default=DEFAULT_EFFORT,
        metavar="1..9",
        help="how long to search for a better encoding, default %(default)s; decoding is as fast"
        " (mode vq)",
    )
    _add_coding(sub)

    sub = command(
        "decompress",
        _decompress,
        "turn .vqc files back into pictures",
        "photo.vqc becomes photo.png beside it, or photo.vqc.png where photo.png exists.",
    )
    _add_files(sub, ".vqc file")
    _add_output(
        sub,
        f"output file, or an existing directory; {_FORMATS}",
    )
    partial = sub.add_mutually_exclusive_group()
    partial.add_argument(
        "--allow-truncated",
        action="store_true",
        help="of a file that is cut short, decode the stages that are whole",
    )
    partial.add_argument(
        "--salvage",
        action="store_true",
        help="of a damaged file, decode what is whole and say what is lost (exit code 1)",
    )
    for name, what in (
        ("pixels", "of more than N pixels (default 100 million)"),
        ("side", "of more than N pixels a side (default 65536)"),
        ("memory", "that take more than N bytes to decode (default: what is available)"),
    ):
        sub.add_argument(f"--max-{name}", type=_at_least_one, metavar="N", help=f"refuse pictures {what}")
    _add_precise(sub)
    _add_coding(sub)

    sub = command(
        "truncate",
        _truncate,
        "make smaller .vqc files by leaving out their last stages",
        "photo.vqc becomes photo.truncated.vqc beside it, a whole file of a coarser picture. Nothing is "
        "decoded and no model is needed.",
    )
    _add_files(sub, ".vqc file")
    least = sub.add_mutually_exclusive_group(required=True)
    _add_stages(least, "keep N stages")
    least.add_argument(
        "--bpp", type=_positive, metavar="X", help="keep as many stages as X bits a pixel allow"
    )
    _add_output(sub, "output file, or an existing directory")
    _add_quiet(sub)

    sub = command("info", _info, "print what .vqc files say about themselves")
    _add_files(sub, ".vqc file")
    sub.add_argument(
        "--json", action="store_true", help="one JSON object a file, each on a line of its own"
    )

    sub = command(
        "verify",
        _verify,
        "check that .vqc files are whole and undamaged",
        "Structure and checksums are checked; nothing is decoded and no model is needed.",
    )
    _add_files(sub, ".vqc file")
    _add_quiet(sub)

    sub = command(
        "generate",
        generate,
        "draw new pictures from the prior of a mode",
        "They go on one sheet, generated-MODE-SEED.png, digits on generated-cvae-LABEL-SEED.png; into a "
        "directory, in a file each.",
    )
    # All modes are taken, so that the command can say why the others do not serve.
    sub.add_argument(
        "--mode",
        choices=(*_MODES, DIGITS_MODE),
        required=True,
        metavar="|".join((*DRAWN_MODES, DIGITS_MODE)),
        help="kind of latent",
    )
    sub.add_argument(
        "--label",
        type=int,
        choices=range(10),
        metavar="0..9",
        help=f"with --mode {DIGITS_MODE}: the digit",
    )
    _add_count(sub, 16, low=1)
    sub.add_argument("--seed", type=_seed, default=0, metavar="N", help="random seed, default 0")
    sub.add_argument(
        "--size", type=_size, default=(256, 256), metavar="WxH", help="in pixels, default 256x256"
    )
    _add_output(sub, f"file of the sheet, or an existing directory; {_FORMATS}")
    _add_precise(sub)
    _add_coding(sub)

    sub = command(
        "interpolate",
        interpolate,
        "go from one picture to another through the latent of a mode",
        "The pictures A and B and those between them go on one strip, A-B.png beside A; into a "
        "directory, in a file each.",
    )
    for name, which in (("first", "A"), ("second", "B")):
        sub.add_argument(name, metavar=which, help=f"picture {which}, or - for standard input")
    _add_mode(sub, "kind of latent", required=True)
    _add_count(sub, 9, low=2)
    _add_output(sub, f"file of the strip, or an existing directory; {_FORMATS}")
    _add_precise(sub)
    _add_coding(sub)

    sub = command(
        "compare",
        compare,
        "measure the modes against each other on the same pictures",
        "Every picture is coded, without a search, and decoded by every mode at every quality; "
        "a table is printed.",
    )
    _add_files(sub, "picture")
    sub.add_argument(
        "--modes",
        type=_mode_names,
        metavar="LIST",
        help=f"modes, separated by commas (default: all, {','.join(_MODES)})",
    )
    sub.add_argument(
        "--qualities",
        type=_qualities,
        metavar="LIST",
        help="from 1 to 100, separated by commas (default: 10,30,50,70,90)",
    )
    sub.add_argument("-o", "--output", metavar="OUT", help="write a report, one HTML file, too")
    _add_force(sub, "replace a file that exists")
    sub.add_argument("--json", action="store_true", help="print a JSON object instead of a table")
    _add_device(sub)
    _add_quiet(sub)

    sub = command("train", _train, "train a model on a folder of pictures")
    sub.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of pictures")
    sub.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="MODEL",
        help="weights file to write (.safetensors), for several modes a directory; checkpoints are "
        "kept beside it",
    )
    sub.add_argument(
        "--mode",
        type=_mode_names,
        metavar="LIST",
        help=f"kinds of latent, one after the other: {', '.join(_MODES)} (default vq)",
    )
    length = sub.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes", type=_positive, metavar="N", help="stop after N minutes (default 60)"
    )
    length.add_argument("--steps", type=_at_least_one, metavar="N", help="stop after N steps")
    sub.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    sub.add_argument("--init", metavar="MODEL", help="start from a model, by name or file")
    sub.add_argument("--phases", type=_names, metavar="LIST", help="phases to run, separated by commas")
    sub.add_argument("--preset", default="default", metavar="NAME", help="size of the model")
    sub.add_argument("--seed", type=_seed, default=0, metavar="N", help="random seed, default 0")
    losses = sub.add_argument_group("losses of the modes but vq")
    losses.add_argument("--weight", type=_positive, metavar="C", help="of the divergence, default 1")
    losses.add_argument("--noise", type=_positive, metavar="S", help="of pixels, grey levels, default 8")
    losses.add_argument("--reconstruction", choices=("mse", "mae"), help="default mse")
    losses.add_argument(
        "--codebook", choices=("ema", "gradient"), help="of vqvae, vqvae2 and rvq, default ema"
    )
    _add_device(sub)
    return parser


def _add_files(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=f"{what}, or - for standard input")


def _add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", metavar="OUT", help=f"{what}; - for standard output")
    _add_force(parser, "replace files that exist, write data to a terminal")


def _add_force(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-f", "--force", action="store_true", help=what)


def _add_mode(parser: argparse.ArgumentParser, what: str, *, required: bool = False) -> None:
    parser.add_argument("--mode", type=_mode_name, choices=_MODES, required=required, help=what)


def _add_count(parser: argparse.ArgumentParser, default: int, *, low: int) -> None:
    parser.add_argument(
        "-n",
        "--count",
        type=lambda text: _integer(text, low, _MAX_COUNT),
        default=default,
        metavar=f"{low}..{_MAX_COUNT}",
        help=f"number of pictures, default {default}",
    )


def _add_stages(parser: argparse._ActionsContainer, what: str) -> None:
    parser.add_argument(
        "--stages", type=lambda text: _integer(text, 1, MAX_STAGES), metavar=f"1..{MAX_STAGES}", help=what
    )


def _add_precise(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precise", action="store_true", help="compute in float32 also where bfloat16 is faster"
    )


def _add_coding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME|PATH", help="model, by name or weights file")
    _add_device(parser)
    _add_quiet(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        type=_device,
        default="auto",
        metavar="DEVICE",
        help="where to compute: auto (the default), cpu, cuda or cuda:N",
    )


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def _integer(text: str, low: int, high: int | None = None) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise argparse.ArgumentTypeError(f"must be {limits}, got {value}")
    return value


def _quality(text: str) -> int:
    return _integer(text, 1, 100)


def _at_least_one(text: str) -> int:
    return _integer(text, 1)


def _seed(text: str) -> int:
    return _integer(text, 0, 2**63 - 1)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names separated by commas")
    return names


def _mode_name(text: str) -> str:
    if text == DIGITS_MODE:
        raise argparse.ArgumentTypeError(NO_FILES)
    return text


def _mode_names(text: str) -> tuple[str, ...]:
    names = _names(text)
    for name in names:
        _mode_name(name)
        if name not in _MODES:
            raise argparse.ArgumentTypeError(f"there is no mode {name!r}, only {', '.join(_MODES)}")
    return names


def _qualities(text: str) -> tuple[int, ...]:
    return tuple(_quality(name) for name in _names(text))


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})[xX]([0-9]{1,9})", text)
    width, height = (int(side) for side in match.groups()) if match else (0, 0)
    if width < 1 or height < 1:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, got {text!r}")
    return width, height


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:i, got {text!r}")
    return text


# --- the commands --------------------------------------------------------------------------


def _compress(args: argparse.Namespace) -> int:
    # Without a mode, a model may still be of the right one; loading it will tell.
    mode = args.mode or (None if args.model else "vq")
    if args.sample is not None and mode not in (None, *POSTERIOR_MODES):
        args.parser.error("--sample needs --mode vae or hvae: only their posteriors are drawn from")
    if args.stages is not None and mode in _UNIFORM:
        args.parser.error(f"--stages: files of mode {mode} have no stages to stop after")
    names = ("bpp", "max_bytes", "psnr")
    goals = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if goals and args.stages is not None:
        args.parser.error("--stages: not with --bpp, --max-bytes or --psnr")
    asked: dict[str, Any] = {"target": RateTarget(**goals)} if goals else {}
    if args.quality is not None:
        asked["quality"] = args.quality
    rate = "".join(f"{name} {value}  " for name, value in asked.items())
    outputs = Outputs(args, args.files)
    codec = LazyCodec(args, mode=args.mode)

    def compress_one(source: str) -> None:
        picture = read_picture(source, quiet=args.quiet)
        target = outputs.target([source], [Path(source).stem + _SUFFIX])
        coder = codec.get()
        started = time.perf_counter()
        pixels = picture.pixels[:, :, 0] if picture.grey else picture.pixels
        data = coder.compress(pixels, sample=args.sample, stages=args.stages, effort=args.effort, **asked)
        outputs.write(source, target, data)
        if not args.quiet:
            seconds = time.perf_counter() - started
            height, width = pixels.shape[:2]
            say(
                f"{source} -> {target or STREAM}  {len(data):,} bytes  "
                f"{_bpp(data, width, height):.3f} bpp  {rate}{seconds:.2f} s"
            )

    return each_file(args.files, compress_one)


def _decompress(args: argparse.Namespace) -> int:
    outputs = Outputs(args, args.files)
    outputs.require_picture_suffix()
    codec = LazyCodec(args)
    chosen = {name: getattr(args, name) for name in ("max_pixels", "max_side", "max_memory")}
    limits = Limits(**{name: value for name, value in chosen.items() if value is not None})

    partial = args.allow_truncated or args.salvage
    incomplete = False

    def decompress_one(source: str) -> None:
        nonlocal incomplete
        data = read(source)
        # What is wrong with a file is told before seconds go into loading a model.
        header = _read_as_asked(args, data)
        limits.check(header)
        name = Path(source).name
        stem = Path(name).stem if name.lower().endswith(_SUFFIX) else name
        target = outputs.target([source], [stem + PICTURE_SUFFIX, name + PICTURE_SUFFIX])
        coder = codec.get(header.code_id, MODE_NAMES[header.mode])
        started = time.perf_counter()
        losses: tuple[str, ...] = ()
        if partial:
            saved = coder.salvage(data, cut_only=args.allow_truncated, limits=limits)
            image, losses = saved.image, saved.losses
        else:
            image = coder.decompress(data, limits=limits)
        outputs.write(source, target, encode_picture(image, target))
        if not args.quiet:
            seconds = time.perf_counter() - started
            say(f"{source} -> {target or STREAM}  {image.width} x {image.height}  {seconds:.2f} s")
        for loss in losses:
            complain(f"{source}: {loss}")
        incomplete |= args.salvage and bool(losses)

    return each_file(args.files, decompress_one) or int(incomplete)


def _read_as_asked(args: argparse.Namespace, data: bytes) -> Header:
    """The header of a file that is whole, or as whole as the options demand."""
    if args.salvage:
        return read_damaged(data).header
    if args.allow_truncated:
        return read_cut(data).header
    return read_container(data)[0]


def _truncate(args: argparse.Namespace) -> int:
    outputs = Outputs(args, args.files)

    def truncate_one(source: str) -> None:
        data = read(source)
        smaller = truncate(data, stages=args.stages, bpp=args.bpp)
        target = outputs.target([source], [f"{Path(source).stem}.truncated{_SUFFIX}"])
        outputs.write(source, target, smaller)
        if not args.quiet:
            found = info(smaller)
            say(
                f"{source} -> {target or STREAM}  {len(data):,} -> {len(smaller):,} bytes  "
                f"{found.bpp:.3f} bpp"
            )

    return each_file(args.files, truncate_one)


def _info(args: argparse.Namespace) -> int:
    def info_one(source: str) -> None:
        data = read(source)
        found = info(data)
        if args.json:
            import json
            from dataclasses import asdict

            print(json.dumps({"schema": INFO_SCHEMA, "file": source, **asdict(found)}))
        else:
            print(_info_text(source, found))

    return each_file(args.files, info_one)


def _verify(args: argparse.Namespace) -> int:
    def verify_one(source: str) -> None:
        data = read(source)
        header, sections = read_container(data)
        tiles = tile_grid(header.width, header.height).count
        stages = stage_payloads(sections)
        for payload in stages.values():
            unpack_tiles(payload, tiles)
        if not args.quiet:
            say(f"{source}: undamaged  {len(stages)} stages  {len(data):,} bytes")

    return each_file(args.files, verify_one)


def _train(args: argparse.Namespace) -> int:
    if not args.data.is_dir():
        raise Stop(f"{args.data}: not a directory", 1)
    import logging

    from vqcodec.train import ObjectiveConfig, train_model, train_models

    losses = {
        name: getattr(args, name)
        for name in ("weight", "noise", "reconstruction", "codebook")
        if getattr(args, name) is not None
    }
    options = {
        "data": args.data,
        "out": args.out,
        "minutes": args.minutes,
        "steps": args.steps,
        "resume": args.resume,
        "phases": args.phases,
        "device": args.device,
        "seed": args.seed,
        "preset": args.preset,
        "objective": ObjectiveConfig(**losses) if losses else None,
    }
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        if args.mode is None or len(args.mode) == 1:
            train_model(mode=args.mode and args.mode[0], init=args.init, **options)
        elif args.init is not None:
            args.parser.error("--init is for one mode")
        else:
            train_models(modes=args.mode, **options)
    except ValueError as error:  # an option that only training can judge, such as a phase's name
        raise Stop(str(error), 2) from error
    return 0


def _print_version(*, verbose: bool) -> None:
    from vqcodec import __version__

    print(f"vqcodec {__version__}")
    if not verbose:
        return
    from importlib import metadata

    print(f"native kernels: {_native_kernels()}")
    print(f"python {sys.version.split()[0]}")
    for name in _VERSIONED:
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name} not installed")


def _native_kernels() -> str:
    try:
        from vqcodec_kernels import native_isa

        isa = native_isa()
    except (ImportError, RuntimeError) as error:  # required by VQCODEC_NATIVE=1, but not there
        return f"no ({error})"
    return "no" if isa is None else f"yes ({isa})"


def _bpp(data: bytes, width: int, height: int) -> float:
    """Bits per pixel of a whole file."""
    return 8 * len(data) / (width * height)


def _info_text(source: str, found: FileInfo) -> str:
    colours = "grey" if found.grey else "RGB"
    lines = [
        source,
        f"  {found.width} x {found.height} {colours}, {found.bytes:,} bytes, {found.bpp:.3f} bpp",
        f"  container version {found.version}, mode {found.mode}, rate {found.rate}, "
        f"code_id {found.code_id}",
    ]
    for section in found.sections:
        name = section.name or f"section 0x{section.type:02x}, unknown and optional"
        lines.append(f"  {name}: {section.bytes:,} bytes")
    return "\n".join(lines)
