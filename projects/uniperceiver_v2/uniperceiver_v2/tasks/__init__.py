from .classification import ClassificationTask
from .detection import DetectionTask
from .task import TASK_KINDS, Task, register_task

__all__ = ["TASK_KINDS", "ClassificationTask", "DetectionTask", "Task", "register_task"]
