"""One arm of a study: a setting in terms that fit every model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from turbovlm.config import Merge

BASE = 12 * 30 / 576
"""Share of the patches that the paper's captioning ablations remove in all blocks together: r = 30
in 12 blocks, of 576."""


@dataclass(frozen=True)
class Shape:
    """What a setting has to fit.

    Attributes:
        depth: blocks of the encoder.
        tokens: that enter the first one, N.
        prefix: of them, those that are never merged.
    """

    depth: int
    tokens: int
    prefix: int

    @property
    def patches(self) -> int:
        """Tokens that may be merged."""
        return self.tokens - self.prefix


@dataclass(frozen=True)
class Arm:
    """One row of a study.

    Args:
        label: what it is called there.
        options: of `Merge.paper`, or of `Merge` where ``paper`` is False.
        share: of the patches removed in all blocks together; as r, rounded to one at least.
        start: share of the blocks, the first ones, that merge nothing; the others remove the more.
        floor: of the sequence, as a share of its tokens.
        paper: the released code's behaviour, or ours.
        x: where the arm stands on the study's axis.
        line: which line of the plot it belongs to.
        published: the paper's numbers, in the order of the study's ``columns``.
    """

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    share: float = BASE
    start: float = 0.0
    floor: float = 0.0
    paper: bool = True
    x: float | None = None
    line: str = ""
    published: tuple[float, ...] = ()


@dataclass(frozen=True)
class Study:
    """A named ablation.

    Args:
        name: on the command line.
        title: one line.
        source: of the paper; empty where it has no such study.
        arms: the rows.
        columns: what the published numbers are.
        axis: what ``x`` of the arms is, where they have one.
        within: the drop that the fastest arm of each line may have, as a share of the unmerged
            model's score; None where the study does not ask.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    source: str = ""
    columns: tuple[str, ...] = ()
    axis: str = ""
    within: float | None = None


def arm_setting(arm: Arm, shape: Shape, scale: float = 1.0) -> Merge:
    """The setting that an arm means for one encoder and one length of its input.

    Args:
        arm: the row.
        shape: of the encoder.
        scale: of ``share``.

    Raises:
        ConfigError: for options that do not go together.
    """
    first = round(arm.start * shape.depth)
    merging = max(1, shape.depth - first)
    r = max(1, round(arm.share * scale * shape.patches / merging))
    amounts = r if first == 0 else (*[0] * (shape.depth - merging), *[r] * merging)
    floor = {"min_tokens": round(arm.floor * shape.tokens)} if arm.floor else {}
    options = {**arm.options, **floor}
    return Merge.paper(amounts, **options) if arm.paper else Merge(r=amounts, **options)
