"""Judging statements about two images: NLVR2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from turbovlm_workbench.load.image_text import ImageTextModel


class StatementModel(ImageTextModel):
    """`BlipForNlvr`, which says whether a statement about two images is true."""

    def judge(self, left: Tensor, right: Tensor, statements: Sequence[str]) -> Tensor:
        """Two images (B, 3, H, W) each and B statements to logits (B, 2): false, true."""
        limit = self.model.config.text_config.max_position_embeddings
        pair = torch.stack([left, right], dim=1)
        return self.model(pair, **self.tokens(statements, limit)).logits
