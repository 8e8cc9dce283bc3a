"""A running pipeline says whether its denoiser's batch is the halves of guidance."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_motion_model import MotionAdapter, UNetMotionModel
from diffusers.pipelines.animatediff.pipeline_animatediff import AnimateDiffPipeline
from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.pag.pipeline_pag_sd import StableDiffusionPAGPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

import turbovlm
from tests.hosts import denoisers
from tests.plug.denoiser.test_pipelines import PROMPT, draw
from turbovlm import MergeRestore
from turbovlm.api import Run
from turbovlm.errors import AlreadyApplied, NotApplied, UnsupportedInput
from turbovlm.plug.denoiser.run import PipelineRun
from turbovlm_lab import painter

SOME = MergeRestore(ratio=0.4)
OTHER = "a small blue star at the centre"


@pytest.fixture
def pipe() -> Any:
    """The untrained painter, small."""
    torch.manual_seed(0)
    pipe = painter.build_painter()
    denoisers.wild(pipe.unet)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def halves_share(run: Run) -> bool:
    """Whether both halves of the last step's batch were merged by one plan."""
    folds = [m.fold for m in run.moves if m.fold is not None]
    assert folds
    return all(torch.equal(*f.owner.chunk(2)) for f in folds)


def draw_two(pipe: Any, guidance: float) -> np.ndarray[Any, Any]:
    """Two prompts from the noise that `draw` draws one of."""
    given = {"num_inference_steps": 2, "guidance_scale": guidance, "output_type": "np"}
    same = [torch.Generator().manual_seed(0) for _ in range(2)]
    return pipe([PROMPT, OTHER], generator=same, **given).images


def test_the_pipeline_is_asked(pipe: Any) -> None:
    turbovlm.apply(pipe, SOME)
    with turbovlm.recording(pipe) as run:
        guided = draw(pipe)
        assert halves_share(run)
        both = draw_two(pipe, 1.0)
        assert not halves_share(run)
        every = draw_two(pipe, 3.0)
        assert halves_share(run)
    alone = draw(pipe, guidance_scale=1.0)
    turbovlm.remove(pipe)
    np.testing.assert_allclose(both[:1], alone, atol=1e-4)  # whatever stands beside it
    np.testing.assert_allclose(every[:1], guided, atol=1e-4)
    for told, expected in ((True, guided), (False, None)):
        with turbovlm.applied(pipe, MergeRestore(ratio=0.4, guidance=told)):
            found = draw(pipe)
        assert np.array_equal(found, guided) == (expected is not None)
    assert not np.allclose(guided, draw(pipe))


def test_guidance_that_ends_in_the_middle(pipe: Any) -> None:
    def end(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            pipe._guidance_scale = 1.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[1]
        return values

    def draw_ended() -> np.ndarray[Any, Any]:
        prompts = {"prompt": [PROMPT, OTHER], "num_inference_steps": 2, "output_type": "np"}
        same = [torch.Generator().manual_seed(0) for _ in range(2)]
        return pipe(
            **prompts,
            guidance_scale=3.0,
            generator=same,
            callback_on_step_end=end,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        ).images

    plain = draw_ended()
    with turbovlm.applied(pipe, SOME) as run:
        merged = draw_ended()
        assert run.moves[0].fold is not None
        assert run.moves[0].fold.owner.shape[0] == 2
        assert not halves_share(run)  # the second step: two prompts, no halves
    assert not np.allclose(merged, plain)


def test_compiled_denoisers_are_told_too(pipe: Any) -> None:
    turbovlm.apply(pipe, SOME)
    guided, alone = draw(pipe), draw(pipe, guidance_scale=1.0)
    whole = pipe.unet
    torch._dynamo.reset()
    pipe.unet = torch.compile(whole, fullgraph=True, backend="eager")
    np.testing.assert_allclose(draw(pipe), guided, atol=1e-4)
    np.testing.assert_allclose(draw(pipe, guidance_scale=1.0), alone, atol=1e-4)
    np.testing.assert_allclose(draw(pipe), guided, atol=1e-4)
    torch._dynamo.reset()


def test_perturbed_attention_is_no_half(pipe: Any) -> None:
    parts = {**pipe.components, "requires_safety_checker": False}
    other: Any = StableDiffusionPAGPipeline(**parts, pag_applied_layers="mid")
    other.set_progress_bar_config(disable=True)
    setting = MergeRestore(ratio=0.4, proportional=False)
    plain = draw(other, pag_scale=2.0)
    with turbovlm.applied(other, setting) as run:
        merged = draw(other, pag_scale=2.0)  # without the prompt, with it, perturbed
        assert run.moves[0].fold is not None
        assert run.moves[0].fold.owner.shape[0] == 3
        draw(other, pag_scale=2.0, guidance_scale=1.0)  # with the prompt, perturbed
        assert not halves_share(run)
    assert not np.allclose(merged, plain)


def test_a_controlnet_in_guess_mode_sees_no_half(pipe: Any) -> None:
    net: Any = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16))
    denoisers.wild(net)
    parts = {**pipe.components, "controlnet": net}
    steered: Any = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    steered.set_progress_bar_config(disable=True)
    hint = Image.fromarray(np.random.RandomState(1).randint(0, 255, (64, 64, 3), np.uint8))
    given = {"num_inference_steps": 1, "guidance_scale": 3.0, "output_type": "np"}

    def draw_two(guess: bool) -> None:
        same = [torch.Generator().manual_seed(0) for _ in range(2)]
        steered([PROMPT, OTHER], image=[hint] * 2, generator=same, guess_mode=guess, **given)

    turbovlm.apply(steered, SOME)
    turbovlm.apply(net, SOME)
    with turbovlm.recording(net) as run, turbovlm.recording(steered.unet) as drawn:
        for guess in (False, True):
            draw_two(guess)
            assert halves_share(run) != guess
            assert halves_share(drawn)


