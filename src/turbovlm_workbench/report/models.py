"""The supported models, from the rows: for the terminal, for scripts, and for docs/models.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from turbovlm.plug.denoiser.row import Denoiser
from turbovlm.plug.encoder.row import Refusal, Row

DENOISER_HEADERS = ("denoiser", "merged and restored", "left alone", "example")
HEADERS = ("library", "encoder", "tokens", "prefix", "guide", "short for", "example")

ANY_DECODER = "VisionEncoderDecoderModel"  # named once, in the introduction

INTRODUCTION = """\
# Supported models

Generated from the rows by `turbovlm models --markdown`; a test compares the two.

Every row is tested on a small model with random weights: r = 0 is bit-identical to the host, r > 0
equals a slow literal reference under every score and differs from the host, and removal, one
compiled graph, copies, gradient checkpointing, half precision and exact duplicates are covered.
What contains such an encoder is supported with it: LLaVA through CLIP, PaliGemma through
SigLIP, BLIP for NLVR2 (`turbovlm_workbench.paper.nlvr`) and MiniGPT-v2
(`turbovlm_workbench.paper.minigptv2`) through BLIP's and BLIP-2's. `turbovlm check MODEL`
says it for a model by name.

- **prefix**: tokens (cls, distillation, registers) that are never merged.
- **guide**: whose attention is the semantic value: the cls token's, or the mean query's.
- **short for**: which models get the short sequence, because they read the cls token alone or
  attend over the tokens, however many there are; for rows of transformers a
  VisionEncoderDecoderModel too. Everything else that reads the encoder, or one of its layers, gets
  a value for every position.
- Text encoders are merged only when they are given to `apply` themselves: a caption is short and
  needs a smaller r. Padding has size 0 and is merged away first.
"""

DENOISERS = """
## Diffusion

Denoisers of diffusers, alone or in any pipeline, for `turbovlm.MergeRestore`
([how](generation.md)). Each is tested on a small model with random weights: ratio 0 and removal are
bit-identical to the host, one compiled graph (Flux: block by block), copies, files, threads, half
precision. The blocks of UNets equal a slow literal reference. No published weights were at hand.
"""

REFUSED = """
## Known and refused

These raise `UnsuitableBlock` with the reason, and the model stays as it was.
"""


def to_dict(
    rows: Sequence[Row], denoisers: Sequence[Denoiser], refusals: Sequence[Refusal]
) -> dict[str, Any]:
    """Plain JSON types."""
    return {
        "supported": [
            dict(zip(HEADERS, _cells(r), strict=True)) | {"block": r.block} for r in rows
        ],
        "denoisers": [
            dict(zip(DENOISER_HEADERS, _denoiser(d), strict=True)) | {"block": d.block}
            for d in denoisers
        ],
        "refused": [{"reason": r.reason, "names": list(r.names)} for r in refusals],
    }


def tables(
    rows: Sequence[Row], denoisers: Sequence[Denoiser], refusals: Sequence[Refusal]
) -> tuple[Table, Table, Table]:
    """Supported encoders and denoisers, and what is refused with the reason."""
    view = Table(*HEADERS, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        view.add_row(*_cells(row))
    refused = Table("refused", "reason", box=None, pad_edge=False, header_style="bold")
    for refusal in refusals:
        refused.add_row(", ".join(map(_short, refusal.names)), refusal.reason)
    drawing = Table(*DENOISER_HEADERS, box=None, pad_edge=False, header_style="bold")
    for denoiser in denoisers:
        drawing.add_row(*_denoiser(denoiser))
    return view, drawing, refused


def markdown(
    rows: Sequence[Row], denoisers: Sequence[Denoiser], refusals: Sequence[Refusal]
) -> str:
    """The page docs/models.md."""
    lines = [INTRODUCTION, _line(HEADERS), _line(("---",) * len(HEADERS))]
    lines += [_line([*cells[:-1], f"`{cells[-1]}`"]) for cells in map(_cells, rows)]
    lines += [DENOISERS, _line(DENOISER_HEADERS), _line(("---",) * len(DENOISER_HEADERS))]
    lines += [_line([*cells[:-1], f"`{cells[-1]}`"]) for cells in map(_denoiser, denoisers)]
    lines += [REFUSED, _line(("classes", "reason")), _line(("---", "---"))]
    lines += [_line((", ".join(f"`{n}`" for n in r.names), r.reason)) for r in refusals]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    prefix = row.prefix if isinstance(row.prefix, tuple) else (row.prefix,)
    return [
        row.block.split(".")[0],
        f"{_short(row.towers[0])} ({_short(row.block)})",
        row.modality,
        " + ".join(str(part).rsplit(".", 1)[-1] for part in prefix),
        "cls, else mean" if row.cls else row.guide,
        _kept(row),
        row.example,
    ]


def _kept(row: Row) -> str:
    """Which models get the short sequence; all others get every position."""
    own = {"cls": "its own forward", "tokens": "its own forward"}.get(row.reads)
    names = [_short(n) for n, reads in row.readers.items() if reads in ("cls", "tokens")]
    readers = [name for name in names if name != ANY_DECODER]
    if row.pool:
        own = "its own forward, pooling by cls"
    return ", ".join(filter(None, (own, *readers))) or "none"


def _denoiser(row: Denoiser) -> list[str]:
    parts = (*row.attention, *row.feed_forward)
    return [
        f"{', '.join(map(_short, row.roots))} ({_short(row.block)})",
        "the whole block" if row.whole else ", ".join(parts),
        row.left,
        row.example,
    ]


def _short(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
