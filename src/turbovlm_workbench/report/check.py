"""What `turbovlm check` found, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from turbovlm.config import Merge
from turbovlm.plug.encoder.row import Row
from turbovlm_workbench.compare.check import Check, Resolved, TowerCheck
from turbovlm_workbench.compare.language import NEW_TOKENS, LanguageCheck

LANGUAGE_HEADERS = (
    "",
    "visual tokens",
    "tower GFLOPs",
    "choosing",
    "prefill",
    "decoding step",
    "cache MiB",
    "first token",
    "whole answer",
)


def check_lines(check: Check) -> str:
    """The model, every known tower, its language model, and the verdict or the way out."""
    parts = [f"{check.model} ({check.what})"]
    parts += [_tower(tower, check.config) for tower in check.towers]
    if check.shortens and not check.towers:
        parts.append("vision tower: no row describes it, so turbovlm.Merge does not apply")
    parts += [f"not patched: {reason}" for reason in check.reasons]
    if check.language is not None:
        parts.append(language_lines(check.language))
    elif check.language_problem is not None:
        parts.append(f"language model: known, but not counted ({check.language_problem})")
    parts.append(_verdict(check))
    return "\n\n".join(parts)


def _verdict(check: Check) -> str:
    if check.language is not None:
        best = check.language.rows[-1]
        settings = ", ".join(f"turbovlm.{config}" for config in best.configs)
        return f"supported: turbovlm.apply(model, {settings})"
    if check.merges and check.gflops is not None:
        before, after = check.gflops
        return (
            f"supported: {check.config} leaves {before:.2f} -> {after:.2f} GFLOPs, which allows "
            f"{before / after:.2f}x"
        )
    if check.fits:
        return f"supported: {check.config} fits its blocks; what it leaves was not counted"
    if not check.towers:
        return _way_out(check)
    return "not supported by this version: report it with the lines above"


def language_lines(language: LanguageCheck) -> str:
    """What a prompt with one picture costs, with each way to reduce its tokens."""
    title = (
        f"{language.name}: one picture of {language.picture}, {language.words} tokens of text, an "
        f"answer of {NEW_TOKENS} tokens"
    )
    rows = []
    for row in language.rows:
        first, answer = language.allows(row)
        cells = (
            f"{row.visual}",
            f"{row.tower:.1f}",
            f"{row.choosing:.2f}",
            f"{row.prefill:.1f}",
            f"{row.step:.2f}",
            f"{row.cache_bytes / 2**20:.1f}",
            f"{first:.2f}x",
            f"{answer:.2f}x",
        )
        rows.append((row.name, *cells))
    columns = list(zip(LANGUAGE_HEADERS, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = [title]
    for row in (LANGUAGE_HEADERS, *rows):
        name, *cells = (text.ljust(w) if i == 0 else text.rjust(w)
                        for i, (text, w) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        lines.append("  " + "  ".join((name, *cells)))
    return "\n".join([*lines, *_truth(language)])


def _truth(language: LanguageCheck) -> list[str]:
    """What the table means, in sentences."""
    lines = [
        "GFLOPs count a multiply-add as one and causal attention in full; the cache holds 16-bit "
        "numbers; the speed-ups are what the counts allow, not times: a decoding step is bound by "
        "reading the weights, and at batch 1 launches can cost more than the work."
    ]
    merged = next((r for r in language.rows if len(r.configs) == 1 and "Merge(" in r.name), None)
    if merged is not None:
        first, _ = language.allows(merged)
        lines.append(
            f"{merged.name} alone allows {first:.2f}x to the first token: every position is "
            f"restored before the language model, and the tower is {language.share:.0%} of the "
            "work. Fewer tokens for the language model need turbovlm.VisualTokens."
        )
    return lines


def _tower(tower: TowerCheck, config: Merge) -> str:
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
        rows.append(f"  {config}: tokens {tower.start} -> {_numbers(tower.tokens)}")
    if tower.resolved is not None:
        rows += _resolved(tower.resolved, config)
    if tower.problem is not None:
        rows.append(f"  {tower.problem}")
    return "\n".join(rows)


def _resolved(resolved: Resolved, config: Merge) -> list[str]:
    """What ``Merge(speedup=...)`` means, where it was not run, and on a GPU."""
    rows = []
    if resolved.config != config:
        rows.append(f"  recommended, {resolved.config}: {_numbers(resolved.tokens)}")
    if resolved.tokens_gpu != resolved.tokens:
        rows.append(
            f"  {resolved.config} on a GPU, where fewer blocks merge: "
            f"{_numbers(resolved.tokens_gpu)}"
        )
    return rows


def _numbers(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


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
