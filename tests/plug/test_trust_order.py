"""apply and remove beside other plug-ins, in any order, and on models of odd shapes."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.utils import parametrizations

import turbovlm
from tests.hosts.zoo import SIZES, TIMM, pixels, wild
from turbovlm import Merge
from turbovlm.errors import AlreadyApplied, ConfigError, NotApplied, UnsuitableBlock

R = 5
EAGER: dict[str, Any] = SIZES | {"attn_implementation": "eager"}
LABELS: dict[str, Any] = {"num_labels": 3}


def vit() -> Any:
    return wild(hf.ViTModel(hf.ViTConfig(**SIZES)))


def out(model: Any, x: Tensor | None = None) -> Tensor:
    y = model(pixels() if x is None else x)
    return y if isinstance(y, Tensor) else y.last_hidden_state


def left(model: nn.Module) -> int:
    return sum("turbo_site" in vars(m) for m in model.modules())


def wrapped(model: Any) -> Callable[[], None]:
    """A plug-in that replaces forwards and puts the old ones back, as DeepCache does."""
    held = {}
    for block in model.layers:
        held[block] = old = block.forward
        block.forward = lambda *args, _old=old, **kwargs: _old(*args, **kwargs)

    def off() -> None:
        for block, old in held.items():
            block.forward = old

    return off


def hooked(model: Any) -> Callable[[], None]:
    handles = [b.register_forward_pre_hook(lambda _, args: args) for b in model.layers]

    def off() -> None:
        for handle in handles:
            handle.remove()

    return off


def offloaded(model: Any) -> Callable[[], None]:
    cpu_offload(model, execution_device=torch.device("cpu"))

    def off() -> None:
        remove_hook_from_submodules(model)

    return off


def parametrized(model: Any) -> Callable[[], None]:
    for block in model.layers:
        parametrizations.weight_norm(block.mlp.fc1)

    def off() -> None:
        for block in model.layers:
            nn.utils.parametrize.remove_parametrizations(block.mlp.fc1, "weight")

    return off


def compiled(model: Any) -> Callable[[], None]:
    torch._dynamo.reset()
    for block in model.layers[:2]:
        block.compile(backend="eager")

    def off() -> None:
        for block in model.layers[:2]:
            block._compiled_call_impl = None

    return off


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


PLUGINS = (wrapped, hooked, offloaded, parametrized, compiled)
# weight norm divides by a norm and multiplies by it again
CLOSE: dict[str, Any] = {
    "atol": 1e-5,
    "rtol": 1e-5,
}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda f: f.__name__)
@torch.no_grad()
def test_another_plug_in_after_apply(plugin: Callable[[Any], Callable[[], None]]) -> None:
    """On and off within ours, and ours off underneath it."""
    model = vit()
    host = out(model)
    turbovlm.apply(model, Merge(r=R))
    merged = out(model)
    assert not torch.allclose(merged, host, atol=1e-3)
    off = plugin(model)
    torch.testing.assert_close(out(model), merged, **CLOSE)
    off()
    torch.testing.assert_close(out(model), merged, **CLOSE)
    off = plugin(model)
    turbovlm.remove(model)
    assert left(model) == 0
    torch.testing.assert_close(out(model), host, **CLOSE)
    off()
    torch.testing.assert_close(out(model), host, **CLOSE)
    turbovlm.apply(model, Merge(r=R))
    torch.testing.assert_close(out(model), merged, **CLOSE)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda f: f.__name__)
@torch.no_grad()
def test_another_plug_in_before_apply(plugin: Callable[[Any], Callable[[], None]]) -> None:
    model = vit()
    host = out(model)
    with turbovlm.applied(model, Merge(r=R)):
        merged = out(model)
    off = plugin(model)
    if plugin is wrapped:
        with pytest.raises(UnsuitableBlock, match=r"take that one off, turbovlm\.apply first"):
            turbovlm.apply(model, Merge(r=R))
        assert left(model) == 0
        off()
        turbovlm.apply(model, Merge(r=R))
    else:
        turbovlm.apply(model, Merge(r=R))
        torch.testing.assert_close(out(model), merged, **CLOSE)
        off()
    torch.testing.assert_close(out(model), merged, **CLOSE)
    turbovlm.remove(model)
    torch.testing.assert_close(out(model), host, **CLOSE)


@pytest.mark.parametrize("first", [False, True], ids=["after", "before"])
@torch.no_grad()
def test_fsdp(group: None, first: bool) -> None:
    model = vit()
    host = out(model)
    with turbovlm.applied(model, Merge(r=R)):
        merged = out(model)
    mesh = init_device_mesh("cpu", (1,))

    def shard() -> None:
        for block in model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    if first:
        shard()
    turbovlm.apply(model, Merge(r=R))
    if not first:
        shard()
    torch.testing.assert_close(out(model), merged, **CLOSE)
    turbovlm.remove(model)
    assert left(model) == 0
    assert all(isinstance(block, FSDPModule) for block in model.layers)
    torch.testing.assert_close(out(model), host, **CLOSE)
    turbovlm.apply(model, Merge(r=R))
    torch.testing.assert_close(out(model), merged, **CLOSE)


class Frozen:
    __slots__ = ("hidden_size",)

    def __init__(self) -> None:
        object.__setattr__(self, "hidden_size", 48)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} is read-only")


CONFIGS: dict[str, Any] = {
    "dict": {"hidden_size": 48}, "none": None, "frozen": Frozen(), "plain": SimpleNamespace(a=1),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_configuration_of_any_kind(name: str) -> None:
    model = wild(VisionTransformer(**TIMM))
    model.config = CONFIGS[name]
    told = copy.deepcopy(CONFIGS[name]) if name != "frozen" else None
    host = out(model)
    turbovlm.apply(model, Merge(r=R))
    assert not torch.allclose(out(model), host, atol=1e-3)
    turbovlm.remove(model)
    assert torch.equal(out(model), host)
    assert model.config is CONFIGS[name]
    assert name == "frozen" or model.config == told


@torch.no_grad()
def test_stored_settings_outlive_applied(tmp_path: Path) -> None:
    model = vit()
    turbovlm.apply(model, Merge(r=R))
    merged = out(model)
    model.save_pretrained(tmp_path)
    loaded: Any = hf.ViTModel.from_pretrained(tmp_path).eval()
    host = out(loaded)
    with turbovlm.applied(loaded, Merge(r=2)):
        assert not torch.allclose(out(loaded), host, atol=1e-3)
    with turbovlm.applied(loaded):
        torch.testing.assert_close(out(loaded), merged)
    assert loaded.config.turbovlm == Merge(r=R).to_dict()
    turbovlm.apply(loaded)
    torch.testing.assert_close(out(loaded), merged)


@torch.no_grad()
def test_a_block_at_several_depths() -> None:
    """ALBERT's way: one block, four times."""
    model = vit()
    model.layers = nn.ModuleList([model.layers[0]] * 4)
    host = out(model)
    turbovlm.apply(model, Merge(r=(6, 0, 4, 2)))
    with turbovlm.recording(model) as run:
        merged = out(model)
        assert run.trace.tokens == (59, 59, 55, 53)
    apart = copy.deepcopy(model)
    turbovlm.remove(apart)
    apart.layers = nn.ModuleList(copy.deepcopy(apart.layers[0]) for _ in range(4))
    turbovlm.apply(apart, Merge(r=(6, 0, 4, 2)))
    assert torch.equal(out(apart), merged)
    turbovlm.remove(model)
    assert torch.equal(out(model), host)
    assert not torch.allclose(merged, host, atol=1e-3)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = vit()
        self.right = self.left

    def forward(self, x: Tensor) -> Tensor:
        return out(self.left, x) - out(self.right, x.flip(-1))


