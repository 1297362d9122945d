"""Tests of bench/determinism.py: crops, settings, what is compared, the bars, and whole runs.

Most run the worker in this process, with a model of the tiny preset; one runs real processes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import determinism as bench
from bench import determinism_worker as worker
from bench.determinism import BASELINE, FORCED, Files, Setting

# --- crops and settings ----------------------------------------------------------------------------


def ramp(height: int, width: int) -> Image.Image:
    """A picture whose values tell the place: red is the row, green the column."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.uint8)
    return Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], 2))


def test_whole_pictures_and_their_middles() -> None:
    pictures = [ramp(40, 60), ramp(9, 100)]
    for found, picture in zip(bench.cut(pictures, size=None, files=None), pictures, strict=True):
        np.testing.assert_array_equal(found, np.asarray(picture))
    first, second = bench.cut(pictures, size=20, files=None)
    np.testing.assert_array_equal(first, np.asarray(pictures[0])[10:30, 20:40])
    np.testing.assert_array_equal(second, np.asarray(pictures[1])[:, 40:60])


def test_many_crops_are_the_same_every_time() -> None:
    pictures = [ramp(40, 60), ramp(9, 100)]
    crops = bench.cut(pictures, size=16, files=50)
    assert [crop.shape for crop in crops] == [(16, 16, 3), (9, 16, 3)] * 25
    assert all(crop.dtype == np.uint8 and crop.flags.c_contiguous for crop in crops)
    places = {(int(crop[0, 0, 0]), int(crop[0, 0, 1])) for crop in crops}
    assert len(places) > 40
    assert max(row for row, _ in places) > 20 and max(column for _, column in places) > 80
    for crop in crops:
        np.testing.assert_array_equal(crop[:, 0, 0], crop[0, 0, 0] + np.arange(len(crop)))
        np.testing.assert_array_equal(crop[0, :, 1], crop[0, 0, 1] + np.arange(16))
    again = bench.cut(pictures, size=16, files=50)
    assert all(np.array_equal(a, b) for a, b in zip(crops, again, strict=True))
    whole = bench.cut(pictures, size=None, files=3)
    assert [crop.shape for crop in whole] == [(40, 60, 3), (9, 100, 3), (40, 60, 3)]


def names(*flags: str, **options: Any) -> list[str]:
    options = {"native": True, "device": "cpu", "python": None} | options
    return [setting.name for setting in bench.make_settings(flags, **options)]


def test_settings_follow_the_machine() -> None:
    everywhere = [BASELINE, "again", "threads-1", "threads-2", "threads-3"]
    everywhere += ["onednn-off", "matmul-medium", "conv-bf16", "autocast", "bfloat16"]
    assert names(native=False) == everywhere
    full = names("avx2", "avx512f", device="cuda", python="/other/python")
    assert full[0] == BASELINE and len(set(full)) == len(full)
    assert set(FORCED) < set(full)
    assert {"native-off", "isa-portable", "isa-amx", "aten-avx2", "onednn-avx512_core"} < set(full)
    assert {"cuda", "cuda-bfloat16", "python"} < set(full)
    assert "onednn-avx512_core" not in names("avx2")


def test_choice_of_settings() -> None:
    settings = bench.make_settings((), native=False, device="cpu", python=None)
    assert bench.choose(settings, None) == settings
    assert [s.name for s in bench.choose(settings, ["autocast", "again"])] == [
        BASELINE,
        "again",
        "autocast",
    ]
    with pytest.raises(ValueError, match="no setting 'cuda' here, only baseline, again"):
        bench.choose(settings, ["cuda"])


# --- what is compared ------------------------------------------------------------------------------


def test_symbols_of_a_missing_stage_are_zero() -> None:
    stage = np.array([[[1, 2], [3, 4]]], np.uint8)
    other = np.array([[[1, 2], [0, 4]]], np.uint8)
    assert worker.differing([stage], [stage]) == (0, 4)
    assert worker.differing([stage], [other]) == (1, 4)
    assert worker.differing([stage], [other, stage * 0]) == (1, 8)
    assert worker.differing([stage, other], [stage]) == (3, 8)


def test_digests_tell_types_shapes_and_order() -> None:
    symbols = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    variants = [
        [symbols],
        [symbols.astype(np.int32)],
        [symbols.reshape(1, 2, 4)],
        [symbols[:1], symbols[1:]],
        [symbols.transpose(0, 2, 1)],
        [symbols, symbols],
    ]
    found = [worker.digest(variant) for variant in variants]
    assert len(set(found)) == len(found)
    assert worker.digest([symbols.copy(order="F")]) == found[0]


