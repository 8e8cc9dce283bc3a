"""Image-text matching: two encoders, and the heads by which BLIP and BLIP-2 rank once more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from turbovlm.errors import ModelError
from turbovlm_workbench.load.image_text import ImageTextModel, blip_tokens


@dataclass(frozen=True)
class MatchingModel(ImageTextModel, ABC):
    """A model that says how well images and texts go together.

    All images are compared with all texts by ``similarity`` of their embeddings. A model that
    re-ranks can then look at the best candidates of a query closely: it ranks them by
    ``similarity`` plus ``match``, as BLIP and BLIP-2 were published.
    """

    reranks: ClassVar[bool] = False

    @abstractmethod
    def see(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to unit embeddings (B, D), or (B, Q, D) where there are Q queries."""

    @abstractmethod
    def read(self, texts: Sequence[str]) -> Tensor:
        """T texts to unit embeddings (T, D)."""

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosine of every image (I, D) and every text (T, D): (I, T).

        Of images (I, Q, D), the query counts that is most similar to the text.
        """
        if images.ndim == 2:
            return images @ texts.T
        return torch.stack([(queries @ texts.T).amax(0) for queries in images])

    def features(self, pixels: Tensor) -> Tensor:
        """What ``match`` attends to: pixels (B, 3, H, W) to tokens of the image (B, N, C).

        Raises:
            ModelError: if the model has no matching head.
        """
        raise ModelError(
            f"{self.name} has no matching head: rank by similarity alone, or give a "
            "BlipForImageTextRetrieval or Blip2ForImageTextRetrieval"
        )

    def match(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        """Features (B, N, C) and their B texts to (B,): the logit of "they match".

        It is the second of the head's two logits, without softmax; BLIP-2 takes its mean over the
        queries. This is what both add to the similarity.

        Raises:
            ModelError: as `features`.
        """
        return self.features(features)


class DualEncoder(MatchingModel):
    """CLIP and its relatives in transformers."""

    def see(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to unit embeddings (B, D)."""
        return F.normalize(self.model.get_image_features(pixels).pooler_output, dim=-1)

    def read(self, texts: Sequence[str]) -> Tensor:
        """T texts to unit embeddings (T, D)."""
        tokens = self.tokens(texts, self.model.config.text_config.max_position_embeddings)
        return F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)


class SiglipMatching(DualEncoder):
    """SigLIP: its text encoder was trained on texts padded to full length, without a mask."""

    def read(self, texts: Sequence[str]) -> Tensor:
        """T texts to unit embeddings (T, D)."""
        length = self.model.config.text_config.max_position_embeddings
        ids = self.tokens(texts, length, padding="max_length")["input_ids"]
        return F.normalize(self.model.get_text_features(ids).pooler_output, dim=-1)


class OpenClipMatching(MatchingModel):
    """A whole open_clip model with its tokenizer."""

    def see(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to unit embeddings (B, D)."""
        return self.model.encode_image(pixels, normalize=True)

    def read(self, texts: Sequence[str]) -> Tensor:
        """T texts to unit embeddings (T, D)."""
        return self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True)


class BlipMatching(MatchingModel):
    """BLIP's retrieval model: projected cls tokens; its text encoder attends to the image."""

    reranks = True

    def see(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to unit embeddings (B, D)."""
        return F.normalize(self.model.vision_proj(self.features(pixels)[:, 0]), dim=-1)

    def read(self, texts: Sequence[str]) -> Tensor:
        """T texts to unit embeddings (T, D)."""
        encode = self.model.text_encoder
        states = encode(**blip_tokens(self, texts, with_image=False)).last_hidden_state
        return F.normalize(self.model.text_proj(states[:, 0]), dim=-1)

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to the tokens of the vision encoder (B, N, C)."""
        return self.model.vision_model(pixels).last_hidden_state

    def match(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        """See `MatchingModel.match`."""
        tokens = blip_tokens(self, texts, with_image=True)
        states = self.model.text_encoder(**tokens, encoder_hidden_states=features).last_hidden_state
        return self.model.itm_head(states[:, 0])[:, 1]


class Blip2Matching(MatchingModel):
    """BLIP-2's retrieval model: Q projected queries; the Q-Former reads image and text at once."""

    reranks = True

    def see(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to unit embeddings (B, Q, D)."""
        features = self.features(pixels)
        queries = self.model.query_tokens.expand(len(features), -1, -1)
        states = self.model.qformer(queries, encoder_hidden_states=features).last_hidden_state
        return F.normalize(self.model.vision_projection(states), dim=-1)

    def read(self, texts: Sequence[str]) -> Tensor:
        """T texts to unit embeddings (T, D)."""
        tokens = self._text(texts)
        states = self.model.qformer(
            self.model.embeddings(tokens["input_ids"]),
            query_length=0,
            attention_mask=tokens["attention_mask"],
        ).last_hidden_state
        return F.normalize(self.model.text_projection(states[:, 0]), dim=-1)

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to the tokens of the vision encoder (B, N, C)."""
        return self.model.vision_model(pixels).last_hidden_state

    def match(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        """See `MatchingModel.match`."""
        tokens = self._text(texts)
        queries = self.model.query_tokens.expand(len(features), -1, -1)
        count, mask = queries.shape[1], tokens["attention_mask"]
        states = self.model.qformer(
            self.model.embeddings(tokens["input_ids"], query_embeds=queries),
            query_length=count,
            attention_mask=torch.cat([mask.new_ones(len(mask), count), mask], dim=1),
            encoder_hidden_states=features,
        ).last_hidden_state
        return self.model.itm_head(states[:, :count]).mean(1)[:, 1]

    def _text(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return self.tokens(texts, self.model.config.qformer_config.max_position_embeddings)
