"""What of a file depends on where it was made, and that its symbols do not depend on where it is read.

    python bench/determinism.py --images DIR [--size N] [--files N] [--device cuda] [--json FILE]

Purpose: pictures are encoded under many settings of threads, instruction sets, libraries and devices,
and the files are compared with those of the plain process, the baseline. Then every file of every
setting is decoded under every setting, and the symbols must be the same. Exit status: 0, 1 if a check
fails, 2 for a wrong command line, 3 if the model is missing.

Layout: pictures; settings; processes; figures of a setting; tables and checks; main.

What is measured: each setting encodes in a process of its own and decodes in another
(`determinism_worker.py`). Of the files that differ from the baseline's: how many of their symbols
differ, and the change in bytes and in PSNR, both files decoded by the baseline. Pixels are those of the
baseline's files, decoded in float32 (in the settings "bfloat16" with what is fast), compared with what
the baseline makes of them. Symbols are compared by the SHA-256 of all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Run as a script: the root comes last, so that an installed vqcodec is the one that is measured.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.metrics import record, write_json
from bench.rd import Check, parse_qualities, read_pictures, say

WORKER = Path(__file__).with_name("determinism_worker.py")
QUALITIES = (10, 50, 90)
BASELINE = "baseline"
FORCED = {
    "again": BASELINE,
    "matmul-medium": BASELINE,
    "conv-bf16": BASELINE,
    "autocast": BASELINE,
    "bfloat16": BASELINE,
    "cuda-again": "cuda",
    "cuda-autocast": "cuda",
    "cuda-bfloat16": "cuda",
}
"""Settings that must give the bytes of another: the codec does not leave these to the process."""


# --- pictures -------------------------------------------------------------------------------------


def cut(
    pictures: Sequence[Image.Image], *, size: int | None, files: int | None
) -> list[NDArray[np.uint8]]:
    """Crops uint8 (H, W, 3) with sides of at most `size` pixels.

    The middle of each picture; with `files`, as many, at random places of the pictures in turn.
    """
    random = np.random.default_rng(0)
    crops = []
    for number in range(len(pictures) if files is None else files):
        pixels = np.asarray(pictures[number % len(pictures)])
        for axis in (0, 1):
            room = pixels.shape[axis] - (pixels.shape[axis] if size is None else size)
            if room > 0:
                start = room // 2 if files is None else int(random.integers(room + 1))
                pixels = np.take(pixels, range(start, start + pixels.shape[axis] - room), axis)
        crops.append(np.ascontiguousarray(pixels))
    return crops


# --- settings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """How one process computes. options: see `determinism_worker.arithmetic`."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    threads: int | None = None
    options: tuple[str, ...] = ()
    device: str = "cpu"
    precise: bool = True
    python: str = sys.executable

    def as_json(self) -> dict[str, Any]:
        """The setting, without the path of the interpreter."""
        shown = asdict(self)
        del shown["name"], shown["python"]
        return shown


def make_settings(
    instruction_sets: Sequence[str], *, native: bool, device: str, python: str | None
) -> list[Setting]:
    """All settings that make sense on a machine, the baseline first.

    instruction_sets: those of the record (`bench.metrics`); native: whether there are native kernels.
    """
    settings = [Setting(BASELINE), Setting("again")]
    settings += [Setting(f"threads-{n}", threads=n) for n in (1, 2, 3)]
    if native:
        settings.append(Setting("native-off", {"VQCODEC_NATIVE": "0"}))
        for isa in ("portable", "avx2", "avx512", "avx512_bf16", "amx"):
            settings.append(Setting(f"isa-{isa}", {"VQCODEC_ISA": isa}))
    if "avx2" in instruction_sets:
        settings.append(Setting("aten-default", {"ATEN_CPU_CAPABILITY": "default"}))
        settings.append(Setting("aten-avx2", {"ATEN_CPU_CAPABILITY": "avx2"}))
        caps = ["SSE41", "AVX2"]
        if "avx512f" in instruction_sets:
            caps.append("AVX512_CORE")
        settings += [Setting(f"onednn-{cap.lower()}", {"ONEDNN_MAX_CPU_ISA": cap}) for cap in caps]
        settings.append(Setting("mkl-compatible", {"MKL_CBWR": "COMPATIBLE"}))
    for option in ("onednn-off", "matmul-medium", "conv-bf16", "autocast"):
        settings.append(Setting(option, options=(option,)))
    settings.append(Setting("bfloat16", precise=False))
    if device != "cpu":
        settings.append(Setting("cuda", device=device))
        settings.append(Setting("cuda-again", device=device))
        options = ("autocast", "matmul-medium")
        settings.append(Setting("cuda-autocast", device=device, options=options))
        settings.append(Setting("cuda-bfloat16", device=device, precise=False))
    if python is not None:
        settings.append(Setting("python", python=python))
    return settings


