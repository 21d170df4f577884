"""Train and evaluate Uni-Perceiver v2.

    python train_net.py --config-file configs/digit_scenes/uniperceiver_v2_tiny.yaml [--eval-only] [--resume]
        [--num-gpus N | --num-processes N] [KEY VALUE ...]
    torchrun --nproc_per_node N train_net.py --config-file ... [KEY VALUE ...]

--num-processes starts processes on the CPU, --num-gpus on GPUs. The second form runs on both. With torchrun's option
--max-restarts, a run continues from its last checkpoint after a process has died. docs/training.md describes runs on
several machines, signals and exit codes.

Results go to OUTPUT_DIR: model_final.pth, metrics.json (scalars during training), results.json (the last evaluation),
inference/<dataset>/ (files of the evaluators), visualization/ (pictures of detections and captions) and report.html (a
page about the run).
"""

import logging
import os
import sys
from argparse import Namespace

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.config import find_config, load_config
from uniperceiver_v2.engine import (
    UniPerceiverTrainer,
    add_process_arguments,
    load_pretrained_parts,
    run_in_processes,
    whole_model,
    world_size,
)
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.evaluation import format_results_table, write_json
from uniperceiver_v2.kinds import kind_of_dataset

logger = logging.getLogger("uniperceiver_v2.train_net")


def main(args: Namespace) -> None:
    """The program of one process of a run."""
    cfg = configuration(args)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="uniperceiver_v2")
    if args.eval_only:
        model = UniPerceiverTrainer.build_model(cfg)
        load_weights(cfg, model, args.resume)
        report(cfg, model, UniPerceiverTrainer.test(cfg, model))
        return
    trainer = UniPerceiverTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    # All processes enter: the first one draws with the whole model.
    with trainer.averaged_weights(), whole_model(trainer.model):
        report(cfg, trainer.model, results)


def configuration(args: Namespace) -> CfgNode:
    """The checked settings of this run."""
    return load_config(args.config_file, args.opts, training=not args.eval_only, world_size=world_size(args))


def load_weights(cfg: CfgNode, model: nn.Module, resume: bool) -> None:
    """Load MODEL.WEIGHTS, with --resume the last checkpoint of OUTPUT_DIR, or else the pre-trained parts."""
    may_be_nan = cfg.MODEL.UNIPERCEIVER_V2.WEIGHTS_MAY_BE_NAN
    checkpointer = AtomicCheckpointer(model, cfg.OUTPUT_DIR, weights_may_be_nan=may_be_nan)
    if resume and not checkpointer.has_checkpoint():
        raise UserError(f"--resume: there is no checkpoint in {cfg.OUTPUT_DIR}")
    if not resume and load_pretrained_parts(cfg, model):
        return
    if not resume and not cfg.MODEL.WEIGHTS:
        raise UserError(
            "nothing to evaluate: name the weights by MODEL.WEIGHTS, or give --resume for the last "
            f"checkpoint in {cfg.OUTPUT_DIR}"
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)


def report(cfg: CfgNode, model: nn.Module, results: dict[str, dict] | None) -> None:
    """Print the figures of the last evaluation, write them to results.json, and draw predictions. Without test datasets
    there are no figures. Then write the page about the run."""
    if not comm.is_main_process():
        return
    if results:
        write_json(os.path.join(cfg.OUTPUT_DIR, "results.json"), results)
        for dataset in cfg.DATASETS.TEST:
            if (kind := kind_of_dataset(dataset)) is not None:
                kind.draw(cfg, model, dataset)
        print(format_results_table(results), flush=True)
    write_page(cfg.OUTPUT_DIR)


def write_page(output_dir: str) -> None:
    """Write report.html. The run is complete without it, so a failure is logged and nothing more."""
    try:
        from uniperceiver_v2.report import write_report

        write_report([output_dir], os.path.join(output_dir, "report.html"))
    except Exception:
        logger.warning("the run is complete, but its report.html could not be written", exc_info=True)


def run() -> int:
    """Run the program and return its exit code."""
    args = add_process_arguments(default_argument_parser()).parse_args()
    args.config_file = find_config(args.config_file)
    try:
        cfg = configuration(args)  # reports a wrong setting before any process is started
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return run_in_processes(main, args, cfg)


if __name__ == "__main__":
    sys.exit(run())
