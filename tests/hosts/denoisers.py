"""Small denoisers of diffusers with random weights, and how to run one step of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from torch import Tensor, nn

Step = Callable[..., Tensor]


@dataclass
class Case:
    """A denoiser and a step on two samples; ``time`` counts as its scheduler does."""

    name: str
    model: Any
    step: Step
    tokens: int  # at the first level
    modules: int  # that merge at every level
    images: int = 2  # in the blocks of a step


def wild(model: nn.Module) -> nn.Module:
    """Weights of unit gain: as they are initialised, attention is all but flat."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(noise * 0.7 / weight.shape[-1] ** 0.5)
            elif weight.dim() == 4:
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(noise * weight[0].numel() ** -0.5)
    return model.eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Seeded standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _or(run: Any, model: Any) -> Any:
    return model if run is None else run  # a compiled module has no truth value


def unet(height: int = 16, width: int = 16, **changes: Any) -> Case:
    """Stable Diffusion's kind of UNet: two levels and a middle."""
    shape: dict[str, Any] = {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    model = wild(UNet2DConditionModel(**(shape | changes)))
    latent, text = noise(2, 4, height, width), noise(2, 7, 24, seed=2)

    def step(
        latent: Tensor = latent,
        time: float = 500,
        text: Tensor = text,
        run: Any = None,
        **more: Any,
    ) -> Tensor:
        return _or(run, model)(latent, torch.tensor(time), text, return_dict=False, **more)[0]

    return Case("unet", model, step, height * width, 21)


def upscaler() -> Case:
    """The x4 upscaler's kind: the first attention of a block reads the prompt too."""
    case = unet(only_cross_attention=True)
    return Case("upscaler", case.model, case.step, 256, 21)


def motion() -> Case:
    """AnimateDiff's kind: two videos of three frames, and blocks that attend over time."""
    model = wild(
        UNetMotionModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion"),
            up_block_types=("CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"),
            cross_attention_dim=24,
            num_attention_heads=4,
            norm_num_groups=8,
            motion_num_attention_heads=4,
        )
    )
    latent, text = noise(2, 4, 16, 16), noise(2, 7, 24, seed=2)
    drift = noise(1, 4, 3, 16, 16, seed=3) * 0.3

    def step(
        latent: Tensor = latent, time: float = 500, text: Tensor = text, run: Any = None
    ) -> Tensor:
        frames = latent.unsqueeze(2) + drift.to(latent)
        prompts = text.repeat_interleave(3, 0)
        return _or(run, model)(frames, torch.tensor(time), prompts, return_dict=False)[0]

    return Case("motion", model, step, 256, 21, images=6)


def sdxl() -> Case:
    """SDXL's kind: several blocks in a row, a prompt's pooled vector and sizes beside it."""
    case = unet(
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        attention_head_dim=(2, 4),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
    )
    plain = case.step
    added = {"text_embeds": noise(2, 16, seed=4), "time_ids": noise(2, 6, seed=5)}

    def step(**given: Any) -> Tensor:
        return plain(added_cond_kwargs=added, **given)

    return Case("sdxl", case.model, step, 256, 33)


def pixart() -> Case:
    """PixArt: a plain transformer with shared adaptive norms."""
    model = wild(
        PixArtTransformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            cross_attention_dim=32,
            caption_channels=24,
            norm_num_groups=8,
        )
    )
    sizes = {"resolution": None, "aspect_ratio": None}
    latent, text = noise(2, 4, 32, 32), noise(2, 7, 24, seed=2)

    def step(
        latent: Tensor = latent, time: float = 500, text: Tensor = text, run: Any = None
    ) -> Tensor:
        times = torch.full((latent.shape[0],), time)
        return _or(run, model)(latent, text, times, added_cond_kwargs=sizes, return_dict=False)[0]

    return Case("pixart", model, step, 256, 6)


def dit() -> Case:
    """DiT: a class instead of a prompt, so that nothing cross-attends."""
    model = wild(
        DiTTransformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_embeds_ada_norm=10,
        )
    )
    latent = noise(2, 4, 32, 32)

    def step(
        latent: Tensor = latent, time: float = 500, text: Tensor | None = None, run: Any = None
    ) -> Tensor:
        times = torch.full((latent.shape[0],), int(time))
        return _or(run, model)(latent, times, torch.tensor([3, 7]), return_dict=False)[0]

    return Case("dit", model, step, 256, 4)


def sd3(**changes: Any) -> Case:
    """Stable Diffusion 3: joint attention with the prompt."""
    model = wild(
        SD3Transformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=24,
            caption_projection_dim=32,
            pooled_projection_dim=16,
            out_channels=4,
            pos_embed_max_size=16,
            **changes,
        )
    )
    latent, text, pooled = noise(2, 4, 32, 32), noise(2, 7, 24, seed=2), noise(2, 16, seed=3)

    def step(
        latent: Tensor = latent, time: float = 500, text: Tensor = text, run: Any = None
    ) -> Tensor:
        times = torch.full((latent.shape[0],), time)
        return _or(run, model)(latent, text, pooled, times, return_dict=False)[0]

    return Case("sd3", model, step, 256, 4)


def sd35() -> Case:
    """Stable Diffusion 3.5 medium: a second attention, and norms on queries and keys."""
    case = sd3(dual_attention_layers=(0,), qk_norm="rms_norm")
    return Case("sd35", case.model, case.step, 256, 5)


def flux() -> Case:
    """Flux: rotary tables over prompt and image, and blocks with parallel branches."""
    model = wild(
        FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
        )
    )
    latent, text, pooled = noise(2, 256, 4), noise(2, 7, 24, seed=2), noise(2, 16, seed=3)
    place = torch.arange(256)
    ids = torch.stack([torch.zeros(256), place // 16, place % 16], -1)

    def step(
        latent: Tensor = latent,
        time: float = 0.5,
        text: Tensor = text,
        run: Any = None,
        **more: Any,
    ) -> Tensor:
        times = torch.full((latent.shape[0],), float(time))
        return _or(run, model)(
            latent,
            text[: len(latent)],
            pooled[: len(latent)],
            times,
            ids,
            torch.zeros(7, 3),
            return_dict=False,
            **more,
        )[0]

    return Case("flux", model, step, 256, 4)


CASES: tuple[Callable[[], Case], ...] = (
    unet, upscaler, motion, sdxl, pixart, dit, sd3, sd35, flux,
)  # fmt: skip