def choose(settings: Sequence[Setting], names: Sequence[str] | None) -> list[Setting]:
    """The settings with these names, all without names; the baseline always. ValueError for others."""
    if names is None:
        return list(settings)
    known = [setting.name for setting in settings]
    for name in names:
        if name not in known:
            raise ValueError(f"there is no setting {name!r} here, only {', '.join(known)}")
    return [setting for setting in settings if setting.name in (BASELINE, *names)]


# --- processes ------------------------------------------------------------------------------------


class WorkerError(RuntimeError):
    """A process failed; the message is the end of what it said."""


class MissingError(WorkerError):
    """The CPU lacks what the setting asks for."""


def run_worker(setting: Setting, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The result of a job that is done in a process of its own."""
    path = folder / "job.json"
    path.write_text(json.dumps({**job, "setting": asdict(setting)}), encoding="utf-8")
    done = subprocess.run(
        [setting.python, str(WORKER), str(path)],
        env=os.environ | setting.environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip()[-2000:]
        isa = setting.environment.get("VQCODEC_ISA")
        if isa and (f"VQCODEC_ISA={isa}, but this CPU" in said or f"VQCODEC_ISA={isa}: exp" in said):
            raise MissingError(f"this machine lacks {isa}")
        raise WorkerError(f"setting {setting.name}: {said or f'ended with {done.returncode}'}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


Run = Callable[[Setting, dict[str, Any], Path], dict[str, Any]]


@dataclass
class Files:
    """The different files that were made; each file is known by its number.

    paths: (files,); crops: number of the crop of each; made: for each setting and item, the file.
    """

    paths: list[Path] = field(default_factory=list)
    crops: list[int] = field(default_factory=list)
    made: dict[str, list[int]] = field(default_factory=dict)


def encode_all(
    settings: Sequence[Setting],
    items: Sequence[tuple[int, int]],
    job: dict[str, Any],
    folder: Path,
    run: Run,
) -> tuple[Files, dict[str, dict[str, Any]]]:
    """Encode the items (crop, quality) under every setting.

    Returns the files, and the environment of each setting that this machine has.
    """
    files, environments = Files(), {}
    numbers: dict[tuple[int, bytes], int] = {}
    for setting in settings:
        out = folder / setting.name
        out.mkdir()
        try:
            result = run(setting, {**job, "task": "encode", "items": items, "folder": str(out)}, folder)
        except MissingError as error:
            say(f"left out: {setting.name}: {error}")
            continue
        environments[setting.name] = result["environment"]
        made = []
        for n, (crop, _) in enumerate(items):
            path = out / f"{n}.vqc"
            key = crop, hashlib.sha256(path.read_bytes()).digest()
            if key not in numbers:
                numbers[key] = len(files.paths)
                files.paths.append(path)
                files.crops.append(crop)
            made.append(numbers[key])
        files.made[setting.name] = made
        differ = sum(a != b for a, b in zip(made, files.made[BASELINE], strict=True))
        say(f"encoded: {setting.name}, {differ} of {len(items)} differ")
    return files, environments


def decode_all(
    settings: Sequence[Setting],
    files: Files,
    pictures: Sequence[str],
    job: dict[str, Any],
    folder: Path,
    run: Run,
) -> tuple[dict[str, dict[str, Any]], list[tuple[int, int]]]:
    """Decode all files under every setting: the results, and the pairs that the baseline compared.

    pictures: files of the crops. The baseline shows every file, the others those of the baseline.
    """
    own = files.made[BASELINE]
    pairs = sorted(
        {(a, b) for made in files.made.values() for a, b in zip(own, made, strict=True) if a != b}
    )
    references = folder / "references"
    references.mkdir()
    results = {}
    for setting in settings:
        first = setting.name == BASELINE
        shown = range(len(files.paths)) if first else sorted(set(own))
        results[setting.name] = run(
            setting,
            {
                **job,
                "task": "decode",
                "files": [str(path) for path in files.paths],
                "pairs": pairs if first else [],
                "shown": [(number, pictures[files.crops[number]]) for number in shown],
                "references": str(references),
                "write": first,
            },
            folder,
        )
        say(f"decoded: {setting.name}, {len(files.paths)} files")
    return results, pairs


# --- figures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What one setting gave, beside the baseline. Shares are from 0 to 1.

    files: made; differing: of these, with other bytes; symbols: share of the symbols of differing
    files that differ; bytes_percent: change of all bytes; largest_bytes_percent: of one file, by
    magnitude; psnr, largest_psnr: change in dB over differing files, the mean and the largest by
    magnitude. decoded: files read; misread: of these, to other symbols. samples: shown; changed,
    over_one: share that differs from the baseline's picture, and by more than one level; largest: in
    levels; shown_psnr: change of the mean PSNR in dB against the baseline's pictures.
    """

    files: int
    differing: int
    symbols: float
    bytes_percent: float
    largest_bytes_percent: float
    psnr: float
    largest_psnr: float
    decoded: int
    misread: int
    samples: int
    changed: float
    over_one: float
    largest: int
    shown_psnr: float


def figures(
    name: str,
    files: Files,
    results: dict[str, dict[str, Any]],
    pairs: Sequence[tuple[int, int]],
) -> Figures:
    """The figures of a setting."""
    own, made = files.made[BASELINE], files.made[name]
    base, result = results[BASELINE], results[name]
    compared = dict(zip(pairs, base["pairs"], strict=True))
    differ = [(a, b) for a, b in zip(own, made, strict=True) if a != b]
    sizes = [path.stat().st_size for path in files.paths]
    growth = [100.0 * (sizes[b] / sizes[a] - 1.0) for a, b in differ]
    gain = [base["psnr"][b] - base["psnr"][a] for a, b in differ]
    total = sum(compared[pair][1] for pair in differ)
    shown = base["psnr"] if name == BASELINE else [base["psnr"][n] for n in sorted(set(own))]
    levels = result["levels"]
    samples = levels["samples"]
    return Figures(
        files=len(made),
        differing=len(differ),
        symbols=sum(compared[pair][0] for pair in differ) / total if total else 0.0,
        bytes_percent=100.0 * (sum(sizes[n] for n in made) / sum(sizes[n] for n in own) - 1.0),
        largest_bytes_percent=max(growth, key=abs, default=0.0),
        psnr=float(np.mean(gain)) if gain else 0.0,
        largest_psnr=max(gain, key=abs, default=0.0),
        decoded=len(result["digests"]),
        misread=sum(a != b for a, b in zip(base["digests"], result["digests"], strict=True)),
        samples=samples,
        changed=levels["changed"] / samples if samples else 0.0,
        over_one=levels["over_one"] / samples if samples else 0.0,
        largest=levels["largest"],
        shown_psnr=float(np.mean(result["psnr"]) - np.mean(shown)),
    )


# --- tables and checks ----------------------------------------------------------------------------


def print_tables(found: dict[str, Figures]) -> None:
    """Both tables: what encoding gave, and what decoding gave."""
    wide = max(map(len, found))
    print("\nencoding, against the baseline's files")
    print(
        f"  {'setting':<{wide}} {'files differ':>16} {'symbols':>9} {'bytes':>10} {'of one':>9}"
        f" {'PSNR, dB':>9} {'of one':>8}"
    )
    for name, row in found.items():
        share = f"{row.differing} ({100 * row.differing / row.files:.1f} %)"
        print(
            f"  {name:<{wide}} {share:>16} {100 * row.symbols:>7.3f} % {row.bytes_percent:>+8.4f} %"
            f" {row.largest_bytes_percent:>+7.2f} % {row.psnr:>+9.4f} {row.largest_psnr:>+8.4f}"
        )
    print("\ndecoding: files read to other symbols; pixels of the baseline's files against its own")
    print(
        f"  {'setting':<{wide}} {'misread':>14} {'changed':>10} {'over 1':>11} {'largest':>8}"
        f" {'PSNR, dB':>9}"
    )
    for name, row in found.items():
        print(
            f"  {name:<{wide}} {f'{row.misread} of {row.decoded}':>14} {100 * row.changed:>8.3f} %"
            f" {100 * row.over_one:>9.5f} % {row.largest:>8} {row.shown_psnr:>+9.4f}"
        )


def make_checks(found: dict[str, Figures], made: dict[str, list[int]]) -> list[Check]:
    """The bars: what must give the same bytes does, and every file is read to the same symbols.

    made: for each setting and item, the number of the file.
    """
    checks = []
    for name, other in FORCED.items():
        if name in made and other in made:
            differ = sum(a != b for a, b in zip(made[name], made[other], strict=True))
            owner = "the baseline" if other == BASELINE else other
            value = f"{differ} of {len(made[name])} differ"
            checks.append(Check(f"{owner}'s bytes under {name}", value, differ == 0))
    misread = sum(row.misread for row in found.values())
    decoded = sum(row.decoded for row in found.values())
    name = f"the same symbols under all {len(found)} settings"
    checks.append(Check(name, f"{misread} of {decoded} differ", misread == 0))
    return checks


# --- main -----------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="determinism.py",
        description="Encoding and decoding compared between threads, instruction sets and devices.",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")
    parser.add_argument("--size", type=int, metavar="N", help="crops with sides of at most N pixels")
    parser.add_argument(
        "--files",
        type=int,
        metavar="N",
        help="N crops at random places, each at one of the qualities in turn",
    )
    parser.add_argument(
        "--qualities",
        type=parse_qualities,
        default=QUALITIES,
        metavar="Q,Q,...",
        help=f"default: {','.join(map(str, QUALITIES))}",
    )
    parser.add_argument("--model", metavar="NAME|PATH", help="default: the model of the package")
    parser.add_argument(
        "--device", default="cpu", help="cpu (default), or cuda[:i] to add the settings of a GPU"
    )
    parser.add_argument(
        "--python", metavar="FILE", help="an interpreter whose packages make one more setting"
    )
    parser.add_argument(
        "--settings",
        type=lambda text: tuple(text.split(",")),
        metavar="NAME,...",
        help="only these and the baseline (default: all that the machine has)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def main(argv: Sequence[str], *, run: Run = run_worker) -> int:
    """Run with the arguments after the script's name; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if any(n is not None and n < 1 for n in (args.limit, args.size, args.files)):
        parser.error("--limit, --size and --files must be at least 1")
    paths, pictures = read_pictures(parser, args.images, args.limit)

    from vqcodec.codec import load_codec
    from vqcodec.errors import VqcError

    try:
        codec = load_codec(args.model, args.device)
    except VqcError as error:
        say(f"determinism.py: {error}")
        return error.exit_code
    except ValueError as error:
        parser.error(str(error))
    head = record("determinism", argv, args.device)
    machine = head["machine"]
    try:
        settings = choose(
            make_settings(
                machine["instruction_sets"],
                native=machine["native_kernels"] is not None,
                device=args.device,
                python=args.python,
            ),
            args.settings,
        )
    except ValueError as error:
        parser.error(str(error))

    crops = cut(pictures, size=args.size, files=args.files)
    qualities = args.qualities
    if args.files is None:
        items = [(crop, quality) for crop in range(len(crops)) for quality in qualities]
    else:
        items = [(crop, qualities[crop % len(qualities)]) for crop in range(len(crops))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrays = [str(folder / f"{number}.npy") for number in range(len(crops))]
        for array, crop in zip(arrays, crops, strict=True):
            np.save(array, crop)
        job = {"model": args.model}
        try:
            files, environments = encode_all(settings, items, {**job, "pictures": arrays}, folder, run)
            present = [setting for setting in settings if setting.name in environments]
            results, pairs = decode_all(present, files, arrays, job, folder, run)
        except WorkerError as error:
            say(f"determinism.py: {error}")
            return 1
        found = {setting.name: figures(setting.name, files, results, pairs) for setting in present}

    print(f"{machine['cpu']}, {machine['device']}, {machine['torch_threads']} threads of torch")
    print(
        f"{args.images.resolve().name}: {len(items)} files of {len(crops)} crops of {len(paths)} "
        f"pictures; {len(files.paths)} different files in all"
    )
    print_tables(found)
    checks = make_checks(found, files.made)
    print()
    for check in checks:
        print(f"{check.status:<4}  {check.name}: {check.value}")
    if args.json:
        head["model"] = {
            "name": Path(args.model).name if args.model else "default",
            "code_id": f"{codec.model.code_id:08x}",
        }
        head["images"] = {
            "folder": args.images.resolve().name,
            "names": [path.name for path in paths],
            "crops": len(crops),
            "samples": sum(crop.size for crop in crops),
        }
        body = {
            "qualities": list(qualities),
            "different_files": len(files.paths),
            "settings": [
                {
                    "name": setting.name,
                    "how": setting.as_json(),
                    "environment": environments[setting.name],
                    **{key: rounded(value) for key, value in asdict(found[setting.name]).items()},
                }
                for setting in present
            ],
            "checks": [{"check": x.name, "value": x.value, "status": x.status} for x in checks],
        }
        write_json(args.json, {**head, **body})
    return 1 if any(check.passed is False for check in checks) else 0


def rounded(value: float) -> float:
    """A figure with seven digits after the point; whole numbers as they are."""
    return value if isinstance(value, int) else round(value, 7)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
