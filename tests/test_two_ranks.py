"""Losses and gradients of divided batches equal those of the whole batch.

Two ranks with half a batch each: the mean over ranks. Parts of a batch: the sum, weighted by their loss counts. All is
computed in float64, so that only rounding may differ.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from uniperceiver_v2.modeling.texts_in_parts import TextsInParts
from uniperceiver_v2.tasks import RETRIEVAL, RetrievalTask

NAMES = ("zero", "one", "two", "three", "seven")
TEXTS = (
    "a red seven and two blue threes",
    "four",
    "two nines above a one",
    "the digits three and four and a green two",
)
BOXES = ((4, 6, 28, 30), (36, 20, 60, 56), (8, 34, 30, 60))
# The number of objects in each of four images. Each rank has two of the images.
OBJECTS = {
    "detection": (2, 3, 0, 1),
    "objects on one rank": (1, 2, 0, 0),
    "one object in all": (1, 0, 0, 0),
    "nothing to detect": (0, 0, 0, 0),
}
# Whose candidates all ranks have: five names, or a vocabulary of 509 words.
SPLIT = ("detection", "classification", "captioning", "language modelling")
TOLERANCE = 1e-9  # of a parameter's largest gradient
Outcome = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, float]]  # losses, gradients, accuracies


def steady_numbers(*shape, device=None, **_) -> torch.Tensor:
    """Replaces random numbers in 0..1 by numbers that depend on the position in all dimensions but the first. So an
    object gets the same numbers on any rank and with any neighbours."""
    shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    places = torch.zeros(shape[1:], dtype=torch.float64)
    for dimension, size in enumerate(shape[1:]):
        index = torch.arange(size, dtype=torch.float64) * (12.9898 + 65.243 * dimension)
        places = places + index.view(-1, *[1] * (len(shape) - 2 - dimension))
    return (torch.sin(places + 1) * 43758.5453).remainder(1).expand(shape).clone()


@contextlib.contextmanager
def float64_without_chance() -> Iterator[None]:
    """Computations that use float32 for precision use float64."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with (
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        mock.patch.object(torch, "rand", steady_numbers),
        mock.patch.object(torch.Tensor, "uniform_", lambda x: x.copy_(steady_numbers(*x.shape))),
        mock.patch.object(torch, "randint", lambda low, high, size, **_: (steady_numbers(size) * high).floor()),
    ):
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def outcome(model, batch: list[dict], weight: float = 1.0) -> Outcome:
    """Losses and gradients of a batch, times ``weight``."""
    model.zero_grad()
    with EventStorage() as storage:
        losses = {name: weight * loss for name, loss in model(batch).items()}
        accuracies = {name: value for name, (value, _) in storage.latest().items()}
    sum(losses.values()).backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    return {name: loss.detach() for name, loss in losses.items()}, gradients, accuracies


