"""Checkpoints in parts: one of the directory's files is damaged, with the manifest as it was or made to match."""

import io
import json
import os
import pickle
import random
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mutations import damaged_bytes, damaged_json, edited
from running import Damaged
from small_model import VALUES, Trap, make_model, read_weights
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from uniperceiver_v2.checkpoint.parts import MANIFEST, WHOLE, PartsWriter

METADATA = ".metadata"
PROCESSES = 2


def write_good(path: Path, meeting: Path, rank: int) -> None:
    """What one of the processes does that write the directory ``path``."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    state = {
        key: distribute_tensor(value, mesh, [Shard(0)]) if value.ndim else value
        for key, value in make_model().state_dict().items()
    }
    PartsWriter().write(str(path), {"model": state, "iteration": 7})


def in_processes(work: Any) -> None:
    """Call ``work`` with the number of each process, in a process of its own."""
    children = []
    for rank in range(PROCESSES):
        if (child := os.fork()) == 0:
            code = 1
            try:
                work(rank)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    if any([os.waitpid(child, 0)[1] for child in children]):
        raise RuntimeError("the good checkpoint could not be written")


class Kind:
    together = 10

    def __init__(self, folder: Path):
        in_processes(lambda rank: write_good(folder / "good", folder / "meeting", rank))
        self._good = {path.name: path.read_bytes() for path in (folder / "good").iterdir()}
        self._manifest = json.loads(self._good[MANIFEST])
        self._whole = torch.load(io.BytesIO(self._good[WHOLE]), weights_only=True)

    def damaged(self, rng: random.Random) -> Damaged:
        """``only_bytes``: the manifest is as it was saved, so that whatever is read has to be what was saved."""
        name = rng.choice([*self._good, METADATA, WHOLE])
        if name == MANIFEST:
            return Damaged(name, damaged_json(rng, self._manifest))
        if rng.random() < 0.3:
            return Damaged(name, damaged_bytes(rng, self._good[name]), only_bytes=True)
        if name == WHOLE and rng.random() < 0.7:
            buffer = io.BytesIO()
            torch.save(edited(rng, self._whole, VALUES), buffer)
            return Damaged(name, buffer.getvalue())
        if name == METADATA and rng.random() < 0.1:
            return Damaged(name, pickle.dumps([Trap()]))
        return Damaged(name, damaged_bytes(rng, self._good[name]))

    def read(self, path: Path, only_bytes: bool) -> None:
        directory = path.parent / "model_0000041"
        directory.mkdir()
        files = dict(self._good)
        if path.name != MANIFEST and not only_bytes:
            content = path.read_bytes()
            own = {"files": {**self._manifest["files"], path.name: [len(content), zlib.crc32(content)]}}
            files[MANIFEST] = json.dumps(own).encode()
        for name, content in files.items():
            if name != path.name:
                (directory / name).write_bytes(content)
        (directory / path.name).hardlink_to(path)
        read_weights(directory, only_bytes)

    def is_named(self, path: Path, message: str) -> bool:
        return str(path.parent / "model_0000041") in message
