"""Text encoders: BERT and its relatives, alone or inside a model of images and text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from turbovlm import hosts
from turbovlm.errors import ModelError, UnsuitableBlock, require
from turbovlm.plug.encoder.find import survey
from turbovlm_workbench.load.random_state import keeps_random_state
from turbovlm_workbench.load.transformers import architecture, pretrained, pretrained_model
from turbovlm_workbench.paper import register_paper_models


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder whose words can be merged, in evaluation mode.

    Args:
        model: the encoder alone, to be given to `turbovlm.apply`.
        tokenizer: its own.
        name: what the user called the model.
    """

    model: Any
    tokenizer: Any
    name: str

    def ids(self, text: str) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``attention_mask`` of one text, ``(1, T)``, on the model's device."""
        found = self.tokenizer([text], return_tensors="pt", return_attention_mask=True)
        device = next(self.model.parameters()).device
        return {key: found[key].to(device) for key in ("input_ids", "attention_mask")}

    def words(self, ids: torch.Tensor) -> tuple[str, ...]:
        """Ids ``(T,)`` one by one, as a reader knows them."""
        return tuple(
            self.tokenizer.decode([number]).strip() or self.tokenizer.convert_ids_to_tokens(number)
            for number in ids.tolist()
        )


@keeps_random_state
def load_text_encoder(name: str) -> TextEncoder:
    """The text encoder that a local folder or a hub id is, or holds, float32, on the CPU.

    Raises:
        ModelError: if it cannot be loaded, or holds no text encoder.
        UnsuitableBlock: if its text encoder is known and words cannot be merged in it.
        MissingExtra: if transformers is not installed.
    """
    transformers = require("transformers", "hf")
    register_paper_models()
    kind = getattr(transformers, architecture(name), transformers.AutoModel)
    tokenizer = pretrained(transformers.AutoTokenizer, name)
    model = pretrained_model(kind, name)
    found = survey(model, hosts.rows(), hosts.REFUSALS)
    texts = [tower.module for tower in found.towers if tower.row.modality == "text"]
    if texts:
        return TextEncoder(texts[0], tokenizer, name)
    if found.reasons:
        raise UnsuitableBlock("; ".join(found.reasons))
    raise ModelError(
        f"{name} ({type(model).__name__}) holds no text encoder that is known: give BERT, RoBERTa "
        "or a relative, or BLIP; show pictures without --text"
    )
