"""The unified decoder: one Transformer for all tasks and modalities (Uni-Perceiver v2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..layers import CausalLayer, MultiHeadAttention, causal_mask, state_of_weights
from .cache import DecoderCache, KeyValues
from .feed_forward import ConditionalFeedForward, DenseFeedForward, Layout
from .segments import Attributes, Segment, SegmentLayout

GRAPHS = 64  # of a layer or a feed-forward network, at most


@dataclass
class Representations:
    """The decoder's outputs.

    Attributes:
        spe: [B,d], <SPE>'s, which stands for the whole input.
        segments: [B,T,d] for each segment of the input.
    """

    spe: Tensor
    segments: list[Tensor]


@dataclass(frozen=True)
class MergeReport:
    """What merging the experts did to the unified decoder.

    Attributes:
        parameters_before, parameters_after: of the whole unified decoder.
        dropped_experts: of each layer, how many experts no class of attributes is routed to.
    """

    parameters_before: int
    parameters_after: int
    dropped_experts: list[int]


class UnifiedDecoderLayer(nn.Module):
    """Self-attention and a feed-forward network of BERT's shape, each normalised before it (pre-norm)."""

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
        """Tokens that see each other and, before them, the past: their outputs, and keys and values of all.

        With `read`, [B,Q,d] of the tokens, there are outputs of these alone, whose the mask and the layout then are.
        """
        normalised = self.attention_norm(hidden)
        seen = self._project(normalised)
        if past is not None:
            seen = past.append(seen)
        if read is not None:
            hidden, normalised = read, self.attention_norm(read)
        hidden = hidden + self.attention.attend(normalised, seen.keys, seen.values, mask)
        return hidden + self.ffn(self.ffn_norm(hidden), layout), seen

    def prepare(self, attributes: Attributes) -> CausalLayer:
        """The layer for generation's causal tokens, all with these attributes."""
        attention = self.attention
        projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        norms = self.attention_norm, self.ffn_norm
        return CausalLayer(attention.heads, projections, self.ffn.weights(attributes), F.gelu, norms, norm_first=True)

    def seen(self, hidden: Tensor) -> KeyValues:
        """What tokens show to others, for those whose outputs are not wanted."""
        return self._project(self.attention_norm(hidden))

    def _project(self, normalised: Tensor) -> KeyValues:
        return KeyValues(self.attention.k_proj(normalised), self.attention.v_proj(normalised))


@dataclass
class _Tokens:
    """What goes from layer to layer: tokens [B,L,d], their attributes and what they see."""

    hidden: Tensor
    layout: Layout
    mask: Tensor | None


