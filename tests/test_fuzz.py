"""The fuzz targets on a few thousand inputs, and the command that runs campaigns of them."""

import importlib.util
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fuzz
import fuzz_targets
import pytest
import torch
from fuzz_targets import TARGETS

from vqcodec.container import Header, Section, read_container, stage_section, write_container
from vqcodec.recovery import Recovered, read_cut

SCRIPT = Path(fuzz.__file__)


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    """The targets set one thread, and the engine a handler; the other tests keep what they had."""
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGALRM)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGALRM, handler)


# What a short run has to see, or it would not be worth its time.
_REACHED = {
    "container": {"as is: read", "as is: ChecksumError", "repaired: read", "repaired: CorruptError"},
    "decompress": {
        "as_is: ChecksumError",
        "repaired: CorruptError",
        "built: CorruptError",
        "changed: decoded",
        "coded: decoded",
        "coded: CorruptError, salvaged",
    },
    "model": {"changed: coded", "overwritten: coded", "as_is: ModelFileError, not a safetensors file"},
}


@pytest.mark.parametrize(("name", "runs"), [("container", 4000), ("decompress", 400), ("model", 400)])
def test_a_short_campaign_finds_nothing(name: str, runs: int, tmp_path: Path) -> None:
    prepare, list_seeds = TARGETS[name]
    campaign = fuzz.Campaign(name, prepare(tmp_path), runs=runs, findings=tmp_path / "findings")
    fuzz.run_random(campaign, list_seeds(), seed=2)
    report = campaign.report("engine random")
    assert not campaign.found, report
    assert campaign.done == runs
    assert _REACHED[name] <= set(campaign.labels), report


@pytest.mark.parametrize("name", ["decompress", "model"])
def test_the_same_input_does_the_same(name: str, tmp_path: Path) -> None:
    """Whatever ran before: or findings could not be replayed."""
    prepare, list_seeds = TARGETS[name]
    inputs = list_seeds()[-40:]
    first, second = prepare(tmp_path), prepare(tmp_path)
    results = [first(data) for data in inputs]
    assert [second(data) for data in reversed(inputs)] == results[::-1]


# --- what a target would notice ------------------------------------------------------------------


