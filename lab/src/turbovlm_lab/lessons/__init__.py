"""What each head is trained on, and how its answers to it are scored."""

from turbovlm_lab.lessons.base import Bank, Lesson, bank
from turbovlm_lab.lessons.nlvr import Nlvr
from turbovlm_lab.lessons.retrieval import Retrieval
from turbovlm_lab.lessons.vqa import Vqa

LESSONS: dict[str, type[Lesson]] = {"vqa": Vqa, "retrieval": Retrieval, "nlvr": Nlvr}

__all__ = ["LESSONS", "Bank", "Lesson", "bank"]
