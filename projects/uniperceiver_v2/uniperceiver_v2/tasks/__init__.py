"""The kinds of task. Each has one file with one descriptor."""

from ..kinds import register_kind
from .captioning import CAPTIONING, CaptioningTask
from .classification import CLASSIFICATION, ClassificationTask
from .detection import DETECTION, DetectionTask
from .grounding import GROUNDING, GroundingTask
from .labelled_proposals import ImageSizes, LabelledProposals
from .language_modelling import LANGUAGE_MODELLING, LanguageModellingTask
from .question_answering import QUESTION_ANSWERING, QuestionAnsweringTask
from .region_captioning import REGION_CAPTIONING, RegionCaptioningTask
from .retrieval import RETRIEVAL, RetrievalTask
from .segmentation import SEGMENTATION, SegmentationTask
from .task import NamingTask, Task, candidate_texts
from .video_classification import VIDEO_CLASSIFICATION, VideoClassificationTask

for _kind in (
    DETECTION,
    CLASSIFICATION,
    CAPTIONING,
    RETRIEVAL,
    LANGUAGE_MODELLING,
    GROUNDING,
    QUESTION_ANSWERING,
    SEGMENTATION,
    REGION_CAPTIONING,
    VIDEO_CLASSIFICATION,
):
    register_kind(_kind)

__all__ = [
    "CAPTIONING",
    "CLASSIFICATION",
    "DETECTION",
    "GROUNDING",
    "LANGUAGE_MODELLING",
    "QUESTION_ANSWERING",
    "REGION_CAPTIONING",
    "RETRIEVAL",
    "SEGMENTATION",
    "VIDEO_CLASSIFICATION",
    "CaptioningTask",
    "ClassificationTask",
    "DetectionTask",
    "GroundingTask",
    "ImageSizes",
    "LabelledProposals",
    "LanguageModellingTask",
    "NamingTask",
    "QuestionAnsweringTask",
    "RegionCaptioningTask",
    "RetrievalTask",
    "SegmentationTask",
    "Task",
    "VideoClassificationTask",
    "candidate_texts",
]
