from .classification import ClassificationTask
from .detection import DetectionTask
from .task import TASK_REGISTRY, Task

__all__ = ["TASK_REGISTRY", "ClassificationTask", "DetectionTask", "Task"]
