"""The unified decoder: one Transformer for all tasks and modalities (Uni-Perceiver v2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..layers import CausalLayer, MultiHeadAttention, WeightCache, autocast_dtype, causal_mask, compile_modules
from .cache import DecoderCache, KeyValues
from .feed_forward import ConditionalFeedForward, DenseFeedForward, Layout, MergedFeedForward
from .router import Routing
from .segments import Attributes, Segment, SegmentLayout


@dataclass
class Representations:
    """The decoder's outputs.

    Attributes:
        spe: [B,d], the output at <SPE>, which represents the whole sequence.
        segments: the outputs [B,T,d] at the tokens of each segment.
    """

    spe: Tensor
    segments: list[Tensor]


@dataclass(frozen=True)
class MergeReport:
    """The result of `UnifiedDecoder.merge_experts`.

    Attributes:
        parameters_before, parameters_after: the numbers of parameters of the whole decoder.
        dropped_experts: for each layer, the number of experts that no class of attributes uses.
    """

    parameters_before: int
    parameters_after: int
    dropped_experts: list[int]


class UnifiedDecoderLayer(nn.Module):
    """Self-attention and a feed-forward network, shaped as in BERT but with normalisation before each (pre-norm)."""

    def __init__(self, dim: int, heads: int, ffn: nn.Module):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = MultiHeadAttention(dim, heads)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = ffn

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        layout: Layout,
        past: KeyValues | None = None,
        read: Tensor | None = None,
    ) -> tuple[Tensor, KeyValues]:
        """Passes tokens through the layer.

        Args:
            hidden: [B,L,d]. The tokens see each other and the past.
            mask: bool, True where attention is allowed, broadcastable to [B,heads,L,past + L]; None allows all.
            layout: of the tokens.
            past: keys and values of earlier tokens.
            read: [B,Q,d], a subset of the tokens. If given, only these are queries and get outputs. `mask` and
                `layout` then describe these Q tokens, not all L.
        Returns:
            the outputs [B,L,d] or [B,Q,d], and the keys and values of the past and of all L tokens.
        """
        normalised = self.attention_norm(hidden)
        keys_values = self._project(normalised)
        if past is not None:
            keys_values = past.append(keys_values)
        if read is not None:
            hidden, normalised = read, self.attention_norm(read)
        hidden = hidden + self.attention.attend(normalised, keys_values.keys, keys_values.values, mask)
        return hidden + self.ffn(self.ffn_norm(hidden), layout), keys_values

    def prepare(self, attributes: Attributes) -> CausalLayer:
        """The layer for causal tokens in generation, all with these attributes."""
        attention = self.attention
        projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        norms = self.attention_norm, self.ffn_norm
        return CausalLayer(attention.heads, projections, self.ffn.weights(attributes), F.gelu, norms, norm_first=True)

    def keys_values(self, hidden: Tensor) -> KeyValues:
        """Keys and values of tokens [B,L,d], for a caller that does not need their outputs."""
        return self._project(self.attention_norm(hidden))

    def _project(self, normalised: Tensor) -> KeyValues:
        return KeyValues(self.attention.k_proj(normalised), self.attention.v_proj(normalised))


@dataclass
class _Tokens:
    """Tokens [B,L,d] between two layers, with their layout and attention mask."""

    hidden: Tensor
    layout: SegmentLayout
    mask: Tensor | None


class UnifiedDecoder(nn.Module):
    """g of equation (6).

    Args:
        depth: number of layers, 6 in the paper.
        dim, heads, ffn_dim: 768, 12 and 3072 in the paper, as in BERT-base.
        experts: number of experts in each feed-forward network, each `ffn_dim` wide; 0 for dense networks.
        active_experts: number of experts for each token.
    """

    @configurable
    def __init__(self, *, depth: int, dim: int, heads: int, ffn_dim: int, experts: int = 0, active_experts: int = 1):
        super().__init__()

        def feed_forward(layer: int) -> nn.Module:
            if experts:
                return ConditionalFeedForward(dim, ffn_dim, experts, active_experts, layer)
            return DenseFeedForward(dim, ffn_dim)

        self.spe = nn.Parameter(torch.randn(dim) * 0.02)
        self.input_norms = nn.ModuleDict({name: nn.LayerNorm(dim) for name in ("image", "text")})
        self.layers = nn.ModuleList(UnifiedDecoderLayer(dim, heads, feed_forward(layer)) for layer in range(depth))
        self.norm = nn.LayerNorm(dim)
        self._backend: str | Callable | None = None
        self._prepared = WeightCache([self.layers], capacity=1)  # copies of weights: two would double the memory
        self._routing = Routing([layer.ffn.router for layer in self.layers]) if experts else None
        self._start_as_pooling()

    def _start_as_pooling(self) -> None:
        """Initialises each layer so that it adds, to every token, the mean of the tokens in its view.

        An image and a text that are alike before the decoder are then alike behind it too, and training refines this.
        From a random start the first steps make all candidates equal (docs/architecture.md).
        """
        for layer in self.layers:
            for projection in (layer.attention.v_proj, layer.attention.o_proj):
                nn.init.eye_(projection.weight)
            for network in layer.ffn.modules():  # the network itself or its experts
                if isinstance(network, DenseFeedForward):
                    nn.init.zeros_(network.linear2.weight)
                    nn.init.zeros_(network.linear2.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.UNIPERCEIVER_V2
        return {
            "depth": node.DECODER.LAYERS,
            "dim": node.EMBED_DIM,
            "heads": node.DECODER.HEADS,
            "ffn_dim": node.DECODER.FFN_DIM,
            "experts": node.DECODER.EXPERTS,
            "active_experts": node.DECODER.ACTIVE_EXPERTS,
        }

    def forward(self, segments: Sequence[Segment]) -> Representations:
        """Decodes <SPE> followed by the segments.

        Tokens that are not causal see each other. Only the last segment may be causal. Its token t sees all tokens that
        are not causal and the causal tokens 0..t. No token sees padding.

        Raises:
            ValueError: a causal segment is not the last.
        """
        tokens, causal = self._start(segments)
        self._pass(self.layers, tokens, causal)
        spe, *outputs = self.norm(tokens.hidden).split([length for length, _ in tokens.layout], dim=1)
        if causal is not None:
            outputs.append(self.norm(causal.hidden))
        return Representations(spe[:, 0], outputs)

    def read_spe(self, segments: Sequence[Segment]) -> Tensor:
        """`forward(segments).spe` [B,d], without the work for other outputs.

        In the last layer only <SPE> is a query; the other tokens serve as keys and values. A causal segment is left
        out, as <SPE> does not see it.
        """
        tokens, _ = self._start(segments)
        self._pass(self.layers[:-1], tokens)
        layout = SegmentLayout([tokens.layout[0]], tokens.layout.routes)
        hidden, _ = self.layers[-1](tokens.hidden, tokens.mask, layout, read=tokens.hidden[:, :1])
        return self.norm(hidden[:, 0])

    def read_last(self, segments: Sequence[Segment], positions: Tensor | None = None) -> Tensor:
        """`forward(segments).segments[-1]` [B,T,d], without the work for other outputs.

        Args:
            segments: as in `forward`.
            positions: [B,M], positions in the last segment. If given, only the outputs [B,M,d] there are returned. The
                segment must not be causal.
        Raises:
            ValueError: a causal segment is not the last, or `positions` are given for a causal segment.
        """
        tokens, causal = self._start(segments)
        self._pass(self.layers[:-1], tokens, causal)
        last = self.layers[-1]
        if causal is not None:
            if positions is not None:
                raise ValueError("of a causal segment all positions are read")
            hidden, _ = last(causal.hidden, causal.mask, causal.layout, past=last.keys_values(tokens.hidden))
            return self.norm(hidden)
        length, attributes = tokens.layout[-1]
        read = tokens.hidden[:, -length:]
        if positions is not None:
            read = read.gather(1, positions.unsqueeze(2).expand(-1, -1, read.shape[2]))
        layout = SegmentLayout([(read.shape[1], attributes)], tokens.layout.routes)
        hidden, _ = last(tokens.hidden, tokens.mask, layout, read=read)
        return self.norm(hidden)

    @torch.no_grad()
    def begin(self, segments: Sequence[Segment]) -> DecoderCache:
        """Starts generation behind <SPE> and these segments: computes their keys and values.

        Raises:
            ValueError: a segment is causal.
        """
        prefix, valid = self.prefix(segments)
        return DecoderCache(prefix, self.layers[0].attention.heads, valid)

    def prefix(self, segments: Sequence[Segment]) -> tuple[list[KeyValues], Tensor | None]:
        """The keys and values of <SPE> and these segments in each layer, and `valid` [B,P] of the P tokens, None if
        there is no padding.

        Raises:
            ValueError: a segment is causal.
        """
        if any(s.attributes.causal for s in segments):
            raise ValueError("generation begins with segments that are not causal")
        hidden, layout, valid = self._open(segments, segments)
        mask, prefix = _key_mask(valid), []
        for layer in self.layers[:-1]:
            hidden, keys_values = layer(hidden, mask, layout)
            prefix.append(keys_values)
        prefix.append(self.layers[-1].keys_values(hidden))  # nothing reads the last layer's outputs
        return prefix, valid

    @torch.no_grad()
    def extend(self, cache: DecoderCache, tokens: Tensor, attributes: Attributes) -> Tensor:
        """Decodes further causal tokens and adds their keys and values to the cache.

        Args:
            tokens: [B,T,d], behind the cache's tokens.
            attributes: of all T tokens.
        Returns:
            [B,T,d], equal to `forward` of the whole sequence at these tokens.
        Raises:
            ValueError: the attributes are not causal.
        """
        if not attributes.causal:
            raise ValueError(f"only causal tokens extend a sequence, not {attributes}")
        hidden = self._enter(Segment(tokens, None, attributes))
        mask = _causal_mask(hidden, cache.length, cache.valid(tokens.shape[1]))
        if attributes not in cache.layers:
            cache.layers[attributes] = self._prepare(attributes)
        for index, layer in enumerate(cache.layers[attributes]):
            hidden = layer(hidden, cache.past, index, mask)
        return self.norm(hidden)

    def _prepare(self, attributes: Attributes) -> list[CausalLayer]:
        """The layers for generation, kept until a weight changes or training begins.

        They hold copies of weights. In a large model, copying takes as long as decoding some words.
        """
        key = attributes, autocast_dtype(self.spe.device)
        return self._prepared.get(key, lambda: [layer.prepare(attributes) for layer in self.layers])

    def train(self, mode: bool = True) -> UnifiedDecoder:
        if mode:
            self._prepared.clear()
        return super().train(mode)

    def merge_experts(self, classes: Iterable[Attributes]) -> MergeReport:
        """Replaces each Conditional MoE, in place, by one dense network for each class of attributes
        (Uni-Perceiver-MoE).

        The outputs stay as in evaluation. The router is dropped, and so are the experts that no class uses. There is no
        way back, and a state dict fits only a decoder that was merged for the same classes.

        Each class gets the parameters of k experts. The decoder becomes smaller only for few classes; one task has
        four.

        Args:
            classes: the attributes of all tokens that will be decoded, see :func:`attribute_classes`.
        Raises:
            ValueError: there are no experts to merge.
        """
        if not all(isinstance(layer.ffn, ConditionalFeedForward) for layer in self.layers):
            raise ValueError("the decoder has no experts to merge: its networks are dense or were merged before")
        classes, before, dropped = list(classes), self._parameter_count(), []
        for layer in self.layers:
            routed = {expert for route in layer.ffn.route(classes) for expert, _ in route}
            dropped.append(len(layer.ffn.experts) - len(routed))
            layer.ffn = layer.ffn.merge(classes)
        self._routing = None
        if self._backend is not None:
            self.compile_layers(self._backend)
        return MergeReport(before, self._parameter_count(), dropped)

    def compile_layers(self, backend: str | Callable = "inductor") -> None:
        """Lets torch.compile compile each layer, in place, on first use. Parameters keep their names.

        A graph serves all batch sizes and all lengths, except that a size of 1 needs a graph of its own. All layers
        share graphs, and so do all experts. A layer with a dense network is one graph. A layer with experts is one
        graph up to the choice of experts, which runs in Python, and one graph for an expert.

        Args:
            backend: the argument of torch.compile.
        """
        self._backend = backend
        # A compiled graph would be specific to one choice of experts. As a decorator this would import PyTorch's
        # compiler, seconds for every process.
        for layer in self.layers:
            if isinstance(layer.ffn, ConditionalFeedForward | MergedFeedForward):
                layer.ffn.forward = torch.compiler.disable(layer.ffn.forward)
        dense = [module for module in self.modules() if isinstance(module, DenseFeedForward)]
        compile_modules((*self.layers, *dense), backend)

    def _parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def _start(self, segments: Sequence[Segment]) -> tuple[_Tokens, _Tokens | None]:
        """The inputs of the first layer: <SPE> with the segments, and apart from them the causal segment, if any."""
        others, causal = list(segments), None
        if others[-1].attributes.causal:
            causal = others.pop()
        if any(s.attributes.causal for s in others):
            raise ValueError("a causal segment must be the last segment")
        hidden, layout, valid = self._open(others, segments)
        tokens = _Tokens(hidden, layout, _key_mask(valid))
        if causal is None:
            return tokens, None
        later, later_layout = (
            self._enter(causal),
            SegmentLayout([(causal.tokens.shape[1], causal.attributes)], layout.routes),
        )
        mask = _causal_mask(later, hidden.shape[1], _join_valid([(hidden, valid), (later, causal.valid)]))
        return tokens, _Tokens(later, later_layout, mask)

    @staticmethod
    def _pass(layers: Iterable[nn.Module], tokens: _Tokens, causal: _Tokens | None = None) -> None:
        """Passes tokens and the causal tokens behind them through layers, in place."""
        for layer in layers:
            tokens.hidden, keys_values = layer(tokens.hidden, tokens.mask, tokens.layout)
            if causal is not None:
                causal.hidden, _ = layer(causal.hidden, causal.mask, causal.layout, past=keys_values)

    def _open(
        self, segments: Sequence[Segment], whole: Sequence[Segment]
    ) -> tuple[Tensor, SegmentLayout, Tensor | None]:
        """<SPE> and the segments: tokens, layout and `valid`. The layout has the routes of the `whole` sequence, whose
        first segment gives <SPE> its role and task."""
        first = whole[0]
        spe = self.spe.expand(first.tokens.shape[0], 1, -1)
        special = Attributes("special", first.attributes.role, first.attributes.task)
        routes = None
        if self._routing is not None:
            classes = list(dict.fromkeys([special, *(s.attributes for s in whole)]))
            routes = self._routing(classes, noisy=self.training)
        hidden = torch.cat([spe, *(self._enter(s) for s in segments)], dim=1)
        layout = SegmentLayout([(1, special), *((s.tokens.shape[1], s.attributes) for s in segments)], routes)
        return hidden, layout, _join_valid([(spe, None), *((s.tokens, s.valid) for s in segments)])

    def _enter(self, segment: Segment) -> Tensor:
        return self.input_norms[segment.attributes.modality](segment.tokens)


def _join_valid(parts: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor | None:
    """`valid` [B,L] of concatenated tokens [B,T,d], or None if there is no padding."""
    if all(valid is None for _, valid in parts):
        return None
    known = [tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if v is None else v for tokens, v in parts]
    return torch.cat(known, dim=1)


def _key_mask(valid: Tensor | None) -> Tensor | None:
    """The mask [B,1,1,L] that lets every token see all valid tokens."""
    return None if valid is None else valid[:, None, None]


def _causal_mask(tokens: Tensor, before: int, valid: Tensor | None) -> Tensor | None:
    """The mask [B or 1,1,T,before + T] for causal tokens [B,T,d] behind `before` others; None if it allows all."""
    length = tokens.shape[1]
    if length == 1:
        return _key_mask(valid)
    mask = causal_mask(length, before, tokens.device)
    return mask if valid is None else mask & _key_mask(valid)
