"""The paper's Tables 2, 3 and 4 in miniature: what each part of the model and of its training is worth on digit_scenes.

    python projects/uniperceiver_v2/benchmarks/ablations.py [--iterations 700] [--seeds 3] [--jobs 2]

Every variant is trained by the trainer of train_net.py from the small generalist's configuration, shortened, and tested
on digit_scenes' test sets. A joint run has `--iterations`; a run without some tasks has their share of them, so that
each task sees as many samples as in the joint run; so many fewer are the iterations in which rates warm up and the
decoder waits, too.

Seeds come one after the other, so that a study that is stopped has whole tables of fewer seeds. Finished runs are not
repeated and the others go on from their last checkpoint; several of these programs divide the runs among them. At the
end, or with --jobs 0 at once, docs/ablations.md gets the table and the plot of what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup

import uniperceiver_v2  # noqa: F401  (registers the model and the datasets)
from uniperceiver_v2.config import load_config, sampling_ratios
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.meta_arch import UniPerceiverV2
from uniperceiver_v2.modeling.decoder import Segment
from uniperceiver_v2.tasks.retrieval import RetrievalTask

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "configs" / "digit_scenes" / "uniperceiver_v2_tiny.yaml"
OUTPUT = Path("output/ablations")
DOCUMENT = ROOT / "docs" / "ablations.md"
TABLE_MARKS = "<!-- table: written by benchmarks/ablations.py -->\n", "<!-- end of table -->\n"
RANKS = 4  # among which the batch of a contrastive task is divided where features are not gathered

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


# What the model does instead in a variant. No user needs these as settings, so they live here.


def only_segment(kept: int) -> contextlib.AbstractContextManager:
    """Of an image's two segments, global tokens and proposals, the decoder's tokens see this one alone."""
    segments_of = UniPerceiverV2.image_segments

    def image_segments(self: UniPerceiverV2, *args: Any) -> list[Segment]:
        segments = segments_of(self, *args)
        hidden = segments[1 - kept]
        nothing = torch.zeros(hidden.tokens.shape[:2], dtype=torch.bool, device=hidden.tokens.device)
        segments[1 - kept] = Segment(hidden.tokens, nothing, hidden.attributes)
        return segments

    return mock.patch.object(UniPerceiverV2, "image_segments", image_segments)


def features_not_gathered() -> contextlib.AbstractContextManager:
    """Retrieval as on several ranks that keep their features to themselves: contrast within parts of the batch."""
    whole = RetrievalTask.losses

    def losses(self: RetrievalTask, model: UniPerceiverV2, inputs: list[dict]) -> dict[str, torch.Tensor]:
        parts = [whole(self, model, inputs[rank::RANKS]) for rank in range(RANKS)]
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    return mock.patch.object(RetrievalTask, "losses", losses)


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        tasks: those that are trained and tested.
        settings: KEY VALUE pairs on top of the configuration.
        replaced: what is replaced in the code meanwhile.
    """

    tasks: tuple[str, ...] = tuple(TESTS)
    settings: dict[str, Any] = field(default_factory=dict)
    replaced: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


DECODER = "MODEL.UNIPERCEIVER_V2.DECODER"
ADAMW = {"SOLVER.OPTIMIZER": "AdamW"}
VARIANTS = {
    "whole": Variant(),
    "global": Variant(tuple(TESTS)[1:], replaced=lambda: only_segment(0)),
    "regional": Variant(replaced=lambda: only_segment(1)),
    **{f"single {task}": Variant((task,)) for task in TESTS},
    # As many operations as the two experts that a token goes through.
    "dense": Variant(settings={f"{DECODER}.EXPERTS": 0, f"{DECODER}.FFN_DIM": 512}),
    # All tasks in each iteration, each with s_k of its batch: as many samples of each task as in unmixed sampling.
    "mixed": Variant(
        settings={
            **ADAMW,
            "SOLVER.SAMPLING": "mixed",
            **{f"TASKS.{task}.IMS_PER_BATCH": size for task, size in zip(TESTS, (4, 2, 1, 2, 3), strict=True)},
        }
    ),
    "unmixed": Variant(settings=ADAMW, replaced=features_not_gathered),
    "gathered": Variant(settings=ADAMW),
}
# By table and row, the variants whose metrics a row shows.
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


def folder_of(name: str, seed: int) -> Path:
    return OUTPUT / f"{name.replace(' ', '_')}_{seed}"


