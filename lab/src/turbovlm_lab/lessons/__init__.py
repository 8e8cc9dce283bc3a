"""What each head is trained on, and how its answers to it are scored."""

from turbovlm_lab.lessons.base import EncodedScenes, Lesson, encoded_scenes
from turbovlm_lab.lessons.nlvr import NlvrLesson
from turbovlm_lab.lessons.retrieval import RetrievalLesson
from turbovlm_lab.lessons.vqa import VqaLesson

LESSONS: dict[str, type[Lesson]] = {
    "vqa": VqaLesson,
    "retrieval": RetrievalLesson,
    "nlvr": NlvrLesson,
}

__all__ = ["LESSONS", "EncodedScenes", "Lesson", "encoded_scenes"]
