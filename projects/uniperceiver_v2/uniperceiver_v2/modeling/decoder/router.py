"""The router of the Conditional MoE: from attributes to experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...shared_noise import shared_normal
from ..layers import WeightCache
from .segments import IMAGE_TEXT_TO_TEXT, IMAGE_TO_TEXT, TEXT_TO_TEXT, Attributes, attribute_classes

Route = list[tuple[int, Tensor]]  # numbers of experts, each with the weight of its output

EMBEDDING = 64  # width of an embedded class of attributes; much above the eight bits, and still a tiny product


class Router(nn.Module):
    """Chooses k of E experts for each class of attributes (Zhu et al., "Uni-Perceiver-MoE", NeurIPS 2022).

    The attributes' bits a pass an embedding with normalisation and a gate without bias:

        logits = W_gate · LayerNorm(W a + b) + noise

    The experts of the k largest logits are used. Their weights are the softmax over these k logits alone, so they sum
    to 1. An expert that is not chosen gets no gradient. In training the noise, of standard deviation 1/E as in V-MoE,
    lets it be chosen now and then, so that it and its logit can learn. With k = 1 the one weight would be constantly 1
    and the gate would learn nothing. Therefore it is the softmax over all E logits, as in V-MoE.

    The noise is a pure function of the run's seed, the iteration, the layer and the class. So a class takes the same
    experts on all ranks, in all micro-batches of a step and when activations are recomputed.

    Two classes differ in few of the eight bits, and some bits are set in nearly all classes. What is common to all
    would decide the choice: two of the four experts would get 9 of the 13 classes from the first step on. Therefore b
    starts as -W times the mean of the known classes' bits. With it, classes start with experts as different as if each
    had logits of its own.

    Args:
        experts: E.
        active: k.
        layer: the layer's number in the decoder. Layers have different noise.
    """

    def __init__(self, experts: int, active: int, layer: int = 0):
        super().__init__()
        self.experts, self.active, self.layer = experts, active, layer
        self.embedding = nn.Linear(Attributes.ENCODING_LENGTH, EMBEDDING)
        self.norm = nn.LayerNorm(EMBEDDING)
        self.gate = nn.Linear(EMBEDDING, experts, bias=False)
        with torch.no_grad():
            known = attribute_classes([IMAGE_TO_TEXT, IMAGE_TEXT_TO_TEXT, TEXT_TO_TEXT])
            mean = self.embedding.weight.new_tensor([attributes.encoding() for attributes in known]).mean(0)
            self.embedding.bias.copy_(-self.embedding.weight @ mean)
        self._routes = WeightCache([self])

    def forward(self, classes: Sequence[Attributes]) -> list[Route]:
        """The k experts of each class of attributes, the most probable first; with noise in training."""
        return self._choose(classes, noisy=True) if self.training else self.route(classes)

    def route(self, classes: Sequence[Attributes]) -> list[Route]:
        """The same without noise, as in evaluation, whatever the mode.

        Without gradients a route is kept until the router changes. Choosing experts waits for the GPU, and in a small
        model it costs as much as an expert.
        """
        routes: dict[Attributes, Route] = self._routes.get("routes", dict)
        new = [attributes for attributes in classes if attributes not in routes]
        if new:
            routes.update(zip(new, self._choose(new, noisy=False)))
        return [routes[attributes] for attributes in classes]

    def _choose(self, classes: Sequence[Attributes], noisy: bool) -> list[Route]:
        rows = [[*attributes.encoding(), *(self._noise(attributes) if noisy else ())] for attributes in classes]
        inputs = self.gate.weight.new_tensor(rows)  # bits and noise go to the device in one copy
        bits = inputs[:, : Attributes.ENCODING_LENGTH]
        # The choice of experts must not depend on the precision.
        with torch.autocast(inputs.device.type, enabled=False):
            logits = self.gate(self.norm(self.embedding(bits)))
            if noisy:
                logits = logits + inputs[:, Attributes.ENCODING_LENGTH :]
            chosen, experts = logits.topk(self.active)
            weights = (chosen - logits.logsumexp(-1, keepdim=True)).exp() if self.active == 1 else chosen.softmax(-1)
        return [list(zip(*pair)) for pair in zip(experts.tolist(), weights.unbind())]

    def _noise(self, attributes: Attributes) -> list[float]:
        key = int("".join(map(str, attributes.encoding())), 2)
        return [number / self.experts for number in shared_normal(self.experts, self.layer, key)]
