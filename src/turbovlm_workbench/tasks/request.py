"""What a user asks an evaluation for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from turbovlm.errors import ConfigError

Example = TypeVar("Example")


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Args:
        model: its name.
        data: file or folder of the examples.
        images: folder that image names are relative to; None for that of ``data``.
        answers: annotations of VQA questions that stand in a file of their own.
        split: of a Karpathy file.
        weights: local checkpoint for a model of a library.
        beams: of a captioner; None is its own.
        top: candidates that a matching head ranks anew.
        limit: only the first so many examples.
    """

    model: str
    data: Path
    images: Path | None = None
    answers: Path | None = None
    split: str = "test"
    weights: Path | None = None
    beams: int | None = None
    top: int = 128
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit must be at least 1, got {self.limit}")

    def first(self, examples: list[Example]) -> list[Example]:
        """The examples that are asked for."""
        return examples[: self.limit]
