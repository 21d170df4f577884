"""The evaluators where scenes' facts are known: their rows, their file, and that other data sets have none of it."""

import json
import math

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

import uniperceiver_v2.tasks  # noqa: F401  (registers the kinds)
from uniperceiver_v2.data import load_dataset, register_digit_scenes
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.evaluation import (
    CaptionEvaluator,
    RetrievalEvaluator,
    SceneCaptionEvaluator,
    SceneRetrievalEvaluator,
    build_evaluator,
    format_results_table,
)
from uniperceiver_v2.evaluation.digit_scenes.facts import SceneFacts
from uniperceiver_v2.evaluation.digit_scenes.oracle import oracle_recall, scenes_of_captions
from uniperceiver_v2.evaluation.digit_scenes.truth import judge


@pytest.fixture(autouse=True)
def without_java(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))


@pytest.fixture
def registered(tree, catalogs) -> str:
    """What the names of the tree's data sets begin with."""
    register_digit_scenes(str(tree), prefix="truth_")
    return "truth_digit_scenes_"


def evaluated(evaluator, outputs_of, records):
    evaluator.reset()
    for start in range(0, len(records), 7):
        part = records[start : start + 7]
        evaluator.process(part, [outputs_of(record) for record in part])
    return evaluator.evaluate()


def test_captions_are_held_against_their_scenes_and_another(registered, tmp_path):
    name = f"{registered}captions_test"
    evaluator = build_evaluator(CfgNode(), name, str(tmp_path))
    assert type(evaluator) is SceneCaptionEvaluator
    records = load_dataset(name)

    def says(record):  # the truth of even images, nothing that is language of odd ones
        return {"caption": record["captions"][0] if record["image_id"] % 2 == 0 else "hm", "log_likelihood": 0.0}

    results = evaluated(evaluator, says, records)
    assert list(results) == ["caption", "caption_truth", "caption_truth (another scene)"]
    truth, other = results["caption_truth"], results["caption_truth (another scene)"]
    assert truth["true"] == truth["unparsed"] == other["unparsed"] == 50
    assert truth["digits"] == truth["colours"] == truth["counts"] == 100
    assert other["true"] < 10 and other["digits"] < 80 and other["colours"] < 80

    scenes = SceneFacts(MetadataCatalog.get(name).scene_facts).by_image
    verdicts = json.loads((tmp_path / "truth.json").read_text())
    assert [v["image_id"] for v in verdicts] == sorted(scenes)
    assert all(v["true"] == judge(v["caption"], scenes[v["image_id"]]).is_true for v in verdicts)

    table = format_results_table({name: results})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0][2] == "Bleu_1" and rows[2][1] == "caption"
    assert rows[3][2:4] == ["true", "digits"]
    assert [row[1] for row in rows[4:]] == ["caption truth", "caption truth (another scene)"]
    assert rows[4][2:5] == ["50.0", "100.0", "100.0"]


def test_without_another_scene_there_is_nothing_beside(registered):
    name = f"{registered}captions_test"
    record = load_dataset(name)[0]
    evaluator = build_evaluator(CfgNode(), name, None)
    results = evaluated(evaluator, lambda r: {"caption": r["captions"][0], "log_likelihood": 0.0}, [record])
    assert results["caption_truth"]["true"] == 100
    assert math.isnan(results["caption_truth (another scene)"]["true"])


def test_an_image_that_the_facts_do_not_know_is_named(registered):
    name = f"{registered}captions_test"
    record = {**load_dataset(name)[0], "image_id": 77}
    with pytest.raises(UserError, match="77"):
        evaluated(build_evaluator(CfgNode(), name, None), lambda r: {"caption": "a", "log_likelihood": 0.0}, [record])


def test_facts_without_colours_are_refused(tmp_path):
    annotation = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}
    content = {"images": [{"id": 1}], "annotations": [annotation], "categories": [{"id": 1, "name": "one"}]}
    (tmp_path / "facts.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="annotation 5"):
        SceneFacts(str(tmp_path / "facts.json"))


def test_other_datasets_are_evaluated_as_before(catalogs):
    for kind, cls in (("coco_caption", CaptionEvaluator), ("retrieval", RetrievalEvaluator)):
        MetadataCatalog.get(f"others_{kind}").set(evaluator_type=kind)
        assert type(build_evaluator(CfgNode(), f"others_{kind}", None)) is cls


def test_retrieval_stands_beside_the_oracles(registered):
    name = f"{registered}retrieval_test"
    evaluator = build_evaluator(CfgNode(), name, None)
    assert type(evaluator) is SceneRetrievalEvaluator
    ones = torch.ones(1)
    records = load_dataset(name)
    results = evaluated(evaluator, lambda r: {"image_feature": ones, "text_features": torch.ones(5, 1)}, records)
    for row in ("text_retrieval", "image_retrieval"):
        assert results[row] == pytest.approx(results[f"{row} (chance)"])
        assert results[f"{row} (chance)"]["R@1"] < results[f"{row} (oracle)"]["R@1"] <= 100
    assert results["image_retrieval (oracle)"]["R@1"] < 100


def test_the_oracle_is_what_the_protocol_gives_its_similarities(captioned):
    """The same similarities, as features, through the evaluator itself."""
    some = captioned[:60]
    scenes, captions = [scene for scene, _ in some], [own for _, own in some]
    true = torch.tensor([[judge(c, scene).is_true for scene in scenes] for own in captions for c in own]).double()
    similarities = true / true.sum(dim=1, keepdim=True)  # [captions, images]
    evaluator = RetrievalEvaluator("oracle")
    evaluator.reset()
    for index, own in enumerate(captions):
        feature = torch.eye(len(scenes))[index]
        texts = similarities[5 * index : 5 * index + 5].float()  # their products with images are the similarities
        inputs = [{"image_id": index, "file_name": "", "captions": own}]
        evaluator.process(inputs, [{"image_feature": feature, "text_features": texts}])
    expected = evaluator.evaluate()
    found = oracle_recall(captions, scenes, (1, 5, 10))
    for row in ("text_retrieval", "image_retrieval"):
        assert found[row] == pytest.approx(expected[row])
    assert found["image_retrieval"]["R@1"] < found["image_retrieval"]["R@5"] <= 100


def test_scenes_of_captions_by_brute_force(captioned):
    scenes = [scene for scene, _ in captioned[::3]]
    captions = [caption for _, own in captioned[::7] for caption in own] + ["not of the language"]
    found = scenes_of_captions(captions, scenes)
    assert found["not of the language"] == set()
    for caption in captions:
        assert found[caption] == {i for i, scene in enumerate(scenes) if judge(caption, scene).is_true}
