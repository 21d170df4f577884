"""The unified decoder begins to learn in the iteration of its delay, the rest in the first one."""

import torch
from detectron2.engine import SimpleTrainer, hooks
from torch import nn

from uniperceiver_v2.engine import DelayedStart


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.early, self.late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

    def forward(self, batch):
        return {"loss": (self.early.sum() + self.late.sum()) * batch}


def test_a_delayed_group_moves_from_its_iteration_on_and_the_scheduler_sets_its_rate_then():
    model = TwoParts()
    optimizer = torch.optim.SGD([{"params": [model.early], "delay": 0}, {"params": [model.late], "delay": 3}], lr=0.5)
    seen = []

    class Record(hooks.HookBase):
        def after_step(self):
            seen.append((model.early[0].item(), model.late[0].item()))

    trainer = SimpleTrainer(model, [torch.tensor(1.0)] * 10, optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0)
    trainer.register_hooks([hooks.LRScheduler(optimizer, scheduler), DelayedStart(), Record()])
    trainer.train(0, 5)
    assert seen == [(0.5, 1.0), (0.0, 1.0), (-0.5, 1.0), (-1.0, 0.5), (-1.5, 0.0)]
