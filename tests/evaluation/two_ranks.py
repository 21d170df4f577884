"""One of two processes of test_classification: evaluates its share. Arguments: rank, folder."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch.distributed as dist
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from test_classification import NAMES, samples

from uniperceiver_v2.evaluation import ClassificationEvaluator


def main(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    MetadataCatalog.get("letters").set(thing_classes=list(NAMES))
    evaluator = ClassificationEvaluator("letters", folder)
    inputs, outputs = samples(41)
    evaluator.process(inputs[rank::2], outputs[rank::2])
    print(json.dumps(evaluator.evaluate()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
