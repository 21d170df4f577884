"""Accuracy and perplexity of masked language modelling."""

import itertools
import math

from .gathering import GatheringEvaluator


class LanguageModellingEvaluator(GatheringEvaluator):
    """Accuracy in percent and perplexity, exp(-mean log P), over all masked tokens of all ranks.

    Args:
        dataset_name: a registered corpus.
        output_folder: for ``results.json`` and ``predictions.json``, which gives for every text the number of masked
            tokens, their log-likelihood and how many were predicted correctly. None writes no files.
    """

    _ORDER = "text_id"

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: samples with "text_id". A text may occur several times, with different tokens masked.
            outputs: predictions with "log_likelihoods" [M] and "correct" [M] bool for the sample's M masked tokens.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            self._records.append(
                {
                    "text_id": sample["text_id"],
                    "tokens": len(output["log_likelihoods"]),
                    "correct": int(output["correct"].sum()),
                    # In float64: float32 loses digits in the sum over a corpus.
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
        # fsum is exact, so that the sum does not depend on the order of records or the number of ranks.
        "log_likelihood": math.fsum(record["log_likelihood"] for record in records),
    }
