"""The speed benchmark of generation compares what it says it compares (no times here)."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from turbovlm.errors import ConfigError

pytest.importorskip("diffusers")

FOLDER = Path(__file__).parents[2] / "benchmarks" / "generation"


@pytest.fixture
def unet(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("unet")


@pytest.fixture
def methods(unet: ModuleType) -> ModuleType:
    return importlib.import_module("methods")


@pytest.fixture
def model(unet: ModuleType) -> Any:
    torch.manual_seed(0)
    return unet.tiny().eval()


ALONE = {"cross_attention": 0, "feed_forward": 0, "min_tokens": 256}


@pytest.mark.parametrize("fields", [{}, ALONE], ids=["all", "self"])
def test_all_sides_do_the_same_work_and_the_model_stays(
    unet: ModuleType, methods: ModuleType, model: Any, fields: dict[str, Any]
) -> None:
    tried = ["turbo", "redundancy"]
    if importlib.util.find_spec("tomesd"):
        tried.append("tomesd")
    step = unet.Step.of(model, 16, 1)
    before = step.run(model)
    found = methods.candidates(tried, [0.5], [fields])
    sides = {c.label: unet.merged(model, c, step.tokens) for c in found}
    for form in (True, False):
        limit = unet.limit(model, found[0].config, form)
        gmacs = unet.check({"off": model, "limit": limit, **sides}, step)
        for candidate in found:
            assert gmacs["limit"] < gmacs[candidate.label] < gmacs["off"]
    assert torch.equal(step.run(model), before)
    seen = unet.tokens_seen(limit, step.run)
    assert seen["down_blocks.0.attentions.0.transformer_blocks.0.attn1"] == 128
    cross = seen["down_blocks.0.attentions.0.transformer_blocks.0.attn2"]
    deep = seen["down_blocks.1.attentions.0.transformer_blocks.0.ff"]
    assert (cross, deep) == ((256, 64) if fields else (128, 32))


def test_the_limit_runs_the_first_tokens_and_pads_with_zeros(
    unet: ModuleType, methods: ModuleType, model: Any
) -> None:
    config = methods.candidates(["turbo"], [0.25], [{}])[0].config
    x = torch.randn(2, 64, 32)
    whole = {name: m for name, _, m in unet.modules(model)}
    for copy in (True, False):
        for name, kind, module in unet.modules(unet.limit(model, config, copy)):
            if module.__class__.__name__ == "FeedForward" and name.startswith("down_blocks.0"):
                y = module(x)
                torch.testing.assert_close(y[:, :48], whole[name](x)[:, :48])
                assert not y[:, 48:].any()
                assert kind == "feed_forward"
                break
        else:
            pytest.fail("no feed-forward at the first level")


def test_a_side_with_other_work_is_refused(
    unet: ModuleType, methods: ModuleType, model: Any
) -> None:
    step = unet.Step.of(model, 16, 1)
    most, less = methods.candidates(["turbo"], [0.5, 0.3], [{}])
    limit = unet.limit(model, most.config, True)
    with pytest.raises(SystemExit, match=r"ours works with other tokens .*: 180, not 128"):
        unet.check(
            {"off": model, "limit": limit, "ours": unet.merged(model, less, step.tokens)}, step
        )
    with pytest.raises(SystemExit, match="limit does not change the output"):
        unet.check({"off": model, "limit": model}, step)


def test_what_tomesd_is_told(methods: ModuleType) -> None:
    one, alone, fixed = methods.candidates(
        ["tomesd"], [0.3], [{}, {**ALONE, "min_tokens": 1024}, {"cell": [4, 2], "seed": None}]
    )
    assert methods.peer_options(one.config, 4096) == {
        "ratio": 0.3, "max_downsample": 8, "sx": 2, "sy": 2, "use_rand": True,
        "merge_attn": True, "merge_crossattn": True, "merge_mlp": True,
    }  # fmt: skip
    told = methods.peer_options(alone.config, 4096)
    assert (told["max_downsample"], told["merge_crossattn"], told["merge_mlp"]) == (2, False, False)
    told = methods.peer_options(fixed.config, 1024)
    assert (told["sy"], told["sx"], told["use_rand"]) == (4, 2, False)


def test_tomesd_is_left_out_where_it_does_not_know_the_setting(methods: ModuleType) -> None:
    settings = [
        {"preset": {"restore": "weighted"}},
        {"self_attention": 0.1},
        {"self_attention": 0.3},
    ]
    found = methods.candidates(["turbo", "tomesd"], [0.3], settings)
    assert [c.label for c in found] == [
        "turbo restore=weighted",
        "turbo self_attention=0.1",
        "turbo self_attention=0.3",
        "tomesd self_attention=0.3",
    ]


def test_bad_settings_are_named(methods: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ('{"ratio": 0.3}', "[1]", "{"):
        with pytest.raises(ConfigError, match="JSON object"):
            methods.setting(text)
    with pytest.raises(ConfigError, match="unknown settings cel"):
        methods.candidates(["turbo"], [0.3], [methods.setting('{"cel": 2}')])
    monkeypatch.setitem(sys.modules, "tomesd", None)
    with pytest.raises(SystemExit, match="pip install tomesd, or leave it out of --method"):
        methods.peer()


def test_the_whole_script(
    unet: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed.json"
    words = "--shape tiny --pixels 128 --ratio 0.5 --scope all --method turbo random --rounds 2"
    importlib.import_module("speed").main([*words.split(), "--pilot", "1", "--json", str(file)])
    (row,) = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert (row["pixels"], row["scope"], row["ratio"], row["rounds"]) == (128, "all", 0.5, 2)
    assert list(row["ms"]) == ["off", "limit", "turbo", "random"]
    assert list(row["over_limit"]) == ["turbo", "random"]
    off, least, ours = (row["seconds"][side] for side in ("off", "limit", "turbo"))
    ratios = sorted(a / b for a, b in zip(least, ours, strict=True))
    assert row["over_limit"]["turbo"]["low"] == pytest.approx(ratios[0])
    assert row["speedup"]["limit"]["high"] == pytest.approx(
        max(a / b for a, b in zip(off, least, strict=True))
    )
    for parts in row["share_of_time"].values():
        assert all(0 < share < 1 for share in parts.values())
        assert sum(parts.values()) < 1
    assert "over the limit" in capsys.readouterr().out
