"""Whole pipelines, and what people add to them: ControlNet, LoRA, offloading, other tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.auto_pipeline import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
)
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

import turbovlm
from tests.hosts import denoisers
from tests.plug.denoiser.test_apply import marks
from turbovlm import MergeRestore
from turbovlm.errors import AlreadyApplied, ConfigError, NotApplied, UnknownArchitecture
from turbovlm_lab import painter

PROMPT = "a large red circle at the top left, a small blue star at the centre"
SOME = MergeRestore(ratio=0.4)


@pytest.fixture
def pipe() -> Any:
    """The untrained painter: every part of Stable Diffusion, small."""
    torch.manual_seed(0)
    pipe = painter.build_painter()
    denoisers.wild(pipe.unet)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, **more: Any) -> np.ndarray[Any, Any]:
    given = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"} | more
    return pipe(PROMPT, generator=torch.Generator().manual_seed(0), **given).images


def test_a_pipeline_as_a_whole(pipe: Any) -> None:
    plain = draw(pipe)
    with turbovlm.applied(pipe, SOME) as run:
        merged = draw(pipe)
    assert {m.tokens for m in run.moves} == {1024, 256, 64}
    assert not np.allclose(merged, plain)
    assert np.array_equal(draw(pipe), plain)
    assert marks(pipe.unet) == []
    turbovlm.apply(pipe, SOME)
    assert np.array_equal(draw(pipe), merged)
    with pytest.raises(AlreadyApplied):
        turbovlm.apply(pipe.unet, MergeRestore(ratio=0.2))
    turbovlm.remove(pipe.unet)
    assert type(pipe) is StableDiffusionPipeline
    assert np.array_equal(draw(pipe), plain)
    with pytest.raises(NotApplied):
        turbovlm.remove(pipe)


def test_other_tasks_of_the_same_parts(pipe: Any) -> None:
    image = Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), np.uint8))
    mask = Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16))
    for kind, more in (
        (AutoPipelineForImage2Image, {"image": image, "strength": 1.0}),
        (AutoPipelineForInpainting, {"image": image, "mask_image": mask, "strength": 1.0}),
    ):
        other: Any = kind.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        plain = draw(other, **more)
        with turbovlm.applied(other, SOME):
            merged = draw(other, **more)
        assert not np.allclose(merged, plain)
        assert np.array_equal(draw(other, **more), plain)


def test_controlnet(pipe: Any) -> None:
    net: Any = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16))
    denoisers.wild(net)
    parts = {**pipe.components, "controlnet": net}
    steered: Any = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    steered.set_progress_bar_config(disable=True)
    hint = Image.fromarray(np.random.RandomState(1).randint(0, 255, (64, 64, 3), np.uint8))
    plain = draw(steered, image=hint)
    with turbovlm.applied(steered, SOME):
        assert marks(net) == []  # the denoiser alone
        merged = draw(steered, image=hint)
        turbovlm.apply(net, SOME)
        both = draw(steered, image=hint)
        turbovlm.remove(net)
    assert not np.allclose(merged, plain)
    assert not np.allclose(both, merged)
    assert np.array_equal(draw(steered, image=hint), plain)


def test_lora(pipe: Any) -> None:
    peft = pytest.importorskip("peft", reason="LoRA needs peft")
    lora = peft.LoraConfig(r=2, target_modules=["to_k", "to_q", "to_v", "to_out.0"])
    plain = draw(pipe)
    pipe.unet.add_adapter(lora)
    with torch.no_grad():
        for name, weight in pipe.unet.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    adapted = draw(pipe)
    assert not np.allclose(adapted, plain)
    with turbovlm.applied(pipe, SOME) as run:
        merged = draw(pipe)
    assert run.moves[0].fold is not None
    assert not np.allclose(merged, adapted)
    # keys are measured with the adapter: by calling the layer, which reading weights would not do
    pipe.unet.fuse_lora()
    with turbovlm.applied(pipe, SOME) as fused:
        draw(pipe)
    assert fused.moves[0].fold is not None
    same = (run.moves[0].fold.owner == fused.moves[0].fold.owner).float().mean()
    assert same > 0.95


def test_offloaded_weights(pipe: Any) -> None:
    from accelerate.big_modeling import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    plain = draw(pipe)
    turbovlm.apply(pipe, SOME)
    merged = draw(pipe)
    turbovlm.remove(pipe)
    cpu_offload(pipe.unet, torch.device("cpu"))  # every layer's weights come with its call
    assert all(p.device.type == "meta" for p in pipe.unet.parameters())
    with turbovlm.applied(pipe, SOME):
        np.testing.assert_allclose(draw(pipe), merged, atol=1e-4)
    np.testing.assert_allclose(draw(pipe), plain, atol=1e-4)
    remove_hook_from_submodules(pipe.unet)


def test_saved_while_applied(pipe: Any, tmp_path: Path) -> None:
    plain = draw(pipe)
    turbovlm.apply(pipe, SOME)
    merged = draw(pipe)
    pipe.save_pretrained(tmp_path)
    read: Any = StableDiffusionPipeline.from_pretrained(tmp_path)
    read.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(read), plain)
    turbovlm.apply(read, SOME)
    assert np.array_equal(draw(read), merged)


def test_pipelines_that_hold_nothing_to_merge(pipe: Any) -> None:
    with pytest.raises(UnknownArchitecture, match=r"it holds .*CLIPTextModel"):
        turbovlm.apply(_Parts(text_encoder=pipe.text_encoder), SOME)
    with pytest.raises(ConfigError, match="MergeRestore"):
        turbovlm.apply(pipe, turbovlm.Merge(r=4))
    assert marks(pipe.unet) == []


class _Parts:
    """A pipeline, to turbovlm: something with components."""

    def __init__(self, **components: Any) -> None:
        self.components = components


@pytest.mark.parametrize("modules", ["self_attention", "all"])
def test_equal_to_tomesd(modules: str) -> None:
    """Its own metric and destinations: tokens that enter the block, corners of 2 x 2 cells."""
    tomesd = pytest.importorskip("tomesd", reason="the peer that this is compared with")
    case = denoisers.unet(32, 32)
    model: UNet2DConditionModel = case.model
    every = modules == "all"
    off = {} if every else {"cross_attention": 0.0, "feed_forward": 0.0}
    with torch.no_grad():
        plain = case.step()
        tomesd.apply_patch(
            model, ratio=0.5, max_downsample=8, use_rand=False,
            merge_attn=True, merge_crossattn=every, merge_mlp=every,
        )  # fmt: skip
        peer = case.step()
        tomesd.remove_patch(model)
        own = {"ratio": 0.5, "method": "redundancy", "seed": None, **off}
        setting = MergeRestore.from_dict(
            {**own, "preset": {"metric": "token", "restore": "copy"}, "proportional": False}
        )
        with turbovlm.applied(model, setting):
            merged = case.step()
    assert not torch.allclose(peer, plain)
    torch.testing.assert_close(merged, peer, rtol=1e-3, atol=1e-4)
