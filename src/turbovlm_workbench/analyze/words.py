"""Which words of a text became one token, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

import turbovlm
from turbovlm.config import Merge
from turbovlm.plug.encoder.trace import Trace
from turbovlm_workbench.load.words import TextEncoder

Groups = tuple[tuple[int, ...], ...]
"""Words by their number from 0, those that are one token together; in the order of the text."""


@dataclass(frozen=True)
class WordStep:
    """The tokens after one block.

    Attributes:
        block: from 1.
        groups: one for each token that is left.
    """

    block: int
    groups: Groups


@dataclass(frozen=True)
class WordMap:
    """One text.

    Attributes:
        text: as it was given.
        words: as the tokenizer cuts it, with what it adds.
        sides: by the name of the setting, the blocks that merge.
    """

    text: str
    words: tuple[str, ...]
    sides: Mapping[str, tuple[WordStep, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@torch.inference_mode()
def word_map(encoder: TextEncoder, text: str, settings: Mapping[str, Merge]) -> WordMap:
    """Run a text encoder on one text under each setting; it is left as it was.

    Raises:
        TurboError: whatever `turbovlm.apply` refuses.
    """
    inputs = encoder.ids(text)
    sides = {}
    for name, merge in settings.items():
        with turbovlm.applied(encoder.model, merge) as run:
            encoder.model(**inputs)
            sides[name] = _word_steps(run.trace)
    return WordMap(text, encoder.words(inputs["input_ids"][0]), sides)


def _word_steps(trace: Trace) -> tuple[WordStep, ...]:
    steps = []
    for block, plan in enumerate(trace.plans, start=1):
        if plan is None:
            continue
        members: dict[int, list[int]] = {}
        for word, token in enumerate(trace.representative(block)[0].tolist()):
            members.setdefault(token, []).append(word)
        steps.append(WordStep(block, tuple(map(tuple, members.values()))))
    return tuple(steps)
