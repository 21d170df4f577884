"""The costs of an iteration and of a prediction, in counted operations instead of time.

Counts are those of the smallest model and are the same on every machine. A change that lowers a count also lowers the
number here. Counts of multiplications are the same in each version of PyTorch. Counts of operations differ a little
(2.14 counts padding as two operations). So their narrow bounds hold for the version in which they were counted.
"""

import importlib
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from uniperceiver_v2.data.mappers.texts import NOT_PREDICTED
from uniperceiver_v2.solver import build_optimizer
from uniperceiver_v2.tasks.captioning import next_words
from uniperceiver_v2.tasks.generation import search

NAMES = ("zero", "one", "seven")
TEXTS = ("a red seven", "two blue threes and a four")
TASKS = ("scenes", "digits", "captions", "pairs", "corpus")
# Of an iteration of two images or texts, forward and backward: millions of multiplications and additions, each counted,
# in matrix products and convolutions, and operations of any kind.
MILLION_FLOPS = {"scenes": 87.8, "digits": 78.4, "captions": 387.5, "pairs": 95.1, "corpus": 299.1}
OPERATIONS = {"scenes": 5708, "digits": 3892, "captions": 4265, "pairs": 3931, "corpus": 1242}
# The host's waits for a GPU: one for the routes of the experts, one for the matching, and one for the losses with the
# gradient's norm. And copies to the GPU, of images and of what is known on the host alone: words, boxes, matches.
WAITS = {"scenes": 3, "phrases": 3, "digits": 2, "captions": 2, "pairs": 2, "corpus": 2}
COPIES = {"scenes": 15, "phrases": 17, "digits": 6, "captions": 10, "pairs": 8, "corpus": 8}
COUNTED_HERE = torch.__version__.startswith("2.13.")
# Upstream Detectron2 pads a batch of images in a dozen operations more. Versions of PyTorch differ in a few dozen.
ROOM_FOR_OPERATIONS = 1.005 if COUNTED_HERE else 1.01
ROOM_FOR_ANOTHER = 1.0 if COUNTED_HERE else 1.3
# Operations for one image or text more: its place in the batch, its boxes and masks among the others', its draws.
FOR_ANOTHER = {"scenes": 34, "digits": 7, "captions": 10, "pairs": 11, "corpus": 6}


def batch_of(model, task: str) -> list[dict]:
    """Two images of one size with an object, or two texts."""
    found = []
    for index, text in enumerate(TEXTS):
        masks = torch.zeros(1, 64, 64, dtype=torch.bool)
        corner = 6 + 20 * index
        masks[0, corner : corner + 24, 8:40] = True
        objects = Instances((64, 64), gt_boxes=Boxes([[8.0, corner, 40.0, corner + 24.0]]))
        objects.gt_classes, objects.gt_masks = torch.tensor([index]), BitMasks(masks)
        image = (torch.arange(3 * 64 * 64) * (7 + index) % 251).to(torch.uint8).view(3, 64, 64)
        token_ids = model.text_encoder.tokenize([text])[0][0]
        chosen = torch.zeros(len(token_ids), dtype=torch.bool).index_fill(0, torch.tensor([1, 2]), True)
        texts = {"token_ids": token_ids, "file_name": str(index), "caption_token_ids": [token_ids]}
        words = {"labels": token_ids.where(chosen, NOT_PREDICTED), "candidates": NAMES, "label": index}
        found.append({"task": task, "image": image, "instances": objects, **texts, **words})
    return found


@pytest.fixture(autouse=True)
def few_words(tiny_model):
    """Fewer words, as the vocabulary is most of a tiny model's work."""
    scenes = tiny_model.tasks["scenes"]
    scenes.settings = replace(scenes.settings, centred_states=True)
    for task in ("captions", "corpus"):
        tiny_model.tasks[task].settings = replace(tiny_model.tasks[task].settings, vocabulary_sample=32)


def iteration(model, batch: list[dict]) -> None:
    torch.manual_seed(0)
    model.train().zero_grad()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()


