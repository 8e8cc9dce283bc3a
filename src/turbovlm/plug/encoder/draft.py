"""A first draft of a row for an architecture that no row describes, from its children's names."""

from __future__ import annotations

from collections import Counter

from torch import nn

from turbovlm.plug.encoder.find import Tower
from turbovlm.plug.encoder.row import Row

_ATTENTION = ("attn", "attention")
_MLP = ("mlp", "ffn", "feed_forward", "feedforward", "fc1", "fc2")
_FIRST = ("norm1", "norm_1", "norm_before", "ln_1", "ln1", "attn_norm", "attention_norm")
_SECOND = ("norm2", "norm_2", "norm_after", "ln_2", "ln2", "ffn_norm", "mlp_norm", "final_layer")


def draft(model: nn.Module) -> Tower | None:
    """The longest run of equal blocks with an attention and an MLP child, as a tower.

    The row says what the names suggest: it still has to pass the self-check, and what reads the
    tower (``readers``), the prefix tokens and the guide are for a person to say.

    Returns:
        None where no such blocks are found.
    """
    best: tuple[int, str, nn.Module, type[nn.Module]] | None = None
    for name, module in model.named_modules():
        kinds = Counter(type(child) for child in module.children())
        for kind, count in kinds.items():
            if count > (best[0] if best else 1) and _row_of(model, module, kind) is not None:
                best = (count, name, module, kind)
    if best is None:
        return None
    _, name, stack, kind = best
    row = _row_of(model, stack, kind)
    assert row is not None
    blocks = tuple(child for child in stack.children() if type(child) is kind)
    return Tower(name, model, row, blocks, row.reads)


def _row_of(model: nn.Module, stack: nn.Module, kind: type[nn.Module]) -> Row | None:
    block = next(child for child in stack.children() if type(child) is kind)
    names = [name for name, _ in block.named_children()]
    norms = [n for n in names if "norm" in n or n.startswith("ln")]
    plain = [n for n in names if n not in norms]
    attention = [n for n in plain if any(part in n for part in _ATTENTION) and "drop" not in n]
    mlp = [n for n in plain if any(part in n for part in _MLP) and n not in attention]
    if not attention or not mlp:
        return None
    first = [n for n in norms if any(part in n for part in _FIRST)]
    second = [n for n in norms if any(part in n for part in _SECOND) and n not in first]
    return Row(
        block=_dotted(kind),
        towers=(_dotted(type(model)),),
        # later children of a branch feed on earlier ones: the last one muted mutes it all
        attention=(attention[0], *first),
        mlp=(*reversed(mlp), *second),
        prefix=0,
        guide="mean",
    )


def _dotted(kind: type[nn.Module]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
