"""What must hold on the device before a time means anything."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gpu_sides import Sides, call_of, mode_of
from gpu_timing import captured, launches, without_synchronizing
from torch import Tensor

from turbovlm.kernels import attend, available, choose_tokens, look, merge_tokens, use_kernels
from turbovlm.maths.match import Rule
from turbovlm.maths.score import find_score
from turbovlm.maths.sets import EvenOdd

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest difference between a kernel and torch in fp32, as a share of 1 + the number."""
NEAR = 2e-2
"""The same of a whole model in fp32, as a share of its largest output: one near-tie may differ."""
ALIKE = 0.999
"""Share of sources that both choose: a near-tie may differ."""
COMPARED = ("attend", "unit", "merge")
Outputs = dict[str, Tensor]


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of 1 + the number."""
    found, expected = found.float(), expected.float()
    return ((found - expected).abs() / (1 + expected.abs())).max().item()


def seen(k: Tensor, bias: Tensor) -> Outputs:
    """What a merging block computes of its attention."""
    scale, tokens = k.shape[-1] ** -0.5, k.shape[2]
    unit, logits = look(k, k[:, :, 0], bias, scale)
    plan = choose_tokens(unit, logits, tokens // 4, EvenOdd(tokens, 1), Rule(find_score("turbo")))
    return {"attend": attend(k, k, k, bias, scale), "unit": unit, "source": plan.source}


def kernels_row(width: int, device: torch.device, dtype: torch.dtype) -> dict:
    """The kernels against torch at one head dimension."""
    torch.manual_seed(0)
    joint = torch.randn(4, 301, 3, 6, width, device=device, dtype=dtype)
    k, x = joint[:, :, 1].transpose(1, 2), torch.randn(4, 301, 384, device=device, dtype=dtype)
    size = torch.randint(1, 5, (4, 301), device=device).float()
    sides: dict[str, Outputs] = {}
    with torch.no_grad():
        for side in ("torch", "kernels"):
            with mode_of(side):
                sides[side] = seen(k.float() if side == "torch" else k, size.log())
        rule = Rule(find_score("redundancy"))
        use_kernels("torch")
        plan = choose_tokens(sides["torch"]["unit"], None, 75, EvenOdd(301, 1), rule)
        for side in ("torch", "kernels"):
            with mode_of(side):
                given = x.float() if side == "torch" else x
                sides[side]["merge"] = merge_tokens(given, size, plan, given)[0]
    far = {name: apart(sides["kernels"][name], sides["torch"][name]) for name in COMPARED}
    chosen = [sides[side]["source"].sort(dim=1).values for side in ("torch", "kernels")]
    same = sum(
        len(set(a.tolist()) & set(b.tolist())) for a, b in zip(chosen[0], chosen[1], strict=True)
    )
    alike = same / chosen[0].numel()
    good = max(far.values()) <= CLOSE[dtype] and alike >= ALIKE
    return {"what": f"kernels, d={width}, {dtype}", "ok": good, "far": far, "alike": alike}


def model_rows(sides: Sides, schedule: str) -> list[dict]:
    """One model: merging changes it, kernels do as torch does, nothing waits, graphs replay."""
    x = sides.images(2)
    model = sides.merged(schedule)
    outputs: Outputs = {}
    with mode_of("torch"):
        outputs["off"] = call_of(sides.model, x)()
        outputs["torch"] = call_of(model, x)()
    scale = outputs["off"].float().abs().max().item()

    def distance(a: str, b: str) -> float:
        return (outputs[a].float() - outputs[b].float()).abs().max().item() / scale

    rows = [
        {"what": "merging changes the output", "ok": distance("torch", "off") > 0,
         "far": distance("torch", "off")},
    ]  # fmt: skip
    for side in [name for name in sides.names() if name in ("torch", "kernels")]:
        run = sides.run(side, schedule, "eager", x)
        rows.append(
            checked(f"{side}: no synchronisation", without_synchronizing, run, sides.device)
        )
        if sides.device.type == "cuda":
            rows.append(_replays(sides, side, schedule, x))
    if "kernels" in sides.names():
        with mode_of("kernels"):
            outputs["kernels"] = call_of(model, x)()
        far = distance("kernels", "torch")
        ran = launches(sides.run("kernels", schedule, "eager", x), sides.device)
        used = sorted(name for name in ran if name.endswith("_kernel") and "attend" in name)
        rows.append({"what": "kernels as torch", "ok": far <= NEAR, "far": far})
        if sides.device.type == "cuda":
            rows.append({"what": "the model calls the kernels", "ok": bool(used), "seen": used})
    return rows


def _replays(sides: Sides, side: str, schedule: str, x: Tensor) -> dict:
    def check() -> None:
        run = sides.run(side, schedule, "eager", x)
        with torch.no_grad():
            first, again = run(), captured(run)()
        torch.testing.assert_close(again, first, atol=1e-2, rtol=1e-2)

    return checked(f"{side}: a CUDA graph replays", check)


def checked(what: str, check: Callable[..., object], *given: object) -> dict:
    """A row that says whether a check ran without an error."""
    try:
        check(*given)
    except Exception as error:
        return {"what": what, "ok": False, "error": f"{type(error).__name__}: {error}"[:300]}
    return {"what": what, "ok": True}


def all_checks(sides: Sides, schedule: str) -> list[dict]:
    """Every row, kernels first."""
    rows: list[dict] = []
    if available(sides.device):
        precise = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        widths = (64, 72, 88, 128, 256) if sides.device.type == "cuda" else (24,)
        for dtype in CLOSE:
            for width in widths:
                row: dict = {}

                def check(width: int = width, dtype: torch.dtype = dtype, row: dict = row) -> None:
                    row.update(kernels_row(width, sides.device, dtype))

                failed = checked(f"kernels, d={width}, {dtype}", check)
                rows.append(row or failed)
        torch.set_float32_matmul_precision(precise)
    return [*rows, *model_rows(sides, schedule)]
