"""Files of a given rate, size or PSNR: the search on made-up encoders, the codec, the command."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from synthetic import synthetic_picture

import vqcodec
from vqcodec import RateTarget, cli
from vqcodec.codec import Codec, load_codec
from vqcodec.errors import RateError
from vqcodec.model import MODES
from vqcodec.quantizer import RatePoint
from vqcodec.rate_control import TOLERANCE, find_file
from vqcodec.similarity import psnr_rgb

QUALITIES = [RatePoint(1 + q // 12, 1000 * 0.95**q) for q in range(100)]
fuzz = settings(max_examples=200, deadline=None, derandomize=True, database=None)


class Encoder:
    """Stands in for the codec: sizes are given, and the PSNR of a file is what its first bytes say."""

    def __init__(self, size: Callable[[RatePoint], int], psnr: Callable[[RatePoint], int] | None = None):
        self.size, self.psnr = size, psnr
        self.points: list[RatePoint] = []
        self.files: list[bytes] = []

    def encode(self, point: RatePoint) -> bytes:
        level = 0 if self.psnr is None else self.psnr(point)
        self.points.append(point)
        self.files.append(level.to_bytes(4, "big") + bytes(self.size(point) - 4))
        return self.files[-1]

    def measure(self, file: bytes) -> float:
        assert self.psnr is not None, "nobody asked for a PSNR"
        return int.from_bytes(file[:4], "big") / 1000

    def find(
        self, points: list[RatePoint], *, pixels: int = 1000, priced: bool = False, **goal: float
    ) -> bytes:
        return find_file(
            RateTarget(**goal),  # type: ignore[arg-type]
            points,
            pixels=pixels,
            priced=priced,
            encode=self.encode,
            measure=self.measure,
        )


def smooth(point: RatePoint) -> int:
    """Sizes from 1,000 bytes on, without steps."""
    return round(1000 * (1000 / point.price) ** 0.6)


# --- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bpp", "max_bytes", "psnr"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "7", 1j])
def test_targets_are_finite_and_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be (finite|whole) and positive"):
        RateTarget(**{name: value})  # type: ignore[arg-type]


def test_bytes_are_whole() -> None:
    assert RateTarget(max_bytes=np.int64(40)).goal == 40  # type: ignore[arg-type]
    for size in (40.5, 1e300, "40"):
        with pytest.raises(ValueError, match="max_bytes must be whole and positive"):
            RateTarget(max_bytes=size)  # type: ignore[arg-type]


def test_numbers_of_any_kind_become_floats() -> None:
    for half in (np.float32(0.5), Fraction(1, 2), 0.5):
        target = RateTarget(bpp=half)  # type: ignore[arg-type]
        assert (target, str(target)) == (RateTarget(bpp=0.5), "0.5 bpp")
    with pytest.raises(ValueError, match="psnr must be finite"):
        RateTarget(psnr=10**400)


def test_a_target_is_one_of_three() -> None:
    for goals in ({}, {"bpp": 1.0, "max_bytes": 5}, {"bpp": 1.0, "psnr": 30.0, "max_bytes": 5}):
        with pytest.raises(ValueError, match="exactly one"):
            RateTarget(**goals)  # type: ignore[arg-type]
    assert str(RateTarget(bpp=0.5)) == "0.5 bpp"
    assert str(RateTarget(max_bytes=20000)) == "at most 20,000 bytes"
    assert str(RateTarget(psnr=35.0)) == "at least 35 dB"
    assert RateTarget(max_bytes=7).goal == 7


# --- the search ---------------------------------------------------------------------------------


def test_between_two_qualities_prices_are_tried() -> None:
    coder = Encoder(smooth)
    goal = smooth(RatePoint(5, 1000 * 0.95**50.4))
    coder.find(QUALITIES, priced=True, max_bytes=goal)
    between = [p for p in coder.points if p not in QUALITIES]
    assert len(between) == 3 and {p.bucket for p in between} == {QUALITIES[50].bucket}
    for point in between:
        place = np.log(point.price / 1000) / np.log(0.95)
        assert 50 < place < 51 and (place * 8) % 1 == pytest.approx(0.5, abs=0.5)
    coder = Encoder(smooth)
    coder.find(QUALITIES, priced=False, max_bytes=goal)
    assert set(coder.points) <= set(QUALITIES)


@pytest.mark.parametrize(
    ("following", "share", "most"),
    [(RatePoint(2, 99.0), 0.7, 4), (RatePoint(2, 60.0), 0.6, 4), (RatePoint(9, 300.0), 0.03, 7)],
)
def test_gaps_between_buckets_are_filled_from_below(
    following: RatePoint, share: float, most: int
) -> None:
    """The price of the coarser quality falls far enough, and farther where a stage sets in."""
    first = RatePoint(1, 100.0)
    sizes = {first: 1000, following: 1200}
    for wanted in range(1000, 1200, 7):
        coder = Encoder(
            lambda point: sizes.get(point, round(1000 + 205 * np.log(point.price / 100) / np.log(share)))
        )
        file = coder.find([first, following], priced=True, max_bytes=wanted)
        assert wanted - 30 <= len(file) <= wanted
        between = coder.points[2:]
        assert len(between) <= most
        assert all(p.bucket == 1 and 100 * share < p.price < 100 for p in between)


@pytest.mark.parametrize("bytes_wanted", [1000, 1001, 2345, 5000, 12345, smooth(QUALITIES[-1])])
def test_smooth_sizes_are_hit(bytes_wanted: int) -> None:
    coder = Encoder(smooth)
    size = len(coder.find(QUALITIES, priced=True, bpp=bytes_wanted * 8 / 1000))
    assert size == pytest.approx(bytes_wanted, rel=0.005)
    assert len(coder.points) <= 10
    size = len(coder.find(QUALITIES, priced=True, max_bytes=bytes_wanted))
    assert 0.99 * bytes_wanted <= size <= bytes_wanted


def test_exact_hits_are_taken() -> None:
    for place in (0, 1, 49, 98, 99):
        point = QUALITIES[place]
        for goal in ({"max_bytes": smooth(point)}, {"bpp": smooth(point) * 8 / 1000}):
            assert len(Encoder(smooth).find(QUALITIES, **goal)) == smooth(point)
        levels = {p: 20006 + 100 * n for n, p in enumerate(QUALITIES)}
        coder = Encoder(smooth, levels.__getitem__)
        assert coder.measure(coder.find(QUALITIES, psnr=levels[point] / 1000)) == levels[point] / 1000


def test_more_than_enough_is_the_best_quality_and_less_the_worst() -> None:
    coder = Encoder(smooth, lambda point: 30000)
    assert len(coder.find(QUALITIES, priced=True, max_bytes=10**400)) == smooth(QUALITIES[-1])
    assert coder.points[-1] == QUALITIES[-1]
    assert len(coder.find(QUALITIES, priced=True, psnr=0.01)) == smooth(QUALITIES[0])


def test_what_is_out_of_reach_is_told_with_what_is_in_reach() -> None:
    levels = {p: 20006 + 100 * n for n, p in enumerate(QUALITIES)}
    low, high = smooth(QUALITIES[0]), smooth(QUALITIES[-1])
    for goal, message in (
        ({"max_bytes": low - 1}, f"at most 999 bytes .*: this picture takes 1,000 to {high:,} bytes"),
        ({"bpp": 7.8}, r"7\.8 bpp cannot be reached: this picture takes 8 to 168 bpp"),
        ({"bpp": 200}, r"200 bpp cannot be reached: this picture takes 8 to 168 bpp"),
        ({"bpp": 1e308}, r"1e\+308 bpp cannot be reached: this picture takes 8 to 168 bpp"),
        ({"psnr": 29.91}, r"at least 29\.91 dB .*: this picture gets 20\.01 to 29\.90 dB"),
    ):
        with pytest.raises(RateError, match=message):
            Encoder(smooth, levels.__getitem__).find(QUALITIES, **goal)


def test_the_range_that_is_told_can_be_asked_for() -> None:
    """Its ends are rounded, so a rate a little beyond what there is counts as the end."""
    for goal, size in ((8 / (1 + TOLERANCE) + 1e-9, 1000), (168.4, smooth(QUALITIES[-1]))):
        assert len(Encoder(smooth).find(QUALITIES, priced=True, bpp=goal)) == size


def test_a_model_of_one_point() -> None:
    points = [RatePoint(3, 7.0)] * 100
    coder = Encoder(lambda point: 500, lambda point: 30000)
    for goal in ({"bpp": 4.0}, {"max_bytes": 500}, {"max_bytes": 9999}, {"psnr": 30.0}, {"psnr": 1.0}):
        assert len(coder.find(points, priced=True, **goal)) == 500
    assert len(coder.points) == 5
    for goal in ({"bpp": 3.5}, {"bpp": 4.5}, {"max_bytes": 499}, {"psnr": 30.01}):
        with pytest.raises(RateError):
            coder.find(points, **goal)


def test_of_equal_sizes_the_better_picture_is_taken() -> None:
    levels = {p: 20006 + 100 * n for n, p in enumerate(QUALITIES)}
    coder = Encoder(lambda point: 700, levels.__getitem__)
    assert coder.measure(coder.find(QUALITIES, psnr=20.0)) == max(map(coder.measure, coder.files))
    assert coder.find(QUALITIES, max_bytes=700) == coder.encode(QUALITIES[-1])


def test_equal_points_are_tried_once() -> None:
    points = [RatePoint(1 + q // 25, 1.0) for q in range(100)]
    coder = Encoder(lambda point: 1000 * point.bucket)
    assert len(coder.find(points, max_bytes=2999)) == 2000
    assert len(coder.points) == len(set(coder.points)) <= 3


@fuzz
@given(st.lists(st.integers(4, 60), min_size=1, max_size=40), st.integers(1, 70), st.data())
def test_whatever_the_sizes_the_bounds_are_kept(sizes: list[int], goal: int, data: st.DataObject) -> None:
    points = [RatePoint(1 + n, 1.0) for n in range(len(sizes))]
    levels = data.draw(st.lists(st.integers(1, 70), min_size=len(sizes), max_size=len(sizes)))
    size: Mapping[RatePoint, int] = dict(zip(points, sizes, strict=True))
    level = {p: 1000 * n for p, n in zip(points, levels, strict=True)}

    coder = Encoder(size.__getitem__)
    try:
        assert len(coder.find(points, max_bytes=goal)) <= goal
    except RateError:
        assert min(len(file) for file in coder.files) > goal
        assert min(sizes[0], sizes[-1]) > goal
    coder = Encoder(size.__getitem__, level.__getitem__)
    try:
        file = coder.find(points, psnr=goal)
        reached = [len(f) for f in coder.files if coder.measure(f) >= goal]
        assert coder.measure(file) >= goal and len(file) == min(reached)
    except RateError:
        assert max(map(coder.measure, coder.files)) < goal
        assert max(levels[0], levels[-1]) < goal
    coder = Encoder(size.__getitem__)
    try:
        file = coder.find(points, bpp=goal, pixels=8)
        assert abs(len(file) - goal) == min(abs(len(f) - goal) for f in coder.files)
    except RateError:
        assert all(len(f) > goal for f in coder.files) or all(len(f) < goal for f in coder.files)


# --- the codec ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> Codec:
    return load_codec(tiny_model, "cpu")


def compress(codec: Codec, picture: np.ndarray, **options: Any) -> bytes:
    """Without a search at each point, which changes nothing here but the time it takes."""
    return codec.compress(picture, effort=1, **options)


def sizes_of(codec: Codec, picture: np.ndarray) -> tuple[int, int]:
    low, high = (len(compress(codec, picture, quality=q)) for q in (1, 100))
    assert low < high
    return low, high


def shown(codec: Codec, data: bytes) -> np.ndarray:
    return np.asarray(codec.decompress(data).convert("RGB"))


def test_a_rate_is_met(codec: Codec) -> None:
    picture = synthetic_picture(5, 160, 144)
    for quality in (1, 20, 93):
        size = len(compress(codec, picture, quality=quality))
        for wanted in (size, size + 1):
            data = compress(codec, picture, target=RateTarget(bpp=8 * wanted / (160 * 144)))
            assert len(data) == pytest.approx(wanted, rel=0.01)
    assert codec.decompress(data).size == (144, 160)


def test_a_size_is_never_exceeded(codec: Codec) -> None:
    picture = synthetic_picture(6, 70, 90)
    low, high = sizes_of(codec, picture)
    for limit in (low, low + 7, (low + high) // 2, high - 1):
        assert len(compress(codec, picture, target=RateTarget(max_bytes=limit))) <= limit
    assert compress(codec, picture, target=RateTarget(max_bytes=high + 1000)) == compress(
        codec, picture, quality=100
    )


@pytest.mark.parametrize("grey", [False, True])
def test_a_psnr_is_reached_by_the_decoded_picture(codec: Codec, grey: bool) -> None:
    picture = synthetic_picture(7, 48, 70)
    source = np.ascontiguousarray(picture[:, :, 1]) if grey else picture
    if grey:
        picture = np.repeat(source[:, :, None], 3, 2)
    worst, best = (psnr_rgb(picture, shown(codec, compress(codec, source, quality=q))) for q in (1, 100))
    goal = (worst + best) / 2
    assert psnr_rgb(picture, shown(codec, compress(codec, source, target=RateTarget(psnr=goal)))) >= goal
    least = compress(codec, source, target=RateTarget(psnr=worst / 2))
    assert len(least) <= len(compress(codec, source, quality=1))


def test_what_a_picture_cannot_have(codec: Codec) -> None:
    picture = synthetic_picture(6, 70, 90)
    low, high = sizes_of(codec, picture)
    with pytest.raises(RateError, match=rf"this picture takes [\d,]+ to {high:,} bytes") as refused:
        compress(codec, picture, target=RateTarget(max_bytes=low // 2))
    # Of a barely trained model the first quality need not have the smallest file.
    least = int(str(refused.value).split(" takes ")[1].split(" to ")[0].replace(",", ""))
    assert low // 2 < least <= low
    assert len(compress(codec, picture, target=RateTarget(max_bytes=least))) == least
    for bpp in (0.001, 100.0):
        with pytest.raises(RateError, match=r"bpp cannot be reached: this picture takes 0\.\d+ to "):
            compress(codec, picture, target=RateTarget(bpp=bpp))
    with pytest.raises(
        RateError, match=r"at least 90 dB cannot be reached: this picture gets \d+\.\d\d to"
    ):
        compress(codec, picture, target=RateTarget(psnr=90.0))


def test_a_single_pixel(codec: Codec) -> None:
    pixel = synthetic_picture(6, 1, 1)
    size = len(compress(codec, pixel, quality=1))
    assert len(compress(codec, pixel, target=RateTarget(max_bytes=size))) <= size
    assert len(compress(codec, pixel, target=RateTarget(psnr=1.0))) <= 64


def test_the_latent_is_computed_once(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    analysis = codec.analysis.forward
    monkeypatch.setattr(codec.analysis, "forward", lambda pixels: calls.append(1) or analysis(pixels))
    picture = synthetic_picture(6, 70, 90)
    compress(codec, picture, target=RateTarget(max_bytes=10**6))
    assert calls == [1]


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "vq"])
def test_in_the_other_modes_a_file_is_one_of_a_quality(mode_models: Path, mode: str) -> None:
    codec = load_codec(mode_models / f"{mode}.safetensors", "cpu")
    picture = synthetic_picture(3, 64, 48)
    files = [compress(codec, picture, quality=q) for q in (1, 30, 50, 70, 100)]
    limit = sorted(map(len, files))[len(files) // 2]
    data = compress(codec, picture, target=RateTarget(max_bytes=limit))
    assert len(data) <= limit
    points = codec.model.config.points
    bucket = vqcodec.info(data).rate
    assert data == compress(codec, picture, quality=1 + [p.bucket for p in points].index(bucket))


def test_a_sample_can_have_a_target(mode_models: Path) -> None:
    codec = load_codec(mode_models / "vae.safetensors", "cpu")
    picture = synthetic_picture(3, 64, 48)
    files = [compress(codec, picture, target=RateTarget(max_bytes=10**6), sample=seed) for seed in (4, 5)]
    assert files == [compress(codec, picture, quality=100, sample=seed) for seed in (4, 5)]


def test_a_target_stands_alone(codec: Codec) -> None:
    picture = synthetic_picture(6, 20, 20)
    for options in ({"quality": 50}, {"stages": 1}):
        with pytest.raises(ValueError, match="takes the place of quality and stages"):
            compress(codec, picture, target=RateTarget(bpp=1.0), **options)
    assert compress(codec, picture) == compress(codec, picture, quality=50)


def test_the_function_takes_targets(tiny_model: Path, codec: Codec) -> None:
    picture = synthetic_picture(6, 40, 50)
    target = RateTarget(max_bytes=len(compress(codec, picture, quality=40)))
    data = vqcodec.compress(picture, model=tiny_model, device="cpu", target=target, effort=1)
    assert data == compress(codec, picture, target=target)


def test_targets_need_no_torch() -> None:
    code = "import sys, vqcodec; vqcodec.RateTarget(bpp=1); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str]]:
    """Runs `vqcodec compress` in a folder with a.png and b.png: exit code and standard error."""
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate(("a.png", "b.png")):
        Image.fromarray(synthetic_picture(n, 64, 80)).save(name)

    fixed = "--device cpu --effort 1".split()

    def command(line: str) -> tuple[int, str]:
        try:
            code = cli.main(["compress", *line.split(), "--model", str(tiny_model), *fixed])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().err

    return command


def test_the_command_gives_each_file_the_target(
    run: Callable[[str], tuple[int, str]], codec: Codec
) -> None:
    sources = [np.asarray(Image.open(name)) for name in ("a.png", "b.png")]
    limit = max(len(compress(codec, source, quality=30)) for source in sources)
    code, said = run(f"a.png b.png --max-bytes {limit}")
    assert code == 0 and said.count(f"bpp  target at most {limit:,} bytes  ") == 2
    for name, source in zip(("a.vqc", "b.vqc"), sources, strict=True):
        expected = compress(codec, source, target=RateTarget(max_bytes=limit))
        assert Path(name).read_bytes() == expected and len(expected) <= limit


def test_the_command_takes_rates_and_psnr(run: Callable[[str], tuple[int, str]], codec: Codec) -> None:
    source = np.asarray(Image.open("a.png"))
    bpp = 8 * len(compress(codec, source, quality=60)) / (64 * 80)
    code, said = run(f"a.png --bpp {bpp:.4f}")
    assert code == 0 and f"target {float(f'{bpp:.4f}'):g} bpp  " in said
    assert vqcodec.info(Path("a.vqc").read_bytes()).bpp == pytest.approx(bpp, rel=0.1)
    code, said = run("a.png -f --psnr 5.5")
    assert code == 0 and "target at least 5.5 dB  " in said
    assert len(Path("a.vqc").read_bytes()) <= len(compress(codec, source, quality=1))


def test_the_command_says_the_quality_that_was_asked_for(run: Callable[[str], tuple[int, str]]) -> None:
    assert "bpp  quality 50  " in run("a.png -q 50")[1]
    assert "quality" not in run("b.png")[1]
    assert Path("a.vqc").exists() and Path("b.vqc").exists()


def test_the_command_tells_what_cannot_be_reached(run: Callable[[str], tuple[int, str]]) -> None:
    code, said = run("a.png b.png --max-bytes 10")
    assert code == 1
    for name in ("a.png", "b.png"):
        assert f"vqcodec: {name}: at most 10 bytes cannot be reached: this picture takes " in said
    assert not Path("a.vqc").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--bpp 1 --psnr 30", "--psnr: not allowed with argument --bpp"),
        ("--bpp 1 --max-bytes 30", "--max-bytes: not allowed with argument --bpp"),
        ("-q 50 --bpp 1", "--bpp: not allowed with argument -q/--quality"),
        ("--psnr 30 -q 50", "-q/--quality: not allowed with argument --psnr"),
        ("--bpp 1 --stages 2", "--stages: not with --bpp, --max-bytes or --psnr"),
        ("--bpp 0", "must be a number above 0"),
        ("--psnr inf", "must be a number above 0"),
        ("--max-bytes 1.5", "not a whole number"),
        ("--max-bytes 0", "must be at least 1"),
    ],
)
def test_wrong_usage(run: Callable[[str], tuple[int, str]], options: str, message: str) -> None:
    code, said = run(f"none.png {options}")
    assert code == 2 and message in said
