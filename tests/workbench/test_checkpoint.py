"""Checkpoints are data, and they fit key by key or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from turbovlm.errors import ModelError
from turbovlm_workbench.checkpoint import cause, check_fit, load_strictly, read_weights

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, -1.0])}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    "content",
    [STATE, {"model": STATE, "epoch": 3}, {"state_dict": STATE}, {"state_dict": {"model": STATE}}],
)
def test_wrappings_are_taken_off(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth"), STATE)


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    assert same(read_weights(tmp_path / "w.safetensors"), STATE)


class Evil:
    """A pickle that would create a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights file .*gone\.pth: check the path"):
        read_weights(tmp_path / "gone.pth")
    with pytest.raises(ModelError, match="no weights file"):
        read_weights(tmp_path)
    for name in ("noise.pth", "noise.safetensors"):
        (tmp_path / name).write_bytes(b"no checkpoint at all")
        with pytest.raises(ModelError, match=rf"cannot read weights from .*{name}.*safetensors"):
            read_weights(tmp_path / name)
    torch.save({"x": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="cannot read weights"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    for content in ([1, 2], torch.zeros(2), {"epoch": 3}, {"model": {"weight": 1}}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ModelError, match=r"other\.pth holds no table of tensors"):
            read_weights(tmp_path / "other.pth")


def test_one_error_tells_every_difference() -> None:
    state = {"weight": torch.zeros(2, 4), "gain": torch.zeros(1), "age": torch.zeros(1)}
    wanted = {"weight": torch.empty(2, 3, device="meta"), "bias": torch.empty(2, device="meta")}
    with pytest.raises(ModelError) as caught:
        check_fit(state, wanted, Path("some.pth"), "a model", "give another file")
    assert str(caught.value) == (
        "some.pth does not fit a model: 1 keys are missing (bias, ...); 2 are unknown (age, ...); "
        "1 have another shape (weight is (2, 4) instead of (2, 3)): give another file"
    )
    check_fit(STATE, STATE, Path("some.pth"), "a model")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_numbers_of_another_kind_do_not_fit(dtype: torch.dtype) -> None:
    state = {**STATE, "weight": STATE["weight"].to(dtype)}
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ModelError, match=rf"1 hold other numbers \(weight is {name} instead of"):
        check_fit(state, STATE, Path("some.pth"), "a model")
    half = {key: value.half() for key, value in STATE.items()}
    check_fit(half, STATE, Path("some.pth"), "a model")


def test_loading_copies_all_or_nothing() -> None:
    layer = nn.Linear(3, 2)
    load_strictly(layer, STATE, Path("some.pth"), "a layer")
    assert same(dict(layer.state_dict()), STATE)
    with pytest.raises(ModelError, match=r"1 keys are missing \(bias, \.\.\.\)"):
        load_strictly(layer, {"weight": torch.zeros(2, 3)}, Path("some.pth"), "a layer")
    assert same(dict(layer.state_dict()), STATE)


def test_a_cause_is_one_short_line() -> None:
    assert cause(ValueError("first\nsecond")) == "first"
    assert cause(KeyError()) == "KeyError"
    assert cause(ValueError("x" * 500)) == "x" * 157 + "..."
