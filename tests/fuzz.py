"""Fuzzing campaigns: millions of inputs for the targets of `fuzz_targets.py`.

    python tests/fuzz.py container --runs 1000000            containers, without a model
    python tests/fuzz.py decompress --runs 100000            decoding, with the golden models
    python tests/fuzz.py model --runs 100000                 loading of model files
    python tests/fuzz.py container --replay FILE             one input, a saved finding for instance

Atheris, a coverage-guided fuzzer, is used if it is there (`pip install -e '.[fuzz]' -c constraints.txt`,
Linux on x86-64), else mutations of the seeds by a generator of random numbers, with the same targets.
Further options: `--seed N`; `--engine atheris|random`; `--corpus DIR`, inputs to begin with, to which
atheris adds those that reach something new; `--findings DIR`, where inputs that show a fault are saved,
by default build/fuzz; `--memory MB`, how far the address space may grow.

Printed at the end: how often each kind of input ended how, the time, the largest memory, the slowest
input. The exit code is 1 if there were findings. A campaign goes on after a finding; of several with one
cause, the first is saved. The same seed gives the same inputs, with the engine random on every machine.

Layout: `Campaign`; the two engines; the command.
"""

import argparse
import contextlib
import gc
import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, FunctionType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from fuzz_targets import Target

INSTRUMENTED = ("vqcodec", "vqcodec_kernels", "fuzz_targets")
# Default of --memory: what decoding the largest of the inputs takes, several times over.
MEMORY_MB = {"container": 512, "decompress": 1024, "model": 1024}
LONGEST_INPUT = 4096
TIMEOUT_SECONDS = 30
_PROGRESS_SECONDS = 20.0
_MUTATIONS = 8
_INTERESTING = b"\0\1\x0f\x10\x7f\x80\x90\x91\xff"


class Campaign:
    """Runs a target and keeps account. runs: how often; findings: where inputs are saved."""

    def __init__(self, name: str, target: "Target", *, runs: int, findings: Path) -> None:
        self.name, self.runs, self.findings = name, runs, findings
        self._target = target
        self.done = 0
        self.labels: Counter[str] = Counter()
        self.found: dict[str, Path] = {}
        self.slowest = 0.0
        self._started = self._told = time.perf_counter()

    def run(self, data: bytes) -> bool:
        """Runs one input; whether it did something that none did before."""
        started = time.perf_counter()
        new = False
        try:
            for label in self._target(data):
                new |= label not in self.labels
                self.labels[label] += 1
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            self._save(data, error)
        ended = time.perf_counter()
        self.done += 1
        self.slowest = max(self.slowest, ended - started)
        if ended - self._told > _PROGRESS_SECONDS:
            self._told = ended
            print(f"{self.done} runs, {self.done / (ended - self._started):.0f}/s", flush=True)
        return new

    def _save(self, data: bytes, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "fuzz" in frame.filename or "vqcodec" in frame.filename]
        place = f"{type(error).__name__} at {ours[-1].filename}:{ours[-1].lineno}"
        self.labels[f"finding: {place}"] += 1
        if place in self.found:
            return
        self.findings.mkdir(parents=True, exist_ok=True)
        path = self.findings / f"{self.name}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        self.found[place] = path
        print(f"FINDING {path}", flush=True)
        traceback.print_exception(error, file=sys.stdout)

    def report(self, engine: str) -> str:
        """What happened, for people."""
        seconds = time.perf_counter() - self._started
        lines = [
            f"{self.name}: {self.done} runs in {seconds:.0f} s, {self.done / seconds:.0f}/s, {engine}"
        ]
        lines += [
            f"  {count:9d}  {100 * count / max(1, self.done):6.2f} %  {label}"
            for label, count in sorted(self.labels.items())
        ]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        lines.append(f"largest memory {peak:.0f} MB, slowest input {1000 * self.slowest:.0f} ms")
        lines.append(f"findings: {len(self.found)}")
        lines += [f"  {path}  {place}" for place, path in self.found.items()]
        return "\n".join(lines)


# --- engines -------------------------------------------------------------------------------------


def run_random(campaign: Campaign, seeds: Sequence[bytes], *, seed: int) -> None:
    """Seeds first, then mutations of seeds and of inputs that did something new."""
    generator = random.Random(seed)
    pool = list(seeds)
    for data in pool[: campaign.runs]:
        campaign.run(data)
    while campaign.done < campaign.runs:
        data = mutate(generator, pool)
        if campaign.run(data):
            pool.append(data)


def mutate(generator: random.Random, pool: Sequence[bytes]) -> bytes:
    """One of the inputs with a few changes."""
    data = bytearray(generator.choice(pool))
    for _ in range(generator.choice((1, 1, 2, 4))):
        at = generator.randrange(len(data) + 1)
        size = generator.choice((1, 1, 2, 4, 16))
        kind = generator.randrange(_MUTATIONS)
        if kind == 0:
            data[at:at] = generator.randbytes(size)
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at : at + size] = generator.randbytes(size)
        elif kind == 3:
            data[at : at + 1] = bytes([generator.choice(_INTERESTING)])
        elif kind == 4 and at < len(data):
            data[at] ^= 1 << generator.randrange(8)
        elif kind == 5:
            data[at:at] = data[at : at + size]
        elif kind == 6:
            other = generator.choice(pool)
            start = generator.randrange(len(other) + 1)
            data[at:] = other[start:]
        elif kind == 7:
            del data[at:]
    return bytes(data[:LONGEST_INPUT])


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise TimeoutError(f"an input takes more than {TIMEOUT_SECONDS} s")


