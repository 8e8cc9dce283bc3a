"""What `turbovlm check` found, in sentences."""

from __future__ import annotations

from turbovlm.plug.encoder.row import Row
from turbovlm_workbench.compare.check import Check, TowerCheck


def check_lines(check: Check) -> str:
    """The model, every known tower, and the verdict or the way out."""
    parts = [f"{check.model} ({check.what})"]
    parts += [_tower(tower) for tower in check.towers]
    parts += [f"not patched: {reason}" for reason in check.reasons]
    if check.fits and check.gflops is not None:
        before, after = check.gflops
        parts.append(
            f"supported: {check.config} leaves {before:.2f} -> {after:.2f} GFLOPs, which allows "
            f"{before / after:.2f}x"
        )
    elif check.fits:
        parts.append(f"supported: {check.config} fits its blocks; what it leaves was not counted")
    elif not check.towers:
        parts.append(_way_out(check))
    else:
        parts.append("not supported by this version: report it with the lines above")
    return "\n\n".join(parts)


def _tower(tower: TowerCheck) -> str:
    title = f"{tower.name or 'the model itself'}: {tower.kind}, {tower.blocks} x {tower.block}"
    facts = [
        f"prefix tokens {tower.prefix_tokens}",
        f"guide {tower.guide}",
        f"self-check {'passed' if tower.problem is None else 'FAILED'}",
    ]
    if tower.reads in ("all", "pooled"):
        facts.append(f"all positions restored after block {tower.blocks}")
    if not tower.patched:
        facts.append("patched only when this tower itself is given to apply")
    rows = [title, "  " + "; ".join(facts)]
    if tower.tokens:
        rows.append(f"  tokens {tower.start} -> {' '.join(map(str, tower.tokens))}")
    if tower.problem is not None:
        rows.append(f"  {tower.problem}")
    return "\n".join(rows)


def _way_out(check: Check) -> str:
    if check.reasons:
        return "not supported, for the reason above"
    if check.row is None:
        return (
            "not supported: no row describes it, and it has no run of equal blocks with an "
            "attention and an MLP child; `turbovlm models` lists what is known"
        )
    verdict = (
        "this draft passes the self-check"
        if check.row_problem is None
        else f"this draft does not pass the self-check: {check.row_problem}"
    )
    return (
        f"not supported yet: no row describes it. Its blocks suggest one; {verdict}.\n\n"
        f"{draft_lines(check.row)}\n\n"
        "Say what only a person knows: prefix (cls, registers), guide ('cls' where there is one), "
        "reads ('cls' where only cls is read), follow (rotary tables). See CONTRIBUTING.md."
    )


def draft_lines(row: Row) -> str:
    """A row as Python."""
    return (
        f"turbovlm.register(turbovlm.Row(\n    block={row.block!r},\n    towers={row.towers!r},\n"
        f"    attention={row.attention!r},\n    mlp={row.mlp!r},\n    prefix={row.prefix!r},\n"
        f"    guide={row.guide!r},\n    reads={row.reads!r},\n))"
    )
