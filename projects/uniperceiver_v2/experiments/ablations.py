"""The paper's Tables 2, 3 and 4 in miniature: what each part of the model and of its training is worth on digit_scenes.

    python projects/uniperceiver_v2/experiments/ablations.py [--iterations 700] [--seeds 3] [--jobs 2] [--only ARM ...]

The trainer of train_net.py trains every arm with the small generalist's configuration, for fewer iterations. It is
tested on digit_scenes' test sets. A run of all tasks has ``--iterations`` iterations. A run of some tasks has a smaller
number, the tasks' share of it, so that each task sees as many samples as in a run of all tasks. Warm-up and the
decoder's delay are shortened in the same way. Writes the table and the plot of docs/ablations.md. study.py describes
how runs are kept, resumed and divided among processes.
"""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detectron2.config import CfgNode
from study import Arm, Study, spread_of

from uniperceiver_v2.config import sampling_ratios
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.meta_arch import UniPerceiverV2
from uniperceiver_v2.modeling.decoder import Segment
from uniperceiver_v2.tasks.retrieval import RetrievalTask

RANKS = 4  # the batch of retrieval is divided among so many simulated ranks in the arm without gathered features

TESTS = {
    "scenes": "digit_scenes_test",
    "digits": "digits_test",
    "scene_captions": "digit_scenes_captions_test",
    "scene_pairs": "digit_scenes_retrieval_test",
    "corpus": "digit_corpus_test",
}
METRICS = {
    "box AP": ("scenes", "bbox", "AP"),
    "mask AP": ("scenes", "segm", "AP"),
    "top-1": ("digits", "classification", "top1"),
    "text R@10": ("scene_pairs", "text_retrieval", "R@10"),
    "image R@10": ("scene_pairs", "image_retrieval", "R@10"),
    "BLEU-4": ("scene_captions", "caption", "Bleu_4"),
    "CIDEr": ("scene_captions", "caption", "CIDEr"),
    "words": ("corpus", "language_modelling", "accuracy"),
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


DECODER = "MODEL.UNIPERCEIVER_V2.DECODER"
ADAMW = {"SOLVER.OPTIMIZER": "AdamW"}
ARMS = {
    "whole": Arm(),
    "global": Arm(tuple(TESTS)[1:], replaced=lambda: only_segment(0)),
    "regional": Arm(replaced=lambda: only_segment(1)),
    **{f"single {task}": Arm((task,)) for task in TESTS},
    # As many operations as the two experts that process a token.
    "dense": Arm(settings={f"{DECODER}.EXPERTS": 0, f"{DECODER}.FFN_DIM": 512}),
    # All tasks in each iteration, with s_k times the batch size. So each task sees as many samples as in unmixed
    # sampling.
    "mixed": Arm(
        settings={
            **ADAMW,
            "SOLVER.SAMPLING": "mixed",
            **{f"TASKS.{task}.IMS_PER_BATCH": size for task, size in zip(TESTS, (3, 1, 2, 2, 3), strict=True)},
        }
    ),
    "unmixed": Arm(settings=ADAMW, replaced=features_not_gathered),
    "gathered": Arm(settings=ADAMW),
}
# {table: {row: the arms that provide the row's metrics}}
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "representation (Table 2)": {
        "global only": ("global",),
        "regional only": ("regional",),
        "global + regional": ("whole",),
    },
    "tasks (Table 3)": {
        "single task": tuple(f"single {task}" for task in TESTS),
        "all tasks, no MoE": ("dense",),
        "all tasks, Conditional MoE": ("whole",),
    },
    "sampling (Table 4)": {
        "mixed": ("mixed",),
        "unmixed": ("unmixed",),
        "+ gathered features": ("gathered",),
        "+ TBGN": ("whole",),
    },
}


def lengths(arm: Arm, whole: CfgNode, iterations: int) -> dict[str, Any]:
    """The numbers of iterations of an arm. Each of its tasks sees as many samples as in a joint run of
    ``iterations``."""
    ratios = sampling_ratios(whole)
    share = sum(ratios[task] for task in arm.tasks or TESTS) / sum(ratios[task] for task in TESTS)
    return {
        "SOLVER.MAX_ITER": round(iterations * share),
        # Not shortened with ``iterations``, as features need a certain number of iterations to develop.
        "SOLVER.WARMUP_ITERS": round(whole.SOLVER.WARMUP_ITERS * share),
        "SOLVER.DECODER_DELAY": round(whole.SOLVER.DECODER_DELAY * share),
    }


STUDY = Study(
    __file__,
    arms=ARMS,
    tests=TESTS,
    metrics=METRICS,
    tables=TABLES,
    document=REPOSITORY / "docs" / "ablations.md",
    lengths=lengths,
    seeds=3,
)


def plot(seeds: int, iterations: int, path: Path) -> None:
    """A panel for each metric, with means, error bars of one standard deviation, and a dot for every seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [(row, arms, index) for index, table in enumerate(TABLES.values()) for row, arms in table.items()]
    figure, axes = plt.subplots(2, 4, figsize=(13, 7), sharey=True, layout="constrained")
    for axis, metric in zip(axes.flat, METRICS, strict=True):
        for place, (_, arms, table) in enumerate(rows):
            values = STUDY.values_of(arms, metric, seeds, iterations)
            if values:
                height = -place - 0.7 * table  # a gap between the tables
                axis.errorbar(
                    statistics.mean(values), height, xerr=spread_of(values), fmt="o", capsize=3, color=f"C{table}"
                )
                axis.plot(values, [height] * len(values), ".", color=f"C{table}", alpha=0.35)
        axis.set_title(metric)
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(
        [-place - 0.7 * table for place, (_, _, table) in enumerate(rows)], [row for row, _, _ in rows]
    )
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Do the study, and draw the plot beside its document."""
    args = STUDY.main(arguments)
    if not args.run:
        plot(args.seeds, args.iterations, STUDY.document.with_suffix(".png"))


if __name__ == "__main__":
    main()
