"""Optimizers: Task-Balanced Gradient Normalization, and parameter groups from a configuration."""

from .build import build_optimizer
from .task_balanced import TaskBalancedAdamW, gradient_norm

__all__ = ["TaskBalancedAdamW", "build_optimizer", "gradient_norm"]
