"""Writing and reading checkpoints, in all formats that users of Detectron2 have."""

import logging
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from torch import nn


class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.linear = nn.Linear(2, width)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))


@pytest.fixture
def warnings():
    """The checkpointer's messages from WARNING on."""
    found = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("fvcore.common.checkpoint", "detectron2")]
    for logger in loggers:
        logger.addHandler(handler)
    yield found
    for logger in loggers:
        logger.removeHandler(handler)


def assert_same_weights(model, other):
    for (name, mine), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, msg=name)


def make_trained():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.linear(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_resume_restores_weights_checkpointables_and_extra_data(tmp_path):
    model, optimizer = make_trained()
    DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000007", iteration=7)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000007.pth"

    other = Net()
    other_optimizer = torch.optim.SGD(other.parameters(), lr=99.0, momentum=0.9)
    checkpointer = DetectionCheckpointer(other, str(tmp_path), optimizer=other_optimizer)
    extra = checkpointer.resume_or_load("not_there.pth", resume=True)
    assert extra["iteration"] == 7
    assert_same_weights(other, model)
    assert other_optimizer.param_groups[0]["lr"] == 0.1
    momentum = other_optimizer.state[other.linear.weight]["momentum_buffer"]
    torch.testing.assert_close(momentum, torch.ones(3, 2))


def test_load_without_resume_leaves_the_optimizer_alone(tmp_path):
    model, optimizer = make_trained()
    DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("weights")
    other = Net()
    other_optimizer = torch.optim.SGD(other.parameters(), lr=99.0)
    checkpointer = DetectionCheckpointer(other, str(tmp_path), optimizer=other_optimizer)
    checkpointer.resume_or_load(str(tmp_path / "weights.pth"), resume=False)
    assert_same_weights(other, model)
    assert other_optimizer.param_groups[0]["lr"] == 99.0


def test_no_path_loads_nothing_and_a_missing_file_fails():
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert DetectionCheckpointer(model).load("") == {}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises((AssertionError, OSError)):
        DetectionCheckpointer(model).load("no_such_directory/weights.pth")


def test_save_to_disk_can_be_turned_off(tmp_path):
    DetectionCheckpointer(Net(), str(tmp_path), save_to_disk=False).save("model")
    assert list(tmp_path.iterdir()) == []


def test_a_bare_state_dict_loads(tmp_path):
    model = Net()
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    other = Net()
    DetectionCheckpointer(other).load(str(tmp_path / "bare.pth"))
    assert_same_weights(other, model)


def test_weights_saved_from_a_parallel_wrapper_load(tmp_path):
    model = Net()
    torch.save({"model": nn.DataParallel(model).state_dict()}, tmp_path / "wrapped.pth")
    other = Net()
    DetectionCheckpointer(other).load(str(tmp_path / "wrapped.pth"))
    assert_same_weights(other, model)


def test_a_pickle_of_arrays_in_the_model_zoos_format_loads(tmp_path):
    weights = {
        "linear.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
        "linear.bias": np.array([6, 7, 8], np.float32),
        "pixel_mean": np.ones((3, 1, 1), np.float32),
    }
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "somebody"}))
    model = Net()
    DetectionCheckpointer(model).load(str(path))
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), weights[name])


def test_differences_from_the_model_are_told(tmp_path, warnings):
    state = {"linear.weight": torch.zeros(5, 2), "linear.bias": torch.ones(3), "spare.weight": torch.zeros(1)}
    torch.save({"model": state}, tmp_path / "other.pth")
    model = Net()
    before = model.linear.weight.detach().clone()
    DetectionCheckpointer(model).load(str(tmp_path / "other.pth"))
    torch.testing.assert_close(model.linear.bias.detach(), torch.ones(3))
    torch.testing.assert_close(model.linear.weight.detach(), before)
    told = "\n".join(warnings)
    assert "linear.weight" in told and "(5, 2)" in told and "(3, 2)" in told
    assert "spare" in told


def test_missing_pixel_statistics_are_no_difference(tmp_path, warnings):
    state = {name: value for name, value in Net().state_dict().items() if name != "pixel_mean"}
    torch.save({"model": state}, tmp_path / "old.pth")
    DetectionCheckpointer(Net()).load(str(tmp_path / "old.pth"))
    assert warnings == []
    del state["linear.bias"]
    torch.save({"model": state}, tmp_path / "old.pth")
    DetectionCheckpointer(Net()).load(str(tmp_path / "old.pth"))
    assert "bias" in "\n".join(warnings)


def test_periodic_checkpointer_keeps_the_last_ones(tmp_path):
    periodic = PeriodicCheckpointer(DetectionCheckpointer(Net(), str(tmp_path)), period=2, max_iter=7, max_to_keep=2)
    for iteration in range(7):
        periodic.step(iteration)
    kept = {path.name for path in tmp_path.glob("*.pth")}
    assert kept == {"model_0000003.pth", "model_0000005.pth", "model_final.pth"}
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 6