class _Timed:
    """A target that is interrupted when it takes too long."""

    def __init__(self, target: "Target") -> None:
        self._target = target
        signal.signal(signal.SIGALRM, _interrupt)

    def __call__(self, data: bytes) -> list[str]:
        signal.setitimer(signal.ITIMER_REAL, TIMEOUT_SECONDS)
        try:
            return self._target(data)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def run_atheris(
    campaign: Campaign, seeds: Sequence[bytes], *, seed: int, corpus: Path, finish: Callable[[], NoReturn]
) -> NoReturn:
    """Inputs that libFuzzer makes, guided by which branches and comparisons of the package they reach.

    libFuzzer never returns: after the last run, `finish` ends the process.
    """
    import atheris
    from atheris.instrument_bytecode import patch_code

    for function in _list_functions():
        module = vars(sys.modules[function.__module__])
        # Atheris keeps the result of each comparison that it watches, and those of arrays are large.
        watched = "np" not in module and "torch" not in module
        function.__code__ = patch_code(function.__code__, trace_dataflow=watched, nested=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number:04d}").write_bytes(data[:LONGEST_INPUT])

    def test_one(data: bytes) -> None:
        campaign.run(data)
        if campaign.done >= campaign.runs:
            finish()

    # A seed of 0 would be the time of day. What a crash of native code leaves goes to the findings.
    campaign.findings.mkdir(parents=True, exist_ok=True)
    options = {
        "seed": seed + 1,
        "max_len": LONGEST_INPUT,
        "len_control": 0,
        "timeout": TIMEOUT_SECONDS,
        "rss_limit_mb": 4096,
        "artifact_prefix": f"{campaign.findings / campaign.name}-",
    }
    atheris.Setup(
        [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)], test_one
    )
    atheris.Fuzz()
    raise AssertionError("libFuzzer returned")


def _list_functions() -> list[FunctionType]:
    """The functions of the package and of the targets.

    They are found in memory, because the way by which an editable install imports them is one of those
    with which atheris cannot see the branches of modules.
    """
    return [
        found
        for found in gc.get_objects()
        if isinstance(found, FunctionType) and str(found.__module__).split(".")[0] in INSTRUMENTED
    ]


def has_atheris() -> bool:
    """Whether atheris can be imported here."""
    try:
        import atheris  # noqa: F401
    except ImportError:
        return False
    return True


def _limit_memory(megabytes: int) -> str:
    """Lets the address space grow by no more than this; what was said of it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return "memory not limited on this system"
    start = pages * resource.getpagesize()
    limit = start + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return f"address space of {start >> 20} MB may grow by {megabytes} MB"


# --- the command ---------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; its exit code."""
    args = _parse(arguments)
    engine = args.engine or ("atheris" if has_atheris() else "random")
    if args.replay is None and args.engine is None and engine == "random":
        print("atheris is not installed: random mutations, not guided by coverage")
    from fuzz_targets import TARGETS

    prepare, list_seeds = TARGETS[args.target]
    with contextlib.ExitStack() as stack:
        # In memory, if there is such a place: the target of models writes a file for every input.
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vqcodec-fuzz-", dir=place)))
        target = prepare(folder)
        if args.replay is not None:
            print("\n".join(target(args.replay.read_bytes())))
            return 0
        campaign = Campaign(args.target, target, runs=args.runs, findings=args.findings)
        seeds = list_seeds()
        if engine == "random":
            if args.corpus is not None:
                seeds += [path.read_bytes() for path in sorted(args.corpus.iterdir())]
            campaign = Campaign(args.target, _Timed(target), runs=args.runs, findings=args.findings)
            print(_limit_memory(args.memory or MEMORY_MB[args.target]), flush=True)
            run_random(campaign, seeds, seed=args.seed)
            print(campaign.report(f"engine random, seed {args.seed}"))
            return 1 if campaign.found else 0
        corpus = args.corpus or folder / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)

        def finish() -> NoReturn:
            print(campaign.report(f"engine atheris, seed {args.seed}"), flush=True)
            shutil.rmtree(folder)
            os._exit(1 if campaign.found else 0)

        print(_limit_memory(args.memory or MEMORY_MB[args.target]), flush=True)
        run_atheris(campaign, seeds, seed=args.seed, corpus=corpus, finish=finish)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(description=lines[0])
    parser.add_argument("target", choices=MEMORY_MB)
    parser.add_argument("--runs", type=int, default=100_000, metavar="N", help="number of inputs")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the inputs, default 0")
    parser.add_argument("--engine", choices=("atheris", "random"), help="default: atheris if it is there")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="inputs to begin with")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), metavar="DIR")
    parser.add_argument("--memory", type=int, metavar="MB", help="growth of the address space allowed")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input and say what happens")
    args = parser.parse_args(arguments)
    if args.runs < 1 or args.seed < 0:
        parser.error("--runs must be at least 1, --seed not negative")
    return args


if __name__ == "__main__":
    sys.exit(main())
