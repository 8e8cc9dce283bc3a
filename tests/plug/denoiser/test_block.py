"""The blocks of a patched denoiser against the literal oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import turbovlm
from tests.hosts import denoisers
from tests.reference import generation as literal

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"method": "redundancy"},
    {"method": "semantics"},
    {"alpha": 4.0, "plan": "module"},
    {"restore": "weighted"},
    {"restore": "copy"},
    {"proportional": False},
    {"destinations": "bipartite"},
    {"cell": (4, 2), "metric": "token", "method": "redundancy"},
    {"metric": "key"},
    {"metric": "key", "plan": "module", "alpha": 4.0},
    {"modules": ("self",)},
    {"modules": ("cross", "feed_forward")},
    {"modules": ("cross", "feed_forward"), "plan": "module"},
)
PRESET = ("destinations", "metric", "restore")
OFF = {"self": "self_attention", "cross": "cross_attention", "feed_forward": "feed_forward"}


@pytest.mark.parametrize("paired", [False, True], ids=["images", "guidance"])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_every_block_is_the_oracle(options: dict[str, Any], paired: bool) -> None:
    check_blocks({"ratio": 0.3, **options}, paired)


def check_blocks(options: dict[str, Any], paired: bool) -> None:
    """Each block of a small UNet against the oracle, which knows the same ``options``."""
    case = denoisers.unet(8, 12)
    model = case.model.double()
    fields = {n: v for n, v in options.items() if n != "modules" and n not in PRESET}
    fields["preset"] = {n: v for n, v in options.items() if n in PRESET}
    if "modules" in options:
        fields |= {field: 0.0 for kind, field in OFF.items() if kind not in options["modules"]}
    seen: list[tuple[Any, Tensor, Tensor, Tensor]] = []

    def see(block: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        seen.append((block, args[0], kwargs["encoder_hidden_states"], out))

    blocks = [m for m in model.modules() if type(m).__name__ == "BasicTransformerBlock"]
    for block in blocks:
        block.register_forward_hook(see, with_kwargs=True)
    latent = denoisers.noise(2, 4, 8, 12).double()
    latent = latent[:1].repeat(2, 1, 1, 1) if paired else latent
    text = denoisers.noise(2, 7, 24, seed=2).double()
    with torch.no_grad():
        setting = turbovlm.MergeRestore(seed=None, guidance=paired, **fields)
        turbovlm.apply(model, setting)
        merged = case.step(latent=latent, text=text)
        turbovlm.remove(model)
        plain = case.step(latent=latent, text=text)
        seen = seen[: len(blocks)]
        assert len(seen) == 7
        if paired and options.get("method") == "semantics":
            seen = seen[1:]  # no prompt has changed anything yet: all tokens are as good
        for block, x, prompt, out in seen:
            tokens = x.shape[1]
            grid = (8, 12) if tokens == 96 else (4, 6)
            told = literal.Setting(**options)
            slow = literal.block(block, x, prompt, grid, told, paired)
            torch.testing.assert_close(out, slow)
    assert not torch.allclose(merged, plain)
