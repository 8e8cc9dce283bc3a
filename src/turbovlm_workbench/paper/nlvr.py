"""BLIP for NLVR2: is a statement about two images true?

The published model (BLIP, ICML 2022, appendix) is BLIP's vision encoder, which sees both images,
and BERT with twin cross-attention: every text layer attends to each image with weights of its own
and then joins what it found. Everything but the twin is the code of transformers, so that
`turbovlm.apply` finds the vision encoder by its usual row.

    model = BlipForNlvr.from_pretrained(folder)   # a folder that nlvr_checkpoint wrote
    turbovlm.apply(model, turbovlm.Merge(r=35))
    true = model(pixel_values, input_ids, attention_mask).logits.argmax(-1) == 1
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from turbovlm.errors import ConfigError, InputError, require

require("transformers", "hf")

from transformers import (  # noqa: E402 - a missing transformers has named its extra by now
    AutoConfig,
    AutoModel,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput  # noqa: E402
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention  # noqa: E402

IMAGES = 2
ANSWERS = 2  # false, true

# Where the published model differs from transformers' defaults: its LayerNorm's epsilon and its
# heads. The default spread of BLIP's vision weights, 1e-10, makes random models constant.
VISION: dict[str, Any] = {"layer_norm_eps": 1e-6, "initializer_range": 0.02}
# is_decoder would build transformers' single cross-attention, only for the twin to replace it
TEXT: dict[str, Any] = {"num_attention_heads": 12, "is_decoder": False}


class NlvrConfig(PreTrainedConfig):
    """The sizes of a `BlipForNlvr`; without arguments, those of the published base model.

    Args:
        vision_config: a `BlipVisionConfig`, or what differs from the published one.
        text_config: a `BlipTextConfig`, or what differs from the published one.
        enc_token_id: the token [ENC], which stands first in every statement. The published
            vocabulary is bert-base-uncased, then [DEC] (30522) and [ENC] (30523).
        initializer_range: spread of new weights.

    Raises:
        ConfigError: if no square patches fit the images, or [ENC] is not in the vocabulary.
    """

    model_type = "blip-nlvr"
    # the name that all supported versions read; newer ones declare it as a property
    sub_configs = {  # pyright: ignore
        "vision_config": BlipVisionConfig,
        "text_config": BlipTextConfig,
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    enc_token_id: int = 30523
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = BlipVisionConfig(**{**VISION, **(self.vision_config or {})})
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = BlipTextConfig(**{**TEXT, **(self.text_config or {})})
        vision, text = self.vision_config, self.text_config
        text.encoder_hidden_size = vision.hidden_size
        super().__post_init__(**kwargs)
        size, patch = vision.image_size, vision.patch_size
        if not isinstance(size, int) or not isinstance(patch, int) or size < 1 or size % patch:
            raise ConfigError(
                f"BLIP cuts square images into square patches: image_size {size} must be a "
                f"multiple of patch_size {patch}, one number each"
            )
        if self.enc_token_id >= text.vocab_size:
            raise ConfigError(
                f"enc_token_id {self.enc_token_id} is outside the vocabulary of {text.vocab_size} "
                "tokens: give the id of [ENC] in your tokenizer"
            )


class TwinOutput(nn.Module):
    """Projects what each image gave, joins the two, adds the residual, normalises.

    Args:
        config: of the text encoder.
        learned: join by a linear layer on both projections side by side, instead of their mean.
    """

    def __init__(self, config: BlipTextConfig, learned: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.merge_layer = nn.Linear(2 * width, width) if learned else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, first: Tensor, second: Tensor, residual: Tensor) -> Tensor:
        """Three times ``(B, L, C)`` -> ``(B, L, C)``."""
        first, second = self.dense0(first), self.dense1(second)
        if self.merge_layer is None:
            joined = (first + second) / 2
        else:
            joined = self.merge_layer(torch.cat((first, second), dim=-1))
        return self.LayerNorm(self.dropout(joined) + residual)


class TwinCrossAttention(nn.Module):
    """Stands in a text layer for BLIP's cross-attention, and attends to two images."""

    def __init__(self, config: BlipTextConfig, learned: bool) -> None:
        super().__init__()
        self.self0 = BlipTextSelfAttention(config, is_cross_attention=True)
        self.self1 = BlipTextSelfAttention(config, is_cross_attention=True)
        self.output = TwinOutput(config, learned)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, None]:
        """Text ``(B, L, C)`` and images ``(B, 2, N, D)`` -> text; no attention map is returned."""
        first, second = encoder_hidden_states.unbind(1)
        context0, _ = self.self0(hidden_states, encoder_hidden_states=first)
        context1, _ = self.self1(hidden_states, encoder_hidden_states=second)
        return self.output(context0, context1, hidden_states), None


