"""Running a model over a loader, on one rank and on two."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.testing import flatten_results_dict


class Doubler(torch.nn.Module):
    """Records the mode in which it is called."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))
        self.modes = []

    def forward(self, batch):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return [self.weight * x for x in batch]


class Sum(DatasetEvaluator):
    def __init__(self, task="sum"):
        self.task = task
        self.total = 100.0  # reset must clear it

    def reset(self):
        self.total = 0.0

    def process(self, inputs, outputs):
        assert len(inputs) == len(outputs)
        self.total += float(sum(outputs))

    def evaluate(self):
        return {self.task: {"total": self.total}}


LOADER = [[1.0, 2.0], [3.0], [4.0, 5.0], [6.0], [7.0], [8.0], [9.0]]


def test_inference_on_dataset():
    model = Doubler().train()
    results = inference_on_dataset(model, LOADER, Sum())
    assert results == {"sum": {"total": 90.0}}
    assert model.modes == [(False, False)] * len(LOADER)
    assert model.training


def test_inference_with_a_list_of_evaluators():
    results = inference_on_dataset(Doubler(), LOADER, [Sum("a"), Sum("b")])
    assert results == {"a": {"total": 90.0}, "b": {"total": 90.0}}


def test_inference_without_an_evaluator():
    model = Doubler()
    assert inference_on_dataset(model, LOADER[:1], None) == {}
    assert len(model.modes) == 1


def test_inference_with_a_function():
    assert inference_on_dataset(lambda batch: batch, LOADER, Sum()) == {"sum": {"total": 45.0}}


def test_inference_of_an_evaluator_without_results():
    class Silent(DatasetEvaluator):
        pass

    assert inference_on_dataset(Doubler(), LOADER, Silent()) == {}


def test_callbacks():
    calls = []
    names = ["on_start", "before_inference", "after_inference", "on_end"]
    callbacks = {name: lambda name=name: calls.append(name) for name in names}
    inference_on_dataset(Doubler(), LOADER[:2], None, callbacks=callbacks)
    assert calls == ["on_start", *["before_inference", "after_inference"] * 2, "on_end"]


@pytest.mark.parametrize("training", [True, False])
def test_inference_context_restores_the_mode(training):
    model = Doubler().train(training)
    with inference_context(model):
        assert not model.training
    assert model.training is training


def test_evaluators_must_not_share_a_task():
    evaluators = DatasetEvaluators([Sum("a"), Sum("a")])
    evaluators.reset()
    evaluators.process([1.0], [1.0])
    with pytest.raises(AssertionError, match="same key a"):
        evaluators.evaluate()


def test_print_csv_format(caplog):
    with caplog.at_level("INFO"):
        print_csv_format({"bbox": {"AP": 12.34567, "AP50": 20.0, "AP-cat": 1.0}})
    assert [record.getMessage() for record in caplog.records] == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 12.3457,20.0000",
    ]


@pytest.mark.parametrize(
    "actual, passes", [(40.4, True), (41.0, False), (39.0, False), (float("nan"), False), (None, False)]
)
def test_verify_results(actual, passes):
    cfg = SimpleNamespace(TEST=SimpleNamespace(EXPECTED_RESULTS=[["bbox", "AP", 40.0, 0.5]]))
    results = {"bbox": {} if actual is None else {"AP": actual}}
    if passes:
        assert verify_results(cfg, results)
    else:
        with pytest.raises(SystemExit) as exit_info:
            verify_results(cfg, results)
        assert exit_info.value.code == 1


def test_verify_nothing():
    assert verify_results(SimpleNamespace(TEST=SimpleNamespace(EXPECTED_RESULTS=[])), {})


def test_flatten_results_dict():
    nested = {"bbox": {"AP": 1, "deep": {"x": 2}}, "loss": 3}
    assert flatten_results_dict(nested) == {"bbox/AP": 1, "bbox/deep/x": 2, "loss": 3}


def test_two_ranks_evaluate_together(metadata, make_scenes, tmp_path):
    """Each rank processes its half. The first evaluates everything, and the other returns an empty dict."""
    scenes = make_scenes(0)
    metadata.set(
        json_file=scenes.write_coco(tmp_path / "truth.json"),
        thing_classes=["two", "three", "five", "seven"],
        thing_dataset_id_to_contiguous_id={2: 0, 3: 1, 5: 2, 7: 3},
    )

    def work(rank):
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=rank, world_size=2)
        half = make_scenes(0)
        half.image_ids = scenes.image_ids[rank::2]
        evaluator = COCOEvaluator(metadata.name, ("bbox",), distributed=True)
        half.feed(evaluator, with_masks=False)
        (tmp_path / f"{rank}.json").write_text(json.dumps(evaluator.evaluate()))
        dist.destroy_process_group()

    torch.multiprocessing.start_processes(work, nprocs=2, start_method="fork")
    alone = COCOEvaluator(metadata.name, ("bbox",), distributed=False)
    scenes.feed(alone, with_masks=False)
    together = json.loads((tmp_path / "0.json").read_text())
    assert json.dumps(together) == json.dumps(alone.evaluate())
    assert json.loads((tmp_path / "1.json").read_text()) == {}
