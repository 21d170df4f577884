"""Serves a web page that asks a trained model about pictures.

    python -m uniperceiver_v2.web [DIRECTORY | --zoo NAME | --config-file FILE --weights FILE]

By default it is the zoo's model, and the page is for this machine alone. docs/web.md describes it.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ..errors import UserError, exit_code
from ..predictor import Predictor
from .answers import Answers
from .index import Index, pictures_in
from .limits import Limits

DEFAULT_MODEL = "digit_scenes/small"
EXAMPLES = 24
GRADIO = 'the web page needs gradio: pip install "uniperceiver-v2[web]"'


def parser() -> ArgumentParser:
    limits = Limits()
    options = ArgumentParser(prog="python -m uniperceiver_v2.web", description="Ask a trained model on a web page.")
    model = options.add_mutually_exclusive_group()
    model.add_argument("directory", nargs="?", metavar="DIRECTORY", help="a model that save_pretrained wrote")
    model.add_argument("--zoo", metavar="NAME", help=f"a model of the zoo, by default {DEFAULT_MODEL}")
    model.add_argument("--config-file", metavar="FILE", help="settings of a run")
    options.add_argument("--weights", metavar="FILE", help="goes with --config-file, by default its MODEL.WEIGHTS")
    options.add_argument("--device", metavar="NAME", help='"cpu", "cuda", ...; by default MODEL.DEVICE')
    options.add_argument(
        "--examples", metavar="FOLDER", help=f"its first {EXAMPLES} pictures can be picked on the page"
    )
    options.add_argument("--search", metavar="FOLDER", help="its pictures can be searched on the page")
    options.add_argument("--host", default="127.0.0.1", help='by default this machine alone; "0.0.0.0" for its network')
    options.add_argument("--port", type=int, help="by default the first free one from 7860 on")
    options.add_argument("--share", action="store_true", help="make the page public by gradio's relay")
    options.add_argument("--max-upload", type=float, default=limits.upload_bytes / 2**20, metavar="MB")
    options.add_argument("--max-megapixels", type=float, default=limits.pixels / 1e6, metavar="N")
    options.add_argument("--max-search", type=int, default=limits.searched, metavar="N", help="pictures of --search")
    options.add_argument("--max-waiting", type=int, default=limits.waiting, metavar="N", help="requests in the queue")
    options.add_argument("--time-limit", type=float, default=limits.seconds, metavar="SECONDS", help="of a request")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The program. Returns its exit code."""
    args = parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    return exit_code(lambda: serve(args))


def serve(args: Namespace) -> int:
    """
    Raises:
        UserError: an option or the model cannot be used, or gradio is not installed.
        OSError: the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError(GRADIO)
    limits = limits_of(args)
    examples = list(islice(pictures_in(Path(args.examples).expanduser(), EXAMPLES), EXAMPLES)) if args.examples else []
    answers = Answers(*load(args, limits))
    try:
        index = Index(args.search, answers.predictor, answers.worker, limits) if args.search else None
        print(answers.learned, flush=True)
        show(answers, index, [str(path) for path in examples], args)
    finally:
        answers.close()
    return 0


def show(answers: Answers, index: Index | None, examples: list[str], args: Namespace) -> None:
    """Serve until Ctrl-C. Uploads are removed at the end."""
    with tempfile.TemporaryDirectory(prefix="uniperceiver_v2_web_") as folder:
        from .page import Page
        from .server import launch

        blocks = launch(Page(answers, index, examples), Path(folder), args.host, args.port, args.share)
        try:
            print(f"The page is at {blocks.local_url} until Ctrl-C.", flush=True)
            if index is not None:
                index.start()
            blocks.block_thread()
        finally:
            if index is not None:
                index.close()
            blocks.close(verbose=False)


def limits_of(args: Namespace) -> Limits:
    """
    Raises:
        UserError: a limit is not positive.
    """
    for name in ("max_upload", "max_megapixels", "max_search", "max_waiting", "time_limit"):
        if not getattr(args, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} has to be more than 0")
    return Limits(
        upload_bytes=round(args.max_upload * 2**20),
        pixels=round(args.max_megapixels * 1e6),
        searched=args.max_search,
        waiting=args.max_waiting,
        seconds=args.time_limit,
    )


def load(args: Namespace, limits: Limits) -> tuple[Predictor, Limits, str]:
    """The model that the options name, with its name for people.

    Raises:
        UserError: the model cannot be used.
    """
    if args.weights and not args.config_file:
        raise UserError("--weights goes with --config-file, which has the settings of the model")
    if args.config_file:
        name, predictor = args.config_file, Predictor(args.config_file, args.weights, device=args.device)
    elif args.directory:
        name, predictor = args.directory, Predictor.from_pretrained(args.directory, device=args.device)
    else:
        name = args.zoo or DEFAULT_MODEL
        predictor = Predictor.from_zoo(name, device=args.device)
    return predictor, limits, name


if __name__ == "__main__":
    sys.exit(main())
