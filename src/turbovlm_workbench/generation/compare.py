"""The same prompts and noise, drawn without and with merging: pictures, time, operations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from PIL import Image

import turbovlm
from turbovlm.config import MergeRestore
from turbovlm.errors import ConfigError
from turbovlm.measure import environment, flops
from turbovlm.measure.speed import Ratio, Rounds, Variant, compare
from turbovlm_workbench.generation.draw import Drawing, check_seed, draw_pictures
from turbovlm_workbench.generation.pipeline import denoiser
from turbovlm_workbench.load.loaded import UNMERGED
from turbovlm_workbench.metrics.pictures import gap, psnr

Progress = Callable[[str, int, int], object]
"""Called with the stage, the pictures done and the pictures in all."""

WARM_UP = 2  # denoising steps of the untimed first call


@dataclass(frozen=True)
class PicturePlan:
    """What every side draws; picture i has the noise of ``seed + i`` on every side.

    Args:
        prompts: at least one.
        drawing: everything else about the pictures.
        seed: of the first picture.
        rounds: timed pictures of every side at least; prompts are drawn again where there are
            fewer of them.

    Raises:
        ConfigError: without a prompt, for one without words, or numbers out of range.
    """

    prompts: Sequence[str]
    drawing: Drawing
    seed: int = 0
    rounds: int = 3

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise ConfigError('give at least one --prompt with words in it: --prompt "a dog"')
        check_seed(self.seed)
        if self.rounds < 1:
            raise ConfigError(f"--rounds must be at least 1, got {self.rounds}")


@dataclass(frozen=True, eq=False)
class Side:
    """What one setting draws.

    Attributes:
        name: e.g. ``"turbo 30 %"``.
        merge: the setting; None for the unmerged model.
        pictures: one for each prompt.
        seconds: median time of one picture, text encoder and autoencoder included.
        speedup: over the unmerged model, the median of interleaved rounds.
        gmacs: multiply-adds of one denoising step in units of 10^9, both halves of guidance.
        difference: mean absolute difference to the unmerged pictures, in levels of 255.
        psnr: of the same, in dB; None where no pixel differs.
    """

    name: str
    merge: MergeRestore | None
    pictures: tuple[Image.Image, ...] = field(repr=False)
    seconds: float
    speedup: Ratio
    gmacs: float
    difference: float
    psnr: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the pictures."""
        return {
            "name": self.name,
            "merge": None if self.merge is None else self.merge.to_dict(),
            "seconds": self.seconds,
            "speedup": dataclasses.asdict(self.speedup),
            "gmacs": self.gmacs,
            "difference": self.difference,
            "psnr": self.psnr,
        }


@dataclass(frozen=True)
class Comparison:
    """All sides, the unmerged one first.

    Attributes:
        model: the name it was loaded by.
        prompts: one for each picture of a side.
        seeds: of the noise, likewise.
        size: width and height of the pictures in pixels.
        rounds: timed pictures of every side.
        dtype: number format, e.g. ``"float32"``.
        sides: the unmerged model and every setting.
        environment: the machine and the versions of the libraries.
    """

    model: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    size: tuple[int, int]
    rounds: int
    dtype: str
    sides: tuple[Side, ...]
    environment: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the pictures."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data |= {name: list(data[name]) for name in ("prompts", "seeds", "size")}
        data["sides"] = [side.to_dict() for side in self.sides]
        data["environment"] = dict(self.environment)
        return data


def restore_settings(
    ratios: Sequence[float], methods: Sequence[Any], min_tokens: int = 0
) -> list[MergeRestore]:
    """Every combination, method by method, without repetitions.

    Args:
        ratios: shares of the tokens.
        methods: as `MergeRestore` has them.
        min_tokens: modules with fewer are left alone by all.

    Raises:
        ConfigError: for a value that `MergeRestore` refuses.
    """
    merges = (
        MergeRestore(ratio=ratio, method=method, min_tokens=min_tokens)
        for method in methods
        for ratio in ratios
    )
    return list(dict.fromkeys(merges))


def restore_title(merge: MergeRestore) -> str:
    """What to call a setting in a table: method and share of the tokens."""
    ratios = merge.ratio if isinstance(merge.ratio, tuple) else (merge.ratio,)
    return f"{merge.method} {', '.join(f'{100 * ratio:g}' for ratio in ratios)} %"


