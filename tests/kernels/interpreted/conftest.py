"""These tests run Triton's interpreter, which must be on before Triton is imported.

``tests/kernels/test_interpreter.py`` runs them in a process of their own; by hand:
``TRITON_INTERPRET=1 pytest tests/kernels/interpreted``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def kernels_on() -> Iterator[None]:
    """Mode triton, no gradients, and a kernel that fails is an error instead of a warning."""
    import warnings

    import torch

    from turbovlm.kernels import KernelWarning, use_kernels

    use_kernels("triton")
    torch.manual_seed(0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", KernelWarning)
        yield
    use_kernels("auto")
