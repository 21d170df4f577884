"""Checkpoints that are written while training goes on, and the process that decides what is resumed."""

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.errors import UserError


@pytest.fixture
def model() -> nn.Module:
    return nn.Linear(2, 2)


@pytest.fixture
def checkpointer(model, tmp_path) -> AtomicCheckpointer:
    return AtomicCheckpointer(model, str(tmp_path), in_background=True)


def test_training_goes_on_while_a_checkpoint_is_written(checkpointer, model, tmp_path, monkeypatch):
    checkpointer.save("model_0000001")
    checkpointer.wait()
    begun, may_go_on, usual = threading.Event(), threading.Event(), torch.save

    def slowly(data, file):
        begun.set()
        assert may_go_on.wait(60)
        usual(data, file)

    monkeypatch.setattr(torch, "save", slowly)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    checkpointer.save("model_0000002")
    assert begun.wait(60)
    with torch.no_grad():
        model.weight.fill_(7)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (tmp_path / "model_0000002.pth").exists()
    may_go_on.set()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000002.pth")  # it waits
    saved = torch.load(tmp_path / "model_0000002.pth", weights_only=True)["model"]
    assert all(torch.equal(saved[key], before[key]) for key in before)


def test_the_file_is_the_one_of_a_checkpointer_that_waits(checkpointer, model, tmp_path):
    model.register_buffer("steps", torch.tensor(3))
    state = {"lists": [torch.ones(2), (1, "two")], "nothing": None}
    checkpointer.save("one", iteration=3, state=state)
    checkpointer.wait()
    AtomicCheckpointer(model, str(tmp_path)).save("other", iteration=3, state=state)
    one, other = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("one", "other"))
    assert repr(one) == repr(other)
    assert one["model"]._metadata == other["model"]._metadata


@pytest.mark.parametrize("ask", [AtomicCheckpointer.wait, lambda checkpointer: checkpointer.save("model_0000003")])
def test_an_error_of_writing_is_told_by_the_next_call(checkpointer, tmp_path, monkeypatch, ask):
    checkpointer.save("model_0000001")
    checkpointer.wait()

    def full(data, file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patches:
        patches.setattr(torch, "save", full)
        checkpointer.save("model_0000002")
        with pytest.raises(UserError, match=r"model_0000002\.pth.*No space left.*older checkpoints are untouched"):
            ask(checkpointer)
    assert checkpointer.get_checkpoint_file().endswith("model_0000001.pth")
    assert [path.name for path in tmp_path.glob("*2*")] == []


def test_tensors_lie_in_the_pages_of_the_file(tmp_path):
    """The processes of a machine share them."""
    model = nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    AtomicCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000001")
    path = tmp_path / "model_0000001.pth"
    found = AtomicCheckpointer(model, str(tmp_path), optimizer=optimizer)._load_file(str(path))
    moment = found["optimizer"]["state"][0]["exp_avg"]
    pages = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split("-", 1)[0] + "-" + line.split("-", 1)[1].split()[0] for line in pages if str(path) in line]
    bounds = [tuple(int(end, 16) for end in one.split("-")) for one in ranges]
    assert any(first <= moment.data_ptr() < last for first, last in bounds)
