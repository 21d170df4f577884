"""A campaign of broken inputs: each is read as the project reads it, in a process of its own, with limits.

    python tests/fuzz/campaign.py --cases 10000 --seed 0 --output output/fuzz       # or --seed 1 2 3

A case follows from the seed, its kind and its number. A campaign that was stopped goes on where it was: the output
folder has a line for each finished block of cases, and each finding's file.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.util
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
from running import FINDING, HANDLED, REFUSED, Damaged, Kind, run

sys.path.pop(0)

KINDS = sorted(path.stem for path in (Path(__file__).parent / "kinds").glob("*.py"))
CORPUS = "corpus"
BLOCK = 50  # cases between two lines of the output


@functools.cache
def kind_of(name: str) -> Kind:
    """A kind with its good files, in a folder that lasts as long as this process."""
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", Path(__file__).parent / "kinds" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(__file__).parent))
    spec.loader.exec_module(module)
    sys.path.pop(0)
    folder = tempfile.TemporaryDirectory(prefix=f"fuzz_{name}_")
    kind = module.Kind(Path(folder.name))
    kind.folder = folder
    gc.freeze()
    return kind


def case_of(name: str, seed: int | str, number: int) -> Damaged:
    """A case's file. Those of the seed ``CORPUS`` are the files that are kept."""
    if seed == CORPUS:
        path = corpus_of(name)[number]
        return Damaged(path.name, path.read_bytes())
    return kind_of(name).damaged(random.Random(f"{seed}/{name}/{number}"))


def run_block(name: str, seed: int | str, first: int, count: int) -> dict[str, Any]:
    """The cases of a block: their counts, and the findings with the numbers of their cases."""
    counts, findings = Counter({HANDLED: 0, REFUSED: 0, FINDING: 0}), []
    outcomes = run(kind_of(name), [case_of(name, seed, number) for number in range(first, first + count)])
    for number, outcome in enumerate(outcomes, start=first):
        counts[outcome.result] += 1
        if outcome.result == FINDING:
            findings.append({"case": number, "reason": outcome.reason})
    return {"kind": name, "seed": seed, "first": first, "count": count, **counts, "findings": findings}


def corpus_of(name: str) -> list[Path]:
    """The files that are kept because they were the worst: corpus/<kind>/<what it is>/<file>."""
    return sorted(path for path in (Path(__file__).parent / CORPUS / name).rglob("*") if path.is_file())


def table(blocks: list[dict[str, Any]]) -> str:
    """Counts of each kind, and the findings with how often they came."""
    rows = ["| kind | cases | handled | refused | findings |", "|---|---|---|---|---|"]
    for name in [*sorted({block["kind"] for block in blocks}), "all"]:
        its = [block for block in blocks if name in (block["kind"], "all")]
        sums = (sum(block[key] for block in its) for key in ("count", HANDLED, REFUSED, FINDING))
        rows.append(f"| {name} | {' | '.join(f'{number:,}' for number in sums)} |")
    reasons: dict[tuple[str, str], list[str]] = {}
    for block in blocks:
        for found in block["findings"]:
            reasons.setdefault((block["kind"], found["reason"]), []).append(f"{block['seed']}/{found['case']}")
    for (name, reason), cases in sorted(reasons.items(), key=lambda item: -len(item[1])):
        rows.append(f"\n{name}, {len(cases)} times, first {cases[0]}: {reason}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of each seed, divided among the kinds")
    parser.add_argument("--fewer", nargs="+", default=[], metavar="KIND=CASES", help="of kinds that take long")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("output/fuzz"))
    parser.add_argument("--case", help="KIND/NUMBER: write its file to the output folder, and run it alone")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.case:
        name, number = args.case.split("/")
        case = case_of(name, args.seed[0], int(number))
        (args.output / case.name).write_bytes(case.content)
        print(args.output / case.name, *run(kind_of(name), [case]))
        return
    log = args.output / "blocks.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {(block["kind"], block["seed"], block["first"], block["count"]) for block in done}
    each = -(-args.cases // len(args.kinds))
    wanted = [(name, CORPUS, 0, len(corpus_of(name))) for name in args.kinds]
    counts = {**dict.fromkeys(args.kinds, each), **{k: int(n) for k, n in (pair.split("=") for pair in args.fewer)}}
    wanted += [
        (name, seed, first, min(BLOCK, counts[name] - first))
        for seed in args.seed
        for first in range(0, each, BLOCK)
        for name in args.kinds
        if first < counts[name]
    ]
    began = time.monotonic()
    for name in args.kinds:
        kind_of(name)
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(args.jobs, mp_context=fork) as pool, open(log, "a") as file:
        for future in as_completed([pool.submit(run_block, *block) for block in wanted if block not in known]):
            done.append(future.result())
            file.write(json.dumps(done[-1]) + "\n")
            file.flush()
            if done[-1]["findings"]:
                print(json.dumps(done[-1]["findings"][:3])[:600], file=sys.stderr, flush=True)
    blocks = [b for b in done if (b["kind"], b["seed"], b["first"], b["count"]) in set(wanted)]
    print(table(blocks))
    seeds = f"seed{'s' * (len(args.seed) > 1)} {', '.join(map(str, args.seed))}"
    print(f"\n{sum(block['count'] for block in blocks):,} cases of {seeds}, {time.monotonic() - began:.0f} s")
    sys.exit(any(block["findings"] for block in blocks))


if __name__ == "__main__":
    main()
