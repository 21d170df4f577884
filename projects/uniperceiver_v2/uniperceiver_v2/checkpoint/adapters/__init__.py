"""Weights of others in our image encoder or decoder: one file for each source, and the table of what became of each
key."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from ...errors import UserError
from ...files import shipped
from ...reading import require_finite
from . import backbones, deformable_detr, mask2former, mask_dino, uniperceiver_v1
from .reading import read_source
from .table import Plan, Rule, Table, convert, reason_for

__all__ = ["Plan", "Rule", "Table", "convert", "load_pretrained", "read_source", "reason_for"]

logger = logging.getLogger(__name__)

SOURCES = (mask_dino, mask2former, deformable_detr, uniperceiver_v1, backbones)


def load_pretrained(
    image_encoder: nn.Module, heads: int, paths: Iterable[str], decoder: nn.Module | None = None
) -> list[Table]:
    """Load weights of other projects into an image encoder or a decoder, one file or directory after the other.

    A source is recognised by its keys. The log has a table of what became of each key.

    Args:
        image_encoder: with the parts ``backbone`` and ``regions``.
        heads: of the region network's attentions.
        paths: files or directories, see :func:`read_source`. Of a weight that several have, the last one counts.
        decoder: the unified decoder, for sources that fill it.

    Raises:
        UserError: a file cannot be read or is of no known source, a key of it or of the model is not accounted for, or
            a weight is NaN or infinite.
    """
    tables = []
    for path in paths:
        place = Path(path).expanduser()
        state = read_source(place if place.exists() else shipped(path))
        source = next((source for source in SOURCES if source.recognises(state)), None)
        if source is None:
            some = ", ".join(list(state)[:3])
            raise UserError(f"{path} is of no known source: it has {len(state)} keys such as {some}")
        part = decoder if getattr(source, "OF_DECODER", False) else image_encoder
        if part is None:
            raise UserError(f"{path} has the weights of a decoder, and there is none to fill")
        own = part.state_dict()
        try:
            values, table = convert(state, own, source.plan(state, own, heads))
            require_finite(values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        part.load_state_dict({**own, **values})
        logger.info("%s\n%s", path, table)
        tables.append(table)
    return tables
