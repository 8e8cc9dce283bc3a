"""What the kernels share: tiles of rows, products, and how a width is cut into powers of two."""

# kernels are written in Triton's own language, which type checkers take for Python
# pyright: reportCallIssue=false, reportArgumentType=false
# pyright: reportPossiblyUnboundVariable=false
# pyright: reportAssignmentType=false

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PRECISION = "ieee" if torch.version.hip else "tf32x3"
"""How fp32 products are computed: to fp32's own precision, on tensor cores where Triton can."""


def power(count: int, least: int = 16) -> int:
    """The smallest power of two that is at least ``count`` and ``least``."""
    return max(least, 1 << max(0, count - 1).bit_length())


def aligned(x: Tensor, unit: int = 8) -> tuple[int, tuple[int, ...]]:
    """Strides of ``x`` in units that all of them but the last are multiples of.

    Triton knows only multiples of 16; heads of 72 or 88 are multiples of 8, and loads of 16 bytes
    need to know it.

    Returns:
        The unit, 1 where it does not divide, and the strides in it; the last one in elements.
    """
    *outer, last = x.stride()
    if any(stride % unit for stride in outer):
        return 1, x.stride()
    return unit, (*(stride // unit for stride in outer), last)


def split_width(width: int) -> tuple[int, int]:
    """A head dimension as one or two powers of two, whichever pads less.

    ``72 -> (64, 16)``, ``88 -> (64, 32)``, ``40 -> (32, 16)``, ``64 -> (64, 0)``.
    """
    whole = power(width)
    first = whole // 2
    if first < 16 or whole == width:
        return whole, 0
    second = power(width - first)
    return (first, second) if first + second < whole else (whole, 0)


@triton.jit
def load_rows(
    base, rows, columns, row_stride, column_stride, row_ok, D: tl.constexpr, FULL: tl.constexpr
):
    """A tile of rows; columns from D on are zero."""
    pointers = base + rows[:, None] * row_stride + columns[None, :] * column_stride
    if FULL:
        return tl.load(pointers, mask=row_ok[:, None], other=0.0)
    return tl.load(pointers, mask=row_ok[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """``a b + total``. WIDEN: the interpreter has no products of bf16; in fp32 they are equal."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)
