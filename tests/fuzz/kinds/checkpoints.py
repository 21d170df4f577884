"""Files of weights: torch.save's archives and older pickles, safetensors, and Detectron2's pickles of arrays."""

import io
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mutations import EXTREMES, damaged_bytes, edited
from running import Damaged, SilentDamage
from safetensors.torch import save
from torch import nn

from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.checkpoint.adapters.reading import read_source
from uniperceiver_v2.reading import tensors_checksum

VALUES = (
    *EXTREMES,
    *(torch.zeros(0), torch.zeros(3), torch.zeros(4, 4, dtype=torch.int64), torch.full((4, 4), torch.nan)),
    *(torch.zeros(4, 4, dtype=torch.complex64), torch.zeros(4, 4).to_sparse(), torch.zeros(1).expand(2**40)),
    *(torch.zeros(4, 4, device="meta"), torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4).bfloat16()),
)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


class Trap:
    """Ends the process with a signal if it is unpickled by a reader that runs code."""

    def __reduce__(self) -> Any:
        return eval, ("__import__('os').abort()",)

    def __deepcopy__(self, memo: dict) -> "Trap":  # which would call what __reduce__ names
        return self


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


class Kind:
    together = 10

    def __init__(self, folder: Path):
        state = dict(make_model().state_dict())
        self._content = {"model": state, "iteration": 7, "rest": {"a": [1, 2.5], "b": "text"}}
        arrays = {key: value.numpy() for key, value in state.items()}
        self._pickled = {"model": arrays, "__author__": "nobody"}
        self._good = [
            ("a.pth", saved(self._content)),
            ("a.pth", saved(self._content)),
            ("a.pth", saved(self._content, _use_new_zipfile_serialization=False)),
            ("a.pkl", pickle.dumps(self._pickled)),
            ("a.safetensors", save(state, {"checksum": tensors_checksum(state)})),
            ("a.safetensors", save(state)),
        ]

    def damaged(self, rng: random.Random) -> Damaged:
        if rng.random() < 0.5:
            index = rng.randrange(len(self._good))
            name, content = self._good[index]
            return Damaged(name, damaged_bytes(rng, content), only_bytes=index in (0, 1, 4))
        content = edited(rng, self._content, VALUES)
        if rng.random() < 0.1:
            content = {"model": content, "trap": Trap()}
        if rng.random() < 0.2:
            return Damaged("a.pkl", pickle.dumps(edited(rng, self._pickled, (*EXTREMES, np.zeros(3), Trap()))))
        return Damaged("a.pth", saved(content, _use_new_zipfile_serialization=rng.random() < 0.8))

    def read(self, path: Path, only_bytes: bool) -> None:
        model = make_model()
        for value in model.parameters():
            nn.init.constant_(value, 3)
        if path.suffix == ".pkl":
            read_source(path)
            return
        AtomicCheckpointer(model).load(str(path))
        expected = make_model().state_dict()
        for key, value in model.state_dict().items():
            if not value.isfinite().all():
                raise SilentDamage(f"{key} is not finite")
            if only_bytes and not torch.equal(value, expected[key]):
                raise SilentDamage(f"{key} has other values than were saved")

    def is_named(self, path: Path, message: str) -> bool:
        return str(path) in message
