"""Data: registered datasets, mappers, and batches that depend on the seed only."""

from .datasets import builtin  # noqa: F401  (registers the datasets)
from .datasets.builtin import register_digit_scenes
from .datasets.captioned import captioned_images
from .datasets.custom import register_custom_datasets
from .datasets.formats import register_captions, register_image_folder, register_proposals, register_text_lines
from .datasets.phrases import register_phrases
from .datasets.questions import register_questions
from .datasets.records import load_dataset, same_images
from .datasets.segments import register_class_maps, register_panoptic
from .datasets.shards import register_image_text_shards
from .datasets.text_shards import register_text_shards
from .datasets.texts import load_captions, load_texts
from .datasets.videos import register_clips
from .loading.build import build_task_train_loader, build_test_loader, training_images_of_captions
from .mappers.images import ImageMapper

__all__ = [
    "ImageMapper",
    "build_task_train_loader",
    "build_test_loader",
    "captioned_images",
    "load_captions",
    "load_dataset",
    "load_texts",
    "register_captions",
    "register_class_maps",
    "register_clips",
    "register_custom_datasets",
    "register_digit_scenes",
    "register_image_folder",
    "register_image_text_shards",
    "register_panoptic",
    "register_phrases",
    "register_proposals",
    "register_questions",
    "register_text_lines",
    "register_text_shards",
    "same_images",
    "training_images_of_captions",
]
