"""A forward as an accelerator would run it: nothing waits for the device, nothing needs fp64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import turbovlm
from tests.hosts import denoisers
from turbovlm import MergeRestore
from turbovlm.config import RestorePreset
from turbovlm.errors import UnsupportedInput
from turbovlm.maths import ridge
from turbovlm.plug.denoiser import state

WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "is_nonzero", "equal")
SOLVERS = ("linalg", "cholesky", "inverse", "lu_", "triangular_solve")
REDUCTIONS = ("linalg_vector_norm",)
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"guidance": True},
    {"plan": "module", "guidance": True},
    {"preset": {"restore": "weighted", "metric": "key"}},
    {"preset": {"destinations": "bipartite"}, "method": "random", "seed": 3},
)


class Strict(TorchDispatchMode):
    """Raises for what would wait for an accelerator, or end the capture of a graph.

    Attributes:
        wide: operators that made fp64 values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wide: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name.split("::")[1]
        solves = name not in REDUCTIONS and any(word in name for word in SOLVERS)
        if solves or name in WAITS:
            raise AssertionError(f"{name} in a forward")
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, list | tuple) else (out,):
            if isinstance(value, Tensor) and value.dtype == torch.float64:
                self.wide.add(name)
        return out


@pytest.fixture(autouse=True)
def _on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ridge, "SOLVED", frozenset())
    with torch.no_grad():
        yield


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("make", denoisers.CASES, ids=lambda f: f.__name__)
def test_nothing_waits(make: Callable[[], denoisers.Case], options: dict[str, Any]) -> None:
    case = make()
    with Strict() as own:
        plain = case.step()
    turbovlm.apply(case.model, MergeRestore.from_dict({"ratio": 0.3, **options}))
    case.step()  # the grid of Flux's tokens is read once
    with Strict() as strict:
        merged = case.step()
    assert strict.wide <= own.wide
    assert not torch.allclose(merged, plain)


def test_the_mode_sees_what_it_should() -> None:
    for wrong in (
        lambda: torch.ones(()).item(),
        lambda: torch.ones(2).nonzero(),
        lambda: torch.linalg.cholesky_ex(torch.eye(2)),
        lambda: torch.cholesky_inverse(torch.eye(2)),
    ):
        with Strict(), pytest.raises(AssertionError, match="in a forward"):
            wrong()
    with Strict() as strict:
        torch.ones(2).double()
    assert strict.wide


@pytest.mark.parametrize(
    "make", [denoisers.unet, denoisers.sd3, denoisers.flux], ids=lambda f: f.__name__
)
def test_restored_without_a_solver_as_with_one(
    make: Callable[[], denoisers.Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make()
    plain = case.step()
    with turbovlm.applied(
        case.model, MergeRestore(ratio=0.5, preset=RestorePreset(restore="copy"))
    ):
        copied = case.step()
    with turbovlm.applied(case.model, MergeRestore(ratio=0.5)):
        products = case.step()
        monkeypatch.undo()
        solved = case.step()
    moved = (solved - copied).norm()
    assert (products - solved).norm() < 1e-4 * moved
    assert moved > 0.01 * plain.norm()


def test_the_grid_of_flux_is_read_again_where_the_ids_are_others() -> None:
    case = denoisers.flux()
    place = torch.arange(256)
    ids = torch.stack([torch.zeros(256), place // 16, place % 16], -1)
    patch = state.DenoiserPatch(_row_of_flux(), MergeRestore(ratio=0.3))
    assert patch.call_of(case.model, _given(ids)).grid == (16, 16)
    ids[:, 1], ids[:, 2] = place // 32, place % 32  # in place, as a captured graph's input
    assert patch.call_of(case.model, _given(ids)).grid == (8, 32)
    with Strict():
        assert patch.call_of(case.model, _given(ids)).grid == (8, 32)
    with torch.inference_mode():
        other = ids.clone()
        assert patch.call_of(case.model, _given(other)).grid == (8, 32)
    assert len(patch.grids) == 1


def _row_of_flux() -> Any:
    from turbovlm import hosts

    return next(row for row in hosts.denoisers() if row.ids is not None)


def _given(ids: Tensor) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, 256, 4),
        "img_ids": ids,
        "timestep": torch.tensor([0.5]),
    }


def test_a_ratio_for_each_part_is_refused_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda(Tensor):
        is_cuda = True  # type: ignore[assignment]

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    time = torch.tensor(500.0).as_subclass(OnCuda)
    with pytest.raises(UnsupportedInput, match="capture each part with one ratio"):
        state._host_number(time)
    assert state._host_number(torch.tensor(500.0)) == 500
