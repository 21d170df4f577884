"""The evaluators of captions and of retrieval where the scenes' facts are known."""

from __future__ import annotations

from ..captions import CaptionEvaluator
from ..retrieval import RANKS, RetrievalEvaluator
from .facts import SceneFacts
from .oracle import oracle_recall
from .truth import judge, truth_metrics


class SceneCaptionEvaluator(CaptionEvaluator):
    """As its parent, and how much of the captions is true of their scenes, see :func:`~.truth.truth_metrics`. Beside it
    the same of captions that are held against another scene: what they would reach by knowing the language alone.

    ``truth.json`` has the verdict on each caption.

    Args:
        dataset_name, output_folder: see the parent.
        scene_facts: the annotations of its scenes, see :class:`~.facts.SceneFacts`.
    """

    def __init__(self, dataset_name: str, output_folder: str | None, scene_facts: str):
        super().__init__(dataset_name, output_folder)
        self._facts = SceneFacts(scene_facts)

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        captions, scenes = [record["caption"] for record in records], self._facts.of(records)
        verdicts = [judge(caption, scene) for caption, scene in zip(captions, scenes)]
        others = scenes[1:] + scenes[:1] if len(scenes) > 1 else []  # the next one's, which is the same in every run
        self._write(
            "truth.json",
            [
                {
                    "image_id": record["image_id"],
                    "caption": record["caption"],
                    "parsed": verdict.is_parsed,
                    "true": verdict.is_true,
                    "mentions": verdict.mentions,
                }
                for record, verdict in zip(records, verdicts)
            ],
        )
        return {
            **super()._metrics(records),
            "caption_truth": truth_metrics(verdicts),
            "caption_truth (another scene)": truth_metrics([judge(c, scene) for c, scene in zip(captions, others)]),
        }


class SceneRetrievalEvaluator(RetrievalEvaluator):
    """As its parent, and the recall of an oracle that knows of which scenes a caption is true.

    Args:
        dataset_name, output_folder: see the parent.
        scene_facts: the annotations of its scenes, see :class:`~.facts.SceneFacts`.
    """

    def __init__(self, dataset_name: str, output_folder: str | None, scene_facts: str):
        super().__init__(dataset_name, output_folder)
        self._facts = SceneFacts(scene_facts)

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        captions, scenes = [record["captions"] for record in records], self._facts.of(records)
        oracle = oracle_recall(captions, scenes, RANKS)
        return {**super()._metrics(records), **{f"{row} (oracle)": recall for row, recall in oracle.items()}}
