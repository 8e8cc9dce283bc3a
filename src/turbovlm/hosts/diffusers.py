"""diffusers: the transformer blocks of its denoisers."""

from turbovlm.plug.denoiser.row import Denoiser

_M = "diffusers.models"
_UNETS = (
    f"{_M}.unets.unet_2d_condition.UNet2DConditionModel",
    f"{_M}.controlnets.controlnet.ControlNetModel",
)
_BASIC = f"{_M}.attention.BasicTransformerBlock"
_FLUX = f"{_M}.transformers.transformer_flux"

DENOISERS = (
    Denoiser(
        _BASIC,
        _UNETS,
        attention=("attn1", "attn2"),
        feed_forward=("ff",),
        latent="sample",
        left="convolutions; attention outside transformer blocks",
        example="stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    Denoiser(
        _BASIC,
        (f"{_M}.unets.unet_motion_model.UNetMotionModel",),
        attention=("attn1", "attn2"),
        feed_forward=("ff",),
        latent="sample",
        video=True,
        skip=("motion_modules",),
        left="convolutions; attention over time",
        example="guoyww/animatediff-motion-adapter-v1-5-2",
    ),
    Denoiser(
        _BASIC,
        (
            f"{_M}.transformers.pixart_transformer_2d.PixArtTransformer2DModel",
            f"{_M}.transformers.dit_transformer_2d.DiTTransformer2DModel",
        ),
        attention=("attn1", "attn2"),
        feed_forward=("ff",),
        patch="config.patch_size",
        left="nothing",
        example="PixArt-alpha/PixArt-Sigma-XL-2-512-MS",
    ),
    Denoiser(
        f"{_M}.attention.JointTransformerBlock",
        (f"{_M}.transformers.transformer_sd3.SD3Transformer2DModel",),
        attention=("attn", "attn2"),
        feed_forward=("ff",),
        patch="config.patch_size",
        left="the prompt's tokens",
        example="stabilityai/stable-diffusion-3.5-medium",
    ),
    Denoiser(
        f"{_FLUX}.FluxTransformerBlock",
        (f"{_FLUX}.FluxTransformer2DModel",),
        attention=("attn",),
        feed_forward=("ff",),
        ids="img_ids",
        clock=1.0,
        follow=("image_rotary_emb",),
        restored=(0, 2),
        prompt_first=True,
        left="the prompt's tokens; samples attend one by one",
        example="black-forest-labs/FLUX.1-dev",
    ),
    Denoiser(
        f"{_FLUX}.FluxSingleTransformerBlock",
        (f"{_FLUX}.FluxTransformer2DModel",),
        attention=("attn",),
        whole=True,
        ids="img_ids",
        clock=1.0,
        follow=("image_rotary_emb",),
        prompt_first=True,
        left="the prompt's tokens; samples attend one by one",
        example="black-forest-labs/FLUX.1-dev",
    ),
)
