"""A whole open_clip model, image and text side, by its name there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from turbovlm.errors import ModelError, require
from turbovlm_workbench.checkpoint import cause
from turbovlm_workbench.load.libraries import open_clip_model
from turbovlm_workbench.load.prepare import Prepare, open_clip_prepare


def open_clip_parts(name: str, weights: Path | None) -> tuple[Any, Prepare, Any]:
    """The model, its preprocessing and its tokenizer.

    Raises:
        ModelError, MissingExtra: as `open_clip_model`, and if the tokenizer is out of reach.
    """
    model = open_clip_model(name, weights)
    try:
        tokenizer = require("open_clip", "open_clip").get_tokenizer(name)
    except Exception as error:  # some are fetched, and pass on whatever the download raised
        raise ModelError(
            f"cannot get the tokenizer of open_clip:{name} ({cause(error)}): check the connection"
        ) from error
    return model, open_clip_prepare(model.visual), tokenizer
