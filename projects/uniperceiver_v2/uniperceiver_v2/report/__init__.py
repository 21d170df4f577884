"""A report on a run: one HTML file, made from the files that the run has written."""

from .page import write_report
from .run import Evaluation, Missing, Run
from .sections import SECTIONS, Part

__all__ = ["SECTIONS", "Evaluation", "Missing", "Part", "Run", "write_report"]
