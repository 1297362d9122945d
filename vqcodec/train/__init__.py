"""Training of models on a folder of pictures: `train_model` and, for several modes, `train_models`,
which `vqcodec train` calls."""

from vqcodec.train.run import train_model, train_models
from vqcodec.train.settings import ObjectiveConfig

__all__ = ["ObjectiveConfig", "train_model", "train_models"]
