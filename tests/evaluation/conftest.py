import json

import pytest
import torch
import torch.distributed as dist


@pytest.fixture
def on_two_ranks(tmp_path):
    """on_two_ranks(make_evaluator, inputs, outputs): the results of two ranks' evaluators. Each gets every other
    sample."""

    def run(make_evaluator, inputs, outputs):
        def work(rank):
            dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=rank, world_size=2)
            evaluator = make_evaluator()
            evaluator.reset()
            evaluator.process(inputs[rank::2], outputs[rank::2])
            (tmp_path / f"{rank}.json").write_text(json.dumps(evaluator.evaluate()))
            dist.destroy_process_group()

        torch.multiprocessing.start_processes(work, nprocs=2, start_method="fork")
        return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]

    return run
