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

import copy
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
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BertTokenizer,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutput

from turbovlm_workbench.load.prepare import Prepare


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
    processor().save_pretrained(out)


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


def main() -> None:
    args = arguments(__doc__).parse_args()
    if args.export:
        export(args.data, args.out, args.export)
        return
    torch.manual_seed(0)
    images, truth = read(args.data, "train")
    see, prepare = encoder(args.data)
    seen = cached(args.cache, lambda: features(lambda x: see(x).last_hidden_state, prepare, images))
    tokens = vocabulary(truth[:-SELECT])
    say = decoder(len(tokens))
    model, text = join(see, say), tokenizer(tokens)
    pupil = Pupil(say, text, START, partial(loss, say), partial(captions, model, text))
    keep = partial(save, say, text, args.out)
    train(pupil, seen, truth, Until(args.epochs, args.minutes), keep)


if __name__ == "__main__":
    main()
