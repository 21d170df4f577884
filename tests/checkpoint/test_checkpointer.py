"""Checkpoints: written completely or not at all, loaded as tensors only, and refused if of another architecture."""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.checkpoint import checkpointer as module
from uniperceiver_v2.errors import UserError


def make_model(width: int = 4, depth: int = 2) -> nn.Module:
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])


class Counter:
    """An object with a state, saved beside the model."""

    def __init__(self, value: int = 0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def save(folder, model, name="model_0000001", **checkpointables) -> str:
    AtomicCheckpointer(model, str(folder), **checkpointables).save(name, iteration=1)
    return str(folder / f"{name}.pth")


def test_round_trip_in_detectron2s_layout(tmp_path):
    model = make_model()
    path = save(tmp_path, model, counter=Counter(7))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert set(torch.load(path, weights_only=True)) == {"model", "counter", "iteration"}

    other, counter = make_model(), Counter()
    checkpointer = AtomicCheckpointer(other, str(tmp_path), counter=counter)
    assert checkpointer.has_checkpoint()
    rest = checkpointer.resume_or_load("", resume=True)
    assert (rest["iteration"], counter.value) == (1, 7)
    for a, b in zip(model.parameters(), other.parameters()):
        assert torch.equal(a, b)


def test_without_resume_only_the_model_is_loaded(tmp_path):
    path = save(tmp_path, make_model(), counter=Counter(7))
    counter = Counter()
    AtomicCheckpointer(make_model(), str(tmp_path), counter=counter).resume_or_load(path, resume=False)
    assert counter.value == 0


def test_a_bare_state_dict_and_one_of_several_processes_are_read(tmp_path):
    model = make_model()
    for name, prefix in (("bare.pth", ""), ("processes.pth", "module.")):
        torch.save({prefix + key: value for key, value in model.state_dict().items()}, tmp_path / name)
        other = make_model()
        AtomicCheckpointer(other).load(str(tmp_path / name))
        assert torch.equal(other[0].weight, model[0].weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_are_read_from_safetensors(tmp_path, dtype):
    written, model = make_model(), make_model()
    save_file({key: value.to(dtype) for key, value in written.state_dict().items()}, tmp_path / "model.safetensors")
    AtomicCheckpointer(model).load(str(tmp_path / "model.safetensors"))
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, written.state_dict()[key].to(dtype).float())


@pytest.mark.parametrize("length", [0, 4, 40])
def test_safetensors_that_are_cut_short_are_refused(tmp_path, length):
    path = tmp_path / "model.safetensors"
    save_file(make_model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=re.escape(f"{path} cannot be read as safetensors")):
        AtomicCheckpointer(make_model()).load(str(path))


def test_a_write_that_fails_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    model = make_model()
    path = save(tmp_path, model, "model_final")
    before = Path(path).read_bytes()

    def half_written(data, file):
        file.write(b"PK half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(UserError, match=r"model_final\.pth.*No space left.*older checkpoints are untouched"):
        save(tmp_path, model, "model_final")
    with pytest.raises(UserError):
        save(tmp_path, model, "model_0000002")
    assert Path(path).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_a_checkpoint_appears_only_once_it_is_synced(tmp_path, monkeypatch):
    """The order of events: the file is synced and renamed, its folder is synced, and then last_checkpoint names it."""
    events = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor):
        events.append("sync")
        fsync(descriptor)

    def spy_replace(source, target):
        events.append(os.path.basename(target))
        assert os.path.dirname(source) == os.path.dirname(target)
        replace(source, target)

    monkeypatch.setattr(module.os, "fsync", spy_fsync)
    monkeypatch.setattr(module.os, "replace", spy_replace)
    save(tmp_path, make_model(), "model_final")
    assert events == ["sync", "model_final.pth", "sync", "sync", "last_checkpoint", "sync"]


def test_other_processes_than_the_main_one_write_nothing(tmp_path):
    AtomicCheckpointer(make_model(), str(tmp_path), save_to_disk=False).save("model_final")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_refused(tmp_path, share):
    path = save(tmp_path, make_model())
    content = Path(path).read_bytes()
    with open(path, "wb") as file:
        file.write(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="cut short"):
        AtomicCheckpointer(make_model()).load(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02"])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth"):
        AtomicCheckpointer(make_model()).load(str(path))


class Trap:
    """Creates a file when it is unpickled without precautions."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl", "weights.pyth"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, name, writer):
    path, proof = str(tmp_path / name), str(tmp_path / "proof")
    data = {"model": make_model().state_dict(), "__author__": "a stranger", "trap": Trap(proof)}
    if writer == "torch":
        torch.save(data, path)
    else:
        with open(path, "wb") as file:
            pickle.dump(data, file)
    with pytest.raises(UserError, match="none of which was run"):
        AtomicCheckpointer(make_model()).load(path)
    assert not os.path.exists(proof)


def test_weights_of_another_architecture_are_refused_with_the_keys_and_shapes_that_differ(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(4, 4, bias=False)})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = save(tmp_path, nn.ModuleDict({"a": nn.Linear(3, 5), "c": nn.Linear(2, 2, bias=False)}))
    with pytest.raises(UserError) as info:
        AtomicCheckpointer(model).load(path)
    assert str(info.value).splitlines() == [
        f"{path}: the weights are of another architecture; 4 keys differ:",
        "  a.bias: [5] in the checkpoint, [4] in the model",
        "  a.weight: [5, 3] in the checkpoint, [4, 3] in the model",
        "  b.weight: [4, 4] in the model, not in the checkpoint",
        "  c.weight: [2, 2] in the checkpoint, not in the model",
    ]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_many_differences_are_a_dozen_and_a_count(tmp_path):
    path = save(tmp_path, make_model(depth=10))
    with pytest.raises(UserError) as info:
        AtomicCheckpointer(make_model(depth=1)).load(path)
    lines = str(info.value).splitlines()
    assert "18 keys differ" in lines[0]
    assert len(lines) == 14
    assert lines[-1] == "  and 6 more"


def test_a_missing_file_and_a_foreign_optimizer_state_are_named(tmp_path):
    with pytest.raises(UserError, match=r"not found: .*nowhere"):
        AtomicCheckpointer(make_model()).load(str(tmp_path / "nowhere.pth"))

    model = make_model()
    path = save(tmp_path, model, optimizer=torch.optim.AdamW(model.parameters()))
    groups = [{"params": [p]} for p in model.parameters()]
    with pytest.raises(UserError, match=r"model_0000001\.pth does not fit these settings"):
        AtomicCheckpointer(model, optimizer=torch.optim.AdamW(groups)).load(path)
