"""From a name on the command line to a loaded model: classifiers, embedders and captioners."""

from __future__ import annotations

from pathlib import Path

from turbovlm.errors import ConfigError
from turbovlm_workbench.load.lab import lab_captioner
from turbovlm_workbench.load.libraries import load_open_clip, load_timm, load_torchvision
from turbovlm_workbench.load.loaded import Captioner, Classifier, Embedder
from turbovlm_workbench.load.prompted import answers_prompts, load_prompted_captioner
from turbovlm_workbench.load.random_state import keeps_random_state
from turbovlm_workbench.load.transformers import load_transformers

BEAMS = 3
"""The paper's, and BLIP's own, setting for captions."""
LIBRARIES = {"timm": load_timm, "torchvision": load_torchvision, "open_clip": load_open_clip}


@keeps_random_state
def load_model(
    name: str, weights: str | Path | None = None, *, beams: int | None = None
) -> Classifier | Embedder | Captioner:
    """Load a model in evaluation mode, float32, on the CPU.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, ``open_clip:NAME``, a local folder, or a hub id
            of a transformers model; ``lab:captioner`` and ``lab:vlm`` are built in.
        weights: of one of those libraries, a local checkpoint to load instead of the published
            one.
        beams: of a captioner's beam search; 1 is greedy. None is `BEAMS`, and greedy for a model
            that answers a prompt.

    Raises:
        ModelError: if it cannot be found or its weights do not fit.
        UnknownArchitecture: if it is none of the supported kinds.
        MissingExtra: if its library is not installed.
        ConfigError: for a combination of arguments that means nothing.
    """
    if beams is not None and beams < 1:
        raise ConfigError(f"--beams must be at least 1, got {beams}")
    library, _, short = name.partition(":")
    if library == "lab":
        path = None if weights is None else Path(weights)
        return lab_captioner(short, path, beams=beams or (1 if short == "vlm" else BEAMS))
    if library in LIBRARIES and not Path(name).is_dir():
        return LIBRARIES[library](short, None if weights is None else Path(weights))
    if weights is not None:
        raise ConfigError(
            "--weights goes with timm:NAME, torchvision:NAME or open_clip:NAME; a transformers "
            "folder brings its own"
        )
    if answers_prompts(name):
        return load_prompted_captioner(name, beams=beams or 1)
    return load_transformers(name, beams=beams or BEAMS)
