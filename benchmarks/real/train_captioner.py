"""A small captioner of photographs: the frozen ViT-Ti/16 AugReg, a decoder trained on Flickr8k.

    python benchmarks/real/train_captioner.py --data DATA --out benchmarks/real/heads/captioner

DATA holds vit_tiny_augreg and flickr8k. The model is transformers' VisionEncoderDecoderModel of
a ViTModel with timm's weights and a BertLMHeadModel of two layers that knows whole words. The
decoder is trained without merging on 5500 images of the training split, both ways round; the best
epoch is chosen by the CIDEr of greedy captions of the other 500. Only the decoder is written.

What is under heads/captioner comes from this command on one thread of a busy machine, which ended
after its 40 minutes in epoch 14 of 20; the best was epoch 11, with a CIDEr of 0.596.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BertTokenizer,
    CLIPImageProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutput

from turbovlm_workbench.load.prepare import Prepare, timm_prepare
from turbovlm_workbench.metrics.captions import score_captions

NAME = "vit_tiny_patch16_224"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, START, END = 0, 1, 2, 3
WORDS, SEEN = 24, 5  # of a caption at most; times that a word occurs at least to have a token
SELECT, BATCH, RATE, WARMUP, SMOOTHING = 500, 16, 8e-4, 300, 0.1


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


def vocabulary(captions: Sequence[Sequence[str]]) -> list[str]:
    """The special tokens, and the words that occur often enough, the commonest first."""
    count = Counter(word for five in captions for caption in five for word in words(caption))
    return [*SPECIAL, *(word for word, seen in count.most_common() if seen >= SEEN)]


def tokenizer(tokens: Sequence[str]) -> BertTokenizer:
    return BertTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=WORDS + 2,
    )


def decoder(tokens: int, width: int = 192, layers: int = 2, heads: int = 4) -> BertLMHeadModel:
    """Untrained. Its cross-attention reads ``width`` channels of any number of visual tokens."""
    config = BertConfig(
        vocab_size=tokens,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=3 * width,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=WORDS + 2,
        type_vocab_size=1,
        is_decoder=True,
        add_cross_attention=True,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
    )
    return BertLMHeadModel(config)


def join(see: ViTModel, say: BertLMHeadModel) -> VisionEncoderDecoderModel:
    """The two as one model that generates."""
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(see.config, say.config)
    config.decoder_start_token_id, config.pad_token_id = START, PAD
    config.eos_token_id, config.tie_word_embeddings = END, False  # the decoder ties its own
    model: Any = VisionEncoderDecoderModel(config=config, encoder=see, decoder=say)
    chosen = model.generation_config
    chosen.decoder_start_token_id, chosen.pad_token_id, chosen.eos_token_id = START, PAD, END
    chosen.max_new_tokens = WORDS
    return model.eval()


def save(say: BertLMHeadModel, text: BertTokenizer, folder: Path, record: object) -> None:
    """Weights in float16, configuration, vocabulary, and how they came about."""
    copy.deepcopy(say).half().save_pretrained(folder)
    text.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def load_decoder(folder: Path) -> tuple[BertLMHeadModel, BertTokenizer]:
    """What `save` wrote, float32 in evaluation mode."""
    say: Any = BertLMHeadModel.from_pretrained(folder, dtype=torch.float32)
    return say.eval(), BertTokenizer.from_pretrained(folder)


def load(data: Path, folder: Path) -> tuple[VisionEncoderDecoderModel, BertTokenizer, Prepare]:
    """The captioner: encoder from ``data``, decoder from ``folder``."""
    see, prepare = encoder(data)
    say, text = load_decoder(folder)
    return join(see, say), text, prepare


def export(data: Path, folder: Path, out: Path) -> None:
    """Write the captioner as one folder of transformers, for `turbovlm eval` and `bench`."""
    model, text, _ = load(data, folder)
    model.save_pretrained(out)
    text.save_pretrained(out)
    # the only one that resizes and then cuts out, as timm does; they differ by rounding
    CLIPImageProcessor(
        size={"shortest_edge": 248},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(out)


@torch.inference_mode()
def features(see: ViTModel, prepare: Prepare, images: Sequence[Path]) -> Tensor:
    """float16 ``(2, images, tokens, channels)``, the second of the mirrored images."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in track(range(0, len(images), 50), "features"):
        x = prepare([Image.open(p).convert("RGB") for p in images[start : start + 50]])
        for way, pixels in zip(found, (x, x.flip(-1)), strict=True):
            way.append(see(pixels).last_hidden_state.half())
    return torch.stack([torch.cat(way) for way in found])


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


