"""A small LLaVA that describes photographs: a frozen ViT-Ti/16 AugReg, a Llama from scratch.

    python benchmarks/real/train_llava.py --data DATA --out benchmarks/real/heads/llava

DATA holds vit_tiny_augreg and flickr8k. The model is transformers' LlavaForConditionalGeneration:
the tower's last states, 196 of them, a projector and a Llama of two layers that knows whole words.
The Llama first reads the captions of 5500 images of the training split alone, which is also the
baseline that sees no picture; then it and the projector learn from all visual tokens. The best
epoch is chosen by the CIDEr of greedy captions of the other 500. Only the two are written.

A prompt is [CLS], the image, [SEP]; a caption follows and ends with [SEP].

What is under heads/llava comes from ``--images 0:1500 3000:5000 --epochs 8 --minutes 36``, which is
3000 images to learn from and 500 to choose by, on one thread of a machine that had ten jobs for two
cores: 375 steps of 8 images without pictures and 1466 with them, which ended in epoch 4, the best,
with a CIDEr of 0.351. Without pictures it is 0.109. It was still improving.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from flickr8k import (
    END,
    PAD,
    SELECT,
    SMOOTHING,
    START,
    WORDS,
    Packed,
    Pupil,
    Until,
    arguments,
    cached,
    encoder,
    features,
    processor,
    read,
    tokenizer,
    train,
    vocabulary,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    ViTModel,
)

from turbovlm_lab.reading import greedy_tokens, standardise
from turbovlm_workbench.load.prepare import Prepare

IMAGE = "<image>"
TOKENS, PATCH = 196, 16
BLIND = 1  # epochs without pictures
FILE = "model.safetensors"


def llava(see: ViTModel, tokens: int, width: int = 192, layers: int = 2) -> Any:
    """A LLaVA of this tower with an untrained projector and Llama.

    Args:
        see: the tower, which the model holds as it is.
        tokens: of the vocabulary, IMAGE the last of them.
        width: of the Llama.
        layers: of the Llama.
    """
    config = LlavaConfig(
        vision_config=see.config,
        text_config=LlamaConfig(
            vocab_size=tokens,
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=512,
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=END,
            tie_word_embeddings=True,
        ),
        image_token_index=tokens - 1,
        image_seq_length=TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model: Any = LlavaForConditionalGeneration(config)
    model.model.vision_tower = see.requires_grad_(False)
    chosen = model.generation_config
    chosen.pad_token_id, chosen.bos_token_id, chosen.eos_token_id = PAD, START, END
    chosen.max_new_tokens = WORDS
    return model.eval()


def processing(tokens: list[str]) -> LlavaProcessor:
    """Pictures to 224 px, and ``"<image>"`` to the prompt."""
    text = tokenizer(
        tokens,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],  # no types of tokens
        model_max_length=512,
    )
    return LlavaProcessor(
        processor(),
        text,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=IMAGE,
    )


def learned(model: Any) -> dict[str, Tensor]:
    """Weights of projector and Llama, what is tied once."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if ".vision_tower." not in name and name != "lm_head.weight"
    }


def save(model: Any, tokens: list[str], folder: Path, record: object) -> None:
    """What is `learned`, in float16, the vocabulary, and how they came about."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() for name, value in learned(model).items()}, folder / FILE)
    (folder / FILE).chmod(0o644)
    (folder / "vocabulary.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def load(data: Path, folder: Path) -> tuple[Any, LlavaProcessor, Prepare]:
    """The model, float32 in evaluation mode: tower from ``data``, the others from ``folder``."""
    see, prepare = encoder(data)
    tokens = (folder / "vocabulary.txt").read_text("utf-8").split("\n")[:-1]
    model = llava(see, len(tokens))
    state = {name: value.float() for name, value in load_file(folder / FILE).items()}
    wrong = model.load_state_dict(state, strict=False)
    assert not wrong.unexpected_keys
    assert set(learned(model)) == set(state)
    return model, processing(tokens), prepare


def export(data: Path, folder: Path, out: Path) -> None:
    """Write the model as one folder of transformers, for `turbovlm eval` and `bench`."""
    model, text, _ = load(data, folder)
    model.save_pretrained(out)
    text.save_pretrained(out)


def visual_states(see: ViTModel, pixels: Tensor) -> Tensor:
    """What LLaVA reads of the tower, ``(B, 196, channels)``."""
    return see(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]


def projected(model: Any, seen: Tensor) -> Tensor:
    """What the Llama reads of `visual_states`, ``(B, n, C)``."""
    return model.model.multi_modal_projector(seen.float())


def before(model: Any, image: Tensor, at: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[CLS] and the visual tokens ``(B, K, C)`` at the places ``at`` ``(B, K)`` of all 196, or at
    the first: embeddings ``(B, 1 + K, C)`` and positions ``(B, 1 + K)``."""
    rows, count, _ = image.shape
    at = torch.arange(count).expand(rows, -1) if at is None else at
    start = model.get_input_embeddings()(torch.full((rows, 1), START))
    return torch.cat([start, image], 1), F.pad(at + 1, (1, 0))


