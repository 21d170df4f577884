"""The probes: what they find where it is known, and the whole program on a model that has learned nothing."""

import numpy as np
import pytest
import torch

from uniperceiver_v2.config import load_config
from uniperceiver_v2.evaluation.digit_scenes.facts import Thing


@pytest.fixture
def probes(imported):
    return imported("probes")


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each Markdown table."""
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    return [[[cell.strip() for cell in line.split("|")[1:-1]] for line in block] for block in blocks]


def test_the_program_prints_its_tables(probes, small_config, small_data, tmp_path, capsys):
    cfg = load_config(str(small_config))
    torch.save({"model": probes.build_model(cfg).state_dict()}, tmp_path / "model.pth")
    options = ["--config-file", str(small_config), "--scenes", "20", "--batches", "1"]
    probes.main([str(tmp_path / "model.pth"), *options])
    objects, scenes, gradients = tables(capsys.readouterr().out)

    assert objects[0] == ["objects", "colour", "digit", "place", "found"]
    stages = [row[0] for row in objects[2:]]
    assert stages[:4] == [f"backbone stage{i}" for i in (1, 2, 3, 4)] and stages[-1] == "chance"
    colours = {row[0]: int(row[1]) for row in objects[2:]}
    assert colours["backbone stage1"] > colours["chance"] + 20  # a random convolution keeps colour

    assert scenes[0] == ["scenes", "count", "colours", "digits"]
    assert {"global tokens", "decoded image (<SPE>)", "chance"} <= {row[0] for row in scenes[2:]}

    assert gradients[0] == ["task", "s_k", "ω_k", *probes.PARTS]
    rows = {row[0]: row[3:] for row in gradients[2:]}
    assert list(rows) == list(cfg.TASKS.NAMES)
    assert rows["corpus"][0] == "0.00 (0%)", "text does not reach the backbone"
    for part in range(len(probes.PARTS)):
        percentages = [int(row[part].split("(")[1].rstrip("%)")) for row in rows.values()]
        assert 98 <= sum(percentages) <= 102
    for task, row in rows.items():  # norms of the parts of a gradient whose whole norm is ω_k
        norm = np.linalg.norm([float(cell.split()[0]) for cell in row])
        assert norm == pytest.approx(cfg.TASKS[task].GRADIENT_WEIGHT, abs=0.02)


def test_every_parameter_is_of_a_part(probes, tiny_model):
    for name, _ in tiny_model.named_parameters():
        assert probes._part_of(name) in probes.PARTS
    assert probes._part_of("image_encoder.backbone.model.x") == "backbone"
    assert probes._part_of("image_encoder.regions.decoder.x") == "region network"


def test_means_in_boxes_weigh_cells_by_what_is_covered(probes):
    features = torch.arange(24.0).view(1, 4, 6)
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 1 / 6, 1 / 4], [1 / 12, 0, 3 / 12, 1 / 4], [0.51, 0.51, 0.52, 0.52]])
    found = probes.mean_in_boxes(features, boxes)
    torch.testing.assert_close(found, torch.tensor([[11.5], [0.0], [0.5], [15.0]]))


def test_a_probe_finds_what_is_linear_and_nothing_in_noise(probes):
    rng = np.random.default_rng(0)
    labels = [("red", "blue", "green")[i] for i in rng.integers(3, size=600)]
    noise = rng.normal(size=(600, 8))
    signal = noise + 4 * np.array([[label == "red", label == "blue", *[0] * 6] for label in labels])
    assert probes.probe(signal[:300], labels[:300], signal[300:], labels[300:]) > 90
    assert probes.probe(noise[:300], labels[:300], noise[300:], labels[300:]) < 45
    assert probes.probe(noise[:2], ["red", "red"], noise[:4], ["red", "blue", "red", "red"]) == 75
    assert probes.most_frequent(["red", "red", "blue"], ["red", "blue", "blue", "blue"]) == 25


def test_questions_of_scenes(probes):
    crowd = Thing("nine", "white", (0, 0, 9, 9), is_crowd=True)
    scenes = [(Thing("one", "red", (0, 0, 9, 9)), crowd), (Thing("two", "red", (0, 0, 9, 9)),) * 2]
    questions = probes.questions_of_scenes(scenes)
    assert questions["count"] == [[1, 2]]
    assert questions["colours"][0] == [True, True] and questions["colours"][-1] == [True, False]
    assert questions["digits"][1] == [True, False] and questions["digits"][9] == [True, False]
