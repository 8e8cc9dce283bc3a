"""BLIP's published NLVR2 checkpoint -> a folder that `BlipForNlvr.from_pretrained` reads.

    python -m turbovlm_workbench.paper.nlvr_checkpoint model_base_nlvr.pth OUT_DIR

The file keeps its weights under ``"model"``. Its text encoder has the names of transformers; its
vision encoder has those of timm, and is renamed here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from turbovlm.errors import ModelError, TurboError, require
from turbovlm_workbench.checkpoint import (
    VISION_NAMES,
    check_fit,
    check_new,
    read_weights,
    resample_positions,
    write_folder,
)

if TYPE_CHECKING:
    from turbovlm_workbench.paper.nlvr import BlipForNlvr, NlvrConfig

IMAGE_SIZE = 384  # of the published model, in pixels
POSITIONS = "visual_encoder.pos_embed"
# A table of 0, 1, 2, ... that older versions of transformers saved with the weights.
POSITION_IDS = "text_encoder.embeddings.position_ids"
# A checkpoint with one cross-attention: BLIP's names, and what they are doubled into.
SINGLE = {
    ".crossattention.self.": ".crossattention.self{}.",
    ".crossattention.output.dense.": ".crossattention.output.dense{}.",
}
ENCODERS = ("visual_encoder.", "text_encoder.")
# ours -> published, replaced in this order in the keys of the vision encoder
NAMES = {"vision_model.": "visual_encoder.", **VISION_NAMES, "post_layernorm.": "norm."}


def published_nlvr_key(key: str) -> str:
    """The name that a weight of `BlipForNlvr` has in the published file."""
    if key.startswith("vision_model."):
        for ours, theirs in NAMES.items():
            key = key.replace(ours, theirs)
    return key


def load_published(
    path: str | Path, config: NlvrConfig | None = None, *, twin: bool = False
) -> BlipForNlvr:
    """A `BlipForNlvr` in evaluation mode, float32, with the weights of a published file.

    Position embeddings of another image size are resampled to the configured one.

    Args:
        path: the .pth or .safetensors file.
        config: the model's sizes; None is the published base model.
        twin: the file is a BLIP pre-trained on single images, e.g. ``model_base.pth``, and the
            model is to be fine-tuned: cross-attention is doubled, the layers that join both
            images and the head start at random, and whatever else the file holds is left out.

    Raises:
        ModelError: if the file cannot be read or does not fit the model key by key.
        MissingExtra: if transformers is not installed.
    """
    from turbovlm_workbench.paper.nlvr import BlipForNlvr, NlvrConfig

    path = Path(path)
    state = read_weights(path)
    model = BlipForNlvr(NlvrConfig() if config is None else config).eval()
    own = model.state_dict()
    wanted = {published_nlvr_key(key): value for key, value in own.items()}
    single = any(old in key for key in state for old in SINGLE)
    if twin and not single:
        raise ModelError(f"{path} has no single cross-attention to double: leave out --twin")
    if twin:
        state = _doubled(state) | {key: wanted[key] for key in wanted if _is_new(key)}
    state.pop(POSITION_IDS, None)
    if POSITIONS in state:
        state[POSITIONS] = resample_positions(state[POSITIONS], wanted[POSITIONS].shape[1])
    fix = "give model_base_nlvr.pth, or the configuration that these weights were trained in"
    if single and not twin:
        fix = "it attends to one image: give model_base_nlvr.pth, or fine-tune this one with --twin"
    check_fit(state, wanted, path, "BLIP for NLVR2", fix)
    model.load_state_dict({key: state[published_nlvr_key(key)] for key in own})
    return model


def convert_nlvr(
    path: str | Path, folder: str | Path, config: NlvrConfig | None = None, *, twin: bool = False
) -> BlipForNlvr:
    """Write a published file as a model folder, with its image processor; returns the model.

    Args:
        folder: a new or empty one.
        path, config, twin: as in `load_published`.

    Raises:
        InputError: if the folder is in use; nothing is written.
        ModelError, MissingExtra: as in `load_published`; nothing is written.
    """
    folder = Path(folder)
    check_new(folder)
    require("transformers", "hf")
    require("torchvision", "hf")
    model = load_published(path, config, twin=twin)
    side: Any = model.image_size
    write_folder(model, folder, side)
    return model


def _doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both encoders, with each weight of cross-attention under the names of both twins."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        old = next((name for name in SINGLE if name in key), None)
        if old is not None:
            result |= {key.replace(old, SINGLE[old].format(twin)): value for twin in (0, 1)}
        elif key.startswith(ENCODERS):
            result[key] = value
    return result


def _is_new(key: str) -> bool:
    """Whether a model with one cross-attention has no such weight."""
    return ".merge_layer." in key or key.startswith("cls_head.")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; leaves with code 2 and one line on a mistake."""
    command = "python -m turbovlm_workbench.paper.nlvr_checkpoint"
    parser = argparse.ArgumentParser(
        prog=command,
        description="Convert BLIP's published NLVR2 checkpoint into a transformers-style folder.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example:\n  {command} model_base_nlvr.pth blip-nlvr",
    )
    parser.add_argument("checkpoint", type=Path, help="the published .pth file")
    parser.add_argument("folder", type=Path, help="where to write; a new or empty folder")
    parser.add_argument(
        "--image-size",
        type=int,
        default=IMAGE_SIZE,
        help="side of the images in pixels, a multiple of 16 (default: %(default)s)",
    )
    parser.add_argument(
        "--twin",
        action="store_true",
        help="start fine-tuning from a BLIP of single images: double its cross-attention, with "
        "random joining layers and head",
    )
    given = parser.parse_args(argv)
    try:
        require("transformers", "hf")
        from turbovlm_workbench.paper.nlvr import NlvrConfig

        config = NlvrConfig(vision_config={"image_size": given.image_size})
        model = convert_nlvr(given.checkpoint, given.folder, config, twin=given.twin)
    except TurboError as error:
        parser.error(str(error))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{given.folder}: {millions:.1f} million parameters, {model.image_size} px; "
        "tokenizer: bert-base-uncased"
    )


if __name__ == "__main__":
    main()
