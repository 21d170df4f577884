"""The router of the Conditional MoE: from attributes to experts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...shared_noise import shared_normal, step_of_noise
from ...transfer import fetch, send
from ..layers import WeightCache
from .segments import IMAGE_TEXT_TO_TEXT, IMAGE_TO_TEXT, TEXT_TO_TEXT, Attributes, Route, attribute_classes

EMBEDDING = 64  # width of an embedded class of attributes; much above the eight bits, and still a tiny product
KNOWN = attribute_classes([IMAGE_TO_TEXT, IMAGE_TEXT_TO_TEXT, TEXT_TO_TEXT])
KNOWN_BITS = [attributes.encoding() for attributes in KNOWN]
RANDOM_GATES = 2048  # of which the best is the start. With 256, more classes of different kinds share their experts


class Router(nn.Module):
    """Chooses k of E experts for each class of attributes (Zhu et al., "Uni-Perceiver-MoE", NeurIPS 2022).

    The attributes' bits a pass an embedding with normalisation and a gate without bias:

        logits = W_gate · (LayerNorm(W a + b) - mean) / sqrt(m) + noise

    The experts of the k largest logits are used. Their weights are the softmax over these k logits alone, so they sum
    to 1. An expert that is not chosen gets no gradient. In training the noise, of standard deviation 1/E as in V-MoE,
    lets it be chosen now and then, so that it and its logit can learn. With k = 1 the one weight would be constantly 1
    and the gate would learn nothing. Therefore it is the softmax over all E logits, as in V-MoE.

    The noise is a pure function of the run's seed, the iteration, the layer and the class. So a class takes the same
    experts on all ranks, in all micro-batches of a step and when activations are recomputed.

    The mean is that of the normalised embeddings of all known classes, and m is their width. The paper does not have
    it. Without it, what is common to all classes decides the choice, at the start and in training: an expert that has
    learned more than the others is preferred by all classes, learns more, and in the end all have the same k experts.
    With it, the logits of an expert sum to 0 over the known classes.

    Classes have to start with different experts, or these learn the same. Therefore the gate starts as the best of
    many random gates, see :func:`_spread_gate`. Routes have no effect on the outputs then, as each expert starts with
    the output 0 (:class:`UnifiedDecoder`). The weights of embedding and gate are of size 1. Steps of an Adam-like
    optimizer are equally long for all weights, so beside small weights they would change routes before an expert could
    learn from its classes.

    Args:
        experts: E.
        active: k.
        layer: the layer's number in the decoder. Layers have different noise.
    """

    def __init__(self, experts: int, active: int, layer: int = 0):
        super().__init__()
        self.experts, self.active, self.layer = experts, active, layer
        self.embedding = nn.Linear(Attributes.ENCODING_LENGTH, EMBEDDING)
        self.norm = nn.LayerNorm(EMBEDDING, elementwise_affine=False)
        self.gate = nn.Linear(EMBEDDING, experts, bias=False)
        with torch.no_grad():
            bits = self.embedding.weight.new_tensor(KNOWN_BITS)
            self.embedding.weight.normal_()
            self.embedding.bias.copy_(-self.embedding.weight @ bits.mean(0))
            kinds = [(attributes.modality, attributes.role) for attributes in KNOWN]
            self.gate.weight.copy_(_spread_gate(self._embed(bits), kinds, experts, active))
        self._routing = Routing([self])

    def forward(self, classes: Sequence[Attributes]) -> list[Route]:
        """The k experts of each class of attributes, the most probable first; with noise in training."""
        (routes,) = self._routing(classes, noisy=self.training)
        return [routes[attributes] for attributes in classes]

    def route(self, classes: Sequence[Attributes]) -> list[Route]:
        """The same without noise, as in evaluation, whatever the mode."""
        (routes,) = self._routing(classes, noisy=False)
        return [routes[attributes] for attributes in classes]

    def noise(self, attributes: Attributes) -> list[float]:
        """What is added to the logits [E] of a class in this step."""
        key = int("".join(map(str, attributes.encoding())), 2)
        return [number / self.experts for number in shared_normal(self.experts, self.layer, key)]

    def _embed(self, bits: Tensor) -> Tensor:
        return _embed(bits, [self.embedding])[0]


class Routing:
    """The routes of all layers of a decoder, computed together.

    The weights of the experts stay on the device. The host needs their numbers, and waits for the device to have them.
    So they are kept while neither a weight nor the step's noise changes, and the first pass of a step asks for those
    of all classes of its task, the candidates' among them. A training step waits once.

    Without gradients and noise, the weights are kept as well.

    Args:
        routers: one for each layer, with the same sizes.
    """

    def __init__(self, routers: Sequence[Router]):
        self._routers = list(routers)
        self._cache = WeightCache(self._routers)
        self._numbers: dict[Attributes, list[list[int]]] = {}  # of the experts of a class, for each layer
        self._state: object = None

    def __call__(self, classes: Sequence[Attributes], noisy: bool) -> list[dict[Attributes, Route]]:
        """For each layer, the k experts of each class of attributes, the most probable first."""
        routes: dict[Attributes, list[Route]] = {} if noisy else self._cache.get("routes", dict)
        new = [attributes for attributes in classes if attributes not in routes]
        if new:
            routes.update(zip(new, self._choose(new, noisy)))
        return [{attributes: routes[attributes][i] for attributes in classes} for i in range(len(self._routers))]

    def _choose(self, classes: Sequence[Attributes], noisy: bool) -> list[list[Route]]:
        """For each class, its route in each layer."""
        state = self._cache.state(), noisy and step_of_noise()
        if state != self._state:
            self._state, self._numbers = state, {}
        # The same number of rows in each pass of a step: products of other sizes may round differently.
        asked = list(dict.fromkeys([*classes, *attribute_classes(x.task for x in classes)]))
        weights, experts = self._top(asked, noisy)
        if not self._numbers.keys() >= set(classes):
            (numbers,) = fetch(experts)
            self._numbers.update((x, numbers[:, i].tolist()) for i, x in enumerate(asked))
        scalars = iter(weights[:, : len(classes)].transpose(0, 1).flatten().unbind())
        return [[[(e, next(scalars)) for e in of_layer] for of_layer in self._numbers[x]] for x in classes]

    def _top(self, classes: Sequence[Attributes], noisy: bool) -> tuple[Tensor, Tensor]:
        """Weights and numbers of the k experts of n classes in R layers, [R,n,k] each."""
        routers, width = self._routers, Attributes.ENCODING_LENGTH
        bits = [*KNOWN_BITS, *(x.encoding() for x in classes)]
        noise = [router.noise(x) for router in routers for x in classes] if noisy else []
        numbers = torch.tensor([*chain(*bits), *chain(*noise)], dtype=routers[0].gate.weight.dtype)
        numbers = send(numbers, routers[0].gate.weight.device)  # bits and noise in one copy
        bits, noise = numbers[: len(bits) * width].view(-1, width), numbers[len(bits) * width :]
        # The choice of experts must not depend on the precision.
        with torch.autocast(numbers.device.type, enabled=False):
            embedded = _embed(bits, [router.embedding for router in routers])[:, len(KNOWN_BITS) :]
            logits = torch.stack([router.gate(x) for router, x in zip(routers, embedded, strict=True)])
            if noisy:
                logits = logits + noise.view_as(logits)
            chosen, experts = logits.topk(routers[0].active)
            if routers[0].active == 1:
                return (chosen - logits.logsumexp(-1, keepdim=True)).exp(), experts
            return chosen.softmax(-1), experts


def _embed(bits: Tensor, embeddings: Sequence[nn.Linear]) -> Tensor:
    """Bits [n,8] of the known classes, followed by those of any classes, to the gates' inputs [R,n,m] in R layers. The
    mean over the known classes is 0."""
    weight, bias = (torch.cat([getattr(layer, name) for layer in embeddings]) for name in ("weight", "bias"))
    embedded = F.layer_norm(F.linear(bits, weight, bias).unflatten(1, (-1, EMBEDDING)), (EMBEDDING,))
    centred = (embedded - embedded[: len(KNOWN_BITS)].mean(0)) / EMBEDDING**0.5
    return centred.transpose(0, 1).contiguous()


def _spread_gate(embedded: Tensor, kinds: Sequence[object], experts: int, active: int) -> Tensor:
    """The start of a gate [E,m]: of random gates, the one with the best routes.

    A gate is the better, the smaller this sum is:

    - the number of pairs of classes of different kinds that have the same k experts;
    - how many classes more the most used expert has than the least used one;
    - less the gap between the k-th and the next logit, as the lower quartile over classes. It is mostly below 1 and
      decides among gates that are otherwise equal. The larger it is, the less often noise changes a route.

    Rows have the length sqrt(m), so logits have a standard deviation of about 1 over classes: four times that of the
    noise with four experts.

    Args:
        embedded: [n,m], the gate's inputs of n classes.
        kinds: of the n classes.
    """
    width = embedded.shape[1]
    gates = F.normalize(torch.randn(RANDOM_GATES, experts, width).to(embedded), dim=-1) * width**0.5
    logits = embedded @ gates.mT
    order = logits.argsort(-1, descending=True)
    used = torch.zeros_like(logits).scatter_(-1, order[..., :active], 1.0)
    differ = torch.tensor([[a != b for b in kinds] for a in kinds], device=logits.device)
    same_experts = used @ used.mT > active - 0.5
    cost = (same_experts & differ).sum((1, 2)) / 2
    classes = used.sum(1)  # of each expert
    cost += classes.amax(-1) - classes.amin(-1)
    if active < experts:
        ordered = logits.gather(-1, order)
        cost -= (ordered[..., active - 1] - ordered[..., active]).quantile(0.25, dim=1)
    return gates.index_select(0, cost.argmin().view(1))[0]  # gates[i] would need a value, which "meta" does not have
