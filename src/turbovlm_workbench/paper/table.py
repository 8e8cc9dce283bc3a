"""The rows: what the paper publishes, the exact figure of its convention, and what was counted.

Facts about the paper, as data. ``exact`` was derived from the published configurations by closed
formulas (docs/flops.md); nothing here enters the computed column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import nn

from turbovlm.config import Merge, MergeRestore, RestorePreset
from turbovlm_workbench.paper import models


@dataclass(frozen=True)
class Line:
    """One row of the paper.

    Attributes:
        r: tokens merged in every block; 0 with no ratio is the unmerged model.
        exact: GFLOPs, a multiply-add counted as one.
        published: GFLOPs as the paper prints them; None where it prints none that can be derived.
        throughput: the speed-up that the paper measured (one RTX 3090, eager attention).
        note: what sets this row apart from the others of its model.
        steps: decoding steps, for captions.
        ratio: fraction of the tokens that a denoiser's modules are spared, see `MergeRestore`.
    """

    r: int
    exact: float
    published: float | None = None
    throughput: float | None = None
    note: str = ""
    steps: int = 0
    ratio: float = 0.0

    @property
    def config(self) -> Merge | MergeRestore | None:
        """The setting that was counted; None for the unmerged model."""
        if self.ratio:
            return MergeRestore(
                ratio=self.ratio, preset=RestorePreset(metric="token", restore="copy")
            )
        return Merge(r=self.r) if self.r else None


@dataclass(frozen=True)
class Subject:
    """A model of the paper, and its rows; the first is the unmerged one.

    Attributes:
        name: task and model.
        configuration: what was counted, in words.
        build: makes the model.
        run: what is counted of it; BLIP's captions get their number of steps.
        lines: its rows.
        speak: runs a language model that does not depend on what was merged, one step at each
            ``next``; its steps are counted once for all rows.
    """

    name: str
    configuration: str
    build: Callable[[], nn.Module]
    run: Callable[..., object]
    lines: tuple[Line, ...]
    speak: Callable[[nn.Module], Iterator[object]] | None = None


def _vit(name: str, words: str, build: Callable[[], nn.Module], size: int, *lines: Line) -> Subject:
    return Subject(name, words, build, partial(models.see, size), lines)


TABLE = (
    Subject(
        "NLVR2, BLIP base",
        "two images of 384 px through ViT-B/16, 36 text tokens through BERT with twin "
        "cross-attention, and the head",
        models.blip_nlvr,
        models.judge,
        (
            Line(0, 132.541, 132.5),
            Line(35, 77.164, 77.2, 1.56),
            Line(45, 62.208, 62.2, 1.91),
        ),
    ),
    _vit(
        "VQA, BLIP base",
        "ViT-B/16 at 480 px alone, 901 tokens",
        partial(models.blip_vision, 480),
        480,
        Line(0, 92.107, 92.1),
        Line(40, 65.161, 65.7, 1.25),
        Line(60, 52.553, 52.5, 1.57),
    ),
    _vit(
        "Retrieval, BLIP base",
        "ViT-B/16 at 384 px alone, 577 tokens",
        partial(models.blip_vision, 384),
        384,
        Line(0, 55.539, 55.5),
        Line(30, 37.033, 37.0, 1.33, "Flickr30k"),
        Line(40, 31.157, 31.1, 1.60, "Flickr30k"),
        Line(30, 37.033, 36.8, 1.34, "COCO"),
        Line(35, 34.075, 34.1, 1.49, "COCO"),
    ),
    _vit(
        "Retrieval, BLIP-2",
        "EVA-ViT-g/14 at 364 px alone, 677 tokens",
        partial(models.eva_vision, 364),
        364,
        Line(0, 717.451, 717.5),
        Line(16, 375.993, 376.0, 1.84, "Flickr30k"),
        Line(15, 396.549, 396.5, 1.72, "COCO"),
    ),
    Subject(
        "Caption, BLIP base",
        "ViT-B/16 at 384 px once; BERT decoder over 3 beams, prompt of 4 tokens, cross-attention "
        "keys and values anew in each step",
        models.blip_captioner,
        partial(models.caption_model, 3),
        (
            Line(0, 330.709, 330.2, note="11 steps", steps=11),
            Line(30, 134.156, 134.2, 1.98, "10 steps", steps=10),
        ),
    ),
    Subject(
        "Caption, BLIP-2 OPT-2.7B",
        "EVA-ViT-g/14 at 364 px and Q-Former of 32 queries once; OPT-2.7B over 5 beams, prompt of "
        "32 + 4 tokens",
        models.blip2_captioner,
        models.query,
        (
            Line(0, 1379.287, 1379.2, note="14 steps", steps=14),
            Line(16, 1029.543, 1029.5, note="14 steps (the baselines' row)", steps=14),
            Line(16, 989.734, 989.7, 1.72, "11 steps (Turbo's row)", steps=11),
        ),
        partial(models.speak, 5),
    ),
    _vit(
        "VQA, MiniGPT-v2",
        "EVA-ViT-g/14 at 448 px alone, 1025 tokens",
        partial(models.eva_vision, 448),
        448,
        Line(0, 1125.42, note="256 tokens to the LLM; total published as 5736.5"),
        Line(12, 849.78, None, 1.43, "139 tokens to the LLM; total published as 4411.3"),
        Line(16, 761.05, None, 1.74, "100 tokens to the LLM; total published as 3853.4"),
    ),
    *(
        _vit(
            f"ImageNet, AugReg {letter}/16",
            f"{name} at 224 px",
            partial(models.timm_vit, name, 224),
            224,
            Line(0, base),
            Line(r, merged, throughput=throughput),
        )
        for letter, name, base, r, merged, throughput in (
            ("ViT-S", "vit_small_patch16_224", 4.61, 13, 2.71, 1.53),
            ("ViT-B", "vit_base_patch16_224", 17.58, 13, 10.38, 1.62),
            ("ViT-L", "vit_large_patch16_224", 61.60, 7, 34.74, 1.71),
        )
    ),
    *(
        _vit(
            f"ImageNet, SWAG {letter}",
            f"{name} at {size} px",
            partial(models.swag_vit, name, size),
            size,
            Line(0, base),
            Line(r, merged, throughput=throughput),
        )
        for letter, name, size, base, r, merged, throughput in (
            ("ViT-B/16", "vit_b_16", 384, 55.54, 45, 28.30, 1.85),
            ("ViT-L/16", "vit_l_16", 512, 362.24, 40, 183.12, 1.98),
            ("ViT-H/14", "vit_h_14", 518, 1017.29, 40, 514.11, 1.91),
        )
    ),
    Subject(
        "Generation, Stable Diffusion 1.5",
        "one forward of the UNet at 512 px; tokens merged before and restored after "
        "self-attention, cross-attention and feed-forward of all 16 blocks",
        models.stable_diffusion,
        models.denoise,
        (  # without the LayerNorms, 0.173 of each, as the unmerged figure is usually quoted
            Line(0, 401.64),
            Line(0, 384.195, ratio=0.1),
            Line(0, 362.046, throughput=1.34, note="image-to-image 1.38x", ratio=0.2),
            Line(0, 341.229, throughput=1.56, note="image-to-image 1.69x", ratio=0.3),
        ),
    ),
)
