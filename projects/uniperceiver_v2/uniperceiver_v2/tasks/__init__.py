from .classification import ClassificationTask
from .detection import DetectionTask
from .retrieval import RetrievalTask
from .task import TASK_KINDS, Task, register_task

__all__ = ["TASK_KINDS", "ClassificationTask", "DetectionTask", "RetrievalTask", "Task", "register_task"]
