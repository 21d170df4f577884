"""Backbones alone: Detectron2's model zoo, torchvision's and Microsoft's files."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from uniperceiver_v2.checkpoint.adapters import load_pretrained, read_source
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.modeling.image_encoder import ImageEncoder

from . import mask_dino_keys as keys
from . import plain_mask_dino as plain
from .test_mask_dino import SMALL_SWIN, resnet_config, settings, swin_config

DEPTHS, WIDTH = (1, 2, 1, 1), 8


def resnet_encoder(**fields) -> ImageEncoder:
    return ImageEncoder(settings(resnet_config(DEPTHS, WIDTH) | fields)).eval()


def resnet_state() -> dict[str, Tensor]:
    return keys.random_checkpoint(keys.r50(DEPTHS, WIDTH))


def assert_same_maps(encoder: ImageEncoder, expected: list[Tensor], images: Tensor) -> None:
    with torch.no_grad():
        found = [feature_map for _, feature_map in sorted(encoder.backbone(images).items())]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def written(path, content) -> str:
    path.write_bytes(pickle.dumps(content, protocol=2))
    return str(path)


def test_torchvision_s_resnet_in_detectron2_s_form(tmp_path):
    state = resnet_state()
    arrays = {key.removeprefix("backbone."): value.numpy() for key, value in state.items()}
    arrays |= {"stem.fc.weight": np.zeros((9, 256), np.float32), "stem.fc.bias": np.zeros(9, np.float32)}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    encoder = resnet_encoder()
    (table,) = load_pretrained(encoder, 1, [written(tmp_path / "R-50.pkl", content)])
    assert [key for key, _, _ in table.skipped] == ["stem.fc.weight", "stem.fc.bias"]
    images = torch.randn(1, 3, 64, 96)
    assert_same_maps(encoder, plain.resnet(state, images), images)


def test_caffe2_s_resnet(tmp_path):
    """MSRA's models: blobs, statistics within weight and bias, the stride in the first convolution of a block."""
    state = resnet_state()
    for key in state:
        if key.endswith("running_mean"):
            state[key].zero_()
        elif key.endswith("running_var"):
            state[key].fill_(1)
    blobs = {blob_of(key): value.numpy() for key, value in state.items() if "running" not in key}
    blobs |= {
        "conv1_b": np.zeros(WIDTH, np.float32),
        "fc1000_w": np.zeros((9, 256), np.float32),
        "conv1_w_momentum": np.zeros(2),
    }
    encoder = resnet_encoder(downsample_in_bottleneck=True)
    (table,) = load_pretrained(encoder, 1, [written(tmp_path / "R-50.pkl", {"blobs": blobs})])
    assert {key for key, _, _ in table.skipped} == {"stem.conv1.bias", "stem.fc.weight"}
    assert len(table.supplied) == sum("running" in key for key in state)
    images = torch.randn(1, 3, 64, 96)
    assert_same_maps(encoder, plain.resnet(state, images, stride_in_first=True), images)


def blob_of(key: str) -> str:
    key = key.removeprefix("backbone.").replace("stem.conv1.norm", "res_conv1_bn").replace("stem.", "")
    key = key.replace("shortcut", "branch1").replace(".norm", "_bn")
    for number, letter in enumerate("abc", 1):
        key = key.replace(f".conv{number}", f".branch2{letter}")
    key = key.replace("bn.weight", "bn_s").replace("bn.bias", "bn_b").replace(".weight", "_w")
    return key.replace(".", "_")


def test_torchvision_s_own_names(tmp_path):
    state = resnet_state()
    torch.save({torchvision_key(key): value for key, value in state.items()}, tmp_path / "resnet.pth")
    encoder = resnet_encoder()
    load_pretrained(encoder, 1, [str(tmp_path / "resnet.pth")])
    images = torch.randn(1, 3, 64, 96)
    assert_same_maps(encoder, plain.resnet(state, images), images)


def torchvision_key(key: str) -> str:
    key = key.removeprefix("backbone.").removeprefix("stem.")
    for stage in range(1, 5):
        key = key.replace(f"res{stage + 1}.", f"layer{stage}.")
    for number in range(1, 4):
        key = key.replace(f"conv{number}.norm", f"bn{number}")
    return key.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")


def test_microsoft_s_swin(tmp_path):
    """A classifier's file has one norm at its end, and none behind the other stages."""
    state = keys.random_checkpoint(keys.swin(**SMALL_SWIN))
    own = {key.removeprefix("backbone."): value for key, value in state.items()}
    classifier = {key: value for key, value in own.items() if not key.startswith("norm")}
    classifier |= {
        "norm.weight": torch.ones(128),
        "norm.bias": torch.zeros(128),
        "head.weight": torch.zeros(9, 128),
        "head.bias": torch.zeros(9),
    }
    torch.save({"model": classifier}, tmp_path / "swin.pth")
    encoder = ImageEncoder(settings(swin_config(**SMALL_SWIN))).eval()
    (table,) = load_pretrained(encoder, 1, [str(tmp_path / "swin.pth")])
    assert "backbone.model.hidden_states_norms.stage2.weight" in {key for _, key, _ in table.kept}
    norms = {
        key: torch.full_like(state[key], key.endswith("weight")) for key in state if key.startswith("backbone.norm")
    }
    images = torch.randn(1, 3, 128, 256)
    assert_same_maps(encoder, plain.swin(state | norms, images, SMALL_SWIN["heads"], SMALL_SWIN["window"]), images)


class Code:
    def __reduce__(self):
        return open, ("proof", "w")


@pytest.mark.parametrize("content", [Code(), {"model": {"stem.conv1.weight": Code()}}, {"a": nn.Linear(1, 1)}])
def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="none of its code was run"):
        read_source(tmp_path / "x.pkl") if (tmp_path / "x.pkl").write_bytes(pickle.dumps(content)) else None
    assert not (tmp_path / "proof").exists()


def test_safetensors_come_first_and_shards_are_joined(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "model-00002-of-00002.safetensors")
    torch.save({"c": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    assert read_source(tmp_path).keys() == {"a", "b"}


@pytest.mark.parametrize("keys_of", [["a.weight"], ["backbone.stem.conv1.weight"]])
def test_an_unknown_source_is_an_error_with_some_of_its_keys(tmp_path, keys_of):
    save_file({key: torch.ones(1) for key in keys_of}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=keys_of[0]):
        load_pretrained(nn.Module(), 1, [str(tmp_path / "x.safetensors")])
    with pytest.raises(UserError, match="not found"):
        load_pretrained(nn.Module(), 1, [str(tmp_path / "y.pth")])


def test_a_weight_that_is_no_number_is_refused(tmp_path):
    state = resnet_state()
    key = next(key for key in state if key.endswith("conv2.weight"))
    state[key][0, 0, 0, 0] = torch.nan
    path = written(tmp_path / "R-50.pkl", {"model": {k.removeprefix("backbone."): v.numpy() for k, v in state.items()}})
    with pytest.raises(UserError, match=f"{path}: .* has 1 of .* NaN or infinite"):
        load_pretrained(resnet_encoder(), 1, [path])
