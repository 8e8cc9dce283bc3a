"""Generation: pictures of a list of prompts, their FID, CLIP-score and distance to another run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from turbovlm.errors import InputError
from turbovlm_workbench.data.images import find_images, read_image
from turbovlm_workbench.generation.draw import Drawing, check_seed, draw_pictures
from turbovlm_workbench.generation.fid import Fid
from turbovlm_workbench.generation.pipeline import denoiser
from turbovlm_workbench.load.matching import MatchingModel
from turbovlm_workbench.metrics.pictures import Gap, gap, psnr
from turbovlm_workbench.run.records import SETTINGS, Records
from turbovlm_workbench.tasks.base import Measure
from turbovlm_workbench.tasks.evaluate.stage import Evaluation, Record, Run, Scores, Stage

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


class Generation(Evaluation):
    """Pictures on disk, and what they are worth.

    Args:
        pipe: of diffusers, text-to-image.
        name: what the user called it.
        prompts: one for each picture.
        drawing: everything else about the pictures.
        out: the run's folder.
        seed: of the first picture; picture i has ``seed + i``.
        reference: for FID and the difference.
        fid: the metric; None leaves it out.
        clip: a dual encoder for the CLIP-score; None leaves it out.
        leads: whether this process is the one that scores.
        progress: told how far the scoring is.

    Raises:
        ConfigError: for an option that the pipeline does not have.
    """

    kind = "generation"

    def __init__(
        self,
        pipe: Any,
        name: str,
        prompts: Sequence[str],
        drawing: Drawing,
        out: Path,
        *,
        seed: int = 0,
        reference: Reference | None = None,
        fid: Fid | None = None,
        clip: MatchingModel | None = None,
        leads: bool = True,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        check_seed(seed)
        drawing.arguments(pipe)  # refuses an option that the pipeline does not have
        self.pipe, self.name, self.model = pipe, name, denoiser(pipe)
        self.prompts, self.drawing, self.out = list(prompts), drawing, out
        self.seeds = [seed + index for index in range(len(prompts))]
        self.reference, self.fid, self.clip = reference, fid, clip
        self.leads, self.progress = leads, progress
        self.examples = [list(pair) for pair in zip(self.prompts, self.seeds, strict=True)]
        self.measures = ()

    @property
    def patched(self) -> Any:
        """The whole pipeline."""
        return self.pipe

    def run(self) -> Run:
        """Draw what is missing; the first process scores all pictures."""
        (self.out / PICTURES).mkdir(exist_ok=True)
        records = yield Stage(
            PICTURES, [f"{index:06d}" for index in range(len(self.prompts))], int, self._draw
        )
        return self._score(records) if self.leads else Scores({})

    def _draw(self, indices: list[int]) -> list[Record]:
        begun = time.perf_counter()
        prompts = [self.prompts[index] for index in indices]
        seeds = [self.seeds[index] for index in indices]
        pictures = draw_pictures(self.pipe, prompts, seeds, self.drawing)
        seconds = (time.perf_counter() - begun) / len(indices)
        records = []
        for index, prompt, seed, picture in zip(indices, prompts, seeds, pictures, strict=True):
            file = f"{PICTURES}/{index:06d}.png"
            picture.save(self.out / file)
            records.append({"prompt": prompt, "seed": seed, "file": file, "seconds": seconds})
        return records

    def _score(self, records: Mapping[str, Record]) -> Scores:
        files = {key: self.out / record["file"] for key, record in records.items()}
        metrics = {SPEED.key: 1 / median(r["seconds"] for r in records.values())}
        each: dict[str, dict[str, float]] = {}
        notes: dict[str, str] = {}
        if self.fid is not None and self.reference is not None:
            metrics[FID.key] = self.fid.distance(
                list(files.values()), self.reference.paths, self.progress
            )
            notes["features"] = f"{self.fid.name}, {self.fid.width} numbers a picture"
        if self.clip is not None:
            each[CLIP.key] = self._clip(self.clip, records, files)
        if self.reference is not None and self.reference.drawn:
            gaps = self._gaps(self.reference.drawn, records, files)
            each[GAP.key] = {key: one.mean for key, one in gaps.items()}
            if (ratio := psnr(list(gaps.values()))) is not None:
                metrics[PSNR.key] = ratio
        metrics |= {key: sum(v.values()) / len(v) for key, v in each.items()}
        self.measures = tuple(m for m in (FID, CLIP, GAP, PSNR, SPEED) if m.key in metrics)
        return Scores(metrics, each, notes)

    def _clip(
        self, clip: MatchingModel, records: Mapping[str, Record], files: Mapping[str, Path]
    ) -> dict[str, float]:
        scores: dict[str, float] = {}
        weight = next(clip.model.parameters())
        keys = list(records)
        for start in range(0, len(keys), 32):
            self.progress("CLIP-score", start, len(keys))
            some = keys[start : start + 32]
            with torch.inference_mode():
                pixels = clip.prepare([read_image(files[key]) for key in some])
                images = clip.see(pixels.to(device=weight.device, dtype=weight.dtype))
                texts = clip.read([records[key]["prompt"] for key in some])
                cosines = clip.similarity(images, texts).diagonal().float()
            scores |= zip(some, (100 * cosines.clamp(min=0)).tolist(), strict=True)
        return scores

    def _gaps(
        self,
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
