"""The networks of the digits: layers that are all connected, and heads that give a Gaussian."""

from collections.abc import Sequence

from torch import Tensor, nn

from vqcodec.transform import LOG_VARIANCE_MAX, LOG_VARIANCE_MIN

# Spread of the log-variances at the start, through that of the weights of their layer.
_SMALL = 0.01


def make_layers(sizes: Sequence[int], *, bounded: bool = False) -> nn.Sequential:
    """Linear layers between these sizes, SiLU between them; bounded: a logistic function at the end."""
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        if number:
            layers.append(nn.SiLU())
        layers.append(nn.Linear(inputs, outputs))
    if bounded:
        layers.append(nn.Sigmoid())
    return nn.Sequential(*layers)


class GaussianHead(nn.Module):
    """(N, sizes[0]) -> mean and log-variance, (N, sizes[-1]) each.

    start: the log-variance before training, with next to no spread over the pictures.
    """

    def __init__(self, sizes: Sequence[int], *, start: float) -> None:
        super().__init__()
        self.mean = make_layers(sizes)
        self.log_variance = make_layers(sizes)
        last = self.log_variance[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=_SMALL)
        nn.init.constant_(last.bias, start)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Log-variances are clamped as in mode vae."""
        return self.mean(inputs), self.log_variance(inputs).clamp(LOG_VARIANCE_MIN, LOG_VARIANCE_MAX)
