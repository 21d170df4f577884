"""The paper's Tables 2, 3 and 4 in miniature: what each part of the model and of its training is worth on digit_scenes.

    python projects/uniperceiver_v2/experiments/ablations.py [--iterations 2100] [--seeds 3] [--jobs 2] [--only ARM ...]

The trainer of train_net.py trains every arm with the small generalist's configuration. It is tested on the test sets of
the prepared tree, with DETECTRON2_DATASETS=datasets/development on the development tree. A run of all tasks has
``--iterations`` iterations. A run of some tasks has a smaller number, the tasks' share of it, so that each task sees as
many samples as in a run of all tasks, and a shorter warm-up in the same way. Some arms are not the paper's: TBGN's kin,
task groups, grounding and the experts' number. The rates of single tasks are chosen on the development tree.

Writes the tables and the plot of docs/ablations.md. study.py describes how runs are kept, resumed and divided among
processes, study_tables.py how they are compared.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detectron2.config import CfgNode
from study import CONFIG, Arm, Study
from study_tables import Plateau, StudyTables, spread_of

from uniperceiver_v2.config import load_config, sampling_ratios
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.meta_arch import UniPerceiverV2
from uniperceiver_v2.modeling.decoder import Segment
from uniperceiver_v2.solver import build as solver_build
from uniperceiver_v2.tasks.retrieval import RetrievalTask

RANKS = 4  # the batch of retrieval is divided among so many simulated ranks in the arm without gathered features

TESTS = {
    "scenes": "digit_scenes_test",
    "scene_phrases": "digit_scenes_phrases_test",
    "digits": "digits_test",
    "scene_captions": "digit_scenes_captions_test",
    "scene_pairs": "digit_scenes_retrieval_test",
    "corpus": "digit_corpus_test",
}
METRICS = {
    "box AP": ("scenes", "bbox", "AP"),
    "mask AP": ("scenes", "segm", "AP"),
    "phrases": ("scene_phrases", "grounding", "Acc@0.5"),
    "top-1": ("digits", "classification", "top1"),
    "true": ("scene_captions", "caption_truth", "true"),
    "CIDEr": ("scene_captions", "caption", "CIDEr"),
    "text R@1": ("scene_pairs", "text_retrieval", "R@1"),
    "image R@1": ("scene_pairs", "image_retrieval", "R@1"),
    "words": ("corpus", "language_modelling", "accuracy"),
}
IMAGES = 16  # in a batch of retrieval


def chance_of_pairs(images: int, captions: int = 5) -> float:
    """The accuracy of a guess among some images with their captions, where an image's own other captions are left
    out."""
    return (1 / (1 + (images - 1) * captions) + 1 / images) / 2


# The accuracy of training where each task waits: that of a guess, or of words that are likely without the image. For
# captions it is that of a 6-gram model of the training captions (53.9% of the words of other captions). For the others,
# but for pairs, it is read from the log of zoo/digit_scenes_small, iterations 100 to 400.
PLATEAUS = {
    "scenes": Plateau("scenes/category_accuracy", 0.15),
    "scene_phrases": Plateau("scene_phrases/phrase_accuracy", 0.55),
    "digits": Plateau("digits/label_accuracy", 0.1),
    "scene_captions": Plateau("scene_captions/word_accuracy", 0.54),
    "scene_pairs": Plateau("scene_pairs/pair_accuracy", chance_of_pairs(IMAGES)),
    "corpus": Plateau("corpus/word_accuracy", 0.16),
}


# Changes of the model in some arms. They are here and not settings, as no user needs them.


def only_segment(kept: int) -> contextlib.AbstractContextManager:
    """Tokens of the decoder see only one of an image's two segments: 0, the global tokens, or 1, the proposals."""
    segments_of = UniPerceiverV2.image_segments

    def image_segments(self: UniPerceiverV2, *args: Any) -> list[Segment]:
        segments = segments_of(self, *args)
        hidden = segments[1 - kept]
        nothing = torch.zeros(hidden.tokens.shape[:2], dtype=torch.bool, device=hidden.tokens.device)
        segments[1 - kept] = Segment(hidden.tokens, nothing, hidden.attributes)
        return segments

    return mock.patch.object(UniPerceiverV2, "image_segments", image_segments)


def features_not_gathered() -> contextlib.AbstractContextManager:
    """Retrieval as on several ranks that do not gather features: the contrastive loss of each part of the batch
    alone."""
    whole = RetrievalTask.losses

    def losses(self: RetrievalTask, model: UniPerceiverV2, inputs: list[dict]) -> dict[str, torch.Tensor]:
        parts = [whole(self, model, inputs[rank::RANKS]) for rank in range(RANKS)]
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    return mock.patch.object(RetrievalTask, "losses", losses)


