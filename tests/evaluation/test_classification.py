import json

import pytest
import torch
from detectron2.data import MetadataCatalog

from uniperceiver_v2.evaluation import ClassificationEvaluator

NAMES = tuple("abcdefg")


@pytest.fixture
def dataset():
    MetadataCatalog.get("letters").set(thing_classes=list(NAMES))
    yield "letters"
    MetadataCatalog.remove("letters")


def samples(count, classes=7, seed=0):
    """Inputs and outputs of a batch, with ids in descending order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    scores = torch.rand((count, classes), generator=generator).softmax(dim=1)
    ids = range(count)[::-1]
    inputs = [{"image_id": i, "file_name": f"{i}.png", "label": label} for i, label in zip(ids, labels.tolist())]
    return inputs, [{"scores": row} for row in scores]


def plain_accuracy(inputs, outputs, k):
    hits = 0
    for sample, output in zip(inputs, outputs, strict=True):
        better = sum(bool(s > output["scores"][sample["label"]]) for s in output["scores"])
        hits += better < k
    return 100 * hits / len(inputs)


def test_accuracies_equal_a_plain_count(dataset):
    inputs, outputs = samples(200)
    evaluator = ClassificationEvaluator(dataset)
    evaluator.reset()
    for start in range(0, 200, 32):
        evaluator.process(inputs[start : start + 32], outputs[start : start + 32])
    results = evaluator.evaluate()
    assert results.keys() == {"classification"}
    assert results["classification"] == pytest.approx(
        {"top1": plain_accuracy(inputs, outputs, 1), "top5": plain_accuracy(inputs, outputs, 5)}
    )
    assert 0 < results["classification"]["top1"] < results["classification"]["top5"] < 100


def test_predictions_are_written_with_names_in_order_of_image(dataset, tmp_path):
    inputs, outputs = samples(20)
    evaluator = ClassificationEvaluator(dataset, str(tmp_path / "letters"))
    evaluator.process(inputs, outputs)
    evaluator.evaluate()
    written = json.loads((tmp_path / "letters/predictions.json").read_text())
    assert [p["image_id"] for p in written] == list(range(20))
    for prediction, sample, output in zip(reversed(written), inputs, outputs, strict=True):
        assert prediction["file_name"] == sample["file_name"]
        assert prediction["label"] == NAMES[sample["label"]]
        assert prediction["classes"] == [NAMES[i] for i in output["scores"].argsort(descending=True)[:5]]
        assert prediction["scores"] == pytest.approx(sorted(output["scores"].tolist(), reverse=True)[:5])


def test_fewer_than_five_classes(dataset):
    inputs, outputs = samples(30, classes=3)
    evaluator = ClassificationEvaluator(dataset)
    evaluator.process(inputs, outputs)
    results = evaluator.evaluate()["classification"]
    assert results["top5"] == 100 and results["top1"] == pytest.approx(plain_accuracy(inputs, outputs, 1))


def test_reset_forgets_and_nothing_gives_nothing(dataset):
    evaluator = ClassificationEvaluator(dataset)
    evaluator.process(*samples(5))
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_every_output_needs_its_input(dataset):
    inputs, outputs = samples(5)
    with pytest.raises(ValueError):
        ClassificationEvaluator(dataset).process(inputs, outputs[:4])


def test_two_ranks_give_the_result_of_one(dataset, tmp_path, on_two_ranks):
    inputs, outputs = samples(41)
    together = on_two_ranks(lambda: ClassificationEvaluator(dataset, str(tmp_path)), inputs, outputs)
    evaluator = ClassificationEvaluator(dataset)
    evaluator.process(inputs, outputs)
    assert together == [evaluator.evaluate(), {}]
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 41
    assert json.loads((tmp_path / "results.json").read_text()) == together[0]