def halves(batch: list[dict]) -> tuple[list[dict], list[dict]]:
    return batch[: len(batch) // 2], batch[len(batch) // 2 :]


def combine(first: Outcome, second: Outcome, weight: float = 1.0) -> tuple[dict, dict]:
    """Sums of losses and of gradients, times ``weight``."""
    return tuple({name: weight * (value + b[name]) for name, value in a.items()} for a, b in zip(first[:2], second[:2]))


def worst_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference relative to the largest entry of the parameter's gradient. A gradient that is zero
    apart from rounding is compared with a millionth of the largest entry of all."""
    scale = max(x.abs().max().item() for x in expected.values())
    return max(
        (found[n] - x).abs().max().item() / max(x.abs().max().item(), 1e-6 * scale, 1e-300) for n, x in expected.items()
    )


def image() -> torch.Tensor:
    return torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)


def scene(count: int) -> dict:
    masks = torch.zeros(count, 64, 64, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, BOXES):
        mask[y0:y1, x0:x1] = True
    instances = Instances((64, 64), gt_boxes=Boxes(torch.tensor(BOXES, dtype=torch.float32)[:count]))
    instances.gt_classes, instances.gt_masks = torch.tensor([4, 1, 2])[:count], BitMasks(masks)
    return {"task": "scenes", "image": image(), "candidates": NAMES, "instances": instances}


PHRASES = (
    {"red seven": [0], "all digits": [0, 1], "a blue nine": []},
    {"the largest digit": [2], "red seven": [0, 1]},
    {"nothing at all": []},
    {"all digits": [0], "the largest digit": [0], "one above a two": []},
)


def phrased(item: dict, phrases: dict[str, list[int]]) -> dict:
    """A scene asked for phrases, each with the objects that it means."""
    objects = torch.zeros(len(phrases), len(item["instances"]), dtype=torch.bool)
    for row, meant in enumerate(phrases.values()):
        objects[row, meant] = True
    return {**item, "task": "phrases", "phrases": tuple(phrases), "phrase_objects": objects}


def masked_text(token_ids: torch.Tensor, count: int, mask_id: int) -> dict:
    labels = torch.full_like(token_ids, -100)
    labels[1 : count + 1] = token_ids[1 : count + 1]
    return {"task": "corpus", "token_ids": token_ids.masked_fill(labels >= 0, mask_id), "labels": labels}


@pytest.fixture
def model(tiny_model):
    """In float64 and training mode, with random weights in every part."""
    with torch.no_grad():
        for part in (tiny_model.decoder, tiny_model.text_encoder):
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tiny_model.tasks["alone"] = RetrievalTask(replace(RETRIEVAL.task_of("alone").settings, gather_features=False))
    scenes = tiny_model.tasks["scenes"]
    tiny_model.tasks["centred"] = copy.copy(scenes)
    tiny_model.tasks["centred"].settings = replace(scenes.settings, centred_states=True)
    return tiny_model.double().train()


@pytest.fixture
def batches(model) -> dict[str, list[dict]]:
    """Four inputs for each kind. The halves of a batch have different loss counts."""
    encoder = model.text_encoder
    ids = [torch.tensor(encoder.tokenizer(text)["input_ids"]) for text in TEXTS]
    captions = ([ids[0], ids[3]], [ids[2]], [ids[1]], [ids[1], ids[1]])
    paired = (ids[0], ids[1], ids[2], ids[0])  # the same caption on both ranks
    pairs = [
        {"task": "pairs", "image": image(), "file_name": f"{i}", "caption_token_ids": [x]} for i, x in enumerate(paired)
    ]
    return {
        **{name: [scene(count) for count in counts] for name, counts in OBJECTS.items()},
        "centred states": [{**scene(count), "task": "centred"} for count in OBJECTS["detection"]],
        "classification": [
            {"task": "digits", "image": image(), "candidates": NAMES, "label": label} for label in (3, 1, 4, 1)
        ],
        "captioning": [{"task": "captions", "image": image(), "caption_token_ids": x} for x in captions],
        "grounding": [phrased(scene(count), own) for count, own in zip(OBJECTS["detection"], PHRASES)],
        "phrases on one rank": [
            phrased(scene(count), own) for count, own in zip((2, 3, 1, 2), (*PHRASES[:2], {}, {}), strict=True)
        ],
        "language modelling": [masked_text(x, n, encoder.mask_id) for x, n in zip(ids, (4, 1, 0, 2))],
        "masks on one rank": [masked_text(x, n, encoder.mask_id) for x, n in zip(ids, (0, 0, 3, 2))],
        "retrieval": pairs,
        "retrieval, each rank alone": [{**pair, "task": "alone"} for pair in pairs],
    }


@contextlib.contextmanager
def counted_texts(model) -> Iterator[list[int]]:
    """In this context, the list gets the number of short texts of each pass of the text encoder: words and names."""
    counts = []
    hook = model.text_encoder.register_forward_pre_hook(
        lambda _, arguments: counts.append(len(arguments[0]) if arguments[0].shape[1] <= 4 else 0)
    )
    yield counts
    hook.remove()


def train_on_a_half(rank: int, folder: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    model, batches = torch.load(f"{folder}/given.pth", weights_only=False)
    with float64_without_chance():
        found = {name: outcome(model, halves(batch)[rank]) for name, batch in batches.items()}
        model.texts_in_parts = TextsInParts(at_once=100, split=True)
        with counted_texts(model) as counts:
            for name in SPLIT:
                found[f"{name}, split"] = outcome(model, halves(batches[name])[rank])
        found["texts at once"] = max(counts), 3 in counts
    torch.save(found, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_two_ranks_learn_as_one(model, batches, tmp_path):
    torch.save((model, batches), tmp_path / "given.pth")
    processes = mp.start_processes(train_on_a_half, (str(tmp_path),), nprocs=2, join=False, start_method="fork")
    with float64_without_chance():
        expected = {name: outcome(model, batch) for name, batch in batches.items()}
        alone = batches["retrieval, each rank alone"]
        expected["retrieval, each rank alone"] = *combine(*(outcome(model, x) for x in halves(alone)), 0.5), None
        expected |= {f"{name}, split": expected[name] for name in SPLIT}
    while not processes.join():
        pass
    ranks = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1)]
    for name, (losses, gradients, accuracies) in expected.items():
        first, second = (rank[name] for rank in ranks)
        found_losses, found = combine(first, second, 0.5)
        for loss, value in losses.items():
            assert found_losses[loss].item() == pytest.approx(value.item(), rel=1e-9, abs=1e-12), (name, loss)
        assert worst_difference(found, gradients) < TOLERANCE, name
        assert first[2].keys() == second[2].keys(), name
        if accuracies is not None:
            means = {key: (first[2][key] + second[2][key]) / 2 for key in first[2]}
            assert means == pytest.approx(accuracies), name
    assert [rank["texts at once"] for rank in ranks] == 2 * [(100, True)]
    gathered, alone = (expected[name][1] for name in ("retrieval", "retrieval, each rank alone"))
    assert worst_difference(alone, gathered) > 0.1


def weighed_parts(model, batch: list[dict]) -> dict[str, torch.Tensor]:
    """The gradients of a batch's halves, one after the other, weighted by their loss counts."""
    counts = [max(1, model.loss_count(half)) for half in halves(batch)]
    total = max(1, model.loss_count(batch))
    return combine(*(outcome(model, half, n / total) for half, n in zip(halves(batch), counts)))[1]


@pytest.mark.parametrize("kind", ["classification", "captioning", "language modelling", "masks on one rank"])
def test_weighed_parts_of_a_batch_make_the_whole(model, batches, kind):
    with float64_without_chance():
        found, expected = weighed_parts(model, batches[kind]), outcome(model, batches[kind])[1]
    assert worst_difference(found, expected) < TOLERANCE


def test_weighed_parts_of_grounding(model, batches):
    """As of detection, and without alignment and centres: what is subtracted from their targets is the mean of a part's
    phrases."""
    without = replace(model.tasks["phrases"].settings, alignment_weight=0.0, centre_weight=0.0)
    model.tasks["phrases"].settings = without
    batch = batches["grounding"]
    with float64_without_chance():
        found, expected = weighed_parts(model, batch), outcome(model, batch)[1]
    assert worst_difference(found, expected) < TOLERANCE


@pytest.mark.parametrize("kind", OBJECTS)
def test_weighed_parts_of_detection(model, batches, kind):
    with float64_without_chance():
        found, expected = weighed_parts(model, batches[kind]), outcome(model, batches[kind])[1]
    assert worst_difference(found, expected) < TOLERANCE


def test_what_counts(model, batches):
    counts = {name: [model.loss_count(half) for half in halves(batch)] for name, batch in batches.items()}
    words = [len(model.text_encoder.tokenizer(text)["input_ids"]) - 1 for text in TEXTS]
    assert counts == {
        "detection": [5, 1],
        "objects on one rank": [3, 0],
        "one object in all": [1, 0],
        "nothing to detect": [0, 0],
        "classification": [2, 2],
        "captioning": [words[0] + words[3] + words[2], 3 * words[1]],
        "centred states": [5, 1],
        "grounding": [5, 1],
        "phrases on one rank": [5, 3],
        "language modelling": [5, 2],
        "masks on one rank": [0, 5],
        "retrieval": [2, 2],
        "retrieval, each rank alone": [2, 2],
    }
