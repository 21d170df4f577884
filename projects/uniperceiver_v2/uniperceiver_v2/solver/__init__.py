"""Optimizers: Task-Balanced Gradient Normalization, and parameter groups from a configuration."""

from .build import build_optimizer
from .task_balanced import TaskBalancedAdamW, TaskGradient, gradient_norm, gradient_square

__all__ = ["TaskBalancedAdamW", "TaskGradient", "build_optimizer", "gradient_norm", "gradient_square"]
