"""MiniGPT-v2's published files -> a folder that its `from_pretrained` reads.

    python -m turbovlm_workbench.paper.minigptv2_checkpoint minigptv2_checkpoint.pth \\
        --vision eva_vit_g.pth --llama Llama-2-7b-chat-hf OUT_DIR

The checkpoint holds only what was trained: the projection and LoRA weights, which are added into
LLaMA's own here. The vision encoder, EVA-ViT-g, is a file of BLIP-2. ``ln_vision`` is in neither:
the published code never loads it, so the model was trained and measured with an affine part that
does nothing (weight 1, bias 0), and that is what is written unless the checkpoint brings its own.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from turbovlm.errors import ModelError, TurboError, require
from turbovlm_workbench.checkpoint import (
    VISION_NAMES,
    cause,
    check_fit,
    check_new,
    read_weights,
    resample_positions,
)

if TYPE_CHECKING:
    from transformers import Blip2VisionConfig, Blip2VisionModel, LlamaForCausalLM

    from turbovlm_workbench.paper.minigptv2 import MiniGPTv2ForConditionalGeneration

LORA_ALPHA = 16.0  # of the published configuration, whose rank is 64
LORA_LAYERS = ("q_proj", "v_proj")
LORA_KEY = "llama_model.base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json")
# What the files hold beside the weights that are used: a table of older transformers, and the
# parts of EVA after the last block but one, which BLIP-2 cut off.
ROTARY_TABLE = re.compile(r"llama_model\..*\.rotary_emb\.inv_freq")
UNUSED_VISION = ("norm.", "fc_norm.", "head.")
# ours -> published, replaced in this order in the keys of the vision encoder
NAMES = {"post_layernorm.": "ln_vision.", **VISION_NAMES}


def convert_minigptv2(
    checkpoint: str | Path,
    vision: str | Path,
    llama: str | Path,
    folder: str | Path,
    *,
    vision_config: Blip2VisionConfig | None = None,
    alpha: float = LORA_ALPHA,
) -> MiniGPTv2ForConditionalGeneration:
    """Write the model with its tokenizer and image processor; returns the model.

    Everything gets the data type of ``llama``. The language model is in memory once.

    Args:
        checkpoint: MiniGPT-v2's file, with ``llama_proj`` and LoRA weights.
        vision: EVA-ViT-g's file.
        llama: a transformers folder with LLaMA-2-chat and its tokenizer.
        folder: where to write; a new or empty folder.
        vision_config: sizes of the vision encoder; None is the published 448 px.
        alpha: LoRA's alpha: ``W + alpha / rank * B A`` replaces ``W``.

    Raises:
        InputError: if ``folder`` is in use.
        ModelError: if a file is missing or does not fit key by key.
        MissingExtra: if transformers is not installed.
        In every case nothing is written.
    """
    checkpoint, vision, llama, folder = (Path(p) for p in (checkpoint, vision, llama, folder))
    check_new(folder)
    _check_llama(llama)
    transformers = require("transformers", "hf")
    from turbovlm_workbench.paper.minigptv2 import (
        MiniGPTv2Config,
        MiniGPTv2ForConditionalGeneration,
    )
    from turbovlm_workbench.paper.minigptv2_prompt import image_processor

    text_config = transformers.LlamaConfig.from_pretrained(llama)
    config = MiniGPTv2Config(vision_config=vision_config, text_config=text_config)
    processor = image_processor(config.vision_config.image_size)
    with torch.device("meta"):  # the weights come from the files
        model = MiniGPTv2ForConditionalGeneration(config)
    trained = _read_trained(checkpoint, model)
    encoder = _read_vision(vision, model.vision_model, trained)
    model.language_model = _load_llama(llama)
    add_lora(model.language_model, trained, alpha)
    dtype = model.language_model.dtype
    projection = {name: trained[f"llama_proj.{name}"].to(dtype) for name in ("weight", "bias")}
    model.projection.load_state_dict(projection, assign=True)
    model.vision_model.load_state_dict(
        {key: value.to(dtype) for key, value in encoder.items()}, assign=True
    )
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    for name in TOKENIZER_FILES + TOKENIZER_EXTRAS:
        if (llama / name).is_file():
            shutil.copy(llama / name, folder)
    return model


@torch.no_grad()
def add_lora(llama: LlamaForCausalLM, trained: Mapping[str, Tensor], alpha: float) -> None:
    """Replace every adapted ``W`` by ``W + alpha / rank * B A``, computed in float32, in place.

    Args:
        llama: the language model.
        trained: LoRA weights under their published names: A (rank, in), B (out, rank).
        alpha: the LoRA configuration's ``lora_alpha``.
    """
    for layer in range(llama.config.num_hidden_layers):
        for name in LORA_LAYERS:
            a, b = (trained[LORA_KEY.format(layer, name, side)].float() for side in "AB")
            linear = llama.get_submodule(f"model.layers.{layer}.self_attn.{name}")
            assert isinstance(linear, nn.Linear)
            linear.weight.copy_(linear.weight.float() + alpha / len(a) * (b @ a))


def published_minigptv2_key(key: str) -> str:
    """The name that a weight of the vision encoder has in the published files."""
    for ours, theirs in NAMES.items():
        key = key.replace(ours, theirs)
    return key


def _read_trained(path: Path, model: MiniGPTv2ForConditionalGeneration) -> dict[str, Tensor]:
    """The checkpoint, compared with what the model needs: projection, LoRA, maybe ln_vision."""
    state = {
        key.replace(".default.weight", ".weight"): value
        for key, value in read_weights(path).items()
        if not ROTARY_TABLE.fullmatch(key)
    }
    ranks = [len(value) for key, value in state.items() if ".lora_A." in key]
    rank = ranks[0] if ranks else 0
    wanted = {f"llama_proj.{k}": v for k, v in model.projection.state_dict().items()}
    for layer in range(model.config.text_config.num_hidden_layers):
        for name in LORA_LAYERS:
            linear = model.get_submodule(f"language_model.model.layers.{layer}.self_attn.{name}")
            assert isinstance(linear, nn.Linear)
            for side, shape in (
                ("A", (rank, linear.in_features)),
                ("B", (linear.out_features, rank)),
            ):
                wanted[LORA_KEY.format(layer, name, side)] = torch.empty(shape, device="meta")
    if any(key.startswith("ln_vision.") for key in state):
        wanted |= {
            f"ln_vision.{k}": v for k, v in model.vision_model.post_layernorm.state_dict().items()
        }
    fix = "give minigptv2_checkpoint.pth and the LLaMA that it was trained on (LLaMA-2-7B-chat)"
    check_fit(state, wanted, path, "MiniGPT-v2", fix)
    return state


def _read_vision(
    path: Path, encoder: Blip2VisionModel, trained: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The vision encoder's weights under our names; ``ln_vision`` as the docstring above says."""
    unused = (*UNUSED_VISION, f"blocks.{encoder.config.num_hidden_layers}.")
    state = {k: v for k, v in read_weights(path).items() if not k.startswith(unused)}
    own = encoder.state_dict()
    wanted: dict[str, Tensor] = {}
    for key, value in own.items():
        theirs = published_minigptv2_key(key)
        if theirs.endswith("attn.qkv.bias"):  # theirs has none for the keys, ours has zeros
            for part in ("q_bias", "v_bias"):
                wanted[theirs.replace("qkv.bias", part)] = value[: len(value) // 3]
        elif not theirs.startswith("ln_vision."):
            wanted[theirs] = value
    if "pos_embed" in state:
        state["pos_embed"] = resample_positions(state["pos_embed"], wanted["pos_embed"].shape[1])
    check_fit(state, wanted, path, "EVA-ViT-g", "give BLIP-2's eva_vit_g.pth")
    width = encoder.config.hidden_size
    state |= {"ln_vision.weight": torch.ones(width), "ln_vision.bias": torch.zeros(width)}
    state |= {key: value for key, value in trained.items() if key.startswith("ln_vision.")}
    for key in [key for key in state if key.endswith(".q_bias")]:
        query, value = state[key], state[key.replace("q_bias", "v_bias")]
        parts = (query, torch.zeros_like(query), value)
        state[key.replace("q_bias", "qkv.bias")] = torch.cat(parts)
    return {key: state[published_minigptv2_key(key)] for key in own}


def _check_llama(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is no transformers folder (it has no config.json): give the folder of "
            "Llama-2-7b-chat-hf; Meta's own files are converted by transformers first"
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{folder} has no tokenizer ({' or '.join(TOKENIZER_FILES)}): copy LLaMA-2's into it"
        )


def _load_llama(folder: Path) -> LlamaForCausalLM:
    from transformers import LlamaForCausalLM

    load: Any = LlamaForCausalLM.from_pretrained
    try:
        model, found = load(folder, dtype="auto", output_loading_info=True)
    except Exception as error:  # transformers passes on what safetensors and torch raise
        raise ModelError(f"cannot load LLaMA from {folder} ({cause(error)})") from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{folder} lacks {len(missing)} weights ({missing[0]}, ...): give LLaMA-2-7B-chat"
        )
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; leaves with code 2 and one line on a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m turbovlm_workbench.paper.minigptv2_checkpoint",
        description="Convert MiniGPT-v2's published files into a transformers-style folder.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python -m turbovlm_workbench.paper.minigptv2_checkpoint "
        "minigptv2_checkpoint.pth \\\n      --vision eva_vit_g.pth --llama Llama-2-7b-chat-hf "
        "minigpt-v2",
    )
    parser.add_argument("checkpoint", type=Path, help="minigptv2_checkpoint.pth")
    parser.add_argument("folder", type=Path, help="where to write; a new or empty folder")
    parser.add_argument("--vision", type=Path, required=True, help="BLIP-2's eva_vit_g.pth")
    parser.add_argument(
        "--llama", type=Path, required=True, help="transformers folder of LLaMA-2-7B-chat"
    )
    parser.add_argument(
        "--alpha", type=float, default=LORA_ALPHA, help="LoRA's alpha (default: %(default)s)"
    )
    given = parser.parse_args(argv)
    try:
        model = convert_minigptv2(
            given.checkpoint, given.vision, given.llama, given.folder, alpha=given.alpha
        )
    except TurboError as error:
        parser.error(str(error))
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    merged = model.config.text_config.num_hidden_layers * len(LORA_LAYERS)
    print(f"{given.folder}: {billions:.2f} billion parameters, {merged} LoRA products merged")


if __name__ == "__main__":
    main()
