"""What each stage of a checkpoint still knows of a scene, and each task's share of the gradient in each part.

    python projects/uniperceiver_v2/experiments/probes.py output/digit_scenes_tiny/model_final.pth
        [--config-file FILE] [--fit digit_scenes_train] [--test digit_scenes_test] [--scenes 600] [--batches 8]

A probe is a linear classifier on the features of one stage. Its accuracy says how much of a property is left there.
Probes are fitted on scenes of one dataset and tested on those of another. Prints three Markdown tables: probes of
objects, probes of whole scenes, and the gradient of each task in each part. docs/probes.md tells how to read them.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import uniperceiver_v2  # noqa: F401  (registers the model and the datasets)
from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.config import load_config, sampling_ratios
from uniperceiver_v2.data import build_task_train_loader, load_dataset
from uniperceiver_v2.data.datasets.records import candidate_names
from uniperceiver_v2.data.mappers.images import DetectionMapper
from uniperceiver_v2.evaluation.digit_scenes.claims import cell_of
from uniperceiver_v2.evaluation.digit_scenes.facts import Scene, SceneFacts, Thing
from uniperceiver_v2.evaluation.digit_scenes.parser import COLOURS, NAMES
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.modeling.image_encoder.boxes import cxcywh_to_xyxy
from uniperceiver_v2.modeling.model import UniPerceiver
from uniperceiver_v2.solver import gradient_norm

BATCH_SIZE = 16
MIN_IOU = 0.5  # of a proposal with the object that it stands for
CHANCE = "chance"
# By the beginnings of parameters' names; the first that fits counts.
PARTS = {
    "backbone": ("image_encoder.backbone.",),
    "region network": ("image_encoder.",),  # with the fusion and the global tokens
    "text encoder": ("text_encoder.",),
    "decoder": ("decoder.", "likelihood."),
}
OF_OBJECTS: dict[str, Callable[[Thing], object]] = {
    "colour": lambda thing: thing.colour,
    "digit": lambda thing: thing.name,
    "place": cell_of,
}


class Features(NamedTuple):
    """What a model makes of some scenes.

    Attributes:
        objects: by stage, the features [K,d] of K objects and the objects themselves.
        scenes: by stage, one feature [N,d] of each scene.
        facts: of the N scenes.
    """

    objects: dict[str, tuple[np.ndarray, list[Thing]]]
    scenes: dict[str, np.ndarray]
    facts: list[Scene]


def load_model(cfg: CfgNode) -> UniPerceiver:
    """The model with the weights of the checkpoint that ``MODEL.WEIGHTS`` names."""
    model = build_model(cfg)
    AtomicCheckpointer(model, cfg.OUTPUT_DIR).load(cfg.MODEL.WEIGHTS)
    return model


@torch.no_grad()
def features_of(cfg: CfgNode, model: UniPerceiver, dataset: str, count: int) -> Features:
    """Features of a dataset's first scenes. Crowds are no objects."""
    model.eval()
    mapper = DetectionMapper(cfg, "detection", candidate_names(dataset), is_train=False)
    facts = SceneFacts(MetadataCatalog.get(dataset).json_file)
    samples = [mapper(record) for record in load_dataset(dataset)[:count]]
    of_objects: dict[str, list[Tensor]] = defaultdict(list)
    objects: dict[str, list[Thing]] = defaultdict(list)
    of_scenes: dict[str, list[Tensor]] = defaultdict(list)
    for start in range(0, len(samples), BATCH_SIZE):
        batch = samples[start : start + BATCH_SIZE]
        scenes = facts.of(batch)
        for stage, feature in _scene_features(model, batch):
            of_scenes[stage].append(feature)
        for stage, feature, thing in _object_features(model, batch, scenes):
            of_objects[stage].append(feature)
            objects[stage].append(thing)
    return Features(
        {stage: (torch.stack(found).cpu().numpy(), objects[stage]) for stage, found in of_objects.items()},
        {stage: torch.cat(found).cpu().numpy() for stage, found in of_scenes.items()},
        facts.of(samples),
    )


def _scene_features(model: UniPerceiver, batch: Sequence[dict]) -> Iterator[tuple[str, Tensor]]:
    """Stages and one feature [B,d] of each image."""
    images = model.preprocess(batch)
    for stage, features in _maps(model, images.tensor):
        yield stage, features.mean((2, 3))
    encoding, _ = model.image_encoder(images)
    yield "proposal tokens, mean", encoding.proposal_tokens.mean(1)
    yield "global tokens, mean", encoding.mean_global_token()
    yield "global tokens", encoding.global_tokens.flatten(1)
    yield "decoded image (<SPE>)", model.decode_image(encoding)


