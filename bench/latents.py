"""What regular latents buy, on digits: continuity, completeness, collapse, anomalies, noise.

    python bench/latents.py --out docs/latents [--json FILE] [--model FILE] [--seed N] [--quick]

Purpose: the figures and numbers of docs/latents.md. Trains every kind of `vqcodec.digits` on
scikit-learn's digits, in minutes on one core, and holds what comes out to the bars below. --model stores
the cvae, which is the packaged one. Exit status: 0, 1 if a bar is not met, 2 for a wrong command line or
a missing package.

What is measured
- 1797 digits, shuffled once: 600 train the judge alone, 900 the models, 297 are for tests.
- Completeness: share of draws that the judge accepts with a probability above 0.9. ae has no prior; it is
  drawn from N(0, 1), from a Gaussian with mean and standard deviation of each of its latents ("draws",
  what the bar takes), and from one with their whole covariance.
- Continuity: along straight lines between the latents of two test pictures of different digits, the
  largest step of the decoded picture in units of an even one; and the share of pictures on the way that
  are accepted.
- The anomaly's score is -ELBO: pictures of the digit that training did not see, against test pictures.

Layout: bars and sizes; data; one function an experiment, which returns its figures and what there is to
draw; the bars; the report.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Run as a script: the root comes last, so that an installed vqcodec is the one that is measured.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench import latent_figures as figures
from bench import latent_measures as measures
from bench.metrics import record, write_json
from bench.rd_checks import Check
from vqcodec.collapse import COLLAPSED, POINT, LatentHealth, deterministic_health, gaussian_health
from vqcodec.digits import DigitsModel, digits_config, save_digits, train_digits
from vqcodec.digits.config import LABELS
from vqcodec.digits.family import DenoisingAutoencoder, VariationalAutoencoder
from vqcodec.errors import VqcError
from vqcodec_kernels.philox import philox_normal

COMPLETENESS_MARGIN = 0.10
"""By how much the share of accepted draws of vae and wae must be above that of ae's draws."""
RIGHT_LABELS = 0.95
LARGEST_ANGLE = 1e-2
"""Between the linear autoencoder and the principal components, radians."""
LEAST_AREA = 0.75
"""Mean over the digits of the area under the ROC; chance gives 0.5."""
CURED_KL = 1.0
"""Nats a picture that an annealed model must have where the same one without collapsed."""

