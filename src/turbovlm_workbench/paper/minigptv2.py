"""MiniGPT-v2: EVA-ViT-g, four neighbouring tokens joined into one, and LLaMA-2-chat.

Both halves are transformers' own: `Blip2VisionModel` is the same EVA-ViT-g with LAVIS's
``ln_vision`` at its end, and `LlamaForCausalLM` generates. Only what lies between is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from turbovlm.config import Merge
from turbovlm.errors import ConfigError, UnsupportedInput, require
from turbovlm.maths.schedule import check_depth, lengths

require("transformers", "hf")
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast  # noqa: E402

IMAGE_TOKEN = -1
"""Stands in ``input_ids`` for the image, once per prompt; no vocabulary has it."""

# The default spread of BLIP-2's vision weights, 1e-10, makes random models constant.
VISION: dict[str, Any] = {"image_size": 448, "initializer_range": 0.02}
TEXT: dict[str, Any] = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
LN_VISION_EPS = 1e-5  # LAVIS's ln_vision has torch's default, not the 1e-6 of the blocks


class MiniGPTv2Config(PreTrainedConfig):
    """Sizes of the model; without arguments, the published ones.

    Args:
        vision_config: a `Blip2VisionConfig`, or what differs from the published one: EVA-ViT-g
            with 39 blocks, width 1408, patches of 14 px, images of 448 px.
        text_config: a `LlamaConfig`, or what differs from LLaMA-2-7B.
        join: how many neighbouring patch tokens become one token of the language model.

    Raises:
        ConfigError: if no square patches fit the images, or their number is not a multiple of
            ``join``.
    """

    model_type = "minigptv2"
    # the name that all supported versions read; newer ones declare it as a property
    sub_configs = {  # pyright: ignore
        "vision_config": Blip2VisionConfig,
        "text_config": LlamaConfig,
    }

    vision_config: Any = None
    text_config: Any = None
    join: int = 4

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = Blip2VisionConfig(**{**VISION, **(self.vision_config or {})})
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = LlamaConfig(**{**TEXT, **(self.text_config or {})})
        super().__post_init__(**kwargs)
        size, patch = self.vision_config.image_size, self.vision_config.patch_size
        if not isinstance(size, int) or not isinstance(patch, int) or size < 1 or size % patch:
            raise ConfigError(
                f"EVA-ViT-g cuts square images into square patches: image_size {size} must be a "
                f"multiple of patch_size {patch}, one number each"
            )
        if self.join < 1 or self.patch_tokens % self.join:
            raise ConfigError(
                f"{self.patch_tokens} patch tokens are not a multiple of join {self.join}: change "
                "image_size or patch_size of the vision_config, or join"
            )

    @property
    def patch_tokens(self) -> int:
        """Patch tokens of an unmerged image, without cls."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2