def test_the_class_of_a_pipeline(pipe: Any, tmp_path: Any) -> None:
    plain = draw(pipe)
    turbovlm.apply(pipe, SOME)
    merged = draw(pipe)
    cls = type(pipe)
    assert issubclass(cls, StableDiffusionPipeline)
    assert cls is not StableDiffusionPipeline
    assert (cls.__name__, cls.__module__) == (
        StableDiffusionPipeline.__name__, StableDiffusionPipeline.__module__,
    )  # fmt: skip
    pipe.save_pretrained(tmp_path)
    read: Any = StableDiffusionPipeline.from_pretrained(tmp_path)
    read.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(read), plain)
    twin = copy.deepcopy(pipe)
    turbovlm.remove(pipe)
    assert type(pipe) is StableDiffusionPipeline
    assert np.array_equal(draw(pipe), plain)
    assert np.array_equal(draw(twin), merged)
    turbovlm.remove(twin)
    assert type(twin) is StableDiffusionPipeline
    assert np.array_equal(draw(twin), plain)


def test_two_pipelines_with_one_denoiser(pipe: Any) -> None:
    image = Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), np.uint8))
    given = {"image": image, "strength": 1.0}
    turbovlm.apply(pipe, SOME)
    other: Any = AutoPipelineForImage2Image.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    turbovlm.apply(other, SOME)  # the denoiser is patched, the pipeline is not yet
    with turbovlm.recording(other) as run:
        draw(other, **given)
        assert halves_share(run)
        draw(pipe)
        assert halves_share(run)
    with pytest.raises(AlreadyApplied):
        turbovlm.apply(other, MergeRestore(ratio=0.2))
    turbovlm.remove(other)
    assert not any("Turbo" in c.__name__ for p in (pipe, other) for c in type(p).__mro__)
    with pytest.raises(NotApplied):
        turbovlm.remove(pipe)


def test_a_call_that_raises_leaves_no_guidance_behind(pipe: Any) -> None:
    turbovlm.apply(pipe, SOME)

    def stop(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, callback_on_step_end=stop)
    text = denoisers.noise(2, 8, pipe.unet.config.cross_attention_dim)
    latent = denoisers.noise(1, 4, 32, 32).repeat(2, 1, 1, 1)
    with torch.no_grad(), turbovlm.recording(pipe) as run:
        pipe.unet(latent, 500, text)
        assert not halves_share(run)


def test_how_many_pictures_a_call_draws() -> None:
    embedded = torch.zeros(4, 7, 8)
    for given, pictures in (
        ({"prompt": "one"}, 1),
        ({"prompt": ["a", "b"], "num_images_per_prompt": 3}, 6),
        ({"prompt": ["a"], "num_videos_per_prompt": 2}, 2),
        ({"prompt": None, "prompt_embeds": embedded, "num_images_per_prompt": None}, 4),
        ({"image": embedded}, None),
    ):
        run = PipelineRun.of(given)
        assert run.pictures == pictures
        assert not run.guided(2 * (pictures or 1))  # it has not said that it guides
        run.guidance = True
        assert run.guided(2 * (pictures or 1)) == (pictures is not None)
        assert not run.guided(3 * (pictures or 1))


def test_video(pipe: Any) -> None:
    adapter = MotionAdapter(
        block_out_channels=tuple(pipe.unet.config.block_out_channels),
        motion_layers_per_block=pipe.unet.config.layers_per_block,
        motion_norm_num_groups=pipe.unet.config.norm_num_groups,
        motion_num_attention_heads=4,
        use_motion_mid_block=False,
    )
    parts = {n: pipe.components[n] for n in ("vae", "text_encoder", "tokenizer", "scheduler")}
    turbovlm.apply(pipe, SOME)
    with pytest.raises(UnsupportedInput, match=r"remove\(model\), convert, then turbovlm.apply"):
        AnimateDiffPipeline(**parts, unet=pipe.unet, motion_adapter=adapter)
    assert pipe.unet.attn_processors
    turbovlm.remove(pipe)
    video: Any = AnimateDiffPipeline(**parts, unet=pipe.unet, motion_adapter=adapter)
    video.set_progress_bar_config(disable=True)
    denoisers.wild(video.unet)
    assert isinstance(video.unet, UNetMotionModel)

    def frames() -> np.ndarray[Any, Any]:
        generator = torch.Generator().manual_seed(0)
        return video(
            PROMPT, num_frames=3, num_inference_steps=2, guidance_scale=3.0,
            generator=generator, output_type="np",
        ).frames  # fmt: skip

    plain = frames()
    with turbovlm.applied(video, SOME) as run:
        merged = frames()
        assert run.moves[0].fold is not None
        assert run.moves[0].fold.owner.shape[0] == 6  # three frames, twice
        assert halves_share(run)
        assert not any("motion_modules" in m.name for m in run.moves)
    assert not np.allclose(merged, plain)
    assert np.array_equal(frames(), plain)
