"""Feed-forward networks of the unified decoder. Each takes the layout of the sequence: its segments' attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .router import Router
from .segments import Attributes, Route

Layout = Sequence[tuple[int, Attributes]]  # (number of tokens, their attributes), in the order of the sequence
DenseWeights = tuple[
    tuple[Tensor, Tensor], tuple[Tensor, Tensor]
]  # (matrix, bias) of the two layers of a dense network


class DenseFeedForward(nn.Module):
    """BERT's feed-forward network: the same for all tokens, whatever their attributes."""

    def __init__(self, dim: int, ffn_dim: int):
        super().__init__()
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)

    def forward(self, hidden: Tensor, layout: Layout | None = None, weight: Tensor | None = None) -> Tensor:
        """
        Args:
            hidden: [B,L,d].
            layout: not used.
            weight: a scalar that multiplies the output, if given.
        Returns:
            [B,L,d]
        """
        inner, last = F.gelu(self.linear1(hidden)), self.linear2
        if weight is None:
            return last(inner)
        if hidden[..., 0].numel() < last.in_features:  # multiplies the smaller of output and matrix
            return weight * last(inner)
        return F.linear(inner, weight * last.weight, weight * last.bias)

    def weights(self, attributes: Attributes | None = None) -> DenseWeights:
        """The weights of both layers, the same for all attributes."""
        return (self.linear1.weight, self.linear1.bias), (self.linear2.weight, self.linear2.bias)


class ConditionalFeedForward(nn.Module):
    """Conditional MoE with attribute-level routing (Zhu et al., "Uni-Perceiver-MoE", NeurIPS 2022).

    A token passes through k of the E experts. The :class:`Router` chooses them from the token's attributes and sees
    nothing else of the token. The output is the sum of the experts' outputs with the router's weights.

    All tokens with the same attributes (a class of attributes) have the same experts. Nothing is dispatched token by
    token: a class is one dense product for each layer of each of its k experts. :meth:`merge` joins the matrices of
    the k experts once and for all. `forward` does not join them, because copying the weights costs up to half of a
    forward pass with 300 tokens.

    Args:
        dim: d.
        ffn_dim: width of an expert. k experts cost as much as a dense network of width k · `ffn_dim`.
        experts: E.
        active: k.
        layer: the layer's number in the decoder.
    Raises:
        ValueError: k is not between 1 and E.
    """

    def __init__(self, dim: int, ffn_dim: int, experts: int, active: int, layer: int = 0):
        super().__init__()
        if not 1 <= active <= experts:
            raise ValueError(f"the active experts must be between 1 and {experts}, the number of experts, not {active}")
        self.router = Router(experts, active, layer)
        self.experts = nn.ModuleList(DenseFeedForward(dim, ffn_dim) for _ in range(experts))

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Tokens [B,L,d] to [B,L,d]. The lengths in `layout` sum to L. A layout without routes gets them here."""
        given = getattr(layout, "routes", None)
        classes = _classes(layout)
        routes = dict(zip(classes, self.router(classes))) if given is None else given[self.router.layer]

        def network(attributes: Attributes, tokens: Tensor) -> Tensor:
            return reduce(torch.add, (self.experts[e](tokens, weight=weight) for e, weight in routes[attributes]))

        return _by_class(hidden, layout, network)

    def route(self, classes: Sequence[Attributes]) -> list[Route]:
        """The k experts of each class of attributes with their weights, the most probable first, as in evaluation."""
        return self.router.route(classes)

    @torch.no_grad()
    def merge(self, classes: Iterable[Attributes]) -> MergedFeedForward:
        """One dense network for each of these classes of attributes, with the same outputs as in evaluation."""
        networks = {}
        for attributes in classes:
            (weight1, bias1), (weight2, bias2) = self.weights(attributes)
            networks[attributes] = joined = DenseFeedForward(len(weight2), len(weight1)).to(weight1)
            for parameter, value in zip(joined.parameters(), (weight1, bias1, weight2, bias2)):
                parameter.copy_(value)
        return MergedFeedForward(networks)

    @torch.no_grad()
    def weights(self, attributes: Attributes) -> DenseWeights:
        """Copied weights of the dense network with the same outputs for these attributes in evaluation.

        Its hidden layer holds the k experts side by side. Its second layer contains the router's weights.
        """
        (route,) = self.route([attributes])
        experts, shares = [self.experts[expert] for expert, _ in route], [weight for _, weight in route]
        first, second = [e.linear1 for e in experts], [e.linear2 for e in experts]
        return (
            (torch.cat([linear.weight for linear in first]), torch.cat([linear.bias for linear in first])),
            (
                torch.cat([w * linear.weight for w, linear in zip(shares, second)], dim=1),
                sum(w * linear.bias for w, linear in zip(shares, second)),
            ),
        )


class MergedFeedForward(nn.Module):
    """A dense network for each class of attributes, without a router: the form of a Conditional MoE for deployment.

    Args:
        networks: the network for each class. Its key in the state dict has the digits of :meth:`Attributes.encoding`.
    """

    def __init__(self, networks: Mapping[Attributes, DenseFeedForward]):
        super().__init__()
        self.networks = nn.ModuleDict({_key(attributes): network for attributes, network in networks.items()})

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Tokens [B,L,d] to [B,L,d]. The lengths in `layout` sum to L.

        Raises:
            ValueError: the layout has attributes for which the experts were not merged.
        """
        return _by_class(hidden, layout, self._network)

    def weights(self, attributes: Attributes) -> DenseWeights:
        """The weights of the network for these attributes."""
        return self._of(attributes).weights()

    def _network(self, attributes: Attributes, tokens: Tensor) -> Tensor:
        return self._of(attributes)(tokens)

    def _of(self, attributes: Attributes) -> DenseFeedForward:
        if _key(attributes) not in self.networks:
            raise ValueError(f"the experts were merged without a network for {attributes}")
        return self.networks[_key(attributes)]


def _key(attributes: Attributes) -> str:
    return "".join(map(str, attributes.encoding()))


def _classes(layout: Layout) -> list[Attributes]:
    return list(dict.fromkeys(attributes for _, attributes in layout))


def _by_class(hidden: Tensor, layout: Layout, network: Callable[[Attributes, Tensor], Tensor]) -> Tensor:
    """Sends tokens [B,L,d] through `network`, with one call for all tokens of a class of attributes."""
    classes = _classes(layout)
    if len(classes) == 1:
        return network(classes[0], hidden)
    parts = hidden.split([length for length, _ in layout], dim=1)
    outputs = list(parts)
    for attributes in classes:
        places = [place for place, (_, others) in enumerate(layout) if others == attributes]
        found = network(attributes, torch.cat([parts[place] for place in places], dim=1))
        for place, output in zip(places, found.split([layout[place][0] for place in places], dim=1)):
            outputs[place] = output
    return torch.cat(outputs, dim=1)
