"""Checkpoints in Detectron2's format that are safe against crashes and cannot run code."""

from .checkpointer import AtomicCheckpointer

__all__ = ["AtomicCheckpointer"]
