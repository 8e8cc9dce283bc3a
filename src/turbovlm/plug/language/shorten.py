"""What the language model is handed, without the tokens that go: one place for all arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turbovlm.errors import UnsupportedInput
from turbovlm.plug.language.cache import NAMES, ShortRecord, hold, record_of, release
from turbovlm.plug.language.images import Group, groups
from turbovlm.plug.language.masks import Follow, check_width, sizes
from turbovlm.plug.language.state import LanguagePatch
from turbovlm.plug.language.trace import VisualTrace
from turbovlm.plug.language.windows import windowed

FOLLOWING = (
    "attention_mask",
    "deepstack_visual_embeds",
    "inputs_embeds",
    "position_ids",
    "visual_pos_masks",
    *NAMES,
)
"""Arguments laid out along the tokens that can follow; any other of that shape is refused."""


@dataclass(frozen=True)
class Step:
    """One call of the language model.

    Attributes:
        given: its arguments, shortened.
        cache: the one it was given, or None.
        before: what that one stood for.
        after: what the cache stands for when it has run.
    """

    given: dict[str, Any]
    cache: Any
    before: ShortRecord | None
    after: ShortRecord

    def finish(self, output: Any) -> None:
        """The cache, given or made by the language model, stands for the whole prompt again."""
        cache = _made(output) if self.cache is None else self.cache
        if cache is not None:
            hold(cache, self.after)

    def undo(self) -> None:
        """The language model failed: the cache is what it was."""
        if self.before is not None:
            hold(self.cache, self.before)


def shorten(patch: LanguagePatch, language: Any, given: dict[str, Any]) -> Step | None:
    """The arguments of a language model without the visual tokens that go.

    Args:
        patch: the setting, and the running call.
        language: the language model.
        given: its arguments by name.

    Returns:
        None where nothing is to be done: no visual tokens now or before, or all of them stay.

    Raises:
        UnsupportedInput: for an argument that cannot follow.
        ConfigError: if an image has too few tokens.
    """
    cache = next((given[n] for n in NAMES if given.get(n) is not None), None)
    record = record_of(cache)
    x, call = given.get("inputs_embeds"), patch.current()
    chosen: list[Group] = []
    if x is not None and call is not None and call.features:
        patch.record(None)
        chosen = groups(patch, call, x)
    if not chosen and record is None:
        return None
    handed = given["input_ids"] if x is None else x
    batch, tokens = handed.shape[:2]
    past = 0 if cache is None else cache.get_seq_length()
    given = dict(given)
    if given.get("position_ids") is None:
        count = torch.arange(tokens, device=handed.device) + past
        given["position_ids"] = count.unsqueeze(0)
    given["attention_mask"] = windowed(language, given, cache, past)
    if chosen:
        assert call is not None
        _check(language, given, cache, (batch, tokens))
        past = int(past)
        if call.mask is not None:
            check_width(call.mask, past + tokens)
        rows, padded = _rows(chosen, call.mask, handed)
    else:
        rows, padded = torch.arange(tokens, device=handed.device).expand(batch, -1), False
    before = sizes(cache, tokens)
    if record is not None:
        release(cache)
        padded = padded or record.padded
    try:
        columns = torch.where(rows >= 0, rows + past, -1)
        if cache is not None:
            columns = torch.cat([_held(cache, record, columns), columns], 1)
        follow = Follow(rows, columns, past + tokens, padded, before, sizes(cache, rows.shape[1]))
        given["attention_mask"] = follow.mask(given["attention_mask"])
        if chosen:
            _visual(given, chosen, follow)
            if patch.recorders:
                patch.record(_trace(chosen, tokens, rows.shape[1]))
    except BaseException:
        if record is not None:
            hold(cache, record)
        raise
    after = ShortRecord(type(cache), columns, past + tokens, padded) if chosen else record
    assert after is not None
    return Step(given, cache, record, after)


def _held(cache: Any, record: ShortRecord | None, columns: Tensor) -> Tensor:
    """``(B, P)`` the columns of what is in the cache."""
    cached = int(cache.get_seq_length())
    if record is not None:
        return record.until(cached)
    return torch.arange(cached, device=columns.device).expand(len(columns), -1)


def _made(output: Any) -> Any:
    """The cache that the language model made, or None."""
    if isinstance(output, tuple):
        return next((part for part in output if hasattr(part, "get_seq_length")), None)
    return next((getattr(output, name) for name in NAMES if name in output), None)


def _check(language: Any, given: dict[str, Any], cache: Any, shape: tuple[int, int]) -> None:
    batch, tokens = shape
    if cache is not None and not hasattr(cache, "layers"):
        raise UnsupportedInput(
            f"a {type(cache).__name__} lays out its tokens itself and cannot stand for more than "
            "it holds: use a DynamicCache or a StaticCache, which generate() makes"
        )
    position = given["position_ids"]
    if position.shape[-1] != tokens:
        raise UnsupportedInput(
            f"position_ids has {position.shape[-1]} columns for {tokens} tokens: leave it out, or "
            "give one a token of the whole prompt; those of the tokens that stay are kept"
        )
    attention = getattr(language.config, "_attn_implementation", None) or ""
    if "flash" in attention and position.dim() == 2 and batch == 1:
        raise UnsupportedInput(
            f"{attention} takes positions with gaps for packed sequences: use "
            "attn_implementation='sdpa'"
        )
    for name, value in given.items():
        along = isinstance(value, Tensor) and tuple(value.shape[:2]) == (batch, tokens)
        if along and name not in FOLLOWING:
            raise UnsupportedInput(
                f"the language model is given {name}, which is laid out along the tokens and "
                "cannot follow those that stay: leave it out"
            )


def _rows(chosen: Sequence[Group], mask: Tensor | None, handed: Tensor) -> tuple[Tensor, bool]:
    """Which tokens stay, ``(B, L)``, -1 for padding on the left; and whether there is any."""
    batch, tokens = handed.shape[:2]
    stay = torch.ones(batch, tokens, dtype=torch.bool, device=handed.device)
    for group in chosen:
        sample = group.sample.unsqueeze(1)
        stay[sample, group.column[:, group.free]] = False
        stay[sample, group.kept] = True
    if mask is not None:  # padding on the left is laid out anew
        stay &= mask[:, -tokens:].to(stay.device).bool().long().cumsum(1) > 0
    counts = stay.sum(1).tolist()
    order = stay.long().sort(dim=1, stable=True).indices[:, -max(counts) :]
    return torch.where(stay.gather(1, order), order, -1), min(counts) < max(counts)


def _visual(given: dict[str, Any], chosen: Sequence[Group], follow: Follow) -> None:
    """Embeddings, positions and deepstack features of the tokens that stay, in place."""
    rows = follow.rows.clamp_min(0)
    given["position_ids"] = follow.positions(given["position_ids"])

    def gathered(x: Tensor) -> Tensor:
        x = x.clone()
        for group in chosen:
            folded = group.selection.fold(group.features(x))
            x[group.sample.unsqueeze(1), group.kept] = folded
        return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[2]))

    given["inputs_embeds"] = gathered(given["inputs_embeds"])
    visual = given.get("visual_pos_masks")
    if visual is None:
        return
    left = visual.gather(1, rows) & (follow.rows >= 0)
    given["visual_pos_masks"] = left
    deep = []
    for features in given["deepstack_visual_embeds"]:
        whole = features.new_zeros(*visual.shape, features.shape[-1])
        whole[visual] = features
        deep.append(gathered(whole)[left])
    given["deepstack_visual_embeds"] = deep


def _trace(chosen: Sequence[Group], before: int, after: int) -> VisualTrace:
    images = [trace for group in chosen for trace in group.traces()]
    images.sort(key=lambda t: (t.sample, int(t.column[0])))
    return VisualTrace(before, after, tuple(images))