class OperationCounter(TorchDispatchMode):
    """Counts operations below autograd by their names, including the backward pass. Without ``detach``, which computes
    nothing and of which older versions of PyTorch make more."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.detach.default:
            self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operations_of(work: Callable[[], object]) -> Counter:
    with OperationCounter() as counter:
        work()
    return counter.count


def flops_of(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def count_calls(monkeypatch, **places: tuple[object, str]) -> Counter:
    """Counts calls of methods {name: (owner, method)}, by the given names."""
    calls = Counter()

    def counting(name: str, method: Callable) -> Callable:
        def counted(*args, **kwargs):
            calls[name] += 1
            return method(*args, **kwargs)

        return counted

    for name, (owner, method) in places.items():
        monkeypatch.setattr(owner, method, counting(name, getattr(owner, method)))
    return calls


def shapes_into(module: torch.nn.Module) -> list[tuple[int, ...]]:
    """The shapes of a module's inputs from now on."""
    shapes = []
    module.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


@pytest.mark.parametrize("task", TASKS)
def test_products_and_operations_of_an_iteration(tiny_model, task):
    batch = batch_of(tiny_model, task)
    products = flops_of(lambda: iteration(tiny_model, batch)) / 1e6
    assert products <= 1.01 * MILLION_FLOPS[task], products
    operations = operations_of(lambda: iteration(tiny_model, batch)).total()  # in a second: some results are kept
    assert operations <= ROOM_FOR_OPERATIONS * OPERATIONS[task], operations
    more = operations_of(lambda: iteration(tiny_model, 2 * batch)).total() - operations
    assert more <= ROOM_FOR_ANOTHER * 2 * FOR_ANOTHER[task], more


def test_supervision_samples_maps_five_times_and_chooses_three_times(tiny_model):
    """Maps are sampled once for matching. The losses of the encoder's selection and those of the decoder each sample
    them for the choice of points and at the points. The choices are the most uncertain points of both, and the tokens
    for objects."""
    batches = [batch_of(tiny_model, task) for task in ("scenes", "digits")]
    with_objects, without = (operations_of(lambda batch=batch: iteration(tiny_model, batch)) for batch in batches)
    assert with_objects["grid_sampler_2d"] == 5 and without["grid_sampler_2d"] == 0
    assert with_objects["topk"] - without["topk"] == 3


@pytest.mark.parametrize(("task", "texts"), [("scenes", 1), ("digits", 1), ("captions", 2), ("pairs", 1)])
def test_everything_is_encoded_once_in_an_iteration(tiny_model, monkeypatch, task, texts):
    """In captioning, the captions' words and the candidate words are each encoded once."""
    model = tiny_model
    calls = count_calls(
        monkeypatch,
        image=(model.image_encoder.backbone, "forward"),
        regions=(model.image_encoder.regions, "forward"),
        text=(model.text_encoder, "forward"),
    )
    iteration(model, batch_of(model, task))
    assert calls == {"image": 1, "regions": 1, "text": texts}


def test_all_layers_are_matched_in_one_pass_and_judged_in_two(tiny_model, monkeypatch):
    """One pass judges the encoder's selection, which has no denoising queries, and one all layers of the decoder."""
    criterion = tiny_model.image_encoder.regions.criterion
    calls = count_calls(monkeypatch, match=(criterion, "match"), losses=(criterion, "losses"))
    mask_products = shapes_into(tiny_model.image_encoder.regions.mask_embedding)
    iteration(tiny_model, batch_of(tiny_model, "scenes"))
    assert calls == {"match": 1, "losses": 2}
    selection, decoder = mask_products
    assert selection == (2, 12, 32)  # images, queries
    assert (decoder[0], len(decoder)) == (2, 4)  # layers


def test_without_boxes_to_learn_from_only_what_proposals_need_is_predicted(tiny_model):
    """Boxes only of the tokens that become queries, and heads of the last layer only, but for the objectness, which
    orders the queries of each next layer, and the masks from which initial boxes are made."""
    regions = tiny_model.image_encoder.regions
    chosen, judged, masks = (
        shapes_into(x) for x in (regions.select.box_head, regions.objectness, regions.mask_embedding)
    )
    with torch.no_grad():
        tiny_model.eval()(batch_of(tiny_model, "scenes"))
    iteration(tiny_model, batch_of(tiny_model, "digits"))
    assert chosen == [(2, 12, 32)] * 2
    assert masks == [(2, 12, 32), (1, 2, 12, 32)] * 2  # for the initial boxes, and of the last layer
    assert judged == [(2, 12, 32), (1, 2, 12, 32)] * 2  # for the order of queries in the second layer