@contextlib.contextmanager
def step_without_shares() -> Iterator[None]:
    """TBGN without 1/s_k: a task that is drawn less often counts less."""
    with mock.patch.object(solver_build, "sampling_ratios", lambda cfg: dict.fromkeys(cfg.TASKS.NAMES, 1.0)):
        yield


DECODER = "MODEL.UNIPERCEIVER_V2.DECODER"
# AdamW does not normalise gradients, so weights of the losses have to: those that give each task the share in the mean
# gradient that TBGN gives it, ω / (s · norm). The norms are means of seed 0 of `make train`, iterations 1,440 to 2,100:
# scenes 103, phrases 68, digits 4.7, captions 0.83, pairs 3.6, corpus 1.9.
LOSS_WEIGHTS = {
    "scenes": 1.0,
    "scene_phrases": 1.7,
    "digits": 8.5,
    "scene_captions": 41.0,
    "scene_pairs": 12.0,
    "corpus": 20.0,
}
ADAMW = {
    "SOLVER.OPTIMIZER": "AdamW",
    **{f"TASKS.{task}.LOSS_WEIGHT": weight for task, weight in LOSS_WEIGHTS.items()},
}
MIXED = {"scenes": 3, "scene_phrases": 1, "digits": 1, "scene_captions": 2, "scene_pairs": 2, "corpus": 6}
HALVES = {f"TASKS.{task}.IMS_PER_BATCH": load_config(str(CONFIG)).TASKS[task].IMS_PER_BATCH // 2 for task in TESTS}
WITHOUT_CENTRES = {
    "MODEL.UNIPERCEIVER_V2.REGION.FINE_DIM": 0,
    "TASKS.scenes.CENTRED_STATES": False,
    **{f"TASKS.{task}.CENTRE_WEIGHT": 0.0 for task in ("scenes", "scene_phrases")},
}
# Of a task alone. Under TBGN each weight moves in each iteration, whichever task is drawn. Alone, a task has only its
# own iterations, so its best rate is another. The choice is that of the development tree.
RATES = (0.0005, 0.001, 0.002)
SINGLE_RATES = {**dict.fromkeys(TESTS, 0.0005), "scenes": 0.001, "scene_captions": 0.002, "corpus": 0.002}


def single(task: str, rate: float) -> str:
    """The name of an arm."""
    return f"single {task} {rate:g}"


ARMS = {
    "whole": Arm(),
    # Without proposals that detection or grounding trains.
    "global": Arm(tuple(TESTS)[2:], replaced=lambda: only_segment(0)),
    # Detection and grounding, which read proposals, train the image encoder; the other tasks see its global tokens.
    "global, detecting": Arm(replaced=lambda: only_segment(0)),
    "regional": Arm(replaced=lambda: only_segment(1)),
    **{
        single(task, rate): Arm((task,), {"SOLVER.BASE_LR": rate}, chooses=rate != SINGLE_RATES[task])
        for task in TESTS
        for rate in RATES
    },
    # As many operations as the two experts that process a token.
    "dense": Arm(settings={f"{DECODER}.EXPERTS": 0, f"{DECODER}.FFN_DIM": 512}),
    # All tasks in each iteration, with s_k times the batch size. So each task sees about as many samples as in unmixed
    # sampling.
    "mixed": Arm(
        settings={
            **ADAMW,
            "SOLVER.SAMPLING": "mixed",
            **{f"TASKS.{task}.IMS_PER_BATCH": size for task, size in MIXED.items()},
        },
        levels={"scene_pairs": chance_of_pairs(MIXED["scene_pairs"])},
    ),
    "unmixed": Arm(
        settings=ADAMW,
        replaced=features_not_gathered,
        levels={"scene_pairs": chance_of_pairs(IMAGES // RANKS)},
    ),
    "gathered": Arm(settings=ADAMW),
    "equal ω": Arm(settings={f"TASKS.{task}.GRADIENT_WEIGHT": 1.0 for task in TESTS}),
    "no shares": Arm(replaced=step_without_shares),
    "even": Arm(settings={"SOLVER.SAMPLING": "even"}),
    # As on a cluster, where each group has half of the ranks, and so half of a batch.
    "groups": Arm(settings={"SOLVER.TASK_GROUPS": 2, **HALVES}, levels={"scene_pairs": chance_of_pairs(IMAGES // 2)}),
    "ungrounded": Arm(tuple(task for task in TESTS if task != "scene_phrases")),
    "without centres": Arm(settings=WITHOUT_CENTRES),
    **{f"{count} experts": Arm(settings={f"{DECODER}.EXPERTS": count}) for count in (2, 8)},
}
ALONE = tuple(single(task, rate) for task, rate in SINGLE_RATES.items())
# {table: {row: the arms that provide the row's metrics}}
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "representation (Table 2)": {
        "global only": ("global",),
        "global only, proposals trained": ("global, detecting",),
        "regional only": ("regional",),
        "global + regional": ("whole",),
    },
    "tasks (Table 3)": {
        "single task": ALONE,
        "all tasks, no MoE": ("dense",),
        "all tasks, Conditional MoE": ("whole",),
    },
    "sampling (Table 4)": {
        "mixed": ("mixed",),
        "unmixed": ("unmixed",),
        "+ gathered features": ("gathered",),
        "+ TBGN": ("whole",),
    },
    "beyond the paper": {
        "TBGN, every ω 1": ("equal ω",),
        "TBGN without 1/s": ("no shares",),
        "even draws": ("even",),
        "two task groups": ("groups",),
        "without grounding": ("ungrounded",),
        "without the map of centres": ("without centres",),
        "2 experts, both active": ("2 experts",),
        "8 experts, 2 active": ("8 experts",),
        "whole (1 group, 4 experts, 2 active)": ("whole",),
    },
    "rates of a single task": {f"rate {rate:g}": tuple(single(task, rate) for task in TESTS) for rate in RATES},
}
COMPARISONS = {
    "regional minus global, proposals trained": (("regional",), ("global, detecting",)),
    "no MoE minus single": (("dense",), ALONE),
    "unmixed minus mixed": (("unmixed",), ("mixed",)),
    "gathered minus unmixed": (("gathered",), ("unmixed",)),
}


def lengths(arm: Arm, whole: CfgNode, iterations: int) -> dict[str, Any]:
    """The numbers of iterations of an arm. Each of its tasks sees as many samples as in a joint run of
    ``iterations``."""
    ratios = sampling_ratios(whole)
    share = sum(ratios[task] for task in arm.tasks or TESTS) / sum(ratios[task] for task in TESTS)
    return {
        "SOLVER.MAX_ITER": round(iterations * share),
        "SOLVER.WARMUP_ITERS": round(whole.SOLVER.WARMUP_ITERS * share),  # not shortened with ``iterations``
    }


class Ablations(Study):
    """Draws the plot beside the document, and shows it below the tables."""

    def write_document(self, seeds: int, iterations: int) -> None:
        tables = StudyTables(self, seeds, iterations)
        if any(tables.splits):
            plot(tables, self.document.with_suffix(".png"))
        super().write_document(seeds, iterations)

    def markdown(self, seeds: int, iterations: int) -> str:
        text = super().markdown(seeds, iterations)
        if not any(StudyTables(self, seeds, iterations).splits):
            return text
        return f"{text}\n![Metrics with error bars of one standard deviation; small dots are seeds]({self.name}.png)\n"


STUDY = Ablations(
    __file__,
    arms=ARMS,
    tests=TESTS,
    metrics=METRICS,
    tables=TABLES,
    document=REPOSITORY / "docs" / "ablations.md",
    lengths=lengths,
    seeds=3,
    iterations=2100,
    reference="whole",
    comparisons=COMPARISONS,
    plateaus=PLATEAUS,
)


def plot(tables: StudyTables, path: Path) -> None:
    """A panel for each metric on the first split, with means, error bars of one standard deviation, and a dot for every
    seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [(row, arms, index) for index, table in enumerate(TABLES.values()) for row, arms in table.items()]
    heights = [-place - 0.7 * table for place, (_, _, table) in enumerate(rows)]  # a gap between the tables
    figure, axes = plt.subplots(3, 3, figsize=(13, 13), sharey=True, layout="constrained")
    for axis, metric in zip(axes.flat, METRICS, strict=True):
        for height, (_, arms, table) in zip(heights, rows):
            values = list(tables.values(arms, metric, tables.splits[0]).values())
            if values:
                mean, spread = statistics.mean(values), spread_of(values)
                axis.errorbar(mean, height, xerr=spread, fmt="o", capsize=3, color=f"C{table}")
                axis.plot(values, [height] * len(values), ".", color=f"C{table}", alpha=0.35)
        axis.set_title(metric)
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(heights, [row for row, _, _ in rows])
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    STUDY.main()
