"""With nothing but a checkpoint of Mask DINO, one command gives proposals whose recall equals the original's."""

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

import train_net
from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_test_loader
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.tasks.labelled_proposals import paste_masks

from ...data import miniatures
from . import mask_dino_keys as keys
from . import plain_mask_dino as plain

CONFIG = str(REPOSITORY / "configs/coco/uniperceiver_v2_r50_mask_dino_proposals.yaml")
RANKS = (0, 4, 9, 30, 60, 99, 150, 299)  # of the original's proposals; an object is near each
NAME, SIZE = "coco_2017_proposals_val", (miniatures.HEIGHT, miniatures.WIDTH)


def checkpoint_with_small_masks() -> dict[str, Tensor]:
    """Random weights in the published form. Masks cover some per cent of an image. Without the shift, they would all be
    the whole image, and boxes begin as those of masks."""
    state = keys.random_checkpoint(keys.r50() | keys.heads((256, 512, 1024, 2048)))
    state["sem_seg_head.predictor.mask_embed.layers.2.bias"] += 0.2
    state["sem_seg_head.pixel_decoder.mask_features.bias"] -= 0.2
    return state


@torch.no_grad()
def original_proposals(state: dict[str, Tensor], cfg) -> list[dict]:
    """The 300 proposals of each image, best first, by the plain network and in COCO's results format. The network takes
    the padding to multiples of 32 as a part of the image."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    results = []
    for sample in (sample for batch in build_test_loader(cfg, NAME) for sample in batch):
        height, width = sample["image"].shape[-2:]
        image = F.pad(((sample["image"] - mean) / std)[None], (0, -width % 32, 0, -height % 32))
        found = plain.region_network(state, plain.resnet(state, image), 300, "mask2box")
        scores, order = found["classes"][0].amax(-1).sigmoid().sort(descending=True)
        encoded = tuple(image.shape[-2:])
        masks = paste_masks(found["masks"][0, order], (height, width), encoded, SIZE)
        corners = found["boxes"][0, order] @ torch.tensor(
            [[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]]
        )
        corners = corners * torch.tensor([encoded[1] / width, encoded[0] / height] * 2)
        x0, y0, x1, y1 = (corners.clamp(0, 1) * torch.tensor([SIZE[1], SIZE[0]] * 2)).T
        boxes = torch.stack((x0, y0, x1 - x0, y1 - y0), 1).tolist()
        for box, mask, score in zip(boxes, masks.numpy(), scores.tolist(), strict=True):
            runs = mask_api.encode(np.asfortranarray(mask))
            runs["counts"] = runs["counts"].decode()
            results.append(
                {"image_id": sample["image_id"], "category_id": 1, "bbox": box, "segmentation": runs, "score": score}
            )
    return results


def write_objects_near(proposals: list[dict], json_file: Path) -> None:
    """Objects of many categories, each of them beside a proposal at an IoU that is not just at a threshold."""
    content, annotations = json.loads(json_file.read_text()), []
    categories = [category["id"] for category in content["categories"]]
    for image in content["images"]:
        its = [p for p in proposals if p["image_id"] == image["id"]]
        for place, rank in enumerate(RANKS):
            x, y, width, height = its[rank]["bbox"]
            box = [x, y, max(width * (0.988 - 0.033 * place), 2), max(height, 2)]
            mask = np.roll(mask_api.decode(its[rank]["segmentation"]), place, axis=1)
            mask[:2, :2] = 1
            runs = mask_api.encode(np.asfortranarray(mask))
            runs["counts"] = runs["counts"].decode()
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": image["id"], "category_id": categories[9 * place]},
                    **{"bbox": box, "segmentation": runs, "area": box[2] * box[3], "iscrowd": int(place == 2)},
                }
            )
    json_file.write_text(json.dumps({**content, "annotations": annotations}))


def official_recall(json_file: Path, proposals: list[dict], kind: str) -> dict[str, float]:
    """By pycocotools, from objects and proposals of one category."""
    content = json.loads(json_file.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 1
    truth = COCO()
    truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([{**p, "category_id": 1} for p in proposals]), kind)
        evaluation.params.catIds, evaluation.params.maxDets = [1], [10, 100, 300]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("AR@10", "AR@100", "AR@300"), (100 * evaluation.stats[6:9]).tolist()))


@pytest.mark.slow
@pytest.mark.parametrize("side", [192, 200], ids=["without padding", "with padding"])
def test_a_checkpoint_and_one_command_give_the_recall_of_the_original(tmp_path, monkeypatch, side):
    miniatures.register_only(tmp_path, monkeypatch)
    json_file = miniatures.write_coco(tmp_path, [1, 2, 3], "val2017")
    state = checkpoint_with_small_masks()
    torch.save({"model": state}, tmp_path / "published.pth")
    # Sides of 192 and 256 pixels need no padding, those of 200 and 267 do. Both have more than 300 tokens.
    settings = ["MODEL.UNIPERCEIVER_V2.PRETRAINED", f"['{tmp_path / 'published.pth'}']"]
    settings += ["OUTPUT_DIR", str(tmp_path / "out")]
    settings += ["INPUT.MIN_SIZE_TEST", str(side), "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"]
    expected = original_proposals(state, load_config(CONFIG, settings, training=False))
    write_objects_near(expected, json_file)
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", CONFIG, "--eval-only", *settings])
    assert train_net.run() == 0
    results = json.loads((tmp_path / "out/results.json").read_text())[NAME]
    written = json.loads((tmp_path / "out/inference" / NAME / "proposals.json").read_text())
    assert len(written) == len(expected) == 3 * 300
    for kind in ("bbox", "segm"):
        assert results[kind] == pytest.approx(official_recall(json_file, written, kind))
        assert results[kind] == pytest.approx(official_recall(json_file, expected, kind), abs=0.5)
        assert 5 < results[kind]["AR@10"] <= results[kind]["AR@100"] <= results[kind]["AR@300"] < 95
    assert results["bbox"]["AR@10"] < results["bbox"]["AR@300"]
