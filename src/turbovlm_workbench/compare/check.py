"""Would turbovlm work on this model? From its name alone: no weights, no images.

The self-check of `turbovlm.apply` runs on copies of the blocks with random weights, and a forward
on the meta device says what would be merged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turbovlm import hosts
from turbovlm.api import applied
from turbovlm.config import Merge, VisualTokens
from turbovlm.errors import ConfigError, TurboError, UnknownArchitecture, UnsuitableBlock
from turbovlm.maths.schedule import Schedule, check_depth, lengths
from turbovlm.maths.speedup import BlockCost, schedule_for
from turbovlm.measure.flops import flops
from turbovlm.plug.encoder.apply import rehearse
from turbovlm.plug.encoder.draft import draft
from turbovlm.plug.encoder.find import Tower, survey
from turbovlm.plug.encoder.row import Row
from turbovlm.plug.encoder.trace import Trace
from turbovlm.plug.swap import site_of
from turbovlm_workbench.checkpoint import cause
from turbovlm_workbench.compare.language import LanguageCheck, check_language
from turbovlm_workbench.load.skeleton import Skeleton

RECOMMENDED = Merge(speedup=1.4)
KEEP = VisualTokens(keep=0.25)


@dataclass(frozen=True)
class Resolved:
    """What ``Merge(speedup=...)`` means for one encoder and one length of its input.

    Attributes:
        config: the setting.
        tokens: sequence length after each block.
        tokens_gpu: the same on a GPU, where every merge costs a fixed time and fewer blocks merge.
    """

    config: Merge
    tokens: tuple[int, ...]
    tokens_gpu: tuple[int, ...]


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
        resolved: what ``Merge(speedup=...)`` means here, the given one or else `RECOMMENDED`; None
            where it was not run, or so much is out of reach.
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
    resolved: Resolved | None = None


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
        gflops: of one forward, unmerged and merged; None where nothing fits, it was not run, or
            ``language`` says it.
        language: where the model hands visual tokens to a language model, what fewer of them cost.
        language_problem: why that was not counted, although a row describes the model.
    """

    model: str
    what: str
    config: Merge
    towers: tuple[TowerCheck, ...]
    reasons: tuple[str, ...]
    row: Row | None = None
    row_problem: str | None = None
    gflops: tuple[float, float] | None = None
    language: LanguageCheck | None = None
    language_problem: str | None = None

    @property
    def merges(self) -> bool:
        """Whether `turbovlm.Merge` would work."""
        return any(tower.patched for tower in self.towers) and not any(
            tower.problem for tower in self.towers if tower.patched
        )

    @property
    def shortens(self) -> bool:
        """Whether `turbovlm.VisualTokens` would work."""
        return self.language is not None or self.language_problem is not None

    @property
    def fits(self) -> bool:
        """Whether `apply` would work."""
        return self.merges or self.shortens

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        data = dataclasses.asdict(self)
        for tower, plain in zip(self.towers, data["towers"], strict=True):
            if tower.resolved is not None:
                plain["resolved"]["config"] = tower.resolved.config.to_dict()
        data["language"] = None if self.language is None else self.language.to_dict()
        return {**data, "config": self.config.to_dict(), "fits": self.fits}


def check_model(
    on_meta: Skeleton, config: Merge, keep: VisualTokens = KEEP, size: int | None = None
) -> Check:
    """Look for towers, run the self-check on each kind of block, and count what would be saved.

    Args:
        on_meta: a model on the meta device, with its inputs if they are known.
        config: what would be merged.
        keep: which visual tokens a language model would get.
        size: side in pixels of the picture that these tokens are of; None is the model's own.

    Raises:
        ConfigError: if a setting does not fit the model, or the model refuses it.
    """
    model = on_meta.model
    found = survey(model, hosts.rows(), hosts.REFUSALS)
    towers = tuple(_examine(t, config, t in found.patched) for t in found.towers)
    result = Check(on_meta.name, on_meta.what, config, towers, found.reasons)
    result, traces = _with_language(result, on_meta.whole or model, keep, size)
    if not towers and not result.shortens:
        suggested = None if found.reasons else draft(model)
        problem = None if suggested is None else _problem(suggested, config)
        row = None if suggested is None else suggested.row
        return dataclasses.replace(result, row=row, row_problem=problem)
    if not result.merges or not (traces or on_meta.inputs):
        return result
    if not traces:
        base = flops(model, on_meta.inputs)
        with applied(model, config) as run:
            merged = flops(model, on_meta.inputs)
            traces = run.traces
        result = dataclasses.replace(result, gflops=(base.gflops, merged.gflops))
    asked = config if config.speedup is not None else RECOMMENDED
    costs = iter(_costs(model, asked, found.patched))
    left = iter(traces)
    seen = [_traced(t, next(left), next(costs), asked) if t.patched else t for t in towers]
    return dataclasses.replace(result, towers=tuple(seen))


def _with_language(
    result: Check, model: Any, keep: VisualTokens, size: int | None
) -> tuple[Check, tuple[Trace, ...]]:
    """With what is found of a language model, and what was merged on the way."""
    merge = result.config if result.merges else None
    try:
        language, traces = check_language(model, merge, keep, size)
    except UnknownArchitecture:
        return result, ()
    except UnsuitableBlock as error:
        reasons = (*result.reasons, f"fewer tokens for its language model: {error}")
        return dataclasses.replace(result, reasons=reasons), ()
    except TurboError:
        raise
    except Exception as error:  # libraries raise whatever a configuration leads to
        return dataclasses.replace(result, language_problem=cause(error)), ()
    return dataclasses.replace(result, language=language), traces


def _costs(model: Any, config: Merge, towers: Sequence[Tower]) -> list[BlockCost | None]:
    """What a block of each tower costs, as `apply` counts it; None if the model refuses this."""
    try:
        with applied(model, config, record=False):
            return [site_of(tower.module).patch.facts.cost for tower in towers]
    except ConfigError:
        return [None for _ in towers]


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


def _traced(tower: TowerCheck, trace: Trace, cost: BlockCost | None, config: Merge) -> TowerCheck:
    seen = dataclasses.replace(tower, start=trace.start, tokens=trace.tokens)
    return (
        seen if cost is None else dataclasses.replace(seen, resolved=_resolve(seen, cost, config))
    )


def _resolve(tower: TowerCheck, cost: BlockCost, config: Merge) -> Resolved | None:
    assert tower.start is not None
    assert config.speedup is not None
    shape = tower.start, tower.prefix_tokens, tower.blocks
    found = []
    for few in (False, True):
        try:
            r = schedule_for(config.speedup, *shape, dataclasses.replace(cost, few=few))
        except ConfigError:
            return None
        schedule = Schedule(r, min_tokens=config.min_tokens)
        found.append(lengths(schedule, *shape))
    return Resolved(config, *found)
