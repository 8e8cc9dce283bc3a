"""Flickr8k, the tower that looks at it, and how a model learns to describe it.

What train_captioner.py and train_llava.py share: the frozen ViT-Ti/16 AugReg of DATA as a ViTModel
of transformers, a tokenizer of whole words, the captions of an image in one row, and the loop.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPImageProcessor, ViTConfig, ViTModel

from turbovlm_workbench.load.prepare import Prepare, timm_prepare
from turbovlm_workbench.metrics.captions import score_captions

NAME = "vit_tiny_patch16_224"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, START, END = 0, 1, 2, 3
WORDS, SEEN = 24, 5  # of a caption at most; times that a word occurs at least to have a token
SELECT, BATCH, RATE, WARMUP, SMOOTHING = 500, 16, 8e-4, 300, 0.1
HALF = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether to train in bfloat16: other processors emulate it, ten times as slowly as float32."""


def words(caption: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall("[a-z0-9]+", caption.lower())


def read(data: Path, name: str) -> tuple[list[Path], list[list[str]]]:
    """Images of a split of Flickr8k and their five captions each."""
    folder = data / "flickr8k"
    records = [json.loads(x) for x in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
    return [folder / r["image"] for r in records], [r["captions"] for r in records]


def vit(state: dict[str, Tensor], heads: int) -> ViTModel:
    """A ViTModel without pooling with the weights of timm's VisionTransformer.

    Args:
        state: as timm names them; what belongs to its classifier is left out.
        heads: of the attention, which the weights do not tell.
    """
    width, channels, patch, _ = state["patch_embed.proj.weight"].shape
    side = int((state["pos_embed"].shape[1] - 1) ** 0.5) * patch
    named = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
    }
    for ours, theirs in (
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("layernorm", "norm"),
    ):
        named |= {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    for block in range(depth):
        for kind in ("weight", "bias"):
            fused = state[f"blocks.{block}.attn.qkv.{kind}"].chunk(3)
            parts = dict(zip(("q_proj", "k_proj", "v_proj"), fused, strict=True))
            named |= {f"layers.{block}.attention.{n}.{kind}": part for n, part in parts.items()}
            for ours, theirs in (
                ("attention.o_proj", "attn.proj"),
                ("layernorm_before", "norm1"),
                ("layernorm_after", "norm2"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ):
                named[f"layers.{block}.{ours}.{kind}"] = state[f"blocks.{block}.{theirs}.{kind}"]
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        layer_norm_eps=1e-6,
        image_size=side,
        patch_size=patch,
        num_channels=channels,
    )
    model = ViTModel(config, add_pooling_layer=False)
    model.load_state_dict(named)
    return model.eval()


def encoder(data: Path) -> tuple[ViTModel, Prepare]:
    """The ViT-Ti/16 of DATA, and its own preprocessing."""
    state = load_file(data / "vit_tiny_augreg" / f"{NAME}.safetensors")
    return vit(state, heads=3), timm_prepare(timm.create_model(NAME))


def processor() -> CLIPImageProcessor:
    """That preprocessing for a folder of transformers.

    It is the only one that resizes and then cuts out, as timm does; they differ by rounding.
    """
    return CLIPImageProcessor(
        size={"shortest_edge": 248},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def vocabulary(captions: Sequence[Sequence[str]]) -> list[str]:
    """The special tokens, and the words that occur often enough, the commonest first."""
    count = Counter(word for five in captions for caption in five for word in words(caption))
    return [*SPECIAL, *(word for word, seen in count.most_common() if seen >= SEEN)]


def tokenizer(tokens: Sequence[str], **settings: Any) -> BertTokenizer:
    """Of whole words, with further ``settings`` of transformers."""
    return BertTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        bos_token="[CLS]",
        eos_token="[SEP]",
        **{"model_max_length": WORDS + 2, **settings},
    )


def numbers(text: Any, start: int, captions: Sequence[str]) -> list[list[int]]:
    """Tokens of captions, from ``start`` to END."""
    return [[start, *text.convert_tokens_to_ids(words(c)[: WORDS - 1]), END] for c in captions]


@torch.inference_mode()
def features(
    see: Callable[[Tensor], Tensor], prepare: Prepare, images: Sequence[Path], ways: int = 2
) -> Tensor:
    """What ``see`` makes of pixels, float16 ``(ways, images, tokens, channels)``.

    The second way is that of the mirrored images.
    """
    found: list[list[Tensor]] = [[] for _ in range(ways)]
    for start in track(range(0, len(images), 50), "features"):
        x = prepare([Image.open(p).convert("RGB") for p in images[start : start + 50]])
        for way, pixels in zip(found, (x, x.flip(-1)), strict=False):
            way.append(see(pixels).half())
    return torch.stack([torch.cat(way) for way in found])


def cached(file: Path | None, make: Callable[[], Tensor]) -> Tensor:
    """What is in the file, if there is one; else what ``make`` gives, and written to it."""
    if file is None:
        return make()
    if not file.is_file():
        torch.save(make(), file)
    return torch.load(file, weights_only=True)


@dataclass(frozen=True)
class Packed:
    """The captions of some images, those of one image in one row, end to end.

    ``tokens``, ``next`` (what follows each token, PAD where nothing is learned) and ``position``
    are int64 ``(images, length)``; ``mask`` is bool ``(images, 1, length, length)``: a token sees
    those before it in its own caption.
    """

    tokens: Tensor
    next: Tensor
    position: Tensor
    mask: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[Sequence[int]]]) -> Packed:
        """Of the ids of captions, START and END among them."""
        length = max(sum(len(ids) - 1 for ids in row) for row in rows)
        tokens, after, position, owner = (
            torch.zeros(len(rows), length, dtype=torch.long) for _ in range(4)
        )
        for i, row in enumerate(rows):
            at = 0
            for number, ids in enumerate(row, 1):
                span = slice(at, at + len(ids) - 1)
                tokens[i, span], after[i, span] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
                position[i, span], owner[i, span] = torch.arange(len(ids) - 1), number
                at = span.stop
        after[after == UNKNOWN] = PAD
        same = owner[:, None, :, None] == owner[:, None, None, :]
        return cls(tokens, after, position, same & torch.ones(length, length).tril().bool())