def test_unknown_options_are_refused() -> None:
    with (
        pytest.raises(ValueError, match="no option 'fast'"),
        worker.arithmetic(["fast"], threads=None, device="cpu"),
    ):
        pass


@pytest.fixture
def compared(tmp_path: Path) -> tuple[Files, dict[str, dict[str, Any]], list[tuple[int, int]]]:
    """Two items, of which the setting "other" makes the second differently: 110 bytes instead of 100."""
    files = Files(made={BASELINE: [0, 1], "other": [0, 2]}, crops=[0, 1, 1])
    for number, size in enumerate((50, 100, 110)):
        files.paths.append(tmp_path / f"{number}.vqc")
        files.paths[-1].write_bytes(bytes(size))
    nothing = {"samples": 0, "changed": 0, "over_one": 0, "largest": 0}
    changed = {"samples": 1000, "changed": 20, "over_one": 1, "largest": 3}
    results = {
        BASELINE: {"digests": ["a", "b", "c"], "pairs": [[3, 40]], "psnr": [30.0, 31.0, 31.5]},
        "other": {"digests": ["a", "b", "c"], "pairs": [], "psnr": [30.0, 30.5]},
    }
    results[BASELINE]["levels"], results["other"]["levels"] = nothing, changed
    return files, results, [(1, 2)]


def test_figures(compared: tuple[Files, dict[str, dict[str, Any]], list[tuple[int, int]]]) -> None:
    found = bench.figures("other", *compared)
    assert (found.files, found.differing, found.symbols) == (2, 1, 3 / 40)
    assert found.bytes_percent == pytest.approx(100 * 10 / 150)
    assert found.largest_bytes_percent == pytest.approx(10)
    assert (found.psnr, found.largest_psnr) == (0.5, 0.5)
    assert (found.decoded, found.misread) == (3, 0)
    assert (found.samples, found.changed, found.over_one, found.largest) == (1000, 0.02, 0.001, 3)
    assert found.shown_psnr == -0.25
    own = bench.figures(BASELINE, *compared)
    assert (own.differing, own.symbols, own.bytes_percent, own.psnr, own.shown_psnr) == (0, 0, 0, 0, 0)


def test_bars(compared: tuple[Files, dict[str, dict[str, Any]], list[tuple[int, int]]]) -> None:
    files, results, pairs = compared

    def statuses() -> dict[str, str]:
        found = {name: bench.figures(name, files, results, pairs) for name in files.made}
        return {check.name: check.status for check in bench.make_checks(found, files.made)}

    assert statuses() == {"the same symbols under all 2 settings": "PASS"}
    # That a setting of its own gives other bytes is allowed; that a forced one does is not.
    files.made["again"] = [0, 2]
    files.made["autocast"] = [0, 1]
    results["again"] = results["autocast"] = results["other"]
    assert statuses() == {
        "the baseline's bytes under again": "FAIL",
        "the baseline's bytes under autocast": "PASS",
        "the same symbols under all 4 settings": "PASS",
    }
    results["other"]["digests"] = ["a", "b", "d"]
    assert statuses()["the same symbols under all 4 settings"] == "FAIL"
    # A GPU has bytes of its own, and those again and again.
    results["cuda"] = results["cuda-again"] = results["cuda-autocast"] = results["other"]
    files.made |= {"cuda": [0, 2], "cuda-again": [0, 2], "cuda-autocast": [0, 1]}
    assert statuses()["cuda's bytes under cuda-again"] == "PASS"
    assert statuses()["cuda's bytes under cuda-autocast"] == "FAIL"


# --- whole runs ------------------------------------------------------------------------------------


