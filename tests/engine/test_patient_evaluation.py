"""The first process may compute metrics for longer than the time limit of the processes."""

import os
import time
from datetime import timedelta

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from uniperceiver_v2.engine.patient_evaluation import PatientEvaluator

LIMIT = 2  # seconds


class Slow(DatasetEvaluator):
    """Gathers, and then computes on the first process for longer than the others would wait."""

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += outputs

    def evaluate(self):
        gathered = comm.gather(self.seen)
        if comm.is_main_process():
            time.sleep(2 * LIMIT)
            return {"boats": {"AP": sum(map(sum, gathered))}}


def evaluate(rank: int, folder: str, patient: bool) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=LIMIT), rank=rank, world_size=2)
    comm.create_local_process_group(2)
    evaluator = PatientEvaluator(Slow()) if patient else Slow()
    evaluator.reset()
    evaluator.process([], [rank + 1])
    results = evaluator.evaluate()
    assert (results or {}).get("boats") == ({"AP": 3} if rank == 0 else None)
    assert comm.all_gather(rank) == [0, 1]  # the next collective call
    dist.destroy_process_group()
    # All is asserted. As Python ends, a thread of gloo was sometimes still at work, and aborted the process.
    os._exit(0)


@pytest.mark.parametrize("patient", [False, True])
def test_the_others_wait_as_long_as_it_takes(tmp_path, patient):
    if patient:
        mp.start_processes(evaluate, (str(tmp_path), True), nprocs=2, start_method="fork")
    else:  # what the time limit does otherwise
        with pytest.raises(mp.ProcessRaisedException, match=r"(?i)time|connection"):
            mp.start_processes(evaluate, (str(tmp_path), False), nprocs=2, start_method="fork")
