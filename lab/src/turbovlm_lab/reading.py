"""The lab's language model learns to answer from visual tokens.

All texts about a scene stand behind its 196 image tokens in one row, each blind to the others and
at the positions that it has alone, so that an image is read but once for all of them. Some heads
are told where to look, at the patches that an answer is read from: left to the answers alone, the
model takes many times as many steps to find out where they come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from turbovlm_lab.telling import END, START, Told, vlm_tokens
from turbovlm_lab.vlm import IMAGE_TOKENS

BEFORE = 1 + IMAGE_TOKENS  # [CLS] and the image
HINT = 0.3
TOLD_LAYERS, TOLD_HEADS = (1, 2), 2


class Rows(NamedTuple):
    """The texts about B scenes behind their images, L positions a row.

    ``tokens``, ``position`` and ``after`` (what follows a token and is learned, -1 elsewhere) are
    int64 (B, L); ``text`` (B, L) numbers the texts from 1 on, 0 for the image, -1 for padding;
    ``seen`` is bool (B, L, 196): the patches that what follows is read from; ``weight`` (B, L) is
    what each learned token counts in training.
    """

    tokens: Tensor
    position: Tensor
    after: Tensor
    text: Tensor
    seen: Tensor
    weight: Tensor

    @property
    def mask(self) -> Tensor:
        """Bool (B, 1, L, L): a token sees the image and what is before it in its own text."""
        length = self.tokens.shape[1]
        own = self.text[:, :, None] == self.text[:, None, :]
        seen = own | (self.text[:, None, :] == 0)
        return (seen & torch.ones(length, length, dtype=torch.bool).tril())[:, None]


def text_rows(told: Sequence[Sequence[Told]]) -> Rows:
    """Rows of some texts a scene."""
    ids = [[([*vlm_tokens(t.prompt), END], vlm_tokens(t.answer)) for t in some] for some in told]
    length = BEFORE + max(sum(len(a) + len(b) for a, b in some) for some in ids)
    tokens, position = np.zeros((2, len(told), length), dtype=np.int64)
    after, text = np.full((2, len(told), length), -1)
    seen = np.zeros((len(told), length, IMAGE_TOKENS), dtype=bool)
    weight = np.zeros((len(told), length), dtype=np.float32)
    tokens[:, 0], text[:, :BEFORE] = START, 0
    position[:, :BEFORE] = np.arange(BEFORE)
    for row, (some, pairs) in enumerate(zip(told, ids, strict=True)):
        at = BEFORE
        for number, (one, (prompt, answer)) in enumerate(zip(some, pairs, strict=True), 1):
            span = slice(at, at + len(prompt) + len(answer))
            first = at + len(prompt) - 1  # the end of the prompt tells the answer's first token
            tokens[row, span] = prompt + answer
            position[row, span] = BEFORE + np.arange(len(prompt) + len(answer))
            text[row, span] = number
            after[row, first : first + len(answer) + 1] = [*answer, END]
            seen[row, first : first + len(answer)] = one.seen
            seen[row, first - 1] = one.seen[0]  # the question is over
            # else the forty words of a caption would drown the one of an answer
            weight[row, first - 1 : first + len(answer) + 1] = (len(answer) + 1) ** -0.5
            at = span.stop
    return Rows(*(torch.from_numpy(part) for part in (tokens, position, after, text, seen, weight)))


def predicted(model: Any, image: Tensor, given: Rows) -> Tensor:
    """Logits (M, V) of the M tokens that are learned, in the order of the rows.

    Args:
        model: the LLaVA.
        image: the visual tokens that its language model reads (B, N, C).
        given: texts about the scenes, behind as many.
    """
    embedded = model.get_input_embeddings()(given.tokens)
    last = 1 + image.shape[1]
    embedded = torch.cat([embedded[:, :1], image.to(embedded.dtype), embedded[:, last:]], dim=1)
    mask = torch.zeros(given.mask.shape).masked_fill_(~given.mask, torch.finfo(torch.float32).min)
    out = model.model.language_model(
        inputs_embeds=embedded,
        attention_mask=mask,
        position_ids=given.position,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(out[given.after >= 0])


@torch.inference_mode()
def greedy_tokens(model: Any, embedded: Tensor, position: Tensor, end: int, steps: int) -> Tensor:
    """The likeliest tokens one by one, int64 (B, T) with T of at most ``steps``.

    What follows a row's ``end``, and the end itself, is 0.

    Args:
        model: the LLaVA.
        embedded: what its language model reads first (B, L, C).
        position: of these (B, L); those that follow go on from the last.
        end: the token that ends a row.
        steps: at most.
    """
    embed, llama = model.get_input_embeddings(), model.model.language_model
    mask = torch.ones(embedded.shape[:2], dtype=torch.int64)
    x, cache, ids = embedded, None, []
    ended = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(steps):
        out = llama(
            inputs_embeds=x,
            position_ids=position,
            attention_mask=mask,
            cache=cache,
            use_cache=True,
        )
        cache = out.cache
        ids.append(model.lm_head(out.last_hidden_state[:, -1]).argmax(-1, keepdim=True))
        ended |= ids[-1][:, 0] == end
        if ended.all():
            break
        x, position = embed(ids[-1]), position[:, -1:] + 1
        mask = F.pad(mask, (0, 1), value=1)
    said = torch.cat(ids, 1)
    return said.masked_fill((said == end).cumsum(1) > 0, 0)


def reading_loss(model: Any, states: Tensor, given: Rows) -> Tensor:
    """Of the learned tokens, and of where the told heads looked.

    Args:
        model: the LLaVA.
        states: what its vision encoder makes of the scenes (B, 196, C).
        given: texts about them.
    """
    with watched_attention(model) as shares:
        logits = predicted(model, model.model.multi_modal_projector(states), given)
    learned = given.after >= 0
    each = F.cross_entropy(logits.float(), given.after[learned], reduction="none")
    right = _mean(each, given.weight[learned])
    told = given.seen.any(-1)
    missed = []
    for share in shares:
        looked = share[:, :TOLD_HEADS, :, 1:BEFORE].float().transpose(1, 2)[told]  # (M, heads, 196)
        on = (looked * given.seen[told][:, None]).sum(-1)
        missed.append(_mean(-on.clamp(min=1e-5).log().mean(1), given.weight[told]))
    return right + HINT * torch.stack(missed).mean()


def _mean(each: Tensor, weight: Tensor) -> Tensor:
    return (each * weight).sum() / weight.sum()


def right_texts(logits: Tensor, given: Rows) -> list[list[bool]]:
    """Whether greedy decoding gives each answer: all of its tokens are likeliest in their turn.

    Args:
        logits: of `predicted`.
        given: the rows that they belong to.

    Returns:
        For each row, one for each of its texts.
    """
    learned = given.after >= 0
    same = torch.zeros_like(learned)
    same[learned] = logits.argmax(-1) == given.after[learned]
    return [
        [bool(row[ends & (text == n)].all()) for n in range(1, int(text.max()) + 1)]
        for row, ends, text in zip(same, learned, given.text, strict=True)
    ]


@contextmanager
def watched_attention(model: Any) -> Iterator[list[Tensor]]:
    """The attention (B, H, L, L) of the told layers in the forwards while this is open."""
    shares: list[Tensor] = []
    layers = model.model.language_model.layers
    hooks = [
        layers[index].self_attn.register_forward_hook(lambda _, __, out: shares.append(out[1]))
        for index in TOLD_LAYERS
    ]
    try:
        yield shares
    finally:
        for hook in hooks:
            hook.remove()


def standardise(projector: Any, states: Tensor) -> None:
    """Start the projector as if the states had mean 0 and spread 1 in every channel."""
    flat = states.float().flatten(0, 1)
    mean, spread = flat.mean(0), flat.std(0).clamp(min=1e-3)
    with torch.no_grad():
        torch.nn.init.normal_(projector.linear_1.weight, std=flat.shape[1] ** -0.5)
        projector.linear_1.weight /= spread
        projector.linear_1.bias.copy_(-projector.linear_1.weight @ mean)
