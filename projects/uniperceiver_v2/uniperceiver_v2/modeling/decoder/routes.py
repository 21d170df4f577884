"""A table of the Conditional MoE's routes: which experts serve which tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from tabulate import tabulate
from torch import nn

from .feed_forward import ConditionalFeedForward
from .segments import IMAGE_TEXT_TO_TEXT, IMAGE_TO_TEXT, TEXT_TO_TEXT, Attributes, attribute_classes

Routes = dict[Attributes, list[tuple[int, float]]]  # (number of an expert, its weight), the most probable first


@torch.no_grad()
def expert_routes(model: nn.Module, classes: Sequence[Attributes] | None = None) -> list[Routes]:
    """The routes of each layer with experts, as in evaluation; empty for a model without experts or with merged ones.

    Args:
        model: a model, or a part of one.
        classes: the classes of attributes; None for those of all kinds of tasks.
    """
    if classes is None:
        classes = attribute_classes([IMAGE_TO_TEXT, IMAGE_TEXT_TO_TEXT, TEXT_TO_TEXT])
    layers = [module for module in model.modules() if isinstance(module, ConditionalFeedForward)]
    found = [layer.route(classes) for layer in layers]
    return [
        {attributes: [(e, w.item()) for e, w in route] for attributes, route in zip(classes, routes)}
        for routes in found
    ]


def routes_table(layers: Sequence[Routes]) -> str:
    """Routes of at least one layer as a Markdown table, a row for each class of attributes and a column for each layer.

    A cell such as ``2 (0.6) 0 (0.4)`` names the experts with their weights. The last rows say, for each layer, how
    many different sets of experts the classes have, and how many classes use each expert that is used.
    """
    rows = []
    for attributes in layers[0]:
        cells = (" ".join(f"{e} ({weight:.2f})" for e, weight in layer[attributes]) for layer in layers)
        rows.append([*_describe(attributes), *cells])
    sets = [{frozenset(e for e, _ in route) for route in layer.values()} for layer in layers]
    rows.append(["different sets", "", "", *(f"{len(each)} for {len(layers[0])} classes" for each in sets)])
    users = [Counter(e for route in layer.values() for e, _ in route) for layer in layers]
    uses = (" ".join(f"{e}: {n}" for e, n in sorted(counts.items())) for counts in users)
    rows.append(["classes of expert", "", "", *uses])
    headers = ["token", "sequence", "task", *(f"layer {number}" for number in range(len(layers)))]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _describe(attributes: Attributes) -> tuple[str, str, str]:
    token = "<SPE>" if attributes.modality == "special" else attributes.modality
    inputs, targets = ("+".join(sorted(names)) for names in (attributes.task.inputs, attributes.task.targets))
    return f"causal {token}" if attributes.causal else token, attributes.role, f"{inputs} to {targets}"
