"""Damage in files of weights: nothing else than what was saved is loaded, and every refusal names the file."""

import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.reading import CHECKSUM, read_tensors, tensors_checksum, weights


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


class Counter:
    """An object with a state, saved beside the model."""

    value = 1

    def state_dict(self):
        return {"value": self.value, "rate": 0.5, "weights": {"a": torch.zeros(2)}, "rows": [1]}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.fixture
def put(tmp_path):
    """put(change): the path of a checkpoint whose content ``change`` has changed."""

    def write(change) -> str:
        content = {"model": make_model().state_dict(), "counter": Counter().state_dict()}
        change(content)
        torch.save(content, tmp_path / "model_0000001.pth")
        (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
        return str(tmp_path / "model_0000001.pth")

    return write


def refusal(path: str) -> str:
    with pytest.raises(UserError) as caught:
        AtomicCheckpointer(make_model(), counter=Counter()).load(path)
    assert path in str(caught.value)
    return str(caught.value)


def test_no_flipped_bit_loads_as_another_weight(put):
    path = put(lambda content: None)
    whole, expected = Path(path).read_bytes(), torch.load(path, weights_only=True)["model"]
    chance, refused = random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        Path(path).write_bytes(damaged)
        model = make_model()
        try:
            AtomicCheckpointer(model, counter=Counter()).load(path)
        except UserError as error:
            assert path in str(error)
            refused += 1
        else:  # the bit belongs to nothing, such as the space between two tensors
            assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert refused > 30


def test_a_compressed_archive_is_refused_before_it_fills_the_memory(put, tmp_path):
    path = put(lambda content: None)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert "compressed" in refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(put, value):
    def change(content):
        content["model"]["0.weight"][1, 2] = value

    path = put(change)
    assert "0.weight has 1 of 16 values that are NaN or infinite" in refusal(path)
    model = make_model()
    AtomicCheckpointer(model, weights_may_be_nan=True, counter=Counter()).load(path)
    assert torch.equal(model[0].weight[1, 2].nan_to_num(7), torch.tensor(value).nan_to_num(7))


def test_weights_that_are_finite_in_a_wider_type_only_are_refused(put):
    def change(content):
        content["model"]["0.weight"] = content["model"]["0.weight"].double()
        content["model"]["0.weight"][1, 2] = 1e300

    assert "0.weight has 1 of 16 values that are NaN or infinite" in refusal(put(change))
    AtomicCheckpointer(make_model(), weights_may_be_nan=True, counter=Counter()).load(put(change))


def test_two_values_of_a_weight_are_refused(put):
    def change(content):
        content["model"]["module.0.weight"] = torch.zeros(4, 4)

    assert "module.0.weight beside 0.weight" in refusal(put(change))


@pytest.mark.parametrize(
    "name, dtype",
    [("0.weight", dtype) for dtype in (torch.complex64, torch.bool, torch.int32, torch.uint8, torch.float8_e4m3fn)]
    + [("1.num_batches_tracked", torch.float32)],
)
def test_a_type_that_would_be_cast_with_loss_is_refused(put, name, dtype):
    def change(content):
        content["model"][name] = content["model"][name].to(dtype)

    assert f"{name}: {dtype} in the checkpoint" in refusal(put(change))


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda weight: weight.to("meta")])
def test_what_is_no_plain_tensor_is_refused(put, change):
    def put_in(content):
        content["model"]["0.weight"] = change(content["model"]["0.weight"])

    assert "0.weight: not a tensor of plain numbers" in refusal(put(put_in))


@pytest.mark.parametrize("content", [None, [], {1: torch.zeros(2)}, {"a": 3}, torch.zeros(2)])
def test_a_model_that_is_no_dict_of_tensors_is_refused(put, content):
    assert "'model' is not a dict of tensors" in refusal(put(lambda whole: whole.update(model=content)))


@pytest.mark.parametrize(
    "damage",
    [None, 3, "x", [], torch.zeros(3), {}, {"value": "x"}, {"value": None}, {"value": 1.5}]
    + [{"value": 1, "rate": "x"}, {"value": 1, "weights": {"a": torch.zeros(1)}}, {"value": 1, "rows": ["x"]}]
    + [{"value": 1, "weights": [1]}],
)
def test_a_damaged_state_of_training_is_refused(put, damage):
    assert "counter" in refusal(put(lambda content: content.update(counter=damage))) or damage == {}


def test_resume_does_not_begin_anew_from_weights_alone(put, tmp_path):
    path = put(lambda content: content.pop("counter"))

    def checkpointer() -> AtomicCheckpointer:  # upstream's own class can load no more after a refusal
        return AtomicCheckpointer(make_model(), str(tmp_path), counter=Counter())

    with pytest.raises(UserError, match=r"no state of training \(counter\)") as caught:
        checkpointer().resume_or_load("", resume=True)
    assert path in str(caught.value)
    assert "counter" not in checkpointer().resume_or_load(path, resume=False)


@pytest.mark.parametrize("address", ["s3://bucket/a.pth", "gs://bucket/a.pth", "http://127.0.0.1:9/a.pth", "x://"])
def test_an_address_that_nobody_fetches_is_refused(address):
    assert address in refusal(address)


def test_an_address_cannot_lead_out_of_the_folder_of_copies():
    assert "has '..' in it" in refusal("http://127.0.0.1:9/../../../a.pth")


def test_a_safetensors_file_with_a_damaged_header_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    content = path.read_bytes()
    for place in range(0, 60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            read_tensors(str(path))
        except UserError as error:
            assert str(path) in str(error)


def test_a_flipped_bit_in_a_safetensors_file_of_ours_is_found(tmp_path):
    path = tmp_path / "model.safetensors"
    state = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.arange(3), "d": torch.zeros(0)}
    save_file(state, path, metadata={CHECKSUM: tensors_checksum(state)})
    assert all(torch.equal(value, state[key]) for key, value in read_tensors(str(path)).items())
    content = path.read_bytes()
    for place in range(len(content) - 60, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
            read_tensors(str(path))


def test_parts_that_have_changed_places_in_a_safetensors_file_of_ours_are_found(tmp_path):
    path = tmp_path / "model.safetensors"
    state = {"a": torch.arange(1024.0)}
    save_file(state, path, metadata={CHECKSUM: tensors_checksum(state)})
    content = path.read_bytes()
    path.write_bytes(content[:-4096] + content[-2048:] + content[-4096:-2048])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        read_tensors(str(path))


def test_a_checksum_of_an_older_safetensors_file_is_compared(tmp_path):
    path = tmp_path / "model.safetensors"
    old = "7b260d982ea028653eb101d57920aa099d2ebdf24374ba519bd2067250d8a869"
    save_file({"a": torch.arange(5.0)}, path, metadata={CHECKSUM: old})
    assert torch.equal(read_tensors(str(path))["a"], torch.arange(5.0))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\1")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        read_tensors(str(path))


def test_a_safetensors_file_of_too_many_tensors_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, path)
    monkeypatch.setattr(weights, "MOST_TENSORS", 1)
    with pytest.raises(UserError, match=r"a\.safetensors cannot be read as safetensors: it has 2 tensors, more than 1"):
        read_tensors(str(path))