def test_nothing_is_masked_where_nothing_is_padded(tiny_model):
    masks = []
    for layer in (*tiny_model.image_encoder.regions.encoder.layers, *tiny_model.image_encoder.regions.decoder.layers):
        attention = getattr(layer, "attention", None) or layer.cross_attention
        attention.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[4]))
    batch = batch_of(tiny_model, "scenes")
    tiny_model.eval()(batch)
    assert masks == [None] * 3
    batch[1]["image"] = batch[1]["image"][:, :50]
    tiny_model.image_encoder(tiny_model.preprocess(batch))  # as in training: evaluation pads nothing
    assert all(isinstance(mask, torch.Tensor) for mask in masks[3:])


@pytest.mark.parametrize("task", ["scenes", "digits"])
def test_in_evaluation_candidates_are_encoded_once_and_an_image_once_each_time(tiny_model, monkeypatch, task):
    calls = count_calls(
        monkeypatch, image=(tiny_model.image_encoder, "forward"), text=(tiny_model.text_encoder, "forward")
    )
    for _ in range(3):
        tiny_model.eval()(batch_of(tiny_model, task))
    assert calls == {"image": 3, "text": 1}


@torch.no_grad()
def test_a_word_of_a_caption_costs_the_same_wherever_it_stands(tiny_model, monkeypatch):
    """Keys and values are cached. So the second half of a caption costs as much as the first, apart from attention
    to more words."""
    encoding, _ = tiny_model.image_encoder(tiny_model.preprocess(batch_of(tiny_model, "captions")))
    words = torch.nn.functional.normalize(torch.randn(tiny_model.text_encoder.vocab_size, 32), dim=-1)
    monkeypatch.setattr(tiny_model, "vocabulary", lambda task: words)
    start = torch.full((2,), tiny_model.text_encoder.bos_id)

    def generate(length: int) -> int:
        step = next_words(tiny_model, encoding)
        settings = {"beam_size": 1, "length_penalty": 0.0, "max_length": length}
        return flops_of(lambda: search(step, start, -1, **settings))

    costs = [generate(length) for length in (5, 15, 25)]
    first, second = costs[1] - costs[0], costs[2] - costs[1]
    assert second <= 1.15 * first


@pytest.fixture(scope="module")
def pretended():
    """The program that counts waits on a device that is only pretended."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "projects" / "uniperceiver_v2" / "benchmarks"))
    try:
        return importlib.import_module("host_waits")
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("task", WAITS)
def test_waits_and_copies_of_an_iteration(tiny_config, tiny_model, pretended, task):
    batch = batch_of(tiny_model, task)
    for item in batch:
        item |= {"phrases": ["a seven", "red"], "phrase_objects": torch.ones(2, 1, dtype=torch.bool)}
    with pretended.PretendedDevice() as found:
        pretended.move(tiny_model.train())
        optimizer = build_optimizer(tiny_config, tiny_model)
        pretended.count_iteration(tiny_model, optimizer, task, batch)
    assert found.waits.total() <= WAITS[task], found.places
    assert found.copies <= COPIES[task]


def test_what_waits_is_found(pretended):
    with pretended.PretendedDevice() as found:
        x = torch.arange(6.0, device=pretended.DEVICE)
        for work in (
            lambda: x.sum().item(),
            lambda: float(x[1]),
            lambda: x.tolist(),
            lambda: bool((x > 1).any()),
            lambda: x[x > 2],
            lambda: x.nonzero(),
            lambda: x.long().bincount(),
            lambda: x.unique(),
            lambda: x.repeat_interleave(x.long()),
            lambda: torch.equal(x, x),
            lambda: torch.tensor([1.0], device=x.device),
            lambda: x.new_tensor([1.0]),
            lambda: torch.ones(2).to(x.device),
            lambda: x.copy_(torch.ones(6)),
        ):
            found.reset()
            work()
            assert found.waits.total() == 1
        found.reset()
        x[2:4] = 1
        y = torch.ones(3).to(x.device, non_blocking=True)
        x[y.long()].sum().add_(x.repeat_interleave(2)[0])
        assert found.waits.total() == 0
        assert (found.copies, found.copied_bytes) == (1, 12)
        assert x.cpu().tolist() == [1.0] * 6
