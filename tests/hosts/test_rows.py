"""Every host row through the same gauntlet."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import turbovlm
from tests.hosts.packed import MERGED as PACKED  # their own gauntlet is test_packed.py
from tests.hosts.zoo import CASES as COMMON
from tests.hosts.zoo import Case
from tests.hosts.zoo_copies import COPIES
from tests.reference.literal import Setting, encode
from turbovlm import Merge, hosts
from turbovlm.errors import UnsupportedInput
from turbovlm.plug.encoder.block import TurboBlock
from turbovlm.plug.encoder.find import find_towers
from turbovlm.plug.encoder.selfcheck import required

CASES = COMMON + COPIES
each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
R = 5
# For half precision: one merge and three blocks that weigh by size. Where two degrees are nearly
# equal, rounding may choose another token, and after several merges nothing is comparable.
EARLY = Merge(r=(R, 0, 0, 0))


def blocks_of(model: nn.Module) -> tuple[Any, ...]:
    return find_towers(model, hosts.rows())[0].blocks


def tokens_in(case: Case, model: nn.Module, x: Tensor) -> Tensor:
    """What enters the first block."""
    seen: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])

    handle = blocks_of(model)[0].register_forward_pre_hook(see)
    case.run(model, x)
    handle.remove()
    return seen[0]


def tokens_out(case: Case, model: nn.Module, x: Tensor) -> Tensor:
    """What leaves the last block, before any norm of the tower."""
    seen: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append(out)

    handle = blocks_of(model)[-1].register_forward_hook(see)
    case.run(model, x)
    handle.remove()
    return seen[0]


def as_input(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels in ``dtype``; word ids stay what they are."""
    return x.to(dtype) if x.is_floating_point() else x


def test_every_row_has_a_model_here() -> None:
    built = {id(find_towers(case.build(), hosts.rows())[0].row) for case in (*CASES, *PACKED)}
    assert [row.block for row in hosts.rows() if id(row) not in built] == []


@each_case
@torch.no_grad()
def test_r_zero_is_the_host_bit_for_bit(case: Case) -> None:
    model, x = case.build(), case.inputs()
    expected = case.run(model, x)
    turbovlm.apply(model, Merge(r=0))
    assert any(isinstance(m, TurboBlock) for m in model.modules())
    assert torch.equal(case.run(model, x), expected)


@each_case
@torch.no_grad()
def test_remove_restores_everything(case: Case) -> None:
    model, x = case.build(), case.inputs()
    expected = case.run(model, x)
    kept = [(type(m), set(m.__dict__)) for m in model.modules()]
    names = list(model.state_dict())
    turbovlm.apply(model, Merge(r=R))
    assert list(model.state_dict()) == names
    assert not torch.allclose(expected, case.run(model, x), atol=1e-4)
    turbovlm.remove(model)
    assert [(type(m), set(m.__dict__)) for m in model.modules()] == kept
    assert torch.equal(case.run(model, x), expected)


BELOW = -13  # a floor that many tokens below what enters
SETTINGS: dict[str, tuple[Callable[[int], Merge], dict[str, Any]]] = {
    "redundancy": (lambda _: Merge(r=R, method="redundancy"), {"method": "redundancy"}),
    "default": (lambda _: Merge(r=R), {}),
    "alpha": (lambda _: Merge(r=R, alpha=1.0), {"alpha": 1.0}),
    "semantics": (lambda _: Merge(r=R, method="semantics"), {"method": "semantics"}),
    "floor": (lambda n: Merge(r=R, min_tokens=n + BELOW), {"min_tokens": BELOW}),
    "paper": (
        lambda n: Merge.paper(R, metric="query", min_tokens=n + BELOW),
        {"alpha": 6.0, "metric": "query", "min_tokens": BELOW, "paper": True},
    ),
    "S2": (lambda _: Merge.paper(R, fusion="S2"), {"fusion": "S2", "paper": True}),
    "S3": (
        lambda _: Merge.paper(R, fusion="S3", alpha=2.0),
        {"fusion": "S3", "alpha": 2.0, "paper": True},
    ),
    "S4": (
        lambda _: Merge.paper(R, fusion="S4", alpha=3.0, beta=0.9, gamma=2),
        {"fusion": "S4", "alpha": 3.0, "beta": 0.9, "gamma": 2, "paper": True},
    ),
}