def logits(
    model: Any,
    image: Tensor,
    packed: Packed,
    at: Tensor | None = None,
    size: Tensor | None = None,
) -> Tensor:
    """Of the words to learn, ``(M, V)``, from visual tokens as `before` takes them.

    With ``size`` ``(B, K)`` its logarithm is added to what a visual token gets of the attention, as
    if it were there as many times.
    """
    x, position = before(model, image, at)
    llama, known = model.model.language_model, x.shape[1]
    size = torch.ones(image.shape[:2]) if size is None else size
    counts = F.pad(size.log(), (1, 0))[:, None, None]
    # a pass of its own for the image: nobody reads what the last layer makes of it
    cache = llama(
        inputs_embeds=x,
        position_ids=position,
        attention_mask=torch.full((known, known), -torch.inf).triu(1) + counts,
        use_cache=True,
    ).cache
    own = torch.zeros(packed.mask.shape).masked_fill(~packed.mask, -torch.inf)
    states = llama(
        inputs_embeds=model.get_input_embeddings()(packed.tokens),
        attention_mask=torch.cat([counts.expand(-1, -1, own.shape[2], -1), own], 3),
        position_ids=1 + TOKENS + packed.position,
        cache=cache,
        use_cache=True,
    ).last_hidden_state
    return model.lm_head(states[packed.next != PAD])


def loss(model: Any, seen: Tensor, packed: Packed) -> Tensor:
    """Mean cross-entropy over the words, smoothed."""
    found = logits(model, projected(model, seen), packed)
    return F.cross_entropy(found, packed.next[packed.next != PAD], label_smoothing=SMOOTHING)


@torch.inference_mode()
def greedy(
    model: Any, text: BertTokenizer, image: Tensor, at: Tensor | None = None, batch: int = 50
) -> list[str]:
    """Greedy captions from visual tokens as `before` takes them."""
    found: list[str] = []
    for rows in torch.arange(len(image)).split(batch):
        x, position = before(model, image[rows], None if at is None else at[rows])
        end = torch.full((len(rows), 1), END)
        x = torch.cat([x, model.get_input_embeddings()(end)], 1)
        position = F.pad(position, (0, 1), value=1 + TOKENS)
        ids = greedy_tokens(model, x, position, END, WORDS)
        found += text.batch_decode(ids, skip_special_tokens=True)
    return found


@torch.inference_mode()
def captions(model: Any, text: BertTokenizer, seen: Tensor) -> list[str]:
    """Greedy captions from `visual_states`, or none of them ``(images, 0, channels)``."""
    return greedy(model, text, projected(model, seen))


def part(text: str) -> slice:
    """``FROM:TO``, two numbers."""
    first, last = text.split(":")
    return slice(int(first), int(last))


def main() -> None:
    p = arguments(__doc__)
    p.add_argument(
        "--images",
        type=part,
        nargs="+",
        default=[slice(None)],
        metavar="FROM:TO",
        help="parts of the training split",
    )
    args = p.parse_args()
    if args.export:
        export(args.data, args.out, args.export)
        return
    torch.manual_seed(0)
    images, truth = ([x for p in args.images for x in all_[p]] for all_ in read(args.data, "train"))
    see, prepare = encoder(args.data)
    tokens = [*vocabulary(truth[:-SELECT]), IMAGE]
    model, text = llava(see, len(tokens)), tokenizer(tokens)
    say = nn.ModuleList([model.model.language_model, model.model.multi_modal_projector])
    pupil = Pupil(say, text, END, partial(loss, model), partial(captions, model, text), 8, 100)
    record: dict[str, Any] = {}
    nothing = torch.zeros(1, len(images), 0, see.config.hidden_size)
    train(pupil, nothing, truth, Until(BLIND, args.minutes), lambda x: record.update(blind=x))
    seen = cached(
        args.cache, lambda: features(partial(visual_states, see), prepare, images, ways=1)
    )
    standardise(model.model.multi_modal_projector, seen[0, :200])
    train(
        pupil,
        seen,
        truth,
        Until(args.epochs, args.minutes),
        lambda x: save(model, tokens, args.out, record | x),
    )


if __name__ == "__main__":
    main()