FAMILY = ("ae", "vae", "wae", "cvae", "hvae")
WEIGHTS = (0.0, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
# Four layers pass on little before they have learnt, and the divergence is quicker than they are.
FRAGILE: dict[str, Any] = {
    "latent": 2,
    "hidden": (64, 64, 64, 64),
    "weight": 2.0,
    "start_log_variance": -6.0,
}
ANNEALING = 0.8
LINEAR: dict[str, Any] = {"latent": 4, "hidden": (), "batch": 4096, "learning_rate": 0.05}
LINE = 33
GRID = 13
SHOWN = 20


@dataclass(frozen=True)
class Effort:
    """Steps of the trainings, and how many draws, lines, digits held out and seeds are looked at.

    seed: of every training, the first of `seeds` of them where there are more.
    """

    steps: int = 2000
    sweep_steps: int = 1000
    denoising_steps: int = 1500
    anomaly_steps: int = 600
    draws: int = 2000
    lines: int = 300
    held_out: tuple[int, ...] = tuple(range(LABELS))
    seeds: int = 2
    seed: int = 0


QUICK = Effort(20, 10, 20, 10, 100, 10, (0, 3), 1)


@dataclass(frozen=True)
class Digits:
    """Pictures (N, 64) in 0..1 and labels for training and tests, and a judge that saw neither."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    judge: Any
    judge_accuracy: float

    def judge_draws(self, pixels: Tensor) -> dict[str, float]:
        """Share of pictures that are digits to the judge, and how many different ones there are."""
        return {
            "accepted": measures.accepted_share(self.judge, pixels.numpy()),
            "label_perplexity": measures.label_perplexity(self.judge, pixels.numpy()),
        }


def load_data(judged: int = 600, trained: int = 900) -> Digits:
    """scikit-learn's digits, which come with it: no download."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    pixels, labels = (data.data[order] / 16).astype(np.float32), data.target[order].astype(np.int64)
    judge = measures.train_judge(pixels[:judged], labels[:judged])
    pictures = [torch.from_numpy(part) for part in np.split(pixels, [judged, judged + trained])]
    names = [torch.from_numpy(part) for part in np.split(labels, [judged, judged + trained])]
    accuracy = measures.right_share(judge, pixels[judged + trained :], labels[judged + trained :])
    return Digits(pictures[1], names[1], pictures[2], names[2], judge, accuracy)


def train(data: Digits, kind: str, **settings: Any) -> Any:
    """A model of the training pictures."""
    return train_digits(kind, data.train, data.train_labels, digits_config(kind, **settings))


def health(model: DigitsModel, data: Digits) -> LatentHealth:
    """What the latent still says of the test pictures."""
    if isinstance(model, VariationalAutoencoder):
        return gaussian_health(*model.posterior(data.test, data.test_labels).relative(), mode=model.kind)
    latent = model.encode(data.test)
    return deterministic_health(latent, float(latent.std()), mode=model.kind)


def measure_controls(data: Digits, effort: Effort) -> dict[str, Any]:
    """What the judge makes of pictures that no model drew."""
    random = np.random.default_rng(1)
    train_pixels, test = data.train.numpy(), data.test.numpy()
    covariance = np.cov(train_pixels.T)
    gaussian = random.multivariate_normal(train_pixels.mean(0), covariance, effort.draws)
    first, second = (ends.numpy() for ends in pairs(data, effort.lines))
    return {
        "judge_accuracy": data.judge_accuracy,
        "accepted": {
            "test pictures": measures.accepted_share(data.judge, test),
            "Gaussian in the pixels": measures.accepted_share(data.judge, gaussian),
            "two digits half and half": measures.accepted_share(data.judge, (first + second) / 2),
        },
    }


def pairs(data: Digits, count: int) -> tuple[Tensor, Tensor]:
    """Test pictures of different digits, (count, 64) twice."""
    random = np.random.default_rng(2)
    labels = data.test_labels.numpy()
    chosen: list[NDArray[np.int64]] = []
    while len(chosen) < count:
        two = random.integers(len(labels), size=2)
        if labels[two[0]] != labels[two[1]]:
            chosen.append(two)
    first, second = np.array(chosen).T
    return data.test[first], data.test[second]


def measure_plane(data: Digits, effort: Effort) -> tuple[dict[str, Any], dict[str, Any]]:
    """ae and vae with two numbers each, as points and as a decoded grid."""
    found, drawn = {}, {}
    for kind in ("ae", "vae"):
        model = train(data, kind, latent=2, steps=effort.steps, seed=effort.seed)
        latents = model.encode(data.test)
        found[kind] = {
            "psnr": measures.psnr(model.decode(latents).numpy(), data.test.numpy()),
            **data.judge_draws(model.draw(effort.draws, seed=1)),
            "state": health(model, data).state,
        }
        low, high = model.centre - 2 * model.spread, model.centre + 2 * model.spread
        across = torch.linspace(0, 1, GRID)
        # Rows from the top: the second number falls.
        down, right = torch.meshgrid(across.flip(0), across, indexing="ij")
        places = low + (high - low) * torch.stack((right.flatten(), down.flatten()), 1)
        drawn[kind] = {
            "latents": latents.numpy(),
            "labels": data.test_labels.numpy(),
            "low": low.tolist(),
            "high": high.tolist(),
            "grid": model.decode(places).numpy(),
        }
    return found, drawn


def measure_family(data: Digits, effort: Effort) -> tuple[dict[str, Any], dict[str, Any], DigitsModel]:
    """All kinds with eight numbers: completeness, continuity; rows of draws and of lines; the cvae."""
    found: dict[str, Any] = {}
    draws: dict[str, Any] = {}
    lines: dict[str, Any] = {}
    models: dict[str, DigitsModel] = {}
    first, second = pairs(data, effort.lines)
    along = torch.linspace(0, 1, LINE)[:, None]
    for kind in FAMILY:
        model = models[kind] = train(data, kind, steps=effort.steps, seed=effort.seed)
        latents = model.encode(data.test)
        condition = health(model, data)
        starts, ends = model.encode(first), model.encode(second)
        paths = [model.decode(a + along * (b - a)).numpy() for a, b in zip(starts, ends, strict=True)]
        jumps = np.array([measures.largest_jump(path) for path in paths])
        inner = np.concatenate([path[1:-1] for path in paths])
        found[kind] = {
            "psnr": measures.psnr(model.decode(latents).numpy(), data.test.numpy()),
            **data.judge_draws(model.draw(effort.draws, seed=1)),
            "largest_jump": {"median": float(np.median(jumps)), "most": float(jumps.max())},
            "accepted_on_the_way": measures.accepted_share(data.judge, inner),
            "active_units": condition.active_units,
            "kl": condition.kl,
            "state": condition.state,
        }
        draws[kind] = model.draw(SHOWN, seed=2).numpy()
        lines[kind] = paths[0][:: (LINE - 1) // 16]
    found["ae"] |= _other_draws(models["ae"], data, effort)
    posterior = models["hvae"].posterior(data.test)  # type: ignore[operator]
    by_group = posterior.divergence().mean(0).chunk(models["hvae"].config.groups)
    found["hvae"]["kl_of_groups"] = [float(group.sum()) for group in by_group]
    asked = np.arange(effort.draws) % LABELS
    pixels = models["cvae"].draw(effort.draws, seed=1).numpy()
    found["cvae"]["right_labels"] = measures.right_share(data.judge, pixels, asked)
    fade = first[0] + along[:: (LINE - 1) // 16] * (second[0] - first[0])
    return found, {"draws": draws, "lines": {"pixels": fade.numpy(), **lines}}, models["cvae"]


def _other_draws(model: DigitsModel, data: Digits, effort: Effort) -> dict[str, Any]:
    """What else an autoencoder without a prior may be drawn from."""
    noise = philox_normal(1, effort.draws * model.config.latent).reshape(effort.draws, -1)
    latents = model.encode(data.train)
    factor = torch.linalg.cholesky(torch.cov(latents.T))
    matched = model.decode(latents.mean(0) + noise @ factor.T)
    return {
        "standard_normal": data.judge_draws(model.decode(noise)),
        "whole_covariance": data.judge_draws(matched),
    }


def measure_sweep(data: Digits, effort: Effort) -> list[dict[str, Any]]:
    """The vae under each weight C of its divergence, from a point to nothing."""
    rows = []
    for weight in WEIGHTS:
        model = train(data, "vae", weight=weight, steps=effort.sweep_steps, seed=effort.seed)
        rows.append({"weight": weight, **_figures(model, data, effort)})
    return rows


def measure_cure(data: Digits, effort: Effort) -> dict[str, Any]:
    """A vae that collapses on its way, with and without annealing; one that must, with annealing."""
    found: dict[str, Any] = {"constant": [], "annealed": []}
    for seed in range(effort.seed, effort.seed + effort.seeds):
        for name, annealing in (("constant", 0.0), ("annealed", ANNEALING)):
            model = train(data, "vae", **FRAGILE, annealing=annealing, steps=effort.steps, seed=seed)
            found[name].append({"seed": seed, **_figures(model, data, effort)})
    settings = {"annealing": ANNEALING, "steps": effort.sweep_steps, "seed": effort.seed}
    model = train(data, "vae", weight=WEIGHTS[-1], **settings)
    found["annealed, weight too large"] = _figures(model, data, effort)
    return found


def _figures(model: VariationalAutoencoder, data: Digits, effort: Effort) -> dict[str, Any]:
    """Reconstruction and KL of samples, ELBO, state, completeness."""
    loss = model.loss(data.test, data.test_labels, np.random.default_rng(3))
    condition = health(model, data)
    return {
        "reconstruction": float(loss.reconstruction),
        "kl": float(loss.penalty),
        "elbo": float(model.elbo(data.test, seed=3, draws=4).mean()),
        "psnr": measures.psnr(model.decode(model.encode(data.test)).numpy(), data.test.numpy()),
        "active_units": condition.active_units,
        "state": condition.state,
        "verdict": condition.verdicts[0],
        **data.judge_draws(model.draw(effort.draws, seed=1)),
    }


def measure_anomaly(data: Digits, effort: Effort) -> dict[str, dict[str, float]]:
    """For each digit, how well a vae that never saw it tells it from the others."""
    found = {}
    for digit in effort.held_out:
        seen, normal = data.train_labels != digit, data.test_labels != digit
        config = digits_config("vae", noise=0.15, steps=effort.anomaly_steps, seed=effort.seed)
        model = train_digits("vae", data.train[seen], data.train_labels[seen], config)
        assert isinstance(model, VariationalAutoencoder)
        strange = torch.cat((data.train[~seen], data.test[~normal]))
        areas = []
        for score in (
            lambda pixels, model=model: -model.elbo(pixels, seed=4, draws=8),
            lambda pixels, model=model: model.reconstruction(model.decode(model.encode(pixels)), pixels),
        ):
            low, high = score(data.test[normal]).numpy(), score(strange).numpy()
            areas.append(measures.area_under_curve(low, high))
        found[str(digit)] = {"elbo": areas[0], "reconstruction": areas[1]}
    return found


def measure_denoising(data: Digits, effort: Effort) -> tuple[dict[str, float], dict[str, Any]]:
    """dB that the dae takes off noise, beside an ae of its size and beside clipping to 0..1."""
    settings = {"steps": effort.denoising_steps, "seed": effort.seed}
    dae = train(data, "dae", **settings)
    assert isinstance(dae, DenoisingAutoencoder)
    ae = train(data, "ae", latent=dae.config.latent, **settings)
    noisy = dae.corrupt(data.test, seed=5)
    pictures = {
        "noisy": noisy,
        "clipped": noisy.clamp(0, 1),
        "ae": ae.decode(ae.encode(noisy)),
        "dae": dae.decode(dae.encode(noisy)),
    }
    clean = data.test.numpy()
    found = {name: measures.psnr(pixels.numpy(), clean) for name, pixels in pictures.items()}
    rows = {"clean": clean[:SHOWN], **{n: pictures[n][:SHOWN].numpy() for n in ("noisy", "ae", "dae")}}
    return {**found, "corruption": dae.config.corruption, "gain": found["dae"] - found["noisy"]}, rows


def measure_linear(data: Digits, effort: Effort) -> dict[str, float]:
    """The linear autoencoder's decoder against the principal components, and the error of both."""
    model = train(data, "ae", **LINEAR, steps=effort.steps, seed=effort.seed)
    pixels = data.train.numpy().astype(np.float64)
    _, sizes, components = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    count = model.config.latent
    decoded = model.decode(model.encode(data.train)).numpy()
    return {
        "largest_angle": measures.largest_angle(model.decoder[0].weight.numpy(), components[:count].T),
        "largest_variance": float(np.square(sizes[0]) / len(pixels)),
        "error": float(np.square(decoded - pixels).sum(1).mean()),
        "error_of_components": float(np.square(sizes[count:]).sum() / len(pixels)),
    }


def make_checks(body: dict[str, Any]) -> list[Check]:
    """The bars."""
    family, sweep, cure = body["family"], body["sweep"], body["cure"]
    bar = family["ae"]["accepted"] + COMPLETENESS_MARGIN
    checks = [
        Check(
            f"draws of {kind} accepted, {100 * COMPLETENESS_MARGIN:g} points above ae's",
            f"{100 * family[kind]['accepted']:.1f} %, at least {100 * bar:.1f} %",
            family[kind]["accepted"] >= bar,
        )
        for kind in ("vae", "wae")
    ]
    right = family["cvae"]["right_labels"]
    name = f"cvae draws the digit asked for, at least {100 * RIGHT_LABELS:g} %"
    checks.append(Check(name, f"{100 * right:.1f} %", right >= RIGHT_LABELS))
    for row, state in ((sweep[0], POINT), (sweep[-1], COLLAPSED)):
        name = f"C = {row['weight']:g} is found to be {state}"
        checks.append(Check(name, f"{row['state']}, KL {row['kl']:.3g} nats", row["state"] == state))
    for before, after in zip(cure["constant"], cure["annealed"], strict=True):
        cured = before["state"] == COLLAPSED != after["state"]
        cured = cured and after["kl"] >= CURED_KL and after["elbo"] > before["elbo"]
        states = [f"{row['state']} (KL {row['kl']:.3g})" for row in (before, after)]
        name = f"annealing cures a collapse, KL at least {CURED_KL:g}, seed {before['seed']}"
        checks.append(Check(name, " -> ".join(states), cured))
    angle = body["linear"]["largest_angle"]
    name = f"linear ae is PCA within {LARGEST_ANGLE:g} rad"
    checks.append(Check(name, f"{angle:.2g} rad", angle < LARGEST_ANGLE))
    gain = body["denoising"]["gain"]
    checks.append(Check("dae takes off noise", f"{gain:+.2f} dB", gain > 0))
    area = float(np.mean([row["elbo"] for row in body["anomaly"].values()]))
    name = f"anomalies by ELBO, mean area at least {LEAST_AREA:g}"
    checks.append(Check(name, f"{area:.3f}", area >= LEAST_AREA))
    return checks


def show(body: dict[str, Any]) -> None:
    """The figures as text."""
    controls = body["controls"]
    print(f"judge: {100 * controls['judge_accuracy']:.1f} % of test pictures right; it accepts")
    for name, share in controls["accepted"].items():
        print(f"  {name:<26} {100 * share:5.1f} %")
    print(
        "\neight numbers   PSNR  accepted draws  digits  largest jump, median / most  on the way  active"
    )
    for kind, row in body["family"].items():
        jump = row["largest_jump"]
        print(
            f"  {kind:<11} {row['psnr']:7.2f} {100 * row['accepted']:13.1f} % "
            f"{row['label_perplexity']:7.2f} {jump['median']:19.2f} / {jump['most']:.2f} "
            f"{100 * row['accepted_on_the_way']:11.1f} % {row['active_units']:6d}"
        )
    ae = body["family"]["ae"]
    for name in ("standard_normal", "whole_covariance"):
        print(f"  ae from {name.replace('_', ' ')}: {100 * ae[name]['accepted']:.1f} %")
    groups = body["family"]["hvae"]["kl_of_groups"]
    print(f"  hvae, KL of its groups: {', '.join(f'{kl:.2f}' for kl in groups)} nats")
    print("\ntwo numbers     PSNR  accepted draws  digits")
    for kind, row in body["plane"].items():
        print(
            f"  {kind:<11} {row['psnr']:7.2f} {100 * row['accepted']:13.1f} % "
            f"{row['label_perplexity']:7.2f}"
        )
    print("\nvae          reconstruction      KL     ELBO   PSNR  accepted  active  state")
    cure = body["cure"]
    rows = {f"C = {row['weight']:g}": row for row in body["sweep"]}
    for name in ("constant", "annealed"):
        rows |= {f"{name}, {row['seed']}": row for row in cure[name]}
    rows["C = 10, ann."] = cure["annealed, weight too large"]
    for name, row in rows.items():
        print(
            f"  {name:<14} {row['reconstruction']:10.2f} {row['kl']:7.2f} {row['elbo']:8.2f} "
            f"{row['psnr']:6.2f} {100 * row['accepted']:7.1f} % {row['active_units']:7d}  {row['state']}"
        )
    print("\nanomalies, area under the ROC by ELBO / by reconstruction alone")
    print(
        "  "
        + "  ".join(f"{n}: {r['elbo']:.3f}/{r['reconstruction']:.3f}" for n, r in body["anomaly"].items())
    )
    noise = body["denoising"]
    print(
        "\ndenoising, PSNR  "
        + "  ".join(f"{n} {noise[n]:.2f}" for n in ("noisy", "clipped", "ae", "dae"))
    )
    linear = body["linear"]
    print(f"linear ae: error {linear['error']:.5f}, PCA's {linear['error_of_components']:.5f}\n")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="latents.py", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the figures, PNG")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--model", type=Path, metavar="FILE", help="store the cvae there")
    parser.add_argument("--seed", type=int, default=0, help="of every training (default 0)")
    parser.add_argument("--quick", action="store_true", help="hardly any training: no bar will hold")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run with the arguments after the script's name; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error("--seed must not be negative")
    try:
        # All that can be missing is looked for before the long part.
        import matplotlib  # noqa: F401
        import sklearn
    except ModuleNotFoundError as error:
        parser.error(f"{error}: pip install 'vqcodec[bench]'")
    for path in (args.json, args.model):
        if path is not None and not path.parent.is_dir():
            parser.error(f"{path}: there is no such folder")
    effort = dataclasses.replace(QUICK if args.quick else Effort(), seed=args.seed)
    started = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    data = load_data()
    body: dict[str, Any] = {"scikit-learn": sklearn.__version__}
    body["controls"] = measure_controls(data, effort)
    body["plane"], planes = measure_plane(data, effort)
    body["family"], rows, cvae = measure_family(data, effort)
    body["sweep"] = measure_sweep(data, effort)
    body["cure"] = measure_cure(data, effort)
    body["anomaly"] = measure_anomaly(data, effort)
    body["denoising"], denoised = measure_denoising(data, effort)
    body["linear"] = measure_linear(data, effort)
    if args.model:
        try:
            save_digits(cvae, args.model, overwrite=True)
        except VqcError as error:
            parser.error(str(error))
    figures.draw_planes(args.out / "planes.png", planes)
    figures.draw_rows(args.out / "draws.png", rows["draws"], note="Draws")
    figures.draw_rows(args.out / "lines.png", rows["lines"], note="From one test picture to another")
    figures.draw_sweep(args.out / "sweep.png", body["sweep"])
    areas = {digit: row["elbo"] for digit, row in body["anomaly"].items()}
    figures.draw_bars(args.out / "anomaly.png", areas, label="area under the ROC", chance=0.5)
    figures.draw_rows(args.out / "denoising.png", denoised, note="Noise and what is made of it")
    body["seconds"] = round(time.perf_counter() - started, 1)
    show(body)
    checks = make_checks(body)
    for check in checks:
        print(f"{check.status}  {check.name}: {check.value}")
    print(f"{body['seconds']:.0f} s")
    if args.json:
        body["checks"] = [{"check": x.name, "value": x.value, "status": x.status} for x in checks]
        write_json(args.json, {**record("latents", argv, "cpu"), **body})
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
