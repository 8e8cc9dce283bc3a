"""From a request on the command line to an evaluation: which data and model a task reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from turbovlm.errors import ConfigError, require
from turbovlm_workbench import data
from turbovlm_workbench.data.images import find_images
from turbovlm_workbench.load.by_task import load_answering, load_matching, load_statements
from turbovlm_workbench.load.models import BEAMS, load
from turbovlm_workbench.tasks.evaluate.agreement import Agreement
from turbovlm_workbench.tasks.evaluate.captioning import Captioning
from turbovlm_workbench.tasks.evaluate.classification import Classification
from turbovlm_workbench.tasks.evaluate.nlvr2 import NLVR2
from turbovlm_workbench.tasks.evaluate.retrieval import Retrieval
from turbovlm_workbench.tasks.evaluate.stage import Evaluation
from turbovlm_workbench.tasks.evaluate.vqa import VQA

Example = TypeVar("Example")


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Args:
        model: name, see `turbovlm_workbench.load.models.load`.
        data: file or folder of the examples.
        images: folder that image names are relative to; None for that of ``data``.
        answers: annotations of VQA questions that stand in a file of their own.
        split: of a Karpathy file.
        weights: local checkpoint for a model of a library.
        beams: of a captioner.
        top: candidates that a matching head ranks anew.
        limit: only the first so many examples.
    """

    model: str
    data: Path
    images: Path | None = None
    answers: Path | None = None
    split: str = "test"
    weights: Path | None = None
    beams: int = BEAMS
    top: int = 128
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit must be at least 1, got {self.limit}")

    def first(self, examples: list[Example]) -> list[Example]:
        """The examples that are asked for."""
        return examples[: self.limit]


# Data are read before the model is loaded: they are checked in a second, a model takes minutes.
def _classification(request: Request) -> Evaluation:
    examples = request.first(data.read_classification(request.data, request.images))
    return Classification(load(request.model, request.weights), examples)


def _retrieval(request: Request) -> Evaluation:
    examples = request.first(data.read_captions(request.data, request.images, request.split))
    return Retrieval(load_matching(request.model, request.weights), examples, request.top)


def _captioning(request: Request) -> Evaluation:
    require("pycocoevalcap", "eval")
    examples = request.first(data.read_captions(request.data, request.images, request.split))
    return Captioning(load(request.model, request.weights, beams=request.beams), examples)


def _vqa(request: Request) -> Evaluation:
    examples = request.first(data.read_questions(request.data, request.images, request.answers))
    return VQA(load_answering(request.model), examples)


def _nlvr2(request: Request) -> Evaluation:
    examples = request.first(data.read_pairs(request.data, request.images))
    return NLVR2(load_statements(request.model), examples)


def _agreement(request: Request) -> Evaluation:
    images = request.first(list(find_images(request.data)))
    task = load(request.model, request.weights, beams=request.beams)
    return Agreement(task, request.data, images)


TASKS: Mapping[str, Callable[[Request], Evaluation]] = {
    "classification": _classification,
    "retrieval": _retrieval,
    "captioning": _captioning,
    "vqa": _vqa,
    "nlvr2": _nlvr2,
    "agreement": _agreement,
}


def build(task: str, request: Request) -> Evaluation:
    """The evaluation called ``task``.

    Raises:
        ConfigError: for an unknown task, or an option that it does not have.
        InputError: for data that cannot be read, by line and field.
        ModelError: for a model that cannot be loaded, or does something else.
        MissingExtra: if a library is not installed.
    """
    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}: use one of {', '.join(TASKS)}")
    if request.answers is not None and task != "vqa":
        raise ConfigError("--answers goes with the task vqa: leave it out")
    if request.weights is not None and task in ("vqa", "nlvr2"):
        raise ConfigError(f"--weights is not for {task}: a folder or hub id brings its own")
    return TASKS[task](request)
