"""Merging in packed towers: every image by itself, windows apart, all positions at the end."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import turbovlm
from tests.hosts.packed import CASES, DEPTH, MERGED, QWEN25, Packed, pack, run
from tests.language.run import alone_of, generated
from tests.language.zoo import CASES as WHOLE
from tests.language.zoo import QWEN25 as MODEL
from tests.language.zoo import Case
from tests.reference.literal import Rotary, Setting, amount, attend, default_alpha, degree
from tests.reference.parts import Parts
from turbovlm import Merge, errors
from turbovlm.measure import flops
from turbovlm.plug.encoder.packed import PackedTokens, within_reach
from turbovlm.plug.encoder.trace import Trace

R = 5
each_case = pytest.mark.parametrize("case", MERGED, ids=lambda c: c.name)
MODELS = tuple(c for c in WHOLE if c.name.startswith(("qwen", "glm", "pixtral", "mistral")))
each_model = pytest.mark.parametrize("case", MODELS, ids=lambda c: c.name)


def blocks_of(model: Any) -> Sequence[Any]:
    """The blocks in order."""
    return model.blocks if hasattr(model, "blocks") else model.transformer.layers


def frames(case: Packed) -> list[int]:
    """Patches of each image, or frame of a video."""
    return [h * w for t, h, w in case.grids for _ in range(t)]


def seen(model: Any, case: Packed) -> tuple[list[dict[str, Any]], list[Tensor], Tensor]:
    """What each block is given beside its tokens, what leaves it, and what enters the first."""
    given: list[dict[str, Any]] = []
    entering: list[Tensor] = []
    leaving: list[Tensor] = []
    handles: list[Any] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        entering.append(args[0])
        given.append(kwargs)

    for block in blocks_of(model):
        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(lambda *a: leaving.append(a[2])))
    run(model, *case.inputs())
    for handle in handles:
        handle.remove()
    return given, leaving, entering[0]


def outputs(model: Any, case: Packed) -> tuple[Tensor, ...]:
    return run(model, *case.inputs())


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float = 2e-5) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=1e-4)


@each_case
@torch.no_grad()
def test_r_zero_and_removed_are_the_host_bit_for_bit(case: Packed) -> None:
    model = case.build()
    expected = outputs(model, case)
    kept = [(type(m), set(m.__dict__)) for m in model.modules()]
    names = list(model.state_dict())
    with turbovlm.applied(model, Merge(r=0)):
        assert same(outputs(model, case), expected)
    with turbovlm.applied(model, Merge(r=R)) as record:
        assert list(model.state_dict()) == names
        out = outputs(model, case)
    for ours, host in zip(out, expected, strict=True):  # all positions, and merged
        assert ours.shape == host.shape
        assert not torch.allclose(ours, host, atol=1e-3)
    trace = record.trace
    total = sum(frames(case))
    assert trace.tokens == tuple(total - 5 * R * n for n in range(1, DEPTH + 1))
    assert trace.sizes is not None
    assert trace.sizes.sum() == trace.start == total
    assert [(type(m), set(m.__dict__)) for m in model.modules()] == kept
    assert same(outputs(model, case), expected)


def literal_block(
    block: Any, x: Tensor, size: Tensor, at: list[int], homes: list[int], setting: Setting,
    layer: int, rotary: Rotary, noted: list[Any],
) -> tuple[Tensor, Tensor, list[int]]:  # fmt: skip
    """One image through one block, window by window; ``homes`` is the window of each token.

    ``noted`` gets the tokens after the attention, their A and their sizes.
    """
    parts = Parts(block)
    n = len(at)
    metric, mixed = [x[0]] * n, [x[0]] * n
    value = [0.0] * n

    def windows(h: Tensor) -> Tensor:
        for home in dict.fromkeys(homes):
            inside = [t for t in range(n) if homes[t] == home]
            places = [at[t] for t in inside]
            out, saw = attend(parts, h[inside], size[inside], setting, rotary, places)
            for i, t in enumerate(inside):
                metric[t] = saw.key[i] / saw.key[i].norm()
                value[t] = float(saw.value[i]) * len(inside) / n
                mixed[t] = out[i]
        return torch.stack(mixed)

    x = parts.attention_branch(x, windows)
    noted.append((x, torch.tensor(value), size))
    scored = []
    for i in range(0, n, 2):
        goals = [j for j in range(1, n, 2) if homes[j] == homes[i]]
        if goals:
            cosines = [float(metric[i] @ metric[j]) for j in goals]
            scored.append((max(cosines), i, goals[cosines.index(max(cosines))]))
    alpha = setting.alpha
    if alpha is None:
        alpha = default_alpha(setting, [s[0] for s in scored], n)
    ranked = sorted(((degree(setting, s, value[i], layer, alpha), i, j) for s, i, j in scored))
    gone = {i: j for _, i, j in ranked[::-1][: amount(setting, n)]}
    kept = [t for t in range(n) if t not in gone]
    rows, sizes = [], []
    for t in kept:
        group = [t] + [i for i, goal in gone.items() if goal == t]
        mass = sum(size[g] for g in group)
        rows.append(sum(x[g] * size[g] for g in group) / mass)  # type: ignore[operator]
        sizes.append(float(mass))
    return parts.mlp_branch(torch.stack(rows)), torch.tensor(sizes), [at[t] for t in kept]


def literal(
    model: Any, case: Packed, setting: Setting
) -> list[tuple[Tensor, list[int], Tensor, list[Any]]]:
    """The tower image by image; tokens, original positions and sizes of each after the blocks, and
    what was noted in each of them."""
    given, _, entering = seen(model, case)
    found, first = [], 0
    for n in frames(case):
        x, size, at = (
            entering.view(-1, entering.shape[-1])[first : first + n],
            torch.ones(n),
            list(range(n)),
        )
        noted: list[Any] = []
        for layer, (block, rest) in enumerate(zip(blocks_of(model), given, strict=True)):
            cos, sin = (t[first : first + n][None] for t in rest["position_embeddings"])
            ends = list(accumulate(frames(case)))
            if "cu_seqlens" in rest:
                ends = rest["cu_seqlens"].tolist()[1:]
            homes = [next(k for k, end in enumerate(ends) if first + t < end) for t in at]
            rotary = Rotary(cos, sin, half=True)
            x, size, at = literal_block(block, x, size, at, homes, setting, layer, rotary, noted)
        found.append((x, at, size, noted))
        first += n
    return found


SETTINGS: dict[str, tuple[Merge, dict[str, Any]]] = {
    "default": (Merge(r=R), {}),
    "alpha": (Merge(r=R, alpha=1.0), {"alpha": 1.0}),
    "redundancy": (Merge(r=R, method="redundancy"), {"method": "redundancy"}),
    "semantics": (Merge(r=R, method="semantics"), {"method": "semantics"}),
    "floor": (Merge(r=R, min_tokens=30), {"min_tokens": 30}),
}


@pytest.mark.parametrize(
    ("case", "name"),
    [(case, "default") for case in MERGED] + [(QWEN25, name) for name in SETTINGS][1:],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
@torch.no_grad()
def test_equals_a_literal_reference_image_by_image(case: Packed, name: str) -> None:
    merge, fields = SETTINGS[name]
    model = case.build()
    setting = Setting(r=R, prefix=0, guide="mean", **fields)
    expected = literal(model, case, setting)
    host = seen(model, case)[1][-1].flatten(0, -2)
    with turbovlm.applied(model, merge) as record:
        ours = seen(model, case)[1][-1].flatten(0, -2)
    survivors = record.trace.survivors()[0].tolist()
    sizes = record.trace.sizes
    assert sizes is not None
    first = before = 0
    for n, (rows, at, size, _) in zip(frames(case), expected, strict=True):
        assert survivors[before : before + len(at)] == [first + t for t in at]
        torch.testing.assert_close(sizes[0, before : before + len(at)], size)
        places = [first + t for t in at]
        torch.testing.assert_close(ours[places], rows, atol=5e-5, rtol=1e-4)
        assert len(at) < n
        assert (rows - host[places]).abs().max() > 1e-3
        first, before = first + n, before + len(at)
    assert before == len(survivors)


@each_case
@pytest.mark.parametrize("merge", [Merge(r=R), Merge(ratio=0.2), Merge(speedup=1.3)], ids=repr)
@torch.no_grad()
def test_an_image_does_not_depend_on_those_beside_it(case: Packed, merge: Merge) -> None:
    model = case.build()
    pixels, grids = case.inputs()
    host = run(model, pixels, grids)[1]
    turbovlm.apply(model, merge)
    together = run(model, pixels, grids)
    rows = [t * h * w for t, h, w in case.grids]
    for i, (n, end) in enumerate(zip(rows, accumulate(rows), strict=True)):
        alone = run(model, *case.alone(i))
        for whole, one in zip(together, alone, strict=True):
            joined = sum(rows) // len(whole)  # patches, or cells of four
            part = whole[(end - n) // joined : end // joined]
            torch.testing.assert_close(part, one, atol=5e-5, rtol=1e-4)
    assert not torch.allclose(together[1], host, atol=1e-3)


@each_case
@torch.no_grad()
def test_layers_that_are_read_are_whole(case: Packed) -> None:
    """Hidden states have all positions, and deepstack reads those that a hook sees."""
    model: Any = case.build()
    turbovlm.apply(model, Merge(r=R))
    expected = outputs(model, case)
    _, leaving, _ = seen(model, case)
    total = sum(frames(case))
    assert [x.shape[-2] for x in leaving] == [total] * DEPTH
    if "qwen3" in case.name and "3.5" not in case.name:
        deep = model.deepstack_merger_list[0](leaving[1])
        assert torch.equal(outputs(model, case)[2], deep)
        assert torch.equal(expected[2], deep)
    pixels, grids = case.inputs()
    sizes = {"image_sizes" if case.pictures else "grid_thw": grids}
    states = model(pixels, **sizes, output_hidden_states=True)
    assert [x.shape[-2] for x in states.hidden_states[:-1]] == [total] * DEPTH
    close([states.last_hidden_state.view_as(expected[0])], expected[:1])


@torch.no_grad()
def test_windows_stay_apart() -> None:
    """Block 0 attends in windows: nothing it merges leaves its window, block 1 is free to."""
    model = QWEN25.build()
    given, _, _ = seen(model, QWEN25)
    with turbovlm.applied(model, Merge(r=(12, 0, 0, 0))) as record:
        outputs(model, QWEN25)
    windows = given[0]["cu_seqlens"]
    assert len(windows) > len(given[1]["cu_seqlens"])
    owner, survivors = record.trace.representative()[0], record.trace.survivors()[0]
    home = torch.searchsorted(windows, torch.arange(len(owner), dtype=windows.dtype), right=True)
    assert torch.equal(home[survivors[owner]], home)
    with turbovlm.applied(model, Merge(r=(0, 12, 0, 0))) as record:
        outputs(model, QWEN25)
    owner, survivors = record.trace.representative()[0], record.trace.survivors()[0]
    assert not torch.equal(home[survivors[owner]], home)
    images = given[1]["cu_seqlens"]
    home = torch.searchsorted(images, torch.arange(len(owner), dtype=images.dtype), right=True)
    assert torch.equal(home[survivors[owner]], home)


@torch.no_grad()
def test_windows_that_have_nothing_left_to_merge() -> None:
    """Each window keeps a token, so that less goes than half of every image in every block."""
    model = QWEN25.build()
    with turbovlm.applied(model, Merge(ratio=0.5)) as record:
        out = outputs(model, QWEN25)
    windows = 6 + 6 + 6 + 4 + 4
    # blocks 0 and 2 attend in windows, 1 and 3 in images of 96, 60, 96, 36 and 36
    assert record.trace.tokens[:2] == (162, 81)
    assert record.trace.tokens[2] >= 81 // 2
    assert record.trace.sizes is not None
    assert record.trace.sizes.sum() == 324
    assert all(x.isfinite().all() for x in out)
    model.fullatt_block_indexes = []  # type: ignore[assignment]
    with turbovlm.applied(model, Merge(ratio=0.5)) as record:
        for _ in range(2):
            outputs(model, QWEN25)
    assert record.trace.tokens[-1] >= windows


@each_case
@torch.no_grad()
def test_merging_exact_duplicates_changes_nothing(case: Packed) -> None:
    """Neighbours that are equal, rotary tables included: a merged pair counts as two."""
    model: Any = case.build()

    def pairs(x: Tensor) -> Tensor:
        return x[..., ::2, :].repeat_interleave(2, -2)

    def paired(block: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
        tables = tuple(pairs(t) for t in kwargs["position_embeddings"])
        tokens = pairs(args[0]) if block is blocks_of(model)[0] else args[0]
        return (tokens, *args[1:]), kwargs | {"position_embeddings": tables}

    for block in blocks_of(model):
        block.register_forward_pre_hook(paired, with_kwargs=True)
    expected = outputs(model, case)
    every = Merge(r=(10**6, 0, 0, 0), method="redundancy")
    with turbovlm.applied(model, every) as record:
        merged = outputs(model, case)
    assert record.trace.tokens == (162,) * DEPTH
    assert not torch.equal(merged[1], expected[1])
    close(merged, expected, tolerance=5e-5)


@each_model
@torch.no_grad()
def test_a_whole_model_generates(case: Case) -> None:
    model: Any = case.build()
    inputs = case.inputs(1, 2)
    plain = model(**inputs).logits
    words = generated(model, inputs)
    turbovlm.apply(model, Merge(r=4))
    merged = model(**inputs).logits
    assert merged.shape == plain.shape
    assert not torch.allclose(merged, plain, atol=1e-3)
    for b, count in enumerate((1, 2)):  # each prompt of the batch alone
        alone = model(**alone_of(case, inputs, b, count)).logits
        torch.testing.assert_close(merged[b, -1], alone[0, -1], atol=2e-4, rtol=1e-3)
    assert generated(model, inputs).shape == words.shape
    turbovlm.remove(model)
    assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
def test_save_and_load_bring_the_setting_back(tmp_path: Any) -> None:
    model: Any = MODEL.build()
    inputs = MODEL.inputs(1)
    turbovlm.apply(model, Merge(r=3, alpha=2.0))
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    turbovlm.apply(loaded)
    torch.testing.assert_close(loaded(**inputs).logits, expected)


@each_case
@torch.no_grad()
def test_a_compiler_leaves_the_tower_to_torch(case: Packed) -> None:
    """Lengths depend on values; what is around the tower compiles, and the tower is the same."""
    model: Any = case.build()
    turbovlm.apply(model, Merge(r=R))
    expected = outputs(model, case)
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(lambda p, g: [2 * x for x in run(model, p, g)], backend=backend)
    assert same([x / 2 for x in compiled(*case.inputs())], expected)
    inside = {str(n.target) for g in graphs for n in g.graph.nodes}
    assert "mul" in " ".join(inside)
    assert not any("scaled_dot" in name for name in inside)
    blocks: Any = blocks_of(model)
    blocks[1] = torch.compile(blocks[1], backend=backend)
    assert same(outputs(model, case), expected)


@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_other_dtypes(case: Packed, dtype: torch.dtype) -> None:
    early = Merge(r=(R, 0, 0, 0))  # later merges might choose another token
    model = case.build()
    pixels, grids = case.inputs()
    with turbovlm.applied(model, early):
        expected = run(model, pixels, grids)[1]
        with torch.autocast("cpu", torch.bfloat16):
            half = run(model, pixels, grids)[1]
    assert torch.cosine_similarity(half.float().mean(0), expected.mean(0), dim=0) > 0.99
    model = model.to(dtype)
    with turbovlm.applied(model, early) as record:
        out = run(model, pixels.to(dtype), grids)[1]
    assert out.dtype == dtype
    assert record.trace.sizes is not None
    assert record.trace.sizes.dtype == torch.float32
    assert torch.cosine_similarity(out.float().mean(0), expected.mean(0), dim=0) > 0.99


@each_case
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(case: Packed, reentrant: bool) -> None:
    model: Any = case.build().train()
    turbovlm.apply(model, Merge(r=R))
    batches = [case.inputs(seed) for seed in (2, 3)]

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        # two forwards before one backward: each must find its own sizes again
        parts = [run(model, p.clone().requires_grad_(), g)[1] for p, g in batches]
        sum(x.pow(2).mean() * (i + 1) for i, x in enumerate(parts)).backward()  # type: ignore
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    calls: list[int] = []
    block = blocks_of(model)[1]
    mlp = getattr(block, block.turbo_site.patch.row.mlp[0])
    handle = mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    again = gradients()
    handle.remove()
    assert len(calls) == 4  # two forwards, and two more from the backward
    assert again.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(again[name], gradient, msg=name, atol=1e-4, rtol=1e-4)


@each_case
@torch.no_grad()
def test_copies_are_independent(case: Packed) -> None:
    model = case.build()
    plain = outputs(model, case)
    turbovlm.apply(model, Merge(r=R))
    expected = outputs(model, case)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(outputs(twin, case), expected)
        turbovlm.remove(twin)
        assert same(outputs(twin, case), plain)
        assert same(outputs(model, case), expected)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@torch.no_grad()
def test_fused_segments_give_the_same(case: Packed) -> None:
    model = case.build()
    turbovlm.apply(model, Merge(r=(0, R, R, 0)))
    expected = outputs(model, case)
    turbovlm.fuse_attention(model)
    assert same(outputs(model, case), expected)
    turbovlm.remove(model)
    plain = outputs(model, case)
    turbovlm.unfuse_attention(model)
    assert same(outputs(model, case), plain)


@torch.no_grad()
def test_random_pairs_stay_in_their_windows() -> None:
    model = QWEN25.build()
    given, _, _ = seen(model, QWEN25)
    traces: list[Trace] = []
    for seed in (1, 2, 2):
        with turbovlm.applied(model, Merge(r=(9, 0, 0, 0), method="random", seed=seed)) as record:
            outputs(model, QWEN25)
        traces.append(record.trace)
    windows = given[0]["cu_seqlens"]
    owners = [t.survivors()[0][t.representative()[0]] for t in traces]
    home = torch.searchsorted(windows, torch.arange(324, dtype=windows.dtype), right=True)
    assert all(torch.equal(home[owner], home) for owner in owners)
    assert torch.equal(owners[1], owners[2])
    assert not torch.equal(owners[0], owners[1])


@torch.no_grad()
def test_blocks_without_their_tower_give_all_positions_back() -> None:
    model: Any = CASES[0].build()
    given, plain, entering = seen(model, CASES[0])
    turbovlm.apply(model, Merge(r=R))
    whole = seen(model, CASES[0])[1]
    y = entering
    for block, rest, expected in zip(model.blocks, given, whole, strict=True):
        y = block(y, **rest)
        torch.testing.assert_close(y, expected)
    assert not torch.allclose(y, plain[-1], atol=1e-3)


def test_what_cannot_be_right_is_refused_by_name() -> None:
    model: Any = QWEN25.build()
    with pytest.raises(errors.ConfigError, match=r"Merge\.paper"):
        turbovlm.apply(model, Merge.paper(R))
    with pytest.raises(errors.ConfigError, match="leave collapse out"):
        turbovlm.apply(model, Merge(r=R, collapse=True))
    with pytest.raises(errors.ConfigError, match="4 integers"):
        turbovlm.apply(model, Merge(r=(R, R)))
    with pytest.raises(errors.NotApplied):
        turbovlm.remove(model)
    model.set_attn_implementation("eager")
    with pytest.raises(errors.UnseenAttention, match="sdpa"):
        turbovlm.apply(model, Merge(r=R))
    model.set_attn_implementation("sdpa")
    pixels, grids = pack()
    expected = run(model, pixels, grids)
    turbovlm.apply(model, Merge(r=R))
    with pytest.raises(errors.UnsupportedInput, match="output_attentions"):
        model(pixels, grid_thw=grids, output_attentions=True)
    one = torch.tensor([0, len(pixels)], dtype=torch.int32)
    with pytest.raises(errors.UnsupportedInput, match="several images"):
        model(pixels, grid_thw=grids, cu_seqlens=one)
    with pytest.raises(errors.UnsupportedInput, match="some_mask"):
        model(pixels, grid_thw=grids, some_mask=torch.ones(2))
    given, _, entering = seen(model, QWEN25)
    with pytest.raises(errors.UnsupportedInput, match="outside the forward of their tower"):
        model.blocks[0](entering.clone(), **given[0])
    turbovlm.remove(model)
    assert same(run(model, pixels, grids), expected)


def test_tokens_without_values_are_spread_evenly() -> None:
    """On the meta device nothing says which windows lost more."""
    tokens = PackedTokens((8, 16))
    assert tokens.segments(torch.tensor([0, 8, 24])) == (8, 16)
    assert tokens.segments(torch.tensor([0, 4, 8, 12, 24])) == (4, 4, 4, 12)
    tokens.images = (4, 8)
    tokens._position = 0, torch.empty(1, 12, dtype=torch.int64, device="meta")
    assert tokens.segments(torch.tensor([0, 8, 24])) == (4, 8)
    assert tokens.segments(torch.tensor([0, 4, 8, 12, 24])) == (2, 2, 2, 6)


def test_what_is_within_reach() -> None:
    assert within_reach((6, 4), (3, 3, 4)) == [2 + 1, 2]  # s d s | d s d | s d s d
    assert within_reach((3, 3), (1, 1, 1, 2, 1)) == [0, 1]  # s | d | s ; s d | s
    with pytest.raises(errors.UnsupportedInput, match="several images"):
        within_reach((4, 4), (6, 2))


@each_case
@torch.no_grad()
def test_fewer_operations_are_counted(case: Packed) -> None:
    model = case.build()
    pixels, grids = case.inputs()
    given = {"hidden_states": pixels, "grid_thw": grids}
    if case.pictures:
        given = {"pixel_values": pixels, "image_sizes": grids}
    plain = flops(model, given).macs
    with turbovlm.applied(model, Merge(ratio=0.3)):
        assert flops(model, given).macs < 0.8 * plain