def loss(say: BertLMHeadModel, seen: Tensor, packed: Packed) -> Tensor:
    """Mean cross-entropy over the words, smoothed."""
    states = say.bert(
        packed.tokens,
        attention_mask=packed.mask,
        position_ids=packed.position,
        encoder_hidden_states=seen,
        use_cache=False,
    ).last_hidden_state
    learned = packed.next != PAD
    logits = say.cls(states[learned])
    return F.cross_entropy(logits.float(), packed.next[learned], label_smoothing=SMOOTHING)


@torch.inference_mode()
def captions(model: Any, text: BertTokenizer, seen: Tensor, batch: int = 100) -> list[str]:
    """Greedy captions from features ``(images, tokens, channels)``."""
    found: list[str] = []
    for part in seen.split(batch):
        ids = model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=part.float()), do_sample=False
        )
        found += text.batch_decode(ids, skip_special_tokens=True)
    return found


class Until(NamedTuple):
    """When training ends, whichever comes first."""

    epochs: int
    minutes: float


def train(
    model: Any,
    text: Any,
    seen: Tensor,
    truth: Sequence[Sequence[str]],
    until: Until,
    keep: Callable[[dict[str, float]], None],
) -> None:
    """Train at a rate that follows whichever of the epochs and the minutes is nearer its end.

    ``keep`` is called with the record of every epoch that is the best so far.
    """
    say, fit = model.decoder, len(truth) - SELECT
    ids = [
        [[START, *text.convert_tokens_to_ids(words(c)[: WORDS - 1]), END] for c in five]
        for five in truth
    ]
    groups = [
        {"params": [p for p in say.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in say.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), fused=True)
    best, step, done, start = -1.0, 0, 0.0, time.monotonic()
    for epoch in range(1, until.epochs + 1):
        model.train()
        losses: list[float] = []
        for part in torch.randperm(fit).split(BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                features = seen[torch.randint(2, (len(part),)), part].float()
                value = loss(say, features, Packed.of([ids[i] for i in part.tolist()]))
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(say.parameters(), 1.0)
            step += 1
            passed = (time.monotonic() - start) / 60
            done = max(step / (until.epochs * math.ceil(fit / BATCH)), passed / until.minutes)
            half_cosine = (1 + math.cos(math.pi * min(done, 1.0))) / 2
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(step / WARMUP, half_cosine)
            optimizer.step()
            losses.append(value.item())
            if done >= 1:
                break
        model.eval()
        found = captions(model, text, seen[0, fit:])
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


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True, metavar="DIR")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--minutes", type=float, default=40)
    p.add_argument(
        "--export", type=Path, metavar="FOLDER", help="do not train: write --out as a whole model"
    )
    p.add_argument("--cache", type=Path, metavar="FILE", help="features of the training split")
    args = p.parse_args()
    if args.export:
        export(args.data, args.out, args.export)
        return
    torch.manual_seed(0)
    images, truth = read(args.data, "train")
    see, prepare = encoder(args.data)
    if args.cache and args.cache.is_file():
        seen = torch.load(args.cache, weights_only=True)
    else:
        seen = features(see, prepare, images)
        if args.cache:
            torch.save(seen, args.cache)
    tokens = vocabulary(truth[:-SELECT])
    say = decoder(len(tokens))
    model, text = join(see, say), tokenizer(tokens)
    keep = partial(save, say, text, args.out)
    train(model, text, seen, truth, Until(args.epochs, args.minutes), keep)


if __name__ == "__main__":
    main()
