"""Exported files compute what the model computes, whatever the batch and the size of its images."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from uniperceiver_v2 import Predictor
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.export import PRECISIONS, TOLERANCE, Captioner, Exported, differences, export, figures, unexplained
from uniperceiver_v2.export.__main__ import main
from uniperceiver_v2.export.check import own_rounding
from uniperceiver_v2.export.parts import deployable
from uniperceiver_v2.export.session import Detector
from uniperceiver_v2.modeling.decoder import ConditionalFeedForward
from uniperceiver_v2.modeling.layers import deformable_attention

OUTPUTS = {
    "image.boxes",
    "image.objectness",
    "image.masks",
    "image.proposal_features",
    "image.image_features",
    "text.text_features",
    "caption_step.log_probabilities",
}


def test_a_dozen_random_sizes_and_batches_equal_pytorch(deployed):
    found = differences(deployed.predictor.model, deployed.exported, trials=12, seed=1, largest=200)
    assert set(found) == OUTPUTS
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.slow
def test_a_hundred_random_sizes_and_batches_of_the_zoos_model_equal_pytorch(tmp_path):
    predictor = Predictor.from_zoo("digit_scenes/small", device="cpu")
    export(predictor, tmp_path, ["fp32"], trials=0)
    found = differences(predictor.model, Exported(tmp_path), trials=100)
    print(found)
    assert set(found) == OUTPUTS and not unexplained(found, predictor.model, trials=100), found
    others = {name: value for name, value in found.items() if name != "image.boxes"}
    assert max(others.values()) <= TOLERANCE, found


def test_other_weights_are_noticed(deployed):
    """The comparison above can fail."""
    parameter = deployed.predictor.model.image_encoder.regions.decoder.box_head.layers[-1].bias
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(0.01)
    try:
        found = differences(deployed.predictor.model, deployed.exported, trials=1)
    finally:
        with torch.no_grad():
            parameter.copy_(kept)
    assert found["image.boxes"] > 0.01 and found["text.text_features"] <= TOLERANCE
    assert "image.boxes" in unexplained(found, deployed.predictor.model, trials=2)


def test_rounding_explains_boxes_alone_and_no_nan(deployed):
    """The model differs from itself less than by its files' tolerance, but not by nothing."""
    model = deployed.predictor.model
    assert unexplained({"image.boxes": TOLERANCE, "text.text_features": 0.0}, model, trials=1) == {}
    own = own_rounding(model, trials=2)
    assert set(own) == {name for name in OUTPUTS if name.startswith("image.")}
    assert max(own.values()) <= TOLERANCE
    bad = {"image.boxes": float("nan"), "text.text_features": 0.0011, "image.masks": 2 * TOLERANCE}
    assert set(unexplained(bad, model, trials=2)) == set(bad)


@pytest.mark.parametrize("size", [(1, 1), (7, 150), (32, 32), (200, 33)])
def test_small_and_long_images(deployed, size):
    """An image of one cell has fewer tokens than queries."""
    height, width = size
    found = deployed.exported("image", torch.full((1, 3, height, width), 90, dtype=torch.uint8))
    assert found["boxes"].shape[:2] == found["objectness"].shape == found["masks"].shape[:2]
    assert all(np.isfinite(values).all() for values in found.values())
    assert found["boxes"].min() >= -width and found["boxes"].max() <= 2 * max(size)


def test_the_description_says_what_the_files_are(deployed):
    onnx = pytest.importorskip("onnx")
    about = json.loads((deployed.directory / "model.json").read_text())
    assert about["precisions"] == list(PRECISIONS) and set(about["checked"]["largest_differences"]) == OUTPUTS
    assert max(about["checked"]["largest_differences"].values()) <= TOLERANCE
    assert about["labels"]["detection"] == list(deployed.predictor.labels())
    assert about["preprocessing"]["whole"] == {"shorter_side": 64, "longer_side_at_most": 128}
    assert about["temperatures"]["detection"] == pytest.approx(0.07, rel=0.1)
    assert about["temperatures"]["classification"] == pytest.approx(1.5 * about["temperatures"]["detection"])
    assert about["detection"]["score_temperature"] == 0.6
    files = {file.name for file in deployed.directory.iterdir()}
    assert files == {
        "model.json",
        "tokenizer.json",
        *(file for part in about["parts"].values() for file in part["files"].values()),
    }
    for part in about["parts"].values():
        for file in part["files"].values():
            model = onnx.load(deployed.directory / file)
            onnx.checker.check_model(model, full_check=True)
            assert [x.version for x in model.opset_import if not x.domain] == [about["opset"]] and about["opset"] >= 17
            for told, values in ((part["inputs"], model.graph.input), (part["outputs"], model.graph.output)):
                assert told == {
                    value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
                    for value in values
                }


