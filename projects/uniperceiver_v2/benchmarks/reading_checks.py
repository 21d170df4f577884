"""What the checks of files cost: annotations as many as COCO 2017 has, and a checkpoint of 500 MB.

    python projects/uniperceiver_v2/benchmarks/reading_checks.py [--quick]

118,000 images have 860,000 objects with a box and a polygon of 20 points each. They are read with the checks of
annotations and without. The checkpoint is loaded by ``read_tensors`` with a comparison of its checksums and a search
for values that are not finite, and by ``torch.load`` alone; as safetensors, by ``load_file`` alone. All are loaded into
a model of the same size. With --quick all are a tenth as large.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from safetensors.torch import load_file, save_file

from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.reading import CHECKSUM, read_tensors, require_finite, tensors_checksum

IMAGES, OBJECTS, POINTS, HEIGHT, WIDTH = 118_000, 860_000, 20, 480, 640
TENSORS, VALUES = 100, 1_250_000  # float32: 500 MB
NAME = "benchmark_reading_checks"


def write_annotations(path: Path, images: int, objects: int) -> None:
    generator = np.random.default_rng(0)
    outlines = generator.uniform(0, HEIGHT, (1000, 2 * POINTS)).round(2).tolist()
    entries = [{"id": i, "file_name": f"{i:012d}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(images)]
    annotations = [
        {
            **{"id": i, "image_id": i % images, "category_id": 1 + i % 80, "iscrowd": 0, "area": 100.0},
            **{"bbox": [10.0, 20.0, 30.5, 40.25], "segmentation": [outlines[i % 1000]]},
        }
        for i in range(objects)
    ]
    categories = [{"id": i, "name": f"thing {i}"} for i in range(1, 81)]
    path.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": categories}))


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    share = 10 if args.quick else 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        write_annotations(path, IMAGES // share, OBJECTS // share)
        register_coco_instances(NAME, {}, str(path), folder)
        yield harness.compare(
            f"reading {OBJECTS // share:,} annotations with checks",
            lambda: load_dataset(NAME),
            lambda: DatasetCatalog.get(NAME),
            peer_name="without",
            at_most=1.3,
            fresh=True,
        )
        path.unlink()
        weights = Path(folder) / "model.pth"
        state = {f"layer{i}.weight": torch.randn(VALUES // share) for i in range(TENSORS)}
        torch.save({"model": state}, weights)

        def checked() -> None:
            loaded = read_tensors(str(weights))
            loaded = loaded.get("model", loaded)
            require_finite(loaded)
            _copy(loaded)

        def bare() -> None:
            _copy(torch.load(weights, map_location="cpu", weights_only=True)["model"])

        def _copy(loaded: dict[str, torch.Tensor]) -> None:
            for key, value in loaded.items():
                state[key].copy_(value)

        yield harness.compare(
            f"loading a checkpoint of {weights.stat().st_size / 1e6:.0f} MB with checks",
            checked,
            bare,
            peer_name="torch.load",
            at_most=1.2,
            fresh=True,
        )
        weights.unlink()
        weights = Path(folder) / "model.safetensors"
        save_file(state, weights, metadata={CHECKSUM: tensors_checksum(state)})
        yield harness.compare(
            f"loading safetensors of {weights.stat().st_size / 1e6:.0f} MB with checks",
            checked,
            lambda: _copy(load_file(weights)),
            peer_name="load_file",  # which copies nothing: it maps the file
        )


if __name__ == "__main__":
    harness.main(__doc__, rows)