class UnifiedDecoder(nn.Module):
    """g of equation (6).

    Args:
        depth: number of layers, 6 in the paper.
        dim, heads, ffn_dim: BERT-base's 768, 12 and 3072 in the paper.
        experts: of each feed-forward network, `ffn_dim` wide each; 0 for dense networks.
        active_experts: how many of them a token goes through.
    """

    @configurable
    def __init__(self, *, depth: int, dim: int, heads: int, ffn_dim: int, experts: int = 0, active_experts: int = 1):
        super().__init__()

        def feed_forward() -> nn.Module:
            if experts:
                return ConditionalFeedForward(dim, ffn_dim, experts, active_experts)
            return DenseFeedForward(dim, ffn_dim)

        self.spe = nn.Parameter(torch.randn(dim) * 0.02)
        self.input_norms = nn.ModuleDict({name: nn.LayerNorm(dim) for name in ("image", "text")})
        self.layers = nn.ModuleList(UnifiedDecoderLayer(dim, heads, feed_forward()) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self._backend: str | Callable | None = None
        self._prepared: tuple[tuple, list[CausalLayer]] | None = None
        self._start_as_pooling()

    def _start_as_pooling(self) -> None:
        """Each layer starts by adding the mean of what it sees to every token. What image and text encoder have in
        common is then in common behind the decoder too, and training refines it; from a random start the first steps
        make all candidates equal (docs/architecture.md)."""
        for layer in self.layers:
            for projection in (layer.attention.v_proj, layer.attention.o_proj):
                nn.init.eye_(projection.weight)
            for network in layer.ffn.modules():  # the network itself, or each of its experts
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
        """Decodes <SPE> followed by the segments. All tokens see each other, but for those of a causal segment, which
        stands last: its token t is seen by its tokens from t on and by no others. Padding is seen by none.

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
        """`forward(segments).spe` [B,d] without the work for other outputs: in the last layer the other tokens are
        seen and nothing more. A causal segment, which <SPE> does not see, is left out."""
        tokens, _ = self._start(segments)
        self._pass(self.layers[:-1], tokens)
        layout = SegmentLayout([tokens.layout[0]])
        hidden, _ = self.layers[-1](tokens.hidden, tokens.mask, layout, read=tokens.hidden[:, :1])
        return self.norm(hidden[:, 0])

    def read_last(self, segments: Sequence[Segment], positions: Tensor | None = None) -> Tensor:
        """`forward(segments).segments[-1]` [B,T,d] without the work for other outputs, as `read_spe`.

        Args:
            segments: as in `forward`.
            positions: [B,M] of the last segment, which must not be causal then; its outputs there [B,M,d] are returned.
        Raises:
            ValueError: a causal segment is not the last, or positions of it are asked for.
        """
        tokens, causal = self._start(segments)
        self._pass(self.layers[:-1], tokens, causal)
        last = self.layers[-1]
        if causal is not None:
            if positions is not None:
                raise ValueError("of a causal segment all positions are read")
            hidden, _ = last(causal.hidden, causal.mask, causal.layout, past=last.seen(tokens.hidden))
            return self.norm(hidden)
        length, attributes = tokens.layout[-1]
        read = tokens.hidden[:, -length:]
        if positions is not None:
            read = read.gather(1, positions.unsqueeze(2).expand(-1, -1, read.shape[2]))
        layout = SegmentLayout([(read.shape[1], attributes)])
        hidden, _ = last(tokens.hidden, tokens.mask, layout, read=read)
        return self.norm(hidden)

    @torch.no_grad()
    def begin(self, segments: Sequence[Segment]) -> DecoderCache:
        """The start of generation: what causal tokens after <SPE> and these segments will see.

        Raises:
            ValueError: a segment is causal.
        """
        if any(s.attributes.causal for s in segments):
            raise ValueError("generation begins with segments that are not causal")
        hidden, layout, valid = self._open(segments, segments[0])
        mask, layers = _key_mask(valid), []
        for layer in self.layers[:-1]:
            hidden, seen = layer(hidden, mask, layout)
            layers.append(seen)
        layers.append(self.layers[-1].seen(hidden))  # of its own outputs nothing is read
        return DecoderCache(layers, self.layers[0].attention.heads, valid)

    @torch.no_grad()
    def extend(self, cache: DecoderCache, tokens: Tensor, attributes: Attributes) -> Tensor:
        """Decodes causal tokens [B,T,d] after all that the cache holds, and adds them to it.

        Returns:
            [B,T,d], what `forward` gives for them.
        Raises:
            ValueError: the attributes are not causal.
        """
        if not attributes.causal:
            raise ValueError(f"only causal tokens extend a sequence, not {attributes}")
        hidden = self._enter(Segment(tokens, None, attributes))
        mask = _causal_mask(hidden, cache.length, cache.valid(tokens.shape[1]))
        if attributes not in cache.steps:
            cache.steps[attributes] = self._prepare(attributes)
        for index, layer in enumerate(cache.steps[attributes]):
            hidden = layer(hidden, cache.past, index, mask)
        return self.norm(hidden)

    def _prepare(self, attributes: Attributes) -> list[CausalLayer]:
        """The layers for generation, kept until a weight changes: they hold copies of weights, which for a large model
        cost as much as some words. Training lets go of them."""
        device = self.spe.device.type
        precision = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        key = attributes, precision, state_of_weights([self.layers])
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = key, [layer.prepare(attributes) for layer in self.layers]
        return self._prepared[1]

    def train(self, mode: bool = True) -> UnifiedDecoder:
        if mode:
            self._prepared = None
        return super().train(mode)

    def merge_experts(self, classes: Iterable[Attributes]) -> MergeReport:
        """Makes every Conditional MoE a dense network for each of these classes of attributes, in place and for good:
        the same outputs without router and without experts that none of them is routed to (Uni-Perceiver-MoE).

        A merged decoder's weights fit one that was merged for the same classes. Each class has the parameters of k
        experts, so that only few classes (for one task there are four) make it smaller than it was.

        Args:
            classes: all that will be decoded, see :func:`attribute_classes`.
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
        if self._backend is not None:
            self.compile_layers(self._backend)
        return MergeReport(before, self._parameter_count(), dropped)

    def compile_layers(self, backend: str | Callable = "inductor") -> None:
        """Compiles each layer by torch.compile when it is first used, in place: the names of the parameters stay.

        Graphs serve all batch sizes and lengths but 1, which has graphs of its own; all layers, and all experts, share
        theirs. A layer is one graph if its network is dense. With experts there is one up to the choice of experts,
        which has to be made in Python, and then each expert is one.

        Args:
            backend: of torch.compile.
        """
        self._backend = backend
        # The layers' graphs differ in masks, pasts, gradients and lengths of 1. By default no more than 8 are made.
        torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, GRAPHS)
        dense = [module for module in self.modules() if isinstance(module, DenseFeedForward)]
        for module in (*self.layers, *dense):
            module.compile(dynamic=True, backend=backend)

    def _parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def _start(self, segments: Sequence[Segment]) -> tuple[_Tokens, _Tokens | None]:
        """<SPE> and the segments before the first layer, and apart from them the causal segment, if there is one."""
        others, causal = list(segments), None
        if others[-1].attributes.causal:
            causal = others.pop()
        if any(s.attributes.causal for s in others):
            raise ValueError("a causal segment must be the last segment")
        hidden, layout, valid = self._open(others, segments[0])
        tokens = _Tokens(hidden, layout, _key_mask(valid))
        if causal is None:
            return tokens, None
        later, later_layout = self._enter(causal), SegmentLayout([(causal.tokens.shape[1], causal.attributes)])
        mask = _causal_mask(later, hidden.shape[1], _join_valid([(hidden, valid), (later, causal.valid)]))
        return tokens, _Tokens(later, later_layout, mask)

    @staticmethod
    def _pass(layers: Iterable[nn.Module], tokens: _Tokens, causal: _Tokens | None = None) -> None:
        """Takes tokens, and the causal ones that stand behind them, through layers, in place."""
        for layer in layers:
            tokens.hidden, seen = layer(tokens.hidden, tokens.mask, tokens.layout)
            if causal is not None:
                causal.hidden, _ = layer(causal.hidden, causal.mask, causal.layout, past=seen)

    def _open(self, segments: Sequence[Segment], first: Segment) -> tuple[Tensor, Layout, Tensor | None]:
        """<SPE>, with the role and task of the `first` segment, and the segments: tokens, layout and validity."""
        spe = self.spe.expand(first.tokens.shape[0], 1, -1)
        special = Attributes("special", first.attributes.role, first.attributes.task)
        hidden = torch.cat([spe, *(self._enter(s) for s in segments)], dim=1)
        layout = SegmentLayout([(1, special), *((s.tokens.shape[1], s.attributes) for s in segments)])
        return hidden, layout, _join_valid([(spe, None), *((s.tokens, s.valid) for s in segments)])

    def _enter(self, segment: Segment) -> Tensor:
        return self.input_norms[segment.attributes.modality](segment.tokens)


def _join_valid(parts: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor | None:
    """Validity [B,L] of tokens [B,T,d] behind each other, or None where nothing is padding."""
    if all(valid is None for _, valid in parts):
        return None
    known = [tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if v is None else v for tokens, v in parts]
    return torch.cat(known, dim=1)


def _key_mask(valid: Tensor | None) -> Tensor | None:
    """[B,1,1,L]: every token sees all that is valid."""
    return None if valid is None else valid[:, None, None]


def _causal_mask(tokens: Tensor, before: int, valid: Tensor | None) -> Tensor | None:
    """For causal tokens [B,T,d] after `before` others, [B or 1,1,T,before + T]; None where all see all."""
    length = tokens.shape[1]
    if length == 1:
        return _key_mask(valid)
    mask = causal_mask(length, before, tokens.device)
    return mask if valid is None else mask & _key_mask(valid)
