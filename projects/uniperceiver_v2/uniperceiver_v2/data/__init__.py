"""Data: registered datasets, mappers, and batches that depend on nothing but the seed."""

from .datasets import builtin  # noqa: F401  (registers the datasets)
from .datasets.builtin import register_digit_scenes
from .datasets.formats import register_captions, register_image_folder, register_text_lines
from .datasets.records import load_dataset
from .datasets.shards import register_image_text_shards
from .loading.build import (
    KIND_BY_EVALUATOR,
    TEST_DATA,
    TRAINING_DATA,
    build_task_train_loader,
    build_test_loader,
    training_images_of_captions,
)
from .mappers.images import ImageMapper

__all__ = [
    "KIND_BY_EVALUATOR",
    "TEST_DATA",
    "TRAINING_DATA",
    "ImageMapper",
    "build_task_train_loader",
    "build_test_loader",
    "load_dataset",
    "register_captions",
    "register_digit_scenes",
    "register_image_folder",
    "register_image_text_shards",
    "register_text_lines",
    "training_images_of_captions",
]
