"""Accuracy and perplexity of masked language modelling."""

import itertools
import math

from .gathering import GatheringEvaluator


class LanguageModellingEvaluator(GatheringEvaluator):
    """Accuracy in percent and perplexity, exp(-mean log P), over all masked tokens of all ranks.

    Args:
        dataset_name: a registered corpus.
        output_folder: for ``results.json`` and ``predictions.json``, which has the number of tokens, their
            log-likelihood and how many were right for every text; None writes neither.
    """

    _ORDER = "text_id"

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "text_id"; a text may come several times, with other tokens masked.
            outputs: with "log_likelihoods" [M] and "correct" [M] bool, of its M masked tokens.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            self._records.append(
                {
                    "text_id": sample["text_id"],
                    "tokens": len(output["log_likelihoods"]),
                    "correct": int(output["correct"].sum()),
                    # In float64: a corpus has more tokens than float32 can add up.
                    "log_likelihood": output["log_likelihoods"].double().sum().item(),
                }
            )

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        texts = [
            _sum(text_id, list(group)) for text_id, group in itertools.groupby(records, key=lambda r: r["text_id"])
        ]
        self._write("predictions.json", texts)
        total = _sum(None, texts)
        if total["tokens"] == 0:
            return {"language_modelling": {"accuracy": math.nan, "perplexity": math.nan}}
        accuracy = 100 * total["correct"] / total["tokens"]
        perplexity = math.exp(-total["log_likelihood"] / total["tokens"])
        return {"language_modelling": {"accuracy": accuracy, "perplexity": perplexity}}


def _sum(text_id: int | None, records: list[dict]) -> dict:
    return {
        "text_id": text_id,
        "tokens": sum(record["tokens"] for record in records),
        "correct": sum(record["correct"] for record in records),
        # fsum gives one sum for any order, and so for any number of ranks.
        "log_likelihood": math.fsum(record["log_likelihood"] for record in records),
    }
