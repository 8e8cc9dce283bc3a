"""Lists of prompts: files, and the names of ImageNet's classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from turbovlm.errors import ConfigError, InputError, require

IMAGENET = "imagenet"
IMAGENET_COUNT = 2000  # two of every class, as the paper has it


def read_prompts(source: str) -> list[str]:
    """The prompts of a list, in order.

    Args:
        source: ``"imagenet"`` for the names of its 1000 classes, each as ``a photo of NAME``; or
            a text file with one prompt a line; or a ``.jsonl`` file of ``{"prompt": ...}``.
            Empty lines are skipped.

    Raises:
        InputError: for a file that cannot be read, by line, or that holds no prompt.
        MissingExtra: if torchvision, which has the names, is not installed.
    """
    path = Path(source)
    if source == IMAGENET and not path.exists():
        return [f"a photo of {name}" for name in imagenet_classes()]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot read the prompts in {source} ({cause}): give {IMAGENET}, a text file with one "
            "a line, or a .jsonl file"
        ) from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise InputError(f"{source} holds no prompt: write one a line")
    if path.suffix.lower() != ".jsonl":
        return [line for _, line in lines]
    return [_prompt(line, f"{source}, line {number}") for number, line in lines]


def imagenet_classes() -> list[str]:
    """The names of ImageNet-1k's classes, in their order."""
    models: Any = require("torchvision.models", "diffusion")
    return list(models.ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def repeat(prompts: Sequence[str], count: int | None, source: str) -> list[str]:
    """``count`` prompts, from the first again where the list ends.

    Args:
        prompts: at least one.
        count: None for every prompt once, and for ImageNet's classes twice.
        source: what the list was read from.

    Raises:
        ConfigError: for a count below 1.
    """
    if count is None:
        count = IMAGENET_COUNT if source == IMAGENET else len(prompts)
    if count < 1:
        raise ConfigError(f"--count must be at least 1, got {count}")
    return [prompts[index % len(prompts)] for index in range(count)]


def _prompt(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError("the prompt is empty or no text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f'{where}: no prompt ({error}): write {{"prompt": "a red circle"}}'
        ) from error
    return prompt.strip()
