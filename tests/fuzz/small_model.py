"""A model of a few weights, for the kinds of checkpoints: what is saved of it, and what has to come back."""

from pathlib import Path
from typing import Any

import torch
from mutations import EXTREMES
from running import SilentDamage
from torch import nn

from uniperceiver_v2.checkpoint import AtomicCheckpointer

# In the place of a tensor or a plain value
VALUES = (
    *EXTREMES,
    *(torch.zeros(0), torch.zeros(3), torch.zeros(4, 4, dtype=torch.int64), torch.full((4, 4), torch.nan)),
    *(torch.zeros(4, 4, dtype=torch.complex64), torch.zeros(4, 4).to_sparse(), torch.zeros(1).expand(2**40)),
    *(torch.zeros(4, 4, device="meta"), torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4).bfloat16()),
)


class Trap:
    """Ends the process with a signal if it is unpickled by a reader that runs code."""

    def __reduce__(self) -> Any:
        return eval, ("__import__('os').abort()",)

    def __deepcopy__(self, memo: dict) -> "Trap":  # which would call what __reduce__ names
        return self


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def read_weights(path: Path, only_bytes: bool) -> None:
    """Load a checkpoint of the model as a run does.

    Args:
        path: a file, or a directory of parts.
        only_bytes: whether the values have to be what was saved.

    Raises:
        UserError: a refusal.
        SilentDamage: the values are not finite, or others.
    """
    model = make_model()
    for value in model.parameters():
        nn.init.constant_(value, 3)
    AtomicCheckpointer(model).load(str(path))
    expected = make_model().state_dict()
    for key, value in model.state_dict().items():
        if not value.isfinite().all():
            raise SilentDamage(f"{key} is not finite")
        if only_bytes and not torch.equal(value, expected[key]):
            raise SilentDamage(f"{key} has other values than were saved")
