"""What another package can add: an encoder, a score, a selector and a reducer, each used for real.

Tasks and metrics have theirs beside the workbench's registries.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

import turbovlm
from tests.language.build import IMAGE
from tests.language.zoo import LLAVA
from tests.workbench import build
from turbovlm import hosts, reducers
from turbovlm.config import Merge, MergeRestore, Setting, VisualTokens
from turbovlm.errors import ConfigError, UnknownArchitecture
from turbovlm.maths import score as scores
from turbovlm.maths import selectors
from turbovlm.maths.score import Context
from turbovlm.plug.reducer import Reducer
from turbovlm.plug.state import Patch
from turbovlm.plug.swap import Swap, plain_class
from turbovlm_workbench.cli.app import run_command


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    monkeypatch.setattr(scores, "_SCORES", dict(scores._SCORES))
    monkeypatch.setattr(reducers, "_REDUCERS", dict(reducers._REDUCERS))
    monkeypatch.setattr(hosts, "_registered", list(hosts._registered))
    # read under this name by the configuration too, so that the table itself is put back
    before = dict(selectors.SELECTORS)
    yield
    selectors.SELECTORS.clear()
    selectors.SELECTORS.update(before)


# An encoder that no table knows.


class OwnAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class OwnBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixing = OwnAttention(width)
        self.dense = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixing(self.before(x))
        return x + self.dense(self.after(x))


class OwnEncoder(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(OwnBlock(width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


ROW = turbovlm.Row(
    block=f"{__name__}.OwnBlock",
    towers=(f"{__name__}.OwnEncoder",),
    attention=("mixing", "before"),
    mlp=("dense", "after"),
    reads="cls",
)


@torch.no_grad()
def test_a_row_adds_an_encoder() -> None:
    torch.manual_seed(0)
    model, x = OwnEncoder().eval(), torch.randn(2, 33, 32)
    with pytest.raises(UnknownArchitecture, match="no row describes OwnEncoder"):
        turbovlm.apply(model, Merge(r=4))
    turbovlm.register(ROW)
    plain = model(x)
    with turbovlm.applied(model, Merge(r=4)) as run:
        merged = model(x)
    assert run.trace.tokens == (29, 25, 21, 17)
    assert merged.shape == (2, 17, 32)
    assert not torch.equal(merged[:, 0], plain[:, 0])
    assert torch.equal(model(x), plain)


# A score.


def keep_first(redundancy: Tensor, value: Tensor | None, context: Context) -> Tensor:
    """The later a source, the sooner it goes."""
    places = torch.arange(redundancy.shape[1], device=redundancy.device)
    return places.expand_as(redundancy).float()


def vit() -> Any:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", depth=3).eval()


@torch.no_grad()
def test_a_score_adds_a_method_of_merge() -> None:
    with pytest.raises(ConfigError, match="method must be one of"):
        Merge(r=16, method="keep_first")
    turbovlm.score("keep_first", guide=False)(keep_first)
    assert scores.score_names()[-1] == "keep_first"
    model, x = vit(), torch.randn(1, 3, 224, 224)
    with turbovlm.applied(model, Merge(r=16, method="keep_first")) as run:
        merged = model(x)
    # sources are even positions behind cls: of 98, the last 16 were merged away
    assert run.trace.survivors(1)[0].tolist() == [*range(165), *range(165, 197, 2)]
    with turbovlm.applied(model, Merge(r=16)):
        assert not torch.equal(merged, model(x))
    assert Merge.from_dict(Merge(r=16, method="keep_first").to_dict()).method == "keep_first"
    with pytest.raises(ConfigError, match="does not use alpha"):
        Merge(r=16, method="keep_first", alpha=1.0)
    with pytest.raises(ConfigError, match="exists already"):
        turbovlm.score("turbo")(keep_first)


@torch.no_grad()
def test_a_selector_adds_a_method_of_visual_tokens() -> None:
    with pytest.raises(ConfigError, match="method must be one of turbo"):
        VisualTokens(keep=4, method="keep_last")

    @turbovlm.selector("keep_last")
    def keep_last(tokens: selectors.Candidates, keep: int) -> Tensor:
        images, count, _ = tokens.unit.shape
        return torch.arange(float(count)).expand(images, -1)

    config = VisualTokens(keep=4, method="keep_last")
    assert VisualTokens.from_dict(config.to_dict()) == config
    model: Any = LLAVA.build()
    ids = torch.tensor([[IMAGE] * 36 + [7] * 3])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **LLAVA.pixels((1,))}
    with turbovlm.applied(model, config) as run:
        logits = model(**given).logits
        assert run.visual.images[0].kept.tolist() == [32, 33, 34, 35]
    with turbovlm.applied(model, VisualTokens(keep=4)):
        assert not torch.equal(logits, model(**given).logits)
    with pytest.raises(ConfigError, match="exists already"):
        turbovlm.selector("turbo")(keep_last)


@torch.no_grad()
def test_a_score_adds_a_method_of_merge_and_restore() -> None:
    turbovlm.score("keep_first", guide=False)(keep_first)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(32, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=24,
        attention_head_dim=8,
    ).eval()  # fmt: skip
    inputs = torch.randn(2, 4, 16, 16), torch.tensor(500), torch.randn(2, 5, 24)
    drawn = []
    for method in (None, "keep_first", "turbo"):
        if method is None:
            drawn.append(unet(*inputs).sample)
            continue
        with turbovlm.applied(unet, MergeRestore(ratio=0.5, method=method), record=False):
            drawn.append(unet(*inputs).sample)
    plain, own, turbo = drawn
    assert not torch.equal(own, plain)
    assert not torch.equal(own, turbo)
    assert torch.equal(unet(*inputs).sample, plain)


def test_a_score_adds_a_method_of_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, photos = build.vit_classifier(tmp_path / "vit"), build.noise(tmp_path / "photos", 2)
    page = tmp_path / "page.html"
    words = ["bench", str(model), "--images", str(photos), "--r", "4", "--rounds", "1"]
    words += ["--html", str(page), "--method"]
    assert run_command([*words, "keep_first"]) == 2
    assert "method must be one of turbo" in capsys.readouterr().err
    turbovlm.score("keep_first", guide=False)(keep_first)
    assert run_command([*words, "redundancy", "keep_first"]) == 0
    printed = capsys.readouterr().out
    assert "keep_first r=4" in printed
    assert "redundancy r=4" in printed
    assert "keep_first r=4" in page.read_text()


PACKAGE = """
import torch
import turbovlm


