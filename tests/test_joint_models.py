"""The models of configs/joint at full size, without values: they build, and have as many parameters as the paper's."""

import sys
from pathlib import Path

import pytest

from uniperceiver_v2.files import REPOSITORY

sys.path[:0] = [str(REPOSITORY / "tools"), str(REPOSITORY / "projects/uniperceiver_v2/benchmarks")]
try:
    import count_parameters
    import stand_ins
finally:
    del sys.path[:2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Takes the stand-ins of published parts."""
    return tmp_path_factory.mktemp("pretrained")


def counts(model: str, folder: Path) -> count_parameters.Counts:
    return count_parameters.count(stand_ins.joint_config(model, folder, []))


@pytest.mark.parametrize("model", sorted(count_parameters.PAPER))
def test_parameters_are_within_five_percent_of_the_papers(model, folder):
    found, paper = counts(model, folder), count_parameters.PAPER[model]
    for column in ("training", "deployed"):
        assert found[column].total() == pytest.approx(paper, rel=0.05)
    assert f"beside the paper's {paper / 1e6:.0f}" in count_parameters.table(model, found)


def test_parts_of_the_resnet_model(folder):
    """ResNet-50 has 25.56 million parameters with its classifier of 2.05, RoBERTa-base 124.6 with its pooler of 0.6."""
    found = counts("r50", folder)
    training, deployed, *merged = found.values()
    assert training["backbone"] == pytest.approx(25.56e6 - 2.05e6, rel=0.01)
    assert training["text encoder"] == pytest.approx(124.6e6 - 0.6e6, rel=0.01)
    assert training - deployed == {"region network": 256 + 257}, "denoising queries and the one-to-many head"
    # A merged class has a network as wide as its active experts, 3072, with biases. Tasks have 4 and 13 classes.
    decoder = "decoder and temperature"
    network = 2 * 768 * 3072 + 3072 + 768
    assert merged[1][decoder] - merged[0][decoder] == (13 - 4) * 6 * network
    assert merged[0] - deployed == {decoder: merged[0][decoder] - deployed[decoder]}


def test_a_stand_in_has_as_many_tokens_as_roberta(folder):
    from uniperceiver_v2.modeling.pretrained import load_tokenizer

    tokenizer = load_tokenizer(stand_ins.stand_in("roberta-base", folder))
    assert len(tokenizer) == 50265 and tokenizer.model_max_length == 512
    ids = tokenizer("a red boat")["input_ids"]
    assert (ids[0], ids[-1]) == (0, 2) and tokenizer.decode(ids, skip_special_tokens=True) == "a red boat"