class BlipForNlvr(PreTrainedModel):
    """Two images and a statement -> false or true.

    The first half of the text layers takes the mean of the two images, the second half joins
    them by a learned layer: published as "from layer 6 on" for the 12 layers of the base model.
    """

    config_class = NlvrConfig
    turbovlm_reads = "tokens"  # by cross-attention
    config: NlvrConfig
    base_model_prefix = "blip_nlvr"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def __init__(self, config: NlvrConfig) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        assert isinstance(vision, BlipVisionConfig)
        assert isinstance(text, BlipTextConfig)
        self.image_size = vision.image_size
        self.vision_model = BlipVisionModel(vision)
        self.text_encoder = BlipTextModel(text, add_pooling_layer=False)
        layers: Any = self.text_encoder.encoder.layer
        for index, layer in enumerate(layers):
            layer.crossattention = TwinCrossAttention(text, learned=index >= len(layers) // 2)
        width = text.hidden_size
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, ANSWERS))
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Judge ``B`` statements, each about a pair of images.

        Args:
            pixel_values: ``(B, 2, 3, S, S)``, the left image first, as BLIP's image processor
                prepares it, with ``S`` the configured image size.
            input_ids: ``(B, L)``, as a BERT tokenizer gives them, padded on the right. The first
                token ([CLS]) is replaced by [ENC].
            attention_mask: ``(B, L)``, 1 for words and 0 for padding.
            labels: ``(B,)``, 1 where the statement is true, 0 where it is false.

        Returns:
            ``logits``, ``(B, 2)`` for false and true, and the cross-entropy ``loss`` where labels
            are given.

        Raises:
            InputError: for another shape, before anything is computed.
        """
        self._check(pixel_values, input_ids, attention_mask)
        pairs = len(pixel_values)
        # one batch, as published: all first images, then all second ones
        images = self.vision_model(pixel_values.transpose(0, 1).flatten(0, 1)).last_hidden_state
        input_ids = input_ids.clone()
        input_ids[:, 0] = self.config.enc_token_id
        # The layers hand on what they get as images: twins take both in one tensor. No image
        # has padding, so that there is no mask for them.
        text = self.text_encoder(
            input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=images.unflatten(0, (IMAGES, pairs)).transpose(0, 1),
        ).last_hidden_state
        logits = self.cls_head(text[:, 0])
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _check(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None
    ) -> None:
        size = self.image_size
        expected = (IMAGES, 3, size, size)
        if pixel_values.ndim != 5 or pixel_values.shape[1:] != expected:
            raise InputError(
                f"pixel_values must be (B, 2, 3, {size}, {size}), a pair of {size} px images per "
                f"statement, got {tuple(pixel_values.shape)}: resize the images to {size} px, or "
                "convert the checkpoint with another image size"
            )
        if input_ids.ndim != 2 or len(input_ids) != len(pixel_values):
            raise InputError(
                f"input_ids must be (B, L), one statement per pair of images, got "
                f"{tuple(input_ids.shape)} for {len(pixel_values)} pairs"
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise InputError(
                f"attention_mask must be (B, L) as input_ids are, got "
                f"{tuple(attention_mask.shape)} for {tuple(input_ids.shape)}: tokenize both at once"
            )


AutoConfig.register(NlvrConfig.model_type, NlvrConfig, exist_ok=True)
AutoModel.register(NlvrConfig, BlipForNlvr, exist_ok=True)
