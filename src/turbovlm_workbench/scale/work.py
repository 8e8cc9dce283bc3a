"""What is done with every picture: an embedding, a caption, or the answer to a question."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from torch import Tensor

from turbovlm.errors import ConfigError
from turbovlm_workbench.load.answering import AnsweringModel
from turbovlm_workbench.load.by_task import load_answering, load_embedding
from turbovlm_workbench.load.loaded import Embedder, LoadedModel
from turbovlm_workbench.load.matching import MatchingModel
from turbovlm_workbench.load.models import load_model
from turbovlm_workbench.tasks.captioning import Captioning
from turbovlm_workbench.tasks.embedding import Embedding


@dataclass(frozen=True)
class Asked:
    """What to do, in plain values: every worker loads its own model from them.

    Args:
        work: ``embed``, ``caption`` or ``answer``.
        model: its name.
        weights: a local checkpoint, where the kind of model takes one.
        beams: of a captioner; None for its own number.
        question: what is asked of every picture.

    Raises:
        ConfigError: for other work, or an option that it has no use for.
    """

    work: str
    model: str
    weights: str | None = None
    beams: int | None = None
    question: str | None = None

    def __post_init__(self) -> None:
        if self.work not in WORKS:
            raise ConfigError(f"unknown task {self.work!r}: use one of {', '.join(WORKS)}")
        kind = WORKS[self.work]
        for option in ("weights", "beams", "question"):
            if getattr(self, option) is not None and option not in kind.options:
                raise ConfigError(f"--{option} is not for {self.work}: leave it out")
        if "question" in kind.options and not (self.question or "").strip():
            raise ConfigError('answer needs what to ask of every picture: --question "..."')


class PictureWork(ABC):
    """A loaded model and what is asked of it.

    Args:
        asked: names the model.

    Raises:
        TurboError: if it cannot be loaded, or does something else.
    """

    column: ClassVar[str]
    """The name of the result."""
    type: ClassVar[pa.DataType] = pa.string()
    options: ClassVar[frozenset[str]]
    """The fields of `Asked` that it has a use for, beside the model."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.loaded = self.load(asked)

    @abstractmethod
    def load(self, asked: Asked) -> LoadedModel:
        """The model."""

    @abstractmethod
    def run(self, pixels: Tensor) -> Sequence[Any]:
        """One result for each of B pictures (B, 3, H, W), as JSON types or NumPy arrays."""

    @property
    def parts(self) -> Mapping[str, Any]:
        """What results depend on beside the pictures, see `run.identity.model_digest`."""
        words = getattr(self.loaded, "tokenizer", None)
        return {"model": self.loaded.model, "prepare": self.loaded.prepare, "tokenizer": words}


class Embed(PictureWork):
    """One vector a picture; of length 1 where the model matches pictures with texts."""

    column = "embedding"
    type = pa.list_(pa.float32())
    options = frozenset({"weights"})
    loaded: MatchingModel | Embedder

    def load(self, asked: Asked) -> MatchingModel | Embedder:
        """See `PictureWork.load`."""
        return load_embedding(asked.model, asked.weights)

    def run(self, pixels: Tensor) -> Sequence[Any]:
        """Vectors (D,) in float32."""
        if isinstance(self.loaded, MatchingModel):
            found = self.loaded.see(pixels)
        else:
            found = Embedding(self.loaded).outputs(self.loaded.model, pixels)
        return list(found.float().cpu().numpy())


class Caption(PictureWork):
    """One sentence a picture."""

    column = "caption"
    options = frozenset({"weights", "beams"})

    def load(self, asked: Asked) -> LoadedModel:
        """See `PictureWork.load`."""
        self._task = Captioning(load_model(asked.model, asked.weights, beams=asked.beams))
        return self._task.loaded

    def run(self, pixels: Tensor) -> Sequence[Any]:
        """Captions."""
        return self._task.outputs(self.loaded.model, pixels)


class Answer(PictureWork):
    """The answer to one question, asked of every picture."""

    column = "answer"
    options = frozenset({"question"})
    loaded: AnsweringModel

    def load(self, asked: Asked) -> AnsweringModel:
        """See `PictureWork.load`."""
        return load_answering(asked.model)

    def run(self, pixels: Tensor) -> Sequence[Any]:
        """Answers."""
        return self.loaded.answer(pixels, [self.asked.question or ""] * len(pixels))


WORKS: Mapping[str, type[PictureWork]] = {"embed": Embed, "caption": Caption, "answer": Answer}


def load_work(asked: Asked) -> PictureWork:
    """The model that is asked for, in evaluation mode, float32, on the CPU.

    Raises:
        TurboError: if it cannot be loaded, or does something else.
    """
    return WORKS[asked.work](asked)