class Until(NamedTuple):
    """When training ends, whichever comes first."""

    epochs: int
    minutes: float


class Pupil(NamedTuple):
    """A model that learns to describe images.

    Attributes:
        say: what is trained.
        text: its tokenizer.
        start: the token that is given before the first word.
        loss: of features ``(images, tokens, channels)`` and their captions.
        describe: greedy captions from features.
        batch: images a step.
        warmup: steps over which the rate rises.
    """

    say: nn.Module
    text: BertTokenizer
    start: int
    loss: Callable[[Tensor, Packed], Tensor]
    describe: Callable[[Tensor], list[str]]
    batch: int = BATCH
    warmup: int = WARMUP


def train(
    pupil: Pupil,
    seen: Tensor,
    truth: Sequence[Sequence[str]],
    until: Until,
    keep: Callable[[dict[str, float]], None],
) -> None:
    """Train at a rate that follows whichever of the epochs and the minutes is nearer its end.

    The last SELECT images choose the epoch, by the CIDEr of greedy captions. ``keep`` is called
    with the record of every epoch that is the best so far.
    """
    fit = len(truth) - SELECT
    ids = [numbers(pupil.text, pupil.start, five) for five in truth]
    groups = [
        {"params": [p for p in pupil.say.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in pupil.say.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), fused=True)
    best, step, done, start = -1.0, 0, 0.0, time.monotonic()
    for epoch in range(1, until.epochs + 1):
        pupil.say.train()
        losses: list[float] = []
        for part in torch.randperm(fit).split(pupil.batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
                features = seen[torch.randint(len(seen), (len(part),)), part].float()
                value = pupil.loss(features, Packed.of([ids[i] for i in part.tolist()]))
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(pupil.say.parameters(), 1.0)
            step += 1
            passed = (time.monotonic() - start) / 60
            done = max(step / (until.epochs * math.ceil(fit / pupil.batch)), passed / until.minutes)
            half_cosine = (1 + math.cos(math.pi * min(done, 1.0))) / 2
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(step / pupil.warmup, half_cosine)
            optimizer.step()
            losses.append(value.item())
            if done >= 1:
                break
        pupil.say.eval()
        found = pupil.describe(seen[0, fit:])
        score = score_captions(found, truth[fit:]).cider
        passed = round((time.monotonic() - start) / 60, 1)
        print(
            f"epoch {epoch} loss {sum(losses) / len(losses):.4f} CIDEr {score:.4f} "
            f"{passed} min: {found[0]}",
            flush=True,
        )
        if score > best:
            best = score
            keep({"epoch": epoch, "step": step, "cider": score, "minutes": passed})
        if done >= 1:
            break


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Options of both commands."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True, metavar="DIR")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--minutes", type=float, default=40)
    p.add_argument(
        "--export", type=Path, metavar="FOLDER", help="do not train: write --out as a whole model"
    )
    p.add_argument("--cache", type=Path, metavar="FILE", help="features of the training split")
    return p