def _without_losses(data: bytes) -> Recovered:
    found = read_cut(data)
    return Recovered(found.header, found.sections, ())


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("read_cut", _without_losses),
        ("read_damaged", _without_losses),
        ("truncate", lambda data, **options: data),
        ("unpack_tiles", lambda payload, count: [payload] * count),
        ("info", lambda data: read_container(data)[2]),  # type: ignore[misc]
    ],
)
def test_a_broken_promise_is_noticed(
    name: str, broken: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [data for data in fuzz_targets.list_seeds("vq*.vqc")]
    target = fuzz_targets.prepare_container(tmp_path)
    for data in seeds:
        target(data)
        target(data[:-1])
    monkeypatch.setattr(fuzz_targets, name, broken)
    with pytest.raises((AssertionError, IndexError)):
        for data in seeds:
            target(data)
            target(data[:-1])


def test_wrong_pixels_and_wrong_losses_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from vqcodec.codec import Codec, Salvage

    target = fuzz_targets.prepare_decompress(tmp_path)
    (data,) = fuzz_targets.list_seeds("vq-16x16-rgb-q25.vqc")
    assert target(b"\0" + data) == ["as_is: decoded"]
    results: list[tuple[object, str | None]] = [
        (Salvage(Image.new("RGB", (16, 16)), ()), None),
        (Salvage(Image.new("RGB", (16, 17)), ()), None),
        (Salvage(Image.new("RGB", (16, 16)), ("lost",)), "is not salvaged"),
    ]
    for result, said in results:
        monkeypatch.setattr(Codec, "salvage", lambda *args, result=result, **options: result)
        with pytest.raises(AssertionError, match=said):
            target(b"\0" + data)
    with pytest.raises(AssertionError, match="salvaged without losses"):
        monkeypatch.setattr(Codec, "salvage", lambda *args, **options: results[0][0])
        target(b"\0" + data[:-1])


def test_equal_sections() -> None:
    """Found by a campaign: the property confused sections that are equal, the recovery did not."""
    note = Section(0x41, False, b"")
    sections = [note, stage_section(0, b"a"), note, stage_section(1, b"b"), note]
    header = Header(mode=0, grey=True, rate=19, width=20, height=20, code_id=0)
    data = write_container(header, sections)
    for size in range(len(data)):
        fuzz_targets._check_prefix(data[:size], header, sections)


# --- campaigns -----------------------------------------------------------------------------------


def _faulty(data: bytes) -> list[str]:
    if data.startswith(b"a"):
        raise ZeroDivisionError(f"fault of {data!r}")
    if data.startswith(b"b"):
        raise KeyError(data)
    return ["fine"]


def test_findings_are_saved_once_and_the_campaign_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = fuzz.Campaign("x", _faulty, runs=6, findings=tmp_path / "findings")
    fuzz.run_random(campaign, [b"c", b"a1", b"a2", b"b", b"a1", b""], seed=0)
    assert campaign.done == 6
    assert sorted(path.read_bytes() for path in campaign.found.values()) == [b"a1", b"b"]
    assert sorted(campaign.labels.values()) == [1, 2, 3]
    assert "fault of b'a1'" in capsys.readouterr().out
    report = campaign.report("engine random")
    assert re.search(r"3 +50\.00 %  finding: ZeroDivisionError at .*test_fuzz\.py:\d+\n", report)
    assert "findings: 2\n" in report


def test_an_input_that_takes_forever_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(data: bytes) -> list[str]:
        time.sleep(1000 if data else 0)
        return ["fine"]

    monkeypatch.setattr(fuzz, "TIMEOUT_SECONDS", 0.2)
    campaign = fuzz.Campaign("x", fuzz._Timed(wait), runs=2, findings=tmp_path)
    fuzz.run_random(campaign, [b"1", b""], seed=0)
    (place,) = campaign.found
    assert place.startswith("TimeoutError") and campaign.labels["fine"] == 1


def test_mutations_follow_from_the_seed() -> None:
    pool = [b"first seed", b"second", b""]

    def draw(seed: int) -> list[bytes]:
        generator = random.Random(seed)
        return [fuzz.mutate(generator, pool) for _ in range(500)]

    assert draw(1) == draw(1) != draw(2)
    assert len(set(draw(1))) > 250
    generator = random.Random(3)
    long = [fuzz.mutate(generator, [bytes(fuzz.LONGEST_INPUT)]) for _ in range(50)]
    assert max(map(len, long)) <= fuzz.LONGEST_INPUT


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("engine", ["random", "atheris"])
def test_the_command(engine: str, tmp_path: Path) -> None:
    if engine == "atheris" and importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed")
    options = ["--engine", engine, "--seed", 4, "--findings", tmp_path, "--corpus", tmp_path / "corpus"]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "one").write_bytes(b"\x8eVQC")
    result = _run("container", "--runs", 500, *options)
    assert result.returncode == 0, result.stderr
    assert re.search(
        rf"^container: 500 runs in \d+ s, \d+/s, engine {engine}, seed 4$", result.stdout, re.M
    )
    counts = re.findall(r"^ +(\d+) +\d+\.\d\d %  as is: ", result.stdout, re.M)
    assert sum(map(int, counts)) == 500
    assert result.stdout.endswith("findings: 0\n")
    assert re.search(r"^largest memory \d+ MB, slowest input \d+ ms$", result.stdout, re.M)


def test_an_input_can_be_replayed(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"\x8eVQC")
    result = _run("container", "--replay", path)
    assert (result.returncode, result.stdout) == (0, "as is: TruncatedError\n")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the address space from /proc")
def test_memory_is_limited() -> None:
    code = "import fuzz; print(fuzz._limit_memory(64)); bytes(1 << 27)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True
    )
    assert re.fullmatch(r"address space of \d+ MB may grow by 64 MB\n", result.stdout)
    assert "MemoryError" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["container", "--runs", "0"], ["model", "--seed", "-1"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fuzz.main(arguments)
    assert caught.value.code == 2
