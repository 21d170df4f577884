"""The peer of detection is trained and tested once, and not a second time."""

import json

import pytest
import torch
from detectron2.structures import Boxes, Instances


@pytest.fixture
def peer(imported):
    return imported("peer_deformable_detr")


def test_peer_trains_once_and_stands_in_the_table(peer, small_data, monkeypatch, capsys, tmp_path):
    options = ["--minutes", "0.01", "--output", str(tmp_path)]
    peer.main(options)
    report = json.loads((tmp_path / "0.01_0.0005_0" / "run.json").read_text())
    assert report["iterations"] >= 1 and report["results"]["digit_scenes_test"]["bbox"].keys() >= {"AP", "AP50"}
    table = capsys.readouterr().out.splitlines()[-3:]
    assert table[2].startswith("| 0.01 | 0.0005 | 0 | 5.4") and len({row.count("|") for row in table}) == 1
    monkeypatch.setattr(peer, "train", None)
    peer.main(options)
    assert capsys.readouterr().out.splitlines() == table


def test_boxes_go_to_the_peer_and_come_back(peer):
    instances = Instances((40, 80), gt_classes=torch.tensor([3]), gt_boxes=Boxes([[8.0, 4.0, 24.0, 36.0]]))
    labels = peer.Peer._labels(instances)
    torch.testing.assert_close(labels["boxes"], torch.tensor([[0.2, 0.5, 0.2, 0.8]]))
    scores = torch.zeros(1, 10)
    scores[0, 3] = 0.9
    found = peer.Peer._instances(scores, labels["boxes"], (20, 40))  # half as large
    torch.testing.assert_close(found.pred_boxes.tensor[0], torch.tensor([4.0, 2.0, 12.0, 18.0]))
    assert found.pred_classes[0] == 3 and found.scores[0] == 0.9
