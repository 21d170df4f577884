"""Communication in a single process and between two processes on the CPU."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.utils import comm

# The program of each process. It writes its results to a JSON file, so that the assertions can follow below.
WORKER = """
import json, os, sys
import numpy as np, torch, torch.distributed as dist
from detectron2.utils import comm
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
try:
    comm.get_local_rank()
    unprepared = "no error"
except AssertionError:
    unprepared = "error"
comm.create_local_process_group(2)
np.random.seed(rank)
values = {"b": torch.tensor(1.0 + rank), "a": torch.tensor(10.0 * rank)}
if rank == 1:
    values = dict(reversed(values.items()))
comm.synchronize()
result = {
    "unprepared": unprepared,
    "rank": comm.get_rank(),
    "world": comm.get_world_size(),
    "local": [comm.get_local_rank(), comm.get_local_size()],
    "main": comm.is_main_process(),
    "all": comm.all_gather({"rank": rank, "name": "x" * rank}),
    "gather0": comm.gather(rank * 2),
    "gather1": comm.gather(rank * 2, dst=1),
    "group": comm.all_gather(rank, group=comm.get_local_process_group()),
    "seed": comm.shared_random_seed(),
    "mean": {k: v.item() for k, v in comm.reduce_dict(dict(values)).items()},
    "sum": {k: v.item() for k, v in comm.reduce_dict(dict(values), average=False).items()},
}
with open(out, "w") as file:
    json.dump(result, file)
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # some versions of torch abort while they take down a group's threads
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comm")
    outs = [folder / "0.json", folder / "1.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(folder / "store"), str(out)], env=environment)
        for rank, out in enumerate(outs)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [json.loads(out.read_text()) for out in outs]


class TestTwoProcesses:
    def test_who_is_who(self, results):
        for rank, result in enumerate(results):
            assert (result["rank"], result["world"], result["local"]) == (rank, 2, [rank, 2])
            assert result["main"] == (rank == 0)

    def test_local_ranks_need_the_local_group(self, results):
        assert {result["unprepared"] for result in results} == {"error"}

    def test_all_gather_gives_everything_to_everyone(self, results):
        for result in results:
            assert result["all"] == [{"rank": 0, "name": ""}, {"rank": 1, "name": "x"}]
            assert result["group"] == [0, 1]

    def test_gather_gives_everything_to_one(self, results):
        assert [result["gather0"] for result in results] == [[0, 2], []]
        assert [result["gather1"] for result in results] == [[], [0, 2]]

    def test_the_shared_seed_is_process_zeros(self, results):
        expected = np.random.RandomState(0).randint(2**31)
        assert [result["seed"] for result in results] == [expected, expected]

    def test_reduction_is_by_key_and_for_process_zero(self, results):
        assert results[0]["mean"] == {"a": 5.0, "b": 1.5}
        assert results[0]["sum"] == {"a": 10.0, "b": 3.0}


class TestAlone:
    def test_a_run_of_one(self):
        assert (comm.get_rank(), comm.get_world_size()) == (0, 1)
        assert (comm.get_local_rank(), comm.get_local_size()) == (0, 1)
        assert comm.is_main_process()
        comm.synchronize()

    def test_gathering_and_reducing_return_what_is_given(self):
        data = object()
        assert comm.all_gather(data)[0] is data
        assert comm.gather(data)[0] is data
        assert comm.reduce_dict({"a": torch.tensor(2.0)}) == {"a": torch.tensor(2.0)}

    def test_seed(self):
        np.random.seed(3)
        assert comm.shared_random_seed() == np.random.RandomState(3).randint(2**31)
