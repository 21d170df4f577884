"""The text encoder: byte-pair tokens through a RoBERTa, for class names, captions and vocabulary alike (equation 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase

from ..errors import UserError
from ..pretrained import LOADING_ERRORS, has_weights, load_tokenizer, load_weights, resolve_directory


class TextEncoder(nn.Module):
    """Texts to tokens [B,T,d].

    Args:
        model: a Hugging Face encoder that returns `last_hidden_state`, RoBERTa in the paper.
        tokenizer: its tokenizer.
        dim: d, the unified decoder's width; a projection is added where the encoder's differs.
    """

    @configurable
    def __init__(self, *, model: nn.Module, tokenizer: PreTrainedTokenizerBase, dim: int):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        width = model.config.hidden_size
        self.project = nn.Identity() if width == dim else nn.Linear(width, dim)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.UNIPERCEIVER_V2
        directory = resolve_directory(node.TEXT_ENCODER.PATH, "MODEL.UNIPERCEIVER_V2.TEXT_ENCODER.PATH")
        model, tokenizer = load_text_model(directory)
        return {"model": model, "tokenizer": tokenizer, "dim": node.EMBED_DIM}

    @property
    def max_length(self) -> int:
        """The longest sequence of tokens, special ones included."""
        config = self.model.config
        # RoBERTa counts positions from behind the padding index.
        return config.max_position_embeddings - config.pad_token_id - 1

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids [B,T] and their validity [B,T], on the encoder's device; longer texts are cut."""
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        device = next(self.parameters()).device
        return encoded["input_ids"].to(device), encoded["attention_mask"].to(device).bool()

    def forward(self, token_ids: Tensor, valid: Tensor) -> Tensor:
        """[B,T] ids and validity to [B,T,d]."""
        hidden = self.model(input_ids=token_ids, attention_mask=valid.long()).last_hidden_state
        return self.project(hidden)


def load_text_model(directory: Path) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The model (with random weights, if the directory has none) and the tokenizer of a Hugging Face directory.

    Raises:
        UserError: the directory holds no such model.
    """
    tokenizer = load_tokenizer(directory)
    try:
        if has_weights(directory):
            return load_weights(AutoModel, directory, add_pooling_layer=False), tokenizer
        model = AutoModel.from_config(AutoConfig.from_pretrained(directory), add_pooling_layer=False)
        # From BERT's start, where words weigh no more than their positions, all candidates are so alike that the first
        # steps make them equal, and uniform likelihoods are slow to leave.
        nn.init.normal_(model.get_input_embeddings().weight, std=0.2)
        return model, tokenizer
    except LOADING_ERRORS as error:
        raise UserError(f"no text encoder can be loaded from {directory}: {error}") from error
