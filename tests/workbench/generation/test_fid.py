"""FID against its formula, on features of small encoders."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.workbench import build
from turbovlm.errors import InputError, MissingExtra, ModelError
from turbovlm_workbench.data.images import find_images, read_image
from turbovlm_workbench.generation.fid import Fid, load_features, load_fid

CPU = torch.device("cpu")


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)`` of features (N, D)."""

    def root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    s1, s2 = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    r1 = root(s1)
    shift = one.mean(0) - other.mean(0)
    return float(shift @ shift + np.trace(s1 + s2 - 2 * root(r1 @ s2 @ r1)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    build.noise(folder / "noise", 40)
    build.photos(folder / "photos", 37)
    build.vit_backbone(folder / "embedder")
    build.vit_classifier(folder / "classifier")
    build.blip(folder / "captioner")
    return folder


@pytest.mark.parametrize("kind", ["embedder", "classifier", "captioner"])
def test_the_distance_is_the_formula_on_the_features_of_any_encoder(place: Path, kind: str) -> None:
    fid = load_fid(str(place / kind), None, CPU)
    features = load_features(str(place / kind), CPU)
    noise, photos = (find_images(place / name) for name in ("noise", "photos"))
    with torch.inference_mode():
        vectors = [
            features(features.pixels([read_image(path) for path in paths])).numpy().astype(float)
            for paths in (noise, photos)
        ]
    assert vectors[0].shape == (40, fid.width)
    assert fid.width == 32  # of the encoder, not of the seven classes
    wanted = frechet(*vectors)
    assert wanted > 0.01
    assert fid.distance(noise, photos) == pytest.approx(wanted, rel=1e-4)
    assert fid.distance(noise, noise) == pytest.approx(0, abs=1e-4 * wanted)


def test_features_of_the_built_in_captioner(place: Path) -> None:
    features = load_features("lab:captioner", CPU)
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    with torch.inference_mode():
        found = features(features.pixels(pictures))
    assert found.shape == (2, features.num_features)
    assert (found[0] - found[1]).abs().mean() > 0.1


def test_images_of_several_sizes_are_counted_once_each(place: Path, tmp_path: Path) -> None:
    for index, side in enumerate((20, 20, 30, 20)):
        Image.effect_noise((side, side), 90).convert("RGB").save(tmp_path / f"{index}.png")
    seen: list[torch.Tensor] = []

    class Counting(torch.nn.Module):
        num_features = 1

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            seen.append(pixels)
            return pixels.mean((1, 2, 3))[:, None]

    from torchmetrics.image.fid import FrechetInceptionDistance

    stack: Callable[[Any], torch.Tensor] = lambda images: torch.stack(  # noqa: E731
        [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() for image in images]
    )
    metric = FrechetInceptionDistance(Counting(), normalize=True)
    fid = Fid(metric, 1, "mean", stack)
    paths = find_images(tmp_path)
    assert fid.distance(paths, paths) == pytest.approx(0, abs=1e-6)
    assert [len(pixels) for pixels in seen] == [2, 1, 1] * 2


def test_one_picture_is_no_distribution(place: Path) -> None:
    fid = load_fid(str(place / "embedder"), None, CPU)
    paths = find_images(place / "noise")
    with pytest.raises(InputError, match="1 and 40 pictures are too few"):
        fid.distance(paths[:1], paths)


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [("torchmetrics", "lab:captioner", "eval"), ("torch_fidelity", None, "fid")],
)
def test_a_missing_extra_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch, package: str, name: str | None, extra: str
) -> None:
    real: Any = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module: None if module == package else real(module)
    )
    with pytest.raises(MissingExtra, match=rf"{package}.*pip install 'turbovlm\[{extra}\]'"):
        load_fid(name, None, CPU)


@pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="needs the extra fid"
)
def test_inception_weights_that_are_none(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"cannot use .* as the Inception weights"):
        load_fid(None, tmp_path / "other.pth", CPU)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ModelError, match="cannot read weights from"):
        load_fid(None, tmp_path / "text.pth", CPU)
