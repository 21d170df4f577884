from .captioning import CaptioningTask
from .classification import ClassificationTask
from .detection import DetectionTask
from .language_modelling import LanguageModellingTask
from .retrieval import RetrievalTask
from .task import TASK_KINDS, Task, register_task

__all__ = [
    "TASK_KINDS",
    "CaptioningTask",
    "ClassificationTask",
    "DetectionTask",
    "LanguageModellingTask",
    "RetrievalTask",
    "Task",
    "register_task",
]
