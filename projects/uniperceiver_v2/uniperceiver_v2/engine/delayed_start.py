"""A hook that lets parameter groups begin to learn later than the rest."""

from detectron2.engine import HookBase


class DelayedStart(HookBase):
    """Sets the learning rate of a parameter group to zero in the iterations before its ``delay``-th.

    At the start of training, region and image features are nearly the same for every input. The best answer is then the
    same for every input, too. A decoder that learns from such features maps all candidates to one direction, where
    gradients vanish. Therefore it has to wait until the features differ.

    Register this hook after Detectron2's ``hooks.LRScheduler``, which sets the rates after every iteration.
    """

    def before_step(self) -> None:
        for group in self.trainer.optimizer.param_groups:
            if self.trainer.iter < group.get("delay", 0):
                group["lr"] = 0.0