def configuration(name: str, seed: int, iterations: int) -> CfgNode:
    """Settings of a variant's run; `iterations` are the joint run's."""
    variant, whole = VARIANTS[name], load_config(str(CONFIG))
    ratios = sampling_ratios(whole)
    share = sum(ratios[task] for task in variant.tasks)
    length = round(iterations * share)
    settings = {
        "SEED": seed,
        "TASKS.NAMES": list(variant.tasks),
        "DATASETS.TEST": (),
        "SOLVER.MAX_ITER": length,
        "SOLVER.STEPS": tuple(round(step / whole.SOLVER.MAX_ITER * length) for step in whole.SOLVER.STEPS),
        # As long as in the whole training, which has more iterations: features take their time.
        "SOLVER.WARMUP_ITERS": round(whole.SOLVER.WARMUP_ITERS * share),
        "SOLVER.DECODER_DELAY": round(whole.SOLVER.DECODER_DELAY * share),
        "SOLVER.CHECKPOINT_PERIOD": 200,
        "VIS_PERIOD": 0,
        "OUTPUT_DIR": folder_of(name, seed),
        **variant.settings,
    }
    return load_config(str(CONFIG), [str(text) for pair in settings.items() for text in pair])


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether the run in this folder is this process's to do; the claim ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "claim", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def train(name: str, seed: int, iterations: int) -> None:
    """One run, unless it is finished or another process is at it. Leaves `ablation.json` in its folder."""
    folder = folder_of(name, seed)
    finished = folder / "ablation.json"
    with claimed(folder) as ours:
        if not ours or finished.exists():
            return
        start = time.perf_counter()
        cfg = configuration(name, seed, iterations)
        default_setup(cfg, argparse.Namespace(config_file="", eval_only=False))
        with VARIANTS[name].replaced():
            trainer = UniPerceiverTrainer(cfg)
            trainer.resume_or_load(resume=True)
            trainer.train()
            with trainer.averaged_weights():
                results = test(trainer, VARIANTS[name].tasks)
        report = {"iterations": iterations, "minutes": (time.perf_counter() - start) / 60, "results": results}
        finished.with_suffix(".part").write_text(json.dumps(report, indent=1))
        os.replace(finished.with_suffix(".part"), finished)
        for checkpoint in folder.glob("model_*.pth"):
            checkpoint.unlink()


def test(trainer: UniPerceiverTrainer, tasks: tuple[str, ...]) -> dict[str, Any]:
    """Results by dataset; batches are the whole configuration's, whatever those of training were."""
    names = tuple(TESTS[task] for task in tasks)
    overrides = ["DATASETS.TEST", str(names), "OUTPUT_DIR", trainer.cfg.OUTPUT_DIR]
    cfg = load_config(str(CONFIG), overrides, training=False)
    return trainer.test(cfg, trainer.model, [trainer.build_evaluator(cfg, name) for name in names])


def train_in_process(name: str, seed: int, iterations: int, threads: int) -> None:
    """A run in a process of its own, with its own log, threads and memory."""
    command = [sys.executable, __file__, "--iterations", str(iterations), "--run", name, str(seed)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=subprocess.DEVNULL)


def values_of(variants: tuple[str, ...], metric: str, seeds: int, iterations: int) -> list[float]:
    """A metric, one value a seed, of the variant among these that was tested for it.

    Raises:
        ValueError: a run of another length stands in the folder.
    """
    task, kind, key = METRICS[metric]
    values = []
    for name in variants:
        if task not in VARIANTS[name].tasks:
            continue
        for seed in range(seeds):
            path = folder_of(name, seed) / "ablation.json"
            if not path.exists():
                continue
            run = json.loads(path.read_text())
            if run["iterations"] != iterations:
                raise ValueError(f"{path} is of {run['iterations']} iterations, not {iterations}: remove its folder")
            values.append(run["results"][TESTS[task]][kind][key])
    return values


def spread_of(values: list[float]) -> float:
    """The sample's standard deviation; nothing is known of it from one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def markdown(seeds: int, iterations: int) -> str:
    lines = [f"| | seeds | {' | '.join(METRICS)} |", "|---|---:|" + "---:|" * len(METRICS)]
    for table, rows in TABLES.items():
        lines.append(f"| **{table}** |" + " |" * (1 + len(METRICS)))
        for row, variants in rows.items():
            cells, counts = [], set()
            for metric in METRICS:
                values = values_of(variants, metric, seeds, iterations)
                spread = f" ± {spread_of(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "-")
                counts |= {len(values)} - {0}
            lines.append(f"| {row} | {'/'.join(map(str, sorted(counts)))} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(seeds: int, iterations: int, path: Path) -> None:
    """A panel for each metric: means with error bars of one standard deviation, and every seed as a dot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [(row, variants, index) for index, table in enumerate(TABLES.values()) for row, variants in table.items()]
    figure, axes = plt.subplots(2, 4, figsize=(13, 7), sharey=True, layout="constrained")
    for axis, metric in zip(axes.flat, METRICS, strict=True):
        for place, (_, variants, table) in enumerate(rows):
            values = values_of(variants, metric, seeds, iterations)
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


def write_document(seeds: int, iterations: int) -> None:
    """Puts the table between its marks in docs/ablations.md, and the plot beside it."""
    before, rest = DOCUMENT.read_text().split(TABLE_MARKS[0])
    after = rest.split(TABLE_MARKS[1])[1]
    table = markdown(seeds, iterations)
    DOCUMENT.write_text(before + TABLE_MARKS[0] + table + TABLE_MARKS[1] + after)
    plot(seeds, iterations, DOCUMENT.with_suffix(".png"))
    print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=700, help="of a joint run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; 0 only writes the document")
    parser.add_argument("--run", nargs=2, metavar=("VARIANT", "SEED"), help="this run alone, in this process")
    args = parser.parse_args()
    if args.run:
        train(args.run[0], int(args.run[1]), args.iterations)
        return
    if args.jobs:
        threads = max(1, (os.cpu_count() or 1) // args.jobs)
        with ThreadPoolExecutor(args.jobs) as pool:
            runs = [(name, seed) for seed in range(args.seeds) for name in VARIANTS]
            list(pool.map(lambda run: train_in_process(*run, args.iterations, threads), runs))
    write_document(args.seeds, args.iterations)


if __name__ == "__main__":
    main()
