"""The built-in models by name: the one place where the workbench reaches for the lab."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from turbovlm.errors import ConfigError, MissingExtra, ModelError
from turbovlm_workbench.load.loaded import Captioner
from turbovlm_workbench.load.prepare import processor_prepare
from turbovlm_workbench.load.prompted import PromptedAnswers, PromptedCaptioner, Prompts

LAB = "turbovlm_lab"
CAPTIONERS = ("captioner", "vlm")


class MissingLab(MissingExtra):
    """The built-in models were asked for and are not installed."""

    def __init__(self) -> None:
        ImportError.__init__(
            self,
            "the built-in models are a package of their own, turbovlm-lab, which is not installed: "
            "pip install ./lab in a clone of turbovlm",
        )
        self.package, self.extra = "turbovlm-lab", "lab"


def require_lab() -> None:
    """Ask for the lab before it is imported.

    Raises:
        MissingLab: if it is not installed.
    """
    if importlib.util.find_spec(LAB) is None:
        raise MissingLab


def lab_captioner(name: str, weights: Path | None, *, beams: int = 1) -> Captioner:
    """A built-in model that writes captions: ``captioner``, or ``vlm``.

    Raises:
        ModelError: for another name, or if the lab came without its weights.
        ConfigError: for weights of one's own.
        MissingExtra: if the lab or transformers is not installed.
    """
    if name not in CAPTIONERS:
        raise ModelError(
            f"lab:{name} writes no captions: lab:captioner and lab:vlm do; turbovlm eval knows "
            "lab:vqa, lab:retrieval and lab:nlvr"
        )
    if weights is not None:
        raise ConfigError(f"lab:{name} brings its own weights: leave --weights out")
    require_lab()
    from turbovlm_lab import captioner, vlm

    model, processor = vlm.load_vlm() if name == "vlm" else captioner.load_captioner()
    made = Captioner(
        model,
        processor_prepare(processor.image_processor),
        f"lab:{name}",
        decode=lambda ids: processor.batch_decode(ids, skip_special_tokens=True),
        options={"max_new_tokens": captioner.CAPTION_TOKENS, "num_beams": beams},
    )
    if name != "vlm":
        return made
    return PromptedCaptioner(**vars(made), prompts=Prompts(processor), instruction=vlm.DESCRIBE)


def lab_head(name: str) -> tuple[Any, Any]:
    """A built-in model that answers, matches or judges, and its processor: ``vqa``, ``nlvr``, ...

    Raises:
        ModelError: for another name, or if the lab came without its weights.
        MissingExtra: if the lab or transformers is not installed.
    """
    require_lab()
    from turbovlm_lab import heads

    return heads.load_head(name)


def lab_answers() -> PromptedAnswers:
    """The built-in vision-language model, a small LLaVA, for questions in small letters.

    Raises:
        ModelError: if the lab came without its weights.
        MissingExtra: if the lab or transformers is not installed.
    """
    require_lab()
    from turbovlm_lab import vlm

    model, processor = vlm.load_vlm()
    prepare, prompts = processor_prepare(processor.image_processor), Prompts(processor)
    return PromptedAnswers(model, prepare, "lab:vlm", processor.tokenizer, prompts, "{}")


def lab_painter() -> Any:
    """The built-in painter, a small Stable Diffusion pipeline.

    Raises:
        ModelError: if the lab came without its weights.
        MissingExtra: if the lab, diffusers or transformers is not installed.
    """
    require_lab()
    from turbovlm_lab import painter

    return painter.load_painter()


def painter_defaults() -> tuple[int, float]:
    """The steps and the guidance that the built-in painter was trained for.

    Raises:
        MissingExtra: if the lab is not installed.
    """
    require_lab()
    from turbovlm_lab import painter

    return painter.STEPS, painter.GUIDANCE