def run_here(setting: Setting, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The worker in this process, which makes the settings of arithmetic only."""
    from vqcodec.codec import load_codec

    job = json.loads(json.dumps(job))
    task, model = job.pop("task"), job.pop("model")
    codec = load_codec(model, setting.device, precise=setting.precise)
    with worker.arithmetic(setting.options, threads=None, device=setting.device):
        result = worker.encode(codec, **job) if task == "encode" else worker.decode(codec, **job)
    return result | {"environment": worker.environment(setting.device)}


@pytest.fixture
def arguments(pictures: Path, tiny_model: Path) -> list[str]:
    return ["--images", str(pictures), "--model", str(tiny_model), "--limit", "2"]


def test_a_run(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    line = [*arguments, "--size", "48", "--settings", "again,autocast,bfloat16", "--json", str(path)]
    assert bench.main(line, run=run_here) == 0
    out = capsys.readouterr().out
    assert "6 files of 2 crops of 2 pictures; 6 different files in all" in out
    assert "PASS  the same symbols under all 4 settings: 0 of 24 differ" in out
    found = json.loads(path.read_text())
    assert found["script"] == "determinism"
    assert "/" not in found["command"].removeprefix("python bench/determinism.py")
    assert found["images"]["crops"] == 2 and found["images"]["samples"] == 2 * 48 * 48 * 3
    assert [setting["name"] for setting in found["settings"]] == [
        BASELINE,
        "again",
        "autocast",
        "bfloat16",
    ]
    for setting in found["settings"]:
        assert (setting["files"], setting["differing"], setting["misread"]) == (6, 0, 0)
        assert setting["samples"] == (0 if setting["name"] == BASELINE else 6 * 48 * 48 * 3)
        assert setting["how"].keys() == {"environment", "threads", "options", "device", "precise"}
        assert setting["environment"]["device"] == "cpu"
    assert [check["status"] for check in found["checks"]] == ["PASS"] * 4


def test_many_files_take_the_qualities_in_turn(
    arguments: list[str],
) -> None:
    asked = []

    def run(setting: Setting, job: dict[str, Any], folder: Path) -> dict[str, Any]:
        asked.append(job.get("items"))
        return run_here(setting, job, folder)

    line = [*arguments, "--files", "5", "--size", "16", "--qualities", "20,80", "--settings", BASELINE]
    assert bench.main(line, run=run) == 0
    assert asked == [[(0, 20), (1, 80), (2, 20), (3, 80), (4, 20)], None]


def spoil_bytes(job: dict[str, Any], result: dict[str, Any]) -> None:
    """Another file for the first item: that of the second, which has the same size in pixels."""
    if job["task"] == "encode":
        folder = Path(job["folder"])
        (folder / "0.vqc").write_bytes((folder / "1.vqc").read_bytes())


def spoil_symbols(job: dict[str, Any], result: dict[str, Any]) -> None:
    if job["task"] == "decode":
        result["digests"][0] = "0"


@pytest.mark.parametrize(
    ("setting", "spoil", "failed"),
    [
        ("again", spoil_bytes, "the baseline's bytes under again: 1 of 2 differ"),
        ("threads-1", spoil_symbols, "the same symbols under all 2 settings: 1 of 4 differ"),
    ],
)
def test_a_failed_bar_fails_the_run(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    setting: str,
    spoil: Callable[[dict[str, Any], dict[str, Any]], None],
    failed: str,
) -> None:
    def run(used: Setting, job: dict[str, Any], folder: Path) -> dict[str, Any]:
        result = run_here(used, job, folder)
        if used.name != BASELINE:
            spoil(job, result)
        return result

    line = [*arguments, "--qualities", "60", "--settings", setting]
    assert bench.main(line, run=run) == 1
    assert f"FAIL  {failed}" in capsys.readouterr().out


def test_real_processes(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    monkeypatch.setenv("PYTHONPATH", path)
    line = [*arguments, "--size", "32", "--qualities", "60", "--python", sys.executable]
    assert bench.main([*line, "--settings", "python"]) == 0
    out = capsys.readouterr().out
    assert "PASS  the same symbols under all 2 settings: 0 of 4 differ" in out


def test_what_a_process_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    monkeypatch.setattr(bench, "WORKER", script)
    script.write_text("raise SystemExit('VQCODEC_ISA=amx, but this CPU lacks it')")
    with pytest.raises(bench.MissingError, match="this machine lacks amx"):
        bench.run_worker(Setting("isa-amx", {"VQCODEC_ISA": "amx"}), {}, tmp_path)
    with pytest.raises(bench.WorkerError, match="setting again: VQCODEC_ISA=amx, but"):
        bench.run_worker(Setting("again"), {}, tmp_path)
    script.write_text("import os; print('noise'); print(os.environ['SOME'])")
    assert bench.run_worker(Setting("again", {"SOME": "{}"}), {}, tmp_path) == {}


def test_a_setting_that_the_machine_lacks_is_left_out(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(setting: Setting, job: dict[str, Any], folder: Path) -> dict[str, Any]:
        if setting.name == "again":
            raise bench.MissingError("this machine lacks that")
        return run_here(setting, job, folder)

    line = [*arguments, "--size", "16", "--qualities", "60", "--settings", "again"]
    assert bench.main(line, run=run) == 0
    streams = capsys.readouterr()
    assert "left out: again: this machine lacks that" in streams.err
    assert "under all 1 settings: 0 of 2 differ" in streams.out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--size", "0"], "must be at least 1"),
        (["--settings", "nothing"], "no setting 'nothing'"),
        (["--device", "cuda:99"], "device 'cuda:99'"),
        (["--images", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str], line: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        bench.main([*arguments, *line], run=run_here)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_missing_model(arguments: list[str]) -> None:
    assert bench.main([*arguments, "--model", "no-such-model"], run=run_here) == 3
