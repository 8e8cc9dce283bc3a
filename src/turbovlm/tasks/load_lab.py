"""The built-in captioner by a name: ``lab:captioner``."""

from __future__ import annotations

from pathlib import Path

from turbovlm.errors import ConfigError, ModelError
from turbovlm.lab import captioner
from turbovlm.tasks.caption import Caption
from turbovlm.tasks.prepare import processor_prepare


def load_lab(name: str, weights: Path | None, *, beams: int = 1) -> Caption:
    """The built-in captioner.

    Raises:
        ModelError: for another name, or if the package came without its weights.
        ConfigError: for weights of one's own.
        MissingExtra: if transformers is not installed.
    """
    if name != "captioner":
        raise ModelError(
            f"lab:{name} writes no captions: lab:captioner does; turbovlm eval knows lab:vqa, "
            "lab:retrieval and lab:nlvr"
        )
    if weights is not None:
        raise ConfigError("lab:captioner brings its own weights: leave --weights out")
    model, processor = captioner.load()
    return Caption(
        model,
        processor_prepare(processor.image_processor),
        "lab:captioner",
        decode=lambda ids: processor.batch_decode(ids, skip_special_tokens=True),
        options={"max_new_tokens": captioner.CAPTION_TOKENS, "num_beams": beams},
    )
