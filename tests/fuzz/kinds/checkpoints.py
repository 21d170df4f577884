"""Files of weights: torch.save's archives and older pickles, safetensors, and Detectron2's pickles of arrays."""

import io
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mutations import EXTREMES, damaged_bytes, edited
from running import Damaged
from safetensors.torch import save
from small_model import VALUES, Trap, make_model, read_weights

from uniperceiver_v2.checkpoint.adapters.reading import read_source
from uniperceiver_v2.reading import tensors_checksum


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
        if path.suffix == ".pkl":
            read_source(path)
        else:
            read_weights(path, only_bytes)

    def is_named(self, path: Path, message: str) -> bool:
        return str(path) in message
