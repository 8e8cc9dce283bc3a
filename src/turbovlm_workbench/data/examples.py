"""What the tasks are scored on: images with what people say about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Labelled:
    """An image and its class, in the model's numbers."""

    id: str
    image: Path
    label: int


@dataclass(frozen=True)
class Captioned:
    """An image and one caption or more."""

    id: str
    image: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A question about an image, with one answer, or one of each of several annotators."""

    id: str
    image: Path
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """A statement about two images and whether it is true.

    ``group`` holds the pairs that one statement was written for: consistency counts groups.
    """

    id: str
    left: Path
    right: Path
    statement: str
    label: bool
    group: str
