"""Samplers for training and inference on one or more ranks (upstream ``detectron2.data.samplers``)."""

from .distributed_sampler import (
    InferenceSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

__all__ = [
    "InferenceSampler",
    "RepeatFactorTrainingSampler",
    "TrainingSampler",
]
