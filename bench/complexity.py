"""Multiplications a pixel of a model: analysis, synthesis and prior, from the sizes of its tensors.

    python bench/complexity.py [--model NAME|PATH] [--json FILE]

Every weight is used once a position of the resolution that its layer works at; the prior's weights
once a latent position and stage in which they are used, all stages coded. The search for codewords
is the encoder's alone and counted apart. Bar: transforms and prior at most 45 kMAC/pixel a side.
"""

import argparse
import sys
from pathlib import Path

import torch

# The repository comes last, so that an installed vqcodec is the one that is looked at.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.metrics import record, write_json
from vqcodec.errors import VqcError
from vqcodec.model import Model, find_model, load_model
from vqcodec.transform import STRIDE

BAR = 45.0


def count_network(network: torch.nn.Module, latent_channels: int, *, analysis: bool) -> float:
    """MAC a pixel of a transform, by running it on one 64x64 picture and adding up its layers."""
    side, total = 64, 0.0

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, torch.nn.Conv2d):
            total += module.weight.numel() * output.shape[2] * output.shape[3]

    hooks = [m.register_forward_hook(count) for m in network.modules()]
    with torch.inference_mode():
        if analysis:
            network(torch.zeros(1, 3, side, side))
        else:
            latent = torch.zeros(1, latent_channels, side // STRIDE, side // STRIDE)
            network(latent, torch.ones(1, dtype=torch.int64))
            # The linear path is a product that no layer is called for.
            linear = network.get_submodule("linear")
            total += sum(weight.numel() for weight in linear.parameters()) * (side // STRIDE) ** 2
    for hook in hooks:
        hook.remove()
    return total / side**2


def count_prior(model: Model) -> float:
    """MAC a pixel of the prior's integer layers."""
    total = 0
    for name, tensor in model.prior.tensors.items():
        if name.endswith(".weight"):
            total += tensor.size
        elif name.endswith("window_coarse.taps"):
            total += tensor.size  # once a position
        elif name.endswith("window_same.taps"):
            total += tensor.size * (1 + len(model.config.prior.chunks))  # once a chunk
    return total / STRIDE**2


def count_search(model: Model) -> float:
    """MAC a pixel of the nearest-codeword search, all stages."""
    quantizer = model.config.quantizer
    return quantizer.stages * quantizer.codewords * quantizer.channels / STRIDE**2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="name or path of a model (default: the packaged one)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    try:
        model = load_model(find_model(args.model))
    except VqcError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    channels = model.config.transform.channels
    figures = {
        "analysis": count_network(model.analysis, channels, analysis=True) / 1000,
        "synthesis": count_network(model.synthesis, channels, analysis=False) / 1000,
        "prior": count_prior(model) / 1000,
        "search": count_search(model) / 1000,
    }
    for name, value in figures.items():
        print(f"{name:10} {value:7.2f} kMAC/pixel")
    sides = {
        "encoder": figures["analysis"] + figures["prior"],
        "decoder": figures["synthesis"] + figures["prior"],
    }
    for side, value in sides.items():
        verdict = "PASS" if value <= BAR else "FAIL"
        print(f"{verdict}  {side}: {value:.1f} kMAC/pixel, bar {BAR:.0f}")
    if args.json:
        head = record("complexity", sys.argv[1:], "cpu")
        write_json(args.json, {**head, "kmac_per_pixel": {**figures, **sides}})
    return int(max(sides.values()) > BAR)


if __name__ == "__main__":
    sys.exit(main())
