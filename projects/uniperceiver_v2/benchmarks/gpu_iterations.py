"""A training iteration of each task on a GPU: its time, launches, waits of the host, memory, and the GPU's busy share.

    python projects/uniperceiver_v2/benchmarks/gpu_iterations.py [--graphs] [--json FILE] [-- KEY VALUE ...]

Two models train on digit_scenes: the tiny one as in its configuration, and a ResNet-50 model of the sizes of
configs/joint/uniperceiver_v2_r50.yaml on scenes enlarged to 800 pixels, with random weights. Both train in float32 and
under bf16 autocast. An iteration is the trainer's: forward, backward, TBGN's step and the scalars, without the data's
time. With --graphs, the tasks that can use CUDA graphs are measured with them as well.

Times are medians of wall-clock times. "kernels" are kernels and copies, "busy" is their summed time over the
iteration's, and "waits" are the host's synchronisations that PyTorch reports.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from harness import MIB
from repeating import Repeating
from torch.profiler import ProfilerActivity, profile

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader, register_digit_scenes
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.solver import build_optimizer

RESNET50 = {"model_type": "resnet", "layer_type": "bottleneck", "depths": [3, 4, 6, 3]}
R50_SIZES = {
    "EMBED_DIM": 768,
    "DECODER": {"LAYERS": 6, "HEADS": 12, "FFN_DIM": 1024, "EXPERTS": 7, "ACTIVE_EXPERTS": 3},
    "REGION": {
        "DIM": 256,
        "MASK_DIM": 256,
        "POINTS": 4,
        "FFN_DIM": 2048,
        "ENCODER_LAYERS": 6,
        "DECODER_LAYERS": 9,
        "NUM_QUERIES": 300,
        "DENOISING_QUERIES": 100,
    },
    "CRITERION": {"NUM_POINTS": 12544},
}
R50_BATCHES = {"scenes": 2, "scene_phrases": 2, "digits": 32, "scene_captions": 4, "scene_pairs": 8, "corpus": 64}
GRAPHED = ("classification", "captioning", "retrieval")  # kinds of tasks
WITH_GRAPHS = ("MODEL.UNIPERCEIVER_V2.CUDA_GRAPHS", "True")
COLUMNS = ("model", "task", "precision", "graphs", "ms", "images a second", "kernels", "waits", "busy", "MiB")


def config(model: str, device: str, folder: Path, options: Sequence[str] = ()) -> CfgNode:
    """The settings of a model by its name, "tiny" or "R50". ``folder`` takes files of a larger text encoder."""
    cfg = load_config(str(TINY_CONFIG), ["MODEL.DEVICE", device, "DATALOADER.NUM_WORKERS", "0", *options])
    cfg.defrost()
    node = cfg.MODEL.UNIPERCEIVER_V2
    if model == "R50":
        node.BACKBONE.CONFIG = CfgNode(RESNET50)
        for name, value in R50_SIZES.items():
            if isinstance(value, dict):
                node[name].update(value)
            else:
                node[name] = value
        node.TEXT_ENCODER.PATH = str(enlarged_text_encoder(Path(node.TEXT_ENCODER.PATH), folder))
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (800,), 1333
        for task, count in R50_BATCHES.items():
            cfg.TASKS[task].IMS_PER_BATCH = count
        cfg.TASKS.digits.IMAGE_SIZE = 224
    return cfg


def enlarged_text_encoder(source: Path, folder: Path) -> Path:
    """A copy of a text encoder's directory with RoBERTa-base's sizes, apart from its vocabulary."""
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    target = folder / "config.json"
    target.write_text(json.dumps(json.loads(target.read_text()) | sizes))
    return folder


@contextmanager
def waits_of(device: str) -> Iterator[list[str]]:
    """A list of the lines that waited for a GPU inside the context."""
    found: list[str] = []
    if not device.startswith("cuda"):
        yield found
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            # Not the warning that the mode itself gives once.
            waits = [x for x in caught if "called a synchronizing" in str(x.message)]
            found += [f"{'/'.join(Path(x.filename).parts[-2:])}:{x.lineno}" for x in waits]


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(step: Callable[[], Any], device: str, repeats: int) -> dict[str, Any]:
    """Median milliseconds of a step, and counts of one step."""
    on_gpu = device.startswith("cuda")
    for _ in range(4):  # CUDA graphs record at the third
        step()
    synchronize(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    found: dict[str, Any] = {"ms": 1e3 * statistics.median(seconds)}
    if on_gpu:
        found["MiB"] = torch.cuda.max_memory_allocated() / MIB
        with waits_of(device) as waits:
            step()
        found["waits"], found["where"] = len(waits), waits
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            step()
            synchronize(device)
        # The profiler's own list of events: making PyTorch's takes seconds.
        events = recorded.profiler.kineto_results.events()
        kernels = [event.duration_ns() for event in events if event.device_type().name == "CUDA"]
        found["kernels"] = len(kernels)
        found["busy"] = sum(kernels) / 1e6 / found["ms"]
    return found


def make_few_scenes(folder: Path) -> None:
    """Makes digit_scenes of few scenes, which are read in a moment, and registers them in place of the whole."""
    sys.path.insert(0, str(Path(__file__).parents[3] / "datasets"))
    try:
        from prepare_digit_scenes import prepare
    finally:
        sys.path.pop(0)
    prepare(folder, train_scenes=64, test_scenes=1)
    for name in [name for name in DatasetCatalog.list() if name.startswith("digit")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_digit_scenes(str(folder))


def rows_of(name: str, args: argparse.Namespace, graphs: bool) -> Iterator[dict[str, Any]]:
    """The measurements of one model, task by task. A task that fails has its error as a row."""
    device = args.device
    with tempfile.TemporaryDirectory() as folder:
        cfg = config(name, device, Path(folder), [*args.options, *graphs * WITH_GRAPHS])
        torch.manual_seed(0)
        model = build_model(cfg).train()
        optimizer = build_optimizer(cfg, model)
        for group in optimizer.param_groups:
            group["lr"] = 1e-7  # without a warm-up, steps at the configuration's rate would end in NaN
        tasks = [task for task in cfg.TASKS.NAMES if task in (args.tasks or cfg.TASKS.NAMES)]
        if graphs:
            tasks = [task for task in tasks if cfg.TASKS[task].KIND in GRAPHED]
        batches = {task: next(iter(build_task_train_loader(cfg, task))) for task in tasks}
        for precision in args.precisions:
            dtype = torch.bfloat16 if precision == "bfloat16" else None
            trainer = Repeating(model, optimizer, batches, dtype)
            for task in tasks:
                row: dict[str, Any] = {"model": name, "task": task, "precision": precision, "graphs": "yes" * graphs}
                try:
                    row |= measure(functools.partial(trainer.run, task), device, args.repeats)
                    row["images a second"] = 1e3 * len(batches[task]) / row["ms"]
                except Exception as error:
                    traceback.print_exc()
                    row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
                yield row


def line(row: dict[str, Any]) -> str:
    cells = (row.get(column, "") for column in COLUMNS)
    texts = (
        f"{cell:.3g}" if isinstance(cell, float) and cell < 1000 else f"{cell:.0f}" if isinstance(cell, float) else cell
        for cell in cells
    )
    return "| " + " | ".join(map(str, texts)) + f" | {row.get('error', '')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["tiny", "R50"])
    parser.add_argument("--tasks", nargs="+", default=[])
    parser.add_argument("--graphs", action="store_true", help="the same again with CUDA graphs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, whose work is small beside a GPU")
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument(
        "options", nargs="*", metavar="KEY VALUE", help="settings, such as MODEL.UNIPERCEIVER_V2.CHANNELS_LAST True"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    on_gpu = args.device.startswith("cuda")
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else args.device,
        "torch": torch.__version__,
        "rows": [],
    }
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        make_few_scenes(Path(folder))
        for name, graphs in itertools.product(args.models, (False, True) if args.graphs else (False,)):
            for row in rows_of(name, args, graphs):
                report["rows"].append(row)
                print(line(row), flush=True)
                if args.json:  # after each row, as the time may end
                    Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if any("error" in row for row in report["rows"]):
        sys.exit("some tasks failed")


if __name__ == "__main__":
    main()
