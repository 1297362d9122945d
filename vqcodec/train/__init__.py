"""Training of models on a folder of pictures: `train_model`, which `vqcodec train` calls."""

from vqcodec.train.run import train_model

__all__ = ["train_model"]
