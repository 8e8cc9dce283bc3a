"""Small packed towers with random weights: the images of a batch lie in one sequence."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.hosts.zoo import wild
from tests.language.build import hf

DEPTH = 4
CELL = 4  # patches that the merger joins
# frames, height and width in patches: two equal images, a small one, a video of two frames
GRIDS = ((1, 8, 12), (1, 6, 10), (1, 8, 12), (2, 6, 6))
SIZES: dict[str, Any] = {
    "depth": DEPTH,
    "hidden_size": 48,
    "num_heads": 4,
    "patch_size": 8,
}
OUT: dict[str, Any] = {"intermediate_size": 96, "out_hidden_size": 40}
TABLE: dict[str, Any] = {"num_position_embeddings": 64}
DEEP: dict[str, Any] = {**TABLE, "deepstack_visual_indexes": [1]}


@dataclass(frozen=True)
class Packed:
    """One packed tower.

    Attributes:
        name: for the test's id.
        build: the tower.
        windows: whether some of its blocks attend within windows.
        grids: frames, height and width in patches of its images.
        pictures: whether it is given whole pictures and their sizes, not patches.
    """

    name: str
    build: Callable[[], nn.Module]
    windows: bool = False
    grids: Sequence[tuple[int, int, int]] = GRIDS
    pictures: bool = False

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Patches or pictures, and where each image ends or how large it is."""
        if not self.pictures:
            return pack(self.grids, seed)
        sizes = torch.tensor(self.grids)[:, 1:] * SIZES["patch_size"]
        generator = torch.Generator().manual_seed(seed)
        height, width = sizes.amax(0).tolist()
        return torch.randn(len(sizes), 3, height, width, generator=generator), sizes

    def alone(self, image: int) -> tuple[Tensor, Tensor]:
        """The same for one of the images."""
        pixels, sizes = self.inputs()
        rows = [1] * len(sizes) if self.pictures else sizes.prod(1).tolist()
        first = sum(rows[:image])
        return pixels[first : first + rows[image]], sizes[image : image + 1]


def tower(package: str, name: str, kind: str, **config: Any) -> Callable[[], nn.Module]:
    """The vision tower ``name`` of the model ``kind``, in a package of transformers."""

    def make() -> nn.Module:
        settings = getattr(hf, f"{kind}Config")(vision_config=SIZES | config).vision_config
        module = f"transformers.models.{package}.modeling_{package}"
        head = getattr(importlib.import_module(module), name)
        return wild(head._from_config(settings, attn_implementation="sdpa"))

    return make


QWEN25 = Packed(
    "qwen2.5",
    tower(
        "qwen2_5_vl",
        "Qwen2_5_VisionTransformerPretrainedModel",
        "Qwen2_5_VL",
        **OUT,
        window_size=32,
        fullatt_block_indexes=[1, 3],
    ),
    windows=True,
)
CASES = (
    Packed(
        "qwen2",
        tower(
            "qwen2_vl",
            "Qwen2VisionTransformerPretrainedModel",
            "Qwen2VL",
            embed_dim=48,
            mlp_ratio=2,
        ),
    ),
    QWEN25,
    Packed("qwen3", tower("qwen3_vl", "Qwen3VLVisionModel", "Qwen3VL", **OUT, **DEEP)),
    Packed(
        "qwen3_moe",
        tower("qwen3_vl_moe", "Qwen3VLMoeVisionModel", "Qwen3VLMoe", **OUT, **DEEP),
    ),
    Packed("qwen3.5", tower("qwen3_5", "Qwen3_5VisionModel", "Qwen3_5", **OUT, **TABLE)),
    Packed(
        "qwen3.5_moe",
        tower("qwen3_5_moe", "Qwen3_5MoeVisionModel", "Qwen3_5Moe", **OUT, **TABLE),
    ),
    Packed(
        "glm4v",
        tower("glm4v", "Glm4vVisionModel", "Glm4v", **OUT, image_size=64),
        grids=(*GRIDS[:3], (1, 6, 6), (1, 6, 6)),  # its processor makes each frame an image
    ),
)

PIXTRAL = Packed(
    "pixtral",
    lambda: wild(
        hf.PixtralVisionModel._from_config(
            hf.PixtralVisionConfig(
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=DEPTH,
                num_attention_heads=4,
                patch_size=8,
                image_size=96,
            ),
            attn_implementation="sdpa",
        )
    ),
    grids=(*GRIDS[:3], (1, 6, 6), (1, 6, 6)),
    pictures=True,
)
MERGED = (*CASES, PIXTRAL)


def pack(grids: Sequence[tuple[int, int, int]] = GRIDS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Patches ``(N, 3 * 2 * 8 * 8)`` of random pictures, and their grids ``(images, 3)``."""
    sizes = torch.tensor(grids)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(sizes.prod(1).sum()), 384, generator=generator), sizes


def run(model: Any, pixels: Tensor, grids: Tensor) -> tuple[Tensor, ...]:
    """Patches ``(N, C)``, merged cells ``(N / 4, D)``, and those of deepstack; Pixtral's patches
    twice, as it joins no cells.
    """
    if pixels.dim() == 4:
        return (model(pixels, image_sizes=grids).last_hidden_state[0],) * 2
    out = model(pixels, grid_thw=grids)
    return out.last_hidden_state, out.pooler_output, *(getattr(out, "deepstack_features", ()) or ())
