"""The costly steps of merging as Triton kernels, with torch where these do not run.

In a block that merges: `look` at the keys, `attend`, `choose`, and `merge` what attention added
to the residual. In a block that only carries sizes: `attend`.

Nothing here changes what is computed: `turbovlm.maths` says what that is. `use_kernels` chooses
who computes. The kernels are for inference: where gradients are needed torch computes.
"""

from __future__ import annotations

from torch import Tensor

from turbovlm.kernels import ops
from turbovlm.kernels.choice import choose
from turbovlm.kernels.switch import KernelWarning, available, kernel_mode, use_kernels
from turbovlm.maths.plan import Plan

__all__ = [
    "KernelWarning",
    "attend",
    "available",
    "choose",
    "kernel_mode",
    "look",
    "merge",
    "use_kernels",
]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Proportional attention ``softmax(q k^T scale + bias) v`` (supplementary Eq. 2).

    Args:
        q: ``(B, H, N, d)``, any strides.
        k: ``(B, K, N, d)``, any strides; K divides H, and H / K queries share a head.
        v: like ``k``.
        bias: ``(B, N)`` fp32 that is added to the logits of each key: ``log size``.
        scale: of the products, ``d ** -0.5`` in most models.

    Returns:
        ``(B, H, N, d)`` in q's type, in memory ``(B, N, H, d)``.
    """
    return ops.attend(q, k, v, bias, scale)


def look(
    keys: Tensor, row: Tensor | None = None, bias: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """The keys read once: what similarity is measured on, and the guide's row of logits.

    Args:
        keys: ``(B, K, N, d)``, any strides; K divides H. Queries where these measure similarity.
        row: ``(B, H, d)`` the guide's query of every head: that of cls, or the mean query; None
            computes no logits.
        bias: ``(B, N)`` fp32 that is added to the logits: ``log size``.
        scale: of the products, ``d ** -0.5`` in most models.

    Returns:
        ``(B, N, d)`` fp32 keys averaged over heads, of length 1; ``(B, H, N)`` fp32 logits, or
        None without a row.
    """
    unit, logits = ops.look(keys, row, bias, scale)
    return unit, None if row is None else logits


def merge(
    x: Tensor, size: Tensor | None, plan: Plan, branch: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Average every source into its destination, weighted by size (Eq. 13).

    Args:
        x: ``(B, N, C)`` tokens, any strides.
        size: ``(B, N)`` fp32, how many original tokens each one stands for; None for one each.
        plan: what to merge.
        branch: ``(B, N, C)`` that is added to ``x`` first: the block's residual add, without a
            pass through memory of its own.

    Returns:
        ``(B, N - r, C)`` in x's type; ``(B, N - r)`` fp32 sizes, and their logarithms, the bias
        of the next attention.
    """
    return ops.merge(x, size, plan, branch)