def _object_features(
    model: UniPerceiver, batch: Sequence[dict], scenes: Sequence[Scene]
) -> Iterator[tuple[str, Tensor, Thing]]:
    """Stages, features [d] and the objects that they are of: from maps, the mean in the object's box; from proposals,
    that of the proposal that overlaps it most, if one does by MIN_IOU."""
    images = model.preprocess(batch)
    encoding, _ = model.image_encoder(images)
    decoded = model.decode_proposals(encoding)
    maps = list(_maps(model, images.tensor))
    for index, (sample, scene) in enumerate(zip(batch, scenes)):
        size = torch.tensor([sample["width"], sample["height"]] * 2, dtype=torch.float32)
        things = [thing for thing in scene if not thing.is_crowd]
        boxes = torch.tensor([[t.box[0], t.box[1], t.box[0] + t.box[2], t.box[1] + t.box[3]] for t in things]) / size
        boxes = boxes.to(model.device)
        shown = torch.tensor(images.image_sizes[index]) / torch.tensor(images.tensor.shape[-2:])  # (y, x) share
        for stage, features in maps:
            for feature, thing in zip(
                mean_in_boxes(features[index], boxes * shown.flip(0).repeat(2).to(boxes)), things
            ):
                yield stage, feature, thing
        overlaps = pairwise_iou(Boxes(boxes), Boxes(cxcywh_to_xyxy(encoding.proposals.boxes[index])))
        for (overlap, best), thing in zip(zip(*overlaps.max(1)), things):
            if overlap >= MIN_IOU:
                yield "q_sem", encoding.proposals.semantics[index, best], thing
                yield "proposal token", encoding.proposal_tokens[index, best], thing
                yield "decoded proposal", decoded[index, best], thing


