"""Images depend on wider neighbours, and not on others."""

import pytest
import torch


@pytest.fixture
def neighbours(imported):
    return imported("neighbours")


def test_only_a_wider_neighbour_changes_an_image(neighbours, tiny_model):
    images = [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8) for _ in range(2)]
    tiny_model.eval()
    wider, equal = (list(neighbours.changes(tiny_model, images, width)) for width in (2.0, 1.0))
    assert len(wider) == 2 and all(change["global tokens"] > 0.1 for change in wider)
    assert all(value < 1e-3 for change in equal for value in change.values())


def test_the_program_prints_a_line_for_each_encoding(
    neighbours, small_data, small_config, tiny_model, monkeypatch, capsys
):
    monkeypatch.setattr(neighbours, "load_model", lambda cfg: tiny_model)
    neighbours.main(["none.pth", "--images", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["global tokens", "proposal tokens", "image's feature"]
