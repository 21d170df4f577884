"""Parameter groups that begin to learn later than the rest."""

from detectron2.engine import HookBase


class DelayedStart(HookBase):
    """Holds the learning rate of a parameter group at zero before its ``delay``-th iteration.

    While region and image features tell nothing apart, the likeliest answer is the same for every input, and a decoder
    that learns from it maps all candidates to one direction, where gradients vanish. It has to wait for features.

    To be registered after Detectron2's ``hooks.LRScheduler``, which sets the rates anew after every iteration.
    """

    def before_step(self) -> None:
        for group in self.trainer.optimizer.param_groups:
            if self.trainer.iter < group.get("delay", 0):
                group["lr"] = 0.0
