"""configs/joint in miniature: every task and every setting of the recipe, with small sizes, on generated data.

    python projects/uniperceiver_v2/experiments/joint_miniature.py [--iterations 300] [--output FOLDER] [KEY VALUE ...]

Writes a tree with all training sets of the ResNet-50 model in their real formats and trains on it. The images show one
to three rectangles; an object's category is its colour, and its captions name what is there from left to right. All
sizes are small (backbone, text encoder, region network, decoder, images, batches). The rates of backbone and text
encoder are those of random weights. Everything else is the recipe's. At the end a Markdown table has each task's mean
losses by quarter of the run.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from uniperceiver_v2.config import load_config
from uniperceiver_v2.files import REPOSITORY

CONFIG = "configs/joint/uniperceiver_v2_r50.yaml"
WIDTH, HEIGHT = 128, 96
COLOURS = {"person": (220, 50, 40), "car": (50, 90, 230), "dog": (50, 190, 70), "boat": (235, 200, 40)}
TEMPLATES = ("{}.", "there is {}.", "a picture of {}.", "{} on grey ground.", "here we see {}.")
MODEL = {
    "EMBED_DIM": 128,
    "ATTENTION_POOLS": 2,
    "BACKBONE": {
        "PATH": "",
        "NORM": "GN",  # there are no statistics to freeze
        "CONFIG": {
            **{"model_type": "resnet", "layer_type": "bottleneck", "depths": [1, 1, 1, 1]},
            **{"embedding_size": 32, "hidden_sizes": [64, 128, 192, 256]},
        },
    },
    "TEXT_ENCODER": {"PATH": "configs/digit_scenes/text_encoder"},
    "DECODER": {"LAYERS": 2, "HEADS": 4, "FFN_DIM": 128},
    "REGION": {
        **{"DIM": 128, "MASK_DIM": 64, "FFN_DIM": 256, "ENCODER_LAYERS": 1, "DECODER_LAYERS": 2},
        **{"NUM_QUERIES": 30, "DENOISING_QUERIES": 12},
    },
    "CRITERION": {"NUM_POINTS": 400},
}
SOLVER = {
    **{"BASE_LR": 5e-4, "BACKBONE_MULTIPLIER": 1.0, "TEXT_ENCODER_MULTIPLIER": 1.0, "TEXT_ENCODER_LAYER_DECAY": 1.0},
    **{"WEIGHT_AVERAGING": 0.98, "AMP": {"ENABLED": False}},
}
BATCHES = {"detection": 4, "classification": 16, "captioning": 4, "retrieval": 12, "language_modelling": 24}


def formats():
    """The writers of the tests' miniatures, for images of this program's size."""
    spec = importlib.util.spec_from_file_location("miniatures", REPOSITORY / "tests/data/miniatures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.WIDTH, module.HEIGHT = WIDTH, HEIGHT
    return module


def scene(number: int) -> list[tuple[str, list[int]]]:
    """The objects of an image from left to right: names and boxes (x, y, width, height)."""
    rng = np.random.default_rng(number)
    found = []
    for _ in range(rng.integers(1, 4)):
        width, height = rng.integers(24, 52), rng.integers(20, 44)
        corner = rng.integers(0, WIDTH - width), rng.integers(0, HEIGHT - height)
        found.append((rng.choice(list(COLOURS)).item(), [int(x) for x in (*corner, width, height)]))
    return sorted(found, key=lambda one: one[1][0])


def captions(number: int) -> list[str]:
    listed = " and ".join(f"a {name}" for name, _ in scene(number))
    return [template.format(listed) for template in TEMPLATES]


def picture(number: int, only: str | None = None) -> Image.Image:
    """The image of a scene, or of one object that fills most of it."""
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(90, 150, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    draw = ImageDraw.Draw(image)
    for name, (x, y, width, height) in [(only, [20, 15, 88, 66])] if only else scene(number):
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=COLOURS[name], outline=(0, 0, 0))
    return image


def write_tree(root: Path, images: int = 60, classes: int = len(COLOURS), images_of_class: int = 12) -> None:
    """Writes all training sets of configs/joint, and the files that say which images are held out."""
    names = [*COLOURS, *(f"{name} of kind {i}" for i in range(classes) for name in COLOURS)][:classes]
    write, numbers = formats(), range(2, images + 2)
    annotate(write.write_coco(root, [1, *numbers]))
    describe(write.write_karpathy_coco(root, {"train": list(numbers), "val": [901], "test": [902]}))
    write.write_flickr30k(root, {"train": [7], "val": [8], "test": [9]})
    region_phrases(write.write_visual_genome(root, [(i, None, None) for i in numbers]))
    write.write_imagenet(root, {f"n{i:08d}": name for i, name in enumerate(names)}, images_of_class, splits=["train"])
    for path in root.rglob("*.jp*g"):
        number = int(path.stem.split("_")[-1])
        only = list(COLOURS)[int(path.parent.name[1:]) % len(COLOURS)] if "imagenet" in path.parts else None
        picture(number, only).save(path, quality=90)
    for offset, name in enumerate(("cc3m", "cc12m", "sbu", "yfcc")):
        write_shard(root / name / "00000.tar", range(1000 * (offset + 1), 1000 * (offset + 1) + images // 2))
    for offset, name in enumerate(("bookcorpus", "wikipedia")):
        (root / name).mkdir()
        lines = "".join(captions(5000 + 2 * i + offset)[i % 5] + "\n" for i in range(400))
        (root / name / "00000.txt").write_text(lines)


def annotate(path: Path) -> None:
    """Puts the scenes' objects into a file of instances. Image 1 keeps one of each category, as training asks for."""
    content = json.loads(path.read_text())
    ids = {category["name"]: category["id"] for category in content["categories"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]
    for image in content["images"][1:]:
        for name, (x, y, w, h) in scene(image["id"]):
            outline = [float(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]
            number = len(content["annotations"]) + 10**7
            annotation = {"id": number, "image_id": image["id"], "category_id": ids[name], "bbox": [x, y, w, h]}
            content["annotations"].append(annotation | {"area": w * h, "segmentation": [outline], "iscrowd": 0})
    path.write_text(json.dumps(content))


def describe(path: Path) -> None:
    content = json.loads(path.read_text())
    for image in content["images"]:
        for sentence, text in zip(image["sentences"], captions(image["cocoid"]), strict=True):
            sentence |= {"raw": text, "tokens": text.strip(".").split()}
    path.write_text(json.dumps(content))


def region_phrases(path: Path) -> None:
    content = json.loads(path.read_text())
    for image in content:
        first = image["regions"][0]
        image["regions"] = [
            first | {"region_id": 10 * image["id"] + n, "phrase": f"a {name}", "x": x, "y": y, "width": w, "height": h}
            for n, (name, (x, y, w, h)) in enumerate(scene(image["id"]))
        ]
    path.write_text(json.dumps(content))


def write_shard(path: Path, numbers: range) -> None:
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            buffer = io.BytesIO()
            picture(number).save(buffer, "jpeg", quality=90)
            for suffix, content in (("jpg", buffer.getvalue()), ("txt", captions(number)[number % 5].encode())):
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def settings(iterations: int, output: Path) -> dict[str, Any]:
    """The ResNet-50 configuration with small sizes, as the content of a configuration file."""
    tasks = load_config(CONFIG, datasets=False).TASKS
    batches = {name: {"KIND": tasks[name].KIND, "IMS_PER_BATCH": BATCHES[tasks[name].KIND]} for name in tasks.NAMES}
    for node in batches.values():
        if node["KIND"] == "detection":
            node["JITTER_SIZE"] = 96
        elif node["KIND"] != "language_modelling":
            node["IMAGE_SIZE"] = 64
    schedule = {"MAX_ITER": iterations, "WARMUP_ITERS": max(1, iterations // 20), "CHECKPOINT_PERIOD": iterations}
    return {
        "_BASE_": str(REPOSITORY / CONFIG),
        "MODEL": {"UNIPERCEIVER_V2": MODEL},
        "INPUT": {"MIN_SIZE_TRAIN": [96]},
        "TASKS": batches,
        "SOLVER": SOLVER | schedule,
        "DATALOADER": {"NUM_WORKERS": 0},
        "DATASETS": {"TEST": []},
        "OUTPUT_DIR": str(output),
    }


def table(metrics: Path, iterations: int, parts: int = 4) -> str:
    """Each task's mean total loss in the parts of a run, from metrics.json."""
    rows: dict[str, list[list[float]]] = {}
    for line in map(json.loads, metrics.read_text().splitlines()):
        part = min(parts - 1, parts * line["iteration"] // iterations)
        for key, value in line.items():
            if key.endswith("/total_loss"):
                rows.setdefault(key.rpartition("/")[0], [[] for _ in range(parts)])[part].append(value)
    bounds = [f"{iterations * n // parts} to {iterations * (n + 1) // parts}" for n in range(parts)]
    lines = [f"| task | {' | '.join(bounds)} |", "|---|" + "---:|" * parts]
    for name, of_parts in sorted(rows.items()):
        cells = (f"{statistics.mean(values):.2f}" if values else "" for values in of_parts)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("output/joint_miniature"))
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    data = args.output / "datasets"
    if not data.is_dir():
        write_tree(data)
    config = args.output / "miniature.yaml"
    config.write_text(yaml.safe_dump(settings(args.iterations, args.output)))
    program = [sys.executable, str(REPOSITORY / "projects/uniperceiver_v2/train_net.py"), "--config-file", str(config)]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(data.resolve())}
    subprocess.run([*program, *args.options], env=environment, check=True)
    print(table(args.output / "metrics.json", args.iterations))


if __name__ == "__main__":
    main()