class MiniGPTv2ForConditionalGeneration(PreTrainedModel):
    """Image and instruction in, text out; see `paper.minigptv2_prompt` for the inputs.

    ``turbovlm.apply(model, turbovlm.Merge(r=12))`` merges in ``vision_model``; the prompt stays
    the same, since its one `IMAGE_TOKEN` makes room for as many tokens as the tower leaves.
    """

    config: MiniGPTv2Config
    config_class = MiniGPTv2Config
    turbovlm_reads = "tokens"  # joined by four and handed to the language model
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["Blip2EncoderLayer", "LlamaDecoderLayer"]

    def __init__(self, config: MiniGPTv2Config) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision_model = Blip2VisionModel(vision)
        self.vision_model.post_layernorm.eps = LN_VISION_EPS
        self.projection = nn.Linear(config.join * vision.hidden_size, text.hidden_size)
        self.language_model = LlamaForCausalLM(text)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.language_model.get_input_embeddings()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens of the language model.

        Args:
            pixel_values: normalised images (B, 3, S, S), S the configuration's ``image_size``.

        Returns:
            (B, P / join, hidden size of the language model), P the patch tokens that are left:
            tokens ``join * i ... join * i + join - 1`` side by side are token i.

        Raises:
            UnsupportedInput: for another image size, or if P is not a multiple of ``join``.
        """
        size = self.config.vision_config.image_size
        if pixel_values.dim() != 4 or pixel_values.shape[1:] != (3, size, size):
            raise UnsupportedInput(
                f"expected pixel_values (batch, 3, {size}, {size}), got "
                f"{tuple(pixel_values.shape)}: resize the images to {size} x {size} pixels"
            )
        tokens = self.vision_model(pixel_values).last_hidden_state[:, 1:]
        batch, patches, width = tokens.shape
        join = self.config.join
        if patches % join:
            raise UnsupportedInput(
                f"{patches} patch tokens are left, which is not a multiple of the {join} that are "
                "joined: apply a setting that model.check_merge(setting) accepts"
            )
        return self.projection(tokens.reshape(batch, patches // join, join * width))

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits over the whole sequence, the V visual tokens in place of the placeholder.

        Args:
            pixel_values: (B, 3, S, S).
            input_ids: (B, T), each row with one `IMAGE_TOKEN`.
            attention_mask: (B, T), 0 where padded; default: nothing is padded.
            labels: (B, T), -100 where nothing is to be learned; visual tokens never count.
            **kwargs: of `LlamaForCausalLM`'s forward.

        Returns:
            ``logits`` (B, T - 1 + V, vocabulary), and ``loss`` if there are labels.

        Raises:
            UnsupportedInput: see `get_image_features`; also for prompts without exactly one
                placeholder and for shapes that do not belong together.
        """
        embeds, mask, labels = self._insert(pixel_values, input_ids, attention_mask, labels)
        return self.language_model(
            inputs_embeds=embeds, attention_mask=mask, labels=labels, **kwargs
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue the prompts; greedy unless ``kwargs`` say otherwise.

        Args:
            pixel_values: (B, 3, S, S).
            input_ids: (B, T), padded on the left, each row with one `IMAGE_TOKEN`.
            attention_mask: (B, T), 0 where padded; default: nothing is padded.
            **kwargs: of `LlamaForCausalLM.generate`, e.g. ``max_new_tokens``, ``num_beams``.

        Returns:
            What Llama's own ``generate`` returns: new tokens (B, at most ``max_new_tokens``).

        Raises:
            UnsupportedInput: see `forward`; also for prompts padded on the right.
        """
        if attention_mask is not None and not attention_mask[:, -1].all():
            raise UnsupportedInput(
                "the last position of a prompt is padding: pad on the left to generate"
            )
        embeds, mask, _ = self._insert(pixel_values, input_ids, attention_mask, None)
        llama: Any = self.language_model
        return llama.generate(inputs_embeds=embeds, attention_mask=mask, **kwargs)

    def check_merge(self, config: Merge) -> None:
        """Refuse a setting after which the patch tokens cannot be joined without a remainder.

        Raises:
            ConfigError: naming the tokens left and the nearest settings that fit.
        """
        if config.speedup is not None:
            raise ConfigError("MiniGPT-v2 joins four tokens into one: give r in place of speedup")
        check_depth(config.schedule, self.config.vision_config.num_hidden_layers)
        left, join = self._patch_tokens_left(config), self.config.join
        if left % join:
            raise ConfigError(
                f"this setting leaves {left} patch tokens, {left % join} more than a multiple of "
                f"{join}, and the model joins {join} tokens into one: use "
                + " or ".join(self._fixes(config, left))
            )

    def _patch_tokens_left(self, config: Merge) -> int:
        depth = self.config.vision_config.num_hidden_layers
        return lengths(config.schedule, self.config.patch_tokens + 1, prefix=1, depth=depth)[-1] - 1

    def _fixes(self, config: Merge, left: int) -> Iterator[str]:
        """The nearest settings that fit: by ``r``, and by the floor where ``r`` is not one int."""
        join = self.config.join
        r = config.r
        if isinstance(r, int):
            yield from self._nearest(config, r, lambda value: value, "r={}")
        if isinstance(r, tuple):
            named = "{} as the last entry of r"
            yield from self._nearest(config, r[-1], lambda value: (*r[:-1], value), named)
        if not isinstance(r, int) or config.min_tokens:
            # one floor fits always: merging passed this length on its way down to `left`
            floor = f"min_tokens={left - left % join + join + 1}"
            yield floor + (" without the paper's preset" if config.preset is not None else "")

    def _nearest(
        self, config: Merge, r: int, place: Callable[[int], Any], named: str
    ) -> Iterator[str]:
        for candidates in (range(r - 1, -1, -1), range(r + 1, self.config.patch_tokens + 1)):
            for value in candidates:
                if self._patch_tokens_left(replace(config, r=place(value))) % self.config.join == 0:
                    yield named.format(value)
                    break

    def _insert(
        self, pixels: Tensor, ids: Tensor, mask: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Embeddings (B, T - 1 + V, C), mask and labels with room for the V visual tokens.

        Every row grows by the same number, so the shapes follow from the inputs' shapes alone.
        """
        _check_prompts(pixels, ids, mask, labels)
        visual = self.get_image_features(pixels)
        count = visual.shape[1]
        place = (ids == IMAGE_TOKEN).int().argmax(1, keepdim=True)
        positions = torch.arange(ids.shape[1] - 1 + count, device=ids.device)
        # where a position of the long sequence comes from: all visual tokens from the placeholder
        source = positions - (positions - place).clamp(0, count - 1)
        ids = ids.gather(1, source)
        is_image = ids == IMAGE_TOKEN
        embeds = self.get_input_embeddings()(ids.clamp(min=0))
        embeds = embeds.masked_scatter(is_image[..., None], visual.to(embeds))
        if mask is not None:
            mask = mask.gather(1, source)
        if labels is not None:
            labels = labels.gather(1, source).masked_fill(is_image, -100)
        return embeds, mask, labels


def _check_prompts(pixels: Tensor, ids: Tensor, mask: Tensor | None, labels: Tensor | None) -> None:
    for name, tensor in (("attention_mask", mask), ("labels", labels)):
        if tensor is not None and tensor.shape != ids.shape:
            raise UnsupportedInput(
                f"{name} {tuple(tensor.shape)} must have the shape of input_ids {tuple(ids.shape)}"
            )
    if ids.dim() != 2 or len(ids) != len(pixels):
        raise UnsupportedInput(
            f"input_ids {tuple(ids.shape)} must be (batch, tokens) with one row for each of the "
            f"{len(pixels)} images: repeat the image for every question about it"
        )
    if ids.is_meta:
        return  # shapes alone (counting operations): there are no ids to look at
    counts = (ids == IMAGE_TOKEN).sum(1).tolist()
    if any(count != 1 for count in counts):
        raise UnsupportedInput(
            f"every prompt needs one image placeholder ({IMAGE_TOKEN}), these have "
            f"{counts}: build input_ids with minigptv2_prompt.prepare"
        )


AutoConfig.register(MiniGPTv2Config.model_type, MiniGPTv2Config, exist_ok=True)
AutoModel.register(MiniGPTv2Config, MiniGPTv2ForConditionalGeneration, exist_ok=True)
