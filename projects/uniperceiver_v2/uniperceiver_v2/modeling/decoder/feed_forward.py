"""Feed-forward networks of the unified decoder. All take where in the sequence which attributes stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .segments import Attributes

Layout = Sequence[tuple[int, Attributes]]  # (number of tokens, their attributes), in the order of the sequence
Route = list[tuple[int, Tensor]]  # experts with the weights of their outputs
DenseWeights = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]  # matrix and bias of a dense network's two layers


class DenseFeedForward(nn.Module):
    """BERT's feed-forward network: one for all tokens, blind to the attributes."""

    def __init__(self, dim: int, ffn_dim: int):
        super().__init__()
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)

    def forward(self, hidden: Tensor, layout: Layout | None = None, weight: Tensor | None = None) -> Tensor:
        """[B,L,d] to [B,L,d], whatever the layout; times `weight`, if it is given."""
        inner, last = F.gelu(self.linear1(hidden)), self.linear2
        if weight is None:
            return last(inner)
        if hidden[..., 0].numel() < last.in_features:  # what is smaller is weighed: the outputs or the matrix
            return weight * last(inner)
        return F.linear(inner, weight * last.weight, weight * last.bias)

    def weights(self, attributes: Attributes | None = None) -> DenseWeights:
        """Of both layers, whatever the attributes."""
        return (self.linear1.weight, self.linear1.bias), (self.linear2.weight, self.linear2.bias)


class ConditionalFeedForward(nn.Module):
    """Conditional MoE with attribute-level routing (Zhu et al., "Uni-Perceiver-MoE", NeurIPS 2022).

    The router is one linear map of a token's attributes, and of nothing else, to a distribution p over the E experts.
    The k likeliest experts are used, the output of expert e weighed by p_e · E / k: the mean of k experts where p is
    uniform, which it nearly is at the start. As p is normalised over all experts, those that are not used learn to be.

    A route belongs to a class of attributes, so that nothing is dispatched token by token: all tokens of a class are
    one dense product for each layer of its k experts. Their matrices are not joined into one for that, which
    :meth:`merge` does once: a copy of the weights costs up to half of a forward pass with 300 tokens.

    Args:
        dim: d.
        ffn_dim: width of an expert; k experts cost what a dense network of k times this width costs.
        experts: E.
        active: k.
    Raises:
        ValueError: k is not between 1 and E.
    """

    def __init__(self, dim: int, ffn_dim: int, experts: int, active: int):
        super().__init__()
        if not 1 <= active <= experts:
            raise ValueError(f"the active experts must be between 1 and {experts}, the number of experts, not {active}")
        self.active = active
        self.router = nn.Linear(Attributes.ENCODING_LENGTH, experts)
        nn.init.normal_(self.router.weight, std=0.1)  # routes differ from class to class, weights hardly
        nn.init.zeros_(self.router.bias)
        self.experts = nn.ModuleList(DenseFeedForward(dim, ffn_dim) for _ in range(experts))
        self._router_state: list | None = None
        self._routes: dict[Attributes, Route] = {}

    @torch.compiler.disable  # a graph would hold for one choice of experts alone
    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """[B,L,d] to [B,L,d]; the lengths in `layout` sum to L."""
        classes = _classes(layout)
        routes = dict(zip(classes, self.route(classes)))

        def network(attributes: Attributes, tokens: Tensor) -> Tensor:
            return reduce(torch.add, (self.experts[e](tokens, weight=weight) for e, weight in routes[attributes]))

        return _by_class(hidden, layout, network)

    def route(self, classes: Sequence[Attributes]) -> list[Route]:
        """The k experts of each class of attributes, the likeliest first.

        Without gradients a route is kept until the router changes: to choose costs a small model's step of generation
        as much as an expert, and a GPU has to be waited for.
        """
        if torch.is_grad_enabled():
            return self._choose(classes)
        state = [(p.data_ptr(), p._version) for p in self.router.parameters()]
        if state != self._router_state:
            self._router_state, self._routes = state, {}
        new = [attributes for attributes in classes if attributes not in self._routes]
        if new:
            self._routes.update(zip(new, self._choose(new)))
        return [self._routes[attributes] for attributes in classes]

    def _choose(self, classes: Sequence[Attributes]) -> list[Route]:
        encodings = self.router.weight.new_tensor([attributes.encoding() for attributes in classes])
        with torch.autocast(encodings.device.type, enabled=False):  # a choice must not depend on the precision
            shares = self.router(encodings).softmax(dim=-1)
        weights, experts = (shares * (len(self.experts) / self.active)).topk(self.active)
        return [list(zip(*pair)) for pair in zip(experts.tolist(), weights.unbind())]

    @torch.no_grad()
    def merge(self, classes: Iterable[Attributes]) -> MergedFeedForward:
        """The same function for these classes of attributes as one dense network each."""
        networks = {}
        for attributes in classes:
            (weight1, bias1), (weight2, bias2) = self.weights(attributes)
            networks[attributes] = joined = DenseFeedForward(len(weight2), len(weight1)).to(weight1)
            for parameter, value in zip(joined.parameters(), (weight1, bias1, weight2, bias2)):
                parameter.copy_(value)
        return MergedFeedForward(networks)

    @torch.no_grad()
    def weights(self, attributes: Attributes) -> DenseWeights:
        """Of the dense network that is the same function for these attributes: the experts side by side, their weights
        in the second layer. Copies."""
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
    """A dense network for each class of attributes, without a router: what a Conditional MoE is deployed as.

    Args:
        networks: by the attributes of the tokens that they are for. In the state they stand under the digits of
            :meth:`Attributes.encoding`.
    """

    def __init__(self, networks: Mapping[Attributes, DenseFeedForward]):
        super().__init__()
        self.networks = nn.ModuleDict({_key(attributes): network for attributes, network in networks.items()})

    @torch.compiler.disable
    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        """[B,L,d] to [B,L,d]; the lengths in `layout` sum to L.

        Raises:
            ValueError: the experts were not merged for these attributes.
        """
        return _by_class(hidden, layout, self._network)

    def weights(self, attributes: Attributes) -> DenseWeights:
        """Of the network for these attributes."""
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
    """[B,L,d] through `network`, once for each class of attributes with all tokens of that class."""
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
