"""Exchanged words: what is exchanged is false, likelihoods are those that captioning trains on, and the program."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_test_loader
from uniperceiver_v2.evaluation.digit_scenes.facts import Thing
from uniperceiver_v2.tasks.captioning import CaptioningSettings, CaptioningTask

SCENE = (Thing("seven", "red", (0, 0, 20, 20)), Thing("two", "blue", (60, 60, 20, 25)))


@pytest.fixture
def words(imported):
    return imported("exchanged_words")


@pytest.mark.parametrize(
    ("caption", "false"),
    [
        (
            "a red seven to the left of a blue two",
            {
                "sides": "a red seven to the right of a blue two",
                "colours": "a green seven to the left of a blue two",
                "digits": "a red eight to the left of a blue two",
            },
        ),
        ("a red seven in the top left", {"places": "a red seven in the bottom right"}),
        ("the smallest digit is a red seven", {"extremes": "the largest digit is a red seven"}),
        ("a seven and a two", {"digits": "an eight and a two"}),
        ("from left to right: seven, two", {"sides": None}),  # from top to bottom it is true as well
        ("nothing that the language has", {"digits": None, "sides": None}),
    ],
)
def test_one_word_of_each_sort_makes_the_caption_false(words, caption, false):
    found = dict(words.exchanged(caption, SCENE))
    assert {sort: found.get(sort) for sort in false} == false


@pytest.fixture
def checkpoint(words, small_config, small_data, tmp_path):
    """A configuration, and a checkpoint of its model with random weights."""
    cfg = load_config(str(small_config))
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    return cfg, tmp_path / "model.pth"


def test_the_program_prints_its_table(words, checkpoint, small_config, capsys):
    words.main([str(checkpoint[1]), "--config-file", str(small_config)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| exchanged | captions | known |"
    rows = {cells[1]: cells[2:4] for cells in ([c.strip() for c in line.split("|")] for line in lines[2:])}
    assert {"sides", "colours", "digits"} <= set(rows)
    for count, percent in rows.values():
        assert float(percent) == pytest.approx(100 * round(float(percent) * int(count) / 100) / int(count), abs=0.06)


def test_likelihoods_are_those_of_the_captioning_loss(words, checkpoint):
    cfg, weights = checkpoint
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(weights)
    model = words.load_model(cfg).eval()
    batch = next(iter(build_test_loader(cfg, "digit_scenes_captions_test")))
    captions = batch[0]["captions"]
    with torch.no_grad():
        encoding, _ = model.image_encoder(model.preprocess(batch[:1]))
        found = words.log_likelihoods(model, encoding, [0] * len(captions), captions)
        for caption, expected in zip(captions, found):
            ids = torch.tensor(model.text_encoder.tokenizer(caption)["input_ids"])
            task = CaptioningTask(CaptioningSettings())  # all words, none sampled
            with EventStorage():
                loss = task.losses(model, [{**batch[0], "caption_token_ids": [ids]}])["loss_caption"]
            assert -float(expected) == pytest.approx(float(loss) * (len(ids) - 1), rel=1e-4)
