from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import turbovlm
from tests.workbench import build
from turbovlm.config import Merge, VisualTokens
from turbovlm.errors import ConfigError, ModelError, UnknownArchitecture
from turbovlm_workbench.compare.bench import run_bench
from turbovlm_workbench.compare.plan import BenchPlan
from turbovlm_workbench.compare.rows import FUSED, BenchReport
from turbovlm_workbench.compare.samples import samples, show_some
from turbovlm_workbench.compare.titles import amount_of, blocks_title, line_of, title_of
from turbovlm_workbench.compare.variants import build_settings, merge_settings
from turbovlm_workbench.data.images import ImageFolder
from turbovlm_workbench.load.device import pick_device, pick_dtype
from turbovlm_workbench.load.loaded import UNMERGED
from turbovlm_workbench.load.share import share_weights
from turbovlm_workbench.report.table import bench_notes
from turbovlm_workbench.settings import combined
from turbovlm_workbench.tasks.registry import load_task


@pytest.fixture
def images(tmp_path: Path) -> ImageFolder:
    return ImageFolder.open(build.photos(tmp_path / "photos", 5))


def run(task: Any, images: ImageFolder, merges: list[Merge], **plan: Any) -> BenchReport:
    return run_bench(
        task, images, combined(merges, ()), BenchPlan(**{"batch": 2, "rounds": 2, **plan})
    )


def test_a_classifier(tmp_path: Path, images: ImageFolder) -> None:
    task = load_task(str(build.vit_classifier(tmp_path / "model")))
    labels = task.outputs(task.model, task.pixels([images.image(i) for i in range(5)])).argmax(-1)
    task = task.with_labels(tuple(labels.tolist()))
    merges = merge_settings([0, 8], ["turbo", "random"])
    report = run(task, images, merges)
    assert [row.name for row in report.rows] == [
        UNMERGED,
        "turbo r=0",
        "turbo r=8",
        "random r=0",
        "random r=8",
    ]
    assert [row.tokens for row in report.rows] == [65, 65, 41, 65, 41]
    whole, nothing, turbo, _, random = report.rows
    # the labels are the unmerged model's own answers, over three batches, the last one short
    assert whole.quality == {"accuracy": 1.0, "agreement": 1.0, "kl": 0.0, "loss": 0.0}
    assert nothing.quality == whole.quality
    assert turbo.quality["kl"] > 1e-6
    assert turbo.quality["kl"] != random.quality["kl"]
    assert turbo.quality["accuracy"] == turbo.quality["agreement"]
    assert turbo.quality["loss"] == pytest.approx(1 - turbo.quality["accuracy"])
    assert whole.gflops == nothing.gflops > turbo.gflops
    assert turbo.ideal == whole.gflops / turbo.gflops
    assert whole.speedup.value == 1
    assert all(row.throughput > 0 and row.peak_mib and row.peak_mib > 0 for row in report.rows)
    assert (report.images, report.batch, report.rounds, report.dtype) == (5, 2, 2, "float32")
    assert json.loads(json.dumps(report.to_dict()))["rows"][2]["settings"] == {
        "kind": "merge",
        "r": 8,
    }


def test_quality_is_that_of_the_applied_model(tmp_path: Path, images: ImageFolder) -> None:
    task = load_task(str(build.clip(tmp_path / "model")))
    report = run(task, images, [Merge(r=10)])
    pixels = task.pixels([images.image(index) for index in range(5)])
    before = task.outputs(task.model, pixels)
    with turbovlm.applied(task.model, Merge(r=10)):
        after = task.outputs(task.model, pixels)
    cosines = torch.nn.functional.cosine_similarity(before, after)
    assert report.rows[1].quality["cosine"] == pytest.approx(cosines.mean().item(), abs=1e-5)
    assert report.rows[1].quality["lowest"] == pytest.approx(cosines.min().item(), abs=1e-5)
    assert cosines.min() < 0.9999


def test_captions_with_fused_attention(tmp_path: Path, images: ImageFolder) -> None:
    task = load_task(str(build.blip(tmp_path / "model")), beams=2)
    report = run(task, images, [Merge(r=16)], fused=True)
    whole, fused, merged = report.rows
    assert [row.name for row in report.rows] == [UNMERGED, FUSED, "turbo r=16"]
    assert (fused.baseline, merged.baseline) == (UNMERGED, FUSED)
    assert (whole.fused, fused.fused, merged.fused) == (False, True, True)
    assert fused.quality["exact"] == 1.0
    assert merged.tokens == 17
    assert 0 < (fused.peak_mib or 0) < (whole.peak_mib or 0)
    # without --fused the baseline is the model as shipped
    assert run(task, images, [Merge(r=16)]).rows[1].baseline == UNMERGED


def test_fusing_what_is_fused_already(tmp_path: Path, images: ImageFolder) -> None:
    task = load_task(str(build.vit_classifier(tmp_path / "model")))
    with pytest.raises(ModelError, match="--fused is for models"):
        run(task, images, [Merge(r=4)], fused=True)