def test_precisions_are_what_they_are_called(deployed):
    onnx = pytest.importorskip("onnx")
    models = {
        precision: onnx.load(deployed.directory / name)
        for precision, name in deployed.exported.description["parts"]["text"]["files"].items()
    }
    kinds = {precision: {node.op_type for node in model.graph.node} for precision, model in models.items()}
    assert "MatMulInteger" in kinds["int8"] and "MatMulInteger" not in kinds["fp32"] | kinds["fp16"]
    halves = [x for x in models["fp16"].graph.initializer if x.data_type == onnx.TensorProto.FLOAT16]
    assert len(halves) >= 7 and models["fp16"].ByteSize() < 0.6 * models["fp32"].ByteSize()
    ids, valid = torch.tensor([[0, 40, 50, 2], [0, 60, 2, 1]]), torch.tensor([[True] * 4, [True] * 3 + [False]])
    told = deployed.exported("text", ids, valid)["text_features"]
    for precision, error in (("fp16", 2e-3), ("int8", 0.2)):
        found = Exported(deployed.directory, precision, threads=1)("text", ids, valid)["text_features"]
        assert found.dtype == np.float32 and 0 < np.abs(found - told).max() < error, precision


def test_experts_are_merged_in_a_copy(predictor):
    copied = deployable(predictor.model)
    assert any(isinstance(module, ConditionalFeedForward) for module in predictor.model.modules())
    assert not any(isinstance(module, ConditionalFeedForward) for module in copied.modules())


def test_pixel_sizes_of_symbols_are_those_of_numbers():
    shapes = [(7, 3), (1, 160)]
    ours = deformable_attention._symbolic_pixel_sizes(shapes, torch.zeros(1))
    theirs = deformable_attention._pixel_sizes(tuple(shapes), torch.float32, torch.device("cpu"))
    assert ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_sentence(predictor, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        export(predictor, tmp_path / "out")
    assert str(error.value) == f'the export needs the package {package}: pip install "uniperceiver-v2[export]"'
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported(predictor, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="precisions are fp32, fp16, int8, not int4"):
        export(predictor, tmp_path / "out", ["int4"])
    with pytest.raises(UserError, match="no exported model"):
        Exported(tmp_path)
    monkeypatch.setattr(predictor.model.text_encoder.model.config, "model_type", "camembert")
    with pytest.raises(UserError, match="captions cannot be exported: the text encoder is a camembert"):
        export(predictor, tmp_path / "out")
    assert not (tmp_path / "out" / "model.json").exists()


def test_the_program_ends_with_a_sentence(tmp_path, capsys):
    assert main(["--zoo", "digit_scenes/smal", "--output", str(tmp_path / "out")]) == 1
    assert "did you mean 'digit_scenes/small'?" in capsys.readouterr().err
    assert main(["--output", str(tmp_path / "out"), "--opts", "MODEL.DEVICE", "cpu"]) == 1
    assert "--config-file" in capsys.readouterr().err


@torch.no_grad()
def test_the_detector_gives_the_models_scores(deployed):
    items = [{"image": torch.randint(0, 256, (3, 64, 90), dtype=torch.uint8), "candidates": ("zero", "two", "a seven")}]
    (expected,) = deployed.predictor.model(items)
    (found,) = Detector(deployed.exported, deployed.predictor)(items)
    torch.testing.assert_close(found["instances"].scores, expected["instances"].scores, atol=1e-4, rtol=0)
    assert expected["instances"].scores.max() > 0.005


@pytest.fixture
def small_sets(prepare_digit_scenes, catalogs, tmp_path) -> str:
    """Three test scenes. The prefix of the datasets' names."""
    from uniperceiver_v2.data import register_digit_scenes

    prepare_digit_scenes(tmp_path / "digit_scenes", train_scenes=1, test_scenes=3)
    register_digit_scenes(str(tmp_path / "digit_scenes"), prefix="tiny_")
    return "tiny_"


def test_average_precision_of_each_precision(deployed, small_sets):
    found = figures(deployed.predictor, deployed.directory, f"{small_sets}digit_scenes_test")
    assert set(found) == {"pytorch", *PRECISIONS}
    assert found["fp32"] == pytest.approx(found["pytorch"], abs=1e-3, nan_ok=True)
    assert all(set(values) == {"box AP", "mask AP"} for values in found.values())
    assert not any(math.isnan(values["box AP"]) for values in found.values())
    with pytest.raises(UserError, match="test set of retrieval"):
        figures(deployed.predictor, deployed.directory, f"{small_sets}digit_scenes_retrieval_test")


def test_captions_of_each_precision(deployed, small_sets, few_paraphrases):
    found = figures(deployed.predictor, deployed.directory, f"{small_sets}digit_scenes_captions_test")
    assert set(found) == {"pytorch", *PRECISIONS}
    assert found["fp32"] == pytest.approx(found["pytorch"], abs=1e-3)
    assert all(set(values) == {"CIDEr", "wholly true"} for values in found.values())


def test_captions_by_the_files_are_the_models(deployed):
    """In batches of several sizes."""
    random = np.random.default_rng(0)
    sizes = ((64, 64), (64, 64), (64, 90), (64, 64))
    inputs = [{"image": torch.from_numpy(random.integers(0, 256, (3, *size), dtype=np.uint8))} for size in sizes]
    predictor = deployed.predictor
    task, model = predictor.task("captioning"), predictor.model
    with torch.no_grad():
        expected = [task.predict(model, [one])[0] for one in inputs]
    found = Captioner(deployed.exported, predictor)(inputs)
    assert [one["caption"] for one in found] == [one["caption"] for one in expected]
    for one, told in zip(found, expected, strict=True):
        assert one["log_likelihood"] == pytest.approx(told["log_likelihood"], abs=1e-3)
    assert len({one["log_likelihood"] for one in found}) == 4
