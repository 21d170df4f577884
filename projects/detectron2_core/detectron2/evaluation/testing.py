"""Printing and checking of results, {task: {metric: value}}."""

import logging
import pprint
import sys
from collections.abc import Mapping

import numpy as np

__all__ = ["flatten_results_dict", "print_csv_format", "verify_results"]

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping) -> None:
    """Log the metrics of each task as two comma-separated lines. Metrics of single categories are left out."""
    assert isinstance(results, Mapping) or not len(results), results
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s", task, metrics)
            continue
        overall = {name: value for name, value in metrics.items() if "-" not in name}  # "AP-person"
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(overall))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in overall.values()))


def verify_results(cfg, results: Mapping) -> bool:
    """Compare results with ``cfg.TEST.EXPECTED_RESULTS``, a list of (task, metric, expected, tolerance).

    Returns:
        True. If a metric is missing, not finite, or differs by more than its tolerance, the process exits with code 1.
    """
    expected_results = cfg.TEST.EXPECTED_RESULTS
    if not len(expected_results):
        return True
    for task, metric, expected, tolerance in expected_results:
        actual = results[task].get(metric, None)
        if actual is None or not np.isfinite(actual) or abs(actual - expected) > tolerance:
            logger.error("Result verification failed!")
            logger.error("Expected Results: %s", expected_results)
            logger.error("Actual Results: %s", pprint.pformat(results))
            sys.exit(1)
    logger.info("Results verification passed.")
    return True


def flatten_results_dict(results: Mapping) -> dict:
    """Nested dicts as one dict, with keys joined by "/": {"bbox": {"AP": 1}} becomes {"bbox/AP": 1}."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{inner}": v for inner, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