def test_bf16_and_the_model_stays_unpatched(tmp_path: Path, images: ImageFolder) -> None:
    task = load_task(str(build.vit_classifier(tmp_path / "model")))
    report = run(task, images, [Merge(r=8)], dtype=torch.bfloat16)
    assert report.dtype == "bfloat16"
    assert 0 <= report.rows[1].quality["kl"] < 10
    turbovlm.apply(task.model, Merge(r=8))  # would refuse a model that the bench left patched


@pytest.mark.slow
def test_compiled(tmp_path: Path, images: ImageFolder) -> None:
    task = load_task(str(build.vit_classifier(tmp_path / "model")))
    seen: list[str] = []
    torch._dynamo.utils.counters.clear()
    plan = BenchPlan(batch=2, rounds=2, mode="compiled")
    report = run_bench(
        task, images, [(Merge(r=8),)], plan, lambda stage, done, total: seen.append(stage)
    )
    assert report.mode == "compiled"
    assert "compilation and memory" in seen
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


def test_progress_is_monotonous_and_complete(tmp_path: Path, images: ImageFolder) -> None:
    task = load_task(str(build.vit_classifier(tmp_path / "model")))
    told: dict[str, list[tuple[int, int]]] = {}
    run_bench(
        task,
        images,
        [(Merge(r=8),)],
        BenchPlan(batch=2, rounds=2),
        lambda stage, done, total: told.setdefault(stage, []).append((done, total)),
    )
    assert list(told) == ["quality", "operations", "memory", "speed"]
    for steps in told.values():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert all(done <= total for done, total in steps)


def test_an_architecture_without_a_row(images: ImageFolder) -> None:
    import timm

    from turbovlm_workbench.load.loaded import Classifier
    from turbovlm_workbench.load.prepare import timm_prepare
    from turbovlm_workbench.tasks.classification import Classification

    model = timm.create_model("test_convnext").eval()
    task = Classification(Classifier(model, timm_prepare(model), "convnext"))
    with pytest.raises(UnknownArchitecture, match="no row describes ConvNeXt"):
        run(task, images, [Merge(r=4)])


def test_settings() -> None:
    merges = merge_settings([4, 8, 4], ["turbo", "redundancy"], [2.0])
    assert merges == [
        Merge(r=4, alpha=2.0),
        Merge(r=8, alpha=2.0),
        Merge(r=4, method="redundancy"),
        Merge(r=8, method="redundancy"),
    ]
    assert merge_settings([4], ["turbo"], collapse=True) == [Merge(r=4, collapse=True)]
    for bad in ({"rs": [-1]}, {"methods": ["best"]}, {"alphas": [float("nan")]}):
        with pytest.raises(ConfigError):
            merge_settings(**{"rs": [4], "methods": ["turbo"], **bad})


def test_settings_do_not_repeat_where_alpha_does_not_matter() -> None:
    merges = merge_settings(
        [4, 8], ["turbo", "redundancy", "random"], [None, 1.0, 2.0], [-0.5, 0.0]
    )
    assert len(merges) == len(set(merges)) == 2 * 2 * (3 + 1 + 1)
    assert {merge.alpha for merge in merges if merge.method != "turbo"} == {None}


def test_speedups_stand_beside_other_amounts() -> None:
    merges = merge_settings([4], ["turbo", "redundancy"], [2.0], speedups=[1.2, 1.8])
    assert merges == [
        Merge(r=4, alpha=2.0),
        Merge(speedup=1.2, alpha=2.0),
        Merge(speedup=1.8, alpha=2.0),
        Merge(r=4, method="redundancy"),
        Merge(speedup=1.2, method="redundancy"),
        Merge(speedup=1.8, method="redundancy"),
    ]
    with pytest.raises(ConfigError, match="--inflection shapes a constant r"):
        merge_settings([], ["turbo"], inflections=[0.0, 1.0], speedups=[1.4])
    with pytest.raises(ConfigError, match=r"speedup must be at least 1, got 0\.5"):
        merge_settings([], ["turbo"], speedups=[0.5])


def test_a_speedup_says_which_blocks_merge(tmp_path: Path, images: ImageFolder) -> None:
    weights = build.timm_weights(tmp_path / "tiny.safetensors")
    task = load_task(f"timm:{build.TINY}", weights)
    whole, asked, constant = run(task, images, [Merge(speedup=1.4), Merge(r=5)]).rows
    assert (whole.r, constant.r) == (None, (5,) * 6)
    assert asked.name == "turbo speedup=1.4"
    assert asked.r is not None
    # the blocks in the middle of six, and as much as its operations need
    assert [block for block, r in enumerate(asked.r) if r] == [1, 2, 3, 4]
    assert asked.tokens == 101 - sum(asked.r)
    assert asked.to_dict()["r"] == asked.r
    assert asked.code == "turbovlm.apply(model, turbovlm.Merge(speedup=1.4))"
    assert 1.25 < asked.ideal < 1.4  # what is not in the blocks stays as it was
    report = run(task, images, [Merge(speedup=1.4)])
    assert f"turbo speedup=1.4: r={blocks_title(asked.r)}, as tokens@block." in bench_notes(report)


