"""The text encoder (equation 4): a RoBERTa over byte-pair tokens of class names, captions and words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from transformers import AutoModel, DynamicCache, PreTrainedTokenizerBase

from ...errors import UserError
from ...transfer import send
from ..layers import KeyValueBuffer, WeightCache, autocast_dtype, repeated_parts
from ..pretrained import (
    explained_directory,
    has_weights,
    load_config,
    load_tokenizer,
    load_weights,
    longest_text,
    resolve_directory,
    token_ids,
)
from .causal_roberta import CausalRoberta, reads_causally

TOKENIZED_SETS = 64  # the most sets of texts with kept token ids


class TextCache:
    """Keys and values of the text encoder's layers for B texts under generation (`TextEncoder.begin`).

    Args:
        causal: the prepared encoder; None to use Hugging Face's code and its cache.
    """

    def __init__(self, causal: CausalRoberta | None):
        self.causal = causal
        self.past = DynamicCache() if causal is None else KeyValueBuffer(len(causal.layers))

    @property
    def length(self) -> int:
        """The number of tokens so far."""
        return self.past.get_seq_length() if self.causal is None else self.past.length

    def select(self, indices: Tensor) -> TextCache:
        """Reorders, repeats or drops texts, in place: row i becomes the former row `indices[i]`.

        Args:
            indices: [B'] of 0..B-1.
        Returns:
            itself
        """
        if self.causal is None:
            self.past.reorder_cache(indices)
        else:
            self.past.select(indices)
        return self


class TextEncoder(nn.Module):
    """Texts to tokens [B,T,d].

    A text is read whole or causally, with the same weights. In causal reading a position sees only itself and earlier
    positions, so that generation can encode a caption word by word.

    Args:
        model: a Hugging Face encoder with the output `last_hidden_state`, RoBERTa in the paper. Causal reading needs
            its arguments `past_key_values` and `attention_mask` [B,1,T,K], as in BERT, RoBERTa and their relatives.
        tokenizer: its tokenizer (`pretrained.load_tokenizer`).
        dim: d, the unified decoder's width. An encoder of another width gets a projection.
    """

    @configurable
    def __init__(self, *, model: nn.Module, tokenizer: PreTrainedTokenizerBase, dim: int):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        width = model.config.hidden_size
        self.project = nn.Identity() if width == dim else nn.Linear(width, dim)
        self._tokenized: dict[tuple[tuple[str, ...], torch.device], tuple[Tensor, Tensor]] = {}
        self._causal = WeightCache([self], capacity=1)  # copies of weights: two would double the memory
        self.bos_id, self.eos_id = tokenizer("")["input_ids"]  # <s> and </s>, around every text

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

    def blocks(self) -> list[nn.Module]:
        """The model's layers, in order.

        Raises:
            ValueError: the model has no list of its layers.
        """
        if not (found := repeated_parts(self.model)):
            raise ValueError(f"{type(self.model).__name__} has no list of its layers")
        return found

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids [B,T] and `valid` [B,T] of texts, on the encoder's device. Texts beyond `max_length` are cut.

        A text may spell a special token out, such as "<mask>". It is then read as letters. The last sets of texts are
        kept, as training asks for the same names in each iteration.

        Raises:
            UserError: the tokenizer fails.
        """
        key = tuple(texts), next(self.parameters()).device
        if key not in self._tokenized:
            while len(self._tokenized) >= TOKENIZED_SETS:
                del self._tokenized[next(iter(self._tokenized))]
            self._tokenized[key] = self._tokenize(*key)
        return self._tokenized[key]

    def _tokenize(self, texts: tuple[str, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        encoded = token_ids(
            self.tokenizer, list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return send(encoded["input_ids"], device), send(encoded["attention_mask"].bool(), device)

    def pad(self, texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Pads texts of ids [T] to one length: ids [B,T] and `valid` [B,T], on the encoder's device."""
        device = next(self.parameters()).device
        lengths = send(torch.tensor([len(text) for text in texts]), device)
        token_ids = send(nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=self.pad_id), device)
        return token_ids, torch.arange(token_ids.shape[1], device=device) < lengths[:, None]

    def decode(self, token_ids: Tensor | Sequence[Tensor]) -> list[str]:
        """The texts of rows of ids, without special tokens and without spaces at their ends.

        Args:
            token_ids: [B,T], or B rows [T].
        """
        texts = self.tokenizer.batch_decode([row.tolist() for row in token_ids], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def forward(self, token_ids: Tensor, valid: Tensor | None, causal: bool = False) -> Tensor:
        """Tokens [B,T,d] of texts.

        Args:
            token_ids: [B,T].
            valid: [B,T] bool, False at padding; None if no text is padded.
            causal: whether position t sees only positions 0..t.
        """
        # Of a mask [B,T], Hugging Face asks whether all of it is true, and waits for the answer.
        attention_mask = None if valid is None else self._additive(valid[:, None, None])
        if causal:
            mask = torch.ones(token_ids.shape[1:] * 2, dtype=torch.bool, device=token_ids.device).tril()
            attention_mask = self._additive(mask[None, None] if valid is None else mask & valid[:, None, None])
        return self.project(self.model(input_ids=token_ids, attention_mask=attention_mask).last_hidden_state)

    def begin(self) -> TextCache:
        """An empty cache, for the start of generation.

        In evaluation mode and without gradients, RoBERTa and BERT run as :class:`CausalRoberta`, prepared from the
        present weights and precision of autocast.
        """
        if self.training or torch.is_grad_enabled() or not reads_causally(self.model):
            return TextCache(None)
        precision = autocast_dtype(next(self.parameters()).device)
        return TextCache(self._causal.get(precision, lambda: CausalRoberta(self.model)))

    def train(self, mode: bool = True) -> TextEncoder:
        if mode:
            self._causal.clear()
        return super().train(mode)

    def extend(self, cache: TextCache, token_ids: Tensor) -> Tensor:
        """Reads further tokens of texts and adds their keys and values to the cache.

        Args:
            cache: of B texts, or a new one.
            token_ids: [B,T], without padding.
        Returns:
            [B,T,d], equal to the causal `forward` of the whole texts at these positions.
        Raises:
            ValueError: the texts would become longer than `max_length`.
        """
        past, new = cache.length, token_ids.shape[1]
        if past + new > self.max_length:
            raise ValueError(f"{past} tokens cannot be followed by {new}: the encoder reads {self.max_length} at most")
        if cache.causal is not None:
            return self.project(cache.causal(token_ids, cache.past))
        mask = torch.ones(new, past + new, dtype=torch.bool, device=token_ids.device).tril(past)
        output = self.model(
            input_ids=token_ids, attention_mask=self._additive(mask[None, None]), past_key_values=cache.past
        )
        return self.project(output.last_hidden_state)

    def _additive(self, mask: Tensor) -> Tensor:
        """A bool mask [B,1,T,K] as numbers to add to attention's scores, a form that every kernel takes."""
        dtype = self.model.dtype
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def load_text_model(directory: Path) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Loads model and tokenizer of a Hugging Face directory. A model without weight files gets random weights.

    Raises:
        UserError: the directory has no text encoder, or its tokenizer has more tokens than the model.
    """
    tokenizer = load_tokenizer(directory)
    with explained_directory("no text encoder can be loaded", directory):
        config = load_config(directory)
        # A model saved as a decoder would always read causally.
        config.is_decoder = config.add_cross_attention = False
        if has_weights(directory):
            model = load_weights(AutoModel, directory, config=config, add_pooling_layer=False, trust_remote_code=False)
        else:
            model = AutoModel.from_config(config, add_pooling_layer=False, trust_remote_code=False)
            # With BERT's 0.02 a word weighs no more than its position, and all candidates are nearly alike. The first
            # steps then make them equal, and training needs long to leave uniform likelihoods.
            nn.init.normal_(model.get_input_embeddings().weight, std=0.2)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"the tokenizer in {directory} has {len(tokenizer)} tokens, more than the text encoder's "
            f"{model.config.vocab_size} (vocab_size in config.json)"
        )
    return model, tokenizer