@each_case
@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_equals_the_literal_reference(case: Case, name: str) -> None:
    model, x = case.build(), case.inputs()
    host, entering = tokens_out(case, model, x), tokens_in(case, model, x)
    build, fields = SETTINGS[name]
    tokens = entering.shape[1]
    if case.real is not None and build(tokens).preset is not None:
        with turbovlm.applied(model, build(tokens)), pytest.raises(UnsupportedInput, match="paddi"):
            case.run(model, x)
        return
    if "min_tokens" in fields:
        fields = fields | {"min_tokens": tokens + fields["min_tokens"]}
    setting = Setting(r=R, prefix=case.prefix, guide=case.guide, **fields)
    rotary = None if case.rotary is None else case.rotary(model, x)
    expected = encode(blocks_of(model), entering, setting, rotary, case.real)
    with turbovlm.applied(model, build(tokens)) as run:
        ours = tokens_out(case, model, x)
    assert list(run.trace.tokens) == setting.lengths
    assert ours.shape == host.shape  # a hook reads the block, so all positions are there
    for sample, (rows, kept) in enumerate(expected):
        torch.testing.assert_close(ours[sample, kept], rows, atol=2e-5, rtol=1e-4)
        assert run.trace.survivors()[sample, : len(kept)].tolist() == kept
        real = tokens if case.real is None else int(case.real[sample].sum())
        merged = len(kept) < real  # a short sample may be below the floor
        assert ((rows - host[sample, kept]).abs().max() > 1e-3) == merged
        assert merged or sample > 0


@each_case
@torch.no_grad()
def test_eager_attention_gives_the_same(case: Case) -> None:
    model, x = case.build(), case.inputs()
    with turbovlm.applied(model, Merge(r=R)):
        expected = case.run(model, x)
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")  # type: ignore[operator]
    elif hasattr(blocks_of(model)[0], "attn") and hasattr(blocks_of(model)[0].attn, "fused_attn"):
        for block in blocks_of(model):
            block.attn.fused_attn = False
    else:
        pytest.skip("nn.MultiheadAttention and open_clip have one kernel")
    with turbovlm.applied(model, Merge(r=R)):
        torch.testing.assert_close(case.run(model, x), expected, atol=2e-5, rtol=1e-4)


@each_case
@torch.no_grad()
def test_compiles_to_one_graph_without_recompiles(case: Case) -> None:
    model, x = case.build(), case.inputs()
    turbovlm.apply(model, Merge(r=R))
    expected, other = case.run(model, x), case.run(model, case.inputs(seed=1))
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda t: case.run(model, t), fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(compiled(case.inputs(seed=1)), other)
    assert len(graphs) == 1


@each_case
@torch.no_grad()
def test_deepcopy_and_pickle_are_independent(case: Case) -> None:
    model, x = case.build(), case.inputs()
    turbovlm.apply(model, Merge(r=R))
    expected = case.run(model, x)
    twins = [copy.deepcopy(model)]
    if not hasattr(model, "out_features"):  # backbones hold hooks that cannot be pickled
        twins.append(pickle.loads(pickle.dumps(model)))
    for twin in twins:
        assert torch.equal(case.run(twin, x), expected)
        turbovlm.remove(twin)
        assert not any(isinstance(m, TurboBlock) for m in twin.modules())
        assert torch.equal(case.run(model, x), expected)


