"""Generation: pictures of a list of prompts, their FID, CLIP-score and distance to another run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch

from turbovlm.errors import ConfigError, InputError
from turbovlm_workbench.data.content import content_digest
from turbovlm_workbench.data.images import find_images, read_image
from turbovlm_workbench.data.predictions import SETTINGS, Record, Records
from turbovlm_workbench.generation.draw import Drawing, check_seed, draw_pictures
from turbovlm_workbench.generation.fid import Fid
from turbovlm_workbench.load.matching import MatchingModel
from turbovlm_workbench.metrics.measure import Measure
from turbovlm_workbench.metrics.pictures import Gap, gap, psnr
from turbovlm_workbench.tasks.registry import register_task
from turbovlm_workbench.tasks.request import Request
from turbovlm_workbench.tasks.scored import ScoredTask, Stage, Stages, TaskScores

PICTURES = "pictures"
"""Name of the stage and of the folder of the PNG files in a run's own."""

SPEED = Measure("images_per_second", "images/s", "from the median time of a batch", False)
FID = Measure("fid", "FID", "Frechet distance of features to the reference", False, "lower")
CLIP = Measure("clip", "CLIP-score", "100 times the cosine of picture and prompt, from 0", False)
GAP = Measure(
    "difference", "difference", "mean absolute, to the reference, of 255 levels", False, "lower"
)
PSNR = Measure("psnr", "PSNR", "to the reference, in dB", False)

Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Reference:
    """What the pictures are compared with.

    Attributes:
        paths: of all its images.
        drawn: prompt and seed of those that another run drew, to their files; empty for a folder
            of photographs.
    """

    paths: tuple[Path, ...]
    drawn: Mapping[tuple[str, int], Path]

    @classmethod
    def open(cls, folder: Path) -> Reference:
        """A folder of images, or the ``--out`` of a finished run.

        Raises:
            InputError: for a missing folder, one without images, or a run that has not ended.
        """
        if not folder.is_dir():
            raise InputError(f"--reference {folder} is no folder: give one of images, or a run")
        if not (folder / SETTINGS).exists():
            return cls(find_images(folder), {})
        records = Records(folder, PICTURES)
        if not records.final.exists():
            raise InputError(
                f"--reference {folder} is no finished run of eval generation: let it end first"
            )
        found = records.read().values()
        drawn = {(r["prompt"], r["seed"]): folder / r["file"] for r in found}
        return cls(tuple(drawn.values()), drawn)


@dataclass(frozen=True)
class PictureScoring:
    """How the pictures of a run are scored, by the process that leads it.

    Args:
        reference: for FID and the difference; None leaves both out.
        fid: the metric; None leaves it out.
        clip: a dual encoder for the CLIP-score; None leaves it out.
        progress: told how far the scoring is.
    """

    reference: Reference | None = None
    fid: Fid | None = None
    clip: MatchingModel | None = None
    progress: Progress = lambda stage, done, total: None


def numbered(prompts: Sequence[str], seed: int = 0) -> list[tuple[str, int]]:
    """Each prompt with its seed: picture i has ``seed + i``.

    Raises:
        ConfigError: for a seed that torch does not take.
    """
    check_seed(seed)
    return [(prompt, seed + index) for index, prompt in enumerate(prompts)]


