"""Checkpoints in Detectron2's layout that a crash cannot break and that cannot run code."""

from .checkpointer import AtomicCheckpointer

__all__ = ["AtomicCheckpointer"]
