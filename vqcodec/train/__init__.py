"""Training of models on a folder of pictures: `train_model`, which `vqcodec train` calls."""

from vqcodec.train.run import train_model
from vqcodec.train.settings import ObjectiveConfig

__all__ = ["ObjectiveConfig", "train_model"]
