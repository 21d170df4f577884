"""The effect of activation checkpointing, bf16 and torch.compile on memory and time of a training iteration.

    OMP_NUM_THREADS=1 python projects/uniperceiver_v2/benchmarks/memory.py [--device cuda] [--repeats 3]

Prints a Markdown table for two models: the tiny model of configs/digit_scenes (8 scenes of 96 pixels), and a medium
model (Swin-T's shape, region network of width 256, 2 scenes of 384 pixels). A row is a detection iteration, forward,
backward and AdamW, with one setting, in its own process.

Memory is the peak above the memory of weights, optimizer and libraries between iterations: resident memory on a CPU,
allocated memory on a GPU. Time is the median over iterations without the first. On a CPU it is processor time, so that
other programs on the machine matter little. On a GPU it is wall-clock time. The ratios are relative to the model's
first row. The first iteration is shown separately, as it includes compilation.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from uniperceiver_v2.config import load_config
from uniperceiver_v2.files import TINY_CONFIG

PARTS = ("backbone", "region_network", "decoder")
NODE = "MODEL.UNIPERCEIVER_V2"
SETTINGS = {
    "nothing": {},
    **{f"checkpointing: {part}": {"checkpointing": [part]} for part in PARTS},
    "checkpointing: all": {"checkpointing": PARTS},
    "accumulation in 2 parts": {"parts": 2},
    "bf16": {"bf16": True},
    "bf16, checkpointing: all": {"bf16": True, "checkpointing": PARTS},
    "compiled decoder": {"compile": True},
}
SIZES = {"tiny": (8, 96), "medium": (2, 384)}  # number of scenes, and their side in pixels
SWIN_TINY = {"model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
MEDIUM = {
    "EMBED_DIM": 384,
    "BACKBONE.NORM": "",
    "DECODER.LAYERS": 6,
    "DECODER.HEADS": 6,
    "DECODER.FFN_DIM": 768,
    "DECODER.EXPERTS": 8,
    "REGION.DIM": 256,
    "REGION.MASK_DIM": 256,
    "REGION.POINTS": 4,
    "REGION.FFN_DIM": 1024,
    "REGION.ENCODER_LAYERS": 6,
    "REGION.DECODER_LAYERS": 6,
    "REGION.NUM_QUERIES": 100,
    "CRITERION.NUM_POINTS": 1024,
}


def config(size: str, device: str, checkpointing: list[str], compiled: bool) -> CfgNode:
    keys = {**(MEDIUM if size == "medium" else {}), "ACTIVATION_CHECKPOINTING": list(checkpointing)}
    keys["DECODER.COMPILE"] = compiled
    overrides = [text for key, value in keys.items() for text in (f"{NODE}.{key}", str(value))]
    cfg = load_config(str(TINY_CONFIG), [*overrides, "MODEL.DEVICE", device])
    if size == "medium":
        cfg.defrost()
        cfg.MODEL.UNIPERCEIVER_V2.BACKBONE.CONFIG = CfgNode(SWIN_TINY)
    return cfg


def scenes(count: int, side: int) -> list[dict]:
    """Images of noise with five boxes each."""
    corners = torch.rand(count, 5, 2) * 0.6
    boxes = torch.cat((corners, corners + 0.1 + 0.3 * torch.rand(count, 5, 2)), dim=-1) * side
    found = []
    for own in boxes:
        masks = torch.zeros(5, side, side, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, own.int().tolist()):
            mask[y0:y1, x0:x1] = True
        objects = Instances((side, side), gt_boxes=Boxes(own), gt_classes=torch.arange(5), gt_masks=BitMasks(masks))
        image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
        names = ("zero", "one", "two", "three", "four")
        found.append({"task": "detection", "image": image, "instances": objects, "candidates": names})
    return found


def resident(field: str) -> int:
    """Resident bytes of this process: VmRSS is the present value, VmHWM the peak since the last reset."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def start_of_peak(device: str) -> int:
    """Reset the peak and return the bytes in use."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    return resident("VmRSS")


def peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else resident("VmHWM")


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure(size: str, setting: str, device: str, repeats: int) -> dict[str, float]:
    """Peak bytes, median seconds of an iteration, and seconds of the first iteration."""
    torch.manual_seed(0)
    chosen = SETTINGS[setting]
    model = build_model(config(size, device, chosen.get("checkpointing", []), chosen.get("compile", False))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batch, peaks, seconds = scenes(*SIZES[size]), [], []
    parts = chosen.get("parts", 1)
    for _ in range(1 + repeats):
        base, start = start_of_peak(device), clock(device)
        for part in range(parts):
            with EventStorage(), torch.autocast(device, torch.bfloat16, enabled=chosen.get("bf16", False)):
                losses = model(batch[part::parts])
            (sum(losses.values()) / parts).backward()
            del losses
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(clock(device) - start)
        peaks.append(peak(device) - base)
    return {"bytes": max(peaks[1:]), "seconds": statistics.median(seconds[1:]), "first": seconds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs=2, metavar=("MODEL", "SETTING"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(*args.only, args.device, args.repeats)))
        return
    # The allocator returns freed memory to the system at once, instead of keeping it for the next iteration.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    print("| model | setting | peak MiB | ratio | iteration s | ratio | first iteration s |\n" + 7 * "|---" + "|")
    for size in SIZES:
        plain = None
        for setting in SETTINGS:
            command = [sys.executable, __file__, "--device", args.device, "--repeats", str(args.repeats)]
            output = subprocess.run(
                [*command, "--only", size, setting], env=environment, stdout=subprocess.PIPE, check=True, text=True
            )
            found = json.loads(output.stdout.splitlines()[-1])
            plain = plain or found
            ratios = {key: found[key] / plain[key] for key in ("bytes", "seconds")}
            print(
                f"| {size} | {setting} | {found['bytes'] / 2**20:.0f} | {ratios['bytes']:.2f} "
                f"| {found['seconds']:.2f} | {ratios['seconds']:.2f} | {found['first']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
