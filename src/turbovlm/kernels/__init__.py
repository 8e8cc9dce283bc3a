"""The costly steps of merging as Triton kernels, with torch where these do not run.

In a block that merges: `look` at the keys, `attend`, `choose_tokens`, and `merge_tokens` with what
attention adds to the residual. In a block that only carries sizes: `attend`.

Nothing here changes what is computed: `turbovlm.maths` says what that is. `use_kernels` chooses
who computes. The kernels are for inference: where gradients are needed torch computes.
"""

from __future__ import annotations

from turbovlm.kernels.choice import choose_tokens
from turbovlm.kernels.ops import attend, look, merge_tokens
from turbovlm.kernels.switch import KernelWarning, available, kernel_mode, use_kernels, wanted

__all__ = [
    "KernelWarning",
    "attend",
    "available",
    "choose_tokens",
    "kernel_mode",
    "look",
    "merge_tokens",
    "use_kernels",
    "wanted",
]
