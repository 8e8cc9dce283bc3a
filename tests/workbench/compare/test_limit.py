"""The limit: tokens dropped by hooks, with as many operations as the merge has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from torch import nn

import turbovlm
from tests.workbench import build
from turbovlm import Merge
from turbovlm.errors import ConfigError
from turbovlm.maths.speedup import BlockCost
from turbovlm.measure.speed import Ratio
from turbovlm_workbench.compare.bench import run_bench
from turbovlm_workbench.compare.launches import launch_sentence
from turbovlm_workbench.compare.limit import dropping, equal_length
from turbovlm_workbench.compare.plan import BenchPlan
from turbovlm_workbench.compare.rows import BenchRow, EagerSpeed
from turbovlm_workbench.compare.timing import check_mode
from turbovlm_workbench.data.images import ImageFolder
from turbovlm_workbench.load.share import share_weights
from turbovlm_workbench.report.table import bench_cells, bench_notes, headers
from turbovlm_workbench.tasks.registry import load_task

from tests.workbench.compare.test_advice import BASE, row  # isort: skip

VIT: dict[str, Any] = {
    "img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 2, "num_classes": 5
}  # fmt: skip


def vit(**options: Any) -> nn.Module:
    return build.wild(timm.models.VisionTransformer(**{**VIT, **options}))


def sides(model: nn.Module, merge: Merge, x: torch.Tensor) -> tuple[nn.Module, nn.Module | None]:
    """The merged model, and the one that drops."""
    merged = turbovlm.apply(share_weights(model), merge)
    with turbovlm.recording(merged) as run, torch.no_grad():
        merged(x)
    return merged, dropping(share_weights(model), merged, run.trace)


def test_the_length_by_hand() -> None:
    # attention of 3 weights on 10 tokens, MLP of 6 on 4: 54; on 6 tokens a whole block has 54
    assert equal_length(BlockCost(3, 6, 0), 10, 4) == 6
    # and with 2 n^2 of width 1: 54 + 200 = 254 = 9 n + 2 n^2 at n = 9.2
    assert equal_length(BlockCost(3, 6, 1), 10, 4) == 9
    assert equal_length(BlockCost(3, 6, 1), 10, 10) == 10


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("merge", [Merge(r=6), Merge(speedup=1.4)], ids=str)
def test_the_operations_are_those_of_the_merge(merge: Merge, pool: str) -> None:
    model = vit(global_pool=pool)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    merged, limit = sides(model, merge, x)
    assert limit is not None
    lengths: list[int] = []
    for block in limit.blocks:  # type: ignore[union-attr]
        block.attn.register_forward_hook(lambda _, __, y: lengths.append(y.shape[1]))
    with torch.no_grad():
        output = limit(x)
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < 65
    assert output.shape == (2, 5)
    assert not torch.allclose(output, model(x), atol=1e-4)
    # what is matched is not counted as operations of a block
    blocks = [name for name, _ in model.named_modules() if name.startswith("blocks.")]
    ours, theirs = (
        sum(turbovlm.flops(m, x).by_module.get(n, 0) for n in blocks if n.count(".") == 1)
        for m in (merged, limit)
    )
    assert theirs == pytest.approx(ours, rel=0.03)


def test_all_positions_are_there_for_who_reads_them() -> None:
    model = hf.CLIPVisionModel(hf.CLIPVisionConfig(**build.SIZES)).eval()
    x = torch.randn(1, 3, 32, 32)
    _, limit = sides(model, Merge(r=8), x)
    assert limit is not None
    with torch.no_grad():
        assert limit(x).last_hidden_state.shape == (1, 65, 32)


def test_tables_along_the_tokens_follow() -> None:
    """Rotary tables with a row for every token, and without rows for cls and registers."""
    x = torch.randn(1, 3, 32, 32)
    model = hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**build.SIZES, num_register_tokens=4)).eval()
    _, limit = sides(model, Merge(r=8), x)
    assert limit is not None
    with torch.no_grad():
        found = limit(x).last_hidden_state
        assert found.shape == model(x).last_hidden_state.shape
        assert not torch.allclose(found, model(x).last_hidden_state, atol=1e-4)
    eva = build.wild(
        timm.models.Eva(
            img_size=64, patch_size=8, embed_dim=48, depth=4, num_heads=2, num_classes=5,
            use_rot_pos_emb=True, use_abs_pos_emb=False,
        )
    )  # fmt: skip
    x = torch.randn(1, 3, 64, 64)
    merged, limit = sides(eva, Merge(r=6), x)
    assert limit is not None
    with torch.no_grad():
        assert limit(x).shape == (1, 5)
    assert turbovlm.flops(limit, x).gmacs == pytest.approx(turbovlm.flops(merged, x).gmacs, rel=0.1)


def test_a_bench_shows_the_limit_beside(tmp_path: Path) -> None:
    images = ImageFolder.open(build.noise(tmp_path / "noise", 4))
    task = load_task(str(build.vit_classifier(tmp_path / "vit")))
    variants = [(Merge(r=8),), (Merge(speedup=1.4),)]
    report = run_bench(task, images, variants, BenchPlan(batch=4, rounds=3, beside=True))
    whole, *merged = report.rows
    assert whole.limit is None
    for found in merged:
        assert found.limit is not None
        assert found.limit.value > 0
        assert found.eager is None
        assert found.to_dict()["limit"]["value"] == found.limit.value
    cells = dict(zip(headers(report), bench_cells(report, merged[0]), strict=True))
    assert cells["limit"].endswith("x")
    assert bench_cells(report, whole)[headers(report).index("limit")] == "-"
    assert any(note.startswith("limit: ") for note in bench_notes(report))
    plain = run_bench(task, images, variants[:1], BenchPlan(batch=4, rounds=2))
    assert "limit" not in headers(plain)
    assert plain.launches is None
    turbovlm.apply(task.model, Merge(r=8))  # would refuse a model that was left patched


@pytest.mark.slow
def test_eager_stands_beside_compiled(tmp_path: Path) -> None:
    images = ImageFolder.open(build.noise(tmp_path / "noise", 2))
    task = load_task(str(build.vit_classifier(tmp_path / "vit")))
    plan = BenchPlan(batch=2, rounds=2, mode="compiled", beside=True)
    report = run_bench(task, images, [(Merge(r=8),)], plan)
    whole, merged = report.rows
    assert (report.mode, whole.eager is None) == ("compiled", False)
    assert merged.eager is not None
    assert merged.eager.limit is not None
    assert merged.eager.speedup != merged.speedup
    cells = dict(zip(headers(report), bench_cells(report, merged), strict=True))
    assert {"limit", "eager speed-up", "eager limit"} < cells.keys()


def test_cuda_graphs_need_a_cuda_device(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"CUDA graphs need a CUDA device, .* run is on cpu"):
        BenchPlan(mode="graph")
    plan = BenchPlan(mode="graph", device=torch.device("cuda"))
    assert plan.modes == ("graph",)
    beside = BenchPlan(mode="graph", device=torch.device("cuda"), beside=True)
    assert beside.modes == ("eager", "graph")
    captioner = load_task(str(build.blip(tmp_path / "blip")))
    with pytest.raises(ConfigError, match="captures one forward, and captioning is a loop"):
        check_mode(captioner, plan)


def ratio(value: float) -> Ratio:
    return Ratio(value, value, value)


def limited(limit: float, eager: float | None = None, **other: Any) -> BenchRow:
    beside = None if eager is None else EagerSpeed(1.0, ratio(eager), ratio(eager))
    return row(8, 0.8, 0.99, limit=ratio(limit), eager=beside, **other)


def test_the_sentence_where_launches_are_the_cost() -> None:
    rows = [BASE, limited(0.93, ideal=1.5), limited(0.9, ideal=1.8)]
    assert launch_sentence(rows, 8, "eager") == (
        "At batch 8 launches are the cost and not operations: dropping tokens without merging any "
        "gives 0.93x where the operations of turbo r=8 allow 1.50x; use --compile, --graph or a "
        "larger --batch."
    )
    assert str(launch_sentence(rows, 8, "compiled")).endswith("use --graph or a larger --batch.")
    assert str(launch_sentence(rows, 1, "graph")).endswith("use a larger --batch.")


def test_no_sentence_where_dropping_pays() -> None:
    assert launch_sentence([BASE, limited(1.05)], 8, "eager") is None
    assert launch_sentence([BASE, limited(0.9), limited(1.3)], 8, "eager") is None
    assert launch_sentence([BASE, row(8, 1.0, 0.99)], 8, "eager") is None, "not measured"
    assert launch_sentence([BASE, limited(0.9, ideal=1.1)], 8, "eager") is None, "little asked"
    assert launch_sentence([BASE], 8, "eager") is None


def test_the_sentence_where_eager_mode_alone_is_too_slow() -> None:
    text = launch_sentence([BASE, limited(1.4, 0.9), limited(1.5, 0.92)], 64, "graph")
    assert text == (
        "In eager mode launches are the cost at batch 64: dropping tokens gives no more than 0.92x "
        "there, so run the model as --graph did here."
    )
    assert "--compile did" in str(launch_sentence([BASE, limited(1.4, 0.9)], 64, "compiled"))
    assert launch_sentence([BASE, limited(1.4, 1.2)], 64, "graph") is None