def compare_pictures(
    pipe: Any,
    name: str,
    plan: PicturePlan,
    merges: Sequence[MergeRestore],
    progress: Progress = lambda stage, done, total: None,
) -> Comparison:
    """Draw every prompt by every side, one picture a call, in interleaved rounds.

    The first call of a side warms up: it takes two denoising steps and is not timed. After it,
    every round draws one prompt by every side, in an order that rotates.

    Args:
        pipe: as `load_pipeline` returns it; it is left without merging.
        name: what to call it.
        plan: what is drawn.
        merges: the settings.
        progress: told how far the run is.

    Raises:
        ConfigError: for an option that the pipeline does not have.
        ModelError: if the pipeline refuses what it is given.
        TurboError: whatever `turbovlm.apply` refuses.
    """
    for merge in merges:  # all of them, before the first picture: a refusal costs no time
        with merging(pipe, merge):
            pass
    names: dict[str, MergeRestore | None] = {
        UNMERGED: None,
        **{restore_title(m): m for m in merges},
    }
    rounds = max(plan.rounds, len(plan.prompts))
    brushes = {key: _Brush(pipe, plan) for key in names}
    slot = iter(range(-len(names), rounds * len(names)))

    def tell(done: int, of: int, key: str) -> None:
        position = next(slot)
        progress("warming up" if position < 0 else key, max(position, 0), rounds * len(names))

    variants = {
        key: Variant(brushes[key], lambda merge=merge: merging(pipe, merge))
        for key, merge in names.items()
    }
    with _watching(pipe) as steps:
        often = Rounds(rounds, warmup=1, slot_seconds=0, device=pipe.device)
        times = compare(variants, often, tell)
    before = brushes[UNMERGED].pictures
    sides = []
    for key, merge in names.items():
        gaps = [gap(*pair) for pair in zip(before, brushes[key].pictures, strict=True)]
        sides.append(
            Side(
                name=key,
                merge=merge,
                pictures=tuple(brushes[key].pictures),
                seconds=times[key].median_s,
                speedup=times[key].speedup_over(times[UNMERGED]),
                gmacs=_count(pipe, steps[0], merge),
                difference=fmean(one.mean for one in gaps),
                psnr=psnr(gaps),
            )
        )
    return Comparison(
        model=name,
        prompts=tuple(plan.prompts),
        seeds=tuple(plan.seed + index for index in range(len(plan.prompts))),
        size=before[0].size,
        rounds=rounds,
        dtype=str(pipe.dtype).removeprefix("torch."),
        sides=tuple(sides),
        environment=environment(pipe.device),
    )


def merging(pipe: Any, merge: MergeRestore | None) -> AbstractContextManager[object]:
    """The pipeline with this setting, unrecorded: a record would cost time."""
    return nullcontext() if merge is None else turbovlm.applied(pipe, merge, record=False)


class _Brush:
    """Draws the next prompt at every call; the first call is a short one that warms up."""

    def __init__(self, pipe: Any, plan: PicturePlan) -> None:
        self.pipe, self.plan = pipe, plan
        self.calls = 0
        self.pictures: list[Image.Image] = []

    def __call__(self) -> None:
        prompts, seed = self.plan.prompts, self.plan.seed
        index = max(self.calls - 1, 0) % len(prompts)
        drawing = self._short() if self.calls == 0 else self.plan.drawing
        self.calls += 1
        picture = draw_pictures(self.pipe, [prompts[index]], [seed + index], drawing)[0]
        if 1 < self.calls <= 1 + len(prompts):
            self.pictures.append(picture)

    def _short(self) -> Drawing:
        """Image-to-image begins in the middle: it takes a share of the steps."""
        drawing = self.plan.drawing
        share = 1.0 if drawing.image is None else drawing.strength or 0.5
        return dataclasses.replace(drawing, steps=math.ceil(WARM_UP / share))


@contextmanager
def _watching(pipe: Any) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """What the denoiser is called with first while the context is open."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        handle.remove()

    handle = denoiser(pipe).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _count(
    pipe: Any, step: tuple[tuple[Any, ...], dict[str, Any]], merge: MergeRestore | None
) -> float:
    """Multiply-adds of one step in units of 10^9, merged or not."""
    args, kwargs = step
    if merge is not None and merge.guidance is None:
        # outside its pipeline a denoiser must be told; one picture was drawn, so guidance is two
        latent: Any = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        guided = getattr(pipe, "do_classifier_free_guidance", False) and len(latent) == 2
        merge = dataclasses.replace(merge, guidance=bool(guided))
    with merging(pipe, merge):
        return flops(denoiser(pipe), (), call=lambda model, _: model(*args, **kwargs)).gmacs