@register_task
@dataclass(frozen=True)
class Generation(ScoredTask):
    """Pictures on disk, and how good they are.

    Args:
        examples: prompts with their seeds, one for each picture.
        pipe: of diffusers, text-to-image.
        drawing: everything else about the pictures.
        out: the run's folder.
        scoring: None in a process that only draws.

    Raises:
        ConfigError: for an option that the pipeline does not have.
    """

    examples: Sequence[tuple[str, int]] = ()
    pipe: Any = field(kw_only=True)
    drawing: Drawing = field(kw_only=True)
    out: Path = field(kw_only=True)
    scoring: PictureScoring | None = field(default=None, kw_only=True)

    kind = "generation"

    @classmethod
    def from_request(cls, request: Request) -> Self:
        """It has a command of its own.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("generation has a command of its own: turbovlm eval generation --help")

    def __post_init__(self) -> None:
        self.drawing.arguments(self.pipe)  # refuses an option that the pipeline does not have

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All that can be asked for, then the speed."""
        return (FID, CLIP, GAP, PSNR, SPEED)

    @property
    def patched(self) -> Any:
        """The whole pipeline."""
        return self.pipe

    @property
    def parts(self) -> Mapping[str, Any]:
        """All of the pipeline."""
        return self.pipe.components

    def fingerprint(self) -> list[Any]:
        """Prompts and seeds."""
        return [list(pair) for pair in self.examples]

    def stages(self) -> Stages:
        """Draw what is missing; the process that leads scores all pictures."""
        (self.out / PICTURES).mkdir(exist_ok=True)
        names = [f"{index:06d}" for index in range(len(self.examples))]
        records = yield Stage(PICTURES, names, int, self._draw, lambda index: ())
        return TaskScores({}) if self.scoring is None else self._score(records, self.scoring)

    def _draw(self, indices: list[int]) -> list[Record]:
        begun = time.perf_counter()
        prompts, seeds = zip(*(self.examples[index] for index in indices), strict=True)
        pictures = draw_pictures(self.pipe, list(prompts), list(seeds), self.drawing)
        seconds = (time.perf_counter() - begun) / len(indices)
        records = []
        for index, prompt, seed, picture in zip(indices, prompts, seeds, pictures, strict=True):
            file = f"{PICTURES}/{index:06d}.png"
            picture.save(self.out / file)
            record = {"prompt": prompt, "seed": seed, "file": file, "seconds": seconds}
            records.append({**record, "content": content_digest([self.out / file])})
        return records

    def _score(self, records: Mapping[str, Record], scoring: PictureScoring) -> TaskScores:
        files = {key: self.out / record["file"] for key, record in records.items()}
        _check_untouched(records, files)
        metrics = {SPEED.key: 1 / median(r["seconds"] for r in records.values())}
        each: dict[str, dict[str, float]] = {}
        notes: dict[str, str] = {}
        if scoring.fid is not None and scoring.reference is not None:
            metrics[FID.key] = scoring.fid.distance(
                list(files.values()), scoring.reference.paths, scoring.progress
            )
            notes["features"] = f"{scoring.fid.name}, {scoring.fid.width} numbers a picture"
        if scoring.clip is not None:
            each[CLIP.key] = _clip(scoring.clip, scoring.progress, records, files)
        if scoring.reference is not None and scoring.reference.drawn:
            gaps = _gaps(scoring.reference.drawn, records, files)
            each[GAP.key] = {key: one.mean for key, one in gaps.items()}
            if (ratio := psnr(list(gaps.values()))) is not None:
                metrics[PSNR.key] = ratio
        metrics |= {key: sum(v.values()) / len(v) for key, v in each.items()}
        return TaskScores(metrics, each, notes)


def _check_untouched(records: Mapping[str, Record], files: Mapping[str, Path]) -> None:
    """Raise `InputError` where a picture is not the one that was drawn."""
    for key, path in files.items():
        # records of earlier versions do not say what was drawn
        if content_digest([path]) != records[key].get("content", content_digest([path])):
            raise InputError(
                f"{path} is gone or no longer the picture that was drawn: put it back, or draw "
                "all of them again with another --out"
            )


def _clip(
    clip: MatchingModel,
    progress: Progress,
    records: Mapping[str, Record],
    files: Mapping[str, Path],
) -> dict[str, float]:
    scores: dict[str, float] = {}
    weight = next(clip.model.parameters())
    keys = list(records)
    for start in range(0, len(keys), 32):
        progress("CLIP-score", start, len(keys))
        some = keys[start : start + 32]
        with torch.inference_mode():
            pixels = clip.prepare([read_image(files[key]) for key in some])
            images = clip.see(pixels.to(device=weight.device, dtype=weight.dtype))
            texts = clip.read([records[key]["prompt"] for key in some])
            cosines = clip.similarity(images, texts).diagonal().float()
        scores |= zip(some, (100 * cosines.clamp(min=0)).tolist(), strict=True)
    return scores


def _gaps(
    drawn: Mapping[tuple[str, int], Path],
    records: Mapping[str, Record],
    files: Mapping[str, Path],
) -> dict[str, Gap]:
    pairs = {
        key: drawn[record["prompt"], record["seed"]]
        for key, record in records.items()
        if (record["prompt"], record["seed"]) in drawn
    }
    if not pairs:
        raise InputError(
            "the --reference run drew none of these prompts with the same noise: give one "
            "with the same --prompts and --seed, or its folder of pictures alone"
        )
    return {key: gap(read_image(files[key]), read_image(path)) for key, path in pairs.items()}