@each_case
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(case: Case, reentrant: bool) -> None:
    model = case.build().train()
    turbovlm.apply(model, Merge(r=R))
    first, second = case.inputs(seed=2), case.inputs(seed=3)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        # two forwards before one backward: each must find its own sizes again
        inputs = [t.clone().requires_grad_(t.is_floating_point()) for t in (first, second)]
        loss = sum(case.run(model, t).pow(2).mean() * (i + 1) for i, t in enumerate(inputs))
        loss.backward()  # type: ignore[union-attr]
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    # before the MLP: recomputation stops early, at the last tensor that is needed
    block = blocks_of(model)[1]
    handle = getattr(block, block.turbo_site.patch.row.mlp[0]).register_forward_pre_hook(count)
    if getattr(model, "supports_gradient_checkpointing", False):
        new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
        enable: Any = getattr(model, new if hasattr(model, new) else old)
        enable({"use_reentrant": reentrant})
    elif hasattr(model, "gradient_checkpointing_enable"):
        pytest.skip("the host has no checkpointing for this model")
    elif reentrant:
        pytest.skip("timm and open_clip choose the checkpointing variant themselves")
    elif hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    else:
        pytest.skip("torchvision has no checkpointing")
    again = gradients()
    handle.remove()
    assert calls == 4  # two forwards, and two more from the backward
    assert again.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(again[name], gradient, msg=name)


@each_case
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(case: Case, dtype: torch.dtype) -> None:
    model, x = case.build(), case.inputs()
    with turbovlm.applied(model, EARLY):
        expected = case.run(model, x)
    model = model.to(dtype)
    with turbovlm.applied(model, EARLY) as run:
        y = case.run(model, as_input(x, dtype))
    assert y.dtype == dtype
    assert run.trace.sizes is not None
    assert run.trace.sizes.dtype == torch.float32
    if dtype == torch.float64:
        torch.testing.assert_close(y.float(), expected, atol=1e-4, rtol=1e-4)
    else:
        cosine = torch.cosine_similarity(y.float().mean(1), expected.mean(1))
        assert cosine.min() > 0.995


@each_case
@torch.no_grad()
def test_autocast(case: Case) -> None:
    model, x = case.build(), case.inputs()
    with turbovlm.applied(model, EARLY):
        expected = case.run(model, x)
        with torch.autocast("cpu", torch.bfloat16):
            y = case.run(model, x)
    assert torch.cosine_similarity(y.float().mean(1), expected.mean(1)).min() > 0.995


@each_case
@torch.no_grad()
def test_merging_exact_duplicates_changes_nothing(case: Case) -> None:
    """Pairs of equal tokens without position: the merged model must see what the host sees."""
    model = case.build()
    blocks = blocks_of(model)
    row = find_towers(model, hosts.rows())[0].row
    generator = torch.Generator().manual_seed(4)
    prefix = torch.randn(2, case.prefix, 48, generator=generator)
    half = torch.randn(2, 8, 48, generator=generator)
    x = torch.cat([prefix, half.repeat_interleave(2, 1)], 1)  # sources and destinations alternate
    given = required(blocks[0], type(blocks[0]), row) | case.duplicates()

    def run() -> Tensor:
        y = x
        for block in blocks:
            y = block(y, **given)
        return y

    expected = run()
    turbovlm.apply(model, Merge(r=(8, 0, 0, 0), method="redundancy"))
    merged = run()
    assert not torch.equal(merged, expected)  # other sums, equal up to rounding
    torch.testing.assert_close(merged, expected, atol=2e-6, rtol=2e-6)


@each_case
@torch.no_grad()
def test_save_and_load_brings_the_setting_back(case: Case, tmp_path: Any) -> None:
    model, x = case.build(), case.inputs()
    if not hasattr(model, "save_pretrained"):
        pytest.skip("no configuration object: Merge.save and Merge.load")
    turbovlm.apply(model, Merge(r=R, alpha=2.0))
    expected = case.run(model, x)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = type(model).from_pretrained(tmp_path).eval()  # type: ignore[attr-defined]
    turbovlm.apply(loaded)
    torch.testing.assert_close(case.run(loaded, x), expected)
    told = loaded.config.turbovlm
    assert Merge.from_dict(told) == Merge(r=R, alpha=2.0)
    turbovlm.remove(loaded)
    assert loaded.config.turbovlm == told  # as it was before apply
    turbovlm.remove(model)
    assert not hasattr(model.config, "turbovlm")
