"""The three sides of the limit benchmark: off, limit and ours, on one set of weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import timm
import torch
from sliced import attention_kernel, kernels_seen, lengths_seen, sliced
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import turbovlm
from turbovlm.maths.schedule import lengths
from turbovlm.measure import Variant

# EVA-ViT-g's blocks (BLIP-2, MiniGPT-v2) at 364 px, four of the 39: enough to see what one costs
EVA_G = "eva_g_4_blocks_364"
BUILT = {
    EVA_G: {
        "img_size": 364,
        "patch_size": 14,
        "embed_dim": 1408,
        "depth": 4,
        "num_heads": 16,
        "mlp_ratio": 6144 / 1408,
        "num_classes": 0,
    }
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Setting:
    model: str
    dtype: str
    batch: int
    r: int

    def __str__(self) -> str:
        return f"{self.model} {self.dtype} b{self.batch} r{self.r}"


@dataclass(frozen=True)
class Form:
    """One way to run one side: in the variant's context, ``model`` is changed accordingly."""

    model: VisionTransformer
    variant: Variant


class Bench:
    """One model, one input, one r."""

    def __init__(
        self,
        model: VisionTransformer,
        setting: Setting,
        *,
        method: str,
        device: str,
        attention: Sequence[str] | None,
        compiled: bool,
    ) -> None:
        self.model, self.setting, self.compiled = model, setting, compiled
        # in half precision on a CPU, fused attention can lose to the materialised one: try both
        half_on_cpu = setting.dtype != "fp32" and torch.device(device).type == "cpu"
        self.attention = attention or (("fused", "eager") if half_on_cpu else ("fused",))
        size = model.patch_embed.img_size
        assert size is not None
        x = torch.randn(setting.batch, 3, *size, generator=torch.Generator().manual_seed(0))
        self.x = x.to(device, DTYPES[setting.dtype])
        self.config = turbovlm.Merge.from_dict({"r": setting.r, "method": method})
        self.start = model.patch_embed.num_patches + model.num_prefix_tokens
        depth = len(model.blocks)
        self.lengths = lengths(self.config.schedule, self.start, model.num_prefix_tokens, depth)
        self.open = ExitStack()
        # every compiled form is one entry for the same forward
        torch._dynamo.config.recompile_limit = 64

    def forms(self) -> dict[str, Form]:
        """Every form of every side; names are ``side/form/attention``."""
        found: dict[str, Form] = {}
        for attention in self.attention:
            found[f"off/plain/{attention}"] = self.form("off", attention)
            found[f"limit/view/{attention}"] = self.form("limit", attention, copy_kept=False)
            found[f"limit/copy/{attention}"] = self.form("limit", attention, copy_kept=True)
            found[f"ours/merge/{attention}"] = self.form("ours", attention)
        return found

    def form(self, side: str, attention: str, copy_kept: bool = False) -> Form:
        # entered anew in every round, so that the sides share one model; a compiled model would
        # then compile anew too, so there each form has its own modules over the same weights
        model = twin(self.model) if self.compiled else self.model
        call: nn.Module = model

        def enter() -> AbstractContextManager[object]:
            stack = ExitStack()
            stack.enter_context(attention_kernel(model, attention == "fused"))
            if side == "limit":
                stack.enter_context(sliced(model, self.lengths, copy_kept))
            elif side == "ours":
                stack.enter_context(merged(model, self.config))
            return stack

        def run() -> object:
            with torch.no_grad():
                return call(self.x)

        if not self.compiled:
            return Form(model, Variant(run, enter))
        self.open.enter_context(enter())
        call = as_module(torch.compile(model, fullgraph=True, dynamic=False))
        return Form(model, Variant(run, nullcontext))

    def check(self, sides: dict[str, Form]) -> dict[str, str]:
        """That the sides do the same work; returns the attention operators of each.

        Raises:
            SystemExit: if a block keeps other tokens than it should, or merging changes nothing.
        """
        kernels: dict[str, str] = {}
        outputs: dict[str, Tensor] = {}
        for side, form in sides.items():

            def run(model: VisionTransformer = form.model) -> Tensor:
                with torch.no_grad():
                    return model(self.x)

            with form.variant.enter():
                seen = lengths_seen(form.model, run)
                kernels[side] = kernels_seen(run)
                outputs[side] = run()
            expected = self.lengths if side != "off" else (self.start,) * len(self.lengths)
            if seen != expected:
                raise SystemExit(f"{self.setting}: {side} leaves {seen} tokens, not {expected}")
        if self.setting.r and torch.equal(outputs["ours"], outputs["off"]):
            raise SystemExit(f"{self.setting}: merging does not change the output")
        return kernels


@contextmanager
def merged(model: nn.Module, config: turbovlm.Merge) -> Iterator[None]:
    """Ours, without the recording that ``turbovlm.applied`` adds."""
    turbovlm.apply(model, config)
    try:
        yield
    finally:
        turbovlm.remove(model)


def twin(model: VisionTransformer) -> VisionTransformer:
    """The same weights in memory under modules of their own."""
    shared = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def as_module(compiled: object) -> nn.Module:
    assert isinstance(compiled, nn.Module)
    return compiled


def random_model(name: str, dtype: torch.dtype, device: str) -> VisionTransformer:
    """A timm ViT with random weights, in eval mode, by timm's name or one of `BUILT`."""
    torch.manual_seed(0)
    if name in BUILT:
        model: nn.Module = VisionTransformer(**BUILT[name])
    else:
        model = timm.create_model(name, pretrained=False)
    if not isinstance(model, VisionTransformer):
        raise SystemExit(f"{name} is not a timm VisionTransformer: only those are sliced here")
    return model.to(device, dtype).eval()
