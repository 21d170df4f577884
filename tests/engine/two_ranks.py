"""One process of test_two_ranks, which trains on its share of every batch. Arguments: rank, world size, folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from detectron2.utils import comm

from conftest import TaskBatches, ToyTrainer, toy_config


class ShareTrainer(ToyTrainer):
    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        model.dropout.p = 0.0
        return model

    @classmethod
    def build_task_loader(cls, cfg, task, numbers):
        for batch in TaskBatches(task, numbers):
            yield batch[comm.get_rank() :: comm.get_world_size()]


def main(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world_size)
        comm.create_local_process_group(world_size)
    cfg = toy_config(f"{folder}/{world_size}")
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.MAX_ITER = 30
    torch.manual_seed(rank)  # ranks must agree without the help of equal seeds
    if rank == 0:
        torch.manual_seed(0)
    trainer = ShareTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    if world_size > 1:
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        assert all(torch.equal(weights, other) for other in comm.all_gather(weights))
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