@turbovlm.score("backwards", guide=False)
def backwards(redundancy, value, context):
    places = torch.arange(redundancy.shape[1], device=redundancy.device)
    return places.expand_as(redundancy).float()
"""


def test_an_installed_package_adds_a_method_of_the_command_line(tmp_path: Path) -> None:
    info = tmp_path / "backwards-1.0.dist-info"
    info.mkdir()
    (tmp_path / "backwards.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: backwards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[turbovlm_workbench]\nmine = backwards\n")
    words = ["flops", "timm:vit_tiny_patch16_224", "--r", "8", "--method", "backwards"]
    for path, code in ((sys.path, 2), ([str(tmp_path), *sys.path], 0)):
        done = subprocess.run(
            [sys.executable, "-m", "turbovlm", *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )
        assert done.returncode == code, done.stderr
        assert "backwards" in (done.stderr if code else done.stdout)


# A reducer: the blocks behind the first ones see fewer tokens, and none is merged.


@dataclass(frozen=True, repr=False)
class Drop(Setting):
    """Cut the sequence to ``keep`` tokens in front of one block."""

    kind: ClassVar[str] = "drop"

    keep: int
    block: int = 0

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"keep must be at least 1, got {self.keep}")


@dataclass(frozen=True)
class DropSite:
    patch: Patch[Drop, None, None]
    host: type[nn.Module]


class DropBlock(nn.Module):
    turbo_site: DropSite

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        patch = self.turbo_site.patch
        patch.record(x.shape[1])
        return super().forward(x[:, : patch.config.keep], *args, **kwargs)


def plan_drop(model: nn.Module, config: Drop) -> Sequence[Swap]:
    block = model.get_submodule(f"blocks.{config.block}")
    return [Swap(block, DropBlock, DropSite(Patch(config), plain_class(block)))]


@pytest.fixture
def with_drop(registries: None) -> None:
    turbovlm.register_reducer(Reducer(Drop, plan_drop))


@torch.no_grad()
def test_a_reducer_adds_a_kind_of_setting(with_drop: None) -> None:
    model, x = vit(), torch.randn(1, 3, 224, 224)
    plain = model.forward_features(x)
    turbovlm.apply(model, Drop(50, block=1))
    with turbovlm.recording(model) as run:
        assert model.forward_features(x).shape == (1, 50, 192)
    assert run.records(int) == (197,)
    turbovlm.remove(model)
    assert torch.equal(model.forward_features(x), plain)
    with turbovlm.applied(model, Drop(50), record=False):
        assert model.forward_features(x).shape[1] == 50
    assert type(model.blocks[0]) is plain_class(model.blocks[0])


def test_a_reducers_setting_is_stored_and_read_back(with_drop: None) -> None:
    assert Drop.from_dict(Drop(50, block=2).to_dict()) == Drop(50, 2)
    assert reducers.setting_of({"kind": "drop", "keep": 7}) == Drop(7)
    with pytest.raises(ConfigError, match="keep must be at least 1"):
        reducers.setting_of({"kind": "drop", "keep": 0})


def test_a_kind_is_taken_once_and_an_unknown_one_is_named(with_drop: None) -> None:
    with pytest.raises(ConfigError, match="a reducer for 'drop' exists already"):
        turbovlm.register_reducer(Reducer(Drop, plan_drop))
    with pytest.raises(ConfigError, match=r"turbovlm.Merge\(...\).*turbovlm.Drop"):
        turbovlm.apply(vit(), 16)  # type: ignore[arg-type]
