"""Language modelling: Hugging Face's masked language model with the configuration of the generalist's text encoder."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from uniperceiver_v2.data.samples import NOT_PREDICTED
from uniperceiver_v2.modeling.pretrained import load_config, load_tokenizer, resolve_directory

from .common import Specialist

TEXT_ENCODER = "MODEL.UNIPERCEIVER_V2.TEXT_ENCODER.PATH"


def text_encoder_files(cfg: CfgNode):
    """The configuration and the tokenizer of the generalist's text encoder."""
    directory = resolve_directory(cfg.MODEL.UNIPERCEIVER_V2.TEXT_ENCODER.PATH, TEXT_ENCODER)
    return load_config(directory), load_tokenizer(directory)


def pad(texts: list[Tensor], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Ids [T] of texts as ids [B,T] and ``valid`` [B,T], 1 where a token is no padding."""
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=tokenizer.pad_token_id)
    return ids, (ids != tokenizer.pad_token_id).long()


class MaskedLanguageModel(nn.Module):
    def __init__(self, cfg: CfgNode):
        super().__init__()
        config, self.tokenizer = text_encoder_files(cfg)
        self.model = AutoModelForMaskedLM.from_config(config)

    def forward(self, inputs: list[dict]) -> Tensor | list[dict]:
        ids, valid = pad([x["token_ids"] for x in inputs], self.tokenizer)
        labels = nn.utils.rnn.pad_sequence([x["labels"] for x in inputs], True, NOT_PREDICTED)
        logits = self.model(input_ids=ids, attention_mask=valid).logits
        if self.training:
            return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        results = []
        for of_text, words in zip(logits.log_softmax(-1), labels, strict=True):
            at, words = of_text[words != NOT_PREDICTED], words[words != NOT_PREDICTED]
            likely = at.gather(-1, words[:, None]).squeeze(-1)
            results.append({"log_likelihoods": likely, "correct": at.argmax(-1) == words})
        return results


SPECIALIST = Specialist(
    task="corpus",
    tests={"digit_corpus_test": {"masked words": ("language_modelling", "accuracy")}},
    build=MaskedLanguageModel,
    rate=2e-3,
    pace=13.9,
)
