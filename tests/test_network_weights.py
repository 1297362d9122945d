"""Weights of one byte: small files that change next to nothing, and refusal of what does not fit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vqcodec.errors import ModelFileError
from vqcodec.model import load_model
from vqcodec.network_weights import load_weights, store_weights
from vqcodec.transform import Synthesis, TransformConfig

CONFIG = TransformConfig(channels=6, synthesis_widths=(5, 4, 3), synthesis_depths=(1, 1, 1), rates=8)


def _network(seed: int = 0) -> Synthesis:
    torch.manual_seed(seed)
    network = Synthesis(CONFIG)
    nn.init.normal_(network.leave.weight)
    return network


def _loaded(stored: dict[str, Tensor]) -> Synthesis:
    with torch.device("meta"):
        network = Synthesis(CONFIG)
    load_weights(network, stored)
    return network


def test_kernels_are_rounded_by_half_a_step_and_all_else_to_float16() -> None:
    network = _network()
    with torch.no_grad():
        network.leave.weight[0] = 0
        network.leave.weight[1] *= 1e-3
        network.leave.weight[2] *= 1e3
    stored = store_weights(network)
    loaded = _loaded(stored).state_dict()
    for name, value in network.state_dict().items():
        if f"{name}.step" in stored:
            assert value.ndim == 4 and stored[name].dtype == torch.int8
            step = stored[f"{name}.step"].float()[:, None, None, None]
            assert ((loaded[name] - value).abs() <= 0.57 * step).all(), name
            largest = value.abs().amax((1, 2, 3))
            assert (stored[f"{name}.step"].float() * 127 <= 1.01 * largest + 0.01).all(), name
        else:
            assert torch.equal(loaded[name], value.half().float()), name
    assert stored["linear.weight"].dtype == torch.float16
    assert {name for name in stored if name.endswith(".step")} >= {
        "enter16.weight.step",
        "leave.weight.step",
    }


def test_storing_again_gives_the_same() -> None:
    first = store_weights(_network())
    second = store_weights(_loaded(first))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_reader_takes_float16_too() -> None:
    network = _network()
    loaded = _loaded({name: value.half() for name, value in network.state_dict().items()})
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())


def test_a_model_keeps_its_code_id(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model)
    (tmp_path / "again.safetensors").write_bytes(model.to_bytes())
    assert load_model(tmp_path / "again.safetensors").code_id == model.code_id


FAULTS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "no step": lambda t: t.pop("leave.weight.step"),
    "no weight": lambda t: t.pop("leave.weight"),
    "a step too many": lambda t: t.update({"leave.bias.step": torch.ones(48).half()}),
    "a step of nothing": lambda t: t.update({"nothing.step": torch.ones(48).half()}),
    "another number of steps": lambda t: t.update({"leave.weight.step": torch.ones(47).half()}),
    "steps with two sides": lambda t: t.update({"leave.weight.step": torch.ones(48, 1).half()}),
    "a step of float32": lambda t: t.update({"leave.weight.step": torch.ones(48)}),
    "a step that is not finite": lambda t: t.update(
        {"leave.weight.step": torch.full((48,), torch.inf).half()}
    ),
    "another type": lambda t: t.update({"leave.weight": t["leave.weight"].to(torch.uint8)}),
    "another shape": lambda t: t.update({"leave.weight": t["leave.weight"][:, :1]}),
    "no scale": lambda t: t.update({"scale": torch.zeros(6).half()}),
    "a single number": lambda t: t.update(
        {"leave.weight": torch.tensor(1, dtype=torch.int8), "leave.weight.step": torch.tensor(1.0).half()}
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused(fault: str) -> None:
    stored = store_weights(_network())
    FAULTS[fault](stored)
    with pytest.raises(ModelFileError):
        _loaded(stored)
