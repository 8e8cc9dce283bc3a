"""A checkpoint of UPop's pruned BLIP -> a folder that ``from_pretrained`` reads.

    python -m turbovlm_workbench.paper.upop_checkpoint CHECKPOINT_2X.pth OUT_DIR

The file keeps its weights under ``"model"``, with BLIP's names. It says nothing of the widths that
pruning left: they are read off the shapes of its weights, layer by layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from turbovlm.errors import InputError, ModelError, TurboError, require
from turbovlm_workbench.checkpoint import (
    check_fit,
    check_new,
    read_weights,
    resample_positions,
    write_folder,
)
from turbovlm_workbench.paper.nlvr_checkpoint import POSITIONS, published_nlvr_key

if TYPE_CHECKING:
    from turbovlm_workbench.paper.upop import UPopAnswerer, UPopCaptioner

BEGIN = 30522  # [DEC], which UPop's vocabulary has behind bert-base-uncased's
SEARCHED = ".alpha"
WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
TIED = "text_decoder.cls.predictions.decoder.weight"
BIASES = ("text_decoder.cls.predictions.bias", "text_decoder.cls.predictions.decoder.bias")


@dataclass(frozen=True)
class Published:
    """A task that UPop pruned BLIP for: the side of its images in px, and which model it is."""

    image_size: int
    captioner: bool


TASKS: Mapping[str, Published] = {"captioning": Published(384, True), "vqa": Published(480, False)}


def published_sizes(image_size: int) -> dict[str, Any]:
    """Arguments of a configuration for BLIP base, whole, with images of this side in pixels."""
    from turbovlm_workbench.paper.nlvr import VISION

    text = {
        "num_attention_heads": 12,
        "bos_token_id": BEGIN,
        "eos_token_id": 2,
        "sep_token_id": 102,
        "pad_token_id": 0,
    }
    return {"vision_config": {**VISION, "image_size": image_size}, "text_config": text}


def load_upop(
    path: str | Path, task: str = "captioning", sizes: Mapping[str, Any] | None = None
) -> UPopCaptioner | UPopAnswerer:
    """UPop's pruned BLIP in evaluation mode, float32, with the weights of a file.

    Position embeddings of another image size are resampled to the configured one. A whole BLIP,
    of which nothing is pruned, has the same layout and is read as well.

    Args:
        path: the .pth or .safetensors file.
        task: one of `TASKS`.
        sizes: arguments of `BlipConfig` for the model before pruning; None is the published one.

    Raises:
        InputError: for a task that is none.
        ModelError: if the file cannot be read, is of UPop's search, or does not fit key by key.
        MissingExtra: if transformers is not installed.
    """
    if task not in TASKS:
        raise InputError(f"no task {task!r}: give {' or '.join(TASKS)}")
    require("transformers", "hf")
    from turbovlm_workbench.paper import upop

    path, of = Path(path), TASKS[task]
    sizes = published_sizes(of.image_size) if sizes is None else sizes
    state = _weights(path)
    kind: Any = upop.UPopCaptioner if of.captioner else upop.UPopAnswerer
    config_kind: Any = kind.config_class
    with torch.device("meta"):
        whole = kind(config_kind(**sizes))
        widths = _widths(whole, state, path)
        narrowed = kind(config_kind(**sizes, widths=widths))
    wanted = {published_nlvr_key(key): value for key, value in narrowed.state_dict().items()}
    if POSITIONS in state:
        state[POSITIONS] = resample_positions(state[POSITIONS], wanted[POSITIONS].shape[1])
    fix = f"give UPop's compressed checkpoint for {task}, or the sizes that it was pruned from"
    check_fit(state, wanted, path, f"UPop's BLIP for {task}", fix)
    model = kind(narrowed.config).eval()
    model.load_state_dict({key: state[published_nlvr_key(key)] for key in model.state_dict()})
    return model


def convert_upop(
    path: str | Path,
    folder: str | Path,
    task: str = "captioning",
    sizes: Mapping[str, Any] | None = None,
) -> UPopCaptioner | UPopAnswerer:
    """Write such a file as a model folder, with its image processor; returns the model.

    Args:
        folder: a new or empty one.
        path, task, sizes: as in `load_upop`.

    Raises:
        InputError: if the folder is in use; nothing is written.
        ModelError, MissingExtra: as in `load_upop`; nothing is written.
    """
    folder = Path(folder)
    check_new(folder)
    require("transformers", "hf")
    require("torchvision", "hf")
    model = load_upop(path, task, sizes)
    vision: Any = model.config.vision_config
    write_folder(model, folder, vision.image_size)
    return model


def _weights(path: Path) -> dict[str, Tensor]:
    """What the file holds, less the tables of positions that older versions saved."""
    state = {
        key: value for key, value in read_weights(path).items() if not key.endswith(".position_ids")
    }
    if any(key.endswith(SEARCHED) for key in state):
        raise ModelError(
            f"{path} is of UPop's search, whose layers are whole and masked by {SEARCHED[1:]}: "
            "give the checkpoint that its compression wrote"
        )
    for one, other in ((WORDS, TIED), BIASES):
        if one in state and not torch.equal(state[one], state.setdefault(other, state[one])):
            raise ModelError(
                f"{path} holds {one} and {other}, which BLIP shares, with different values: give "
                "a checkpoint that was saved with them tied"
            )
    return state


def _widths(model: Any, state: Mapping[str, Tensor], path: Path) -> dict[str, int]:
    """The widths of the narrowed layers, by the rows of their first weights."""
    from turbovlm_workbench.paper.upop import layers_to_narrow

    widths: dict[str, int] = {}
    for name, layer, parts in layers_to_narrow(model):
        full = model.get_submodule(f"{name}.{layer}").weight.shape[0]
        key = published_nlvr_key(f"{name}.{layer}.weight")
        rows = full if key not in state else state[key].shape[0]  # check_fit names what is missing
        if rows == full:
            continue
        if rows % parts or not 0 < rows < full:
            raise ModelError(
                f"{path} does not fit UPop's BLIP: {key} has {rows} rows, which is no multiple of "
                f"{parts} up to {full}: give the sizes, and the number of heads, that it was "
                "pruned from"
            )
        widths[name] = rows // parts
    return widths


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; leaves with code 2 and one line on a mistake."""
    command = "python -m turbovlm_workbench.paper.upop_checkpoint"
    parser = argparse.ArgumentParser(
        prog=command,
        description="Convert UPop's pruned BLIP into a transformers-style folder.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example:\n  {command} model_base_caption_2x_compressed.pth upop-2x",
    )
    parser.add_argument("checkpoint", type=Path, help="the compressed .pth file")
    parser.add_argument("folder", type=Path, help="where to write; a new or empty folder")
    parser.add_argument(
        "--task", choices=tuple(TASKS), default="captioning", help="default: %(default)s"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        help="side of the images in pixels, a multiple of 16 (default: the published one)",
    )
    given = parser.parse_args(argv)
    try:
        require("transformers", "hf")
        side = given.image_size or TASKS[given.task].image_size
        if side < 1 or side % 16:
            raise InputError(f"--image-size {side} is not a multiple of 16: give one, such as 384")
        model = convert_upop(given.checkpoint, given.folder, given.task, published_sizes(side))
    except TurboError as error:
        parser.error(str(error))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{given.folder}: {millions:.1f} million parameters, {len(model.config.widths or ())} "
        f"layers narrowed, {side} px; tokenizer: bert-base-uncased with [DEC] and [ENC]"
    )


if __name__ == "__main__":
    main()