def _maps(model: UniPerceiver, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    shapes = model.image_encoder.backbone.output_shape()
    maps = model.image_encoder.backbone(images)
    for name in sorted(maps, key=lambda name: shapes[name].stride):
        yield f"backbone {name}", maps[name]


def mean_in_boxes(features: Tensor, boxes: Tensor) -> Tensor:
    """Means [K,d] of a map [d,h,w] in boxes [K,4] (x0, y0, x1, y1 in 0..1 of the map), cells weighed by the part of
    them that a box covers."""
    along_x, along_y = (
        _covered(boxes[:, axis], boxes[:, 2 + axis], size) for axis, size in zip((0, 1), features.shape[:0:-1])
    )
    sums = torch.einsum("dhw,kh,kw->kd", features, along_y, along_x)
    return sums / (along_x.sum(1) * along_y.sum(1))[:, None]


def _covered(low: Tensor, high: Tensor, size: int) -> Tensor:
    """[K,size], the part of each cell of an axis between low and high [K]."""
    cells = torch.arange(size, device=low.device)
    return (torch.minimum(high[:, None] * size, cells + 1) - torch.maximum(low[:, None] * size, cells)).clamp(0, 1)


def probe(features: np.ndarray, labels: Sequence, test_features: np.ndarray, test_labels: Sequence) -> float:
    """Accuracy in percent of a linear classifier; the label itself, where training has only one."""
    names = {label: index for index, label in enumerate(dict.fromkeys([*labels, *test_labels]))}
    known, wanted = (np.array([names[label] for label in some]) for some in (labels, test_labels))
    if len(set(known)) == 1:
        return 100 * float((wanted == known[0]).mean())
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    return 100 * float(classifier.fit(features, known).score(test_features, wanted))


def most_frequent(labels: Sequence, test_labels: Sequence) -> float:
    """Accuracy in percent of saying what is most frequent in training."""
    best = max(dict.fromkeys(labels), key=list(labels).count)
    return 100 * float(np.mean([label == best for label in test_labels]))


def object_probes(fit: Features, test: Features) -> dict[str, dict[str, float]]:
    """Accuracies by stage and property; "found" is the percentage of the test objects that the stage has."""
    objects, all_objects = (next(iter(features.objects.values()))[1] for features in (fit, test))  # a map has all
    rows: dict[str, dict[str, float]] = {}
    for stage, (features, things) in fit.objects.items():
        if stage not in test.objects:
            continue
        test_features, test_things = test.objects[stage]
        rows[stage] = {
            name: probe(features, [*map(label, things)], test_features, [*map(label, test_things)])
            for name, label in OF_OBJECTS.items()
        }
        rows[stage]["found"] = 100 * len(test_things) / len(all_objects)
    rows[CHANCE] = {
        name: most_frequent([*map(label, objects)], [*map(label, all_objects)]) for name, label in OF_OBJECTS.items()
    }
    return rows


def scene_probes(fit: Features, test: Features) -> dict[str, dict[str, float]]:
    """Accuracies by stage and property, each the mean over the property's questions."""
    questions, answers = questions_of_scenes(fit.facts), questions_of_scenes(test.facts)

    def row(accuracy: Callable[[Sequence, Sequence], float]) -> dict[str, float]:
        pairs = {name: zip(questions[name], answers[name]) for name in questions}
        return {name: float(np.mean([accuracy(*pair) for pair in of_name])) for name, of_name in pairs.items()}

    rows = {}
    for stage, features in fit.scenes.items():
        rows[stage] = row(lambda known, wanted, f=features, t=test.scenes[stage]: probe(f, known, t, wanted))
    return {**rows, CHANCE: row(most_frequent)}


def questions_of_scenes(scenes: Sequence[Scene]) -> dict[str, list[list]]:
    """By property, one or more questions, each with a label for every scene: how many digits there are; of each colour
    and of each digit, whether the scene shows it."""
    return {
        "count": [[sum(not thing.is_crowd for thing in scene) for scene in scenes]],
        "colours": [[any(thing.colour == colour for thing in scene) for scene in scenes] for colour in COLOURS],
        "digits": [[any(thing.name == name for thing in scene) for scene in scenes] for name in NAMES],
    }


def gradient_parts(cfg: CfgNode, model: UniPerceiver, batches: int) -> dict[str, dict[str, float]]:
    """By task, ω_k · ‖g_part‖ / ‖g‖ of each part, the mean over some batches.

    This is what :class:`~uniperceiver_v2.solver.TaskBalancedAdamW` makes of a task in the long run: it is drawn with
    the probability s_k, and each of its gradients goes in with the norm ω_k / s_k.
    """
    model.train()
    parts: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[_part_of(name)].append(parameter)
    found = {}
    for task in cfg.TASKS.NAMES:
        torch.manual_seed(max(cfg.SEED, 0))
        shares = []
        for batch in itertools.islice(build_task_train_loader(cfg, task), batches):
            model.zero_grad()
            with EventStorage():
                sum(model(batch).values()).backward()
            norms = np.array([gradient_norm(parameters) for parameters in parts.values()])
            shares.append(norms / max(np.linalg.norm(norms), 1e-12))
        found[task] = dict(zip(parts, (cfg.TASKS[task].GRADIENT_WEIGHT * np.mean(shares, axis=0)).tolist()))
    model.zero_grad()
    return found


def _part_of(parameter: str) -> str:
    return next(part for part, beginnings in PARTS.items() if parameter.startswith(beginnings))


def format_table(first: str, rows: Mapping[str, Mapping[str, str]]) -> str:
    """Markdown, the columns in the order in which rows name them."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [[first, *columns], ["---", *["---:"] * len(columns)]]
    lines += [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_accuracies(first: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    return format_table(
        first, {name: {key: f"{value:.0f}" for key, value in row.items()} for name, row in rows.items()}
    )


def format_gradients(cfg: CfgNode, norms: Mapping[str, Mapping[str, float]]) -> str:
    """Each norm with its percentage of all tasks' norms in the part."""
    totals = {part: max(sum(of_task[part] for of_task in norms.values()), 1e-12) for part in PARTS}
    ratios = sampling_ratios(cfg)
    rows = {
        task: {
            "s_k": f"{ratios[task]:.2f}",
            "ω_k": f"{cfg.TASKS[task].GRADIENT_WEIGHT:g}",
            **{part: f"{norm:.2f} ({100 * norm / totals[part]:.0f}%)" for part, norm in of_task.items()},
        }
        for task, of_task in norms.items()
    }
    return format_table("task", rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", help="a checkpoint")
    parser.add_argument("--config-file", default=str(TINY_CONFIG), type=Path)
    parser.add_argument("--fit", default="digit_scenes_train", help="scenes that probes learn from")
    parser.add_argument("--test", default="digit_scenes_test", help="scenes that they are tested on")
    parser.add_argument("--scenes", type=int, default=600, help="of each of the two, at most")
    parser.add_argument("--batches", type=int, default=8, help="of each task, for its gradient; 0 leaves gradients out")
    args = parser.parse_args(arguments)
    cfg = load_config(str(args.config_file), ["MODEL.WEIGHTS", args.weights])
    model = load_model(cfg)
    fit, test = (features_of(cfg, model, dataset, args.scenes) for dataset in (args.fit, args.test))
    print(format_accuracies("objects", object_probes(fit, test)))
    print("\n" + format_accuracies("scenes", scene_probes(fit, test)), flush=True)
    if args.batches > 0:
        print("\n" + format_gradients(cfg, gradient_parts(cfg, model, args.batches)))


if __name__ == "__main__":
    main()
