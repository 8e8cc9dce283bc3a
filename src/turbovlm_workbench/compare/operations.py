"""What a model costs with and without merging, by its name: counted from shapes, no weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import turbovlm
from turbovlm.config import Merge
from turbovlm.errors import ConfigError
from turbovlm.maths.schedule import removable
from turbovlm.measure.flops import Flops, flops
from turbovlm.plug.encoder.trace import Trace
from turbovlm_workbench.compare.titles import title_of
from turbovlm_workbench.load.loaded import UNMERGED
from turbovlm_workbench.load.skeleton import Skeleton, skeleton

PARTS = 10  # of the model's cost, beside the rest
SMALL = 1e-3  # a part of less than this share belongs to the rest
REST, WHOLE, OWN = "the rest", "the model", ", own"


@dataclass(frozen=True)
class Cost:
    """One setting.

    Attributes:
        name: e.g. ``"turbo r=8"``.
        config: what is merged; None for the unmerged model.
        tokens: sequence length after the last block, prefix tokens included; None if unknown.
        r: tokens that each block of the first tower removes; None for the unmerged model.
        gflops: of one forward, a multiply-add counted as one.
        ideal: how many times fewer operations than the unmerged model's.
        parts: GFLOPs by part of the model; they add up to ``gflops``. Numbered siblings are one
            part: ``"blocks.*.mlp"``. What a module computes beside its children is ``"..., own"``.
    """

    name: str
    config: Merge | None
    tokens: int | None
    r: tuple[int, ...] | None
    gflops: float
    ideal: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Operations:
    """The count of one model: its name, what was run, and its settings, the unmerged first."""

    model: str
    what: str
    costs: tuple[Cost, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        data = dataclasses.asdict(self)
        for cost, plain in zip(self.costs, data["costs"], strict=True):
            plain["config"] = None if cost.config is None else cost.config.to_dict()
        return data


def count_model(
    name: str,
    merges: Sequence[Merge],
    progress: Callable[[str, int, int], None],
    *,
    size: int | None = None,
) -> Operations:
    """Count a model by name, unmerged and with each setting.

    Args:
        name: see `turbovlm_workbench.load.skeleton.skeleton`.
        merges: settings; those that merge nothing are left out.
        progress: is told what is being counted, how many settings are done, and of how many.
        size: side of the image in pixels; None is the model's own.

    Raises:
        ModelError: whatever `skeleton` refuses.
        ConfigError: for an r that not even the first block can merge, or a speed-up that is out
            of reach.
        TurboError: whatever `turbovlm.apply` refuses.
    """
    merges = [merge for merge in merges if merge.r != 0]
    progress(f"building {name}", 0, len(merges) + 1)
    on_meta = skeleton(name, size=size)
    base = flops(on_meta.model, on_meta.inputs)
    parts = _parts(base)
    costs: list[Cost] = []
    start = None
    for index, merge in enumerate(merges, 1):
        title = title_of((merge,))
        progress(title, index, len(merges) + 1)
        trace, count = _merged(on_meta, merge)
        start, ideal = trace.start, base.macs / count.macs
        split = _split(count, parts)
        costs.append(
            Cost(title, merge, trace.tokens[-1], trace.removed, count.gflops, ideal, split)
        )
    unmerged = Cost(UNMERGED, None, start, None, base.gflops, 1.0, _split(base, parts))
    return Operations(name, on_meta.what, (unmerged, *costs))


def _merged(on_meta: Skeleton, merge: Merge) -> tuple[Trace, Flops]:
    """What the first tower merges, and the count."""
    with turbovlm.applied(on_meta.model, merge) as run:
        count = flops(on_meta.model, on_meta.inputs)
        trace = run.trace
    limit = removable(trace.start, trace.prefix_tokens)
    if isinstance(merge.r, int) and merge.r > limit:
        raise ConfigError(
            f"r={merge.r} does not fit {on_meta.name}: a block merges at most half of its tokens, "
            f"which is {limit} of {trace.start}: give a smaller --r"
        )
    return trace, count


def _parts(count: Flops) -> list[str]:
    """At most `PARTS` parts of a model that do not overlap, largest first.

    The largest part is split into its children, and into what it computes on its own, as long as
    there are not too many.
    """
    cost, children = _tree(count)
    parts = [WHOLE]
    while open_ := [part for part in parts if part in children]:
        largest = max(open_, key=lambda part: cost[part])
        finer = [part for part in parts if part != largest]
        finer += [*children[largest], largest + OWN]
        finer = [part for part in finer if _own(part, cost, children) >= SMALL * count.macs]
        if len(finer) > PARTS:
            break
        parts = finer
    return sorted(parts, key=lambda part: -_own(part, cost, children))


def _split(count: Flops, parts: Sequence[str]) -> dict[str, float]:
    """GFLOPs of each part in another count of the same model, and of the rest."""
    cost, children = _tree(count)
    split = {part: _own(part, cost, children) for part in parts}
    split[REST] = count.macs - sum(split.values())
    return {part: macs / 1e9 for part, macs in split.items()}


def _own(part: str, cost: Mapping[str, int], children: Mapping[str, list[str]]) -> int:
    """Multiply-adds of a part; of ``"..., own"`` what is left without the children."""
    name = part.removesuffix(OWN)
    inside = children.get(name, []) if name != part else []
    return cost.get(name, 0) - sum(cost[child] for child in inside)


def _tree(count: Flops) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Multiply-adds by part, numbered siblings together, and the parts directly inside a part."""
    cost = {WHOLE: count.macs}
    for name, macs in count.by_module.items():
        part = re.sub(r"(?<![a-z])\d+(?=\.|$)", "*", name)
        cost[part] = cost.get(part, 0) + macs
    children: dict[str, list[str]] = {}
    for part in cost:
        if part != WHOLE:
            above = part.rpartition(".")[0]
            while above and above not in cost:  # a list of modules has no forward of its own
                above = above.rpartition(".")[0]
            children.setdefault(above or WHOLE, []).append(part)
    return cost, children