@torch.no_grad()
def test_a_shared_tower_and_a_part_that_is_patched_already() -> None:
    model = Siamese()
    host = model(pixels())
    turbovlm.apply(model, Merge(r=R))
    merged = model(pixels())
    assert not torch.allclose(merged, host, atol=1e-3)
    turbovlm.remove(model)
    assert torch.equal(model(pixels()), host)
    pair = nn.ModuleDict({"a": vit(), "b": vit()})
    turbovlm.apply(pair["b"], Merge(r=2))
    patched = left(pair)
    with pytest.raises(AlreadyApplied):
        turbovlm.apply(pair, Merge(r=R))
    assert left(pair) == patched
    turbovlm.remove(pair)
    with pytest.raises(NotApplied):
        turbovlm.remove(pair["b"])


@torch.no_grad()
def test_a_block_replaced_after_apply() -> None:
    model = vit()
    turbovlm.apply(model, Merge(r=R))
    model.layers[2] = copy.deepcopy(vit().layers[2])
    turbovlm.remove(model)
    assert left(model) == 0
    assert torch.equal(out(model), out(vit()))


@pytest.mark.parametrize("fused_first", [True, False])
@torch.no_grad()
def test_fused_attention_is_copied_and_pickled_with_merging(fused_first: bool) -> None:
    config = hf.BlipVisionConfig(**EAGER)
    model: Any = wild(hf.BlipVisionModel(config))
    host = out(model)
    for step in (0, 1):
        if (step == 0) == fused_first:
            turbovlm.fuse_attention(model)
        else:
            turbovlm.apply(model, Merge(r=R))
    merged = out(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(out(twin), merged)
        turbovlm.remove(twin)
        torch.testing.assert_close(out(twin), host, atol=2e-5, rtol=1e-4)
        turbovlm.unfuse_attention(twin)
        assert torch.equal(out(twin), host)
    assert torch.equal(out(model), merged)
    assert not torch.allclose(merged, host, atol=1e-3)


@torch.no_grad()
def test_a_pipeline_of_transformers() -> None:
    model: Any = wild(hf.ViTForImageClassification(hf.ViTConfig(**SIZES, **LABELS)))
    processor = hf.ViTImageProcessor(size={"height": 64, "width": 64})
    pipe = hf.ImageClassificationPipeline(model=model, image_processor=processor)
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)

    picture = Image.fromarray(image)
    host = pipe(picture)
    assert turbovlm.apply(pipe, Merge(r=R)) is pipe
    with turbovlm.recording(pipe) as run:
        merged = pipe(picture)
        assert run.trace.tokens[-1] == 45
    assert merged != host
    turbovlm.remove(pipe)
    assert pipe(picture) == host


@torch.no_grad()
def test_numbers_of_numpy_and_lists() -> None:
    model = vit()
    found = []
    for config in (
        Merge(r=(6, 0, 4, 2)),
        Merge(r=[6, 0, 4, 2]),  # type: ignore[arg-type]
        Merge(r=tuple(np.array([6, 0, 4, 2]))),
    ):
        with turbovlm.applied(model, config):
            found.append(out(model))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert Merge(r=np.int64(4)) == Merge(r=4)  # type: ignore[arg-type]
    assert Merge(ratio=np.float32(0.25)).to_dict() == Merge(ratio=0.25).to_dict()  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="integer"):
        Merge(r=4.0)  # type: ignore[arg-type]
