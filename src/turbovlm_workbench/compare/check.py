"""Would turbovlm work on this model? From its name alone: no weights, no images.

The self-check of `turbovlm.apply` runs on copies of the blocks with random weights, and a forward
on the meta device says what would be merged.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from turbovlm import hosts
from turbovlm.api import applied
from turbovlm.config import Merge
from turbovlm.errors import TurboError
from turbovlm.maths.schedule import check_depth
from turbovlm.measure.flops import flops
from turbovlm.plug.encoder.apply import rehearse
from turbovlm.plug.encoder.draft import draft
from turbovlm.plug.encoder.find import Tower, survey
from turbovlm.plug.encoder.row import Row
from turbovlm_workbench.load.skeleton import Skeleton


@dataclass(frozen=True)
class TowerCheck:
    """One encoder that a row describes.

    Attributes:
        name: its dotted name in the model, ``""`` for the model itself.
        kind: its class.
        block: dotted class name of its row's blocks.
        blocks: how many there are.
        modality: ``"image"``, ``"text"`` or ``"audio"``.
        prefix_tokens: leading tokens that are never merged.
        guide: whose attention is the semantic value.
        reads: what reads its output, see `turbovlm.plug.encoder.row.Reads`.
        patched: whether `apply` on the whole model merges here; a text tower beside an image
            tower is patched only when it is given itself.
        problem: what the self-check found; None where the halves equal the whole.
        start: tokens that enter; None where it was not run.
        tokens: sequence length after each block.
    """

    name: str
    kind: str
    block: str
    blocks: int
    modality: str
    prefix_tokens: int
    guide: str
    reads: str
    patched: bool
    problem: str | None
    start: int | None = None
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Check:
    """What `turbovlm check` found.

    Attributes:
        model: the name that was given.
        what: what was built and run, in words.
        config: what would be merged.
        towers: known encoders.
        reasons: why known parts cannot be patched.
        row: where no row fits: a first draft of one, for blocks that look right.
        row_problem: what the self-check says of the draft; None if it passes.
        gflops: of one forward, unmerged and merged; None where nothing fits or it was not run.
    """

    model: str
    what: str
    config: Merge
    towers: tuple[TowerCheck, ...]
    reasons: tuple[str, ...]
    row: Row | None = None
    row_problem: str | None = None
    gflops: tuple[float, float] | None = None

    @property
    def fits(self) -> bool:
        """Whether `apply` would work."""
        return any(tower.patched for tower in self.towers) and not any(
            tower.problem for tower in self.towers if tower.patched
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        data = dataclasses.asdict(self)
        return {**data, "config": self.config.to_dict(), "fits": self.fits}


def check_model(on_meta: Skeleton, config: Merge) -> Check:
    """Look for towers, run the self-check on each kind of block, and count one merged forward.

    Args:
        on_meta: a model on the meta device, with its inputs if they are known.
        config: what would be merged.

    Raises:
        ConfigError: if the setting does not fit the model's depth, or the model refuses it.
    """
    model = on_meta.model
    found = survey(model, hosts.rows(), hosts.REFUSALS)
    towers = tuple(_examine(t, config, t in found.patched) for t in found.towers)
    if not towers:
        suggested = None if found.reasons else draft(model)
        problem = None if suggested is None else _problem(suggested, config)
        row = None if suggested is None else suggested.row
        return Check(on_meta.name, on_meta.what, config, (), found.reasons, row, problem)
    result = Check(on_meta.name, on_meta.what, config, towers, found.reasons)
    if not result.fits or not on_meta.inputs:
        return result
    base = flops(model, on_meta.inputs)
    with applied(model, config) as run:
        merged = flops(model, on_meta.inputs)
        traces = iter(run.traces)
    seen = tuple(_traced(t, next(traces)) if t.patched else t for t in towers)
    return dataclasses.replace(result, towers=seen, gflops=(base.gflops, merged.gflops))


def _examine(tower: Tower, config: Merge, patched: bool) -> TowerCheck:
    if patched:
        check_depth(config.schedule, len(tower.blocks))
    row = tower.row
    return TowerCheck(
        name=tower.name,
        kind=type(tower.module).__name__,
        block=row.block,
        blocks=len(tower.blocks),
        modality=row.modality,
        prefix_tokens=row.prefix_of(tower.module),
        guide=row.guide_of(tower.module),
        reads=tower.reads,
        patched=patched,
        problem=_problem(tower, config),
    )


def _problem(tower: Tower, config: Merge) -> str | None:
    if isinstance(config.r, tuple):  # one block is examined, whatever its place
        config = dataclasses.replace(config, r=max(config.r))
    try:
        rehearse(tower, config)
    except TurboError as error:
        return str(error)
    except Exception as error:  # a drafted row can send anything into a block
        return f"its block does not run on tokens alone ({type(error).__name__}: {error})"
    return None


def _traced(tower: TowerCheck, trace: Any) -> TowerCheck:
    return dataclasses.replace(tower, start=trace.start, tokens=trace.tokens)