def test_a_speedup_out_of_reach(tmp_path: Path, images: ImageFolder) -> None:
    task = load_task(str(build.vit_classifier(tmp_path / "model")))
    with pytest.raises(ConfigError, match="speedup=50 is out of reach for 65 tokens in 3 blocks"):
        run(task, images, [Merge(speedup=50)])
    turbovlm.apply(task.model, Merge(r=8))  # would refuse a model that was left patched


def test_titles_say_what_differs() -> None:
    assert title_of((Merge(r=8),)) == "turbo r=8"
    assert title_of((Merge(r=8, method="random", inflection=-0.5),)) == "random r=8 inflection=-0.5"
    assert title_of((Merge(ratio=0.1, alpha=2.0),)) == "turbo ratio=0.1 alpha=2.0"
    assert title_of((Merge(r=(0, 16, 0, 7)),)) == "turbo r=16@2+7@4"
    assert title_of((Merge(r=(0, 0)),)) == "turbo r=0"
    assert title_of((Merge(speedup=1.4, collapse=True),)) == "turbo speedup=1.4 collapse=True"
    quarter = VisualTokens(keep=0.25)
    assert title_of((quarter,)) == "keep=0.25"
    assert title_of((Merge(r=8), quarter)) == "turbo r=8 keep=0.25"
    assert line_of(()) is None
    assert line_of((quarter,)) == "keep"
    assert line_of((Merge(r=8), quarter)) == "turbo, keep=0.25"
    assert amount_of((quarter,)) == "keep=0.25"
    assert amount_of((Merge(speedup=1.4, method="random", seed=3),)) == "speedup=1.4"


def test_settings_of_the_same_work_share_one_timing(tmp_path: Path, images: ImageFolder) -> None:
    task = load_task(str(build.vit_classifier(tmp_path / "model")))
    merges = [Merge(r=8), Merge(r=8, alpha=3.0), Merge(r=8, alpha=0.0), Merge(r=6, alpha=3.0)]
    slots: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "memory":
            slots.append(total)

    report = run_bench(task, images, combined(merges, ()), BenchPlan(batch=2, rounds=2), progress)
    _, default, heavy, none, fewer = report.rows
    assert [row.name for row in report.rows[1:]] == [title_of((merge,)) for merge in merges]
    assert default.speedup == heavy.speedup
    assert default.throughput == heavy.throughput
    assert default.quality["kl"] != heavy.quality["kl"]
    # without the guide's row, or with another r, the work is another one
    assert len({row.throughput for row in (default, none, fewer)}) == 3
    assert set(slots) == {4}


def test_copies_share_their_weights(tmp_path: Path) -> None:
    model = load_task(str(build.blip(tmp_path / "model"))).model
    twin = share_weights(model)
    ours, theirs = dict(model.named_parameters()), dict(twin.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(theirs[name] is parameter for name, parameter in ours.items())
    assert not {id(m) for m in model.modules()} & {id(m) for m in twin.modules()}
    built = build_settings(model, [(Merge(r=4),), (Merge(r=8),)])
    assert len({id(p) for setting in built for p in setting.model.parameters()}) == len(ours)


def test_samples_show_who_was_merged(tmp_path: Path, images: ImageFolder) -> None:
    task = load_task(str(build.vit_classifier(tmp_path / "model")))
    shown = samples(task, images, [0, 3], (Merge(r=10),))
    assert [sample.name for sample in shown] == [images.name(0), images.name(3)]
    for sample in shown:
        assert sample.picture.shape == (32, 32, 3)
        assert sample.owner.shape == (8, 8)
        assert sample.tokens == 35
        # 34 patch tokens stand for 64 patches; number 0 is cls and stands for none
        assert set(sample.owner.reshape(-1).tolist()) == set(range(1, 35))
    assert shown[0].unmerged.startswith("class ")
    report = run(task, images, merge_settings([2, 4, 6], ["turbo", "random"]))
    several, name = show_some(task, images, report, number=9)
    assert len(several) == 5
    assert name == (report.advised or "turbo r=4")


@pytest.mark.parametrize("plan", [{"batch": 0}, {"rounds": 0}])
def test_plans_that_mean_nothing(plan: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(plan))} must be at least 1, got 0"):
        BenchPlan(**plan)  # type: ignore[arg-type]


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(None).type in ("cpu", "cuda", "mps", "xpu")
    for name in ("gpu", "cuda:99", "meta", "xpu:7"):
        with pytest.raises(ConfigError, match="--device cpu"):
            pick_device(name)


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert pick_dtype("bf16", cpu) is torch.bfloat16
    with pytest.raises(ConfigError, match="--dtype must be one of fp32, bf16, fp16, not 'int8'"):
        pick_dtype("int8", cpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(ConfigError, match="cuda does not compute in bf16: use --dtype fp32"):
        pick_dtype("bf16", torch.device("cuda"))
