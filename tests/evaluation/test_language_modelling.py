import json
import math

import pytest
import torch

from uniperceiver_v2.evaluation import LanguageModellingEvaluator


def samples(texts=9, seed=0):
    """Each text comes in one to three parts with different masked tokens, and one part has none."""
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = [], []
    for text_id in reversed(range(texts)):
        for part in range(1 + text_id % 3):
            count = 0 if (text_id, part) == (4, 0) else int(torch.randint(1, 6, (), generator=generator))
            inputs.append({"text_id": text_id})
            outputs.append(
                {
                    "log_likelihoods": -3 * torch.rand(count, generator=generator),
                    "correct": torch.rand(count, generator=generator) < 0.6,
                }
            )
    return inputs, outputs


def plain(outputs):
    log_likelihoods = [value for output in outputs for value in output["log_likelihoods"].tolist()]
    correct = [value for output in outputs for value in output["correct"].tolist()]
    mean = sum(log_likelihoods) / len(log_likelihoods)
    return {"accuracy": 100 * sum(correct) / len(correct), "perplexity": math.exp(-mean)}


def test_accuracy_and_perplexity_are_over_all_tokens(tmp_path):
    inputs, outputs = samples()
    evaluator = LanguageModellingEvaluator("corpus", str(tmp_path))
    evaluator.reset()
    for start in range(0, len(inputs), 4):
        evaluator.process(inputs[start : start + 4], outputs[start : start + 4])
    results = evaluator.evaluate()
    assert results == {"language_modelling": pytest.approx(plain(outputs))}
    assert results == evaluator.evaluate()
    assert json.loads((tmp_path / "results.json").read_text()) == results
    texts = json.loads((tmp_path / "predictions.json").read_text())
    assert [text["text_id"] for text in texts] == list(range(9))
    of_text_5 = [output for given, output in zip(inputs, outputs) if given["text_id"] == 5]
    assert texts[5] == {
        "text_id": 5,
        "tokens": sum(len(output["correct"]) for output in of_text_5),
        "correct": sum(int(output["correct"].sum()) for output in of_text_5),
        "log_likelihood": pytest.approx(sum(float(output["log_likelihoods"].sum()) for output in of_text_5)),
    }


def test_two_ranks_give_the_result_of_one(on_two_ranks):
    inputs, outputs = samples()
    evaluator = LanguageModellingEvaluator("corpus")
    evaluator.process(inputs, outputs)
    assert on_two_ranks(lambda: LanguageModellingEvaluator("corpus"), inputs, outputs) == [evaluator.evaluate(), {}]


def test_many_tokens_add_up_exactly():
    """A float32 sum stops growing at 2^24."""
    evaluator = LanguageModellingEvaluator("corpus")
    output = {"log_likelihoods": torch.full((2**20,), -1.0), "correct": torch.ones(2**20, dtype=torch.bool)}
    for _ in range(33):
        evaluator.process([{"text_id": 0}], [output])
    assert evaluator.evaluate() == {"language_modelling": {"accuracy": 100, "perplexity": math.e}}


def test_nothing_masked_is_missing_and_nothing_processed_is_empty(tmp_path):
    evaluator = LanguageModellingEvaluator("corpus", str(tmp_path))
    evaluator.process([{"text_id": 0}], [{"log_likelihoods": torch.zeros(0), "correct": torch.zeros(0).bool()}])
    assert all(math.isnan(value) for value in evaluator.evaluate()["language_modelling"].values())
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == {"language_modelling": {"accuracy": None, "perplexity": None}}
    evaluator.reset()
    assert evaluator.evaluate() == {}
