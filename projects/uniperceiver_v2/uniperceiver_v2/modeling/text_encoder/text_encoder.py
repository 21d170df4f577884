"""The text encoder: byte-pair tokens through a RoBERTa, for class names, captions and vocabulary alike (equation 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, DynamicCache, PreTrainedTokenizerBase

from ...errors import UserError
from ..layers import KeyValueBuffer, state_of_weights
from ..pretrained import LOADING_ERRORS, has_weights, load_tokenizer, load_weights, longest_text, resolve_directory
from .causal_steps import CausalRoberta, reads_causally

TOKENIZED_SETS = 64  # sets of texts whose tokens are kept


class TextCache:
    """Keys and values of the text encoder's layers for the tokens of B texts so far (`TextEncoder.begin`).

    Args:
        causal: the encoder prepared for reading word by word; None for the model's own code and cache.
    """

    def __init__(self, causal: CausalRoberta | None):
        self.causal = causal
        self.past = DynamicCache() if causal is None else KeyValueBuffer(len(causal.layers))

    @property
    def length(self) -> int:
        """The number of tokens so far."""
        return self.past.get_seq_length() if self.causal is None else self.past.length

    def select(self, indices: Tensor) -> TextCache:
        """Makes text `indices[i]` the i-th, [B'] of 0..B-1, as often as one likes: beams are reordered, texts
        multiplied or dropped. Returns itself."""
        if self.causal is None:
            self.past.reorder_cache(indices)
        else:
            self.past.select(indices)
        return self


class TextEncoder(nn.Module):
    """Texts to tokens [B,T,d].

    A text is read whole, or causally: then a position sees nothing of what follows, so that a caption can be encoded
    word by word while it is generated. Both are the same weights.

    Args:
        model: a Hugging Face encoder that returns `last_hidden_state`, RoBERTa in the paper. For causal reading it has
            to take `past_key_values` and a mask for each pair of positions, as the relatives of BERT and RoBERTa do.
        tokenizer: its tokenizer (`pretrained.load_tokenizer`).
        dim: d, the unified decoder's width; a projection is added where the encoder's differs.
    """

    @configurable
    def __init__(self, *, model: nn.Module, tokenizer: PreTrainedTokenizerBase, dim: int):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        width = model.config.hidden_size
        self.project = nn.Identity() if width == dim else nn.Linear(width, dim)
        self._tokenized: dict[tuple[tuple[str, ...], torch.device], tuple[Tensor, Tensor]] = {}
        self._causal: tuple[tuple, CausalRoberta] | None = None
        self.bos_id, self.eos_id = tokenizer("")["input_ids"]  # <s> and </s>: what stands around every text

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.UNIPERCEIVER_V2
        directory = resolve_directory(node.TEXT_ENCODER.PATH, "MODEL.UNIPERCEIVER_V2.TEXT_ENCODER.PATH")
        model, tokenizer = load_text_model(directory)
        return {"model": model, "tokenizer": tokenizer, "dim": node.EMBED_DIM}

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def mask_id(self) -> int:
        return self.tokenizer.mask_token_id

    @property
    def vocab_size(self) -> int:
        """The number of tokens, special ones included: ids are 0..vocab_size-1."""
        return len(self.tokenizer)

    @property
    def max_length(self) -> int:
        """The longest sequence of tokens, special ones included."""
        return longest_text(self.model.config)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids [B,T] and their validity [B,T], on the encoder's device; longer texts are cut. A special token that
        a text spells out, such as "<mask>", is text like any other. The last sets are kept: training asks for the same
        names in each iteration."""
        key = tuple(texts), next(self.parameters()).device
        if key not in self._tokenized:
            while len(self._tokenized) >= TOKENIZED_SETS:
                del self._tokenized[next(iter(self._tokenized))]
            self._tokenized[key] = self._tokenize(*key)
        return self._tokenized[key]

    def _tokenize(self, texts: tuple[str, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        encoded = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            split_special_tokens=True,
            return_tensors="pt",
        )
        return encoded["input_ids"].to(device), encoded["attention_mask"].to(device).bool()

    def pad(self, texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Texts of ids [T] as ids [B,T] of one length and their validity [B,T], on the encoder's device."""
        device = next(self.parameters()).device
        lengths = torch.tensor([len(text) for text in texts], device=device)
        token_ids = nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=self.pad_id).to(device)
        return token_ids, torch.arange(token_ids.shape[1], device=device) < lengths[:, None]

    def decode(self, token_ids: Tensor | Sequence[Tensor]) -> list[str]:
        """The text of each row of ids, [B,T] or [T] each, without special tokens and without space around it."""
        texts = self.tokenizer.batch_decode([row.tolist() for row in token_ids], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def forward(self, token_ids: Tensor, valid: Tensor | None, causal: bool = False) -> Tensor:
        """[B,T] ids and validity, None if all are valid, to [B,T,d]; `causal`: position t sees positions up to t."""
        mask = None if valid is None else valid.long()
        if causal:
            order = torch.ones(token_ids.shape[1:] * 2, dtype=torch.bool, device=token_ids.device).tril()
            mask = self._attention_mask(order[None, None] if valid is None else order & valid[:, None, None])
        return self.project(self.model(input_ids=token_ids, attention_mask=mask).last_hidden_state)

    def begin(self) -> TextCache:
        """An empty cache, for texts of which no token has been read.

        In evaluation, without gradients, a RoBERTa or BERT is prepared for it, with the weights and the autocast of
        this moment.
        """
        if self.training or torch.is_grad_enabled() or not reads_causally(self.model):
            return TextCache(None)
        device = next(self.parameters()).device.type
        precision = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        key = precision, state_of_weights([self.model])
        if self._causal is None or self._causal[0] != key:
            self._causal = key, CausalRoberta(self.model)
        return TextCache(self._causal[1])

    def train(self, mode: bool = True) -> TextEncoder:
        if mode:
            self._causal = None  # it holds copies of weights
        return super().train(mode)

    def extend(self, cache: TextCache, token_ids: Tensor) -> Tensor:
        """Reads further tokens of the cache's texts and adds them to it.

        Args:
            cache: of B texts, or new.
            token_ids: [B,T], no padding.
        Returns:
            [B,T,d], what the causal `forward` gives at these positions of the whole texts.
        Raises:
            ValueError: the texts would become longer than `max_length`.
        """
        past, new = cache.length, token_ids.shape[1]
        if past + new > self.max_length:
            raise ValueError(f"{past} tokens cannot be followed by {new}: the encoder reads {self.max_length} at most")
        if cache.causal is not None:
            return self.project(cache.causal(token_ids, cache.past))
        visible = torch.ones(new, past + new, dtype=torch.bool, device=token_ids.device).tril(past)
        mask = self._attention_mask(visible[None, None])
        hidden = self.model(input_ids=token_ids, attention_mask=mask, past_key_values=cache.past).last_hidden_state
        return self.project(hidden)

    def _attention_mask(self, visible: Tensor) -> Tensor:
        """The mask [B,1,T,K] to add to attention's scores, which every kernel takes, from where a position sees."""
        dtype = self.model.dtype
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def load_text_model(directory: Path) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The model (with random weights, if the directory has none) and the tokenizer of a Hugging Face directory.

    Raises:
        UserError: the directory holds no such model, or the tokenizer is not the model's.
    """
    tokenizer = load_tokenizer(directory)
    try:
        config = AutoConfig.from_pretrained(directory)
        # Saved as a decoder, it would read everything causally; here the caller says which.
        config.is_decoder = config.add_cross_attention = False
        if has_weights(directory):
            model = load_weights(AutoModel, directory, config=config, add_pooling_layer=False)
        else:
            model = AutoModel.from_config(config, add_pooling_layer=False)
            # From BERT's start, where words weigh no more than their positions, all candidates are so alike that the
            # first steps make them equal, and uniform likelihoods are slow to leave.
            nn.init.normal_(model.get_input_embeddings().weight, std=0.2)
    except LOADING_ERRORS as error:
        raise UserError(f"no text encoder can be loaded from {directory}: {error}") from error
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"the tokenizer in {directory} has {len(tokenizer)} tokens, more than the text encoder's "
            f"{model.config.vocab_size} (vocab_size in config.json)"
        )
    return model, tokenizer
