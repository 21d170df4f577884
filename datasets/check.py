"""Reads whole datasets and says what is wrong with them, file by file.

    python datasets/check.py [NAME...] [--workers N]

Names are those of the catalog, such as coco_2017_train. Without a name it checks all datasets that the paper's joint
training learns from, those of its tables, and those whose images are held out. It reads the annotations as training
does, then every image, every frame of a video, every pair of a shard and every text, in parallel. The exit status is 1
if anything is wrong.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from uniperceiver_v2 import model_zoo
from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.data.datasets.segments import read_segments
from uniperceiver_v2.data.datasets.shards import InShards, ShardRecords
from uniperceiver_v2.data.datasets.texts import tidy
from uniperceiver_v2.errors import UnreadableImage, UserError
from uniperceiver_v2.reading import check_frames, read_image

# The number of images that a whole dataset has.
WHOLE = {
    **{"coco_2017_train": 118_287, "coco_2017_val": 5_000, "lvis_v1_train": 100_170, "lvis_v1_val": 19_809},
    **{"coco_2017_captions_train": 118_287, "coco_2017_captions_val": 5_000},
    **{"imagenet_train": 1_281_167, "imagenet_val": 50_000},
    **{f"coco_2014_captions_karpathy_{s}": n for s, n in (("train", 113_287), ("val", 5_000), ("test", 5_000))},
    **{f"coco_2014_retrieval_karpathy_{split}": 5_000 for split in ("val", "test")},
    **{"flickr30k_retrieval_karpathy_val": 1_014, "flickr30k_retrieval_karpathy_test": 1_000},
    **{f"refcoco_unc_{s}": n for s, n in (("train", 16_994), ("val", 1_500), ("testA", 750), ("testB", 750))},
    **{f"refcoco+_unc_{s}": n for s, n in (("train", 16_992), ("val", 1_500), ("testA", 750), ("testB", 750))},
    **{"refcocog_umd_train": 21_899, "refcocog_umd_val": 1_300, "refcocog_umd_test": 2_600},
    **{"coco_panoptic_train": 118_287, "coco_panoptic_val": 5_000, "ade20k_train": 20_210, "ade20k_val": 2_000},
    **{"flickr30k_entities_train": 29_783, "flickr30k_entities_val": 1_000, "flickr30k_entities_test": 1_000},
    **{"vqa_v2_train": 82_783, "vqa_v2_val": 40_504},
    **{
        f"visual_genome_region_captions_{split}": count
        for split, count in (("train", 77_398), ("val", 5_000), ("test", 5_000))
    },
}
_CHUNK = 32  # records that a process takes at a time

_records: Sequence[dict] = ()  # of the dataset that is being checked; forked processes share it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered datasets (default: the paper's)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one for each core)")
    options = parser.parse_args()
    setup_logger(name="uniperceiver_v2")
    wrong = 0
    for name in options.names or datasets_of_the_paper():
        try:
            records = load_dataset(name)
        except UserError as error:
            print(f"error: {error}")
            wrong += 1
            continue
        count = 0
        for problem in chain(problems_of_files(name, records), problems_of_records(name, records, options.workers)):
            tqdm.write(problem)  # on stdout, above the bar
            count += 1
        wrong += count
        print(f"{name}: {len(records):,} read, {f'{count:,} problems' if count else 'nothing is wrong'}")
    return 1 if wrong else 0


def datasets_of_the_paper() -> list[str]:
    """The datasets of the joint training, those of the paper's tables, and those whose images are held out."""
    cfg = model_zoo.get_config("joint/uniperceiver_v2_r50_table6.yaml")
    trained = [name for task in cfg.TASKS.NAMES for name in cfg.TASKS[task].DATASETS]
    return list(dict.fromkeys((*trained, *cfg.DATASETS.TEST, *cfg.DATASETS.HELD_OUT)))


def problems_of_files(name: str, records: Sequence[dict]) -> Iterator[str]:
    """What is wrong with a dataset as a whole, or with its shards."""
    if len(records) != WHOLE.get(name, len(records)):
        yield f"{name} has {len(records):,} images, but the whole dataset has {WHOLE[name]:,}"
    if isinstance(records, InShards):
        paths = [shard.path for shard in records.shards]
        cut = [path for path in paths if not _is_whole(path, isinstance(records, ShardRecords))]
        yield from (f"{path}: the shard is cut short" for path in cut)


def _is_whole(path: str, is_tar: bool) -> bool:
    """Whether a shard ends as it should: a tar with two blocks of zeros, a text with the end of a line."""
    end = bytes(1024) if is_tar else b"\n"
    with open(path, "rb") as file:
        file.seek(max(Path(path).stat().st_size - len(end), 0))
        return file.read() == end


def problems_of_records(name: str, records: Sequence[dict], workers: int) -> Iterator[str]:
    """What is wrong with each record, in the order of the records."""
    global _records
    _records = records
    starts = range(0, len(records), _CHUNK)
    progress = tqdm(total=len(records), desc=name, unit=" records", disable=None)
    with progress, multiprocessing.get_context("fork").Pool(max(workers, 1)) as pool:
        for problems in pool.imap(_check_chunk, starts):
            progress.update(min(_CHUNK, len(records) - progress.n))
            yield from problems


def _check_chunk(start: int) -> list[str]:
    indices = range(start, min(start + _CHUNK, len(_records)))
    return [problem for problem in map(_problem_of, indices) if problem]


def _problem_of(index: int) -> str | None:
    """What is wrong with a record, beginning with its file."""
    try:
        record = _records[index]
        if "text" in record:
            return None if tidy(record["text"]) else f"{record['text_id']}: the text is empty"
        if "video" in record:
            check_frames(record["video"])
            return None
        read_image(record, "RGB")
        if "segments_file" in record:
            read_segments(record)
    except (UnreadableImage, UserError) as error:
        return str(error)
    captions = record.get("captions")
    if captions is not None and not any(map(tidy, captions)):
        return f"{record['file_name']}: the image has no caption"
    return None


if __name__ == "__main__":
    sys.exit(main())
