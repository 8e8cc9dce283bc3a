"""What models of images and text share: a model, its preprocessing and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from turbovlm_workbench.load.loaded import LoadedModel


@dataclass(frozen=True)
class ImageTextModel(LoadedModel):
    """A loaded model of images and text.

    What takes pixels takes them on the model's device and in its number format; texts are plain
    strings. The caller opens ``torch.inference_mode``.

    Args:
        tokenizer: texts to ids, the model's own.
    """

    tokenizer: Any

    def tokens(
        self, texts: Sequence[str], limit: int | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """Texts as one batch on the model's device.

        Args:
            texts: B of them.
            limit: most tokens of a text, what is beyond is cut off; None cuts nothing.
            **options: of the tokenizer.

        Returns:
            ``input_ids`` (B, T), and ``attention_mask`` (B, T), 0 where padded.
        """
        if limit is not None:
            limit = min(limit, self.tokenizer.model_max_length)
            options = {"truncation": True, "max_length": limit, **options}
        options = {"padding": True, "padding_side": "right", **options}
        found = self.tokenizer(
            list(texts), return_tensors="pt", return_attention_mask=True, **options
        )
        return {key: found[key].to(self.device) for key in ("input_ids", "attention_mask")}


def blip_tokens(
    loaded: ImageTextModel, texts: Sequence[str], *, with_image: bool
) -> dict[str, Tensor]:
    """Texts for the text encoder of BLIP, as `ImageTextModel.tokens`.

    BLIP was trained and published with the token [ENC] first in every text that is read together
    with an image, instead of [CLS]. Its vocabulary is the tokenizer's, then [DEC] and [ENC], so
    that a tokenizer without them is told by two missing words; transformers' own forward leaves
    [CLS] there, which costs accuracy. A model without [ENC] keeps [CLS].

    Args:
        loaded: a model of BLIP.
        texts: B of them.
        with_image: whether the encoder sees an image too.
    """
    config = loaded.model.config.text_config
    tokens = loaded.tokens(texts, config.max_position_embeddings)
    words = loaded.tokenizer.get_vocab()
    joint = words.get("[ENC]")
    if joint is None and config.vocab_size == len(words) + 2:
        joint = config.vocab_size - 1
    if with_image and joint is not None:
        tokens["input_ids"][:, 0] = joint
    return tokens
