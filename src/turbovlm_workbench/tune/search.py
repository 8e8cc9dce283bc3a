"""The stages of a search for the fastest setting within a promise about the loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import turbovlm
from turbovlm.config import Merge, VisualTokens
from turbovlm.errors import ConfigError, ModelError
from turbovlm.maths.speedup import merging_blocks
from turbovlm.measure import Rounds, Timing, compare
from turbovlm.measure.speed import Ratio
from turbovlm.plug.swap import patched, site_of
from turbovlm_workbench.compare.plan import BenchPlan, Progress
from turbovlm_workbench.compare.titles import title_of
from turbovlm_workbench.compare.variants import build_settings
from turbovlm_workbench.data.images import Images
from turbovlm_workbench.load.loaded import UNMERGED
from turbovlm_workbench.metrics.measure import summarize
from turbovlm_workbench.settings import Settings
from turbovlm_workbench.tasks.image import ImageTask, calling
from turbovlm_workbench.tune.allocate import COMPOUND, Stack, allocate, even, one_share
from turbovlm_workbench.tune.goal import Goal
from turbovlm_workbench.tune.trials import Part, Trial, loss_of

PROBES = 12  # blocks that are probed at most, evenly spread
PROBED = 1 / 6  # share of the tokens that a probe removes
SHAPES = ("the same r", "every block", "every second", "few in the middle", "middle", "three")
COMPARED = 0.25  # share of the operations that the shapes save while they are compared
FINALISTS = 2  # shapes that are followed to the end
STEP, RUNGS = 0.01, 60  # what each rung of the ladder saves more, and its length
START = 4 / 5  # of the height that the searched images allow: where validation begins
ROUNDS = 6  # of timing, for the shapes
MERGE_ROUNDS = 12  # for a merge, which takes little
EXACT = 1e-6  # drift that is rounding

Timer = Callable[[Mapping[str, Callable[[], object]]], Mapping[str, Timing]]
"""Times calls by name, interleaved, see `turbovlm.measure.compare`."""


class Search:
    """The stages of `turbovlm_workbench.tune.tune.tune`, with what they share."""

    def __init__(
        self,
        task: ImageTask[Any],
        images: Images,
        indices: Sequence[int],
        plan: BenchPlan,
        timer: Timer | None = None,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        progress("reading images", 0, 1)
        self.task, self.plan, self.progress = task, plan, progress
        self.timer = timer
        self.part = Part(task, images, indices, plan.batch, keep=True)
        self.pixels = task.pixels([images.image(i) for i in range(min(plan.batch, len(images)))])
        self.trials: list[Trial] = []
        with turbovlm.applied(task.model, Merge(r=0)) as run:
            task.outputs(task.model, self.pixels[:1])
            trace = run.trace
            facts = (getattr(site_of(m).patch, "facts", None) for m in patched(task.model))
            self.cost = next(found for found in facts if found is not None).cost
        self.stack = Stack(len(trace.tokens), trace.start, trace.prefix_tokens)
        self.stack = dataclasses.replace(self.stack, collapse=self.collapses())
        self.stack = dataclasses.replace(self.stack, merge=self.merge_time())

    def ladders(self, goal: Goal) -> list[list[Settings]]:
        """Settings that save more and more: merging alone, and what a language model gets of it.

        The shares that a language model is handed are a ladder of their own, the largest first.
        On top of the smallest one that keeps the promise on the searched images, merging goes on.
        """
        keeps: list[Settings] = [(keep,) for keep in self.by_tokens(goal.keeps)]
        rung = self.climb(keeps, goal.max_loss)  # refuses a model that has none, before all else
        merges = self.merges()
        ladders: list[list[Settings]] = [[(merge,) for merge in ladder] for ladder in merges]
        if keeps:
            ladders.append(keeps)
        if rung >= 0:
            ladders.append([keeps[rung], *((merge, *keeps[rung]) for merge in merges[0])])
        return ladders

    def by_tokens(self, keeps: Sequence[VisualTokens]) -> list[VisualTokens]:
        """Those that leave most tokens of an image first.

        Raises:
            TurboError: whatever `turbovlm.apply` refuses.
        """
        left = {}
        for keep in keeps:
            with turbovlm.applied(self.task.model, keep) as run:
                self.task.outputs(self.task.model, self.pixels[:1])
            left[keep] = sum(len(image.kept) for image in run.visual.images)
        return sorted(left, key=lambda keep: -left[keep])

    def merge_time(self) -> float:
        """What a merge takes here, in times of a block.

        Measured from merges of one token each, in the first block and in every second one: from the
        first on, all blocks carry sizes. The work that they save is added again.
        """
        self.progress("timing a merge", 0, 1)
        depth = self.stack.depth
        one = tuple(int(block == 0) for block in range(depth))
        some = tuple(int(block % 2 == 0) for block in range(depth))
        if sum(some) == 1:
            return 0.0
        gains = self.speed([(self.setting(rs),) for rs in (one, some)], MERGE_ROUNDS)
        few, many = (
            1 / gain.value + self.stack.saved(rs)
            for gain, rs in zip(gains, (one, some), strict=True)
        )
        return max(0.0, depth * (many - few) / (sum(some) - 1))

    def merges(self) -> list[list[Merge]]:
        """Merges that save more and more, of the best two shapes with the best weight."""
        costs = self.probe()
        shapes, merge = self.shapes(costs)
        fields = self.weigh(merge)
        shares = [step * STEP for step in range(1, RUNGS + 1)]
        ladders = [
            [self.setting(self.schedule(s, costs, x), **fields) for x in shares] for s in shapes
        ]
        return [list(dict.fromkeys(ladder)) for ladder in ladders]

    def collapses(self) -> bool:
        """Whether what reads the encoder takes the cls token alone, so that the rest may go."""
        self.tell("looking at the last block", 0, 1)
        try:
            trial = self.tried("collapse", (Merge(r=0, collapse=True),))
        except ConfigError:  # no cls token, or its reader is known to need the patches
            return False
        return trial.drift <= EXACT and trial.loss.mean <= EXACT

    def setting(self, r: tuple[int, ...], **fields: Any) -> Merge:
        """What is tried: a schedule, with what `collapses` found."""
        return Merge(r=r, collapse=self.stack.collapse, **fields)

    def probe(self) -> dict[int, float]:
        """Drift of removing tokens in one block alone, over the cube of their share."""
        depth, patches = self.stack.depth, self.stack.tokens - self.stack.prefix
        stride = -(-depth // PROBES)
        blocks = sorted(range(depth - 1 - self.stack.collapse, -1, -stride))
        amount = max(1, round(patches * PROBED))
        costs = {}
        for step, block in enumerate(blocks):
            self.tell("probing blocks", step, len(blocks))
            r = tuple(amount if index == block else 0 for index in range(depth))
            drift = self.tried("block", (self.setting(r),)).drift
            costs[block] = drift / (amount / patches) ** COMPOUND
        return costs

    def schedule(self, shape: str, costs: Mapping[int, float], share: float) -> tuple[int, ...]:
        """r by block that saves ``share``: the paper's, one share in those blocks that
        ``Merge(speedup=...)`` takes, or allocated to some of the blocks.

        A merge has a cost of its own in time, so that fewer and larger ones can be faster.
        """
        if shape == "the same r":
            return even(share, self.stack)
        if shape in ("middle", "three"):
            blocks = merging_blocks(self.stack.depth, shape == "three", self.cost.attended)
            return one_share(share, blocks, self.stack)
        blocks = list(costs)
        if shape == "every second":
            blocks = blocks[::-1][::2]
        elif shape == "few in the middle":
            middle = slice(len(blocks) // 3, len(blocks) * 3 // 4, 2)
            blocks = [*blocks[middle], blocks[-1]]
        some = {block: costs[block] for block in blocks}
        return allocate(some, share, self.stack)

    def shapes(self, costs: Mapping[int, float]) -> tuple[list[str], Merge]:
        """The two shapes with the least drift for the time that they save, and a merge of one."""
        found = {}
        for step, shape in enumerate(SHAPES):
            self.tell("comparing schedules", step, len(SHAPES))
            merge = self.setting(self.schedule(shape, costs, COMPARED))
            found[shape] = merge, self.tried("shape", (merge,))
        gains = self.speed([trial.settings for _, trial in found.values()], ROUNDS)
        # Drift grows with the cube of what is removed, so this is the drift of equal savings.
        marks = {
            shape: trial.drift / (1 - 1 / gain.value) ** COMPOUND
            if gain.value > 1
            else float("inf")
            for (shape, (_, trial)), gain in zip(found.items(), gains, strict=True)
        }
        best = sorted(marks, key=lambda shape: marks[shape])[:FINALISTS]
        return best, found[best[0]][0]

    def weigh(self, merge: Merge) -> dict[str, Any]:
        """The semantic weight with the least drift: the default one, or none."""
        choices: list[dict[str, Any]] = [{}, {"method": "redundancy"}]
        drifts = []
        for step, fields in enumerate(choices):
            self.tell("comparing weights", step, len(choices))
            drifts.append(self.tried("alpha", (dataclasses.replace(merge, **fields),)).drift)
        return choices[drifts.index(min(drifts))]

    def climb(self, ladder: Sequence[Settings], promise: float) -> int:
        """The highest rung whose mean loss keeps the promise on the searched images, or -1."""
        low, high = -1, len(ladder)
        while high - low > 1:
            middle = (low + high) // 2
            self.tell("climbing", len(ladder) - (high - low), len(ladder))
            if self.tried("ladder", ladder[middle]).loss.mean <= promise:
                low = middle
            else:
                high = middle
        return low

    def validate(
        self, part: Part, ladder: Sequence[Settings], rung: int, promise: float
    ) -> Trial | None:
        """The highest rung that keeps the promise on ``part``, tested from below, if any.

        Every rung is tested only after all those between it and the first were accepted. Then a
        wrong acceptance is no likelier than for one test, however many follow. If already the
        first is not accepted, the next lower ones are tried, without that guarantee.

        Args:
            part: images that were not searched with.
            ladder: settings that save more and more.
            rung: the highest that the searched images allow; -1 for none.
            promise: the most that may be lost.
        """
        first = math.floor(START * rung)
        accepted = None
        for step, index in enumerate(range(max(first, 0), len(ladder) if rung >= 0 else 0)):
            self.tell("validating", step, len(ladder) - first)
            trial = self.tried("validation", ladder[index], part)
            if not trial.loss.within(promise):
                break
            accepted = trial
        for step, index in enumerate(range(first - 1, -1, -1) if accepted is None else ()):
            self.tell("validating", step, first)
            trial = self.tried("validation", ladder[index], part)
            if trial.loss.within(promise):
                return trial
        return accepted

    def tell(self, stage: str, done: int, total: int) -> None:
        """Progress of a stage, with the number of the evaluation that begins."""
        self.progress(f"{stage}, evaluation {len(self.trials) + 1}", done, total)

    def tried(self, stage: str, settings: Settings, part: Part | None = None) -> Trial:
        """Score a setting and write it down; one that was scored before is only written down."""
        part = part or self.part
        known = [t for t in self.trials if t.settings == settings and stage != "validation"]
        if known:
            trial = dataclasses.replace(known[0], stage=stage)
        else:
            scores = part.scores(settings)
            drift = fmean(score[self.task.drift.key] for score in scores)
            if math.isnan(drift):
                raise ModelError(
                    f"outputs of the model or of {title_of(settings)} are no numbers in "
                    f"{self.plan.dtype}: use --dtype fp32"
                )
            quality = summarize(self.task.comparisons, scores)
            name = title_of(settings)
            trial = Trial(stage, name, settings, drift, loss_of(scores), quality)
        self.trials.append(trial)
        return trial

    def speed(self, variants: Sequence[Settings], rounds: int) -> list[Ratio]:
        """Measured speed-up of each over the unmerged model, in one interleaved run."""
        built = build_settings(self.task.model, list(dict.fromkeys(variants)))
        call = calling(self.task)
        runs = {s.name: (lambda model=s.model: call(model, self.pixels)) for s in built}

        def tell(done: int, total: int, name: str) -> None:
            self.progress("timing", done, total + 1)

        if self.timer is None:
            times: Mapping[str, Timing] = compare(
                runs, Rounds(rounds, warmup=1, device=self.plan.device), tell
            )
        else:
            times = self.timer(runs)
        return [times[title_of(variant)].speedup_over(times[UNMERGED]) for variant in variants]
