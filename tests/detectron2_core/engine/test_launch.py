"""A single process runs inline. Two processes train together with gloo."""

import json
import os
import subprocess
import sys
from datetime import timedelta

import pytest
from detectron2.engine import DEFAULT_TIMEOUT, launch
from detectron2.utils import comm

# A separate script, as the processes that ``launch`` starts import the main module again.
SCRIPT = """
import json
import os
import sys

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import SimpleTrainer, create_ddp_model, hooks, launch
from detectron2.utils import comm


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0]))

    def forward(self, batch):
        return {"loss_a": (self.weight * batch).sum(), "loss_b": (self.weight * 0 + batch).sum()}


def main(directory, lr):
    rank = comm.get_rank()
    model = create_ddp_model(Line(), device_ids=None, broadcast_buffers=False)
    data = [torch.tensor(float(rank))] * 3
    trainer = SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=lr))
    checkpointer = DetectionCheckpointer(model, f"{directory}/rank{rank}")
    if comm.is_main_process():
        os.mkdir(f"{directory}/rank{rank}")
    trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 2)])
    trainer.train(0, 3)
    facts = {
        "world_size": comm.get_world_size(),
        "local_rank": comm.get_local_rank(),
        "ranks": comm.all_gather(rank),
        "weight": model.module.weight.item(),
        "histories": {k: [v for v, _ in h.values()] for k, h in trainer.storage.histories().items()},
    }
    with open(f"{directory}/facts{rank}.json", "w") as file:
        json.dump(facts, file)


if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1], 0.1))
"""


def test_one_process_runs_inline():
    seen = []
    launch(lambda *args: seen.append((args, os.getpid(), comm.get_world_size())), 1, args=(1, "two"))
    (arguments, process, world_size), *others = seen
    assert (arguments, process, world_size, others) == ((1, "two"), os.getpid(), 1, [])
    assert timedelta(minutes=30) == DEFAULT_TIMEOUT


def test_auto_url_is_for_one_machine():
    with pytest.raises(AssertionError):
        launch(print, 1, num_machines=2, dist_url="auto")


def test_two_processes_train_together(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    # No devices: on a machine with one GPU, two processes would not get one each.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, env=environment, timeout=120)
    first, second = (json.loads((tmp_path / f"facts{rank}.json").read_text()) for rank in range(2))
    assert first["world_size"] == second["world_size"] == 2
    assert (first["local_rank"], second["local_rank"]) == (0, 1)
    assert first["ranks"] == second["ranks"] == [0, 1]
    # Gradients 0 and 1 are averaged, on both.
    assert first["weight"] == second["weight"] == pytest.approx(1 - 3 * 0.1 * 0.5)
    # The main process has the averages of both ranks' losses.
    assert first["histories"]["loss_a"] == pytest.approx([0.5, 0.475, 0.45])
    assert first["histories"]["loss_b"] == [0.5] * 3
    assert first["histories"]["total_loss"] == pytest.approx([1.0, 0.975, 0.95])
    assert "total_loss" not in second["histories"]
    assert (tmp_path / "rank0" / "model_final.pth").exists()
    assert not (tmp_path / "rank1").exists()
