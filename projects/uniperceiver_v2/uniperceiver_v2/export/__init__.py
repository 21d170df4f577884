"""Models where there is no PyTorch: ONNX files of a model, with a description that a program can read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_json
from ..predictor import Predictor
from .check import TOLERANCE, differences, figures, unexplained
from .description import DESCRIPTION, describe, file_of, save_tokenizer
from .files import PRECISIONS, require, to_half, to_int8, trace
from .parts import deployable, parts_of
from .session import Captioner, Detector, Exported

__all__ = [
    "PRECISIONS",
    "TOLERANCE",
    "Captioner",
    "Detector",
    "Exported",
    "differences",
    "export",
    "figures",
    "unexplained",
]


def export(
    predictor: Predictor,
    directory: str | os.PathLike[str],
    precisions: Sequence[str] = PRECISIONS,
    *,
    trials: int = 12,
    evaluate: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a model as ONNX files, with ``model.json`` and ``tokenizer.json``.

    Args:
        predictor: the model. Its tasks say which labels, temperatures and sizes ``model.json`` has.
        directory: created if it does not exist. Files of an earlier export are replaced.
        precisions: of "fp32", "fp16" and "int8". fp32 is always written, as the others are made of it.
        trials: batches of random sizes on which the files are compared with the model; 0 for none.
        evaluate: test sets of detection and captioning. The :func:`figures` of the model and of each precision go into
            ``model.json``.

    Returns:
        the content of ``model.json``.

    Raises:
        UserError: a package is missing, a precision is unknown, the model cannot be exported, or its files differ from
            it by more than ``TOLERANCE`` and rounding, see :func:`unexplained`.
    """
    unknown = sorted(set(precisions) - set(PRECISIONS))
    if unknown:
        raise UserError(f"precisions are {', '.join(PRECISIONS)}, not {', '.join(unknown)}")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package)
    place, kept = Path(directory), [name for name in PRECISIONS if name == "fp32" or name in precisions]
    place.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (place / DESCRIPTION).unlink()  # a directory that is not complete has no description
    model = deployable(predictor.model)
    parts = parts_of(model)
    for part in parts:
        written = place / file_of(part.name, "fp32")
        trace(part, written)
        for precision, convert in (("fp16", to_half), ("int8", to_int8)):
            if precision in kept:
                convert(written, place / file_of(part.name, precision))
    save_tokenizer(model, place)
    content = describe(predictor, parts, kept)
    write_json(str(place / DESCRIPTION), content)
    if trials:
        content["checked"] = {"batches": trials, "largest_differences": _checked(predictor, place, trials)}
    if evaluate:
        content["figures"] = {dataset: figures(predictor, place, dataset) for dataset in evaluate}
    write_json(str(place / DESCRIPTION), content)
    return content


def _checked(predictor: Predictor, place: Path, trials: int) -> dict[str, float]:
    device = predictor.model.device
    try:
        found = differences(predictor.model.cpu(), Exported(place), trials)
        bad = unexplained(found, predictor.model, trials)
    finally:
        predictor.model.to(device)
    if bad:
        told = ", ".join(f"{name} by {value:.2g}" for name, value in bad.items())
        (place / DESCRIPTION).unlink()
        raise UserError(f"the files in {place} differ from the model: {told}")
    return found
